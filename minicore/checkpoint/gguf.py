"""GGUF files, mapped: metadata, a table of tensors, then their (mostly quantised) blocks.

The header is read here, because the reader of the ``gguf`` package makes an array object of every token of
the vocabulary (seconds and more than 100 MB for 49,152 of them); kinds of tensors, their block sizes and
their dequantisation are that package's. Layout: the GGUF specification of the ggml project, versions 2, 3.
"""

from __future__ import annotations

import functools
import math
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from minicore.checkpoint.tensors import Array, MappedFile, Tensor
from minicore.errors import InputError

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
LAYOUTS = {code: struct.Struct("<" + code) for code in SCALARS.values()}
STRING, ARRAY = 8, 9
ALIGNMENT = 32  # of the data, where the metadata do not say
PLAIN = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


class _Cursor:
    """Reads one thing after the other and knows when the file ends too early."""

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.at = 0

    def take(self, size: int) -> bytes:
        if size > self.file.size - self.at:
            raise InputError(
                f"{self.file.path}: the header goes beyond the file's {self.file.size} bytes; "
                "expected a whole GGUF file, this one is truncated"
            )
        self.at += size
        return self.file.map[self.at - size : self.at]

    def number(self, code: str) -> Any:
        layout = LAYOUTS[code]
        return layout.unpack(self.take(layout.size))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise InputError(f"{self.file.path}: metadata of unknown type {kind}, expected 0 to 12")
        kind, count = self.number("I"), self.number("Q")
        if kind in SCALARS:
            raw = self.take(count * LAYOUTS[SCALARS[kind]].size)
            return list(struct.unpack(f"<{count}{SCALARS[kind]}", raw))
        if kind != STRING:
            raise InputError(
                f"{self.file.path}: metadata have an array of type {kind}, expected 0 to 8 or 10 to 12"
            )
        return self.texts(count)

    def texts(self, count: int) -> list[str]:
        """Read many strings, such as a vocabulary, in a loop without calls: it is on the way to a token."""
        length, data, found = LAYOUTS["Q"].unpack_from, self.file.map, []
        for _ in range(count):
            if self.at + 8 > self.file.size:
                break
            start = self.at + 8
            self.at = start + length(data, self.at)[0]
            found.append(data[start : self.at].decode("utf-8", errors="replace"))
        if len(found) < count or self.at > self.file.size:
            self.take(self.file.size)  # says that the header goes beyond the file
        return found


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a file's metadata and its tensors; no tensor's data are read.

    Returns
    -------
    metadata : dict of str to str, int, float, bool or list
    tensors : dict of str to Tensor
        Shapes as NumPy counts, that is the reverse of GGUF's.

    Raises
    ------
    InputError
        If it is no GGUF file, is truncated, or holds a quantisation that is not known.

    Examples
    --------
    >>> import struct, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:  # version 3, no tensor, one number of kind 4 (uint32)
    ...     path = Path(folder) / "empty.gguf"
    ...     head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 7) + b"n_words"
    ...     _ = path.write_bytes(head + struct.pack("<II", 4, 12))
    ...     read_file(path)
    ({'n_words': 12}, {})
    """
    file = MappedFile(path)
    cursor = _Cursor(file)
    if file.size < 4 or cursor.take(4) != b"GGUF":
        raise InputError(f"{path}: does not begin with GGUF, expected a GGUF file")
    version = cursor.number("I")
    if version not in (2, 3):
        big = " (a big-endian file)" if version & 0xFFFF == 0 else ""
        raise InputError(f"{path}: is of GGUF version {version}{big}, expected 2 or 3, little-endian")
    n_tensors, n_metadata = cursor.number("Q"), cursor.number("Q")
    metadata = {}
    for _ in range(n_metadata):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("I"))
    table = []
    for _ in range(n_tensors):
        name = cursor.text()
        shape = tuple(cursor.number("Q") for _ in range(cursor.number("I")))[::-1]
        table.append((name, shape, cursor.number("I"), cursor.number("Q")))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
        raise InputError(f"{path}: general.alignment is {alignment!r}, expected a positive integer")
    data = -(-cursor.at // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    for name, shape, kind, offset in table:
        if name in tensors:
            raise InputError(f"{path}: tensor {name} is there twice, expected once")
        tensors[name] = _tensor(file, name, shape, kind, data + offset)
    return metadata, tensors


def _tensor(file: MappedFile, name: str, shape: tuple[int, ...], kind_id: int, offset: int) -> Tensor:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(kind_id)
        block, size = GGML_QUANT_SIZES[kind]  # elements and bytes of one block
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{file.path}: tensor {name} is of unknown quantisation {kind_id}, expected one that the gguf "
            "package knows"
        ) from error
    width = shape[-1] if shape else 1
    if width % block:
        raise InputError(
            f"{file.path}: tensor {name} has rows of {width}, expected a multiple of {block} for {kind.name}"
        )
    end = offset + math.prod(shape) // block * size
    if end > file.size:
        raise InputError(
            f"{file.path}: tensor {name} ends at byte {end}, but the file has {file.size}; "
            "expected a whole file, this one is truncated"
        )
    stride = math.prod(shape[1:]) * size // block  # bytes in one row

    def rows(start: int, stop: int) -> Array:
        raw = file.bytes[offset + start * stride : offset + stop * stride]
        if kind.name in PLAIN:
            return raw.view(PLAIN[kind.name]).reshape(stop - start, *shape[1:])
        if len(shape) < 2 or not _dequantises(kind_id):
            raise InputError(
                f"{file.path}: tensor {name} is {kind.name}, expected a quantisation that the gguf package "
                "can undo, or F32, F16 or BF16"
            )
        if start == stop:
            return np.empty((0, *shape[1:]), np.float32)
        return _dequantise(raw, kind_id).reshape(stop - start, *shape[1:])

    def release(start: int, stop: int) -> None:
        file.release(offset + start * stride, offset + stop * stride)

    return Tensor(name, file.path, shape, kind.name, rows, release)


def _dequantise(blocks: Array, kind_id: int) -> Array:  # (bytes,) uint8 -> (n,) float32
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    # As one long row: the package works row by row, and its rows would be short ones here.
    with np.errstate(all="ignore"):  # a scale that is NaN shows in the values, where it is refused
        return dequantize(blocks[np.newaxis], GGMLQuantizationType(kind_id))[0]


@functools.cache
def _dequantises(kind_id: int) -> bool:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        _dequantise(np.zeros(GGML_QUANT_SIZES[GGMLQuantizationType(kind_id)][1], np.uint8), kind_id)
    except NotImplementedError:
        return False
    return True
