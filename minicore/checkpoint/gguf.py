"""GGUF files, memory-mapped: metadata, a table of tensors, then their (mostly quantized) blocks.

This module parses the header itself, because the reader of the ``gguf`` package makes an array object for
every token of the vocabulary: for 49,152 tokens that takes seconds and more than 100 MB. Tensor types, block
sizes and dequantization come from that package. Layout: the ggml project's GGUF specification, versions 2
and 3.
"""

from __future__ import annotations

import functools
import math
import re
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
ALIGNMENT = 32  # of the data, unless the metadata give another
MAX_PARTS = 99_999  # a part's name has five digits
PLAIN = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


class _Cursor:
    """Reads the header value by value and detects a truncated file."""

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.offset = 0

    def take(self, size: int) -> bytes:
        if size > self.file.size - self.offset:
            raise InputError(
                f"{self.file.path}: the header extends past the end of the file ({self.file.size} bytes): "
                "it is truncated, expected a complete GGUF file"
            )
        self.offset += size
        return self.file.map[self.offset - size : self.offset]

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
            raise InputError(f"{self.file.path}: metadata array of type {kind}, expected 0 to 8 or 10 to 12")
        return self.texts(count)

    def texts(self, count: int) -> list[str]:
        """Read many strings, such as a vocabulary. The loop is inlined, because it delays the first token."""
        length, data, found = LAYOUTS["Q"].unpack_from, self.file.map, []
        for _ in range(count):
            if self.offset + 8 > self.file.size:
                break
            start = self.offset + 8
            self.offset = start + length(data, self.offset)[0]
            found.append(data[start : self.offset].decode("utf-8", errors="replace"))
        if len(found) < count or self.offset > self.file.size:
            self.take(self.file.size)  # raises the error for a truncated file
        return found


