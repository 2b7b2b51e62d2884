"""Sampling: from logits to a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minicore import ops
from minicore.errors import InputError

Array = np.ndarray

SMALLEST_TEMPERATURE = 1e-4  # logits divided by less leave the range of float32


@dataclass(frozen=True)
class Sampler:
    """Picks a token from logits: the largest at temperature 0, a random draw above it.

    Attributes
    ----------
    temperature : float
        The logits are divided by it; >= 0.
    top_k : int or None
        Draw only from the k most likely tokens.
    top_p : float or None
        Draw only from the most likely tokens whose probabilities together reach p (1904.09751).
    rng : numpy.random.Generator
    min_p : float
        Draw only tokens at least this many times as likely as the likeliest (2407.01082).
    typical_p : float
        Draw only from the tokens whose surprise is nearest to the entropy, until their probabilities together
        reach p (2202.00666).
    epsilon_cutoff, eta_cutoff : float
        Draw no token less likely than this, or than the smaller of eta and sqrt(eta) exp(-entropy)
        (2210.15191). The likeliest stays.

    The filters apply in this order: top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    min_p: float = field(default=0.0, kw_only=True)
    typical_p: float = field(default=1.0, kw_only=True)
    epsilon_cutoff: float = field(default=0.0, kw_only=True)
    eta_cutoff: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or SMALLEST_TEMPERATURE <= self.temperature < np.inf):
            raise InputError(
                f"temperature is {self.temperature!r}, expected 0 (the likeliest token) or at least "
                f"{SMALLEST_TEMPERATURE:g}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k!r}, expected 1 or more")
        for name in ("top_p", "typical_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InputError(f"{name} is {value!r}, expected above 0 and at most 1")
        for name in ("min_p", "epsilon_cutoff", "eta_cutoff"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected from 0 to 1")

    @property
    def plain(self) -> bool:
        """Whether nothing but the temperature shapes the distribution."""
        filters = self.min_p, self.typical_p, self.epsilon_cutoff, self.eta_cutoff
        return self.top_k is None and self.top_p is None and filters == (0, 1, 0, 0)

    def __call__(self, logits: Array) -> int:  # (n_vocab,) -> id
        """Return the token picked; raise InputError if the largest logit is NaN or infinite."""
        best = int(np.argmax(logits))  # NaN counts as the largest
        if not np.isfinite(logits[best]):
            raise InputError(
                f"the logit of token {best} is {logits[best]}, expected finite logits: the model's numbers "
                "leave the range of float32"
            )
        if self.temperature == 0:
            return best
        p = self.probabilities(logits)
        return int(
            np.searchsorted(np.cumsum(p), self.rng.random() * p.sum(), side="right").clip(0, len(p) - 1)
        )

    def probabilities(self, logits: Array) -> Array:  # (n_vocab,) -> float64 (n_vocab,)
        """Return the distribution that is drawn from (temperature above 0)."""
        scaled = logits.astype(np.float64) / self.temperature
        order = np.argsort(-scaled, kind="stable")
        if self.top_k is not None:
            scaled[order[self.top_k :]] = -np.inf
        p = ops.softmax(scaled)
        if self.top_p is not None:
            before = np.cumsum(p[order]) - p[order]  # mass of the more likely tokens
            p[order[before >= self.top_p]] = 0
            p /= p.sum()
        if self.min_p > 0:
            p = _without(p, p < self.min_p * p.max())
        if self.typical_p < 1:
            p = _without(p, _atypical(p, self.typical_p))
        if 0 < self.epsilon_cutoff < 1:
            p = _without(p, p < self.epsilon_cutoff)
        if 0 < self.eta_cutoff < 1:
            eta = min(self.eta_cutoff, np.sqrt(self.eta_cutoff) * np.exp(-_entropy(p)))
            p = _without(p, p < eta)
        return p


def make_sampler(
    temperature: float,
    given: Mapping[str, Any],
    generation: Mapping[str, Any],
    rng: np.random.Generator,
) -> Sampler:
    """Return a sampler with what is given; where that is None, with what the checkpoint says.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> sampler = make_sampler(0.7, {"top_k": 9, "min_p": None}, {"top_k": 20, "min_p": 0.05}, rng)
    >>> sampler.top_k, sampler.min_p
    (9, 0.05)
    """
    filters = ("top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
    values = {name: generation[name] for name in filters if name in generation}
    if values.get("top_k") == 0:
        del values["top_k"]
    values |= {name: value for name, value in given.items() if value is not None}
    return Sampler(temperature, rng=rng, **values)


def _without(p: Array, removed: Array) -> Array:  # (n_vocab,), bool (n_vocab,) -> (n_vocab,)
    """Return a distribution without some tokens; the likeliest stays if all would go."""
    kept = ~removed & (p > 0)
    kept[np.argmax(p)] |= not kept.any()
    kept = np.where(kept, p, 0)
    return np.asarray(kept / kept.sum())


def _entropy(p: Array) -> float:
    positive = p[p > 0]
    return float(-(positive * np.log(positive)).sum())


def _atypical(p: Array, mass: float) -> Array:  # (n_vocab,) -> bool (n_vocab,)
    """Return which tokens are not among the most typical ones that together reach the mass."""
    with np.errstate(divide="ignore"):
        distance = np.abs(-np.log(p) - _entropy(p))
    order = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(p[order]) < mass).sum()), len(p) - 1)
    return np.asarray(distance > distance[order[last]])
