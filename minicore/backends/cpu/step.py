"""One token through the whole model: a decode step as one compiled call per thread.

Threads share a token's work phase by phase and meet at a barrier between phases, four times a layer:

    norm, my rows of q k v | attend over my positions | merge, my rows of w_o
    | add, norm, my neurons of the FFN into my sum | add all threads' sums ...

Each thread keeps its own copy of the residual stream, so that adding and norms need no barrier. Threads
take equal shares of rows, so equal shares of bytes, and read four quarters of a share side by side: memory
delivers more to four streams than to one, and the CPU prefetches them by itself (docs/notes). Weights are
found through a table of addresses, so that rows can lie anywhere: in the loaded arrays, copied together, or
in a mapped file.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from minicore.backends.cpu.attention import Share, attend, merge_shares, prepare_queries, store_head
from minicore.backends.cpu.compiling import inlined, inner, kernel
from minicore.backends.cpu.ffn import B_OUT, N_ROWS, ffn
from minicore.backends.cpu.intrinsics import WAITING, array_at, barrier, called, part, row
from minicore.backends.cpu.rows import dot_rows, prepare_input, row_to_float32

# Columns of the table of weights: addresses, 0 for what a model does not have, then the layer's list of
# neurons (0 for all), how many it lists, and how many rows the matrices have.
COLUMNS = (
    *("ln1.w", "ln1.b", "attn.w_q", "attn.w_k", "attn.w_v", "attn.w_o"),
    *("attn.b_q", "attn.b_k", "attn.b_v", "attn.b_o", "ln2.w", "ln2.b"),
    *("mlp.w_gate", "mlp.w_in", "mlp.w_out", "mlp.b_gate", "mlp.b_in", "mlp.b_out"),
    *("rows", "n_rows", "n_stored"),
)
LN1_W, LN1_B, W_Q, W_K, W_V, W_O, B_Q, B_K, B_V, B_O, LN2_W, LN2_B = range(12)
# The table's last row is the rest of the model.
EMBED, POS_EMBED, LN_F_W, LN_F_B, HEAD, HEAD_B = range(6)


class State(NamedTuple):
    """Buffers of a decoder, made once: a step allocates nothing. Most have a row for each thread."""

    x: np.ndarray  # (n_threads, d_model): the residual stream
    normed: np.ndarray  # (n_threads, ...): input of q k v, of the FFN and of the head
    q: np.ndarray  # (n_threads, n_heads * d_head): queries as attention reads them
    q_scales: np.ndarray  # (n_threads, n_heads): theirs, where the cache is int8
    z: np.ndarray  # (n_threads, ...): input of w_o
    neurons: np.ndarray  # (n_threads, NEURON_BLOCK): a block of the FFN
    activations: np.ndarray  # (n_threads, 2, NEURON_BLOCK)
    scores: np.ndarray  # (n_threads, heads of a tile, positions of a thread)
    rotation: np.ndarray  # (n_threads, 2, d_head // 2): cosines and sines of the position
    ffn_out: np.ndarray  # (n_threads, ...): each thread's sum of the FFN
    qkv: np.ndarray  # (n_q + 2 * n_kv,)
    mixture: np.ndarray  # (n_threads, n_heads * d_head): each thread's attention over its positions
    largest: np.ndarray  # (n_threads, n_heads)
    total: np.ndarray  # (n_threads, n_heads)
    attn_out: np.ndarray  # (d_model,)
    logits: np.ndarray  # (n_vocab,)
    n_used: np.ndarray  # (n_threads, n_layers): output rows of the FFN that were read
    call: np.ndarray  # (>= 3,): token, position, barriers passed before
    flags: np.ndarray  # (n_threads, ...): where a thread waits for a call
    counter: np.ndarray  # (...): the barrier's


@inner
def normalise(x, w, b, dims, out):  # (d,), address, address or 0, Dims -> out (d,)
    """Write the norm of x to out."""
    weight = array_at(w, x.size, x)
    mean = np.float32(0)
    if dims.layer_norm:
        for j in range(x.size):
            mean += x[j]
        mean /= np.float32(x.size)
    square = np.float32(0)
    for j in range(x.size):
        square += (x[j] - mean) * (x[j] - mean)
    scale = np.float32(1) / np.float32(math.sqrt(square / np.float32(x.size) + np.float32(dims.eps)))
    for j in range(x.size):
        out[j] = (x[j] - mean) * scale * weight[j]
    if b:
        bias = array_at(b, x.size, x)
        for j in range(x.size):
            out[j] += bias[j]


@inner
def add(x, y, d):  # (>= d,) in place, (>= d,), int
    for j in range(d):
        x[j] += y[j]


@inner
def clear(x):  # (n,) in place
    for j in range(x.size):
        x[j] = np.float32(0)


@inner
def matvec(like, w, b, m, d, first, last, x, y):
    """Write rows [first, last) of ``w @ x + b`` to y (m,); w (m x d) and b are addresses, b 0 for none."""
    n = (last - first) // 4
    for i in range(n + (last - first) % 4):  # quarters side by side, then the rest row by row
        step, start = (n, first + i) if i < n else (0, first + 3 * n + i)
        rows = start, start + step, start + 2 * step, start + 3 * step
        y[rows[0]], y[rows[1]], y[rows[2]], y[rows[3]] = dot_rows(like, w, m, d, rows, x)
    if b:
        bias = array_at(b, m, y)
        for i in range(first, last):
            y[i] += bias[i]


@inner
def rotate(x, rotation):  # (d_head,), (2, d_head // 2) -> in place
    """Rotate one head by the position's cosines and sines."""
    half = x.size // 2
    for j in range(half):
        first, second = x[j], x[j + half]
        x[j] = first * rotation[0, j] - second * rotation[1, j]
        x[j + half] = second * rotation[0, j] + first * rotation[1, j]


