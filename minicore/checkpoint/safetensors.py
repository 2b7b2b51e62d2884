"""safetensors files, mapped: 8 bytes of header length, a JSON header, then the tensors' bytes."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from minicore.checkpoint.tensors import Array, MappedFile, Tensor
from minicore.errors import InputError

KINDS = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
# Kinds that are not weights here, but may occur in tensors that nothing reads (masks), so sizes are known.
SIZES = {"F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
SIZES |= {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1} | {kind: dtype.itemsize for kind, dtype in KINDS.items()}


def read_directory(directory: Path) -> dict[str, Tensor]:
    """Return the tensors of a Hugging Face directory, in one file or in shards with an index.

    Raises
    ------
    InputError
        If there is no safetensors file, a shard is missing, or shards and index disagree.

    Examples
    --------
    >>> from minicore.checkpoint.names import resolve
    >>> tensors = read_directory(resolve("minicore-opt-core"))
    >>> tensors["model.decoder.layers.0.fc1.weight"].shape
    (2048, 256)
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.exists():
        return read_file(single)
    if index.exists():
        return _read_shards(index)
    pickled = [path.name for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if pickled:
        raise InputError(
            f"{directory}: holds pickled weights ({min(pickled)}), which are not opened; "
            "expected model.safetensors"
        )
    raise InputError(
        f"{directory}: expected model.safetensors or model.safetensors.index.json, found neither"
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        placed = {str(name): str(shard) for name, shard in weight_map.items()}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{index}: expected JSON with a weight_map from tensor names to file names"
        ) from error
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(placed.values())):
        path = index.parent / shard
        if not shard or Path(shard).name != shard:
            raise InputError(f"{index}: names the shard {shard!r}, expected a file of the same directory")
        if not path.is_file():
            raise InputError(f"{path}: this shard is missing, expected it as {index.name} names it")
        for name, tensor in read_file(path).items():
            if placed.get(name) != shard:
                expected = placed.get(name, "none")
                raise InputError(f"{tensor.where} is in this shard, expected in {expected} by {index.name}")
            tensors[name] = tensor
    for name, shard in placed.items():
        if name not in tensors:
            raise InputError(f"{index.parent / shard}: tensor {name} is missing, expected by {index.name}")
    return tensors


def read_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file; only its header is read.

    Raises
    ------
    InputError
        If the file is truncated or its header does not describe the bytes that are there.

    Examples
    --------
    >>> from minicore.checkpoint.names import resolve
    >>> tensors = read_file(resolve("minicore-opt-core") / "model.safetensors")
    >>> tensor = tensors["model.decoder.layers.0.fc1.bias"]
    >>> tensor.kind, tensor.rows(0, 3).shape
    ('F16', (3,))
    """
    file, entries = map_file(path)
    return {
        name: _tensor(file, name, kind, shape, start) for name, (kind, shape, start, _) in entries.items()
    }


def map_file(path: Path) -> tuple[MappedFile, dict[str, tuple[str, tuple[int, ...], int, int]]]:
    """Map a file and return its tensors' kinds, shapes and bytes in it; errors as :func:`read_file`."""
    file = MappedFile(path)
    header, begin = _header(file)
    tensors = {}
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        kind, shape, start, stop = _entry(path, name, entry)
        if stop > file.size - begin:
            raise InputError(
                f"{path}: tensor {name} ends at byte {begin + stop}, but the file has {file.size}; "
                "expected a whole file, this one is truncated"
            )
        spans.append((start, stop, name))
        tensors[name] = (kind, shape, begin + start, begin + stop)
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise InputError(
                f"{path}: tensor {name} starts at data byte {start}, expected {end} where the one before ends"
            )
        end = stop
    if end != file.size - begin:
        raise InputError(f"{path}: holds {file.size - begin} bytes of data, expected {end} by its header")
    return file, tensors


def _header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """Return the header and the byte at which the data begins."""
    if file.size < 8:
        raise InputError(
            f"{file.path}: has {file.size} bytes, expected a safetensors file (8 bytes at least)"
        )
    length = int.from_bytes(file.bytes[:8].tobytes(), "little")
    if length > file.size - 8:
        raise InputError(
            f"{file.path}: the header is said to be {length} bytes long, but the file has {file.size}; "
            "expected a whole safetensors file"
        )
    try:
        header = json.loads(file.bytes[8 : 8 + length].tobytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file.path}: the header is not JSON, expected a safetensors file") from error
    if not isinstance(header, dict):
        raise InputError(f"{file.path}: the header is not a JSON object, expected a safetensors file")
    return header, 8 + length


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Return kind, shape and data offsets of a header's entry."""
    try:
        kind, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        fine = all(type(n) is int and n >= 0 for n in (*shape, start, stop)) and start <= stop
    except (KeyError, TypeError, ValueError):
        fine = False
    if not fine:
        raise InputError(f"{path}: tensor {name} has a broken header, expected dtype, shape and data_offsets")
    if not isinstance(kind, str) or kind not in SIZES:
        raise InputError(f"{path}: tensor {name} is of dtype {kind!r}, expected {', '.join(KINDS)}")
    if stop - start != math.prod(shape) * SIZES[kind]:
        raise InputError(
            f"{path}: tensor {name} has {stop - start} bytes, expected {math.prod(shape) * SIZES[kind]} "
            f"for shape {tuple(shape)} of {kind}"
        )
    return kind, tuple(shape), start, stop


def _tensor(file: MappedFile, name: str, kind: str, shape: tuple[int, ...], offset: int) -> Tensor:
    stride = math.prod(shape[1:]) * SIZES[kind]  # bytes in one row
    rows = functools.partial(_rows, file, name, kind, shape, offset, stride)

    def release(start: int, stop: int) -> None:
        file.release(offset + start * stride, offset + stop * stride)

    return Tensor(name, file.path, shape, kind, rows, release)


def _rows(
    file: MappedFile, name: str, kind: str, shape: tuple[int, ...], offset: int, stride: int, *rows: int
) -> Array:
    if kind not in KINDS:
        raise InputError(f"{file.path}: tensor {name} is of dtype {kind}, expected {', '.join(KINDS)}")
    start, stop = rows
    raw = file.bytes[offset + start * stride : offset + stop * stride]
    return raw.view(KINDS[kind]).reshape(stop - start, *shape[1:])
