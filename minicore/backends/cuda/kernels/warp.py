"""Sums, maxima and argmaxima over the lanes of a warp, by butterfly shuffles.

A *group* is ``width`` neighbouring lanes, a power of two. Every lane of a group gets the result.
"""

from __future__ import annotations

from minicore.backends.cuda.kernels.intrinsics import ALL_LANES, WARP_SIZE, cuda, device


@device
def group_sum(x, width):
    """Return the sum of x over a group."""
    offset = width >> 1
    while offset > 0:
        x += cuda.shfl_xor_sync(ALL_LANES, x, offset)
        offset >>= 1
    return x


@device
def group_sum2(a, b, width):
    """Return the sums of a and of b over a group. The shuffles of one hide the latency of the other's."""
    offset = width >> 1
    while offset > 0:
        c, d = cuda.shfl_xor_sync(ALL_LANES, a, offset), cuda.shfl_xor_sync(ALL_LANES, b, offset)
        a, b = a + c, b + d
        offset >>= 1
    return a, b


@device
def group_sum4(a, b, c, d, width):
    """Return the sums of a, b, c and d over a group."""
    offset = width >> 1
    while offset > 0:
        e, f = cuda.shfl_xor_sync(ALL_LANES, a, offset), cuda.shfl_xor_sync(ALL_LANES, b, offset)
        g, h = cuda.shfl_xor_sync(ALL_LANES, c, offset), cuda.shfl_xor_sync(ALL_LANES, d, offset)
        a, b, c, d = a + e, b + f, c + g, d + h
        offset >>= 1
    return a, b, c, d


@device
def group_max(x, width):
    """Return the largest x of a group."""
    offset = width >> 1
    while offset > 0:
        x = max(x, cuda.shfl_xor_sync(ALL_LANES, x, offset))
        offset >>= 1
    return x


@device
def warp_sum(x):
    """Return the sum of x over a warp."""
    return group_sum(x, WARP_SIZE)


@device
def warp_max(x):
    """Return the largest x of a warp."""
    return group_max(x, WARP_SIZE)


@device
def warp_argmax(score, i):  # float32, int32 -> float32, int32
    """Return the largest score of a warp and its i; of equal scores the one with the smallest i."""
    offset = WARP_SIZE >> 1
    while offset > 0:
        other = cuda.shfl_xor_sync(ALL_LANES, score, offset)
        other_i = cuda.shfl_xor_sync(ALL_LANES, i, offset)
        if other > score or (other == score and other_i < i):
            score, i = other, other_i
        offset >>= 1
    return score, i


@device
def broadcast_first(x):
    """Return the first lane's x to all lanes of a warp."""
    return cuda.shfl_sync(ALL_LANES, x, 0) if WARP_SIZE > 1 else x
