"""One token through the whole model: a decode step as one compiled call a thread.

Threads share a token's work phase by phase and meet at a barrier between phases, four times a layer:

    sum the last FFN's parts, norm, rows of q k v | attend over my positions | rows of w_o
    | add, norm, my neurons of the FFN into my part | ...

Each thread keeps its own copy of the residual stream, so that adding and norms need no barrier. Threads
take equal shares of rows, so equal shares of bytes, and go over four quarters of a share side by side: four
streams from memory bring more than one, and the CPU sees by itself how they go on (docs/speed.md). Weights
are found through ``plan``, a table of addresses, so that rows can lie anywhere: in the loaded arrays,
compacted, or in a mapped file.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba as nb
import numpy as np

from minicore.backends.cpu import FAST
from minicore.backends.cpu.attention import arrange, attend, gather, keep
from minicore.backends.cpu.intrinsics import WAITING, barrier, called, exp, view1
from minicore.backends.cpu.rows import axpy4, begin_sum, dots, end_sum, prepare, row_to_float32
from minicore.config import ModelConfig

RELU, SILU, GELU_TANH = range(3)
ACTIVATION_CODES = {"relu": RELU, "silu": SILU, "gelu_tanh": GELU_TANH}
# neurons whose activations are computed at once: exponentials vectorise, long blocks keep streams unbroken
BLOCK = 2048

# columns of the plan: addresses, 0 for what a model does not have, and the neurons' rows with their number
COLUMNS = (
    *("ln1.w", "ln1.b", "attn.w_q", "attn.w_k", "attn.w_v", "attn.w_o"),
    *("attn.b_q", "attn.b_k", "attn.b_v", "attn.b_o", "ln2.w", "ln2.b"),
    *("mlp.w_gate", "mlp.w_in", "mlp.w_out", "mlp.b_gate", "mlp.b_in", "mlp.b_out"),
    *("rows", "n_rows", "n_stored"),
)
LN1_W, LN1_B, W_Q, W_K, W_V, W_O, B_Q, B_K, B_V, B_O, LN2_W, LN2_B = range(12)
W_GATE, W_IN, W_OUT, B_GATE, B_IN, B_OUT, ROWS, N_ROWS, N_STORED = range(12, 21)
# the plan's last row is the rest of the model
EMBED, POS_EMBED, LN_F_W, LN_F_B, HEAD = range(5)


class Dims(NamedTuple):
    """What of a ModelConfig the kernels read."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    n_vocab: int
    n_positions: int
    position_offset: int
    layer_norm: bool
    eps: float
    activation: int
    gated: bool


def constants(cfg: ModelConfig) -> dict[str, Any]:
    """Return what every compiled step is told of a model, here and on a GPU."""
    return {
        "n_layers": cfg.n_layers,
        "d_model": cfg.d_model,
        "n_heads": cfg.n_heads,
        "n_kv_heads": cfg.n_kv_heads,
        "d_head": cfg.d_head,
        "n_vocab": cfg.n_vocab,
        "position_offset": cfg.position_offset,
        "layer_norm": cfg.norm == "layernorm",
        "eps": cfg.norm_eps,
        "activation": ACTIVATION_CODES[cfg.activation],
        "gated": cfg.gated,
    }


class State(NamedTuple):
    """Buffers of a decoder, made once: a step allocates nothing.

    Most have a row a thread: ``part`` holds each thread's sum of the FFN, ``mixed``, ``top`` and ``mass`` its
    attention over its positions, ``q_scales`` the scales of its quantized queries, ``n_used``
    (n_threads, n_layers) the output rows it has read, ``flags`` where it waits for a call. ``call`` says what
    is asked for: token, position, barriers passed before.
    """

    x: np.ndarray
    normed: np.ndarray
    q: np.ndarray
    q_scales: np.ndarray
    z: np.ndarray
    block: np.ndarray
    chosen: np.ndarray
    scores: np.ndarray
    rotation: np.ndarray
    part: np.ndarray
    qkv: np.ndarray
    mixed: np.ndarray
    top: np.ndarray
    mass: np.ndarray
    out: np.ndarray
    logits: np.ndarray
    n_used: np.ndarray
    call: np.ndarray
    flags: np.ndarray
    counter: np.ndarray


