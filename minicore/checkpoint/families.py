"""The families of models, as data: what their files call things and how their configs are read.

A family is a name map and a config reader. Hugging Face directories are known by the ``model_type`` of their
config.json, GGUF files by ``general.architecture``. Whatever a config asks for that the forward pass does
not do is refused here, by name: a model that loads is computed as it was meant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicore.checkpoint.tensors import Place as P
from minicore.checkpoint.tensors import Tensor
from minicore.config import ModelConfig
from minicore.errors import InputError

Tensors = Mapping[str, Tensor]


class Settings:
    """A config's keys, read with a complaint that names the file, the key and what was expected."""

    def __init__(self, values: Mapping[str, Any], source: Path, prefix: str = "") -> None:
        self.values, self.source, self.prefix = values, source, prefix

    def get(self, *keys: str, default: Any = None) -> Any:
        """Return the first key that is there and not null."""
        found = (self.values.get(self.prefix + key) for key in keys)
        return next((value for value in found if value is not None), default)

    def _number(self, kinds: tuple[type, ...], what: str, keys: tuple[str, ...], default: Any) -> Any:
        value = self.get(*keys, default=default)
        if type(value) not in kinds or not 0 < value < math.inf:
            told = "is missing" if value is None else f"is {value!r}"
            raise InputError(f"{self.source}: {self.prefix}{keys[0]} {told}, expected {what}")
        return value

    def integer(self, *keys: str, default: int | None = None) -> int:
        return int(self._number((int,), "a positive integer", keys, default))

    def number(self, *keys: str, default: float | None = None) -> float:
        return float(self._number((int, float), "a positive number", keys, default))

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default=default)
        if not isinstance(value, bool):
            raise InputError(f"{self.source}: {self.prefix}{key} is {value!r}, expected true or false")
        return value

    def only(self, key: str, *supported: Any) -> None:
        """Refuse any value but those that the forward pass computes; null and absent are fine."""
        value = self.get(key)
        if value is not None and value not in supported:
            expected = " or ".join(map(str, supported)) if supported else "none"
            raise InputError(
                f"{self.source}: {self.prefix}{key} is {value!r}, which is not supported; expected {expected}"
            )

    def one_of(self, key: str, table: Mapping[str, str], default: str) -> str:
        value = self.get(key, default=default)
        if not isinstance(value, str) or value not in table:
            raise InputError(
                f"{self.source}: {key} is {value!r}, which is not supported; expected {' or '.join(table)}"
            )
        return table[value]


# --- rotary positions ---------------------------------------------------------------------------------


def _llama3_factors(rope: Settings, d_head: int, theta: float) -> tuple[float, ...]:
    """Return what Llama 3.1 divides its rotary frequencies by.

    High frequencies stay, low ones are divided by ``factor``, and between the two the frequency (not the
    divisor) is interpolated in the number of turns that it makes over the original context.
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
    """Return theta and the divisors from either spelling: rope_parameters, or rope_scaling and rope_theta."""
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


# --- config readers: config.json ------------------------------------------------------------------------


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


def _llama(settings: Settings) -> ModelConfig:
    bias = settings.flag("attention_bias", False)
    mlp_bias = settings.flag("mlp_bias", False)
    return _llama_like(settings, qkv_bias=bias, attn_out_bias=bias, mlp_bias=mlp_bias)


def _refuse_window(settings: Settings) -> None:
    """Refuse a sliding window that would be shorter than the context."""
    window = settings.get("sliding_window")
    if window is not None and settings.integer("sliding_window") < settings.integer(
        "max_position_embeddings"
    ):
        raise InputError(
            f"{settings.source}: sliding_window is {window!r}, which is not supported; "
            "expected null or the whole context"
        )


def _mistral(settings: Settings) -> ModelConfig:
    _refuse_window(settings)
    return _llama_like(settings)


def _qwen2(settings: Settings) -> ModelConfig:
    if settings.flag("use_sliding_window", False):
        _refuse_window(settings)
    return _llama_like(settings, qkv_bias=True)


def _opt(settings: Settings) -> ModelConfig:
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
        norm_eps=1e-5,  # PyTorch's default: OPT's config has no key for it
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


def _gpt2(settings: Settings) -> ModelConfig:
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


# --- config readers: GGUF metadata ----------------------------------------------------------------------


def _gguf_rope(settings: Settings, d_head: int, tensors: Tensors) -> tuple[float, tuple[float, ...] | None]:
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


def _gguf_common(settings: Settings, tensors: Tensors) -> dict[str, Any]:
    """Return the fields that every architecture's metadata spell alike."""
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


