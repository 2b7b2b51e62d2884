"""The decode step as a captured graph of a kernel a phase: the other way to spare Python its launches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from minicore.backends.cuda.kernels import decode as kernels
from minicore.backends.cuda.kernels.decode import SIMULATED, Arrays, Shape
from minicore.backends.cuda.kernels.launch import configured

TOKENS = Arrays._fields.index("tokens")
N_ARRAYS = len(Arrays._fields)


class GraphStep:
    """Reads and chooses tokens as the one kernel does, and is called with the same arguments.

    Attributes
    ----------
    captured : dict
        The graphs, one for each array that tokens are written to. They hold the arrays of the call they
        were captured for: to be cleared when other arrays take their place.
    """

    def __init__(self, shape: Shape, n_bytes: int) -> None:
        from numba import cuda

        self.shape, self.n_bytes, self.kernel = shape, n_bytes, kernels.make_phase(shape)
        stream = cuda.device_array(2 * shape.d_model, np.float32)
        self.own = stream, cuda.to_device(np.zeros(4, np.int64)), cuda.to_device(np.zeros(1, np.float32))
        self.captured: dict[int, Any] = {}

    def __call__(self, *arguments: Any) -> None:
        """Read n tokens; see :meth:`minicore.backends.cuda.decoder.CudaDecoder.launch`."""
        arrays, n = self.arrays(arguments), arguments[N_ARRAYS]
        self.begin(*arguments)
        replay = partial(self.token, arrays, 0) if SIMULATED else self._graph(arrays)
        for _ in range(n):
            replay()

    @staticmethod
    def arrays(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arrays among the arguments."""
        return arguments[:N_ARRAYS]

    def begin(self, *arguments: Any) -> None:
        """Say where the tokens that follow begin, and how they are drawn."""
        self.launch(self.arrays(arguments), kernels.BEGIN, 0, 0, *arguments[N_ARRAYS + 1 :])

    def order(self) -> Iterator[tuple[int, int]]:
        """Yield the phases of a token and the layer of each."""
        last = self.shape.n_layers - 1
        yield from ((which, layer) for layer in range(last + 1) for which in kernels.LAYER_PHASES)
        yield from ((kernels.BEST, last), (kernels.CHOOSE, last))

    def token(self, arrays: tuple[Any, ...], stream: Any) -> None:
        """Launch all phases of a token."""
        for which, layer in self.order():
            self.launch(arrays, which, layer, stream)

    def launch(self, arrays: tuple[Any, ...], which: int, layer: int, stream: Any, *begin: Any) -> None:
        """Launch a phase; what it begins with is said to the first alone."""
        n_blocks = 1 if which in (kernels.CHOOSE, kernels.BEGIN) else self.shape.n_blocks
        kernel = configured(self.kernel, n_blocks, self.shape.n_threads, self.n_bytes, stream)
        kernel(*arrays, *self.own, which, layer, *(begin or (0, 0, 0.0, 0)))

    def _graph(self, arrays: tuple[Any, ...]) -> Callable[[], None]:
        """Return what launches a token's graph on the default stream, captured at the first call."""
        from cuda.core import Device, Stream

        key = id(arrays[TOKENS])
        if key not in self.captured:
            device = Device()
            device.set_current()
            builder = device.create_graph_builder().begin_building()
            self.token(arrays, builder)
            graph, stream = builder.end_building().complete(), Stream.from_handle(0)
            self.captured[key] = partial(graph.launch, stream)
        return self.captured[key]
