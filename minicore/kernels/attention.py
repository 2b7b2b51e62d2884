"""One token's attention over a kv cache: scores, softmax, mixture; a cache line is read once.

A key is read once for all query heads that share it, a few positions at a time, a value likewise. Vectors
are registers here, and no more sums are taken at once than stay in them. Heads of a multiple of two vectors
(32 numbers with AVX-512, else 16) go by vector code, others by plain loops. Of a bfloat16 cache two numbers
are taken from each 32 bits: shifted up it is the one, the rest cut off the other. So vector code sees the
even numbers of two vectors first, then the odd ones; :func:`arrange` brings queries into that order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
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
    REGISTER,
    add_up_four,
    address,
    constant,
    fetch_lines,
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

LANES = REGISTER
PAIR = 2 * LANES  # numbers of a head that vector code takes at a time: two vectors
# sums that stay in registers beside keys and queries; one that does not costs most
SUMS = 10 if LANES == 8 else 20
BLOCK = 64  # positions whose values are read again, pair by pair, while they are in the first cache
AHEAD = 2048  # so many bytes before they are read keys are asked for, in the order of memory
EVEN_FIRST = [*range(0, PAIR, 2), *range(1, PAIR, 2)]
ONE_BY_ONE = [lane + LANES * odd for lane in range(LANES) for odd in range(2)]


def _wide(like: Any) -> int:
    """Return the bytes of a number in the cache."""
    return 4 if like.dtype == types.float32 else 2


def _on(builder: Any, offset: Any, k: int) -> Any:
    """Return an offset k vectors on."""
    return builder.add(offset, ir.Constant(I64, 4 * LANES * k))


def _load_pair(builder: Any, n_bytes: int, pointer: Any, offset: Any) -> list[Any]:
    """Load two vectors; of bfloat16 the even numbers, then the odd ones."""
    if n_bytes == 4:
        return [load(builder, vector(F32, LANES), pointer, _on(builder, offset, k)) for k in range(2)]
    both = load(builder, vector(I32, LANES), pointer, offset)
    even = builder.shl(both, constant(I32, [16] * LANES))
    odd = builder.and_(both, constant(I32, [-65536] * LANES))
    return [builder.bitcast(half, vector(F32, LANES)) for half in (even, odd)]


def _fold_positions(
    builder: Any, n: Any, at_once: int, start: list[Any], body: Callable[[Any, int, list[Any]], list[Any]]
) -> list[Any]:
    """Fold ``body(position, count, values)`` over n positions, some at once, those left one by one."""
    groups = builder.sdiv(n, ir.Constant(I64, at_once))
    first = times(builder, groups, at_once)
    values = fold(builder, groups, start, lambda i, v: body(times(builder, i, at_once), at_once, v))
    return fold(builder, builder.sub(n, first), values, lambda i, v: body(builder.add(first, i), 1, v))


@intrinsic
def _scores(
    typingctx: Any, like: Any, n_heads: Any, keys: Any, n: Any, q: Any, d: Any, scores: Any, stride: Any
) -> Any:
    """Write the products of n keys with some heads' queries; a head's lie ``stride`` floats on.

    ``n_heads`` is a tuple of so many numbers, for its type alone; keys, queries and scores are addresses.
    Three floats behind each head's scores are written too.
    """
    n_bytes, n_h = _wide(like), len(n_heads)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        keys, queries, scores = (address(builder, args[i]) for i in (2, 4, 6))
        d, stride, soon = args[5], args[7], builder.gep(keys, [ir.Constant(I64, AHEAD)])
        pairs_of_row = builder.sdiv(d, ir.Constant(I64, PAIR))

        def some(p: Any, count: int, nothing: list[Any]) -> list[Any]:
            first = builder.mul(p, pairs_of_row)
            rows = [builder.mul(builder.add(p, ir.Constant(I64, r)), d) for r in range(count)]

            def body(i: Any, sums: list[Any]) -> list[Any]:
                at, sums = times(builder, i, PAIR), list(sums)
                places = [times(builder, builder.add(row, at), n_bytes) for row in rows]
                pairs = [_load_pair(builder, n_bytes, keys, place) for place in places]
                for r in range(count):
                    chunk = builder.add(times(builder, i, count), ir.Constant(I64, r))
                    fetch_lines(builder, soon, builder.add(first, chunk), n_bytes * PAIR)
                for k, h in itertools.product(range(2), range(n_h)):
                    place = times(builder, builder.add(at, times(builder, d, h)), 4)
                    x = load(builder, vector(F32, LANES), queries, _on(builder, place, k))
                    for r in range(count):
                        sums[n_h * r + h] = fma(builder, pairs[r][k], x, sums[n_h * r + h])
                return sums

            none = zeros(1, LANES)
            sums = fold(builder, pairs_of_row, none * n_h * count, body)
            for h in range(n_h):
                four = add_up_four(builder, *(sums[h::n_h] + none * 3)[:4])
                store(builder, four, scores, times(builder, builder.add(p, times(builder, stride, h)), 4))
            return []

        _fold_positions(builder, args[3], min(4, SUMS // n_h), [], some)
        return context.get_dummy_value()

    return types.void(like, n_heads, *[types.int64] * 6), codegen


@intrinsic
def _mixture(
    typingctx: Any, like: Any, n_heads: Any, values: Any, n: Any, weights: Any, stride: Any, d: Any,
    mixed: Any, soon: Any,
) -> Any:  # fmt: skip
    """Add n values times some heads' weights to ``mixed``; a head's weights lie ``stride`` floats on.

    The sums are in the order of :func:`_load_pair`. As many values from address ``soon`` on are fetched.
    """
    n_bytes, n_h = _wide(like), len(n_heads)
    at_once = max(1, min(4, (SUMS + 2) // (2 * n_h)))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, weights, mixed, soon = (address(builder, args[i]) for i in (2, 4, 7, 8))
        n, stride, d = args[3], args[5], args[6]

        def part(i: Any, nothing: list[Any]) -> list[Any]:
            first = times(builder, i, PAIR)

            def some(p: Any, count: int, sums: list[Any]) -> list[Any]:
                sums = list(sums)
                for r in range(count):
                    at = builder.add(p, ir.Constant(I64, r))
                    place = times(builder, builder.add(builder.mul(at, d), first), n_bytes)
                    pair = _load_pair(builder, n_bytes, values, place)
                    fetch_lines(builder, soon, builder.add(builder.mul(i, n), at), n_bytes * PAIR)
                    for h in range(n_h):
                        where = times(builder, builder.add(at, times(builder, stride, h)), 4)
                        weight = splat(builder, load(builder, F32, weights, where), LANES)
                        for k in range(2):
                            j = 2 * (n_h * r + h) + k
                            sums[j] = fma(builder, pair[k], weight, sums[j])
                return sums

            sums = _fold_positions(builder, n, at_once, zeros(2 * n_h * at_once, LANES), some)
            for h, k in itertools.product(range(n_h), range(2)):
                at = _on(builder, times(builder, builder.add(times(builder, d, h), first), 4), k)
                total = load(builder, vector(F32, LANES), mixed, at)
                for r in range(at_once):
                    total = builder.fadd(total, sums[2 * (n_h * r + h) + k])
                store(builder, total, mixed, at)
            return []

        fold(builder, builder.sdiv(d, ir.Constant(I64, PAIR)), [], part)
        return context.get_dummy_value()

    return types.void(like, n_heads, *[types.int64] * 7), codegen


@intrinsic
def _bring_in_order(typingctx: Any, like: Any, x: Any, n: Any) -> Any:
    """Undo the order of :func:`_load_pair` in n floats at an address."""
    n_bytes = _wide(like)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x = address(builder, args[1])

        def body(i: Any, nothing: list[Any]) -> list[Any]:
            places = [_on(builder, times(builder, i, 4 * PAIR), k) for k in range(2)]
            even, odd = (load(builder, vector(F32, LANES), x, at) for at in places)
            for k, at in enumerate(places):
                store(builder, pick(builder, even, ONE_BY_ONE[k * LANES : (k + 1) * LANES], odd), x, at)
            return []

        if n_bytes == 2:
            fold(builder, builder.sdiv(args[2], ir.Constant(I64, PAIR)), [], body)
        return context.get_dummy_value()

    return types.void(like, types.int64, types.int64), codegen


def arrange(like: Any, d: int, x: Any, y: Any) -> None:  # (n * d,) twice
    """Copy queries of d numbers in the order in which a cache of ``like``'s dtype is read."""
    raise NotImplementedError("compiled code only")


