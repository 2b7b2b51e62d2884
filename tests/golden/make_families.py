"""Record what Transformers computes with tiny random checkpoints of many families, in families.npz.

    pip install torch==2.13.0 transformers==5.23.0 safetensors numpy
    python tests/golden/make_families.py

The checkpoints themselves are not kept: tests/helpers/families.py makes the same weights from the names of
the tensors. Everything is computed in float32 on one thread, without a cache, with eager attention (but for
ALiBi, which Transformers 5.23 adds twice there). Transformers has no MiniCPM, ProSparse or Bamboo: these are
its Llama with the scales or activations put in from outside.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.helpers import families as made

N_IDS, N_NEW, ROWS = 24, 12, (11, 23)
SIZES = {
    "vocab_size": 112, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2}
FALCON = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
OPT = {
    "vocab_size": 112, "hidden_size": 32, "ffn_dim": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {"vocab_size": 112, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "eos_token_id": 2}
ACTS = ("relu", "relu2", "gelu", "gelu_pytorch_tanh", "quick_gelu", "mish", "tanh", "relu6", "leaky_relu")


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0} | values}


SHORT, LONG = [1.0, 1.5, 2.0, 3.0], [2.0, 3.0, 5.0, 7.0]
# name: (class of the config, its values, changes of config.json that Transformers does not know)
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{f"llama-{act}": ("LlamaConfig", GROUPED | {"hidden_act": act}, {}) for act in ACTS},
    "llama-dynamic": ("LlamaConfig", GROUPED | rope("dynamic", factor=2.0), {}),
    "llama-yarn": (
        "LlamaConfig",
        GROUPED | rope("yarn", factor=4.0, original_max_position_embeddings=32),
        {},
    ),
    "llama-yarn-all": (
        "LlamaConfig",
        GROUPED
        | {"head_dim": 16}
        | rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=32,
            mscale=0.7,
            mscale_all_dim=0.5,
            beta_fast=8.0,
            truncate=False,
        ),
        {},
    ),
    "llama-longrope": (
        "LlamaConfig",
        GROUPED
        | rope(
            "longrope", factor=4.0, original_max_position_embeddings=64, short_factor=SHORT, long_factor=LONG
        ),
        {},
    ),
    "llama-longrope-long": (
        "LlamaConfig",
        GROUPED
        | rope(
            "longrope", factor=4.0, original_max_position_embeddings=16, short_factor=SHORT, long_factor=LONG
        ),
        {},
    ),
    "sparsellama": (
        "LlamaConfig",
        GROUPED | {"num_key_value_heads": 4},
        {"model_type": "sparsellama", "hidden_act": "fatrelu", "hidden_act_param": 0.2},
    ),
    "minicpm": (
        "LlamaConfig",
        GROUPED | {"tie_word_embeddings": True},
        {"model_type": "minicpm", "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 8},
    ),
    "minicpm-s": (
        "LlamaConfig",
        GROUPED | {"tie_word_embeddings": True},
        {
            "model_type": None,
            "architectures": ["MiniCPMForCausalLM"],
            "hidden_act": "fatrelu",
            "hidden_act_param": 0.03,
            "scale_emb": 2,
            "scale_depth": 1.4,
            "dim_model_base": 16,
        },
    ),
    "bamboo": (
        "LlamaConfig",
        GROUPED,
        {"model_type": "bamboo", "hidden_act": "relu", "sliding_window": None},
    ),
    "mistral": ("MistralConfig", GROUPED, {}),
    "mistral-window": ("MistralConfig", GROUPED | {"sliding_window": 6}, {}),
    "qwen2-window": (
        "Qwen2Config",
        GROUPED | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        {},
    ),
    "qwen3": ("Qwen3Config", GROUPED | {"head_dim": 16}, {}),
    "qwen3-window": (
        "Qwen3Config",
        GROUPED
        | {
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 2,
            "attention_bias": True,
        },
        {},
    ),
    "phi3": ("Phi3Config", GROUPED | {"sliding_window": 7, "original_max_position_embeddings": 64}, {}),
    "phi3-longrope": (
        "Phi3Config",
        GROUPED
        | {"original_max_position_embeddings": 16, "partial_rotary_factor": 0.5}
        | rope("longrope", short_factor=SHORT[:2], long_factor=LONG[:2]),
        {},
    ),
    "phi": ("PhiConfig", GROUPED, {}),
    "gpt_neox": ("GPTNeoXConfig", SIZES | {"rotary_pct": 0.5}, {}),
    "gpt_neox-sequential": (
        "GPTNeoXConfig",
        SIZES
        | {"use_parallel_residual": False, "hidden_act": "relu", "attention_bias": False}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e3, "partial_rotary_factor": 1.0}},
        {},
    ),
    "gemma": ("GemmaConfig", GROUPED | {"head_dim": 16}, {}),
    "gemma2": (
        "Gemma2Config",
        GROUPED
        | {
            "head_dim": 16,
            "sliding_window": 6,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
        },
        {},
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        GROUPED | {"head_dim": 16, "sliding_window": 6, "num_hidden_layers": 7, "hidden_size": 24},
        {},
    ),
    "gemma3_text-linear": (
        "Gemma3TextConfig",
        GROUPED
        | {
            "head_dim": 16,
            "sliding_window": 6,
            "sliding_window_pattern": 3,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        {},
    ),
    "olmo2": ("Olmo2Config", GROUPED, {}),
    "smollm3": ("SmolLM3Config", GROUPED | {"no_rope_layer_interval": 2}, {}),
    "smollm3-yarn": (
        "SmolLM3Config",
        GROUPED
        | {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 5}
        | rope("yarn", factor=2.0, original_max_position_embeddings=64),
        {},
    ),
    "stablelm": ("StableLmConfig", GROUPED | {"use_qkv_bias": True}, {}),
    "stablelm-parallel": (
        "StableLmConfig",
        GROUPED | {"use_parallel_residual": True} | rope("default", partial_rotary_factor=0.5),
        {},
    ),
    "nemotron": ("NemotronConfig", GROUPED | {"head_dim": 16}, {}),
    "arcee": ("ArceeConfig", GROUPED | {"mlp_bias": True}, {}),
    "falcon-7b": ("FalconConfig", FALCON | {"ffn_hidden_size": 96}, {}),
    "falcon-40b": (
        "FalconConfig",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
        {},
    ),
    "falcon-11b": (
        "FalconConfig",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        {},
    ),
    "falcon-rw": (
        "FalconConfig",
        FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
        {},
    ),
    "falcon-rw-6-heads": (
        "FalconConfig",
        FALCON | {"alibi": True, "hidden_size": 48, "num_attention_heads": 6, "activation": "relu"},
        {},
    ),
    "opt-350m": ("OPTConfig", OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False}, {}),
    "opt-no-final-norm": ("OPTConfig", OPT | {"_remove_final_layer_norm": True}, {}),
    **{f"opt-{act}": ("OPTConfig", OPT | {"activation_function": act}, {}) for act in ("gelu", "silu")},
    **{
        f"gpt2-{act}": ("GPT2Config", GPT2 | {"activation_function": act}, {})
        for act in ("relu", "gelu", "tanh")
    },
}


def put_in(model: nn.Module, more: dict[str, Any]) -> None:
    """Make Transformers' Llama compute what config.json says beyond it."""
    kind = more.get("model_type") or "minicpm"
    for layer in model.model.layers:
        mlp = layer.mlp
        if more.get("hidden_act") == "fatrelu":
            mlp.act_fn = nn.Threshold(more["hidden_act_param"], 0.0)
        elif kind == "bamboo":
            mlp.act_fn = nn.ReLU()
            mlp.up_proj.register_forward_hook(lambda module, inputs, out: torch.relu(out))
    if kind == "minicpm":
        config, scale = model.config, more["scale_depth"] / model.config.num_hidden_layers**0.5
        model.model.embed_tokens.register_forward_hook(lambda module, inputs, out: out * more["scale_emb"])
        for layer in model.model.layers:
            for out in (layer.self_attn.o_proj, layer.mlp.down_proj):
                out.register_forward_hook(lambda module, inputs, out: out * scale)
        by = config.hidden_size / more["dim_model_base"]
        model.lm_head.register_forward_hook(lambda module, inputs, out: out / by)


