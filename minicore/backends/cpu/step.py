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
from minicore.backends.cpu.family import (
    after_attention,
    after_ffn,
    before_attention,
    embedded,
    normed_heads,
    rotation_kind,
    seen_from,
)
from minicore.backends.cpu.ffn import ffn
from minicore.backends.cpu.intrinsics import WAITING, array_at, barrier, called, part, row
from minicore.backends.cpu.norms import add, clear, normalise
from minicore.backends.cpu.rows import dot_rows, prepare_input, row_to_float32
from minicore.backends.cpu.table import (
    B_O,
    B_Q,
    EMBED,
    HEAD,
    HEAD_B,
    LN_F_B,
    LN_F_W,
    N_ROWS,
    POS_EMBED,
    W_O,
    W_Q,
)


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
    rotation: np.ndarray  # (n_threads, n_kinds, 2, ...): cosines and sines of the position
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
def rotate(x, rotation, half):  # (d_head,), (2, >= half), int -> in place
    """Rotate the first 2 * half elements of one head by the position's cosines and sines."""
    for j in range(half):
        first, second = x[j], x[j + half]
        x[j] = first * rotation[0, j] - second * rotation[1, j]
        x[j + half] = second * rotation[0, j] + first * rotation[1, j]


@kernel
def step(
    thread,
    n_threads,
    like,
    tile,
    dims,
    options,
    weights,
    thresholds,
    frequencies,
    rope_scales,
    keys,
    values,
    scales,
    s,
):
    """Read the token of ``s.call``: extend keys and values, leave the logits in ``s.logits``.

    All threads but the first go on for as long as they are called again soon enough. If one has failed, all
    return without an answer.

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
    options : Options or None
    frequencies : (n_kinds, d_rope // 2) float32, or (1, 0) where heads are not rotated
    rope_scales : (n_kinds,) float32
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
        _embed(like, dims, options, rest, s.call[0], s.call[1], x, normed)
        _rotations(frequencies, rope_scales, s.call[1], row(s.rotation, thread))
        for layer in range(dims.n_layers):
            w = row(weights, layer)
            before_attention(options, x, w, dims, normed)
            prepare_input(like, d, normed)
            for which in range(3):  # q, k, v
                m = n_q if which == 0 else n_kv
                at = 0 if which == 0 else n_q + (which - 1) * n_kv
                first, last = thread * m // n_threads, (thread + 1) * m // n_threads
                y = part(s.qkv, at, at + m)
                matvec(like, w[W_Q + which], w[B_Q + which], m, d, first, last, normed, y)
            passed = barrier(s.counter, n_threads, passed)
            if passed < 0:  # another thread has failed
                return
            _attention(
                thread,
                n_threads,
                tile,
                dims,
                options,
                layer,
                frequencies.shape[1],
                row(keys, layer),
                row(values, layer),
                row(scales, layer),
                s,
            )
            passed = barrier(s.counter, n_threads, passed)
            if passed < 0:  # another thread has failed
                return
            merge_shares(n_threads, dims, s.mixture, s.largest, s.total, z)
            prepare_input(like, n_q, z)
            first, last = thread * d // n_threads, (thread + 1) * d // n_threads
            matvec(like, w[W_O], w[B_O], d, n_q, first, last, z, s.attn_out)
            passed = barrier(s.counter, n_threads, passed)
            if passed < 0:  # another thread has failed
                return
            after_attention(options, thread, layer, x, s.attn_out, w, dims, normed)
            prepare_input(like, d, normed)
            clear(mine)
            first, last = thread * w[N_ROWS] // n_threads, (thread + 1) * w[N_ROWS] // n_threads
            s.n_used[thread, layer] += ffn(
                like, w, first, last, thresholds[layer], dims, options, normed, row(s.neurons, thread),
                row(s.activations, thread), mine,
            )  # fmt: skip
            passed = barrier(s.counter, n_threads, passed)
            if passed < 0:  # another thread has failed
                return
            after_ffn(options, thread, layer, n_threads, x, s.ffn_out, w, dims)
        if rest[LN_F_W]:
            normalise(x, rest[LN_F_W], rest[LN_F_B], dims, normed)
        else:
            clear(part(normed, 0, d))
            add(normed, x, d)
        prepare_input(like, d, normed)
        first, last = thread * dims.n_vocab // n_threads, (thread + 1) * dims.n_vocab // n_threads
        matvec(like, rest[HEAD], rest[HEAD_B], dims.n_vocab, d, first, last, normed, s.logits)
        s.flags[thread, 0] = WAITING
        barrier(s.counter, n_threads, passed)
        if thread == 0 or not called(row(s.flags, thread)):
            return


@inlined
def _embed(like, dims, options, rest, token, position, x, place):
    """Write the token's embedding to x, plus the position's if that is learned."""
    row_to_float32(like, rest[EMBED], dims.n_vocab, dims.d_model, token, x)
    embedded(options, x)
    if rest[POS_EMBED]:
        at = position + dims.position_offset
        row_to_float32(like, rest[POS_EMBED], dims.n_positions, dims.d_model, at, place)
        add(x, place, dims.d_model)


@inlined
def _rotations(frequencies, scales, position, rotation):  # (n_kinds, d_rope // 2), (n_kinds,), ...
    """Write cosines and sines of a position, times the kind's scale, to rotation (n_kinds, 2, ...)."""
    for kind in range(len(frequencies)):
        for j in range(frequencies.shape[1]):
            angle = np.float32(position) * frequencies[kind, j]
            rotation[kind, 0, j] = scales[kind] * np.float32(math.cos(angle))
            rotation[kind, 1, j] = scales[kind] * np.float32(math.sin(angle))


@inlined
def _attention(thread, n_threads, tile, dims, options, layer, half, keys, values, scales, s):
    """Attend over this thread's positions; the last thread also stores the new key and value."""
    d, n_q, n_kv = dims.d_head, dims.n_heads * dims.d_head, dims.n_kv_heads * dims.d_head
    position, q_scales = s.call[1], row(s.q_scales, thread)
    rotation = row(row(s.rotation, thread), rotation_kind(options, layer))
    q, rotated = row(s.q, thread), part(row(s.z, thread), 0, n_q)
    for j in range(n_q):
        rotated[j] = s.qkv[j]
    normed_heads(options, layer, 0, dims, rotated)
    for h in range(dims.n_heads if half else 0):
        rotate(part(rotated, h * d, (h + 1) * d), rotation, half)
    for j in range(n_q):
        rotated[j] *= dims.score_scale
    prepare_queries(keys, d, rotated, q, q_scales)
    if thread == n_threads - 1:
        normed_heads(options, layer, 1, dims, part(s.qkv, n_q, n_q + n_kv))
        for h in range(dims.n_kv_heads):
            at = n_q + h * d
            key, value = part(s.qkv, at, at + d), part(s.qkv, at + n_kv, at + n_kv + d)
            if half:
                rotate(key, rotation, half)
            store_head(keys, row(scales, 0), h, position, key)
            store_head(values, row(scales, 1), h, position, value)
    start = seen_from(options, layer, position)
    n = position + 1 - start
    first, last = start + thread * n // n_threads, start + (thread + 1) * n // n_threads
    share = Share(row(s.scores, thread), row(s.mixture, thread), row(s.largest, thread), row(s.total, thread))
    attend(tile, dims, options, q, q_scales, keys, values, scales, first, last, share)
