"""Weight formats: how a row lies in memory, and the few operations that kernels need of one.

A format is a dtype of storage and the overloads below: ``dots`` of four rows with the input, ``axpy4`` (four
rows times four numbers, added up), ``row_to_float32``, and what brings vectors into the form that these want:
``prepare`` for the input of ``dots``, ``begin_sum`` and ``end_sum`` for what ``axpy4`` adds to. Kernels pass
an empty array of that dtype as ``like`` and stay the same for all.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numba.core import types
from numba.extending import overload

from minicore.backends.cpu import FAST
from minicore.backends.cpu import plain_rows as plain
from minicore.backends.cpu.integer_rows import DOTS, ROWS, best_kind, half
from minicore.backends.cpu.intrinsics import copy_bytes, view1
from minicore.quantization import FORMATS, GROUP, HALF, QuantizedMatrix

Array = np.ndarray
Four = tuple[int, int, int, int]


def stored(w: Array | QuantizedMatrix) -> Array:
    """Return a matrix as kernels read it, not copied: bfloat16 as uint16, packed bytes as int8 or uint8."""
    if isinstance(w, QuantizedMatrix):
        return w.data.view(np.int8) if w.format == "int8" else w.data
    return w if w.dtype in (np.float32, np.int8) else w.view(np.uint16)


def row_parts(w: Array | QuantizedMatrix) -> list[tuple[int, int]]:
    """Return where a matrix's rows begin and how long they are, in bytes; packed rows are of two parts.

    Examples
    --------
    >>> row_parts(np.zeros((3, 4), np.float32))
    [(0, 16)]
    >>> row_parts(QuantizedMatrix.empty("int8", (3, 128)))  # two groups of 64 bytes; all scales last
    [(0, 128), (384, 4)]
    """
    if not isinstance(w, QuantizedMatrix):
        return [(0, w.nbytes // len(w))]
    n_bytes, n_scales = w.codes.nbytes // len(w), w.scales.nbytes // len(w)
    return [(0, n_bytes), (len(w) * n_bytes, n_scales)]


def dots(like: Any, w: int, m: int, d: int, rows: Four, x: Array) -> tuple[float, ...]:
    """Return four rows of the m x d matrix at address w, each times x (d,), as float32.

    A row's product has the same bits wherever it stands among the four.
    """
    raise NotImplementedError("compiled code only")


def axpy4(like: Any, w: int, m: int, d: int, rows: Array, a: Array, first: int, y: Array) -> None:
    """Add a[r] times row rows[r] of the m x d matrix at address w to y, for four r from ``first`` on.

    y is between :func:`begin_sum` and :func:`end_sum`.
    """
    raise NotImplementedError("compiled code only")


def begin_sum(like: Any, d: int, y: Array) -> None:
    """Bring d numbers into the order in which :func:`axpy4` adds to them."""
    raise NotImplementedError("compiled code only")


def end_sum(like: Any, d: int, y: Array) -> None:
    """Undo what :func:`begin_sum` did."""
    raise NotImplementedError("compiled code only")


def row_to_float32(like: Any, w: int, m: int, d: int, i: int, y: Array) -> None:
    """Write row i of the m x d matrix at address w to y as float32."""
    raise NotImplementedError("compiled code only")


def prepare(like: Any, d: int, x: Array) -> None:
    """Bring the input of :func:`dots` into the form it reads."""
    raise NotImplementedError("compiled code only")


def to_float32(w: Any) -> float:
    """Return a stored number, float32, int8 or the 16 bits of a bfloat16, as float32."""
    raise NotImplementedError("compiled code only")


@overload(to_float32, inline="always")
def _to_float32(w):  # type: ignore[no-untyped-def]
    if w == types.float32:
        return lambda w: w
    if w == types.int8:
        return lambda w: np.float32(w)
    # a bfloat16 is the upper half of a float32
    return lambda w: np.uint32(np.uint32(w) << np.uint32(16)).view(np.float32)


def from_float32(like: Any, x: float) -> Any:
    """Return a float32 as ``like``'s dtype stores it: rounded to the nearest bfloat16, halves to even."""
    raise NotImplementedError("compiled code only")


@overload(from_float32)
def _from_float32(like, x):  # type: ignore[no-untyped-def]
    if like.dtype == types.float32:
        return lambda like, x: x

    def code(like, x):  # type: ignore[no-untyped-def]
        bits = np.float32(x).view(np.uint32)
        if x != x:
            return np.uint16(bits >> np.uint32(16) | np.uint32(64))  # quiet, whatever bits are cut off
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return code


