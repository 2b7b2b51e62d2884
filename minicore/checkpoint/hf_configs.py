"""Readers of Hugging Face config files: one function per ``model_type``, from Settings to ModelConfig.

A reader refuses every setting that the forward pass does not implement, so a model that loads is computed as
its config says.
"""

from __future__ import annotations

import math

from minicore.checkpoint.settings import Settings
from minicore.config import ModelConfig
from minicore.errors import InputError


def _llama3_factors(rope: Settings, d_head: int, theta: float) -> tuple[float, ...]:
    """Return the divisors of the rotary frequencies under Llama 3.1's scaling.

    High frequencies keep their value and low ones are divided by ``factor``. In between, the frequency (not
    the divisor) is interpolated linearly in the number of turns that it makes over the original context.
    """
    factor, low, high = (rope.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = rope.integer("original_max_position_embeddings")
    if not low < high:
        raise InputError(
            f"{rope.source}: low_freq_factor is {low}, expected less than high_freq_factor {high}"
        )
    factors = []
    for i in range(d_head // 2):
        turns = original * theta ** (-2 * i / d_head) / (2 * math.pi)
        kept = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / (kept + (1 - kept) / factor))
    return tuple(factors)


def _rope(settings: Settings, d_head: int) -> tuple[float, tuple[float, ...] | None]:
    """Return rope_theta and the divisors, from rope_parameters or from rope_scaling and rope_theta."""
    values = settings.get("rope_parameters", "rope_scaling", default={})
    if not isinstance(values, dict) or any(isinstance(value, dict) for value in values.values()):
        raise InputError(f"{settings.source}: the rope parameters are {values!r}, expected one flat object")
    rope = Settings({**settings.values, **values}, settings.source)
    rope.only("partial_rotary_factor", 1.0)
    theta = rope.number("rope_theta", default=10000.0)
    kind = values.get("rope_type", values.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, (rope.number("factor"),) * (d_head // 2)
    if kind == "llama3":
        return theta, _llama3_factors(rope, d_head, theta)
    raise InputError(
        f"{settings.source}: the rope type is {kind!r}, which is not supported; "
        "expected default, linear or llama3"
    )


def _llama_like(settings: Settings, **more: bool) -> ModelConfig:
    if "sliding_attention" in (settings.get("layer_types") or ()):
        raise InputError(
            f"{settings.source}: layer_types has sliding_attention, which is not supported; "
            "expected full_attention only"
        )
    d_model, n_heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    d_head = settings.integer("head_dim", default=_head_width(settings, d_model, n_heads))
    theta, factors = _rope(settings, d_head)
    return ModelConfig(
        family="llama",
        n_layers=settings.integer("num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=settings.integer("num_key_value_heads", default=n_heads),
        d_head=d_head,
        n_neurons=settings.integer("intermediate_size"),
        n_vocab=settings.integer("vocab_size"),
        n_ctx=settings.integer("max_position_embeddings", default=2048),
        norm="rmsnorm",
        norm_eps=settings.number("rms_norm_eps", default=1e-6),
        activation=settings.one_of("hidden_act", {"silu": "silu", "swish": "silu"}, "silu"),
        gated=True,
        positions="rope",
        rope_theta=theta,
        rope_factors=factors,
        tied_head=settings.flag("tie_word_embeddings", False),
        **more,
    )


def _head_width(settings: Settings, d_model: int, n_heads: int) -> int:
    if d_model % n_heads and settings.get("head_dim") is None:
        raise InputError(
            f"{settings.source}: the width {d_model} is not a multiple of the {n_heads} attention heads, "
            "expected one, or a head_dim"
        )
    return d_model // n_heads


def read_llama(settings: Settings) -> ModelConfig:
    bias = settings.flag("attention_bias", False)
    mlp_bias = settings.flag("mlp_bias", False)
    return _llama_like(settings, qkv_bias=bias, attn_out_bias=bias, mlp_bias=mlp_bias)


def _refuse_window(settings: Settings) -> None:
    """Refuse a sliding window that is shorter than the context."""
    window = settings.get("sliding_window")
    if window is not None and settings.integer("sliding_window") < settings.integer(
        "max_position_embeddings"
    ):
        raise InputError(
            f"{settings.source}: sliding_window is {window!r}, which is not supported; "
            "expected null or the whole context"
        )


def read_mistral(settings: Settings) -> ModelConfig:
    _refuse_window(settings)
    return _llama_like(settings)


def read_qwen2(settings: Settings) -> ModelConfig:
    if settings.flag("use_sliding_window", False):
        _refuse_window(settings)
    return _llama_like(settings, qkv_bias=True)


def read_opt(settings: Settings) -> ModelConfig:
    settings.only("do_layer_norm_before", True)
    settings.only("_remove_final_layer_norm", False)
    settings.only("layer_norm_elementwise_affine", True)
    d_model, n_heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    settings.only("word_embed_proj_dim", d_model)
    bias = settings.flag("enable_bias", True)
    return ModelConfig(
        family="opt",
        n_layers=settings.integer("num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=_head_width(settings, d_model, n_heads),
        n_neurons=settings.integer("ffn_dim"),
        n_vocab=settings.integer("vocab_size"),
        n_ctx=settings.integer("max_position_embeddings"),
        norm="layernorm",
        norm_eps=1e-5,  # PyTorch's default; OPT's config has no key for it
        activation=settings.one_of("activation_function", {"relu": "relu", "gelu": "gelu"}, "relu"),
        gated=False,
        positions="learned",
        position_offset=2,
        tied_head=settings.flag("tie_word_embeddings", True),
        qkv_bias=bias,
        attn_out_bias=bias,
        mlp_bias=bias,
    )


GPT2_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}


def read_gpt2(settings: Settings) -> ModelConfig:
    settings.only("scale_attn_weights", True)
    for key in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"):
        settings.only(key, False)
    d_model, n_heads = settings.integer("n_embd"), settings.integer("n_head")
    return ModelConfig(
        family="gpt2",
        n_layers=settings.integer("n_layer"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=_head_width(settings, d_model, n_heads),
        n_neurons=settings.integer("n_inner", default=4 * d_model),
        n_vocab=settings.integer("vocab_size"),
        n_ctx=settings.integer("n_positions", "n_ctx"),
        norm="layernorm",
        norm_eps=settings.number("layer_norm_epsilon", default=1e-5),
        activation=settings.one_of("activation_function", GPT2_ACTIVATIONS, "gelu_new"),
        gated=False,
        positions="learned",
        tied_head=settings.flag("tie_word_embeddings", True),
        qkv_bias=True,
        attn_out_bias=True,
        mlp_bias=True,
    )
