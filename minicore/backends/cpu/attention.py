"""One token's attention over a kv cache: scores, softmax, mixture, each cache line read once.

Each thread attends over its own positions; :func:`merge_shares` joins their results to a softmax over all
positions. Heads of whole register pairs (a multiple of 32 elements with AVX-512, else of 16) go through
vector code (attention_simd.py), others through plain loops.

In an int8 cache each key and each value has a scale. A key's scale multiplies its scores, a value's the
weights. Queries are rounded as keys are, and heads of a multiple of 64 elements are multiplied as integers.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba.core import types
from numba.extending import overload

from minicore.backends.cpu.attention_simd import (
    PAIR,
    deinterleave_pairs,
    integer_key_scores,
    interleave_pairs,
    key_scores,
    largest_of_pairs,
    value_mixture,
)
from minicore.backends.cpu.compiling import COMMON, OVERLOAD, inlined, inner
from minicore.backends.cpu.intrinsics import exp, part, row
from minicore.backends.cpu.quantized_inputs import quantize_group, write_int8_sums
from minicore.backends.cpu.rows import from_float32, to_float32
from minicore.quantization import GROUP


def prepare_queries(like: Any, d: int, x: Any, q: Any, q_scales: Any) -> None:  # (n * d,) twice, (n,)
    """Copy n queries of d elements from x to q, in the form that scores with keys of ``like``'s dtype read.

    For int8 that is codes, with a scale a query in ``q_scales``.
    """
    raise NotImplementedError("compiled code only")


@overload(prepare_queries, jit_options=COMMON)
def _prepare_queries(like, d, x, q, q_scales):
    bfloat16 = like.dtype == types.uint16

    def rounded(like, d, x, q, q_scales):
        for h in range(x.size // d):
            query, mine = part(x, h * d, (h + 1) * d), part(q, h * d, (h + 1) * d)
            if d % GROUP:
                q_scales[h] = quantize_group(query, mine)
            else:
                codes = mine.view(np.int8)[:d]
                q_scales[h] = quantize_group(query, codes)
                write_int8_sums(codes, mine.view(np.int32)[d // 4 : d // 4 + 16])

    def copied(like, d, x, q, q_scales):
        for j in range(x.size):
            q[j] = x[j]
        if bfloat16 and d % PAIR == 0:
            deinterleave_pairs(q.ctypes.data, x.size // PAIR)

    return rounded if like.dtype == types.int8 else copied


def store_head(held: Any, scales: Any, head: int, position: int, x: Any) -> None:  # ..., (d_head,)
    """Write a head's key or value to a cache (n_kv_heads, capacity, d_head), rounded to its dtype.

    ``scales`` is (n_kv_heads, capacity) for an int8 cache, else (n_kv_heads, 0).
    """
    raise NotImplementedError("compiled code only")


@overload(store_head, jit_options=COMMON)
def _store_head(held, scales, head, position, x):
    def rounded(held, scales, head, position, x):
        scales[head, position] = quantize_group(x, row(row(held, head), position))

    def converted(held, scales, head, position, x):
        for j in range(x.size):
            held[head, position, j] = from_float32(held, x[j])

    return rounded if held.dtype == types.int8 else converted


class Share(NamedTuple):
    """The result of a thread's attention, an entry for each head, and its scores for the heads of a tile."""

    scores: np.ndarray  # (n_tile_heads, n_positions)
    mixture: np.ndarray  # (n_heads * d_head,): values times exp(score - largest score)
    largest: np.ndarray  # (n_heads,): the largest score
    total: np.ndarray  # (n_heads,): the sum of the exponentials


@inlined
def attend(tile, dims, options, q, q_scales, keys, values, scales, first, last, share):
    """Attend over positions [first, last) and write the result to a :class:`Share`.

    ``keys`` and ``values`` are (n_kv_heads, capacity, d_head), ``scales`` (2, n_kv_heads, capacity) theirs,
    or (2, n_kv_heads, 0) for none. ``q`` and ``q_scales`` are as :func:`prepare_queries` leaves them.
    """
    group = dims.n_heads // dims.n_kv_heads
    for j in range(dims.n_heads * dims.d_head):
        share.mixture[j] = np.float32(0)
    for h in range(dims.n_heads):
        share.largest[h], share.total[h] = np.float32(-np.inf), np.float32(0)
    width = len(tile.heads) if len(tile.heads) else 1
    for kv in range(dims.n_kv_heads if last > first else 0):
        k, v = part(row(keys, kv), first, last), part(row(values, kv), first, last)
        key_scales, value_scales = row(row(scales, 0), kv), row(row(scales, 1), kv)
        if key_scales.size:  # an int8 cache
            key_scales, value_scales = part(key_scales, first, last), part(value_scales, first, last)
        for at in range(kv * group, (kv + 1) * group, width):
            h = at if at + width <= (kv + 1) * group else (kv + 1) * group - width
            attend_heads(
                tile,
                options,
                first,
                h,
                width,
                dims.d_head,
                q,
                q_scales,
                k,
                key_scales,
                v,
                value_scales,
                share,
            )


