"""Weight formats: how a row lies in memory, and the few operations that kernels need of one.

A format is a dtype of storage and the overloads below: ``dots`` of four rows with the input, ``axpy4`` (four
rows times four numbers, added up), ``widen_row``, and ``prepare``, which brings the input into the form
that ``dots`` wants. Kernels pass an empty array of that dtype as ``like`` and stay the same for all.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numba.core import types
from numba.extending import overload

from minicore.kernels import FAST, plain
from minicore.kernels.integer import DOTS, ROWS, best_kind, half
from minicore.kernels.machine import prefetch, view1
from minicore.kernels.packed import FORMATS, GROUP, HALF, Packed
from minicore.kernels.vectors import LANES

Array = np.ndarray


def stored(w: Array | Packed) -> Array:
    """Return a matrix as kernels read it, not copied: bfloat16 as uint16, packed bytes as int8 or uint8."""
    if isinstance(w, Packed):
        return w.data.view(np.int8) if w.format == "int8" else w.data
    return w if w.dtype == np.float32 else w.view(np.uint16)


def dots(like: Any, w: int, m: int, d: int, i: int, j: int, k: int, l: int, x: Array) -> tuple[float, ...]:
    """Return rows i, j, k and l of the m x d matrix at address w, each times x (d,), as float32.

    A row's product has the same bits wherever it stands among the four.
    """
    raise NotImplementedError("compiled code only")


def axpy4(like: Any, w: int, m: int, d: int, rows: Array, a: Array, first: int, y: Array) -> None:
    """Add a[r] times row rows[r] of the m x d matrix at address w to y, for four r from ``first`` on."""
    raise NotImplementedError("compiled code only")


def widen_row(like: Any, w: int, m: int, d: int, i: int, y: Array) -> None:
    """Write row i of the m x d matrix at address w to y as float32."""
    raise NotImplementedError("compiled code only")


def prefetch_row(like: Any, w: int, m: int, d: int, i: int) -> None:
    """Have row i of the m x d matrix at address w fetched, to be read soon."""
    raise NotImplementedError("compiled code only")


def rows_ahead(like: Any) -> int:
    """Return how many rows ahead to fetch where rows follow one another; 0 leaves that to the CPU.

    int4 multiplies about as fast as memory brings rows, so that asking for them costs more than it saves
    (docs/speed.md); rows that lie apart are fetched ahead in every format.
    """
    raise NotImplementedError("compiled code only")


@overload(rows_ahead)
def _rows_ahead(like):  # type: ignore[no-untyped-def]
    n = 0 if _format_of(like) == "int4" else 6
    return lambda like: n


def prepare(like: Any, d: int, x: Array) -> None:
    """Bring the input of :func:`dots` into the form it reads."""
    raise NotImplementedError("compiled code only")


def widen(w: Any) -> float:
    """Return a stored number, float32 or the 16 bits of a bfloat16, as float32."""
    raise NotImplementedError("compiled code only")


@overload(widen, inline="always")
def _widen(w):  # type: ignore[no-untyped-def]
    if w == types.float32:
        return lambda w: w
    # a bfloat16 is the upper half of a float32
    return lambda w: np.uint32(np.uint32(w) << np.uint32(16)).view(np.float32)


def narrow(like: Any, x: float) -> Any:
    """Return a float32 as ``like``'s dtype stores it: rounded to the nearest bfloat16, halves to even."""
    raise NotImplementedError("compiled code only")


@overload(narrow)
def _narrow(like, x):  # type: ignore[no-untyped-def]
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


@overload(dots, jit_options={"fastmath": FAST})
def _dots(like, w, m, d, i, j, k, l, x):  # type: ignore[no-untyped-def]
    if not _is_plain(like):
        return None

    def code(like, w, m, d, i, j, k, l, x):  # type: ignore[no-untyped-def]
        size, whole = d * like.itemsize, d // LANES
        at = (w + i * size, w + j * size, w + k * size, w + l * size)
        y0, y1, y2, y3 = plain.dots(like, at[0], at[1], at[2], at[3], x.ctypes.data, whole)
        for c in range(whole * LANES, d):
            y0 += widen(view1(at[0], d, like)[c]) * x[c]
            y1 += widen(view1(at[1], d, like)[c]) * x[c]
            y2 += widen(view1(at[2], d, like)[c]) * x[c]
            y3 += widen(view1(at[3], d, like)[c]) * x[c]
        return y0, y1, y2, y3

    return code


