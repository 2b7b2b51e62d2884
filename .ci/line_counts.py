"""Update the line counts in the README's map of the package. With --check, only report stale ones.

Usage: python .ci/line_counts.py [--check]
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^(\| `(?P<name>minicore/\w+(?:\.py|/))` \| *)(?P<lines>\d+)(?= \|)", re.MULTILINE)


def count_lines() -> dict[str, int]:
    """Return the lines of each subpackage and of each module without a leading underscore."""
    counts = {}
    for path in sorted((ROOT / "minicore").iterdir()):
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path] * (path.suffix == ".py")
        if files and not path.name.startswith("_"):
            name = f"minicore/{path.name}{'/' if path.is_dir() else ''}"
            counts[name] = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    return counts


def main(check: bool) -> str | None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    counts, said = count_lines(), {row["name"]: int(row["lines"]) for row in ROW.finditer(text)}
    if counts.keys() != said.keys():
        return f"README.md: the map and minicore/ differ in {', '.join(sorted(counts.keys() ^ said.keys()))}"
    if not check:
        readme.write_text(ROW.sub(lambda row: f"{row[1]}{counts[row['name']]}", text), encoding="utf-8")
        return None
    # A count within a tenth is close enough, so that not every edit has to touch the README.
    stale = [
        f"{name} {said[name]} -> {n}" for name, n in counts.items() if abs(said[name] - n) > max(10, n / 10)
    ]
    return f"README.md: line counts out of date: {', '.join(stale)}" if stale else None


sys.exit(main("--check" in sys.argv[1:]))
