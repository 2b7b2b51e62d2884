"""Arenas: arrays of rows and vectors, each starting at a 16-byte chunk (see kernels/decode/shape.py)."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from minicore.backends.cuda.kernels.decode.shape import row_chunks
from minicore.backends.cuda.memory import allocate
from minicore.errors import InputError
from minicore.quantization import QuantizedMatrix, n_groups

Array = np.ndarray

SHIFTS = {"float32": 2, "bfloat16": 3, "int8": 4}  # a chunk holds 1 << shift elements


class _Part(NamedTuple):
    start: int
    w: Any
    transposed: bool

    def chunks(self) -> Array:  # -> (4 * n_chunks,) uint32
        return transposed_as_chunks(self.w) if self.transposed else as_chunks(self.w)


class Arena:
    """Rows and vectors in one array: first laid out, then copied.

    Rows are padded with zeros to whole chunks. The scales of an int8 row follow it; those of a transposed
    int8 matrix follow all of its rows. Vectors are float32 in every arena.

    Parameters
    ----------
    dtype : str
        ``float32``, ``bfloat16`` or ``int8``, that of matrices.

    Attributes
    ----------
    n_chunks : int
        Chunks laid out so far.
    """

    def __init__(self, dtype: str) -> None:
        self.shift, self.n_chunks = SHIFTS[dtype], 0
        self._parts: list[_Part] = []

    @property
    def nbytes(self) -> int:
        """Bytes of the array; there is no empty one."""
        return 16 * max(self.n_chunks, 1)

    def reserve_rows(self, n_rows: int, n: int) -> int:
        """Reserve n_rows rows of n elements and return their first chunk."""
        return self._reserve(n_rows * row_chunks(n, self.shift))

    def reserve_vector(self, n: int) -> int:
        """Reserve a vector of n elements and return its first chunk."""
        return self._reserve(row_chunks(n, SHIFTS["float32"]))

    def reserve_transposed(self, n_rows: int, n: int) -> int:
        """Reserve the n_rows rows of a transposed matrix (n, n_rows) and return their first chunk."""
        scale_rows = 2 * n_groups(n_rows) if self.shift == SHIFTS["int8"] else 0
        return self._reserve((n_rows + scale_rows) * self.transposed_chunks(n))

    def transposed_chunks(self, n: int) -> int:
        """Return the chunks of a row of n elements of a transposed matrix, whose scales are elsewhere."""
        return -(-n >> self.shift)

    def add(self, *ws: Any) -> int:
        """Add matrices or vectors, one after the other; return the first chunk, -1 if all are None."""
        starts = []
        for w in ws:
            if w is not None:
                is_vector = len(w.shape) == 1
                start = self.reserve_vector(len(w)) if is_vector else self.reserve_rows(len(w), w.shape[1])
                starts.append(start)
                self._parts.append(_Part(start, w, transposed=False))
        return starts[0] if starts else -1

    def add_transposed(self, w: Any) -> int:  # (n, n_rows)
        """Add a matrix that is stored transposed and return its first chunk."""
        start = self.reserve_transposed(w.shape[1], len(w))
        self._parts.append(_Part(start, w, transposed=True))
        return start

    def to_device(self) -> Any:  # -> (nbytes / 4,) uint32
        """Return a device array with everything that was added, and forget it."""
        array = allocate(self.nbytes // 4, np.uint32)
        for part in self._parts:
            chunks = part.chunks()
            array[4 * part.start : 4 * part.start + chunks.size].copy_to_device(chunks)
        self._parts.clear()
        return array

    def to_pinned(self) -> Array:  # -> (nbytes / 4,) uint32
        """Return page-locked host memory with everything that was added, and forget it.

        The GPU copies from page-locked memory while the CPU does something else.
        """
        from numba import cuda

        try:
            array = cuda.pinned_array(self.nbytes // 4, np.uint32)
        except Exception as error:  # the driver's own kinds
            raise InputError(
                f"memory_limit needs {self.nbytes} bytes of page-locked host memory for the FFN weights, "
                f"and the driver gives none ({' '.join(str(error).split())})"
            ) from error

        def copy(part: _Part) -> None:
            chunks = part.chunks()
            array[4 * part.start : 4 * part.start + chunks.size] = chunks

        with ThreadPoolExecutor() as pool:  # transposing takes longer than copying
            deque(pool.map(copy, self._parts), maxlen=0)
        self._parts.clear()
        return array

    def _reserve(self, n_chunks: int) -> int:
        start = self.n_chunks
        self.n_chunks += n_chunks
        return start


def as_chunks(w: Array | QuantizedMatrix) -> Array:  # (m, n) or (n,) -> (4 * n_chunks,) uint32
    """Return rows padded to whole chunks, as the words that an arena holds."""
    if isinstance(w, QuantizedMatrix):
        return _joined(w.codes.reshape(len(w), -1), w.scales.reshape(len(w), -1))
    return _joined(np.atleast_2d(w))


def transposed_as_chunks(w: Array | QuantizedMatrix) -> Array:  # (n, m) -> (4 * n_chunks,) uint32
    """Return the columns of a matrix as :func:`as_chunks`; then the scales of int8, a row for 64 columns."""
    if not isinstance(w, QuantizedMatrix):
        return as_chunks(w.T)
    codes = _joined(w.codes.reshape(len(w), -1)[:, : w.shape[1]].T)
    scales = w.scales.reshape(len(w), -1).T
    return np.concatenate([codes, _joined(np.pad(scales, ((0, 0), (0, -len(w) % 16))))])


def _joined(*parts: Array) -> Array:  # (m, ...) each -> (4 * n_chunks,) uint32
    """Return rows that are made of several parts, each part padded to whole chunks."""
    rows = [np.ascontiguousarray(part).view(np.uint8) for part in parts]
    rows = [np.pad(row, ((0, 0), (0, -row.shape[1] % 16))) if row.shape[1] % 16 else row for row in rows]
    whole = rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)
    return whole.reshape(-1).view(np.uint32)
