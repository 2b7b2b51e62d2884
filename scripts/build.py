"""Build the documentation as web pages: the API, a page of the explorer, the reproduction report.

    pip install '.[docs]'
    python scripts/build.py                 # into site/; a quarter of an hour, most of it for the report
    python scripts/build.py --without-report

A report that is in site/ already is only brought up to date.
"""

from __future__ import annotations

import argparse
import html
import importlib
import inspect
import os
import pkgutil
import re
import warnings
from pathlib import Path

import pdoc

import minicore
from minicore.cli import main as command

NOT_SHOWN = ("minicore.__main__", "minicore.cli")  # run the program, which tells about itself with --help
PROMPTS = (
    "The jury came back into the room, and everyone stood up. The judge asked for the verdict. The lawyer "
    "held her breath, because she knew that nobody would believe the old man.",
    "To bake good bread you need flour, water, salt and yeast. Mix the flour with the water, and then let "
    "the dough rest before you put it into the hot oven.",
)
INDEX = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>minicore</title>
<style>:root {{ color-scheme: light dark }}
body {{ font: 1rem/1.6 system-ui; max-width: 40rem; margin: 2rem auto; padding: 0 1rem }}</style>
<h1>minicore {version}</h1>
<ul>{links}</ul>
<h2>Modules</h2>
<ul>{modules}</ul>
</html>
"""


def build_api(site: Path) -> dict[str, str]:
    """Write a page for each module, from its docstrings; return where in the site each is."""
    warnings.filterwarnings("ignore", "Error parsing type annotation")  # of names imported for types alone
    warnings.filterwarnings("ignore", "The module specification")  # some packages bring their modules along
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # so that the GPU's kernels can be imported where there is none
    pdoc.render.configure(docformat="numpy", footer_text=f"minicore {minicore.__version__}")
    modules = [module.name for module in pkgutil.walk_packages(minicore.__path__, "minicore.")]
    shown = [name for name in modules if not name.startswith(NOT_SHOWN)]
    pdoc.pdoc("minicore", *shown, output_directory=site / "api")
    return {name: f"api/{name.replace('.', '/')}.html" for name in shown}


def title(name: str) -> str:
    """Return the first paragraph of a module's docstring."""
    return " ".join((inspect.getdoc(importlib.import_module(name)) or "").split("\n\n")[0].split())


def item(path: str, text: str, more: str = "") -> str:
    """Return a link as an item of a list, with more about it, as a docstring writes it, behind."""
    more = re.sub("`+([^`]+)`+", r"<code>\1</code>", html.escape(more))
    return f'<li><a href="{path}">{html.escape(text)}</a>{more and ": " + more}</li>'


def run(*words: str | Path) -> None:
    """Run a command of minicore's; stop where it fails."""
    if code := command([str(word) for word in words]):
        raise SystemExit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the documentation.")
    parser.add_argument("-o", "--output", type=Path, default=Path("site"))
    parser.add_argument("--without-report", action="store_true", help="leave `minicore reproduce all` out")
    args = parser.parse_args()
    modules = build_api(args.output)
    run("explore", PROMPTS[0], "--and", PROMPTS[1], "-o", args.output / "explorer.html")
    if not args.without_report:
        run("reproduce", "all", "-o", args.output / "report")
    links = {
        "api/minicore.html": "The public names",
        "explorer.html": "Two prompts in the explorer",
        "report/report.html": "The paper's figures, measured on minicore-opt-core",
    }
    index = args.output / "index.html"
    page = INDEX.format(
        version=minicore.__version__,
        links="".join(item(path, text) for path, text in links.items() if (args.output / path).exists()),
        modules="".join(item(path, name, title(name)) for name, path in modules.items()),
    )
    index.write_text(page, encoding="utf-8")
    print(index)


if __name__ == "__main__":
    main()
