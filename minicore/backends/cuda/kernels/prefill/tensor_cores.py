"""Products with bfloat16 weights on the tensor cores, exact in the activations.

Tensor cores multiply bfloat16 by bfloat16. The reference does not round activations to bfloat16, so they
are split into three bfloat16 parts that add up to them exactly (8 + 8 + 8 of the 24 bits of a float32), and
the three products are added in float32 (G. Henry, P. T. P. Tang and A. Heinecke, "Leveraging the bfloat16
Artificial Intelligence Datatype For Higher-Precision Computations", arXiv:1904.06376).

A block of 4 warps computes a 64 x 64 tile of y, each warp 32 x 32 of it. Fragments, the lanes' shares of a
matrix, are those of the PTX ISA for mma.m16n8k16.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba.core.types import uint32

from minicore.backends.cuda.kernels.intrinsics import (
    cuda,
    device,
    float_as_uint,
    load,
    load16,
    load_float4,
    mma,
    store,
    uint_as_float,
)
from minicore.backends.cuda.kernels.prefill.products import TILE, write_element, zeros4

N_PARTS = 3  # bfloat16 parts of a float32
DEPTH_WORDS = 16  # words of two bfloat16 of each row in shared memory at a time
ROW_WORDS = DEPTH_WORDS + 4  # words from one row to the next, so that a warp reads from 32 banks
W_WORDS = TILE * ROW_WORDS
X_WORDS = N_PARTS * W_WORDS

# --- from global memory to registers, then to shared memory ---


@device
def split_bf16x3(u, v):  # float32, float32 -> 3 words of two bfloat16
    """Split two float32 into three bfloat16 parts each: the first 8 bits, the next 8, the last 8.

    Their sum is exact. Infinity becomes NaN.
    """
    upper = np.uint32(0xFFFF0000)
    a, b = float_as_uint(u) & upper, float_as_uint(v) & upper
    u, v = u - uint_as_float(a), v - uint_as_float(b)
    c, d = float_as_uint(u) & upper, float_as_uint(v) & upper
    u, v = u - uint_as_float(c), v - uint_as_float(d)
    sixteen = np.uint32(16)
    return (a >> sixteen) | b, (c >> sixteen) | d, (float_as_uint(u) >> sixteen) | (float_as_uint(v) & upper)


@device
def fetch_x(x, row0, n, k0, k, tid):
    """Return this thread's share of 32 columns of TILE rows of x: four elements of four rows."""
    row, c = row0 + (tid >> 3), k0 + 4 * (tid & 7)
    at, gap, valid = (row * k + c) >> 2, 4 * k, c < k  # the next of its rows is 16 rows further
    x0, x1 = load_float4(x, at, valid and row < n), load_float4(x, at + gap, valid and row + 16 < n)
    x2 = load_float4(x, at + 2 * gap, valid and row + 32 < n)
    return x0, x1, x2, load_float4(x, at + 3 * gap, valid and row + 48 < n)


@device
def store_parts(xs, row, c, x):
    """Store four elements of a row, split into parts."""
    at, plane = row * ROW_WORDS + 2 * c, TILE * ROW_WORDS
    p, q = split_bf16x3(x[0], x[1]), split_bf16x3(x[2], x[3])
    store(xs, at, p[0])
    store(xs, at + 1, q[0])
    store(xs, at + plane, p[1])
    store(xs, at + plane + 1, q[1])
    store(xs, at + 2 * plane, p[2])
    store(xs, at + 2 * plane + 1, q[2])


@device
def store_x(xs, x, tid):
    """Store in shared memory what :func:`fetch_x` returned."""
    row, c = tid >> 3, tid & 7
    store_parts(xs, row, c, x[0])
    store_parts(xs, row + 16, c, x[1])
    store_parts(xs, row + 32, c, x[2])
    store_parts(xs, row + 48, c, x[3])


@device
def fetch_w(arena, start, row0, m, k0, n_chunks, tid):
    """Return this thread's share of 32 columns of TILE rows of the matrix: a chunk of two rows."""
    row, c = row0 + (tid >> 2), (k0 >> 3) + (tid & 3)
    w0 = load16(arena, start + row * n_chunks + c, c < n_chunks and row < m)
    return w0, load16(arena, start + (row + 32) * n_chunks + c, c < n_chunks and row + 32 < m)


@device
def store_w(ws, w, tid):
    """Store in shared memory what :func:`fetch_w` returned."""
    at, far = (tid >> 2) * ROW_WORDS + 4 * (tid & 3), 32 * ROW_WORDS
    first, second = w
    store(ws, at, first[0])
    store(ws, at + 1, first[1])
    store(ws, at + 2, first[2])
    store(ws, at + 3, first[3])
    store(ws, at + far, second[0])
    store(ws, at + far + 1, second[1])
    store(ws, at + far + 2, second[2])
    store(ws, at + far + 3, second[3])


# --- multiplying ---


