"""Rotary positions as GGUF metadata and tensors spell them: from Settings to fields of ModelConfig."""

from __future__ import annotations

import math
from collections.abc import Mapping

from minicore.checkpoint.hf_rope import RopeFields, yarn
from minicore.checkpoint.settings import Settings
from minicore.checkpoint.tensors import Tensor
from minicore.errors import InputError

KINDS = ("none", "linear", "yarn", "longrope")
FREQS, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
# Keys of YaRN that may be absent, by their names in Hugging Face configs.
YARN = {
    "original_max_position_embeddings": "original_context_length",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
    "attention_factor": "yarn_attn_factor",
}

UNSET = -1.0  # what llama.cpp saves as yarn_ext_factor

Divisors = tuple[float, ...]


def read_rope(
    settings: Settings, tensors: Mapping[str, Tensor], d_head: int, n_ctx: int, theta: float = 10000.0
) -> RopeFields:
    """Return the rotary positions of a GGUF file.

    Frequencies are divided by what the named scaling says, and by tensors of divisors, if there are any:
    ``rope_freqs`` (Llama 3) and LongRoPE's ``rope_factors_short`` and ``rope_factors_long``.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        The tensors in the file.
    d_head, n_ctx : int
        Width of a head; ``context_length``.
    theta : float
        The architecture's default of the base.

    Raises
    ------
    InputError
        If a value is not usable, or the kind of scaling is not supported.

    Examples
    --------
    >>> from pathlib import Path
    >>> values = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    >>> read_rope(Settings(values, Path("a.gguf"), "llama."), {}, d_head=4, n_ctx=64)
    {'rope_theta': 10000.0, 'rope_factors': (2.0, 2.0), 'rope_scale': 1.0}
    """
    n_rotated = settings.integer("rope.dimension_count", default=d_head)
    theta = settings.number("rope.freq_base", default=theta)
    kind = settings.get("rope.scaling.type", default="linear")
    settings.only("rope.scaling.alpha", 0.0)
    scaled, scale = _scaling(settings, kind, n_rotated, theta, n_ctx)
    freqs, short, long = (_tensor(tensors, name, n_rotated // 2) for name in (FREQS, SHORT, LONG))
    if (short is None) != (long is None) or (kind == "longrope" and short is None):
        absent = SHORT if short is None else LONG
        raise InputError(f"{settings.source}: tensor {absent} is missing, expected it for longrope")
    scaled = _product(scaled, freqs)
    fields: RopeFields = {
        "rope_theta": theta,
        "rope_factors": _product(scaled, short),
        "rope_scale": scale * settings.number("rope.scaling.attn_factor", default=1.0),
    }
    if n_rotated != d_head:
        fields["d_rope"] = n_rotated
    if long is not None:
        fields["rope_long_factors"] = _product(scaled, long)
        fields["rope_long_after"] = settings.integer("rope.scaling.original_context_length", default=n_ctx)
    return fields


def _scaling(
    settings: Settings, kind: object, n_rotated: int, theta: float, n_ctx: int
) -> tuple[Divisors | None, float]:
    """Return the divisors and the attention factor of a kind of scaling."""
    if kind not in KINDS:
        settings.only("rope.scaling.type", *KINDS)
    if kind == "yarn":
        return yarn(_yarn_settings(settings), n_rotated, theta, n_ctx)
    keys = ("rope.scaling.factor", "rope.scale_linear")
    if kind == "longrope":  # its tensors are the whole scaling
        settings.only(keys[0], 0.0, 1.0)
    if kind != "linear" or settings.get(*keys, default=0.0) in (0, 1):
        return None, 1.0
    return (settings.number(*keys),) * (n_rotated // 2), 1.0


def _yarn_settings(settings: Settings) -> Settings:
    """Return the settings of YaRN under their names in Hugging Face configs."""
    settings.only("rope.scaling.yarn_ext_factor", UNSET, 1.0)
    settings.only("rope.scaling.yarn_log_multiplier", 0.0)
    given = {theirs: settings.get(f"rope.scaling.{ours}") for theirs, ours in YARN.items()}
    if settings.get("rope.scaling.yarn_ext_factor") == UNSET:  # then llama.cpp has saved the file
        given["attention_factor"] = None
    given["factor"] = settings.number("rope.scaling.factor")
    return Settings(given, settings.source)


def _tensor(tensors: Mapping[str, Tensor], name: str, n: int) -> Divisors | None:
    """Return the divisors in a tensor; None if it is absent."""
    if name not in tensors:
        return None
    tensor = tensors[name]
    if tensor.shape != (n,):
        raise InputError(f"{tensor.where} has shape {tensor.shape}, expected {(n,)}")
    divisors = tuple(map(float, tensor.rows(0, n)))
    if not all(0 < divisor < math.inf for divisor in divisors):
        raise InputError(f"{tensor.where} holds NaN, infinity or zero, expected positive divisors")
    return divisors


def _product(a: Divisors | None, b: Divisors | None) -> Divisors | None:
    """Return the products of two sets of divisors; None is all ones."""
    if a is None or b is None:
        return a if b is None else b
    return tuple(x * y for x, y in zip(a, b, strict=True))
