"""Make the sample corpus: texts that SmolLM2-135M-Instruct writes when asked, through minicore itself.

    NUMBA_NUM_THREADS=1 python tutorials/data/make_corpus.py

The script writes topics.jsonl (short texts about eight topics) and long.jsonl (long texts, two per topic) to
its own folder or to the folder given. It keeps existing lines and does not make them again. It takes about
forty minutes on one core. Another number of threads or another processor may change a sampled token.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import minicore
from minicore.files import atomic_write
from minicore.model import Model

SUBJECTS = {
    "astronomy": """\
        the phases of the Moon; the rings of Saturn; how stars are born; the planet Mars; comets and their
        tails; black holes; a total eclipse of the Sun; the Milky Way; telescopes in the desert; the moons
        of Jupiter; meteor showers; the surface of the Sun; supernovae; the search for distant planets;
        the northern lights""",
    "cooking": """\
        baking bread at home; a good tomato sauce; roasting a chicken; vegetable soup; making cheese;
        frying fish; an apple pie; cooking rice; a chocolate cake; grilling meat outdoors; soft-boiled
        eggs; fresh pasta; pickled vegetables; pancakes for breakfast; a spicy lentil stew""",
    "football": """\
        a goalkeeper who saves a penalty; a young striker's first goal; the last minute of a cup final;
        training before a match; a referee and a red card; a team that was relegated; a corner kick; a
        coach's tactics; fans on their way to the stadium; an injured midfielder; the transfer of a
        defender; a free kick; a draw between rivals; the captain of a national team; a penalty shoot-out""",
    "gardening": """\
        growing tomatoes; pruning roses; making compost; planting bulbs in autumn; keeping snails off
        lettuce; a small herb garden; watering in a dry summer; sowing carrots; an old apple tree; weeds
        in the flower bed; a lawn in spring; raising seedlings indoors; a greenhouse; a hedge around the
        garden; soil with too much clay""",
    "law": """\
        a trial by jury; a contract between two companies; a witness in court; the rights of a tenant; a
        judge who gives a sentence; an appeal to a higher court; a lawyer and her client; a will and its
        heirs; copyright; a law passed by parliament; a divorce settlement; bail; a patent dispute; the
        presumption of innocence; a fine for speeding""",
    "medicine": """\
        a broken arm; high blood pressure; how vaccines work; a surgeon before an operation; asthma;
        treating a fever; diabetes and insulin; antibiotics; a stroke; the kidneys; a blood test;
        migraine; a nurse in intensive care; an infection of the lungs; a weak heart""",
    "music": """\
        learning the violin; a symphony orchestra; tuning a piano; a choir that rehearses; the rhythm of a
        drummer; writing a melody; jazz improvisation; an opera singer; the chords of a guitar; a
        conductor; a string quartet; the sound of a trumpet; a composer's last work; folk songs; a concert
        in a small hall""",
    "programming": """\
        finding a bug in a program; a sorting algorithm; variables and types; a loop that never ends;
        writing tests for code; a database query; version control; recursion; a web server; memory leaks;
        reading an error message; object-oriented classes; a compiler; two threads and a lock; naming
        functions""",
}
FORMS = ("Write one paragraph of plain prose about {}.", "Explain to a friend, in about a hundred words: {}.")
PARTS = (
    "Write one paragraph of plain prose about {}: describe a scene.",
    "Write one paragraph of plain prose that explains the background of this subject: {}.",
    "Write one paragraph of plain prose that gives a detailed example on this subject: {}.",
    "Write one paragraph of plain prose about the people who have to do with {}.",
    "Write one paragraph of plain prose about a difficulty with {} and what can be done.",
    "Write one paragraph of plain prose about the history of this subject: {}.",
    "Write one paragraph of plain prose that gives practical advice on this subject: {}.",
    "Write one paragraph of plain prose that looks ahead: the future of {}.",
)
SYSTEM = "You write clear, plain English prose without headings, lists or greetings."
SHORT, LONG = (60, 250), 640  # tokens of SmolLM2
TRIES = 10
MARKUP = re.compile(r"[*#`{}<>|\[\]]|^\s*([-•]|\d+[.)]) ", re.M)
TALK = re.compile(
    r"\b(as an ai|language model|i'm sorry|here('s| is) (a|an|the|one)|certainly|sure[,!])", re.I
)


def subjects(most: int) -> Iterator[tuple[str, str]]:
    """Yield topics and their subjects."""
    for label, listed in SUBJECTS.items():
        for subject in listed.split(";")[:most]:
            yield label, " ".join(subject.split())


def answer(model: Model, prompt: str, first_seed: int) -> tuple[str, int] | None:
    """Return the first acceptable answer of the model and its seed, counting up from the first seed."""
    assert model.tokenizer is not None
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
    ids = model.tokenizer.chat(messages)
    for seed in range(first_seed, first_seed + TRIES):
        out = model.generate(ids, max_new_tokens=SHORT[1], temperature=0.7, top_p=0.9, seed=seed)
        text = out.text.strip()
        if out.stats["stop_reason"] == "length":  # cut after the last complete sentence
            ends = [found.end() for found in re.finditer(r'[.!?]["”’]?(?=\s)', text)]
            text = text[: ends[-1]] if ends else ""
        text = re.sub(r"\s*\n\s*", "\n", text)
        if will_do(text, len(model.tokenizer.encode(text))):
            return text, seed
    return None


def will_do(text: str, n_tokens: int) -> bool:
    """Return whether a text is plain prose of the wanted length without repetition."""
    words = text.lower().split()
    repeated = max(Counter(zip(*(words[i:] for i in range(6)), strict=False)).values(), default=0)
    plain = not MARKUP.search(text) and not TALK.search(text[:200]) and text[-1:] in tuple('.!?"”')
    return SHORT[0] <= n_tokens <= SHORT[1] and plain and repeated < 3


def write(path: Path, lines: list[dict[str, object]]) -> None:
    """Replace a file atomically."""
    with atomic_write(path) as part:
        part.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    print(f"{path.name}: {len(lines)} texts", flush=True)


def read(path: Path) -> list[dict[str, object]]:
    """Return the lines that an interrupted run left in a file; none if there is no file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def make_topics(model: Model, path: Path) -> None:
    """Write the short texts: one per subject and form."""
    lines = read(path)
    done = {line["prompt"] for line in lines}
    asked = [(label, form.format(subject)) for label, subject in subjects(15) for form in FORMS]
    for number, (label, prompt) in enumerate(asked):
        if prompt in done or (got := answer(model, prompt, TRIES * number)) is None:
            continue
        lines.append({"label": label, "text": got[0], "prompt": prompt, "seed": got[1]})
        write(path, lines)


