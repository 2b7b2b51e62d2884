"""Attention of one new position over the kv cache.

The positions of a head are split over up to 8 blocks (Flash-Decoding; T. Dao et al., "Flash-Decoding for
long-context inference", 2023). Each block publishes the largest score of its split, the sum of exp(score -
largest) and the weighted sum of values. Every block then merges the splits of all heads with the rule of
online softmax (M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax",
arXiv:1805.02867).

Within a block, ``s.lanes_per_key`` neighbouring lanes read a key or value together. A thread reads four of
them at a time, ``gap`` positions apart, so that four loads are in flight. The new key and value come from
other blocks and may not be in the cache yet.
"""

from __future__ import annotations

import math

import numpy as np

from minicore.backends.cuda.kernels.decode.int8_rows import quantize_if_int8
from minicore.backends.cuda.kernels.decode.shape import SPLIT_POSITIONS
from minicore.backends.cuda.kernels.decode.vectors import store_pair
from minicore.backends.cuda.kernels.elements import to_cache_precision
from minicore.backends.cuda.kernels.intrinsics import (
    ALL_LANES,
    WARP_SIZE,
    cuda,
    device,
    ll_load2,
    ll_store,
    load,
    load_float4,
    shared_float4,
    store,
)
from minicore.backends.cuda.kernels.ll_protocol import ll_wait2, simulator_barrier
from minicore.backends.cuda.kernels.warp import group_sum4, warp_max


