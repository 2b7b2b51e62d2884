"""Sums over a warp."""

from __future__ import annotations

from minicore.backends.cuda.kernels.intrinsics import ALL, LANES, cuda, device


@device
def group_sum(x, width):  # type: ignore[no-untyped-def]
    """Return the sum of x over neighbouring lanes, so many at a time; each of them gets it."""
    offset = width >> 1
    while offset > 0:
        x += cuda.shfl_xor_sync(ALL, x, offset)
        offset >>= 1
    return x


@device
def warp_sum(x):  # type: ignore[no-untyped-def]
    """Return the sum of x over the lanes of a warp."""
    return group_sum(x, LANES)


@device
def from_first(x):  # type: ignore[no-untyped-def]
    """Return the first lane's x to all lanes of a warp."""
    return cuda.shfl_sync(ALL, x, 0) if LANES > 1 else x


@device
def group_sum2(a, b, width):  # type: ignore[no-untyped-def]
    """Return two such sums: one is added up while the other is on its way to the neighbours."""
    offset = width >> 1
    while offset > 0:
        c, d = cuda.shfl_xor_sync(ALL, a, offset), cuda.shfl_xor_sync(ALL, b, offset)
        a, b = a + c, b + d
        offset >>= 1
    return a, b


@device
def group_sum4(a, b, c, d, width):  # type: ignore[no-untyped-def]
    """Return four such sums."""
    offset = width >> 1
    while offset > 0:
        e, f = cuda.shfl_xor_sync(ALL, a, offset), cuda.shfl_xor_sync(ALL, b, offset)
        g, h = cuda.shfl_xor_sync(ALL, c, offset), cuda.shfl_xor_sync(ALL, d, offset)
        a, b, c, d = a + e, b + f, c + g, d + h
        offset >>= 1
    return a, b, c, d


@device
def group_max(x, width):  # type: ignore[no-untyped-def]
    """Return the largest x of neighbouring lanes, so many at a time."""
    offset = width >> 1
    while offset > 0:
        x = max(x, cuda.shfl_xor_sync(ALL, x, offset))
        offset >>= 1
    return x


@device
def warp_max(x):  # type: ignore[no-untyped-def]
    """Return the largest x of a warp."""
    return group_max(x, LANES)


@device
def warp_best(score, at):  # type: ignore[no-untyped-def]  # float32, int32 -> the same
    """Return a warp's largest score and where it is; of equal ones the first."""
    offset = LANES >> 1
    while offset > 0:
        other, other_at = cuda.shfl_xor_sync(ALL, score, offset), cuda.shfl_xor_sync(ALL, at, offset)
        if other > score or (other == score and other_at < at):
            score, at = other, other_at
        offset >>= 1
    return score, at