def make_long(model: Model, path: Path) -> None:
    """Write the long texts: for each subject, paragraphs prompted one by one until they are long enough."""
    assert model.tokenizer is not None
    lines = read(path)
    done = {line["subject"] for line in lines}
    for number, (label, subject) in enumerate(subjects(2)):
        parts: list[tuple[str, int]] = []
        for i, form in enumerate(PARTS):
            if subject in done or len(model.tokenizer.encode("\n".join(text for text, _ in parts))) >= LONG:
                break
            got = answer(model, form.format(subject), 10_000 + TRIES * (len(PARTS) * number + i))
            parts += [got] if got else []
        if parts:
            text, seeds = "\n".join(text for text, _ in parts), [seed for _, seed in parts]
            lines.append({"label": label, "text": text, "subject": subject, "seeds": seeds})
            write(path, lines)


def main() -> None:
    """Parse the arguments and make both files."""
    parser = argparse.ArgumentParser(description="Make the sample corpus.")
    parser.add_argument("-m", "--model", default="smollm2-135m")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--only", choices=["topics", "long"], help="make one file only")
    args = parser.parse_args()
    model = minicore.load(args.model, dtype="int8")
    if args.only != "long":
        make_topics(model, args.output / "topics.jsonl")
    if args.only != "topics":
        make_long(model, args.output / "long.jsonl")


if __name__ == "__main__":
    main()
