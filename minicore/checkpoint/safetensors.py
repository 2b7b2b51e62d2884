"""safetensors files, memory-mapped: 8 bytes of header length, a JSON header, then the tensors' data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from minicore.checkpoint.settings import read_bytes
from minicore.checkpoint.tensors import Array, MappedFile, NewTensor, Tensor
from minicore.errors import InputError

FLOAT8 = {"F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2)}
KINDS = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
KINDS |= {"F64": np.dtype(np.float64)} | FLOAT8
# Other kinds are not read, but they may occur in tensors that are ignored (masks), so their sizes are needed.
SIZES = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
SIZES |= {"F8_E8M0": 1} | {kind: dtype.itemsize for kind, dtype in KINDS.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor's kind and shape, and its bytes [start, stop) in the file."""

    kind: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_directory(directory: Path) -> dict[str, Tensor]:
    """Return the tensors of a Hugging Face directory, from one file or from shards with an index.

    Raises
    ------
    InputError
        If there is no safetensors file, a shard is missing, or the shards do not match the index.

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
    pickled = [path for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if pickled:
        raise pickled_weights(min(pickled))
    raise InputError(
        f"{directory}: expected model.safetensors or model.safetensors.index.json, found neither"
    )


def pickled_weights(path: Path) -> InputError:
    """Return the error for weights that PyTorch pickled, with the command that converts them.

    Examples
    --------
    >>> raise pickled_weights(Path("model/pytorch_model.bin"))
    Traceback (most recent call last):
    minicore.errors.InputError: ... cd "model" && python -c "import glob, torch, ...
    """
    pattern = "pytorch_model*.bin" if path.name.startswith("pytorch_model") else path.name
    load = f"[w.update(torch.load(f, map_location='cpu', weights_only=True)) for f in glob.glob('{pattern}')]"
    save = "s.save_file({k: v.clone().contiguous() for k, v in w.items()}, 'model.safetensors')"
    code = f"import glob, torch, safetensors.torch as s; w = {{}}; {load}; {save}"
    return InputError(
        f"{path}: pickled weights are not supported, expected model.safetensors; where PyTorch and "
        "safetensors are installed, this makes it: ",
        command=f'cd "{path.parent}" && python -c "{code}"',
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    raw = read_bytes(index)
    try:
        weight_map = json.loads(raw)["weight_map"]
        placed = {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
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
    """Return the tensors of one file. Only the header is read.

    Raises
    ------
    InputError
        If the file is truncated or its header does not match its data.

    Examples
    --------
    >>> from minicore.checkpoint.names import resolve
    >>> tensors = read_file(resolve("minicore-opt-core") / "model.safetensors")
    >>> tensor = tensors["model.decoder.layers.0.fc1.bias"]
    >>> tensor.kind, tensor.rows(0, 3).shape
    ('F16', (3,))
    """
    file, entries = map_file(path)
    return {name: _tensor(file, name, entry) for name, entry in entries.items()}


def map_file(path: Path) -> tuple[MappedFile, dict[str, Entry]]:
    """Map a file; return it and the entries of its header. Raise InputError as :func:`read_file` does."""
    file = MappedFile(path)
    header, begin = _header(file)
    entries = {
        name: _entry(path, name, value, begin) for name, value in header.items() if name != "__metadata__"
    }
    end = begin
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.stop > file.size:
            raise InputError(
                f"{path}: tensor {name} ends at byte {entry.stop}, but the file has {file.size} bytes: "
                "it is truncated, expected a complete file"
            )
        if entry.start != end:
            raise InputError(
                f"{path}: tensor {name} starts at data byte {entry.start - begin}, expected {end - begin}, "
                "the end of the previous tensor"
            )
        end = entry.stop
    if end != file.size:
        raise InputError(
            f"{path}: has {file.size - begin} bytes of data, expected {end - begin} according to its header"
        )
    return file, entries


def _header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """Return the header and the offset of the data in the file."""
    if file.size < 8:
        raise InputError(
            f"{file.path}: has {file.size} bytes, expected a safetensors file (at least 8 bytes)"
        )
    length = int.from_bytes(file.bytes[:8].tobytes(), "little")
    if length > file.size - 8:
        raise InputError(
            f"{file.path}: the header should be {length} bytes long, but the file has {file.size} bytes; "
            "expected a complete safetensors file"
        )
    try:
        header = json.loads(file.bytes[8 : 8 + length].tobytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file.path}: the header is not JSON, expected a safetensors file") from error
    if not isinstance(header, dict):
        raise InputError(f"{file.path}: the header is not a JSON object, expected a safetensors file")
    return header, 8 + length


def _entry(path: Path, name: str, value: Any, begin: int) -> Entry:
    """Return a header's entry, checked; ``begin`` is the offset of the data in the file."""
    try:
        kind, shape, (start, stop) = value["dtype"], value["shape"], value["data_offsets"]
        valid = all(type(n) is int and n >= 0 for n in (*shape, start, stop)) and start <= stop
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        raise InputError(f"{path}: tensor {name} has a broken header, expected dtype, shape and data_offsets")
    if not isinstance(kind, str) or kind not in SIZES:
        raise InputError(f"{path}: tensor {name} has dtype {kind!r}, expected {', '.join(KINDS)}")
    if stop - start != math.prod(shape) * SIZES[kind]:
        raise InputError(
            f"{path}: tensor {name} has {stop - start} bytes, expected {math.prod(shape) * SIZES[kind]} "
            f"for shape {tuple(shape)} of {kind}"
        )
    return Entry(kind, tuple(shape), begin + start, begin + stop)


def _tensor(file: MappedFile, name: str, entry: Entry) -> Tensor:
    kind, shape = entry.kind, entry.shape
    row_bytes = math.prod(shape[1:]) * SIZES[kind]

    def rows(start: int, stop: int) -> Array:
        if kind not in KINDS:
            raise InputError(f"{file.path}: tensor {name} has dtype {kind}, expected {', '.join(KINDS)}")
        raw = file.bytes[entry.start + start * row_bytes : entry.start + stop * row_bytes]
        return raw.view(KINDS[kind]).reshape(stop - start, *shape[1:])

    def release(start: int, stop: int) -> None:
        file.release(entry.start + start * row_bytes, entry.start + stop * row_bytes)

    return Tensor(name=name, file=file.path, shape=shape, kind=kind, rows=rows, release=release)


def write_file(
    path: Path,
    tensors: Sequence[NewTensor],
    metadata: Mapping[str, str] | None = None,
    alignment: int = 8,
) -> None:
    """Write tensors to a file, one after the other, in the given order.

    Parameters
    ----------
    metadata : mapping of str to str, optional
        The header's ``__metadata__``.
    alignment : int
        The data begin at a multiple of this many bytes.

    Examples
    --------
    >>> import tempfile
    >>> ones = np.ones((2, 3), np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "model.safetensors"
    ...     write_file(path, [NewTensor("w", "F32", ones.shape, ones.nbytes, lambda: ones)])
    ...     read_file(path)["w"].shape
    (2, 3)
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.kind,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % alignment)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(tensor.data().reshape(-1).view(np.uint8).data)
