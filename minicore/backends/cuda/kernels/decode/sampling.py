"""Logits and the choice of a token.

With a temperature, the token is a sample from the softmax of logits / temperature by the Gumbel-max trick:
the argmax of logits / temperature plus independent Gumbel noise is such a sample (C. Maddison, D. Tarlow
and T. Minka, "A* Sampling", 2014). The noise is a hash of seed, position and token.
"""

from __future__ import annotations

import math

import numpy as np

from minicore.backends.cuda.kernels.decode.rows import row_dot
from minicore.backends.cuda.kernels.decode.shape import HEAD
from minicore.backends.cuda.kernels.intrinsics import (
    ALL_LANES,
    WARP_SIZE,
    cuda,
    device,
    ll_store,
    load,
    store,
)
from minicore.backends.cuda.kernels.ll_protocol import ll_receive2, simulator_barrier
from minicore.backends.cuda.kernels.warp import group_sum2, warp_argmax


@device
def warp_best(s, m, thread, scale, position, temperature, seed):
    """Store this warp's logits and return the best score and its token.

    ``scale`` is the factor that the norm lacks.
    """
    best, best_token = np.float32(-np.inf), np.int32(0)
    for i in range(thread.grid_warp, s.n_vocab, 2 * s.n_grid_warps):  # the loads of two rows are in flight
        j = min(i + s.n_grid_warps, s.n_vocab - 1)
        start_i, start_j = s.layout[HEAD] + i * s.d_chunks, s.layout[HEAD] + j * s.d_chunks
        a = row_dot(s, m, thread, m.fixed, start_i, s.d_chunks, s.normed, 0, False)
        b = row_dot(s, m, thread, m.fixed, start_j, s.d_chunks, s.normed, 0, False)
        a, b = group_sum2(a, b, WARP_SIZE)
        a, b = a * scale, b * scale
        if thread.lane == 0:
            store(m.logits, i, a)
            store(m.logits, j, b)
            if temperature > 0:
                a = a / temperature + gumbel_noise(seed, position, i)
                b = b / temperature + gumbel_noise(seed, position, j)
            if a > best:
                best, best_token = a, np.int32(i)
            if b > best:
                best, best_token = b, np.int32(j)
    return best, best_token


@device
def gumbel_noise(seed, position, token):
    """Return a sample of the standard Gumbel distribution, the same for the same arguments."""
    bits = fmix32(fmix32(fmix32(np.uint32(seed)) ^ np.uint32(position)) ^ np.uint32(token))
    u = (np.float32(bits >> np.uint32(8)) + np.float32(0.5)) * np.float32(2.0**-24)
    return np.float32(-math.log(-math.log(u)))


@device
def fmix32(x):  # uint32 -> uint32
    """Return 32 mixed bits: the finalizer of MurmurHash3 (A. Appleby)."""
    x = np.uint32(x ^ (x >> np.uint32(16)))
    x = np.uint32((np.uint64(x) * np.uint64(0x85EBCA6B)) & np.uint64(ALL_LANES))
    x = np.uint32(x ^ (x >> np.uint32(13)))
    x = np.uint32((np.uint64(x) * np.uint64(0xC2B2AE35)) & np.uint64(ALL_LANES))
    return np.uint32(x ^ (x >> np.uint32(16)))


@device
def publish_best(s, m, thread, best, token, flag):
    """Publish the best score and token of this block; of equal scores the smallest token."""
    if thread.lane == 0:
        store(m.shared, s.shared.best + 2 * thread.warp, best)
        store(m.shared, s.shared.best + 2 * thread.warp + 1, np.float32(token))
    cuda.syncthreads()
    if thread.tid == 0:
        for w in range(1, s.n_warps):
            other = load(m.shared, s.shared.best + 2 * w)
            other_token = np.int32(load(m.shared, s.shared.best + 2 * w + 1))
            if other > best or (other == best and other_token < token):
                best, token = other, other_token
        ll_store(m.words, s.words.best + 2 * thread.block, best, flag)
        ll_store(m.words, s.words.best + 2 * thread.block + 1, np.float32(token), flag)


@device
def choose_token(s, m, thread, flag):
    """Return the token with the best score of all blocks; of equal scores the smallest, as numpy.argmax."""
    simulator_barrier()
    if thread.warp == 0:
        best, token = np.float32(-np.inf), np.int32(0)
        for block in range(thread.lane, s.n_blocks, WARP_SIZE):
            other, other_float = ll_receive2(m.words, (s.words.best >> 1) + block, flag)
            other_token = np.int32(other_float)
            if other > best or (other == best and other_token < token):
                best, token = other, other_token
        best, token = warp_argmax(best, token)
        if thread.lane == 0:
            store(m.shared, s.shared.best + 2 * s.n_warps, np.float32(token))
    cuda.syncthreads()
    return np.int32(load(m.shared, s.shared.best + 2 * s.n_warps))