@kernel
def step(thread, n_threads, like, tile, dims, weights, thresholds, frequencies, keys, values, scales, s):
    """Read the token of ``s.call``: extend keys and values, leave the logits in ``s.logits``.

    All threads but the first go on for as long as they are called again soon enough.

    Parameters
    ----------
    thread, n_threads : int
        Which share of the work this call does; all shares must run at once.
    like : array
        Its dtype names the weights' format.
    tile : Tile
    dims : Dims
    weights : (n_layers + 1, len(COLUMNS)) int64
    thresholds : (n_layers,) float32
        Gates of smaller magnitude are left out; negative for none.
    frequencies : (d_head // 2,) float32, or (0,) where positions are learned
    keys, values : (n_layers, n_kv_heads, capacity, d_head) float32, uint16 for bfloat16, or int8
    scales : (n_layers, 2, n_kv_heads, capacity) float32
        Of int8 keys and values; (n_layers, 2, n_kv_heads, 0) where there are none.
    s : State
    """
    d, n_q, n_kv = dims.d_model, dims.n_heads * dims.d_head, dims.n_kv_heads * dims.d_head
    x, normed, z, mine = row(s.x, thread), row(s.normed, thread), row(s.z, thread), row(s.ffn_out, thread)
    rest = row(weights, dims.n_layers)
    while True:
        passed = s.call[2]
        _embed(like, dims, rest, frequencies, s.call[0], s.call[1], x, normed, row(s.rotation, thread))
        for layer in range(dims.n_layers):
            w = row(weights, layer)
            normalise(x, w[LN1_W], w[LN1_B], dims, normed)
            prepare_input(like, d, normed)
            for which in range(3):  # q, k, v
                m = n_q if which == 0 else n_kv
                at = 0 if which == 0 else n_q + (which - 1) * n_kv
                first, last = thread * m // n_threads, (thread + 1) * m // n_threads
                y = part(s.qkv, at, at + m)
                matvec(like, w[W_Q + which], w[B_Q + which], m, d, first, last, normed, y)
            passed = barrier(s.counter, n_threads, passed)
            _attention(
                thread,
                n_threads,
                tile,
                dims,
                frequencies,
                row(keys, layer),
                row(values, layer),
                row(scales, layer),
                s,
            )
            passed = barrier(s.counter, n_threads, passed)
            merge_shares(n_threads, dims, s.mixture, s.largest, s.total, z)
            prepare_input(like, n_q, z)
            first, last = thread * d // n_threads, (thread + 1) * d // n_threads
            matvec(like, w[W_O], w[B_O], d, n_q, first, last, z, s.attn_out)
            passed = barrier(s.counter, n_threads, passed)
            add(x, s.attn_out, d)
            normalise(x, w[LN2_W], w[LN2_B], dims, normed)
            prepare_input(like, d, normed)
            clear(mine)
            first, last = thread * w[N_ROWS] // n_threads, (thread + 1) * w[N_ROWS] // n_threads
            s.n_used[thread, layer] += ffn(
                like, w, first, last, thresholds[layer], dims, normed, row(s.neurons, thread),
                row(s.activations, thread), mine,
            )  # fmt: skip
            passed = barrier(s.counter, n_threads, passed)
            for t in range(n_threads):
                add(x, row(s.ffn_out, t), d)
            if w[B_OUT]:
                add(x, array_at(w[B_OUT], d, x), d)
        normalise(x, rest[LN_F_W], rest[LN_F_B], dims, normed)
        prepare_input(like, d, normed)
        first, last = thread * dims.n_vocab // n_threads, (thread + 1) * dims.n_vocab // n_threads
        matvec(like, rest[HEAD], rest[HEAD_B], dims.n_vocab, d, first, last, normed, s.logits)
        s.flags[thread, 0] = WAITING
        barrier(s.counter, n_threads, passed)
        if thread == 0 or not called(row(s.flags, thread)):
            return


