"""The project's Markdown: links lead somewhere, commands parse, paths exist, and pages stay readable."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from minicore._moved import MOVED
from minicore.cli import make_parser
from tests.helpers import ROOT

PAGES = sorted(
    path
    for folder in ("", "docs", "docs/notes", "weights/minicore*", "tutorials/data", ".github", ".github/*")
    for path in ROOT.glob(f"{folder}/*.md" if folder else "*.md")
)
FENCE = re.compile(r"^ *```")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# in backticks: a file or folder of the repository, perhaps with a line or a name after it
PATH = re.compile(
    r"`((?:minicore|tests|scripts|tutorials|weights|docs|examples|\.ci|\.github)/[\w./-]*\w/?)`"
)
# a row of a table that says where something is: | what | `path` | `name`, `other_name` |
POINTER = re.compile(r"^\|[^|]+\| `([\w./-]+)` \| (`[^|]+`) \|$")
LONGEST = {"README.md": 199, "docs/speed.md": 249}  # lines
WIDTH = 100

pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def lines(page: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield each line's number, text, and whether it is code or output between fences."""
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if FENCE.match(line):
            inside = not inside
        yield number, line, inside or bool(FENCE.match(line))


def prose(page: Path) -> str:
    return "\n".join(line for _, line, code in lines(page) if not code)


def rendered(row: str) -> str:
    """Return a table's row about as wide as it is shown."""
    return re.sub(r"\]\([^)]*\)", "]", row.replace("**", "").replace("`", ""))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[str]:
    """Yield the minicore commands that a page shows, as a shell would see them."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        found = re.match(r"^(?:    |\$ )(?:\w+=\S+ )?minicore (.*)$", line)
        if found and "..." not in line and not found[1].startswith("--"):
            yield found[1]


def test_pages_are_found():
    assert {"README.md", "CHANGELOG.md", "glossary.md", "cuda-h100.md"} <= {page.name for page in PAGES}
    assert sum(len(list(commands(page))) for page in PAGES) > 20


@pages
def test_lines_fit_a_screen(page):
    wide = [
        f"{page.name}:{number}: {len(line)}"
        for number, line, code in lines(page)
        if not code and len(rendered(line) if line.startswith("|") else line) > WIDTH
    ]
    assert not wide


@pages
def test_links_lead_somewhere(page):
    for target in LINK.findall(prose(page)):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = page.parent / path if path else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name}: {target}"


@pages
def test_paths_exist(page):
    missing = [path for path in PATH.findall(prose(page)) if not (ROOT / path).exists()]
    assert not missing


@pages
def test_pointers_name_what_is_defined_there(page):
    for path, names in (row.groups() for row in map(POINTER.match, prose(page).splitlines()) if row):
        for name in re.findall(r"`([^`]+)`", names):
            text = (ROOT / path).read_text(encoding="utf-8")
            defined = rf"(?:def|class|function) {name}\b|^{name}\b.*="
            assert re.search(defined, text, re.MULTILINE), f"{page.name}: {name} is not in {path}"


@pages
def test_commands_parse(page):
    parser = make_parser()
    for command in commands(page):
        words = shlex.split(command.split(" #")[0].split(" > ")[0], comments=False)
        parser.parse_args(words)


def test_the_changelog_lists_every_moved_module():
    table = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    missing = [
        f"| `{old}` | `{new}` |" for old, new in MOVED.items() if f"| `{old}` | `{new}` |" not in table
    ]
    assert not missing


@pytest.mark.parametrize("name", LONGEST)
def test_pages_stay_short(name):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= LONGEST[name]
