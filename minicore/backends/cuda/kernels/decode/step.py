"""Tokens on a GPU: the whole decode step, token after token, as one launch.

The grid is one block a multiprocessor, all resident at once. Work is cut into rows, a warp each, and a layer
into five phases:

    norm, rows of q k v | attend over my positions | rows of w_o | norm, my neurons | rows of w_out

Every block keeps the whole residual stream, so adding and norms are done in each. Between phases blocks
exchange tagged words (:mod:`minicore.backends.cuda.kernels.intrinsics`). A word is written again a layer
later, with another tag. By then everybody has read it: who writes has itself read what all blocks wrote after
they read it.

``w_out`` lies transposed, (d_model, n_neurons): an output is one row times the activations, whoever computed
them. Weights are looked up in *arenas*, one array each, at 16-byte units that a plan lists; a core set is
nothing but another arena with fewer rows and its own plan.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numba import cuda
from numba.core.types import float32

from minicore.backends.cpu.step import RELU, SILU
from minicore.backends.cuda.kernels.intrinsics import (
    ALL,
    LANES,
    SIMULATED,
    SOURCE,
    arrived,
    arrived_but_three,
    as_bits,
    as_float,
    as_half,
    cached16,
    complete,
    device,
    dp4a,
    four,
    from_first,
    get,
    group_max,
    group_sum,
    group_sum2,
    group_sum4,
    let,
    load4,
    load16,
    prefetch,
    put,
    rsqrt,
    send16,
    sent,
    settle,
    take,
    take2,
    warp_best,
    warp_max,
    warp_sum,
)
from minicore.quantization import GROUP

# where things lie in their arenas, in 16-byte units, -1 for what a model does not have: in the first layer
LN1_W, LN1_B, W_QKV, B_QKV, W_O, B_O, LN2_W, LN2_B, B_OUT = range(9)
# and behind the last one; LAYER is the way from a layer to the next
EMBED, POS_EMBED, LN_F_W, LN_F_B, HEAD, LAYER = range(9, 15)
N_LAYOUT = 15
W_IN, B_IN, W_GATE, B_GATE, W_OUT, N_ROWS, N_CHUNKS, COMPACT = range(8)  # N_CHUNKS of a row of w_out
N_FFN = 8
N_TURNS = 4  # of a layer: rows of q k v, of w_o, neurons, rows of w_out
AHEAD_BYTES = 12 << 20  # layers up to this size are brought to the L2 cache one layer ahead
MAX_SPLIT_BITS = 3  # a head's positions are cut into 8 shares at most
SPLIT = 96  # and none of fewer positions than half of this; so many a block reads before it waits, or nearly


def row_chunks(n: int, shift: int) -> int:
    """Return how many 16-byte chunks a row of n numbers takes, 1 << shift each; int8's scales follow them."""
    if shift < 4:
        return -(-n >> shift)
    groups = -(-n // GROUP)
    return groups * (GROUP // 16) + -(-groups // 8)


class Shape(NamedTuple):
    """What a compiled kernel is made for: of the model, and of the grid."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    n_neurons: int
    n_vocab: int
    position_offset: int
    layer_norm: bool
    eps: float
    activation: int
    gated: bool
    rope: bool
    bfloat16: bool
    layout: tuple[int, ...]
    n_blocks: int
    n_threads: int
    int8: bool = False
    rounded: bool = False  # keys and values, to bfloat16
    sent_bytes: int = 0  # of a block's shared memory, for rows that are on their way while it waits

    @property
    def shift(self) -> int:
        """1 << shift numbers are in 16 bytes of weights."""
        return 4 if self.int8 else 3 if self.bfloat16 else 2

    def chunks(self, n: int) -> int:
        """Return how many 16-byte chunks a row of n numbers takes, with its scales."""
        return row_chunks(n, self.shift)

    def spread(self, n: int, shift: int) -> int:
        """Return the floats from the first quads of chunks in shared memory to their second ones."""
        return 4 * LANES * -(-n // (LANES << shift))

    def padded(self, n: int) -> int:
        """Return the floats of a vector in shared memory that is multiplied by rows of weights."""
        return -(-n // GROUP) * GROUP if self.int8 else self.spread(n, self.shift) << (self.shift - 2)

    def floats(self, n: int) -> int:
        """Return what that takes: behind int8's floats there are words of four codes, and scales."""
        return self.padded(n) + (self.padded(n) // GROUP * (GROUP // 4 + 1) if self.int8 else 0)

    def split_bits(self) -> int:
        """Return the most halvings of a head's positions, for blocks to share them."""
        return min(MAX_SPLIT_BITS, max(1, self.n_blocks // self.n_heads).bit_length() - 1)

    def held(self) -> tuple[int, int, int]:
        """Return the chunks of a row of d_model, n_q and n_neurons numbers that a warp sends ahead.

        They are whole rows, a warp's first of every phase; or none, where a layer's do not fit.
        """
        rows = 2 if self.gated else 1
        mine = self.sent_bytes // 16 // (self.n_threads // LANES)
        d, q, a = (
            -(-self.chunks(n) // LANES) * LANES
            for n in (self.d_model, self.n_heads * self.d_head, self.n_neurons)
        )
        return (d, q, a) if d + q + rows * d + a <= mine else (0, 0, 0)

    def places(self) -> list[int]:
        """Return where in a warp's part rows begin, in floats: qkv, w_o, gate or only, up, w_out; the end."""
        (d, q, a), gated = self.held(), int(self.gated)
        return [0, *accumulate(4 * n for n in (d, q, d, gated * d, a))]

    def words(self) -> list[int]:
        """Return where the words begin of q k v, attention, its projection, activations, outputs; the end."""
        d, q, kv = self.d_model, self.n_heads * self.d_head, self.n_kv_heads * self.d_head
        z, a = (self.n_heads << self.split_bits()) * (self.d_head + 2), self.n_neurons + self.n_neurons % 2
        return [0, *accumulate((q + 2 * kv, z, d, a, d))]

    def n_words(self) -> int:
        """Return how many words there are in a copy: a layer's, and those of choosing the token."""
        return self.words()[-1] + 2 * self.n_blocks

    def shared_floats(self, capacity: int = 1) -> list[int]:
        """Return where the parts of shared memory begin, and the end, for so many positions of kv cache."""
        x = self.floats(max(self.d_model, self.n_heads * self.d_head))
        warps = self.n_threads // LANES
        attention = 3 * self.d_head + warps * (self.d_head + 2) + (capacity >> self.split_bits()) + 1 + SPLIT
        a = max(self.spread(self.n_neurons, self.shift) << (self.shift - 2), attention)
        parts = (x, x, 2 * warps, 2 * warps + 1, self.d_head, warps * self.places()[-1], a)
        return [0, *accumulate(-(-n // 4) * 4 for n in parts)]


class Sizes(NamedTuple):
    """A shape as kernels read it: every field is a constant of the machine code, so that loops unroll."""

    n_layers: int
    d: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    n_q: int
    n_kv: int
    n_vocab: int
    offset: int
    layer_norm: bool
    eps: float
    activation: int
    gated: bool
    rope: bool
    bf: bool
    blocks: int
    threads: int
    warps: int
    stride: int  # warps of the grid
    rounds: int  # pairs of the residual stream that a thread keeps
    d_chunks: int
    q_chunks: int
    d_spread: int
    q_spread: int
    split_bits: int
    at_z: int
    at_o: int
    at_a: int
    at_out: int
    at_best: int
    z: int  # parts of shared memory; the normed residual stream begins at 0, attention's output here,
    red: int  # warps' sums,
    best: int  # warps' best tokens,
    angles: int  # the position's cosines and sines,
    ahead: int  # rows that were sent ahead,
    a: int  # activations, or what attention needs
    parts: int
    scores: int
    per_key: int  # lanes that read a key together
    key_chunks: int
    key_rounds: int
    prefetched: bool
    layout: tuple[int, ...]
    source: int
    int8: bool
    rounded: bool
    shift: int  # of an activation's place; a vector's place has its own, int8's being rounded where it lies
    x_shift: int
    d_padded: int
    q_padded: int
    sends: bool  # rows ahead
    place_qkv: int
    place_o: int
    place_gate: int
    place_up: int
    place_out: int
    place_end: int
    n_qkv: int
    n_neurons: int
    dealt: bool  # some phase has more rows than there are warps

    @classmethod
    def of(cls, s: Shape) -> Sizes:
        """Return the sizes that follow from a shape."""
        n_q, n_kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
        warps, key_chunks = s.n_threads // LANES, s.d_head // 4
        per_key = min(LANES, 1 << (key_chunks - 1).bit_length())
        d_chunks, q_chunks, x_shift = s.chunks(s.d_model), s.chunks(n_q), 2 if s.int8 else s.shift
        parts = s.shared_floats()[-2] + 3 * s.d_head
        rows = n_q + 2 * n_kv + (3 if s.gated else 2) * s.n_neurons
        prefetched = 16 * (d_chunks * rows + s.d_model * q_chunks) <= AHEAD_BYTES
        values: tuple[Any, ...] = (
            *(s.n_layers, s.d_model, s.n_heads, s.n_kv_heads, s.d_head, n_q, n_kv, s.n_vocab),
            *(s.position_offset, s.layer_norm, s.eps, s.activation, s.gated, s.rope, s.bfloat16),
            *(s.n_blocks, s.n_threads, warps, warps * s.n_blocks, -(-s.d_model // (2 * s.n_threads))),
            *(d_chunks, q_chunks, s.spread(s.d_model, x_shift), s.spread(n_q, x_shift), s.split_bits()),
            *s.words()[1:],
            *(*s.shared_floats()[1:-1], parts, parts + warps * (s.d_head + 2)),
            *(per_key, key_chunks, -(-key_chunks // per_key), prefetched, s.layout, SOURCE),
            *(s.int8, s.rounded, s.shift, x_shift, s.padded(s.d_model), s.padded(n_q)),
            *(s.held()[0] > 0, *s.places(), n_q + 2 * n_kv, s.n_neurons),
            max(n_q + 2 * n_kv, s.d_model, s.n_neurons + 1) > warps * s.n_blocks,
        )
        return cls(*values)


class Memory(NamedTuple):
    """Device arrays of a launch; :class:`minicore.backends.cuda.decoder.CudaDecoder` makes them."""

    fixed: Any
    dense: Any
    core: Any
    ffn_plan: Any
    thresholds: Any
    frequencies: Any
    keys: Any
    values: Any
    words: Any
    chain: Any
    logits: Any
    tokens: Any
    n_used: Any
    turns: Any
    shared: Any


class Me(NamedTuple):
    """Which thread this is: in its block; its warp, its lane, its block; its warp in the grid."""

    tid: int
    warp: int
    lane: int
    block: int
    number: int


# --- rows ---


@device
def number(arena, at, i, bf):  # type: ignore[no-untyped-def]
    """Return number i of a row of a matrix that begins at a 16-byte unit, or of a vector (bf false)."""
    if bf:
        return as_float((get(arena, 4 * at + (i >> 1)) >> np.uint32(16 * (i & 1))) << np.uint32(16))
    return as_float(get(arena, 4 * at + i))


@device
def byte(word, k):  # type: ignore[no-untyped-def]  # -> int32
    """Return signed byte k of a word."""
    return np.int32(((word >> np.uint32(8 * k)) & np.uint32(0xFF)) ^ np.uint32(0x80)) - np.int32(0x80)


@device
def half_at(arena, at, i):  # type: ignore[no-untyped-def]
    """Return float16 i behind a 16-byte unit."""
    return as_half(get(arena, 4 * at + (i >> 1)) >> np.uint32(16 * (i & 1)))


@device
def stored(arena, at, i, n, shift):  # type: ignore[no-untyped-def]
    """Return number i of a row of n that begins at a 16-byte unit."""
    if shift == 4:
        scale = half_at(arena, at + (n + GROUP - 1) // GROUP * (GROUP // 16), i // GROUP)
        return scale * np.float32(byte(get(arena, 4 * at + (i >> 2)), i & 3))
    return number(arena, at, i, shift == 3)


@device
def low(bits):  # type: ignore[no-untyped-def]
    """Return the first of two bfloat16: it is the upper half of a float32."""
    return as_float(bits << np.uint32(16))


@device
def high(bits):  # type: ignore[no-untyped-def]
    """Return the second of two bfloat16."""
    return as_float(bits & np.uint32(0xFFFF0000))


@device
def place(i, spread, shift):  # type: ignore[no-untyped-def]
    """Return where number i of a vector lies: the first four of all chunks, then their second four, ..."""
    return ((i >> 2) & ((1 << (shift - 2)) - 1)) * spread + ((i >> shift) << 2) + (i & 3)


@device
def store2(shared, x, i, u, v, spread, shift):  # type: ignore[no-untyped-def]
    """Write numbers i and i + 1 of the vector at float x of shared memory."""
    at = x + place(i, spread, shift)
    let(shared, at, u)
    let(shared, at + 1, v)


@device
def clear(shared, x, n, padded, spread, shift, me, threads):  # type: ignore[no-untyped-def]
    """Zero what lanes read of a vector in shared memory behind its n numbers."""
    for i in range(n + me.tid, padded, threads):
        let(shared, x + place(i, spread, shift), np.float32(0))


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


# --- whose turn it is: rows beyond a warp's first go to the warps that are done first ---


@device
def draw(s, m, me, turn, i, most):  # type: ignore[no-untyped-def]
    """Return in a warp's first lane which row it takes after row i; whoever asks early need not wait for it.

    Multiprocessors are not equally far from the memory: with as many rows for each, all wait for the slowest.
    Without a turn's place (-1), or where there are at most as many rows as warps, rows are dealt out evenly.
    """
    if turn >= 0 and most > s.stride and me.lane == 0:
        return np.int32(s.stride + cuda.atomic.add(m.turns, turn, np.int32(1)))
    return np.int32(i + s.stride)


@device
def drawn(s, following, most):  # type: ignore[no-untyped-def]
    """Return to all lanes which row a warp takes next; where warps have one each, the end."""
    return from_first(following) if most > s.stride else np.int32(most)


@device
def forget_turns(s, m, me, turn):  # type: ignore[no-untyped-def]
    """Begin a layer's turns anew, those of the next token: nobody draws there before this token is chosen."""
    if s.dealt and me.block == 0:
        for k in range(me.tid, N_TURNS, s.threads):
            let(m.turns, turn + k, np.int32(0))


# --- rows on their way: a warp sends its first rows of a layer when it has read those of the layer before ---


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


# --- int8: sums of products of bytes, a group of 64 at a time ---


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
def row(s, arena, at, chunks, lane, shared, x, spread, padded, place, held):  # type: ignore[no-untyped-def]
    """Return a lane's part of a row times a vector that was rounded if rows are int8."""
    if s.int8:
        return int8_row(arena, at, padded, lane, shared, x)
    return held_row(s, arena, at, chunks, lane, shared, x, spread, place, held)


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


@device
def is_open(shared, x, spread, shift):  # type: ignore[no-untyped-def]
    """Say whether one of a chunk's activations is not zero."""
    some = False
    for part in range(1 << (shift - 2)):
        a = four(shared, x + part * spread)
        some = some or a[0] != 0 or a[1] != 0 or a[2] != 0 or a[3] != 0
    return some


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
def bias(s, m, column, layer, i):  # type: ignore[no-untyped-def]
    """Return number i of a layer's vector, 0 for one the model does not have."""
    if s.layout[column] < 0:
        return np.float32(0)
    return number(m.fixed, s.layout[column] + layer * s.layout[LAYER], i, False)


# --- the residual stream and its norms ---


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


# --- attention ---


@device
def rotations(s, m, me, position):  # type: ignore[no-untyped-def]
    """Put a position's cosines and sines into shared memory."""
    if s.rope:
        for j in range(me.tid, s.d_head // 2, s.threads):
            angle = np.float32(position) * m.frequencies[j]
            let(m.shared, s.angles + j, math.cos(angle))
            let(m.shared, s.angles + s.d_head // 2 + j, math.sin(angle))


@device
def project(s, m, me, layer, by, tag, turn):  # type: ignore[no-untyped-def]
    """Hand out this warp's rows of queries, keys and values."""
    i, first = me.number, True
    while i < s.n_qkv:
        following = draw(s, m, me, turn, i, s.n_qkv)
        project_row(s, m, me, layer, by, tag, i, first)
        i, first = drawn(s, following, s.n_qkv), False


@device
def project_row(s, m, me, layer, by, tag, i, held):  # type: ignore[no-untyped-def]
    """Hand out row i of queries, keys and values."""
    at, place = s.layout[W_QKV] + layer * s.layout[LAYER] + i * s.d_chunks, pocket(s, me, s.place_qkv)
    total = row(
        s, m.fixed, at, s.d_chunks, me.lane, m.shared, 0, s.d_spread, s.d_padded, place, held
    )  # fmt: skip
    total = warp_sum(total) * by
    if me.lane == 0:
        put(m.words, i, total + bias(s, m, B_QKV, layer, i), tag)


@device
def as_kept(x, rounded):  # type: ignore[no-untyped-def]
    """Return a number as the kv cache holds it: rounded to bfloat16, halves to even, or as it is."""
    if not rounded or x != x:
        return x
    bits = as_bits(x)
    bits = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return as_float(bits & np.uint32(0xFFFF0000))


@device
def new_position(s, m, me, head, tag):  # type: ignore[no-untyped-def]
    """Put a head's query and new key, both rotated, and its new value into shared memory."""
    half, kv = s.d_head // 2, head // (s.n_heads // s.n_kv_heads)
    for p in range(me.tid, 3 * half // 2, s.threads):
        which, j = p // (half // 2), 2 * (p % (half // 2))
        row = head * s.d_head if which == 0 else s.n_q + (which - 1) * s.n_kv + kv * s.d_head
        near, far = (row + j) >> 1, (row + half + j) >> 1  # what is rotated together, one thread reads
        first, second = take2(m.words, near, True), take2(m.words, far, True)
        u0, u1 = complete(m.words, near, first, tag)
        v0, v1 = complete(m.words, far, second, tag)
        if s.rope and which < 2:
            u0, v0 = rotated(s, m, j, u0, v0)
            u1, v1 = rotated(s, m, j + 1, u1, v1)
        factor = np.float32(1 / math.sqrt(s.d_head)) if which == 0 else np.float32(1)
        at, rounded = s.a + which * s.d_head + j, s.rounded and which > 0
        let(m.shared, at, as_kept(u0 * factor, rounded))
        let(m.shared, at + 1, as_kept(u1 * factor, rounded))
        let(m.shared, at + half, as_kept(v0 * factor, rounded))
        let(m.shared, at + half + 1, as_kept(v1 * factor, rounded))
    cuda.syncthreads()


@device
def rotated(s, m, j, u, v):  # type: ignore[no-untyped-def]
    """Return numbers j and half a head further, turned by the position's angle."""
    cos, sin = get(m.shared, s.angles + j), get(m.shared, s.angles + s.d_head // 2 + j)
    return u * cos - v * sin, v * cos + u * sin


@device
def dot4(q, k):  # type: ignore[no-untyped-def]
    """Return four numbers of a query times four of a key."""
    return q[0] * k[0] + q[1] * k[1] + (q[2] * k[2] + q[3] * k[3])


@device
def fresh(loaded, p, position, new):  # type: ignore[no-untyped-def]
    """Return four numbers of a key or value: as loaded, or, not in the cache yet, the new position's."""
    return new if p == position else loaded


@device
def load_four(s, x, row0, c, p, gap, end, position):  # type: ignore[no-untyped-def]
    """Return chunk c of four keys or values, a gap of positions apart: all on their way at once."""
    i, last = (row0 + p) * s.key_chunks + c, min(end, position) if c < s.key_chunks else 0
    k0 = load4(x, i, p < last)
    k1 = load4(x, i + gap * s.key_chunks, p + gap < last)
    k2 = load4(x, i + 2 * gap * s.key_chunks, p + 2 * gap < last)
    k3 = load4(x, i + 3 * gap * s.key_chunks, p + 3 * gap < last)
    return k0, k1, k2, k3


@device
def load_first(s, x, me, row0, first, end, position):  # type: ignore[no-untyped-def]
    """Return what a thread reads first of keys or values: they need not wait for the new position."""
    sub, gap = me.tid & (s.per_key - 1), s.threads // s.per_key
    return load_four(s, x, row0, sub, first + me.tid // s.per_key, gap, end, position)


@device
def fresh_four(loaded, p, gap, position, new):  # type: ignore[no-untyped-def]
    """Return four keys or values with the new position's among them."""
    k0, k1 = fresh(loaded[0], p, position, new), fresh(loaded[1], p + gap, position, new)
    return k0, k1, fresh(loaded[2], p + 2 * gap, position, new), fresh(loaded[3], p + 3 * gap, position, new)


@device
def keep(s, m, p, first, end, score, me):  # type: ignore[no-untyped-def]
    """Store a position's score and return it; -inf behind the end."""
    if p >= end:
        return np.float32(-np.inf)
    if me.tid & (s.per_key - 1) == 0:
        let(m.shared, s.scores + p - first, score)
    return score


@device
def score(s, m, me, row0, first, end, position, ahead):  # type: ignore[no-untyped-def]
    """Score positions [first, end), neighbouring lanes a key together; return the largest score."""
    sub, gap, top = me.tid & (s.per_key - 1), s.threads // s.per_key, np.float32(-np.inf)
    for p0 in range(first, end, 4 * gap):  # all lanes take all turns: they add up together
        p = p0 + me.tid // s.per_key
        s0, s1, s2, s3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for r in range(s.key_rounds):
            c = sub + r * s.per_key
            if c < s.key_chunks:
                q, new = four(m.shared, s.a + 4 * c), four(m.shared, s.a + s.d_head + 4 * c)
                loaded = ahead
                if r > 0 or p0 > first:
                    loaded = load_four(s, m.keys, row0, c, p, gap, end, position)
                k0, k1, k2, k3 = fresh_four(loaded, p, gap, position, new)
                s0, s1, s2, s3 = s0 + dot4(q, k0), s1 + dot4(q, k1), s2 + dot4(q, k2), s3 + dot4(q, k3)
        s0, s1, s2, s3 = group_sum4(s0, s1, s2, s3, s.per_key)
        s0, s1 = keep(s, m, p, first, end, s0, me), keep(s, m, p + gap, first, end, s1, me)
        s2 = keep(s, m, p + 2 * gap, first, end, s2, me)
        s3 = keep(s, m, p + 3 * gap, first, end, s3, me)
        top = max(max(top, s0, s1), s2, s3)
    top = warp_max(top)
    if me.lane == 0:
        let(m.shared, s.red + me.warp, top)
    cuda.syncthreads()
    for w in range(s.warps):
        top = max(top, get(m.shared, s.red + w))
    return top


@device
def weight(s, m, p, first, end, top):  # type: ignore[no-untyped-def]
    """Return a position's unnormalised weight, 0 behind the end."""
    if p >= end:
        return np.float32(0)
    return math.exp(get(m.shared, s.scores + p - first) - top)


@device
def mix(s, m, me, row0, first, end, position, top, acc, ahead):  # type: ignore[no-untyped-def]
    """Leave each warp's unnormalised mixture of values, and its mass, in its part of shared memory."""
    sub, gap, mass = me.tid & (s.per_key - 1), s.threads // s.per_key, np.float32(0)
    for j in range(4 * s.key_rounds):
        acc[j] = np.float32(0)
    for p0 in range(first, end, 4 * gap):
        p = p0 + me.tid // s.per_key
        e0, e1 = weight(s, m, p, first, end, top), weight(s, m, p + gap, first, end, top)
        e2, e3 = weight(s, m, p + 2 * gap, first, end, top), weight(s, m, p + 3 * gap, first, end, top)
        mass += e0 + e1 + (e2 + e3)
        for r in range(s.key_rounds):
            c = sub + r * s.per_key
            if c < s.key_chunks:
                new = four(m.shared, s.a + 2 * s.d_head + 4 * c)
                loaded = ahead
                if r > 0 or p0 > first:
                    loaded = load_four(s, m.values, row0, c, p, gap, end, position)
                v0, v1, v2, v3 = fresh_four(loaded, p, gap, position, new)
                for j in range(4):
                    acc[4 * r + j] += e0 * v0[j] + e1 * v1[j] + (e2 * v2[j] + e3 * v3[j])
    offset = s.per_key
    while offset < LANES:  # the groups of a warp together
        mass += cuda.shfl_xor_sync(ALL, mass, offset)
        for j in range(4 * s.key_rounds):
            acc[j] += cuda.shfl_xor_sync(ALL, acc[j], offset)
        offset <<= 1
    mine = s.parts + me.warp * (s.d_head + 2)
    if me.lane < s.per_key:
        for r in range(s.key_rounds):
            c = sub + r * s.per_key
            if c < s.key_chunks:
                for j in range(4):
                    let(m.shared, mine + 4 * c + j, acc[4 * r + j])
    if me.lane == 0:
        let(m.shared, mine + s.d_head, mass)
    cuda.syncthreads()


@device
def split_of(s, position):  # type: ignore[no-untyped-def]
    """Return how often the positions up to this one are halved."""
    bits = 0
    while bits < s.split_bits and SPLIT << bits <= position:
        bits += 1
    return bits


@device
def attend(s, m, me, layer, position, tag, acc):  # type: ignore[no-untyped-def]
    """Attend, a head and a share of its positions at a time, and hand out unnormalised mixtures."""
    bits, width, group = split_of(s, position), s.d_head + 2, s.n_heads // s.n_kv_heads
    capacity = m.keys.shape[0] // (s.n_layers * s.n_kv_heads * s.d_head)
    settle()
    for item in range(me.block, s.n_heads << bits, s.blocks):
        head, share = item >> bits, item & ((1 << bits) - 1)
        first, end = share * (position + 1) >> bits, (share + 1) * (position + 1) >> bits
        row0 = np.int64((layer * s.n_kv_heads + head // group) * capacity)
        some_keys = load_first(s, m.keys, me, row0, first, end, position)
        some_values = load_first(s, m.values, me, row0, first, end, position)
        new_position(s, m, me, head, tag)
        if end == position + 1 and head % group == 0:
            for j in range(me.tid, s.d_head, s.threads):
                let(m.keys, (row0 + position) * s.d_head + j, get(m.shared, s.a + s.d_head + j))
                let(m.values, (row0 + position) * s.d_head + j, get(m.shared, s.a + 2 * s.d_head + j))
        top = score(s, m, me, row0, first, end, position, some_keys)
        mix(s, m, me, row0, first, end, position, top, acc, some_values)
        z = s.at_z + (share * s.n_heads + head) * width
        for j in range(me.tid, width, s.threads):  # the mixture, the top, the mass
            total = np.float32(0)
            for w in range(s.warps):
                total += get(m.shared, s.parts + w * width + min(j, s.d_head))
            put(m.words, z + j, top if j == s.d_head else total, tag)
        cuda.syncthreads()


@device
def share_of(s, m, head, j, share, n_split):  # type: ignore[no-untyped-def]
    """Read a share's top and mass, and numbers j and j + 1 of its mixture, if there is such a share."""
    z, there = s.at_z + (share * s.n_heads + head) * (s.d_head + 2), share < n_split
    about, mixture = (z + s.d_head) >> 1, (z + j) >> 1
    return about, mixture, take2(m.words, about, there), take2(m.words, mixture, there)


@device
def add_share(m, read, share, n_split, tag, so_far):  # type: ignore[no-untyped-def]
    """Add a share to what is merged so far: top, mass and two numbers."""
    top, mass, u, v = so_far
    if share >= n_split:
        return so_far
    about, mixture, first, second = read
    its_top, its_mass = complete(m.words, about, first, tag)
    a, b = complete(m.words, mixture, second, tag)
    highest = max(top, its_top)
    old, now = math.exp(top - highest), math.exp(its_top - highest)
    return highest, mass * old + its_mass * now, u * old + a * now, v * old + b * now


@device
def merge(s, m, i, n_split, tag):  # type: ignore[no-untyped-def]
    """Return numbers i and i + 1 of attention's output: softmax over the shares of its head."""
    head, j = i // s.d_head, i % s.d_head
    so_far = np.float32(-np.inf), np.float32(0), np.float32(0), np.float32(0)
    for share in range(0, n_split, 4):  # four on their way at once
        r0 = share_of(s, m, head, j, share, n_split)
        r1 = share_of(s, m, head, j, share + 1, n_split)
        r2 = share_of(s, m, head, j, share + 2, n_split)
        r3 = share_of(s, m, head, j, share + 3, n_split)
        so_far = add_share(m, r0, share, n_split, tag, so_far)
        so_far = add_share(m, r1, share + 1, n_split, tag, so_far)
        so_far = add_share(m, r2, share + 2, n_split, tag, so_far)
        so_far = add_share(m, r3, share + 3, n_split, tag, so_far)
    by = np.float32(1) / so_far[1]
    return so_far[2] * by, so_far[3] * by


@device
def project_out(s, m, me, layer, position, tag, turn, only):  # type: ignore[no-untyped-def]
    """Put attention's output together and hand out this warp's rows of its projection."""
    n_split = 1 << split_of(s, position)
    settle()
    for p in range(me.tid, s.n_q // 2, s.threads):
        u, v = merge(s, m, 2 * p, n_split, tag)
        store2(m.shared, s.z, 2 * p, u, v, s.q_spread, s.x_shift)
    cuda.syncthreads()
    round_if_int8(s, m, me, s.z, s.q_padded)
    await_rows(s, only)
    i, first = me.number, True
    while i < s.d:
        following = draw(s, m, me, turn, i, s.d)
        project_out_row(s, m, me, layer, tag, i, first)
        i, first = drawn(s, following, s.d), False


@device
def project_out_row(s, m, me, layer, tag, i, held):  # type: ignore[no-untyped-def]
    """Hand out row i of attention's projection."""
    at, place = s.layout[W_O] + layer * s.layout[LAYER] + i * s.q_chunks, pocket(s, me, s.place_o)
    total = row(
        s, m.fixed, at, s.q_chunks, me.lane, m.shared, s.z, s.q_spread, s.q_padded, place, held
    )  # fmt: skip
    total = warp_sum(total)
    if me.lane == 0:
        put(m.words, s.at_o + i, total, tag)


# --- the FFN ---


@device
def activate(x, code):  # type: ignore[no-untyped-def]
    """Return the activation of x; NaN stays NaN."""
    if code == RELU:
        return np.float32(0) if x <= np.float32(0) else x
    if code == SILU:
        return x / (np.float32(1) + math.exp(-x))
    # tanh-GELU is x times the logistic function of twice its inner polynomial
    inner = np.float32(1.5957691216057308) * (x + np.float32(0.044715) * x * x * x)
    return x / (np.float32(1) + math.exp(-inner))


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


# --- choosing the token ---


@device
def scramble(x):  # type: ignore[no-untyped-def]  # uint32 -> uint32
    """Scramble 32 bits: the finaliser of MurmurHash3."""
    x = np.uint32(x ^ (x >> np.uint32(16)))
    x = np.uint32((np.uint64(x) * np.uint64(0x85EBCA6B)) & np.uint64(ALL))
    x = np.uint32(x ^ (x >> np.uint32(13)))
    x = np.uint32((np.uint64(x) * np.uint64(0xC2B2AE35)) & np.uint64(ALL))
    return np.uint32(x ^ (x >> np.uint32(16)))


@device
def gumbel(seed, position, i):  # type: ignore[no-untyped-def]
    """Return Gumbel noise: where logits plus this are largest is a draw from their softmax."""
    bits = scramble(scramble(scramble(np.uint32(seed)) ^ np.uint32(position)) ^ np.uint32(i))
    u = (np.float32(bits >> np.uint32(8)) + np.float32(0.5)) * np.float32(2.0**-24)
    return np.float32(-math.log(-math.log(u)))


@device
def best_row(s, m, me, by, position, temperature, seed):  # type: ignore[no-untyped-def]
    """Write this warp's logits; return the best of them and its token."""
    best, at_best = np.float32(-np.inf), np.int32(0)
    for i in range(me.number, s.n_vocab, 2 * s.stride):  # two rows on their way at once
        other = min(i + s.stride, s.n_vocab - 1)
        at, at_other = s.layout[HEAD] + i * s.d_chunks, s.layout[HEAD] + other * s.d_chunks
        a = row(s, m.fixed, at, s.d_chunks, me.lane, m.shared, 0, s.d_spread, s.d_padded, 0, False)
        b = row(s, m.fixed, at_other, s.d_chunks, me.lane, m.shared, 0, s.d_spread, s.d_padded, 0, False)
        a, b = group_sum2(a, b, LANES)
        a, b = a * by, b * by
        if me.lane == 0:
            let(m.logits, i, a)
            let(m.logits, other, b)
            if temperature > 0:
                a = a / temperature + gumbel(seed, position, i)
                b = b / temperature + gumbel(seed, position, other)
            if a > best:
                best, at_best = a, np.int32(i)
            if b > best:
                best, at_best = b, np.int32(other)
    return best, at_best


@device
def offer(s, m, me, best, at_best, tag):  # type: ignore[no-untyped-def]
    """Hand out this block's best token."""
    if me.lane == 0:
        let(m.shared, s.best + 2 * me.warp, best)
        let(m.shared, s.best + 2 * me.warp + 1, np.float32(at_best))
    cuda.syncthreads()
    if me.tid == 0:
        for w in range(1, s.warps):
            other = get(m.shared, s.best + 2 * w)
            at_other = np.int32(get(m.shared, s.best + 2 * w + 1))
            if other > best or (other == best and at_other < at_best):
                best, at_best = other, at_other
        put(m.words, s.at_best + 2 * me.block, best, tag)
        put(m.words, s.at_best + 2 * me.block + 1, np.float32(at_best), tag)


@device
def choose(s, m, me, tag):  # type: ignore[no-untyped-def]
    """Return the grid's best token; of equal ones the first, as numpy.argmax does."""
    settle()
    if me.warp == 0:
        best, at_best = np.float32(-np.inf), np.int32(0)
        for g in range(me.lane, s.blocks, LANES):
            other, row = take(m.words, (s.at_best >> 1) + g, tag)
            at_other = np.int32(row)
            if other > best or (other == best and at_other < at_best):
                best, at_best = other, at_other
        best, at_best = warp_best(best, at_best)
        if me.lane == 0:
            let(m.shared, s.best + 2 * s.warps, np.float32(at_best))
    cuda.syncthreads()
    return np.int32(get(m.shared, s.best + 2 * s.warps))


# --- kernels ---


@device
def who(s, tid, block):  # type: ignore[no-untyped-def]
    """Return which thread this is."""
    warp = tid // LANES
    return Me(tid, warp, tid & (LANES - 1), block, warp * s.blocks + block)


# fixed, dense, core, ffn_plan, thresholds, frequencies, keys, values, words, chain, logits, tokens, n_used,
# turns
ARRAYS = (
    "uint32[::1], uint32[::1], uint32[::1], int64[::1], float32[::1], float32[::1], float32[::1],"
    "float32[::1], uint32[::1], int32[::1], float32[::1], int32[::1], int64[::1], int32[::1]"
)


@device
def send_first(s, m, me):  # type: ignore[no-untyped-def]
    """Send the rows that a launch begins with."""
    f, threshold = ffn_of(m, 0), get(m.thresholds, 0)
    send_qkv(s, m, me, 0)
    send_o(s, m, me, 0)
    send_neuron(s, m, me, f, threshold)
    send_out(s, m, me, f, threshold)


@device
def one_token(s, m, me, x, w, b, acc, token, position, tag, odd, temperature, seed):  # type: ignore[no-untyped-def]
    """Read a token at a position and return the one chosen after it; odd is 1 at every other token."""
    embed(s, m, me, token, position, x)
    rotations(s, m, me, position)
    for layer in range(s.n_layers):
        before, tag, threshold = tag, np.uint32(tag + 1), get(m.thresholds, layer)
        then = layer + 1 if layer + 1 < s.n_layers else 0  # the next token begins anew
        f, turn = ffn_of(m, layer), N_TURNS * (odd * s.n_layers + layer)
        forget_turns(s, m, me, N_TURNS * ((1 - odd) * s.n_layers + layer))
        if s.prefetched and not s.sends and then > 0:
            prefetch_layer(s, m, me, then, ffn_of(m, then))
        load_norm(s, m, me, LN1_W, LN1_B, layer, w, b)
        if layer > 0:
            add(s, m, me, s.at_out, B_OUT, layer - 1, before, x)
        by = norm(s, m, me, x, w, b)
        await_rows(s, False)
        project(s, m, me, layer, by, tag, turn)
        send_qkv(s, m, me, then)
        attend(s, m, me, layer, position, tag, acc)
        project_out(s, m, me, layer, position, tag, turn + 1, False)
        send_o(s, m, me, then)
        load_norm(s, m, me, LN2_W, LN2_B, layer, w, b)
        add(s, m, me, s.at_o, B_O, layer, tag, x)
        by = norm(s, m, me, x, w, b)
        await_rows(s, False)
        activations(s, m, me, f, threshold, by, tag, turn + 2)
        send_neuron(s, m, me, ffn_of(m, then), get(m.thresholds, then))
        outputs(s, m, me, layer, f, threshold, tag, turn + 3, False)
        send_out(s, m, me, ffn_of(m, then), get(m.thresholds, then))
    load_norm(s, m, me, LN_F_W, LN_F_B, 0, w, b)
    add(s, m, me, s.at_out, B_OUT, s.n_layers - 1, tag, x)
    by = norm(s, m, me, x, w, b)
    best, at_best = best_row(s, m, me, by, position, temperature, seed)
    cuda.threadfence()  # keys and values, and turns forgotten, are seen by whoever sees the words below
    offer(s, m, me, best, at_best, tag)
    return choose(s, m, me, tag)


@cache
def make_step(shape: Shape) -> Any:
    """Return the decode kernel of a shape, compiled; the decoder calls it.

    Numba keeps the machine code on disk: the key is made of this file, of what ``step`` closes over (the
    sizes), of the GPU's compute capability and of the versions of numba-cuda and CUDA.
    """
    s, n_x, n_acc = Sizes.of(shape), 2 * Sizes.of(shape).rounds, 4 * Sizes.of(shape).key_rounds

    def step(  # type: ignore[no-untyped-def]
        fixed, dense, core, ffn_plan, thresholds, frequencies, keys, values, words, chain, logits, tokens,
        n_used, turns, n, position, epoch, temperature, seed
    ):  # fmt: skip
        cuda.cg.this_grid()  # all blocks must be resident at once: the launch refuses anything else
        shared = cuda.shared.array(0, float32)
        m = Memory(
            fixed, dense, core, ffn_plan, thresholds, frequencies, keys, values, words, chain, logits, tokens,
            n_used, turns, shared
        )  # fmt: skip
        me = who(s, cuda.threadIdx.x, cuda.blockIdx.x)
        x, w = cuda.local.array(n_x, float32), cuda.local.array(n_x, float32)
        b, acc = cuda.local.array(n_x, float32), cuda.local.array(n_acc, float32)
        clear(shared, 0, s.d, s.d_padded, s.d_spread, s.x_shift, me, s.threads)
        clear(shared, s.z, s.n_q, s.q_padded, s.q_spread, s.x_shift, me, s.threads)
        send_first(s, m, me)
        token = chain[0]
        for i in range(n):
            tag = np.uint32((epoch + i) * s.n_layers)  # a layer's is one more than that of the layer before
            odd = (epoch + i) & 1
            token = one_token(s, m, me, x, w, b, acc, token, position + i, tag, odd, temperature, seed)
            if me.block == 0 and me.tid == 0:
                tokens[i] = token
        await_rows(s, True)  # which nobody reads
        if me.block == 0 and me.tid == 0:
            chain[0] = token

    return compiled(step, f"void({ARRAYS}, int64, int64, int64, float32, int64)", shape)


def compiled(kernel: Any, signature: str, shape: Shape) -> Any:
    """Return a kernel for these types of arguments, from disk or compiled now and kept there."""
    options: dict[str, Any] = {} if SIMULATED else {"max_registers": registers_for(shape.n_threads)}
    return cuda.jit(signature, cache=True, **options)(kernel)


def registers_for(n_threads: int) -> int:
    """Return the most registers of a thread with which a block of so many fits a multiprocessor.

    Its 65,536 belong to four schedulers, each with warps of its own.
    """
    warps_each = -(-n_threads // (4 * 32))
    return min(65536 // (4 * 32 * warps_each) // 8 * 8, 255)


# --- a launch a phase ---

# The same phases, for a captured graph: one begins when the one before has ended, so nobody waits for a word.
# The residual stream, which a block of the one kernel keeps in registers, goes through memory; so does what
# differs from token to token (position, epoch, token, seed), because a captured launch has fixed arguments.

# what is launched for every layer, and behind the last; BEGIN says where the tokens after it begin
PROJECT, ATTEND, PROJECT_OUT, NEURONS, OUTPUTS, BEST, CHOOSE, BEGIN = range(8)
LAYER_PHASES = (PROJECT, ATTEND, PROJECT_OUT, NEURONS, OUTPUTS)
PHASES = ("norm, q k v", "attention", "w_o", "norm, neurons", "w_out", "norm, head", "choose")
POSITION, EPOCH, CHOSEN, SEED = range(4)  # what lies in the state; CHOSEN counts tokens since BEGIN


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


@device
def begin_tokens(state, heat, position, epoch, seed, temperature):  # type: ignore[no-untyped-def]
    """Write what the launches after this one read."""
    state[POSITION], state[EPOCH], state[CHOSEN], state[SEED] = position, epoch, 0, seed
    heat[0] = temperature


@device
def finish_token(s, m, me, state, tag):  # type: ignore[no-untyped-def]
    """Choose the token, hand it to host and next step, and go one position on."""
    token = choose(s, m, me, tag)
    if me.tid == 0:
        m.tokens[state[CHOSEN]] = token
        m.chain[0] = token
        state[POSITION] += 1
        state[EPOCH] += 1
        state[CHOSEN] += 1


@cache
def make_phase(shape: Shape) -> Any:
    """Return the kernel that runs one phase of one layer, kept on disk like that for all of them."""
    s, n_x, n_acc = Sizes.of(shape), 2 * Sizes.of(shape).rounds, 4 * Sizes.of(shape).key_rounds

    def phase(  # type: ignore[no-untyped-def]
        fixed, dense, core, ffn_plan, thresholds, frequencies, keys, values, words, chain, logits, tokens,
        n_used, turns, stream, state, heat, which, layer, position, epoch, temperature, seed
    ):  # fmt: skip
        shared = cuda.shared.array(0, float32)
        m = Memory(
            fixed, dense, core, ffn_plan, thresholds, frequencies, keys, values, words, chain, logits, tokens,
            n_used, turns, shared
        )  # fmt: skip
        me = who(s, cuda.threadIdx.x, cuda.blockIdx.x)
        x, w = cuda.local.array(n_x, float32), cuda.local.array(n_x, float32)
        b, acc = cuda.local.array(n_x, float32), cuda.local.array(n_acc, float32)
        clear(shared, 0, s.d, s.d_padded, s.d_spread, s.x_shift, me, s.threads)
        clear(shared, s.z, s.n_q, s.q_padded, s.q_spread, s.x_shift, me, s.threads)
        at, tag = state[POSITION], np.uint32(state[EPOCH] * s.n_layers + layer + 1)
        if which == PROJECT:
            forget_turns(s, m, me, N_TURNS * ((1 - (state[EPOCH] & 1)) * s.n_layers + layer))
            send_qkv(s, m, me, layer)
            if s.prefetched and layer + 1 < s.n_layers:
                prefetch_layer(s, m, me, layer + 1, ffn_of(m, layer + 1))
            load_norm(s, m, me, LN1_W, LN1_B, layer, w, b)
            if layer == 0:
                embed(s, m, me, chain[0], at, x)
            else:
                load_stream(s, me, x, stream, 0)
                add(s, m, me, s.at_out, B_OUT, layer - 1, np.uint32(tag - 1), x)
            store_stream(s, me, x, stream, 1)
            by = norm(s, m, me, x, w, b)
            await_rows(s, True)
            project(s, m, me, layer, by, tag, -1)
        elif which == ATTEND:
            rotations(s, m, me, at)
            attend(s, m, me, layer, at, tag, acc)
        elif which == PROJECT_OUT:
            send_o(s, m, me, layer)
            project_out(s, m, me, layer, at, tag, -1, True)
        elif which == NEURONS:
            f, threshold = ffn_of(m, layer), get(thresholds, layer)
            send_neuron(s, m, me, f, threshold)
            load_norm(s, m, me, LN2_W, LN2_B, layer, w, b)
            load_stream(s, me, x, stream, 1)
            add(s, m, me, s.at_o, B_O, layer, tag, x)
            store_stream(s, me, x, stream, 0)
            by = norm(s, m, me, x, w, b)
            await_rows(s, True)
            activations(s, m, me, f, threshold, by, tag, -1)
        elif which == OUTPUTS:
            f, threshold = ffn_of(m, layer), get(thresholds, layer)
            send_out(s, m, me, f, threshold)
            outputs(s, m, me, layer, f, threshold, tag, -1, True)
        elif which == BEST:
            load_norm(s, m, me, LN_F_W, LN_F_B, 0, w, b)
            load_stream(s, me, x, stream, 0)
            add(s, m, me, s.at_out, B_OUT, layer, tag, x)
            best, at_best = best_row(s, m, me, norm(s, m, me, x, w, b), at, heat[0], state[SEED])
            offer(s, m, me, best, at_best, tag)
        elif which == CHOOSE:
            finish_token(s, m, me, state, tag)
        elif me.tid == 0:
            begin_tokens(state, heat, position, epoch, seed, temperature)

    scalars = "float32[::1], int64[::1], float32[::1], int64, int64, int64, int64, float32, int64"
    return compiled(phase, f"void({ARRAYS}, {scalars})", shape)


# --- core sets ---


@device
def piece(arena, at, i, parts):  # type: ignore[no-untyped-def]
    """Return the bits of number i of a row, 1 << parts of them in a word."""
    size = 32 >> parts
    word = np.uint64(arena[4 * at + (i >> parts)]) >> np.uint64(size * (i & ((1 << parts) - 1)))
    return word & ((np.uint64(1) << np.uint64(size)) - np.uint64(1))


@device
def gather_columns(dense, core, ids, source, target, wide, narrow, n_rows, parts):  # type: ignore[no-untyped-def]
    """Copy some columns of n_rows rows, which take ``wide`` chunks there and ``narrow`` ones here."""
    width = 4 * narrow
    for i in range(cuda.grid(1), n_rows * width, cuda.gridsize(1)):
        k, bits = i % width, np.uint64(0)
        for j in range(1 << parts):
            column = (k << parts) + j
            if column < ids.shape[0]:
                there = piece(dense, source + i // width * wide, ids[column], parts)
                bits |= there << np.uint64((32 >> parts) * j)
        core[4 * target + i] = np.uint32(bits)


@cuda.jit(cache=True)
def compact(dense, core, ids, source, target, d, d_chunks, parts):  # type: ignore[no-untyped-def]
    """Copy the chosen neurons' rows of a layer from one arena to another, as their plans' rows say.

    ``parts`` says how many numbers are in a word, 1 << parts.
    """
    first, stride, n = cuda.grid(1), cuda.gridsize(1), ids.shape[0]
    for column in (W_IN, W_GATE):
        if source[column] >= 0:
            for i in range(first, n * d_chunks, stride):
                a = 4 * (source[column] + ids[i // d_chunks] * d_chunks + i % d_chunks)
                b = 4 * (target[column] + i)
                for k in range(4):
                    core[b + k] = dense[a + k]
    for column in (B_IN, B_GATE):
        if source[column] >= 0:
            for i in range(first, n, stride):
                core[4 * target[column] + i] = dense[4 * source[column] + ids[i]]
    wide, narrow = source[N_CHUNKS], target[N_CHUNKS]
    gather_columns(dense, core, ids, source[W_OUT], target[W_OUT], wide, narrow, d, parts)
    if parts == 2:  # int8's scales, which are float16
        source_at, target_at, groups = source[W_OUT] + d * wide, target[W_OUT] + d * narrow, -(-d // GROUP)
        gather_columns(dense, core, ids, source_at, target_at, 2 * wide, 2 * narrow, groups, 1)
