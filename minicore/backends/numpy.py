"""The reference decoder: the forward pass of one token, in NumPy."""

from __future__ import annotations

import numpy as np

from minicore.core.rules import Selection
from minicore.model import KVCache, Model, forward


class ReferenceDecoder:
    """Decodes with a model whose FFNs hold the core neurons alone."""

    def __init__(self, model: Model, cache: KVCache, core: Selection | None) -> None:
        self.whole, self.cache = model, cache
        self.layer_of = {f"blocks.{i}.mlp.hook_post": i for i in range(model.config.n_layers)}
        self.use(core)

    def use(self, core: Selection | None) -> None:
        """Decode with this selection from the next step on; None is all neurons."""
        self.model = self.whole.restrict(core)
        self.n_used = np.zeros(self.whole.config.n_layers, np.int64)

    def flush(self) -> None:
        """Do nothing: steps write to the kv cache itself."""

    def step(self, token_id: int) -> np.ndarray:  # -> (n_vocab,) float32
        """Read one token into the kv cache and return the logits after it."""
        return forward(self.model, np.array([token_id]), self.cache, self._count)[0]

    def _count(self, name: str, value: np.ndarray) -> None:
        if name in self.layer_of:
            self.n_used[self.layer_of[name]] += np.count_nonzero(value)
