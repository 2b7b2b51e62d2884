"""The metadata and tensor names of a model's GGUF file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minicore.checkpoint import families, gguf, gguf_writer, parameters
from minicore.checkpoint.exported import Exported, differences
from minicore.checkpoint.gguf_tokenizer_export import special_id_keys, tokenizer_metadata
from minicore.checkpoint.hf_export import original
from minicore.checkpoint.name_maps import Names
from minicore.checkpoint.parameters import Place
from minicore.checkpoint.tensors import Array, NewTensor, Tensor
from minicore.config import ModelConfig, activation_fields
from minicore.errors import InputError
from minicore.ops import to_float32
from minicore.quantization import Weight

FILE = "a GGUF file"  # what messages call the file that is being written
_NONE, _ALL = (False, False, False), (True, True, True)
# The biases of queries, keys and values, of the attention output and of the FFN that llama.cpp reads in files
# of an architecture. Those that are not here may have any.
BIASES = {
    "qwen2": (True, False, False),
    **dict.fromkeys(("gpt2", "gptneox", "phi2"), _ALL),
    **dict.fromkeys(
        ("qwen3", "arcee", "minicpm", "gemma", "gemma2", "gemma3", "olmo2", "phi3", "falcon"), _NONE
    ),
}
HAS_FREQS = ("llama", "arcee")  # architectures for which llama.cpp reads divisors of frequencies
F32_ONLY = ("position_embd.weight",)  # added to the embeddings, so not stored in blocks


def layout(model: Exported) -> tuple[dict[str, Any], dict[str, Place], list[NewTensor], list[str]]:
    """Return the metadata, the place of each parameter, tensors besides the parameters, and notes.

    Raises
    ------
    InputError
        If GGUF has no architecture or no tokenizer that is this model's.

    Examples
    --------
    >>> import minicore as mc
    >>> found = mc.load("minicore-opt-core")
    >>> layout(Exported(config=found.config, params={}, name="mine", source=Path()))
    Traceback (most recent call last):
    minicore.errors.InputError: mine: a GGUF file of the architecture gpt2 cannot say position_offset 2 ...
    """
    config = model.config
    architecture, names, again = _architecture(model)
    metadata = {"general.architecture": architecture, "general.name": model.name}
    metadata |= _shape_metadata(config, architecture)
    tokens, notes = _tokenizer(model)
    metadata |= tokens
    metadata |= {f"minicore.{key}": value for key, value in model.recommended.items()}
    if again.spelled_activation != config.spelled_activation:
        metadata["minicore.activation"] = config.spelled_activation
        notes = [
            *notes,
            f"GGUF does not record the activation: other engines compute {again.activation} for the "
            f"architecture {architecture}, and this model has {config.spelled_activation}",
        ]
    if architecture == "phi3" and config.windows:
        notes = [*notes, "llama.cpp does not use the sliding windows of the architecture phi3"]
    return metadata, parameters.places(config, names), _rope_tensors(config), notes


def kind_of(name: str, shape: tuple[int, ...], kind: str) -> str:
    """Return the type in which a tensor is stored.

    Examples
    --------
    >>> kind_of("position_embd.weight", (16, 32), "Q8_0"), kind_of("output.weight", (16, 32), "Q8_0")
    ('F32', 'Q8_0')
    """
    return "F32" if name in F32_ONLY else gguf_writer.kind_for(kind, shape)


def _architecture(model: Exported) -> tuple[str, Names, ModelConfig]:
    """Return the architecture whose files would be read as this model, its name map, and the config read.

    One that means the model's activation comes first.
    """
    config, found, worse = model.config, [], []
    for architecture, names in _candidates(model):
        metadata = {"general.architecture": architecture, **_shape_metadata(config, architecture)}
        try:
            _, again = families.read_metadata(metadata, Path(FILE), _readable(model, names))
        except InputError as error:
            worse.append((math.inf, str(error)))
            continue
        given = activation_fields(config.spelled_activation)
        if apart := differences(config, again.replace(**given)):
            worse.append((len(apart), f"{FILE} of the architecture {architecture} cannot say {apart[0]}"))
        else:
            found.append((architecture, names, again))
    if found:
        return next((one for one in found if one[2].activation == config.activation), found[0])
    if worse:
        raise InputError(f"{model.name}: {min(worse)[1]}, expected --format hf")
    raise InputError(
        f"{model.name}: no GGUF architecture that minicore writes ({', '.join(families.GGUF_FAMILIES)}) "
        f"has the parameters of this model of the family {config.family}, expected --format hf"
    )


def _candidates(model: Exported) -> Iterator[tuple[str, Names]]:
    """Yield the architectures and name maps that have a place for every parameter."""
    config = model.config
    wanted = {re.sub(r"^blocks\.\d+\.", "blocks.{i}.", parameter) for parameter in config.shapes()}
    biases = (config.qkv_bias, config.attn_out_bias, config.mlp_bias)
    origin = _origin(model.source)
    first = sorted(families.GGUF_FAMILIES, key=lambda name: (name != origin, name != "qwen2"))
    for architecture in first:
        family = families.GGUF_FAMILIES[architecture]
        if biases != BIASES.get(architecture, biases):
            continue
        if architecture == "gptneox" and config.tied_head:
            continue  # llama.cpp wants an output head
        if _rope_tensors(config) and architecture not in (*HAS_FREQS, "phi3"):
            continue
        if architecture == "phi3" and origin != "phi3":
            continue  # llama.cpp ignores its windows
        for names in (family.names, *family.variants):
            if wanted <= names.keys() and _agrees(model, names):
                yield architecture, names


def _agrees(model: Exported, names: Names) -> bool:
    """Say whether parameters that share a place in the file are the same."""
    held: dict[Place, str] = {}
    for parameter, place in parameters.places(model.config, names).items():
        other = held.setdefault(place, parameter)
        if other != parameter and not _equal(model.params[parameter], model.params[other]):
            return False
    return True


def _equal(a: Weight, b: Weight) -> bool:
    return bool(np.array_equal(to_float32(a), to_float32(b)))


def _origin(source: Path) -> str | None:
    """Return the architecture of the model's own GGUF file, or the one of its config.json's family."""
    if source.suffix == ".gguf" and source.is_file():
        return str(gguf.read_files(source)[0].get("general.architecture"))
    family = str(found.values.get("model_type")) if (found := original(source)) else None
    return {"phi": "phi2", "gpt_neox": "gptneox", "gemma3_text": "gemma3"}.get(str(family), family)


def _shape_metadata(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """Return the keys of a model's shape."""
    rms = config.norm == "rmsnorm"
    values: dict[str, Any] = {
        "context_length": config.n_ctx,
        "embedding_length": config.d_model,
        "block_count": config.n_layers,
        "feed_forward_length": config.n_neurons,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        f"attention.layer_norm_{'rms_' if rms else ''}epsilon": float(config.norm_eps),
        "vocab_size": config.n_vocab,
    }
    if config.positions == "rope":
        values |= _rope_metadata(config)
    if any(config.windows):
        values["attention.sliding_window"] = max(config.windows)
    if config.rope_local_theta is not None:
        values["rope.freq_base_swa"] = float(config.rope_local_theta)
    for key, cap in (("attn", config.score_softcap), ("final", config.logit_softcap)):
        if cap:
            values[f"{key}_logit_softcapping"] = float(cap)
    if architecture == "minicpm":
        values["embedding_scale"] = float(config.embed_scale)
        values["residual_scale"] = float(config.residual_scale)
        values["logit_scale"] = 1 / config.logit_scale
    if architecture == "gptneox":
        values["use_parallel_residual"] = config.block == "parallel"
    if architecture == "falcon":
        values["tensor_data_layout"] = "jploski"
    return {f"{architecture}.{key}": value for key, value in values.items()}


