"""The paper's tasks: readers name what is malformed, prompts fit, metrics are the field's, runs resume."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import minicore as mc
from minicore import cli
from minicore.cli.eval_tasks import report_lines
from minicore.errors import InputError
from minicore.evaluation.sweep import Workers
from minicore.evaluation.tasks import metrics, readers, run, scoring
from minicore.evaluation.tasks.answers import Prompted
from minicore.evaluation.tasks.prompts import FOLDER, Prompts
from minicore.evaluation.tasks.readers import Example
from tests.helpers import GOLDEN, SHARED


@pytest.fixture(scope="module")
def model() -> mc.Model:
    return mc.load(GOLDEN / "llama-chat")


def example(*references: str, wrong: tuple[str, ...] = (), **fields: str) -> Example:
    return Example("id", "here, line 1", fields, references, wrong)


def write(path: Path, *lines: object) -> Path:
    text = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text("".join(line + "\n" for line in text), encoding="utf-8")
    return path


# --- metrics ---


def test_exact_match_and_f1_are_squads():
    """By the rules of the official script, evaluate-v2.0.py, worked by hand."""
    for answer, references, exact, f1 in [
        ("The Denver Broncos!", ("denver  broncos",), 1, 1),
        ("the Broncos of Denver", ("Denver Broncos",), 0, 0.8),
        ("a broncos broncos", ("Broncos and an eagle",), 0, 2 / 5),  # a word counts as often as in both
        ("in 1976", ("1976", "the year 1976"), 0, 2 / 3),
        ("$5.50", ("550",), 1, 1),  # punctuation goes, ASCII alone
        ("“1976”", ("1976",), 0, 0),
        ("São Paulo", ("são paulo",), 1, 1),
        ("theatre", ("atre",), 0, 0),  # articles are whole words
        ("", ("1976",), 0, 0),
        ("", ("",), 1, 1),  # no answer where there is none
        ("1976", ("",), 0, 0),
        ("the", ("",), 1, 1),
    ]:
        of = example(*references)
        assert (metrics.exact_match(answer, of), metrics.f1(answer, of)) == (exact, pytest.approx(f1)), answer


def test_contains_is_word_for_word():
    of = example("the Beatles", "4")
    assert metrics.contains("It was The Beatles, I think.", of)
    assert not metrics.contains("It was Beatlesque in 1964", of)
    assert metrics.contains("There were 4.", of)
    assert not metrics.contains("whatever", example(""))


def test_the_last_number_counts():
    of = example("1,200")
    assert metrics.number("3 * 400 = 1200. The answer is 1200.", of)
    assert metrics.number("1,200.0", of)
    assert not metrics.number("The answer is 1200, or 3.", of)
    assert not metrics.number("no idea", of)
    assert metrics.number("so it is -4", example("-4"))


def test_bleu_and_chrf_are_those_published():
    """The example of sacrebleu's README: several references a sentence."""
    answers = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = [
        ("The dog bit the man.", "The dog had bit the man."),
        ("It was not unexpected.", "No one was surprised."),
        ("The man bit him first.", "The man had bitten the dog."),
    ]
    examples = [example(*of) for of in references]
    assert metrics.score("bleu", answers, examples) == pytest.approx(48.530827009929865)
    from sacrebleu.metrics import BLEU, CHRF

    columns = [list(of) for of in zip(*references, strict=True)]
    assert metrics.score("bleu", answers, examples) == BLEU().corpus_score(answers, columns).score
    assert metrics.score("chrf", answers, examples) == CHRF().corpus_score(answers, columns).score
    assert metrics.score("bleu", ["", "", ""], examples) == 0


