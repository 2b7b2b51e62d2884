"""The shape that a decode kernel is compiled for, and the layout of its arrays.

Weights are stored in *arenas*: one device array each, addressed in 16-byte *chunks*. A layout lists the
chunk at which each matrix or vector starts. The fixed arena holds everything but the FFNs. The dense arena
holds the FFNs, and the core arena holds copies of the selected neurons' rows.
"""

from __future__ import annotations

from typing import NamedTuple

from minicore.backends.cuda.kernels.intrinsics import WARP_SIZE
from minicore.quantization import GROUP

# Layout of the fixed arena: start chunks of the first layer's parts, then of the parts outside the layers. -1
# stands for a part that the model does not have. LAYER is the number of chunks from one layer to the next.
LN1_W, LN1_B, W_QKV, B_QKV, W_O, B_O, LN2_W, LN2_B, B_OUT = range(9)
EMBED, POS_EMBED, LN_F_W, LN_F_B, HEAD, LAYER = range(9, 15)

# Layout of an FFN, one row per layer: start chunks, the number of neurons, the chunks of a row of the
# transposed w_out, and whether the rows are in the core arena.
W_IN, B_IN, W_GATE, B_GATE, W_OUT, N_ROWS, N_CHUNKS, IN_CORE = range(8)
N_FFN = 8

# Row counters of a layer (see claims.py), one for each phase that computes rows.
COUNT_QKV, COUNT_PROJECTION, COUNT_NEURONS, COUNT_OUTPUTS = range(4)
N_COUNTERS = 4

MAX_SPLIT_BITS = 3  # at most 1 << 3 blocks share the positions of a head
SPLIT_POSITIONS = 96  # positions from which they are split; a block then has at least half as many


def row_chunks(n: int, shift: int) -> int:
    """Return the chunks of a row of n elements, 1 << shift in each. The scales of an int8 row follow it."""
    if shift < 4:
        return -(-n >> shift)
    n_groups = -(-n // GROUP)
    return n_groups * (GROUP // 16) + -(-n_groups // 8)


class Words(NamedTuple):
    """First words of the vectors that blocks exchange, and the end (see ll_protocol.py)."""

    qkv: int
    attention: int  # for each split and head: d_head elements, the largest score, the denominator
    projection: int
    activations: int
    outputs: int
    best: int  # for each block: the best score and its token
    end: int


class Staged(NamedTuple):
    """First floats of the rows in a warp's part of the staging area, and the end (see staging.py)."""

    qkv: int
    projection: int
    gate: int  # or w_in, in a model without gates
    up: int
    output: int
    end: int


class Shared(NamedTuple):
    """First floats of the parts of a block's shared memory, and the end."""

    normed: int  # the normalised residual stream
    attended: int  # the output of attention
    sums: int  # sums of warps
    best: int  # best tokens of warps, and the chosen one
    rope: int  # cosines and sines of the position
    staging: int
    scratch: int  # the FFN's activations, or what attention needs
    end: int


class Shape(NamedTuple):
    """What a decode kernel is compiled for: the sizes of a model and of a grid.

    Attributes
    ----------
    activation : int
        A code of :data:`minicore.backends.cpu.step.ACTIVATION_CODES`.
    layout : tuple of int
        The layout of the fixed arena.
    bf16_cache : bool
        Whether keys and values are rounded to bfloat16.
    staging_bytes : int
        Bytes of a block's shared memory for rows that are copied while the block waits; 0 is none.
    """

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
    bf16_cache: bool = False
    staging_bytes: int = 0

    @property
    def shift(self) -> int:
        """A chunk holds 1 << shift elements of a matrix."""
        return 4 if self.int8 else 3 if self.bfloat16 else 2

    @property
    def n_warps(self) -> int:
        """Warps of a block."""
        return self.n_threads // WARP_SIZE

    def chunks(self, n: int) -> int:
        """Return the chunks of a row of n elements, with its scales."""
        return row_chunks(n, self.shift)

    def plane_stride(self, n: int, shift: int) -> int:
        """Return the floats of a plane of a vector of n elements (see vectors.py)."""
        return 4 * WARP_SIZE * -(-n // (WARP_SIZE << shift))

    def padded(self, n: int) -> int:
        """Return the floats of a vector of n elements that is multiplied by rows of weights."""
        return -(-n // GROUP) * GROUP if self.int8 else self.plane_stride(n, self.shift) << (self.shift - 2)

    def vector_floats(self, n: int) -> int:
        """Return the floats of such a vector with its int8 codes, four per float, and their scales."""
        return self.padded(n) + (self.padded(n) // GROUP * (GROUP // 4 + 1) if self.int8 else 0)

    def split_bits(self) -> int:
        """Return log2 of the largest number of blocks that share the positions of a head."""
        return min(MAX_SPLIT_BITS, max(1, self.n_blocks // self.n_heads).bit_length() - 1)

    def staged_chunks(self) -> tuple[int, int, int]:
        """Return the chunks of a row of d_model, n_q and n_neurons elements in the staging area.

        A warp stages the first row of each phase. All are 0 if the rows of a layer do not fit.
        """
        rows = 2 if self.gated else 1
        available = self.staging_bytes // 16 // self.n_warps
        d, q, a = (
            -(-self.chunks(n) // WARP_SIZE) * WARP_SIZE
            for n in (self.d_model, self.n_heads * self.d_head, self.n_neurons)
        )
        return (d, q, a) if d + q + rows * d + a <= available else (0, 0, 0)

    def staged(self) -> Staged:
        """Return where the rows of a warp's part of the staging area start."""
        d, q, a = self.staged_chunks()
        up = 4 * (d + q + d)
        output = up + 4 * (d if self.gated else 0)
        return Staged(
            qkv=0, projection=4 * d, gate=4 * (d + q), up=up, output=output, end=output + 4 * a
        )  # fmt: skip

    def words(self) -> Words:
        """Return where the exchanged vectors start. Each has an even number of words."""
        n_qkv = (self.n_heads + 2 * self.n_kv_heads) * self.d_head
        attention = n_qkv
        projection = attention + (self.n_heads << self.split_bits()) * (self.d_head + 2)
        activations = projection + self.d_model
        outputs = activations + self.n_neurons + self.n_neurons % 2
        best = outputs + self.d_model
        return Words(
            qkv=0, attention=attention, projection=projection, activations=activations, outputs=outputs,
            best=best, end=best + 2 * self.n_blocks,
        )  # fmt: skip

    def shared(self, capacity: int = 1) -> Shared:
        """Return where the parts of shared memory start for a kv cache of this capacity."""
        vector = self.vector_floats(max(self.d_model, self.n_heads * self.d_head))
        positions = (capacity >> self.split_bits()) + 1 + SPLIT_POSITIONS
        attention = 3 * self.d_head + self.n_warps * (self.d_head + 2) + positions
        activations = self.plane_stride(self.n_neurons, self.shift) << (self.shift - 2)
        sizes = {
            "normed": vector,
            "attended": vector,
            "sums": 2 * self.n_warps,
            "best": 2 * self.n_warps + 1,
            "rope": self.d_head,
            "staging": self.n_warps * self.staged().end,
            "scratch": max(activations, attention),
        }
        starts, end = {}, 0
        for name, size in sizes.items():
            starts[name], end = end, end + -(-size // 4) * 4  # each part starts at a multiple of 16 bytes
        return Shared(**starts, end=end)

    def shared_bytes(self, capacity: int) -> int:
        """Return the bytes of shared memory of a block for a kv cache of this capacity."""
        return 4 * self.shared(capacity).end
