"""From the tensors of a file to a model's parameters: find them, check them, then read them in pieces."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from minicore.checkpoint.heap import keep_freed
from minicore.checkpoint.tensors import DTYPES, Array, Tensor
from minicore.config import ModelConfig
from minicore.errors import InputError, unknown
from minicore.quantization import FORMATS, QuantizedMatrix, Weight

CHUNK = 1 << 18  # elements in a piece: its few copies fit in the CPU's caches, and memory use stays flat
CACHE_LINE = 64  # bytes; parameters are aligned to it
MAX_THREADS = 4  # each holds a few copies of a piece


@dataclass(frozen=True)
class Place:
    """The tensor that holds a parameter in a family's files, and its layout there.

    Attributes
    ----------
    name : str
        The tensor's name; ``{i}`` stands for the layer.
    transposed : bool
        The file has (in, out) where the parameter is (out, in), or vice versa.
    part : int or None
        Which parameter of a fused tensor, along its output axis (the last axis if transposed).
    fused : str
        What the fused tensor has: ``qkv``: all queries, all keys, all values; ``groups``: for each key-value
        head its queries, its key and its value (GPT-NeoX, Falcon); ``gate_up``: all gates, all ups.
    interleaved : bool
        The rows of each head are in llama.cpp's order: 0, half, 1, half + 1, ...
    plus : float
        What is added to the file's numbers: 1 for norms that multiply by 1 + w.
    repeated : bool
        The file has one head's vector, which all heads share.
    """

    name: str
    transposed: bool = False
    part: int | None = None
    fused: str = "qkv"
    interleaved: bool = False
    plus: float = 0.0
    repeated: bool = False

    def shape_in_file(self, shape: tuple[int, ...], config: ModelConfig) -> tuple[int, ...]:
        """Return the shape of the tensor that holds a parameter of this shape."""
        if self.repeated:
            return (config.d_head,)
        if self.part is not None:
            shape = (sum(self._sizes(config)), *shape[1:])
        return shape[::-1] if self.transposed else shape

    def segments(self, shape: tuple[int, ...], config: ModelConfig) -> list[tuple[int, int, int]]:
        """Return which rows of the tensor are rows of the parameter: first, last, and the first there."""
        n = config.d_head if self.repeated else shape[0]
        if self.part is None:
            return [(0, n, at) for at in range(0, shape[0], n)]
        n_groups = config.n_kv_heads if self.fused == "groups" else 1
        sizes = [size // n_groups for size in self._sizes(config)]
        first, mine = sum(sizes[: self.part]), sizes[self.part]
        starts = [first + group * sum(sizes) for group in range(n_groups)]
        return [(start, start + mine, group * mine) for group, start in enumerate(starts)]

    def _sizes(self, config: ModelConfig) -> list[int]:
        """Return the rows of each parameter in the fused tensor."""
        kv = config.n_kv_heads * config.d_head
        return [config.n_neurons] * 2 if self.fused == "gate_up" else [config.n_heads * config.d_head, kv, kv]


def places(config: ModelConfig, names: Mapping[str, Place], prefix: str = "") -> dict[str, Place]:
    """Return the place of each parameter of a model.

    Parameters
    ----------
    names : mapping of str to Place
        The family's name map. Keys are parameter names with ``{i}`` for the layer.
    prefix : str
        Prefix of every tensor name except the output head's.

    Examples
    --------
    >>> import json
    >>> from minicore.checkpoint import families, names, safetensors
    >>> folder = names.resolve("minicore-opt-core")
    >>> found = safetensors.read_directory(folder)
    >>> values = json.loads((folder / "config.json").read_text())
    >>> family, config, prefix = families.read_config(values, folder, found)
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
        found[parameter] = replace(place, name=name if parameter in ("head", "head_bias") else prefix + name)
    return found


