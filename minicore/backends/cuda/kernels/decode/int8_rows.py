"""int8: sums of products of bytes, a group of 64 at a time."""

from __future__ import annotations

import numpy as np

from minicore.backends.cuda.kernels.decode.vectors import is_open
from minicore.backends.cuda.kernels.elements import byte, half_at
from minicore.backends.cuda.kernels.intrinsics import (
    LANES,
    as_bits,
    as_float,
    as_half,
    cached16,
    device,
    dp4a,
    four,
    get,
    let,
    load16,
)
from minicore.backends.cuda.kernels.warp import group_max, group_sum
from minicore.quantization import GROUP


@device
def quantize_vector(s, m, me, x, padded):  # type: ignore[no-untyped-def]
    """Round the vector at float x for products with int8 rows: codes and scales go behind its floats.

    As :func:`minicore.quantization.fake_quantize`; NaN and infinity make their group's scale NaN.
    """
    groups, width = padded // GROUP, min(LANES, 16)  # lanes that round a group together
    sub = me.tid & (width - 1)
    for g0 in range(0, groups, s.threads // width):  # all lanes take all turns
        g = g0 + me.tid // width
        there, largest, lost = g < groups, np.float32(0), np.float32(0)
        for k in range(sub, GROUP // 4, width):
            v = four(m.shared, x + GROUP * min(g, groups - 1) + 4 * k)
            largest = max(largest, max(max(abs(v[0]), abs(v[1])), max(abs(v[2]), abs(v[3]))))
            lost += v[0] - v[0] + (v[1] - v[1]) + (v[2] - v[2] + (v[3] - v[3]))
        largest, lost = group_max(largest, width), group_sum(lost, width)
        scale = largest / np.float32(127)
        by = scale if scale > 0 and lost == 0 else np.float32(1)
        for k in range(sub, GROUP // 4, width):
            v, word = four(m.shared, x + GROUP * min(g, groups - 1) + 4 * k), np.uint32(0)
            if lost == 0:
                word = code_of(v[0] / by, 0) | code_of(v[1] / by, 8)
                word = np.uint32(word | code_of(v[2] / by, 16) | code_of(v[3] / by, 24))
            if there:
                let(m.shared, x + padded + GROUP // 4 * g + k, as_float(word))
        if there and sub == 0:
            let(m.shared, x + padded + padded // 4 + g, scale + lost)


@device
def code_of(x, at):  # type: ignore[no-untyped-def]
    """Return x rounded to a whole number, halves to even, as a byte of a word."""
    q = (x + np.float32(12582912)) - np.float32(12582912)
    return np.uint32(np.int32(q) & 0xFF) << np.uint32(at)


@device
def int8_dot(w, shared, at):  # type: ignore[no-untyped-def]  # -> int32
    """Return 16 bytes of weights times 16 codes."""
    q = four(shared, at)
    total = dp4a(w[0], as_bits(q[0]), dp4a(w[1], as_bits(q[1]), np.int32(0)))
    return dp4a(w[2], as_bits(q[2]), dp4a(w[3], as_bits(q[3]), total))


@device
def int8_row(arena, at, padded, lane, shared, x):  # type: ignore[no-untyped-def]
    """Return a lane's part of an int8 row, its scales behind it, times the rounded vector at float x."""
    total, chunks, codes, x_scales = np.float32(0), padded // 16, x + padded, x + padded + padded // 4
    for c in range(lane, chunks, 2 * LANES):  # two chunks on their way at once
        far = c + LANES
        w0, w1 = load16(arena, at + c, True), load16(arena, at + far, far < chunks)
        g0, g1 = c >> 2, min(far, chunks - 1) >> 2
        first = half_at(arena, at + chunks, g0) * get(shared, x_scales + g0)
        second = half_at(arena, at + chunks, g1) * get(shared, x_scales + g1)
        total += np.float32(int8_dot(w0, shared, codes + 4 * c)) * first
        total += np.float32(int8_dot(w1, shared, codes + 4 * min(far, chunks - 1))) * second
    return total


@device
def four_scaled(word, h0, h1, x):  # type: ignore[no-untyped-def]
    """Return four codes times their float16 scales, in two words, times four numbers."""
    upper = np.uint32(16)
    w0, w1 = np.float32(byte(word, 0)) * as_half(h0), np.float32(byte(word, 1)) * as_half(h0 >> upper)
    w2, w3 = np.float32(byte(word, 2)) * as_half(h1), np.float32(byte(word, 3)) * as_half(h1 >> upper)
    return w0 * x[0] + w1 * x[1] + (w2 * x[2] + w3 * x[3])


@device
def int8_column(s, arena, at, i, chunks, lane, shared, x, spread, sparse):  # type: ignore[no-untyped-def]
    """Return a lane's part of row i of a transposed int8 matrix times activations, which are not rounded.

    A scale is a neuron's for 64 outputs: rows of scales, two chunks for one of codes, lie behind all rows.
    """
    total, scales = np.float32(0), at + (s.d + 2 * (i // GROUP)) * chunks
    for c in range(lane, chunks, LANES):
        w = load16(arena, at + i * chunks + c, not sparse or is_open(shared, x + 4 * c, spread, s.shift))
        h, k, a = cached16(arena, scales + 2 * c), cached16(arena, scales + 2 * c + 1), x + 4 * c
        total += four_scaled(w[0], h[0], h[1], four(shared, a))
        total += four_scaled(w[1], h[2], h[3], four(shared, a + spread))
        total += four_scaled(w[2], k[0], k[1], four(shared, a + 2 * spread))
        total += four_scaled(w[3], k[2], k[3], four(shared, a + 3 * spread))
    return total