def test_rouge_is_that_published():
    """The examples of rouge-score's README and of the rouge card of Hugging Face's evaluate."""
    fox = example("The quick brown fox jumps over the lazy dog")
    quick = ["The quick brown dog jumps on the log."]
    from rouge_score.rouge_scorer import RougeScorer

    said = RougeScorer(["rouge1", "rougeL"], use_stemmer=True).score(fox.references[0], quick[0])
    for kind in ("rouge1", "rougeL"):
        assert metrics.score(kind, quick, [fox]) == pytest.approx(100 * said[kind].fmeasure)
    assert metrics.score("rouge1", quick, [fox]) == pytest.approx(100 * 12 / 17)  # 6 of 8 words, 6 of 9
    card = [example("hello", "there"), example("general kenobi", "general yoda")]
    answers = ["hello there", "general kenobi"]
    assert metrics.score("rouge1", answers, card) == pytest.approx(100 * 5 / 6)
    assert metrics.score("rouge2", answers, card) == pytest.approx(50)
    assert metrics.score("rougeL", answers, card) == pytest.approx(100 * 5 / 6)
    assert metrics.score("rougeL", ["", "—"], card) == 0


def test_bleu_max_is_truthfulqas():
    import sacrebleu

    of = example("Nothing happens.", "I have no comment.", wrong=("You die at once.",))
    for answer in ("Nothing at all happens.", "You die at once.", "", "¿Qué?"):
        right, wrong = (
            max(
                sacrebleu.corpus_bleu(
                    [answer],
                    [[text]],
                    smooth_method="exp",
                    smooth_value=0.0,
                    force=False,
                    lowercase=False,
                    tokenize="intl",
                    use_effective_order=False,
                ).score
                for text in texts
            )
            for texts in (of.references, of.wrong)
        )
        assert metrics.score("bleu_max", [answer], [of]) == pytest.approx(right)
        assert metrics.score("truer", [answer], [of]) == 100 * (right > wrong)


@pytest.mark.parametrize(
    ("package", "module", "metric"),
    [("rouge-score", "rouge_score.rouge_scorer", "rouge1"), ("sacrebleu", "sacrebleu", "bleu")],
)
def test_a_missing_library_is_named(monkeypatch, package, module, metric):
    monkeypatch.setitem(sys.modules, module, None)
    metrics.rouge_scorer.cache_clear()
    metrics.sacrebleu.cache_clear()
    with pytest.raises(InputError, match=rf"{package}.*pip install 'minicore-lm\[tasks\]'"):
        metrics.score(metric, ["a"], [example("a")])


# --- readers ---