@device
def x_fragment(xs, row, word, lane):
    """Return a lane's fragment of 16 rows of x, 8 words of each."""
    at = (row + (lane >> 2)) * ROW_WORDS + word + (lane & 3)
    return load(xs, at), load(xs, at + 8 * ROW_WORDS), load(xs, at + 4), load(xs, at + 8 * ROW_WORDS + 4)


@device
def w_fragment(ws, row, word, lane):
    """Return a lane's fragment of 8 rows of the matrix, 8 words of each."""
    at = (row + (lane >> 2)) * ROW_WORDS + word + (lane & 3)
    return load(ws, at), load(ws, at + 4)


@device
def mma_row(x, w, total):
    """Return a lane's sums of 16 x 32 elements plus 16 rows of x times 32 rows of the matrix."""
    t0, t1, t2, t3 = total
    return mma(x, w[0], t0), mma(x, w[1], t1), mma(x, w[2], t2), mma(x, w[3], t3)


@device
def mma_tile(xs, ws, row, col, word, lane, upper, lower):
    """Return a lane's sums of the upper and lower 16 x 32 elements plus 8 words; small parts of x first."""
    w0, w1 = w_fragment(ws, col, word, lane), w_fragment(ws, col + 8, word, lane)
    w = w0, w1, w_fragment(ws, col + 16, word, lane), w_fragment(ws, col + 24, word, lane)
    upper = mma_row(x_fragment(xs, row + 2 * TILE, word, lane), w, upper)
    lower = mma_row(x_fragment(xs, row + 2 * TILE + 16, word, lane), w, lower)
    upper = mma_row(x_fragment(xs, row + TILE, word, lane), w, upper)
    lower = mma_row(x_fragment(xs, row + TILE + 16, word, lane), w, lower)
    upper = mma_row(x_fragment(xs, row, word, lane), w, upper)
    return upper, mma_row(x_fragment(xs, row + 16, word, lane), w, lower)


# --- out of registers ---


@device
def write_fragment(y, arena, b, base, row, col, n, m, c, add):
    """Write a lane's four elements of 16 x 8: two neighbours, and two that are eight rows below."""
    write_element(y, arena, b, base, row, col, n, m, m, c[0], add)
    write_element(y, arena, b, base, row, col + 1, n, m, m, c[1], add)
    write_element(y, arena, b, base, row + 8, col, n, m, m, c[2], add)
    write_element(y, arena, b, base, row + 8, col + 1, n, m, m, c[3], add)


@device
def write_fragments(y, arena, b, base, row, col, n, m, total, add):
    """Write a lane's elements of 16 x 32."""
    t0, t1, t2, t3 = total
    write_fragment(y, arena, b, base, row, col, n, m, t0, add)
    write_fragment(y, arena, b, base, row, col + 8, n, m, t1, add)
    write_fragment(y, arena, b, base, row, col + 16, n, m, t2, add)
    write_fragment(y, arena, b, base, row, col + 24, n, m, t3, add)


def tensor_core_product(x, arena, start, biases, b, y, n, k, m, w_step, b_step, add):
    """Multiply as :func:`make_product` says. k is a multiple of 8. The next columns load during products."""
    xs = cuda.shared.array(X_WORDS, uint32)
    ws = cuda.shared.array(W_WORDS, uint32)
    tid, z = cuda.threadIdx.x, cuda.blockIdx.z
    row0, col0, n_chunks = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE, k >> 3
    lane, warp_row, warp_col = tid & 31, (tid >> 6) * 32, ((tid >> 5) & 1) * 32
    first = start + z * w_step
    upper, lower = (zeros4(), zeros4(), zeros4(), zeros4()), (zeros4(), zeros4(), zeros4(), zeros4())
    next_x, next_w = fetch_x(x, row0, n, 0, k, tid), fetch_w(arena, first, col0, m, 0, n_chunks, tid)
    for k0 in range(0, k, 2 * DEPTH_WORDS):
        store_x(xs, next_x, tid)
        store_w(ws, next_w, tid)
        cuda.syncthreads()
        next_x = fetch_x(x, row0, n, k0 + 2 * DEPTH_WORDS, k, tid)
        next_w = fetch_w(arena, first, col0, m, k0 + 2 * DEPTH_WORDS, n_chunks, tid)
        upper, lower = mma_tile(xs, ws, warp_row, warp_col, 0, lane, upper, lower)
        upper, lower = mma_tile(xs, ws, warp_row, warp_col, 8, lane, upper, lower)
        cuda.syncthreads()
    bias, base = b + z * b_step if b >= 0 else b, z * n * m
    row, col = row0 + warp_row + (lane >> 2), col0 + warp_col + 2 * (lane & 3)
    write_fragments(y, biases, bias, base, row, col, n, m, upper, add)
    write_fragments(y, biases, bias, base, row + 16, col, n, m, lower, add)


@cache
def make_tensor_core_product() -> Any:
    """Return the kernel, for a GPU whose tensor cores multiply bfloat16 (compute capability 8.0)."""
    return cuda.jit(tensor_core_product)
