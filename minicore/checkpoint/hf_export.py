"""Writing a Hugging Face directory: config.json, model.safetensors, and the tokenizer's files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicore.checkpoint import families, hf_tensors, mapped, parameters, safetensors
from minicore.checkpoint.exported import Exported, check_same
from minicore.checkpoint.parameters import Place
from minicore.checkpoint.settings import read_json
from minicore.checkpoint.tensors import NewTensor
from minicore.config import ModelConfig
from minicore.errors import InputError

CONFIG = "config.json"
# Files that go along as they are, from a Hugging Face directory, with the model's own Python code.
COPIED = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json"),
    "additional_chat_templates",
)
ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "identity": "linear"}  # their names there, where they differ
ACTIVATION_KEYS = ("hidden_act", "activation_function", "hidden_activation")


def layout(model: Exported) -> tuple[dict[str, Any], dict[str, Place]]:
    """Return the object of config.json, and the place of each parameter.

    Raises
    ------
    InputError
        If no config.json would be read as this model's config.

    Examples
    --------
    >>> import minicore as mc
    >>> found = mc.load("minicore-opt-core")
    >>> model = Exported(config=found.config, params={}, name="mine", source=found.source)
    >>> layout(model)[1]["blocks.0.mlp.w_in"].name
    'model.decoder.layers.0.fc1.weight'
    """
    known = original(model.source)
    values = known.values if known else _written(model)
    names = known.tensors if known else _usual_names(values, model.config)
    if (activation := model.config.activation) and any(key in values for key in ACTIVATION_KEYS):
        key = next(key for key in ACTIVATION_KEYS if key in values)
        values |= {key: values[key] if _reads_as(values, names, activation) else _name(activation)}
    family, again, prefix = families.read_config(values, model.source / CONFIG, names)
    if again.tied_head != model.config.tied_head:  # the tensors decided otherwise when the model was read
        values |= {"tie_word_embeddings": model.config.tied_head}
        again = families.read_config(values, model.source / CONFIG, names)[1]
    check_same(model.config, again, CONFIG)
    return values, parameters.places(model.config, family.names, prefix)


def write(directory: Path, model: Exported, dtype: str, tensors: list[NewTensor]) -> None:
    """Fill a directory; :func:`layout` has given the names of the tensors, which have this dtype."""
    values, _ = layout(model)
    values.pop("dtype", None)
    _write_json(directory / CONFIG, values | {"torch_dtype": dtype})
    safetensors.write_file(directory / "model.safetensors", tensors, {"format": "pt"})
    if (model.source / CONFIG).is_file() and not mapped.is_packed(read_json(model.source / CONFIG)):
        for path in (*(model.source / name for name in COPIED), *model.source.glob("*.py")):
            if path.is_file():
                shutil.copyfile(path, directory / path.name)
            elif path.is_dir():
                shutil.copytree(path, directory / path.name)
    else:
        _write_tokenizer(directory, model)
    _write_generation(directory / "generation_config.json", model)


@dataclass(frozen=True)
class Original:
    """The config.json of the Hugging Face directory that a model is from, and the names of its tensors."""

    values: dict[str, Any]
    tensors: tuple[str, ...]


def original(source: Path) -> Original | None:
    """Return what a model's directory was, which a packed one remembers; None for a GGUF file.

    Examples
    --------
    >>> from minicore.checkpoint.names import resolve
    >>> original(resolve("minicore-opt-core")).values["model_type"]
    'opt'
    """
    path = source / CONFIG
    if not path.is_file():
        return None
    values = read_json(path)
    if not mapped.is_packed(values):
        found = hf_tensors.unwrap(safetensors.read_directory(source))
        values, found = hf_tensors.dequantize(values, found)
        return Original(values, tuple(found))
    kept = values.get("original")
    return None if kept is None else Original(kept["values"], tuple(kept["tensors"]))


def _usual_names(values: Mapping[str, Any], config: ModelConfig) -> tuple[str, ...]:
    """Return the names of the tensors of a model that did not come with them."""
    family = families.FAMILIES[values["model_type"]]
    return tuple(p.name for p in parameters.places(config, family.names, family.prefixes[0]).values())


def _reads_as(values: Mapping[str, Any], names: tuple[str, ...], activation: str) -> bool:
    return families.read_config(values, Path(CONFIG), names)[1].activation == activation


def _name(activation: str) -> str:
    return ACTIVATIONS.get(activation, activation)


def _written(model: Exported) -> dict[str, Any]:
    """Return a config.json for a model that did not come with one."""
    if model.config.family not in WRITERS:
        raise InputError(
            f"{model.name}: a model of the family {model.config.family} without its original config.json "
            f"cannot be written as a Hugging Face directory, expected {' or '.join(WRITERS)}"
        )
    ids = {"bos_token_id": model.bos_id, "eos_token_id": _one_or_all(model.eos_ids)}
    return WRITERS[model.config.family](model.config) | ids


def _one_or_all(ids: tuple[int, ...]) -> int | list[int] | None:
    return list(ids) if len(ids) > 1 else next(iter(ids), None)


def _llama(config: ModelConfig) -> dict[str, Any]:
    qwen2 = config.qkv_bias and not config.attn_out_bias
    biases: dict[str, Any] = {} if qwen2 else {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    name, kind = ("Qwen2", "qwen2") if qwen2 else ("Llama", "llama")
    if config.activation == "fatrelu":
        name, kind = "SparseLlama", "sparsellama"
        biases["hidden_act_param"] = config.activation_threshold
    return biases | {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": kind,
        "vocab_size": config.n_vocab,
        "hidden_size": config.d_model,
        "intermediate_size": config.n_neurons,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.d_head,
        "max_position_embeddings": config.n_ctx,
        "hidden_act": _name(config.activation),
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling(config),
        "tie_word_embeddings": config.tied_head,
    }


def _rope_scaling(config: ModelConfig) -> dict[str, Any] | None:
    """Return the scaling whose divisors a model has: linear, or that of Llama 3.1 and 3.2."""
    if config.rope_factors is None:
        return None
    largest = max(config.rope_factors)
    if min(config.rope_factors) == largest:
        return {"rope_type": "linear", "factor": largest}
    return {  # check_same refuses others
        "rope_type": "llama3",
        "factor": float(round(largest)),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _opt(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": config.n_vocab,
        "hidden_size": config.d_model,
        "word_embed_proj_dim": config.d_model,
        "ffn_dim": config.n_neurons,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "max_position_embeddings": config.n_ctx,
        "activation_function": _name(config.activation),
        "do_layer_norm_before": True,
        "enable_bias": config.mlp_bias,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": config.tied_head,
        **dict.fromkeys(("dropout", "attention_dropout", "layerdrop"), 0.0),
    }


def _gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.n_vocab,
        "n_embd": config.d_model,
        "n_inner": config.n_neurons,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_positions": config.n_ctx,
        "activation_function": _name(config.activation),
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
    }


WRITERS: dict[str, Callable[[ModelConfig], dict[str, Any]]] = {"llama": _llama, "opt": _opt, "gpt2": _gpt2}


def _write_tokenizer(directory: Path, model: Exported) -> None:
    """Write the tokenizer, its special tokens and the chat template."""
    if model.tokenizer is None:
        return
    (directory / "tokenizer.json").write_text(model.tokenizer, encoding="utf-8")
    templates = [{"name": name, "template": text} for name, text in model.chat_templates.items()]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.n_ctx,
        "clean_up_tokenization_spaces": False,
        **model.tokenizer_config,
        "chat_template": templates[0]["template"] if len(templates) == 1 else templates or None,
    }
    _write_json(directory / "tokenizer_config.json", config)


def _write_generation(path: Path, model: Exported) -> None:
    """Write what begins and ends a generation and the recommended options, over what a copied file says."""
    values = json.loads(path.read_bytes()) if path.is_file() else {}
    values.pop("minicore", None)
    own: dict[str, Any] = {"bos_token_id": model.bos_id, "eos_token_id": _one_or_all(model.eos_ids)}
    own["minicore"] = dict(model.recommended) or None
    _write_json(path, values | {key: value for key, value in own.items() if value is not None})


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