def check(
    source: Path,
    config: ModelConfig,
    where: Mapping[str, Place],
    tensors: Mapping[str, Tensor],
    unused: Callable[[str], bool] = lambda name: False,
) -> list[str]:
    """Check that a file has every parameter in the right shape and kind, and no other tensors.

    Parameters
    ----------
    unused : callable
        Says of a name whether the tensor may be present although it is not a parameter, such as an attention
        mask.

    Returns
    -------
    list of str
        The names of such tensors.

    Raises
    ------
    InputError
        If a tensor is missing, unexpected, or of a wrong shape or kind. The message names it.

    Examples
    --------
    >>> import json
    >>> from minicore.checkpoint import families, names, safetensors
    >>> folder = names.resolve("minicore-opt-core")
    >>> found = safetensors.read_directory(folder)
    >>> values = json.loads((folder / "config.json").read_text())
    >>> family, config, prefix = families.read_config(values, folder, found)
    >>> where = places(config, family.names, prefix)
    >>> check(folder, config, where, found)
    []
    >>> del found["model.decoder.layers.2.fc1.weight"]
    >>> check(folder, config, where, found)
    Traceback (most recent call last):
    minicore.errors.InputError: ... is missing, expected one of shape (2048, 256)
    """
    for parameter, shape in config.shapes().items():
        place = where[parameter]
        expected = place.shape_in_file(shape, config)
        if place.name not in tensors:
            raise InputError(f"{source}: tensor {place.name} is missing, expected one of shape {expected}")
        tensor = tensors[place.name]
        if tensor.shape != expected:
            raise InputError(f"{tensor.where} has shape {tensor.shape}, expected {expected} by the config")
        tensor.rows(0, 0)
    used = {place.name for place in where.values()}
    others = [name for name in tensors if name not in used]
    for name in others:
        if not unused(name):
            raise InputError(
                f"{tensors[name].where} is not one that a {config.family} model of this config has, "
                "expected it absent"
            )
    return others


