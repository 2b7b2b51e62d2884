"""Readers of GGUF metadata: one function per ``general.architecture``, from Settings to ModelConfig.

A reader refuses every setting that the forward pass does not implement, so a model that loads is computed as
its metadata say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypedDict

from minicore.checkpoint.hf_rope import RopeFields, rope_fields
from minicore.checkpoint.settings import Settings
from minicore.checkpoint.tensors import Tensor
from minicore.config import ModelConfig
from minicore.errors import InputError

Tensors = Mapping[str, Tensor]


def _rope(
    settings: Settings, d_head: int, tensors: Tensors, theta: float = 10000.0, partial: bool = True
) -> RopeFields:
    """Return the rotary positions; ``partial`` says whether only the first dimensions may be rotated."""
    settings.only("rope.scaling.type", "none", "linear", "yarn", "longrope")
    if not partial:
        settings.only("rope.dimension_count", d_head)
    n_rotated = settings.integer("rope.dimension_count", default=d_head)
    kind = settings.get("rope.scaling.type")
    linear = settings.number("rope.scale_linear", default=1.0)
    fields: RopeFields = {"rope_theta": settings.number("rope.freq_base", default=theta)}
    if n_rotated != d_head:
        fields["d_rope"] = n_rotated
    factors = [settings.number("rope.scaling.factor", default=linear) if kind == "linear" else linear]
    factors *= n_rotated // 2
    scale = settings.number("rope.scaling.attn_factor", default=1.0)
    if kind == "yarn":
        yarn = _yarn(settings, n_rotated, fields["rope_theta"])
        factors, scale = list(yarn["rope_factors"] or factors), scale * yarn["rope_scale"]
    if "rope_freqs.weight" in tensors:
        divisors = _divisors(tensors["rope_freqs.weight"], n_rotated)
        factors = [factor * divisor for factor, divisor in zip(factors, divisors, strict=True)]
    if "rope_factors_short.weight" in tensors and "rope_factors_long.weight" in tensors:
        factors = _divisors(tensors["rope_factors_short.weight"], n_rotated)
        fields["rope_long_factors"] = tuple(_divisors(tensors["rope_factors_long.weight"], n_rotated))
        fields["rope_long_after"] = settings.integer("rope.scaling.original_context_length")
    if "rope_long_factors" in fields or any(divisor != 1 for divisor in factors):
        fields["rope_factors"] = tuple(factors)
    if scale != 1:
        fields["rope_scale"] = scale
    return fields


def _yarn(settings: Settings, n_rotated: int, theta: float) -> RopeFields:
    """Return YaRN's divisors and attention factor, as a Hugging Face config with the same values has them."""
    n_ctx = settings.integer("context_length")
    values = {"rope_type": "yarn", "factor": settings.number("rope.scaling.factor")}
    values["original_max_position_embeddings"] = settings.integer(
        "rope.scaling.original_context_length", default=n_ctx
    )
    for theirs, ours in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if (value := settings.get(f"rope.scaling.{ours}")) is not None:
            values[theirs] = value
    return rope_fields(Settings(values, settings.source), n_rotated, n_ctx, theta=theta, share=1.0)


