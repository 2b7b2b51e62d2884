"""Writing a model for other engines: a Hugging Face directory, or a GGUF file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minicore.checkpoint import gguf_export, gguf_writer, hf_export
from minicore.checkpoint.exported import Exported
from minicore.checkpoint.stored import StoredTensor, stored_tensors
from minicore.checkpoint.tensors import Array, NewTensor
from minicore.errors import unknown
from minicore.files import atomic_directory, atomic_write, check_absent

KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
DTYPES = {"hf": KINDS, "gguf": KINDS | {"q8_0": "Q8_0", "q4_0": "Q4_0", "q4_1": "Q4_1"}}


@dataclass(frozen=True)
class Written:
    """What an export has written: the path to load, its dtype, and what users of other engines must know."""

    path: Path
    dtype: str
    notes: list[str]


def export(
    model: Exported, path: Path, format: str = "hf", dtype: str = "float32", progress: bool = False
) -> Written:
    """Write a model. On an error nothing is left behind.

    Parameters
    ----------
    path : Path
        A directory to create, or, for ``gguf``, a file whose name ends in .gguf.
    format : str
        ``hf``: config.json, model.safetensors and the tokenizer's files. ``gguf``: one file; a directory
        gets it under the model's name.
    dtype : str
        Type of the matrices: ``float32``, ``float16`` or ``bfloat16``; for GGUF also ``q8_0``, ``q4_0`` and
        ``q4_1``. GGUF keeps vectors in float32, and matrices whose rows are not blocks of 32 in float16.
    progress : bool
        Show a progress bar if stderr is a terminal.

    Raises
    ------
    InputError
        If the path exists, or the format cannot say what the model computes.

    Examples
    --------
    >>> import tempfile
    >>> import minicore as mc
    >>> found = mc.load("minicore-opt-core")
    >>> model = Exported(config=found.config, params=found.params, name="mine", source=found.source)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = export(model, Path(folder) / "mine", "hf", "float16")
    ...     mc.load(written.path).file_dtype
    'F16'
    """
    kind = check_options(format, dtype)
    check_absent(path)
    if format == "hf":
        _, where = hf_export.layout(model)
        tensors = [_new(tensor, kind) for tensor in stored_tensors(model.config, where, model.params)]
        with atomic_directory(path) as part, _shown(tensors, progress) as shown:
            hf_export.write(part, model, dtype.lower(), shown)
        return Written(path, dtype.lower(), [])
    metadata, where, more, notes = gguf_export.layout(model)
    tensors = [
        _new(tensor, gguf_export.kind_of(tensor.name, tensor.shape, kind))
        for tensor in stored_tensors(model.config, where, model.params)
    ]
    metadata["general.file_type"] = gguf_writer.FILE_TYPES[kind]
    with _shown([*more, *tensors], progress) as shown:
        if path.suffix == ".gguf":
            with atomic_write(path) as file:
                gguf_writer.write(file, metadata, shown)
            return Written(path, dtype.lower(), notes)
        name = f"{Path(model.name).stem}.gguf"
        with atomic_directory(path) as part:
            gguf_writer.write(part / name, metadata, shown)
    return Written(path / name, dtype.lower(), notes)


def check_options(format: str, dtype: str) -> str:
    """Return the kind of a format's dtype; raise InputError for an unknown format or dtype.

    Examples
    --------
    >>> check_options("gguf", "Q8_0")
    'Q8_0'
    """
    if format not in DTYPES:
        raise unknown("format", format, DTYPES)
    if dtype.lower() not in DTYPES[format]:
        raise unknown(f"dtype of {format}", dtype, DTYPES[format])
    return DTYPES[format][dtype.lower()]


def _new(tensor: StoredTensor, kind: str) -> NewTensor:
    def data() -> Array:
        return gguf_writer.encode(tensor.name, kind, tensor.values())

    return NewTensor(tensor.name, kind, tensor.shape, gguf_writer.nbytes(kind, tensor.shape), data)


@contextmanager
def _shown(tensors: Sequence[NewTensor], progress: bool) -> Iterator[list[NewTensor]]:
    """Yield tensors whose writing moves a progress bar on stderr, if that is a terminal."""
    from tqdm import tqdm

    quiet = not (progress and sys.stderr is not None and sys.stderr.isatty())
    total = sum(tensor.nbytes for tensor in tensors)
    options: dict[str, Any] = {"unit": "B", "unit_scale": True, "leave": False, "file": sys.stderr}
    with tqdm(total=total, desc="writing weights", disable=quiet, **options) as bar:

        def tracked(tensor: NewTensor) -> NewTensor:
            def data() -> Array:
                found = tensor.data()
                bar.update(tensor.nbytes)
                return found

            return replace(tensor, data=data)

        yield [tracked(tensor) for tensor in tensors]
