"""Every tutorial runs from top to bottom without a warning, and its stored notebook has the same source.

`pytest tutorials` runs these tests; the default test run excludes them.
"""

from __future__ import annotations

import re

import jupytext
import nbformat
import numpy as np
import pytest

import minicore as mc
from minicore.generation.prediction import fingerprint
from tutorials.execute import FOLDER, SOURCES, execute

each = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


def test_there_are_eight():
    assert [source.stem[:2] for source in SOURCES] == [f"{i:02}" for i in range(1, 9)]


@each
def test_it_runs_without_a_warning(source):
    notebook = execute(source)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    warnings = [
        output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"
    ]
    assert warnings == []


@each
def test_the_notebook_has_the_source_of_the_script(source):
    def parts(notebook: nbformat.NotebookNode) -> list[tuple]:
        kept = ("tags", "jupyter")
        return [
            (cell.cell_type, cell.source, {key: cell.metadata[key] for key in kept if key in cell.metadata})
            for cell in notebook.cells
        ]

    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    assert parts(notebook) == parts(jupytext.read(source)), f"python tutorials/execute.py {source.stem}"


@each
def test_it_is_stored_with_outputs_and_states_its_goals(source):
    cells = nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells
    assert "you will be able to" in cells[0].source
    run = [cell for cell in cells if cell.cell_type == "code" and not re.fullmatch("# .*", cell.source)]
    assert all(cell.execution_count for cell in run)
    outputs = [output for cell in run for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@each
def test_its_exercises_have_hidden_solutions(source):
    cells = jupytext.read(source).cells
    n_exercises = sum(len(re.findall(r"^\*\*\d\.\*\*", cell.source, re.M)) for cell in cells)
    solutions = [cell for cell in cells if "solution" in cell.metadata.get("tags", [])]
    assert n_exercises == len(solutions) > 1
    assert all(cell.metadata["jupyter"]["source_hidden"] for cell in solutions)


def test_the_recorded_logits_come_from_the_shipped_model():
    recorded = np.load(FOLDER / "data" / "transformers_logits.npz")
    model = mc.load("minicore-opt-core")
    assert recorded["fingerprint"] == fingerprint(model), "python tutorials/data/record_logits.py"
