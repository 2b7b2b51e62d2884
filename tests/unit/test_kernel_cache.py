"""Machine code on disk: an edited source file is never run as it was before."""

import ast
import os
import shutil
import subprocess
import sys

import pytest
from numba import types

from minicore.backends.cpu import checksum, compiling
from tests.helpers import ROOT

# A kernel of prefill.py, its activation from ffn.py; the second line says whether it was compiled or loaded.
RUN = """
import numpy as np
from minicore.backends.cpu import prefill
print(prefill.ACTIVATIONS["relu"](np.float32([[-1, 2]])).tolist())
print("loaded" if prefill._activate.stats.cache_hits else "compiled")
"""


@pytest.fixture
def package(tmp_path):
    """Return a copy of the package and a function that runs a kernel of it in a new process."""
    copy = tmp_path / "minicore"
    shutil.copytree(ROOT / "minicore", copy, ignore=shutil.ignore_patterns("__pycache__"))
    keep = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_CACHE")}
    env = keep | {"PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "user")}

    def run(prepare="", said=None):
        done = subprocess.run(
            [sys.executable, "-c", prepare + RUN],
            env=env, cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stderr.count("compiles its kernels again") == (said is not None)
        assert said is None or said in done.stderr
        return done.stdout.split("\n")[:2]

    return copy, run


def edit(copy):
    """Change what the activation returns, in another file than the kernel that Python calls."""
    path = copy / "backends" / "cpu" / "ffn.py"
    source = path.read_text(encoding="utf-8")
    assert source.count("<= threshold else np.float32(0)\n") == 1
    path.write_text(
        source.replace("threshold else np.float32(0)", "threshold else np.float32(5)"), encoding="utf-8"
    )


def test_an_edited_kernel_runs_as_edited_and_leaves_no_old_machine_code(package):
    copy, run = package
    assert run() == ["[[0.0, 2.0]]", "compiled"]
    assert run() == ["[[0.0, 2.0]]", "loaded"]
    before = list((copy / "backends" / "cpu" / "__pycache__").glob("kernels-*"))
    edit(copy)
    assert run() == ["[[5.0, 2.0]]", "compiled"]
    after = list((copy / "backends" / "cpu" / "__pycache__").glob("kernels-*"))
    assert len(before) == len(after) == 1 and before != after
    assert not list((copy / "backends" / "cpu" / "__pycache__").glob("*.nb[ci]"))


def test_where_the_package_cannot_be_written_to_the_user_has_a_cache(package, tmp_path):
    copy, run = package
    (copy / "backends" / "cpu" / "__pycache__").write_text("no folder can be made here", encoding="utf-8")
    assert run() == ["[[0.0, 2.0]]", "compiled"]
    assert run() == ["[[0.0, 2.0]]", "loaded"]
    edit(copy)
    assert run() == ["[[5.0, 2.0]]", "compiled"]
    assert len(list((tmp_path / "user").rglob("kernels-*"))) == 1


def test_processes_that_compile_at_the_same_time_keep_each_others_machine_code(tmp_path, monkeypatch):
    """The second saves another signature while the first is about to."""
    first, second = (compiling._Files(str(tmp_path), "step.step.py311", "checksum") for _ in range(2))
    keys = [(types.int64, "cpu"), (types.float32, "cpu")]
    write = compiling._Files._save_data

    def write_after_the_second(file, name, data):
        if file is first:
            second.save(keys[1], "float32 code")
        write(file, name, data)

    monkeypatch.setattr(compiling._Files, "_save_data", write_after_the_second)
    first.save(keys[0], "int64 code")
    assert [first.load(key) for key in keys] == ["int64 code", "float32 code"]
    assert first.load((types.int32, "cpu")) is None


def test_the_checksum_covers_every_constant_that_kernels_take_from_elsewhere():
    """Constants of other modules are part of the machine code."""
    covered = {"minicore." + name.removesuffix(".py").replace("/", ".") for name in checksum.CONSTANTS}
    taken = set()
    for path in checksum.PACKAGE.glob("*.py"):
        source = path.read_text(encoding="utf-8")
        if "from numba" not in source and "cpu.compiling import" not in source:
            continue  # it has no kernels
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("minicore."):
                names = {alias.name for alias in node.names if alias.name.isupper()} - READ_BY_PYTHON
                if names and not node.module.startswith("minicore.backends.cpu"):
                    taken.add(node.module)
    assert taken == covered


READ_BY_PYTHON = {"DTYPES", "GATE", "PER_NEURON", "TOP"}  # names of tensors and dtypes


def test_a_damaged_file_is_compiled_again(package):
    """Cut off, emptied or changed: the code in it is not run."""
    copy, run = package
    assert run() == ["[[0.0, 2.0]]", "compiled"]
    files = list((copy / "backends" / "cpu" / "__pycache__").rglob("*.nbc"))
    for damage in (lambda code: code[: len(code) // 2], lambda code: b"", lambda code: code[:-1] + b"?"):
        for path in files:
            path.write_bytes(damage(path.read_bytes()))
        assert run() == ["[[0.0, 2.0]]", "compiled"]
        assert run() == ["[[0.0, 2.0]]", "loaded"]


def test_where_nothing_can_be_written_kernels_run_all_the_same(package, tmp_path):
    """No folder, and a folder that takes no files: said once, on stderr."""
    copy, run = package
    full = """
from minicore.backends.cpu import compiling
def full(*args): raise OSError(28, "No space left on device")
compiling._Files._save_data = full
"""
    assert run(full, "No space left on device") == ["[[0.0, 2.0]]", "compiled"]
    for cache in (copy / "backends" / "cpu" / "__pycache__", tmp_path / "user"):
        shutil.rmtree(cache, ignore_errors=True)
        cache.write_text("no folder can be made here", encoding="utf-8")
    assert run("", "NUMBA_CACHE_DIR") == ["[[0.0, 2.0]]", "compiled"]
