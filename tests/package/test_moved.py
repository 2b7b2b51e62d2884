"""Import paths of version 0.1 that tutorials and docs showed still work, with a warning."""

import importlib
import importlib.util
import subprocess
import sys

import pytest

from minicore import _moved


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("minicore.prediction", "minicore.generation.prediction"),
        ("minicore.experiments.quality", "minicore.evaluation.quality"),
        ("minicore.experiments.sts", "minicore.reproduce.sts"),
        ("minicore.kernels.bandwidth", "minicore.backends.cpu.bandwidth"),
        ("minicore.tasks.run", "minicore.evaluation.tasks.run"),
        ("minicore.lm_eval", None),
    ],
)
def test_an_old_path_gives_the_module_of_today(old, new):
    code = f"import warnings; warnings.simplefilter('error'); import {old}"
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if new is None:
        assert failed.returncode == 0
        return
    assert f"DeprecationWarning: {old.split('.')[0]}.{old.split('.')[1]}" in failed.stderr
    with pytest.warns(DeprecationWarning):
        for name in [name for name in sys.modules if _moved.current_name(name)]:
            del sys.modules[name]
        assert importlib.import_module(old) is importlib.import_module(new)


def test_every_path_in_the_table_exists():
    for new in _moved.MOVED.values():
        assert importlib.util.find_spec(new), new


def test_the_model_of_the_harness_is_still_found_at_its_old_path():
    pytest.importorskip("lm_eval")
    from minicore.evaluation.lm_eval import MinicoreLM

    with pytest.warns(DeprecationWarning, match="minicore.evaluation.lm_eval"):
        assert importlib.import_module("minicore.lm_eval").MinicoreLM is MinicoreLM
