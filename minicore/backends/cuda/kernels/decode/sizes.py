"""A shape as kernels read it, and what they pass around."""

from __future__ import annotations

from typing import Any, NamedTuple

from minicore.backends.cuda.kernels.decode.shape import Shape
from minicore.backends.cuda.kernels.intrinsics import LANES, device
from minicore.backends.cuda.kernels.launch import SOURCE

AHEAD_BYTES = 12 << 20  # layers up to this size are brought to the L2 cache one layer ahead


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


# fixed, dense, core, ffn_plan, thresholds, frequencies, keys, values, words, chain, logits, tokens, n_used,
# turns
ARRAYS = (
    "uint32[::1], uint32[::1], uint32[::1], int64[::1], float32[::1], float32[::1], float32[::1],"
    "float32[::1], uint32[::1], int32[::1], float32[::1], int32[::1], int64[::1], int32[::1]"
)


class Me(NamedTuple):
    """Which thread this is: in its block; its warp, its lane, its block; its warp in the grid."""

    tid: int
    warp: int
    lane: int
    block: int
    number: int


@device
def who(s, tid, block):  # type: ignore[no-untyped-def]
    """Return which thread this is."""
    warp = tid // LANES
    return Me(tid, warp, tid & (LANES - 1), block, warp * s.blocks + block)