@overload(axpy4, jit_options={"fastmath": FAST})
def _axpy4(like, w, m, d, rows, a, first, y):  # type: ignore[no-untyped-def]
    if not _is_plain(like):
        return None

    def code(like, w, m, d, rows, a, first, y):  # type: ignore[no-untyped-def]
        r, size = first, d * like.itemsize
        w0, w1 = view1(w + rows[r] * size, d, like), view1(w + rows[r + 1] * size, d, like)
        w2, w3 = view1(w + rows[r + 2] * size, d, like), view1(w + rows[r + 3] * size, d, like)
        a0, a1, a2, a3 = a[r], a[r + 1], a[r + 2], a[r + 3]
        for j in range(d):
            y[j] += (a0 * widen(w0[j]) + a1 * widen(w1[j])) + (a2 * widen(w2[j]) + a3 * widen(w3[j]))

    return code


@overload(widen_row)
def _widen_row(like, w, m, d, i, y):  # type: ignore[no-untyped-def]
    if not _is_plain(like):
        return None

    def code(like, w, m, d, i, y):  # type: ignore[no-untyped-def]
        row = view1(w + i * d * like.itemsize, d, like)
        for j in range(d):
            y[j] = widen(row[j])

    return code


@overload(prefetch_row)
def _prefetch_row(like, w, m, d, i):  # type: ignore[no-untyped-def]
    if not _is_plain(like):
        return None
    return lambda like, w, m, d, i: prefetch(w + i * d * like.itemsize, d * like.itemsize)


@overload(prepare)
def _prepare(like, d, x):  # type: ignore[no-untyped-def]
    if not _is_plain(like):
        return None
    return lambda like, d, x: None


# --- packed formats ---
# After its d numbers, filled up to whole groups, an input holds: their signed bytes, 16 lanes a group of
# what the format needs of their sum, and a step a group.


