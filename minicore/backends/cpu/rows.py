"""Weight formats on the CPU: how a row lies in memory, and the operations that kernels need of one.

A format is a dtype of storage and one overload of each stub below. Kernels pass an empty array of that
dtype as ``like``, find matrices by their address, and are the same for all formats. Formats differ in the
form in which they read the input of :func:`dot_rows` and add to the sum of :func:`add_rows`:
``prepare_input``, ``begin_sum`` and ``end_sum`` convert vectors to it and back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import overload

from minicore.backends.cpu import plain_rows
from minicore.backends.cpu.compiling import COMMON, OVERLOAD, exact_kernel, inlined
from minicore.backends.cpu.integer_rows import DOTS, ROWS, best_kind, float16_at
from minicore.backends.cpu.intrinsics import array_at
from minicore.backends.cpu.quantized_inputs import (
    input_parts,
    quantize_groups,
    write_int4_sums,
    write_int8_sums,
)
from minicore.quantization import FORMATS, GROUP, HALF, QuantizedMatrix

Array = np.ndarray
Four = tuple[int, int, int, int]


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


# --- the operations ---


def dot_rows(like: Any, w: int, m: int, d: int, rows: Four, x: Array) -> tuple[float, ...]:
    """Return the products of four rows of the m x d matrix at address w with x (d,), as float32.

    A row's product has the same bits wherever the row stands among the four.
    """
    raise NotImplementedError("compiled code only")


def add_rows(like: Any, w: int, m: int, d: int, rows: Array, a: Array, first: int, y: Array) -> None:
    """Add a[r] times row rows[r] of the m x d matrix at address w to y (d,), for the four r from ``first``
    on.

    Call it between :func:`begin_sum` and :func:`end_sum` of y.
    """
    raise NotImplementedError("compiled code only")


def prepare_input(like: Any, d: int, x: Array) -> None:
    """Convert x (d,) to the form that :func:`dot_rows` reads."""
    raise NotImplementedError("compiled code only")


def begin_sum(like: Any, d: int, y: Array) -> None:
    """Convert y (d,) to the order in which :func:`add_rows` adds to it."""
    raise NotImplementedError("compiled code only")


def end_sum(like: Any, d: int, y: Array) -> None:
    """Undo :func:`begin_sum`."""
    raise NotImplementedError("compiled code only")


def row_to_float32(like: Any, w: int, m: int, d: int, i: int, y: Array) -> None:
    """Write row i of the m x d matrix at address w to y (d,) as float32."""
    raise NotImplementedError("compiled code only")


def to_float32(w: Any) -> float:
    """Return a stored element, float32, int8 or the 16 bits of a bfloat16, as float32."""
    raise NotImplementedError("compiled code only")


def from_float32(like: Any, x: float) -> Any:
    """Return a float32 as ``like``'s dtype stores it: rounded to the nearest bfloat16, halves to even."""
    raise NotImplementedError("compiled code only")


# --- single elements ---


@overload(to_float32, inline="always", jit_options=COMMON)
def _to_float32(w):
    if w == types.float32:
        return lambda w: w
    if w == types.int8:
        return lambda w: np.float32(w)
    # a bfloat16 is the upper half of a float32
    return lambda w: np.uint32(np.uint32(w) << np.uint32(16)).view(np.float32)


@overload(from_float32, jit_options=COMMON)
def _from_float32(like, x):
    if like.dtype == types.float32:
        return lambda like, x: x

    def code(like, x):
        bits = np.float32(x).view(np.uint32)
        if x != x:
            return np.uint16(bits >> np.uint32(16) | np.uint32(64))  # quiet, whatever bits are cut off
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return code


# --- float32 and bfloat16 ---


def _is_plain(like: Any) -> bool:
    return getattr(like, "dtype", None) in (types.float32, types.uint16)


def _is_bfloat16(like: Any) -> bool:
    return bool(getattr(like, "dtype", None) == types.uint16)


@overload(dot_rows, jit_options=OVERLOAD)
def _dot_rows(like, w, m, d, rows, x):
    if not _is_plain(like):
        return None

    def code(like, w, m, d, rows, x):
        size = d * like.itemsize
        at = w + rows[0] * size, w + rows[1] * size, w + rows[2] * size, w + rows[3] * size
        return plain_rows.dots(like, at, x.ctypes.data, d)

    return code


@overload(add_rows, jit_options=OVERLOAD)
def _add_rows(like, w, m, d, rows, a, first, y):
    if not _is_plain(like):
        return None

    def code(like, w, m, d, rows, a, first, y):
        r, size = first, d * like.itemsize
        at = w + rows[r] * size, w + rows[r + 1] * size, w + rows[r + 2] * size, w + rows[r + 3] * size
        plain_rows.add_rows(like, at, a.ctypes.data + 4 * r, y.ctypes.data, d)

    return code


@overload(prepare_input, jit_options=COMMON)
def _prepare_input(like, d, x):
    if not _is_plain(like):
        return None
    return lambda like, d, x: begin_sum(like, d, x)  # input and sum are in the same order


