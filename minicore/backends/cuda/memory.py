"""Device memory, with a sentence where there is too little."""

from __future__ import annotations

from typing import Any

import numpy as np

from minicore.backends.cuda.kernels.intrinsics import SIMULATED
from minicore.errors import InputError


def allocate(n: int, dtype: type) -> Any:  # -> (n,) on the device
    """Return device memory, or raise InputError if there is too little."""
    from numba import cuda

    n_bytes = n * np.dtype(dtype).itemsize
    if not SIMULATED:
        context = cuda.current_context()
        free, total = context.get_memory_info()
        if n_bytes > free:
            context.deallocations.clear()  # Numba gives back what nobody holds when it thinks fit
            free, total = context.get_memory_info()
        if n_bytes > free:
            raise InputError(
                f"backend cuda needs {n_bytes} bytes more, but of the GPU's {total} only {free} are free; "
                "expected a smaller dtype, a smaller model or a memory_limit with a core set"
            )
    return cuda.device_array(n, dtype)
