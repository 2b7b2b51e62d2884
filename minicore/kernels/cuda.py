"""Tokens on a GPU: the whole decode step, token after token, as one launch.

The grid is one block a multiprocessor, all resident at once. Work is cut into rows, a warp each, and a layer
into five phases:

    norm, rows of q k v | attend over my positions | rows of w_o | norm, my neurons | rows of w_out

Every block keeps the whole residual stream, so adding and norms are done in each. Between phases blocks
exchange tagged words (:mod:`minicore.kernels.device`). A word is written again a layer later, with another
tag. By then everybody has read it: who writes has itself read what all blocks wrote after they read it.

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

from minicore.kernels.device import (
    ALL,
    LANES,
    SIMULATED,
    as_float,
    complete,
    device,
    four,
    get,
    group_sum,
    let,
    load4,
    load16,
    prefetch,
    put,
    rsqrt,
    settle,
    take,
    take2,
    warp_best,
    warp_max,
    warp_sum,
)
from minicore.kernels.step import RELU, SILU

# where things lie in their arenas, in 16-byte units, -1 for what a model does not have: in the first layer
LN1_W, LN1_B, W_QKV, B_QKV, W_O, B_O, LN2_W, LN2_B, B_OUT = range(9)
# and behind the last one; LAYER is the way from a layer to the next
EMBED, POS_EMBED, LN_F_W, LN_F_B, HEAD, LAYER = range(9, 15)
N_LAYOUT = 15
W_IN, B_IN, W_GATE, B_GATE, W_OUT, N_ROWS, N_CHUNKS, COMPACT = range(8)  # N_CHUNKS of a row of w_out
N_FFN = 8
AHEAD_BYTES = 12 << 20  # layers up to this size are brought to the L2 cache one layer ahead
MAX_SPLIT_BITS = 3  # a head's positions are cut into 8 shares at most
SPLIT = 128  # and none of fewer positions than half of this


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

    @property
    def per_chunk(self) -> int:
        """Numbers in 16 bytes of weights."""
        return 8 if self.bfloat16 else 4

    def chunks(self, n: int) -> int:
        """Return how many 16-byte chunks a row of n numbers takes."""
        return -(-n // self.per_chunk)

    def spread(self, chunks: int) -> int:
        """Return the floats from the first halves of chunks in shared memory to their second halves."""
        return 4 * LANES * -(-chunks // LANES)

    def floats(self, n: int) -> int:
        """Return the floats that a vector takes in shared memory."""
        return self.spread(self.chunks(n)) * self.per_chunk // 4

    def split_bits(self) -> int:
        """Return the most halvings of a head's positions, for blocks to share them."""
        return min(MAX_SPLIT_BITS, max(1, self.n_blocks // self.n_heads).bit_length() - 1)

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
        a = max(self.floats(self.n_neurons), attention)
        return [0, *accumulate(-(-n // 4) * 4 for n in (x, x, 2 * warps, 2 * warps + 1, self.d_head, a))]


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
    a: int  # activations, or what attention needs
    parts: int
    scores: int
    per_key: int  # lanes that read a key together
    key_chunks: int
    key_rounds: int
    ahead: bool
    layout: tuple[int, ...]

    @classmethod
    def of(cls, s: Shape) -> Sizes:
        """Return the sizes that follow from a shape."""
        n_q, n_kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
        warps, key_chunks = s.n_threads // LANES, s.d_head // 4
        per_key = min(LANES, 1 << (key_chunks - 1).bit_length())
        d_chunks, q_chunks = s.chunks(s.d_model), s.chunks(n_q)
        parts = s.shared_floats()[-2] + 3 * s.d_head
        rows = n_q + 2 * n_kv + (3 if s.gated else 2) * s.n_neurons
        ahead = 16 * (d_chunks * rows + s.d_model * q_chunks) <= AHEAD_BYTES
        values: tuple[Any, ...] = (
            *(s.n_layers, s.d_model, s.n_heads, s.n_kv_heads, s.d_head, n_q, n_kv, s.n_vocab),
            *(s.position_offset, s.layer_norm, s.eps, s.activation, s.gated, s.rope, s.bfloat16),
            *(s.n_blocks, s.n_threads, warps, warps * s.n_blocks, -(-s.d_model // (2 * s.n_threads))),
            *(d_chunks, q_chunks, s.spread(d_chunks), s.spread(q_chunks), s.split_bits(), *s.words()[1:]),
            *(*s.shared_floats()[1:-1], parts, parts + warps * (s.d_head + 2)),
            *(per_key, key_chunks, -(-key_chunks // per_key), ahead, s.layout),
        )
        return cls(*values)


class Memory(NamedTuple):
    """Device arrays of a launch; :class:`minicore.decode.cuda.CudaDecoder` makes them."""

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
def low(bits):  # type: ignore[no-untyped-def]
    """Return the first of two bfloat16: it is the upper half of a float32."""
    return as_float(bits << np.uint32(16))


@device
def high(bits):  # type: ignore[no-untyped-def]
    """Return the second of two bfloat16."""
    return as_float(bits & np.uint32(0xFFFF0000))


@device
def place(i, spread, bf):  # type: ignore[no-untyped-def]
    """Return where number i of a vector lies: first halves of chunks of eight, then their second halves."""
    if bf:
        return ((i >> 2) & 1) * spread + ((i >> 3) << 2) + (i & 3)
    return i


@device
def store2(shared, x, i, u, v, spread, bf):  # type: ignore[no-untyped-def]
    """Write numbers i and i + 1 of the vector at float x of shared memory."""
    at = x + place(i, spread, bf)
    let(shared, at, u)
    let(shared, at + 1, v)


@device
def clear(shared, x, n, chunks, spread, bf, me, threads):  # type: ignore[no-untyped-def]
    """Zero what lanes read of a vector in shared memory behind its n numbers."""
    per_chunk = 8 if bf else 4
    for i in range(n + me.tid, (chunks + LANES - 1) // LANES * LANES * per_chunk, threads):
        let(shared, x + place(i, spread, bf), np.float32(0))


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
def two_times(arena, at, c, shared, x, spread, bf):  # type: ignore[no-untyped-def]
    """Return two chunks of a row, a warp apart, times the vector at x."""
    w0, w1 = load16(arena, at + c, True), load16(arena, at + c + LANES, True)
    total = times(w0, shared, x + 4 * c, spread, bf)
    return total + times(w1, shared, x + 4 * (c + LANES), spread, bf)


@device
def four_times(arena, at, c, shared, x, spread, bf):  # type: ignore[no-untyped-def]
    """Return four chunks of a row, a warp apart, times the vector at x: four loads on their way at once."""
    total = two_times(arena, at, c, shared, x, spread, bf)
    return total + two_times(arena, at, c + 2 * LANES, shared, x, spread, bf)


@device
def row_times(arena, at, chunks, lane, shared, x, spread, bf):  # type: ignore[no-untyped-def]
    """Return a lane's part of the row at a 16-byte unit, times the vector at float x of shared memory."""
    total, k = np.float32(0), 0
    while k + 8 * LANES <= chunks:
        total += four_times(arena, at, k + lane, shared, x, spread, bf)
        total += four_times(arena, at, k + 4 * LANES + lane, shared, x, spread, bf)
        k += 8 * LANES
    if k + 4 * LANES <= chunks:
        total += four_times(arena, at, k + lane, shared, x, spread, bf)
        k += 4 * LANES
    if k + 2 * LANES <= chunks:
        total += two_times(arena, at, k + lane, shared, x, spread, bf)
        k += 2 * LANES
    while k < chunks:
        w = load16(arena, at + k + lane, k + lane < chunks)
        total += times(w, shared, x + 4 * (k + lane), spread, bf)
        k += LANES
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
            x[2 * k], x[2 * k + 1] = number(m.fixed, row, i, s.bf), number(m.fixed, row, i + 1, s.bf)
            if s.layout[POS_EMBED] >= 0:
                at = s.layout[POS_EMBED] + np.int64(position + s.offset) * s.d_chunks
                x[2 * k] += number(m.fixed, at, i, s.bf)
                x[2 * k + 1] += number(m.fixed, at, i + 1, s.bf)


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
    for k in range(s.rounds):
        p = me.tid + k * s.threads
        if 2 * p < s.d:
            u, v = take(m.words, (at >> 1) + p, tag)
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
                store2(m.shared, 0, i, u * w[2 * k], v * w[2 * k + 1], s.d_spread, s.bf)
    square = block_sum(s, m, me, square, s.red + s.warps)
    scale = rsqrt(square * np.float32(1 / s.d) + np.float32(s.eps))
    if not s.layer_norm:
        return scale
    for k in range(s.rounds):
        i = 2 * (me.tid + k * s.threads)
        if i < s.d:
            u = (x[2 * k] - mean) * scale * w[2 * k] + b[2 * k]
            v = (x[2 * k + 1] - mean) * scale * w[2 * k + 1] + b[2 * k + 1]
            store2(m.shared, 0, i, u, v, s.d_spread, s.bf)
    cuda.syncthreads()
    return np.float32(1)


# --- attention ---


@device
def project(s, m, me, layer, by, tag):  # type: ignore[no-untyped-def]
    """Hand out this warp's rows of queries, keys and values."""
    at = s.layout[W_QKV] + layer * s.layout[LAYER]
    for row in range(me.number, s.n_q + 2 * s.n_kv, s.stride):
        total = row_times(m.fixed, at + row * s.d_chunks, s.d_chunks, me.lane, m.shared, 0, s.d_spread, s.bf)
        total = warp_sum(total) * by
        if me.lane == 0:
            put(m.words, row, total + bias(s, m, B_QKV, layer, row), tag)


@device
def new_position(s, m, me, head, tag):  # type: ignore[no-untyped-def]
    """Put a head's query and new key, both rotated, and its new value into shared memory."""
    half, kv = s.d_head // 2, head // (s.n_heads // s.n_kv_heads)
    for p in range(me.tid, 3 * half, s.threads):
        which, j = p // half, p % half
        row = head * s.d_head if which == 0 else s.n_q + (which - 1) * s.n_kv + kv * s.d_head
        u, v = take(m.words, (row >> 1) + j, tag)
        let(m.shared, s.a + 2 * p, u)
        let(m.shared, s.a + 2 * p + 1, v)
    cuda.syncthreads()
    for t in range(me.tid, 2 * half, s.threads):
        j, at = t % half, s.a + t // half * s.d_head
        u, v = get(m.shared, at + j), get(m.shared, at + half + j)
        if s.rope:
            cos, sin = get(m.shared, s.angles + j), get(m.shared, s.angles + half + j)
            u, v = u * cos - v * sin, v * cos + u * sin
        factor = np.float32(1 / math.sqrt(s.d_head)) if t < half else np.float32(1)
        let(m.shared, at + j, u * factor)
        let(m.shared, at + half + j, v * factor)
    cuda.syncthreads()


@device
def dot4(q, k):  # type: ignore[no-untyped-def]
    """Return four numbers of a query times four of a key."""
    return q[0] * k[0] + q[1] * k[1] + (q[2] * k[2] + q[3] * k[3])


@device
def fresh(loaded, p, position, new):  # type: ignore[no-untyped-def]
    """Return four numbers of a key or value: as loaded, or, not in the cache yet, the new position's."""
    return new if p == position else loaded


@device
def load_four(s, x, row0, c, p, gap, end, position, new):  # type: ignore[no-untyped-def]
    """Return chunk c of four keys or values, a gap of positions apart: all on their way at once."""
    i, last = (row0 + p) * s.key_chunks + c, min(end, position) if c < s.key_chunks else 0
    k0 = load4(x, i, p < last)
    k1 = load4(x, i + gap * s.key_chunks, p + gap < last)
    k2 = load4(x, i + 2 * gap * s.key_chunks, p + 2 * gap < last)
    k3 = load4(x, i + 3 * gap * s.key_chunks, p + 3 * gap < last)
    k0, k1 = fresh(k0, p, position, new), fresh(k1, p + gap, position, new)
    return k0, k1, fresh(k2, p + 2 * gap, position, new), fresh(k3, p + 3 * gap, position, new)


@device
def keep(s, m, p, first, end, score, me):  # type: ignore[no-untyped-def]
    """Store a position's score, of which each lane has a part, and return it; -inf behind the end."""
    score = group_sum(score, s.per_key)
    if p >= end:
        return np.float32(-np.inf)
    if me.tid & (s.per_key - 1) == 0:
        let(m.shared, s.scores + p - first, score)
    return score


@device
def score(s, m, me, row0, first, end, position):  # type: ignore[no-untyped-def]
    """Score positions [first, end), neighbouring lanes a key together; return the largest score."""
    sub, gap, top = me.tid & (s.per_key - 1), s.threads // s.per_key, np.float32(-np.inf)
    for p0 in range(first, end, 4 * gap):  # all lanes take all turns: they add up together
        p = p0 + me.tid // s.per_key
        s0, s1, s2, s3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for r in range(s.key_rounds):
            c = sub + r * s.per_key
            if c < s.key_chunks:
                q, new = four(m.shared, s.a + 4 * c), four(m.shared, s.a + s.d_head + 4 * c)
                k0, k1, k2, k3 = load_four(s, m.keys, row0, c, p, gap, end, position, new)
                s0, s1, s2, s3 = s0 + dot4(q, k0), s1 + dot4(q, k1), s2 + dot4(q, k2), s3 + dot4(q, k3)
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
def mix(s, m, me, row0, first, end, position, top, acc):  # type: ignore[no-untyped-def]
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
                v0, v1, v2, v3 = load_four(s, m.values, row0, c, p, gap, end, position, new)
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
        new_position(s, m, me, head, tag)
        if end == position + 1 and head % group == 0:
            for j in range(me.tid, s.d_head, s.threads):
                let(m.keys, (row0 + position) * s.d_head + j, get(m.shared, s.a + s.d_head + j))
                let(m.values, (row0 + position) * s.d_head + j, get(m.shared, s.a + 2 * s.d_head + j))
        top = score(s, m, me, row0, first, end, position)
        mix(s, m, me, row0, first, end, position, top, acc)
        z = s.at_z + (share * s.n_heads + head) * width
        for j in range(me.tid, width, s.threads):  # the mixture, the top, the mass
            total = np.float32(0)
            for w in range(s.warps):
                total += get(m.shared, s.parts + w * width + min(j, s.d_head))
            put(m.words, z + j, top if j == s.d_head else total, tag)
        cuda.syncthreads()


@device
def share_of(s, m, head, j, share, n_split):  # type: ignore[no-untyped-def]
    """Read a share's top and mass, and numbers j and j + 1 of its mixture; of the last share behind it."""
    z = s.at_z + (min(share, n_split - 1) * s.n_heads + head) * (s.d_head + 2)
    about, mixture = (z + s.d_head) >> 1, (z + j) >> 1
    return about, mixture, take2(m.words, about), take2(m.words, mixture)


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
def project_out(s, m, me, layer, position, tag):  # type: ignore[no-untyped-def]
    """Put attention's output together and hand out this warp's rows of its projection."""
    n_split, at = 1 << split_of(s, position), s.layout[W_O] + layer * s.layout[LAYER]
    settle()
    for p in range(me.tid, s.n_q // 2, s.threads):
        u, v = merge(s, m, 2 * p, n_split, tag)
        store2(m.shared, s.z, 2 * p, u, v, s.q_spread, s.bf)
    cuda.syncthreads()
    for row in range(me.number, s.d, s.stride):
        total = row_times(
            m.fixed, at + row * s.q_chunks, s.q_chunks, me.lane, m.shared, s.z, s.q_spread, s.bf
        )
        total = warp_sum(total)
        if me.lane == 0:
            put(m.words, s.at_o + row, total, tag)


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
def neuron(s, m, me, ffn, f, row, by, threshold):  # type: ignore[no-untyped-def]
    """Return a neuron's activation, 0 if its gate is not larger in magnitude than the threshold."""
    w, b = (f[W_GATE], f[B_GATE]) if s.gated else (f[W_IN], f[B_IN])
    at, up_at, up = w + row * s.d_chunks, f[W_IN] + row * s.d_chunks, np.float32(0)
    part = row_times(ffn, at, s.d_chunks, me.lane, m.shared, 0, s.d_spread, s.bf)
    if s.gated and threshold < 0:  # both rows on their way at once
        up = row_times(ffn, up_at, s.d_chunks, me.lane, m.shared, 0, s.d_spread, s.bf)
    a = warp_sum(part) * by
    if b >= 0:
        a += number(ffn, b, row, False)
    a = activate(a, s.activation)
    if threshold >= 0:
        if abs(a) <= threshold:
            return np.float32(0)
        if s.gated:
            up = row_times(ffn, up_at, s.d_chunks, me.lane, m.shared, 0, s.d_spread, s.bf)
    if s.gated:
        up = warp_sum(up) * by
        if f[B_IN] >= 0:
            up += number(ffn, f[B_IN], row, False)
        a *= up
    return a


@device
def activations(s, m, me, f, threshold, by, tag):  # type: ignore[no-untyped-def]
    """Hand out the activations of this warp's neurons, and a zero that makes their number even."""
    ffn, n = m.core if f[COMPACT] else m.dense, f[N_ROWS]
    for row in range(me.number, n + (n & 1), s.stride):
        a = np.float32(0)
        if row < n:
            a = neuron(s, m, me, ffn, f, row, by, threshold)
        if me.lane == 0:
            put(m.words, s.at_a + row, a, tag)


@device
def keep_activations(s, m, at, p, pairs, read, tag, spread):  # type: ignore[no-untyped-def]
    """Store a pair of activations once it is there; return how many of them are not zero."""
    if p >= pairs:
        return 0
    u, v = complete(m.words, at + p, read, tag)
    store2(m.shared, s.a, 2 * p, u, v, spread, s.bf)
    return (1 if u != 0 else 0) + (1 if v != 0 else 0)


@device
def gather(s, m, me, n, chunks, spread, tag):  # type: ignore[no-untyped-def]
    """Put all activations into shared memory; return how many of this thread's are not zero."""
    at, pairs, count = s.at_a >> 1, (n + 1) // 2, 0
    for p in range(me.tid, pairs, 4 * s.threads):
        p1, p2, p3 = p + s.threads, p + 2 * s.threads, p + 3 * s.threads
        r0, r1 = take2(m.words, at + p), take2(m.words, at + min(p1, pairs - 1))
        r2, r3 = take2(m.words, at + min(p2, pairs - 1)), take2(m.words, at + min(p3, pairs - 1))
        count += keep_activations(s, m, at, p, pairs, r0, tag, spread)
        count += keep_activations(s, m, at, p1, pairs, r1, tag, spread)
        count += keep_activations(s, m, at, p2, pairs, r2, tag, spread)
        count += keep_activations(s, m, at, p3, pairs, r3, tag, spread)
    clear(m.shared, s.a, 2 * pairs, chunks, spread, s.bf, me, s.threads)
    return count


@device
def outputs(s, m, me, layer, f, tag):  # type: ignore[no-untyped-def]
    """Gather all activations and hand out this warp's outputs; one block counts those that are not zero."""
    ffn, chunks = m.core if f[COMPACT] else m.dense, f[N_CHUNKS]
    spread = (chunks + LANES - 1) // LANES * LANES * 4
    settle()
    count = gather(s, m, me, f[N_ROWS], chunks, spread, tag)
    cuda.syncthreads()
    for row in range(me.number, s.d, s.stride):
        total = row_times(ffn, f[W_OUT] + row * chunks, chunks, me.lane, m.shared, s.a, spread, s.bf)
        total = warp_sum(total)
        if me.lane == 0:
            put(m.words, s.at_out + row, total, tag)
    if me.block == layer % s.blocks:
        count = warp_sum(count)
        if me.lane == 0:
            cuda.atomic.add(m.n_used, layer, np.int64(count))


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
    for row in range(me.number, s.n_vocab, 2 * s.stride):  # two rows on their way at once
        other = min(row + s.stride, s.n_vocab - 1)
        at, at_other = s.layout[HEAD] + row * s.d_chunks, s.layout[HEAD] + other * s.d_chunks
        a = row_times(m.fixed, at, s.d_chunks, me.lane, m.shared, 0, s.d_spread, s.bf)
        b = row_times(m.fixed, at_other, s.d_chunks, me.lane, m.shared, 0, s.d_spread, s.bf)
        a, b = warp_sum(a) * by, warp_sum(b) * by
        if me.lane == 0:
            let(m.logits, row, a)
            let(m.logits, other, b)
            if temperature > 0:
                a = a / temperature + gumbel(seed, position, row)
                b = b / temperature + gumbel(seed, position, other)
            if a > best:
                best, at_best = a, np.int32(row)
            if b > best:
                best, at_best = b, np.int32(other)
    return best, at_best


@device
def choose(s, m, me, best, at_best, tag):  # type: ignore[no-untyped-def]
    """Return the grid's best token; of equal ones the first, as numpy.argmax does."""
    cuda.threadfence()  # keys and values are seen by whoever sees the words below
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
def one_token(s, m, me, x, w, b, acc, token, position, tag, temperature, seed):  # type: ignore[no-untyped-def]
    """Read a token at a position and return the one chosen after it."""
    embed(s, m, me, token, position, x)
    if s.rope:
        for j in range(me.tid, s.d_head // 2, s.threads):
            angle = np.float32(position) * m.frequencies[j]
            let(m.shared, s.angles + j, math.cos(angle))
            let(m.shared, s.angles + s.d_head // 2 + j, math.sin(angle))
    following = ffn_of(m, 0)
    for layer in range(s.n_layers):
        before, tag, threshold = tag, np.uint32(tag + 1), get(m.thresholds, layer)
        f, following = following, ffn_of(m, min(layer + 1, s.n_layers - 1))
        if s.ahead and layer + 1 < s.n_layers:
            prefetch_layer(s, m, me, layer + 1, following)
        load_norm(s, m, me, LN1_W, LN1_B, layer, w, b)
        if layer > 0:
            add(s, m, me, s.at_out, B_OUT, layer - 1, before, x)
        by = norm(s, m, me, x, w, b)
        project(s, m, me, layer, by, tag)
        attend(s, m, me, layer, position, tag, acc)
        project_out(s, m, me, layer, position, tag)
        load_norm(s, m, me, LN2_W, LN2_B, layer, w, b)
        add(s, m, me, s.at_o, B_O, layer, tag, x)
        by = norm(s, m, me, x, w, b)
        activations(s, m, me, f, threshold, by, tag)
        outputs(s, m, me, layer, f, tag)
    load_norm(s, m, me, LN_F_W, LN_F_B, 0, w, b)
    add(s, m, me, s.at_out, B_OUT, s.n_layers - 1, tag, x)
    by = norm(s, m, me, x, w, b)
    best, at_best = best_row(s, m, me, by, position, temperature, seed)
    return choose(s, m, me, best, at_best, tag)


@cache
def make_step(shape: Shape) -> Any:
    """Return the decode kernel of a shape; :class:`minicore.decode.cuda.CudaDecoder` calls it."""
    s, n_x, n_acc = Sizes.of(shape), 2 * Sizes.of(shape).rounds, 4 * Sizes.of(shape).key_rounds

    def step(  # type: ignore[no-untyped-def]
        fixed, dense, core, ffn_plan, thresholds, frequencies, keys, values, words, chain, logits, tokens,
        n_used, n, position, epoch, temperature, seed
    ):  # fmt: skip
        cuda.cg.this_grid()  # all blocks must be resident at once: the launch refuses anything else
        shared = cuda.shared.array(0, float32)
        m = Memory(
            fixed, dense, core, ffn_plan, thresholds, frequencies, keys, values, words, chain, logits, tokens,
            n_used, shared
        )  # fmt: skip
        tid, block = cuda.threadIdx.x, cuda.blockIdx.x
        warp, lane = tid // LANES, tid & (LANES - 1)
        me = Me(tid, warp, lane, block, warp * s.blocks + block)
        x, w = cuda.local.array(n_x, float32), cuda.local.array(n_x, float32)
        b, acc = cuda.local.array(n_x, float32), cuda.local.array(n_acc, float32)
        clear(shared, 0, s.d, s.d_chunks, s.d_spread, s.bf, me, s.threads)
        clear(shared, s.z, s.n_q, s.q_chunks, s.q_spread, s.bf, me, s.threads)
        token = chain[0]
        for i in range(n):
            tag = np.uint32((epoch + i) * s.n_layers)  # a layer's is one more than that of the layer before
            token = one_token(s, m, me, x, w, b, acc, token, position + i, tag, temperature, seed)
            if block == 0 and tid == 0:
                tokens[i] = token
        if block == 0 and tid == 0:
            chain[0] = token

    most = 65536 // shape.n_threads // 8 * 8  # registers: one block fills a multiprocessor
    options: dict[str, Any] = {} if SIMULATED else {"max_registers": min(most, 255)}
    return cuda.jit(step, **options)


@device
def half_of(arena, at, i):  # type: ignore[no-untyped-def]
    """Return the bits of bfloat16 i of a row."""
    return (arena[4 * at + (i >> 1)] >> np.uint32(16 * (i & 1))) & np.uint32(0xFFFF)


@cuda.jit
def compact(dense, core, ids, source, target, d, d_chunks, bfloat16):  # type: ignore[no-untyped-def]
    """Copy the chosen neurons' rows of a layer from one arena to another, as their plans' rows say."""
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
    width = 4 * target[N_CHUNKS]
    for i in range(first, d * width, stride):
        row, k = source[W_OUT] + i // width * source[N_CHUNKS], i % width
        bits = np.uint32(0)
        if bfloat16:
            if 2 * k < n:
                bits = np.uint32(half_of(dense, row, ids[2 * k]))
            if 2 * k + 1 < n:
                bits = np.uint32(bits | half_of(dense, row, ids[2 * k + 1]) << np.uint32(16))
        elif k < n:
            bits = dense[4 * row + ids[k]]
        core[4 * target[W_OUT] + i] = bits
