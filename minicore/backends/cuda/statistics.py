"""What predictors sum over tokens, summed where the activations are (minicore.core.statistics)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minicore.backends.cuda.kernels.intrinsics import WARP_SIZE
from minicore.backends.cuda.kernels.prefill import statistics as kernels
from minicore.backends.cuda.kernels.prefill.block_reduce import ROW_WARPS
from minicore.backends.cuda.memory import allocate
from minicore.core.statistics import STATISTICS

Array = np.ndarray

ROW_THREADS = ROW_WARPS * WARP_SIZE  # of kernels in which a block has a token
ELEMENT_THREADS = 256  # of a block of kernels in which a thread has an element


def blocks_for(n: int, size: int = ELEMENT_THREADS) -> int:
    """Return how many blocks of this size cover n."""
    return -(-n // size)


class DeviceRows:
    """Activations (n_tokens, n_neurons) on the GPU, as a recorder takes them.

    Parameters
    ----------
    array : (n_tokens * n_neurons,) float32 device array
    n_neurons : int
    not_finite : (1,) int32 device array
        Not 0 if NaN or infinity may be among them.
    """

    ndim = 2

    def __init__(self, array: Any, n_neurons: int, not_finite: Any) -> None:
        self.array, self.not_finite = array, not_finite
        self.shape = array.size // n_neurons, n_neurons

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, tokens: slice) -> DeviceRows:
        first, last, _ = tokens.indices(len(self))
        width = self.shape[1]
        return DeviceRows(self.array[first * width : max(last, first) * width], width, self.not_finite)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.array.copy_to_host().reshape(self.shape).astype(dtype or np.float32, copy=False)

    def fetch_if_not_finite(self) -> Array:
        """Return them if NaN or infinity may be among them, else an empty array."""
        return np.asarray(self) if self.not_finite.copy_to_host()[0] else np.empty(0, np.float32)

    def adder(self, name: str) -> Callable[[Array, DeviceRows, float], Array]:
        """Return the function that adds them to a statistic: on the GPU if it has a kernel for that."""
        return ADDERS.get(name) or (lambda total, a, alpha: STATISTICS[name].add(total, np.asarray(a), alpha))


def add_counts(total: Array, a: DeviceRows, alpha: float, magnitude: bool = False) -> Array:
    """Count for each neuron the tokens in whose core it is."""
    n, width = a.shape
    if n:
        counts = _zeros(width)
        kernels.count_cores[n, ROW_THREADS](a.array, width, float(alpha), magnitude, counts)
        total += counts.copy_to_host()
    return total


def add_magnitude_counts(total: Array, a: DeviceRows, alpha: float) -> Array:
    """Count as :func:`add_counts`, by magnitude."""
    return add_counts(total, a, alpha, magnitude=True)


def add_positives(total: Array, a: DeviceRows, alpha: float) -> Array:  # (2,)
    """Count tokens, and positive activations."""
    n, width = a.shape
    if n:
        n_positive = _zeros(1)
        kernels.count_positives[n, ROW_THREADS](a.array, width, n_positive)
        total += n, n_positive.copy_to_host()[0]
    return total


def add_gate_bins(total: Array, a: DeviceRows, alpha: float) -> Array:  # (n_bins,)
    """Count activations by magnitude."""
    size = a.array.size
    if size:
        bins = _zeros(len(total))
        kernels.count_bins[blocks_for(size), ELEMENT_THREADS](a.array, size, bins)
        total += bins.copy_to_host()
    return total


def add_relative_energy(total: Array, a: DeviceRows, alpha: float) -> Array:  # (n_neurons,) float64
    """Add each neuron's share of each token's energy."""
    from numba import cuda

    n, width = a.shape
    if n:
        energies, sums = allocate(n, np.float64), cuda.to_device(total)
        kernels.token_energies[n, ROW_THREADS](a.array, width, energies)
        kernels.add_relative_energy[blocks_for(width), ELEMENT_THREADS](a.array, n, width, energies, sums)
        total = sums.copy_to_host()
    return total


def _zeros(n: int) -> Any:  # -> (n,) int32
    from numba import cuda

    return cuda.to_device(np.zeros(n, np.int32))


ADDERS: dict[str, Callable[[Array, DeviceRows, float], Array]] = {
    "counts": add_counts,
    "magnitude_counts": add_magnitude_counts,
    "relative_energy": add_relative_energy,
    "positives": add_positives,
    "gate_bins": add_gate_bins,
}