SQUAD = {
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "Ada built it in 1874.",
                    "qas": [
                        {
                            "id": "q1",
                            "question": "Who built it?",
                            "answers": [
                                {"text": "Ada", "answer_start": 0},
                                {"text": "Ada", "answer_start": 0},
                            ],
                        },
                        {"id": "q2", "question": "Why?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ]
}
TRIVIA = {
    "Data": [
        {"Question": "Who?", "QuestionId": "t1", "Answer": {"Value": "Ada", "Aliases": ["Ada M.", "Ada"]}}
    ]
}
TRUTHFUL = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
FORMATS = [
    ("summary", "x.jsonl", {"id": 7, "document": "A long text.", "summary": "Short."}, ("Short.",)),
    (
        "summary",
        "x.jsonl",
        {"source": ["One.", "Two."], "target": ["T.", "U."], "paper_id": "p"},
        ("T.", "U."),
    ),
    ("qa", "x.jsonl", {"context": "c", "question": "q", "answers": {"text": ["a", "b"]}}, ("a", "b")),
    ("openqa", "x.jsonl", {"question": "when", "answer": ["1972", "Dec 1972"]}, ("1972", "Dec 1972")),
    (
        "openqa",
        "x.jsonl",
        {"question": "who", "question_id": "t", "answer": {"value": "Ada", "aliases": ["A."]}},
        ("Ada", "A."),
    ),
    ("openqa", "x.json", json.dumps(TRIVIA), ("Ada", "Ada M.")),
    ("steps", "x.jsonl", {"question": "2 + 2?", "answer": "2 + 2 = 4\n#### 4"}, ("4",)),
    ("translation", "x.jsonl", {"translation": {"ro": "Plouă.", "en": "It rains."}}, ("It rains.",)),
    (
        "openqa",
        "x.csv",
        TRUTHFUL + 'A,B,"Why,\nthen?",x,No; Yes it is.,Never,url',
        ("No.", "Yes it is.", "I have no comment."),
    ),
]


@pytest.mark.parametrize(("task", "name", "content", "references"), FORMATS)
def test_every_format_is_read(tmp_path, task, name, content, references):
    (found,) = readers.read(task, [write(tmp_path / name, content)])
    assert found.references == references
    assert found.fields and all(found.fields.values())


def test_an_empty_document_of_xsum_is_one(tmp_path, model):
    path = write(tmp_path / "x.jsonl", {"document": "", "summary": "Pictures of Lagos."})
    (found,) = readers.read("summary", [path])
    put = Prompts.read("summary")
    assert model.tokenizer.decode(put.ids(model, found, 0)[0]).startswith("Document: \nSummary")
    assert put.floors([found]) == [""]


def test_squads_own_file_is_read(tmp_path):
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(SQUAD, indent=1), encoding="utf-8")
    first, second = readers.read("qa", [path])
    assert first.references == ("Ada",) and second.references == ("",)
    assert first.fields == {"context": "Ada built it in 1874.", "question": "Who built it?"}
    assert [first.id, second.id] == ["q1", "q2"]


def test_parallel_text_is_read_from_source_to_target(tmp_path):
    paths = [
        write(tmp_path / "n.de", "Es regnet.", "Ja\u2028gut."),
        write(tmp_path / "n.eng", "It rains.", "Yes."),
    ]
    first, second = readers.read("translation", paths)
    fields = {"source_language": "German", "target_language": "English", "source": "Es regnet."}
    assert (first.fields, first.references) == (fields, ("It rains.",))
    assert second.fields["source"] == "Ja\u2028gut."  # which is no end of a line here
    back, _ = readers.read("translation", paths[::-1])
    assert back.fields["source_language"] == "English" and back.references == ("Es regnet.",)


def test_ids_that_come_twice_are_told_apart(tmp_path):
    lines = [{"id": "a", "document": f"d{i}", "summary": "s"} for i in range(3)]
    read = readers.read("summary", [write(tmp_path / "x.jsonl", *lines)])
    assert [one.id for one in read] == ["a", "a#2", "a#3"]
    lines[1]["id"] = "a#2"
    read = readers.read("summary", [write(tmp_path / "x.jsonl", *lines)])
    assert [one.id for one in read] == ["a", "a#2", "a#2#2"]


GOOD = {"document": "d", "summary": "s"}
BAD = [
    ("summary", [GOOD, "{"], "line 2: is not valid JSON"),
    ("summary", [GOOD, "", [1]], "line 3: is \\[1\\], expected an object"),
    ("summary", [GOOD, {"document": "d"}], "line 2: has document, expected document, summary"),
    ("summary", [{"document": "d", "summary": " "}], "line 1: summary is .*expected a text"),
    ("summary", [{"document": 5, "summary": "s"}], "line 1: document is 5"),
    ("summary", [{"source": [], "target": ["t"]}], "line 1: source is \\[\\]"),
    ("summary", [], "holds no example"),
    ("qa", [{"context": "c", "question": "q", "answers": {"text": []}}], "line 1: answers"),
    ("qa", [{"context": "c", "question": "q", "answers": 3}], "line 1: answers is 3"),
    ("openqa", [{"question": "q", "answer": [None]}], "line 1: answer"),
    ("openqa", [{"question": "q", "answer": {"aliases": []}}], "line 1: answer"),
    ("openqa", [{"question": "q", "answer": {"value": "x", "aliases": 3}}], "line 1: aliases"),
    ("translation", [{"translation": {"en": "a"}}], "line 1: translation"),
    ("translation", [{"translation": {"xx": "a", "en": "b"}}], "line 1: 'xx'"),
    ("translation", [{"translation": {"de": "a", "deu": "b"}}], "line 1: de and deu are the same language"),
    ("steps", [{"question": "q", "answer": 4}], "line 1: answer is 4"),
    ("steps", [{"question": "q", "answer": "#### four"}], 'line 1: answer is "four", expected a number'),
    ("summary", [GOOD, "[" * 100_000], "line 2: is not valid JSON"),
    ("summary", [GOOD, '{"document": "\\ud800", "summary": "s"}'], "line 2: document is .*ud800"),
]


@pytest.mark.parametrize(("task", "lines", "said"), BAD)
def test_a_malformed_record_is_named_by_file_and_line(tmp_path, task, lines, said):
    with pytest.raises(InputError, match=f"bad.jsonl.*{said}"):
        readers.read(task, [write(tmp_path / "bad.jsonl", *lines)])


def test_a_malformed_question_of_squad_is_named_by_its_line(tmp_path):
    value = json.loads(json.dumps(SQUAD))
    del value["data"][0]["paragraphs"][0]["qas"][1]["question"]
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
    lines = path.read_text().splitlines()
    ends = 1 + next(i for i, line in enumerate(lines) if "is_impossible" in line) + 1
    with pytest.raises(InputError, match=f"dev.json, line {ends}: has .*expected context, question, answers"):
        readers.read("qa", [path])
    for wrong, said in (
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", 'line 1: .* "data"'),
        ('{"data": [{}]}', '"paragraphs"'),
    ):
        path.write_text(wrong)
        with pytest.raises(InputError, match=said):
            readers.read("qa", [path])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TRUTHFUL + "a,b,c\n", "line 2: expected 7 columns"),
        (TRUTHFUL + "a,b,q,x,yes,no,url\na,b,,x,yes,no,url\n", "line 3: question"),
        (TRUTHFUL + "a,b,q,x,;,no,url\n", "line 2: correct_answers"),
        ("Question,Answer\n", "line 1: has no column Correct Answers"),
    ],
)
def test_a_malformed_row_is_named_by_its_line(tmp_path, text, said):
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        readers.read("openqa", [path])


