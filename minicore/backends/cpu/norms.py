"""Norms and sums of single vectors."""

from __future__ import annotations

import math

import numpy as np

from minicore.backends.cpu.compiling import inner
from minicore.backends.cpu.intrinsics import array_at


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
