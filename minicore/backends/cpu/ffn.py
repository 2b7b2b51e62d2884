"""One token's FFN: neurons of a list, read a block at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import overload

from minicore.backends.cpu.compiling import OVERLOAD, inlined, inner
from minicore.backends.cpu.intrinsics import array_at, exp, part, row
from minicore.backends.cpu.rows import add_rows, begin_sum, dot_rows, end_sum
from minicore.backends.cpu.table import B_GATE, B_IN, N_ROWS, N_STORED, ROWS, W_GATE, W_IN, W_OUT
from minicore.backends.dims import (
    FATRELU,
    GELU,
    GELU_TANH,
    IDENTITY,
    LEAKY_RELU,
    QUICK_GELU,
    RELU,
    RELU2,
    RELU6,
    SIGMOID,
    SILU,
    TANH,
)

# Neurons whose activations are computed at once: exponentials vectorise, and long blocks keep streams
# unbroken.
NEURON_BLOCK = 2048


@inner
def activate(x, code, threshold):  # (n,), int, float32 -> in place
    """Replace x by its activation; NaN stays NaN. ``threshold`` is that of FATReLU, 0 for ReLU."""
    if code == RELU or code == FATRELU:
        for i in range(x.size):
            x[i] = x[i] if not x[i] <= threshold else np.float32(0)
    elif code == SILU:
        for i in range(x.size):
            x[i] = x[i] / (np.float32(1) + exp(-x[i]))
    elif code == GELU_TANH:  # x times the logistic function of twice its inner polynomial
        for i in range(x.size):
            inside = np.float32(1.5957691216057308) * (x[i] + np.float32(0.044715) * x[i] * x[i] * x[i])
            x[i] = x[i] / (np.float32(1) + exp(-inside))
    elif code != IDENTITY:
        for i in range(x.size):
            x[i] = rare_activation(x[i], code)


@inner
def rare_activation(x, code):  # float32, int -> float32
    """Return the activation of x by the functions of the C library, for families that are seldom used."""
    one = np.float32(1)
    if code == RELU2:
        return x * x if not x <= 0 else np.float32(0)
    if code == GELU:
        return np.float32(0.5) * x * (one + np.float32(math.erf(x * np.float32(0.7071067811865476))))
    if code == QUICK_GELU:
        return x / (one + np.float32(math.exp(np.float32(-1.702) * x)))
    if code == RELU6:
        return np.float32(0) if x <= 0 else (np.float32(6) if x >= 6 else x)
    if code == LEAKY_RELU:
        return np.float32(0.01) * x if x < 0 else x
    if code == TANH:
        return np.float32(math.tanh(x))
    if code == SIGMOID:
        return one / (one + np.float32(math.exp(-x)))
    # Mish: log(1 + exp(x)) without overflow
    soft = (x if x > 0 else np.float32(0)) + np.float32(math.log1p(math.exp(-abs(x))))
    return x * np.float32(math.tanh(soft))


@inlined
def ffn(like, w, first, last, threshold, dims, options, x, neurons, activations, y):
    """Add to y what neurons [first, last) of the layer's list contribute; return the number of output rows
    read.

    ``w`` is the layer's row of the table of weights. For each block of neurons: gates (in families without,
    activations) from their rows, up rows for the gates that are larger in magnitude than the threshold,
    output rows for the activations that are not zero. A negative threshold leaves out none. Nothing of
    width n_neurons is stored: ``neurons`` (NEURON_BLOCK,) and ``activations`` (2, NEURON_BLOCK) hold a
    block.
    """
    d, m, n_used = dims.d_model, w[N_STORED], 0
    rows, a, up = array_at(w[ROWS], w[N_ROWS], neurons), row(activations, 0), row(activations, 1)
    w_first, b_first = (w[W_GATE], w[B_GATE]) if dims.gated else (w[W_IN], w[B_IN])
    quarter = (last - first) // 4
    begin_sum(like, d, y)
    for start in range(0, last - first, NEURON_BLOCK):
        n = NEURON_BLOCK if last - first - start > NEURON_BLOCK else last - first - start
        for r in range(start, start + n):  # quarters of the share take turns: four streams, as in matvec
            at = first + (r % 4 * quarter + r // 4 if r < 4 * quarter else r)
            neurons[r - start] = rows[at] if w[ROWS] else at
        _products(like, w_first, b_first, m, d, n, neurons, x, a)
        activate(part(a, 0, n), dims.activation, dims.activation_threshold)
        if dims.gated:
            n = _compress(threshold, n, neurons, a)
            _products(like, w[W_IN], w[B_IN], m, d, n, neurons, x, up)
            activated_up(options, part(up, 0, n))
            for r in range(n):
                a[r] *= up[r]
            threshold_left = np.float32(0)
        else:
            threshold_left = threshold if threshold > 0 else np.float32(0)
        # a neuron that is zero adds nothing: its row stays unread
        n = _compress(threshold_left, n, neurons, a)
        n_used += n
        for r in range(n, n + -n % 4):  # four rows at a time: y is read and written a quarter as often
            neurons[r], a[r] = neurons[n - 1], np.float32(0)
        for r in range(0, n, 4):
            four = neurons[r], neurons[r + 1], neurons[r + 2], neurons[r + 3]
            add_rows(like, w[W_OUT], m, d, four, (a[r], a[r + 1], a[r + 2], a[r + 3]), y)
    end_sum(like, d, y)
    return n_used


@inner
def _products(like, w, b, m, d, n, neurons, x, a):
    """Write rows neurons[:n] of ``w @ x + b`` to a[:n]; w and b are addresses, b 0 for none."""
    for r in range(n, n + -n % 4):
        neurons[r] = neurons[n - 1]
    for r in range(0, n, 4):
        four = neurons[r], neurons[r + 1], neurons[r + 2], neurons[r + 3]
        a[r], a[r + 1], a[r + 2], a[r + 3] = dot_rows(like, w, m, d, four, x)
    if b:
        bias = array_at(b, m, a)
        for r in range(n):
            a[r] += bias[neurons[r]]


@inner
def _compress(threshold, n, neurons, a):
    """Move the entries with |a| above the threshold, or NaN, to the front; return how many they are."""
    kept = 0
    for r in range(n):
        if not abs(a[r]) <= threshold:
            neurons[kept], a[kept] = neurons[r], a[r]
            kept += 1
    return kept


def activated_up(options: Any, up: Any) -> None:  # Options or None, (n,) in place
    """Apply the activation of ups, which few families have."""
    raise NotImplementedError("compiled code only")


@overload(activated_up, jit_options=OVERLOAD)
def _activated_up(options, up):
    def plain(options, up):
        pass

    def special(options, up):
        activate(up, options.up_activation, np.float32(0))

    return plain if isinstance(options, types.NoneType) else special