def _gguf_llama(settings: Settings, tensors: Tensors) -> ModelConfig:
    settings.only("expert_count", 0)
    settings.only("attention.sliding_window", 0)
    common = _gguf_common(settings, tensors)
    d_model, n_heads = common["d_model"], common["n_heads"]
    d_head = settings.integer("attention.key_length", default=d_model // n_heads)
    settings.only("attention.value_length", d_head)
    theta, factors = _gguf_rope(settings, d_head, tensors)
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


def _gguf_gpt2(settings: Settings, tensors: Tensors) -> ModelConfig:
    common = _gguf_common(settings, tensors)
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


# --- name maps ------------------------------------------------------------------------------------------

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

# GPT-2's Conv1D keeps (in, out): all but w_out, which is kept so here as well, are transposed.
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

# llama.cpp rotates neighbouring pairs for this one architecture and reorders its query and key rows to suit.
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


# --- the tables -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """How a ``model_type`` of Hugging Face is read.

    Attributes
    ----------
    config : callable
        Settings -> ModelConfig.
    names : dict
        Parameter -> place, names without their prefix.
    prefixes : tuple of str
        What may stand in front of the names; the output head never has one.
    ignored : str
        Regular expression for buffers that old files carry and that are computed here.
    """

    config: Callable[[Settings], ModelConfig]
    names: Names
    prefixes: tuple[str, ...]
    ignored: str = r"(?!)"


@dataclass(frozen=True)
class GGUFFamily:
    """How an architecture of GGUF is read; ``rope_freqs.weight`` is the config reader's."""

    config: Callable[[Settings, Tensors], ModelConfig]
    names: Names


_LLAMA_PREFIXES, _LLAMA_BUFFERS = ("model.", ""), r"rotary_emb\.inv_freq$"

FAMILIES = {
    "llama": Family(_llama, LLAMA, _LLAMA_PREFIXES, _LLAMA_BUFFERS),
    "mistral": Family(_mistral, LLAMA, _LLAMA_PREFIXES, _LLAMA_BUFFERS),
    "qwen2": Family(_qwen2, LLAMA, _LLAMA_PREFIXES, _LLAMA_BUFFERS),
    "opt": Family(_opt, OPT, ("model.decoder.", "decoder.")),
    "gpt2": Family(_gpt2, GPT2, ("transformer.", ""), r"(^|\.)h\.\d+\.attn\.(masked_)?bias$"),
}

GGUF_FAMILIES = {
    "llama": GGUFFamily(_gguf_llama, GGUF_LLAMA),
    "qwen2": GGUFFamily(_gguf_llama, GGUF_QWEN2),
    "gpt2": GGUFFamily(_gguf_gpt2, GGUF_GPT2),
}
GGUF_IGNORED = r"^rope_freqs\.weight$"


def _either(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"


def _config(source: Path, n_tensors: int, reader: Callable[[], ModelConfig]) -> ModelConfig:
    """Run a reader; what ModelConfig itself refuses gets the file's name."""
    try:
        config = reader()
    except InputError as error:
        if str(error).startswith("config: "):
            raise InputError(f"{source}: {str(error).removeprefix('config: ')}") from error
        raise
    if config.n_layers > n_tensors:  # before every parameter's shape is written down
        raise InputError(
            f"{source}: has {config.n_layers} layers, expected no more than the {n_tensors} tensors"
        )
    return config


def of_directory(
    values: Mapping[str, Any], source: Path, tensors: Iterable[str]
) -> tuple[Family, ModelConfig, str]:
    """Return the family, the config and the prefix of names for a Hugging Face config."""
    settings = Settings(values, source)
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(f"{source}: the family (model_type) is {kind!r}, expected {_either(FAMILIES)}")
    settings.only("quantization_config")
    family = FAMILIES[kind]
    embed, present = family.names["embed"].name, set(tensors)
    prefix = next((p for p in family.prefixes if p + embed in present), family.prefixes[0])
    return family, _config(source, len(present), lambda: family.config(settings)), prefix


def of_gguf(values: Mapping[str, Any], source: Path, tensors: Tensors) -> tuple[GGUFFamily, ModelConfig]:
    """Return the family and the config for the metadata of a GGUF file."""
    kind = values.get("general.architecture")
    if not isinstance(kind, str) or kind not in GGUF_FAMILIES:
        raise InputError(f"{source}: general.architecture is {kind!r}, expected {_either(GGUF_FAMILIES)}")
    family = GGUF_FAMILIES[kind]
    settings = Settings(values, source, prefix=f"{kind}.")
    return family, _config(source, len(tensors), lambda: family.config(settings, tensors))
