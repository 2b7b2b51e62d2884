"""The shape a decode kernel is compiled for, and where things lie in its arenas."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from minicore.backends.cuda.kernels.intrinsics import LANES
from minicore.quantization import GROUP

# where things lie in their arenas, in 16-byte units, -1 for what a model does not have: in the first layer
LN1_W, LN1_B, W_QKV, B_QKV, W_O, B_O, LN2_W, LN2_B, B_OUT = range(9)


# and behind the last one; LAYER is the way from a layer to the next
EMBED, POS_EMBED, LN_F_W, LN_F_B, HEAD, LAYER = range(9, 15)


N_LAYOUT = 15


W_IN, B_IN, W_GATE, B_GATE, W_OUT, N_ROWS, N_CHUNKS, COMPACT = range(8)  # N_CHUNKS of a row of w_out


N_FFN = 8


N_TURNS = 4  # of a layer: rows of q k v, of w_o, neurons, rows of w_out


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