def record(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Make a checkpoint and return what families.npz holds of it."""
    kind, values, more = MODELS[name]
    attention = "sdpa" if "alibi" in values else "eager"
    fresh = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**values))
    fresh.save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "np") as file:
        shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}
    config = json.loads((folder / "config.json").read_text())
    made.write(folder, name, config, shapes)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=attention, dtype="float32"
    )
    model.eval()
    if more:
        put_in(model, more)
    ids = np.random.default_rng(len(name)).integers(3, 112, N_IDS)
    text, margins = ids.tolist(), []
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()
        for _ in range(N_NEW):
            row = model(torch.tensor([text]), use_cache=False).logits[0, -1]
            best = torch.topk(row, 2).values
            margins.append(float(best[0] - best[1]))
            text.append(int(row.argmax()))
    about = {"config": config | more, "shapes": shapes, "largest": float(np.abs(logits).max())}
    return about, {
        "ids": ids,
        "rows": np.array(ROWS),
        "logits": logits[list(ROWS)],
        "greedy": np.array(text[N_IDS:]),
        "margins": np.array(margins, np.float32),
    }


def main() -> None:
    torch.set_num_threads(1)
    abouts, arrays = {}, {}
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            abouts[name], found = record(name, Path(folder))
        arrays |= {f"{name}/{key}": value for key, value in found.items()}
        print(name, min(found["margins"]))
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    np.savez_compressed(
        made.RECORDED,
        about=np.frombuffer(json.dumps(abouts).encode(), np.uint8),
        made_with=np.array(versions),
        **arrays,
    )


if __name__ == "__main__":
    main()
