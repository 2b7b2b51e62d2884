"""The GPU decoder: weights, kv cache, position and token live on the device; a launch decodes many tokens."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from minicore import ops
from minicore.backends.cuda.graph import GraphStep
from minicore.backends.cuda.kernels import decode as kernels
from minicore.backends.cuda.kernels.launch import configured
from minicore.backends.cuda.kv_cache import device_storage
from minicore.backends.cuda.memory import allocate
from minicore.backends.dims import constants
from minicore.backends.numpy import NumpyDecoder, run_by_steps
from minicore.backends.protocol import DecoderStats
from minicore.config import ModelConfig
from minicore.core.neurons import CoreSet
from minicore.core.rules import GATE, Selection, TokenRule
from minicore.errors import InputError
from minicore.kv_cache import KVCache
from minicore.model import Model
from minicore.quantization import QuantizedMatrix, n_groups

Array = np.ndarray

AT_ONCE = 32  # tokens of one launch
STEP_AHEAD = 1 << 14
SIMULATED_AHEAD = 1 << 16
SHIFTS = {"float32": 2, "bfloat16": 3, "int8": 4}  # 1 << shift numbers take 16 bytes


def threads_for(cfg: ModelConfig, n_blocks: int, int8: bool = False) -> int:
    """Return the threads of a block: 8 warps, or 12 if neurons go round then, a warp each.

    With 8 a thread has all registers that it can have. int8, which has more to compute, takes up to 16 warps.
    """
    warps = max(8, -(-cfg.n_neurons // n_blocks) + 3 & ~3)  # the four schedulers get as many each
    if int8:
        return 32 * min(warps, 16)
    return 32 * (warps if warps <= 12 else 8)


def bytes_ahead(shape: kernels.Shape, capacity: int) -> int:
    """Return the bytes of a block's shared memory for rows on their way; 0 if a layer's do not fit."""
    from numba import cuda

    if shape.int8:  # whose rows have scales behind them
        return 0
    if kernels.SIMULATED:
        return SIMULATED_AHEAD
    gpu = cuda.get_current_device()
    if tuple(gpu.compute_capability) < (8, 0):
        return 0
    left = gpu.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN - shape.shared_bytes(capacity)
    left = max(left // STEP_AHEAD * STEP_AHEAD, 0)  # so that two kv caches seldom need two kernels
    return left if shape._replace(staging_bytes=left).staged_chunks()[0] else 0


class Arena:
    """Rows and vectors in one device array, each at a 16-byte unit: first reserved, then filled.

    A row is filled up with zeros to whole units. An int8 row's scales lie behind its codes.
    """

    def __init__(self, dtype: str) -> None:
        self.shift, self.units = SHIFTS[dtype], 0
        self.pieces: list[tuple[int, Any, bool]] = []

    def reserve(self, n_rows: int, n: int, wide: bool = False) -> int:
        """Return where n_rows rows of n numbers will lie; wide ones are float32 whatever the arena is of."""
        at = self.units
        self.units += n_rows * kernels.row_chunks(n, 2 if wide else self.shift)
        return at

    def reserve_columns(self, n_rows: int, n: int) -> int:
        """Return where n_rows rows of a transposed matrix of n neurons will lie."""
        at = self.units
        scales = 2 * n_groups(n_rows) if self.shift == 4 else 0
        self.units += (n_rows + scales) * self.column_chunks(n)
        return at

    def column_chunks(self, n: int) -> int:
        """Return the units of a row of a transposed matrix; int8's scales lie behind all rows."""
        return -(-n >> self.shift)

    def put(self, *ws: Any) -> int:
        """Reserve room for matrices or vectors that :meth:`filled` copies; return where, -1 for none."""
        places = []
        for w in ws:
            if w is not None:
                vector = len(w.shape) == 1
                places.append(self.reserve(1 if vector else len(w), w.shape[-1], wide=vector))
                self.pieces.append((places[-1], w, False))
        return places[0] if places else -1

    def put_columns(self, w: Any) -> int:
        """Reserve room for a matrix (n_neurons, d_model), to be transposed, and return where."""
        at = self.reserve_columns(w.shape[1], len(w))
        self.pieces.append((at, w, True))
        return at

    def filled(self) -> Any:
        """Return the device array with everything put into it."""
        array = allocate(4 * max(self.units, 1), np.uint32)
        for at, w, transposed in self.pieces:
            bits = columns_as_units(w) if transposed else as_units(w)
            array[4 * at : 4 * at + bits.size].copy_to_device(bits)
        self.pieces.clear()
        return array

    def filled_on_host(self) -> Array:
        """Return page-locked host memory with everything put into it: the device reads that without help."""
        from numba import cuda

        try:
            array = cuda.pinned_array(4 * max(self.units, 1), np.uint32)
        except Exception as error:  # the driver's own kinds
            raise InputError(
                f"memory_limit needs {16 * self.units} bytes of page-locked host memory for the FFN weights, "
                f"and the driver gives none ({' '.join(str(error).split())})"
            ) from error

        def put(piece: tuple[int, Any, bool]) -> None:
            at, w, transposed = piece
            bits = columns_as_units(w) if transposed else as_units(w)
            array[4 * at : 4 * at + bits.size] = bits

        with ThreadPoolExecutor() as pool:  # transposing takes longer than copying
            deque(pool.map(put, self.pieces), maxlen=0)
        self.pieces.clear()
        return array


