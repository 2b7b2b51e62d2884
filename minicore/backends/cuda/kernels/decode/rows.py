"""Rows of weights times vectors."""

from __future__ import annotations

import numpy as np

from minicore.backends.cuda.kernels.decode.int8_rows import int8_row
from minicore.backends.cuda.kernels.decode.vectors import is_open
from minicore.backends.cuda.kernels.elements import high, low
from minicore.backends.cuda.kernels.intrinsics import LANES, as_bits, as_float, device, four, load16


@device
def times(w, shared, at, spread, bf):  # type: ignore[no-untyped-def]
    """Return 16 bytes of weights times their part of the vector in shared memory."""
    a, b, c, d = w
    x = four(shared, at)
    if not bf:
        return as_float(a) * x[0] + as_float(b) * x[1] + (as_float(c) * x[2] + as_float(d) * x[3])
    y = four(shared, at + spread)
    first = low(a) * x[0] + high(a) * x[1] + (low(b) * x[2] + high(b) * x[3])
    return first + (low(c) * y[0] + high(c) * y[1] + (low(d) * y[2] + high(d) * y[3]))


@device
def weights(arena, at, c, there, shared, held):  # type: ignore[no-untyped-def]
    """Return chunk c of a row: at a 16-byte unit of the arena or, sent ahead, at a float of shared memory."""
    if held:
        w = four(shared, at + 4 * c)
        return as_bits(w[0]), as_bits(w[1]), as_bits(w[2]), as_bits(w[3])
    return load16(arena, at + c, there)


@device
def two_times(arena, at, c, shared, x, spread, bf, held):  # type: ignore[no-untyped-def]
    """Return two chunks of a row, a warp apart, times the vector at x."""
    w0 = weights(arena, at, c, True, shared, held)
    w1 = weights(arena, at, c + LANES, True, shared, held)
    total = times(w0, shared, x + 4 * c, spread, bf)
    return total + times(w1, shared, x + 4 * (c + LANES), spread, bf)


@device
def four_times(arena, at, c, shared, x, spread, bf, held):  # type: ignore[no-untyped-def]
    """Return four chunks of a row, a warp apart, times the vector at x: four loads on their way at once."""
    total = two_times(arena, at, c, shared, x, spread, bf, held)
    return total + two_times(arena, at, c + 2 * LANES, shared, x, spread, bf, held)


@device
def row_times(arena, at, chunks, lane, shared, x, spread, bf, total, held):  # type: ignore[no-untyped-def]
    """Add to a total a lane's part of a row times the vector at x."""
    k = 0
    while k + 8 * LANES <= chunks:
        total += four_times(arena, at, k + lane, shared, x, spread, bf, held)
        total += four_times(arena, at, k + 4 * LANES + lane, shared, x, spread, bf, held)
        k += 8 * LANES
    if k + 4 * LANES <= chunks:
        total += four_times(arena, at, k + lane, shared, x, spread, bf, held)
        k += 4 * LANES
    if k + 2 * LANES <= chunks:
        total += two_times(arena, at, k + lane, shared, x, spread, bf, held)
        k += 2 * LANES
    while k < chunks:
        w = weights(arena, at, k + lane, k + lane < chunks, shared, held)
        total += times(w, shared, x + 4 * (k + lane), spread, bf)
        k += LANES
    return total


@device
def held_row(s, arena, at, chunks, lane, shared, x, spread, place, held):  # type: ignore[no-untyped-def]
    """Return a lane's part of a row: of the arena or, if it was sent ahead, at a place of shared memory."""
    total = np.float32(0)
    if held and s.sends:
        return row_times(arena, place, chunks, lane, shared, x, spread, s.bf, total, True)
    return row_times(arena, at, chunks, lane, shared, x, spread, s.bf, total, False)


@device
def row(s, arena, at, chunks, lane, shared, x, spread, padded, place, held):  # type: ignore[no-untyped-def]
    """Return a lane's part of a row times a vector that was rounded if rows are int8."""
    if s.int8:
        return int8_row(arena, at, padded, lane, shared, x)
    return held_row(s, arena, at, chunks, lane, shared, x, spread, place, held)


@device
def sparse_row(s, arena, at, chunks, lane, shared, x, spread):  # type: ignore[no-untyped-def]
    """Return a lane's part of a row times activations, reading no chunk whose activations are all zero."""
    total = np.float32(0)
    for c in range(lane, chunks, 2 * LANES):
        far = min(c + LANES, chunks - 1)
        second = c + LANES < chunks and is_open(shared, x + 4 * far, spread, s.shift)
        w0 = load16(arena, at + c, is_open(shared, x + 4 * c, spread, s.shift))
        w1 = load16(arena, at + far, second)
        total += times(w0, shared, x + 4 * c, spread, s.bf) + times(w1, shared, x + 4 * far, spread, s.bf)
    return total
