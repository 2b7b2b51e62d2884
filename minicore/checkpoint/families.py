"""The table of model families: how each reads its config and what its files call the parameters.

A Hugging Face directory names its family in config.json (``model_type``), a GGUF file in its metadata
(``general.architecture``). A new family is a config reader, a name map and a row of FAMILIES or
GGUF_FAMILIES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicore.checkpoint import gguf_configs, hf_configs, name_maps
from minicore.checkpoint.name_maps import Names
from minicore.checkpoint.settings import Settings
from minicore.checkpoint.tensors import Tensor
from minicore.config import ModelConfig
from minicore.errors import InputError

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Family:
    """How to read a ``model_type`` of Hugging Face.

    Attributes
    ----------
    config : callable
        Settings -> ModelConfig.
    names : dict of str to Place
        Name map: parameter -> tensor, without its prefix.
    prefixes : tuple of str
        Prefixes that tensor names may have. The output head never has one.
    ignored : str
        Regular expression for buffers of old files that minicore computes itself.
    """

    config: Callable[[Settings], ModelConfig]
    names: Names
    prefixes: tuple[str, ...]
    ignored: str = r"(?!)"


@dataclass(frozen=True)
class GGUFFamily:
    """How to read an architecture of GGUF: config reader and name map."""

    config: Callable[[Settings, Tensors], ModelConfig]
    names: Names


_LLAMA_PREFIXES, _LLAMA_BUFFERS = ("model.", ""), r"rotary_emb\.inv_freq$"

FAMILIES = {
    "llama": Family(hf_configs.read_llama, name_maps.LLAMA, _LLAMA_PREFIXES, _LLAMA_BUFFERS),
    "mistral": Family(hf_configs.read_mistral, name_maps.LLAMA, _LLAMA_PREFIXES, _LLAMA_BUFFERS),
    "qwen2": Family(hf_configs.read_qwen2, name_maps.LLAMA, _LLAMA_PREFIXES, _LLAMA_BUFFERS),
    "opt": Family(hf_configs.read_opt, name_maps.OPT, ("model.decoder.", "decoder.")),
    "gpt2": Family(
        hf_configs.read_gpt2, name_maps.GPT2, ("transformer.", ""), r"(^|\.)h\.\d+\.attn\.(masked_)?bias$"
    ),
}

GGUF_FAMILIES = {
    "llama": GGUFFamily(gguf_configs.read_llama, name_maps.GGUF_LLAMA),
    "qwen2": GGUFFamily(gguf_configs.read_llama, name_maps.GGUF_QWEN2),
    "gpt2": GGUFFamily(gguf_configs.read_gpt2, name_maps.GGUF_GPT2),
}
GGUF_IGNORED = r"^rope_freqs\.weight$"  # part of the config: divisors of the rotary frequencies


def _either(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"


def _config(source: Path, n_tensors: int, reader: Callable[[], ModelConfig]) -> ModelConfig:
    """Run a config reader; put the file's name into errors that ModelConfig raises."""
    try:
        config = reader()
    except InputError as error:
        if str(error).startswith("config: "):
            raise InputError(f"{source}: {str(error).removeprefix('config: ')}") from error
        raise
    if config.n_layers > n_tensors:  # checked before ModelConfig.shapes lists a shape for every layer
        raise InputError(
            f"{source}: has {config.n_layers} layers, expected no more than the {n_tensors} tensors"
        )
    return config


def read_config(
    values: Mapping[str, Any], source: Path, tensors: Iterable[str]
) -> tuple[Family, ModelConfig, str]:
    """Return family, config and tensor name prefix for a Hugging Face config.

    Parameters
    ----------
    values : mapping
        The object in config.json.
    source : Path
        The file, for messages.
    tensors : iterable of str
        Names of the tensors in the directory.

    Raises
    ------
    InputError
        If the family or a setting is not supported.

    Examples
    --------
    >>> import json
    >>> from minicore.checkpoint import names, safetensors
    >>> folder = names.resolve("minicore-opt-core")
    >>> values = json.loads((folder / "config.json").read_text())
    >>> family, config, prefix = read_config(values, folder, safetensors.read_directory(folder))
    >>> prefix, config.n_neurons
    ('model.decoder.', 2048)
    """
    settings = Settings(values, source)
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(f"{source}: the family (model_type) is {kind!r}, expected {_either(FAMILIES)}")
    settings.only("quantization_config")
    family = FAMILIES[kind]
    embed, present = family.names["embed"].name, set(tensors)
    prefix = next((p for p in family.prefixes if p + embed in present), family.prefixes[0])
    return family, _config(source, len(present), lambda: family.config(settings)), prefix


def read_metadata(
    values: Mapping[str, Any], source: Path, tensors: Tensors
) -> tuple[GGUFFamily, ModelConfig]:
    """Return family and config for the metadata and tensors of a GGUF file.

    Parameters
    ----------
    values : mapping
        The metadata.
    source : Path
        The file, for messages.
    tensors : mapping of str to Tensor
        The tensors in the file.

    Raises
    ------
    InputError
        If the architecture or a setting is not supported.

    Examples
    --------
    >>> read_metadata({"general.architecture": "bert"}, Path("model.gguf"), {})
    Traceback (most recent call last):
    minicore.errors.InputError: model.gguf: general.architecture is 'bert', expected llama, qwen2 or gpt2
    """
    kind = values.get("general.architecture")
    if not isinstance(kind, str) or kind not in GGUF_FAMILIES:
        raise InputError(f"{source}: general.architecture is {kind!r}, expected {_either(GGUF_FAMILIES)}")
    family = GGUF_FAMILIES[kind]
    settings = Settings(values, source, prefix=f"{kind}.")
    return family, _config(source, len(tensors), lambda: family.config(settings, tensors))
