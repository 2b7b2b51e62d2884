"""The Numba decoder: a token is one compiled call a thread."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np

from minicore.backends.cpu import step as kernels
from minicore.backends.cpu import threads
from minicore.backends.cpu.attention_simd import tile_of
from minicore.backends.cpu.core_rows import compact
from minicore.backends.cpu.family import NORMS, options_of, rope_kinds
from minicore.backends.cpu.ffn import NEURON_BLOCK
from minicore.backends.cpu.intrinsics import FAILED, call
from minicore.backends.cpu.memory import settle
from minicore.backends.cpu.quantized_inputs import input_size
from minicore.backends.cpu.rows import storage
from minicore.backends.cpu.table import COLUMNS, N_ROWS, N_STORED, REST, ROWS
from minicore.backends.cpu.workers import Workers
from minicore.backends.dims import Dims, dims_of
from minicore.backends.numpy import NumpyDecoder, run_by_steps
from minicore.backends.protocol import DecoderStats
from minicore.core.neurons import CoreSet
from minicore.core.rules import GATE, Selection, TokenRule
from minicore.forward import finish_logits
from minicore.kv_cache import KVCache
from minicore.model import Model
from minicore.quantization import GROUP, QuantizedMatrix, n_groups

Array = np.ndarray


# Core rows shorter than this many bytes are copied together before the first step: after a row that is read
# in place the CPU prefetches the next neuron's, which is not needed. Longer rows lose a fifth or less to
# that, and their copies take gigabytes (docs/notes).
COPY_BELOW = 8192
# The kinds of step that have run: dtypes of weights and cache, and the tile of attention.
_compiled: set[tuple[Any, ...]] = set()


class CpuDecoder:
    """Decodes on the CPU, reading only the selected neurons' rows of each FFN."""

    runs_ahead = False

    def __init__(
        self, model: Model, cache: KVCache, selection: Selection | None = None, n_threads: int | None = None
    ) -> None:
        cfg = model.config
        self.model, self.cache, self.n_threads = model, cache, n_threads or threads.default_threads()
        self.dims = dims_of(cfg)
        self.tile = tile_of(self.dims.n_heads, self.dims.n_kv_heads, self.dims.d_head)
        # Not a view of the weights: mapped ones are read-only, another type, and would be compiled for again.
        self.like = np.empty(0, storage(model.params["embed"]).dtype)
        rotations, kinds = rope_kinds(cfg, cache.capacity)
        self.frequencies = np.stack([frequencies for frequencies, _ in rotations])
        self.rope_scales = np.array([scale for _, scale in rotations], np.float32)
        norms = np.array([[_address(block.get(name)) for name in NORMS] for block in model.blocks])
        self.options = options_of(cfg, kinds, norms, self.n_threads, cache.capacity)
        self.state = _state(
            self.dims, len(self.tile.heads) or 1, self.n_threads, cache.capacity, len(rotations)
        )
        held = cache.storage
        self.keys, self.values, self.scales = storage(held.keys), storage(held.values), held.scales
        self.copied = np.empty(0, np.uint8)  # core rows
        # Written in place, because a thread that waits for a call still has these two arrays.
        self.weights = np.zeros((cfg.n_layers + 1, len(COLUMNS)), np.int64)
        self.thresholds = np.full(cfg.n_layers, -1, np.float32)
        self._others: Workers | None = None
        self._reference: NumpyDecoder | None = None
        self._n_steps, self._read_by_reference = 0, np.zeros(cfg.n_layers, np.int64)
        self.use(selection)
        self.compile_s = self._compile()

    def use(self, selection: Selection | None) -> None:
        """Decode with this selection from the next step on; None is all neurons."""
        core = selection
        if self._reference:
            self._read_by_reference += self._reference.neurons_read
        # The k largest are known once all are computed: there is nothing to skip, so NumPy does it.
        top = isinstance(core, TokenRule) and core.kind == "top"
        self._reference = NumpyDecoder(self.model, self.cache, core) if top else None
        self.model.check_selection(core)
        together = isinstance(core, CoreSet) and _row_bytes(self.model) < COPY_BELOW
        self.to_copy = core if together else None
        self.thresholds[:] = -1
        if isinstance(core, TokenRule):
            self.thresholds[:] = [core.parameters(i).get(GATE, -1) for i in range(self.dims.n_layers)]
        self._read_from(self.model, core.neurons if core else {})

    def _read_from(self, model: Model, rows: dict[int, Array]) -> None:
        """Read weights where this model has them, and only these rows of the layers that ``rows`` names."""
        self.held, self.rows = model, rows
        self.weights[:] = self._addresses(model)
        for layer in range(self.dims.n_layers):
            mine = rows.get(layer)
            n_rows = self.weights[layer, N_STORED] if mine is None else len(mine)
            self.weights[layer, ROWS : N_ROWS + 1] = _address(mine), n_rows

    def flush(self) -> None:
        """Do nothing: steps write to the kv cache itself."""

    @property
    def stats(self) -> DecoderStats:
        """Tokens and output rows read so far."""
        read = self.state.n_used.sum(axis=0) + self._read_by_reference
        if self._reference:
            read += self._reference.neurons_read
        return DecoderStats(
            n_steps=self._n_steps,
            neurons_read=read,
            kv_bytes=self.cache.nbytes,
            compile_s=self.compile_s,
        )

    def run(self, token_id: int, n: int, temperature: float = 0.0, seed: int = 0) -> Iterator[int]:
        """Read a token and yield the n tokens picked after it."""
        return run_by_steps(self, self.cache, token_id, n, temperature, seed)

    def step(self, token_id: int) -> Array:  # -> (n_vocab,) float32
        """Read one token into the kv cache and return the logits after it."""
        self._n_steps += 1
        if self._reference:
            return self._reference.step(token_id)
        if self.to_copy:
            narrow, self.copied = compact(self.model, self.to_copy, self.n_threads, self.copied)
            self._read_from(narrow, {})
            self.to_copy = None
        self._run(token_id)
        self.cache.length += 1
        return finish_logits(self.state.logits.copy(), self.model.config)

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments of a step, but for the thread."""
        return {
            "n_threads": self.n_threads,
            "like": self.like,
            "tile": self.tile,
            "dims": self.dims,
            "options": self.options,
            "weights": self.weights,
            "thresholds": self.thresholds,
            "frequencies": self.frequencies,
            "rope_scales": self.rope_scales,
            "keys": self.keys,
            "values": self.values,
            "scales": self.scales,
            "s": self.state,
        }

    def _run(self, token_id: int) -> None:
        state, n_threads = self.state, self.n_threads
        step = partial(kernels.step, **self._arguments())  # Numba takes keywords for positional parameters
        workers = self._workers()
        try:
            # threads may be slow to leave the last barrier, so the counter goes on from where it is
            state.call[:3] = token_id, self.cache.length, state.counter[0] // n_threads
            for thread in range(1, n_threads):
                if not call(state.flags[thread]):
                    workers.submit(step, thread)
            step(0)
        except BaseException:  # Ctrl-C, for one: nobody may wait for this thread
            state.counter[FAILED] = 1
            raise
        workers.check()

    def _workers(self) -> Workers:
        """Return the other threads: new ones at first, after a failure, and in a forked process."""
        state, workers = self.state, self._others
        if workers is None or workers.process != os.getpid() or state.counter[FAILED]:
            if workers is not None and workers.process == os.getpid():
                workers.stop()
            state.counter[:], state.flags[:] = 0, 0
            workers = self._others = Workers(self.n_threads - 1, state.counter)
        return workers

    def _addresses(self, model: Model) -> Array:  # -> (n_layers + 1, n_columns) int64
        """Return the table of weights: a row for each layer; the last has embedding, last norm and head."""
        table = np.zeros((self.dims.n_layers + 1, len(COLUMNS)), np.int64)
        for layer, block in enumerate(model.blocks):
            table[layer, :ROWS] = [_address(block.get(name)) for name in COLUMNS[:ROWS]]
            table[layer, N_STORED] = len(block["mlp.w_in"])
        params = model.params
        rest = params | {"head": model.head}
        table[-1, : len(REST)] = [_address(rest.get(name)) for name in REST]
        return table

    def _compile(self) -> float:
        """Compile the step before any is timed, if it is the first of its kind; return the seconds taken."""
        began, kind = (
            time.perf_counter(),
            (self.like.dtype, self.keys.dtype, self.tile, self.options is None),
        )
        if kind not in _compiled:
            # in this thread, which Ctrl-C reaches, and before there are others
            kernels.step.compile((nb.int64, *map(nb.typeof, self._arguments().values())))
            _compiled.add(kind)
        settle(kind)
        return time.perf_counter() - began


def _address(w: Array | QuantizedMatrix | None) -> int:
    """Return the address of an array, 0 for none; the array must outlive the table."""
    if w is None or not w.size:
        return 0
    if isinstance(w, QuantizedMatrix):
        w = w.data
    assert w.flags.c_contiguous, "kernels read whole rows"
    return int(w.ctypes.data)


def _row_bytes(model: Model) -> int:
    """Return the bytes of one neuron's row of w_in as kernels read it."""
    w: Any = model.blocks[0]["mlp.w_in"]
    return int((w.data if isinstance(w, QuantizedMatrix) else w).nbytes // len(w))


def _state(dims: Dims, n_tile_heads: int, n_threads: int, capacity: int, n_kinds: int) -> kernels.State:
    """Return a decoder's buffers."""
    d, n_q, n_kv = dims.d_model, dims.n_heads * dims.d_head, dims.n_kv_heads * dims.d_head
    share = -(-capacity // n_threads)

    def buffer(*shape: int, dtype: type = np.float32) -> Array:
        return np.zeros(shape, dtype)

    line = 16  # float32 elements of a cache line: no thread writes to another's
    return kernels.State(
        x=buffer(n_threads, d),
        normed=buffer(n_threads, input_size(d)),
        q=buffer(n_threads, n_q),
        q_scales=buffer(n_threads, dims.n_heads + line),
        z=buffer(n_threads, input_size(n_q)),
        neurons=buffer(n_threads, NEURON_BLOCK, dtype=np.int32),
        activations=buffer(n_threads, 2, NEURON_BLOCK),
        scores=buffer(n_threads, n_tile_heads, share),
        rotation=buffer(n_threads, n_kinds, 2, max(dims.d_head // 2, line)),
        ffn_out=buffer(n_threads, n_groups(d) * GROUP + line),
        qkv=buffer(n_q + 2 * n_kv),
        mixture=buffer(n_threads, n_q),
        largest=buffer(n_threads, dims.n_heads + line),
        total=buffer(n_threads, dims.n_heads + line),
        attn_out=buffer(d),
        logits=buffer(dims.n_vocab),
        n_used=buffer(n_threads, dims.n_layers, dtype=np.int64),
        call=buffer(line, dtype=np.int64),
        flags=buffer(n_threads, line, dtype=np.int64),
        counter=buffer(line, dtype=np.int64),
    )


def kernels_cached(reading: bool = True) -> bool:
    """Say whether the machine code of decoding, and of reading prompts, is on disk."""
    if kernels.step.stats.cache_path is None:  # no folder can be written to
        return False
    folder = Path(kernels.step.stats.cache_path)
    names = ("step.step", "prefill.causal_softmax")[: 1 + reading]
    return all(any(folder.glob(f"{name}.*.nbc")) for name in names)
