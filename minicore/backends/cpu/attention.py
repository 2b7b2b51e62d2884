"""One token's attention over a kv cache: scores, softmax, mixture; a cache line is read once.

A key is read once for all query heads that share it, and so is a value. Positions are read in a few streams
side by side, as rows of weights are, because memory gives more to several than to one. Vectors are registers
here, and no more sums are taken at once than stay in them. Heads of a multiple of two vectors
(32 numbers with AVX-512, else 16) go by vector code, others by plain loops. Of a bfloat16 cache two numbers
are taken from each 32 bits: shifted up it is the one, the rest cut off the other. So vector code sees the
even numbers of two vectors first, then the odd ones; :func:`arrange` brings queries into that order. Of an
int8 cache each key has a scale, which its scores are multiplied with, and each value one for its weights;
queries are rounded to int8, too, and heads of a multiple of 64 numbers are multiplied as integers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic, overload

from minicore.backends.cpu import FAST
from minicore.backends.cpu.integer_rows import best_kind, signed_sums, start_of
from minicore.backends.cpu.intrinsics import exp
from minicore.backends.cpu.rows import from_float32, quantize_group, to_float32, write_start
from minicore.backends.cpu.simd import (
    F32,
    I8,
    I32,
    I64,
    REGISTER,
    add_up_four,
    address,
    by_parity,
    by_turns,
    constant,
    even_and_odd,
    fetch,
    fma,
    fold,
    load,
    pick,
    reordered,
    splat,
    store,
    times,
    vector,
    zeros,
)
from minicore.quantization import GROUP

LANES = REGISTER
PAIR = 2 * LANES  # numbers of a head that vector code takes at a time: two vectors
# sums that stay in registers beside keys and queries; one that does not costs most
SUMS = 10 if LANES == 8 else 20
PAIRS = 64 // PAIR  # of a value, whose sums for one head stay in registers, with AVX-512 for four
STREAMS = 4  # of values
BLOCK = 4  # values of a stream that are read again for each head, while they are in the first cache
KEYS_AHEAD, VALUES_AHEAD = 256, 512  # so many bytes before they are read they are asked for in a stream
_arrange_pairs, _restore_pairs = reordered(by_parity, LANES), reordered(by_turns, LANES)


def _wide(like: Any) -> int:
    """Return the bytes of a number in the cache."""
    return int(like.dtype.bitwidth) // 8


def _integer(k: int) -> Any:
    return ir.Constant(I64, k)


def _on(builder: Any, offset: Any, k: int) -> Any:
    """Return an offset k vectors on."""
    return builder.add(offset, _integer(4 * LANES * k))


def _load_pair(builder: Any, n_bytes: int, pointer: Any, offset: Any) -> list[Any]:
    """Load two vectors; of bfloat16 the even numbers, then the odd ones."""
    if n_bytes == 4:
        return [load(builder, vector(F32, LANES), pointer, _on(builder, offset, k)) for k in range(2)]
    if n_bytes == 1:
        places = [builder.add(offset, _integer(LANES * k)) for k in range(2)]
        codes = [load(builder, vector(I8, LANES), pointer, place) for place in places]
        return [builder.sitofp(code, vector(F32, LANES)) for code in codes]
    return even_and_odd(builder, load(builder, vector(I32, LANES), pointer, offset))


def _in_streams(builder: Any, n: Any, streams: int, multiply: Callable[[list[Any]], None]) -> None:
    """Have n positions multiplied, one of each stream at a time and then what is left one by one."""

    def each(i: Any, nothing: list[Any]) -> list[Any]:
        multiply([builder.add(i, times(builder, share, r)) for r in range(streams)])
        return []

    def rest(i: Any, nothing: list[Any]) -> list[Any]:
        multiply([builder.add(times(builder, share, streams), i)])
        return []

    share = builder.sdiv(n, _integer(streams))
    fold(builder, share, [], each)
    fold(builder, builder.srem(n, _integer(streams)), [], rest)


def _write_scores(
    builder: Any, sums: list[Any], n_h: int, positions: list[Any], scores: Any, stride: Any
) -> None:
    """Add up the lanes of each position's n_h sums, and write them to the heads' scores."""
    none = [ir.Constant(sums[0].type, None)] * 3
    for h in range(n_h):
        four = add_up_four(builder, *(sums[h::n_h] + none)[:4])
        four = builder.sitofp(four, vector(F32, 4)) if four.type.element == I32 else four
        for r, p in enumerate(positions):
            at = times(builder, builder.add(p, times(builder, stride, h)), 4)
            store(builder, builder.extract_element(four, ir.Constant(I32, r)), scores, at)


@intrinsic
def _integer_scores(
    typingctx: Any, n_heads: Any, keys: Any, n: Any, q: Any, d: Any, scores: Any, stride: Any
) -> Any:
    """As :func:`_scores`, of int8 keys of whole GROUPs, in integers."""
    n_h, kind = len(n_heads), best_kind()

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        keys, queries, scores = (address(builder, args[i]) for i in (1, 3, 5))
        n, d, stride = args[2], args[4], args[6]
        heads = [times(builder, times(builder, d, h), 4) for h in range(n_h)]
        starts = [start_of(builder, kind, queries, builder.add(head, d)) for head in heads]

        def multiply(positions: list[Any]) -> None:
            def body(i: Any, sums: list[Any]) -> list[Any]:
                at, sums = times(builder, i, GROUP), list(sums)
                places = [builder.add(builder.mul(p, d), at) for p in positions]
                codes = [load(builder, vector(I8, GROUP), keys, place) for place in places]
                for place in places:
                    fetch(builder, keys, builder.add(place, _integer(KEYS_AHEAD)))
                for h, head in enumerate(heads):
                    x = load(builder, vector(I8, GROUP), queries, builder.add(head, at))
                    for r, code in enumerate(codes):
                        sums[n_h * r + h] = signed_sums(builder, kind, code, x, sums[n_h * r + h])
                return sums

            sums = fold(builder, builder.sdiv(d, _integer(GROUP)), starts * len(positions), body)
            _write_scores(builder, sums, n_h, positions, scores, stride)

        _in_streams(builder, n, min(4, SUMS // n_h), multiply)
        return context.get_dummy_value()

    return types.void(n_heads, *[types.int64] * 6), codegen


@intrinsic
def _scores(
    typingctx: Any, like: Any, n_heads: Any, keys: Any, n: Any, q: Any, d: Any, scores: Any, stride: Any
) -> Any:
    """Write the products of n keys with some heads' queries; a head's lie ``stride`` floats on.

    ``n_heads`` is a tuple of so many numbers, for its type alone; keys, queries and scores are addresses.
    """
    n_bytes, n_h = _wide(like), len(n_heads)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        keys, queries, scores = (address(builder, args[i]) for i in (2, 4, 6))
        n, d, stride = args[3], args[5], args[7]

        def multiply(positions: list[Any]) -> None:
            count = len(positions)

            def body(i: Any, sums: list[Any]) -> list[Any]:
                at, sums = times(builder, i, PAIR), list(sums)
                places = [times(builder, builder.add(builder.mul(p, d), at), n_bytes) for p in positions]
                pairs = [_load_pair(builder, n_bytes, keys, place) for place in places]
                for place in places:
                    fetch(builder, keys, builder.add(place, _integer(KEYS_AHEAD)))
                for k, h in itertools.product(range(2), range(n_h)):
                    place = times(builder, builder.add(at, times(builder, d, h)), 4)
                    x = load(builder, vector(F32, LANES), queries, _on(builder, place, k))
                    for r in range(count):
                        sums[n_h * r + h] = fma(builder, pairs[r][k], x, sums[n_h * r + h])
                return sums

            start = zeros(n_h * count, LANES)
            sums = fold(builder, builder.sdiv(d, _integer(PAIR)), start, body)
            _write_scores(builder, sums, n_h, positions, scores, stride)

        _in_streams(builder, n, min(4, SUMS // n_h), multiply)
        return context.get_dummy_value()

    return types.void(like, n_heads, *[types.int64] * 6), codegen


@intrinsic
def _mixture(
    typingctx: Any, like: Any, n_heads: Any, values: Any, n: Any, weights: Any, stride: Any, d: Any,
    mixed: Any,
) -> Any:  # fmt: skip
    """Add n values times some heads' weights to ``mixed``; a head's weights lie ``stride`` floats on.

    The sums are in the order of :func:`_load_pair`. Values are taken a BLOCK of each stream at a time.
    """
    n_bytes, n_h = _wide(like), len(n_heads)
    at_once = n_h if LANES == 16 else 1

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, weights, mixed = (address(builder, args[i]) for i in (2, 4, 7))
        n, stride, d = args[3], args[5], args[6]

        def add_part(
            heads: range, n_pairs: int, starts: list[Any], count: Any, first: Any, i: Any, nothing: list[Any]
        ) -> list[Any]:
            """Add to heads' sums the i-th n_pairs behind ``first`` of ``count`` values from each start on."""
            first = builder.add(first, times(builder, i, n_pairs * PAIR))

            def body(j: Any, sums: list[Any]) -> list[Any]:
                sums = list(sums)
                for p in [builder.add(start, j) for start in starts]:
                    where = [times(builder, builder.add(p, times(builder, stride, h)), 4) for h in heads]
                    mine = [splat(builder, load(builder, F32, weights, place), LANES) for place in where]
                    for pair in range(n_pairs):
                        column = builder.add(builder.add(builder.mul(p, d), first), _integer(PAIR * pair))
                        place = times(builder, column, n_bytes)
                        if heads[-1] == n_h - 1:  # the last time, or lines would come too soon
                            fetch(builder, values, builder.add(place, _integer(VALUES_AHEAD)))
                        numbers = _load_pair(builder, n_bytes, values, place)
                        for h, k in itertools.product(range(len(heads)), range(2)):
                            at = 2 * (n_pairs * h + pair) + k
                            sums[at] = fma(builder, numbers[k], mine[h], sums[at])
                return sums

            places = [times(builder, builder.add(times(builder, d, h), first), 4) for h in heads]
            places = [_on(builder, place, k) for place in places for k in range(2 * n_pairs)]
            before = [load(builder, vector(F32, LANES), mixed, place) for place in places]
            for added, place in zip(fold(builder, count, before, body), places, strict=True):
                store(builder, added, mixed, place)
            return []

        def add_values(starts: list[Any], count: Any) -> None:
            for h, (n_pairs, first, last) in itertools.product(
                range(0, n_h, at_once), ((PAIRS, _integer(0), wide), (1, wide, d))
            ):
                n_parts = builder.sdiv(builder.sub(last, first), _integer(n_pairs * PAIR))
                add = partial(add_part, range(h, h + at_once), n_pairs, starts, count, first)
                fold(builder, n_parts, [], add)

        def block(i: Any, nothing: list[Any]) -> list[Any]:
            begin = times(builder, i, BLOCK)
            left = builder.sub(share, begin)
            count = builder.select(builder.icmp_signed("<", left, size), left, size)
            add_values([builder.add(begin, times(builder, share, r)) for r in range(STREAMS)], count)
            return []

        size = _integer(BLOCK)
        wide = times(builder, builder.sdiv(d, _integer(PAIRS * PAIR)), PAIRS * PAIR)
        share = builder.sdiv(n, _integer(STREAMS))
        n_blocks = builder.sdiv(builder.add(share, _integer(BLOCK - 1)), size)
        fold(builder, n_blocks, [], block)
        add_values([times(builder, share, STREAMS)], builder.srem(n, _integer(STREAMS)))
        return context.get_dummy_value()

    return types.void(like, n_heads, *[types.int64] * 6), codegen


