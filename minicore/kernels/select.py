"""Token-wise core neurons counted as fast as they are computed: the k-th largest without sorting.

Positive floats order like their bits, so the k-th largest activation of a token is found by halving an
interval of bit patterns, each time counting how many lie above: a count is a few dozen vector instructions,
where sorting a row takes thousands of steps.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from minicore.core.neurons import check_fraction
from minicore.kernels import team

Array = np.ndarray


@nb.njit
def _at_least(bits, limit):  # type: ignore[no-untyped-def]  # (n,) int32, int32 -> int32
    n = np.int32(0)
    for j in range(bits.size):
        n += np.int32(bits[j] >= limit)
    return n


@nb.njit
def kth_largest(bits, k, n):  # type: ignore[no-untyped-def]  # (n_neurons,) int32, int, int -> int32, int
    """Return the k-th largest of the n positive patterns, and how many there are from it up."""
    low, high, above = np.int32(1), np.int32(0), n  # at least k patterns are >= low, fewer are > high
    for j in range(bits.size):
        high = max(high, bits[j])
    while low < high:
        middle = np.int32(low + (high - low + 1) // 2)
        count = _at_least(bits, middle)
        if count >= k:
            low, above = middle, count
            if count == k:  # the k largest are those from the smallest of them up
                break
        else:
            high = np.int32(middle - 1)
    return low, above


@nb.njit(nogil=True, cache=True)
def _count(thread, n_threads, a, alpha, counts):  # type: ignore[no-untyped-def]
    """Add this thread's tokens to its row of counts (n_threads, n_neurons)."""
    n_tokens, mine = a.shape[0], counts[thread]
    for t in range(thread * n_tokens // n_threads, (thread + 1) * n_tokens // n_threads):
        bits = a[t].view(np.int32)
        n = _at_least(bits, np.int32(1))
        if n == 0:
            continue
        k = max(int(math.floor(alpha * n)), 1)
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


def add_counts(total: Array, a: Array, alpha: float) -> Array:  # (n_neurons,), (n_tokens, n_neurons)
    """See :func:`minicore.core.recording.add_counts`; a is float32 and finite, as a recording has it."""
    check_fraction("alpha", alpha)
    n_threads = team.default_threads() if len(a) > 8 else 1
    counts = np.zeros((n_threads, a.shape[1]), np.int32)
    team.run(_count, n_threads, np.ascontiguousarray(a), float(alpha), counts)
    total += counts.sum(axis=0)
    return total
