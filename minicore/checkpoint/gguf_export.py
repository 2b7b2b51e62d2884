"""The metadata and tensor names of a model's GGUF file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minicore.checkpoint import families, gguf, gguf_writer, parameters
from minicore.checkpoint.exported import Exported, check_same
from minicore.checkpoint.gguf_tokenizer_export import special_id_keys, tokenizer_metadata
from minicore.checkpoint.parameters import Place
from minicore.checkpoint.tensors import Array, NewTensor, Tensor
from minicore.config import ModelConfig, activation_fields
from minicore.errors import InputError

FILE = "a GGUF file"  # what messages call the file that is being written
ROPE_FREQS = "rope_freqs.weight"
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
    minicore.errors.InputError: mine: no GGUF architecture that minicore writes (...) has the parameters ...
    """
    config = model.config
    architecture = _architecture(model)
    metadata = {"general.architecture": architecture, "general.name": model.name}
    metadata |= {f"{architecture}.{key}": value for key, value in _shape_metadata(config).items()}
    more = _rope_tensors(config)
    tokens, notes = _tokenizer(model)
    metadata |= tokens
    metadata |= {f"minicore.{key}": value for key, value in model.recommended.items()}
    family, again = families.read_metadata(metadata, Path(FILE), _readable(model, architecture, more))
    if again.spelled_activation != config.spelled_activation:
        metadata["minicore.activation"] = config.spelled_activation
        notes = [
            *notes,
            f"GGUF does not record the activation: other engines compute {again.activation} for the "
            f"architecture {architecture}, and this model has {config.spelled_activation}",
        ]
    given = activation_fields(config.spelled_activation)
    check_same(config, again.replace(**given), "GGUF file")
    return metadata, parameters.places(config, family.names), more, notes


def kind_of(name: str, shape: tuple[int, ...], kind: str) -> str:
    """Return the type in which a tensor is stored.

    Examples
    --------
    >>> kind_of("position_embd.weight", (16, 32), "Q8_0"), kind_of("output.weight", (16, 32), "Q8_0")
    ('F32', 'Q8_0')
    """
    return "F32" if name in F32_ONLY else gguf_writer.kind_for(kind, shape)


def _architecture(model: Exported) -> str:
    """Return the architecture whose files have exactly this model's parameters."""
    config = model.config
    qwen2 = config.family == "llama" and config.qkv_bias and not config.attn_out_bias
    name = "qwen2" if qwen2 else config.family
    names = families.GGUF_FAMILIES[name].names if name in families.GGUF_FAMILIES else {}
    wanted = {re.sub(r"^blocks\.\d+\.", "blocks.{i}.", parameter) for parameter in config.shapes()}
    if not wanted <= names.keys():
        raise InputError(
            f"{model.name}: no GGUF architecture that minicore writes ({', '.join(families.GGUF_FAMILIES)}) "
            f"has the parameters of this model of the family {config.family}, expected --format hf"
        )
    return name


def _shape_metadata(config: ModelConfig) -> dict[str, Any]:
    """Return the keys of a model's shape, without the architecture in front."""
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
        values |= {"rope.freq_base": float(config.rope_theta), "rope.dimension_count": config.d_head}
        values |= {"attention.key_length": config.d_head, "attention.value_length": config.d_head}
        if _is_linear(config):
            assert config.rope_factors is not None
            values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rope_factors[0])}
    return values


def _is_linear(config: ModelConfig) -> bool:
    return config.rope_factors is not None and len(set(config.rope_factors)) == 1


def _rope_tensors(config: ModelConfig) -> list[NewTensor]:
    """Return the tensor of the rotary frequencies' divisors, where they differ."""
    if config.rope_factors is None or _is_linear(config):
        return []
    return [gguf_writer.encoded(ROPE_FREQS, "F32", np.array(config.rope_factors, np.float32))]


def _readable(model: Exported, architecture: str, more: list[NewTensor]) -> dict[str, Tensor]:
    """Return the tensors that the file will have, as its reader sees them: only ``more`` have data."""
    shapes = model.config.shapes()
    where = parameters.places(model.config, families.GGUF_FAMILIES[architecture].names)
    found = {where[name].name: _seen(where[name].name, shape, None) for name, shape in shapes.items()}
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
