"""Readers of GGUF metadata: one function per ``general.architecture``, from Settings to ModelConfig.

A reader refuses every setting that the forward pass does not implement, so a model that loads is computed as
its metadata say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypedDict

from minicore.checkpoint.settings import Settings
from minicore.checkpoint.tensors import Tensor
from minicore.config import ModelConfig
from minicore.errors import InputError

Tensors = Mapping[str, Tensor]


def _rope(settings: Settings, d_head: int, tensors: Tensors) -> tuple[float, tuple[float, ...] | None]:
    settings.only("rope.scaling.type", "none", "linear")
    settings.only("rope.dimension_count", d_head)
    factor = settings.number("rope.scale_linear", default=1.0)
    if settings.get("rope.scaling.type") == "linear":
        factor = settings.number("rope.scaling.factor", default=factor)
    factors = [factor] * (d_head // 2)
    if "rope_freqs.weight" in tensors:
        tensor = tensors["rope_freqs.weight"]
        if tensor.shape != (d_head // 2,):
            raise InputError(f"{tensor.where} has shape {tensor.shape}, expected {(d_head // 2,)}")
        factors = [factor * float(divisor) for divisor in tensor.rows(0, d_head // 2)]
        if not all(0 < divisor < math.inf for divisor in factors):
            raise InputError(f"{tensor.where} holds NaN, infinity or zero, expected positive divisors")
    scaled = any(divisor != 1 for divisor in factors)
    return settings.number("rope.freq_base", default=10000.0), tuple(factors) if scaled else None


class Common(TypedDict):
    """The fields of ModelConfig that every architecture's metadata name alike."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    n_neurons: int
    n_vocab: int
    n_ctx: int
    tied_head: bool
    qkv_bias: bool
    attn_out_bias: bool
    mlp_bias: bool


def _common(settings: Settings, tensors: Tensors) -> Common:
    if "token_embd.weight" not in tensors or len(tensors["token_embd.weight"].shape) != 2:
        raise InputError(f"{settings.source}: tensor token_embd.weight is missing, expected a matrix")
    d_model = settings.integer("embedding_length")
    n_heads = settings.integer("attention.head_count")
    return {
        "n_layers": settings.integer("block_count"),
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": settings.integer("attention.head_count_kv", default=n_heads),
        "n_neurons": settings.integer("feed_forward_length"),
        "n_vocab": tensors["token_embd.weight"].shape[0],
        "n_ctx": settings.integer("context_length"),
        "tied_head": "output.weight" not in tensors,
        "qkv_bias": "blk.0.attn_q.bias" in tensors or "blk.0.attn_qkv.bias" in tensors,
        "attn_out_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }


def read_llama(settings: Settings, tensors: Tensors) -> ModelConfig:
    settings.only("expert_count", 0)
    settings.only("attention.sliding_window", 0)
    common = _common(settings, tensors)
    d_model, n_heads = common["d_model"], common["n_heads"]
    d_head = settings.integer("attention.key_length", default=d_model // n_heads)
    settings.only("attention.value_length", d_head)
    theta, factors = _rope(settings, d_head, tensors)
    return ModelConfig(
        family="llama",
        **common,
        d_head=d_head,
        norm="rmsnorm",
        norm_eps=settings.number("attention.layer_norm_rms_epsilon"),
        activation="silu",
        gated=True,
        positions="rope",
        rope_theta=theta,
        rope_factors=factors,
    )


def read_gpt2(settings: Settings, tensors: Tensors) -> ModelConfig:
    common = _common(settings, tensors)
    return ModelConfig(
        family="gpt2",
        **common,
        d_head=common["d_model"] // common["n_heads"],
        norm="layernorm",
        norm_eps=settings.number("attention.layer_norm_epsilon"),
        activation="gelu_tanh",
        gated=False,
        positions="learned",
    )
