"""Rotary positions as Hugging Face configs spell them: from Settings to fields of ModelConfig.

The precedence of keys is that of Transformers 5: ``rope_scaling`` replaces ``rope_parameters``, and base and
rotated share are looked up there first, then at the top level of the config.
"""

from __future__ import annotations

import math
from typing import Any, TypedDict

from minicore.checkpoint.settings import Settings
from minicore.errors import InputError

WIDEST_HEAD = 1 << 16
KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")


class RopeFields(TypedDict, total=False):
    """The fields of ModelConfig that describe rotary positions."""

    d_rope: int | None
    rope_theta: float
    rope_factors: tuple[float, ...] | None
    rope_scale: float
    rope_long_factors: tuple[float, ...] | None
    rope_long_after: int


def read_rope(
    settings: Settings,
    d_head: int,
    n_ctx: int,
    *,
    theta: float = 10000.0,
    share: float = 1.0,
    theta_key: str = "rope_theta",
    share_key: str = "partial_rotary_factor",
) -> RopeFields:
    """Return the rotary positions of a config.

    Parameters
    ----------
    d_head, n_ctx : int
        Width of a head; ``max_position_embeddings``.
    theta, share : float
        The family's defaults of the base and of the rotated share of a head.
    theta_key, share_key : str
        Their names at the top level of the config.

    Raises
    ------
    InputError
        If a value is not usable, or the kind of scaling is not supported.

    Examples
    --------
    >>> from pathlib import Path
    >>> values = {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2}}
    >>> read_rope(Settings(values, Path("config.json")), d_head=4, n_ctx=64)
    {'rope_theta': 500.0, 'rope_factors': (2.0, 2.0)}
    """
    values = settings.get("rope_scaling", default=None) or settings.get("rope_parameters", default={})
    if not isinstance(values, dict) or any(isinstance(value, dict) for value in values.values()):
        raise InputError(f"{settings.source}: the rope parameters are {values!r}, expected one flat object")
    return rope_fields(
        Settings(values, settings.source),
        d_head,
        n_ctx,
        theta=settings.number(theta_key, default=theta),
        share=settings.number(share_key, default=share),
        original=settings.get("original_max_position_embeddings"),
    )


