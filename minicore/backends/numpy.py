"""The NumPy backend: the specification of the others. Decoding is the forward pass of one token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from minicore import ops
from minicore.backends.memory_limit import core_only, releasing
from minicore.backends.protocol import Decoder, DecoderStats
from minicore.core.rules import Selection
from minicore.core.statistics import Adder
from minicore.forward import Hooks, Ops, forward, prefill
from minicore.kv_cache import KVCache
from minicore.model import Model

Array = np.ndarray


class NumpyBackend:
    """A model read and decoded by NumPy.

    Parameters
    ----------
    model : Model
    memory_limit : int or None
        Bytes the process may hold while it decodes; needs a mapped model and a core set.
    ops : module
        Maths to use in place of :mod:`minicore.ops`.
    """

    name = "numpy"
    adders: Mapping[str, Adder] = {}

    def __init__(self, model: Model, memory_limit: int | None = None, ops: Ops = ops) -> None:
        self.model, self.memory_limit, self.ops = model, memory_limit, ops

    def prefill(
        self, ids: Array, cache: KVCache, hooks: Hooks | Callable[[str, Array], None] | None = None
    ) -> Array:  # (n,) -> (n_vocab,)
        """Read a prompt into the cache and return the logits after its last token."""
        hooks = hooks if self.memory_limit is None else releasing(self.model, hooks)
        return prefill(self.model, ids, cache, hooks, self.ops)

    def forward(
        self, ids: Array, cache: KVCache, hooks: Hooks | Callable[[str, Array], None] | None = None
    ) -> Array:  # (n,) -> (n, n_vocab)
        """Read ids into the cache and return the logits after each of them."""
        return forward(self.model, ids, cache, hooks, self.ops)

    def decoder(self, cache: KVCache, selection: Selection | None = None) -> Decoder:
        """Return a decoder that continues a prefilled cache with the selected neurons."""
        if self.memory_limit is not None:
            return NumpyDecoder(core_only(self.model, selection, self.memory_limit), cache, ops=self.ops)
        return NumpyDecoder(self.model, cache, selection, self.ops)

    def restrict(self, selection: Selection | None) -> NumpyBackend:
        """Return the backend of the model whose FFNs are the selected neurons only."""
        return NumpyBackend(self.model.restrict(selection), self.memory_limit, self.ops)


class NumpyDecoder:
    """Decodes with a model whose FFNs hold the selected neurons only."""

    runs_ahead = False

    def __init__(
        self, model: Model, cache: KVCache, selection: Selection | None = None, ops: Ops = ops
    ) -> None:
        self.whole, self.cache, self.ops = model, cache, ops
        self.hooks = {
            f"blocks.{layer}.mlp.hook_post": partial(self._count, layer)
            for layer in range(model.config.n_layers)
        }
        self.n_steps, self.neurons_read = 0, np.zeros(model.config.n_layers, np.int64)
        self.use(selection)

    def use(self, selection: Selection | None) -> None:
        """Decode with this selection from the next step on; None is all neurons."""
        self.model = self.whole.restrict(selection)

    def flush(self) -> None:
        """Do nothing: steps write to the kv cache itself."""

    def step(self, token_id: int) -> Array:  # -> (n_vocab,) float32
        """Read one token into the kv cache and return the logits after it."""
        logits: Array = forward(self.model, np.array([token_id]), self.cache, self.hooks, self.ops)[0]
        self.n_steps += 1
        return logits

    def run(self, token_id: int, n: int, temperature: float = 0.0, seed: int = 0) -> Iterator[int]:
        """Read a token and yield the n tokens picked after it."""
        return run_by_steps(self, self.cache, token_id, n, temperature, seed)

    @property
    def stats(self) -> DecoderStats:
        """Tokens and neurons read so far; a neuron whose activation is zero does not count."""
        read = self.neurons_read.copy()
        return DecoderStats(n_steps=self.n_steps, neurons_read=read, kv_bytes=self.cache.nbytes)

    def _count(self, layer: int, a: Array) -> None:
        self.neurons_read[layer] += np.count_nonzero(a)


def run_by_steps(
    decoder: Decoder, cache: KVCache, token_id: int, n: int, temperature: float, seed: int
) -> Iterator[int]:
    """Yield the n tokens after a token, picked from a decoder's logits one by one.

    Above temperature 0 the pick is the largest of logits / temperature + Gumbel noise, which draws from
    their softmax; the noise is a function of seed and position.
    """
    for _ in range(n):
        logits = decoder.step(token_id)
        if temperature > 0:
            rng = np.random.default_rng((seed, cache.length))
            logits = logits / temperature + rng.gumbel(size=len(logits))
        token_id = int(logits.argmax())
        yield token_id
