"""Readers of Hugging Face config files: one function per ``model_type``, from Settings to ModelConfig.

A reader refuses every setting that the forward pass does not implement, so a model that loads is computed as
its config says. Defaults are those of Transformers, since a config leaves out what equals them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minicore.checkpoint.hf_rope import RopeFields, read_rope, rope_fields
from minicore.checkpoint.settings import Settings
from minicore.config import ModelConfig
from minicore.errors import InputError

# Names of activations in configs.
ACTS = {
    **dict.fromkeys(("silu", "swish"), "silu"),
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast"), "gelu_tanh"),
    "gelu_accurate": "gelu_tanh",
    **{name: name for name in ("relu", "relu2", "relu6", "leaky_relu", "quick_gelu", "mish")},
    **{name: name for name in ("tanh", "sigmoid")},
    "linear": "identity",
}
SPARSE_ACTS = ACTS | {"fatrelu": "fatrelu"}


def _head_width(settings: Settings, d_model: int, n_heads: int) -> int:
    if d_model % n_heads and settings.get("head_dim") is None:
        raise InputError(
            f"{settings.source}: the width {d_model} is not a multiple of the {n_heads} attention heads, "
            "expected one, or a head_dim"
        )
    return d_model // n_heads


def _windows(
    settings: Settings, types: Sequence[str] | None, n_layers: int, default: int | None
) -> tuple[int, ...]:
    """Return the sliding windows of the layers whose type is ``sliding_attention``; () if there are none.

    ``types`` is the family's default of ``layer_types``, None if its layers cannot slide.
    """
    known = ("full_attention",) if types is None else ("full_attention", "sliding_attention")
    given = settings.get("layer_types", default=types or ())
    if not isinstance(given, list | tuple) or len(given) not in (0, n_layers):
        raise InputError(
            f"{settings.source}: layer_types is {given!r}, expected one for each of {n_layers} layers"
        )
    for kind in given:
        if kind not in known:
            raise InputError(
                f"{settings.source}: layer_types has {kind!r}, which is not supported; "
                f"expected {' or '.join(known)}"
            )
    if "sliding_attention" not in given:
        return ()
    window = settings.integer("sliding_window", default=default)
    return tuple(window if kind == "sliding_attention" else 0 for kind in given)


def _alternating(n_layers: int, period: int) -> list[str]:
    """Return layer types of which every ``period``-th is full attention."""
    return ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(n_layers)]


def _llama_like(
    settings: Settings,
    *,
    acts: dict[str, str] = ACTS,
    act: str = "silu",
    act_key: str = "hidden_act",
    d_head: int | None = None,
    eps_key: str = "rms_norm_eps",
    eps: float = 1e-6,
    n_ctx: int = 2048,
    tied: bool = False,
    layer_types: Sequence[str] | None = None,
    window: int | None = None,
    rope: RopeFields | None = None,
    theta: float = 10000.0,
    share: float = 1.0,
    **fields: Any,
) -> ModelConfig:
    """Return a config from Llama's keys. Arguments are a family's defaults, ``fields`` what it fixes."""
    d_model, n_heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    d_head = settings.integer("head_dim", default=d_head or _head_width(settings, d_model, n_heads))
    n_layers = settings.integer("num_hidden_layers")
    n_ctx = settings.integer("max_position_embeddings", default=n_ctx)
    activation = settings.one_of(act_key, acts, act)
    if activation == "fatrelu":
        fields["activation_threshold"] = settings.number("hidden_act_param")
    defaults: dict[str, Any] = {
        "family": "llama",
        "n_layers": n_layers,
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": settings.integer("num_key_value_heads", default=n_heads),
        "d_head": d_head,
        "n_neurons": settings.integer("intermediate_size"),
        "n_vocab": settings.integer("vocab_size"),
        "n_ctx": n_ctx,
        "norm": "rmsnorm",
        "norm_eps": settings.number(eps_key, default=eps),
        "activation": activation,
        "gated": True,
        "positions": "rope",
        "tied_head": settings.flag("tie_word_embeddings", tied),
        "windows": _windows(settings, layer_types, n_layers, window),
    }
    rope = read_rope(settings, d_head, n_ctx, theta=theta, share=share) if rope is None else rope
    return ModelConfig(**defaults | dict(rope) | fields).without_wide_windows()


def read_llama(settings: Settings, **fields: Any) -> ModelConfig:
    bias = settings.flag("attention_bias", False)
    mlp_bias = settings.flag("mlp_bias", False)
    return _llama_like(
        settings, acts=SPARSE_ACTS, qkv_bias=bias, attn_out_bias=bias, mlp_bias=mlp_bias, **fields
    )


def read_minicpm(settings: Settings) -> ModelConfig:
    """MiniCPM's scales of embeddings, residual additions and logits (2404.06395, table 7)."""
    settings.only("num_experts", 0)
    n_layers, d_model = settings.integer("num_hidden_layers"), settings.integer("hidden_size")
    return read_llama(
        settings,
        tied=True,
        embed_scale=settings.number("scale_emb", default=1.0),
        residual_scale=settings.number("scale_depth", default=1.0) / n_layers**0.5,
        logit_scale=settings.number("dim_model_base", default=1.0) / d_model,
    )