def rope_fields(
    rope: Settings, d_head: int, n_ctx: int, *, theta: float, share: float, original: Any = None
) -> RopeFields:
    """Return the rotary positions that one flat object describes; ``original`` overrides its own.

    Examples
    --------
    >>> from pathlib import Path
    >>> rope_fields(Settings({}, Path("config.json")), 8, 64, theta=1e4, share=0.5)
    {'rope_theta': 10000.0, 'd_rope': 4}
    """
    theta = rope.number("rope_theta", default=theta)
    n_rotated = int(d_head * rope.number("partial_rotary_factor", default=share))
    if n_rotated > WIDEST_HEAD:
        raise InputError(
            f"{rope.source}: {n_rotated} dimensions of a head are rotated, expected {WIDEST_HEAD} at most"
        )
    fields: RopeFields = {"rope_theta": theta}
    if n_rotated != d_head:
        fields["d_rope"] = n_rotated
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    if kind not in KINDS or "mrope_section" in rope.values:
        raise InputError(
            f"{rope.source}: the rope type is {kind!r}, which is not supported; expected {' or '.join(KINDS)}"
        )
    if original is not None:
        rope = Settings({**rope.values, "original_max_position_embeddings": original}, rope.source)
    try:
        if kind == "linear":
            fields["rope_factors"] = (rope.number("factor"),) * (n_rotated // 2)
        elif kind == "llama3":
            fields["rope_factors"] = _llama3_factors(rope, n_rotated, theta, n_ctx)
        elif kind == "yarn":
            fields["rope_factors"], fields["rope_scale"] = yarn(rope, n_rotated, theta, n_ctx)
        elif kind == "longrope":
            fields |= _longrope(rope, n_rotated, n_ctx)
    except ArithmeticError as error:  # numbers that no model has
        raise InputError(
            f"{rope.source}: the rope parameters {rope.values!r} cannot be computed with ({error}), "
            "expected usual sizes"
        ) from error
    return fields  # "dynamic" only scales texts that are longer than the context, which are refused


def _llama3_factors(rope: Settings, n_rotated: int, theta: float, n_ctx: int) -> tuple[float, ...]:
    """Return the divisors of the rotary frequencies under Llama 3.1's scaling.

    High frequencies keep their value and low ones are divided by ``factor``. In between, the frequency (not
    the divisor) is interpolated linearly in the number of turns that it makes over the original context.
    """
    factor, low, high = (rope.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = rope.integer("original_max_position_embeddings", default=n_ctx)
    if not low < high:
        raise InputError(
            f"{rope.source}: low_freq_factor is {low}, expected less than high_freq_factor {high}"
        )
    factors = []
    for i in range(n_rotated // 2):
        turns = original * theta ** (-2 * i / n_rotated) / (2 * math.pi)
        kept = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / (kept + (1 - kept) / factor))
    return tuple(factors)


def yarn(rope: Settings, n_rotated: int, theta: float, n_ctx: int) -> tuple[tuple[float, ...], float]:
    """Return the divisors and the attention factor of YaRN (2309.00071, secs. 3.2 and 3.4).

    Pairs that make more than ``beta_fast`` turns over the original context keep their frequency, those that
    make less than ``beta_slow`` are divided by ``factor``, and the frequencies between are interpolated
    linearly in the number of the pair.
    """
    original = rope.integer("original_max_position_embeddings", default=n_ctx)
    factor = rope.number("factor", default=n_ctx / original)
    if theta <= 1:
        raise InputError(f"{rope.source}: rope_theta is {theta}, expected more than 1 for yarn")
    fast, slow = rope.number("beta_fast", default=32.0), rope.number("beta_slow", default=1.0)

    def pair(turns: float) -> float:
        return n_rotated * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(fast), pair(slow)
    if rope.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, n_rotated - 1)
    width = (high - low) or 0.001
    divided = [min(1.0, max(0.0, (i - low) / width)) for i in range(n_rotated // 2)]
    factors = tuple(1 / (share / factor + 1 - share) for share in divided)

    def magnitude(scale: float, weight: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1

    default = magnitude(factor)
    weights = rope.get("mscale"), rope.get("mscale_all_dim")
    if all(weights):
        default = magnitude(factor, rope.number("mscale")) / magnitude(factor, rope.number("mscale_all_dim"))
    return factors, rope.number("attention_factor", default=default)


def _longrope(rope: Settings, n_rotated: int, n_ctx: int) -> RopeFields:
    """Return the divisors of short and of long texts, and the attention factor, of LongRoPE (2402.13753)."""
    original = rope.integer("original_max_position_embeddings", default=n_ctx)
    factor = rope.number("factor", default=n_ctx / original)
    if original < 2:
        raise InputError(
            f"{rope.source}: original_max_position_embeddings is {original}, expected at least 2 for longrope"
        )
    scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return {
        "rope_factors": _divisors(rope, "short_factor", n_rotated),
        "rope_long_factors": _divisors(rope, "long_factor", n_rotated),
        "rope_long_after": original,
        "rope_scale": rope.number("attention_factor", default=scale),
    }


def _divisors(rope: Settings, key: str, n_rotated: int) -> tuple[float, ...]:
    values = rope.get(key)
    if (
        not isinstance(values, list)
        or len(values) != n_rotated // 2
        or not all(type(value) in (int, float) and 0 < value < math.inf for value in values)
    ):
        raise InputError(f"{rope.source}: {key} is {values!r}, expected {n_rotated // 2} positive numbers")
    return tuple(map(float, values))