def _divisors(tensor: Tensor, n_rotated: int) -> list[float]:
    if tensor.shape != (n_rotated // 2,):
        raise InputError(f"{tensor.where} has shape {tensor.shape}, expected {(n_rotated // 2,)}")
    divisors = [float(divisor) for divisor in tensor.rows(0, n_rotated // 2)]
    if not all(0 < divisor < math.inf for divisor in divisors):
        raise InputError(f"{tensor.where} holds NaN, infinity or zero, expected positive divisors")
    return divisors


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


def _read(
    settings: Settings,
    tensors: Tensors,
    *,
    partial: bool = True,
    theta: float = 10000.0,
    window: bool = False,
    **fields: Any,
) -> ModelConfig:
    """Return a config from the keys that most architectures share; ``fields`` are what one of them fixes.

    ``partial`` says whether part of a head may be rotated, ``theta`` is the default base of the rotation, and
    ``window`` says that the caller reads the sliding window.
    """
    settings.only("expert_count", 0)
    if not window:
        settings.only("attention.sliding_window", 0)
    common = _common(settings, tensors)
    d_head = _d_head(settings)
    settings.only("attention.value_length", d_head)
    rms = fields.get("norm", "rmsnorm") == "rmsnorm"
    defaults: dict[str, Any] = {
        "family": "llama",
        **common,
        "d_head": d_head,
        "norm": "rmsnorm",
        "norm_eps": settings.number(f"attention.layer_norm_{'rms_' if rms else ''}epsilon"),
        "activation": "silu",
        "gated": True,
        "positions": "rope",
        **_rope(settings, d_head, tensors, theta, partial),
    }
    return ModelConfig(**defaults | fields)


def _d_head(settings: Settings) -> int:
    usual = settings.integer("embedding_length") // settings.integer("attention.head_count")
    return settings.integer("attention.key_length", default=usual)


def read_llama(settings: Settings, tensors: Tensors) -> ModelConfig:
    return _read(settings, tensors, partial=False)


def read_qwen2(settings: Settings, tensors: Tensors) -> ModelConfig:
    return _read(settings, tensors)


def read_qwen3(settings: Settings, tensors: Tensors) -> ModelConfig:
    return _read(settings, tensors, qk_norm="heads")


def read_smollm3(settings: Settings, tensors: Tensors) -> ModelConfig:
    """Every fourth layer has no rotary positions, which no key says."""
    nope = tuple(range(3, settings.integer("block_count"), 4))
    return _read(settings, tensors, partial=False, nope_layers=nope)


def read_arcee(settings: Settings, tensors: Tensors) -> ModelConfig:
    return _read(settings, tensors, partial=False, activation="relu2", gated=False)


def read_minicpm(settings: Settings, tensors: Tensors) -> ModelConfig:
    """Files without scales are of the models whose scales llama.cpp has as constants."""
    n_layers, d_model = settings.integer("block_count"), settings.integer("embedding_length")
    return _read(
        settings,
        tensors,
        partial=False,
        embed_scale=settings.number("embedding_scale", default=12.0),
        residual_scale=settings.number("residual_scale", default=1.4 / n_layers**0.5),
        logit_scale=1 / settings.number("logit_scale", default=d_model / 256),
    )


def _gemma(settings: Settings, tensors: Tensors, **fields: Any) -> ModelConfig:
    scale = settings.integer("embedding_length") ** 0.5
    return _read(settings, tensors, activation="gelu_tanh", embed_scale=scale, **fields)


def read_gemma(settings: Settings, tensors: Tensors) -> ModelConfig:
    return _gemma(settings, tensors)


def _windows(settings: Settings, period: int, window: int) -> tuple[int, ...]:
    """Return each layer's sliding window. All but every ``period``-th layer have one, unless a key says."""
    pattern = settings.get("attention.sliding_window_pattern", default=period)
    n_layers = settings.integer("block_count")
    if type(pattern) is int and pattern > 0:
        pattern = [(i + 1) % pattern != 0 for i in range(n_layers)]
    if not isinstance(pattern, list) or len(pattern) != n_layers:
        raise InputError(
            f"{settings.source}: {settings.prefix}attention.sliding_window_pattern is {pattern!r}, expected "
            f"a period or one value for each of {n_layers} layers"
        )
    window = settings.integer("attention.sliding_window", default=window)
    return tuple(window if slides else 0 for slides in pattern)


def _score_scale(settings: Settings, n_layers_of_27b: int) -> float:
    """Return Gemma's scale of scores. That of the 27B model differs, and llama.cpp knows it by its depth."""
    width = settings.integer("embedding_length") // settings.integer("attention.head_count")
    return float((width if settings.integer("block_count") == n_layers_of_27b else _d_head(settings)) ** -0.5)


def read_gemma2(settings: Settings, tensors: Tensors) -> ModelConfig:
    return _gemma(
        settings,
        tensors,
        window=True,
        block="sandwich",
        windows=_windows(settings, 2, 4096),
        score_scale=_score_scale(settings, 46),
        score_softcap=settings.number("attn_logit_softcapping", default=50.0),
        logit_softcap=settings.number("final_logit_softcapping", default=30.0),
    )


def read_gemma3(settings: Settings, tensors: Tensors) -> ModelConfig:
    settings.only("final_logit_softcapping")
    return _gemma(
        settings,
        tensors,
        window=True,
        theta=1e6,
        block="sandwich",
        qk_norm="heads",
        windows=_windows(settings, 6, 4096),
        score_scale=_score_scale(settings, 62),
        rope_local_theta=settings.number("rope.freq_base_swa", default=10000.0),
    )


def read_olmo2(settings: Settings, tensors: Tensors) -> ModelConfig:
    return _read(settings, tensors, block="output_norm", qk_norm="whole")


def read_phi3(settings: Settings, tensors: Tensors) -> ModelConfig:
    window = settings.get("attention.sliding_window", default=0)
    slides = (
        (settings.integer("attention.sliding_window"),) * settings.integer("block_count") if window else ()
    )
    return _read(settings, tensors, window=True, windows=slides)


def _layer_norm(settings: Settings, tensors: Tensors, **fields: Any) -> ModelConfig:
    return _read(settings, tensors, norm="layernorm", **fields)


def read_phi2(settings: Settings, tensors: Tensors) -> ModelConfig:
    return _layer_norm(
        settings,
        tensors,
        family="phi",
        activation="gelu_tanh",
        gated=False,
        block="parallel",
        head_bias="output.bias" in tensors,
    )


def read_gptneox(settings: Settings, tensors: Tensors) -> ModelConfig:
    block = "parallel" if settings.flag("use_parallel_residual", True) else "pre_norm"
    return _layer_norm(settings, tensors, family="gpt_neox", activation="gelu", gated=False, block=block)


def read_stablelm(settings: Settings, tensors: Tensors) -> ModelConfig:
    if "blk.0.attn_q_norm.weight" in tensors:
        raise InputError(
            f"{settings.source}: has blk.0.attn_q_norm.weight, norms of each head's queries, which are not "
            "supported; expected a StableLM without them"
        )
    block = "pre_norm" if "blk.0.ffn_norm.weight" in tensors else "parallel"
    return _layer_norm(settings, tensors, block=block)


def read_nemotron(settings: Settings, tensors: Tensors) -> ModelConfig:
    return _layer_norm(settings, tensors, activation="relu2", gated=False)


def read_falcon(settings: Settings, tensors: Tensors) -> ModelConfig:
    return _layer_norm(settings, tensors, family="falcon", activation="gelu", gated=False, block="parallel")


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
