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
    fetch_lines,
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


@intrinsic
def dots(typingctx: Any, like: Any, rows: Any, x: Any, n: Any, soon: Any) -> Any:
    """Return the products of four rows' first n cache lines with x; as many of four others are fetched.

    All but n are addresses, ``like`` is an array of the rows' dtype. Rows are read one after another: memory
    that is read in order comes fastest.
    """
    n_bytes = 4 if like.dtype == types.float32 else 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, soon = (addresses(builder, args[k]) for k in (1, 4))
        x = address(builder, args[2])

        def product(row: Any, then: Any) -> Any:
            def body(i: Any, sums: list[Any]) -> list[Any]:
                fetch_lines(builder, then, i, 64)
                wide = _load_line(builder, n_bytes, row, times(builder, i, 64))
                at = [
                    builder.add(times(builder, i, 256 // n_bytes), ir.Constant(I64, 64 * k)) for k in range(2)
                ]
                mine = [load(builder, vector(F32), x, place) for place in at[: len(wide)]]
                return [fma(builder, *factors) for factors in zip(wide, mine, sums, strict=True)]

            first, *rest = fold(builder, args[3], zeros(4 // n_bytes), body)
            return builder.fadd(first, rest[0]) if rest else first

        four = add_up_four(builder, *(product(*pair) for pair in zip(rows, soon, strict=True)))
        return unpacked(context, builder, signature.return_type, four)

    four, one = FOUR_ADDRESSES, types.int64
    return FOUR_FLOATS(like, four, one, one, four), codegen


@intrinsic
def add_rows(typingctx: Any, like: Any, rows: Any, a: Any, y: Any, n: Any, soon: Any) -> Any:
    """Add four numbers times their rows' first n cache lines to y; as many of four others are fetched.

    All but n are addresses, ``like`` is an array of the rows' dtype.
    """
    n_bytes = 4 if like.dtype == types.float32 else 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, soon = (addresses(builder, args[k]) for k in (1, 5))
        a, y = address(builder, args[2]), address(builder, args[3])
        weights = [splat(builder, load(builder, F32, a, ir.Constant(I64, 4 * r))) for r in range(4)]

        def add_line(i: Any) -> None:
            wide = [_load_line(builder, n_bytes, row, times(builder, i, 64)) for row in rows]
            for k in range(4 // n_bytes):
                at = builder.add(times(builder, i, 256 // n_bytes), ir.Constant(I64, 64 * k))
                total = load(builder, vector(F32), y, at)
                for r in range(4):
                    total = fma(builder, wide[r][k], weights[r], total)
                store(builder, total, y, at)

        def add_quarter(r: int) -> None:
            """Go over a quarter of the lines, and so over one of the rows to be fetched."""
            first, last = (builder.sdiv(times(builder, args[4], k), ir.Constant(I64, 4)) for k in (r, r + 1))

            def body(i: Any, nothing: list[Any]) -> list[Any]:
                fetch_lines(builder, soon[r], i, 256)
                add_line(builder.add(first, i))
                return []

            fold(builder, builder.sub(last, first), [], body)

        for r in range(4):
            add_quarter(r)
        return context.get_dummy_value()

    four, one = FOUR_ADDRESSES, types.int64
    return types.void(like, four, one, one, one, four), codegen
