"""int8 and int4 weights: the storage formats, and the float32 values that they stand for.

A row is cut into groups of 64 elements. A group holds integer codes q and float16 scales:

int8    64 signed codes in -127 to 127 and one scale s; an element is s * q
int4    two halves of 32 elements: the first half in the low nibbles of 32 bytes, the second in the high
        nibbles. Each half has a scale s and a minimum m; an element is s * q + m, q in 0 to 15

A matrix stores the codes of all rows first and then the scales of all rows, so that rows are contiguous and
aligned. Kernels multiply these rows by a vector in integer arithmetic, so the vector is quantized too: 64
elements at a time, to s * q with q in -127 to 127. :meth:`QuantizedMatrix.dequantize` and
:func:`fake_quantize` give the float32 values of both. The NumPy reference computes with those values, and the
compiled kernels are tested against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

GROUP = 64
HALF = GROUP // 2


@dataclass(frozen=True)
class Format:
    """Bytes of codes and number of float16 scales in a group of 64 elements."""

    n_bytes: int
    n_scales: int


FORMATS = {"int8": Format(GROUP, 1), "int4": Format(HALF, 4)}


@dataclass(frozen=True)
class QuantizedMatrix:
    """An m x d matrix in int8 or int4. It stands where a float array would.

    Attributes
    ----------
    format : str
        ``int8`` or ``int4``.
    shape : (m, d)
    data : (m * n_groups * (n_bytes + 2 * n_scales),) uint8 array
        The codes of all rows, then the scales of all rows.
    """

    format: str
    shape: tuple[int, int]
    data: Array

    @classmethod
    def empty(cls, format: str, shape: Sequence[int]) -> QuantizedMatrix:
        """Return an uninitialized matrix; :meth:`write` fills it."""
        m, d = shape
        return cls(format, (m, d), np.empty(cls.nbytes_of(format, shape), np.uint8))

    @staticmethod
    def nbytes_of(format: str, shape: Sequence[int]) -> int:
        """Return the size in bytes of a matrix of this format and shape."""
        m, d = shape
        return m * n_groups(d) * (FORMATS[format].n_bytes + 2 * FORMATS[format].n_scales)

    @classmethod
    def quantize(cls, format: str, w: Array) -> QuantizedMatrix:  # (m, d) -> (m, d)
        """Return a float matrix rounded to this format."""
        matrix = cls.empty(format, w.shape)
        matrix.write(0, w)
        return matrix

    def dequantize(self) -> Array:  # -> (m, d)
        """Return the values that the codes and scales stand for, as float32."""
        groups = _DEQUANTIZE[self.format](self.scales.astype(np.float32), self.codes)
        width = n_groups(self.shape[1]) * GROUP
        return groups.reshape(len(self), width)[:, : self.shape[1]]

    @property
    def dtype(self) -> str:
        """The format's name, in place of an array's dtype."""
        return self.format

    @property
    def nbytes(self) -> int:
        """Size of codes and scales in bytes."""
        return self.data.nbytes

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def codes(self) -> Array:  # (m, n_groups, n_bytes) int8 or uint8
        """The groups' codes, as a view of :attr:`data`."""
        m, groups = self.shape[0], n_groups(self.shape[1])
        n_bytes = FORMATS[self.format].n_bytes
        codes = self.data[: m * groups * n_bytes].reshape(m, groups, n_bytes)
        return codes.view(np.int8) if self.format == "int8" else codes

    @property
    def scales(self) -> Array:  # (m, n_groups, n_scales) float16
        """The groups' scales, as a view of :attr:`data`; for int4 both halves' scales, then both minima."""
        m, groups = self.shape[0], n_groups(self.shape[1])
        start, n_scales = m * groups * FORMATS[self.format].n_bytes, FORMATS[self.format].n_scales
        return self.data[start:].view(np.float16).reshape(m, groups, n_scales)

    def write(self, first: int, w: Array) -> None:  # (n, d)
        """Quantize n rows into the matrix, starting at row ``first``."""
        rows = slice(first, first + len(w))
        self.scales[rows], self.codes[rows] = _QUANTIZE[self.format](_groups(np.asarray(w, np.float32)))

    def __getitem__(self, rows: Array | Sequence[int] | slice) -> QuantizedMatrix:
        """Return a copy of some rows as a matrix."""
        codes, scales = self.codes[rows], self.scales[rows]
        data = np.concatenate([codes.reshape(-1).view(np.uint8), scales.reshape(-1).view(np.uint8)])
        return QuantizedMatrix(self.format, (len(codes), self.shape[1]), data)