@overload(begin_sum, jit_options=COMMON)
def _begin_sum(like, d, y):
    if not _is_bfloat16(like):
        return lambda like, d, y: None
    return lambda like, d, y: plain_rows.deinterleave(y.ctypes.data, d // 32 * plain_rows.PIECES)


@overload(end_sum, jit_options=COMMON)
def _end_sum(like, d, y):
    if not _is_bfloat16(like):
        return lambda like, d, y: None
    return lambda like, d, y: plain_rows.interleave(y.ctypes.data, d // 32 * plain_rows.PIECES)


@overload(row_to_float32, jit_options=COMMON)
def _dequantize_row(like, w, m, d, i, y):
    if not _is_plain(like):
        return None

    def code(like, w, m, d, i, y):
        row = array_at(w + i * d * like.itemsize, d, like)
        for j in range(d):
            y[j] = to_float32(row[j])

    return code


# --- int8 and int4 ---


def _format_of(like: Any) -> str | None:
    formats: dict[Any, str] = {types.int8: "int8", types.uint8: "int4"}
    return formats.get(getattr(like, "dtype", None))


@inlined
def _row_of(n_bytes, n_scales, w, m, d, i):
    """Return the addresses of row i's codes and scales."""
    groups = (d + GROUP - 1) // GROUP
    return w + i * groups * n_bytes, w + m * groups * n_bytes + i * groups * 2 * n_scales


@inlined
def _rows_of(n_bytes, n_scales, w, m, d, rows):
    """Return the addresses of four rows' codes, and those of their scales."""
    c0, s0 = _row_of(n_bytes, n_scales, w, m, d, rows[0])
    c1, s1 = _row_of(n_bytes, n_scales, w, m, d, rows[1])
    c2, s2 = _row_of(n_bytes, n_scales, w, m, d, rows[2])
    c3, s3 = _row_of(n_bytes, n_scales, w, m, d, rows[3])
    return (c0, c1, c2, c3), (s0, s1, s2, s3)


@overload(dot_rows, jit_options=OVERLOAD)
def _dot_quantized_rows(like, w, m, d, rows, x):
    format = _format_of(like)
    if format is None:
        return None
    products = DOTS[format, best_kind()]
    n_bytes, n_scales = FORMATS[format].n_bytes, FORMATS[format].n_scales

    def code(like, w, m, d, rows, x):
        at_codes, at_sums, at_scales, _ = input_parts(d)
        codes, scales = _rows_of(n_bytes, n_scales, w, m, d, rows)
        x0, groups = x.ctypes.data, (d + GROUP - 1) // GROUP
        return products(codes, scales, x0 + 4 * at_codes, x0 + 4 * at_scales, x0 + 4 * at_sums, groups)

    return code


@overload(add_rows, jit_options=OVERLOAD)
def _add_quantized_rows(like, w, m, d, rows, a, first, y):
    format = _format_of(like)
    if format is None:
        return None
    add, n_bytes, n_scales = ROWS[format], FORMATS[format].n_bytes, FORMATS[format].n_scales

    def code(like, w, m, d, rows, a, first, y):
        r, groups = first, (d + GROUP - 1) // GROUP
        at = rows[r], rows[r + 1], rows[r + 2], rows[r + 3]
        codes, scales = _rows_of(n_bytes, n_scales, w, m, d, at)
        add(codes, scales, a.ctypes.data + 4 * r, y.ctypes.data, groups)

    return code


@overload(prepare_input, jit_options=COMMON)
def _prepare_quantized_input(like, d, x):
    format = _format_of(like)
    if format is None:
        return None
    kind, write_sums = (np.int32, write_int8_sums) if format == "int8" else (np.float32, write_int4_sums)

    def code(like, d, x):
        quantize_groups(d, x)
        at_codes, at_sums, at_scales, _ = input_parts(d)
        codes, sums = x[at_codes:].view(np.int8), x[at_sums:at_scales].view(kind)
        for g in range(at_codes // GROUP):
            write_sums(codes[g * GROUP : (g + 1) * GROUP], sums[16 * g : 16 * (g + 1)])

    return code


@overload(row_to_float32, jit_options=COMMON)
def _int8_row_to_float32(like, w, m, d, i, y):
    if _format_of(like) != "int8":
        return None

    def code(like, w, m, d, i, y):
        at_codes, at_scales = _row_of(GROUP, 1, w, m, d, i)
        row = array_at(at_codes, d, like)
        for first in range(0, d, GROUP):
            scale = float16_at(at_scales + 2 * (first // GROUP))
            for j in range(first, min(first + GROUP, d)):
                y[j] = scale * np.float32(row[j])

    return code


@overload(row_to_float32, jit_options=COMMON)
def _int4_row_to_float32(like, w, m, d, i, y):
    if _format_of(like) != "int4":
        return None

    def code(like, w, m, d, i, y):
        at_codes, at_scales = _row_of(HALF, 4, w, m, d, i)
        for first in range(0, d, HALF):
            g, part = first // GROUP, first % GROUP // HALF
            at, shift = at_scales + 8 * g + 2 * part, np.uint8(4 * part)
            codes, scale, low = array_at(at_codes + g * HALF, HALF, like), float16_at(at), float16_at(at + 4)
            for j in range(min(HALF, d - first)):
                y[first + j] = scale * np.float32((codes[j] >> shift) & np.uint8(15)) + low

    return code


@exact_kernel
def rows_to_float32(thread, n_threads, n, like, w, m, d, first, y):
    """Write rows first to first + n of the m x d matrix at address w to y (n, d) as float32."""
    for i in range(thread * n // n_threads, (thread + 1) * n // n_threads):
        row_to_float32(like, w, m, d, first + i, y[i])
