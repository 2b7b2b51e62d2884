"""Products of activations with weights, computed in tiles: ``y[t, i] = sum_k x[t, k] w[i, k]``.

A block computes a tile of y, 64 x 64 elements. It copies the rows of x and w that it needs to shared
memory, 16 columns at a time, and multiplies them there. Each thread has 4 x 4 elements of the tile. Weights
are read as they are stored in the arenas, and int8 weights become float32 on the way to shared memory.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba.core.types import float32

from minicore.backends.cuda.kernels.elements import (
    bf16_high,
    bf16_low,
    float_element,
    half_element,
    signed_byte,
)
from minicore.backends.cuda.kernels.intrinsics import (
    WARP_SIZE,
    cuda,
    device,
    half_to_float,
    load,
    load16,
    shared_float4,
    store,
    uint_as_float,
)
from minicore.quantization import GROUP

TILE = 64 if WARP_SIZE > 1 else 8  # rows and columns of a tile of y
DEPTH = 16  # columns of x and w in shared memory at a time
PITCH = TILE + 4  # floats from one of these columns to the next
TILE_FLOATS = DEPTH * PITCH
THREADS_PER_SIDE = TILE // 4
PRODUCT_THREADS = THREADS_PER_SIDE * THREADS_PER_SIDE

# --- into shared memory ---


@device
def load_tile(tile, x, base, row_stride, k_stride, row0, n, k0, k, tid):
    """Copy DEPTH columns of TILE rows of a strided float32 matrix (n, k), zeros outside of it."""
    for i in range(tid, TILE * DEPTH, PRODUCT_THREADS):
        if k_stride == 1:  # neighbouring threads read neighbouring elements
            row, j = i // DEPTH, i % DEPTH
        else:
            row, j = i % TILE, i // TILE
        value = np.float32(0)
        if row0 + row < n and k0 + j < k:
            value = load(x, base + (row0 + row) * row_stride + (k0 + j) * k_stride)
        store(tile, j * PITCH + row, value)


@device
def store_bf16_pair(tile, j, row, word):
    """Store two bfloat16 of a row, columns j and j + 1."""
    store(tile, j * PITCH + row, bf16_low(word))
    store(tile, (j + 1) * PITCH + row, bf16_high(word))


@device
def store_chunk(tile, j, row, w, shift):
    """Store the elements of a chunk, 1 << shift columns from j on."""
    a, b, c, d = w
    if shift == 3:
        store_bf16_pair(tile, j, row, a)
        store_bf16_pair(tile, j + 2, row, b)
        store_bf16_pair(tile, j + 4, row, c)
        store_bf16_pair(tile, j + 6, row, d)
    else:
        store(tile, j * PITCH + row, uint_as_float(a))
        store(tile, (j + 1) * PITCH + row, uint_as_float(b))
        store(tile, (j + 2) * PITCH + row, uint_as_float(c))
        store(tile, (j + 3) * PITCH + row, uint_as_float(d))


@device
def store_int8x4(tile, j, row, word, s0, s1, s2, s3):
    """Store four int8 codes of a row times their scales, columns j to j + 3."""
    store(tile, j * PITCH + row, s0 * np.float32(signed_byte(word, 0)))
    store(tile, (j + 1) * PITCH + row, s1 * np.float32(signed_byte(word, 1)))
    store(tile, (j + 2) * PITCH + row, s2 * np.float32(signed_byte(word, 2)))
    store(tile, (j + 3) * PITCH + row, s3 * np.float32(signed_byte(word, 3)))


@device
def load_int8_chunk(tile, arena, start, scales, chunk, valid, row):
    """Copy the 16 elements of a chunk. They share a scale."""
    w, s = load16(arena, start + chunk, valid), np.float32(0)
    if valid:
        s = half_element(arena, scales, chunk >> 2)
    store_int8x4(tile, 0, row, w[0], s, s, s, s)
    store_int8x4(tile, 4, row, w[1], s, s, s, s)
    store_int8x4(tile, 8, row, w[2], s, s, s, s)
    store_int8x4(tile, 12, row, w[3], s, s, s, s)


@device
def load_int8_output_chunk(tile, arena, start, scales, chunk, valid, row):
    """Copy the 16 elements of a chunk of the transposed w_out. Each has its own scale."""
    w = load16(arena, start + chunk, valid)
    h, k = load16(arena, scales + 2 * chunk, valid), load16(arena, scales + 2 * chunk + 1, valid)
    store_scaled_int8x4(tile, 0, row, w[0], h[0], h[1])
    store_scaled_int8x4(tile, 4, row, w[1], h[2], h[3])
    store_scaled_int8x4(tile, 8, row, w[2], k[0], k[1])
    store_scaled_int8x4(tile, 12, row, w[3], k[2], k[3])


@device
def store_scaled_int8x4(tile, j, row, word, h0, h1):
    """Store four int8 codes times their float16 scales, two in h0 and two in h1."""
    upper = np.uint32(16)
    s0, s1 = half_to_float(h0), half_to_float(h0 >> upper)
    store_int8x4(tile, j, row, word, s0, s1, half_to_float(h1), half_to_float(h1 >> upper))


@device
def load_weight_tile(tile, arena, start, row0, m, k0, k, tid, shift, transposed):
    """Copy DEPTH columns of TILE rows of a matrix (m, k) that starts at a chunk."""
    depth_chunks, per_chunk = DEPTH >> shift, 1 << shift
    n_chunks = (k + per_chunk - 1) >> shift
    row_chunks = n_chunks
    if shift == 4 and not transposed:  # whole groups, then their scales
        n_groups = (k + GROUP - 1) // GROUP
        n_chunks, row_chunks = n_groups * (GROUP // 16), n_groups * (GROUP // 16) + ((n_groups + 7) >> 3)
    for i in range(tid, TILE * depth_chunks, PRODUCT_THREADS):
        row, c = i // depth_chunks, i % depth_chunks
        chunk, first = (k0 >> shift) + c, start + (row0 + row) * row_chunks
        valid = row0 + row < m and chunk < n_chunks
        if shift < 4:
            store_chunk(tile, c << shift, row, load16(arena, first + chunk, valid), shift)
        elif transposed:
            scales = start + (m + 2 * ((row0 + row) // GROUP)) * n_chunks
            load_int8_output_chunk(tile, arena, first, scales, chunk, valid, row)
        else:
            load_int8_chunk(tile, arena, first, first + n_chunks, chunk, valid, row)


# --- multiplying ---


@device
def add_row(total, x, w):
    """Return four sums plus x times four elements."""
    return total[0] + x * w[0], total[1] + x * w[1], total[2] + x * w[2], total[3] + x * w[3]


@device
def multiply_tiles(xs, ws, tid, total):
    """Return a thread's 4 x 4 sums plus the product of the columns in shared memory."""
    r0, r1, r2, r3 = total
    x_at, w_at = 4 * (tid // THREADS_PER_SIDE), 4 * (tid % THREADS_PER_SIDE)
    for k in range(DEPTH):
        x, w = shared_float4(xs, k * PITCH + x_at), shared_float4(ws, k * PITCH + w_at)
        r0, r1 = add_row(r0, x[0], w), add_row(r1, x[1], w)
        r2, r3 = add_row(r2, x[2], w), add_row(r3, x[3], w)
    return r0, r1, r2, r3


@device
def zeros4():
    """Return four sums of nothing."""
    return np.float32(0), np.float32(0), np.float32(0), np.float32(0)


# --- out of registers ---


@device
def write_element(y, arena, b, base, row, col, n, m, row_stride, value, add):
    """Write an element of y (n, m) plus its bias, whose vector starts at chunk b; with ``add``, add to it."""
    if row < n and col < m:
        if b >= 0:
            value += float_element(arena, b, col, False)
        at = base + row * row_stride + col
        if add:
            value += load(y, at)
        store(y, at, value)


@device
def write_four(y, arena, b, base, row, col, n, m, row_stride, four, add):
    """Write four neighbouring elements of y."""
    write_element(y, arena, b, base, row, col, n, m, row_stride, four[0], add)
    write_element(y, arena, b, base, row, col + 1, n, m, row_stride, four[1], add)
    write_element(y, arena, b, base, row, col + 2, n, m, row_stride, four[2], add)
    write_element(y, arena, b, base, row, col + 3, n, m, row_stride, four[3], add)


@device
def write_tile(y, arena, b, base, row0, col0, n, m, row_stride, total, add, tid):
    """Write a thread's 4 x 4 elements of y."""
    row, col = row0 + 4 * (tid // THREADS_PER_SIDE), col0 + 4 * (tid % THREADS_PER_SIDE)
    r0, r1, r2, r3 = total
    write_four(y, arena, b, base, row, col, n, m, row_stride, r0, add)
    write_four(y, arena, b, base, row + 1, col, n, m, row_stride, r1, add)
    write_four(y, arena, b, base, row + 2, col, n, m, row_stride, r2, add)
    write_four(y, arena, b, base, row + 3, col, n, m, row_stride, r3, add)


@cache
def make_product(shift: int, transposed: bool = False) -> Any:
    """Return the kernel of products with matrices that have 1 << shift elements in a chunk.

    Parameters
    ----------
    shift : int
    transposed : bool
        Whether the matrix is the transposed int8 w_out, whose scales follow all of its rows.

    Notes
    -----
    The kernel's arguments: x (n, k); the arena of the matrix (m, k) and its first chunk; the arena of the
    bias and its first chunk, -1 for none; y (n, m); n, k and m; whether to add to y. Where the grid has two
    planes, plane z takes the matrix and bias ``z * w_step`` and ``z * b_step`` chunks further on and writes
    plane z of y.
    """

    def product(x, arena, start, biases, b, y, n, k, m, w_step, b_step, add):
        xs = cuda.shared.array(TILE_FLOATS, float32)
        ws = cuda.shared.array(TILE_FLOATS, float32)
        tid, z = cuda.threadIdx.x, cuda.blockIdx.z
        row0, col0 = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
        total = zeros4(), zeros4(), zeros4(), zeros4()
        for k0 in range(0, k, DEPTH):
            load_tile(xs, x, 0, k, 1, row0, n, k0, k, tid)
            load_weight_tile(ws, arena, start + z * w_step, col0, m, k0, k, tid, shift, transposed)
            cuda.syncthreads()
            total = multiply_tiles(xs, ws, tid, total)
            cuda.syncthreads()
        bias = b + z * b_step if b >= 0 else b
        write_tile(y, biases, bias, z * n * m, row0, col0, n, m, m, total, add, tid)

    return cuda.jit(product)
