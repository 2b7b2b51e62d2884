"""Readers of GGUF metadata: one function per ``general.architecture``, from Settings to ModelConfig.

A reader refuses every setting that the forward pass does not implement, so a model that loads is computed as
its metadata say. What metadata leave to the architecture is as in llama.cpp, with the exceptions that
docs/models.md lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minicore.checkpoint.gguf_rope import read_rope
from minicore.checkpoint.settings import Settings
from minicore.checkpoint.tensors import Tensor
from minicore.config import ModelConfig
from minicore.errors import InputError

Tensors = Mapping[str, Tensor]

WINDOW = "attention.sliding_window"
# Keys that change the computation, and the values that do not, among them those that llama.cpp writes for any
# architecture when it saves a model. A reader names the keys that it reads.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "leading_dense_block_count": (0,),
    "num_loops": (0, 1),
    "hidden_activation": (),
    "attention.causal": (True,),
    "attention.scale": (0.0,),
    "attention.output_scale": (0.0, 1.0),
    "attention.value_scale": (0.0, 1.0),
    "attention.temperature_length": (0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.rope_pattern": (1,),
    "attn_logit_softcapping": (0.0, 50.0),
    "final_logit_softcapping": (0.0, 30.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
    "rope.dimension_sections": ([0, 0, 0, 0],),
}


def _decoder(
    settings: Settings,
    tensors: Tensors,
    *,
    reads: tuple[str, ...] = (),
    theta: float = 10000.0,
    **fields: Any,
) -> ModelConfig:
    """Return a config from the keys that architectures share, and the tensors that a file has.

    ``reads`` are the keys, WINDOW or of NEUTRAL, that the caller has read, ``theta`` is the default base of
    the rotary frequencies, and ``fields`` are what the architecture fixes. The defaults are Llama's.
    """
    if "token_embd.weight" not in tensors or len(tensors["token_embd.weight"].shape) != 2:
        raise InputError(f"{settings.source}: tensor token_embd.weight is missing, expected a matrix")
    n_heads, n_ctx = settings.integer("attention.head_count"), settings.integer("context_length")
    d_head = _d_head(settings)
    for key in ("attention.value_length", "attention.key_length_swa", "attention.value_length_swa"):
        settings.only(key, d_head)
    for key, values in NEUTRAL.items():
        if key not in reads:
            settings.only(key, *values)
    if WINDOW not in reads:
        _no_window(settings, n_ctx)
    norm = fields.get("norm", "rmsnorm")
    defaults: dict[str, Any] = {
        "family": "llama",
        "n_layers": settings.integer("block_count"),
        "d_model": settings.integer("embedding_length"),
        "n_heads": n_heads,
        "n_kv_heads": settings.integer("attention.head_count_kv", default=n_heads),
        "d_head": d_head,
        "n_neurons": settings.integer("feed_forward_length"),
        "n_vocab": tensors["token_embd.weight"].shape[0],
        "n_ctx": n_ctx,
        "norm": norm,
        "norm_eps": settings.number(f"attention.layer_norm_{'rms_' if norm == 'rmsnorm' else ''}epsilon"),
        "activation": "silu",
        "gated": True,
        "positions": "rope",
        "tied_head": "output.weight" not in tensors,
        "qkv_bias": "blk.0.attn_q.bias" in tensors or "blk.0.attn_qkv.bias" in tensors,
        "attn_out_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "head_bias": "output.bias" in tensors,
    }
    if fields.get("positions", "rope") == "rope":
        defaults |= read_rope(settings, tensors, d_head, n_ctx, theta)
    config = ModelConfig(**defaults | fields).without_wide_windows()
    if config.windows:
        settings.only("rope.freq_base_swa", config.rope_local_theta or config.rope_theta)
        settings.only("rope.dimension_count_swa", config.n_rotated)
    return config


def _no_window(settings: Settings, n_ctx: int) -> None:
    """Refuse a sliding window that hides something."""
    window = settings.get(WINDOW)
    if not (isinstance(window, int) and window >= n_ctx):
        settings.only(WINDOW, 0)


def _d_head(settings: Settings) -> int:
    usual = settings.integer("embedding_length") // settings.integer("attention.head_count")
    return settings.integer("attention.key_length", default=usual)


def read_llama(settings: Settings, tensors: Tensors, **fields: Any) -> ModelConfig:
    """Llama, with rows of queries and keys in an order that suits whole heads only."""
    settings.only("rope.dimension_count", _d_head(settings))
    return _decoder(settings, tensors, **fields)


def read_arcee(settings: Settings, tensors: Tensors) -> ModelConfig:
    return read_llama(settings, tensors, family="arcee", activation="relu2", gated=False)


def read_smollm3(settings: Settings, tensors: Tensors) -> ModelConfig:
    """Every fourth layer has no rotary positions, which no key says."""
    nope = tuple(range(3, settings.integer("block_count"), 4))
    return read_llama(settings, tensors, family="smollm3", nope_layers=nope)


def read_minicpm(settings: Settings, tensors: Tensors) -> ModelConfig:
    """Files without scales are of the models whose scales llama.cpp has as constants."""
    if "blk.0.attn_q.bias" in tensors:
        raise InputError(
            f"{settings.source}: tensor blk.0.attn_q.bias is not supported for minicpm, whose converter "
            "does not reorder it like its matrix; expected it absent"
        )
    n_layers, d_model = settings.integer("block_count"), settings.integer("embedding_length")
    return read_llama(
        settings, tensors, family="minicpm", reads=("embedding_scale", "residual_scale", "logit_scale"),
        embed_scale=settings.number("embedding_scale", default=12.0),
        residual_scale=settings.number("residual_scale", default=1.4 / n_layers**0.5),
        logit_scale=1 / settings.number("logit_scale", default=d_model / 256),
    )  # fmt: skip


def read_qwen2(settings: Settings, tensors: Tensors) -> ModelConfig:
    return _decoder(settings, tensors)


def read_qwen3(settings: Settings, tensors: Tensors) -> ModelConfig:
    return _decoder(settings, tensors, family="qwen3", qk_norm="heads")


def read_phi3(settings: Settings, tensors: Tensors) -> ModelConfig:
    """Every layer has the window, as in Transformers; llama.cpp ignores it."""
    windows = _windows(settings, period=0)
    return _decoder(settings, tensors, family="phi3", reads=(WINDOW,), windows=windows)


def read_phi2(settings: Settings, tensors: Tensors) -> ModelConfig:
    return _decoder(
        settings,
        tensors,
        family="phi",
        norm="layernorm",
        activation="gelu_tanh",
        gated=False,
        block="parallel",
    )


def read_gptneox(settings: Settings, tensors: Tensors) -> ModelConfig:
    """The activation is Transformers' GELU; llama.cpp computes its tanh approximation."""
    block = "parallel" if settings.flag("use_parallel_residual", True) else "pre_norm"
    return _decoder(
        settings, tensors, family="gpt_neox", norm="layernorm", activation="gelu", gated=False, block=block
    )


