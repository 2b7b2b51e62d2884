"""Weight formats on the CPU: how a row lies in memory, and the operations that kernels need of one.

A format is a dtype of storage with a :class:`RowFormat`. Kernels pass an empty array of that dtype as
``like``, find matrices by their address, and are the same for all formats. Formats differ in the form in
which they read the input of ``dot_rows`` and add to the sum of ``add_rows``: ``prepare_input``,
``begin_sum`` and ``end_sum`` convert vectors to it and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numba.core import types
from numba.extending import intrinsic, overload

from minicore.backends.cpu.compiling import COMMON, exact_kernel
from minicore.backends.cpu.integer_rows import QuantizedRows, best_kind, float16_at
from minicore.backends.cpu.intrinsics import array_at, array_start, part, row
from minicore.backends.cpu.plain_rows import PlainRows
from minicore.backends.cpu.quantized_inputs import (
    input_parts,
    quantize_groups,
    write_int4_sums,
    write_int8_sums,
)
from minicore.backends.cpu.simd import F32, FOUR_FLOATS, FOUR_INTEGERS, I16, I32, elements, pointer
from minicore.quantization import GROUP, HALF, QuantizedMatrix

Array = np.ndarray


def storage(w: Array | QuantizedMatrix) -> Array:
    """Return a matrix as kernels read it, not copied: bfloat16 as uint16, packed bytes as int8 or uint8."""
    if isinstance(w, QuantizedMatrix):
        return w.data.view(np.int8) if w.format == "int8" else w.data
    return w if w.dtype in (np.float32, np.int8) else w.view(np.uint16)


def row_parts(w: Array | QuantizedMatrix) -> list[tuple[int, int]]:
    """Return where a matrix's rows begin and how long they are, in bytes; packed rows have two parts.

    Examples
    --------
    >>> row_parts(np.zeros((3, 4), np.float32))
    [(0, 16)]
    >>> row_parts(QuantizedMatrix.empty("int8", (3, 128)))  # two groups of 64 bytes; scales last
    [(0, 128), (384, 4)]
    """
    if not isinstance(w, QuantizedMatrix):
        return [(0, w.nbytes // len(w))]
    n_bytes, n_scales = w.codes.nbytes // len(w), w.scales.nbytes // len(w)
    return [(0, n_bytes), (len(w) * n_bytes, n_scales)]


class RowFormat(Protocol):
    """The operations on rows of a format, as LLVM code at the builder's position."""

    def dot(self, builder: Any, w: Any, m: Any, d: Any, rows: Sequence[Any], x: Any) -> list[Any]: ...

    def add(
        self, builder: Any, w: Any, m: Any, d: Any, rows: Sequence[Any], a: Sequence[Any], y: Any
    ) -> None: ...

    def begin(self, builder: Any, d: Any, y: Any) -> None: ...

    def end(self, builder: Any, d: Any, y: Any) -> None: ...


ROW_FORMATS: dict[Any, RowFormat] = {
    types.float32: PlainRows(4),
    types.uint16: PlainRows(2),
    types.int8: QuantizedRows("int8", best_kind()),
    types.uint8: QuantizedRows("int4", best_kind()),
}


# --- the operations ---


class RowOperations(NamedTuple):
    """Functions for kernels.

    dot_rows(like, w, m, d, rows, x)
        Return the products of four rows of the m x d matrix at address w with x (d,), as float32. A row's
        product has the same bits wherever the row stands among the four.
    add_rows(like, w, m, d, rows, a, y)
        Add a[r] times row rows[r] to y (d,), for four r, between begin_sum and end_sum of y.
    begin_sum(like, d, y), end_sum(like, d, y)
        Convert y (d,) to the order in which add_rows adds to it, and back.
    """

    dot_rows: Any
    add_rows: Any
    begin_sum: Any
    end_sum: Any


