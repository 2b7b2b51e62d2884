"""Prompts on a GPU: all tokens of a chunk at once, a launch a step of the block.

Everything is a product of rows with rows, ``y[t, i] = sum_k x[t, k] w[i, k]``, cut into tiles of y, a block
each: weights as they lie in the arenas of :mod:`minicore.backends.cuda.kernels.decode.step`, and per head
queries with keys and patterns with values. What lies between the products is a block a token.

Products with bfloat16 weights go through the tensor cores where the GPU has them for that. These multiply
bfloat16 alone, so an activation is cut into three of them (:func:`cut`), which hold all of its 24 bits: each
product of numbers is exact and sums are float32, as without tensor cores. Weights in float32 and Numba's
simulator take the plain tiles.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numba import cuda
from numba.core.types import float32, float64, int32, uint32

from minicore.backends.cuda.kernels.decode.step import (
    activate,
    as_kept,
    byte,
    half_at,
    high,
    low,
    number,
    stored,
)
from minicore.backends.cuda.kernels.intrinsics import (
    LANES,
    as_bits,
    as_float,
    as_half,
    device,
    four,
    get,
    let,
    load4,
    load16,
    mma,
    warp_max,
    warp_sum,
)
from minicore.quantization import GROUP

TILE = 64 if LANES > 1 else 8  # rows and columns of y that a block computes
DEPTH = 16  # numbers of a row that are in shared memory at once
PITCH = TILE + 4  # floats from one of these to the next
FLOATS = DEPTH * PITCH  # numba wants the sizes of shared arrays as constants
SIDE = TILE // 4
THREADS = SIDE * SIDE  # of a plain product, each with 4 x 4 numbers of y
WARPS = 4  # of all other kernels
PARTS = 3  # bfloat16 numbers that make up a float32
WORDS = 16  # words of two bfloat16 of a row that are in shared memory at once, for tensor cores
STRIDE = WORDS + 4  # words from one row to the next: the lanes of a warp read from 32 banks
W_WORDS = TILE * STRIDE
X_WORDS = PARTS * W_WORDS
BINS_SHIFT = 14  # minicore.core.recording.GATE_SHIFT; kernels see constants of their own module


# --- plain tiles ---


@device
def stage(tile, x, base, by_row, by_k, row0, n, k0, k, tid):  # type: ignore[no-untyped-def]
    """Copy TILE rows, DEPTH numbers of each, into shared memory, rows side by side; zeros behind the ends."""
    for i in range(tid, TILE * DEPTH, THREADS):
        if by_k == 1:  # neighbouring threads read neighbouring numbers
            row, j = i // DEPTH, i % DEPTH
        else:
            row, j = i % TILE, i // TILE
        value = np.float32(0)
        if row0 + row < n and k0 + j < k:
            value = get(x, base + (row0 + row) * by_row + (k0 + j) * by_k)
        let(tile, j * PITCH + row, value)


@device
def stage_two(tile, j, row, word):  # type: ignore[no-untyped-def]
    """Store the two bfloat16 of a word."""
    let(tile, j * PITCH + row, low(word))
    let(tile, (j + 1) * PITCH + row, high(word))


@device
def stage_unit(tile, j, row, w, shift):  # type: ignore[no-untyped-def]
    """Store the 1 << shift numbers of a 16-byte unit."""
    a, b, c, d = w
    if shift == 3:
        stage_two(tile, j, row, a)
        stage_two(tile, j + 2, row, b)
        stage_two(tile, j + 4, row, c)
        stage_two(tile, j + 6, row, d)
    else:
        let(tile, j * PITCH + row, as_float(a))
        let(tile, (j + 1) * PITCH + row, as_float(b))
        let(tile, (j + 2) * PITCH + row, as_float(c))
        let(tile, (j + 3) * PITCH + row, as_float(d))


@device
def stage_bytes(tile, j, row, word, s0, s1, s2, s3):  # type: ignore[no-untyped-def]
    """Store the four numbers of a word of codes, each times its scale."""
    let(tile, j * PITCH + row, s0 * np.float32(byte(word, 0)))
    let(tile, (j + 1) * PITCH + row, s1 * np.float32(byte(word, 1)))
    let(tile, (j + 2) * PITCH + row, s2 * np.float32(byte(word, 2)))
    let(tile, (j + 3) * PITCH + row, s3 * np.float32(byte(word, 3)))


@device
def stage_int8(tile, arena, at, scales, chunk, there, row):  # type: ignore[no-untyped-def]
    """Store the 16 numbers of a unit of codes; their scale is number chunk / 4 behind another unit."""
    w, s = load16(arena, at + chunk, there), np.float32(0)
    if there:
        s = half_at(arena, scales, chunk >> 2)
    stage_bytes(tile, 0, row, w[0], s, s, s, s)
    stage_bytes(tile, 4, row, w[1], s, s, s, s)
    stage_bytes(tile, 8, row, w[2], s, s, s, s)
    stage_bytes(tile, 12, row, w[3], s, s, s, s)


@device
def stage_int8_column(tile, arena, at, scales, chunk, there, row):  # type: ignore[no-untyped-def]
    """Store the 16 numbers of a unit of a transposed matrix; each has its scale, 16 in a row."""
    w = load16(arena, at + chunk, there)
    h, k = load16(arena, scales + 2 * chunk, there), load16(arena, scales + 2 * chunk + 1, there)
    stage_halves(tile, 0, row, w[0], h[0], h[1])
    stage_halves(tile, 4, row, w[1], h[2], h[3])
    stage_halves(tile, 8, row, w[2], k[0], k[1])
    stage_halves(tile, 12, row, w[3], k[2], k[3])


@device
def stage_halves(tile, j, row, word, h0, h1):  # type: ignore[no-untyped-def]
    """Store the four numbers of a word of codes, whose scales are in two words."""
    upper = np.uint32(16)
    stage_bytes(tile, j, row, word, as_half(h0), as_half(h0 >> upper), as_half(h1), as_half(h1 >> upper))


@device
def stage_weights(tile, arena, at, row0, m, k0, k, tid, shift, transposed):  # type: ignore[no-untyped-def]
    """Copy TILE rows of a matrix, DEPTH numbers of each, into shared memory, rows side by side."""
    units, per_unit = DEPTH >> shift, 1 << shift
    chunks = (k + per_unit - 1) >> shift  # of numbers; int8 fills up groups, and scales follow
    stride = chunks
    if shift == 4 and not transposed:
        groups = (k + GROUP - 1) // GROUP
        chunks, stride = groups * (GROUP // 16), groups * (GROUP // 16) + ((groups + 7) >> 3)
    for i in range(tid, TILE * units, THREADS):
        row, c = i // units, i % units
        chunk, first = (k0 >> shift) + c, at + (row0 + row) * stride
        there = row0 + row < m and chunk < chunks
        if shift < 4:
            stage_unit(tile, c << shift, row, load16(arena, first + chunk, there), shift)
        elif transposed:
            scales = at + (m + 2 * ((row0 + row) // GROUP)) * chunks
            stage_int8_column(tile, arena, first, scales, chunk, there, row)
        else:
            stage_int8(tile, arena, first, first + chunks, chunk, there, row)


@device
def add_row(total, x, w):  # type: ignore[no-untyped-def]
    """Add x times four numbers to four sums."""
    return total[0] + x * w[0], total[1] + x * w[1], total[2] + x * w[2], total[3] + x * w[3]


@device
def multiply(xs, ws, tid, total):  # type: ignore[no-untyped-def]
    """Add the product of what is in shared memory to a thread's 4 x 4 numbers."""
    r0, r1, r2, r3 = total
    x_at, w_at = 4 * (tid // SIDE), 4 * (tid % SIDE)
    for k in range(DEPTH):
        x, w = four(xs, k * PITCH + x_at), four(ws, k * PITCH + w_at)
        r0, r1, r2, r3 = (
            add_row(r0, x[0], w),
            add_row(r1, x[1], w),
            add_row(r2, x[2], w),
            add_row(r3, x[3], w),
        )
    return r0, r1, r2, r3


@device
def nothing():  # type: ignore[no-untyped-def]
    """Return four sums that nothing was added to."""
    return np.float32(0), np.float32(0), np.float32(0), np.float32(0)


@device
def finish(y, arena, b, base, row, col, n, m, by_row, value, add):  # type: ignore[no-untyped-def]
    """Write a number of y, plus its bias, plus what is there if that is asked for."""
    if row < n and col < m:
        if b >= 0:
            value += number(arena, b, col, False)
        at = base + row * by_row + col
        if add:
            value += get(y, at)
        let(y, at, value)


@device
def finish_row(y, arena, b, base, row, col, n, m, by_row, four_values, add):  # type: ignore[no-untyped-def]
    """Write four neighbouring numbers of y."""
    finish(y, arena, b, base, row, col, n, m, by_row, four_values[0], add)
    finish(y, arena, b, base, row, col + 1, n, m, by_row, four_values[1], add)
    finish(y, arena, b, base, row, col + 2, n, m, by_row, four_values[2], add)
    finish(y, arena, b, base, row, col + 3, n, m, by_row, four_values[3], add)


@device
def finish_tile(y, arena, b, base, row0, col0, n, m, by_row, total, add, tid):  # type: ignore[no-untyped-def]
    """Write a thread's 4 x 4 numbers of y."""
    row, col = row0 + 4 * (tid // SIDE), col0 + 4 * (tid % SIDE)
    r0, r1, r2, r3 = total
    finish_row(y, arena, b, base, row, col, n, m, by_row, r0, add)
    finish_row(y, arena, b, base, row + 1, col, n, m, by_row, r1, add)
    finish_row(y, arena, b, base, row + 2, col, n, m, by_row, r2, add)
    finish_row(y, arena, b, base, row + 3, col, n, m, by_row, r3, add)


@cache
def make_product(shift: int, transposed: bool = False) -> Any:
    """Return the kernel that multiplies rows by a matrix of 1 << shift numbers in 16 bytes.

    A transposed matrix has its scales elsewhere, if it is int8 and has any.

    Its arguments: x (n, k) and y (n, m); the units where the matrix (m, k) begins in an arena and its bias in
    another, -1 for none; whether y is added to. Plane z of the grid takes matrix and bias z steps further on,
    and writes y's plane z.
    """

    def product(x, arena, at, biases, b, y, n, k, m, at_step, b_step, add):  # type: ignore[no-untyped-def]
        xs = cuda.shared.array(FLOATS, float32)
        ws = cuda.shared.array(FLOATS, float32)
        tid, z = cuda.threadIdx.x, cuda.blockIdx.z
        row0, col0 = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
        total = nothing(), nothing(), nothing(), nothing()
        for k0 in range(0, k, DEPTH):
            stage(xs, x, 0, k, 1, row0, n, k0, k, tid)
            stage_weights(ws, arena, at + z * at_step, col0, m, k0, k, tid, shift, transposed)
            cuda.syncthreads()
            total = multiply(xs, ws, tid, total)
            cuda.syncthreads()
        bias = b + z * b_step if b >= 0 else b
        finish_tile(y, biases, bias, z * n * m, row0, col0, n, m, m, total, add, tid)

    return cuda.jit(product)


# --- tiles for tensor cores ---


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


# --- between the products ---


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


@cuda.jit
def fake_quantize_rows(x, n, d):  # type: ignore[no-untyped-def]
    """Round rows (n, d) in place as :func:`minicore.quantization.fake_quantize` does, a group of 64 a thread.

    NaN and infinity make their group NaN.
    """
    groups, i = (d + GROUP - 1) // GROUP, np.int64(cuda.grid(1))
    if i < n * groups:
        first, last = i // groups * d + i % groups * GROUP, i // groups * d + min(d, (i % groups + 1) * GROUP)
        largest, lost = np.float32(0), np.float32(0)
        for j in range(first, last):
            largest = max(largest, abs(get(x, j)))
            lost += get(x, j) - get(x, j)
        step = largest / np.float32(127)
        by = step if step > 0 else np.float32(1)
        for j in range(first, last):
            q = (get(x, j) / by + np.float32(12582912)) - np.float32(12582912)
            let(x, j, q * step + lost)


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


@cuda.jit
def activations(y, size, code, gated, bad):  # type: ignore[no-untyped-def]
    """Replace up rows by activations, and gates by what multiplies them: y's planes of ``size`` numbers each.

    ``bad[0]`` becomes 1 if there is NaN or infinity among the results.
    """
    i = np.int64(cuda.grid(1))
    if i < size:
        a = activate(get(y, i + size if gated else i), code)
        if gated:
            let(y, i + size, a)
            a *= get(y, i)
        let(y, i, a)
        if as_bits(a) & np.uint32(0x7F800000) == np.uint32(0x7F800000):
            bad[0] = 1


# --- sums over tokens (minicore.core.recording) ---


@device
def order_of(a, i, magnitude):  # type: ignore[no-untyped-def]  # -> int32
    """Return the bits of a number: those of positive floats are positive and in their order."""
    bits = as_bits(get(a, i))
    return np.int32(bits & np.uint32(0x7FFFFFFF)) if magnitude else np.int32(bits)


@device
def how_many(a, at, width, least, magnitude, parts, tid):  # type: ignore[no-untyped-def]
    """Return how many of a row's numbers have at least these bits."""
    count = np.int32(0)
    for i in range(tid, width, WARPS * LANES):
        if order_of(a, at + i, magnitude) >= least:
            count += np.int32(1)
    return block_sum(parts, count, tid)


@device
def kth_largest(a, at, width, k, magnitude, parts, tid):  # type: ignore[no-untyped-def]
    """Return the bits of a row's k-th largest number, which is positive, by halving an interval of bits."""
    low_end, high_end = np.int32(1), np.int32(0)
    for i in range(tid, width, WARPS * LANES):
        high_end = max(high_end, order_of(a, at + i, magnitude))
    high_end = block_max(parts, high_end, tid)
    while low_end < high_end:
        middle = np.int32(low_end + (high_end - low_end + 1) // 2)
        if how_many(a, at, width, middle, magnitude, parts, tid) >= k:
            low_end = middle
        else:
            high_end = np.int32(middle - 1)
    return low_end


@cuda.jit
def count_cores(a, width, alpha, magnitude, counts):  # type: ignore[no-untyped-def]
    """Count the tokens of a (n, width) whose core holds each neuron; a block a token."""
    parts = cuda.shared.array(WARPS, int32)
    at, tid = np.int64(cuda.blockIdx.x) * width, cuda.threadIdx.x
    n = how_many(a, at, width, np.int32(1), magnitude, parts, tid)
    if n == 0:
        return
    k = max(int(math.floor(alpha * n)), 1)
    cut_off = kth_largest(a, at, width, k, magnitude, parts, tid)
    places = k - how_many(a, at, width, np.int32(cut_off + 1), magnitude, parts, tid)
    equal = how_many(a, at, width, cut_off, magnitude, parts, tid) - (k - places)
    for i in range(tid, width, WARPS * LANES):
        bits = order_of(a, at + i, magnitude)
        if bits > cut_off or (bits == cut_off and equal == places):
            cuda.atomic.add(counts, i, 1)
    if equal > places and tid == 0:  # of the entries that equal the cut, those of lower index
        i = 0
        while places > 0:
            if order_of(a, at + i, magnitude) == cut_off:
                cuda.atomic.add(counts, i, 1)
                places -= 1
            i += 1


@cuda.jit
def count_positives(a, width, total):  # type: ignore[no-untyped-def]
    """Add a row's number of positive entries to total[0]; a block a token."""
    parts = cuda.shared.array(WARPS, int32)
    n = how_many(a, np.int64(cuda.blockIdx.x) * width, width, np.int32(1), False, parts, cuda.threadIdx.x)
    if cuda.threadIdx.x == 0:
        cuda.atomic.add(total, 0, n)


@cuda.jit
def count_bins(a, size, bins):  # type: ignore[no-untyped-def]
    """Count the numbers of each magnitude, by the upper bits of |a|."""
    i = np.int64(cuda.grid(1))
    if i < size:
        bits = as_bits(get(a, i)) & np.uint32(0x7FFFFFFF)
        cuda.atomic.add(bins, np.int64(bits >> np.uint32(BINS_SHIFT)), 1)


@cuda.jit
def energies(a, width, whole):  # type: ignore[no-untyped-def]
    """Write the energy of every row, a sum of squares in float64; a block a token."""
    parts = cuda.shared.array(WARPS, float64)
    at, tid, total = np.int64(cuda.blockIdx.x) * width, cuda.threadIdx.x, np.float64(0)
    for i in range(tid, width, WARPS * LANES):
        total += np.float64(get(a, at + i)) * np.float64(get(a, at + i))
    total = block_sum(parts, total, tid)
    if tid == 0:
        whole[cuda.blockIdx.x] = total


@cuda.jit
def add_energies(a, n, width, whole, total):  # type: ignore[no-untyped-def]
    """Add every token's shares of its energy, one token after the other; a thread a neuron."""
    i = np.int64(cuda.grid(1))
    if i < width:
        for t in range(n):
            value = np.float64(get(a, t * width + i))
            if whole[t] > 0:
                total[i] += value * value / whole[t]
