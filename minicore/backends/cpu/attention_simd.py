"""One token's attention in LLVM vectors: scores of keys, mixtures of values, the largest of a list.

A key is loaded once for all query heads that share it, and so is a value. Positions are read in a few
streams side by side, as rows of weights are, because memory delivers more to several streams than to one.
Vectors are registers here, and no more sums are kept at once than there are registers.

Of a bfloat16 cache each 32 bits hold two elements, so vector code sees the even elements of two registers
first and then the odd ones; queries are put in that order, and mixtures come out in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from numba.core import types
from numba.extending import intrinsic

from minicore.backends.cpu.integer_rows import best_kind, signed_sums, start_of
from minicore.backends.cpu.simd import (
    F32,
    I8,
    I32,
    LINE,
    REGISTER,
    Order,
    bfloat16_pairs,
    broadcast,
    constant,
    deinterleaved,
    fma,
    horizontal_sums,
    integer,
    interleaved,
    load,
    loop,
    pointer,
    prefetch,
    reorder_pairs,
    shuffle,
    store,
    times,
    vector,
    zeros,
)
from minicore.quantization import GROUP

PAIR = 2 * REGISTER  # elements of a head that vector code takes at a time: two registers
# Sums that stay in registers next to keys and queries; one too many is stored and loaded at each step.
SUMS = 20 if REGISTER == LINE else 10
MOST_PAIRS = 64 // PAIR  # pairs of a value whose sums for one head stay in registers
MOST_HEADS = 4
STREAMS = 4  # of values
VALUE_BLOCK = 4  # values of a stream that are read again for each head while they are in the first cache
KEYS_AHEAD, VALUES_AHEAD = 256, 512  # bytes by which a stream is prefetched


class Tile(NamedTuple):
    """How a model's attention is cut up for vector code; each length is part of the compiled type.

    ``heads`` has as many elements as query heads are computed at a time, ``pairs`` as many as register
    pairs of a value are summed at a time. Both are empty for heads that are no multiple of :data:`PAIR`:
    plain loops do those.
    """

    heads: tuple[int, ...]
    pairs: tuple[int, ...]


def tile_of(n_heads: int, n_kv_heads: int, d_head: int) -> Tile:
    """Return the tile for a model's shape.

    Where a group of query heads is no multiple of the tile's, the last heads are computed again with the
    rest.
    """
    if d_head % PAIR:
        return Tile((), ())
    group, n_pairs = n_heads // n_kv_heads, d_head // PAIR
    n_tiles = -(-group // MOST_HEADS)
    pairs = next(n for n in range(MOST_PAIRS, 0, -1) if n_pairs % n == 0)
    return Tile((0,) * -(-group // n_tiles), (0,) * pairs)


def _bytes_per_element(like: Any) -> int:
    return int(like.dtype.bitwidth) // 8


def _registers_on(builder: Any, offset: Any, k: int) -> Any:
    """Return the offset k float32 registers later."""
    return builder.add(offset, integer(4 * REGISTER * k))


def _load_pair(builder: Any, n_bytes: int, start: Any, offset: Any) -> list[Any]:
    """Load a pair of registers; of bfloat16 the even elements, then the odd ones."""
    if n_bytes == 4:
        return [
            load(builder, vector(F32, REGISTER), start, _registers_on(builder, offset, k)) for k in range(2)
        ]
    if n_bytes == 1:
        places = [builder.add(offset, integer(REGISTER * k)) for k in range(2)]
        codes = [load(builder, vector(I8, REGISTER), start, place) for place in places]
        return [builder.sitofp(code, vector(F32, REGISTER)) for code in codes]
    return bfloat16_pairs(builder, load(builder, vector(I32, REGISTER), start, offset))


def _in_streams(builder: Any, n: Any, streams: int, multiply: Callable[[list[Any]], None]) -> None:
    """Call ``multiply`` for n positions: one of each stream at a time, then the rest one by one."""

    def each(i: Any, nothing: list[Any]) -> list[Any]:
        multiply([builder.add(i, times(builder, share, r)) for r in range(streams)])
        return []

    def rest(i: Any, nothing: list[Any]) -> list[Any]:
        multiply([builder.add(times(builder, share, streams), i)])
        return []

    share = builder.sdiv(n, integer(streams))
    loop(builder, share, [], each)
    loop(builder, builder.srem(n, integer(streams)), [], rest)


def _write_scores(
    builder: Any, sums: list[Any], n_h: int, positions: list[Any], scores: Any, stride: Any
) -> None:
    """Add up the elements of each position's n_h sums and write them to the heads' scores."""
    none = [sums[0].type(None)] * 3
    for h in range(n_h):
        four = horizontal_sums(builder, (sums[h::n_h] + none)[:4])
        four = builder.sitofp(four, vector(F32, 4)) if four.type.element == I32 else four
        for r, p in enumerate(positions):
            at = times(builder, builder.add(p, times(builder, stride, h)), 4)
            store(builder, builder.extract_element(four, I32(r)), scores, at)


@intrinsic
def key_scores(
    typingctx: Any, like: Any, heads: Any, keys: Any, n: Any, q: Any, d: Any, scores: Any, stride: Any
) -> Any:
    """Write the products of n keys with the tile's query heads; a head's scores lie ``stride`` elements
    apart.

    ``keys``, ``q`` and ``scores`` are addresses; ``like`` is an array of the keys' dtype.
    """
    n_bytes, n_h = _bytes_per_element(like), len(heads)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        keys, queries, scores = (pointer(builder, args[i]) for i in (2, 4, 6))
        n, d, stride = args[3], args[5], args[7]

        def multiply(positions: list[Any]) -> None:
            count = len(positions)

            def body(i: Any, sums: list[Any]) -> list[Any]:
                at, sums = times(builder, i, PAIR), list(sums)
                places = [times(builder, builder.add(builder.mul(p, d), at), n_bytes) for p in positions]
                pairs = [_load_pair(builder, n_bytes, keys, place) for place in places]
                for place in places:
                    prefetch(builder, keys, builder.add(place, integer(KEYS_AHEAD)))
                for k, h in itertools.product(range(2), range(n_h)):
                    place = times(builder, builder.add(at, times(builder, d, h)), 4)
                    x = load(builder, vector(F32, REGISTER), queries, _registers_on(builder, place, k))
                    for r in range(count):
                        sums[n_h * r + h] = fma(builder, pairs[r][k], x, sums[n_h * r + h])
                return sums

            start = zeros(n_h * count, REGISTER)
            sums = loop(builder, builder.sdiv(d, integer(PAIR)), start, body)
            _write_scores(builder, sums, n_h, positions, scores, stride)

        _in_streams(builder, n, min(4, SUMS // n_h), multiply)
        return context.get_dummy_value()

    return types.void(like, heads, *[types.int64] * 6), codegen


@intrinsic
def integer_key_scores(
    typingctx: Any, heads: Any, keys: Any, n: Any, q: Any, d: Any, scores: Any, stride: Any
) -> Any:
    """As :func:`key_scores`, in integers, for int8 keys of whole groups of 64."""
    n_h, kind = len(heads), best_kind()

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        keys, queries, scores = (pointer(builder, args[i]) for i in (1, 3, 5))
        n, d, stride = args[2], args[4], args[6]
        rows = [times(builder, times(builder, d, h), 4) for h in range(n_h)]
        starts = [start_of(builder, kind, queries, builder.add(row, d)) for row in rows]

        def multiply(positions: list[Any]) -> None:
            def body(i: Any, sums: list[Any]) -> list[Any]:
                at, sums = times(builder, i, GROUP), list(sums)
                places = [builder.add(builder.mul(p, d), at) for p in positions]
                codes = [load(builder, vector(I8, GROUP), keys, place) for place in places]
                for place in places:
                    prefetch(builder, keys, builder.add(place, integer(KEYS_AHEAD)))
                for h, row in enumerate(rows):
                    x = load(builder, vector(I8, GROUP), queries, builder.add(row, at))
                    for r, code in enumerate(codes):
                        sums[n_h * r + h] = signed_sums(builder, kind, code, x, sums[n_h * r + h])
                return sums

            sums = loop(builder, builder.sdiv(d, integer(GROUP)), starts * len(positions), body)
            _write_scores(builder, sums, n_h, positions, scores, stride)

        _in_streams(builder, n, min(4, SUMS // n_h), multiply)
        return context.get_dummy_value()

    return types.void(heads, *[types.int64] * 6), codegen


@intrinsic
def value_mixture(
    typingctx: Any, like: Any, heads: Any, pairs: Any, values: Any, n: Any, weights: Any, stride: Any,
    d: Any, mixture: Any,
) -> Any:  # fmt: skip
    """Add n values, times the weights of the tile's heads, to ``mixture``.

    A head's weights lie ``stride`` elements apart. The sums are in the order of :func:`_load_pair`. Values
    are taken VALUE_BLOCK of each stream at a time. ``values``, ``weights`` and ``mixture`` are addresses.
    """
    n_bytes, n_h, n_pairs = _bytes_per_element(like), len(heads), len(pairs)
    at_once = n_h if REGISTER == LINE else 1  # heads whose sums fit the registers

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, weights, mixture = (pointer(builder, args[i]) for i in (3, 5, 8))
        n, stride, d = args[4], args[6], args[7]

        def add_columns(
            head: Any, last: bool, starts: list[Any], count: Any, i: Any, nothing: list[Any]
        ) -> list[Any]:
            """Add the i-th ``n_pairs`` of ``count`` values from each start on to the sums of some heads."""
            first = times(builder, i, n_pairs * PAIR)
            mine = [builder.add(head, integer(h)) for h in range(at_once)]

            def body(j: Any, sums: list[Any]) -> list[Any]:
                sums = list(sums)
                for p in [builder.add(start, j) for start in starts]:
                    where = [times(builder, builder.add(p, builder.mul(stride, h)), 4) for h in mine]
                    factors = [broadcast(builder, load(builder, F32, weights, at), REGISTER) for at in where]
                    for pair in range(n_pairs):
                        column = builder.add(builder.add(builder.mul(p, d), first), integer(PAIR * pair))
                        place = times(builder, column, n_bytes)
                        if last:  # earlier, lines would come too soon
                            prefetch(builder, values, builder.add(place, integer(VALUES_AHEAD)))
                        elements = _load_pair(builder, n_bytes, values, place)
                        for h, k in itertools.product(range(at_once), range(2)):
                            at = 2 * (n_pairs * h + pair) + k
                            sums[at] = fma(builder, elements[k], factors[h], sums[at])
                return sums

            rows = [times(builder, builder.add(builder.mul(d, h), first), 4) for h in mine]
            places = [_registers_on(builder, row, k) for row in rows for k in range(2 * n_pairs)]
            before = [load(builder, vector(F32, REGISTER), mixture, place) for place in places]
            for added, place in zip(loop(builder, count, before, body), places, strict=True):
                store(builder, added, mixture, place)
            return []

        def add_heads(last: bool, starts: list[Any], count: Any, i: Any, nothing: list[Any]) -> list[Any]:
            add = partial(add_columns, times(builder, i, at_once), last, starts, count)
            loop(builder, builder.sdiv(d, integer(n_pairs * PAIR)), [], add)
            return []

        def add_values(starts: list[Any], count: Any) -> None:
            before_last = integer(n_h // at_once - 1)
            if n_h > at_once:
                loop(builder, before_last, [], partial(add_heads, False, starts, count))
            add_heads(True, starts, count, before_last, [])

        def block(i: Any, nothing: list[Any]) -> list[Any]:
            begin = times(builder, i, VALUE_BLOCK)
            left = builder.sub(share, begin)
            count = builder.select(builder.icmp_signed("<", left, size), left, size)
            add_values([builder.add(begin, times(builder, share, r)) for r in range(STREAMS)], count)
            return []

        size = integer(VALUE_BLOCK)
        share = builder.sdiv(n, integer(STREAMS))
        n_blocks = builder.sdiv(builder.add(share, integer(VALUE_BLOCK - 1)), size)
        loop(builder, n_blocks, [], block)
        add_values([times(builder, share, STREAMS)], builder.srem(n, integer(STREAMS)))
        return context.get_dummy_value()

    return types.void(like, heads, pairs, *[types.int64] * 6), codegen


@intrinsic
def largest_of_pairs(typingctx: Any, x: Any, n: Any) -> Any:
    """Return the largest of n PAIRs of float32 at an address; Numba's own loop would not vectorise."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = pointer(builder, args[0])

        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def body(i: Any, largest: list[Any]) -> list[Any]:
            pair = _load_pair(builder, 4, start, times(builder, i, 4 * PAIR))
            return [larger(new, old) for new, old in zip(pair, largest, strict=True)]

        lowest = [constant(F32, [float("-inf")] * REGISTER)] * 2
        first, second = loop(builder, args[1], lowest, body)
        largest = larger(first, second)
        for apart in (8, 4, 2, 1)[REGISTER < 16 :]:
            other = shuffle(builder, largest, [lane ^ apart for lane in range(REGISTER)])
            largest = larger(largest, other)
        return builder.extract_element(largest, I32(0))

    return types.float32(types.int64, types.int64), codegen


def _reordered(order: Order) -> Any:
    @intrinsic
    def reorder(typingctx: Any, x: Any, n: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            reorder_pairs(builder, order, REGISTER, pointer(builder, args[0]), args[1])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return reorder


# Bring n PAIRs of float32 at an address into the order of bfloat16 pairs, and back.
deinterleave_pairs, interleave_pairs = _reordered(deinterleaved), _reordered(interleaved)
