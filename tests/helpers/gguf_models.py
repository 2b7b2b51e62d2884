"""Tiny random models of the GGUF architectures; those of Llama, Qwen 2 and GPT-2 have tests of their own."""

from __future__ import annotations

import copy
from typing import Any

from tests.helpers.families import families

IDS = list(range(5, 21))

# architecture -> the recorded family that it holds, and what its files cannot say otherwise
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {}),
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "layer_types": None}),
    "arcee": ("arcee", {"attention_bias": False, "mlp_bias": False}),  # llama.cpp reads no biases
    "minicpm": ("minicpm", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3_text", {"query_pre_attn_scalar": 16}),
    "olmo2": ("olmo2", {}),
    "phi3": ("phi3", {"sliding_window": None}),  # llama.cpp ignores the window
    "phi3-longrope": (
        "phi3-longrope",
        {"max_position_embeddings": 4096, "original": 1024, "sliding_window": None},
    ),
    "llama-longrope": ("llama-longrope", {"max_position_embeddings": 4096, "original": 1024}),
    "llama-yarn": ("llama-yarn", {}),
    "phi2": ("phi", {}),
    "gptneox": ("gpt_neox", {}),
    "stablelm": ("stablelm", {}),
    "stablelm-parallel": ("stablelm-parallel", {}),
    "nemotron": ("nemotron", {}),
    "falcon-7b": ("falcon-7b", {"tie_word_embeddings": False}),
    "falcon-40b": ("falcon-40b", {"tie_word_embeddings": False, "bias": False}),
}
LLAMA_CPP_LACKS = ("nemotron",)  # the version that recorded logits wants n_heads * d_head = d_model


def gguf_models() -> dict[str, tuple[dict[str, Any], dict[str, list[int]]]]:
    """Return the config and the tensors' shapes of each model, in Hugging Face layout."""
    found = {}
    for name, (source, changes) in _MODELS.items():
        config, shapes = copy.deepcopy(families()[source].config), dict(families()[source].shapes)
        original = changes.get("original")
        config |= {key: value for key, value in changes.items() if key != "original"}
        if original is not None:  # llama.cpp makes room for 256 tokens at least, and chooses factors by it
            config["original_max_position_embeddings"] = original
            config["rope_parameters"]["original_max_position_embeddings"] = original
        if config.get("attention_bias") is False and config.get("mlp_bias") is False:
            shapes = {key: shape for key, shape in shapes.items() if not key.endswith("proj.bias")}
        if config.get("bias") is False:
            shapes = {k: v for k, v in shapes.items() if not k.endswith("bias") or "norm" in k or ".ln_" in k}
        last = config["num_hidden_layers"] - 1
        more = {key.replace("layers.0.", f"layers.{last}."): shape for key, shape in shapes.items()}
        shapes |= more if name == "smollm3" else {}
        if config.get("tie_word_embeddings") is False and config["model_type"] == "falcon":
            shapes["lm_head.weight"] = [config["vocab_size"], config["hidden_size"]]
        found[name] = config, shapes
    return found
