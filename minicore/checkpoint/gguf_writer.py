"""Writing GGUF files: metadata, then tensors one at a time, through the ``gguf`` package's writer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minicore.checkpoint.tensors import Array, NewTensor
from minicore.errors import InputError

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")  # that the gguf package can make
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
NOT_COPIED = ("general.architecture", "general.alignment")  # the package's writer writes its own
EXACT = ("minicore.",)  # keys whose floats are float64; others are float32, as llama.cpp expects them


def write(path: Path, metadata: Mapping[str, Any], tensors: Sequence[NewTensor]) -> None:
    """Write a GGUF file, version 3.

    Parameters
    ----------
    metadata : mapping of str to str, bool, int, float or list of one of them
        Integers become uint32 (int32 in lists and below zero), floats float32. It has
        ``general.architecture``. Empty lists and ``general.alignment`` are left out.
    tensors : sequence of NewTensor
        In the order of the file.

    Examples
    --------
    >>> import tempfile
    >>> from minicore.checkpoint import gguf
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "tiny.gguf"
    ...     w = encoded("w", "Q8_0", np.ones((2, 32), np.float32))
    ...     write(path, {"general.architecture": "llama"}, [w])
    ...     metadata, tensors = gguf.read_files(path)
    ...     metadata, tensors["w"].kind, tensors["w"].rows(0, 1).sum().round(2)
    ({'general.architecture': 'llama'}, 'Q8_0', np.float32(32.0))
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key not in NOT_COPIED and value != []:
            _add(writer, key, value)
    for tensor in tensors:
        kind = GGMLQuantizationType[tensor.kind]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(tensor.data().reshape(-1).view(np.uint8))
    finally:
        writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    from gguf import GGUFValueType as Kind

    if isinstance(value, list):
        kinds = {str: Kind.STRING, bool: Kind.BOOL, int: Kind.INT32, float: Kind.FLOAT32}
        writer.add_key_value(key, value, Kind.ARRAY, kinds[type(value[0])])
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        (writer.add_uint32 if value >= 0 else writer.add_int32)(key, value)
    elif isinstance(value, float):
        (writer.add_float64 if key.startswith(EXACT) else writer.add_float32)(key, value)
    else:
        writer.add_string(key, str(value))


def encoded(name: str, kind: str, values: Array) -> NewTensor:
    """Return a tensor to write, whose float32 values are in memory already."""
    return NewTensor(name, kind, values.shape, nbytes(kind, values.shape), lambda: encode(name, kind, values))


def encode(name: str, kind: str, values: Array) -> Array:  # float32 -> as in the file
    """Return float32 values in an element type or block format, rounded as ggml rounds them.

    Raises
    ------
    InputError
        If a value is too large for the type. The message names the tensor.

    Examples
    --------
    >>> encode("w", "Q4_0", np.ones((1, 32), np.float32)).nbytes
    18
    """
    import ml_dtypes

    with np.errstate(over="ignore"):
        if kind in ("F32", "F16"):
            found = np.ascontiguousarray(values, np.float32 if kind == "F32" else np.float16)
        elif kind == "BF16":
            found = np.ascontiguousarray(values).astype(ml_dtypes.bfloat16)
        else:
            found = _blocks(kind, values)
    scales = found.reshape(-1, found.shape[-1])
    if kind.startswith("Q"):
        n_scales = 2 if kind.endswith("_1") else 1
        raw = found.reshape(-1, nbytes(kind, (32,)))[:, : 2 * n_scales]
        scales = np.ascontiguousarray(raw).view(np.float16)
    if not np.isfinite(scales).all():
        raise InputError(f"tensor {name} has values too large for {kind}, expected another type")
    return found


def _blocks(kind: str, values: Array) -> Array:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    return quantize(np.ascontiguousarray(values, np.float32), GGMLQuantizationType[kind])


def nbytes(kind: str, shape: Iterable[int]) -> int:
    """Return the size of a tensor in bytes.

    Examples
    --------
    >>> nbytes("Q8_0", (2, 64))
    136
    """
    from math import prod

    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return prod(shape) // block * size


def kind_for(kind: str, shape: Sequence[int]) -> str:
    """Return the type in which a tensor of this shape is stored: F32 for vectors, F16 where no block fits.

    Examples
    --------
    >>> kind_for("Q4_0", (64,)), kind_for("Q4_0", (2, 64)), kind_for("Q4_0", (2, 40))
    ('F32', 'Q4_0', 'F16')
    """
    if len(shape) < 2:
        return "F32"
    return "F16" if kind.startswith("Q") and shape[-1] % 32 else kind
