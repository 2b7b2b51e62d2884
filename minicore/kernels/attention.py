"""One token's attention over a kv cache: scores, softmax, mixture; a cache line is read once.

A key is read once for all query heads that share it, four positions at a time, a value likewise. Heads of a
multiple of 64 numbers go by vector code, others by plain loops. Of a bfloat16 cache two numbers are taken
from each 32 bits: shifted up it is the one, the rest cut off the other. So vector code sees the even numbers
of 32 first, then the odd ones; :func:`arrange` brings queries into that order.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic, overload

from minicore.kernels import FAST
from minicore.kernels.formats import widen
from minicore.kernels.machine import exp
from minicore.kernels.vectors import (
    F32,
    I32,
    I64,
    LANES,
    add_up_four,
    address,
    constant,
    fma,
    fold,
    load,
    pick,
    splat,
    store,
    times,
    vector,
    zeros,
)

WIDTH = 64  # numbers of a head that vector code takes at a time: four vectors
EVEN_FIRST = [*range(0, 2 * LANES, 2), *range(1, 2 * LANES, 2)]
ONE_BY_ONE = [lane + LANES * odd for lane in range(LANES) for odd in range(2)]


def _wide(like: Any) -> int:
    """Return the bytes of a number in the cache."""
    return 4 if like.dtype == types.float32 else 2


def _load_width(builder: Any, n_bytes: int, pointer: Any, offset: Any) -> list[Any]:
    """Load 64 numbers as four vectors; of bfloat16 the even ones of 32, then the odd ones."""
    parts = [
        load(
            builder,
            vector(F32 if n_bytes == 4 else I32),
            pointer,
            builder.add(offset, ir.Constant(I64, 64 * k)),
        )
        for k in range(n_bytes)
    ]
    if n_bytes == 4:
        return parts
    even = [builder.shl(pair, constant(I32, [16] * LANES)) for pair in parts]
    odd = [builder.and_(pair, constant(I32, [-65536] * LANES)) for pair in parts]
    return [builder.bitcast(half, vector(F32)) for pair in zip(even, odd, strict=True) for half in pair]


@intrinsic
def _four_scores(
    typingctx: Any, like: Any, n_heads: Any, k0: Any, k1: Any, k2: Any, k3: Any, q: Any, d: Any, scores: Any,
    stride: Any,
) -> Any:  # fmt: skip
    """Write the products of four keys with some heads' queries, four floats every ``stride`` of them.

    ``n_heads`` is a tuple of so many numbers, for its type alone; keys, queries and scores are addresses.
    """
    n_bytes, n = _wide(like), len(n_heads)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        *keys, queries, out = (address(builder, args[i]) for i in (2, 3, 4, 5, 6, 8))
        d, stride = args[7], args[9]

        def body(i: Any, sums: list[Any]) -> list[Any]:
            sums, at = list(sums), times(builder, i, 4 * WIDTH)
            head_at = [builder.add(at, builder.mul(d, ir.Constant(I64, 4 * h))) for h in range(n)]
            for r in range(4):
                key = _load_width(builder, n_bytes, keys[r], times(builder, i, n_bytes * WIDTH))
                for h, k in itertools.product(range(n), range(4)):
                    x = load(builder, vector(F32), queries, builder.add(head_at[h], ir.Constant(I64, 64 * k)))
                    sums[4 * h + r] = fma(builder, key[k], x, sums[4 * h + r])
            return sums

        sums = fold(builder, builder.sdiv(d, ir.Constant(I64, WIDTH)), zeros(4 * n), body)
        for h in range(n):
            store(builder, add_up_four(builder, *sums[4 * h : 4 * h + 4]), out, times(builder, stride, 4 * h))
        return context.get_dummy_value()

    return types.void(like, n_heads, *[types.int64] * 8), codegen


@intrinsic
def _mixture(
    typingctx: Any, like: Any, n_heads: Any, values: Any, n: Any, weights: Any, stride: Any, d: Any,
    mixed: Any,
) -> Any:  # fmt: skip
    """Write some heads' sums of n values times weights; a head's weights lie ``stride`` floats on."""
    n_bytes, n_h = _wide(like), len(n_heads)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, weights, mixed = (address(builder, args[i]) for i in (2, 4, 7))
        n, stride, d = args[3], args[5], args[6]

        def part(i: Any, nothing: list[Any]) -> list[Any]:
            def body(p: Any, sums: list[Any]) -> list[Any]:
                at = builder.mul(
                    builder.add(builder.mul(p, d), times(builder, i, WIDTH)), ir.Constant(I64, n_bytes)
                )
                value, sums = _load_width(builder, n_bytes, values, at), list(sums)
                for h in range(n_h):
                    where = times(builder, builder.add(p, times(builder, stride, h)), 4)
                    weight = splat(builder, load(builder, F32, weights, where))
                    for k in range(4):
                        sums[4 * h + k] = fma(builder, value[k], weight, sums[4 * h + k])
                return sums

            sums = fold(builder, n, zeros(4 * n_h), body)
            for h in range(n_h):
                at = times(builder, builder.add(times(builder, d, h), times(builder, i, WIDTH)), 4)
                for k, total in enumerate(_in_order(builder, n_bytes, sums[4 * h : 4 * h + 4])):
                    store(builder, total, mixed, builder.add(at, ir.Constant(I64, 64 * k)))
            return []

        fold(builder, builder.sdiv(d, ir.Constant(I64, WIDTH)), [], part)
        return context.get_dummy_value()

    return types.void(like, n_heads, *[types.int64] * 6), codegen


def _in_order(builder: Any, n_bytes: int, parts: list[Any]) -> list[Any]:
    """Undo the order of :func:`_load_width`."""
    if n_bytes == 4:
        return parts
    lanes = ONE_BY_ONE[:LANES], ONE_BY_ONE[LANES:]
    return [pick(builder, parts[k], half, parts[k + 1]) for k in (0, 2) for half in lanes]


def arrange(like: Any, d: int, x: Any, y: Any) -> None:  # (n * d,) twice
    """Copy queries of d numbers in the order in which a cache of ``like``'s dtype is read."""
    raise NotImplementedError("compiled code only")


