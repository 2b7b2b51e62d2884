"""Copies of the rows of selected neurons in GPU memory: the core arena."""

from __future__ import annotations

from typing import Any

import numpy as np

from minicore.backends.cuda.arena import Arena
from minicore.backends.cuda.kernels.decode.gather import launch_gather
from minicore.backends.cuda.kernels.decode.shape import (
    B_GATE,
    B_IN,
    IN_CORE,
    N_CHUNKS,
    N_ROWS,
    W_GATE,
    W_IN,
    W_OUT,
    Shape,
)
from minicore.backends.cuda.memory import allocate
from minicore.backends.cuda.weights import Weights
from minicore.core.rules import Selection

Array = np.ndarray


class CoreRows:
    """The core arena of a decoder. Its memory is used again for the next selection if it suffices.

    Attributes
    ----------
    array : uint32 device array
    """

    def __init__(self, weights: Weights, shape: Shape) -> None:
        self.weights, self.shape, self.array = weights, shape, allocate(4, np.uint32)

    @property
    def nbytes(self) -> int:
        """Bytes of the arena."""
        return int(self.array.nbytes)

    def layout(self, selection: Selection | None) -> tuple[Array, int]:  # -> (n_layers, N_FFN) int64, bytes
        """Return the layout of all FFNs with a selection, and the bytes that its rows take."""
        layout, arena = self.weights.ffn_layout.copy(), Arena(self.weights.dtype)
        for layer, ids in self._copied(selection).items():
            _reserve(arena, layout[layer], len(ids), self.shape.d_model)
        return layout, arena.nbytes

    def gather(self, selection: Selection | None) -> Array:  # -> (n_layers, N_FFN) int64
        """Copy the rows of a selection and return the layout of all FFNs."""
        from numba import cuda

        copied, (layout, n_bytes) = self._copied(selection), self.layout(selection)
        if n_bytes > self.nbytes:
            self.array = None  # free its memory before asking for more
            self.array = allocate(n_bytes // 4, np.uint32)
        for layer, ffn, source in self.weights.ffns(copied):
            launch_gather(
                self.shape,
                source=ffn,
                target=self.array,
                ids=cuda.to_device(copied[layer].astype(np.int64)),
                source_layout=cuda.to_device(source),
                target_layout=cuda.to_device(layout[layer]),
            )
        return layout

    def _copied(self, selection: Selection | None) -> dict[int, Array]:
        """Return the neurons whose rows are copied: of a selection, and all of other offloaded layers."""
        neurons: dict[int, Any] = dict(selection.neurons) if selection else {}
        if self.weights.offload_ffn:
            every = np.arange(self.shape.n_neurons)
            neurons = dict.fromkeys(range(self.shape.n_layers), every) | neurons
        return neurons


def _reserve(arena: Arena, layout: Array, n: int, d_model: int) -> None:  # (N_FFN,)
    """Reserve rows for n neurons of a layer and change its layout accordingly."""
    for column in (W_IN, W_GATE):
        if layout[column] >= 0:
            layout[column] = arena.reserve_rows(n, d_model)
    for column in (B_IN, B_GATE):
        if layout[column] >= 0:
            layout[column] = arena.reserve_vector(n)
    layout[W_OUT] = arena.reserve_transposed(d_model, n)
    layout[N_ROWS], layout[N_CHUNKS], layout[IN_CORE] = n, arena.transposed_chunks(n), 1
