"""The FFN."""

from __future__ import annotations

import numpy as np

from minicore.backends.cuda.kernels.decode.claims import draw, drawn
from minicore.backends.cuda.kernels.decode.int8_rows import int8_column
from minicore.backends.cuda.kernels.decode.rows import held_row, row, sparse_row
from minicore.backends.cuda.kernels.decode.shape import (
    B_GATE,
    B_IN,
    COMPACT,
    N_CHUNKS,
    N_ROWS,
    W_GATE,
    W_IN,
    W_OUT,
)
from minicore.backends.cuda.kernels.decode.staging import await_rows, pocket
from minicore.backends.cuda.kernels.decode.vectors import clear, store2
from minicore.backends.cuda.kernels.elements import activate, number
from minicore.backends.cuda.kernels.exchange import complete, settle
from minicore.backends.cuda.kernels.intrinsics import LANES, cuda, device, put, take2
from minicore.backends.cuda.kernels.warp import group_sum2, warp_sum


@device
def neuron(s, m, me, ffn, f, i, by, threshold, held):  # type: ignore[no-untyped-def]
    """Return a neuron's activation, 0 if its gate is not larger in magnitude than the threshold."""
    place, up_place = pocket(s, me, s.place_gate), pocket(s, me, s.place_up)
    w, b = (f[W_GATE], f[B_GATE]) if s.gated else (f[W_IN], f[B_IN])
    at, up_at, up = w + i * s.d_chunks, f[W_IN] + i * s.d_chunks, np.float32(0)
    part = row(
        s, ffn, at, s.d_chunks, me.lane, m.shared, 0, s.d_spread, s.d_padded, place, held
    )  # fmt: skip
    if s.gated and threshold < 0:  # both rows on their way at once
        up = row(
            s, ffn, up_at, s.d_chunks, me.lane, m.shared, 0, s.d_spread, s.d_padded, up_place, held
        )  # fmt: skip
    a, up = group_sum2(part, up, LANES) if s.gated and threshold < 0 else (warp_sum(part), up)
    a *= by
    if b >= 0:
        a += number(ffn, b, i, False)
    a = activate(a, s.activation)
    if threshold >= 0:
        if abs(a) <= threshold:
            return np.float32(0)
        if s.gated:
            up = row(s, ffn, up_at, s.d_chunks, me.lane, m.shared, 0, s.d_spread, s.d_padded, 0, False)
            up = warp_sum(up)
    if s.gated:
        up *= by
        if f[B_IN] >= 0:
            up += number(ffn, f[B_IN], i, False)
        a *= up
    return a


@device
def activations(s, m, me, f, threshold, by, tag, turn):  # type: ignore[no-untyped-def]
    """Hand out the activations of this warp's neurons, and a zero that makes their number even."""
    end, most = f[N_ROWS] + (f[N_ROWS] & 1), s.n_neurons + 1
    i, first = me.number, True
    while i < end:
        following = draw(s, m, me, turn, i, most)
        activation(s, m, me, f, threshold, by, tag, i, first)
        i, first = drawn(s, following, most), False


@device
def activation(s, m, me, f, threshold, by, tag, i, held):  # type: ignore[no-untyped-def]
    """Hand out neuron i's activation, or a zero behind the last."""
    a = np.float32(0)
    if i < f[N_ROWS]:
        a = neuron(s, m, me, m.core if f[COMPACT] else m.dense, f, i, by, threshold, held)
    if me.lane == 0:
        put(m.words, s.at_a + i, a, tag)


@device
def keep_activations(s, m, at, p, pairs, read, tag, spread):  # type: ignore[no-untyped-def]
    """Store a pair of activations once it is there; return how many of them are not zero."""
    if p >= pairs:
        return 0
    u, v = complete(m.words, at + p, read, tag)
    store2(m.shared, s.a, 2 * p, u, v, spread, s.shift)
    return (1 if u != 0 else 0) + (1 if v != 0 else 0)


@device
def gather(s, m, me, n, spread, tag):  # type: ignore[no-untyped-def]
    """Put all activations into shared memory; return how many of this thread's are not zero."""
    at, pairs, count = s.at_a >> 1, (n + 1) // 2, 0
    for p in range(me.tid, pairs, 4 * s.threads):
        p1, p2, p3 = p + s.threads, p + 2 * s.threads, p + 3 * s.threads
        r0, r1 = take2(m.words, at + p, True), take2(m.words, at + p1, p1 < pairs)
        r2, r3 = take2(m.words, at + p2, p2 < pairs), take2(m.words, at + p3, p3 < pairs)
        count += keep_activations(s, m, at, p, pairs, r0, tag, spread)
        count += keep_activations(s, m, at, p1, pairs, r1, tag, spread)
        count += keep_activations(s, m, at, p2, pairs, r2, tag, spread)
        count += keep_activations(s, m, at, p3, pairs, r3, tag, spread)
    clear(m.shared, s.a, 2 * pairs, spread << (s.shift - 2), spread, s.shift, me, s.threads)
    return count


@device
def outputs(s, m, me, layer, f, threshold, tag, turn, only):  # type: ignore[no-untyped-def]
    """Gather all activations and hand out this warp's outputs; one block counts those that are not zero."""
    chunks = f[N_CHUNKS]
    spread = (chunks + LANES - 1) // LANES * LANES * 4
    settle()
    count = gather(s, m, me, f[N_ROWS], spread, tag)
    cuda.syncthreads()
    await_rows(s, only)
    if s.int8:  # a block's rows are neighbours: they share scales
        for i in range(me.block * s.d // s.blocks + me.warp, (me.block + 1) * s.d // s.blocks, s.warps):
            output(s, m, me, f, threshold, tag, spread, i, False)
    else:
        i, first = me.number, True
        while i < s.d:
            following = draw(s, m, me, turn, i, s.d)
            output(s, m, me, f, threshold, tag, spread, i, first)
            i, first = drawn(s, following, s.d), False
    if me.block == layer % s.blocks:
        count = warp_sum(count)
        if me.lane == 0:
            cuda.atomic.add(m.n_used, layer, np.int64(count))


@device
def output(s, m, me, f, threshold, tag, spread, i, held):  # type: ignore[no-untyped-def]
    """Hand out output i."""
    ffn, chunks = m.core if f[COMPACT] else m.dense, f[N_CHUNKS]
    at, place = f[W_OUT] + i * chunks, pocket(s, me, s.place_out)
    if s.int8:
        total = int8_column(s, ffn, f[W_OUT], i, chunks, me.lane, m.shared, s.a, spread, threshold >= 0)
    elif threshold >= 0:
        total = sparse_row(s, ffn, at, chunks, me.lane, m.shared, s.a, spread)
    else:
        total = held_row(s, ffn, at, chunks, me.lane, m.shared, s.a, spread, place, held)
    total = warp_sum(total)
    if me.lane == 0:
        put(m.words, s.at_out + i, total, tag)
