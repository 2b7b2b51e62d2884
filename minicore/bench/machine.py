"""The machine: what speeds depend on."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np

from minicore.backends.cpu import bandwidth

FLAGS = (  # instructions that make a difference, on x86 and on Arm
    *("avx2", "fma", "avx512f", "avx512vnni", "avx512bf16", "avxvnni", "amx-int8"),
    *("neon", "dotprod", "i8mm", "bf16", "sve"),
)


def machine() -> dict[str, Any]:
    """Return processor, cores, the instructions that code is compiled for, memory and versions."""
    import llvmlite.binding as llvm
    import numba
    import psutil

    features = llvm.get_host_cpu_features()
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "flags": [flag for flag in FLAGS if features.get(flag)],
        "last_cache_bytes": bandwidth.last_cache_bytes(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
    }


def cpu_name() -> str:
    """Return the processor's name as the system reports it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def load_average() -> float | None:
    """Return the number of processes that wanted to run in the last minute, if the system reports it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
