"""A model's weights on a GPU. Those of FFNs can stay in host memory and pass through the GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from minicore.backends.cuda.arena import SHIFTS, Arena
from minicore.backends.cuda.kernels.decode.shape import N_ROWS
from minicore.backends.cuda.kernels.intrinsics import SIMULATED
from minicore.backends.cuda.memory import allocate
from minicore.model import Model

Array = np.ndarray


class Weights:
    """A model on the GPU. The layout is known at once; bytes are copied when they are first used.

    Parameters
    ----------
    model : Model
    offload_ffn : bool
        Keep FFN weights in page-locked host memory (:class:`OffloadedFfn`).

    Attributes
    ----------
    layout : tuple of int
        First chunks in the fixed arena (see kernels/decode/shape.py).
    ffn_layout : (n_layers, N_FFN) int64
        The layout of each FFN in the arena of all FFNs.
    """

    def __init__(self, model: Model, offload_ffn: bool = False) -> None:
        cfg = model.config
        self.dtype, self.shift, self.offload_ffn = model.dtype, SHIFTS[model.dtype], offload_ffn
        fixed, ffn, params = Arena(self.dtype), Arena(self.dtype), model.params
        layers = [_add_fixed(fixed, block) for block in model.blocks]
        layer_chunks = fixed.n_chunks // cfg.n_layers  # all layers are alike
        rest = [fixed.add(params.get(name)) for name in ("embed", "pos_embed", "ln_f.w", "ln_f.b")]
        head = rest[0] if cfg.tied_head else fixed.add(model.head)
        self.layout = (*layers[0], *rest, head, layer_chunks)
        self.ffn_layout = np.array([_add_ffn(ffn, block) for block in model.blocks], np.int64)
        self._fixed, self._ffn = fixed, ffn

    @cached_property
    def fixed(self) -> Any:
        """The arena of everything but the FFNs."""
        return self._fixed.to_device()

    @cached_property
    def ffn(self) -> Any:
        """The arena of all FFNs; empty if they are offloaded."""
        return allocate(4, np.uint32) if self.offload_ffn else self._ffn.to_device()

    @cached_property
    def offloaded(self) -> OffloadedFfn:
        """The FFNs in host memory."""
        return OffloadedFfn(self._ffn.to_pinned(), self.ffn_layout, self._ffn_layer_chunks)

    @property
    def nbytes(self) -> int:
        """Bytes on the GPU. Offloaded FFNs take two layers, and the 16 bytes of an empty arena."""
        n_ffn = 2 * self._ffn_layer_chunks + 1 if self.offload_ffn else self._ffn.n_chunks
        return 16 * (self._fixed.n_chunks + n_ffn)

    @property
    def _ffn_layer_chunks(self) -> int:
        return self._ffn.n_chunks // len(self.ffn_layout)

    def ffns(self, layers: Iterable[int]) -> Iterator[tuple[int, Any, Array]]:
        """Yield layers, a device array that holds the FFN of each, and its layout in that array.

        Launch what reads the array, on the default stream, before asking for the next layer.
        """
        if self.offload_ffn:
            yield from self.offloaded.ffns(layers)
        else:
            for layer in layers:
                yield layer, self.ffn, self.ffn_layout[layer]


class OffloadedFfn:
    """FFN weights in page-locked host memory, and two buffers on the GPU.

    While the GPU works on one layer the next one is copied to the other buffer.

    Parameters
    ----------
    host : (n_layers * 4 * layer_chunks,) uint32
        The arena of all FFNs.
    layout : (n_layers, N_FFN) int64
    layer_chunks : int
        Chunks of a layer.
    """

    def __init__(self, host: Array, layout: Array, layer_chunks: int) -> None:
        from numba import cuda

        self._host, self._layout, self._layer_chunks = host, layout, layer_chunks
        self.buffers = [allocate(4 * layer_chunks, np.uint32) for _ in range(2)]
        self._copied, self._used = ([cuda.event() for _ in range(2)] for _ in range(2))
        self._stream = new_stream()

    def ffns(self, layers: Iterable[int]) -> Iterator[tuple[int, Any, Array]]:
        """Yield as :meth:`Weights.ffns`."""
        order = list(layers)
        for i in range(len(order) + 1):
            if i < len(order):
                self._copy(i % 2, order[i])
            if i > 0:
                which, layer = (i - 1) % 2, order[i - 1]
                self._copied[which].wait()
                yield layer, self.buffers[which], self._layout_of(layer)
                self._used[which].record()

    def _copy(self, which: int, layer: int) -> None:
        """Begin to copy a layer to a buffer as soon as the layer that is there has been used."""
        self._used[which].wait(self._stream)
        n = 4 * self._layer_chunks
        self.buffers[which].copy_to_device(self._host[layer * n : (layer + 1) * n], stream=self._stream)
        self._copied[which].record(self._stream)

    def _layout_of(self, layer: int) -> Array:  # -> (N_FFN,)
        """Return the layout of a layer in a buffer that holds only this layer."""
        row = self._layout[layer].copy()
        starts = row[:N_ROWS]
        starts[starts >= 0] -= layer * self._layer_chunks
        return row


def new_stream() -> Any:
    """Return a stream that runs independently of the default stream."""
    if SIMULATED:
        return 0
    from cuda.core import Device

    device = Device()
    device.set_current()
    return device.create_stream()


_on_device: WeakKeyDictionary[Model, Weights] = WeakKeyDictionary()


def weights_of(model: Model, offload_ffn: bool = False) -> Weights:
    """Return a model's weights on the GPU, where they are copied once."""
    if model not in _on_device or _on_device[model].offload_ffn != offload_ffn:
        _on_device[model] = Weights(model, offload_ffn)
    return _on_device[model]


def _add_fixed(arena: Arena, block: dict[str, Any]) -> list[int]:
    """Add a block without its FFN to an arena; return first chunks in the order of the layout."""
    get = block.get
    return [
        arena.add(get("ln1.w")),
        arena.add(get("ln1.b")),
        arena.add(get("attn.w_q"), get("attn.w_k"), get("attn.w_v")),
        arena.add(get("attn.b_q"), get("attn.b_k"), get("attn.b_v")),
        arena.add(get("attn.w_o")),
        arena.add(get("attn.b_o")),
        arena.add(get("ln2.w")),
        arena.add(get("ln2.b")),
        arena.add(get("mlp.b_out")),
    ]


def _add_ffn(arena: Arena, block: dict[str, Any]) -> list[int]:
    """Add a block's FFN to an arena, w_out transposed; return its layout."""
    n, names = len(block["mlp.w_in"]), ("mlp.w_in", "mlp.b_in", "mlp.w_gate", "mlp.b_gate")
    starts = [arena.add(block.get(name)) for name in names]
    return [*starts, arena.add_transposed(block["mlp.w_out"]), n, arena.transposed_chunks(n), 0]
