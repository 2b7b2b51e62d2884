"""Embeddings and norms. A block has a token; starts are chunks of the fixed arena, -1 for what is missing."""

from __future__ import annotations

import math

import numpy as np
from numba.core.types import float32

from minicore.backends.cuda.kernels.elements import element, float_element
from minicore.backends.cuda.kernels.intrinsics import WARP_SIZE, cuda, load, store
from minicore.backends.cuda.kernels.prefill.block_reduce import ROW_WARPS, block_sum


@cuda.jit
def embed(fixed, ids, x, start, position_start, first, d, n_chunks, shift):
    """Start the residual stream x (n, d): embeddings of the tokens and of their positions from first on."""
    t = cuda.blockIdx.x
    row, position_row = start + ids[t] * n_chunks, position_start + (first + t) * n_chunks
    for i in range(cuda.threadIdx.x, d, ROW_WARPS * WARP_SIZE):
        value = element(fixed, row, i, d, shift)
        if position_start >= 0:
            value += element(fixed, position_row, i, d, shift)
        x[t * d + i] = value


@cuda.jit
def norm(x, fixed, w, b, d, layer_norm, eps, y):
    """Write the norms of the rows of x (n, d) to y; the weights start at chunk w, the bias at chunk b."""
    parts = cuda.shared.array(ROW_WARPS, float32)
    t, tid = np.int64(cuda.blockIdx.x), cuda.threadIdx.x
    mean, square = np.float32(0), np.float32(0)
    if layer_norm:
        for i in range(tid, d, ROW_WARPS * WARP_SIZE):
            mean += load(x, t * d + i)
        mean = block_sum(parts, mean, tid) / np.float32(d)
    for i in range(tid, d, ROW_WARPS * WARP_SIZE):
        square += (load(x, t * d + i) - mean) * (load(x, t * d + i) - mean)
    square = block_sum(parts, square, tid) / np.float32(d)
    scale = np.float32(1) / math.sqrt(square + eps)
    for i in range(tid, d, ROW_WARPS * WARP_SIZE):
        value = (load(x, t * d + i) - mean) * scale * float_element(fixed, w, i, False)
        if b >= 0:
            value += float_element(fixed, b, i, False)
        store(y, t * d + i, value)
