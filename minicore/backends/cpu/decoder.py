"""The Numba decoder: a token is one compiled call a thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from minicore import ops
from minicore.backends.cpu import prefill as compiled
from minicore.backends.cpu import step as kernels
from minicore.backends.cpu import threads as team
from minicore.backends.cpu.core_rows import compact
from minicore.backends.cpu.intrinsics import call
from minicore.backends.cpu.memory import settle
from minicore.backends.cpu.rows import input_size, stored
from minicore.backends.numpy import NumpyDecoder, run_by_steps
from minicore.backends.protocol import DecoderStats
from minicore.core.neurons import CoreSet
from minicore.core.rules import GATE, Selection, TokenRule
from minicore.kv_cache import KVCache
from minicore.model import Model
from minicore.quantization import GROUP, QuantizedMatrix, n_groups

Array = np.ndarray


# Core rows that are shorter than this many bytes are copied together before the first step: a row that is
# read where it lies brings along what the CPU foresees behind it, which is another neuron's. Longer rows
# lose a fifth or less by that, and their copies take gigabytes (docs/speed.md).
SHORT = 8192
# dtypes of weights and cache that steps have run on
_compiled: set[tuple[np.dtype[Any], np.dtype[Any]]] = set()


class CpuDecoder:
    """Decodes on the CPU, reading only the selected neurons' rows of each FFN."""

    runs_ahead = False

    def __init__(
        self, model: Model, cache: KVCache, selection: Selection | None = None, n_threads: int | None = None
    ) -> None:
        cfg = model.config
        self.model, self.cache, self.n_threads = model, cache, n_threads or team.default_threads()
        self.dims = kernels.Dims(n_positions=cfg.n_ctx + cfg.position_offset, **kernels.constants(cfg))
        self.like = stored(model.params["embed"]).reshape(-1)[:0]
        rope = cfg.positions == "rope"
        self.frequencies = ops.rope_frequencies(cfg) if rope else np.zeros(0, np.float32)
        self.state = _state(self.dims, self.n_threads, cache.capacity)
        storage = cache.storage
        self.keys, self.values, self.scales = stored(storage.keys), stored(storage.values), storage.scales
        self.piece = np.empty(0, np.uint8)  # holds copied core rows
        # what threads are told once, so these two are written in place: a thread may still wait for a call
        self.plan = np.zeros((cfg.n_layers + 1, len(kernels.COLUMNS)), np.int64)
        self.thresholds = np.full(cfg.n_layers, -1, np.float32)
        self.others = ThreadPoolExecutor(max(self.n_threads - 1, 1), thread_name_prefix="minicore-step")
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
        together = isinstance(core, CoreSet) and _row_bytes(self.model) < SHORT
        self.to_copy = core if together else None
        self.thresholds[:] = -1
        if isinstance(core, TokenRule):
            self.thresholds[:] = [core.parameters(i).get(GATE, -1) for i in range(self.dims.n_layers)]
        self._read_from(self.model, core.neurons if core else {})

    def _read_from(self, model: Model, rows: dict[int, Array]) -> None:
        """Read weights where this model has them, of some layers' neurons these rows alone."""
        self.held, self.rows = model, rows
        self.plan[:] = self._plan(model)
        for layer in range(self.dims.n_layers):
            mine = rows.get(layer)
            n_rows = self.plan[layer, kernels.N_STORED] if mine is None else len(mine)
            self.plan[layer, kernels.ROWS : kernels.N_ROWS + 1] = _address(mine), n_rows

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
            narrow, self.piece = compact(self.model, self.to_copy, self.n_threads, self.piece)
            self._read_from(narrow, {})
            self.to_copy = None
        self._run(token_id)
        self.cache.length += 1
        return self.state.logits.copy()

    def _run(self, token_id: int) -> None:
        state, n_threads = self.state, self.n_threads
        shared: tuple[Any, ...] = (
            *(self.like, self.dims, self.plan, self.thresholds),
            *(self.frequencies, self.keys, self.values, self.scales, state),
        )
        # threads may be slow to leave the last barrier: the counter goes on from where it is
        state.call[:3] = token_id, self.cache.length, state.counter[0] // n_threads
        for thread in range(1, n_threads):
            if not call(state.flags[thread]):
                self.others.submit(kernels.step, thread, n_threads, *shared)
        kernels.step(0, n_threads, *shared)

    def _plan(self, model: Model) -> Array:  # -> (n_layers + 1, n_columns) int64
        """Return where all of a model lies: a row a layer; the last is for embedding, last norm, head."""
        plan = np.zeros((self.dims.n_layers + 1, len(kernels.COLUMNS)), np.int64)
        for layer, block in enumerate(model.blocks):
            plan[layer, : kernels.ROWS] = [
                _address(block.get(name)) for name in kernels.COLUMNS[: kernels.ROWS]
            ]
            plan[layer, kernels.N_STORED] = len(block["mlp.w_in"])
        params = model.params
        rest = (*(params.get(name) for name in ("embed", "pos_embed", "ln_f.w", "ln_f.b")), model.head)
        plan[-1, : len(rest)] = [_address(w) for w in rest]
        return plan

    def _compile(self) -> float:
        """Run one step outside anybody's timing, if it is the first of its kind; return the seconds taken."""
        began, kind = time.perf_counter(), (self.like.dtype, self.keys.dtype)
        if kind not in _compiled and self.cache.length < self.cache.capacity:
            self._run(0)  # what it writes to the cache the next step overwrites
            self.state.n_used[:] = 0
            _compiled.add(kind)
        settle(kind)
        return time.perf_counter() - began


