"""One token's FFN: neurons of a list, read a block at a time."""

from __future__ import annotations

import numpy as np

from minicore.backends.cpu.compiling import inlined, inner
from minicore.backends.cpu.intrinsics import array_at, exp, part, row
from minicore.backends.cpu.rows import add_rows, begin_sum, dot_rows, end_sum
from minicore.backends.dims import RELU, SILU

# Neurons whose activations are computed at once: exponentials vectorise, and long blocks keep streams
# unbroken.
NEURON_BLOCK = 2048

# Columns of a layer's row in the table of weights (step.py) that the FFN reads.
W_GATE, W_IN, W_OUT, B_GATE, B_IN, B_OUT, ROWS, N_ROWS, N_STORED = range(12, 21)


@inner
def activate(x, code):  # (n,), int -> in place
    """Replace x by its activation; NaN stays NaN."""
    if code == RELU:
        for i in range(x.size):
            x[i] = x[i] if not x[i] <= 0 else np.float32(0)
    elif code == SILU:
        for i in range(x.size):
            x[i] = x[i] / (np.float32(1) + exp(-x[i]))
    else:  # tanh-GELU is x times the logistic function of twice its inner polynomial
        for i in range(x.size):
            inside = np.float32(1.5957691216057308) * (x[i] + np.float32(0.044715) * x[i] * x[i] * x[i])
            x[i] = x[i] / (np.float32(1) + exp(-inside))


@inlined
def ffn(like, w, first, last, threshold, dims, x, neurons, activations, y):
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
        activate(part(a, 0, n), dims.activation)
        if dims.gated:
            n = _compress(threshold, n, neurons, a)
            _products(like, w[W_IN], w[B_IN], m, d, n, neurons, x, up)
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
