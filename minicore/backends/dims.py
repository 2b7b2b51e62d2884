"""The ModelConfig fields that compiled kernels use, on the CPU and on a GPU."""

from __future__ import annotations

from typing import Any, NamedTuple

from minicore.config import ModelConfig

RELU, SILU, GELU_TANH = range(3)
ACTIVATION_CODES = {"relu": RELU, "silu": SILU, "gelu_tanh": GELU_TANH}


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


def constants(cfg: ModelConfig) -> dict[str, Any]:
    """Return the fields of :class:`Dims` that the GPU kernels are compiled with: all but n_positions."""
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
    return Dims(n_positions=cfg.n_ctx + cfg.position_offset, **constants(cfg))
