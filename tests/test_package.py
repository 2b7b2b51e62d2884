"""What a user gets by installing and importing: names, version, start-up times, the README's map."""

import importlib.metadata
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import minicore

ROOT = Path(__file__).parents[1]
# Each costs more than the whole start-up budget, or belongs to an extra.
HEAVY = ("numba", "matplotlib", "torch", "tqdm", "jinja2", "gguf", "sklearn", "scipy", "huggingface_hub")


def python(*args: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def fastest(n_tries: int, *args: str) -> float:
    """Return the least wall-clock seconds of a few runs: the others measure what else the machine does."""
    times = []
    for _ in range(n_tries):
        start = time.perf_counter()
        python(*args)
        times.append(time.perf_counter() - start)
    return min(times)


def test_public_names():
    missing = [name for name in minicore.__all__ if not hasattr(minicore, name)]
    assert not missing
    assert {"load", "predict", "token_core", "sentence_core", "CoreSet", "InputError"} <= set(
        minicore.__all__
    )
    assert all(getattr(minicore, name).__doc__ for name in minicore.__all__ if name != "__version__")


def test_version_is_the_distributions():
    assert f"version: {minicore.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    try:
        installed = importlib.metadata.version("minicore-lm")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("minicore is imported from the checkout, not installed")
    assert minicore.__version__ == installed


@pytest.mark.parametrize("statement", ["import minicore", "import minicore.cli"])
def test_import_pulls_in_nothing_heavy(statement):
    code = f"{statement}; import sys; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    assert python("-c", code).stdout.split() == []


def test_import_time():
    importing = fastest(5, "-c", "import minicore") - fastest(5, "-c", "pass")
    assert importing < 0.3, f"{importing:.3f} s"


def test_help_time():
    assert fastest(5, "-m", "minicore", "--help") < 0.5


def test_no_public_module_lacks_a_docstring():
    for path in sorted((ROOT / "minicore").rglob("*.py")):
        first = path.read_text().lstrip()[:3]
        assert first == '"""', f"{path.relative_to(ROOT)} does not say what it is for"


def test_readme_map_is_true():
    """Every room is on it with its line count; `python .ci/room_lines.py` updates the counts."""
    python(str(ROOT / ".ci" / "room_lines.py"), "--check")


def test_readme_snippet_is_six_lines():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    snippet = re.search(r"```python\n(.*?)```", readme, re.S)[1]
    assert len(snippet.splitlines()) == 6
    compile(snippet, "README.md", "exec")
