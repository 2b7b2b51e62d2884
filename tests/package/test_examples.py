"""The scripts in examples/ run as they stand, without a warning, in another folder and without a network."""

import pytest

from tests.helpers import ROOT, run_python

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PROMPT = "A bird sang in the garden"


def run_example(name, *argv, cwd):
    done = run_python("-W", "error", ROOT / "examples" / f"{name}.py", *argv, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_fits_a_screen(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 30


def test_all_are_run_here():
    assert {path.stem for path in EXAMPLES} == {"generate", "compare_predictors", "plot_core_set"}


def test_generate(tmp_path):
    *texts, summary = run_example("generate", PROMPT, cwd=tmp_path)
    assert len(texts) >= 2 and all(texts)
    assert 0 < int(summary.split("%")[0]) < 100


def test_compare_predictors(tmp_path):
    lines = run_example("compare_predictors", PROMPT, cwd=tmp_path)
    shares = {line.split()[0]: int(line.split()[1].rstrip("%")) for line in lines}
    assert shares["stability"] == 100
    assert shares["random"] < shares["griffin"] < 100


def test_plot_core_set(tmp_path):
    run_example("plot_core_set", "out.png", PROMPT, cwd=tmp_path)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out.png").stat().st_size > 10_000
