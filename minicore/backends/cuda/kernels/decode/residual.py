"""The residual stream and its norms."""

from __future__ import annotations

import numpy as np

from minicore.backends.cuda.kernels.decode.int8_rows import quantize_vector
from minicore.backends.cuda.kernels.decode.shape import EMBED, LAYER, POS_EMBED
from minicore.backends.cuda.kernels.decode.vectors import store2
from minicore.backends.cuda.kernels.elements import number, stored
from minicore.backends.cuda.kernels.exchange import complete, settle
from minicore.backends.cuda.kernels.intrinsics import cuda, device, get, let, rsqrt, take2
from minicore.backends.cuda.kernels.warp import warp_sum


@device
def bias(s, m, column, layer, i):  # type: ignore[no-untyped-def]
    """Return number i of a layer's vector, 0 for one the model does not have."""
    if s.layout[column] < 0:
        return np.float32(0)
    return number(m.fixed, s.layout[column] + layer * s.layout[LAYER], i, False)


@device
def embed(s, m, me, token, position, x):  # type: ignore[no-untyped-def]
    """Begin a thread's part of the residual stream: pairs of numbers, a block apart."""
    row = s.layout[EMBED] + np.int64(token) * s.d_chunks
    for k in range(s.rounds):
        i = 2 * (me.tid + k * s.threads)
        if i < s.d:
            x[2 * k] = stored(m.fixed, row, i, s.d, s.shift)
            x[2 * k + 1] = stored(m.fixed, row, i + 1, s.d, s.shift)
            if s.layout[POS_EMBED] >= 0:
                at = s.layout[POS_EMBED] + np.int64(position + s.offset) * s.d_chunks
                x[2 * k] += stored(m.fixed, at, i, s.d, s.shift)
                x[2 * k + 1] += stored(m.fixed, at, i + 1, s.d, s.shift)


@device
def load_norm(s, m, me, w_at, b_at, layer, w, b):  # type: ignore[no-untyped-def]
    """Load a thread's part of a norm's weights, before it waits for what they are for."""
    for k in range(s.rounds):
        i = 2 * (me.tid + k * s.threads)
        if i < s.d:
            w[2 * k], w[2 * k + 1] = bias(s, m, w_at, layer, i), bias(s, m, w_at, layer, i + 1)
            b[2 * k], b[2 * k + 1] = bias(s, m, b_at, layer, i), bias(s, m, b_at, layer, i + 1)


@device
def add(s, m, me, at, column, layer, tag, x):  # type: ignore[no-untyped-def]
    """Add the vector exchanged from word ``at`` on, and a layer's bias, to the residual stream."""
    settle()
    for k in range(0, s.rounds, 4):  # four on their way at once
        r0, r1 = pair_of(s, m, me, at, k), pair_of(s, m, me, at, k + 1)
        r2, r3 = pair_of(s, m, me, at, k + 2), pair_of(s, m, me, at, k + 3)
        add_pair(s, m, me, at, column, layer, tag, k, r0, x)
        add_pair(s, m, me, at, column, layer, tag, k + 1, r1, x)
        add_pair(s, m, me, at, column, layer, tag, k + 2, r2, x)
        add_pair(s, m, me, at, column, layer, tag, k + 3, r3, x)


@device
def pair_of(s, m, me, at, k):  # type: ignore[no-untyped-def]
    """Read a thread's k-th pair of the vector exchanged from word ``at`` on, if it has one."""
    p = me.tid + k * s.threads
    return take2(m.words, (at >> 1) + p, k < s.rounds and 2 * p < s.d)


@device
def add_pair(s, m, me, at, column, layer, tag, k, read, x):  # type: ignore[no-untyped-def]
    """Add a pair that was read, once it is there, and a layer's bias."""
    p = me.tid + k * s.threads
    if k < s.rounds and 2 * p < s.d:
        u, v = complete(m.words, (at >> 1) + p, read, tag)
        x[2 * k] += u + bias(s, m, column, layer, 2 * p)
        x[2 * k + 1] += v + bias(s, m, column, layer, 2 * p + 1)


@device
def block_sum(s, m, me, x, parts):  # type: ignore[no-untyped-def]
    """Return the sum of x over the block; every thread adds the warps' sums itself."""
    x = warp_sum(x)
    if me.lane == 0:
        let(m.shared, parts + me.warp, x)
    cuda.syncthreads()
    total = np.float32(0)
    for w in range(s.warps):
        total += get(m.shared, parts + w)
    return total


@device
def norm(s, m, me, x, w, b):  # type: ignore[no-untyped-def]
    """Write the norm of the residual stream to shared memory; return a factor of products with it."""
    mean, square = np.float32(0), np.float32(0)
    if s.layer_norm:
        for k in range(s.rounds):
            if 2 * (me.tid + k * s.threads) < s.d:
                mean += x[2 * k] + x[2 * k + 1]
        mean = block_sum(s, m, me, mean, s.red) * np.float32(1 / s.d)
    for k in range(s.rounds):
        i = 2 * (me.tid + k * s.threads)
        if i < s.d:
            u, v = x[2 * k] - mean, x[2 * k + 1] - mean
            square += u * u + v * v
            if not s.layer_norm:  # a root mean square can be divided by after the product: one barrier less
                store2(m.shared, 0, i, u * w[2 * k], v * w[2 * k + 1], s.d_spread, s.x_shift)
    square = block_sum(s, m, me, square, s.red + s.warps)
    scale = rsqrt(square * np.float32(1 / s.d) + np.float32(s.eps))
    if not s.layer_norm:
        round_if_int8(s, m, me, 0, s.d_padded)
        return scale
    for k in range(s.rounds):
        i = 2 * (me.tid + k * s.threads)
        if i < s.d:
            u = (x[2 * k] - mean) * scale * w[2 * k] + b[2 * k]
            v = (x[2 * k + 1] - mean) * scale * w[2 * k + 1] + b[2 * k + 1]
            store2(m.shared, 0, i, u, v, s.d_spread, s.x_shift)
    cuda.syncthreads()
    round_if_int8(s, m, me, 0, s.d_padded)
    return np.float32(1)


@device
def round_if_int8(s, m, me, x, padded):  # type: ignore[no-untyped-def]
    """Round the vector at float x of shared memory if it is multiplied by int8 rows."""
    if s.int8:
        quantize_vector(s, m, me, x, padded)
        cuda.syncthreads()


@device
def load_stream(s, me, x, stream, half):  # type: ignore[no-untyped-def]
    """Load a thread's part of the residual stream from one of two places."""
    for k in range(s.rounds):
        i = 2 * (me.tid + k * s.threads)
        if i < s.d:
            x[2 * k], x[2 * k + 1] = get(stream, half * s.d + i), get(stream, half * s.d + i + 1)


@device
def store_stream(s, me, x, stream, half):  # type: ignore[no-untyped-def]
    """Store the residual stream, which all blocks have, once; in the place nobody is reading."""
    if me.block == 0:
        for k in range(s.rounds):
            i = 2 * (me.tid + k * s.threads)
            if i < s.d:
                let(stream, half * s.d + i, x[2 * k])
                let(stream, half * s.d + i + 1, x[2 * k + 1])
