"""Between the products."""

from __future__ import annotations

import numpy as np

from minicore.backends.cuda.kernels.elements import activate
from minicore.backends.cuda.kernels.intrinsics import as_bits, cuda, get, let
from minicore.quantization import GROUP


@cuda.jit
def fake_quantize_rows(x, n, d):  # type: ignore[no-untyped-def]
    """Round rows (n, d) in place as :func:`minicore.quantization.fake_quantize` does, a group of 64 a thread.

    NaN and infinity make their group NaN.
    """
    groups, i = (d + GROUP - 1) // GROUP, np.int64(cuda.grid(1))
    if i < n * groups:
        first, last = i // groups * d + i % groups * GROUP, i // groups * d + min(d, (i % groups + 1) * GROUP)
        largest, lost = np.float32(0), np.float32(0)
        for j in range(first, last):
            largest = max(largest, abs(get(x, j)))
            lost += get(x, j) - get(x, j)
        step = largest / np.float32(127)
        by = step if step > 0 else np.float32(1)
        for j in range(first, last):
            q = (get(x, j) / by + np.float32(12582912)) - np.float32(12582912)
            let(x, j, q * step + lost)


@cuda.jit
def activations(y, size, code, gated, bad):  # type: ignore[no-untyped-def]
    """Replace up rows by activations, and gates by what multiplies them: y's planes of ``size`` numbers each.

    ``bad[0]`` becomes 1 if there is NaN or infinity among the results.
    """
    i = np.int64(cuda.grid(1))
    if i < size:
        a = activate(get(y, i + size if gated else i), code)
        if gated:
            let(y, i + size, a)
            a *= get(y, i)
        let(y, i, a)
        if as_bits(a) & np.uint32(0x7F800000) == np.uint32(0x7F800000):
            bad[0] = 1
