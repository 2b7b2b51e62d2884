"""Bring the line counts in the README's map of rooms up to date; with --check, only say which are not.

Usage: python .ci/room_lines.py [--check]
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^(\| `(?P<room>minicore/\w+(?:\.py|/))` \| *)(?P<lines>\d+)(?= \|)", re.MULTILINE)


def count_rooms() -> dict[str, int]:
    """Return the lines of each module and subpackage; files whose names begin with an underscore aside."""
    rooms = {}
    for path in sorted((ROOT / "minicore").iterdir()):
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path] * (path.suffix == ".py")
        if files and not path.name.startswith("_"):
            name = f"minicore/{path.name}{'/' if path.is_dir() else ''}"
            rooms[name] = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    return rooms


def main(check: bool) -> str | None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    rooms, said = count_rooms(), {row["room"]: int(row["lines"]) for row in ROW.finditer(text)}
    if rooms.keys() != said.keys():
        return f"README.md: the map and minicore/ differ in {', '.join(sorted(rooms.keys() ^ said.keys()))}"
    if not check:
        readme.write_text(ROW.sub(lambda row: f"{row[1]}{rooms[row['room']]}", text), encoding="utf-8")
        return None
    # A tenth off is still a true map; every edit of the code need not touch the README.
    stale = [
        f"{room} {said[room]} -> {n}" for room, n in rooms.items() if abs(said[room] - n) > max(10, n / 10)
    ]
    return f"README.md: line counts out of date: {', '.join(stale)}" if stale else None


sys.exit(main("--check" in sys.argv[1:]))
