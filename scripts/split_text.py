"""Split a text, so that clusters are fitted on a part that is not measured.

    python scripts/split_text.py wikitext2.valid.raw -o TEXTS

writes TEXTS/early.jsonl, the paragraphs of more than 500 characters in the first 60% of the text, one per
line, and TEXTS/late.txt, everything from the next heading on.
"""

import argparse
import json
from pathlib import Path

SHARE, SHORTEST = 0.6, 500


def main() -> None:
    """Write both parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="a text with headings like WikiText's, ' = Title = '")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    cut = text.index("\n = ", int(len(text) * SHARE))
    paragraphs = [line.strip() for line in text[:cut].split("\n") if len(line) > SHORTEST]
    args.output.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"text": paragraph}) + "\n" for paragraph in paragraphs)
    (args.output / "early.jsonl").write_text(lines, encoding="utf-8")
    (args.output / "late.txt").write_text(text[cut:], encoding="utf-8")


if __name__ == "__main__":
    main()