def read_files(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the metadata and tensors of a model in one file or in several.

    A model in several files is named by the first of them, which has all metadata. The others are next to it,
    under the names that llama.cpp's gguf-split gives them: NAME-00001-of-00004.gguf and so on.

    Raises
    ------
    InputError
        As :func:`read_file`; also if a file is missing, is not the part that its name says, or if ``path`` is
        not the first.

    Examples
    --------
    >>> read_files(Path("absent.gguf"))
    Traceback (most recent call last):
    minicore.errors.InputError: absent.gguf: is not a regular file, expected a checkpoint
    """
    metadata, tensors = read_file(path)
    count = metadata.get("split.count", 1)
    if type(count) is not int or not 0 <= count <= MAX_PARTS:
        raise InputError(f"{path}: split.count is {count!r}, expected a number up to {MAX_PARTS}")
    if count < 2:
        return metadata, tensors
    parts = [path, *_other_parts(path, metadata, count)]
    for number, part in enumerate(parts):
        more, found = (metadata, tensors) if part == path else read_file(part)
        if (more.get("split.no"), more.get("split.count")) != (number, count):
            raise InputError(
                f"{part}: has split.no {more.get('split.no')} and split.count {more.get('split.count')}, "
                f"expected {number} and {count}"
            )
        if part != path and (twice := tensors.keys() & found.keys()):
            raise InputError(f"{part}: tensor {min(twice)} is also in another part, expected every one once")
        tensors |= found
    expected = metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise InputError(f"{path}: the parts have {len(tensors)} tensors, expected {expected}")
    return metadata, tensors


def part_names(path: Path) -> list[Path]:
    """Return the names of all parts of a model, if a file's name is that of a part; else only its own.

    Examples
    --------
    >>> [part.name for part in part_names(Path("tiny-00001-of-00002.gguf"))]
    ['tiny-00001-of-00002.gguf', 'tiny-00002-of-00002.gguf']
    """
    match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if match is None:
        return [path]
    return [path.with_name(f"{match[1]}-{i + 1:05}-of-{match[3]}.gguf") for i in range(int(match[3]))]


def models_in(directory: Path) -> list[Path]:
    """Return the GGUF models in a directory, sorted: whole files, and the first parts of others."""
    files = sorted(path for path in directory.iterdir() if path.suffix == ".gguf")
    return [path for path in files if part_names(path)[0] == path or part_names(path)[0] not in files]


def _other_parts(path: Path, metadata: dict[str, Any], count: int) -> list[Path]:
    """Return the paths of all parts but the first; raise InputError if one is missing."""
    names = part_names(path)
    if len(names) != count:
        raise InputError(
            f"{path}: is one of {count} parts, expected a name that ends in -00001-of-{count:05}.gguf"
        )
    if metadata.get("split.no") != 0:
        raise InputError(f"{path}: is not the first of {count} parts, expected {names[0]}")
    missing = [part for part in names if not part.is_file()]
    if missing:
        raise InputError(f"{missing[0]}: is missing, expected all {count} parts of the model")
    return names[1:]


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a file's metadata and tensors. The tensors' data is not read.

    Returns
    -------
    metadata : dict of str to str, int, float, bool or list
    tensors : dict of str to Tensor
        Shapes in NumPy's order, the reverse of GGUF's.

    Raises
    ------
    InputError
        If the file is not GGUF, is truncated, or has a tensor of an unknown type.

    Examples
    --------
    >>> import struct, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:  # version 3, no tensors, one value of type 4 (uint32)
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
        raise InputError(f"{path}: has GGUF version {version}{big}, expected 2 or 3, little-endian")
    n_tensors, n_metadata = cursor.number("Q"), cursor.number("Q")
    metadata = {}
    for _ in range(n_metadata):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("I"))
    table = []
    for _ in range(n_tensors):
        name = cursor.text()
        shape = tuple(cursor.number("Q") for _ in range(cursor.number("I")))[::-1]
        kind_id, offset = cursor.number("I"), cursor.number("Q")
        table.append((name, shape, kind_id, offset))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
        raise InputError(f"{path}: general.alignment is {alignment!r}, expected a positive integer")
    data = -(-cursor.offset // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    for name, shape, kind_id, offset in table:
        if name in tensors:
            raise InputError(f"{path}: tensor {name} occurs twice, expected once")
        tensors[name] = _tensor(file, name, shape, kind_id, data + offset)
    return metadata, tensors


def _tensor(file: MappedFile, name: str, shape: tuple[int, ...], kind_id: int, offset: int) -> Tensor:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(kind_id)
        block, size = GGML_QUANT_SIZES[kind]  # elements and bytes of one block
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{file.path}: tensor {name} has unknown type {kind_id}, expected one that the gguf package knows"
        ) from error
    width = shape[-1] if shape else 1
    if width % block:
        raise InputError(
            f"{file.path}: tensor {name} has rows of {width}, expected a multiple of {block} for {kind.name}"
        )
    end = offset + math.prod(shape) // block * size
    if end > file.size:
        raise InputError(
            f"{file.path}: tensor {name} ends at byte {end}, but the file has {file.size} bytes: "
            "it is truncated, expected a complete file"
        )
    row_bytes = math.prod(shape[1:]) * size // block

    def rows(start: int, stop: int) -> Array:
        raw = file.bytes[offset + start * row_bytes : offset + stop * row_bytes]
        if kind.name in PLAIN:
            return raw.view(PLAIN[kind.name]).reshape(stop - start, *shape[1:])
        if len(shape) < 2 or not _can_dequantize(kind_id):
            raise InputError(
                f"{file.path}: tensor {name} is {kind.name}, expected F32, F16, BF16 or a type that the gguf "
                "package can dequantize"
            )
        if start == stop:
            return np.empty((0, *shape[1:]), np.float32)
        return _dequantize(raw, kind_id).reshape(stop - start, *shape[1:])

    def release(start: int, stop: int) -> None:
        file.release(offset + start * row_bytes, offset + stop * row_bytes)

    return Tensor(name=name, file=file.path, shape=shape, kind=kind.name, rows=rows, release=release)


def _dequantize(blocks: Array, kind_id: int) -> Array:  # (bytes,) uint8 -> (n,) float32
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    # One long row, because the package loops over rows. Any NaN in the scales is detected in the values.
    with np.errstate(all="ignore"):
        return dequantize(blocks[np.newaxis], GGMLQuantizationType(kind_id))[0]


@functools.cache
def _can_dequantize(kind_id: int) -> bool:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        _dequantize(np.zeros(GGML_QUANT_SIZES[GGMLQuantizationType(kind_id)][1], np.uint8), kind_id)
    except NotImplementedError:
        return False
    return True