Weight = Array | QuantizedMatrix  # a matrix or vector of a model


def n_groups(d: int) -> int:
    """Return the number of groups in a row of d elements; the last group is padded with zeros."""
    return -(-d // GROUP)


def _groups(w: Array, size: int = GROUP) -> Array:  # (m, d) -> (m, n_groups, size)
    m, d = w.shape
    if d % size:
        w = np.concatenate([w, np.zeros((m, -d % size), w.dtype)], axis=1)
    return w.reshape(m, -1, size)


def _quantize_int8(w: Array) -> tuple[Array, Array]:  # (m, g, 64) -> float16 (m, g, 1), int8 (m, g, 64)
    scale = _float16_at_least(np.abs(w).max(axis=-1, keepdims=True) / np.float32(127))
    return scale, np.rint(_divide(w, scale)).astype(np.int8)


def _dequantize_int8(scales: Array, codes: Array) -> Array:
    return scales * codes


def _quantize_int4(w: Array) -> tuple[Array, Array]:  # (m, g, 64) -> float16 (m, g, 4), uint8 (m, g, 32)
    halves = w.reshape(*w.shape[:-1], 2, HALF)
    low = halves.min(axis=-1, keepdims=True).astype(np.float16)
    spread = np.maximum(halves.max(axis=-1, keepdims=True) - low, 0)
    scale = (spread / np.float32(15)).astype(np.float16)
    q = np.rint(_divide(halves - low.astype(np.float32), scale)).clip(0, 15).astype(np.uint8)
    return np.concatenate([scale[..., 0], low[..., 0]], axis=-1), q[..., 0, :] | q[..., 1, :] << 4


def _dequantize_int4(scales: Array, codes: Array) -> Array:
    q = np.stack([codes & 15, codes >> 4], axis=-2)  # (m, g, 2, 32)
    return scales[..., :2, None] * q + scales[..., 2:, None]


def _divide(w: Array, scale: Array) -> Array:
    """Return w / scale, 0 where the scale is 0."""
    scale = scale.astype(np.float32)
    return np.divide(w, scale, out=np.zeros_like(w), where=scale > 0)


def _float16_at_least(x: Array) -> Array:
    """Return the smallest float16 that is not below x, so that no code of a group exceeds 127."""
    near = x.astype(np.float16)
    return np.where(near.astype(np.float32) < x, np.nextafter(near, np.float16(np.inf)), near)


_QUANTIZE = {"int8": _quantize_int8, "int4": _quantize_int4}
_DEQUANTIZE = {"int8": _dequantize_int8, "int4": _dequantize_int4}


def fake_quantize(x: Array, size: int = GROUP) -> Array:  # (..., d) -> (..., d)
    """Return the values of x that integer kernels see: :func:`quantize_int8` of every ``size`` elements.

    A group with NaN or infinity becomes NaN.

    Examples
    --------
    >>> fake_quantize(np.float32([[1, 0.5, 127]]), 3)
    array([[  1.,   0., 127.]], dtype=float32)
    """
    groups = _groups(x.reshape(-1, x.shape[-1]), size)
    codes, scales = quantize_int8(groups)
    return (codes * scales).reshape(len(groups), -1)[:, : x.shape[-1]].reshape(x.shape)


def quantize_int8(x: Array) -> tuple[Array, Array]:  # (..., n) -> int8 (..., n), float32 (..., 1)
    """Return int8 codes and the float32 scale of each row: its largest magnitude over 127.

    Halves round to even. The scale is NaN for a row with NaN or infinity; its codes then mean nothing.
    """
    scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
    scale = np.where(np.isfinite(scale), scale, np.float32(np.nan))
    return np.rint(_divide(x, scale)).astype(np.int8), scale
