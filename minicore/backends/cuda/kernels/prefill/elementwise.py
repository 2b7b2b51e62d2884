"""Kernels with a thread for each element, or for each group of 64."""

from __future__ import annotations

import numpy as np

from minicore.backends.cuda.kernels.elements import activate
from minicore.backends.cuda.kernels.intrinsics import cuda, float_as_uint, load, store
from minicore.quantization import GROUP

ROUNDER = 12582912.0  # 1.5 * 2^23: adding and subtracting it rounds a small float32 to an integer


@cuda.jit
def fake_quantize_rows(x, n, d):
    """Quantize rows x (n, d) and dequantize them in place, as minicore.quantization.fake_quantize does.

    A thread has a group of 64. NaN or infinity makes its group NaN.
    """
    n_groups, i = (d + GROUP - 1) // GROUP, np.int64(cuda.grid(1))
    if i < n * n_groups:
        row, group = i // n_groups * d, i % n_groups
        first, last = row + group * GROUP, row + min(d, (group + 1) * GROUP)
        largest, not_finite = np.float32(0), np.float32(0)
        for j in range(first, last):
            largest = max(largest, abs(load(x, j)))
            not_finite += load(x, j) - load(x, j)
        scale = largest / np.float32(127)
        divisor = scale if scale > 0 else np.float32(1)
        for j in range(first, last):
            q = (load(x, j) / divisor + np.float32(ROUNDER)) - np.float32(ROUNDER)
            store(x, j, q * scale + not_finite)


@cuda.jit
def activations(y, size, code, gated, not_finite):
    """Apply the activation function in place.

    Of a gated model y has two planes of ``size`` elements. ``up`` becomes act(gate) * up, and ``gate``
    becomes act(gate). ``not_finite[0]`` becomes 1 if a result is NaN or infinite.
    """
    i = np.int64(cuda.grid(1))
    if i < size:
        a = activate(load(y, i + size if gated else i), code)
        if gated:
            store(y, i + size, a)
            a *= load(y, i)
        store(y, i, a)
        if float_as_uint(a) & np.uint32(0x7F800000) == np.uint32(0x7F800000):
            not_finite[0] = 1
