"""Vectors rounded to int8, as products with int8 and int4 rows read them.

A rounded input holds, after its d float32 elements (filled with zeros to whole groups of 64):

codes   64 signed bytes a group
sums    16 elements a group, which the products need of the sum of its codes (integer_rows.py)
scales  one float32 a group: the codes times the scale are the rounded elements

:func:`minicore.quantization.quantize_int8` defines the rounding; these loops give the same codes and scales.
"""

from __future__ import annotations

import numpy as np

from minicore.backends.cpu.compiling import exact, exact_kernel, inlined
from minicore.backends.cpu.intrinsics import float_of, part, row
from minicore.quantization import GROUP, HALF


@inlined
def input_parts(d):  # int -> four ints
    """Return where codes, sums and scales of an input begin, and where it ends, in float32 elements."""
    groups = (d + GROUP - 1) // GROUP
    first = groups * GROUP
    return (
        first,
        first + groups * GROUP // 4,
        first + groups * (GROUP // 4 + 16),
        first + groups * (GROUP // 4 + 17),
    )


def input_size(d: int) -> int:
    """Return how many float32 elements the input of a product takes in the widest format."""
    return int(input_parts.py_func(d)[3])


@exact
def _round(x):  # float32 -> float32
    """Round to the nearest integer, halves to the even one. Reordering would undo it."""
    return (x + np.float32(12582912)) - np.float32(12582912)


@exact
def _scale(x):  # (n,) -> float32
    """Return the scale of a group: NaN if it has a NaN, infinity for infinity."""
    bits, largest = x.view(np.int32), np.int32(0)
    for j in range(x.size):  # magnitudes order as their bits do, and NaN above all
        largest = max(largest, bits[j] & np.int32(0x7FFFFFFF))
    return float_of(largest) / np.float32(127)


@exact
def quantize_group(x, codes):  # (n,), (n,) int8 or float32 -> float32
    """Write the codes of a group and return its scale, which is NaN if the group has a NaN or an infinity."""
    scale = _scale(x)
    divisor = scale if scale > 0 else np.float32(1)
    for j in range(x.size):
        codes[j] = _round(x[j] / divisor)
    return scale + (scale - scale)


@exact
def quantize_groups(d, x):  # int, (input_size(d),) in place
    """Fill in the codes and scales of an input of d elements."""
    at_codes, _, at_scales, _ = input_parts(d)
    for j in range(d, at_codes):
        x[j] = np.float32(0)
    codes, scales = x[at_codes:].view(np.int8), x[at_scales:]
    for g in range(at_codes // GROUP):
        scales[g] = quantize_group(
            part(x, g * GROUP, (g + 1) * GROUP), part(codes, g * GROUP, (g + 1) * GROUP)
        )


@exact
def _sum(codes):  # (n,) int8 -> int32
    total = np.int32(0)
    for j in range(codes.size):
        total += np.int32(codes[j])
    return total


@exact
def write_int8_sums(codes, sums):  # (n,) int8, (16,) int32
    """Write what :func:`minicore.backends.cpu.integer_rows.start_of` reads of a group."""
    for j in range(16):
        sums[j] = 0
    sums[0] = -128 * _sum(codes)


@exact
def write_int4_sums(codes, sums):  # (64,) int8, (16,) float32
    """Write the sums of both halves to elements 2 and 3, as minima follow two scales in int4 rows."""
    for j in range(16):
        sums[j] = np.float32(0)
    sums[2] = np.float32(_sum(codes[:HALF]))
    sums[3] = np.float32(_sum(codes[HALF:]))


@exact_kernel
def fake_quantize_rows(thread, n_threads, n, size, x, y):  # (n, d) twice
    """Write each row of x to y, rounded ``size`` elements at a time (minicore.quantization.fake_quantize)."""
    for t in range(thread * n // n_threads, (thread + 1) * n // n_threads):
        for first in range(0, x.shape[1], size):
            last = first + size if first + size < x.shape[1] else x.shape[1]
            group = part(row(y, t), first, last)
            scale = quantize_group(part(row(x, t), first, last), group)
            for j in range(group.size):
                group[j] *= scale
