"""Copying the rows of selected neurons into the core arena."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from minicore.backends.cuda.kernels.decode.shape import B_GATE, B_IN, N_CHUNKS, W_GATE, W_IN, W_OUT, Shape
from minicore.backends.cuda.kernels.intrinsics import cuda, device
from minicore.backends.cuda.kernels.launch import CHECKSUM, configured
from minicore.quantization import GROUP


def launch_gather(
    shape: Shape, *, source: Any, target: Any, ids: Any, source_layout: Any, target_layout: Any
) -> None:
    """Copy the rows of a layer's selected neurons from one arena to another.

    ``shape`` is that of the decode kernel that will read them, ``ids`` (n,) int64. The layouts (N_FFN,) int64
    are those of the layer's FFN in both arenas.
    """
    gather = configured(make_gather(), shape.n_blocks, shape.n_threads)
    log2_per_word = shape.shift - 2
    gather(
        source,
        target,
        ids,
        source_layout,
        target_layout,
        shape.d_model,
        shape.chunks(shape.d_model),
        log2_per_word,
    )


@cache
def make_gather() -> Any:
    """Return the kernel of :func:`launch_gather`."""
    checksum = CHECKSUM

    def gather(old, new, ids, old_layout, new_layout, d_model, d_chunks, log2_per_word):
        _ = checksum  # closed over, to be part of the key of the cached machine code
        first, stride, n = cuda.grid(1), cuda.gridsize(1), ids.shape[0]
        for column in (W_IN, W_GATE):
            if old_layout[column] >= 0:
                for i in range(first, n * d_chunks, stride):
                    a = 4 * (old_layout[column] + ids[i // d_chunks] * d_chunks + i % d_chunks)
                    b = 4 * (new_layout[column] + i)
                    for k in range(4):
                        new[b + k] = old[a + k]
        for column in (B_IN, B_GATE):
            if old_layout[column] >= 0:
                for i in range(first, n, stride):
                    new[4 * new_layout[column] + i] = old[4 * old_layout[column] + ids[i]]
        wide, narrow = old_layout[N_CHUNKS], new_layout[N_CHUNKS]  # chunks of a row of the transposed w_out
        old_start, new_start = old_layout[W_OUT], new_layout[W_OUT]
        gather_columns(old, new, ids, old_start, new_start, wide, narrow, d_model, log2_per_word)
        if log2_per_word == 2:  # int8: rows of float16 scales follow
            old_start, new_start = old_start + d_model * wide, new_start + d_model * narrow
            gather_columns(old, new, ids, old_start, new_start, 2 * wide, 2 * narrow, -(-d_model // GROUP), 1)

    return cuda.jit(cache=True)(gather)


@device
def gather_columns(old, new, ids, old_start, new_start, wide, narrow, n_rows, log2_per_word):
    """Copy some columns of n_rows rows of ``wide`` chunks; with these columns a row has ``narrow`` chunks."""
    width = 4 * narrow
    for i in range(cuda.grid(1), n_rows * width, cuda.gridsize(1)):
        k, bits = i % width, np.uint64(0)
        for j in range(1 << log2_per_word):
            column = (k << log2_per_word) + j
            if column < ids.shape[0]:
                row = old_start + i // width * wide
                element = element_bits(old, row, ids[column], log2_per_word)
                bits |= element << np.uint64((32 >> log2_per_word) * j)
        new[4 * new_start + i] = np.uint32(bits)


@device
def element_bits(arena, start, i, log2_per_word):
    """Return the bits of element i of a row that starts at a chunk."""
    size, mask = 32 >> log2_per_word, (1 << log2_per_word) - 1
    word = np.uint64(arena[4 * start + (i >> log2_per_word)]) >> np.uint64(size * (i & mask))
    return word & ((np.uint64(1) << np.uint64(size)) - np.uint64(1))