def read_falcon(settings: Settings, tensors: Tensors) -> ModelConfig:
    settings.only("tensor_data_layout", "jploski")  # all queries, all keys, all values
    return _decoder(
        settings, tensors, family="falcon", norm="layernorm", activation="gelu", gated=False, block="parallel"
    )


def read_stablelm(settings: Settings, tensors: Tensors) -> ModelConfig:
    """Blocks without a norm of the FFN are parallel, whatever the metadata say, as in llama.cpp."""
    if "blk.0.attn_q_norm.weight" in tensors:
        raise InputError(
            f"{settings.source}: has blk.0.attn_q_norm.weight, norms of each head's queries, which are not "
            "supported; expected a StableLM without them"
        )
    block = "pre_norm" if "blk.0.ffn_norm.weight" in tensors else "parallel"
    return _decoder(settings, tensors, family="stablelm", norm="layernorm", block=block)


def read_nemotron(settings: Settings, tensors: Tensors) -> ModelConfig:
    return _decoder(settings, tensors, family="nemotron", norm="layernorm", activation="relu2", gated=False)


def read_gpt2(settings: Settings, tensors: Tensors) -> ModelConfig:
    return _decoder(
        settings, tensors, family="gpt2", norm="layernorm", activation="gelu_tanh", gated=False,
        positions="learned",
    )  # fmt: skip


