"""Tensors in files: a memory-mapped file, and a tensor whose rows are read from it on demand."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from minicore.errors import InputError
from minicore.files import check_lfs_pointer

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

HUGE_PAGE = 1 << 21  # bytes: the most that the system maps on one page fault


class MappedFile:
    """A memory-mapped file. Its pages are read on first use and can be released after it.

    Attributes
    ----------
    path : Path
    size : int
        Bytes.
    bytes : (size,) uint8 array
        The file's content, read-only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():  # opening a pipe would block forever
            raise InputError(f"{path}: is not a regular file, expected a checkpoint")
        try:
            with path.open("rb") as file:
                self.size = path.stat().st_size
                if not self.size:
                    raise InputError(f"{path}: the file is empty, expected a checkpoint")
                check_lfs_pointer(path, file.read(64))
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        self.bytes: Array = np.frombuffer(self.map, np.uint8)

    def release(self, start: int, stop: int) -> None:
        """Return the pages of bytes [start, stop) to the system, so that they no longer count as resident.

        A page fault also maps neighbouring pages, and some of those may have been released before. The range
        is therefore extended downwards by the most that one fault maps.
        """
        if hasattr(self.map, "madvise") and stop > start:
            start = max(start - HUGE_PAGE, 0)
            start -= start % mmap.PAGESIZE
            self.map.madvise(mmap.MADV_DONTNEED, start, stop - start)


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file.

    Attributes
    ----------
    name, file : str, Path
        Its name, and the file that holds it.
    shape : tuple of int
        In NumPy's order: the last axis is contiguous.
    kind : str
        The file's name for the element type, such as ``F16`` or ``Q4_1``.
    rows : callable
        ``rows(start, stop)`` returns rows [start, stop) of the first axis in a floating-point dtype. It
        raises InputError for a kind that cannot be read, even if no rows are requested.
    release : callable
        ``release(start, stop)`` releases the memory that reading those rows has mapped.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    kind: str
    rows: Callable[[int, int], Array]
    release: Callable[[int, int], None]

    @property
    def where(self) -> str:
        """File and name, for messages."""
        return f"{self.file}: tensor {self.name}"


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written to a file. Its data are made when it is its turn, so one at a time is in memory.

    Attributes
    ----------
    name, kind : str
        Its name, and the file's name for the element type.
    shape : tuple of int
        In NumPy's order.
    nbytes : int
        Size of the data.
    data : callable
        ``data()`` returns a contiguous array with ``nbytes`` bytes, as they are in the file.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    nbytes: int
    data: Callable[[], Array]


def kinds(tensors: Iterable[Tensor]) -> str:
    """Return the element types of a file's tensors, the most frequent first: ``"Q4_1 + F32"``."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.kind] = sizes.get(tensor.kind, 0) + math.prod(tensor.shape)
    return " + ".join(sorted(sizes, key=lambda kind: -sizes[kind]))
