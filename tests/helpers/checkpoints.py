"""Small random checkpoints for tests, written with the formats' own packages, and files broken on purpose."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import safetensors.numpy

BF16 = np.dtype(ml_dtypes.bfloat16)
KINDS = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": BF16}

LLAMA = {
    "model_type": "llama",
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT = {
    "model_type": "opt",
    "vocab_size": 37,
    "hidden_size": 24,
    "ffn_dim": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "word_embed_proj_dim": 24,
    "tie_word_embeddings": True,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 37,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 16,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
}


def shapes_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the tensors that Transformers writes for a config, by name."""
    return {"opt": _opt, "gpt2": _gpt2}.get(config["model_type"], _llama)(config)


def _llama(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    d, n, h = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * h, c["num_key_value_heads"] * h
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c["vocab_size"], d)}
    for i in range(c["num_hidden_layers"]):
        rows = {"q_proj": (q, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, q)}
        mlp = {"gate_proj": (n, d), "up_proj": (n, d), "down_proj": (d, n)}
        layer = {f"self_attn.{k}.weight": v for k, v in rows.items()}
        layer |= {f"mlp.{k}.weight": v for k, v in mlp.items()}
        if c.get("attention_bias") or c["model_type"] == "qwen2":
            biased = rows if c.get("attention_bias") else ("q_proj", "k_proj", "v_proj")
            layer |= {f"self_attn.{k}.bias": rows[k][:1] for k in biased}
        if c.get("mlp_bias"):
            layer |= {f"mlp.{k}.bias": v[:1] for k, v in mlp.items()}
        layer |= {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
        shapes |= {f"model.layers.{i}.{k}": v for k, v in layer.items()}
    shapes["model.norm.weight"] = (d,)
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (c["vocab_size"], d)
    return shapes


def _opt(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    d, n = c["hidden_size"], c["ffn_dim"]
    matrices = {f"self_attn.{k}_proj": (d, d) for k in ("q", "k", "v", "out")} | {
        "fc1": (n, d),
        "fc2": (d, n),
    }
    layer = {f"{k}.weight": v for k, v in matrices.items()} | {
        f"{k}.bias": v[:1] for k, v in matrices.items()
    }
    for norm in ("self_attn_layer_norm", "final_layer_norm"):
        layer |= {f"{norm}.weight": (d,), f"{norm}.bias": (d,)}
    shapes = {"embed_tokens.weight": (c["vocab_size"], d)}
    shapes["embed_positions.weight"] = (c["max_position_embeddings"] + 2, d)
    shapes |= {f"layers.{i}.{k}": v for i in range(c["num_hidden_layers"]) for k, v in layer.items()}
    shapes |= {"final_layer_norm.weight": (d,), "final_layer_norm.bias": (d,)}
    return {f"model.decoder.{k}": v for k, v in shapes.items()}


def _gpt2(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    d = c["n_embd"]
    matrices = {
        "attn.c_attn": (d, 3 * d),
        "attn.c_proj": (d, d),
        "mlp.c_fc": (d, 4 * d),
        "mlp.c_proj": (4 * d, d),
    }
    layer = {f"{k}.weight": v for k, v in matrices.items()} | {
        f"{k}.bias": v[1:] for k, v in matrices.items()
    }
    for norm in ("ln_1", "ln_2"):
        layer |= {f"{norm}.weight": (d,), f"{norm}.bias": (d,)}
    shapes = {"wte.weight": (c["vocab_size"], d), "wpe.weight": (c["n_positions"], d)}
    shapes |= {f"h.{i}.{k}": v for i in range(c["n_layer"]) for k, v in layer.items()}
    shapes |= {"ln_f.weight": (d,), "ln_f.bias": (d,)}
    return {f"transformer.{k}": v for k, v in shapes.items()}


def random_tensors(config: Mapping[str, Any], kind: str = "F32", seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape).astype(np.float32).astype(KINDS[kind])
        for name, shape in shapes_of(config).items()
    }


def write_directory(
    directory: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], shards: int = 1
) -> Path:
    """Write a Hugging Face directory, in shards with an index if more than one is asked for."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if shards == 1:
        safetensors.numpy.save_file(dict(tensors), directory / "model.safetensors")
        return directory
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[shard::shards])
        safetensors.numpy.save_file(part, directory / name)
        weight_map |= dict.fromkeys(part, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def safetensors_bytes(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file with any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


# --- GGUF -----------------------------------------------------------------------------------------------

GGUF_LLAMA = {
    "block_count": 2,
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 50000.0,
}
GGUF_GPT2 = {
    "block_count": 2,
    "context_length": 16,
    "embedding_length": 32,
    "feed_forward_length": 128,
    "attention.head_count": 4,
    "attention.layer_norm_epsilon": 1e-5,
}


def gguf_shapes(architecture: str, m: Mapping[str, Any], n_vocab: int = 37) -> dict[str, tuple[int, ...]]:
    d, n = m["embedding_length"], m["feed_forward_length"]
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, d), "output_norm.weight": (d,)}
    layer: dict[str, tuple[int, ...]] = {"attn_norm.weight": (d,), "ffn_norm.weight": (d,)}
    layer |= {"ffn_up.weight": (n, d), "ffn_down.weight": (d, n)}
    if architecture == "gpt2":
        shapes |= {"position_embd.weight": (m["context_length"], d), "output_norm.bias": (d,)}
        layer |= {"attn_qkv.weight": (3 * d, d), "attn_output.weight": (d, d)}
        layer |= {
            "attn_qkv.bias": (3 * d,),
            "attn_output.bias": (d,),
            "ffn_up.bias": (n,),
            "ffn_down.bias": (d,),
        }
        layer |= {"attn_norm.bias": (d,), "ffn_norm.bias": (d,)}
    else:
        d_head = m.get("attention.key_length", d // m["attention.head_count"])
        q, kv = d_head * m["attention.head_count"], d_head * m["attention.head_count_kv"]
        layer |= {"attn_q.weight": (q, d), "attn_k.weight": (kv, d), "attn_v.weight": (kv, d)}
        layer |= {"attn_output.weight": (d, q), "ffn_gate.weight": (n, d)}
        if architecture == "qwen2":
            layer |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
    return shapes | {f"blk.{i}.{k}": v for i in range(m["block_count"]) for k, v in layer.items()}


def random_gguf_tensors(
    architecture: str, metadata: Mapping[str, Any], seed: int = 0
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = gguf_shapes(architecture, metadata)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    kind: str = "F32",
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write a GGUF file; matrices in ``kind``, vectors in F32, uint8 arrays as the blocks of ``kind``.

    ``metadata`` gets the architecture in front of its keys, ``more`` does not.
    """
    writer = gguf.GGUFWriter(path, architecture)
    keys = {f"{architecture}.{key}": value for key, value in metadata.items()} | dict(more or {})
    for key, value in keys.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    quantization = gguf.GGMLQuantizationType[kind]
    for name, values in tensors.items():
        if values.dtype == np.uint8:
            writer.add_tensor(name, values, raw_dtype=quantization)
        elif values.ndim == 1 or kind == "F32":
            writer.add_tensor(name, values.astype(np.float32))
        elif kind == "F16":
            writer.add_tensor(name, values.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
