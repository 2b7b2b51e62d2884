"""The Hugging Face layout of OPT: how its names map to ours, and a model read from such a folder."""

from __future__ import annotations

import json
from pathlib import Path

from opt import OPT, Shape
from safetensors.torch import load_file

NAMES = {
    "norm1": "self_attn_layer_norm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.out_proj",
    "norm2": "final_layer_norm",
    "fc1": "fc1",
    "fc2": "fc2",
}


def from_hugging_face(folder: Path, device: str) -> OPT:
    c = json.loads((folder / "config.json").read_text())
    shape = Shape(
        c["vocab_size"],
        c["max_position_embeddings"],
        c["hidden_size"],
        c["num_hidden_layers"],
        c["num_attention_heads"],
        c["ffn_dim"],
    )
    names = {"embed_tokens": "embed", "embed_positions": "positions", "final_layer_norm": "norm"}
    for i in range(shape.n_layers):
        names |= {f"layers.{i}.{theirs}": f"blocks.{i}.{ours}" for ours, theirs in NAMES.items()}
    state = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        module, kind = name.removeprefix("model.decoder.").rsplit(".", 1)
        state[f"{names[module]}.{kind}"] = tensor.float()
    model = OPT(shape)
    model.load_state_dict(state, strict=False)  # levels are in the weights: the buffer stays at one
    return model.to(device).eval()
