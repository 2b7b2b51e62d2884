"""What decode kernels pass around: sizes as constants, device arrays, the calling thread."""

from __future__ import annotations

from collections import namedtuple
from typing import Any, NamedTuple

from minicore.backends.cuda.kernels.decode.shape import Shape, Shared, Staged, Words
from minicore.backends.cuda.kernels.decode.vectors import Vector
from minicore.backends.cuda.kernels.intrinsics import WARP_SIZE, device
from minicore.backends.cuda.kernels.launch import CHECKSUM

PREFETCH_BYTES = 12 << 20  # layers up to this size are prefetched into the L2 cache


class Sizes(NamedTuple):
    """A shape as kernels read it. Every field is a constant of the machine code, so that loops unroll."""

    # the model
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    n_q: int
    n_kv: int
    n_qkv: int
    n_neurons: int
    n_vocab: int
    position_offset: int
    layer_norm: bool
    eps: float
    activation: int
    gated: bool
    rope: bool
    # formats
    bf16: bool
    int8: bool
    bf16_cache: bool
    shift: int
    # the grid
    n_blocks: int
    n_threads: int
    n_warps: int
    n_grid_warps: int
    n_pairs: int  # pairs of elements of the residual stream that a thread holds
    claims_rows: bool  # some phase has more rows than the grid has warps
    # weights
    layout: tuple[int, ...]
    d_chunks: int  # chunks of a row of d_model elements
    q_chunks: int
    stages_rows: bool
    staged: Staged
    prefetches: bool
    # attention
    split_bits: int
    lanes_per_key: int  # lanes that read a key or value together
    key_chunks: int
    chunks_per_lane: int
    # memory
    words: Words
    shared: Shared
    partials_at: int  # in shared memory: sums of weighted values, one per warp
    scores_at: int
    normed: Vector
    attended: Vector
    checksum: int  # of the sources: it makes them part of the key of cached machine code

    @classmethod
    def of(cls, shape: Shape) -> Sizes:
        """Return the sizes that follow from a shape."""
        d_model, n_q, n_kv = shape.d_model, shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
        n_qkv, n_grid_warps, shared = n_q + 2 * n_kv, shape.n_warps * shape.n_blocks, shape.shared()
        key_chunks = shape.d_head // 4
        lanes_per_key = min(WARP_SIZE, 1 << (key_chunks - 1).bit_length())
        n_rows = n_qkv + (3 if shape.gated else 2) * shape.n_neurons
        layer_chunks = shape.chunks(d_model) * n_rows + d_model * shape.chunks(n_q)
        partials_at = shared.scratch + 3 * shape.d_head
        return cls(
            n_layers=shape.n_layers,
            d_model=d_model,
            n_heads=shape.n_heads,
            n_kv_heads=shape.n_kv_heads,
            d_head=shape.d_head,
            n_q=n_q,
            n_kv=n_kv,
            n_qkv=n_qkv,
            n_neurons=shape.n_neurons,
            n_vocab=shape.n_vocab,
            position_offset=shape.position_offset,
            layer_norm=shape.layer_norm,
            eps=shape.eps,
            activation=shape.activation,
            gated=shape.gated,
            rope=shape.rope,
            bf16=shape.bfloat16,
            int8=shape.int8,
            bf16_cache=shape.bf16_cache,
            shift=shape.shift,
            n_blocks=shape.n_blocks,
            n_threads=shape.n_threads,
            n_warps=shape.n_warps,
            n_grid_warps=n_grid_warps,
            n_pairs=-(-d_model // (2 * shape.n_threads)),
            claims_rows=max(n_qkv, d_model, shape.n_neurons + 1) > n_grid_warps,
            layout=shape.layout,
            d_chunks=shape.chunks(d_model),
            q_chunks=shape.chunks(n_q),
            stages_rows=shape.staged_chunks()[0] > 0,
            staged=shape.staged(),
            prefetches=16 * layer_chunks <= PREFETCH_BYTES,
            split_bits=shape.split_bits(),
            lanes_per_key=lanes_per_key,
            key_chunks=key_chunks,
            chunks_per_lane=-(-key_chunks // lanes_per_key),
            words=shape.words(),
            shared=shared,
            partials_at=partials_at,
            scores_at=partials_at + shape.n_warps * (shape.d_head + 2),
            normed=vector(shape, shared.normed, d_model),
            attended=vector(shape, shared.attended, n_q),
            checksum=CHECKSUM,
        )


def vector(shape: Shape, at: int, n: int) -> Vector:
    """Return the vector of n elements at a float of shared memory; one that is quantized is in order."""
    shift = 2 if shape.int8 else shape.shift
    return Vector(
        at=at, n=n, n_padded=shape.padded(n), plane_stride=shape.plane_stride(n, shift), shift=shift
    )  # fmt: skip


class Arrays(NamedTuple):
    """Device arrays of a decoder, in the order in which kernels take them.

    Attributes
    ----------
    fixed, dense, core : uint32
        The arenas (see shape.py).
    ffn_layout : (n_layers * N_FFN,) int64
    thresholds : (n_layers,) float32
        Gates no larger in magnitude than this are closed; negative is no threshold.
    frequencies : (d_head / 2,) float32
        Of the rotary position embedding.
    keys, values : (n_layers * n_kv_heads * capacity * d_head,) float32
    words : uint32
        Values that blocks exchange (see ll_protocol.py).
    next_token : (1,) int32
        The token that is read next.
    logits : (n_vocab,) float32
    tokens : int32
        The tokens that were chosen.
    n_used : (n_layers,) int64
        Activations that were not zero, added up.
    counters : (2 * n_layers * N_COUNTERS,) int32
        Row counters (see claims.py) of this token and the next.
    """

    fixed: Any
    dense: Any
    core: Any
    ffn_layout: Any
    thresholds: Any
    frequencies: Any
    keys: Any
    values: Any
    words: Any
    next_token: Any
    logits: Any
    tokens: Any
    n_used: Any
    counters: Any


ARRAY_TYPES = Arrays(
    fixed="uint32[::1]",
    dense="uint32[::1]",
    core="uint32[::1]",
    ffn_layout="int64[::1]",
    thresholds="float32[::1]",
    frequencies="float32[::1]",
    keys="float32[::1]",
    values="float32[::1]",
    words="uint32[::1]",
    next_token="int32[::1]",
    logits="float32[::1]",
    tokens="int32[::1]",
    n_used="int64[::1]",
    counters="int32[::1]",
)


# the arrays of Arrays and the block's shared memory, as device functions take them
Memory = namedtuple("Memory", (*Arrays._fields, "shared"))  # type: ignore[misc]


class Thread(NamedTuple):
    """The calling thread.

    Attributes
    ----------
    tid, warp, block : int
        Its number in the block, its warp's number in the block, and its block's number.
    lane : int
        Its number in the warp.
    grid_warp : int
        Its warp's number in the grid. Neighbours are warps of different blocks.
    """

    tid: int
    warp: int
    lane: int
    block: int
    grid_warp: int


@device
def this_thread(s, tid, block):
    """Return the calling thread."""
    warp = tid // WARP_SIZE
    return Thread(
        tid=tid, warp=warp, lane=tid & (WARP_SIZE - 1), block=block, grid_warp=warp * s.n_blocks + block
    )
