"""Dot products of rows of weights with a vector in shared memory.

A warp computes a row: each lane returns its part of the product, and the caller adds the parts. Lanes read
neighbouring chunks of the row and have several loads in flight.
"""

from __future__ import annotations

import numpy as np

from minicore.backends.cuda.kernels.decode.int8_rows import int8_row_dot
from minicore.backends.cuda.kernels.decode.vectors import any_nonzero
from minicore.backends.cuda.kernels.elements import bf16_high, bf16_low
from minicore.backends.cuda.kernels.intrinsics import (
    WARP_SIZE,
    device,
    float_as_uint,
    load16,
    shared_float4,
    uint_as_float,
)


@device
def row_dot(s, m, thread, arena, start, n_chunks, x, at, staged):
    """Return a lane's part of a row times x.

    The row starts at a chunk of an arena. If it was staged, it is at float ``at`` of shared memory too.
    int8 rows meet the quantized x.
    """
    if s.int8:
        return int8_row_dot(m, thread, arena, start, x)
    return float_row_dot(s, m, thread, arena, start, n_chunks, x, at, staged)


@device
def float_row_dot(s, m, thread, arena, start, n_chunks, x, at, staged):
    """Return a lane's part of a float32 or bfloat16 row times x, as :func:`row_dot`."""
    if staged and s.stages_rows:
        return lane_dot(arena, at, n_chunks, thread.lane, m.shared, x, s.bf16, True)
    return lane_dot(arena, start, n_chunks, thread.lane, m.shared, x, s.bf16, False)


@device
def lane_dot(arena, start, n_chunks, lane, shared, x, bf16, staged):
    """Return the sum over chunks lane, lane + 32, ... of a row times x, up to eight loads in flight."""
    total, k = np.float32(0), 0
    while k + 8 * WARP_SIZE <= n_chunks:
        total += chunk_dot4(arena, start, k + lane, shared, x, bf16, staged)
        total += chunk_dot4(arena, start, k + 4 * WARP_SIZE + lane, shared, x, bf16, staged)
        k += 8 * WARP_SIZE
    if k + 4 * WARP_SIZE <= n_chunks:
        total += chunk_dot4(arena, start, k + lane, shared, x, bf16, staged)
        k += 4 * WARP_SIZE
    if k + 2 * WARP_SIZE <= n_chunks:
        total += chunk_dot2(arena, start, k + lane, shared, x, bf16, staged)
        k += 2 * WARP_SIZE
    while k < n_chunks:
        w = load_chunk(arena, start, k + lane, k + lane < n_chunks, shared, staged)
        total += chunk_dot(w, shared, x, k + lane, bf16)
        k += WARP_SIZE
    return total


@device
def chunk_dot4(arena, start, c, shared, x, bf16, staged):
    """Return the chunks c, c + 32, c + 64 and c + 96 of a row times x."""
    total = chunk_dot2(arena, start, c, shared, x, bf16, staged)
    return total + chunk_dot2(arena, start, c + 2 * WARP_SIZE, shared, x, bf16, staged)


@device
def chunk_dot2(arena, start, c, shared, x, bf16, staged):
    """Return the chunks c and c + 32 of a row times x."""
    w0 = load_chunk(arena, start, c, True, shared, staged)
    w1 = load_chunk(arena, start, c + WARP_SIZE, True, shared, staged)
    total = chunk_dot(w0, shared, x, c, bf16)
    return total + chunk_dot(w1, shared, x, c + WARP_SIZE, bf16)


@device
def load_chunk(arena, start, c, valid, shared, staged):
    """Return chunk c of a row that starts at a chunk of the arena or, staged, at a float of shared memory."""
    if staged:
        w = shared_float4(shared, start + 4 * c)
        return float_as_uint(w[0]), float_as_uint(w[1]), float_as_uint(w[2]), float_as_uint(w[3])
    return load16(arena, start + c, valid)


@device
def chunk_dot(w, shared, x, c, bf16):
    """Return chunk c of a row, loaded before, times x."""
    w0, w1, w2, w3 = w
    at = x.at + 4 * c
    a = shared_float4(shared, at)
    if not bf16:
        low = uint_as_float(w0) * a[0] + uint_as_float(w1) * a[1]
        return low + (uint_as_float(w2) * a[2] + uint_as_float(w3) * a[3])
    b = shared_float4(shared, at + x.plane_stride)
    low = bf16_low(w0) * a[0] + bf16_high(w0) * a[1] + (bf16_low(w1) * a[2] + bf16_high(w1) * a[3])
    return low + (bf16_low(w2) * b[0] + bf16_high(w2) * b[1] + (bf16_low(w3) * b[2] + bf16_high(w3) * b[3]))


@device
def sparse_row_dot(s, m, thread, arena, start, n_chunks, x):
    """Return a lane's part of a row times x, loading no chunk for which the elements of x are all zero."""
    total = np.float32(0)
    for c in range(thread.lane, n_chunks, 2 * WARP_SIZE):
        far = min(c + WARP_SIZE, n_chunks - 1)
        far_needed = c + WARP_SIZE < n_chunks and any_nonzero(m.shared, x, far)
        w0 = load16(arena, start + c, any_nonzero(m.shared, x, c))
        w1 = load16(arena, start + far, far_needed)
        total += chunk_dot(w0, m.shared, x, c, s.bf16) + chunk_dot(w1, m.shared, x, far, s.bf16)
    return total
