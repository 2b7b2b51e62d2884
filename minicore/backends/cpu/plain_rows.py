"""Products and sums of float32 and bfloat16 rows, four rows at a time.

A vector's numbers are loaded once for four rows, and four sums are added up in the steps that one takes: for
rows of some hundred numbers that is as much work as the products themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic

from minicore.backends.cpu.simd import (
    F32,
    FOUR_ADDRESSES,
    FOUR_FLOATS,
    I32,
    I64,
    LANES,
    REGISTER,
    add_up_four,
    address,
    addresses,
    as_tuple,
    by_parity,
    by_turns,
    even_and_odd,
    fma,
    fold,
    load,
    reordered,
    splat,
    store,
    times,
    vector,
    zeros,
)

PIECES = LANES // REGISTER  # registers that a cache line takes


def _load(builder: Any, n_bytes: int, pointer: Any, offset: Any) -> list[Any]:
    """Load a register of a row as vectors of float32; of bfloat16 the even numbers, then the odd ones."""
    if n_bytes == 4:
        return [load(builder, vector(F32, REGISTER), pointer, offset)]
    return even_and_odd(builder, load(builder, vector(I32, REGISTER), pointer, offset))


def _pieces(builder: Any, n_bytes: int, i: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Yield where the pieces of a row's i-th line lie, each with where the float32 that go with it do."""
    for k in range(PIECES):
        at = builder.add(times(builder, i, 64), ir.Constant(I64, 4 * REGISTER * k))
        first = times(builder, at, 4 // n_bytes)
        yield at, [builder.add(first, ir.Constant(I64, 4 * REGISTER * j)) for j in range(4 // n_bytes)]


@intrinsic
def dots(typingctx: Any, like: Any, rows: Any, x: Any, n: Any) -> Any:
    """Return the products of four rows' first n cache lines with x, as :func:`arrange` leaves it.

    All but n are addresses, ``like`` is an array of the rows' dtype.
    """
    n_bytes = 4 if like.dtype == types.float32 else 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = addresses(builder, args[1])
        x = address(builder, args[2])

        def body(i: Any, sums: list[Any]) -> list[Any]:
            sums = list(sums)
            for piece, (at, places) in enumerate(_pieces(builder, n_bytes, i)):
                mine = [load(builder, vector(F32, REGISTER), x, place) for place in places]
                for r in range(4):
                    for weights, numbers in zip(_load(builder, n_bytes, rows[r], at), mine, strict=True):
                        k = PIECES * r + piece
                        sums[k] = fma(builder, weights, numbers, sums[k])
            return sums

        sums = fold(builder, args[3], zeros(4 * PIECES, REGISTER), body)
        totals = [reduce(builder.fadd, sums[PIECES * r : PIECES * (r + 1)]) for r in range(4)]
        return as_tuple(context, builder, signature.return_type, add_up_four(builder, *totals))

    four, one = FOUR_ADDRESSES, types.int64
    return FOUR_FLOATS(like, four, one, one), codegen


@intrinsic
def add_rows(typingctx: Any, like: Any, rows: Any, a: Any, y: Any, n: Any) -> Any:
    """Add four numbers times their rows' first n cache lines to y, which is as :func:`arrange` leaves it.

    All but n are addresses, ``like`` is an array of the rows' dtype.
    """
    n_bytes = 4 if like.dtype == types.float32 else 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = addresses(builder, args[1])
        a, y = address(builder, args[2]), address(builder, args[3])
        weights = [splat(builder, load(builder, F32, a, ir.Constant(I64, 4 * r)), REGISTER) for r in range(4)]

        def body(i: Any, nothing: list[Any]) -> list[Any]:
            for at, places in _pieces(builder, n_bytes, i):
                vectors = zip(*(_load(builder, n_bytes, row, at) for row in rows), strict=True)
                for numbers, place in zip(vectors, places, strict=True):
                    total = load(builder, vector(F32, REGISTER), y, place)
                    for number, weight in zip(numbers, weights, strict=True):
                        total = fma(builder, number, weight, total)
                    store(builder, total, y, place)
            return []

        fold(builder, args[4], [], body)
        return context.get_dummy_value()

    four, one = FOUR_ADDRESSES, types.int64
    return types.void(like, four, one, one, one), codegen


# the order in which bfloat16 is read
arrange, restore = reordered(by_parity, REGISTER), reordered(by_turns, REGISTER)
