"""Is there a GPU that can be used? The driver is asked, so that a machine without one imports nothing."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from minicore.config import ModelConfig

DRIVER = 12000  # CUDA 12.0
CAPABILITY = (7, 0)  # Volta: threads of a warp that wait one by one
DTYPES = ("float32", "bfloat16", "int8")
EXTRA = "expected `pip install 'minicore-lm[cuda12]'` (or cuda13)"


@dataclass(frozen=True)
class Answer:
    """Whether there is a GPU, and why it cannot be used, if it cannot."""

    there: bool
    trouble: str | None


@cache
def ask() -> Answer:
    """Return what the driver and the packages say."""
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") != "0":
        return Answer(False, _packages())
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return Answer(False, "no NVIDIA driver was found on this machine")
    if code := driver.cuInit(0):
        return Answer(False, f"the NVIDIA driver finds no GPU (CUDA error {code})")
    number = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(number))
    if number.value < DRIVER:
        had, wanted = (f"{n // 1000}.{n % 1000 // 10}" for n in (number.value, DRIVER))
        return Answer(True, f"the NVIDIA driver supports CUDA {had}, expected {wanted} or later")
    return Answer(True, _packages() or _device())


def _packages() -> str | None:
    if importlib.util.find_spec("numba_cuda") is None:
        return f"the package numba-cuda is not installed, {EXTRA}"
    try:
        installed = tuple(int(part) for part in version("numba-cuda").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return None
    numpy = tuple(int(part) for part in np.__version__.split(".")[:2])
    if installed <= (0, 30) and numpy >= (2, 5):
        return f"NumPy {np.__version__} is too new for numba-cuda {version('numba-cuda')}, {EXTRA}"
    return None


def _device() -> str | None:
    from numba import cuda

    try:
        capability = cuda.get_current_device().compute_capability
    except Exception as error:  # whatever the toolkit's libraries raise while they are looked for
        return f"numba-cuda cannot use the GPU ({' '.join(str(error).split())})"
    if tuple(capability) < CAPABILITY:
        had, wanted = (".".join(map(str, pair)) for pair in (capability, CAPABILITY))
        return f"the GPU has compute capability {had}, expected {wanted} or later"
    return None


def trouble(dtype: str, config: ModelConfig | None = None) -> str | None:
    """Say in a sentence why a GPU here cannot decode a model of this dtype and config; None if it can."""
    if answer := ask().trouble:
        return answer
    if dtype not in DTYPES:
        return f"the GPU's kernels read {', '.join(DTYPES)} weights, this model's are {dtype}"
    if config and (config.d_head % 4 or config.d_model % 2):  # keys are read 16 bytes, words two at a time
        return (
            "the GPU's kernels need heads of a multiple of 4 numbers and an even d_model, "
            f"this model's are of {config.d_head} and {config.d_model}"
        )
    return None
