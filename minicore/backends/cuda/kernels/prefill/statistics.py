"""What predictors sum over the tokens of a prompt. A block has a token, unless a thread has an element.

Activations are a (n, width). Elements are compared by their bits: those of positive floats have the order
of the floats.
"""

from __future__ import annotations

import math

import numpy as np
from numba.core.types import float64, int32

from minicore.backends.cuda.kernels.intrinsics import WARP_SIZE, cuda, device, float_as_uint, load
from minicore.backends.cuda.kernels.prefill.block_reduce import ROW_WARPS, block_max, block_sum
from minicore.core.statistics import GATE_SHIFT


@device
def ordered_bits(a, i, magnitude):  # -> int32
    """Return the bits of a[i], or of its magnitude."""
    bits = float_as_uint(load(a, i))
    return np.int32(bits & np.uint32(0x7FFFFFFF)) if magnitude else np.int32(bits)


@device
def count_at_least(a, at, width, least, magnitude, parts, tid):
    """Return how many elements of the row that starts at ``at`` have at least these bits."""
    count = np.int32(0)
    for i in range(tid, width, ROW_WARPS * WARP_SIZE):
        if ordered_bits(a, at + i, magnitude) >= least:
            count += np.int32(1)
    return block_sum(parts, count, tid)


@device
def kth_largest(a, at, width, k, magnitude, parts, tid):
    """Return the bits of a row's k-th largest element, a positive one, by bisection."""
    low, high = np.int32(1), np.int32(0)
    for i in range(tid, width, ROW_WARPS * WARP_SIZE):
        high = max(high, ordered_bits(a, at + i, magnitude))
    high = block_max(parts, high, tid)
    while low < high:
        middle = np.int32(low + (high - low + 1) // 2)
        if count_at_least(a, at, width, middle, magnitude, parts, tid) >= k:
            low = middle
        else:
            high = np.int32(middle - 1)
    return low


@cuda.jit
def count_cores(a, width, alpha, magnitude, counts):
    """Count for each neuron the tokens in whose core it is (minicore.core.neurons.token_core)."""
    parts = cuda.shared.array(ROW_WARPS, int32)
    at, tid = np.int64(cuda.blockIdx.x) * width, cuda.threadIdx.x
    n = count_at_least(a, at, width, np.int32(1), magnitude, parts, tid)
    if n == 0:
        return
    k = max(int(math.floor(alpha * n)), 1)
    threshold = kth_largest(a, at, width, k, magnitude, parts, tid)
    n_remaining = k - count_at_least(a, at, width, np.int32(threshold + 1), magnitude, parts, tid)
    n_equal = count_at_least(a, at, width, threshold, magnitude, parts, tid) - (k - n_remaining)
    for i in range(tid, width, ROW_WARPS * WARP_SIZE):
        bits = ordered_bits(a, at + i, magnitude)
        if bits > threshold or (bits == threshold and n_equal == n_remaining):
            cuda.atomic.add(counts, i, 1)
    if n_equal > n_remaining and tid == 0:  # of equal elements, those of lower index
        i = 0
        while n_remaining > 0:
            if ordered_bits(a, at + i, magnitude) == threshold:
                cuda.atomic.add(counts, i, 1)
                n_remaining -= 1
            i += 1


@cuda.jit
def count_positives(a, width, total):
    """Add the number of positive elements to total[0]."""
    parts = cuda.shared.array(ROW_WARPS, int32)
    at = np.int64(cuda.blockIdx.x) * width
    n = count_at_least(a, at, width, np.int32(1), False, parts, cuda.threadIdx.x)
    if cuda.threadIdx.x == 0:
        cuda.atomic.add(total, 0, n)


@cuda.jit
def count_bins(a, size, bins):
    """Count elements by the upper bits of their magnitude."""
    i = np.int64(cuda.grid(1))
    if i < size:
        bits = float_as_uint(load(a, i)) & np.uint32(0x7FFFFFFF)
        cuda.atomic.add(bins, np.int64(bits >> np.uint32(GATE_SHIFT)), 1)


@cuda.jit
def token_energies(a, width, energies):
    """Write the energy of each token, its sum of squares in float64."""
    parts = cuda.shared.array(ROW_WARPS, float64)
    at, tid, total = np.int64(cuda.blockIdx.x) * width, cuda.threadIdx.x, np.float64(0)
    for i in range(tid, width, ROW_WARPS * WARP_SIZE):
        total += np.float64(load(a, at + i)) * np.float64(load(a, at + i))
    total = block_sum(parts, total, tid)
    if tid == 0:
        energies[cuda.blockIdx.x] = total


@cuda.jit
def add_relative_energy(a, n, width, energies, total):
    """Add each neuron's share of each token's energy, token after token. A thread has a neuron."""
    i = np.int64(cuda.grid(1))
    if i < width:
        for t in range(n):
            value = np.float64(load(a, t * width + i))
            if energies[t] > 0:
                total[i] += value * value / energies[t]
