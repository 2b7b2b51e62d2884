"""Statistics that predictors use: sums over the tokens of a prompt, accumulated chunk by chunk.

The size of a statistic does not depend on the length of the prompt. Tokens are added in order, so the result
is bit-identical for every division of the prompt into chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from minicore.core.neurons import check_fraction, token_core
from minicore.errors import InputError, unknown

Array = np.ndarray

Adder = Callable[[Array, Array, float], Array]  # total so far, activations of further tokens, alpha -> total

GATE_SHIFT = 14  # low bits of a float32 that a gate's bin drops: bins have a relative width of 2**-9


def add_counts(total: Array, a: Array, alpha: float) -> Array:  # (n_neurons,), (n_tokens, n_neurons)
    """Count the tokens whose core contains each neuron: f_alpha, eq. 3 of 2410.18311."""
    total += token_core(a, alpha).sum(axis=0)
    return total


def add_magnitude_counts(total: Array, a: Array, alpha: float) -> Array:
    """Count the tokens for which each neuron is in the top alpha of the non-zero |a|."""
    return add_counts(total, np.abs(a), alpha)


def add_relative_energy(total: Array, a: Array, alpha: float) -> Array:
    """Add each token's relative energy (a / ||a||)**2. A token whose activations are all 0 adds nothing."""
    for row in a:  # in token order, so that the sum does not depend on the chunks
        energy = np.square(row, dtype=np.float64)
        if (norm := energy.sum()) > 0:
            total += energy / norm
    return total


def add_rank_counts(total: Array, a: Array, alpha: float) -> Array:  # (n_neurons, n_ranks), ...
    """Count how often each neuron has each rank among a token's activations. Rank 0 is the largest."""
    ranks = np.arange(total.shape[1])
    if total.dtype == np.uint16 and int(total[:, 0].sum(dtype=np.int64)) + len(a) > np.iinfo(np.uint16).max:
        total = total.astype(np.uint32)  # column 0 sums to the number of tokens
    for row in a:
        total[np.argsort(-row, kind="stable")[: len(ranks)], ranks] += 1
    return total


def add_positives(total: Array, a: Array, alpha: float) -> Array:  # (2,), (n_tokens, n_neurons)
    """Count the tokens and their positive activations."""
    total += len(a), np.count_nonzero(a > 0)
    return total


def add_gate_bins(total: Array, gate: Array, alpha: float) -> Array:  # (n_bins,), (n_tokens, n_neurons)
    """Count gates by magnitude. Positive floats have the same order as their bit patterns."""
    bits = np.abs(gate, dtype=np.float32).view(np.uint32) >> GATE_SHIFT
    total += np.bincount(bits.ravel(), minlength=len(total))
    return total


@dataclass(frozen=True)
class Statistic:
    """A sum over tokens: its update, its shape and dtype, and the activations that it reads.

    ``reads`` is ``post`` for a, the vector that multiplies ``w_out``, or ``gate`` for the activated gate (a
    itself in families without a gate).
    """

    add: Adder
    shape: Callable[[int, float], tuple[int, ...]] = lambda n_neurons, alpha: (n_neurons,)
    dtype: type = np.int64
    reads: str = "post"


STATISTICS: dict[str, Statistic] = {
    "counts": Statistic(add_counts),
    "magnitude_counts": Statistic(add_magnitude_counts),
    "relative_energy": Statistic(add_relative_energy, dtype=np.float64),
    "rank_counts": Statistic(add_rank_counts, lambda n, alpha: (n, max(math.floor(alpha * n), 1)), np.uint16),
    "positives": Statistic(add_positives, lambda n, alpha: (2,)),
    "gate_bins": Statistic(add_gate_bins, lambda n, alpha: (1 << 31 - GATE_SHIFT,), reads="gate"),
}


class DeviceActivations(Protocol):
    """Activations (n_tokens, n_neurons) in device memory, summed on the device."""

    ndim: int
    shape: tuple[int, int]

    def __len__(self) -> int: ...

    def __getitem__(self, tokens: slice) -> DeviceActivations: ...

    def fetch_if_not_finite(self) -> Array:
        """Return the activations if some may be NaN or infinite, else an empty array."""
        ...

    def adder(self, name: str) -> Callable[[Array, Any, float], Array]:
        """Return the function that adds them to a statistic, with the signature of its ``add``."""
        ...