def test_malformed_parallel_text_is_named(tmp_path):
    de = write(tmp_path / "n.de", "Ja.", "", "Nein.")
    for other, said in (
        (write(tmp_path / "short.en", "Yes."), "has 3 lines and .* 1"),
        (write(tmp_path / "n.en", "Yes.", "b", "No."), "n.de, line 2: is empty"),
        (write(tmp_path / "n.deu", "Ja.", "b", "Nein."), "in the same language"),
        (write(tmp_path / "n.txt", "Yes."), "its language"),
    ):
        with pytest.raises(InputError, match=said):
            readers.read("translation", [de, other])
    with pytest.raises(InputError, match="not UTF-8"):
        (tmp_path / "n.fr").write_bytes(b"\xff\n")
        readers.read("translation", [de, tmp_path / "n.fr"])


def test_names_of_the_hub(tmp_path, monkeypatch):
    """Rows of a data set come through the library, here a stand-in for it."""
    import types

    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return [{"document": "d", "summary": "s"}] * 2 if name == "org/xsum" else 1 / 0

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = readers.read("summary", ["hub:org/xsum:en@test[:2]"])
    assert asked == [("org/xsum", "en", "test[:2]")] and len({one.id for one in found}) == 2
    with pytest.raises(InputError, match="division by zero"):
        readers.read("summary", ["hub:org/other@test"])
    with pytest.raises(InputError, match="NAME@SPLIT"):
        readers.read("summary", ["hub:org/xsum"])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install"):
        readers.read("summary", ["hub:org/xsum@test"])


