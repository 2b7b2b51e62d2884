"""One token through the whole model in plain Numba loops: float32, one thread, no vectors written by hand.

It follows the forward pass function by function, for one token instead of n, and computes what step.py
computes with LLVM vectors, threads and weight formats. A bias that a family lacks is a vector of zeros.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from minicore.backends.cpu.compiling import plain
from minicore.backends.dims import RELU, SILU

Array = np.ndarray


class Block(NamedTuple):
    """A layer's weights; without a gate, w_gate is (0, d_model)."""

    ln1_w: Array
    ln1_b: Array
    attn_w_q: Array
    attn_w_k: Array
    attn_w_v: Array
    attn_w_o: Array
    attn_b_q: Array
    attn_b_k: Array
    attn_b_v: Array
    attn_b_o: Array
    ln2_w: Array
    ln2_b: Array
    mlp_w_gate: Array
    mlp_w_in: Array
    mlp_w_out: Array
    mlp_b_gate: Array
    mlp_b_in: Array
    mlp_b_out: Array


@plain
def embed(dims, w, w_position, token, position):  # Dims, (n_vocab, d), (n_ctx, d) or (0, d), ... -> (d,)
    """Look up the token's row, plus the position's where it is learned."""
    x = w[token].copy()
    if len(w_position):
        add(x, w_position[position + dims.position_offset])
    return x


@plain
def block(dims, p, rows, threshold, x, position, frequencies, keys, values):  # Dims, Block, ... -> int
    """Add a block's attention and FFN to the residual stream x (d,); return how many output rows it read."""
    add(x, attention(dims, p, norm(dims, x, p.ln1_w, p.ln1_b), position, frequencies, keys, values))
    out, n_used = ffn(dims, p, rows, threshold, norm(dims, x, p.ln2_w, p.ln2_b))
    add(x, out)
    return n_used


@plain
def norm(dims, x, w, b):  # Dims, (d,), (d,), (d,) -> (d,)
    """Apply RMSNorm, or LayerNorm where the family has it."""
    mean, square = np.float32(0), np.float32(0)
    if dims.layer_norm:
        for value in x:
            mean += value / np.float32(x.size)
    for value in x:
        square += (value - mean) * (value - mean)
    scale = np.float32(1 / math.sqrt(square / x.size + dims.eps))
    y = np.empty_like(x)
    for j in range(x.size):
        y[j] = (x[j] - mean) * scale * w[j] + b[j]
    return y


@plain
def attention(
    dims, p, x, position, frequencies, keys, values
):  # ..., (n_kv_heads, n_ctx, d_head) twice -> (d,)
    """Write this position's key and value to the cache and attend over all positions so far."""
    d, n = dims.d_head, position + 1
    q = linear(p.attn_w_q, p.attn_b_q, x)
    k, v = linear(p.attn_w_k, p.attn_b_k, x), linear(p.attn_w_v, p.attn_b_v, x)
    rotate(q, d, position, frequencies)
    rotate(k, d, position, frequencies)
    for j in range(k.size):
        keys[j // d, position, j % d], values[j // d, position, j % d] = k[j], v[j]
    z, scores, n_heads = np.zeros_like(q), np.empty(n, np.float32), q.size // d
    for head in range(n_heads):
        kv, mine = (
            head * dims.n_kv_heads // n_heads,
            z[head * d : (head + 1) * d],
        )  # neighbours share a key head
        for t in range(n):
            scores[t] = dot(keys[kv, t], q[head * d : (head + 1) * d]) / np.float32(math.sqrt(d))
        softmax(scores)
        for t in range(n):
            for j in range(d):
                mine[j] += scores[t] * values[kv, t, j]
    return linear(p.attn_w_o, p.attn_b_o, z)


@plain
def ffn(dims, p, rows, threshold, x):  # ..., (n_rows,) int32, float32, (d,) -> (d,), int
    """Sum the listed neurons' rows of w_out, each times its activation; also return how many rows were read.

    A neuron whose gate is not larger in magnitude than the threshold is left out, and so is one that is zero.
    """
    y, n_used, gated = p.mlp_b_out[: x.size].copy(), 0, len(p.mlp_w_gate) > 0
    w, b = (p.mlp_w_gate, p.mlp_b_gate) if gated else (p.mlp_w_in, p.mlp_b_in)
    for i in rows:
        gate = activate(dims.activation, dot(w[i], x) + b[i])
        if abs(gate) <= threshold:
            continue
        a = gate * (dot(p.mlp_w_in[i], x) + p.mlp_b_in[i]) if gated else gate
        if a != 0:
            n_used += 1
            for j in range(x.size):
                y[j] += a * p.mlp_w_out[i, j]
    return y, n_used


@plain
def unembed(dims, w, b, head, x):  # Dims, (d,), (d,), (n_vocab, d), (d,) -> (n_vocab,)
    """Apply the last norm and the head."""
    return linear(head, np.zeros(len(head), np.float32), norm(dims, x, w, b))


@plain
def linear(w, b, x):  # (m, d), (m,), (d,) -> (m,)
    """Return w @ x + b, one row after another, as w lies in memory."""
    y = np.empty(len(w), np.float32)
    for i in range(len(w)):
        y[i] = dot(w[i], x) + b[i]
    return y


@plain
def dot(w, x):  # (d,), (d,) -> float32
    """Return the sum of products, in any order: only then does the loop become vector instructions."""
    total = np.float32(0)
    for j in range(x.size):
        total += w[j] * x[j]
    return total


@plain
def add(x, y):  # (d,) in place, (d,)
    for j in range(x.size):
        x[j] += y[j]


@plain
def rotate(x, d_head, position, frequencies):  # (heads * d_head,), int, int, (d_head // 2,) or (0,)
    """Rotate the pairs (j, j + d_head // 2) of each head by position times frequency, in place."""
    for j in range(frequencies.size):
        angle = np.float32(position) * frequencies[j]
        cos, sin = math.cos(angle), math.sin(angle)
        for i in range(j, x.size, d_head):
            first, second = x[i], x[i + d_head // 2]
            x[i], x[i + d_head // 2] = first * cos - second * sin, second * cos + first * sin


@plain
def softmax(x):  # (n,) in place
    """Replace x by exp(x) over its sum; the largest entry is subtracted first."""
    largest, total = x.max(), np.float32(0)
    for t in range(x.size):
        x[t] = math.exp(x[t] - largest)
        total += x[t]
    for t in range(x.size):
        x[t] /= total


@plain
def activate(code, x):  # int, float32 -> float32
    """Apply the family's activation; NaN stays NaN."""
    if code == RELU:
        return x if not x <= 0 else np.float32(0)
    if code == SILU:
        return x / (np.float32(1) + math.exp(-x))
    inside = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (np.float32(1) + math.tanh(inside))  # GELU_TANH