def same_values(a: Tensor, b: Tensor) -> bool:
    """Return whether two matrices have the same shape and values, reading both in pieces."""
    same = a.shape == b.shape
    step = max(1, CHUNK // math.prod(b.shape[1:]))
    for start in range(0, b.shape[0] if same else 0, step):
        rows = start, min(start + step, b.shape[0])
        same = same and np.array_equal(a.rows(*rows), b.rows(*rows))
        a.release(*rows)
        b.release(*rows)
    return same


def load(
    config: ModelConfig,
    where: Mapping[str, Place],
    tensors: Mapping[str, Tensor],
    dtype: str = "float32",
    progress: bool = False,
) -> dict[str, Weight]:
    """Read every parameter into memory; the tensors have passed :func:`check`.

    Parameters
    ----------
    dtype : str
        Type of the matrices: ``float32``, ``bfloat16`` (round to nearest, ties to even), ``int8`` or ``int4``
        (see :mod:`minicore.quantization`). Vectors (norms and biases) are always float32.
    progress : bool
        Show a progress bar if stderr is a terminal.

    Returns
    -------
    dict of str to array or QuantizedMatrix
        Names and shapes of ``config.shapes()``, C-contiguous.

    Raises
    ------
    InputError
        If a value is NaN or infinite. The message names the tensor.

    Examples
    --------
    >>> import json
    >>> from minicore.checkpoint import families, names, safetensors
    >>> folder = names.resolve("minicore-opt-core")
    >>> found = safetensors.read_directory(folder)
    >>> values = json.loads((folder / "config.json").read_text())
    >>> family, config, prefix = families.read_config(values, folder, found)
    >>> where = places(config, family.names, prefix)
    >>> params = load(config, where, found, "bfloat16")
    >>> params["blocks.2.mlp.w_in"].dtype, params["blocks.2.mlp.b_in"].dtype
    (dtype(bfloat16), dtype('float32'))
    """
    check_dtype(dtype)
    keep_freed()
    shapes = config.shapes()
    params = _allocate(shapes, dtype)

    def read(name: str) -> None:
        out, tensor = params[name], tensors[where[name].name]
        if isinstance(out, QuantizedMatrix):
            _quantize(out, tensor, where[name], config)
        else:
            _fill(out, tensor, where[name], config)

    # NumPy releases the GIL while it converts, so threads help.
    with (
        _bar(sum(map(math.prod, shapes.values())), progress) as bar,
        ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool,
    ):
        reading = {name: pool.submit(read, name) for name in shapes}
        try:
            for name, future in reading.items():
                future.result()
                bar.update(math.prod(shapes[name]))
        except BaseException:  # a bad tensor, or Ctrl-C: do not read the rest
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return params


def check_dtype(dtype: str) -> None:
    """Raise InputError unless ``dtype`` is a dtype that weights can have."""
    if dtype not in (*DTYPES, *FORMATS):
        raise unknown("dtype", dtype, (*DTYPES, *FORMATS))


def _allocate(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> dict[str, Weight]:
    """Allocate all parameters in one block, large enough for huge pages, which make decoding faster."""

    def n_bytes(shape: tuple[int, ...]) -> int:
        if len(shape) > 1 and dtype in FORMATS:
            return QuantizedMatrix.nbytes_of(dtype, shape)
        return math.prod(shape) * (DTYPES[dtype].itemsize if len(shape) > 1 else 4)

    sizes = {name: n_bytes(shape) for name, shape in shapes.items()}
    memory = np.empty(sum(size + -size % CACHE_LINE for size in sizes.values()) + CACHE_LINE, np.uint8)
    params: dict[str, Weight] = {}
    start = -memory.ctypes.data % CACHE_LINE
    for name, shape in shapes.items():
        raw = memory[start : start + sizes[name]]
        if len(shape) > 1 and dtype in FORMATS:
            params[name] = QuantizedMatrix(dtype, (shape[0], math.prod(shape[1:])), raw)
        else:
            params[name] = raw.view(DTYPES[dtype] if len(shape) > 1 else np.float32).reshape(shape)
        start += sizes[name] + -sizes[name] % CACHE_LINE
    return params


def _quantize(matrix: QuantizedMatrix, tensor: Tensor, place: Place, config: ModelConfig) -> None:
    """Quantize a matrix: piece by piece where the file has its rows in order, else from a float32 copy."""
    if place != Place(place.name):
        whole = np.empty(matrix.shape, np.float32)
        _fill(whole, tensor, place, config)
        matrix.write(0, whole)
        return
    step = max(1, CHUNK // matrix.shape[1])
    for start in range(0, len(matrix), step):
        stop = min(start + step, len(matrix))
        matrix.write(start, _checked(tensor, _convert(tensor.rows(start, stop), np.dtype(np.float32))))
        tensor.release(start, stop)


def _checked(tensor: Tensor, piece: Array) -> Array:
    """Return a piece of a tensor; refuse NaN and infinity."""
    if not _finite(piece):
        raise InputError(f"{tensor.where} holds NaN or infinity, expected finite numbers in {piece.dtype}")
    return piece


def _bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm  # a lazy import keeps `import minicore` fast

    return tqdm(
        total=total,
        desc="loading weights",
        unit="param",
        unit_scale=True,
        leave=False,
        file=sys.stderr,
        disable=not (progress and sys.stderr.isatty()),
    )


def _fill(out: Array, tensor: Tensor, place: Place, config: ModelConfig) -> None:
    """Copy a tensor's values into ``out``, piece by piece; each piece is checked while it is in cache."""
    segments = place.segments(out.shape, config)
    if place.transposed:  # a piece is some of the file's rows, with the columns of all segments
        step = max(1, CHUNK // math.prod(tensor.shape[1:]))
        for start in range(0, tensor.shape[0], step):
            stop = min(start + step, tensor.shape[0])
            piece = _checked(tensor, _convert(tensor.rows(start, stop), out.dtype))
            for first, last, at in segments:
                out.T[start:stop, at : at + last - first] = piece[:, first:last]
            tensor.release(start, stop)
        return
    for first, last, at in segments:
        _fill_rows(out[at : at + last - first], tensor, first, place, config.d_head)


def _fill_rows(out: Array, tensor: Tensor, first: int, place: Place, d_head: int) -> None:
    """Copy rows of a tensor from ``first`` on into ``out``."""
    view, unit = out, 1  # file rows in one entry of the view
    if place.interleaved:  # the first two axes of this view follow the file's order of rows
        view, unit = out.reshape(-1, 2, d_head // 2, out.size // out.shape[0]).swapaxes(1, 2), d_head
    step = max(1, CHUNK // (unit * math.prod(tensor.shape[1:])))
    for start in range(0, len(view), step):
        stop = min(start + step, len(view))
        rows = first + start * unit, first + stop * unit
        piece = _checked(tensor, _convert(tensor.rows(*rows), out.dtype))
        view[start:stop] = piece.reshape(view[start:stop].shape)
        if place.plus:
            view[start:stop] += np.float32(place.plus)
        tensor.release(*rows)


def _convert(values: Array, dtype: np.dtype[Any]) -> Array:
    if values.dtype == ml_dtypes.bfloat16 and dtype == np.float32:
        # a bfloat16 is the upper half of a float32: shifting is faster than the general cast
        return np.left_shift(values.view(np.uint16), 16, dtype=np.uint32).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # _finite reports them
        return values.astype(dtype, copy=False)


def _finite(values: Array) -> bool:
    if values.dtype == np.float32:
        return bool(np.isfinite(values).all())
    # bfloat16: NaN and infinity have all exponent bits set; without the sign bit those are the largest codes
    return not values.size or bool((np.ascontiguousarray(values).view(np.uint16) << 1).max() < 0xFF00)
