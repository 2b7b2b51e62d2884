"""Rows on their way: a warp sends its first rows of a layer when it has read those of the layer before."""

from __future__ import annotations

from minicore.backends.cuda.kernels.decode.shape import (
    COMPACT,
    LAYER,
    N_CHUNKS,
    N_FFN,
    N_ROWS,
    W_GATE,
    W_IN,
    W_O,
    W_OUT,
    W_QKV,
)
from minicore.backends.cuda.kernels.intrinsics import (
    LANES,
    arrived,
    arrived_but_three,
    device,
    get,
    prefetch,
    send16,
    sent,
)
from minicore.quantization import GROUP


@device
def pocket(s, me, place):  # type: ignore[no-untyped-def]
    """Return where this warp's rows lie that were sent ahead."""
    return s.ahead + me.warp * s.place_end + place


@device
def send_row(s, m, me, arena, at, chunks, n_rows, place):  # type: ignore[no-untyped-def]
    """Send this warp's first of n_rows rows that begin at a 16-byte unit, each lane what it will read."""
    if me.number < n_rows:
        to, row = pocket(s, me, place), at + me.number * chunks
        for k in range(0, chunks, LANES):
            send16(m.shared, to + 4 * (k + me.lane), arena, row + k + me.lane, k + me.lane < chunks)


@device
def send_qkv(s, m, me, layer):  # type: ignore[no-untyped-def]
    """Send this warp's first row of queries, keys and values."""
    if s.sends:
        at = s.layout[W_QKV] + layer * s.layout[LAYER]
        send_row(s, m, me, m.fixed, at, s.d_chunks, s.n_qkv, s.place_qkv)
        sent()


@device
def send_o(s, m, me, layer):  # type: ignore[no-untyped-def]
    """Send this warp's first row of attention's projection."""
    if s.sends:
        send_row(s, m, me, m.fixed, s.layout[W_O] + layer * s.layout[LAYER], s.q_chunks, s.d, s.place_o)
        sent()


@device
def send_neuron(s, m, me, f, threshold):  # type: ignore[no-untyped-def]
    """Send this warp's first neuron, but no row that its gate may spare."""
    if s.sends:
        ffn = m.core if f[COMPACT] else m.dense
        send_row(s, m, me, ffn, f[W_GATE] if s.gated else f[W_IN], s.d_chunks, f[N_ROWS], s.place_gate)
        if s.gated and threshold < 0:
            send_row(s, m, me, ffn, f[W_IN], s.d_chunks, f[N_ROWS], s.place_up)
        sent()


@device
def send_out(s, m, me, f, threshold):  # type: ignore[no-untyped-def]
    """Send this warp's first output, unless closed gates spare parts of it."""
    if s.sends:
        if threshold < 0:
            ffn = m.core if f[COMPACT] else m.dense
            send_row(s, m, me, ffn, f[W_OUT], f[N_CHUNKS], s.d, s.place_out)
        sent()


@device
def await_rows(s, only):  # type: ignore[no-untyped-def]
    """Wait for the rows of this phase; unless they are the only ones, three other phases' are newer."""
    if s.sends:
        if only:
            arrived()
        else:
            arrived_but_three()


@device
def prefetch_rows(arena, at, chunks, n_rows, s, me):  # type: ignore[no-untyped-def]
    """Bring a warp's rows on their way to the L2 cache, a 128-byte line a lane."""
    for row in range(me.number, n_rows, s.stride):
        for c in range(8 * me.lane, chunks, 8 * LANES):
            prefetch(arena, at + row * chunks + c)


@device
def ffn_of(m, layer):  # type: ignore[no-untyped-def]
    """Read a layer's row of the plan; whoever does that early need not wait for it later."""
    at = layer * N_FFN
    a, b, c, d = (
        get(m.ffn_plan, at),
        get(m.ffn_plan, at + 1),
        get(m.ffn_plan, at + 2),
        get(m.ffn_plan, at + 3),
    )
    e, f, g, h = (
        get(m.ffn_plan, at + 4),
        get(m.ffn_plan, at + 5),
        get(m.ffn_plan, at + 6),
        get(m.ffn_plan, at + 7),
    )
    return a, b, c, d, e, f, g, h


@device
def prefetch_layer(s, m, me, layer, f):  # type: ignore[no-untyped-def]
    """Bring a layer's weights on their way to the L2 cache: what the next layer reads is not awaited then."""
    above = layer * s.layout[LAYER]
    ffn = m.core if f[COMPACT] else m.dense
    prefetch_rows(m.fixed, s.layout[W_QKV] + above, s.d_chunks, s.n_q + 2 * s.n_kv, s, me)
    prefetch_rows(m.fixed, s.layout[W_O] + above, s.q_chunks, s.d, s, me)
    prefetch_rows(ffn, f[W_IN], s.d_chunks, f[N_ROWS], s, me)
    if s.gated:
        prefetch_rows(ffn, f[W_GATE], s.d_chunks, f[N_ROWS], s, me)
    prefetch_rows(ffn, f[W_OUT], f[N_CHUNKS], s.d, s, me)
    if s.int8:
        prefetch_rows(ffn, f[W_OUT] + s.d * f[N_CHUNKS], 2 * f[N_CHUNKS], (s.d + GROUP - 1) // GROUP, s, me)


@device
def send_first(s, m, me):  # type: ignore[no-untyped-def]
    """Send the rows that a launch begins with."""
    f, threshold = ffn_of(m, 0), get(m.thresholds, 0)
    send_qkv(s, m, me, 0)
    send_o(s, m, me, 0)
    send_neuron(s, m, me, f, threshold)
    send_out(s, m, me, f, threshold)
