"""Dot products of float32 and bfloat16 rows with one vector, four rows at a time.

Numbers of the vector are loaded once for four rows, and four sums are added up in the steps that one takes:
for rows of some hundred numbers that is as much work as the products themselves.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic

from minicore.kernels.vectors import (
    F32,
    I16,
    I32,
    I64,
    LANES,
    add_up_four,
    address,
    constant,
    fma,
    fold,
    load,
    times,
    unpacked,
    vector,
    zeros,
)


def _load_wide(builder: Any, n_bytes: int, pointer: Any, i: Any) -> Any:
    """Load the i-th sixteen numbers of a row as float32; a bfloat16 is the upper half of one."""
    offset = times(builder, i, n_bytes * LANES)
    if n_bytes == 4:
        return load(builder, vector(F32), pointer, offset)
    halves = builder.zext(load(builder, vector(I16), pointer, offset), vector(I32))
    return builder.bitcast(builder.shl(halves, constant(I32, [16] * LANES)), vector(F32))


@intrinsic
def dots(typingctx: Any, like: Any, r0: Any, r1: Any, r2: Any, r3: Any, x: Any, n: Any) -> Any:
    """Return the products of four rows' first 16 n numbers with x's; all but the numbers' kind are addresses."""
    n_bytes = 4 if like.dtype == types.float32 else 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        *rows, x = (address(builder, a) for a in args[1:6])

        def body(i: Any, sums: list[Any]) -> list[Any]:
            mine = load(builder, vector(F32), x, times(builder, i, 4 * LANES))
            wide = [_load_wide(builder, n_bytes, row, i) for row in rows]
            return [fma(builder, w, mine, total) for w, total in zip(wide, sums, strict=True)]

        four = add_up_four(builder, *fold(builder, args[6], zeros(4), body))
        return unpacked(context, builder, signature.return_type, four)

    return types.UniTuple(types.float32, 4)(like, *[types.int64] * 6), codegen
