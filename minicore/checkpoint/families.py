"""The table of model families: how each reads its config and what its files call the parameters.

A Hugging Face directory names its family in config.json (``model_type``), a GGUF file in its metadata
(``general.architecture``). A new family is a config reader, a name map and a row of FAMILIES or
GGUF_FAMILIES.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minicore.checkpoint import gguf_configs, gguf_rope, hf_configs, name_maps
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
    variants : tuple of dict of str to Place
        Other name maps. The first of all whose norms a file has is taken.
    models, refused : str
        Checkpoints and variants of the family, and what minicore does not do of it (docs/models.md).
    """

    config: Callable[[Settings], ModelConfig]
    names: Names
    prefixes: tuple[str, ...]
    ignored: str = r"(?!)"
    variants: tuple[Names, ...] = ()
    models: str = ""
    refused: str = ""


@dataclass(frozen=True)
class GGUFFamily:
    """How to read an architecture of GGUF: config reader and name maps.

    The first map whose norms a file has is taken.
    """

    config: Callable[[Settings, Tensors], ModelConfig]
    names: Names
    variants: tuple[Names, ...] = ()


def _llama(
    config: Callable[[Settings], ModelConfig],
    models: str,
    names: Names = name_maps.LLAMA,
    *variants: Names,
    refused: str = "",
) -> Family:
    """Return a family whose tensors have Llama's prefixes and buffers."""
    return Family(config, names, ("model.", ""), r"rotary_emb\.inv_freq$", variants, models, refused)


FAMILIES = {
    "llama": _llama(hf_configs.read_llama, "Llama 1 to 3, SmolLM 1 and 2, ReluLLaMA; biases"),
    "sparsellama": _llama(hf_configs.read_llama, "ProSparse (FATReLU)"),
    "minicpm": _llama(
        hf_configs.read_minicpm, "MiniCPM, MiniCPM-S, sparsing-law", refused="mixtures of experts"
    ),
    "mistral": _llama(hf_configs.read_mistral, "Mistral 7B; sliding window"),
    "bamboo": _llama(hf_configs.read_bamboo, "Bamboo (dReLU)", refused="other activations than ReLU"),
    "qwen2": _llama(hf_configs.read_qwen2, "Qwen 2 and 2.5; sliding window of the last layers"),
    "qwen3": _llama(hf_configs.read_qwen3, "Qwen 3; normalized queries and keys", name_maps.QWEN3),
    "phi3": _llama(
        hf_configs.read_phi3, "Phi 3, 3.5 and 4; LongRoPE, sliding window", name_maps.PHI3
    ),
    "phi": _llama(
        hf_configs.read_phi, "Phi 1, 1.5 and 2; parallel blocks", name_maps.PHI, refused="`qk_layernorm`"
    ),
    "gpt_neox": Family(
        hf_configs.read_gpt_neox,
        name_maps.GPT_NEOX,
        ("gpt_neox.", ""),
        r"attention\.(masked_)?bias$|rotary_emb\.inv_freq$",
        models="Pythia, GPT-NeoX; parallel or sequential blocks",
    ),
    "gemma": _llama(
        hf_configs.read_gemma, "Gemma 1", name_maps.GEMMA, refused="bidirectional attention"
    ),
    "gemma2": _llama(
        hf_configs.read_gemma2, "Gemma 2; caps, four norms, windows",
        name_maps.GEMMA2, refused="bidirectional attention",
    ),
    "gemma3_text": _llama(
        hf_configs.read_gemma3, "Gemma 3 text; two rotations", name_maps.GEMMA3,
        refused="capped scores, scaled local rotation",
    ),
    "olmo2": _llama(hf_configs.read_olmo2, "OLMo 2; norms after attention and FFN", name_maps.OLMO2),
    "smollm3": _llama(hf_configs.read_smollm3, "SmolLM3; layers without rotation"),
    "stablelm": _llama(
        hf_configs.read_stablelm, "StableLM 3B and 2; parallel or sequential blocks",
        name_maps.STABLELM, name_maps.STABLELM_PARALLEL, refused="`qk_layernorm`",
    ),
    "nemotron": _llama(
        hf_configs.read_nemotron, "Nemotron 4, Minitron (squared ReLU)", name_maps.NEMOTRON
    ),
    "arcee": _llama(hf_configs.read_arcee, "AFM (squared ReLU)", name_maps.ARCEE),
    "falcon": Family(
        hf_configs.read_falcon,
        name_maps.FALCON,
        ("transformer.", ""),
        r"rotary_emb\.inv_freq$|rotary\.inv_freq$",
        (name_maps.FALCON_TWO_NORMS, name_maps.FALCON_PARALLEL),
        "Falcon, Falcon-RW (ALiBi), ReluFalcon",
        "new decoder, not parallel",
    ),
    "opt": Family(
        hf_configs.read_opt,
        name_maps.OPT,
        ("model.decoder.", "decoder."),
        models="OPT, 350M too",
        refused="norms without weights",
    ),
    "gpt2": Family(
        hf_configs.read_gpt2,
        name_maps.GPT2,
        ("transformer.", ""),
        r"(^|\.)h\.\d+\.attn\.(masked_)?bias$",
        models="GPT-2",
        refused="other scales of attention, cross-attention",
    ),
}  # fmt: skip
# Families that are refused, and why.
REFUSED = {
    "bitnet": "its norm over all FFN neurons (ffn_sub_norm) would change with every core set",
    "nanochat": "its norms without weights and its softcap in a rotation of its own are not implemented",
}
# Files of models with code of their own may lack model_type.
ARCHITECTURES = {
    "MiniCPMForCausalLM": "minicpm",
    "LlamaForCausalLM": "llama",
    "SparseLlamaForCausalLM": "sparsellama",
    "BambooForCausalLM": "bamboo",
}

