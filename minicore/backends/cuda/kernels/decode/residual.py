"""The residual stream and its norms.

Every block has the whole residual stream. A thread holds pairs of its elements in registers: pair k of
thread t is elements 2 i and 2 i + 1 with i = t + k * n_threads.
"""

from __future__ import annotations

import numpy as np

from minicore.backends.cuda.kernels.decode.int8_rows import quantize_if_int8
from minicore.backends.cuda.kernels.decode.shape import EMBED, LAYER, POS_EMBED
from minicore.backends.cuda.kernels.decode.vectors import store_pair
from minicore.backends.cuda.kernels.elements import element, float_element
from minicore.backends.cuda.kernels.intrinsics import cuda, device, ll_load2, load, rsqrt, store
from minicore.backends.cuda.kernels.ll_protocol import ll_wait2, simulator_barrier
from minicore.backends.cuda.kernels.warp import warp_sum


@device
def layer_element(s, m, column, layer, i):
    """Return element i of a layer's norm weight or bias, 0 if the model has none."""
    if s.layout[column] < 0:
        return np.float32(0)
    return float_element(m.fixed, s.layout[column] + layer * s.layout[LAYER], i, False)


@device
def layer_pair(s, m, column, layer, i):
    """Return elements i and i + 1 of it."""
    return layer_element(s, m, column, layer, i), layer_element(s, m, column, layer, i + 1)


@device
def embed(s, m, thread, token, position, x):
    """Start the residual stream with the embeddings of a token and of its position."""
    row = s.layout[EMBED] + np.int64(token) * s.d_chunks
    for k in range(s.n_pairs):
        i = 2 * (thread.tid + k * s.n_threads)
        if i < s.d_model:
            x[2 * k] = element(m.fixed, row, i, s.d_model, s.shift)
            x[2 * k + 1] = element(m.fixed, row, i + 1, s.d_model, s.shift)
            if s.layout[POS_EMBED] >= 0:
                position_row = s.layout[POS_EMBED] + np.int64(position + s.position_offset) * s.d_chunks
                x[2 * k] += element(m.fixed, position_row, i, s.d_model, s.shift)
                x[2 * k + 1] += element(m.fixed, position_row, i + 1, s.d_model, s.shift)


# --- adding what other blocks computed ---


@device
def add_received(s, m, thread, word, column, layer, flag, x):
    """Add a vector from other blocks, which starts at a word, and a layer's bias to the residual stream."""
    simulator_barrier()
    for k in range(0, s.n_pairs, 4):  # four loads in flight
        r0, r1 = load_pair(s, m, thread, word, k), load_pair(s, m, thread, word, k + 1)
        r2, r3 = load_pair(s, m, thread, word, k + 2), load_pair(s, m, thread, word, k + 3)
        add_pair(s, m, thread, word, column, layer, flag, k, r0, x)
        add_pair(s, m, thread, word, column, layer, flag, k + 1, r1, x)
        add_pair(s, m, thread, word, column, layer, flag, k + 2, r2, x)
        add_pair(s, m, thread, word, column, layer, flag, k + 3, r3, x)


@device
def load_pair(s, m, thread, word, k):
    """Load pair k of this thread from the vector that starts at a word, if there is such a pair."""
    i = thread.tid + k * s.n_threads
    return ll_load2(m.words, (word >> 1) + i, k < s.n_pairs and 2 * i < s.d_model)


@device
def add_pair(s, m, thread, word, column, layer, flag, k, loaded, x):
    """Add pair k, loaded before, as soon as it has arrived."""
    i = thread.tid + k * s.n_threads
    if k < s.n_pairs and 2 * i < s.d_model:
        u, v = ll_wait2(m.words, (word >> 1) + i, loaded, flag)
        x[2 * k] += u + layer_element(s, m, column, layer, 2 * i)
        x[2 * k + 1] += v + layer_element(s, m, column, layer, 2 * i + 1)


# --- norms ---


@device
def load_norm(s, m, thread, w_column, b_column, layer, w, b):
    """Load this thread's weights of a norm, before the thread waits for what they are applied to."""
    for k in range(s.n_pairs):
        i = 2 * (thread.tid + k * s.n_threads)
        if i < s.d_model:
            w[2 * k], w[2 * k + 1] = layer_pair(s, m, w_column, layer, i)
            b[2 * k], b[2 * k + 1] = layer_pair(s, m, b_column, layer, i)


@device
def norm(s, m, thread, x, w, b):
    """Store the norm of the residual stream in shared memory, but for a factor, and return the factor.

    A product with the norm is multiplied by the factor. For RMSNorm it is 1 / sqrt(mean(x^2) + eps): that
    is known one barrier after the elements can be stored. For LayerNorm it is 1.
    """
    mean, square = np.float32(0), np.float32(0)
    if s.layer_norm:
        for k in range(s.n_pairs):
            if 2 * (thread.tid + k * s.n_threads) < s.d_model:
                mean += x[2 * k] + x[2 * k + 1]
        mean = block_sum(s, m, thread, mean, s.shared.sums) * np.float32(1 / s.d_model)
    for k in range(s.n_pairs):
        i = 2 * (thread.tid + k * s.n_threads)
        if i < s.d_model:
            u, v = x[2 * k] - mean, x[2 * k + 1] - mean
            square += u * u + v * v
            if not s.layer_norm:
                store_pair(m.shared, s.normed, i, u * w[2 * k], v * w[2 * k + 1])
    square = block_sum(s, m, thread, square, s.shared.sums + s.n_warps)
    scale = rsqrt(square * np.float32(1 / s.d_model) + np.float32(s.eps))
    if not s.layer_norm:
        quantize_if_int8(s, m, thread, s.normed)
        return scale
    for k in range(s.n_pairs):
        i = 2 * (thread.tid + k * s.n_threads)
        if i < s.d_model:
            u = (x[2 * k] - mean) * scale * w[2 * k] + b[2 * k]
            v = (x[2 * k + 1] - mean) * scale * w[2 * k + 1] + b[2 * k + 1]
            store_pair(m.shared, s.normed, i, u, v)
    cuda.syncthreads()
    quantize_if_int8(s, m, thread, s.normed)
    return np.float32(1)


@device
def block_sum(s, m, thread, x, at):
    """Return the sum of x over the block; the sums of its warps are at a float of shared memory."""
    x = warp_sum(x)
    if thread.lane == 0:
        store(m.shared, at + thread.warp, x)
    cuda.syncthreads()
    total = np.float32(0)
    for w in range(s.n_warps):
        total += load(m.shared, at + w)
    return total


# --- between kernels (phases.py) ---


@device
def load_residual(s, thread, x, residual, buffer):
    """Load the residual stream from buffer 0 or 1 of global memory."""
    for k in range(s.n_pairs):
        i = 2 * (thread.tid + k * s.n_threads)
        if i < s.d_model:
            at = buffer * s.d_model + i
            x[2 * k], x[2 * k + 1] = load(residual, at), load(residual, at + 1)


@device
def store_residual(s, thread, x, residual, buffer):
    """Store the residual stream in a buffer that no block reads. All blocks have it; block 0 stores it."""
    if thread.block == 0:
        for k in range(s.n_pairs):
            i = 2 * (thread.tid + k * s.n_threads)
            if i < s.d_model:
                store(residual, buffer * s.d_model + i, x[2 * k])
                store(residual, buffer * s.d_model + i + 1, x[2 * k + 1])
