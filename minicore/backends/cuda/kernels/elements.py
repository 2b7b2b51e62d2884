"""Single elements of stored weights, and functions of one element."""

from __future__ import annotations

import math

import numpy as np

from minicore.backends.cuda.kernels.intrinsics import (
    device,
    float_as_uint,
    half_to_float,
    load,
    uint_as_float,
)
from minicore.backends.dims import RELU, SILU
from minicore.quantization import GROUP


@device
def float_element(arena, start, i, bf16):
    """Return element i of a bfloat16 or float32 row that starts at a chunk."""
    if bf16:
        return uint_as_float((load(arena, 4 * start + (i >> 1)) >> np.uint32(16 * (i & 1))) << np.uint32(16))
    return uint_as_float(load(arena, 4 * start + i))


@device
def half_element(arena, start, i):
    """Return element i of a float16 row that starts at a chunk."""
    return half_to_float(load(arena, 4 * start + (i >> 1)) >> np.uint32(16 * (i & 1)))


@device
def element(arena, start, i, n, shift):
    """Return element i of a row of n elements, 1 << shift in a chunk, that starts at a chunk."""
    if shift == 4:
        scale = half_element(arena, start + (n + GROUP - 1) // GROUP * (GROUP // 16), i // GROUP)
        return scale * np.float32(signed_byte(load(arena, 4 * start + (i >> 2)), i & 3))
    return float_element(arena, start, i, shift == 3)


@device
def signed_byte(word, k):  # -> int32
    """Return int8 k of the four in a uint32."""
    return np.int32(((word >> np.uint32(8 * k)) & np.uint32(0xFF)) ^ np.uint32(0x80)) - np.int32(0x80)


@device
def bf16_low(word):
    """Return the first of two bfloat16 as float32, whose upper half it is."""
    return uint_as_float(word << np.uint32(16))


@device
def bf16_high(word):
    """Return the second of two bfloat16 as float32."""
    return uint_as_float(word & np.uint32(0xFFFF0000))


@device
def to_cache_precision(x, bf16):
    """Return x as the kv cache holds it: rounded to bfloat16, half to even, or unchanged."""
    if not bf16 or x != x:
        return x
    bits = float_as_uint(x)
    bits = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return uint_as_float(bits & np.uint32(0xFFFF0000))


@device
def activate(x, code):
    """Return an activation function of x; NaN stays NaN."""
    if code == RELU:
        return np.float32(0) if x <= np.float32(0) else x
    if code == SILU:
        return x / (np.float32(1) + math.exp(-x))
    # GELU by tanh: 0.5 x (1 + tanh(z)) = x sigmoid(2 z), with z = sqrt(2 / pi) (x + 0.044715 x^3)
    doubled = np.float32(1.5957691216057308) * (x + np.float32(0.044715) * x * x * x)
    return x / (np.float32(1) + math.exp(-doubled))