@pytest.mark.parametrize(
    ("task", "names", "n"),
    [
        pytest.param(task, names, n, marks=pytest.mark.shared(*(f"data/{name}" for name in names)))
        for task, names, n in [
            ("summary", ["scitldr_A_test618.jsonl"], 618),
            ("qa", ["xquad_en_squad11_1190.json"], 1190),
            ("openqa", ["TruthfulQA_813.csv"], 813),
            ("openqa", ["NQ-open.dev.jsonl"], 3610),
            ("translation", ["tatoeba-test-v2021-08-07.deu", "tatoeba-test-v2021-08-07.eng"], 17565),
        ]
    ],
)
def test_real_data_are_read_whole(task, names, n):
    found = readers.read(task, [SHARED / "data" / name for name in names])
    assert len(found) == n == len({one.id for one in found})


# --- prompts ---


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.toml")))
def test_prompts_that_come_with_minicore_have_six_worked_examples_of_a_kind(name):
    put = Prompts.read(name)
    for shot in put.shots:
        fields = {key: text for key, text in shot.items() if key != "answer"}
        front = put.front(example("r", **fields), 6)
        assert front.count(put.between) == 6 and put.fill(fields) in front
        assert all(stop not in shot["answer"] for stop in put.stop)  # else it would end the answer early
    with pytest.raises(InputError, match="shots is 7, but there are 6"):
        put.front(example("r", **fields), 7)


def test_a_prompt_ends_where_the_answer_begins(model):
    one = example("a", question="Who?")
    ids, cut = Prompts.read("openqa").ids(model, one, 0)
    assert model.tokenizer.decode(ids) == "Question: Who?\nAnswer:" and cut == 0


def test_a_document_that_does_not_fit_loses_its_first_words_and_no_more(model):
    put = Prompts.read("qa")
    room = model.config.n_ctx - put.new_tokens
    words = [f"w{i}é" for i in range(600)]
    one = example("a", context=" ".join(words), question="Who?")
    ids, cut = put.ids(model, one, 0)
    assert 0 < cut < 600 and len(ids) <= room
    text = model.tokenizer.decode(ids)
    assert text == f"Passage: {' '.join(words[cut:])}\nQuestion: Who?\nAnswer:"
    more = put.fill(one.fields | {"context": " ".join(words[cut - 1 :])})
    assert len(model.tokenizer.encode(more)) > room
    with pytest.raises(InputError, match="without the document"):
        put.ids(model, example("a", context="c", question="Who? " * 600), 0)
    with pytest.raises(InputError, match="leaves"):
        Prompts.read("openqa").ids(model, example("a", question="Who? " * 600), 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("template = 3 =", "not valid TOML"),
        ('template = "t"', "has no metrics"),
        ('templat = "t"', "did you mean template"),
        ('template = "t"\nmetrics = ["rouge"]\nfloor = "source"\nnew_tokens = 3', "unknown metric"),
        ('template = "t"\nmetrics = ["f1"]\nfloor = "fl"\nnew_tokens = 3', "unknown floor"),
        ('template = "t"\nmetrics = ["f1"]\nfloor = "lead"\nnew_tokens = 3', "needs document"),
    ],
)
def test_malformed_prompts_are_named(tmp_path, text, said):
    path = tmp_path / "my.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"my.toml.*{said}"):
        Prompts.read(str(path))


def test_floors_need_no_model():
    put = Prompts.read("summary")
    assert put.floors([example("r", document="Dr. No. A second. A third.")]) == ["Dr."]
    asked = [example("the Moon", "Luna"), example("moon"), example("Mars")]
    assert Prompts.read("openqa").floors(asked) == ["the Moon"] * 3
    assert Prompts.read("translation").floors([example("It rains.", source="Es regnet.")]) == ["Es regnet."]


# --- runs ---

PREDICTORS = ["dense", "stability", "griffin", "random", "sliding", "oracle", "gate", "auto"]


@pytest.fixture
def questions(tmp_path) -> Path:
    lines = [
        {"question": f"who saw the {word}", "answer": ["a bird"]} for word in "cat tree bird sun été".split()
    ]
    return write(tmp_path / "q.jsonl", *lines)


