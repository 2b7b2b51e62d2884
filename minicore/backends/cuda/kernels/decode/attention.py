"""Attention."""

from __future__ import annotations

import math

import numpy as np

from minicore.backends.cuda.kernels.decode.claims import draw, drawn
from minicore.backends.cuda.kernels.decode.residual import bias, round_if_int8
from minicore.backends.cuda.kernels.decode.rows import row
from minicore.backends.cuda.kernels.decode.shape import B_QKV, LAYER, SPLIT, W_O, W_QKV
from minicore.backends.cuda.kernels.decode.staging import await_rows, pocket
from minicore.backends.cuda.kernels.decode.vectors import store2
from minicore.backends.cuda.kernels.elements import as_kept
from minicore.backends.cuda.kernels.exchange import complete, settle
from minicore.backends.cuda.kernels.intrinsics import (
    ALL,
    LANES,
    cuda,
    device,
    four,
    get,
    let,
    load4,
    put,
    take2,
)
from minicore.backends.cuda.kernels.warp import group_sum4, warp_max, warp_sum


@device
def rotations(s, m, me, position):  # type: ignore[no-untyped-def]
    """Put a position's cosines and sines into shared memory."""
    if s.rope:
        for j in range(me.tid, s.d_head // 2, s.threads):
            angle = np.float32(position) * m.frequencies[j]
            let(m.shared, s.angles + j, math.cos(angle))
            let(m.shared, s.angles + s.d_head // 2 + j, math.sin(angle))


@device
def project(s, m, me, layer, by, tag, turn):  # type: ignore[no-untyped-def]
    """Hand out this warp's rows of queries, keys and values."""
    i, first = me.number, True
    while i < s.n_qkv:
        following = draw(s, m, me, turn, i, s.n_qkv)
        project_row(s, m, me, layer, by, tag, i, first)
        i, first = drawn(s, following, s.n_qkv), False


@device
def project_row(s, m, me, layer, by, tag, i, held):  # type: ignore[no-untyped-def]
    """Hand out row i of queries, keys and values."""
    at, place = s.layout[W_QKV] + layer * s.layout[LAYER] + i * s.d_chunks, pocket(s, me, s.place_qkv)
    total = row(
        s, m.fixed, at, s.d_chunks, me.lane, m.shared, 0, s.d_spread, s.d_padded, place, held
    )  # fmt: skip
    total = warp_sum(total) * by
    if me.lane == 0:
        put(m.words, i, total + bias(s, m, B_QKV, layer, i), tag)


@device
def new_position(s, m, me, head, tag):  # type: ignore[no-untyped-def]
    """Put a head's query and new key, both rotated, and its new value into shared memory."""
    half, kv = s.d_head // 2, head // (s.n_heads // s.n_kv_heads)
    for p in range(me.tid, 3 * half // 2, s.threads):
        which, j = p // (half // 2), 2 * (p % (half // 2))
        row = head * s.d_head if which == 0 else s.n_q + (which - 1) * s.n_kv + kv * s.d_head
        near, far = (row + j) >> 1, (row + half + j) >> 1  # what is rotated together, one thread reads
        first, second = take2(m.words, near, True), take2(m.words, far, True)
        u0, u1 = complete(m.words, near, first, tag)
        v0, v1 = complete(m.words, far, second, tag)
        if s.rope and which < 2:
            u0, v0 = rotated(s, m, j, u0, v0)
            u1, v1 = rotated(s, m, j + 1, u1, v1)
        factor = np.float32(1 / math.sqrt(s.d_head)) if which == 0 else np.float32(1)
        at, rounded = s.a + which * s.d_head + j, s.rounded and which > 0
        let(m.shared, at, as_kept(u0 * factor, rounded))
        let(m.shared, at + 1, as_kept(u1 * factor, rounded))
        let(m.shared, at + half, as_kept(v0 * factor, rounded))
        let(m.shared, at + half + 1, as_kept(v1 * factor, rounded))
    cuda.syncthreads()


@device
def rotated(s, m, j, u, v):  # type: ignore[no-untyped-def]
    """Return numbers j and half a head further, turned by the position's angle."""
    cos, sin = get(m.shared, s.angles + j), get(m.shared, s.angles + s.d_head // 2 + j)
    return u * cos - v * sin, v * cos + u * sin


@device
def dot4(q, k):  # type: ignore[no-untyped-def]
    """Return four numbers of a query times four of a key."""
    return q[0] * k[0] + q[1] * k[1] + (q[2] * k[2] + q[3] * k[3])


@device
def fresh(loaded, p, position, new):  # type: ignore[no-untyped-def]
    """Return four numbers of a key or value: as loaded, or, not in the cache yet, the new position's."""
    return new if p == position else loaded


@device
def load_four(s, x, row0, c, p, gap, end, position):  # type: ignore[no-untyped-def]
    """Return chunk c of four keys or values, a gap of positions apart: all on their way at once."""
    i, last = (row0 + p) * s.key_chunks + c, min(end, position) if c < s.key_chunks else 0
    k0 = load4(x, i, p < last)
    k1 = load4(x, i + gap * s.key_chunks, p + gap < last)
    k2 = load4(x, i + 2 * gap * s.key_chunks, p + 2 * gap < last)
    k3 = load4(x, i + 3 * gap * s.key_chunks, p + 3 * gap < last)
    return k0, k1, k2, k3


@device
def load_first(s, x, me, row0, first, end, position):  # type: ignore[no-untyped-def]
    """Return what a thread reads first of keys or values: they need not wait for the new position."""
    sub, gap = me.tid & (s.per_key - 1), s.threads // s.per_key
    return load_four(s, x, row0, sub, first + me.tid // s.per_key, gap, end, position)


@device
def fresh_four(loaded, p, gap, position, new):  # type: ignore[no-untyped-def]
    """Return four keys or values with the new position's among them."""
    k0, k1 = fresh(loaded[0], p, position, new), fresh(loaded[1], p + gap, position, new)
    return k0, k1, fresh(loaded[2], p + 2 * gap, position, new), fresh(loaded[3], p + 3 * gap, position, new)


@device
def keep(s, m, p, first, end, score, me):  # type: ignore[no-untyped-def]
    """Store a position's score and return it; -inf behind the end."""
    if p >= end:
        return np.float32(-np.inf)
    if me.tid & (s.per_key - 1) == 0:
        let(m.shared, s.scores + p - first, score)
    return score


@device
def score(s, m, me, row0, first, end, position, ahead):  # type: ignore[no-untyped-def]
    """Score positions [first, end), neighbouring lanes a key together; return the largest score."""
    sub, gap, top = me.tid & (s.per_key - 1), s.threads // s.per_key, np.float32(-np.inf)
    for p0 in range(first, end, 4 * gap):  # all lanes take all turns: they add up together
        p = p0 + me.tid // s.per_key
        s0, s1, s2, s3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for r in range(s.key_rounds):
            c = sub + r * s.per_key
            if c < s.key_chunks:
                q, new = four(m.shared, s.a + 4 * c), four(m.shared, s.a + s.d_head + 4 * c)
                loaded = ahead
                if r > 0 or p0 > first:
                    loaded = load_four(s, m.keys, row0, c, p, gap, end, position)
                k0, k1, k2, k3 = fresh_four(loaded, p, gap, position, new)
                s0, s1, s2, s3 = s0 + dot4(q, k0), s1 + dot4(q, k1), s2 + dot4(q, k2), s3 + dot4(q, k3)
        s0, s1, s2, s3 = group_sum4(s0, s1, s2, s3, s.per_key)
        s0, s1 = keep(s, m, p, first, end, s0, me), keep(s, m, p + gap, first, end, s1, me)
        s2 = keep(s, m, p + 2 * gap, first, end, s2, me)
        s3 = keep(s, m, p + 3 * gap, first, end, s3, me)
        top = max(max(top, s0, s1), s2, s3)
    top = warp_max(top)
    if me.lane == 0:
        let(m.shared, s.red + me.warp, top)
    cuda.syncthreads()
    for w in range(s.warps):
        top = max(top, get(m.shared, s.red + w))
    return top


@device
def weight(s, m, p, first, end, top):  # type: ignore[no-untyped-def]
    """Return a position's unnormalised weight, 0 behind the end."""
    if p >= end:
        return np.float32(0)
    return math.exp(get(m.shared, s.scores + p - first) - top)


@device
def mix(s, m, me, row0, first, end, position, top, acc, ahead):  # type: ignore[no-untyped-def]
    """Leave each warp's unnormalised mixture of values, and its mass, in its part of shared memory."""
    sub, gap, mass = me.tid & (s.per_key - 1), s.threads // s.per_key, np.float32(0)
    for j in range(4 * s.key_rounds):
        acc[j] = np.float32(0)
    for p0 in range(first, end, 4 * gap):
        p = p0 + me.tid // s.per_key
        e0, e1 = weight(s, m, p, first, end, top), weight(s, m, p + gap, first, end, top)
        e2, e3 = weight(s, m, p + 2 * gap, first, end, top), weight(s, m, p + 3 * gap, first, end, top)
        mass += e0 + e1 + (e2 + e3)
        for r in range(s.key_rounds):
            c = sub + r * s.per_key
            if c < s.key_chunks:
                new = four(m.shared, s.a + 2 * s.d_head + 4 * c)
                loaded = ahead
                if r > 0 or p0 > first:
                    loaded = load_four(s, m.values, row0, c, p, gap, end, position)
                v0, v1, v2, v3 = fresh_four(loaded, p, gap, position, new)
                for j in range(4):
                    acc[4 * r + j] += e0 * v0[j] + e1 * v1[j] + (e2 * v2[j] + e3 * v3[j])
    offset = s.per_key
    while offset < LANES:  # the groups of a warp together
        mass += cuda.shfl_xor_sync(ALL, mass, offset)
        for j in range(4 * s.key_rounds):
            acc[j] += cuda.shfl_xor_sync(ALL, acc[j], offset)
        offset <<= 1
    mine = s.parts + me.warp * (s.d_head + 2)
    if me.lane < s.per_key:
        for r in range(s.key_rounds):
            c = sub + r * s.per_key
            if c < s.key_chunks:
                for j in range(4):
                    let(m.shared, mine + 4 * c + j, acc[4 * r + j])
    if me.lane == 0:
        let(m.shared, mine + s.d_head, mass)
    cuda.syncthreads()


@device
def split_of(s, position):  # type: ignore[no-untyped-def]
    """Return how often the positions up to this one are halved."""
    bits = 0
    while bits < s.split_bits and SPLIT << bits <= position:
        bits += 1
    return bits


@device
def attend(s, m, me, layer, position, tag, acc):  # type: ignore[no-untyped-def]
    """Attend, a head and a share of its positions at a time, and hand out unnormalised mixtures."""
    bits, width, group = split_of(s, position), s.d_head + 2, s.n_heads // s.n_kv_heads
    capacity = m.keys.shape[0] // (s.n_layers * s.n_kv_heads * s.d_head)
    settle()
    for item in range(me.block, s.n_heads << bits, s.blocks):
        head, share = item >> bits, item & ((1 << bits) - 1)
        first, end = share * (position + 1) >> bits, (share + 1) * (position + 1) >> bits
        row0 = np.int64((layer * s.n_kv_heads + head // group) * capacity)
        some_keys = load_first(s, m.keys, me, row0, first, end, position)
        some_values = load_first(s, m.values, me, row0, first, end, position)
        new_position(s, m, me, head, tag)
        if end == position + 1 and head % group == 0:
            for j in range(me.tid, s.d_head, s.threads):
                let(m.keys, (row0 + position) * s.d_head + j, get(m.shared, s.a + s.d_head + j))
                let(m.values, (row0 + position) * s.d_head + j, get(m.shared, s.a + 2 * s.d_head + j))
        top = score(s, m, me, row0, first, end, position, some_keys)
        mix(s, m, me, row0, first, end, position, top, acc, some_values)
        z = s.at_z + (share * s.n_heads + head) * width
        for j in range(me.tid, width, s.threads):  # the mixture, the top, the mass
            total = np.float32(0)
            for w in range(s.warps):
                total += get(m.shared, s.parts + w * width + min(j, s.d_head))
            put(m.words, z + j, top if j == s.d_head else total, tag)
        cuda.syncthreads()


@device
def share_of(s, m, head, j, share, n_split):  # type: ignore[no-untyped-def]
    """Read a share's top and mass, and numbers j and j + 1 of its mixture, if there is such a share."""
    z, there = s.at_z + (share * s.n_heads + head) * (s.d_head + 2), share < n_split
    about, mixture = (z + s.d_head) >> 1, (z + j) >> 1
    return about, mixture, take2(m.words, about, there), take2(m.words, mixture, there)


@device
def add_share(m, read, share, n_split, tag, so_far):  # type: ignore[no-untyped-def]
    """Add a share to what is merged so far: top, mass and two numbers."""
    top, mass, u, v = so_far
    if share >= n_split:
        return so_far
    about, mixture, first, second = read
    its_top, its_mass = complete(m.words, about, first, tag)
    a, b = complete(m.words, mixture, second, tag)
    highest = max(top, its_top)
    old, now = math.exp(top - highest), math.exp(its_top - highest)
    return highest, mass * old + its_mass * now, u * old + a * now, v * old + b * now


@device
def merge(s, m, i, n_split, tag):  # type: ignore[no-untyped-def]
    """Return numbers i and i + 1 of attention's output: softmax over the shares of its head."""
    head, j = i // s.d_head, i % s.d_head
    so_far = np.float32(-np.inf), np.float32(0), np.float32(0), np.float32(0)
    for share in range(0, n_split, 4):  # four on their way at once
        r0 = share_of(s, m, head, j, share, n_split)
        r1 = share_of(s, m, head, j, share + 1, n_split)
        r2 = share_of(s, m, head, j, share + 2, n_split)
        r3 = share_of(s, m, head, j, share + 3, n_split)
        so_far = add_share(m, r0, share, n_split, tag, so_far)
        so_far = add_share(m, r1, share + 1, n_split, tag, so_far)
        so_far = add_share(m, r2, share + 2, n_split, tag, so_far)
        so_far = add_share(m, r3, share + 3, n_split, tag, so_far)
    by = np.float32(1) / so_far[1]
    return so_far[2] * by, so_far[3] * by


@device
def project_out(s, m, me, layer, position, tag, turn, only):  # type: ignore[no-untyped-def]
    """Put attention's output together and hand out this warp's rows of its projection."""
    n_split = 1 << split_of(s, position)
    settle()
    for p in range(me.tid, s.n_q // 2, s.threads):
        u, v = merge(s, m, 2 * p, n_split, tag)
        store2(m.shared, s.z, 2 * p, u, v, s.q_spread, s.x_shift)
    cuda.syncthreads()
    round_if_int8(s, m, me, s.z, s.q_padded)
    await_rows(s, only)
    i, first = me.number, True
    while i < s.d:
        following = draw(s, m, me, turn, i, s.d)
        project_out_row(s, m, me, layer, tag, i, first)
        i, first = drawn(s, following, s.d), False


@device
def project_out_row(s, m, me, layer, tag, i, held):  # type: ignore[no-untyped-def]
    """Hand out row i of attention's projection."""
    at, place = s.layout[W_O] + layer * s.layout[LAYER] + i * s.q_chunks, pocket(s, me, s.place_o)
    total = row(
        s, m.fixed, at, s.q_chunks, me.lane, m.shared, s.z, s.q_spread, s.q_padded, place, held
    )  # fmt: skip
    total = warp_sum(total)
    if me.lane == 0:
        put(m.words, s.at_o + i, total, tag)