@overload(arrange)
def _arrange(like, d, x, y):  # type: ignore[no-untyped-def]
    pairs = PAIR if like.dtype == types.uint16 else 1

    def code(like, d, x, y):  # type: ignore[no-untyped-def]
        half = pairs // 2 if d % PAIR == 0 else 0
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
            if dims.d_head % PAIR:
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
    """Attend by so many heads from h on, by vector code."""
    n, stride, out = len(k), scores.shape[1], mixed.ctypes.data + 4 * h * d
    _scores(k, n_heads, k.ctypes.data, n, q.ctypes.data + 4 * h * d, d, scores.ctypes.data, stride)
    for g in range(len(n_heads)):
        top[h + g], mass[h + g] = exponentials(scores[g, :n])
    for p in range(0, n, BLOCK):
        row, weights, some = v.ctypes.data + p * d * v.itemsize, scores.ctypes.data + 4 * p, min(BLOCK, n - p)
        soon = row + (BLOCK * d * v.itemsize if p + BLOCK < n else 0)
        _mixture(v, n_heads, row, some, weights, stride, d, out, soon)
    _bring_in_order(v, out, len(n_heads) * d)


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
    """Return the largest of n PAIRs of floats at an address; a loop would go one by one for NaN's sake."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(builder, args[0])

        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def body(i: Any, tops: list[Any]) -> list[Any]:
            at = times(builder, i, 8 * LANES)
            pair = [load(builder, vector(F32, LANES), pointer, _on(builder, at, k)) for k in range(2)]
            return [larger(new, top) for new, top in zip(pair, tops, strict=True)]

        low = [constant(F32, [float("-inf")] * LANES)] * 2
        top = larger(*fold(builder, args[1], low, body))
        for apart in (8, 4, 2, 1)[LANES < 16 :]:
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
