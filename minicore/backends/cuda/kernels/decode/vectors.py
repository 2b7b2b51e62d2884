"""Vectors in shared memory that are multiplied by rows of weights.

A lane multiplies one 16-byte chunk of weights at a time: 4 float32, 8 bfloat16 or 16 int8 elements. It
reads the vector in loads of 16 bytes, 4 elements each. Elements are interleaved so that neighbouring lanes
load neighbouring 16 bytes: first the elements 0 to 3 of every chunk, then the elements 4 to 7 of every
chunk, and so on. Each of these parts is a *plane*.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minicore.backends.cuda.kernels.intrinsics import device, shared_float4, store


class Vector(NamedTuple):
    """A vector in shared memory.

    Attributes
    ----------
    at : int
        Its first float.
    n, n_padded : int
        Its elements, without and with the zeros after them.
    plane_stride : int
        Floats from one plane to the next.
    shift : int
        1 << shift elements meet one chunk of weights.
    """

    at: int
    n: int
    n_padded: int
    plane_stride: int
    shift: int


@device
def interleaved(x, i):
    """Return the float of shared memory that holds element i of a vector."""
    plane = (i >> 2) & ((1 << (x.shift - 2)) - 1)
    return x.at + (plane * x.plane_stride + ((i >> x.shift) << 2) + (i & 3))


@device
def store_pair(shared, x, i, u, v):
    """Store elements i and i + 1 of a vector, i even."""
    at = interleaved(x, i)
    store(shared, at, u)
    store(shared, at + 1, v)


@device
def zero_padding(shared, x, thread, n_threads):
    """Store the zeros after the elements of a vector."""
    for i in range(x.n + thread.tid, x.n_padded, n_threads):
        store(shared, interleaved(x, i), np.float32(0))


@device
def any_nonzero(shared, x, c):
    """Return whether an element that meets chunk c is not zero."""
    found = False
    for plane in range(1 << (x.shift - 2)):
        a = shared_float4(shared, x.at + 4 * c + plane * x.plane_stride)
        found = found or a[0] != 0 or a[1] != 0 or a[2] != 0 or a[3] != 0
    return found
