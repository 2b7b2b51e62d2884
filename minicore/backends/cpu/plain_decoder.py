"""The backend ``numba``: prompts read by NumPy, tokens decoded by the plain loops of plain_step.py."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minicore import ops
from minicore.backends.cpu.plain_step import Block, block, embed, unembed
from minicore.backends.dims import dims_of
from minicore.backends.memory_limit import core_only
from minicore.backends.numpy import NumpyBackend, run_by_steps
from minicore.backends.protocol import Decoder, DecoderStats
from minicore.core.rules import GATE, TOP, Selection, TokenRule
from minicore.errors import InputError
from minicore.kv_cache import KVCache
from minicore.model import Model

Array = np.ndarray


class NumbaBackend(NumpyBackend):
    """A model read by NumPy and decoded in plain compiled loops, in float32 and one thread."""

    name = "numba"

    def decoder(self, cache: KVCache, selection: Selection | None = None) -> Decoder:
        """Return a decoder that continues a prefilled cache with the selected neurons."""
        if self.memory_limit is not None:
            return PlainDecoder(core_only(self.model, selection, self.memory_limit), cache)
        return PlainDecoder(self.model, cache, selection)

    def restrict(self, selection: Selection | None) -> NumbaBackend:
        """Return the backend of the model whose FFNs are the selected neurons only."""
        return NumbaBackend(self.model.restrict(selection), self.memory_limit, self.ops)


class PlainDecoder:
    """Decodes with weights and a kv cache in float32, one compiled call for each block."""

    runs_ahead = False

    def __init__(self, model: Model, cache: KVCache, selection: Selection | None = None) -> None:
        if (model.dtype, cache.dtype) != ("float32", "float32"):
            raise InputError(f"backend numba decodes float32, expected that dtype in place of {model.dtype}")
        zeros = np.zeros(max(map(len, model.blocks[0].values())), np.float32)
        absent = {"mlp.w_gate": np.empty((0, model.config.d_model), np.float32)}
        names = {field: field.replace("_", ".", 1) for field in Block._fields}
        self.blocks = [
            Block(**{field: weights.get(name, absent.get(name, zeros)) for field, name in names.items()})
            for weights in model.blocks
        ]
        self.model, self.cache, self.dims = model, cache, dims_of(model.config)
        self.frequencies = (
            ops.rope_frequencies(model.config) if model.config.positions == "rope" else zeros[:0]
        )
        self.positions = model.params.get("pos_embed", np.empty((0, 0), np.float32))
        self.last_bias = model.params.get("ln_f.b", zeros)
        self.n_steps, self.neurons_read = 0, np.zeros(model.config.n_layers, np.int64)
        self.use(selection)

    def use(self, selection: Selection | None) -> None:
        """Decode with this selection from the next step on; None is all neurons."""
        self.model.check_selection(selection)
        rule = selection if isinstance(selection, TokenRule) else None
        limits = [rule.parameters(layer) if rule else {} for layer in range(self.dims.n_layers)]
        if any(TOP in limit for limit in limits):
            raise InputError("backend numba cannot keep a token's largest activations, expected numpy or cpu")
        rows = selection.neurons if selection else {}
        every = (np.arange(len(p.mlp_w_in), dtype=np.int32) for p in self.blocks)
        self.rows = [rows.get(layer, all_rows) for layer, all_rows in enumerate(every)]
        self.thresholds = [np.float32(limit.get(GATE, -1)) for limit in limits]

    def flush(self) -> None:
        """Do nothing: steps write to the kv cache itself."""

    def step(self, token_id: int) -> Array:  # -> (n_vocab,) float32
        """Read one token into the kv cache and return the logits after it."""
        dims, params, held, position = self.dims, self.model.params, self.cache.storage, self.cache.length
        x = embed(dims, params["embed"], self.positions, token_id, position)
        for layer, p in enumerate(self.blocks):
            keys, values = held.keys[layer], held.values[layer]
            rows, threshold = self.rows[layer], self.thresholds[layer]
            n_used = block(dims, p, rows, threshold, x, position, self.frequencies, keys, values)
            self.neurons_read[layer] += n_used
        self.cache.length, self.n_steps = position + 1, self.n_steps + 1
        logits: Array = unembed(dims, params["ln_f.w"], self.last_bias, self.model.head, x)
        return logits

    def run(self, token_id: int, n: int, temperature: float = 0.0, seed: int = 0) -> Iterator[int]:
        """Read a token and yield the n tokens picked after it."""
        return run_by_steps(self, self.cache, token_id, n, temperature, seed)

    @property
    def stats(self) -> DecoderStats:
        """Tokens and output rows read so far."""
        read = self.neurons_read.copy()
        return DecoderStats(n_steps=self.n_steps, neurons_read=read, kv_bytes=self.cache.nbytes)
