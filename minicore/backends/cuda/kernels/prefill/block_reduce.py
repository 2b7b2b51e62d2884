"""Sums and maxima over a block of ROW_WARPS warps. ``parts`` is shared memory, an element for each warp."""

from __future__ import annotations

from minicore.backends.cuda.kernels.intrinsics import WARP_SIZE, cuda, device
from minicore.backends.cuda.kernels.warp import warp_max, warp_sum

ROW_WARPS = 4  # of kernels in which a block has a row, that of one token


@device
def block_sum(parts, x, tid):
    """Return the sum of x over the block."""
    x = warp_sum(x)
    cuda.syncthreads()  # parts of the last reduction may still be read
    if tid & (WARP_SIZE - 1) == 0:
        parts[tid // WARP_SIZE] = x
    cuda.syncthreads()
    return parts[0] + parts[1] + (parts[2] + parts[3])


@device
def block_max(parts, x, tid):
    """Return the largest x of the block."""
    x = warp_max(x)
    cuda.syncthreads()
    if tid & (WARP_SIZE - 1) == 0:
        parts[tid // WARP_SIZE] = x
    cuda.syncthreads()
    return max(max(parts[0], parts[1]), max(parts[2], parts[3]))