class Recording:
    """The statistics of the tokens read so far, by layer.

    Parameters
    ----------
    statistics : iterable of str
        Names in :data:`STATISTICS`.
    layers : sequence of int
        Layers to record.
    n_neurons : int
        FFN width.
    alpha : float
        Fraction of a token's positive activations kept, in (0, 1].
    first : int
        Index of the first token to record.
    marks : sequence of int
        Numbers of recorded tokens after which a copy of the statistics is stored in ``at_mark``.
    adders : mapping of str to callable or None
        Replacements for the ``add`` function of some statistics, such as compiled ones. Results must be
        equal.

    Attributes
    ----------
    totals : dict of int to dict of str to array
        layer -> statistic -> its sum; (n_neurons,) for most.
    at_mark : dict of int to dict of int to dict of str to array
        mark -> layer -> statistic -> its sum over the first ``mark`` recorded tokens.
    """

    def __init__(
        self,
        statistics: Iterable[str],
        layers: Sequence[int],
        n_neurons: int,
        alpha: float = 0.4,
        first: int = 0,
        marks: Sequence[int] = (),
        adders: Mapping[str, Adder] | None = None,
    ) -> None:
        self.names, self.layers, self.n_neurons = list(dict.fromkeys(statistics)), list(layers), n_neurons
        for name in self.names:
            if name not in STATISTICS:
                raise unknown("statistic", name, STATISTICS)
        self.alpha, self.first = check_fraction("alpha", alpha), first
        self.marks = sorted(set(marks))
        self.reads = {STATISTICS[name].reads for name in self.names}
        self._adders = {name: STATISTICS[name].add for name in self.names} | dict(adders or {})
        self.totals: dict[int, dict[str, Array]] = {
            layer: {
                name: np.zeros(STATISTICS[name].shape(n_neurons, self.alpha), STATISTICS[name].dtype)
                for name in self.names
            }
            for layer in self.layers
        }
        self.at_mark: dict[int, dict[int, dict[str, Array]]] = {mark: {} for mark in self.marks}
        self._seen = {(layer, reads): 0 for layer in self.layers for reads in self.reads}

    def update(self, layer: int, a: Array | DeviceActivations, reads: str = "post") -> None:
        # (n_tokens, n_neurons)
        """Add a chunk of activations of one layer.

        Raises
        ------
        InputError
            If the width is wrong, or a value is NaN or infinite. The message names layer and token.

        Examples
        --------
        The core of the first token is neuron 0, that of the second token is neuron 1:

        >>> recording = Recording(["counts"], layers=[0], n_neurons=4, alpha=0.5)
        >>> recording.update(0, np.array([[3, 2, 0, 0], [1, 5, 0, 0]], np.float32))
        >>> recording.totals[0]["counts"]
        array([1, 1, 0, 0])
        """
        if (layer, reads) not in self._seen:
            return
        if a.ndim != 2 or a.shape[1] != self.n_neurons:
            raise InputError(
                f"activations of layer {layer} have shape {a.shape}, expected (n_tokens, {self.n_neurons})"
            )
        seen = self._seen[layer, reads]
        values = a if isinstance(a, np.ndarray) else a.fetch_if_not_finite()
        if not np.isfinite(values).all():
            bad = int(np.isfinite(values).all(axis=1).argmin())
            kind = "NaN" if np.isnan(values[bad]).any() else "infinity"
            raise InputError(f"activations of layer {layer} contain {kind}, first in token {seen + bad}")
        self._seen[layer, reads] = seen + len(a)
        a = a[max(self.first - seen, 0) :]
        seen = max(seen - self.first, 0)
        for mark in (mark for mark in self.marks if seen < mark <= seen + len(a)):
            self._add(layer, a[: mark - seen], reads)
            a, seen = a[mark - seen :], mark
            kept = self.at_mark[mark].setdefault(layer, {})
            kept |= {name: self.totals[layer][name].copy() for name in self._of(reads)}
        self._add(layer, a, reads)

    def _of(self, reads: str) -> list[str]:
        return [name for name in self.names if STATISTICS[name].reads == reads]

    def _add(self, layer: int, a: Array | DeviceActivations, reads: str) -> None:
        totals = self.totals[layer]
        for name in self._of(reads):
            if isinstance(a, np.ndarray):
                totals[name] = self._adders[name](totals[name], a, self.alpha)
            else:
                totals[name] = a.adder(name)(totals[name], a, self.alpha)