def _windows(settings: Settings, period: int, default: int = 0) -> tuple[int, ...]:
    """Return each layer's window, () if there is none.

    Without a key that says it, all layers but every ``period``-th have one; a period of 0 is all layers.
    """
    n_layers = settings.integer("block_count")
    if settings.get(WINDOW, default=default) == 0:
        return ()
    window = settings.integer(WINDOW, default=default)
    slides = settings.get("attention.sliding_window_pattern", default=period)
    if type(slides) is int and slides >= 0:
        slides = [slides == 0 or (i + 1) % slides != 0 for i in range(n_layers)]
    if not isinstance(slides, list) or len(slides) != n_layers or not set(slides) <= {0, 1}:
        raise InputError(
            f"{settings.source}: {settings.prefix}attention.sliding_window_pattern is {slides!r}, expected a "
            f"period or true or false for each of {n_layers} layers"
        )
    return tuple(window if slide else 0 for slide in slides)


def _cap(settings: Settings, key: str, default: float) -> float:
    """Return a softcap; 0 is none."""
    return 0.0 if settings.get(key, default=default) == 0 else settings.number(key, default=default)


def _gemma(settings: Settings, tensors: Tensors, **fields: Any) -> ModelConfig:
    scale = settings.integer("embedding_length") ** 0.5
    return _decoder(settings, tensors, activation="gelu_tanh", embed_scale=scale, **fields)


def read_gemma(settings: Settings, tensors: Tensors) -> ModelConfig:
    return _gemma(settings, tensors, family="gemma")


def _score_scale(settings: Settings, n_layers_of_27b: int) -> float:
    """Return Gemma's scale of scores. That of the 27B model differs, and llama.cpp knows it by its depth."""
    if settings.get("attention.scale", default=0.0) != 0:
        return settings.number("attention.scale")
    width = settings.integer("embedding_length") // settings.integer("attention.head_count")
    return float((width if settings.integer("block_count") == n_layers_of_27b else _d_head(settings)) ** -0.5)


def read_gemma2(settings: Settings, tensors: Tensors) -> ModelConfig:
    return _gemma(
        settings, tensors, family="gemma2", block="sandwich",
        reads=(WINDOW, "attention.scale", "attn_logit_softcapping", "final_logit_softcapping"),
        windows=_windows(settings, 2, default=4096), score_scale=_score_scale(settings, 46),
        score_softcap=_cap(settings, "attn_logit_softcapping", 50.0),
        logit_softcap=_cap(settings, "final_logit_softcapping", 30.0),
    )  # fmt: skip


def read_gemma3(settings: Settings, tensors: Tensors) -> ModelConfig:
    return _gemma(
        settings, tensors, family="gemma3_text", block="sandwich", qk_norm="heads",
        reads=(WINDOW, "attention.scale", "final_logit_softcapping"),
        windows=_windows(settings, 6), score_scale=_score_scale(settings, 62),
        theta=1e6, rope_local_theta=settings.number("rope.freq_base_swa", default=1e4),
        logit_softcap=_cap(settings, "final_logit_softcapping", 0.0),
    )  # fmt: skip


def read_olmo2(settings: Settings, tensors: Tensors) -> ModelConfig:
    """OLMo 2; OLMo 3 is the same with windows, in whose layers rope is not scaled."""
    local: dict[str, Any] = {}
    if windows := _windows(settings, 4):
        settings.only("rope.scaling.type", "none", "linear")  # an attention factor would be everywhere
        settings.only("rope.scaling.attn_factor", 1.0)
        theta = settings.number("rope.freq_base_swa", "rope.freq_base", default=10000.0)
        local = {"windows": windows, "rope_local_theta": theta}
    return _decoder(
        settings, tensors, family="olmo2", block="output_norm", qk_norm="whole",
        reads=(WINDOW,), **local,
    )  # fmt: skip
