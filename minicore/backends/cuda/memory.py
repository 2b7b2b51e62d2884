"""Allocating GPU memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from minicore.backends.cuda.kernels.intrinsics import SIMULATED
from minicore.errors import InputError


def allocate(n: int, dtype: type) -> Any:  # -> (n,) on the device
    """Return a device array; raise InputError if the GPU has too little memory."""
    from numba import cuda

    n_bytes = n * np.dtype(dtype).itemsize
    if not SIMULATED:
        context = cuda.current_context()
        free, total = context.get_memory_info()
        if n_bytes > free:
            context.deallocations.clear()  # Numba frees unused arrays only now and then
            free, total = context.get_memory_info()
        if n_bytes > free:
            raise InputError(
                f"backend cuda needs {n_bytes} bytes more, but of the GPU's {total} only {free} are free; "
                "expected a smaller dtype, a smaller model or a memory_limit with a core set"
            )
    return cuda.device_array(n, dtype)
