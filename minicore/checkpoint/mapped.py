"""minicore's own format: a directory with the weights as kernels read them, written once and memory-mapped.

config.json holds the ModelConfig and the checkpoint's other settings, model.safetensors every parameter
under its name in minicore (a quantized matrix as uint8), tokenizer.json and tokenizer_config.json the rest.
Pages are read on first use and can be released again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minicore.checkpoint import safetensors
from minicore.checkpoint.tensors import DTYPES, MappedFile, NewTensor
from minicore.config import ModelConfig
from minicore.errors import InputError
from minicore.files import atomic_directory
from minicore.quantization import FORMATS, QuantizedMatrix, Weight

MODEL_TYPE = "minicore"
ALIGNMENT = 64  # bytes: parameters start at cache lines
KINDS = {"float32": "F32", "bfloat16": "BF16"}


@dataclasses.dataclass(frozen=True)
class MappedWeights:
    """The memory-mapped file behind a model's arrays.

    Attributes
    ----------
    file : MappedFile
    spans : dict of str to (start, stop)
        The bytes of each parameter.
    """

    file: MappedFile
    spans: dict[str, tuple[int, int]]

    def release(self, names: Iterable[str]) -> None:
        """Release the memory of these parameters. They are read from the file again on their next use."""
        for name in names:
            if name in self.spans:
                start, stop = self.spans[name]
                self.file.release(start, stop)


def write(
    directory: Path,
    config: ModelConfig,
    params: Mapping[str, Weight],
    dtype: str,
    tokenizer: str | None,
    tokenizer_config: Mapping[str, Any] | None,
    **about: Any,
) -> None:
    """Write a model to a new directory. On an error nothing is left behind.

    Parameters
    ----------
    params : dict of str to array or QuantizedMatrix
        Names and shapes of ``config.shapes()``, matrices in ``dtype``.
    tokenizer : str or None
        The text of tokenizer.json.
    tokenizer_config : mapping or None
        What tokenizer_config.json holds: special tokens and the chat template.
    about
        Further JSON values for config.json: bos_id, eos_ids, recommended, adapter, and what an export needs
        of the original config.json.

    Raises
    ------
    InputError
        If the directory exists.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     target = Path(folder) / "mine"
    ...     write(target, model.config, model.params, model.dtype, None, None, bos_id=model.bos_id)
    ...     sorted(path.name for path in target.iterdir())
    ['config.json', 'model.safetensors']
    """
    about = {"model_type": MODEL_TYPE, "dtype": dtype, "config": dataclasses.asdict(config)} | about
    with atomic_directory(directory) as part:
        (part / "config.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        _write_tensors(part / "model.safetensors", params)
        if tokenizer is not None:
            (part / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        if tokenizer_config is not None:
            text = json.dumps(tokenizer_config, indent=1)
            (part / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _write_tensors(path: Path, params: Mapping[str, Weight]) -> None:
    """Write a safetensors file with aligned tensors: those that do not fill whole cache lines come last."""
    found = [_to_write(name, w) for name, w in params.items()]
    found.sort(key=lambda tensor: (tensor.nbytes % ALIGNMENT > 0, tensor.kind == "U8"))
    safetensors.write_file(path, found, alignment=ALIGNMENT)


def _to_write(name: str, w: Weight) -> NewTensor:
    if isinstance(w, QuantizedMatrix):
        return NewTensor(name, "U8", w.data.shape, w.nbytes, lambda: w.data)
    return NewTensor(name, KINDS[str(w.dtype)], w.shape, w.nbytes, lambda: np.ascontiguousarray(w))


def is_packed(values: dict[str, Any]) -> bool:
    """Return whether a config.json is in minicore's own format."""
    return values.get("model_type") == MODEL_TYPE


def read(
    directory: Path, values: dict[str, Any]
) -> tuple[ModelConfig, str, dict[str, Weight], MappedWeights]:
    """Map a directory that :func:`write` wrote. Return its config, dtype, parameters and mapping.

    Raises
    ------
    InputError
        If config.json or a tensor is not as :func:`write` writes it.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     target = Path(folder) / "mine"
    ...     model.save(target)
    ...     config, dtype, params, _ = read(target, json.loads((target / "config.json").read_text()))
    ...     config == model.config, dtype, bool((params["embed"] == model.params["embed"]).all())
    (True, 'float32', True)
    """
    path = directory / "config.json"
    try:
        lists = {name: tuple(value) for name, value in values["config"].items() if isinstance(value, list)}
        fields = {**values["config"], **lists}
        config, dtype = ModelConfig(**fields), values["dtype"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected a file that `minicore pack` wrote ({error})") from error
    if dtype not in (*DTYPES, *FORMATS):
        raise InputError(f"{path}: dtype is {dtype!r}, expected one of {', '.join((*DTYPES, *FORMATS))}")
    file, entries = safetensors.map_file(directory / "model.safetensors")
    params, spans = {}, {}
    for name, shape in config.shapes().items():
        if name not in entries:
            raise InputError(f"{file.path}: tensor {name} is missing")
        entry = entries.pop(name)
        params[name] = _parameter(file, name, entry, shape, dtype)
        spans[name] = (entry.start, entry.stop)
    if entries:
        raise InputError(f"{file.path}: tensor {min(entries)} is not a parameter of this config")
    return config, dtype, params, MappedWeights(file, spans)


def _parameter(
    file: MappedFile, name: str, entry: safetensors.Entry, shape: tuple[int, ...], dtype: str
) -> Weight:
    """Return a parameter as a view of the file; refuse one that :func:`write` would not have written."""
    raw = file.bytes[entry.start : entry.stop]
    if len(shape) > 1 and dtype in FORMATS:
        _check_entry(file, name, entry, "U8", (QuantizedMatrix.nbytes_of(dtype, shape),))
        return QuantizedMatrix(dtype, (shape[0], math.prod(shape[1:])), raw)
    _check_entry(file, name, entry, KINDS[dtype] if len(shape) > 1 else "F32", shape)
    return raw.view(DTYPES[dtype] if len(shape) > 1 else np.float32).reshape(shape)


def _check_entry(
    file: MappedFile, name: str, entry: safetensors.Entry, kind: str, shape: tuple[int, ...]
) -> None:
    if (entry.kind, entry.shape) != (kind, shape):
        raise InputError(
            f"{file.path}: tensor {name} is {entry.kind} of shape {entry.shape}, expected {kind} of {shape}"
        )
