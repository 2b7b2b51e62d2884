"""Execute the tutorials and write each .py with its outputs to the .ipynb of the same name.

    python tutorials/execute.py [NAME ...]        # 01_forward_pass, ...; all if no name is given

Edit the .py files (jupytext's percent format). `pip install '.[test]'` installs what this script needs.
To change text without running the code again: `jupytext --to ipynb --update tutorials/NAME.py`.
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
# The arrays are small: more threads would mostly wait for each other.
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def execute(source: Path, timeout: float = 120) -> nbformat.NotebookNode:
    """Run a .py file as a notebook and return it with its outputs; an error in a cell is raised."""
    os.environ |= dict.fromkeys(ONE_THREAD, "1")
    checkout = [str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    # The checkout comes before an installed minicore.
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(checkout))
    notebook = jupytext.read(source)
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"  # fixed instead of random: the same source gives the same file
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(source.parent)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()
    notebook.metadata.pop("language_info", None)  # holds the version of the Python that ran
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