@nb.njit(fastmath=FAST)
def normalise(x, w_address, b_address, dims, out):  # type: ignore[no-untyped-def]  # (d,), ... -> out (d,)
    """Write the norm of x to out."""
    w = view1(w_address, x.size, x)
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
        out[j] = (x[j] - mean) * scale * w[j]
    if b_address:
        b = view1(b_address, x.size, x)
        for j in range(x.size):
            out[j] += b[j]


@nb.njit(fastmath=FAST, error_model="numpy")  # a check for zero at each division would forbid vectors
def activate(x, code):  # type: ignore[no-untyped-def]  # (n,), int -> in place
    """Replace x by its activation; NaN stays NaN."""
    if code == RELU:
        for i in range(x.size):
            x[i] = x[i] if not x[i] <= 0 else np.float32(0)
    elif code == SILU:
        for i in range(x.size):
            x[i] = x[i] / (np.float32(1) + exp(-x[i]))
    else:  # tanh-GELU is x times the logistic function of twice its inner polynomial
        for i in range(x.size):
            inner = np.float32(1.5957691216057308) * (x[i] + np.float32(0.044715) * x[i] * x[i] * x[i])
            x[i] = x[i] / (np.float32(1) + exp(-inner))


@nb.njit(fastmath=FAST)
def matvec(like, w, b, m, d, first, last, x, y):  # type: ignore[no-untyped-def]
    """Write rows [first, last) of ``w @ x + b`` to y; w is m x d at an address, b an address or 0."""
    n = (last - first) // 4
    for i in range(first, first + n):
        j, k, r = i + n, i + 2 * n, i + 3 * n
        y[i], y[j], y[k], y[r] = dots(like, w, m, d, (i, j, k, r), x)
    for i in range(first + 4 * n, last):
        y[i] = dots(like, w, m, d, (i, i, i, i), x)[0]
    if b:
        bias = view1(b, m, y)
        for i in range(first, last):
            y[i] += bias[i]


@nb.njit(fastmath=FAST)
def rotate(x, rotation):  # type: ignore[no-untyped-def]  # (d_head,), (2, d_head // 2) -> in place
    """Rotate one head by the position's cosines and sines."""
    half = x.size // 2
    for j in range(half):
        first, second = x[j], x[j + half]
        x[j] = first * rotation[0, j] - second * rotation[1, j]
        x[j + half] = second * rotation[0, j] + first * rotation[1, j]