def _all_slide(settings: Settings, default: int | None = None) -> tuple[Settings, list[str] | None]:
    """Return the settings without layer_types, which these families ignore, and their layers' types."""
    window = settings.values.get("sliding_window", default)
    settings = Settings({**settings.values, "layer_types": None, "sliding_window": window}, settings.source)
    n_layers = settings.integer("num_hidden_layers")
    return settings, None if window is None else ["sliding_attention"] * n_layers


def read_mistral(settings: Settings, **fields: Any) -> ModelConfig:
    settings, types = _all_slide(settings, default=4096)  # a window of null is none
    return _llama_like(settings, layer_types=types, n_ctx=131072, **fields)


def read_bamboo(settings: Settings) -> ModelConfig:
    """Mistral with ReLU on gates and on what they multiply (dReLU, 2406.05955)."""
    settings.only("hidden_act", "relu")
    return read_mistral(settings, act="relu", up_activation="relu")


def _last_layers_slide(settings: Settings) -> list[str] | None:
    """Qwen2's layers: those from max_window_layers on have the window, if it is used."""
    if not settings.flag("use_sliding_window", False):
        return None
    n_full = 0
    if settings.get("max_window_layers") != 0:
        n_full = settings.integer("max_window_layers", default=28)
    n_layers = settings.integer("num_hidden_layers")
    return ["full_attention" if i < n_full else "sliding_attention" for i in range(n_layers)]


def _qwen(settings: Settings, **fields: Any) -> ModelConfig:
    types = _last_layers_slide(settings)
    if types is None:  # Transformers ignores the window then, whatever layer_types says
        settings = Settings({**settings.values, "layer_types": None}, settings.source)
    return _llama_like(settings, layer_types=types, window=4096, n_ctx=32768, **fields)


def read_qwen2(settings: Settings) -> ModelConfig:
    return _qwen(settings, qkv_bias=True)


def read_qwen3(settings: Settings) -> ModelConfig:
    bias = settings.flag("attention_bias", False)
    return _qwen(settings, d_head=128, qk_norm="heads", qkv_bias=bias, attn_out_bias=bias)


def read_phi3(settings: Settings) -> ModelConfig:
    d_model, n_heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    n_ctx = settings.integer("max_position_embeddings", default=4096)
    values = dict(settings.mapping("rope_scaling") or settings.mapping("rope_parameters"))
    for key in ("rope_type", "type"):  # older names of the same scaling
        if values.get(key) in ("su", "yarn"):
            values[key] = "longrope"
    rope = rope_fields(
        Settings(values, settings.source),
        settings.integer("head_dim", default=_head_width(settings, d_model, n_heads)),
        n_ctx,
        theta=settings.number("rope_theta", default=10000.0),
        share=settings.number("partial_rotary_factor", default=1.0),
        original=settings.integer("original_max_position_embeddings", default=4096),
    )
    settings, types = _all_slide(settings)
    return _llama_like(settings, layer_types=types, eps=1e-5, n_ctx=4096, rope=rope)


def read_phi(settings: Settings) -> ModelConfig:
    settings.only("qk_layernorm", False)
    return _llama_like(
        settings, act="gelu_new", eps_key="layer_norm_eps", eps=1e-5, share=0.5, family="phi",
        norm="layernorm", gated=False, block="parallel",
        qkv_bias=True, attn_out_bias=True, mlp_bias=True, head_bias=True,
    )  # fmt: skip


