"""Products and sums of float32 and bfloat16 rows, four rows at a time.

The input is loaded once for four rows, and four sums are added up in as many steps as one takes: for rows
of a few hundred elements that is as much work as the products themselves. Rows are read a cache line at a
time; the elements after the last whole line are read one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any

from numba.core import types
from numba.extending import intrinsic

from minicore.backends.cpu.simd import (
    F32,
    FOUR_ADDRESSES,
    FOUR_FLOATS,
    I16,
    I32,
    LINE,
    REGISTER,
    bfloat16_pairs,
    broadcast,
    deinterleaved,
    fma,
    horizontal_sums,
    integer,
    interleaved,
    load,
    loop,
    pointer,
    pointers,
    reorder_in_place,
    store,
    times,
    vector,
    zeros,
)

PIECES = LINE // REGISTER  # registers that a cache line takes

# The order in which bfloat16 rows meet their input and their sum.
deinterleave = reorder_in_place(deinterleaved, REGISTER)
interleave = reorder_in_place(interleaved, REGISTER)


def _n_bytes(like: Any) -> int:
    """Return the bytes of an element: 4 for float32, 2 for bfloat16."""
    return 4 if like.dtype == types.float32 else 2


def _load(builder: Any, n_bytes: int, row: Any, offset: Any) -> list[Any]:
    """Load a register of a row as float32 vectors; of bfloat16 the even elements, then the odd ones."""
    if n_bytes == 4:
        return [load(builder, vector(F32, REGISTER), row, offset)]
    return bfloat16_pairs(builder, load(builder, vector(I32, REGISTER), row, offset))


def _load_one(builder: Any, n_bytes: int, row: Any, column: Any) -> Any:
    """Load one element of a row as float32."""
    if n_bytes == 4:
        return load(builder, F32, row, times(builder, column, 4))
    bits = builder.zext(load(builder, I16, row, times(builder, column, 2)), I32)
    return builder.bitcast(builder.shl(bits, I32(16)), F32)


def _pieces(builder: Any, n_bytes: int, i: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Yield the offset of each register of a row's i-th line, and the offsets of the float32 it meets."""
    for k in range(PIECES):
        at = builder.add(times(builder, i, 64), integer(4 * REGISTER * k))
        first = times(builder, at, 4 // n_bytes)
        yield at, [builder.add(first, integer(4 * REGISTER * j)) for j in range(4 // n_bytes)]


def _lines_and_rest(builder: Any, n_bytes: int, d: Any) -> tuple[Any, Any, Any]:
    """Return how many whole lines a row has, the column after them, and how many columns are left."""
    per_line = 64 // n_bytes
    lines = builder.sdiv(d, integer(per_line))
    first = times(builder, lines, per_line)
    return lines, first, builder.sub(d, first)


@intrinsic
def dots(typingctx: Any, like: Any, rows: Any, x: Any, d: Any) -> Any:
    """Return the products of four rows of d elements with x, which :func:`deinterleave` has prepared for
    bfloat16.

    ``rows`` and x are addresses; ``like`` is an array of the rows' dtype.
    """
    n_bytes = _n_bytes(like)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, x = pointers(builder, args[1]), pointer(builder, args[2])
        lines, first, n_rest = _lines_and_rest(builder, n_bytes, args[3])

        def line(i: Any, sums: list[Any]) -> list[Any]:
            sums = list(sums)
            for piece, (at, places) in enumerate(_pieces(builder, n_bytes, i)):
                inputs = [load(builder, vector(F32, REGISTER), x, place) for place in places]
                for r in range(4):
                    k = PIECES * r + piece
                    for weights, part in zip(_load(builder, n_bytes, rows[r], at), inputs, strict=True):
                        sums[k] = fma(builder, weights, part, sums[k])
            return sums

        def rest(i: Any, sums: list[Any]) -> list[Any]:
            column = builder.add(first, i)
            part = load(builder, F32, x, times(builder, column, 4))
            return [
                fma(builder, _load_one(builder, n_bytes, row, column), part, total)
                for row, total in zip(rows, sums, strict=True)
            ]

        sums = loop(builder, lines, zeros(4 * PIECES, REGISTER), line)
        totals = [reduce(builder.fadd, sums[PIECES * r : PIECES * (r + 1)]) for r in range(4)]
        four = horizontal_sums(builder, totals)
        sums = loop(builder, n_rest, [builder.extract_element(four, I32(r)) for r in range(4)], rest)
        return context.make_tuple(builder, signature.return_type, sums)

    return FOUR_FLOATS(like, FOUR_ADDRESSES, types.int64, types.int64), codegen


@intrinsic
def add_rows(typingctx: Any, like: Any, rows: Any, a: Any, y: Any, d: Any) -> Any:
    """Add four numbers times their rows of d elements to y, which :func:`deinterleave` has prepared for
    bfloat16.

    ``rows``, ``a`` and y are addresses; ``like`` is an array of the rows' dtype.
    """
    n_bytes = _n_bytes(like)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, a, y = pointers(builder, args[1]), pointer(builder, args[2]), pointer(builder, args[3])
        lines, first, n_rest = _lines_and_rest(builder, n_bytes, args[4])
        numbers = [load(builder, F32, a, integer(4 * r)) for r in range(4)]
        factors = [broadcast(builder, number, REGISTER) for number in numbers]

        def line(i: Any, nothing: list[Any]) -> list[Any]:
            for at, places in _pieces(builder, n_bytes, i):
                vectors = zip(*(_load(builder, n_bytes, row, at) for row in rows), strict=True)
                for weights, place in zip(vectors, places, strict=True):
                    total = load(builder, vector(F32, REGISTER), y, place)
                    for weight, factor in zip(weights, factors, strict=True):
                        total = fma(builder, weight, factor, total)
                    store(builder, total, y, place)
            return []

        def rest(i: Any, nothing: list[Any]) -> list[Any]:
            column = builder.add(first, i)
            total = load(builder, F32, y, times(builder, column, 4))
            for row, number in zip(rows, numbers, strict=True):
                total = fma(builder, _load_one(builder, n_bytes, row, column), number, total)
            store(builder, total, y, times(builder, column, 4))
            return []

        loop(builder, lines, [], line)
        loop(builder, n_rest, [], rest)
        return context.get_dummy_value()

    return types.void(like, FOUR_ADDRESSES, *[types.int64] * 3), codegen