def attend_heads(
    tile: Any, options: Any, first: int, h: int, width: int, d: int, q: Any, q_scales: Any,
    k: Any, key_scales: Any, v: Any, value_scales: Any, share: Share,
) -> None:  # fmt: skip
    """Attend with ``width`` heads from h on over keys and values k and v (n, d), the first of a position."""
    raise NotImplementedError("compiled code only")


@overload(attend_heads, jit_options=OVERLOAD)
def _attend_heads(tile, options, first, h, width, d, q, q_scales, k, key_scales, v, value_scales, share):
    def by_vectors(tile, options, first, h, width, d, q, q_scales, k, key_scales, v, value_scales, share):
        n, scores, stride = len(k), share.scores.ctypes.data, share.scores.shape[1]
        query, out = q.ctypes.data + 4 * h * d, part(share.mixture, h * d, (h + width) * d)
        for j in range(out.size):
            out[j] = np.float32(0)
        if k.itemsize == 1 and d % GROUP == 0:
            integer_key_scores(tile.heads, k.ctypes.data, n, query, d, scores, stride)
        else:
            key_scores(k, tile.heads, k.ctypes.data, n, query, d, scores, stride)
        for g in range(width):
            share.largest[h + g], share.total[h + g] = _weights(
                options,
                h + g,
                first,
                part(row(share.scores, g), 0, n),
                key_scales,
                q_scales[h + g],
                value_scales,
            )
        value_mixture(v, tile.heads, tile.pairs, v.ctypes.data, n, scores, stride, d, out.ctypes.data)
        if v.itemsize == 2:
            interleave_pairs(out.ctypes.data, out.size // PAIR)

    def by_loops(tile, options, first, h, width, d, q, q_scales, k, key_scales, v, value_scales, share):
        s, query = part(row(share.scores, 0), 0, len(k)), part(q, h * d, (h + 1) * d)
        out = part(share.mixture, h * d, (h + 1) * d)
        for p in range(s.size):
            product = np.float32(0)
            for j in range(d):
                product += to_float32(k[p, j]) * query[j]
            s[p] = product
        share.largest[h], share.total[h] = _weights(
            options, h, first, s, key_scales, q_scales[h], value_scales
        )
        for p in range(s.size):
            for j in range(d):
                out[j] += s[p] * to_float32(v[p, j])

    return by_vectors if len(tile[0]) else by_loops


@inner
def _weights(options, h, first, s, key_scales, query_scale, value_scales):
    # ..., (n,), (n,) or (0,), float32, (n,) or (0,) -> float32 twice
    """Replace products of codes by weights of values: :func:`exponentials`, with an int8 cache's scales."""
    for p in range(key_scales.size):
        s[p] *= key_scales[p] * query_scale
    shaped_scores(options, h, first, s)
    largest, total = exponentials(s)
    for p in range(value_scales.size):
        s[p] *= value_scales[p]
    return largest, total


@inner
def exponentials(s):  # (n,) in place -> float32, float32
    """Replace scores by exp(score - largest score); return the largest score and the sum."""
    n, total = s.size // PAIR, np.float32(0)
    largest = largest_of_pairs(s.ctypes.data, n)
    for p in range(PAIR * n, s.size):
        largest = largest if not s[p] > largest else s[p]
    for p in range(s.size):
        s[p] = exp(s[p] - largest)
        total += s[p]
    return largest, total


@inlined
def merge_shares(n_threads, dims, mixture, largest, total, z):
    """Join the threads' shares of attention: the softmax over all positions, times the values."""
    d = dims.d_head
    for h in range(dims.n_heads):
        top = largest[0, h]
        for t in range(1, n_threads):
            top = top if not largest[t, h] > top else largest[t, h]
        whole = np.float32(0)
        for t in range(n_threads):
            whole += total[t, h] * exp(largest[t, h] - top)
        mine = part(z, h * d, (h + 1) * d)
        for t in range(n_threads):
            theirs = part(row(mixture, t), h * d, (h + 1) * d)
            scale = exp(largest[t, h] - top) / whole
            for j in range(d):
                mine[j] = scale * theirs[j] if t == 0 else mine[j] + scale * theirs[j]


def shaped_scores(options: Any, h: int, first: int, s: Any) -> None:  # ..., (n,) in place
    """Add ALiBi to a head's scores of positions from first on, and cap them, where a family does so."""
    raise NotImplementedError("compiled code only")


@overload(shaped_scores, jit_options=OVERLOAD)
def _shaped_scores(options, h, first, s):
    def plain(options, h, first, s):
        pass

    def special(options, h, first, s):
        if options.alibi.shape[1]:
            for p in range(s.size):
                s[p] += options.alibi[h, first + p]
        if options.score_softcap > 0:
            for p in range(s.size):
                s[p] = options.score_softcap * np.float32(math.tanh(s[p] / options.score_softcap))

    return plain if isinstance(options, types.NoneType) else special
