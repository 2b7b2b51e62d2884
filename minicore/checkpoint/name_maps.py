"""Name maps: where each family's files keep every parameter, as data."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace

from minicore.checkpoint.parameters import Place as P

Names = dict[str, P]


def _block(names: Mapping[str, P]) -> Names:
    return {f"blocks.{{i}}.{parameter}": place for parameter, place in names.items()}


LLAMA: Names = {
    "embed": P("embed_tokens.weight"),
    "ln_f.w": P("norm.weight"),
    "head": P("lm_head.weight"),
} | _block(
    {
        "ln1.w": P("layers.{i}.input_layernorm.weight"),
        "attn.w_q": P("layers.{i}.self_attn.q_proj.weight"),
        "attn.w_k": P("layers.{i}.self_attn.k_proj.weight"),
        "attn.w_v": P("layers.{i}.self_attn.v_proj.weight"),
        "attn.w_o": P("layers.{i}.self_attn.o_proj.weight"),
        "attn.b_q": P("layers.{i}.self_attn.q_proj.bias"),
        "attn.b_k": P("layers.{i}.self_attn.k_proj.bias"),
        "attn.b_v": P("layers.{i}.self_attn.v_proj.bias"),
        "attn.b_o": P("layers.{i}.self_attn.o_proj.bias"),
        "ln2.w": P("layers.{i}.post_attention_layernorm.weight"),
        "mlp.w_gate": P("layers.{i}.mlp.gate_proj.weight"),
        "mlp.w_in": P("layers.{i}.mlp.up_proj.weight"),
        "mlp.w_out": P("layers.{i}.mlp.down_proj.weight", transposed=True),
        "mlp.b_gate": P("layers.{i}.mlp.gate_proj.bias"),
        "mlp.b_in": P("layers.{i}.mlp.up_proj.bias"),
        "mlp.b_out": P("layers.{i}.mlp.down_proj.bias"),
    }
)

OPT: Names = {
    "embed": P("embed_tokens.weight"),
    "pos_embed": P("embed_positions.weight"),
    "ln_f.w": P("final_layer_norm.weight"),
    "ln_f.b": P("final_layer_norm.bias"),
    "embed_in": P("project_in.weight"),
    "embed_out": P("project_out.weight"),
    "head": P("lm_head.weight"),
} | _block(
    {
        "ln1.w": P("layers.{i}.self_attn_layer_norm.weight"),
        "ln1.b": P("layers.{i}.self_attn_layer_norm.bias"),
        "attn.w_q": P("layers.{i}.self_attn.q_proj.weight"),
        "attn.w_k": P("layers.{i}.self_attn.k_proj.weight"),
        "attn.w_v": P("layers.{i}.self_attn.v_proj.weight"),
        "attn.w_o": P("layers.{i}.self_attn.out_proj.weight"),
        "attn.b_q": P("layers.{i}.self_attn.q_proj.bias"),
        "attn.b_k": P("layers.{i}.self_attn.k_proj.bias"),
        "attn.b_v": P("layers.{i}.self_attn.v_proj.bias"),
        "attn.b_o": P("layers.{i}.self_attn.out_proj.bias"),
        "ln2.w": P("layers.{i}.final_layer_norm.weight"),
        "ln2.b": P("layers.{i}.final_layer_norm.bias"),
        "mlp.w_in": P("layers.{i}.fc1.weight"),
        "mlp.b_in": P("layers.{i}.fc1.bias"),
        "mlp.w_out": P("layers.{i}.fc2.weight", transposed=True),
        "mlp.b_out": P("layers.{i}.fc2.bias"),
    }
)

# GPT-2's Conv1D stores (in, out). minicore stores only w_out in that order, so the others are transposed.
GPT2: Names = {
    "embed": P("wte.weight"),
    "pos_embed": P("wpe.weight"),
    "ln_f.w": P("ln_f.weight"),
    "ln_f.b": P("ln_f.bias"),
    "head": P("lm_head.weight"),
} | _block(
    {
        "ln1.w": P("h.{i}.ln_1.weight"),
        "ln1.b": P("h.{i}.ln_1.bias"),
        "attn.w_q": P("h.{i}.attn.c_attn.weight", transposed=True, part=0),
        "attn.w_k": P("h.{i}.attn.c_attn.weight", transposed=True, part=1),
        "attn.w_v": P("h.{i}.attn.c_attn.weight", transposed=True, part=2),
        "attn.w_o": P("h.{i}.attn.c_proj.weight", transposed=True),
        "attn.b_q": P("h.{i}.attn.c_attn.bias", part=0),
        "attn.b_k": P("h.{i}.attn.c_attn.bias", part=1),
        "attn.b_v": P("h.{i}.attn.c_attn.bias", part=2),
        "attn.b_o": P("h.{i}.attn.c_proj.bias"),
        "ln2.w": P("h.{i}.ln_2.weight"),
        "ln2.b": P("h.{i}.ln_2.bias"),
        "mlp.w_in": P("h.{i}.mlp.c_fc.weight", transposed=True),
        "mlp.b_in": P("h.{i}.mlp.c_fc.bias"),
        "mlp.w_out": P("h.{i}.mlp.c_proj.weight"),
        "mlp.b_out": P("h.{i}.mlp.c_proj.bias"),
    }
)


def _layers(names: Names, **changes: P | None) -> Names:
    """Return a name map with some of a block's parameters elsewhere, or absent (None).

    Dots of parameter names are written as two underscores.
    """
    changed = {f"blocks.{{i}}.{key.replace('__', '.')}": place for key, place in changes.items()}
    return {name: place for name, place in (names | changed).items() if place is not None}


def _plus_one(names: Names) -> Names:
    """Return a name map whose norm weights are stored as w of 1 + w."""
    return {
        name: replace(place, plus=1.0) if "ln" in name and name.endswith(".w") else place
        for name, place in names.items()
    }


_ATTN, _FFN = "layers.{i}.self_attn.", "layers.{i}.mlp."

# Norms with biases: StableLM. Blocks with one norm have it read by attention and FFN.
STABLELM = (
    LLAMA
    | {"ln_f.b": P("norm.bias")}
    | _block(
        {
            "ln1.b": P("layers.{i}.input_layernorm.bias"),
            "ln2.b": P("layers.{i}.post_attention_layernorm.bias"),
        }
    )
)
STABLELM_PARALLEL = _layers(
    STABLELM, ln2__w=P("layers.{i}.input_layernorm.weight"), ln2__b=P("layers.{i}.input_layernorm.bias")
)

QWEN3 = _layers(
    LLAMA,
    attn__q_norm__w=P(_ATTN + "q_norm.weight", repeated=True),
    attn__k_norm__w=P(_ATTN + "k_norm.weight", repeated=True),
)

PHI3 = _layers(
    LLAMA,
    attn__w_q=P(_ATTN + "qkv_proj.weight", part=0),
    attn__w_k=P(_ATTN + "qkv_proj.weight", part=1),
    attn__w_v=P(_ATTN + "qkv_proj.weight", part=2),
    mlp__w_gate=P(_FFN + "gate_up_proj.weight", part=0, fused="gate_up"),
    mlp__w_in=P(_FFN + "gate_up_proj.weight", part=1, fused="gate_up"),
)

PHI = _layers(
    LLAMA
    | {
        "ln_f.w": P("final_layernorm.weight"),
        "ln_f.b": P("final_layernorm.bias"),
        "head_bias": P("lm_head.bias"),
    },
    ln1__b=P("layers.{i}.input_layernorm.bias"),
    ln2__w=P("layers.{i}.input_layernorm.weight"),
    ln2__b=P("layers.{i}.input_layernorm.bias"),
    attn__w_o=P(_ATTN + "dense.weight"),
    attn__b_o=P(_ATTN + "dense.bias"),
    mlp__w_in=P(_FFN + "fc1.weight"),
    mlp__b_in=P(_FFN + "fc1.bias"),
    mlp__w_out=P(_FFN + "fc2.weight", transposed=True),
    mlp__b_out=P(_FFN + "fc2.bias"),
)

GPT_NEOX: Names = {
    "embed": P("embed_in.weight"),
    "ln_f.w": P("final_layer_norm.weight"),
    "ln_f.b": P("final_layer_norm.bias"),
    "head": P("embed_out.weight"),
} | _block(
    {
        "ln1.w": P("layers.{i}.input_layernorm.weight"),
        "ln1.b": P("layers.{i}.input_layernorm.bias"),
        "attn.w_q": P("layers.{i}.attention.query_key_value.weight", part=0, fused="groups"),
        "attn.w_k": P("layers.{i}.attention.query_key_value.weight", part=1, fused="groups"),
        "attn.w_v": P("layers.{i}.attention.query_key_value.weight", part=2, fused="groups"),
        "attn.w_o": P("layers.{i}.attention.dense.weight"),
        "attn.b_q": P("layers.{i}.attention.query_key_value.bias", part=0, fused="groups"),
        "attn.b_k": P("layers.{i}.attention.query_key_value.bias", part=1, fused="groups"),
        "attn.b_v": P("layers.{i}.attention.query_key_value.bias", part=2, fused="groups"),
        "attn.b_o": P("layers.{i}.attention.dense.bias"),
        "ln2.w": P("layers.{i}.post_attention_layernorm.weight"),
        "ln2.b": P("layers.{i}.post_attention_layernorm.bias"),
        "mlp.w_in": P(_FFN + "dense_h_to_4h.weight"),
        "mlp.b_in": P(_FFN + "dense_h_to_4h.bias"),
        "mlp.w_out": P(_FFN + "dense_4h_to_h.weight", transposed=True),
        "mlp.b_out": P(_FFN + "dense_4h_to_h.bias"),
    }
)

# Norms before and after attention and FFN.
GEMMA = _plus_one(LLAMA)
GEMMA2 = _plus_one(
    _layers(
        LLAMA,
        ln1_post__w=P("layers.{i}.post_attention_layernorm.weight"),
        ln2__w=P("layers.{i}.pre_feedforward_layernorm.weight"),
        ln2_post__w=P("layers.{i}.post_feedforward_layernorm.weight"),
    )
)
GEMMA3 = _layers(
    GEMMA2,
    attn__q_norm__w=P(_ATTN + "q_norm.weight", repeated=True, plus=1.0),
    attn__k_norm__w=P(_ATTN + "k_norm.weight", repeated=True, plus=1.0),
)

# Norms only after attention and FFN.
OLMO2 = _layers(
    LLAMA,
    ln1__w=None,
    ln2__w=None,
    ln1_post__w=P("layers.{i}.post_attention_layernorm.weight"),
    ln2_post__w=P("layers.{i}.post_feedforward_layernorm.weight"),
    attn__q_norm__w=P(_ATTN + "q_norm.weight"),
    attn__k_norm__w=P(_ATTN + "k_norm.weight"),
)

ARCEE = _layers(LLAMA, mlp__w_gate=None, mlp__b_gate=None)
NEMOTRON = _plus_one(_layers(STABLELM, mlp__w_gate=None, mlp__b_gate=None))

_FALCON_QKV = "h.{i}.self_attention.query_key_value."
FALCON: Names = {
    "embed": P("word_embeddings.weight"),
    "ln_f.w": P("ln_f.weight"),
    "ln_f.b": P("ln_f.bias"),
    "head": P("lm_head.weight"),
} | _block(
    {
        "ln1.w": P("h.{i}.input_layernorm.weight"),
        "ln1.b": P("h.{i}.input_layernorm.bias"),
        **{f"attn.w_{q}": P(_FALCON_QKV + "weight", part=k, fused="groups") for k, q in enumerate("qkv")},
        **{f"attn.b_{q}": P(_FALCON_QKV + "bias", part=k, fused="groups") for k, q in enumerate("qkv")},
        "attn.w_o": P("h.{i}.self_attention.dense.weight"),
        "attn.b_o": P("h.{i}.self_attention.dense.bias"),
        "ln2.w": P("h.{i}.post_attention_layernorm.weight"),
        "ln2.b": P("h.{i}.post_attention_layernorm.bias"),
        "mlp.w_in": P("h.{i}.mlp.dense_h_to_4h.weight"),
        "mlp.b_in": P("h.{i}.mlp.dense_h_to_4h.bias"),
        "mlp.w_out": P("h.{i}.mlp.dense_4h_to_h.weight", transposed=True),
        "mlp.b_out": P("h.{i}.mlp.dense_4h_to_h.bias"),
    }
)
FALCON_PARALLEL = _layers(
    FALCON, ln2__w=P("h.{i}.input_layernorm.weight"), ln2__b=P("h.{i}.input_layernorm.bias")
)
FALCON_TWO_NORMS = _layers(
    FALCON,
    ln1__w=P("h.{i}.ln_attn.weight"),
    ln1__b=P("h.{i}.ln_attn.bias"),
    ln2__w=P("h.{i}.ln_mlp.weight"),
    ln2__b=P("h.{i}.ln_mlp.bias"),
)

GGUF_QWEN2: Names = {
    "embed": P("token_embd.weight"),
    "ln_f.w": P("output_norm.weight"),
    "head": P("output.weight"),
    "head_bias": P("output.bias"),
} | _block(
    {
        "ln1.w": P("blk.{i}.attn_norm.weight"),
        "attn.w_q": P("blk.{i}.attn_q.weight"),
        "attn.w_k": P("blk.{i}.attn_k.weight"),
        "attn.w_v": P("blk.{i}.attn_v.weight"),
        "attn.w_o": P("blk.{i}.attn_output.weight"),
        "attn.b_q": P("blk.{i}.attn_q.bias"),
        "attn.b_k": P("blk.{i}.attn_k.bias"),
        "attn.b_v": P("blk.{i}.attn_v.bias"),
        "attn.b_o": P("blk.{i}.attn_output.bias"),
        "ln2.w": P("blk.{i}.ffn_norm.weight"),
        "mlp.w_gate": P("blk.{i}.ffn_gate.weight"),
        "mlp.w_in": P("blk.{i}.ffn_up.weight"),
        "mlp.w_out": P("blk.{i}.ffn_down.weight", transposed=True),
        "mlp.b_gate": P("blk.{i}.ffn_gate.bias"),
        "mlp.b_in": P("blk.{i}.ffn_up.bias"),
        "mlp.b_out": P("blk.{i}.ffn_down.bias"),
    }
)

# For this architecture llama.cpp rotates adjacent pairs, and its converter reorders query and key rows to
# match.
GGUF_LLAMA: Names = GGUF_QWEN2 | _block(
    {
        "attn.w_q": P("blk.{i}.attn_q.weight", interleaved=True),
        "attn.w_k": P("blk.{i}.attn_k.weight", interleaved=True),
        "attn.b_q": P("blk.{i}.attn_q.bias", interleaved=True),
        "attn.b_k": P("blk.{i}.attn_k.bias", interleaved=True),
    }
)

GGUF_GPT2: Names = {
    "embed": P("token_embd.weight"),
    "pos_embed": P("position_embd.weight"),
    "ln_f.w": P("output_norm.weight"),
    "ln_f.b": P("output_norm.bias"),
    "head": P("output.weight"),
} | _block(
    {
        "ln1.w": P("blk.{i}.attn_norm.weight"),
        "ln1.b": P("blk.{i}.attn_norm.bias"),
        "attn.w_q": P("blk.{i}.attn_qkv.weight", part=0),
        "attn.w_k": P("blk.{i}.attn_qkv.weight", part=1),
        "attn.w_v": P("blk.{i}.attn_qkv.weight", part=2),
        "attn.w_o": P("blk.{i}.attn_output.weight"),
        "attn.b_q": P("blk.{i}.attn_qkv.bias", part=0),
        "attn.b_k": P("blk.{i}.attn_qkv.bias", part=1),
        "attn.b_v": P("blk.{i}.attn_qkv.bias", part=2),
        "attn.b_o": P("blk.{i}.attn_output.bias"),
        "ln2.w": P("blk.{i}.ffn_norm.weight"),
        "ln2.b": P("blk.{i}.ffn_norm.bias"),
        "mlp.w_in": P("blk.{i}.ffn_up.weight"),
        "mlp.b_in": P("blk.{i}.ffn_up.bias"),
        "mlp.w_out": P("blk.{i}.ffn_down.weight", transposed=True),
        "mlp.b_out": P("blk.{i}.ffn_down.bias"),
    }
)

_Q_NORM, _K_NORM = "blk.{i}.attn_q_norm.weight", "blk.{i}.attn_k_norm.weight"
GGUF_QWEN3 = _layers(
    GGUF_QWEN2, attn__q_norm__w=P(_Q_NORM, repeated=True), attn__k_norm__w=P(_K_NORM, repeated=True)
)
GGUF_ARCEE = _layers(GGUF_LLAMA, mlp__w_gate=None, mlp__b_gate=None)
# llama.cpp's converter adds the 1 of norms that multiply by 1 + w.
GGUF_GEMMA2 = _layers(
    GGUF_QWEN2,
    ln1_post__w=P("blk.{i}.post_attention_norm.weight"),
    ln2_post__w=P("blk.{i}.post_ffw_norm.weight"),
)
GGUF_GEMMA3 = _layers(
    GGUF_GEMMA2, attn__q_norm__w=P(_Q_NORM, repeated=True), attn__k_norm__w=P(_K_NORM, repeated=True)
)
GGUF_OLMO2 = _layers(
    GGUF_GEMMA2, ln1__w=None, ln2__w=None, attn__q_norm__w=P(_Q_NORM), attn__k_norm__w=P(_K_NORM)
)
GGUF_PHI3 = _layers(
    GGUF_QWEN2,
    attn__w_q=P("blk.{i}.attn_qkv.weight", part=0),
    attn__w_k=P("blk.{i}.attn_qkv.weight", part=1),
    attn__w_v=P("blk.{i}.attn_qkv.weight", part=2),
    mlp__w_gate=P("blk.{i}.ffn_up.weight", part=0, fused="gate_up"),
    mlp__w_in=P("blk.{i}.ffn_up.weight", part=1, fused="gate_up"),
)
GGUF_STABLELM = _layers(
    GGUF_QWEN2 | {"ln_f.b": P("output_norm.bias")},
    ln1__b=P("blk.{i}.attn_norm.bias"),
    ln2__b=P("blk.{i}.ffn_norm.bias"),
)
_ONE_NORM = {"ln2__w": P("blk.{i}.attn_norm.weight"), "ln2__b": P("blk.{i}.attn_norm.bias")}
GGUF_STABLELM_PARALLEL = _layers(GGUF_STABLELM, **_ONE_NORM)
GGUF_NEMOTRON = _layers(GGUF_STABLELM, mlp__w_gate=None, mlp__b_gate=None)
GGUF_NEOX = {name: place for name, place in GGUF_GPT2.items() if name != "pos_embed"}
GGUF_FALCON = _layers(GGUF_NEOX, **_ONE_NORM)
GGUF_FALCON_TWO_NORMS = _layers(
    GGUF_FALCON, ln1__w=P("blk.{i}.attn_norm_2.weight"), ln1__b=P("blk.{i}.attn_norm_2.bias")
)
GGUF_PHI2 = _layers(GGUF_NEMOTRON, **_ONE_NORM)


def with_qkv_of(names: Names, tensors: Container[str]) -> Names:
    """Return a GGUF name map with queries, keys and values where a file has them: in three tensors or in one.

    Converters write both for many architectures (Phi-2, ``--fuse-qkv``), also one matrix with three biases.
    """
    found = dict(names)
    for kind in ("weight", "bias"):
        for part, letter in enumerate("qkv"):
            parameter = f"blocks.{{i}}.attn.{kind[0]}_{letter}"
            if parameter in names and f"blk.0.attn_qkv.{kind}" in tensors:
                found[parameter] = replace(names[parameter], name=f"blk.{{i}}.attn_qkv.{kind}", part=part)
            elif parameter in names and f"blk.0.attn_q.{kind}" in tensors:
                found[parameter] = replace(
                    names[parameter], name=f"blk.{{i}}.attn_{letter}.{kind}", part=None
                )
    return found
