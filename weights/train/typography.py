"""Set text in the typography of tokenised corpora, as WikiText: spaces around punctuation, "@-@" in words."""

from __future__ import annotations

import re

ABBREVIATION = r"(?<!\b[A-Z])(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\bMessrs)(?<!\bNo)(?<!\bCol)(?<!\bGen)"
RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[“”]|``|''", '"'),
        (r"[‘’]", "'"),
        (r"_", ""),
        (r"\s*(?:—|--+)\s*", " – "),
        (r"(?<=\d)([,.])(?=\d)", r" @\1@ "),
        (r"(?<=\w)-(?=\w)", " @-@ "),
        (r'(["()\[\]$£%])', r" \1 "),
        (r"([,;:?!])(?![@\d])", r" \1 "),
        (r"\.{3,}|…", " ... "),
        (ABBREVIATION + r"(?<!\.)\.(?=\s|$)", " ."),
        (r"(?<=\w)'(?=[a-z])", " '"),
        (r" {2,}", " "),
    )
]


def tokenised(text: str) -> str:
    """Set each paragraph, up to a blank line, on a line. Short ones without a full stop become headings."""
    lines = []
    for paragraph in text.split("\n\n"):
        line = " ".join(paragraph.split())
        heading = 0 < len(line) < 50 and line[-1] not in '.,;:?!"”'
        for pattern, replacement in RULES:
            line = pattern.sub(replacement, line)
        line = line.strip()
        if line:
            lines.append(f" \n = = {line} = = \n \n" if heading else f" {line} \n")
    return "".join(lines)
