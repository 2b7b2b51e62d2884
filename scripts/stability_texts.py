"""Write the five texts that calibrate the stability test, 150,000 characters each.

    python scripts/stability_texts.py DATA -o TEXTS
    minicore eval stability TEXTS/{novel,wiki,nq,tr,sci}.txt -m smollm2-135m --passages 96

DATA holds valid_pd.txt.xz (three public-domain novels), wikitext2.valid.raw (WikiText-2), NQ-open.dev.jsonl
(Natural Questions), scitldr_A_test618.jsonl (abstracts) and tatoeba-test-v2021-08-07.{deu,eng} (pairs).
"""

import argparse
import json
import lzma
from pathlib import Path

N_CHARACTERS = 150_000


def texts(data: Path) -> dict[str, str]:
    """Return the texts by name."""
    novels = lzma.open(data / "valid_pd.txt.xz", "rt", encoding="utf-8").read()
    questions = [json.loads(line) for line in (data / "NQ-open.dev.jsonl").open(encoding="utf-8")]
    abstracts = [json.loads(line) for line in (data / "scitldr_A_test618.jsonl").open(encoding="utf-8")]
    german, english = (
        (data / f"tatoeba-test-v2021-08-07.{language}").read_text(encoding="utf-8").splitlines()
        for language in ("deu", "eng")
    )
    return {
        "novel": novels[300_000:],  # past the first book's front matter
        "wiki": (data / "wikitext2.valid.raw").read_text(encoding="utf-8"),
        "nq": "\n\n".join(f"Q: {one['question']}?\nA: {one['answer'][0]}" for one in questions),
        "tr": "\n\n".join(f"German: {a}\nEnglish: {b}" for a, b in zip(german, english, strict=True)),
        "sci": "\n\n".join(" ".join(one["source"]) for one in abstracts),
    }


def main() -> None:
    """Write the texts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for name, text in texts(args.data).items():
        (args.output / f"{name}.txt").write_text(text[:N_CHARACTERS], encoding="utf-8")


if __name__ == "__main__":
    main()
