"""Checkpoints: from a name or a path to a config and checked parameters.

>>> from minicore.checkpoint import read
>>> checkpoint = read("smollm2-135m", dtype="bfloat16")  # doctest: +SKIP
>>> checkpoint.config.n_layers  # doctest: +SKIP
30
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from minicore.checkpoint import (
    adapters,
    families,
    gguf,
    hf_tensors,
    hf_tokenizer,
    mapped,
    names,
    parameters,
    safetensors,
    tensors,
)
from minicore.checkpoint.chat_template import ChatTemplate, read_chat_template
from minicore.checkpoint.generation_config import read_generation
from minicore.checkpoint.gguf_vocabulary import chat_template, has_tokenizer, special_ids
from minicore.checkpoint.settings import read_json
from minicore.config import ModelConfig, activation_fields
from minicore.errors import InputError, unknown

__all__ = ["Checkpoint", "read"]

TokenizerSource = tuple[Literal["json"], Path] | tuple[Literal["gguf"], dict[str, Any]]


@dataclass
class Checkpoint:
    """A model as read from a file.

    Attributes
    ----------
    config : ModelConfig
    params : dict of str to array or QuantizedMatrix
        Names and shapes of ``config.shapes()``; matrices in the requested dtype, vectors in float32.
    tokenizer_source : tuple or None
        ``("json", path)`` of a tokenizer.json or vocab.json, ``("gguf", metadata)``, or None if there is
        none.
    chat_template : str, dict of str to str or None
        The checkpoint's Jinja template. Several without a default come by name.
    bos_id, eos_ids : int or None, tuple of int
        The token that begins a text, and the tokens that end one.
    recommended : dict
        The checkpoint's recommended options for core decoding: key ``minicore`` of generation_config.json.
    generation : dict
        How tokens are to be chosen: what is applied of generation_config.json.
    name, source : str, Path
        The name or last path component it was requested by, and its directory or file. An adapter's name
        follows after ``+``.
    file_dtype : str
        Element types in the file, such as ``"F16"`` or ``"Q4_1 + F32"``.
    given_activation : str or None
        The activation that the caller asked for, in place of the checkpoint's.
    mapping : MappedWeights or None
        The file behind the arrays, if they are memory-mapped (`minicore pack`).
    adapter : AdapterSource or None
        The LoRA adapter that was added to the weights.

    Examples
    --------
    >>> checkpoint = read("minicore-opt-core")
    >>> checkpoint.name, checkpoint.file_dtype, checkpoint.mapping
    ('minicore-opt-core', 'F16', None)
    """

    config: ModelConfig
    params: dict[str, Any] = field(repr=False)
    tokenizer_source: TokenizerSource | None = field(repr=False)
    chat_template: ChatTemplate = field(repr=False)
    bos_id: int | None
    eos_ids: tuple[int, ...]
    recommended: dict[str, Any]
    name: str
    source: Path
    file_dtype: str
    generation: dict[str, Any] = field(default_factory=dict)
    given_activation: str | None = None
    mapping: mapped.MappedWeights | None = field(default=None, repr=False)
    adapter: adapters.AdapterSource | None = None


def read(
    name_or_path: str | os.PathLike[str],
    dtype: str | None = None,
    progress: bool = False,
    activation: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> Checkpoint:
    """Read and check a checkpoint.

    Parameters
    ----------
    name_or_path : str or path
        A known name (``smollm2-135m``; downloaded if it is not in the cache), ``org/name`` on the Hugging
        Face hub, a Hugging Face directory with safetensors, or a GGUF file.
    dtype : str or None
        Type of the matrices: ``float32``, ``bfloat16``, ``int8`` or ``int4``. None is the type of a packed
        directory, and float32 for everything else.
    progress : bool
        Show progress bars if stderr is a terminal.
    activation : str or None
        The FFN's activation, such as ``relu`` or ``fatrelu:0.01`` (with its threshold), in place of the
        checkpoint's. GGUF files do not record it, so those of ReLU models (ReluLLaMA, ProSparse) need it.
    adapter : path or None
        Directory of a PEFT LoRA adapter, added to the weights before they are converted to ``dtype``. The
        model must then be a directory with safetensors.

    Raises
    ------
    InputError
        If something is missing, broken or not supported. The message names the file and what was expected.

    Examples
    --------
    >>> checkpoint = read("minicore-opt-core", dtype="bfloat16")
    >>> checkpoint.config.n_layers, checkpoint.params["embed"].dtype, checkpoint.recommended["predictor"]
    (5, dtype(bfloat16), 'stability')
    """
    if dtype is not None:
        parameters.check_dtype(dtype)
    given = None if activation is None else activation_fields(activation)
    update = None if adapter is None else adapters.read(adapter)
    path = names.resolve(name_or_path, progress=progress)
    reader = _read_directory if path.is_dir() else _read_gguf
    name = names.name_of(name_or_path) or path.resolve().name
    checkpoint = reader(path, name, dtype, progress, update)
    if given is None:
        return checkpoint
    return replace(checkpoint, config=checkpoint.config.replace(**given), given_activation=activation)


def _read_directory(
    directory: Path, name: str, dtype: str | None, progress: bool, update: adapters.Adapter | None
) -> Checkpoint:
    path = directory / "config.json"
    if not path.is_file():
        if models := gguf.models_in(directory):
            return _read_gguf(_only(models, directory), name, dtype, progress, update)
        raise InputError(f"{directory}: has no config.json, expected a Hugging Face model directory")
    values = read_json(path)
    if mapped.is_packed(values):
        if update is not None:
            raise InputError(
                f"{directory}: is packed already, expected the model that it was made from for an adapter"
            )
        return _read_packed(directory, values, name, dtype)
    generation_path = directory / "generation_config.json"
    generation = read_json(generation_path)
    choosing = generation if generation_path.exists() else values  # old files say it in config.json
    values, found = hf_tensors.dequantize(values, hf_tensors.unwrap(safetensors.read_directory(directory)))
    family, config, prefix = families.read_config(values, path, found)
    config, found = hf_tensors.settle_head(config, family, prefix, found, values)
    where = parameters.places(config, family.names, prefix)
    unused = parameters.check(directory, config, where, found, hf_tensors.unused_by(family, prefix))
    hf_tensors.log_unused(directory, unused)
    used = {place.name for place in where.values()}
    if update is not None:
        found = adapters.merge(update, found, where, prefix, family.prefixes)
    with adapters.one_blas_thread() if update else contextlib.nullcontext():
        params = parameters.load(config, where, found, dtype or "float32", progress)
    return Checkpoint(
        config=config,
        params=params,
        tokenizer_source=_tokenizer_source(directory),
        chat_template=read_chat_template(directory, read_json(directory / "tokenizer_config.json")),
        bos_id=next(iter(_ids(values, generation, "bos_token_id", path)), None),
        eos_ids=_ids(generation, values, "eos_token_id", path),
        recommended=_recommended(generation, generation_path),
        generation=read_generation(choosing, generation_path if choosing is generation else path),
        name=name + (update.source.suffix if update else ""),
        source=directory,
        file_dtype=tensors.kinds(found[name] for name in used),
        adapter=None if update is None else update.source,
    )


def _only(models: list[Path], directory: Path) -> Path:
    if len(models) > 1:
        raise InputError(f"{directory}: has {' and '.join(map(str, models[:2]))}, expected one GGUF model")
    return models[0]


def _read_packed(directory: Path, values: dict[str, Any], name: str, dtype: str | None) -> Checkpoint:
    """Map a directory that `minicore pack` wrote."""
    config, packed_dtype, params, mapping = mapped.read(directory, values)
    if dtype not in (None, packed_dtype):
        raise InputError(
            f"{directory}: is packed as {packed_dtype}, expected --dtype {packed_dtype} or none, not {dtype}"
        )
    path = directory / "config.json"
    return Checkpoint(
        config=config,
        params=params,
        tokenizer_source=_tokenizer_source(directory),
        chat_template=read_chat_template(directory, read_json(directory / "tokenizer_config.json")),
        bos_id=next(iter(_ids(values, {}, "bos_id", path)), None),
        eos_ids=_ids(values, {}, "eos_ids", path),
        recommended=_recommended({"minicore": values.get("recommended")}, path),
        generation=read_generation(values.get("generation") or {}, path),
        name=name,
        source=directory,
        file_dtype=packed_dtype,
        mapping=mapping,
        adapter=_packed_adapter(values, path),
    )


def _packed_adapter(values: dict[str, Any], path: Path) -> adapters.AdapterSource | None:
    """Return the adapter that was part of the model when it was packed."""
    source = values.get("adapter")
    if source is None:
        return None
    if not isinstance(source, list) or [type(part) for part in source] != [str, str]:
        raise InputError(f"{path}: adapter is {source!r}, expected a path and a SHA-256")
    return adapters.AdapterSource(path=source[0], sha256=source[1])


def _read_gguf(
    path: Path, name: str, dtype: str | None, progress: bool, update: adapters.Adapter | None
) -> Checkpoint:
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise safetensors.pickled_weights(path)
    if path.suffix == ".safetensors":
        raise InputError(
            f"{path}: is one file of a model; expected the model's directory, with its config.json"
        )
    if update is not None:
        raise InputError(
            f"{path}: is GGUF, expected a Hugging Face directory with safetensors for an adapter"
        )
    metadata, found = gguf.read_files(path)
    family, config = families.read_metadata(metadata, path, found)
    where = parameters.places(config, family.names)
    parameters.check(path, config, where, found, lambda name: bool(re.search(families.GGUF_IGNORED, name)))
    own = {
        key.removeprefix("minicore."): value for key, value in metadata.items() if key.startswith("minicore.")
    }
    config = config.replace(**activation_fields(own.pop("activation", config.spelled_activation)))
    bos_id, eos_ids = special_ids(metadata, str(path))
    return Checkpoint(
        config=config,
        params=parameters.load(config, where, found, dtype or "float32", progress),
        tokenizer_source=("gguf", metadata) if has_tokenizer(metadata) else None,
        chat_template=chat_template(metadata),
        bos_id=bos_id,
        eos_ids=eos_ids,
        recommended=_recommended({"minicore": own}, path),
        name=name,
        source=path,
        file_dtype=tensors.kinds(found.values()),
    )


def _tokenizer_source(directory: Path) -> TokenizerSource | None:
    path = hf_tokenizer.tokenizer_file(directory)
    if path is not None:
        return "json", path
    others = [name for name in hf_tokenizer.OTHER_FILES if (directory / name).exists()]
    if others:
        logging.getLogger("minicore").warning(
            "%s: %s is not read, expected tokenizer.json; the model takes lists of ids", directory, others[0]
        )
    return None


def _ids(first: dict[str, Any], second: dict[str, Any], key: str, path: Path) -> tuple[int, ...]:
    """Return the token ids under a key, one or a list of them, from the first config that has the key."""
    value = first.get(key) if first.get(key) is not None else second.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(i) is not int for i in ids):
        raise InputError(f"{path.parent}: {key} is {value!r}, expected a token id or a list of them")
    return tuple(ids)


def _recommended(generation: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the checkpoint's recommended options for core decoding, checked."""
    options = generation.get("minicore") or {}
    if not isinstance(options, dict):
        raise InputError(f"{path}: minicore is {options!r}, expected an object")
    kinds: dict[str, tuple[tuple[type, ...], str]] = {
        "predictor": ((str,), "a predictor's name"),
        "alpha": ((int, float), "a number above 0 and at most 1"),
        "beta": ((int, float), "a number above 0 and at most 1"),
        "layers": ((str,), "a slice such as '6:27'"),
    }
    for key, value in options.items():
        if key not in kinds:
            raise InputError(f"{path}: {unknown('key of minicore', key, kinds)}")
        types, what = kinds[key]
        valid = type(value) in types and (types == (str,) or (math.isfinite(value) and 0 < value <= 1))
        if not valid:
            raise InputError(f"{path}: minicore.{key} is {value!r}, expected {what}")
    return options