@overload(arrange)
def _arrange(like, d, x, y):  # type: ignore[no-untyped-def]
    pairs = 2 * LANES if like.dtype == types.uint16 else 1

    def code(like, d, x, y):  # type: ignore[no-untyped-def]
        half = pairs // 2 if d % WIDTH == 0 else 0
        if half == 0:
            y[: x.size] = x
            return
        for start in range(0, x.size, pairs):
            for j in range(half):
                y[start + j] = x[start + 2 * j]
                y[start + half + j] = x[start + 2 * j + 1]

    return code


@nb.njit(fastmath=FAST)
def attend(q, keys, values, first, last, dims, scores, mixed, top, mass):  # type: ignore[no-untyped-def]
    """Attend over positions [first, last): each head's unnormalised mixture, largest score and mass.

    ``q`` is as :func:`arrange` leaves it. Other threads have the other positions; the shares are put together
    by :func:`gather`.
    """
    group = dims.n_heads // dims.n_kv_heads
    mixed[:] = np.float32(0)
    for h in range(dims.n_heads):
        top[h], mass[h] = np.float32(-np.inf), np.float32(0)
    if last <= first:
        return
    for kv in range(dims.n_kv_heads):
        k, v, h, end = keys[kv, first:last], values[kv, first:last], kv * group, (kv + 1) * group
        while h < end:
            if dims.d_head % WIDTH:
                _one_head(k, v, q, h, dims.d_head, scores, mixed, top, mass)
                h += 1
            elif end - h >= 4:
                _heads((0, 0, 0, 0), k, v, q, h, dims.d_head, scores, mixed, top, mass)
                h += 4
            elif end - h == 3:
                _heads((0, 0, 0), k, v, q, h, dims.d_head, scores, mixed, top, mass)
                h += 3
            else:
                _heads((0,), k, v, q, h, dims.d_head, scores, mixed, top, mass)
                h += 1


