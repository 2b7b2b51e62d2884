"""Tiles for tensor cores."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba.core.types import uint32

from minicore.backends.cuda.kernels.intrinsics import (
    as_bits,
    as_float,
    cuda,
    device,
    get,
    let,
    load4,
    load16,
    mma,
)
from minicore.backends.cuda.kernels.prefill.products import TILE, finish, nothing

PARTS = 3  # bfloat16 numbers that make up a float32


WORDS = 16  # words of two bfloat16 of a row that are in shared memory at once, for tensor cores


STRIDE = WORDS + 4  # words from one row to the next: the lanes of a warp read from 32 banks


W_WORDS = TILE * STRIDE


X_WORDS = PARTS * W_WORDS


@device
def cut(u, v):  # type: ignore[no-untyped-def]  # float32, float32 -> 3 words of two bfloat16
    """Cut two numbers into bfloat16 parts that add up to them exactly: eight bits, the next, the last.

    Infinity becomes NaN.
    """
    upper = np.uint32(0xFFFF0000)
    a, b = as_bits(u) & upper, as_bits(v) & upper
    u, v = u - as_float(a), v - as_float(b)
    c, d = as_bits(u) & upper, as_bits(v) & upper
    u, v = u - as_float(c), v - as_float(d)
    sixteen = np.uint32(16)
    return (a >> sixteen) | b, (c >> sixteen) | d, (as_bits(u) >> sixteen) | (as_bits(v) & upper)


@device
def fetch_x(x, row0, n, k0, k, tid):  # type: ignore[no-untyped-def]
    """Return this thread's part of TILE rows, 2 * WORDS numbers of each: four numbers of four rows."""
    row, c = row0 + (tid >> 3), k0 + 4 * (tid & 7)
    at, by, there = (row * k + c) >> 2, 4 * k, c < k  # 16 rows further are 16 * k / 4 units
    x0, x1 = load4(x, at, there and row < n), load4(x, at + by, there and row + 16 < n)
    x2 = load4(x, at + 2 * by, there and row + 32 < n)
    return x0, x1, x2, load4(x, at + 3 * by, there and row + 48 < n)


@device
def keep_four(xs, row, c, x):  # type: ignore[no-untyped-def]
    """Store four numbers of a row, cut into parts."""
    at, plane = row * STRIDE + 2 * c, TILE * STRIDE
    p, q = cut(x[0], x[1]), cut(x[2], x[3])
    let(xs, at, p[0])
    let(xs, at + 1, q[0])
    let(xs, at + plane, p[1])
    let(xs, at + plane + 1, q[1])
    let(xs, at + 2 * plane, p[2])
    let(xs, at + 2 * plane + 1, q[2])


@device
def keep_x(xs, x, tid):  # type: ignore[no-untyped-def]
    """Store what :func:`fetch_x` returned."""
    row, c = tid >> 3, tid & 7
    keep_four(xs, row, c, x[0])
    keep_four(xs, row + 16, c, x[1])
    keep_four(xs, row + 32, c, x[2])
    keep_four(xs, row + 48, c, x[3])


@device
def fetch_w(arena, at, row0, m, k0, chunks, tid):  # type: ignore[no-untyped-def]
    """Return this thread's part of TILE rows of the matrix: 16 bytes of two rows."""
    row, c = row0 + (tid >> 2), (k0 >> 3) + (tid & 3)
    w0 = load16(arena, at + row * chunks + c, c < chunks and row < m)
    return w0, load16(arena, at + (row + 32) * chunks + c, c < chunks and row + 32 < m)


@device
def keep_w(ws, w, tid):  # type: ignore[no-untyped-def]
    """Store what :func:`fetch_w` returned."""
    at, far = (tid >> 2) * STRIDE + 4 * (tid & 3), 32 * STRIDE
    first, second = w
    let(ws, at, first[0])
    let(ws, at + 1, first[1])
    let(ws, at + 2, first[2])
    let(ws, at + 3, first[3])
    let(ws, at + far, second[0])
    let(ws, at + far + 1, second[1])
    let(ws, at + far + 2, second[2])
    let(ws, at + far + 3, second[3])


@device
def x_fragment(xs, row, word, lane):  # type: ignore[no-untyped-def]
    """Return a lane's share of 16 rows, 8 words of each, as :func:`mma` wants it."""
    at = (row + (lane >> 2)) * STRIDE + word + (lane & 3)
    return get(xs, at), get(xs, at + 8 * STRIDE), get(xs, at + 4), get(xs, at + 8 * STRIDE + 4)


@device
def w_fragment(ws, row, word, lane):  # type: ignore[no-untyped-def]
    """Return a lane's share of 8 rows of the matrix, 8 words of each."""
    at = (row + (lane >> 2)) * STRIDE + word + (lane & 3)
    return get(ws, at), get(ws, at + 4)


