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

from functools import cache
from typing import Any

import numpy as np
from numba.core.types import float32

from minicore.backends.cuda.kernels.elements import byte, half_at, high, low, number
from minicore.backends.cuda.kernels.intrinsics import (
    LANES,
    as_float,
    as_half,
    cuda,
    device,
    four,
    get,
    let,
    load16,
)
from minicore.quantization import GROUP

TILE = 64 if LANES > 1 else 8  # rows and columns of y that a block computes


DEPTH = 16  # numbers of a row that are in shared memory at once


PITCH = TILE + 4  # floats from one of these to the next


FLOATS = DEPTH * PITCH  # numba wants the sizes of shared arrays as constants


SIDE = TILE // 4


THREADS = SIDE * SIDE  # of a plain product, each with 4 x 4 numbers of y


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
