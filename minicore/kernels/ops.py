"""The maths of :mod:`minicore.ops` for whole prompts: matrix products by BLAS, the rest compiled.

Same names, arguments and results as there. BLAS does the products; what lies between them is one pass over
memory each, shared out over threads by rows.
"""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any

import numba as nb
import numpy as np

from minicore.kernels import FAST, team
from minicore.kernels.machine import exp
from minicore.kernels.select import add_counts
from minicore.kernels.step import ACTIVATION_CODES, activate
from minicore.ops import attend, f32, linear, rope_frequencies, weighted_rows  # noqa: F401 (as they are)

Array = np.ndarray

ADDERS = {"counts": add_counts}  # sums over tokens that recordings ask for (minicore.core.recording)
SMALL = 1 << 14  # numbers that one thread passes over sooner than another wakes up


def _share(function: Any, n_rows: int, size: int, *args: Any) -> None:
    team.run(function, team.default_threads() if size > SMALL else 1, n_rows, *args)


@nb.njit(nogil=True, cache=True, fastmath=FAST)
def _rms_norm(thread, n_threads, n, x, w, eps, y):  # type: ignore[no-untyped-def]  # (n, d), (d,), (n, d)
    for t in range(thread * n // n_threads, (thread + 1) * n // n_threads):
        square = np.float32(0)
        for j in range(x.shape[1]):
            square += x[t, j] * x[t, j]
        scale = np.float32(1) / np.float32(math.sqrt(square / np.float32(x.shape[1]) + eps))
        for j in range(x.shape[1]):
            y[t, j] = x[t, j] * scale * w[j]


def rms_norm(x: Array, w: Array, eps: float) -> Array:  # (n, d), (d,) -> (n, d)
    """See :func:`minicore.ops.rms_norm`."""
    y = np.empty_like(x)
    _share(_rms_norm, len(x), x.size, x, w, np.float32(eps), y)
    return y


@nb.njit(nogil=True, cache=True, fastmath=FAST)
def _layer_norm(thread, n_threads, n, x, w, b, eps, y):  # type: ignore[no-untyped-def]
    d = np.float32(x.shape[1])
    for t in range(thread * n // n_threads, (thread + 1) * n // n_threads):
        mean, square = np.float32(0), np.float32(0)
        for j in range(x.shape[1]):
            mean += x[t, j]
        mean /= d
        for j in range(x.shape[1]):
            square += (x[t, j] - mean) * (x[t, j] - mean)
        scale = np.float32(1) / np.float32(math.sqrt(square / d + eps))
        for j in range(x.shape[1]):
            y[t, j] = (x[t, j] - mean) * scale * w[j] + b[j]


def layer_norm(x: Array, w: Array, b: Array, eps: float) -> Array:  # (n, d), (d,), (d,) -> (n, d)
    """See :func:`minicore.ops.layer_norm`."""
    y = np.empty_like(x)
    _share(_layer_norm, len(x), x.size, x, w, b, np.float32(eps), y)
    return y


@nb.njit(nogil=True, cache=True, fastmath=FAST)
def _activate(thread, n_threads, n, x, code, y):  # type: ignore[no-untyped-def]  # (n, d), int, (n, d)
    for t in range(thread * n // n_threads, (thread + 1) * n // n_threads):
        y[t] = x[t]
        activate(y[t], code)


def _activation(name: str, x: Array) -> Array:  # (n, d) -> (n, d)
    y = np.empty_like(x)
    _share(_activate, len(x), x.size, x, ACTIVATION_CODES[name], y)
    return y


ACTIVATIONS = {name: partial(_activation, name) for name in ACTIVATION_CODES}


@nb.njit(nogil=True, cache=True, fastmath=FAST)
def _rope(thread, n_threads, n, x, cos, sin, y):  # type: ignore[no-untyped-def]  # (n, h, d), (n, d // 2) x 2
    half = x.shape[2] // 2
    for t in range(thread * n // n_threads, (thread + 1) * n // n_threads):
        for h in range(x.shape[1]):
            for j in range(half):
                first, second = x[t, h, j], x[t, h, j + half]
                y[t, h, j] = first * cos[t, j] - second * sin[t, j]
                y[t, h, j + half] = second * cos[t, j] + first * sin[t, j]


def rope(x: Array, positions: Array, frequencies: Array) -> Array:  # (n, heads, d_head), (n,) -> like x
    """See :func:`minicore.ops.rope`."""
    angles = positions.astype(np.float32)[:, None] * frequencies
    y = np.empty_like(x)
    _share(_rope, len(x), x.size, x, np.cos(angles), np.sin(angles), y)
    return y


@nb.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def causal_softmax(thread, n_threads, n, scores, scale, pattern):  # type: ignore[no-untyped-def]
    """Scale and mask rows of (n_heads, n_q, n_kv) scores and write their softmax; n is n_heads * n_q."""
    n_q, n_kv = scores.shape[1], scores.shape[2]
    for row in range(thread * n // n_threads, (thread + 1) * n // n_threads):
        s, p = scores[row // n_q, row % n_q], pattern[row // n_q, row % n_q]
        seen = n_kv - n_q + row % n_q + 1
        largest = np.float32(-np.inf)
        for j in range(seen):
            s[j] *= scale
            largest = largest if not s[j] > largest else s[j]
        total = np.float32(0)
        for j in range(seen):
            p[j] = exp(s[j] - largest)
            total += p[j]
        for j in range(seen):
            p[j] /= total
        for j in range(seen, n_kv):
            s[j], p[j] = np.float32(-np.inf), np.float32(0)


def attention_pattern(q: Array, k: Array) -> tuple[Array, Array]:
    # (n_q, n_heads, d_head), (n_kv_heads, n_kv, d_head) -> (n_heads, n_q, n_kv) twice
    """See :func:`minicore.ops.attention_pattern`."""
    n_q, n_heads, d_head = q.shape
    n_kv_heads, n_kv, _ = k.shape
    grouped = q.transpose(1, 0, 2).reshape(n_kv_heads, -1, d_head)
    scores = (grouped @ k.transpose(0, 2, 1)).reshape(n_heads, n_q, n_kv)
    pattern = np.empty_like(scores)
    _share(causal_softmax, n_heads * n_q, scores.size, scores, np.float32(1 / np.sqrt(d_head)), pattern)
    return scores, pattern


@cache
def compile_all() -> None:
    """Have all of it compiled, or its machine code read from disk, outside anybody's timing."""
    x, w = np.ones((1, 2), np.float32), np.ones(2, np.float32)
    rms_norm(x, w, 1e-5)
    layer_norm(x, w, w, 1e-5)
    for activation in ACTIVATIONS.values():
        activation(x)
    rope(x[None], np.zeros(1), w[:1])
    attention_pattern(x[None], x[None])
    add_counts(np.zeros(2, np.int64), x, 0.5)
