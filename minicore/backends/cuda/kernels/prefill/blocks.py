"""Sums over a block."""

from __future__ import annotations

from minicore.backends.cuda.kernels.intrinsics import LANES, cuda, device
from minicore.backends.cuda.kernels.warp import warp_max, warp_sum

WARPS = 4  # of all other kernels


@device
def block_sum(parts, x, tid):  # type: ignore[no-untyped-def]
    """Return the sum of x over a block of WARPS warps."""
    x = warp_sum(x)
    cuda.syncthreads()  # parts may still be read from the last time
    if tid & (LANES - 1) == 0:
        parts[tid // LANES] = x
    cuda.syncthreads()
    return parts[0] + parts[1] + (parts[2] + parts[3])


@device
def block_max(parts, x, tid):  # type: ignore[no-untyped-def]
    """Return the largest x of a block of WARPS warps."""
    x = warp_max(x)
    cuda.syncthreads()
    if tid & (LANES - 1) == 0:
        parts[tid // LANES] = x
    cuda.syncthreads()
    return max(max(parts[0], parts[1]), max(parts[2], parts[3]))
