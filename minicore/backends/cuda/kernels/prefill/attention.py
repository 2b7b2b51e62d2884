"""Attention over a prompt: rotary embedding, scores, softmax, weighted values.

Keys and values are rows of d_head elements: ``capacity`` rows for each kv head, those of a layer from
``row0`` on. The positions of the n tokens start at ``first``. Scores and weights are (n_heads, n, first +
n).
"""

from __future__ import annotations

import math

import numpy as np
from numba.core.types import float32

from minicore.backends.cuda.kernels.elements import to_cache_precision
from minicore.backends.cuda.kernels.intrinsics import WARP_SIZE, cuda, load, store
from minicore.backends.cuda.kernels.prefill.block_reduce import ROW_WARPS, block_max, block_sum
from minicore.backends.cuda.kernels.prefill.products import (
    DEPTH,
    TILE,
    TILE_FLOATS,
    load_tile,
    multiply_tiles,
    write_tile,
    zeros4,
)


@cuda.jit
def rotate(qkv, frequencies, keys, values, row0, capacity, first, n_heads, n_kv_heads, d_head, rope, bf16):
    """Rotate queries in place; write rotated keys, and values, to the kv cache. A block has a token."""
    t, half = np.int64(cuda.blockIdx.x), d_head // 2
    at = t * (n_heads + 2 * n_kv_heads) * d_head
    position = first + t
    for p in range(cuda.threadIdx.x, (n_heads + n_kv_heads) * half, ROW_WARPS * WARP_SIZE):
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
            keys[i], keys[i + half] = to_cache_precision(u, bf16), to_cache_precision(v, bf16)
    for i in range(cuda.threadIdx.x, n_kv_heads * d_head, ROW_WARPS * WARP_SIZE):
        head, j = i // d_head, i % d_head
        value = qkv[at + (n_heads + n_kv_heads) * d_head + i]
        values[(row0 + head * capacity + position) * d_head + j] = to_cache_precision(value, bf16)


@cuda.jit
def scores(arena, qkv, keys, y, row0, capacity, first, n, n_heads, n_kv_heads, d_head):
    """Write queries times keys to y, except for tiles that are all future; grid z is the head."""
    xs = cuda.shared.array(TILE_FLOATS, float32)
    ws = cuda.shared.array(TILE_FLOATS, float32)
    tid, head = cuda.threadIdx.x, np.int64(cuda.blockIdx.z)
    i0, p0, end = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE, first + n
    if p0 >= first + i0 + TILE:
        return
    width, total = (n_heads + 2 * n_kv_heads) * d_head, (zeros4(), zeros4(), zeros4(), zeros4())
    rows = (row0 + head // (n_heads // n_kv_heads) * capacity) * d_head
    for k0 in range(0, d_head, DEPTH):
        load_tile(xs, qkv, head * d_head, width, 1, i0, n, k0, d_head, tid)
        load_tile(ws, keys, rows, d_head, 1, p0, end, k0, d_head, tid)
        cuda.syncthreads()
        total = multiply_tiles(xs, ws, tid, total)
        cuda.syncthreads()
    write_tile(y, arena, -1, head * n * end, i0, p0, n, end, end, total, False, tid)


@cuda.jit
def softmax(y, first, n, scale):
    """Replace scores y by their causal softmax; grid x is the token, grid y the head."""
    parts = cuda.shared.array(ROW_WARPS, float32)
    t, tid, end = np.int64(cuda.blockIdx.x), cuda.threadIdx.x, first + n
    at, seen = (np.int64(cuda.blockIdx.y) * n + t) * end, first + t + 1
    largest, denominator = np.float32(-np.inf), np.float32(0)
    for p in range(tid, seen, ROW_WARPS * WARP_SIZE):
        score = load(y, at + p) * scale
        largest = largest if score <= largest else score  # NaN stays
    largest = block_max(parts, largest, tid)
    for p in range(tid, seen, ROW_WARPS * WARP_SIZE):
        e = math.exp(load(y, at + p) * scale - largest)
        store(y, at + p, e)
        denominator += e
    denominator = block_sum(parts, denominator, tid)
    for p in range(tid, seen, ROW_WARPS * WARP_SIZE):
        store(y, at + p, load(y, at + p) / denominator)
    for p in range(seen + tid, min(end, first + (t // TILE + 1) * TILE), ROW_WARPS * WARP_SIZE):
        store(y, at + p, np.float32(0))  # the future, as far as weighted_values reads it


@cuda.jit
def weighted_values(arena, weights, values, z, row0, capacity, first, n, n_heads, n_kv_heads, d_head):
    """Write the sums of weights times values to z (n, n_heads, d_head); grid z is the head."""
    xs = cuda.shared.array(TILE_FLOATS, float32)
    ws = cuda.shared.array(TILE_FLOATS, float32)
    tid, head = cuda.threadIdx.x, np.int64(cuda.blockIdx.z)
    i0, j0, end = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE, first + n
    rows = (row0 + head // (n_heads // n_kv_heads) * capacity) * d_head
    total, last = (zeros4(), zeros4(), zeros4(), zeros4()), min(end, first + i0 + TILE)
    for p0 in range(0, last, DEPTH):
        load_tile(xs, weights, head * n * end, end, 1, i0, n, p0, last, tid)
        load_tile(ws, values, rows, 1, d_head, j0, d_head, p0, last, tid)
        cuda.syncthreads()
        total = multiply_tiles(xs, ws, tid, total)
        cuda.syncthreads()
    write_tile(z, arena, -1, head * d_head, i0, j0, n, d_head, n_heads * d_head, total, False, tid)
