"""Tensors in files: checked before anything is allocated, then read in pieces into their arrays."""

from __future__ import annotations

import math
import mmap
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from minicore.backends.cpu.memory import keep_freed
from minicore.config import ModelConfig
from minicore.errors import InputError, unknown
from minicore.quantization import FORMATS, QuantizedMatrix

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
CHUNK = 1 << 18  # elements a piece: its few copies stay in the CPU's caches, and memory stays flat
LINE = 64  # bytes of a cache line, at which parameters begin
READERS = 4  # threads at most: each holds a few copies of a piece

NEIGHBOURS = 1 << 21  # bytes: a huge page, the most that the system maps at a touch


class MappedFile:
    """A file's bytes, mapped and not read; pages can be given back once they have been used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():  # a pipe would be waited on for ever
            raise InputError(f"{path}: is no ordinary file, expected a checkpoint")
        try:
            with path.open("rb") as file:
                self.size = path.stat().st_size
                if not self.size:
                    raise InputError(f"{path}: the file is empty, expected a checkpoint")
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        self.bytes: Array = np.frombuffer(self.map, np.uint8)

    def release(self, start: int, stop: int) -> None:
        """Give the pages of bytes [start, stop) back to the system: they would count as resident.

        Touching a page maps its neighbours too, among them some given back before; these go once more.
        """
        if hasattr(self.map, "madvise") and stop > start:
            start = max(start - NEIGHBOURS, 0)
            start -= start % mmap.PAGESIZE
            self.map.madvise(mmap.MADV_DONTNEED, start, stop - start)


@dataclass(frozen=True)
class Tensor:
    """A tensor that lies in a file.

    Attributes
    ----------
    name, file : str, Path
        Where it is, for reading and for complaints.
    shape : tuple of int
        As NumPy counts: the last axis is contiguous.
    kind : str
        What the file calls its elements, such as ``F16`` or ``Q4_1``.
    rows : callable
        ``rows(start, stop)`` gives rows [start, stop) of the first axis in a floating dtype; it raises
        InputError for a kind that cannot be read, even when asked for no rows.
    release : callable
        ``release(start, stop)`` gives back the memory that reading those rows has mapped.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    kind: str
    rows: Callable[[int, int], Array]
    release: Callable[[int, int], None]

    @property
    def where(self) -> str:
        return f"{self.file}: tensor {self.name}"


