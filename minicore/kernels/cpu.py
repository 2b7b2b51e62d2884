"""Matrix-vector products, the fused sparse FFN and attention of one token, for the CPU.

At batch one a weight is read once and used once, so time is bytes over memory bandwidth: rows are
read whole and in order, threads share them out evenly, and nothing is written but the result.
Matrices are float32, or bfloat16 as uint16 bits, widened on the fly.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np
from numba.core import types
from numba.extending import overload

from minicore.kernels import FAST

Array = np.ndarray

RELU, SILU, GELU_TANH = range(3)
ACTIVATION_CODES = {"relu": RELU, "silu": SILU, "gelu_tanh": GELU_TANH}


def bits(w: Array) -> Array:  # any shape -> the same
    """Return a matrix as kernels read it: float32 as it is, bfloat16 as uint16 without a copy."""
    return w if w.dtype == np.float32 else w.view(np.uint16)


def _widen(w):  # type: ignore[no-untyped-def]
    """Return one weight as float32."""
    raise NotImplementedError("compiled code only")


@overload(_widen, inline="always")
def _widen_overload(w):  # type: ignore[no-untyped-def]
    if isinstance(w, types.Float):
        return lambda w: w
    return lambda w: np.uint32(np.uint32(w) << np.uint32(16)).view(np.float32)  # bfloat16 is the upper half


@nb.njit(fastmath=FAST, inline="always")
def _dot(w, x):  # type: ignore[no-untyped-def]  # (d,), (d,) -> float32
    total = np.float32(0)
    for j in range(x.size):
        total += _widen(w[j]) * x[j]
    return total


@nb.njit(fastmath=FAST, inline="always")
def _activate(x, code):  # type: ignore[no-untyped-def]  # float32, int -> float32
    if code == RELU:
        return x if not x <= 0 else np.float32(0)  # NaN stays NaN
    if code == SILU:
        return x / (np.float32(1) + math.exp(-x))
    inner = np.float32(0.7978845608028654) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (np.float32(1) + math.tanh(inner))


@nb.njit(parallel=True, fastmath=FAST, cache=True)
def gemv(w, x, b, y):  # type: ignore[no-untyped-def]  # (m, d), (d,), (m,) or (0,), (m,)
    """Write ``w @ x + b`` to y; an empty b stands for none."""
    for i in nb.prange(w.shape[0]):
        y[i] = _dot(w[i], x) + (b[i] if b.size else np.float32(0))


@nb.njit(parallel=True, fastmath=FAST, cache=True)
def ffn(w_gate, w_in, w_out, b_gate, b_in, b_out, rows, code, threshold, x, partial, y):  # type: ignore[no-untyped-def]
    # (n, d) x 3, (n,) or (0,) x 2, (d,) or (0,), (n_core,), int, float32, (d,), (n_threads, d), (d,) -> int
    """Write the FFN over the listed neurons alone to y; an empty w_gate means it is not gated.

    One pass: a neuron's activation is made from its input rows and its output row added at once, into
    one sum a thread, so that nothing of width n_neurons is ever stored. A neuron whose activated gate
    (in families without gate: activation) is not above the threshold in magnitude is left out, its up and
    output rows unread; a negative threshold leaves out none. Returns how many output rows were read.
    """
    n_threads, n_core, n_used = partial.shape[0], rows.size, 0
    for t in nb.prange(n_threads):
        mine = partial[t]
        mine[:] = np.float32(0)
        for r in range(t * n_core // n_threads, (t + 1) * n_core // n_threads):
            i = rows[r]
            if w_gate.shape[0]:
                gate = _dot(w_gate[i], x) + (b_gate[i] if b_gate.size else np.float32(0))
            else:
                gate = _dot(w_in[i], x) + (b_in[i] if b_in.size else np.float32(0))
            a = _activate(gate, code)
            if abs(a) <= threshold:  # never true of NaN
                continue
            if w_gate.shape[0]:
                a *= _dot(w_in[i], x) + (b_in[i] if b_in.size else np.float32(0))
            if a != 0:  # an inactive ReLU neuron's output row need not be read
                n_used += 1
                for j in range(x.size):
                    mine[j] += a * _widen(w_out[i, j])
    for j in range(y.size):
        total = b_out[j] if b_out.size else np.float32(0)
        for t in range(n_threads):
            total += partial[t, j]
        y[j] = total
    return n_used


@nb.njit(parallel=True, fastmath=FAST, cache=True)
def attend(q, k, v, n_kv, scores, z):  # type: ignore[no-untyped-def]
    # (n_heads, d_head), (n_kv_heads, capacity, d_head) x 2, int, (n_heads, capacity), (n_heads, d_head)
    """Write each head's mixture of the first n_kv values to z; scores is scratch."""
    group = q.shape[0] // k.shape[0]
    scale = np.float32(1 / math.sqrt(q.shape[1]))
    for h in nb.prange(q.shape[0]):
        keys, values, s, out = k[h // group], v[h // group], scores[h], z[h]
        top = np.float32(-np.inf)
        for p in range(n_kv):
            s[p] = _dot(keys[p], q[h]) * scale
            if not s[p] <= top:
                top = s[p]
        total = np.float32(0)
        out[:] = np.float32(0)
        for p in range(n_kv):
            weight = math.exp(s[p] - top)
            total += weight
            for j in range(out.size):
                out[j] += weight * values[p, j]
        for j in range(out.size):
            out[j] /= total