def _address(w: Array | QuantizedMatrix | None) -> int:
    """Return where an array lies, 0 for none; its owner must outlive the plan."""
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


def _state(dims: kernels.Dims, n_threads: int, capacity: int) -> kernels.State:
    """Return a decoder's buffers."""
    d, n_q, n_kv = dims.d_model, dims.n_heads * dims.d_head, dims.n_kv_heads * dims.d_head
    group, share = dims.n_heads // dims.n_kv_heads, -(-capacity // n_threads)

    def buffer(*shape: int, dtype: type = np.float32) -> Array:
        return np.zeros(shape, dtype)

    line = 16  # floats in a cache line: threads do not write to one another's
    return kernels.State(
        x=buffer(n_threads, d),
        normed=buffer(n_threads, input_size(d)),
        q=buffer(n_threads, n_q),
        q_scales=buffer(n_threads, dims.n_heads + line),
        z=buffer(n_threads, input_size(n_q)),
        block=buffer(n_threads, 2, kernels.BLOCK),
        chosen=buffer(n_threads, kernels.BLOCK, dtype=np.int32),
        scores=buffer(n_threads, group, share),
        rotation=buffer(n_threads, 2, max(dims.d_head // 2, line)),
        part=buffer(n_threads, n_groups(d) * GROUP + line),
        qkv=buffer(n_q + 2 * n_kv),
        mixed=buffer(n_threads, n_q),
        top=buffer(n_threads, dims.n_heads + line),
        mass=buffer(n_threads, dims.n_heads + line),
        out=buffer(d),
        logits=buffer(dims.n_vocab),
        n_used=buffer(n_threads, dims.n_layers, dtype=np.int64),
        call=buffer(line, dtype=np.int64),
        flags=buffer(n_threads, line, dtype=np.int64),
        counter=buffer(line, dtype=np.int64),
    )


def kernels_cached(reading: bool = True) -> bool:
    """Say whether the machine code of decoding, and of reading prompts, is on disk already."""
    for kernel in (kernels.step, compiled.causal_softmax)[: 1 + reading]:
        folder, module = Path(kernel.stats.cache_path), kernel.py_func.__module__.rpartition(".")[2]
        if not any(folder.glob(f"{module}.{kernel.__name__}-*.nbc")):
            return False
    return True
