"""Name maps: where each family's files keep every parameter, as data."""

from __future__ import annotations

from collections.abc import Mapping

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

GGUF_QWEN2: Names = {
    "embed": P("token_embd.weight"),
    "ln_f.w": P("output_norm.weight"),
    "head": P("output.weight"),
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