def test_answers_are_what_generate_gives(model, questions):
    found = run.evaluate(model, "openqa", [questions], PREDICTORS, [0.3, 0.6], out=questions.parent / "out")
    rows = [
        json.loads(line) for line in (questions.parent / "out" / "answers.jsonl").read_text().splitlines()
    ][1:]
    assert len(rows) == 5 * (1 + 2 * (len(PREDICTORS) - 1))
    asked = {one.id: one for one in readers.read("openqa", [questions])}
    put = Prompts.read("openqa")
    from minicore.backends.cpu.threads import limited

    for row in rows:
        ids, _ = put.ids(model, asked[row["example"]], 0)
        with limited(1):
            out = model.generate(
                ids,
                max_new_tokens=put.new_tokens,
                stop=list(put.stop),
                predictor=row["predictor"],
                beta=row["beta"],
                seed=run.digest(ids),
            )
        assert (row["text"], row["new_tokens"]) == (out.text, len(out.token_ids)), row
        assert row["kept"] == pytest.approx(out.stats["core_fraction"])
    dense = found["settings"][0]
    assert dense["to_dense"]["f1"] == (0, 0, 0) and dense["kept"][0] == 1
    for row in found["settings"]:
        for metric, (estimate, low, high) in row["scores"].items():
            texts = [
                r["text"] for r in rows if (r["predictor"], r["beta"]) == (row["predictor"], row["beta"])
            ]
            assert low <= estimate <= high
            in_order = [asked[r["example"]] for r in rows if r["predictor"] == "dense"]
            assert estimate == pytest.approx(metrics.score(metric, [t.strip() for t in texts], in_order))


def test_differences_are_paired():
    """Two answers to the same examples: what makes an example hard for both does not widen the interval."""
    put, n = Prompts.read("openqa"), 60
    asked = [Prompted(example("yes"), [1], 0) for _ in range(n)]
    texts = ["yes" if i % 2 else "no" for i in range(n)]
    same = scoring.score_answers(put, texts, asked, texts, 0)
    assert same["to_dense"]["exact"] == (0, 0, 0)
    assert same["scores"]["exact"][1] < 50 < same["scores"]["exact"][2]
    assert scoring.score_answers(put, texts, asked, None, 0)["to_dense"] is None


def test_corpus_scores_are_drawn_as_if_the_texts_were(model):
    """An interval's ends are those of sacrebleu on texts drawn anew."""
    from sacrebleu.metrics import BLEU

    rng, words = np.random.default_rng(0), "the cat saw a bird in some old tree near it".split()
    draw = lambda: " ".join(rng.choice(words, 7))  # noqa: E731
    texts, right = [draw() for _ in range(12)], [draw() for _ in range(12)]
    each = scoring.statistics_of("bleu", texts, [example(r) for r in right])
    rows = np.random.default_rng(3).integers(0, 12, (2000, 12))
    scores = [BLEU().corpus_score([texts[i] for i in r], [[right[i] for i in r]]).score for r in rows]
    low, high = np.quantile(scores, [0.025, 0.975])
    assert scoring.interval("bleu", [each], 3)[1:] == (pytest.approx(low), pytest.approx(high))


def test_empty_answers_are_scored_and_counted():
    put = Prompts.read("openqa")
    asked = [Prompted(example("yes"), [1], 0)] * 4
    rows = [{"text": text, "kept": 1.0} for text in ("", " \n", "yes", "no")]
    table = scoring.summarise(put, asked, rows, None, 0)
    assert table["empty"] == 0.5 and table["scores"]["exact"][0] == 25