@nb.njit(inline="always")
def _parts(d):  # type: ignore[no-untyped-def]  # int -> where bytes, sums and steps begin, and the end, in floats
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
def round_groups(d, x):  # type: ignore[no-untyped-def]  # int, (input_size(d),)
    """Fill in an input's bytes and steps; NaN and infinity make their group's step NaN."""
    at_bytes, _, at_steps, _ = _parts(d)
    for j in range(d, at_bytes):
        x[j] = np.float32(0)
    q, steps = x[at_bytes:].view(np.int8), x[at_steps:]
    for g in range(at_bytes // GROUP):
        largest, lost = np.float32(0), np.float32(0)
        for j in range(g * GROUP, (g + 1) * GROUP):
            largest = max(largest, abs(x[j]))
            lost += x[j] - x[j]
        step = largest / np.float32(127)
        by = step if step > 0 else np.float32(1)
        for j in range(g * GROUP, (g + 1) * GROUP):
            q[j] = np.int8(_round(x[j] / by))
        steps[g] = step + lost


@overload(prepare)
def _prepare_int8(like, d, x):  # type: ignore[no-untyped-def]
    if getattr(like, "dtype", None) != types.int8:
        return None

    def code(like, d, x):  # type: ignore[no-untyped-def]
        round_groups(d, x)
        at_bytes, at_sums, at_steps, _ = _parts(d)
        q, sums = x[at_bytes:].view(np.int8), x[at_sums:at_steps].view(np.int32)
        for g in range(at_bytes // GROUP):
            total = np.int32(0)
            for j in range(g * GROUP, (g + 1) * GROUP):
                total += np.int32(q[j])
            sums[16 * g : 16 * g + 16] = 0
            sums[16 * g] = 128 * total

    return code


@overload(prepare)
def _prepare_int4(like, d, x):  # type: ignore[no-untyped-def]
    if getattr(like, "dtype", None) != types.uint8:
        return None

    def code(like, d, x):  # type: ignore[no-untyped-def]
        round_groups(d, x)
        at_bytes, at_sums, at_steps, _ = _parts(d)
        q, sums, steps = x[at_bytes:].view(np.int8), x[at_sums:at_steps], x[at_steps:]
        for lane in range(at_bytes // 4):  # a lane's sum is that of its four bytes: eight lanes make a half
            total = np.int32(q[4 * lane]) + np.int32(q[4 * lane + 1])
            total += np.int32(q[4 * lane + 2]) + np.int32(q[4 * lane + 3])
            sums[lane] = np.float32(total) * steps[lane // 16]

    return code


def _format_of(like: Any) -> str | None:
    formats: dict[Any, str] = {types.int8: "int8", types.uint8: "int4"}
    return formats.get(getattr(like, "dtype", None))


@overload(dots)
def _dots_packed(like, w, m, d, i, j, k, l, x):  # type: ignore[no-untyped-def]
    format = _format_of(like)
    if format is None:
        return None
    products = DOTS[format, best_kind()]
    n_bytes, n_scales = FORMATS[format].n_bytes, FORMATS[format].n_scales

    def code(like, w, m, d, i, j, k, l, x):  # type: ignore[no-untyped-def]
        groups = (d + GROUP - 1) // GROUP
        at_bytes, at_sums, at_steps, _ = _parts(d)
        c0, s0 = _row_of(n_bytes, n_scales, w, m, d, i)
        c1, s1 = _row_of(n_bytes, n_scales, w, m, d, j)
        c2, s2 = _row_of(n_bytes, n_scales, w, m, d, k)
        c3, s3 = _row_of(n_bytes, n_scales, w, m, d, l)
        inputs = x.ctypes.data
        bytes_, steps, sums = inputs + 4 * at_bytes, inputs + 4 * at_steps, inputs + 4 * at_sums
        return products(c0, c1, c2, c3, s0, s1, s2, s3, bytes_, steps, sums, groups)

    return code


@nb.njit(inline="always")
def _row_of(format_bytes, format_scales, w, m, d, i):  # type: ignore[no-untyped-def]
    """Return the addresses of row i's bytes and scales."""
    groups = (d + GROUP - 1) // GROUP
    return w + i * groups * format_bytes, w + m * groups * format_bytes + i * groups * 2 * format_scales


@overload(prefetch_row)
def _prefetch_packed(like, w, m, d, i):  # type: ignore[no-untyped-def]
    format = _format_of(like)
    if format is None:
        return None
    n_bytes, n_scales = FORMATS[format].n_bytes, FORMATS[format].n_scales

    def code(like, w, m, d, i):  # type: ignore[no-untyped-def]
        codes, scales = _row_of(n_bytes, n_scales, w, m, d, i)
        groups = (d + GROUP - 1) // GROUP
        prefetch(codes, groups * n_bytes)
        prefetch(scales, groups * 2 * n_scales)

    return code


@overload(axpy4)
def _axpy4_packed(like, w, m, d, rows, a, first, y):  # type: ignore[no-untyped-def]
    format = _format_of(like)
    if format is None:
        return None
    add_rows, n_bytes, n_scales = ROWS[format], FORMATS[format].n_bytes, FORMATS[format].n_scales

    def code(like, w, m, d, rows, a, first, y):  # type: ignore[no-untyped-def]
        c0, s0 = _row_of(n_bytes, n_scales, w, m, d, rows[first])
        c1, s1 = _row_of(n_bytes, n_scales, w, m, d, rows[first + 1])
        c2, s2 = _row_of(n_bytes, n_scales, w, m, d, rows[first + 2])
        c3, s3 = _row_of(n_bytes, n_scales, w, m, d, rows[first + 3])
        groups, weights = (d + GROUP - 1) // GROUP, a.ctypes.data + 4 * first
        add_rows(c0, c1, c2, c3, s0, s1, s2, s3, weights, y.ctypes.data, groups)

    return code


@nb.njit(inline="always")
def _nibble(byte, shift):  # type: ignore[no-untyped-def]  # uint8, 0 or 4 -> float32
    return np.float32((byte >> shift) & np.uint8(15))


@overload(widen_row)
def _widen_row_int8(like, w, m, d, i, y):  # type: ignore[no-untyped-def]
    if _format_of(like) != "int8":
        return None

    def code(like, w, m, d, i, y):  # type: ignore[no-untyped-def]
        q, s = _row_of(GROUP, 1, w, m, d, i)
        row = view1(q, d, like)
        for j in range(d):
            y[j] = half(s + 2 * (j // GROUP)) * np.float32(row[j])

    return code


@overload(widen_row)
def _widen_row_int4(like, w, m, d, i, y):  # type: ignore[no-untyped-def]
    if _format_of(like) != "int4":
        return None

    def code(like, w, m, d, i, y):  # type: ignore[no-untyped-def]
        q, s = _row_of(HALF, 4, w, m, d, i)
        for j in range(d):
            g, k, part = j // GROUP, j % HALF, j % GROUP // HALF
            at = s + 8 * g + 2 * part
            byte = view1(q + g * HALF + k, 1, like)[0]
            y[j] = half(at) * _nibble(byte, np.uint8(4 * part)) + half(at + 4)

    return code
