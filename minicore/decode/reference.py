"""The reference decoder: the forward pass of one token, in NumPy."""

from __future__ import annotations

import numpy as np

from minicore.core.neurons import CoreSet
from minicore.model import KVCache, Model, forward


class ReferenceDecoder:
    """Decodes with a model whose FFNs hold the core neurons alone."""

    def __init__(self, model: Model, cache: KVCache, core: CoreSet | None) -> None:
        self.model, self.cache = model.restrict(core), cache

    def step(self, token_id: int) -> np.ndarray:  # -> (n_vocab,) float32
        """Read one token into the kv cache and return the logits after it."""
        return forward(self.model, np.array([token_id]), self.cache)[0]
