"""Whose turn it is: rows beyond a warp's first go to the warps that are done first."""

from __future__ import annotations

import numpy as np

from minicore.backends.cuda.kernels.decode.shape import N_TURNS
from minicore.backends.cuda.kernels.intrinsics import cuda, device, let
from minicore.backends.cuda.kernels.warp import from_first


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
