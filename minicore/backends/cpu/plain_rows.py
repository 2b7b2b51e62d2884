"""Products and sums of float32 and bfloat16 rows, four rows at a time.

The input is loaded once for four rows, and four sums are added up in as many steps as one takes: for rows
of a few hundred elements that is as much work as the products themselves. Rows are read a cache line at a
time; the elements after the last whole line are read one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

from minicore.backends.cpu.simd import (
    F32,
    I16,
    I32,
    LINE,
    REGISTER,
    Order,
    bfloat16_pairs,
    broadcast,
    deinterleaved,
    fma,
    horizontal_sums,
    integer,
    interleaved,
    load,
    loop,
    reorder_pairs,
    store,
    times,
    vector,
    zeros,
)

PIECES = LINE // REGISTER  # registers that a cache line takes


class PlainRows:
    """Rows of elements of ``n_bytes``: 4 for float32, 2 for bfloat16.

    For bfloat16 the input of products and the sum of rows are in the order that :meth:`begin` gives them.
    Matrices and vectors are pointers to bytes; sizes, rows and numbers are LLVM values.
    """

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes

    def dot(self, builder: Any, w: Any, m: Any, d: Any, rows: Sequence[Any], x: Any) -> list[Any]:
        """Return the products of four rows of the m x d matrix at w with x (d,)."""
        starts = self._starts(builder, w, d, rows)
        n_lines, first, n_rest = self._lines_and_rest(builder, d)

        def line(i: Any, sums: list[Any]) -> list[Any]:
            sums = list(sums)
            for piece, (at, places) in enumerate(self._pieces(builder, i)):
                inputs = [load(builder, vector(F32, REGISTER), x, place) for place in places]
                for r, start in enumerate(starts):
                    k = PIECES * r + piece
                    for weights, part in zip(self._load(builder, start, at), inputs, strict=True):
                        sums[k] = fma(builder, weights, part, sums[k])
            return sums

        def rest(i: Any, sums: list[Any]) -> list[Any]:
            column = builder.add(first, i)
            part = load(builder, F32, x, times(builder, column, 4))
            return [
                fma(builder, self._load_one(builder, start, column), part, total)
                for start, total in zip(starts, sums, strict=True)
            ]

        sums = loop(builder, n_lines, zeros(4 * PIECES, REGISTER), line)
        totals = [reduce(builder.fadd, sums[PIECES * r : PIECES * (r + 1)]) for r in range(4)]
        four = horizontal_sums(builder, totals)
        return loop(builder, n_rest, [builder.extract_element(four, I32(r)) for r in range(4)], rest)

    def add(
        self, builder: Any, w: Any, m: Any, d: Any, rows: Sequence[Any], a: Sequence[Any], y: Any
    ) -> None:
        """Add a[r] times row rows[r] of the m x d matrix at w to y (d,), for four r."""
        starts = self._starts(builder, w, d, rows)
        n_lines, first, n_rest = self._lines_and_rest(builder, d)
        factors = [broadcast(builder, number, REGISTER) for number in a]

        def line(i: Any, nothing: list[Any]) -> list[Any]:
            for at, places in self._pieces(builder, i):
                vectors = zip(*(self._load(builder, start, at) for start in starts), strict=True)
                for weights, place in zip(vectors, places, strict=True):
                    total = load(builder, vector(F32, REGISTER), y, place)
                    for weight, factor in zip(weights, factors, strict=True):
                        total = fma(builder, weight, factor, total)
                    store(builder, total, y, place)
            return []

        def rest(i: Any, nothing: list[Any]) -> list[Any]:
            column = builder.add(first, i)
            total = load(builder, F32, y, times(builder, column, 4))
            for start, number in zip(starts, a, strict=True):
                total = fma(builder, self._load_one(builder, start, column), number, total)
            store(builder, total, y, times(builder, column, 4))
            return []

        loop(builder, n_lines, [], line)
        loop(builder, n_rest, [], rest)

    def begin(self, builder: Any, d: Any, y: Any) -> None:
        """Bring y (d,) into the order of :func:`bfloat16_pairs`, for bfloat16."""
        self._reorder(builder, deinterleaved, d, y)

    def end(self, builder: Any, d: Any, y: Any) -> None:
        """Undo :meth:`begin`."""
        self._reorder(builder, interleaved, d, y)

    def _reorder(self, builder: Any, order: Order, d: Any, y: Any) -> None:
        if self.n_bytes == 2:
            n_lines, _, _ = self._lines_and_rest(builder, d)
            reorder_pairs(builder, order, REGISTER, y, times(builder, n_lines, PIECES))

    def _starts(self, builder: Any, w: Any, d: Any, rows: Sequence[Any]) -> list[Any]:
        """Return pointers to rows of d elements."""
        size = times(builder, d, self.n_bytes)
        return [builder.gep(w, [builder.mul(row, size)]) for row in rows]

    def _lines_and_rest(self, builder: Any, d: Any) -> tuple[Any, Any, Any]:
        """Return how many whole lines a row has, the column after them, and how many columns are left."""
        per_line = 64 // self.n_bytes
        n_lines = builder.sdiv(d, integer(per_line))
        first = times(builder, n_lines, per_line)
        return n_lines, first, builder.sub(d, first)

    def _pieces(self, builder: Any, i: Any) -> Iterator[tuple[Any, list[Any]]]:
        """Yield the offset of each register of a row's i-th line, and the offsets of the float32 it meets."""
        for k in range(PIECES):
            at = builder.add(times(builder, i, 64), integer(4 * REGISTER * k))
            first = times(builder, at, 4 // self.n_bytes)
            yield at, [builder.add(first, integer(4 * REGISTER * j)) for j in range(4 // self.n_bytes)]

    def _load(self, builder: Any, row: Any, offset: Any) -> list[Any]:
        """Load a register of a row as float32 vectors; of bfloat16 the even elements, then the odd ones."""
        if self.n_bytes == 4:
            return [load(builder, vector(F32, REGISTER), row, offset)]
        return bfloat16_pairs(builder, load(builder, vector(I32, REGISTER), row, offset))

    def _load_one(self, builder: Any, row: Any, column: Any) -> Any:
        """Load one element of a row as float32."""
        if self.n_bytes == 4:
            return load(builder, F32, row, times(builder, column, 4))
        bits = builder.zext(load(builder, I16, row, times(builder, column, 2)), I32)
        return builder.bitcast(builder.shl(bits, I32(16)), F32)
