"""Matrices in few bits: how they are packed, and exactly which numbers the bytes mean.

A row is cut into groups of 64 numbers. The format decides how a group is held:

int8    64 signed bytes q in -127 to 127 and one scale s (float16): the numbers are s * q
int4    two halves of 32 numbers, the first half in the low nibbles q of 32 bytes and the second in the
        high ones, each half with a scale s and a minimum m (float16): the numbers are s * q + m

All bytes come first, then all scales, so that rows stay whole and aligned. Products of these rows with a
vector are taken in integers, so the vector is rounded too: 64 at a time, to s * q with q in -127 to 127.
:meth:`Packed.astype` and :func:`round_input` say what both roundings mean in float32; the reference uses
these, and the compiled kernels are held to them.
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
    """Bytes and float16 numbers that a group of 64 takes."""

    n_bytes: int
    n_scales: int


FORMATS = {"int8": Format(GROUP, 1), "int4": Format(HALF, 4)}


@dataclass(frozen=True)
class Packed:
    """An m x d matrix in a packed format, in the place of an array.

    Attributes
    ----------
    format : str
        ``int8`` or ``int4``.
    shape : (m, d)
    data : (m * n_groups * (n_bytes + 2 * n_scales),) uint8 array
        All rows' bytes, then all rows' scales.
    """

    format: str
    shape: tuple[int, int]
    data: Array

    @classmethod
    def empty(cls, format: str, shape: Sequence[int]) -> Packed:
        """Return a matrix whose bytes are yet to be written."""
        m, d = shape
        return cls(format, (m, d), np.empty(cls.nbytes_of(format, shape), np.uint8))

    @staticmethod
    def nbytes_of(format: str, shape: Sequence[int]) -> int:
        """Return the bytes of a matrix of that shape."""
        m, d = shape
        return m * n_groups(d) * (FORMATS[format].n_bytes + 2 * FORMATS[format].n_scales)

    @classmethod
    def pack(cls, format: str, w: Array) -> Packed:  # (m, d) -> (m, d)
        """Round a float matrix."""
        packed = cls.empty(format, w.shape)
        packed.write(0, w)
        return packed

    @property
    def dtype(self) -> str:
        """The format's name, where an array has its dtype."""
        return self.format

    @property
    def nbytes(self) -> int:
        """Bytes of numbers and scales."""
        return self.data.nbytes

    @property
    def size(self) -> int:
        """Numbers in the matrix."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def codes(self) -> Array:  # (m, n_groups, n_bytes) int8 or uint8
        """The groups' bytes, as a view."""
        m, groups = self.shape[0], n_groups(self.shape[1])
        n_bytes = FORMATS[self.format].n_bytes
        codes = self.data[: m * groups * n_bytes].reshape(m, groups, n_bytes)
        return codes.view(np.int8) if self.format == "int8" else codes

    @property
    def scales(self) -> Array:  # (m, n_groups, n_scales) float16
        """The groups' scales (int4: both halves' scales, then both minima), as a view."""
        m, groups = self.shape[0], n_groups(self.shape[1])
        at, n_scales = m * groups * FORMATS[self.format].n_bytes, FORMATS[self.format].n_scales
        return self.data[at:].view(np.float16).reshape(m, groups, n_scales)

    def write(self, first: int, w: Array) -> None:  # (n, d)
        """Round n rows into the matrix from row ``first`` on."""
        rows = slice(first, first + len(w))
        self.scales[rows], self.codes[rows] = _PACK[self.format](_groups(np.asarray(w, np.float32)))

    def __getitem__(self, rows: Array | Sequence[int] | slice) -> Packed:
        """Return some rows as a matrix of their own."""
        codes, scales = self.codes[rows], self.scales[rows]
        data = np.concatenate([codes.reshape(-1).view(np.uint8), scales.reshape(-1).view(np.uint8)])
        return Packed(self.format, (len(codes), self.shape[1]), data)

    def astype(self, dtype: type) -> Array:  # -> (m, d)
        """Return the numbers that the bytes mean, as float32."""
        groups = _UNPACK[self.format](self.scales.astype(np.float32), self.codes)
        width = n_groups(self.shape[1]) * GROUP
        return groups.reshape(len(self), width)[:, : self.shape[1]].astype(dtype, copy=False)


def n_groups(d: int) -> int:
    """Return how many groups a row of d numbers takes; the last is filled up with zeros."""
    return -(-d // GROUP)


def _groups(w: Array, size: int = GROUP) -> Array:  # (m, d) -> (m, n_groups, size)
    m, d = w.shape
    if d % size:
        w = np.concatenate([w, np.zeros((m, -d % size), w.dtype)], axis=1)
    return w.reshape(m, -1, size)


def _pack_int8(w: Array) -> tuple[Array, Array]:  # (m, g, 64) -> float16 (m, g, 1), int8 (m, g, 64)
    scale = _float16_at_least(np.abs(w).max(axis=-1, keepdims=True) / np.float32(127))
    return scale, np.rint(_over(w, scale)).astype(np.int8)


def _unpack_int8(scales: Array, codes: Array) -> Array:
    return scales * codes


def _pack_int4(w: Array) -> tuple[Array, Array]:  # (m, g, 64) -> float16 (m, g, 4), uint8 (m, g, 32)
    halves = w.reshape(*w.shape[:-1], 2, HALF)
    low = halves.min(axis=-1, keepdims=True).astype(np.float16)
    spread = np.maximum(halves.max(axis=-1, keepdims=True) - low, 0)
    scale = (spread / np.float32(15)).astype(np.float16)
    q = np.rint(_over(halves - low.astype(np.float32), scale)).clip(0, 15).astype(np.uint8)
    return np.concatenate([scale[..., 0], low[..., 0]], axis=-1), q[..., 0, :] | q[..., 1, :] << 4


def _unpack_int4(scales: Array, codes: Array) -> Array:
    q = np.stack([codes & 15, codes >> 4], axis=-2)  # (m, g, 2, 32)
    return scales[..., :2, None] * q + scales[..., 2:, None]


def _over(w: Array, scale: Array) -> Array:
    """Return w / scale, 0 where the scale is 0."""
    scale = scale.astype(np.float32)
    return np.divide(w, scale, out=np.zeros_like(w), where=scale > 0)


def _float16_at_least(x: Array) -> Array:
    """Return the float16 next above, so that the largest number of a group stays within its range."""
    near = x.astype(np.float16)
    return np.where(near.astype(np.float32) < x, np.nextafter(near, np.float16(np.inf)), near)


_PACK = {"int8": _pack_int8, "int4": _pack_int4}
_UNPACK = {"int8": _unpack_int8, "int4": _unpack_int4}


def round_input(x: Array, size: int = GROUP) -> Array:  # (..., d) -> (..., d)
    """Return a vector as integer kernels see it: rounded by :func:`in_steps`, so many numbers at a time.

    NaN stays NaN for its whole group.
    """
    groups = _groups(x.reshape(-1, x.shape[-1]), size)
    codes, steps = in_steps(groups)
    return (codes * steps).reshape(len(groups), -1)[:, : x.shape[-1]].reshape(x.shape)


def in_steps(x: Array) -> tuple[Array, Array]:  # (..., n) -> int8 (..., n), float32 (..., 1)
    """Round n numbers at a time to whole steps of one size: the largest magnitude over 127, in float32.

    Halves go to the even neighbour. The size is NaN for numbers of which one is NaN or infinite.
    """
    step = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
    step = np.where(np.isfinite(step), step, np.float32(np.nan))
    return np.rint(_over(x, step)).astype(np.int8), step