@inlined
def _embed(like, dims, rest, frequencies, token, position, x, place, rotation):
    """Write the token's embedding to x, plus the position's if that is learned, and the rotation."""
    row_to_float32(like, rest[EMBED], dims.n_vocab, dims.d_model, token, x)
    if rest[POS_EMBED]:
        at = position + dims.position_offset
        row_to_float32(like, rest[POS_EMBED], dims.n_positions, dims.d_model, at, place)
        add(x, place, dims.d_model)
    for j in range(frequencies.size):
        angle = np.float32(position) * frequencies[j]
        rotation[0, j], rotation[1, j] = math.cos(angle), math.sin(angle)


@inlined
def _attention(thread, n_threads, tile, dims, frequencies, keys, values, scales, s):
    """Attend over this thread's positions; the last thread also stores the new key and value."""
    d, n_q, n_kv = dims.d_head, dims.n_heads * dims.d_head, dims.n_kv_heads * dims.d_head
    position, rotation, q_scales = s.call[1], row(s.rotation, thread), row(s.q_scales, thread)
    q, rotated, scale = row(s.q, thread), part(row(s.z, thread), 0, n_q), np.float32(1 / math.sqrt(d))
    for j in range(n_q):
        rotated[j] = s.qkv[j] * scale
    if frequencies.size:
        for h in range(dims.n_heads):
            rotate(part(rotated, h * d, (h + 1) * d), rotation)
    prepare_queries(keys, d, rotated, q, q_scales)
    if thread == n_threads - 1:
        for h in range(dims.n_kv_heads):
            at = n_q + h * d
            key, value = part(s.qkv, at, at + d), part(s.qkv, at + n_kv, at + n_kv + d)
            if frequencies.size:
                rotate(key, rotation)
            store_head(keys, row(scales, 0), h, position, key)
            store_head(values, row(scales, 1), h, position, value)
    n = position + 1
    first, last = thread * n // n_threads, (thread + 1) * n // n_threads
    share = Share(row(s.scores, thread), row(s.mixture, thread), row(s.largest, thread), row(s.total, thread))
    attend(tile, dims, q, q_scales, keys, values, scales, first, last, share)