def test_the_same_table_however_it_was_run(model, questions, tmp_path):
    """In one go; stopped twice and gone on; by two processes; from nothing but what was kept."""
    said = {"shots": 1, "n_examples": 4, "seed": 1}
    whole = run.evaluate(model, "openqa", [questions], PREDICTORS, [0.5], **said)
    out = tmp_path / "parts"
    run.evaluate(model, "openqa", [questions], ["griffin"], [0.5], out=out, **said)
    path = out / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-20])  # killed while it wrote
    parts = run.evaluate(model, "openqa", [questions], PREDICTORS, [0.5], out=out, workers=Workers(2), **said)
    assert parts == whole
    before = path.read_bytes()
    assert run.evaluate(model, "openqa", [questions], PREDICTORS, [0.5], out=out, **said) == whole
    assert path.read_bytes() == before
    with pytest.raises(InputError, match="shots 1, expected 0"):
        run.evaluate(model, "openqa", [questions], PREDICTORS, [0.5], out=out, **said | {"shots": 0})


def test_a_killed_command_goes_on_and_ends_with_the_same_table(tmp_path, capsys):
    lines = [{"question": f"who saw bird {i}", "answer": ["a bird"]} for i in range(60)]
    data = write(tmp_path / "q.jsonl", *lines)
    argv = ["eval", "tasks", "--task", "openqa", "--data", str(data), "-m", str(GOLDEN / "llama-chat")]
    argv += ["--predictors", "dense,stability,griffin", "--betas", ".2,.4"]
    killed, path = [*argv, "-o", str(tmp_path / "out")], tmp_path / "out" / "answers.jsonl"
    process = subprocess.Popen([sys.executable, "-m", "minicore", *killed], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not (path.exists() and path.read_bytes().count(b"\n") > 5) and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    done = path.read_bytes().count(b"\n") - 1
    assert 5 <= done < 300
    assert cli.main([*killed, "--json"]) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert cli.main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == resumed
    rows = [json.loads(line) for line in path.read_text().splitlines()][1:]
    assert len(rows) == 300 == len({(row["example"], row["predictor"], row["beta"]) for row in rows})


def test_the_command(capsys, questions, tmp_path):
    argv = ["eval", "tasks", "--task", "openqa", "--data", str(questions), "-m", str(GOLDEN / "llama-chat")]
    argv += ["--predictors", "dense,stability", "--betas", ".4", "--examples", "3"]
    assert cli.main([*argv, "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert printed.splitlines() == report_lines(written)
    assert "floor: majority" in printed and "3 of 5 examples of q.jsonl" in printed
    assert cli.main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == written
    for wrong in (
        ["--task", "song"],
        ["--predictors", "griffin@others"],
        ["--predictors", "similarity"],
        ["--predictors", "none"],
        ["--betas", "2"],
        ["--shots", "9"],
        ["--shots", "-1"],
        ["--examples", "0"],
        ["--workers", "0"],
        ["--data", "missing.jsonl"],
        ["--data", "a.de", "b.en", "c.fr"],
        ["--prompts", "missing.toml"],
        ["--alpha", "0"],
        ["--backend", "gpu"],
        ["--clusters", "missing", "--predictors", "static"],
    ):
        assert cli.main([*argv, *wrong]) == 2, wrong
        out, err = capsys.readouterr()
        assert not out and len(err.splitlines()) == 1, err


def test_cut_documents_are_told(capsys, tmp_path):
    data = write(tmp_path / "s.jsonl", {"document": "a bird sang. " * 400, "summary": "A bird."})
    argv = ["eval", "tasks", "--task", "summary", "--data", str(data), "-m", str(GOLDEN / "llama-chat")]
    assert cli.main(argv) == 0
    assert "1 documents did not fit the context and lost their first words" in capsys.readouterr().out


def test_problems_in_steps_come_with_minicore(model):
    found = readers.read("steps", [run.SHIPPED["steps"]])
    assert len(found) == 100 == len({one.fields["question"] for one in found})
    assert all(one.references[0].isdigit() for one in found)
    with pytest.raises(InputError, match="needs data"):
        run.evaluate(model, "qa", [], ["dense"], [0.4])
