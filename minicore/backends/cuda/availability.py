"""Whether there is a GPU that can be used. The driver is asked first: without one nothing is imported."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from minicore.backends.dims import missing
from minicore.config import ModelConfig

DRIVER = 12000  # CUDA 12.0
CAPABILITY = (7, 0)  # Volta: threads of a warp can wait independently
DTYPES = ("float32", "bfloat16", "int8")
EXTRA = "expected `pip install 'minicore-lm[cuda12]'` (or cuda13)"


@dataclass(frozen=True)
class Answer:
    """Whether there is a GPU, and a sentence why it cannot be used, or None."""

    there: bool
    trouble: str | None


@cache
def ask() -> Answer:
    """Ask the driver and look for the packages."""
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
    except Exception as error:  # loading the toolkit's libraries raises many kinds
        return f"numba-cuda cannot use the GPU ({' '.join(str(error).split())})"
    if tuple(capability) < CAPABILITY:
        had, wanted = (".".join(map(str, pair)) for pair in (capability, CAPABILITY))
        return f"the GPU has compute capability {had}, expected {wanted} or later"
    return None


def trouble(dtype: str, config: ModelConfig | None = None) -> str | None:
    """Return a sentence why no GPU here can decode a model of this dtype and config; None if one can."""
    if answer := ask().trouble:
        return answer
    if dtype not in DTYPES:
        return f"the GPU's kernels read {', '.join(DTYPES)} weights, this model's are {dtype}"
    if config and (lacking := missing("cuda", config)):
        return f"the GPU's kernels do not have {lacking} of this model"
    if config and (config.d_head % 4 or config.d_model % 2):  # kernels load 4 of a key, 2 of a vector
        return (
            "the GPU's kernels need d_head to be a multiple of 4 and d_model to be even; "
            f"this model's are {config.d_head} and {config.d_model}"
        )
    return None