@device
def load_rope(s, m, thread, position):
    """Store the cosines and sines of a position's rotary embedding in shared memory."""
    if s.rope:
        for j in range(thread.tid, s.d_head // 2, s.n_threads):
            angle = np.float32(position) * m.frequencies[j]
            store(m.shared, s.shared.rope + j, math.cos(angle))
            store(m.shared, s.shared.rope + s.d_head // 2 + j, math.sin(angle))


@device
def rotate(s, m, j, u, v):
    """Return elements j and j + d_head / 2 of a head, rotated."""
    cos, sin = load(m.shared, s.shared.rope + j), load(m.shared, s.shared.rope + s.d_head // 2 + j)
    return u * cos - v * sin, v * cos + u * sin


@device
def split_bits_at(s, position):
    """Return log2 of the number of splits of the positions up to this one."""
    bits = 0
    while bits < s.split_bits and SPLIT_POSITIONS << bits <= position:
        bits += 1
    return bits


@device
def attend(s, m, thread, layer, position, flag, acc):
    """Publish this block's splits: for each, d_head sums of weighted values, largest score, denominator."""
    bits, group = split_bits_at(s, position), s.n_heads // s.n_kv_heads
    capacity = m.keys.shape[0] // (s.n_layers * s.n_kv_heads * s.d_head)
    simulator_barrier()
    for item in range(thread.block, s.n_heads << bits, s.n_blocks):
        head, split = item >> bits, item & ((1 << bits) - 1)
        first, end = split * (position + 1) >> bits, (split + 1) * (position + 1) >> bits
        row0 = np.int64((layer * s.n_kv_heads + head // group) * capacity)
        first_keys = load_first_four(s, m.keys, thread, row0, first, end, position)
        first_values = load_first_four(s, m.values, thread, row0, first, end, position)
        receive_qkv(s, m, thread, head, flag)
        if end == position + 1 and head % group == 0:
            for j in range(thread.tid, s.d_head, s.n_threads):
                at, new = (row0 + position) * s.d_head + j, s.shared.scratch + s.d_head + j
                store(m.keys, at, load(m.shared, new))
                store(m.values, at, load(m.shared, new + s.d_head))
        largest = score(s, m, thread, row0, first, end, position, first_keys)
        add_values(s, m, thread, row0, first, end, position, largest, acc, first_values)
        publish_split(s, m, thread, head, split, largest, flag)
        cuda.syncthreads()


# --- the new position ---


@device
def receive_qkv(s, m, thread, head, flag):
    """Store a head's new query, key and value in shared memory, the first two rotated, the query scaled."""
    half, kv_head = s.d_head // 2, head // (s.n_heads // s.n_kv_heads)
    for p in range(thread.tid, 3 * half // 2, s.n_threads):
        which, j = (
            p // (half // 2),
            2 * (p % (half // 2)),
        )  # query, key or value; a thread has j, j + 1 of both halves
        row = head * s.d_head if which == 0 else s.n_q + (which - 1) * s.n_kv + kv_head * s.d_head
        near, far = (row + j) >> 1, (row + half + j) >> 1
        near_loaded, far_loaded = ll_load2(m.words, near, True), ll_load2(m.words, far, True)
        u0, u1 = ll_wait2(m.words, near, near_loaded, flag)
        v0, v1 = ll_wait2(m.words, far, far_loaded, flag)
        if s.rope and which < 2:
            u0, v0 = rotate(s, m, j, u0, v0)
            u1, v1 = rotate(s, m, j + 1, u1, v1)
        factor = np.float32(1 / math.sqrt(s.d_head)) if which == 0 else np.float32(1)
        at, bf16 = s.shared.scratch + which * s.d_head + j, s.bf16_cache and which > 0
        store(m.shared, at, to_cache_precision(u0 * factor, bf16))
        store(m.shared, at + 1, to_cache_precision(u1 * factor, bf16))
        store(m.shared, at + half, to_cache_precision(v0 * factor, bf16))
        store(m.shared, at + half + 1, to_cache_precision(v1 * factor, bf16))
    cuda.syncthreads()


@device
def append_to_cache(s, m, thread, row):
    """Store the new key and value in a row of the kv cache."""
    for j in range(thread.tid, s.d_head, s.n_threads):
        store(m.keys, row * s.d_head + j, load(m.shared, s.shared.scratch + s.d_head + j))
        store(m.values, row * s.d_head + j, load(m.shared, s.shared.scratch + 2 * s.d_head + j))


# --- loading four keys or values ---


@device
def load_first_four(s, x, thread, row0, first, end, position):
    """Return the first keys or values of a thread, which need not wait for the new position."""
    sublane, gap = thread.tid & (s.lanes_per_key - 1), s.n_threads // s.lanes_per_key
    return load_four(s, x, row0, sublane, first + thread.tid // s.lanes_per_key, gap, end, position)


@device
def load_four(s, x, row0, c, p, gap, end, position):
    """Return chunk c of the keys or values of four positions; zeros from the end or the new position on."""
    i, last = (row0 + p) * s.key_chunks + c, min(end, position) if c < s.key_chunks else 0
    k0 = load_float4(x, i, p < last)
    k1 = load_float4(x, i + gap * s.key_chunks, p + gap < last)
    k2 = load_float4(x, i + 2 * gap * s.key_chunks, p + 2 * gap < last)
    k3 = load_float4(x, i + 3 * gap * s.key_chunks, p + 3 * gap < last)
    return k0, k1, k2, k3


@device
def with_new(loaded, p, gap, position, new):
    """Return four loaded chunks, with the new position's in its place."""
    k0, k1 = choose(loaded[0], p, position, new), choose(loaded[1], p + gap, position, new)
    k2 = choose(loaded[2], p + 2 * gap, position, new)
    return k0, k1, k2, choose(loaded[3], p + 3 * gap, position, new)


@device
def choose(loaded, p, position, new):
    """Return the new chunk at the new position, else the loaded one."""
    return new if p == position else loaded


# --- scores ---


@device
def score(s, m, thread, row0, first, end, position, first_loaded):
    """Store the scores of positions [first, end) in shared memory and return the largest."""
    sublane, gap = thread.tid & (s.lanes_per_key - 1), s.n_threads // s.lanes_per_key
    largest = np.float32(-np.inf)
    for p0 in range(first, end, 4 * gap):  # all lanes take part in the shuffles of all turns
        p = p0 + thread.tid // s.lanes_per_key
        s0, s1, s2, s3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for r in range(s.chunks_per_lane):
            c = sublane + r * s.lanes_per_key
            if c < s.key_chunks:
                q = shared_float4(m.shared, s.shared.scratch + 4 * c)
                new = shared_float4(m.shared, s.shared.scratch + s.d_head + 4 * c)
                loaded = first_loaded
                if r > 0 or p0 > first:
                    loaded = load_four(s, m.keys, row0, c, p, gap, end, position)
                k0, k1, k2, k3 = with_new(loaded, p, gap, position, new)
                s0, s1, s2, s3 = s0 + dot4(q, k0), s1 + dot4(q, k1), s2 + dot4(q, k2), s3 + dot4(q, k3)
        s0, s1, s2, s3 = group_sum4(s0, s1, s2, s3, s.lanes_per_key)
        s0 = store_score(s, m, thread, p, first, end, s0)
        s1 = store_score(s, m, thread, p + gap, first, end, s1)
        s2 = store_score(s, m, thread, p + 2 * gap, first, end, s2)
        s3 = store_score(s, m, thread, p + 3 * gap, first, end, s3)
        largest = max(max(largest, s0, s1), s2, s3)
    largest = warp_max(largest)
    if thread.lane == 0:
        store(m.shared, s.shared.sums + thread.warp, largest)
    cuda.syncthreads()
    for w in range(s.n_warps):
        largest = max(largest, load(m.shared, s.shared.sums + w))
    return largest


@device
def dot4(q, k):
    """Return the dot product of four elements of a query and of a key."""
    return q[0] * k[0] + q[1] * k[1] + (q[2] * k[2] + q[3] * k[3])


@device
def store_score(s, m, thread, p, first, end, value):
    """Store the score of position p and return it; -inf from the end on."""
    if p >= end:
        return np.float32(-np.inf)
    if thread.tid & (s.lanes_per_key - 1) == 0:
        store(m.shared, s.scores_at + p - first, value)
    return value


# --- weighted values ---


@device
def add_values(s, m, thread, row0, first, end, position, largest, acc, first_loaded):
    """Store each warp's sum of exp(score - largest) times value, and of the weights, in shared memory."""
    sublane, gap = thread.tid & (s.lanes_per_key - 1), s.n_threads // s.lanes_per_key
    denominator = np.float32(0)
    for j in range(4 * s.chunks_per_lane):
        acc[j] = np.float32(0)
    for p0 in range(first, end, 4 * gap):
        p = p0 + thread.tid // s.lanes_per_key
        e0, e1 = weight(s, m, p, first, end, largest), weight(s, m, p + gap, first, end, largest)
        e2 = weight(s, m, p + 2 * gap, first, end, largest)
        e3 = weight(s, m, p + 3 * gap, first, end, largest)
        denominator += e0 + e1 + (e2 + e3)
        for r in range(s.chunks_per_lane):
            c = sublane + r * s.lanes_per_key
            if c < s.key_chunks:
                new = shared_float4(m.shared, s.shared.scratch + 2 * s.d_head + 4 * c)
                loaded = first_loaded
                if r > 0 or p0 > first:
                    loaded = load_four(s, m.values, row0, c, p, gap, end, position)
                v0, v1, v2, v3 = with_new(loaded, p, gap, position, new)
                for j in range(4):
                    acc[4 * r + j] += e0 * v0[j] + e1 * v1[j] + (e2 * v2[j] + e3 * v3[j])
    offset = s.lanes_per_key
    while offset < WARP_SIZE:  # add the groups of lanes of this warp
        denominator += cuda.shfl_xor_sync(ALL_LANES, denominator, offset)
        for j in range(4 * s.chunks_per_lane):
            acc[j] += cuda.shfl_xor_sync(ALL_LANES, acc[j], offset)
        offset <<= 1
    store_partial(s, m, thread, sublane, acc, denominator)
    cuda.syncthreads()


@device
def weight(s, m, p, first, end, largest):
    """Return exp(score - largest) of position p, 0 from the end on."""
    if p >= end:
        return np.float32(0)
    return math.exp(load(m.shared, s.scores_at + p - first) - largest)


@device
def store_partial(s, m, thread, sublane, acc, denominator):
    """Store the sums of this warp in its part of shared memory."""
    at = s.partials_at + thread.warp * (s.d_head + 2)
    if thread.lane < s.lanes_per_key:
        for r in range(s.chunks_per_lane):
            c = sublane + r * s.lanes_per_key
            if c < s.key_chunks:
                for j in range(4):
                    store(m.shared, at + 4 * c + j, acc[4 * r + j])
    if thread.lane == 0:
        store(m.shared, at + s.d_head, denominator)


# --- splits ---


@device
def publish_split(s, m, thread, head, split, largest, flag):
    """Add the warps' sums and publish a split."""
    width = s.d_head + 2
    word = s.words.attention + (split * s.n_heads + head) * width
    for j in range(thread.tid, width, s.n_threads):  # the weighted values, the largest score, the denominator
        total = np.float32(0)
        for w in range(s.n_warps):
            total += load(m.shared, s.partials_at + w * width + min(j, s.d_head))
        ll_store(m.words, word + j, largest if j == s.d_head else total, flag)


@device
def receive_attended(s, m, thread, position, flag):
    """Store the output of attention in shared memory, quantized if w_o is int8."""
    n_splits = 1 << split_bits_at(s, position)
    simulator_barrier()
    for p in range(thread.tid, s.n_q // 2, s.n_threads):
        u, v = merge_splits(s, m, 2 * p, n_splits, flag)
        store_pair(m.shared, s.attended, 2 * p, u, v)
    cuda.syncthreads()
    quantize_if_int8(s, m, thread, s.attended)


@device
def merge_splits(s, m, i, n_splits, flag):
    """Return elements i and i + 1 of the output of attention from all splits of their head."""
    head, j = i // s.d_head, i % s.d_head
    merged = np.float32(-np.inf), np.float32(0), np.float32(0), np.float32(0)
    for split in range(0, n_splits, 4):  # four loads in flight
        r0 = load_split(s, m, head, j, split, n_splits)
        r1 = load_split(s, m, head, j, split + 1, n_splits)
        r2 = load_split(s, m, head, j, split + 2, n_splits)
        r3 = load_split(s, m, head, j, split + 3, n_splits)
        merged = merge_split(m, r0, split, n_splits, flag, merged)
        merged = merge_split(m, r1, split + 1, n_splits, flag, merged)
        merged = merge_split(m, r2, split + 2, n_splits, flag, merged)
        merged = merge_split(m, r3, split + 3, n_splits, flag, merged)
    scale = np.float32(1) / merged[1]
    return merged[2] * scale, merged[3] * scale


@device
def load_split(s, m, head, j, split, n_splits):
    """Load largest score, denominator and elements j and j + 1 of a split, if there is such a split."""
    word, valid = s.words.attention + (split * s.n_heads + head) * (s.d_head + 2), split < n_splits
    softmax_at, values_at = (word + s.d_head) >> 1, (word + j) >> 1
    return softmax_at, values_at, ll_load2(m.words, softmax_at, valid), ll_load2(m.words, values_at, valid)


@device
def merge_split(m, loaded, split, n_splits, flag, merged):
    """Merge a split, loaded before, into largest score, denominator and two elements."""
    largest, denominator, u, v = merged
    if split >= n_splits:
        return merged
    softmax_at, values_at, softmax_loaded, values_loaded = loaded
    split_largest, split_denominator = ll_wait2(m.words, softmax_at, softmax_loaded, flag)
    a, b = ll_wait2(m.words, values_at, values_loaded, flag)
    new = max(largest, split_largest)
    old_factor, split_factor = math.exp(largest - new), math.exp(split_largest - new)
    denominator = denominator * old_factor + split_denominator * split_factor
    return new, denominator, u * old_factor + a * split_factor, v * old_factor + b * split_factor
