"""Dot products of int8 rows: groups of 64 elements, each with a float16 scale (minicore.quantization).

Rows of w_in, w_gate and the attention matrices meet a vector that is quantized too, so that products are
sums of integers (dp4a). Rows of the transposed w_out meet activations in float32.
"""

from __future__ import annotations

import numpy as np

from minicore.backends.cuda.kernels.decode.vectors import any_nonzero
from minicore.backends.cuda.kernels.elements import half_element, signed_byte
from minicore.backends.cuda.kernels.intrinsics import (
    WARP_SIZE,
    cuda,
    device,
    dp4a,
    float_as_uint,
    half_to_float,
    load,
    load16,
    load16_cached,
    shared_float4,
    store,
    uint_as_float,
)
from minicore.backends.cuda.kernels.warp import group_max, group_sum
from minicore.quantization import GROUP

ROUNDER = 12582912.0  # 1.5 * 2^23: adding and subtracting it rounds a small float32 to an integer


@device
def quantize_if_int8(s, m, thread, x):
    """Quantize a vector that meets rows of weights if these are int8."""
    if s.int8:
        quantize(s, m, thread, x)
        cuda.syncthreads()


@device
def quantize(s, m, thread, x):
    """Quantize a vector as :func:`minicore.quantization.fake_quantize` does.

    The int8 codes and then the scales of its groups follow its floats. NaN or infinity makes the scale of
    its group NaN.
    """
    n_groups, width = x.n_padded // GROUP, min(WARP_SIZE, 16)  # lanes that share a group
    sublane = thread.tid & (width - 1)
    for g0 in range(0, n_groups, s.n_threads // width):  # all lanes take part in the shuffles of all turns
        g = g0 + thread.tid // width
        valid, largest, not_finite = g < n_groups, np.float32(0), np.float32(0)
        for k in range(sublane, GROUP // 4, width):
            v = shared_float4(m.shared, x.at + GROUP * min(g, n_groups - 1) + 4 * k)
            largest = max(largest, max(max(abs(v[0]), abs(v[1])), max(abs(v[2]), abs(v[3]))))
            not_finite += v[0] - v[0] + (v[1] - v[1]) + (v[2] - v[2] + (v[3] - v[3]))
        largest, not_finite = group_max(largest, width), group_sum(not_finite, width)
        scale = largest / np.float32(127)
        divisor = scale if scale > 0 and not_finite == 0 else np.float32(1)
        for k in range(sublane, GROUP // 4, width):
            v, word = shared_float4(m.shared, x.at + GROUP * min(g, n_groups - 1) + 4 * k), np.uint32(0)
            if not_finite == 0:
                word = code_bits(v[0] / divisor, 0) | code_bits(v[1] / divisor, 8)
                word = np.uint32(word | code_bits(v[2] / divisor, 16) | code_bits(v[3] / divisor, 24))
            if valid:
                store(m.shared, x.at + x.n_padded + GROUP // 4 * g + k, uint_as_float(word))
        if valid and sublane == 0:
            store(m.shared, x.at + x.n_padded + x.n_padded // 4 + g, scale + not_finite)


@device
def code_bits(x, shift):
    """Return x rounded to an integer, half to even, as a byte of a uint32."""
    q = (x + np.float32(ROUNDER)) - np.float32(ROUNDER)
    return np.uint32(np.int32(q) & 0xFF) << np.uint32(shift)


@device
def int8_row_dot(m, thread, arena, start, x):
    """Return a lane's part of an int8 row, whose scales follow it, times a quantized vector."""
    total, n_chunks, codes = np.float32(0), x.n_padded // 16, x.at + x.n_padded
    x_scales = x.at + x.n_padded + x.n_padded // 4
    for c in range(thread.lane, n_chunks, 2 * WARP_SIZE):  # two loads in flight
        far = c + WARP_SIZE
        w0, w1 = load16(arena, start + c, True), load16(arena, start + far, far < n_chunks)
        g0, g1 = c >> 2, min(far, n_chunks - 1) >> 2
        scale0 = half_element(arena, start + n_chunks, g0) * load(m.shared, x_scales + g0)
        scale1 = half_element(arena, start + n_chunks, g1) * load(m.shared, x_scales + g1)
        total += np.float32(int8_chunk_dot(w0, m.shared, codes + 4 * c)) * scale0
        total += np.float32(int8_chunk_dot(w1, m.shared, codes + 4 * min(far, n_chunks - 1))) * scale1
    return total


@device
def int8_chunk_dot(w, shared, at):  # -> int32
    """Return 16 int8 weights times the 16 int8 codes at a float of shared memory."""
    q = shared_float4(shared, at)
    total = dp4a(w[0], float_as_uint(q[0]), dp4a(w[1], float_as_uint(q[1]), np.int32(0)))
    return dp4a(w[2], float_as_uint(q[2]), dp4a(w[3], float_as_uint(q[3]), total))


@device
def int8_output_dot(s, m, thread, arena, start, i, n_chunks, x, sparse):
    """Return a lane's part of row i of the transposed int8 w_out times activations.

    A scale belongs to one neuron and 64 outputs. Rows of scales, with two chunks for each chunk of codes,
    follow all rows of codes. ``sparse`` loads no codes for which the activations are all zero.
    """
    total, scales = np.float32(0), start + (s.d_model + 2 * (i // GROUP)) * n_chunks
    for c in range(thread.lane, n_chunks, WARP_SIZE):
        w = load16(arena, start + i * n_chunks + c, not sparse or any_nonzero(m.shared, x, c))
        h, k = load16_cached(arena, scales + 2 * c), load16_cached(arena, scales + 2 * c + 1)
        at = x.at + 4 * c
        total += scaled_dot4(w[0], h[0], h[1], shared_float4(m.shared, at))
        total += scaled_dot4(w[1], h[2], h[3], shared_float4(m.shared, at + x.plane_stride))
        total += scaled_dot4(w[2], k[0], k[1], shared_float4(m.shared, at + 2 * x.plane_stride))
        total += scaled_dot4(w[3], k[2], k[3], shared_float4(m.shared, at + 3 * x.plane_stride))
    return total


@device
def scaled_dot4(codes, h0, h1, x):
    """Return four int8 codes times their float16 scales, two in h0 and two in h1, times four elements."""
    upper = np.uint32(16)
    w0 = np.float32(signed_byte(codes, 0)) * half_to_float(h0)
    w1 = np.float32(signed_byte(codes, 1)) * half_to_float(h0 >> upper)
    w2 = np.float32(signed_byte(codes, 2)) * half_to_float(h1)
    w3 = np.float32(signed_byte(codes, 3)) * half_to_float(h1 >> upper)
    return w0 * x[0] + w1 * x[1] + (w2 * x[2] + w3 * x[3])
