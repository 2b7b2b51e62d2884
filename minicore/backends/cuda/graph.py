"""The decode step as a captured CUDA graph of a launch per phase, to compare with the persistent kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from minicore.backends.cuda.kernels.decode.phases import (
    BEGIN,
    BEST,
    CHOOSE,
    LAYER_PHASES,
    PhaseArrays,
    launch_phase,
    make_phase,
)
from minicore.backends.cuda.kernels.decode.shape import Shape
from minicore.backends.cuda.kernels.decode.sizes import Arrays
from minicore.backends.cuda.kernels.intrinsics import SIMULATED
from minicore.backends.cuda.kernels.launch import configured


class GraphStep:
    """Reads and chooses tokens; called as the persistent kernel is.

    Parameters
    ----------
    shape : Shape
    n_bytes : int
        Bytes of shared memory of a block.
    """

    def __init__(self, shape: Shape, n_bytes: int) -> None:
        from numba import cuda

        self.shape, self.n_bytes, self.kernel = shape, n_bytes, make_phase(shape)
        self.own = PhaseArrays(
            residual=cuda.device_array(2 * shape.d_model, np.float32),
            state=cuda.to_device(np.zeros(4, np.int64)),
            temperature=cuda.to_device(np.zeros(1, np.float32)),
        )
        self._graphs: dict[int, Callable[[], None]] = {}  # by the array that tokens are written to

    def __call__(
        self, arrays: Arrays, *, n: int, position: int, epoch: int, temperature: float, seed: int
    ) -> None:
        """Read n tokens (see :func:`minicore.backends.cuda.kernels.decode.step.launch_step`)."""
        self.begin(arrays, position=position, epoch=epoch, temperature=temperature, seed=seed)
        replay = partial(self._launch_all, arrays, 0) if SIMULATED else self._graph(arrays)
        for _ in range(n):
            replay()

    def begin(
        self, arrays: Arrays, *, position: int, epoch: int, temperature: float = 0.0, seed: int = 0
    ) -> None:
        """Set where the next tokens are and how they are chosen."""
        kernel = self._configured(BEGIN, 0)
        launch_phase(
            kernel, arrays, self.own, BEGIN, 0,
            position=position, epoch=epoch, temperature=temperature, seed=seed,
        )  # fmt: skip

    def launch(self, arrays: Arrays, phase: int, layer: int, stream: Any = 0) -> None:
        """Launch a phase of a layer."""
        launch_phase(self._configured(phase, stream), arrays, self.own, phase, layer)

    def order(self) -> Iterator[tuple[int, int]]:
        """Yield the phases of a token and the layer of each."""
        last = self.shape.n_layers - 1
        yield from ((phase, layer) for layer in range(last + 1) for phase in LAYER_PHASES)
        yield from ((BEST, last), (CHOOSE, last))

    def forget_graphs(self) -> None:
        """Capture again at the next call: graphs hold the arrays of the call that they were captured for."""
        self._graphs.clear()

    def _configured(self, phase: int, stream: Any) -> Any:
        n_blocks = 1 if phase in (CHOOSE, BEGIN) else self.shape.n_blocks
        return configured(self.kernel, n_blocks, self.shape.n_threads, self.n_bytes, stream)

    def _launch_all(self, arrays: Arrays, stream: Any) -> None:
        """Launch all phases of a token."""
        for phase, layer in self.order():
            self.launch(arrays, phase, layer, stream)

    def _graph(self, arrays: Arrays) -> Callable[[], None]:
        """Return a function that launches a token's graph on the default stream."""
        from cuda.core import Device, Stream

        key = id(arrays.tokens)
        if key not in self._graphs:
            device = Device()
            device.set_current()
            builder = device.create_graph_builder().begin_building()
            self._launch_all(arrays, builder)
            graph, stream = builder.end_building().complete(), Stream.from_handle(0)
            self._graphs[key] = partial(graph.launch, stream)
        return self._graphs[key]