GGUF_FAMILIES = {
    "llama": GGUFFamily(gguf_configs.read_llama, name_maps.GGUF_LLAMA),
    "qwen2": GGUFFamily(gguf_configs.read_qwen2, name_maps.GGUF_QWEN2),
    "qwen3": GGUFFamily(gguf_configs.read_qwen3, name_maps.GGUF_QWEN3),
    "smollm3": GGUFFamily(gguf_configs.read_smollm3, name_maps.GGUF_LLAMA),
    "arcee": GGUFFamily(gguf_configs.read_arcee, name_maps.GGUF_ARCEE),
    "minicpm": GGUFFamily(gguf_configs.read_minicpm, name_maps.GGUF_LLAMA),
    "gemma": GGUFFamily(gguf_configs.read_gemma, name_maps.GGUF_QWEN2),
    "gemma2": GGUFFamily(gguf_configs.read_gemma2, name_maps.GGUF_GEMMA2),
    "gemma3": GGUFFamily(gguf_configs.read_gemma3, name_maps.GGUF_GEMMA3),
    "olmo2": GGUFFamily(gguf_configs.read_olmo2, name_maps.GGUF_OLMO2),
    "phi3": GGUFFamily(gguf_configs.read_phi3, name_maps.GGUF_PHI3),
    "phi2": GGUFFamily(gguf_configs.read_phi2, name_maps.GGUF_PHI2),
    "gptneox": GGUFFamily(gguf_configs.read_gptneox, name_maps.GGUF_NEOX),
    "stablelm": GGUFFamily(
        gguf_configs.read_stablelm, name_maps.GGUF_STABLELM, (name_maps.GGUF_STABLELM_PARALLEL,)
    ),
    "nemotron": GGUFFamily(gguf_configs.read_nemotron, name_maps.GGUF_NEMOTRON),
    "falcon": GGUFFamily(gguf_configs.read_falcon, name_maps.GGUF_FALCON_TWO_NORMS, (name_maps.GGUF_FALCON,)),
    "gpt2": GGUFFamily(gguf_configs.read_gpt2, name_maps.GGUF_GPT2),
}
# Part of the config: divisors of the rotary frequencies.
GGUF_IGNORED = "|".join(f"^{re.escape(name)}$" for name in (gguf_rope.FREQS, gguf_rope.SHORT, gguf_rope.LONG))


def _either(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"


def _config(source: Path, reader: Callable[[], ModelConfig]) -> ModelConfig:
    """Run a config reader; put the file's name into errors that ModelConfig raises."""
    try:
        return reader()
    except InputError as error:
        if str(error).startswith("config: "):
            raise InputError(f"{source}: {str(error).removeprefix('config: ')}") from error
        raise


def _check_layers(source: Path, n_layers: object, n_tensors: int) -> None:
    """Refuse more layers than tensors, before anything is listed for every layer."""
    if type(n_layers) is int and n_layers > n_tensors:
        raise InputError(f"{source}: has {n_layers} layers, expected no more than the {n_tensors} tensors")


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
    if kind is None:
        named = settings.get("architectures", default=[])
        named = named if isinstance(named, list) else []
        kind = next((kind for name, kind in ARCHITECTURES.items() if name in named), None)
    if isinstance(kind, str) and kind in REFUSED:
        raise InputError(f"{source}: the family {kind} is not supported: {REFUSED[kind]}")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(f"{source}: the family (model_type) is {kind!r}, expected {_either(FAMILIES)}")
    settings.only("quantization_config")
    settings.only("is_causal", True)
    family, present = FAMILIES[kind], set(tensors)
    embed = family.names["embed"].name
    prefix = next((p for p in family.prefixes if p + embed in present), family.prefixes[0])
    _check_layers(source, settings.get("num_hidden_layers", "n_layer"), len(present))
    config = _config(source, lambda: family.config(settings))
    if config.family == "llama" and kind not in ("mistral", "qwen2"):
        config = config.replace(family=kind)
    return replace(family, names=_name_map(family, present, prefix)), config, prefix


def _name_map(family: Family | GGUFFamily, present: Collection[str], prefix: str = "") -> Names:
    """Return the family's first name map whose norms of the first block a file has; else its usual one."""

    def norms(names: Names) -> set[str]:
        keys = (f"blocks.{{i}}.{key}" for key in ("ln1.w", "ln2.w"))
        return {prefix + names[key].name.replace("{i}", "0") for key in keys if key in names}

    maps = family.names, *family.variants
    return next((names for names in maps if norms(names) <= set(present)), family.names)


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
    minicore.errors.InputError: model.gguf: general.architecture is 'bert', expected llama, ... or gpt2
    """
    kind = values.get("general.architecture")
    if isinstance(kind, str) and kind in REFUSED:
        raise InputError(f"{source}: the architecture {kind} is not supported: {REFUSED[kind]}")
    if not isinstance(kind, str) or kind not in GGUF_FAMILIES:
        raise InputError(f"{source}: general.architecture is {kind!r}, expected {_either(GGUF_FAMILIES)}")
    family = GGUF_FAMILIES[kind]
    family = replace(family, names=name_maps.with_qkv_of(_name_map(family, tensors), tensors))
    settings = Settings(values, source, prefix=f"{kind}.")
    _check_layers(source, settings.get("block_count"), len(tensors))
    return family, _config(source, lambda: family.config(settings, tensors))
