"""Sums over tokens (minicore.core.statistics)."""

from __future__ import annotations

import math

import numpy as np
from numba.core.types import float64, int32

from minicore.backends.cuda.kernels.intrinsics import LANES, as_bits, cuda, device, get
from minicore.backends.cuda.kernels.prefill.blocks import WARPS, block_max, block_sum

BINS_SHIFT = 14  # minicore.core.statistics.GATE_SHIFT; kernels see constants of their own module


@device
def order_of(a, i, magnitude):  # type: ignore[no-untyped-def]  # -> int32
    """Return the bits of a number: those of positive floats are positive and in their order."""
    bits = as_bits(get(a, i))
    return np.int32(bits & np.uint32(0x7FFFFFFF)) if magnitude else np.int32(bits)


@device
def how_many(a, at, width, least, magnitude, parts, tid):  # type: ignore[no-untyped-def]
    """Return how many of a row's numbers have at least these bits."""
    count = np.int32(0)
    for i in range(tid, width, WARPS * LANES):
        if order_of(a, at + i, magnitude) >= least:
            count += np.int32(1)
    return block_sum(parts, count, tid)


@device
def kth_largest(a, at, width, k, magnitude, parts, tid):  # type: ignore[no-untyped-def]
    """Return the bits of a row's k-th largest number, which is positive, by halving an interval of bits."""
    low_end, high_end = np.int32(1), np.int32(0)
    for i in range(tid, width, WARPS * LANES):
        high_end = max(high_end, order_of(a, at + i, magnitude))
    high_end = block_max(parts, high_end, tid)
    while low_end < high_end:
        middle = np.int32(low_end + (high_end - low_end + 1) // 2)
        if how_many(a, at, width, middle, magnitude, parts, tid) >= k:
            low_end = middle
        else:
            high_end = np.int32(middle - 1)
    return low_end


@cuda.jit
def count_cores(a, width, alpha, magnitude, counts):  # type: ignore[no-untyped-def]
    """Count the tokens of a (n, width) whose core holds each neuron; a block a token."""
    parts = cuda.shared.array(WARPS, int32)
    at, tid = np.int64(cuda.blockIdx.x) * width, cuda.threadIdx.x
    n = how_many(a, at, width, np.int32(1), magnitude, parts, tid)
    if n == 0:
        return
    k = max(int(math.floor(alpha * n)), 1)
    cut_off = kth_largest(a, at, width, k, magnitude, parts, tid)
    places = k - how_many(a, at, width, np.int32(cut_off + 1), magnitude, parts, tid)
    equal = how_many(a, at, width, cut_off, magnitude, parts, tid) - (k - places)
    for i in range(tid, width, WARPS * LANES):
        bits = order_of(a, at + i, magnitude)
        if bits > cut_off or (bits == cut_off and equal == places):
            cuda.atomic.add(counts, i, 1)
    if equal > places and tid == 0:  # of the entries that equal the cut, those of lower index
        i = 0
        while places > 0:
            if order_of(a, at + i, magnitude) == cut_off:
                cuda.atomic.add(counts, i, 1)
                places -= 1
            i += 1


@cuda.jit
def count_positives(a, width, total):  # type: ignore[no-untyped-def]
    """Add a row's number of positive entries to total[0]; a block a token."""
    parts = cuda.shared.array(WARPS, int32)
    n = how_many(a, np.int64(cuda.blockIdx.x) * width, width, np.int32(1), False, parts, cuda.threadIdx.x)
    if cuda.threadIdx.x == 0:
        cuda.atomic.add(total, 0, n)


@cuda.jit
def count_bins(a, size, bins):  # type: ignore[no-untyped-def]
    """Count the numbers of each magnitude, by the upper bits of |a|."""
    i = np.int64(cuda.grid(1))
    if i < size:
        bits = as_bits(get(a, i)) & np.uint32(0x7FFFFFFF)
        cuda.atomic.add(bins, np.int64(bits >> np.uint32(BINS_SHIFT)), 1)


@cuda.jit
def energies(a, width, whole):  # type: ignore[no-untyped-def]
    """Write the energy of every row, a sum of squares in float64; a block a token."""
    parts = cuda.shared.array(WARPS, float64)
    at, tid, total = np.int64(cuda.blockIdx.x) * width, cuda.threadIdx.x, np.float64(0)
    for i in range(tid, width, WARPS * LANES):
        total += np.float64(get(a, at + i)) * np.float64(get(a, at + i))
    total = block_sum(parts, total, tid)
    if tid == 0:
        whole[cuda.blockIdx.x] = total


@cuda.jit
def add_energies(a, n, width, whole, total):  # type: ignore[no-untyped-def]
    """Add every token's shares of its energy, one token after the other; a thread a neuron."""
    i = np.int64(cuda.grid(1))
    if i < width:
        for t in range(n):
            value = np.float64(get(a, t * width + i))
            if whole[t] > 0:
                total[i] += value * value / whole[t]
