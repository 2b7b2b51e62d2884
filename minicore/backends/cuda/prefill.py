"""Reading prompts on a GPU, with the weights and the kv cache that decoding uses there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minicore import ops
from minicore.backends.cuda.kernels.decode import shape as layout
from minicore.backends.cuda.kernels.intrinsics import SIMULATED, WARP_SIZE
from minicore.backends.cuda.kernels.prefill import attention, elementwise, norms
from minicore.backends.cuda.kernels.prefill.products import PRODUCT_THREADS, TILE, make_product
from minicore.backends.cuda.kernels.prefill.tensor_cores import make_tensor_core_product
from minicore.backends.cuda.kv_cache import DeviceStorage, device_storage
from minicore.backends.cuda.memory import allocate
from minicore.backends.cuda.statistics import ELEMENT_THREADS, ROW_THREADS, DeviceRows, blocks_for
from minicore.backends.cuda.weights import weights_of
from minicore.backends.dims import ACTIVATION_CODES
from minicore.errors import InputError
from minicore.forward import Hooks
from minicore.kv_cache import KVCache
from minicore.model import Model
from minicore.quantization import n_groups

Array = np.ndarray

CHUNK = 512  # tokens read at a time: scores are (n_heads, 512, positions)
TENSOR_CORES = (8, 0)  # the compute capability from which they multiply bfloat16


class Linear(NamedTuple):
    """Matrices (n_out, n_in) with biases in arenas, which all multiply the same input.

    A named tuple, since it is made for every product of every layer: a frozen dataclass takes three times as
    long to make.

    Attributes
    ----------
    arena, biases : uint32 device array
    start, bias : int
        First chunks; a bias of -1 is none.
    n_in, n_out : int
    n_matrices, start_step, bias_step : int
        Matrices, and chunks from one matrix or bias to the next.
    transposed : bool
        Whether it is the transposed w_out: if it is int8 its input is not quantized.
    """

    arena: Any
    start: int
    biases: Any
    bias: int
    n_in: int
    n_out: int
    n_matrices: int = 1
    start_step: int = 0
    bias_step: int = 0
    transposed: bool = False


class CudaPrefill:
    """Reads prompts on an NVIDIA GPU.

    Parameters
    ----------
    model : Model
    memory_limit : int or None
        Bytes of GPU memory. With a limit, FFN weights stay in host memory and pass through the GPU.
    """

    def __init__(self, model: Model, memory_limit: int | None = None) -> None:
        from numba import cuda

        self.model, self.memory_limit = model, memory_limit
        self.weights = weights_of(model, offload_ffn=memory_limit is not None)
        cfg = model.config
        rope = cfg.positions == "rope"
        self._frequencies = cuda.to_device(ops.rope_frequencies(cfg) if rope else np.zeros(1, np.float32))
        self._not_finite = cuda.to_device(np.zeros(1, np.int32))
        self._buffers: dict[str, tuple[Any, Any]] = {}
        self._tensor_cores = False
        if not SIMULATED:
            capability = tuple(cuda.get_current_device().compute_capability)
            self._tensor_cores = self.weights.dtype == "bfloat16" and capability >= TENSOR_CORES
            self.read(np.zeros(1, np.int64), KVCache(cfg, 1), {})  # compile outside of anybody's timing

    def clear(self) -> None:
        """Free the buffers of the last prompt."""
        self._buffers.clear()

    def read(self, ids: Array, cache: KVCache, hooks: Hooks) -> Array:  # (n,) -> (n_vocab,)
        """Read a prompt after what the kv cache holds and return the logits after its last token.

        Hooks of ``mlp.hook_post`` and ``mlp.hook_gate`` get the activations as :class:`DeviceRows`.
        """
        cache.check_room(len(ids))
        self.check_limit(cache, min(len(ids), CHUNK), cache.length + len(ids))
        storage = device_storage(cache)
        self._not_finite.copy_to_device(np.zeros(1, np.int32))
        for first in range(0, len(ids), CHUNK):
            chunk = np.asarray(ids[first : first + CHUNK], np.int64)
            self._embed(chunk, cache.length)
            for layer, ffn, ffn_layout in self.weights.ffns(range(self.model.config.n_layers)):
                self._attend(layer, len(chunk), cache, storage)
                self._feed_forward(layer, ffn, ffn_layout, len(chunk), hooks)
            storage.written()
            cache.length += len(chunk)
        return self._logits(len(chunk))

    def check_limit(self, cache: KVCache, n: int, end: int) -> None:
        """Raise InputError if reading n tokens at once, up to position ``end``, takes more than the limit."""
        cfg = self.model.config
        heads, hidden = cfg.n_heads * (2 * cfg.d_head + end), (2 if cfg.gated else 1) * cfg.n_neurons
        per_token = 2 * cfg.d_model + heads + 2 * cfg.n_kv_heads * cfg.d_head + hidden
        needed = self.weights.nbytes + 4 * (2 * math.prod(cache.shape) + n * per_token + cfg.n_vocab)
        if self.memory_limit is not None and needed > self.memory_limit:
            raise InputError(
                f"memory_limit is {self.memory_limit} bytes, but {needed} are needed on the GPU to read "
                f"{end} tokens; expected a higher limit, a shorter prompt or fewer new tokens"
            )

    def _embed(self, ids: Array, first: int) -> None:  # (n,)
        """Start the residual stream with the embeddings of tokens and of positions from ``first`` on."""
        from numba import cuda

        cfg, starts, shift = self.model.config, self.weights.layout, self.weights.shift
        x = self._buffer("x", len(ids) * cfg.d_model)
        norms.embed[len(ids), ROW_THREADS](
            self.weights.fixed,
            cuda.to_device(ids),
            x,
            starts[layout.EMBED],
            starts[layout.POS_EMBED],
            first + cfg.position_offset,
            cfg.d_model,
            layout.row_chunks(cfg.d_model, shift),
            shift,
        )

    def _attend(self, layer: int, n: int, cache: KVCache, storage: DeviceStorage) -> None:
        """Add a layer's attention to the residual stream and write its keys and values."""
        cfg, fixed, first, capacity = self.model.config, self.weights.fixed, cache.length, cache.capacity
        n_heads, n_kv_heads, d_head, d_model = cfg.n_heads, cfg.n_kv_heads, cfg.d_head, cfg.d_model
        n_q, n_qkv, end = n_heads * d_head, (n_heads + 2 * n_kv_heads) * d_head, first + n
        row0, keys, values = layer * n_kv_heads * capacity, storage.device_keys, storage.device_values
        x, qkv = self._buffer("x", n * d_model), self._buffer("qkv", n * n_qkv)
        weights, attended = self._buffer("pattern", n_heads * n * end), self._buffer("z", n * n_q)
        normed = self._norm(x, n, self._start(layout.LN1_W, layer), self._start(layout.LN1_B, layer))
        self._multiply(normed, qkv, n, self._fixed(layout.W_QKV, layout.B_QKV, layer, d_model, n_qkv))
        attention.rotate[n, ROW_THREADS](
            qkv, self._frequencies, keys, values, row0, capacity, first,
            n_heads, n_kv_heads, d_head, cfg.positions == "rope", cache.rounds,
        )  # fmt: skip
        row_tiles = blocks_for(n, TILE)
        attention.scores[(blocks_for(end, TILE), row_tiles, n_heads), PRODUCT_THREADS](
            fixed, qkv, keys, weights, row0, capacity, first, n, n_heads, n_kv_heads, d_head
        )
        scale = np.float32(1 / np.sqrt(d_head))
        attention.softmax[(n, n_heads), ROW_THREADS](weights, first, n, scale)
        attention.weighted_values[(blocks_for(d_head, TILE), row_tiles, n_heads), PRODUCT_THREADS](
            fixed, weights, values, attended, row0, capacity, first, n, n_heads, n_kv_heads, d_head
        )
        self._multiply(attended, x, n, self._fixed(layout.W_O, layout.B_O, layer, n_q, d_model), add=True)

    def _feed_forward(self, layer: int, ffn: Any, f: Array, n: int, hooks: Hooks) -> None:
        """Add a layer's FFN, with layout f, to the residual stream and pass its activations to hooks."""
        cfg = self.model.config
        d_model, n_neurons, n_matrices = cfg.d_model, int(f[layout.N_ROWS]), 2 if cfg.gated else 1
        size = n * n_neurons
        x, hidden = self._buffer("x", n * d_model), self._buffer("hidden", n_matrices * size)
        normed = self._norm(x, n, self._start(layout.LN2_W, layer), self._start(layout.LN2_B, layer))
        up = Linear(
            arena=ffn,
            start=int(f[layout.W_IN]),
            biases=ffn,
            bias=int(f[layout.B_IN]),
            n_in=d_model,
            n_out=n_neurons,
            n_matrices=n_matrices,
            start_step=int(f[layout.W_GATE] - f[layout.W_IN]),
            bias_step=int(f[layout.B_GATE] - f[layout.B_IN]),
        )
        self._multiply(normed, hidden, n, up)
        elementwise.activations[blocks_for(size), ELEMENT_THREADS](
            hidden, size, ACTIVATION_CODES[cfg.activation], cfg.gated, self._not_finite
        )
        for k, name in enumerate(("hook_post", "hook_gate")):
            hook: Callable[[Any], None] | None = hooks.get(f"blocks.{layer}.mlp.{name}")
            if hook:
                hook(DeviceRows(hidden[k * size : (k + 1) * size], n_neurons, self._not_finite))
        down = Linear(
            arena=ffn,
            start=int(f[layout.W_OUT]),
            biases=self.weights.fixed,
            bias=self._start(layout.B_OUT, layer),
            n_in=n_neurons,
            n_out=d_model,
            transposed=True,
        )
        self._multiply(hidden, x, n, down, add=True)

    def _logits(self, n: int) -> Array:  # -> (n_vocab,)
        """Return the logits after the last of n tokens."""
        cfg, starts, fixed = self.model.config, self.weights.layout, self.weights.fixed
        x, y = self._buffer("x", n * cfg.d_model), self._buffer("logits", cfg.n_vocab)
        last = self._norm(x[(n - 1) * cfg.d_model :], 1, starts[layout.LN_F_W], starts[layout.LN_F_B])
        head = Linear(
            arena=fixed, start=starts[layout.HEAD], biases=fixed, bias=-1, n_in=cfg.d_model, n_out=cfg.n_vocab
        )
        self._multiply(last, y, 1, head)
        logits: Array = y.copy_to_host()
        return logits

    def _norm(self, x: Any, n: int, w: int, b: int) -> Any:  # (n * d_model,) -> (n * d_model,)
        """Return the norms of n rows; weights and biases start at chunks w and b."""
        cfg, y = self.model.config, self._buffer("normed", n * self.model.config.d_model)
        layer_norm, eps = cfg.norm == "layernorm", np.float32(cfg.norm_eps)
        norms.norm[n, ROW_THREADS](x, self.weights.fixed, w, b, cfg.d_model, layer_norm, eps, y)
        return y

    def _multiply(self, x: Any, y: Any, n: int, linear: Linear, add: bool = False) -> None:
        """Multiply n rows x by matrices and write the products to y, or add them to y.

        Before an int8 matrix x is quantized and dequantized in place, except before the transposed w_out.
        """
        n_in, n_out, int8 = linear.n_in, linear.n_out, self.weights.dtype == "int8"
        if int8 and not linear.transposed:
            elementwise.fake_quantize_rows[blocks_for(n * n_groups(n_in)), ELEMENT_THREADS](x, n, n_in)
        grid = blocks_for(n_out, TILE), blocks_for(n, TILE), linear.n_matrices
        if self._tensor_cores and n_in % 8 == 0:
            kernel = make_tensor_core_product()[grid, 4 * WARP_SIZE]
        else:
            kernel = make_product(self.weights.shift, int8 and linear.transposed)[grid, PRODUCT_THREADS]
        kernel(
            x, linear.arena, linear.start, linear.biases, linear.bias, y, n, n_in, n_out,
            linear.start_step, linear.bias_step, add,
        )  # fmt: skip

    def _fixed(self, w: int, b: int, layer: int, n_in: int, n_out: int) -> Linear:
        """Return a matrix and bias of a layer, by their columns of the layout."""
        fixed = self.weights.fixed
        start, bias = self._start(w, layer), self._start(b, layer)
        return Linear(arena=fixed, start=start, biases=fixed, bias=bias, n_in=n_in, n_out=n_out)

    def _start(self, column: int, layer: int) -> int:
        """Return the first chunk of a layer's part, -1 if the model has none."""
        start = self.weights.layout[column]
        return start if start < 0 else start + layer * self.weights.layout[layout.LAYER]

    def _buffer(self, name: str, size: int) -> Any:  # -> (size,) float32
        """Return the first elements of a buffer, which grows if it has to."""
        whole, part = self._buffers.get(name, (None, None))
        if part is None or part.size != size:  # making a view takes as long as a launch, so views are kept
            if whole is None or whole.size < size:
                self._buffers.pop(name, None)  # free its memory before asking for more
                whole = part = None
                whole = allocate(size, np.float32)
            part = whole[:size]
            self._buffers[name] = whole, part
        return part
