"""Embedding and norms."""

from __future__ import annotations

import math

import numpy as np
from numba.core.types import float32

from minicore.backends.cuda.kernels.elements import number, stored
from minicore.backends.cuda.kernels.intrinsics import LANES, cuda, get, let
from minicore.backends.cuda.kernels.prefill.blocks import WARPS, block_sum


@cuda.jit
def embed(fixed, ids, x, at, at_position, first, d, chunks, shift):  # type: ignore[no-untyped-def]
    """Begin the residual stream x (n, d): the tokens' rows, plus those of positions from ``first`` on."""
    t = cuda.blockIdx.x
    row, place = at + ids[t] * chunks, at_position + (first + t) * chunks
    for i in range(cuda.threadIdx.x, d, WARPS * LANES):
        value = stored(fixed, row, i, d, shift)
        if at_position >= 0:
            value += stored(fixed, place, i, d, shift)
        x[t * d + i] = value


@cuda.jit
def norm(x, fixed, w, b, d, layer_norm, eps, y):  # type: ignore[no-untyped-def]
    """Write the norm of every row of x (n, d) to y; its weights lie at units of an arena."""
    parts = cuda.shared.array(WARPS, float32)
    t, tid = np.int64(cuda.blockIdx.x), cuda.threadIdx.x
    mean, square = np.float32(0), np.float32(0)
    if layer_norm:
        for i in range(tid, d, WARPS * LANES):
            mean += get(x, t * d + i)
        mean = block_sum(parts, mean, tid) / np.float32(d)
    for i in range(tid, d, WARPS * LANES):
        square += (get(x, t * d + i) - mean) * (get(x, t * d + i) - mean)
    square = block_sum(parts, square, tid) / np.float32(d)
    scale = np.float32(1) / math.sqrt(square + eps)
    for i in range(tid, d, WARPS * LANES):
        value = (get(x, t * d + i) - mean) * scale * number(fixed, w, i, False)
        if b >= 0:
            value += number(fixed, b, i, False)
        let(y, t * d + i, value)