def as_units(w: Array | QuantizedMatrix) -> Array:  # (m, n) or (n,) -> uint32 (4 * units,)
    """Return the bits of rows filled up to whole 16-byte units."""
    if isinstance(w, QuantizedMatrix):
        return _joined(w.codes.reshape(len(w), -1), w.scales.reshape(len(w), -1))
    return _joined(np.atleast_2d(w))


def columns_as_units(w: Array | QuantizedMatrix) -> Array:  # (n, m) -> uint32 (4 * units,)
    """Return the bits of a matrix's columns; int8's scales, a row for 64 columns, lie behind all of them."""
    if not isinstance(w, QuantizedMatrix):
        return as_units(w.T)
    codes = _joined(w.codes.reshape(len(w), -1)[:, : w.shape[1]].T)
    scales = w.scales.reshape(len(w), -1).T
    return np.concatenate([codes, _joined(np.pad(scales, ((0, 0), (0, -len(w) % 16))))])


def _joined(*parts: Array) -> Array:  # (m, ...) each -> uint32 (4 * units,)
    """Return rows of several parts, each part filled up with zeros to whole units."""
    rows = [np.ascontiguousarray(part).view(np.uint8) for part in parts]
    rows = [np.pad(row, ((0, 0), (0, -row.shape[1] % 16))) if row.shape[1] % 16 else row for row in rows]
    whole = rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)
    return whole.reshape(-1).view(np.uint32)


def _put_fixed(arena: Arena, block: dict[str, Any]) -> list[int]:
    """Put a block but for its FFN into an arena; return where its parts lie, in the order of the layout."""
    get = block.get
    return [
        *(arena.put(get("ln1.w")), arena.put(get("ln1.b"))),
        arena.put(*(get(f"attn.w_{name}") for name in "qkv")),
        arena.put(*(get(f"attn.b_{name}") for name in "qkv")),
        *(arena.put(get(name)) for name in ("attn.w_o", "attn.b_o", "ln2.w", "ln2.b", "mlp.b_out")),
    ]


def _put_ffn(arena: Arena, block: dict[str, Any]) -> list[int]:
    """Put a block's FFN into an arena, ``w_out`` transposed; return its row of the plan."""
    names, n = ("mlp.w_in", "mlp.b_in", "mlp.w_gate", "mlp.b_gate"), len(block["mlp.w_in"])
    places = [*(arena.put(block.get(name)) for name in names), arena.put_columns(block["mlp.w_out"])]
    return [*places, n, arena.column_chunks(n), 0]


