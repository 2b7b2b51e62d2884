"""Sampling: from logits to a token."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from minicore import ops
from minicore.errors import InputError

Array = np.ndarray


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
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    rng: np.random.Generator = field(default_factory=np.random.default_rng)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < np.inf:
            raise InputError(f"temperature is {self.temperature!r}, expected 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k!r}, expected 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p!r}, expected above 0 and at most 1")

    def __call__(self, logits: Array) -> int:  # (n_vocab,) -> id
        """Return the token picked."""
        if self.temperature == 0:
            return int(np.argmax(logits))
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
        return p