def _is_plain(like: Any) -> bool:
    return getattr(like, "dtype", None) in (types.float32, types.uint16)


@nb.njit(inline="always")
def _places(w, size, rows):  # type: ignore[no-untyped-def]  # address, bytes, four ints -> four addresses
    return w + rows[0] * size, w + rows[1] * size, w + rows[2] * size, w + rows[3] * size


@overload(dots, jit_options={"fastmath": FAST})
def _dots(like, w, m, d, rows, x):  # type: ignore[no-untyped-def]
    if not _is_plain(like):
        return None

    def code(like, w, m, d, rows, x):  # type: ignore[no-untyped-def]
        lines, at = d * like.itemsize // 64, _places(w, d * like.itemsize, rows)
        y0, y1, y2, y3 = plain.dots(like, at, x.ctypes.data, lines)
        for c in range(lines * 64 // like.itemsize, d):
            y0 += to_float32(view1(at[0], d, like)[c]) * x[c]
            y1 += to_float32(view1(at[1], d, like)[c]) * x[c]
            y2 += to_float32(view1(at[2], d, like)[c]) * x[c]
            y3 += to_float32(view1(at[3], d, like)[c]) * x[c]
        return y0, y1, y2, y3

    return code


@overload(axpy4, jit_options={"fastmath": FAST})
def _axpy4(like, w, m, d, rows, a, first, y):  # type: ignore[no-untyped-def]
    if not _is_plain(like):
        return None

    def code(like, w, m, d, rows, a, first, y):  # type: ignore[no-untyped-def]
        r, lines = first, d * like.itemsize // 64
        at = _places(w, d * like.itemsize, (rows[r], rows[r + 1], rows[r + 2], rows[r + 3]))
        plain.add_rows(like, at, a.ctypes.data + 4 * r, y.ctypes.data, lines)
        for c in range(lines * 64 // like.itemsize, d):
            for k in range(4):
                y[c] += a[r + k] * to_float32(view1(at[k], d, like)[c])

    return code


@overload(row_to_float32)
def _row_to_float32(like, w, m, d, i, y):  # type: ignore[no-untyped-def]
    if not _is_plain(like):
        return None

    def code(like, w, m, d, i, y):  # type: ignore[no-untyped-def]
        row = view1(w + i * d * like.itemsize, d, like)
        for j in range(d):
            y[j] = to_float32(row[j])

    return code


@overload(prepare)
def _prepare(like, d, x):  # type: ignore[no-untyped-def]
    if not _is_plain(like):
        return None
    return lambda like, d, x: begin_sum(like, d, x)  # input and sum are in the same order


@overload(begin_sum)
def _begin_sum(like, d, y):  # type: ignore[no-untyped-def]
    if getattr(like, "dtype", None) != types.uint16:
        return lambda like, d, y: None
    return lambda like, d, y: plain.arrange(y.ctypes.data, d // 32 * plain.PIECES)


@overload(end_sum)
def _end_sum(like, d, y):  # type: ignore[no-untyped-def]
    if getattr(like, "dtype", None) != types.uint16:
        return lambda like, d, y: None
    return lambda like, d, y: plain.restore(y.ctypes.data, d // 32 * plain.PIECES)


# --- packed formats ---
# After its d numbers, filled up to whole groups, an input holds: their signed bytes, 16 numbers a group of
# what the format needs of their sum (int4 takes four), and a step a group.


@nb.njit(inline="always")
def _parts(d):  # type: ignore[no-untyped-def]  # int -> where bytes, sums and scales begin, and the end, in floats
    groups = (d + GROUP - 1) // GROUP
    first = groups * GROUP
    return (
        first,
        first + groups * GROUP // 4,
        first + groups * (GROUP // 4 + 16),
        first + groups * (GROUP // 4 + 17),
    )


def input_size(d: int) -> int:
    """Return how many floats the input of :func:`dots` takes in the widest format."""
    return int(_parts.py_func(d)[3])


@nb.njit
def _round(x):  # type: ignore[no-untyped-def]  # float32 -> float32
    """Round to the nearest integer, halves to the even one; fastmath would undo it."""
    return (x + np.float32(12582912)) - np.float32(12582912)


@nb.njit(error_model="numpy")  # a check for zero at each division would forbid vectors
def _scale(x):  # type: ignore[no-untyped-def]  # (n,) -> float32
    """Return the scale of a group, NaN if it has a NaN, infinity for infinity."""
    bits, largest = x.view(np.int32), np.int32(0)
    for j in range(x.size):  # floats without a sign order as their bits do, NaN above all
        largest = max(largest, bits[j] & np.int32(0x7FFFFFFF))
    return np.int32(largest).view(np.float32) / np.float32(127)


@nb.njit(error_model="numpy")
def quantize_group(x, codes):  # type: ignore[no-untyped-def]  # (n,), (n,) int8 -> float32
    """Write x as int8 codes and return their scale (:func:`minicore.quantization.quantize_int8`).

    The whole numbers may be float32, too.
    """
    scale = _scale(x)
    by = scale if scale > 0 else np.float32(1)
    for j in range(x.size):
        codes[j] = _round(x[j] / by)
    return scale + (scale - scale)


@nb.njit(error_model="numpy")
def quantize_groups(d, x):  # type: ignore[no-untyped-def]  # int, (input_size(d),)
    """Fill in an input's bytes and scales; NaN and infinity make their group's scale NaN."""
    at_bytes, _, at_scales, _ = _parts(d)
    for j in range(d, at_bytes):
        x[j] = np.float32(0)
    q, scales = x[at_bytes:].view(np.int8), x[at_scales:]
    for g in range(at_bytes // GROUP):
        scales[g] = quantize_group(x[g * GROUP : (g + 1) * GROUP], q[g * GROUP : (g + 1) * GROUP])


@nb.njit
def _sum(codes):  # type: ignore[no-untyped-def]  # (n,) int8 -> int32
    total = np.int32(0)
    for j in range(codes.size):
        total += np.int32(codes[j])
    return total


@nb.njit
def write_start(codes, start):  # type: ignore[no-untyped-def]  # (n,) int8, (16,) int32
    """Write what :func:`minicore.backends.cpu.integer_rows.start_of` reads of an input."""
    for j in range(16):
        start[j] = 0
    start[0] = -128 * _sum(codes)


@overload(prepare)
def _prepare_int8(like, d, x):  # type: ignore[no-untyped-def]
    if getattr(like, "dtype", None) != types.int8:
        return None

    def code(like, d, x):  # type: ignore[no-untyped-def]
        quantize_groups(d, x)
        at_bytes, at_sums, at_scales, _ = _parts(d)
        q, sums = x[at_bytes:].view(np.int8), x[at_sums:at_scales].view(np.int32)
        for g in range(at_bytes // GROUP):
            write_start(q[g * GROUP : (g + 1) * GROUP], sums[16 * g : 16 * (g + 1)])

    return code


@overload(prepare)
def _prepare_int4(like, d, x):  # type: ignore[no-untyped-def]
    if getattr(like, "dtype", None) != types.uint8:
        return None

    def code(like, d, x):  # type: ignore[no-untyped-def]
        quantize_groups(d, x)
        at_bytes, at_sums, at_scales, _ = _parts(d)
        q, sums = x[at_bytes:].view(np.int8), x[at_sums:at_scales]
        for g in range(at_bytes // GROUP):
            for j in range(16):
                sums[16 * g + j] = np.float32(0)  # beside scales, and where weights have none
            for part in range(2):
                first = g * GROUP + part * HALF
                sums[16 * g + 2 + part] = np.float32(_sum(q[first : first + HALF]))

    return code


def _format_of(like: Any) -> str | None:
    formats: dict[Any, str] = {types.int8: "int8", types.uint8: "int4"}
    return formats.get(getattr(like, "dtype", None))


@overload(dots)
def _dots_packed(like, w, m, d, rows, x):  # type: ignore[no-untyped-def]
    format = _format_of(like)
    if format is None:
        return None
    products = DOTS[format, best_kind()]
    n_bytes, n_scales = FORMATS[format].n_bytes, FORMATS[format].n_scales

    def code(like, w, m, d, rows, x):  # type: ignore[no-untyped-def]
        at_bytes, at_sums, at_scales, _ = _parts(d)
        codes, scales = _rows_of(n_bytes, n_scales, w, m, d, rows)
        x0, groups = x.ctypes.data, (d + GROUP - 1) // GROUP
        return products(codes, scales, x0 + 4 * at_bytes, x0 + 4 * at_scales, x0 + 4 * at_sums, groups)

    return code


@nb.njit(inline="always")
def _row_of(format_bytes, format_scales, w, m, d, i):  # type: ignore[no-untyped-def]
    """Return the addresses of row i's bytes and scales."""
    groups = (d + GROUP - 1) // GROUP
    return w + i * groups * format_bytes, w + m * groups * format_bytes + i * groups * 2 * format_scales


@nb.njit(inline="always")
def _rows_of(format_bytes, format_scales, w, m, d, rows):  # type: ignore[no-untyped-def]
    """Return the addresses of four rows' bytes, and those of their scales."""
    c0, s0 = _row_of(format_bytes, format_scales, w, m, d, rows[0])
    c1, s1 = _row_of(format_bytes, format_scales, w, m, d, rows[1])
    c2, s2 = _row_of(format_bytes, format_scales, w, m, d, rows[2])
    c3, s3 = _row_of(format_bytes, format_scales, w, m, d, rows[3])
    return (c0, c1, c2, c3), (s0, s1, s2, s3)


@overload(axpy4)
def _axpy4_packed(like, w, m, d, rows, a, first, y):  # type: ignore[no-untyped-def]
    format = _format_of(like)
    if format is None:
        return None
    add_rows, n_bytes, n_scales = ROWS[format], FORMATS[format].n_bytes, FORMATS[format].n_scales

    def code(like, w, m, d, rows, a, first, y):  # type: ignore[no-untyped-def]
        r, groups = first, (d + GROUP - 1) // GROUP
        at = rows[r], rows[r + 1], rows[r + 2], rows[r + 3]
        codes, scales = _rows_of(n_bytes, n_scales, w, m, d, at)
        add_rows(codes, scales, a.ctypes.data + 4 * r, y.ctypes.data, groups)

    return code


@overload(row_to_float32)
def _row_to_float32_int8(like, w, m, d, i, y):  # type: ignore[no-untyped-def]
    if _format_of(like) != "int8":
        return None

    def code(like, w, m, d, i, y):  # type: ignore[no-untyped-def]
        q, s = _row_of(GROUP, 1, w, m, d, i)
        row = view1(q, d, like)
        for first in range(0, d, GROUP):
            scale = half(s + 2 * (first // GROUP))
            for j in range(first, min(first + GROUP, d)):
                y[j] = scale * np.float32(row[j])

    return code


@overload(row_to_float32)
def _row_to_float32_int4(like, w, m, d, i, y):  # type: ignore[no-untyped-def]
    if _format_of(like) != "int4":
        return None

    def code(like, w, m, d, i, y):  # type: ignore[no-untyped-def]
        q, s = _row_of(HALF, 4, w, m, d, i)
        for first in range(0, d, HALF):
            g, part = first // GROUP, first % GROUP // HALF
            at, shift = s + 8 * g + 2 * part, np.uint8(4 * part)
            codes, scale, low = view1(q + g * HALF, HALF, like), half(at), half(at + 4)
            for j in range(min(HALF, d - first)):
                y[first + j] = scale * np.float32((codes[j] >> shift) & np.uint8(15)) + low

    return code


@nb.njit(nogil=True, cache=True)
def rows_to_float32(thread, n_threads, n, like, w, m, d, first, y):  # type: ignore[no-untyped-def]
    """Write rows first to first + n of the m x d matrix at address w to y (n, d) as float32."""
    for i in range(thread * n // n_threads, (thread + 1) * n // n_threads):
        row_to_float32(like, w, m, d, first + i, y[i])


@nb.njit(nogil=True, cache=True, error_model="numpy")  # as quantize_groups is
def fake_quantize_rows(thread, n_threads, n, size, x, y):  # type: ignore[no-untyped-def]  # (n, d) twice
    """Write to y what integer products see of x (:func:`minicore.quantization.fake_quantize`)."""
    for t in range(thread * n // n_threads, (thread + 1) * n // n_threads):
        for first in range(0, x.shape[1], size):
            part = y[t, first : min(first + size, x.shape[1])]
            scale = quantize_group(x[t, first : first + part.size], part)
            for j in range(part.size):
                part[j] *= scale


@nb.njit("void(int64, int64, int64[:, ::1], int32[::1])", nogil=True, cache=True)
def copy_rows(thread, n_threads, jobs, like):  # type: ignore[no-untyped-def]  # (n_jobs, 5), (0,)
    """Copy rows together: a job has the addresses of all rows, of the copy and of int32 row numbers, then how
    many these are and the bytes of a row.
    """
    for source, target, places_at, n, size in jobs:
        rows = view1(places_at, n, like)
        for r in range(thread * n // n_threads, (thread + 1) * n // n_threads):
            copy_bytes(target + r * size, source + rows[r] * size, size)