@device
def mma_row(x, w, total):  # type: ignore[no-untyped-def]
    """Add 16 rows times 4 x 8 rows of the matrix to the lane's sums."""
    t0, t1, t2, t3 = total
    return mma(x, w[0], t0), mma(x, w[1], t1), mma(x, w[2], t2), mma(x, w[3], t3)


@device
def mma_tile(xs, ws, row, col, word, lane, upper, lower):  # type: ignore[no-untyped-def]
    """Add a warp's 32 x 32 numbers over 8 words; the smallest parts of x first."""
    w = (
        w_fragment(ws, col, word, lane),
        w_fragment(ws, col + 8, word, lane),
        w_fragment(ws, col + 16, word, lane),
        w_fragment(ws, col + 24, word, lane),
    )
    upper = mma_row(x_fragment(xs, row + 2 * TILE, word, lane), w, upper)
    lower = mma_row(x_fragment(xs, row + 2 * TILE + 16, word, lane), w, lower)
    upper = mma_row(x_fragment(xs, row + TILE, word, lane), w, upper)
    lower = mma_row(x_fragment(xs, row + TILE + 16, word, lane), w, lower)
    upper = mma_row(x_fragment(xs, row, word, lane), w, upper)
    return upper, mma_row(x_fragment(xs, row + 16, word, lane), w, lower)


@device
def finish_fragment(y, arena, b, base, row, col, n, m, c, add):  # type: ignore[no-untyped-def]
    """Write a lane's four numbers of 16 x 8: two neighbours, and two eight rows below."""
    finish(y, arena, b, base, row, col, n, m, m, c[0], add)
    finish(y, arena, b, base, row, col + 1, n, m, m, c[1], add)
    finish(y, arena, b, base, row + 8, col, n, m, m, c[2], add)
    finish(y, arena, b, base, row + 8, col + 1, n, m, m, c[3], add)


@device
def finish_mma(y, arena, b, base, row, col, n, m, total, add):  # type: ignore[no-untyped-def]
    """Write a lane's numbers of 16 x 32."""
    t0, t1, t2, t3 = total
    finish_fragment(y, arena, b, base, row, col, n, m, t0, add)
    finish_fragment(y, arena, b, base, row, col + 8, n, m, t1, add)
    finish_fragment(y, arena, b, base, row, col + 16, n, m, t2, add)
    finish_fragment(y, arena, b, base, row, col + 24, n, m, t3, add)


def tensor_product(x, arena, at, biases, b, y, n, k, m, at_step, b_step, add):  # type: ignore[no-untyped-def]
    """Multiply as :func:`make_product` says, bfloat16 weights by tensor cores; k is a multiple of 8.

    A block is 4 warps with 32 x 32 numbers of y each. While they multiply, the next numbers are on their way.
    """
    xs = cuda.shared.array(X_WORDS, uint32)
    ws = cuda.shared.array(W_WORDS, uint32)
    tid, z = cuda.threadIdx.x, cuda.blockIdx.z
    row0, col0, chunks = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE, k >> 3
    lane, warp_row, warp_col = tid & 31, (tid >> 6) * 32, ((tid >> 5) & 1) * 32
    first = at + z * at_step
    upper, lower = (nothing(), nothing(), nothing(), nothing()), (nothing(), nothing(), nothing(), nothing())
    next_x, next_w = fetch_x(x, row0, n, 0, k, tid), fetch_w(arena, first, col0, m, 0, chunks, tid)
    for k0 in range(0, k, 2 * WORDS):
        keep_x(xs, next_x, tid)
        keep_w(ws, next_w, tid)
        cuda.syncthreads()
        next_x = fetch_x(x, row0, n, k0 + 2 * WORDS, k, tid)
        next_w = fetch_w(arena, first, col0, m, k0 + 2 * WORDS, chunks, tid)
        upper, lower = mma_tile(xs, ws, warp_row, warp_col, 0, lane, upper, lower)
        upper, lower = mma_tile(xs, ws, warp_row, warp_col, 8, lane, upper, lower)
        cuda.syncthreads()
    bias, base = b + z * b_step if b >= 0 else b, z * n * m
    row, col = row0 + warp_row + (lane >> 2), col0 + warp_col + 2 * (lane & 3)
    finish_mma(y, biases, bias, base, row, col, n, m, upper, add)
    finish_mma(y, biases, bias, base, row + 16, col, n, m, lower, add)


@cache
def make_tensor_product() -> Any:
    """Return the kernel for bfloat16 weights on a GPU with tensor cores for them."""
    return cuda.jit(tensor_product)