@nb.njit(inline="always")
def _neuron(listed, rows, first, last, r):  # type: ignore[no-untyped-def]
    """Return the neuron of places [first, last), by the list if there is one, that is the r-th to be read.

    Quarters take turns, as rows do in :func:`matvec`.
    """
    quarter = (last - first) // 4
    at = first + (r % 4 * quarter + r // 4 if r < 4 * quarter else r)
    return rows[at] if listed else at


@nb.njit(fastmath=FAST)
def ffn(like, p, first, last, threshold, dims, x, chosen, block, y):  # type: ignore[no-untyped-def]
    """Add to y what neurons [first, last) of the layer's list contribute; return the output rows read.

    A block at a time: gates (in families without, activations) from their rows, up rows for the gates that
    are larger in magnitude than the threshold, output rows for the activations that are not zero. A negative
    threshold leaves out none. Nothing of width n_neurons is stored.
    """
    d, m, n_used = dims.d_model, p[N_STORED], 0
    rows, a, up = view1(p[ROWS], p[N_ROWS], chosen), block[0], block[1]
    w, b = (p[W_GATE], p[B_GATE]) if dims.gated else (p[W_IN], p[B_IN])
    begin_sum(like, d, y)
    for start in range(0, last - first, BLOCK):
        n = min(BLOCK, last - first - start)
        for r in range(n):
            chosen[r] = _neuron(p[ROWS], rows, first, last, start + r)
        _activations(like, w, b, m, d, n, chosen, x, a)
        activate(a[:n], dims.activation)
        if dims.gated:
            n = _compress(threshold, n, chosen, a)
            _activations(like, p[W_IN], p[B_IN], m, d, n, chosen, x, up)
            for r in range(n):
                a[r] *= up[r]
            threshold_left = np.float32(0)
        else:
            threshold_left = max(threshold, np.float32(0))
        # a neuron that is zero adds nothing: its row stays unread
        n = _compress(threshold_left, n, chosen, a)
        n_used += n
        for r in range(n, n + -n % 4):  # four rows at a time: y is passed over a quarter as often
            chosen[r], a[r] = chosen[n - 1], np.float32(0)
        for r in range(0, n, 4):
            axpy4(like, p[W_OUT], m, d, chosen, a, r, y)
    end_sum(like, d, y)
    return n_used


@nb.njit(fastmath=FAST)
def _activations(like, w, b, m, d, n, chosen, x, a):  # type: ignore[no-untyped-def]
    """Write rows chosen[:n] of ``w @ x + b`` to a[:n]."""
    for r in range(n, n + -n % 4):
        chosen[r] = chosen[n - 1]
    for r in range(0, n, 4):
        four = chosen[r], chosen[r + 1], chosen[r + 2], chosen[r + 3]
        a[r], a[r + 1], a[r + 2], a[r + 3] = dots(like, w, m, d, four, x)
    if b:
        bias = view1(b, m, a)
        for r in range(n):
            a[r] += bias[chosen[r]]


@nb.njit
def _compress(threshold, n, chosen, a):  # type: ignore[no-untyped-def]
    """Move the entries with |a| above the threshold, or NaN, to the front; return how many they are."""
    kept = 0
    for r in range(n):
        if not abs(a[r]) <= threshold:
            chosen[kept], a[kept] = chosen[r], a[r]
            kept += 1
    return kept


@nb.njit(nogil=True, cache=True, fastmath=FAST)
def step(thread, n_threads, like, dims, plan, thresholds, frequencies, keys, values, scales, s):  # type: ignore[no-untyped-def]
    """Read the token of ``s.call``: extend keys and values, leave the logits in ``s.logits``.

    All threads but the first go on for as long as they are called again within a while.

    Parameters
    ----------
    thread, n_threads : int
        Which share of the work this call does; all shares must run at once.
    like : array
        Its dtype names the weights' format.
    dims : Dims
    plan : (n_layers + 1, len(COLUMNS)) int64
    thresholds : (n_layers,) float32
        Gates of smaller magnitude are left out; negative for none.
    frequencies : (d_head // 2,) float32, or (0,) where positions are learned
    keys, values : (n_layers, n_kv_heads, capacity, d_head) float32, uint16 for bfloat16, or int8
    scales : (n_layers, 2, n_kv_heads, capacity) float32
        Of int8 keys and values; (n_layers, 2, n_kv_heads, 0) where there are none.
    s : State
    """
    while True:
        passed = _read(thread, n_threads, like, dims, plan, thresholds, frequencies, keys, values, scales, s)
        s.flags[thread, 0] = WAITING
        barrier(s.counter, n_threads, passed)
        if thread == 0 or not called(s.flags[thread]):
            return


@nb.njit(inline="always")  # on its own it would be compiled twice, a quarter of a minute more
def _read(thread, n_threads, like, dims, plan, thresholds, frequencies, keys, values, scales, s):  # type: ignore[no-untyped-def]
    """Do a thread's share of a token, all but the last barrier; return how many barriers it has passed."""
    token, position, passed = s.call[0], s.call[1], s.call[2]
    d, n_q, n_kv = dims.d_model, dims.n_heads * dims.d_head, dims.n_kv_heads * dims.d_head
    x, normed, z, rest = s.x[thread], s.normed[thread], s.z[thread], plan[dims.n_layers]
    row_to_float32(like, rest[EMBED], dims.n_vocab, d, token, x)
    if rest[POS_EMBED]:
        row_to_float32(like, rest[POS_EMBED], dims.n_positions, d, position + dims.position_offset, normed)
        for j in range(d):
            x[j] += normed[j]
    rotation = s.rotation[thread]
    for j in range(frequencies.size):
        angle = np.float32(position) * frequencies[j]
        rotation[0, j], rotation[1, j] = math.cos(angle), math.sin(angle)
    for layer in range(dims.n_layers):
        p = plan[layer]
        normalise(x, p[LN1_W], p[LN1_B], dims, normed)
        prepare(like, d, normed)
        for part in range(3):
            m = n_q if part == 0 else n_kv
            at = 0 if part == 0 else n_q + (part - 1) * n_kv
            rows = thread * m // n_threads, (thread + 1) * m // n_threads
            matvec(like, p[W_Q + part], p[B_Q + part], m, d, rows[0], rows[1], normed, s.qkv[at : at + m])
        passed = barrier(s.counter, n_threads, passed)
        _attention(
            thread, n_threads, dims, position, frequencies, keys[layer], values[layer], scales[layer], s
        )
        passed = barrier(s.counter, n_threads, passed)
        gather(n_threads, dims, s.mixed, s.top, s.mass, z)
        prepare(like, n_q, z)
        rows = thread * d // n_threads, (thread + 1) * d // n_threads
        matvec(like, p[W_O], p[B_O], d, n_q, rows[0], rows[1], z, s.out)
        passed = barrier(s.counter, n_threads, passed)
        for j in range(d):
            x[j] += s.out[j]
        normalise(x, p[LN2_W], p[LN2_B], dims, normed)
        prepare(like, d, normed)
        mine = s.part[thread]
        mine[:] = np.float32(0)
        rows = thread * p[N_ROWS] // n_threads, (thread + 1) * p[N_ROWS] // n_threads
        s.n_used[thread, layer] += ffn(
            like,
            p,
            rows[0],
            rows[1],
            thresholds[layer],
            dims,
            normed,
            s.chosen[thread],
            s.block[thread],
            mine,
        )
        passed = barrier(s.counter, n_threads, passed)
        for t in range(n_threads):
            for j in range(d):
                x[j] += s.part[t, j]
        if p[B_OUT]:
            bias = view1(p[B_OUT], d, x)
            for j in range(d):
                x[j] += bias[j]
    normalise(x, rest[LN_F_W], rest[LN_F_B], dims, normed)
    prepare(like, d, normed)
    rows = thread * dims.n_vocab // n_threads, (thread + 1) * dims.n_vocab // n_threads
    matvec(like, rest[HEAD], 0, dims.n_vocab, d, rows[0], rows[1], normed, s.logits)
    return passed


@nb.njit(fastmath=FAST)
def _attention(thread, n_threads, dims, position, frequencies, keys, values, scales, s):  # type: ignore[no-untyped-def]
    """Rotate the queries and attend over this thread's positions; the last thread writes the new one."""
    d, n_q, n_kv = dims.d_head, dims.n_heads * dims.d_head, dims.n_kv_heads * dims.d_head
    q, turned, scale = s.q[thread], s.z[thread, :n_q], np.float32(1 / math.sqrt(dims.d_head))
    for j in range(n_q):
        turned[j] = s.qkv[j] * scale
    if frequencies.size:
        for h in range(dims.n_heads):
            rotate(turned[h * d : (h + 1) * d], s.rotation[thread])
    q_scales = s.q_scales[thread]
    arrange(keys, d, turned, q, q_scales)
    n = position + 1
    if thread == n_threads - 1:
        for h in range(dims.n_kv_heads):
            at = n_q + h * d
            key, value = s.qkv[at : at + d], s.qkv[at + n_kv : at + n_kv + d]
            if frequencies.size:
                rotate(key, s.rotation[thread])
            keep(keys, scales[0], h, position, key)
            keep(values, scales[1], h, position, value)
    attend(q, q_scales, keys, values, scales, thread * n // n_threads, (thread + 1) * n // n_threads, dims,
           s.scores[thread], s.mixed[thread], s.top[thread], s.mass[thread])  # fmt: skip