def _rope_metadata(config: ModelConfig) -> dict[str, Any]:
    values: dict[str, Any] = {
        "rope.freq_base": float(config.rope_theta),
        "rope.dimension_count": config.n_rotated,
        "attention.key_length": config.d_head,
        "attention.value_length": config.d_head,
    }
    if _is_linear(config):
        assert config.rope_factors is not None
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rope_factors[0])}
    if config.rope_scale != 1:
        values["rope.scaling.attn_factor"] = float(config.rope_scale)
    if config.rope_long_factors is not None:
        values["rope.scaling.type"] = "longrope"
        values["rope.scaling.original_context_length"] = config.rope_long_after
    return values


def _is_linear(config: ModelConfig) -> bool:
    return (
        config.rope_factors is not None
        and not config.rope_long_factors
        and len(set(config.rope_factors)) == 1
    )


def _rope_tensors(config: ModelConfig) -> list[NewTensor]:
    """Return the tensors of the rotary frequencies' divisors, where they differ."""
    if config.rope_factors is None or _is_linear(config):
        return []
    found = {"rope_freqs.weight": config.rope_factors}
    if config.rope_long_factors is not None:
        names = ("rope_factors_short.weight", "rope_factors_long.weight")
        found = dict(zip(names, (config.rope_factors, config.rope_long_factors), strict=True))
    return [
        gguf_writer.encoded(name, "F32", np.array(divisors, np.float32)) for name, divisors in found.items()
    ]


def _readable(model: Exported, names: Names) -> dict[str, Tensor]:
    """Return the tensors that the file will have, as its reader sees them: only the divisors have data."""
    where, shapes = parameters.places(model.config, names), model.config.shapes()
    found = {where[name].name: _seen(where[name].name, shape, None) for name, shape in shapes.items()}
    more = _rope_tensors(model.config)
    return found | {tensor.name: _seen(tensor.name, tensor.shape, tensor.data()) for tensor in more}


def _seen(name: str, shape: tuple[int, ...], data: Array | None) -> Tensor:
    def rows(start: int, stop: int) -> Array:
        assert data is not None
        return data[start:stop]

    def release(start: int, stop: int) -> None:
        pass

    return Tensor(name=name, file=Path(FILE), shape=shape, kind="F32", rows=rows, release=release)


def _tokenizer(model: Exported) -> tuple[Mapping[str, Any], list[str]]:
    """Return the tokenizer's metadata: those of the model's own GGUF file, or made from tokenizer.json."""
    if model.source.suffix == ".gguf" and model.source.is_file():
        metadata, _ = gguf.read_files(model.source)
        found = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
        return found or {"tokenizer.ggml.model": "none"}, []
    if model.tokenizer is None:
        ids = {f"tokenizer.ggml.{key}": i for key, i in special_id_keys(model).items()}
        return {"tokenizer.ggml.model": "none"} | ids, []
    return tokenizer_metadata(model)