def read_gpt_neox(settings: Settings) -> ModelConfig:
    d_model, n_heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    n_ctx = settings.integer("max_position_embeddings", default=2048)
    rope = read_rope(
        settings, _head_width(settings, d_model, n_heads), n_ctx,
        share=0.25, theta_key="rotary_emb_base", share_key="rotary_pct",
    )  # fmt: skip
    bias = settings.flag("attention_bias", True)
    return _llama_like(
        settings, act="gelu", eps_key="layer_norm_eps", eps=1e-5, rope=rope, family="gpt_neox",
        norm="layernorm", gated=False, n_kv_heads=n_heads,
        block="parallel" if settings.flag("use_parallel_residual", True) else "pre_norm",
        qkv_bias=bias, attn_out_bias=bias, mlp_bias=True,
    )  # fmt: skip


def _gemma(settings: Settings, **fields: Any) -> ModelConfig:
    bias = settings.flag("attention_bias", False)
    settings.only("use_bidirectional_attention", False)
    defaults: dict[str, Any] = {"d_head": 256, "n_ctx": 8192, "tied": True, "act": "gelu_pytorch_tanh"}
    scale = settings.integer("hidden_size") ** 0.5
    return _llama_like(settings, **defaults | fields, embed_scale=scale, qkv_bias=bias, attn_out_bias=bias)


def read_gemma(settings: Settings) -> ModelConfig:
    # "gelu" in the configs of Gemma 1 means its tanh approximation
    return _gemma(settings, acts=ACTS | {"gelu": "gelu_tanh"})


def _cap(settings: Settings, key: str, default: float) -> float:
    """Return a cap; null is none."""
    cap = settings.values.get(key, default)
    return settings.number(key, default=default) if cap else 0.0


def read_gemma2(settings: Settings) -> ModelConfig:
    return _gemma(
        settings, act_key="hidden_activation", block="sandwich",
        layer_types=_alternating(settings.integer("num_hidden_layers"), 2), window=4096,
        score_scale=settings.number("query_pre_attn_scalar", default=256) ** -0.5,
        score_softcap=_cap(settings, "attn_logit_softcapping", 50.0),
        logit_softcap=_cap(settings, "final_logit_softcapping", 30.0),
    )  # fmt: skip


def read_gemma3(settings: Settings) -> ModelConfig:
    settings.only("attn_logit_softcapping")  # Transformers has the key and does not apply it
    n_ctx = settings.integer("max_position_embeddings", default=131072)
    d_head = settings.integer("head_dim", default=256)
    nested = Settings(settings.mapping("rope_parameters"), settings.source)
    local = Settings(nested.mapping("sliding_attention"), settings.source)
    local.only("rope_type", "default")
    globally = nested.mapping("full_attention") | settings.mapping("rope_scaling")
    rope = rope_fields(
        Settings(globally, settings.source), d_head, n_ctx,
        theta=settings.number("rope_theta", default=1e6), share=1.0,
    )  # fmt: skip
    period = settings.integer("sliding_window_pattern", default=6)
    local_theta = settings.number("rope_local_base_freq", default=1e4)
    return _gemma(
        settings, act_key="hidden_activation", block="sandwich", qk_norm="heads", n_ctx=n_ctx, rope=rope,
        rope_local_theta=local.number("rope_theta", default=local_theta),
        layer_types=_alternating(settings.integer("num_hidden_layers"), period), window=4096,
        score_scale=settings.number("query_pre_attn_scalar", default=256) ** -0.5,
        logit_softcap=_cap(settings, "final_logit_softcapping", 0.0),
    )  # fmt: skip


def read_olmo2(settings: Settings) -> ModelConfig:
    bias = settings.flag("attention_bias", False)
    return _llama_like(
        settings, eps=1e-5, block="output_norm", qk_norm="whole", qkv_bias=bias, attn_out_bias=bias
    )


def read_smollm3(settings: Settings) -> ModelConfig:
    n_layers = settings.integer("num_hidden_layers")
    interval = settings.integer("no_rope_layer_interval", default=4)
    default = [int((i + 1) % interval != 0) for i in range(n_layers)]
    rotated = settings.get("no_rope_layers", default=default)
    if not isinstance(rotated, list) or len(rotated) != n_layers or any(r not in (0, 1) for r in rotated):
        raise InputError(f"{settings.source}: no_rope_layers is {rotated!r}, expected 0 or 1 for each layer")
    slides = settings.flag("use_sliding_window", False) and settings.get("sliding_window") is not None
    types = ["sliding_attention" if slides and not rope else "full_attention" for rope in rotated]
    bias, mlp_bias = settings.flag("attention_bias", False), settings.flag("mlp_bias", False)
    return _llama_like(
        settings, n_ctx=32768, tied=True, theta=2e6, layer_types=types,
        nope_layers=tuple(i for i, rope in enumerate(rotated) if not rope),
        qkv_bias=bias, attn_out_bias=bias, mlp_bias=mlp_bias,
    )  # fmt: skip


