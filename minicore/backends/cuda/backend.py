"""The CUDA backend: an NVIDIA GPU reads prompts and tokens; weights and kv cache stay on it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from minicore.backends.cpu import prefill as compiled
from minicore.backends.cpu.backend import CpuBackend
from minicore.backends.cpu.statistics import ADDERS
from minicore.backends.cuda.decoder import CudaDecoder
from minicore.backends.cuda.prefill import CudaPrefill
from minicore.core.rules import Selection
from minicore.forward import Hooks, RecorderHooks, forward, prefill
from minicore.kv_cache import KVCache
from minicore.model import Model

Array = np.ndarray


class CudaBackend:
    """A model read and decoded on an NVIDIA GPU.

    Parameters
    ----------
    model : Model
    memory_limit : int or None
        Bytes of device memory. FFN weights then stay in page-locked host memory and pass through the
        GPU layer by layer; only the core neurons' rows stay there.
    """

    name = "cuda"
    ops = compiled
    adders = ADDERS

    def __init__(self, model: Model, memory_limit: int | None = None) -> None:
        compiled.compile_for(model.config, model.dtype)
        self.model, self.memory_limit = model, memory_limit

    @cached_property
    def _prefill(self) -> CudaPrefill:
        return CudaPrefill(self.model, self.memory_limit)

    def prefill(
        self, ids: Array, cache: KVCache, hooks: Hooks | Callable[[str, Array], None] | None = None
    ) -> Array:  # (n,) -> (n_vocab,)
        """Read a prompt into the cache and return the logits after its last token.

        The GPU does it, with what recorders need; for any other hooks the CPU's compiled maths does.
        """
        if hooks is None or isinstance(hooks, RecorderHooks):
            return self._prefill.read(ids, cache, hooks or {})
        return prefill(self.model, ids, cache, hooks, self.ops)

    def forward(
        self, ids: Array, cache: KVCache, hooks: Hooks | Callable[[str, Array], None] | None = None
    ) -> Array:  # (n,) -> (n, n_vocab)
        """Read ids into the cache on the CPU and return the logits after each of them."""
        return forward(self.model, ids, cache, hooks, self.ops)

    def decoder(self, cache: KVCache, selection: Selection | None = None) -> CudaDecoder:
        """Return a decoder that continues a prefilled cache with the selected neurons."""
        if self.memory_limit is not None:
            self._prefill.clear()  # the prompt is read: its buffers make room for the core rows
        return CudaDecoder(self.model, cache, selection, memory_limit=self.memory_limit)

    def restrict(self, selection: Selection | None) -> CpuBackend:
        """Return the CPU's backend of the model whose FFNs are the selected neurons only."""
        return CpuBackend(self.model.restrict(selection))