@nb.njit(fastmath=FAST)
def _heads(n_heads, k, v, q, h, d, scores, mixed, top, mass):  # type: ignore[no-untyped-def]
    """Attend by so many heads from h on, by vector code; the last four keys may be the same one."""
    n, stride, row = len(k), scores.shape[1], d * k.itemsize
    at, queries = k.ctypes.data, q.ctypes.data + 4 * h * d
    for p in range(0, n, 4):
        last = at + (n - 1) * row
        k0, k1 = at + p * row, min(at + (p + 1) * row, last)
        k2, k3 = min(at + (p + 2) * row, last), min(at + (p + 3) * row, last)
        _four_scores(k, n_heads, k0, k1, k2, k3, queries, d, scores.ctypes.data + 4 * p, stride)
    for g in range(len(n_heads)):
        top[h + g], mass[h + g] = exponentials(scores[g, :n])
    _mixture(v, n_heads, v.ctypes.data, n, scores.ctypes.data, stride, d, mixed.ctypes.data + 4 * h * d)


@nb.njit(fastmath=FAST)
def _one_head(k, v, q, h, d, scores, mixed, top, mass):  # type: ignore[no-untyped-def]
    s, mine, query = scores[0, : len(k)], mixed[h * d : (h + 1) * d], q[h * d : (h + 1) * d]
    for p in range(s.size):
        total = np.float32(0)
        for j in range(d):
            total += widen(k[p, j]) * query[j]
        s[p] = total
    top[h], mass[h] = exponentials(s)
    for p in range(s.size):
        for j in range(d):
            mine[j] += s[p] * widen(v[p, j])


@intrinsic
def _largest(typingctx: Any, numbers: Any, n: Any) -> Any:
    """Return the largest of 32 n floats at an address; a plain loop would go one by one for NaN's sake."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(builder, args[0])

        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def body(i: Any, tops: list[Any]) -> list[Any]:
            at = times(builder, i, 128)
            pair = [
                load(builder, vector(F32), pointer, builder.add(at, ir.Constant(I64, k))) for k in (0, 64)
            ]
            return [larger(new, top) for new, top in zip(pair, tops, strict=True)]

        low = [constant(F32, [float("-inf")] * LANES)] * 2
        top = larger(*fold(builder, args[1], low, body))
        for apart in (8, 4, 2, 1):
            top = larger(top, pick(builder, top, [lane ^ apart for lane in range(LANES)]))
        return builder.extract_element(top, ir.Constant(I32, 0))

    return types.float32(types.int64, types.int64), codegen


@nb.njit(fastmath=FAST)
def exponentials(s):  # type: ignore[no-untyped-def]  # (n,) in place -> float32, float32
    """Replace scores by their exponentials over the largest one's; return that score and the sum."""
    n, mass = s.size // (2 * LANES), np.float32(0)
    largest = _largest(s.ctypes.data, n)
    for p in range(2 * LANES * n, s.size):
        largest = largest if not s[p] > largest else s[p]
    for p in range(s.size):
        s[p] = exp(s[p] - largest)
        mass += s[p]
    return largest, mass


@nb.njit(fastmath=FAST)
def gather(n_threads, dims, mixed, top, mass, z):  # type: ignore[no-untyped-def]
    """Put the threads' shares of attention together: softmax over all positions."""
    d = dims.d_head
    for h in range(dims.n_heads):
        largest = top[0, h]
        for t in range(1, n_threads):
            largest = largest if not top[t, h] > largest else top[t, h]
        total = np.float32(0)
        for t in range(n_threads):
            total += mass[t, h] * np.float32(math.exp(top[t, h] - largest))
        for j in range(h * d, (h + 1) * d):
            z[j] = np.float32(0)
        for t in range(n_threads):
            scale = np.float32(math.exp(top[t, h] - largest)) / total
            for j in range(h * d, (h + 1) * d):
                z[j] += scale * mixed[t, j]
