"""Hugging Face directories as GGUF files, made as llama.cpp's convert_hf_to_gguf.py makes them.

Nothing here is minicore's: names of tensors are from the tables of the ``gguf`` package, and what each family
reorders, adds or writes follows llama.cpp's conversion/*.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

from tests.helpers.checkpoints import write_gguf

ARCHITECTURES = {"mistral": "llama", "phi": "phi2", "gpt_neox": "gptneox", "gemma3_text": "gemma3"}
INTERLEAVED = ("llama", "smollm3", "arcee", "minicpm")  # rows of queries and keys are reordered
PLUS_ONE = ("gemma", "gemma2", "gemma3", "nemotron")
COPIED = {  # keys that are written where the config has them
    "context_length": ("max_position_embeddings", "n_positions"),
    "embedding_length": ("hidden_size", "n_embd"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "feed_forward_length": ("intermediate_size",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_eps"),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
}
WINDOWS = ("gemma2", "gemma3", "phi3")


def convert(folder: Path, path: Path) -> Path:
    """Write the GGUF file of a Hugging Face directory, in float32."""
    config = json.loads((folder / "config.json").read_text())
    kind = config["model_type"]
    architecture = ARCHITECTURES.get(kind, kind)
    held = load_file(folder / "model.safetensors")
    tensors = dict(_renamed(config, architecture, held)) | _divisors(config, architecture)
    return write_gguf(path, architecture, _metadata(config, architecture), tensors)


def _first(config: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), None)


def _metadata(config: dict[str, Any], architecture: str) -> dict[str, Any]:
    rope = config.get("rope_parameters") or {}
    found = {key: _first(config, keys) for key, keys in COPIED.items()}
    found["block_count"] = _first(config, ("num_hidden_layers", "n_layer"))
    if architecture in WINDOWS:
        found["attention.sliding_window"] = config.get("sliding_window") or 0
    if architecture in ("gpt2", "falcon"):
        found["feed_forward_length"] = config.get("ffn_hidden_size", 4 * found["embedding_length"])
    if architecture == "gptneox":
        found["use_parallel_residual"] = config["use_parallel_residual"]
    if architecture == "falcon":
        found["tensor_data_layout"] = "jploski"
        found["attention.head_count_kv"] = _falcon_kv(config)
    if architecture == "minicpm":
        found["embedding_scale"] = float(config["scale_emb"])
        found["residual_scale"] = config["scale_depth"] / config["num_hidden_layers"] ** 0.5
        found["logit_scale"] = config["hidden_size"] / config["dim_model_base"]
    return {
        key: value for key, value in (found | _rope(config, rope, architecture)).items() if value is not None
    }


def _rope(config: dict[str, Any], rope: dict[str, Any], architecture: str) -> dict[str, Any]:
    if architecture in ("gpt2", "falcon"):
        return {}
    local, rope = rope.get("sliding_attention", {}), rope.get("full_attention", rope)
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    found = {
        "rope.freq_base": rope.get("rope_theta"),
        "rope.freq_base_swa": local.get("rope_theta"),
        "rope.dimension_count": int(width * rope.get("partial_rotary_factor", 1.0)),
    }
    kind = rope.get("rope_type")
    if kind in ("linear", "yarn"):
        found |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        found["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        for ours, theirs in (("attn_factor", "attention_factor"), ("beta_fast", "beta_fast")):
            found[f"rope.scaling.yarn_{ours}"] = rope.get(theirs)
    if architecture == "phi3":
        original = config.get("original_max_position_embeddings", config["max_position_embeddings"])
        found["rope.scaling.original_context_length"] = original
        if kind == "longrope":
            scale = config["max_position_embeddings"] / original
            found["rope.scaling.attn_factor"] = float(np.sqrt(1 + np.log(scale) / np.log(original)))
    return found


def _divisors(config: dict[str, Any], architecture: str) -> dict[str, np.ndarray]:
    rope = config.get("rope_parameters") or {}
    if architecture == "phi3" and rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{which}.weight": np.array(rope[f"{which}_factor"], np.float32)
            for which in ("long", "short")
        }
    return {}


def _falcon_kv(config: dict[str, Any]) -> int:
    if config["new_decoder_architecture"]:
        return int(config["num_kv_heads"])
    return 1 if config["multi_query"] else int(config["num_attention_heads"])


def _renamed(
    config: dict[str, Any], architecture: str, held: dict[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, _first(config, ("num_hidden_layers", "n_layer")))
    n_heads = _first(config, ("num_attention_heads", "n_head"))
    n_kv = config.get("num_key_value_heads") or n_heads
    for name, values in held.items():
        if name == "lm_head.weight" and architecture in ("gemma", "gemma2"):
            continue
        if architecture in INTERLEAVED and ".q_proj." in name:
            values = _interleaved(values, n_heads)
        if architecture in INTERLEAVED and ".k_proj." in name:
            values = _interleaved(values, n_kv)
        if architecture in PLUS_ONE and name.endswith("norm.weight"):
            values = values + 1
        if "query_key_value" in name:
            n_kv = n_heads if architecture == "gptneox" else _falcon_kv(config)
            values = _stacked(values, n_heads, n_kv)
        if architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            values = values.T
        yield names.get_name(name, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(values)


def _interleaved(values: np.ndarray, n_heads: int) -> np.ndarray:
    halves = values.reshape(n_heads, 2, len(values) // n_heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _stacked(values: np.ndarray, n_heads: int, n_kv: int) -> np.ndarray:
    """Return all queries, all keys, all values of rows in groups of a key head's."""
    per_group = n_heads // n_kv
    groups = values.reshape(n_kv, per_group + 2, -1, *values.shape[1:])
    parts = groups[:, :-2], groups[:, [-2]], groups[:, [-1]]
    return np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])