class Weights:
    """A model on the device: where everything lies is known at once, its bytes are sent when first used.

    Parameters
    ----------
    model : Model
    lent : bool
        Keep the FFNs in page-locked host memory and lend them to the device a layer at a time.

    Attributes
    ----------
    layout : tuple of N_LAYOUT ints
    ffn_plan : (n_layers, N_FFN) int64
        Where things lie in ``fixed`` and in ``ffn``, in 16-byte units.
    """

    def __init__(self, model: Model, lent: bool = False) -> None:
        cfg = model.config
        self.dtype, self.shift, self.lent = model.dtype, SHIFTS[model.dtype], lent
        fixed, ffn, params = Arena(self.dtype), Arena(self.dtype), model.params
        layers = [_put_fixed(fixed, block) for block in model.blocks]
        to_next = fixed.units // cfg.n_layers  # all layers are alike
        rest = [fixed.put(params.get(name)) for name in ("embed", "pos_embed", "ln_f.w", "ln_f.b")]
        rest.append(rest[0] if cfg.tied_head else fixed.put(model.head))
        self.layout = (*layers[0], *rest, to_next)
        self.ffn_plan = np.array([_put_ffn(ffn, block) for block in model.blocks], np.int64)
        self._fixed, self._ffn = fixed, ffn

    @cached_property
    def fixed(self) -> Any:
        """Everything but the FFNs, on the device."""
        return self._fixed.filled()

    @cached_property
    def ffn(self) -> Any:
        """All FFNs on the device, ``w_out`` transposed; nothing where they are lent."""
        return allocate(4, np.uint32) if self.lent else self._ffn.filled()

    @cached_property
    def loans(self) -> Loans:
        """The FFNs in host memory."""
        return Loans(self._ffn.filled_on_host(), self.ffn_plan, self._ffn.units // len(self.ffn_plan))

    @property
    def nbytes(self) -> int:
        """Bytes on the device: of lent FFNs two layers, and the 16 bytes that stand for them."""
        ffn = 2 * (self._ffn.units // len(self.ffn_plan)) + 1 if self.lent else self._ffn.units
        return 16 * (self._fixed.units + ffn)

    def ffns(self, layers: Iterable[int]) -> Iterator[tuple[int, Any, Array]]:
        """Yield layers, a device array with the FFN of each, and its row of the plan in that array.

        What reads the array must have been launched, on the default stream, before the next is asked for.
        """
        if self.lent:
            yield from self.loans.layers(layers)
        else:
            for layer in layers:
                yield layer, self.ffn, self.ffn_plan[layer]


class Loans:
    """FFNs in page-locked host memory; two layers at a time are on the device, one of them under way."""

    def __init__(self, host: Array, plan: Array, n_units: int) -> None:
        from numba import cuda

        self.host, self.plan, self.n_units = host, plan, n_units  # all layers are alike
        self.buffers = [allocate(4 * n_units, np.uint32) for _ in range(2)]
        self.arrived, self.read = ([cuda.event() for _ in range(2)] for _ in range(2))
        self.stream = own_stream()

    def layers(self, layers: Iterable[int]) -> Iterator[tuple[int, Any, Array]]:
        """Yield as :meth:`Weights.ffns`."""
        order = list(layers)
        for i in range(len(order) + 1):
            if i < len(order):
                self._send(i % 2, order[i])
            if i > 0:  # work on a layer while the next is copied
                which, layer = (i - 1) % 2, order[i - 1]
                self.arrived[which].wait()
                yield layer, self.buffers[which], self._moved(layer)
                self.read[which].record()

    def _send(self, which: int, layer: int) -> None:
        """Begin to copy a layer into a buffer as soon as what was there has been read."""
        self.read[which].wait(self.stream)
        begin, n = 4 * layer * self.n_units, 4 * self.n_units
        self.buffers[which].copy_to_device(self.host[begin : begin + n], stream=self.stream)
        self.arrived[which].record(self.stream)

    def _moved(self, layer: int) -> Array:  # -> (N_FFN,)
        """Return a layer's row of the plan in a buffer that holds that layer alone."""
        row = self.plan[layer].copy()
        row[: kernels.N_ROWS][row[: kernels.N_ROWS] >= 0] -= layer * self.n_units
        return row


def own_stream() -> Any:
    """Return a stream that the default stream does not wait for, nor it for the default stream."""
    if kernels.SIMULATED:
        return 0
    from cuda.core import Device

    device = Device()
    device.set_current()
    return device.create_stream()


class CudaDecoder:
    """Decodes on an NVIDIA GPU.

    Parameters
    ----------
    model, cache, core
        As :func:`minicore.backends.make_decoder` takes them.
    n_blocks, n_threads : int or None
        Of the grid, and of each block; None is what suits the GPU and the model.
    memory_limit : int or None
        Bytes of device memory; with one, FFN weights stay in the host's but for the rows that are chosen.
    graph : bool
        Decode with a captured graph of a kernel a phase instead of one kernel for many tokens.
    """

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        core: Selection | None = None,
        n_blocks: int | None = None,
        n_threads: int | None = None,
        memory_limit: int | None = None,
        graph: bool = False,
    ) -> None:
        from numba import cuda

        cfg = model.config
        self.model, self.cache, self.memory_limit, self.graph = model, cache, memory_limit, graph
        self.weights = weights_of(model, lent=memory_limit is not None)
        if n_blocks is None:
            n_blocks = 1 if kernels.SIMULATED else cuda.get_current_device().MULTIPROCESSOR_COUNT
            n_blocks = min(n_blocks, cfg.d_model)  # every block must write in every exchange of d_model words
        self.shape = kernels.Shape(
            **constants(cfg),
            n_neurons=cfg.n_neurons,
            rope=cfg.positions == "rope",
            bfloat16=self.weights.dtype == "bfloat16",
            int8=self.weights.dtype == "int8",
            bf16_cache=cache.rounds,
            layout=self.weights.layout,
            n_blocks=n_blocks,
            n_threads=n_threads
            or (2 if kernels.SIMULATED else threads_for(cfg, n_blocks, self.weights.dtype == "int8")),
        )
        self.shape = self.shape._replace(staging_bytes=bytes_ahead(self.shape, cache.capacity))
        self.rows, self.epoch = CoreRows(self.weights), 1
        self.check_limit(core)
        rope = cfg.positions == "rope"
        self.frequencies = cuda.to_device(ops.rope_frequencies(cfg) if rope else np.zeros(1, np.float32))
        self.words = cuda.to_device(np.zeros(2 * self.shape.words().end, np.uint32))
        self.logits = cuda.device_array(cfg.n_vocab, np.float32)
        self.chain = cuda.to_device(np.zeros(1, np.int32))
        self.used = cuda.to_device(np.zeros(cfg.n_layers, np.int64))
        self.turns = cuda.to_device(np.zeros(2 * cfg.n_layers * kernels.N_COUNTERS, np.int32))
        self.tokens = [cuda.mapped_array(AT_ONCE, np.int32) for _ in range(2)]
        self.kernel, self.compile_s = self._compiled()
        self._reference: NumpyDecoder | None = None
        self._n_steps, self._read_by_reference = 0, np.zeros(cfg.n_layers, np.int64)
        self.use(core)
        self.fixed, self.ffn = self.weights.fixed, self.weights.ffn

    def use(self, core: Selection | None) -> None:
        """Decode with this selection, and with what the kv cache holds, from the next step on."""
        from numba import cuda

        top = isinstance(core, TokenRule) and core.kind == "top"
        if self._reference:
            self._read_by_reference += self._reference.neurons_read
        self._reference = NumpyDecoder(self.model, self.cache, core) if top else None
        self.model.check_selection(core)
        self.check_limit(core)
        self.ffn_plan = cuda.to_device(self.rows.gather(self.shape, core).reshape(-1))
        thresholds = np.full(self.shape.n_layers, -1, np.float32)
        if isinstance(core, TokenRule):
            for layer in range(self.shape.n_layers):
                thresholds[layer] = core.parameters(layer).get(GATE, -1)
        self.thresholds = cuda.to_device(thresholds)
        self.storage = device_storage(self.cache)
        if self.graph:
            self.kernel.captured.clear()  # other arrays

    def check_limit(self, core: Selection | None) -> None:
        """Raise InputError if the device would hold more than the limit with this selection."""
        needed = self.bytes_needed(core)
        if self.memory_limit is not None and needed > self.memory_limit:
            share = core.fraction if isinstance(core, CoreSet) else 1
            raise InputError(
                f"memory_limit is {self.memory_limit} bytes, but {needed} are needed on the GPU with "
                f"{share:.0%} of the neurons; expected a higher limit or a smaller beta"
            )

    def bytes_needed(self, core: Selection | None) -> int:
        """Return the bytes of the device arrays that grow with the model, decoding with a selection."""
        cache, shape = self.cache, self.shape
        rows = max(self.rows.planned(shape, core)[1], self.rows.nbytes)
        kv, words = 2 * 4 * math.prod(cache.shape), 8 * shape.words().end
        return self.weights.nbytes + rows + kv + words + 4 * shape.n_vocab

    @property
    def runs_ahead(self) -> bool:
        """Whether the device picks tokens; the k largest activations are NumPy's to find."""
        return self._reference is None

    @property
    def stats(self) -> DecoderStats:
        """Tokens read so far, and activations that were not zero."""
        read = self.used.copy_to_host() + self._read_by_reference
        if self._reference:
            read += self._reference.neurons_read
        held = [self.fixed, self.ffn, self.rows.array, self.words, self.logits]
        held += self.weights.loans.buffers if self.weights.lent else []
        return DecoderStats(
            n_steps=self._n_steps,
            neurons_read=read,
            kv_bytes=self.storage.nbytes,
            device_bytes=self.storage.nbytes + sum(int(array.nbytes) for array in held),
            compile_s=self.compile_s,
        )

    def flush(self) -> None:
        """Do nothing: the cache's storage fetches what it is asked for."""

    def step(self, token_id: int) -> Array:  # -> (n_vocab,) float32
        """Read one token into the kv cache and return the logits after it."""
        if self._reference:
            self._n_steps += 1
            return self._reference.step(token_id)
        self.begin(token_id)
        self.launch(1, self.tokens[0])
        return self.logits.copy_to_host()

    def begin(self, token_id: int) -> None:
        """Say which token the next launch reads first; later ones go on by themselves."""
        self.chain.copy_to_device(np.array([token_id], np.int32))

    def run(self, token_id: int, n: int, temperature: float = 0.0, seed: int = 0) -> Iterator[int]:
        """Read a token and yield the n chosen after it, one by one, while the device goes on with the next.

        Parameters
        ----------
        token_id, n : int
        temperature : float
            0 takes the largest logit, above it the device draws from the softmax of logits / temperature.
        seed : int
            Of these draws, which are a function of seed, position and logits.
        """
        from numba import cuda

        if self._reference:
            yield from run_by_steps(self, self.cache, token_id, n, temperature, seed)
            return
        self.begin(token_id)
        under_way: deque[tuple[Any, Any, int]] = deque()
        for i, first in enumerate(range(0, n, AT_ONCE)):
            tokens, size, done = self.tokens[i % len(self.tokens)], min(AT_ONCE, n - first), cuda.event()
            self.launch(size, tokens, temperature, seed)
            done.record()
            under_way.append((done, tokens, size))
            if len(under_way) == len(self.tokens):
                yield from _finished(*under_way.popleft())
        while under_way:
            yield from _finished(*under_way.popleft())

    def launch(self, n: int, tokens: Any, temperature: float = 0.0, seed: int = 0) -> None:
        """Read n tokens, each chosen after the one before, into the device's tokens[:n]; wait for nothing."""
        if self.cache.length + n > self.cache.capacity:
            raise InputError(
                f"{self.cache.length + n} tokens do not fit the kv cache's {self.cache.capacity} positions"
            )
        self.kernel(*self.arguments(n, tokens, temperature, seed))
        self.storage.written()
        self.cache.length += n
        self._n_steps += n
        self.epoch += n

    def launch_phases(self, step: GraphStep) -> Iterator[int]:
        """Read one token, which is not kept, by a launch per phase; yield each phase that was launched."""
        arguments = self.arguments(1, self.tokens[0], 0.0, 0)
        step.begin(*arguments)
        yield kernels.BEGIN
        for phase, layer in step.order():
            step.launch(step.arrays(arguments), phase, layer, 0)
            yield phase
        self.epoch += 1

    def arguments(self, n: int, tokens: Any, temperature: float, seed: int) -> tuple[Any, ...]:
        """Return what a launch at the present position is called with."""
        position = self.cache.length
        return (
            *(self.fixed, self.ffn, self.rows.array, self.ffn_plan, self.thresholds, self.frequencies),
            *(
                self.storage.device_keys,
                self.storage.device_values,
                self.words,
                self.chain,
                self.logits,
                tokens,
                self.used,
            ),
            self.turns,
            *(np.int64(n), np.int64(position), np.int64(self.epoch), np.float32(temperature), np.int64(seed)),
        )

    def _compiled(self) -> tuple[Any, float]:
        """Return the kernel, ready to be called, and the seconds that took."""
        began = time.perf_counter()
        shape = self.shape
        if self.graph:
            return GraphStep(shape, self.shared_bytes), time.perf_counter() - began
        step = configured(kernels.make_step(shape), shape.n_blocks, shape.n_threads, self.shared_bytes)
        return step, time.perf_counter() - began

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory that a block needs."""
        return self.shape.shared_bytes(self.cache.capacity)


def _finished(done: Any, tokens: Any, n: int) -> list[int]:
    """Wait for a launch and return its tokens."""
    done.synchronize()
    return [int(token) for token in tokens[:n]]


_uploaded: WeakKeyDictionary[Model, Weights] = WeakKeyDictionary()


def weights_of(model: Model, lent: bool = False) -> Weights:
    """Return a model's weights on the device, uploaded once, with its FFNs there or lent."""
    if model not in _uploaded or _uploaded[model].lent != lent:
        _uploaded[model] = Weights(model, lent)
    return _uploaded[model]


class CoreRows:
    """Copies of core neurons' rows; memory is reused for the next selection where it suffices."""

    def __init__(self, weights: Weights) -> None:
        self.weights, self.array = weights, allocate(4, np.uint32)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return int(self.array.nbytes)

    def planned(
        self, shape: kernels.Shape, core: Selection | None
    ) -> tuple[Array, int]:  # -> (n_layers, N_FFN)
        """Return the plan of the FFNs with a selection, and the bytes that its rows take."""
        plan, arena = self.weights.ffn_plan.copy(), Arena(self.weights.dtype)
        for layer, ids in self.chosen(shape, core).items():
            _reserve_rows(arena, plan[layer], len(ids), shape.d_model)
        return plan, 16 * max(arena.units, 1)

    def chosen(self, shape: kernels.Shape, core: Selection | None) -> dict[int, Array]:
        """Return the neurons whose rows are copied: the core, and where FFNs are lent all of other layers."""
        neurons = dict(core.neurons) if core else {}
        if self.weights.lent:
            every = np.arange(shape.n_neurons)
            neurons = dict.fromkeys(range(shape.n_layers), every) | neurons
        return neurons

    def gather(self, shape: kernels.Shape, core: Selection | None) -> Array:  # -> (n_layers, N_FFN)
        """Copy a selection's rows and return the plan of the FFNs."""
        from numba import cuda

        chosen, (plan, n_bytes) = self.chosen(shape, core), self.planned(shape, core)
        if n_bytes > self.nbytes:
            self.array = None  # its memory is free before more is asked for
            self.array = allocate(n_bytes // 4, np.uint32)
        for layer, ffn, source in self.weights.ffns(chosen):
            configured(kernels.make_gather(), shape.n_blocks, shape.n_threads)(
                *(ffn, self.array, cuda.to_device(chosen[layer].astype(np.int64))),
                *(cuda.to_device(source), cuda.to_device(plan[layer])),
                *(shape.d_model, shape.chunks(shape.d_model), self.weights.shift - 2),
            )
        return plan


def _reserve_rows(arena: Arena, plan: Array, n: int, d_model: int) -> None:  # (N_FFN,)
    """Reserve room for n neurons of a layer and write where to the layer's row of the plan."""
    for column in (kernels.W_IN, kernels.W_GATE):
        if plan[column] >= 0:
            plan[column] = arena.reserve(n, d_model)
    for column in (kernels.B_IN, kernels.B_GATE):
        if plan[column] >= 0:
            plan[column] = arena.reserve(1, n, wide=True)
    plan[kernels.W_OUT] = arena.reserve_columns(d_model, n)
    plan[kernels.N_ROWS :] = n, arena.column_chunks(n), 1
