"""Copying the rows of selected neurons into the core arena."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from minicore.backends.cuda.kernels.decode.shape import B_GATE, B_IN, N_CHUNKS, W_GATE, W_IN, W_OUT
from minicore.backends.cuda.kernels.intrinsics import cuda, device
from minicore.backends.cuda.kernels.launch import CHECKSUM
from minicore.quantization import GROUP


@cache
def make_gather() -> Any:
    """Return the kernel that copies the rows of selected neurons of a layer from one arena to another.

    Its arguments: the arenas, the neurons' ids (n,), the rows of the FFN layouts in both arenas, d_model,
    the chunks of a row of w_in, and log2 of the elements in a word of 4 bytes.
    """
    checksum = CHECKSUM

    def gather(dense, core, ids, source, target, d_model, d_chunks, log2_per_word):
        _ = checksum  # closed over, to be part of the key of the cached machine code
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
        old, new = source[N_CHUNKS], target[N_CHUNKS]
        gather_columns(dense, core, ids, source[W_OUT], target[W_OUT], old, new, d_model, log2_per_word)
        if log2_per_word == 2:  # the float16 scales of int8
            old_at, new_at = source[W_OUT] + d_model * old, target[W_OUT] + d_model * new
            n_groups = -(-d_model // GROUP)
            gather_columns(dense, core, ids, old_at, new_at, 2 * old, 2 * new, n_groups, 1)

    return cuda.jit(cache=True)(gather)


@device
def gather_columns(dense, core, ids, source, target, source_chunks, target_chunks, n_rows, log2_per_word):
    """Copy some columns of a matrix of n_rows rows, of source_chunks here and target_chunks chunks there."""
    width = 4 * target_chunks
    for i in range(cuda.grid(1), n_rows * width, cuda.gridsize(1)):
        k, bits = i % width, np.uint64(0)
        for j in range(1 << log2_per_word):
            column = (k << log2_per_word) + j
            if column < ids.shape[0]:
                row = source + i // width * source_chunks
                element = element_bits(dense, row, ids[column], log2_per_word)
                bits |= element << np.uint64((32 >> log2_per_word) * j)
        core[4 * target + i] = np.uint32(bits)


@device
def element_bits(arena, start, i, log2_per_word):
    """Return the bits of element i of a row that starts at a chunk."""
    size, mask = 32 >> log2_per_word, (1 << log2_per_word) - 1
    word = np.uint64(arena[4 * start + (i >> log2_per_word)]) >> np.uint64(size * (i & mask))
    return word & ((np.uint64(1) << np.uint64(size)) - np.uint64(1))
