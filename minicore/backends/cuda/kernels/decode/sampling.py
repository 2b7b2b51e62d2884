"""Choosing the token."""

from __future__ import annotations

import math

import numpy as np

from minicore.backends.cuda.kernels.decode.rows import row
from minicore.backends.cuda.kernels.decode.shape import HEAD
from minicore.backends.cuda.kernels.exchange import settle, take
from minicore.backends.cuda.kernels.intrinsics import ALL, LANES, cuda, device, get, let, put
from minicore.backends.cuda.kernels.warp import group_sum2, warp_best


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
    for i in range(me.number, s.n_vocab, 2 * s.stride):  # two rows on their way at once
        other = min(i + s.stride, s.n_vocab - 1)
        at, at_other = s.layout[HEAD] + i * s.d_chunks, s.layout[HEAD] + other * s.d_chunks
        a = row(s, m.fixed, at, s.d_chunks, me.lane, m.shared, 0, s.d_spread, s.d_padded, 0, False)
        b = row(s, m.fixed, at_other, s.d_chunks, me.lane, m.shared, 0, s.d_spread, s.d_padded, 0, False)
        a, b = group_sum2(a, b, LANES)
        a, b = a * by, b * by
        if me.lane == 0:
            let(m.logits, i, a)
            let(m.logits, other, b)
            if temperature > 0:
                a = a / temperature + gumbel(seed, position, i)
                b = b / temperature + gumbel(seed, position, other)
            if a > best:
                best, at_best = a, np.int32(i)
            if b > best:
                best, at_best = b, np.int32(other)
    return best, at_best


@device
def offer(s, m, me, best, at_best, tag):  # type: ignore[no-untyped-def]
    """Hand out this block's best token."""
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


@device
def choose(s, m, me, tag):  # type: ignore[no-untyped-def]
    """Return the grid's best token; of equal ones the first, as numpy.argmax does."""
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
