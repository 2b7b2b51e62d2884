"""Prompts on a GPU, with the weights and into the kv cache that decoding has there; sums over tokens too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minicore import ops
from minicore.backends.cuda.decoder import weights_of
from minicore.backends.cuda.kernels import prefill as kernels
from minicore.backends.cuda.kernels.decode import shape as layout
from minicore.backends.cuda.kernels.intrinsics import SIMULATED
from minicore.backends.cuda.kv_cache import DeviceStorage, device_storage
from minicore.backends.cuda.memory import allocate
from minicore.backends.dims import ACTIVATION_CODES
from minicore.core.statistics import GATE_SHIFT, STATISTICS
from minicore.errors import InputError
from minicore.forward import Hooks
from minicore.kv_cache import KVCache
from minicore.model import Model
from minicore.quantization import n_groups

Array = np.ndarray

CHUNK = 512  # tokens at a time: scores are (n_heads, 512, positions)
TENSOR_CORES = (8, 0)  # the compute capability from which they multiply bfloat16
BLOCK = 256  # threads of kernels that pass over numbers
TOKEN = kernels.ROW_WARPS * kernels.WARP_SIZE  # threads of kernels with a block a token


def _blocks(n: int, size: int = BLOCK) -> int:
    return -(-n // size)


class Rows:
    """Activations (n_tokens, n_neurons) on the device, as a recording takes them.

    Parameters
    ----------
    array : (n_tokens * n_neurons,) float32 device array
    n_neurons : int
    bad : (1,) device array
        Not 0 if there is NaN or infinity among them.
    """

    ndim = 2

    def __init__(self, array: Any, n_neurons: int, bad: Any) -> None:
        self.array, self.bad = array, bad
        self.shape = array.size // n_neurons, n_neurons

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, tokens: slice) -> Rows:
        first, last, _ = tokens.indices(len(self))
        return Rows(
            self.array[first * self.shape[1] : max(last, first) * self.shape[1]], self.shape[1], self.bad
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.array.copy_to_host().reshape(self.shape).astype(dtype or np.float32, copy=False)

    def fetch_if_not_finite(self) -> Array:
        """Return them if there may be NaN or infinity among them, else an empty array."""
        return np.asarray(self) if self.bad.copy_to_host()[0] else np.empty(0, np.float32)

    def adder(self, name: str) -> Callable[[Array, Rows, float], Array]:
        """Return what adds them to a statistic: on the device, or fetched first, where that has no kernel."""
        return ADDERS.get(name) or (lambda total, a, alpha: STATISTICS[name].add(total, np.asarray(a), alpha))


def _counted(n: int, count: Callable[[Any], None]) -> Array:  # -> (n,) int32
    """Return what a kernel counted, from zeros up."""
    from numba import cuda

    counts = cuda.to_device(np.zeros(n, np.int32))
    count(counts)
    return counts.copy_to_host()


def _add_cores(magnitude: bool, total: Array, a: Rows, alpha: float) -> Array:
    n, width = a.shape
    if n:
        kernel = kernels.count_cores[n, TOKEN]
        total += _counted(width, lambda counts: kernel(a.array, width, float(alpha), magnitude, counts))
    return total


def _add_positives(total: Array, a: Rows, alpha: float) -> Array:  # (2,), ...
    n, width = a.shape
    if n:
        kernel = kernels.count_positives[n, TOKEN]
        total += n, _counted(1, lambda counts: kernel(a.array, width, counts))[0]
    return total


def _add_gate_bins(total: Array, a: Rows, alpha: float) -> Array:  # (n_bins,), ...
    size = a.array.size
    if size:
        kernel = kernels.count_bins[_blocks(size), BLOCK]
        total += _counted(len(total), lambda counts: kernel(a.array, size, counts))
    return total


def _add_relative_energy(total: Array, a: Rows, alpha: float) -> Array:  # (n_neurons,) float64, ...
    from numba import cuda

    n, width = a.shape
    if n:
        whole, sums = allocate(n, np.float64), cuda.to_device(total)
        kernels.token_energies[n, TOKEN](a.array, width, whole)
        kernels.add_relative_energy[_blocks(width), BLOCK](a.array, n, width, whole, sums)
        total = sums.copy_to_host()
    return total


assert kernels.BINS_SHIFT == GATE_SHIFT
ADDERS: dict[str, Callable[[Array, Rows, float], Array]] = {
    "counts": lambda total, a, alpha: _add_cores(False, total, a, alpha),
    "magnitude_counts": lambda total, a, alpha: _add_cores(True, total, a, alpha),
    "relative_energy": _add_relative_energy,
    "positives": _add_positives,
    "gate_bins": _add_gate_bins,
}


class CudaPrefill:
    """Reads prompts on an NVIDIA GPU with a model's weights there, or lent to it if memory is limited.

    Parameters
    ----------
    model : Model
    memory_limit : int or None
        Bytes of device memory.
    """

    def __init__(self, model: Model, memory_limit: int | None = None) -> None:
        from numba import cuda

        self.model, self.memory_limit = model, memory_limit
        self.weights = weights_of(model, lent=memory_limit is not None)
        cfg = model.config
        rope = cfg.positions == "rope"
        self.frequencies = cuda.to_device(ops.rope_frequencies(cfg) if rope else np.zeros(1, np.float32))
        self.bad = cuda.to_device(np.zeros(1, np.int32))
        self.buffers: dict[str, tuple[Any, Any]] = {}
        self.tensor_cores = False
        if not SIMULATED:
            capability = tuple(cuda.get_current_device().compute_capability)
            self.tensor_cores = self.weights.dtype == "bfloat16" and capability >= TENSOR_CORES
            self.read(np.zeros(1, np.int64), KVCache(cfg, 1), {})  # compiled outside anybody's timing

    def clear(self) -> None:
        """Free the buffers of the prompt read last."""
        self.buffers.clear()

    def read(self, ids: Array, cache: KVCache, hooks: Hooks) -> Array:  # (n,) -> (n_vocab,)
        """Read a prompt after what the kv cache holds and return the logits after its last token.

        Hooks of ``mlp.hook_post`` and ``mlp.hook_gate`` get the activations as :class:`Rows`.
        """
        cache.check_room(len(ids))
        self.check_limit(cache, min(len(ids), CHUNK), cache.length + len(ids))
        held = device_storage(cache)
        self.bad.copy_to_device(np.zeros(1, np.int32))
        for first in range(0, len(ids), CHUNK):
            chunk = np.asarray(ids[first : first + CHUNK], np.int64)
            self._embed(chunk, cache.length)
            for layer, ffn, plan in self.weights.ffns(range(self.model.config.n_layers)):
                self._attend(layer, len(chunk), cache, held)
                self._feed_forward(layer, ffn, plan, len(chunk), hooks)
            held.written()
            cache.length += len(chunk)
        return self._logits(len(chunk))

    def check_limit(self, cache: KVCache, n: int, end: int) -> None:
        """Raise InputError if reading n tokens at once, up to a position, takes more than the limit."""
        cfg = self.model.config
        heads, hidden = cfg.n_heads * (2 * cfg.d_head + end), (2 if cfg.gated else 1) * cfg.n_neurons
        a_token = 2 * cfg.d_model + heads + 2 * cfg.n_kv_heads * cfg.d_head + hidden
        needed = self.weights.nbytes + 4 * (2 * math.prod(cache.shape) + n * a_token + cfg.n_vocab)
        if self.memory_limit is not None and needed > self.memory_limit:
            raise InputError(
                f"memory_limit is {self.memory_limit} bytes, but {needed} are needed on the GPU to read "
                f"{end} tokens; expected a higher limit, a shorter prompt or fewer new tokens"
            )

    def _buffer(self, name: str, size: int) -> Any:
        """Return so many first numbers of a buffer, made anew if it has to grow."""
        whole, part = self.buffers.get(name, (None, None))
        if part is None or part.size != size:  # a view costs as much as a launch: it is kept
            if whole is None or whole.size < size:
                self.buffers.pop(name, None)  # its memory is free before more is asked for
                whole = part = None
                whole = allocate(size, np.float32)
            part = whole[:size]
            self.buffers[name] = whole, part
        return part

    def _product(
        self, x: Any, arena: Any, at: int, biases: Any, b: int, y: Any, n: int, k: int, m: int, *,
        add: bool = False, steps: tuple[int, int] | None = None, transposed: bool = False,
    ) -> None:  # fmt: skip
        """Multiply rows by a matrix, or by two that lie some units apart, as their biases do.

        Rows are rounded first if the matrix is int8, unless it is the transposed one.
        """
        int8 = self.weights.dtype == "int8"
        if int8 and not transposed:
            kernels.fake_quantize_rows[_blocks(n * n_groups(k)), BLOCK](x, n, k)
        grid = _blocks(m, kernels.TILE), _blocks(n, kernels.TILE), 2 if steps else 1
        if self.tensor_cores and k % 8 == 0:
            kernel = kernels.make_tensor_core_product()[grid, 4 * kernels.WARP_SIZE]
        else:
            kernel = kernels.make_product(self.weights.shift, int8 and transposed)[
                grid, kernels.PRODUCT_THREADS
            ]
        kernel(x, arena, int(at), biases, int(b), y, n, k, m, *map(int, steps or (0, 0)), add)

    def _embed(self, ids: Array, first: int) -> None:  # (n,)
        from numba import cuda

        cfg, places, d = self.model.config, self.weights.layout, self.model.config.d_model
        kernels.embed[len(ids), TOKEN](
            *(self.weights.fixed, cuda.to_device(ids), self._buffer("x", len(ids) * d)),
            *(places[layout.EMBED], places[layout.POS_EMBED], first + cfg.position_offset),
            *(d, layout.row_chunks(d, self.weights.shift), self.weights.shift),
        )

    def _place(self, column: int, layer: int) -> int:
        """Return where a layer's part lies, -1 if the model has none."""
        at = self.weights.layout[column]
        return at if at < 0 else at + layer * self.weights.layout[layout.LAYER]

    def _norm(self, x: Any, n: int, w: int, b: int) -> Any:  # -> (n * d_model,)
        cfg, y = self.model.config, self._buffer("normed", n * self.model.config.d_model)
        kernels.norm[n, TOKEN](
            x, self.weights.fixed, w, b, cfg.d_model, cfg.norm == "layernorm", np.float32(cfg.norm_eps), y
        )
        return y

    def _attend(self, layer: int, n: int, cache: KVCache, held: DeviceStorage) -> None:
        """Add a layer's attention to the residual stream and write its keys and values."""
        cfg, fixed, first = self.model.config, self.weights.fixed, cache.length
        heads, n_q, width = (cfg.n_heads, cfg.n_kv_heads, cfg.d_head), cfg.n_heads * cfg.d_head, cfg.d_model
        n_qkv, end, rows = n_q + 2 * cfg.n_kv_heads * cfg.d_head, first + n, _blocks(n, kernels.TILE)
        row0, capacity = layer * cfg.n_kv_heads * cache.capacity, cache.capacity
        x, qkv, z = self._buffer("x", n * width), self._buffer("qkv", n * n_qkv), self._buffer("z", n * n_q)
        pattern = self._buffer("pattern", cfg.n_heads * n * end)
        w_qkv, b_qkv, w_o, b_o, w, b = (
            self._place(column, layer)
            for column in (layout.W_QKV, layout.B_QKV, layout.W_O, layout.B_O, layout.LN1_W, layout.LN1_B)
        )
        self._product(self._norm(x, n, w, b), fixed, w_qkv, fixed, b_qkv, qkv, n, width, n_qkv)
        kernels.rotate[n, TOKEN](
            *(qkv, self.frequencies, held.device_keys, held.device_values, row0, capacity, first, *heads),
            *(cfg.positions == "rope", cache.rounds),
        )
        kernels.scores[(_blocks(end, kernels.TILE), rows, cfg.n_heads), kernels.PRODUCT_THREADS](
            fixed, qkv, held.device_keys, pattern, row0, capacity, first, n, *heads
        )
        kernels.softmax[(n, cfg.n_heads), TOKEN](pattern, first, n, np.float32(1 / np.sqrt(cfg.d_head)))
        kernels.weighted_values[
            (_blocks(cfg.d_head, kernels.TILE), rows, cfg.n_heads), kernels.PRODUCT_THREADS
        ](fixed, pattern, held.device_values, z, row0, capacity, first, n, *heads)
        self._product(z, fixed, w_o, fixed, b_o, x, n, n_q, width, add=True)

    def _feed_forward(self, layer: int, ffn: Any, plan: Array, n: int, hooks: Hooks) -> None:
        """Add a layer's FFN to the residual stream and show its activations to the hooks."""
        cfg = self.model.config
        d, m = cfg.d_model, int(plan[layout.N_ROWS])
        x, hidden = self._buffer("x", n * d), self._buffer("hidden", (2 if cfg.gated else 1) * n * m)
        normed = self._norm(x, n, self._place(layout.LN2_W, layer), self._place(layout.LN2_B, layer))
        w, b = plan[layout.W_IN], plan[layout.B_IN]
        steps = (plan[layout.W_GATE] - w, plan[layout.B_GATE] - b) if cfg.gated else None
        self._product(normed, ffn, w, ffn, b, hidden, n, d, m, steps=steps)
        kernels.activations[_blocks(n * m), BLOCK](
            hidden, n * m, ACTIVATION_CODES[cfg.activation], cfg.gated, self.bad
        )
        for k, name in enumerate(("hook_post", "hook_gate")):
            if (full := f"blocks.{layer}.mlp.{name}") in hooks:
                hooks[full](Rows(hidden[k * n * m : (k + 1) * n * m], m, self.bad))  # type: ignore[arg-type]
        w, b = plan[layout.W_OUT], self._place(layout.B_OUT, layer)
        self._product(hidden, ffn, w, self.weights.fixed, b, x, n, m, d, add=True, transposed=True)

    def _logits(self, n: int) -> Array:  # -> (n_vocab,)
        """Return the logits after the last of n tokens."""
        cfg, places = self.model.config, self.weights.layout
        x, y = self._buffer("x", n * cfg.d_model), self._buffer("logits", cfg.n_vocab)
        last = self._norm(x[(n - 1) * cfg.d_model :], 1, places[layout.LN_F_W], places[layout.LN_F_B])
        fixed = self.weights.fixed
        self._product(last, fixed, places[layout.HEAD], fixed, -1, y, 1, cfg.d_model, cfg.n_vocab)
        logits: Array = y.copy_to_host()
        return logits
