"""Core sets."""

from __future__ import annotations

import numpy as np

from minicore.backends.cuda.kernels.decode.shape import B_GATE, B_IN, N_CHUNKS, W_GATE, W_IN, W_OUT
from minicore.backends.cuda.kernels.intrinsics import cuda, device
from minicore.quantization import GROUP


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
