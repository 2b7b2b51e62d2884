"""Weight formats: how a row lies in memory, and the few operations that kernels need of one.

A format is a dtype of storage and the overloads below: ``dot`` of a row with the input, ``axpy4`` (four
rows times four numbers, added up), ``widen_row``, and ``prepare``, which brings the input into the form
that ``dot`` wants. Kernels pass an empty array of that dtype as ``like`` and stay the same for all.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numba.core import types
from numba.extending import overload

from minicore.kernels import FAST
from minicore.kernels.machine import view1

Array = np.ndarray


def stored(w: Array) -> Array:  # any shape -> the same
    """Return a matrix as kernels read it: float32 as it is, bfloat16 as uint16 without a copy."""
    return w if w.dtype == np.float32 else w.view(np.uint16)


def dot(like: Any, w: int, m: int, d: int, i: int, x: Array) -> float:  # (d,) -> float32
    """Return row i of the m x d matrix at address w, times x."""
    raise NotImplementedError("compiled code only")


def axpy4(like: Any, w: int, m: int, d: int, rows: Array, a: Array, y: Array) -> None:
    """Add a[r] times row rows[r] of the m x d matrix at address w to y, for four r."""
    raise NotImplementedError("compiled code only")


def widen_row(like: Any, w: int, m: int, d: int, i: int, y: Array) -> None:
    """Write row i of the m x d matrix at address w to y as float32."""
    raise NotImplementedError("compiled code only")


def prepare(like: Any, d: int, x: Array) -> None:
    """Bring the input of :func:`dot` into the form it reads."""
    raise NotImplementedError("compiled code only")


@nb.njit(inline="always")
def _float(w):  # type: ignore[no-untyped-def]  # float32 -> float32
    return w


@nb.njit(inline="always")
def _upper_half(w):  # type: ignore[no-untyped-def]  # uint16 -> float32
    """Widen a bfloat16: it is the upper half of a float32."""
    return np.uint32(np.uint32(w) << np.uint32(16)).view(np.float32)


def _widen_of(like: Any) -> Any:
    widen: dict[Any, Any] = {types.float32: _float, types.uint16: _upper_half}
    return widen.get(getattr(like, "dtype", None))


@overload(dot, jit_options={"fastmath": FAST})
def _dot(like, w, m, d, i, x):  # type: ignore[no-untyped-def]
    widen = _widen_of(like)
    if widen is None:
        return None

    def code(like, w, m, d, i, x):  # type: ignore[no-untyped-def]
        row = view1(w + i * d * like.itemsize, d, like)
        total = np.float32(0)
        for j in range(d):
            total += widen(row[j]) * x[j]
        return total

    return code


@overload(axpy4, jit_options={"fastmath": FAST})
def _axpy4(like, w, m, d, rows, a, y):  # type: ignore[no-untyped-def]
    widen = _widen_of(like)
    if widen is None:
        return None

    def code(like, w, m, d, rows, a, y):  # type: ignore[no-untyped-def]
        size = d * like.itemsize
        w0, w1 = view1(w + rows[0] * size, d, like), view1(w + rows[1] * size, d, like)
        w2, w3 = view1(w + rows[2] * size, d, like), view1(w + rows[3] * size, d, like)
        for j in range(d):
            y[j] += (a[0] * widen(w0[j]) + a[1] * widen(w1[j])) + (a[2] * widen(w2[j]) + a[3] * widen(w3[j]))

    return code


@overload(widen_row)
def _widen_row(like, w, m, d, i, y):  # type: ignore[no-untyped-def]
    widen = _widen_of(like)
    if widen is None:
        return None

    def code(like, w, m, d, i, y):  # type: ignore[no-untyped-def]
        row = view1(w + i * d * like.itemsize, d, like)
        for j in range(d):
            y[j] = widen(row[j])

    return code


@overload(prepare)
def _prepare(like, d, x):  # type: ignore[no-untyped-def]
    if _widen_of(like) is None:
        return None
    return lambda like, d, x: None