def arrange(like: Any, d: int, x: Any, y: Any, q_scales: Any) -> None:  # (n * d,) twice, (n,)
    """Copy n queries of d numbers in the form that scores of a cache of ``like``'s dtype are computed from.

    For int8 that is int8 codes; each query.s scale is written to ``q_scales``.
    """
    raise NotImplementedError("compiled code only")


@overload(arrange)
def _arrange(like, d, x, y, q_scales):  # type: ignore[no-untyped-def]
    by_pairs = like.dtype == types.uint16

    def whole(like, d, x, y, q_scales):  # type: ignore[no-untyped-def]
        for h in range(x.size // d):
            query, mine = x[h * d : (h + 1) * d], y[h * d : (h + 1) * d]
            if d % GROUP:
                q_scales[h] = quantize_group(query, mine)
            else:
                codes = mine.view(np.int8)[:d]
                q_scales[h] = quantize_group(query, codes)
                write_start(codes, mine.view(np.int32)[d // 4 : d // 4 + 16])

    def floats(like, d, x, y, q_scales):  # type: ignore[no-untyped-def]
        y[: x.size] = x
        if by_pairs and d % PAIR == 0:
            _arrange_pairs(y.ctypes.data, x.size // PAIR)

    return whole if like.dtype == types.int8 else floats


def keep(held: Any, scales: Any, head: int, position: int, x: Any) -> None:  # ..., (d_head,)
    """Write a head's key or value to a cache (n_kv_heads, capacity, d_head), rounded as its dtype asks.

    ``scales`` is (n_kv_heads, capacity), or (n_kv_heads, 0) where there are none.
    """
    raise NotImplementedError("compiled code only")


@overload(keep)
def _keep(held, scales, head, position, x):  # type: ignore[no-untyped-def]
    def rounded(held, scales, head, position, x):  # type: ignore[no-untyped-def]
        scales[head, position] = quantize_group(x, held[head, position])

    def one_by_one(held, scales, head, position, x):  # type: ignore[no-untyped-def]
        for j in range(x.size):
            held[head, position, j] = from_float32(held, x[j])

    return rounded if held.dtype == types.int8 else one_by_one


@nb.njit(fastmath=FAST)
def attend(q, q_scales, keys, values, scales, first, last, dims, scores, mixed, top, mass):  # type: ignore[no-untyped-def]
    """Attend over positions [first, last): each head's unnormalised mixture, largest score and mass.

    ``scales`` (2, n_kv_heads, capacity) are keys' and values', or (2, n_kv_heads, 0) for none. ``q`` and
    ``q_scales`` are as :func:`arrange` leaves them. Other threads have the other positions; :func:`gather`
    adds up the shares.
    """
    group = dims.n_heads // dims.n_kv_heads
    mixed[:] = np.float32(0)
    for h in range(dims.n_heads):
        top[h], mass[h] = np.float32(-np.inf), np.float32(0)
    if last <= first:
        return
    for kv in range(dims.n_kv_heads):
        k, v, h, end = keys[kv, first:last], values[kv, first:last], kv * group, (kv + 1) * group
        by = scales[0, kv, first:last], scales[1, kv, first:last]
        while h < end:
            if dims.d_head % PAIR:
                _one_head(k, v, by, q, q_scales, h, dims.d_head, scores, mixed, top, mass)
                h += 1
            elif end - h >= 4:
                _heads((0, 0, 0, 0), k, v, by, q, q_scales, h, dims.d_head, scores, mixed, top, mass)
                h += 4
            elif end - h == 3:
                _heads((0, 0, 0), k, v, by, q, q_scales, h, dims.d_head, scores, mixed, top, mass)
                h += 3
            else:
                _heads((0,), k, v, by, q, q_scales, h, dims.d_head, scores, mixed, top, mass)
                h += 1


@nb.njit(fastmath=FAST)
def _heads(n_heads, k, v, by, q, q_scales, h, d, scores, mixed, top, mass):  # type: ignore[no-untyped-def]
    """Attend by so many heads from h on, by vector code."""
    n, stride, out = len(k), scores.shape[1], mixed.ctypes.data + 4 * h * d
    query = q.ctypes.data + 4 * h * d
    if k.itemsize == 1 and d % GROUP == 0:
        _integer_scores(n_heads, k.ctypes.data, n, query, d, scores.ctypes.data, stride)
    else:
        _scores(k, n_heads, k.ctypes.data, n, query, d, scores.ctypes.data, stride)
    for g in range(len(n_heads)):
        top[h + g], mass[h + g] = _weights(scores[g, :n], by, q_scales[h + g])
    _mixture(v, n_heads, v.ctypes.data, n, scores.ctypes.data, stride, d, out)
    if v.itemsize == 2:
        _restore_pairs(out, len(n_heads) * d // PAIR)


@nb.njit(fastmath=FAST)
def _one_head(k, v, by, q, q_scales, h, d, scores, mixed, top, mass):  # type: ignore[no-untyped-def]
    s, mine, query = scores[0, : len(k)], mixed[h * d : (h + 1) * d], q[h * d : (h + 1) * d]
    for p in range(s.size):
        total = np.float32(0)
        for j in range(d):
            total += to_float32(k[p, j]) * query[j]
        s[p] = total
    top[h], mass[h] = _weights(s, by, q_scales[h])
    for p in range(s.size):
        for j in range(d):
            mine[j] += s[p] * to_float32(v[p, j])


@nb.njit
def _weights(s, by, q_scale):  # type: ignore[no-untyped-def]  # (n,), two (n,) or (0,), float32 -> float32 twice
    """As :func:`exponentials`, of keys with scales times a query's scale, and for values with scales."""
    _scale(s, by[0], q_scale)
    largest, mass = exponentials(s)
    _scale(s, by[1], np.float32(1))
    return largest, mass


@nb.njit
def _scale(s, scales, by):  # type: ignore[no-untyped-def]  # (n,), (n,) or (0,), float32 -> in place
    """Multiply with scales, times one number, if there are any."""
    for p in range(scales.size):
        s[p] *= scales[p] * by


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
            total += mass[t, h] * exp(top[t, h] - largest)
        mine = z[h * d : (h + 1) * d]
        for t in range(n_threads):
            part, scale = mixed[t, h * d : (h + 1) * d], exp(top[t, h] - largest) / total
            for j in range(d):
                mine[j] = scale * part[j] if t == 0 else mine[j] + scale * part[j]
