"""Run tutorials from top to bottom and write what they show: from each .py the .ipynb beside it.

    python tutorials/execute.py [NAME ...]        # 01_forward_pass, ...; all without a name

The .py files (jupytext's percent format) are what is edited; `pip install '.[test]'` brings what runs them.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
SOURCES = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)  # arrays here are small: more threads wait for one another


def execute(source: Path, timeout: float = 120) -> nbformat.NotebookNode:
    """Return the notebook of a .py file with the outputs of running it; an error in a cell is raised."""
    os.environ |= dict.fromkeys(ONE_THREAD, "1")
    checkout = [str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(checkout))  # not an installed copy of minicore
    notebook = jupytext.read(source)
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"  # not drawn at random: the same source gives the same file
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(source.parent)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()
    notebook.metadata.pop("language_info", None)  # would name this very Python
    return notebook


def main(names: list[str]) -> None:
    for source in SOURCES:
        if names and source.stem not in names:
            continue
        began = time.perf_counter()
        nbformat.write(execute(source), source.with_suffix(".ipynb"))
        print(f"{source.stem}: {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main([Path(name).stem for name in sys.argv[1:]])
