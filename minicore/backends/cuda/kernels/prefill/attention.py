"""Attention."""

from __future__ import annotations

import math

import numpy as np
from numba.core.types import float32

from minicore.backends.cuda.kernels.elements import as_kept
from minicore.backends.cuda.kernels.intrinsics import LANES, cuda, get, let
from minicore.backends.cuda.kernels.prefill.blocks import WARPS, block_max, block_sum
from minicore.backends.cuda.kernels.prefill.products import (
    DEPTH,
    FLOATS,
    TILE,
    finish_tile,
    multiply,
    nothing,
    stage,
)


@cuda.jit
def rotate(qkv, frequencies, keys, values, row0, capacity, first, n_heads, n_kv, d_head, rope, rounded):  # type: ignore[no-untyped-def]
    """Rotate queries in place and write rotated keys, and values, of positions from ``first`` on.

    ``row0`` is the layer's first row of the kv cache, ``capacity`` the rows of a head.
    """
    t, half = np.int64(cuda.blockIdx.x), d_head // 2
    at = t * (n_heads + 2 * n_kv) * d_head
    position = first + t
    for p in range(cuda.threadIdx.x, (n_heads + n_kv) * half, WARPS * LANES):
        head, j = p // half, p % half
        i = at + head * d_head + j
        u, v = qkv[i], qkv[i + half]
        if rope:
            angle = np.float32(position) * frequencies[j]
            cos, sin = math.cos(angle), math.sin(angle)
            u, v = u * cos - v * sin, v * cos + u * sin
        if head < n_heads:
            qkv[i], qkv[i + half] = u, v
        else:
            i = (row0 + (head - n_heads) * capacity + position) * d_head + j
            keys[i], keys[i + half] = as_kept(u, rounded), as_kept(v, rounded)
    for i in range(cuda.threadIdx.x, n_kv * d_head, WARPS * LANES):
        head, j = i // d_head, i % d_head
        value = qkv[at + (n_heads + n_kv) * d_head + i]
        values[(row0 + head * capacity + position) * d_head + j] = as_kept(value, rounded)


@cuda.jit
def scores(arena, qkv, keys, y, row0, capacity, first, n, n_heads, n_kv, d_head):  # type: ignore[no-untyped-def]
    """Write queries times keys to y (n_heads, n, first + n), but for future tiles; grid z is the head."""
    xs = cuda.shared.array(FLOATS, float32)
    ws = cuda.shared.array(FLOATS, float32)
    tid, head = cuda.threadIdx.x, np.int64(cuda.blockIdx.z)
    i0, p0, end = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE, first + n
    if p0 >= first + i0 + TILE:
        return
    width, total = (n_heads + 2 * n_kv) * d_head, (nothing(), nothing(), nothing(), nothing())
    rows = (row0 + head // (n_heads // n_kv) * capacity) * d_head
    for k0 in range(0, d_head, DEPTH):
        stage(xs, qkv, head * d_head, width, 1, i0, n, k0, d_head, tid)
        stage(ws, keys, rows, d_head, 1, p0, end, k0, d_head, tid)
        cuda.syncthreads()
        total = multiply(xs, ws, tid, total)
        cuda.syncthreads()
    finish_tile(y, arena, -1, head * n * end, i0, p0, n, end, end, total, False, tid)


@cuda.jit
def softmax(y, first, n, scale):  # type: ignore[no-untyped-def]
    """Replace scores (n_heads, n, first + n) by their causal softmax; grid x is the token, y the head."""
    parts = cuda.shared.array(WARPS, float32)
    t, tid, end = np.int64(cuda.blockIdx.x), cuda.threadIdx.x, first + n
    at, seen = (np.int64(cuda.blockIdx.y) * n + t) * end, first + t + 1
    top, mass = np.float32(-np.inf), np.float32(0)
    for p in range(tid, seen, WARPS * LANES):
        score = get(y, at + p) * scale
        top = top if score <= top else score  # NaN stays
    top = block_max(parts, top, tid)
    for p in range(tid, seen, WARPS * LANES):
        e = math.exp(get(y, at + p) * scale - top)
        let(y, at + p, e)
        mass += e
    mass = block_sum(parts, mass, tid)
    for p in range(tid, seen, WARPS * LANES):
        let(y, at + p, get(y, at + p) / mass)
    for p in range(seen + tid, min(end, first + (t // TILE + 1) * TILE), WARPS * LANES):
        let(y, at + p, np.float32(0))  # what a tile of :func:`mixture` reads of the future


@cuda.jit
def mixture(arena, pattern, values, z, row0, capacity, first, n, n_heads, n_kv, d_head):  # type: ignore[no-untyped-def]
    """Write the pattern's mixture of values to z (n, n_heads, d_head); grid z is the head."""
    xs = cuda.shared.array(FLOATS, float32)
    ws = cuda.shared.array(FLOATS, float32)
    tid, head = cuda.threadIdx.x, np.int64(cuda.blockIdx.z)
    i0, j0, end = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE, first + n
    rows = (row0 + head // (n_heads // n_kv) * capacity) * d_head
    total, last = (nothing(), nothing(), nothing(), nothing()), min(end, first + i0 + TILE)
    for p0 in range(0, last, DEPTH):
        stage(xs, pattern, head * n * end, end, 1, i0, n, p0, last, tid)
        stage(ws, values, rows, 1, d_head, j0, d_head, p0, last, tid)
        cuda.syncthreads()
        total = multiply(xs, ws, tid, total)
        cuda.syncthreads()
    finish_tile(z, arena, -1, head * d_head, i0, j0, n, d_head, n_heads * d_head, total, False, tid)
