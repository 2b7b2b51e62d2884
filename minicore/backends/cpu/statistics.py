"""The sums that predictors take over tokens, in compiled loops.

Core neurons of a token are counted without sorting. Positive floats order as their bit patterns do, so the
k-th largest activation of a token is found by narrowing an interval of patterns, counting at each step how
many are above. A count takes a few dozen vector instructions; sorting a row takes thousands of steps.
"""

from __future__ import annotations

import numpy as np

from minicore.backends.cpu import threads
from minicore.backends.cpu.compiling import exact, exact_kernel, kernel
from minicore.backends.cpu.intrinsics import row
from minicore.core.neurons import check_fraction
from minicore.core.statistics import GATE_SHIFT

Array = np.ndarray


@exact
def _at_least(bits, limit):  # (n,) int32, int32 -> int32
    n = np.int32(0)
    for j in range(bits.size):
        n = np.int32(n + (bits[j] >= limit))  # int32 + bool is int64 in Numba, of which a vector holds half
    return n


@exact
def kth_largest(bits, k, n):  # (n_neurons,) int32, int, int -> int32, int
    """Return the k-th largest of the n positive patterns, and how many are at least as large."""
    largest = np.int32(0)
    for j in range(bits.size):
        largest = largest if largest > bits[j] else bits[j]
    low, end, above, below = 1, largest + 1, n, 0  # above patterns are >= low, below of them >= end
    halve = False
    while low + 1 < end and above != k:
        share = (
            0.5 if halve else (above - k + 0.5) / (above - below)
        )  # were they evenly spread, the k-th is here
        middle = low + np.int64(share * (end - low))
        middle = low + 1 if middle <= low else (end - 1 if middle >= end else middle)
        count = _at_least(bits, np.int32(middle))
        if count >= k:
            low, above = middle, count
        else:
            end, below = middle, count
        halve = not halve
    return np.int32(low), above


@exact_kernel
def _count(thread, n_threads, n_tokens, patterns, alpha, counts):  # (n_tokens, n_neurons) int32
    """Add this thread's tokens to its row of counts (n_threads, n_neurons)."""
    mine = row(counts, thread)
    for t in range(thread * n_tokens // n_threads, (thread + 1) * n_tokens // n_threads):
        bits = row(patterns, t)
        n = _at_least(bits, np.int32(1))
        if n == 0:
            continue
        k = np.int64(alpha * n)  # the floor, as neither is negative
        k = k if k > 1 else 1
        cut, above = kth_largest(bits, k, n)
        if above == k:
            for j in range(bits.size):
                mine[j] += bits[j] >= cut
        else:  # of the entries that equal the cut, those of lower index
            places = k - _at_least(bits, np.int32(cut + 1))
            for j in range(bits.size):
                if bits[j] > cut:
                    mine[j] += 1
                elif bits[j] == cut and places:
                    mine[j] += 1
                    places -= 1


def _patterns(a: Array) -> Array:  # any shape -> the same, int32
    """Return the bit patterns of float32 elements, which order as positive floats do."""
    return np.ascontiguousarray(a).view(np.int32)


def add_counts(total: Array, a: Array, alpha: float) -> Array:  # (n_neurons,), (n_tokens, n_neurons)
    """See :func:`minicore.core.statistics.add_counts`; a is float32 and finite, as a recording has it."""
    check_fraction("alpha", alpha)
    n_threads = threads.default_threads() if len(a) > 8 else 1
    counts = np.zeros((n_threads, a.shape[1]), np.int32)
    threads.run(_count, n_threads, len(a), _patterns(a), float(alpha), counts)
    total += counts.sum(axis=0)
    return total


def add_magnitude_counts(total: Array, a: Array, alpha: float) -> Array:
    """See :func:`minicore.core.statistics.add_magnitude_counts`."""
    return add_counts(total, np.abs(a), alpha)


@kernel
def _energies(thread, n_threads, n, a, whole):  # (n, m) -> float64 (n,)
    """Write the sum of squares of each of a thread's tokens; NumPy would square into a matrix of its own."""
    for t in range(thread * n // n_threads, (thread + 1) * n // n_threads):
        total = np.float64(0)
        for j in range(a.shape[1]):
            total += np.float64(a[t, j]) * np.float64(a[t, j])
        whole[t] = total


@exact_kernel
def _add_shares(thread, n_threads, n, a, whole, total):
    """Add a thread's n neurons' shares of each token's energy, in token order."""
    first, last = thread * n // n_threads, (thread + 1) * n // n_threads
    mine = total[first:last]
    for t in range(len(a)):
        row, by = a[t, first:last], whole[t]
        if by > 0:
            for j in range(mine.size):
                mine[j] += np.float64(row[j]) * np.float64(row[j]) / by


def add_relative_energy(total: Array, a: Array, alpha: float) -> Array:  # (n_neurons,) float64, ...
    """See :func:`minicore.core.statistics.add_relative_energy`."""
    whole, n_threads = (
        np.empty(len(a)),
        threads.default_threads() if a.size > threads.ONE_THREAD_ELEMENTS else 1,
    )
    threads.run(_energies, n_threads, len(a), a, whole)
    threads.run(_add_shares, n_threads, a.shape[1], a, whole, total)
    return total


@exact_kernel
def _count_bins(patterns, total):  # (n_tokens, n_neurons) int32, (n_bins,)
    for t in range(len(patterns)):
        for j in range(patterns.shape[1]):
            total[(patterns[t, j] & np.int32(0x7FFFFFFF)) >> np.int32(GATE_SHIFT)] += 1


def add_gate_bins(total: Array, gate: Array, alpha: float) -> Array:  # (n_bins,), (n_tokens, n_neurons)
    """See :func:`minicore.core.statistics.add_gate_bins`."""
    _count_bins(_patterns(gate), total)
    return total


ADDERS = {
    "counts": add_counts,
    "magnitude_counts": add_magnitude_counts,
    "relative_energy": add_relative_energy,
    "gate_bins": add_gate_bins,
}
