"""The GPU decoder: weights, kv cache, position and token stay on the GPU, and a launch reads many tokens."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from minicore import ops
from minicore.backends.cuda.core_rows import CoreRows
from minicore.backends.cuda.graph import GraphStep
from minicore.backends.cuda.grid import decode_shape
from minicore.backends.cuda.kernels.decode.phases import BEGIN
from minicore.backends.cuda.kernels.decode.shape import N_COUNTERS
from minicore.backends.cuda.kernels.decode.sizes import Arrays
from minicore.backends.cuda.kernels.decode.step import launch_step, make_step
from minicore.backends.cuda.kernels.launch import configured
from minicore.backends.cuda.kv_cache import device_storage
from minicore.backends.cuda.weights import weights_of
from minicore.backends.numpy import NumpyDecoder, run_by_steps
from minicore.backends.protocol import DecoderStats
from minicore.core.neurons import CoreSet
from minicore.core.rules import GATE, Selection, TokenRule
from minicore.errors import InputError
from minicore.kv_cache import KVCache
from minicore.model import Model

Array = np.ndarray

TOKENS_PER_LAUNCH = 32


class CudaDecoder:
    """Decodes on an NVIDIA GPU.

    Parameters
    ----------
    model : Model
    cache : KVCache
        Holds the prompt; it moves to the GPU.
    selection : CoreSet, TokenRule or None
        As :meth:`use` takes it.
    n_blocks, n_threads : int or None
        Blocks of the grid and threads of a block; None is what suits the GPU and the model.
    memory_limit : int or None
        Bytes of GPU memory. With a limit, FFN weights stay in host memory except the selected rows.
    graph : bool
        Decode with a captured graph of a launch per phase instead of the persistent kernel.

    Attributes
    ----------
    shape : Shape
        What the kernel is compiled for.
    compile_s : float
        Seconds spent on getting machine code.
    token_buffers : two (TOKENS_PER_LAUNCH,) int32 arrays
        Memory that the GPU writes and the host reads. A launch fills one while the host reads the other.
    """

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        selection: Selection | None = None,
        n_blocks: int | None = None,
        n_threads: int | None = None,
        memory_limit: int | None = None,
        graph: bool = False,
    ) -> None:
        from numba import cuda

        cfg = model.config
        self.model, self.cache, self.memory_limit = model, cache, memory_limit
        self.weights = weights_of(model, offload_ffn=memory_limit is not None)
        self.shape = decode_shape(cfg, self.weights, cache, n_blocks, n_threads)
        self._rows = CoreRows(self.weights, self.shape)
        self._epoch = 1  # tokens read by launches, plus 1
        self.check_limit(selection)
        rope = cfg.positions == "rope"
        self._frequencies = cuda.to_device(ops.rope_frequencies(cfg) if rope else np.zeros(1, np.float32))
        self._words = cuda.to_device(np.zeros(2 * self.shape.words().end, np.uint32))
        self._logits = cuda.device_array(cfg.n_vocab, np.float32)
        self._next_token = cuda.to_device(np.zeros(1, np.int32))
        self._n_used = cuda.to_device(np.zeros(cfg.n_layers, np.int64))
        self._counters = cuda.to_device(np.zeros(2 * cfg.n_layers * N_COUNTERS, np.int32))
        self.token_buffers = [cuda.mapped_array(TOKENS_PER_LAUNCH, np.int32) for _ in range(2)]
        began = time.perf_counter()
        self._graph_step = GraphStep(self.shape, self.shared_bytes) if graph else None
        self._step = self._graph_step or self.persistent_step()
        self.compile_s = time.perf_counter() - began
        self._reference: NumpyDecoder | None = None
        self._n_steps, self._read_by_reference = 0, np.zeros(cfg.n_layers, np.int64)
        self.use(selection)
        self._fixed, self._ffn = self.weights.fixed, self.weights.ffn

    def persistent_step(self) -> Callable[..., None]:
        """Return :func:`launch_step` with the kernel of this decoder's shape."""
        kernel = configured(
            make_step(self.shape), self.shape.n_blocks, self.shape.n_threads, self.shared_bytes
        )
        return partial(launch_step, kernel)

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory of a block."""
        return self.shape.shared_bytes(self.cache.capacity)

    def use(self, selection: Selection | None) -> None:
        """Decode with this selection, after what the kv cache holds, from the next step on."""
        from numba import cuda

        if self._reference:
            self._read_by_reference += self._reference.neurons_read
        top = isinstance(selection, TokenRule) and selection.kind == "top"
        self._reference = NumpyDecoder(self.model, self.cache, selection) if top else None
        self.model.check_selection(selection)
        self.check_limit(selection)
        self._ffn_layout = cuda.to_device(self._rows.gather(selection).reshape(-1))
        thresholds = np.full(self.shape.n_layers, -1, np.float32)
        if isinstance(selection, TokenRule):
            for layer in range(self.shape.n_layers):
                thresholds[layer] = selection.parameters(layer).get(GATE, -1)
        self._thresholds = cuda.to_device(thresholds)
        self._storage = device_storage(self.cache)
        if self._graph_step:
            self._graph_step.forget_graphs()

    def check_limit(self, selection: Selection | None) -> None:
        """Raise InputError if decoding with this selection takes more GPU memory than the limit."""
        needed = self.bytes_needed(selection)
        if self.memory_limit is not None and needed > self.memory_limit:
            share = selection.fraction if isinstance(selection, CoreSet) else 1
            raise InputError(
                f"memory_limit is {self.memory_limit} bytes, but {needed} are needed on the GPU with "
                f"{share:.0%} of the neurons; expected a higher limit or a smaller beta"
            )

    def bytes_needed(self, selection: Selection | None) -> int:
        """Return the bytes of GPU arrays whose size depends on the model, decoding with a selection."""
        rows = max(self._rows.layout(selection)[1], self._rows.nbytes)
        kv, words = 2 * 4 * math.prod(self.cache.shape), 8 * self.shape.words().end
        return self.weights.nbytes + rows + kv + words + 4 * self.shape.n_vocab

    @property
    def runs_ahead(self) -> bool:
        """Whether the GPU picks tokens. NumPy does with a rule that keeps the k largest activations."""
        return self._reference is None

    @property
    def stats(self) -> DecoderStats:
        """Tokens read so far, and activations that were not zero."""
        read = self._n_used.copy_to_host() + self._read_by_reference
        if self._reference:
            read += self._reference.neurons_read
        held = [self._fixed, self._ffn, self._rows.array, self._words, self._logits]
        held += self.weights.offloaded.buffers if self.weights.offload_ffn else []
        return DecoderStats(
            n_steps=self._n_steps,
            neurons_read=read,
            kv_bytes=self._storage.nbytes,
            device_bytes=self._storage.nbytes + sum(int(array.nbytes) for array in held),
            compile_s=self.compile_s,
        )

    def flush(self) -> None:
        """Do nothing: the cache's storage fetches what it is asked for."""

    def step(self, token_id: int) -> Array:  # -> (n_vocab,) float32
        """Read one token into the kv cache and return the logits after it."""
        if self._reference:
            self._n_steps += 1
            return self._reference.step(token_id)
        self.set_token(token_id)
        self.launch(1, self.token_buffers[0])
        return self._logits.copy_to_host()

    def run(self, token_id: int, n: int, temperature: float = 0.0, seed: int = 0) -> Iterator[int]:
        """Read a token and yield the n tokens chosen after it, one by one, while the GPU reads on.

        Parameters
        ----------
        token_id, n : int
        temperature : float
            0 takes the largest logit. Above it the GPU samples from the softmax of logits / temperature.
        seed : int
            Samples are a function of seed, position and logits.
        """
        from numba import cuda

        if self._reference:
            yield from run_by_steps(self, self.cache, token_id, n, temperature, seed)
            return
        self.set_token(token_id)
        launched: deque[tuple[Any, Any]] = deque()
        for i, first in enumerate(range(0, n, TOKENS_PER_LAUNCH)):
            size, finished = min(TOKENS_PER_LAUNCH, n - first), cuda.event()
            tokens = self.token_buffers[i % 2]
            self.launch(size, tokens, temperature, seed)
            finished.record()
            launched.append((finished, tokens[:size]))
            if len(launched) == 2:
                yield from _wait_for(launched.popleft())
        while launched:
            yield from _wait_for(launched.popleft())

    def set_token(self, token_id: int) -> None:
        """Set the token that the next launch reads first. Later launches continue by themselves."""
        self._next_token.copy_to_device(np.array([token_id], np.int32))

    def launch(self, n: int, tokens: Any, temperature: float = 0.0, seed: int = 0) -> None:
        """Read n tokens and write those chosen after them to tokens[:n], without waiting for the GPU."""
        if self.cache.length + n > self.cache.capacity:
            raise InputError(
                f"{self.cache.length + n} tokens do not fit the kv cache's {self.cache.capacity} positions"
            )
        self._step(
            self._arrays(tokens),
            n=n,
            position=self.cache.length,
            epoch=self._epoch,
            temperature=temperature,
            seed=seed,
        )
        self._storage.written()
        self.cache.length += n
        self._n_steps += n
        self._epoch += n

    def launch_phases(self, step: GraphStep) -> Iterator[int]:
        """Read one token, which is not kept, by a launch per phase; yield each phase that was launched."""
        arrays = self._arrays(self.token_buffers[0])
        step.begin(arrays, position=self.cache.length, epoch=self._epoch)
        yield BEGIN
        for phase, layer in step.order():
            step.launch(arrays, phase, layer)
            yield phase
        self._epoch += 1

    def _arrays(self, tokens: Any) -> Arrays:
        """Return the arrays of a launch that writes these tokens."""
        return Arrays(
            fixed=self._fixed,
            dense=self._ffn,
            core=self._rows.array,
            ffn_layout=self._ffn_layout,
            thresholds=self._thresholds,
            frequencies=self._frequencies,
            keys=self._storage.device_keys,
            values=self._storage.device_values,
            words=self._words,
            next_token=self._next_token,
            logits=self._logits,
            tokens=tokens,
            n_used=self._n_used,
            counters=self._counters,
        )


def _wait_for(launch: tuple[Any, Any]) -> list[int]:
    """Wait for a launch and return its tokens."""
    finished, tokens = launch
    finished.synchronize()
    return [int(token) for token in tokens]
