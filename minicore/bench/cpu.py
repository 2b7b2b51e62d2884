"""The processor as a device to benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np

from minicore.backends.cpu import bandwidth, threads
from minicore.backends.cpu.backend import CpuBackend
from minicore.bench.workload import Workload
from minicore.model import Model


class CpuDevice:
    """The processor.

    Parameters
    ----------
    read_bytes : int or None
        Size of the array that is read to measure bandwidth; None is several times the last cache.
    """

    def __init__(self, read_bytes: int | None) -> None:
        self.read_bytes = read_bytes

    def backend(self, model: Model, n_threads: int | None) -> CpuBackend:
        """Return a model on the processor."""
        return CpuBackend(model, n_threads=n_threads)

    def limited(self, n_threads: int | None) -> AbstractContextManager[None]:
        """Use this many threads inside the block."""
        return threads.limited(n_threads or threads.default_threads())

    def bandwidth(self, n_threads: int | None) -> float:
        """Measure the bandwidth of reading, in bytes per second: a sum over an array."""
        return bandwidth.bandwidth(self._memory, n_threads or 1)

    @cached_property
    def _memory(self) -> np.ndarray:
        return bandwidth.buffer(self.read_bytes)

    def details(self, workloads: Sequence[Workload]) -> dict[str, Any]:
        """Return nothing: the report says all about the processor."""
        return {}
