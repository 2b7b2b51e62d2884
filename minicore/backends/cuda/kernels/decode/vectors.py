"""Vectors in shared memory."""

from __future__ import annotations

import numpy as np

from minicore.backends.cuda.kernels.intrinsics import device, four, let


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
def is_open(shared, x, spread, shift):  # type: ignore[no-untyped-def]
    """Say whether one of a chunk's activations is not zero."""
    some = False
    for part in range(1 << (shift - 2)):
        a = four(shared, x + part * spread)
        some = some or a[0] != 0 or a[1] != 0 or a[2] != 0 or a[3] != 0
    return some
