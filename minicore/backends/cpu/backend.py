"""The CPU backend: prompts by BLAS and compiled maths, decoding by one compiled call per thread and token."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minicore.backends.cpu import prefill as compiled
from minicore.backends.cpu.decoder import CpuDecoder
from minicore.backends.cpu.statistics import ADDERS
from minicore.backends.memory_limit import core_only, releasing
from minicore.core.rules import Selection
from minicore.forward import Hooks, forward, prefill
from minicore.kv_cache import KVCache
from minicore.model import Model

Array = np.ndarray


class CpuBackend:
    """A model read and decoded by compiled code.

    Parameters
    ----------
    model : Model
    memory_limit : int or None
        Bytes the process may hold while it decodes; needs a mapped model and a core set.
    n_threads : int or None
        Threads of the decoder; None is one per core (:func:`minicore.backends.cpu.threads.default_threads`).
    """

    name = "cpu"
    ops = compiled
    adders = ADDERS

    def __init__(self, model: Model, memory_limit: int | None = None, n_threads: int | None = None) -> None:
        compiled.compile_for(model.config, model.dtype)
        self.model, self.memory_limit, self.n_threads = model, memory_limit, n_threads

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

    def decoder(self, cache: KVCache, selection: Selection | None = None) -> CpuDecoder:
        """Return a decoder that continues a prefilled cache with the selected neurons."""
        if self.memory_limit is not None:
            narrow = core_only(self.model, selection, self.memory_limit)
            return CpuDecoder(narrow, cache, None, self.n_threads)
        return CpuDecoder(self.model, cache, selection, self.n_threads)

    def restrict(self, selection: Selection | None) -> CpuBackend:
        """Return the backend of the model whose FFNs are the selected neurons only."""
        return CpuBackend(self.model.restrict(selection), self.memory_limit, self.n_threads)
