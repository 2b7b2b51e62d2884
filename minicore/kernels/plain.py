"""Products and sums of float32 and bfloat16 rows, four rows at a time.

A vector's numbers are loaded once for four rows, and four sums are added up in the steps that one takes: for
rows of some hundred numbers that is as much work as the products themselves.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic

from minicore.kernels.vectors import (
    F32,
    FOUR_ADDRESSES,
    FOUR_FLOATS,
    I16,
    I32,
    I64,
    LANES,
    add_up_four,
    address,
    addresses,
    constant,
    fma,
    fold,
    load,
    splat,
    store,
    times,
    unpacked,
    vector,
    zeros,
)


def _load_line(builder: Any, n_bytes: int, pointer: Any, offset: Any) -> list[Any]:
    """Load 64 bytes of a row as vectors of float32; a bfloat16 is the upper half of one."""
    if n_bytes == 4:
        return [load(builder, vector(F32), pointer, offset)]
    wide = []
    for k in range(2):
        at = builder.add(offset, ir.Constant(I64, 2 * LANES * k))
        halves = builder.zext(load(builder, vector(I16), pointer, at), vector(I32))
        wide.append(builder.bitcast(builder.shl(halves, constant(I32, [16] * LANES)), vector(F32)))
    return wide


def _places_of(builder: Any, n_bytes: int, i: Any) -> list[Any]:
    """Return where the float32 numbers that go with a row's i-th line lie, a vector each."""
    first = times(builder, i, 256 // n_bytes)
    return [builder.add(first, ir.Constant(I64, 4 * LANES * k)) for k in range(4 // n_bytes)]


@intrinsic
def dots(typingctx: Any, like: Any, rows: Any, x: Any, n: Any) -> Any:
    """Return the products of four rows' first n cache lines with x.

    All but n are addresses, ``like`` is an array of the rows' dtype.
    """
    n_bytes = 4 if like.dtype == types.float32 else 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = addresses(builder, args[1])
        x = address(builder, args[2])

        def body(i: Any, sums: list[Any]) -> list[Any]:
            mine = [load(builder, vector(F32), x, at) for at in _places_of(builder, n_bytes, i)]
            sums = list(sums)
            for r in range(4):
                line = _load_line(builder, n_bytes, rows[r], times(builder, i, 64))
                for weights, numbers in zip(line, mine, strict=True):
                    sums[r] = fma(builder, weights, numbers, sums[r])
            return sums

        four = add_up_four(builder, *fold(builder, args[3], zeros(4), body))
        return unpacked(context, builder, signature.return_type, four)

    four, one = FOUR_ADDRESSES, types.int64
    return FOUR_FLOATS(like, four, one, one), codegen


@intrinsic
def add_rows(typingctx: Any, like: Any, rows: Any, a: Any, y: Any, n: Any) -> Any:
    """Add four numbers times their rows' first n cache lines to y.

    All but n are addresses, ``like`` is an array of the rows' dtype.
    """
    n_bytes = 4 if like.dtype == types.float32 else 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = addresses(builder, args[1])
        a, y = address(builder, args[2]), address(builder, args[3])
        weights = [splat(builder, load(builder, F32, a, ir.Constant(I64, 4 * r))) for r in range(4)]

        def body(i: Any, nothing: list[Any]) -> list[Any]:
            wide = [_load_line(builder, n_bytes, row, times(builder, i, 64)) for row in rows]
            for k, at in enumerate(_places_of(builder, n_bytes, i)):
                total = load(builder, vector(F32), y, at)
                for r in range(4):
                    total = fma(builder, wide[r][k], weights[r], total)
                store(builder, total, y, at)
            return []

        fold(builder, args[4], [], body)
        return context.get_dummy_value()

    four, one = FOUR_ADDRESSES, types.int64
    return types.void(like, four, one, one, one), codegen