def operations_on(formats: Mapping[Any, RowFormat]) -> RowOperations:
    """Return the operations for the formats of some dtypes."""

    @intrinsic
    def dot_rows(typingctx: Any, like: Any, w: Any, m: Any, d: Any, rows: Any, x: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, w, m, d, rows, _ = args
            start, x = pointer(builder, w), array_start(context, builder, signature, args, 5)
            four = formats[like.dtype].dot(builder, start, m, d, elements(builder, rows), x)
            return context.make_tuple(builder, signature.return_type, four)

        return FOUR_FLOATS(like, types.int64, types.int64, types.int64, FOUR_INTEGERS, x), codegen

    @intrinsic
    def add_rows(typingctx: Any, like: Any, w: Any, m: Any, d: Any, rows: Any, a: Any, y: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, w, m, d, rows, a, _ = args
            start, y = pointer(builder, w), array_start(context, builder, signature, args, 6)
            formats[like.dtype].add(builder, start, m, d, elements(builder, rows), elements(builder, a), y)
            return context.get_dummy_value()

        return types.void(like, types.int64, types.int64, types.int64, FOUR_INTEGERS, FOUR_FLOATS, y), codegen

    @intrinsic
    def begin_sum(typingctx: Any, like: Any, d: Any, y: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            formats[like.dtype].begin(builder, args[1], array_start(context, builder, signature, args, 2))
            return context.get_dummy_value()

        return types.void(like, types.int64, y), codegen

    @intrinsic
    def end_sum(typingctx: Any, like: Any, d: Any, y: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            formats[like.dtype].end(builder, args[1], array_start(context, builder, signature, args, 2))
            return context.get_dummy_value()

        return types.void(like, types.int64, y), codegen

    return RowOperations(dot_rows=dot_rows, add_rows=add_rows, begin_sum=begin_sum, end_sum=end_sum)


dot_rows, add_rows, begin_sum, end_sum = operations_on(ROW_FORMATS)


def prepare_input(like: Any, d: int, x: Array) -> None:
    """Convert x (d,) to the form that dot_rows reads."""
    raise NotImplementedError("compiled code only")


@overload(prepare_input, jit_options=COMMON)
def _prepare_input(like, d, x):
    write_sums = {types.int8: write_int8_sums, types.uint8: write_int4_sums}.get(like.dtype)
    kind = np.int32 if like.dtype == types.int8 else np.float32

    def plain(like, d, x):
        begin_sum(like, d, x)  # input and sum are in the same order

    def quantized(like, d, x):
        quantize_groups(d, x)
        at_codes, at_sums, at_scales, _ = input_parts(d)
        codes, sums = x[at_codes:].view(np.int8), x[at_sums:at_scales].view(kind)
        for g in range(at_codes // GROUP):
            write_sums(part(codes, g * GROUP, (g + 1) * GROUP), part(sums, 16 * g, 16 * (g + 1)))

    return quantized if write_sums else plain


# --- elements and rows as float32 ---


@intrinsic
def to_float32(typingctx: Any, w: Any) -> Any:
    """Return a stored element, float32, int8 or the 16 bits of a bfloat16, as float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if w == types.float32:
            return args[0]
        if w == types.int8:
            return builder.sitofp(args[0], F32)
        # a bfloat16 is the upper half of a float32
        return builder.bitcast(builder.shl(builder.zext(args[0], I32), I32(16)), F32)

    return types.float32(w), codegen


@intrinsic
def from_float32(typingctx: Any, like: Any, x: Any) -> Any:
    """Return a float32 as ``like``'s dtype stores it: rounded to the nearest bfloat16, halves to even."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if like.dtype == types.float32:
            return args[1]
        bits, high = builder.bitcast(args[1], I32), builder.lshr(builder.bitcast(args[1], I32), I32(16))
        odd = builder.and_(high, I32(1))
        rounded = builder.lshr(builder.add(bits, builder.add(odd, I32(0x7FFF))), I32(16))
        quiet = builder.or_(high, I32(64))  # a NaN stays one, whatever bits are cut off
        is_nan = builder.fcmp_unordered("uno", args[1], args[1])
        return builder.trunc(builder.select(is_nan, quiet, rounded), I16)

    return like.dtype(like, types.float32), codegen


def row_to_float32(like: Any, w: int, m: int, d: int, i: int, y: Array) -> None:
    """Write row i of the m x d matrix at address w to y (d,) as float32."""
    raise NotImplementedError("compiled code only")


@overload(row_to_float32, jit_options=COMMON)
def _row_to_float32(like, w, m, d, i, y):
    def plain(like, w, m, d, i, y):
        stored = array_at(w + i * d * like.itemsize, d, like)
        for j in range(d):
            y[j] = to_float32(stored[j])

    def int8(like, w, m, d, i, y):
        groups = (d + GROUP - 1) // GROUP
        codes = array_at(w + i * groups * GROUP, d, like)
        at_scales = w + m * groups * GROUP + i * groups * 2
        for first in range(0, d, GROUP):
            scale = float16_at(at_scales + 2 * (first // GROUP))
            for j in range(first, min(first + GROUP, d)):
                y[j] = scale * np.float32(codes[j])

    def int4(like, w, m, d, i, y):
        groups = (d + GROUP - 1) // GROUP
        at_codes, at_scales = w + i * groups * HALF, w + m * groups * HALF + i * groups * 8
        for first in range(0, d, HALF):
            g, part = first // GROUP, first % GROUP // HALF
            at, shift = at_scales + 8 * g + 2 * part, np.uint8(4 * part)
            codes, scale, low = array_at(at_codes + g * HALF, HALF, like), float16_at(at), float16_at(at + 4)
            for j in range(min(HALF, d - first)):
                y[first + j] = scale * np.float32((codes[j] >> shift) & np.uint8(15)) + low

    return {types.int8: int8, types.uint8: int4}.get(like.dtype, plain)


@exact_kernel
def rows_to_float32(thread, n_threads, n, like, w, m, d, first, y):
    """Write rows first to first + n of the m x d matrix at address w to y (n, d) as float32."""
    for i in range(thread * n // n_threads, (thread + 1) * n // n_threads):
        row_to_float32(like, w, m, d, first + i, row(y, i))
