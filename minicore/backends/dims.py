"""The ModelConfig fields that compiled kernels use, on the CPU and on a GPU."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from minicore.config import BLOCKS, QK_NORMS, ModelConfig
from minicore.ops import Scoring

ACTIVATION_CODES = {
    name: code
    for code, name in enumerate(
        ("relu", "silu", "gelu_tanh", "gelu", "relu2", "fatrelu", "quick_gelu")
        + ("relu6", "leaky_relu", "tanh", "sigmoid", "mish", "identity")
    )
}
RELU, SILU, GELU_TANH, GELU, RELU2, FATRELU, QUICK_GELU, RELU6, LEAKY_RELU, TANH, SIGMOID, MISH, IDENTITY = (
    range(13)
)

BLOCK_CODES = {name: code for code, name in enumerate(BLOCKS)}
PRE_NORM, PARALLEL, SANDWICH, OUTPUT_NORM, POST_NORM = range(5)
QK_NORM_CODES = {name: code for code, name in enumerate(QK_NORMS)}
NO_QK_NORM, QK_HEADS, QK_WHOLE = range(3)


class Dims(NamedTuple):
    """A model's shape and the options of its family, as CPU kernels take them."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    n_vocab: int
    n_positions: int  # rows of the position embedding
    position_offset: int
    layer_norm: bool  # else RMSNorm
    eps: float
    activation: int
    gated: bool
    score_scale: np.float32
    activation_threshold: np.float32


def constants(cfg: ModelConfig) -> dict[str, Any]:
    """Return the fields of :class:`Dims` that the GPU kernels are compiled with."""
    return {
        "n_layers": cfg.n_layers,
        "d_model": cfg.d_model,
        "n_heads": cfg.n_heads,
        "n_kv_heads": cfg.n_kv_heads,
        "d_head": cfg.d_head,
        "n_vocab": cfg.n_vocab,
        "position_offset": cfg.position_offset,
        "layer_norm": cfg.norm == "layernorm",
        "eps": cfg.norm_eps,
        "activation": ACTIVATION_CODES[cfg.activation],
        "gated": cfg.gated,
    }


def dims_of(cfg: ModelConfig) -> Dims:
    """Return a model's dimensions."""
    return Dims(
        n_positions=cfg.n_ctx + cfg.position_offset,
        score_scale=Scoring.of(cfg, layer=0).factor(cfg.d_head),
        activation_threshold=np.float32(cfg.activation_threshold if cfg.activation == "fatrelu" else 0),
        **constants(cfg),
    )


# Options of a family that each backend's kernels have; the others must have ModelConfig's defaults.
_SHAPE = {
    *("family", "n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "n_neurons", "n_vocab", "n_ctx"),
    *(
        "norm",
        "norm_eps",
        "activation",
        "gated",
        "positions",
        "position_offset",
        "rope_theta",
        "rope_factors",
    ),
    *("tied_head", "qkv_bias", "attn_out_bias", "mlp_bias", "rope_long_after"),
}
_EVERY = {field.name for field in dataclasses.fields(ModelConfig)}
OPTIONS = {"numpy": _EVERY, "numba": _SHAPE, "cpu": _EVERY - {"d_embed"}, "cuda": _SHAPE}
_SIMPLE = ("relu", "silu", "gelu_tanh")
VALUES = {  # for these fields a backend has some values only
    "numba": {"activation": _SIMPLE, "positions": ("rope", "learned")},
    "cuda": {"activation": _SIMPLE, "positions": ("rope", "learned")},
}


def missing(backend: str, cfg: ModelConfig) -> str | None:
    """Return what a backend's kernels lack for a model, such as ``block 'parallel'``; None if nothing.

    Examples
    --------
    >>> import minicore as mc
    >>> config = mc.load("minicore-opt-core").config
    >>> missing("cuda", config), missing("cuda", config.replace(activation="relu2"))
    (None, "activation 'relu2'")
    """
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        known = VALUES.get(backend, {}).get(field.name)
        if (known and value not in known) or (field.name not in OPTIONS[backend] and value != field.default):
            return f"{field.name} {value!r}"
    return None
