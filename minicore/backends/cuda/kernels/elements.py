"""Elements of weights in their three formats."""

from __future__ import annotations

import math

import numpy as np

from minicore.backends.cuda.kernels.intrinsics import as_bits, as_float, as_half, device, get
from minicore.backends.dims import RELU, SILU
from minicore.quantization import GROUP


@device
def number(arena, at, i, bf):  # type: ignore[no-untyped-def]
    """Return number i of a row of a matrix that begins at a 16-byte unit, or of a vector (bf false)."""
    if bf:
        return as_float((get(arena, 4 * at + (i >> 1)) >> np.uint32(16 * (i & 1))) << np.uint32(16))
    return as_float(get(arena, 4 * at + i))


@device
def byte(word, k):  # type: ignore[no-untyped-def]  # -> int32
    """Return signed byte k of a word."""
    return np.int32(((word >> np.uint32(8 * k)) & np.uint32(0xFF)) ^ np.uint32(0x80)) - np.int32(0x80)


@device
def half_at(arena, at, i):  # type: ignore[no-untyped-def]
    """Return float16 i behind a 16-byte unit."""
    return as_half(get(arena, 4 * at + (i >> 1)) >> np.uint32(16 * (i & 1)))


@device
def stored(arena, at, i, n, shift):  # type: ignore[no-untyped-def]
    """Return number i of a row of n that begins at a 16-byte unit."""
    if shift == 4:
        scale = half_at(arena, at + (n + GROUP - 1) // GROUP * (GROUP // 16), i // GROUP)
        return scale * np.float32(byte(get(arena, 4 * at + (i >> 2)), i & 3))
    return number(arena, at, i, shift == 3)


@device
def low(bits):  # type: ignore[no-untyped-def]
    """Return the first of two bfloat16: it is the upper half of a float32."""
    return as_float(bits << np.uint32(16))


@device
def high(bits):  # type: ignore[no-untyped-def]
    """Return the second of two bfloat16."""
    return as_float(bits & np.uint32(0xFFFF0000))


@device
def as_kept(x, rounded):  # type: ignore[no-untyped-def]
    """Return a number as the kv cache holds it: rounded to bfloat16, halves to even, or as it is."""
    if not rounded or x != x:
        return x
    bits = as_bits(x)
    bits = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return as_float(bits & np.uint32(0xFFFF0000))


@device
def activate(x, code):  # type: ignore[no-untyped-def]
    """Return the activation of x; NaN stays NaN."""
    if code == RELU:
        return np.float32(0) if x <= np.float32(0) else x
    if code == SILU:
        return x / (np.float32(1) + math.exp(-x))
    # tanh-GELU is x times the logistic function of twice its inner polynomial
    inner = np.float32(1.5957691216057308) * (x + np.float32(0.044715) * x * x * x)
    return x / (np.float32(1) + math.exp(-inner))