def read_stablelm(settings: Settings) -> ModelConfig:
    settings.only("qk_layernorm", False)
    return _llama_like(
        settings, eps_key="layer_norm_eps", eps=1e-5, n_ctx=4096, share=0.25, norm="layernorm",
        block="parallel" if settings.flag("use_parallel_residual", False) else "pre_norm",
        qkv_bias=settings.flag("use_qkv_bias", False),
    )  # fmt: skip


def read_nemotron(settings: Settings) -> ModelConfig:
    d_model, n_heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    n_ctx = settings.integer("max_position_embeddings", default=4096)
    d_head = settings.integer("head_dim", "kv_channels", default=d_model // n_heads)
    share = settings.number("rope_percent", "partial_rotary_factor", default=0.5)
    share = settings.number("partial_rotary_factor", default=share)
    bias, mlp_bias = settings.flag("attention_bias", False), settings.flag("mlp_bias", False)
    return _llama_like(
        settings, act="relu2", eps_key="norm_eps", eps=1e-5, d_head=d_head,
        rope=read_rope(settings, d_head, n_ctx, share=share), n_ctx=n_ctx, norm="layernorm", gated=False,
        qkv_bias=bias, attn_out_bias=bias, mlp_bias=mlp_bias,
    )  # fmt: skip


def read_arcee(settings: Settings) -> ModelConfig:
    bias, mlp_bias = settings.flag("attention_bias", False), settings.flag("mlp_bias", False)
    return _llama_like(
        settings, act="relu2", eps=1e-5, n_ctx=4096, gated=False,
        qkv_bias=bias, attn_out_bias=bias, mlp_bias=mlp_bias,
    )  # fmt: skip


def read_falcon(settings: Settings) -> ModelConfig:
    d_model = settings.integer("hidden_size", "n_embed")
    n_heads = settings.integer("num_attention_heads", "n_head")
    n_ctx, d_head = settings.integer("max_position_embeddings", default=2048), d_model // n_heads
    new, parallel = settings.flag("new_decoder_architecture", False), settings.flag("parallel_attn", True)
    n_kv = settings.integer("num_kv_heads", "n_head_kv", default=n_heads)
    if not new:
        n_kv = 1 if settings.flag("multi_query", True) else n_heads
    elif not parallel:
        settings.only("parallel_attn", True)
    bias, alibi = settings.flag("bias", False), settings.flag("alibi", False)
    return ModelConfig(
        family="falcon",
        n_layers=settings.integer("num_hidden_layers", "n_layer"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv,
        d_head=_head_width(settings, d_model, n_heads),
        n_neurons=settings.integer("ffn_hidden_size", default=4 * d_model),
        n_vocab=settings.integer("vocab_size"),
        n_ctx=n_ctx,
        norm="layernorm",
        norm_eps=settings.number("layer_norm_epsilon", default=1e-5),
        activation=settings.one_of("activation", ACTS, "gelu"),
        gated=False,
        positions="alibi" if alibi else "rope",
        block="parallel" if parallel else "pre_norm",
        tied_head=settings.flag("tie_word_embeddings", True),
        qkv_bias=bias,
        attn_out_bias=bias,
        mlp_bias=bias,
        **(RopeFields() if alibi else read_rope(settings, d_head, n_ctx)),
    )


def read_opt(settings: Settings) -> ModelConfig:
    settings.only("layer_norm_elementwise_affine", True)
    d_model, n_heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    width = settings.integer("word_embed_proj_dim", default=d_model)
    bias, before = settings.flag("enable_bias", True), settings.flag("do_layer_norm_before", True)
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
        activation=settings.one_of("activation_function", ACTS, "relu"),
        gated=False,
        positions="learned",
        position_offset=2,
        block="pre_norm" if before else "post_norm",
        final_norm=before and not settings.flag("_remove_final_layer_norm", False),
        d_embed=None if width == d_model else width,
        tied_head=settings.flag("tie_word_embeddings", True),
        qkv_bias=bias,
        attn_out_bias=bias,
        mlp_bias=bias,
    )


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
        activation=settings.one_of("activation_function", ACTS, "gelu_new"),
        gated=False,
        positions="learned",
        tied_head=settings.flag("tie_word_embeddings", True),
        qkv_bias=True,
        attn_out_bias=True,
        mlp_bias=True,
    )