@dataclass(frozen=True)
class Place:
    """Where a parameter lies in a family's files.

    Attributes
    ----------
    name : str
        The tensor's name; ``{i}`` stands for the layer.
    transposed : bool
        The file holds (in, out) where the parameter is (out, in), or the other way round.
    part : int or None
        Which third of a fused query-key-value tensor, along its output axis (the last if transposed).
    interleaved : bool
        The rows of each head are in llama.cpp's order: 0, half, 1, half + 1, ...
    """

    name: str
    transposed: bool = False
    part: int | None = None
    interleaved: bool = False

    def shape_in_file(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.part is not None:
            shape = (3 * shape[0], *shape[1:])
        return shape[::-1] if self.transposed else shape


def places(config: ModelConfig, names: Mapping[str, Place], prefix: str = "") -> dict[str, Place]:
    """Return where each parameter of a model lies, given its family's name map.

    Parameters
    ----------
    names : mapping of str to Place
        From a parameter's name with ``{i}`` for the layer to its place.
    prefix : str
        What the files put in front of every name but the head's.

    Examples
    --------
    >>> import json
    >>> from minicore.checkpoint import families, names, safetensors
    >>> folder = names.resolve("minicore-opt-core")
    >>> found = safetensors.read_directory(folder)
    >>> values = json.loads((folder / "config.json").read_text())
    >>> family, config, prefix = families.of_directory(values, folder, found)
    >>> where = places(config, family.names, prefix)
    >>> where["blocks.2.mlp.w_in"].name
    'model.decoder.layers.2.fc1.weight'
    """
    found = {}
    for parameter in config.shapes():
        layer = re.match(r"blocks\.(\d+)\.", parameter)
        i = layer[1] if layer else ""
        place = names[re.sub(r"^blocks\.\d+\.", "blocks.{i}.", parameter)]
        name = place.name.replace("{i}", i)
        name = name if parameter == "head" else prefix + name
        found[parameter] = Place(name, place.transposed, place.part, place.interleaved)
    return found


def check(
    source: Path,
    config: ModelConfig,
    where: Mapping[str, Place],
    tensors: Mapping[str, Tensor],
    ignored: str = r"(?!)",
) -> None:
    """Refuse tensors that are missing, of a wrong shape or kind, or that nothing would use.

    Parameters
    ----------
    ignored : str
        A regular expression for the names of tensors that may be there and are not parameters, such as
        masks that can be computed.

    Raises
    ------
    InputError
        Naming the file, the tensor and what was expected.

    Examples
    --------
    >>> import json
    >>> from minicore.checkpoint import families, names, safetensors
    >>> folder = names.resolve("minicore-opt-core")
    >>> found = safetensors.read_directory(folder)
    >>> values = json.loads((folder / "config.json").read_text())
    >>> family, config, prefix = families.of_directory(values, folder, found)
    >>> where = places(config, family.names, prefix)
    >>> check(folder, config, where, found, family.ignored)
    >>> del found["model.decoder.layers.2.fc1.weight"]
    >>> check(folder, config, where, found, family.ignored)
    Traceback (most recent call last):
    minicore.errors.InputError: ... is missing, expected one of shape (2048, 256)
    """
    for parameter, shape in config.shapes().items():
        place = where[parameter]
        expected = place.shape_in_file(shape)
        if place.name not in tensors:
            raise InputError(f"{source}: tensor {place.name} is missing, expected one of shape {expected}")
        tensor = tensors[place.name]
        if tensor.shape != expected:
            raise InputError(f"{tensor.where} has shape {tensor.shape}, expected {expected} by the config")
        tensor.rows(0, 0)
    used = {place.name for place in where.values()}
    for name, tensor in tensors.items():
        if name in used or re.search(ignored, name):
            continue
        if config.tied_head and name == "lm_head.weight":
            _check_same(tensor, tensors[where["embed"].name])
            continue
        raise InputError(
            f"{tensor.where} is not one that a {config.family} model of this config has, expected it absent"
        )


def _check_same(head: Tensor, embed: Tensor) -> None:
    """Refuse an output head that differs from the embedding it is said to be."""
    same = head.shape == embed.shape and head.kind == embed.kind
    step = max(1, CHUNK // math.prod(embed.shape[1:]))
    for start in range(0, embed.shape[0] if same else 0, step):
        rows = start, min(start + step, embed.shape[0])
        same = same and np.array_equal(head.rows(*rows), embed.rows(*rows))
        head.release(*rows)
        embed.release(*rows)
    if not same:
        raise InputError(
            f"{head.where} differs from {embed.name}, expected the same values as the config ties them"
        )


def load(
    config: ModelConfig,
    where: Mapping[str, Place],
    tensors: Mapping[str, Tensor],
    dtype: str = "float32",
    progress: bool = False,
) -> dict[str, Array]:
    """Read every parameter of a checked model into memory.

    Parameters
    ----------
    dtype : str
        ``float32``, ``bfloat16`` (round to nearest, ties to even), ``int8`` or ``int4`` (see
        :mod:`minicore.quantization`) for matrices; vectors (norms and biases) are float32 in any case.
    progress : bool
        Show a bar on stderr if that is a terminal.

    Returns
    -------
    dict of str to numpy.ndarray
        The names and shapes of ``config.shapes()``, C-contiguous.

    Raises
    ------
    InputError
        If a value is NaN or infinite, naming the tensor.

    Examples
    --------
    >>> import json
    >>> from minicore.checkpoint import families, names, safetensors
    >>> folder = names.resolve("minicore-opt-core")
    >>> found = safetensors.read_directory(folder)
    >>> values = json.loads((folder / "config.json").read_text())
    >>> family, config, prefix = families.of_directory(values, folder, found)
    >>> where = places(config, family.names, prefix)
    >>> params = load(config, where, found, "bfloat16")
    >>> params["blocks.2.mlp.w_in"].dtype, params["blocks.2.mlp.b_in"].dtype
    (dtype(bfloat16), dtype('float32'))
    """
    check_dtype(dtype)
    keep_freed()
    shapes = config.shapes()
    params: dict[str, Any] = {}

    empty = _allocate(shapes, dtype)

    def read(name: str) -> Array | QuantizedMatrix:
        tensor, place, whole = tensors[where[name].name], where[name], empty[name]
        (_quantize if isinstance(whole, QuantizedMatrix) else _fill)(whole, tensor, place, config.d_head)
        return whole

    # NumPy lets go of the interpreter while it converts, so threads share the work.
    with (
        _bar(sum(map(math.prod, shapes.values())), progress) as bar,
        ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool,
    ):
        reading = {name: pool.submit(read, name) for name in shapes}
        try:
            for name, future in reading.items():
                params[name] = future.result()
                bar.update(math.prod(shapes[name]))
        except BaseException:  # the first bad tensor, or Ctrl-C: leave the rest unread
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return params


def check_dtype(dtype: str) -> None:
    """Raise InputError unless ``dtype`` is one that weights can be held in."""
    if dtype not in (*DTYPES, *FORMATS):
        raise unknown("dtype", dtype, (*DTYPES, *FORMATS))


def _allocate(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> dict[str, Any]:
    """Return memory for all parameters in one piece: being large it gets huge pages, which decoding likes."""

    def n_bytes(shape: tuple[int, ...]) -> int:
        if len(shape) > 1 and dtype in FORMATS:
            return QuantizedMatrix.nbytes_of(dtype, shape)
        return math.prod(shape) * (DTYPES[dtype].itemsize if len(shape) > 1 else 4)

    sizes = {name: n_bytes(shape) for name, shape in shapes.items()}
    memory = np.empty(sum(size + -size % LINE for size in sizes.values()) + LINE, np.uint8)
    params: dict[str, Any] = {}
    at = -memory.ctypes.data % LINE
    for name, shape in shapes.items():
        raw = memory[at : at + sizes[name]]
        if len(shape) > 1 and dtype in FORMATS:
            params[name] = QuantizedMatrix(dtype, (shape[0], math.prod(shape[1:])), raw)
        else:
            params[name] = raw.view(DTYPES[dtype] if len(shape) > 1 else np.float32).reshape(shape)
        at += sizes[name] + -sizes[name] % LINE
    return params


def _quantize(matrix: QuantizedMatrix, tensor: Tensor, place: Place, d_head: int) -> None:
    """Quantize a matrix: piece by piece where the file has its rows in order, else from a float32 copy."""
    if place != Place(place.name):
        whole = np.empty(matrix.shape, np.float32)
        _fill(whole, tensor, place, d_head)
        matrix.write(0, whole)
        return
    step = max(1, CHUNK // matrix.shape[1])
    for start in range(0, len(matrix), step):
        stop = min(start + step, len(matrix))
        matrix.write(start, _checked(tensor, _convert(tensor.rows(start, stop), np.dtype(np.float32))))
        tensor.release(start, stop)


def _checked(tensor: Tensor, piece: Array) -> Array:
    if not _finite(piece):
        raise InputError(f"{tensor.where} holds NaN or infinity, expected finite numbers in {piece.dtype}")
    return piece


def _bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm  # imported late: `import minicore` should not pay for it

    return tqdm(
        total=total,
        desc="loading weights",
        unit="param",
        unit_scale=True,
        leave=False,
        file=sys.stderr,
        disable=not (progress and sys.stderr.isatty()),
    )


def _fill(out: Array, tensor: Tensor, place: Place, d_head: int) -> None:
    """Copy a tensor's values into ``out``, piece by piece and each piece checked while it is hot."""
    view = out.T if place.transposed else out
    if place.interleaved:  # the view's first two axes walk the file's order of rows
        view = out.reshape(-1, 2, d_head // 2, out.size // out.shape[0]).swapaxes(1, 2)
    first, columns = 0, slice(None)
    if place.part is not None and place.transposed:
        columns = slice(place.part * out.shape[0], (place.part + 1) * out.shape[0])
    elif place.part is not None:
        first = place.part * out.shape[0]
    unit = d_head if place.interleaved else 1  # rows of the file in one entry of the view
    step = max(1, CHUNK // (unit * math.prod(tensor.shape[1:])))
    for start in range(0, len(view), step):
        stop = min(start + step, len(view))
        rows = first + start * unit, first + stop * unit
        piece = tensor.rows(*rows)
        if columns != slice(None):
            piece = piece[:, columns]
        piece = _checked(tensor, _convert(piece, out.dtype))
        view[start:stop] = piece.reshape(view[start:stop].shape)
        tensor.release(*rows)


def _convert(values: Array, dtype: np.dtype[Any]) -> Array:
    if values.dtype == ml_dtypes.bfloat16 and dtype == np.float32:
        # A bfloat16 is the upper half of a float32; shifting is faster than the general cast.
        return np.left_shift(values.view(np.uint16), 16, dtype=np.uint32).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # _finite says it better
        return values.astype(dtype, copy=False)


def _finite(values: Array) -> bool:
    if values.dtype == np.float32:
        return bool(np.isfinite(values).all())
    # bfloat16: all exponent bits set is NaN or infinity; without the sign that is the largest numbers.
    return not values.size or bool((np.ascontiguousarray(values).view(np.uint16) << 1).max() < 0xFF00)


def kinds(tensors: Iterable[Tensor]) -> str:
    """Return what a file's tensors are made of, the most frequent kind first: ``"Q4_1 + F32"``."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.kind] = sizes.get(tensor.kind, 0) + math.prod(tensor.shape)
    return " + ".join(sorted(sizes, key=lambda kind: -sizes[kind]))
