"""Core neurons of a token and of a sentence, and the core set of a model (CoreInfer, 2410.18311 sec. 3.1).

``a`` is the vector that multiplies ``w_out``: ``act(gate) * up`` in gated families, ``act(in)`` in others.
alpha and beta are fractions KEPT.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minicore.errors import InputError
from minicore.files import atomic_write

Array = np.ndarray


def check_fraction(name: str, value: float) -> float:
    """Return ``value`` as a float if it is in (0, 1], else raise InputError."""
    if not isinstance(value, int | float | np.number) or not 0 < value <= 1:
        raise InputError(f"{name} is {value!r}, expected a fraction kept, above 0 and at most 1")
    return float(value)


def token_core(a: Array, alpha: float) -> Array:  # (n_tokens, n_neurons) -> bool (n_tokens, n_neurons)
    """Mark each token's core neurons: the top alpha of its positive activations (eq. 1).

    Parameters
    ----------
    a : (n_tokens, n_neurons) float array
        FFN activations.
    alpha : float
        Fraction of a token's positive activations to keep, in (0, 1].

    Returns
    -------
    (n_tokens, n_neurons) bool array
        True for the k = floor(alpha * n_positive) largest positive entries of each row; k is at least 1 if
        the row has a positive entry. Of equal values the lower index is kept.

    Raises
    ------
    InputError
        If alpha is outside (0, 1], ``a`` is not a matrix, or ``a`` holds NaN.

    Examples
    --------
    >>> token_core(np.array([[3.0, -1.0, 2.0, 1.0, 5.0]]), alpha=0.5).astype(int)
    array([[1, 0, 0, 0, 1]])
    """
    check_fraction("alpha", alpha)
    a = np.asarray(a)
    if a.ndim != 2:
        raise InputError(f"activations have shape {a.shape}, expected (n_tokens, n_neurons)")
    if np.isnan(a).any():
        raise InputError(f"activations contain NaN, first in token {int(np.isnan(a).any(axis=1).argmax())}")
    n_positive = (a > 0).sum(axis=1)
    k = np.floor(alpha * n_positive).astype(np.int64)
    k[(k == 0) & (n_positive > 0)] = 1
    return top_mask(a, k)


def top_mask(a: Array, k: Array) -> Array:  # (n_tokens, n_neurons), (n_tokens,) -> bool (n_tokens, n_neurons)
    """Mark the k[t] largest entries of each row t; of equal entries the lower index first."""
    if a.shape[1] == 0:
        return np.zeros(a.shape, bool)
    ascending = np.sort(a, axis=1)
    kth_largest = ascending[np.arange(len(a)), np.minimum(a.shape[1] - k, a.shape[1] - 1)][:, None]
    kept = a > kth_largest
    tied = (a == kth_largest) & (k > 0)[:, None]
    n_left = k - kept.sum(axis=1)  # how many of the tied entries are kept
    excess = np.flatnonzero(tied.sum(axis=1) > n_left)  # few rows: most have no tie
    tied[excess] &= np.cumsum(tied[excess], axis=1) <= n_left[excess, None]
    kept |= tied
    kept[k == 0] = False
    return kept


def core_from_scores(scores: Array, beta: float) -> Array:  # (n_neurons,) -> int32 (n_core,)
    """Return the floor(beta * n_neurons) neurons with the highest positive scores, ids ascending.

    Of equal scores the lower index is kept. With token counts as scores this is eq. 2.

    Examples
    --------
    >>> core_from_scores(np.array([0, 3, 1, 3]), beta=0.5)
    array([1, 3], dtype=int32)
    """
    check_fraction("beta", beta)
    scores = np.asarray(scores)
    if scores.ndim != 1:
        raise InputError(f"scores have shape {scores.shape}, expected (n_neurons,)")
    if np.isnan(scores).any():
        raise InputError(f"scores contain NaN, first at neuron {int(np.isnan(scores).argmax())}")
    best = np.argsort(-scores, kind="stable")[: math.floor(beta * len(scores))]
    return np.sort(best[scores[best] > 0]).astype(np.int32)


def sentence_core(a: Array, alpha: float, beta: float) -> Array:  # (n_tokens, n_neurons) -> int32 (n_core,)
    """Return a sentence's core neurons: those that are core neurons of most of its tokens (eqs. 2 and 3).

    Parameters
    ----------
    a : (n_tokens, n_neurons) float array
        FFN activations of one layer.
    alpha, beta : float
        Fractions kept: of a token's positive activations, and of all neurons.

    Returns
    -------
    (n_core,) int32 array
        Ids, ascending: the floor(beta * n_neurons) neurons that are core for the most tokens, without
        neurons that are core for no token. Of equal counts the lower index is kept.

    Raises
    ------
    InputError
        As :func:`token_core`, and if beta is outside (0, 1].

    Examples
    --------
    >>> sentence_core(np.array([[3.0, 1.0, 2.0, 0.0], [0.0, 4.0, 5.0, 1.0]]), alpha=0.7, beta=0.5)
    array([0, 2], dtype=int32)
    """
    return core_from_scores(token_core(a, alpha).sum(axis=0), beta)


def jaccard(a: Array, b: Array) -> float:  # (n_a,), (n_b,) -> in [0, 1]
    """Return intersection over union of two arrays of distinct ids; 1 if both are empty.

    Examples
    --------
    >>> jaccard(np.array([0, 1, 2]), np.array([1, 2, 3]))
    0.5
    """
    shared = np.intersect1d(a, b, assume_unique=True).size
    union = len(a) + len(b) - shared
    return shared / union if union else 1.0


def _shared_fraction(a: Array, b: Array, size: int) -> float:
    return np.intersect1d(a, b, assume_unique=True).size / size if size else 1.0


@dataclass(frozen=True)
class CoreSet:
    """The neurons that decoding keeps, per layer. Layers that are not listed stay dense.

    Attributes
    ----------
    neurons : dict of int to int32 array
        Ids of the neurons of each restricted layer, strictly ascending.
    n_neurons, n_layers : int
        FFN width and number of layers of the model.
    settings : dict
        How the set was made: predictor, alpha, beta, number of prompt tokens and so on (JSON values).

    Examples
    --------
    >>> one = CoreSet({0: np.array([1, 2, 5]), 1: np.array([0, 7])}, n_neurons=8, n_layers=2)
    >>> one
    CoreSet(2 of 2 layers, 0.312 of 2 x 8 neurons)
    >>> other = CoreSet({0: np.array([2, 5]), 1: np.array([1, 7])}, n_neurons=8, n_layers=2)
    >>> both, either = one & other, one | other
    >>> both.neurons[0], len(either.neurons[1])
    (array([2, 5], dtype=int32), 3)
    """

    neurons: dict[int, Array]
    n_neurons: int
    n_layers: int
    settings: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        clean = {}
        for layer in sorted(self.neurons):
            ids = np.ascontiguousarray(self.neurons[layer], np.int32)
            if not 0 <= layer < self.n_layers:
                raise InputError(f"core set: layer {layer} is not one of 0 to {self.n_layers - 1}")
            if ids.ndim != 1 or (np.diff(ids) <= 0).any():
                raise InputError(f"core set: ids of layer {layer} are not in strictly ascending order")
            if len(ids) and not 0 <= ids[0] <= ids[-1] < self.n_neurons:
                raise InputError(f"core set: ids of layer {layer} are not within 0 to {self.n_neurons - 1}")
            clean[layer] = ids
        object.__setattr__(self, "neurons", clean)

    def __iter__(self) -> Iterator[int]:
        return iter(self.neurons)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CoreSet):
            return NotImplemented
        return (
            (self.n_neurons, self.n_layers, list(self)) == (other.n_neurons, other.n_layers, list(other))
        ) and all(np.array_equal(self.neurons[i], other.neurons[i]) for i in self)

    def __repr__(self) -> str:
        how = ", ".join(f"{key}={value}" for key, value in self.settings.items() if value is not None)
        return (
            f"CoreSet({len(self.neurons)} of {self.n_layers} layers, "
            f"{self.fraction:.3f} of {self.n_layers} x {self.n_neurons} neurons{', ' if how else ''}{how})"
        )

    @property
    def fraction(self) -> float:
        """Fraction of the model's FFN neurons that decoding uses; dense layers count in full."""
        kept = sum(len(ids) for ids in self.neurons.values())
        dense = (self.n_layers - len(self.neurons)) * self.n_neurons
        return (kept + dense) / (self.n_layers * self.n_neurons)

    def jaccard(self, other: CoreSet) -> float:
        """Return the Jaccard similarity, averaged over the layers that both sets restrict (sec. 3.2).

        Two empty layers have similarity 1. Raises InputError for sets of different models, or if they have no
        layer in common.

        Examples
        --------
        >>> one, other = (CoreSet({0: np.array(ids)}, 8, 1) for ids in ([0, 1, 2], [1, 2, 3]))
        >>> one.jaccard(other)
        0.5
        """
        return self._mean(other, jaccard)

    def overlap(self, other: CoreSet) -> float:
        """Return shared neurons over the smaller set's (overlap coefficient), averaged over shared layers.

        It is 1 if one set contains the other. Raises InputError as :meth:`jaccard` does.

        Examples
        --------
        >>> one, other = (CoreSet({0: np.array(ids)}, 8, 1) for ids in ([0, 1, 2, 3], [1, 2]))
        >>> one.overlap(other)
        1.0
        """
        return self._mean(other, lambda a, b: _shared_fraction(a, b, min(len(a), len(b))))

    def recall(self, target: CoreSet) -> float:
        """Return the fraction of the target's neurons that this set contains, averaged over shared layers.

        This measures a prediction against C_alpha^beta([s, g]) (sec. 4.1). Raises InputError as
        :meth:`jaccard` does.

        Examples
        --------
        >>> predicted, wanted = (CoreSet({0: np.array(ids)}, 8, 1) for ids in ([0, 1, 2], [1, 2, 3, 4]))
        >>> predicted.recall(wanted)
        0.5
        """
        return self._mean(target, lambda a, b: _shared_fraction(a, b, len(b)))

    def _mean(self, other: CoreSet, measure: Callable[[Array, Array], float]) -> float:
        self._same_model(other)
        layers = [i for i in self if i in other.neurons]
        if not layers:
            raise InputError("core sets without a common layer cannot be compared")
        return float(np.mean([measure(self.neurons[i], other.neurons[i]) for i in layers]))

    def _same_model(self, other: CoreSet) -> None:
        if (self.n_layers, self.n_neurons) != (other.n_layers, other.n_neurons):
            raise InputError(f"core sets belong to different models: {self!r} and {other!r}")

    def union(self, other: CoreSet) -> CoreSet:
        """Return the neurons in either set. A layer that is dense in one set is dense in the result.

        Examples
        --------
        >>> one = CoreSet({0: np.array([1, 4])}, n_neurons=8, n_layers=1)
        >>> other = CoreSet({0: np.array([4, 6])}, n_neurons=8, n_layers=1)
        >>> (one | other).neurons
        {0: array([1, 4, 6], dtype=int32)}
        """
        self._same_model(other)
        both = {i: np.union1d(self.neurons[i], other.neurons[i]) for i in self if i in other.neurons}
        return CoreSet(both, self.n_neurons, self.n_layers, {"union": [self.settings, other.settings]})

    def intersection(self, other: CoreSet) -> CoreSet:
        """Return the neurons in both sets. A layer that is dense in one set is taken from the other.

        Examples
        --------
        >>> one = CoreSet({0: np.array([1, 4])}, n_neurons=8, n_layers=1)
        >>> other = CoreSet({0: np.array([4, 6])}, n_neurons=8, n_layers=1)
        >>> (one & other).neurons
        {0: array([4], dtype=int32)}
        """
        self._same_model(other)
        both = {i: np.intersect1d(self.neurons[i], other.neurons[i]) for i in self if i in other.neurons}
        settings: dict[str, object] = {"intersection": [self.settings, other.settings]}
        return CoreSet(other.neurons | self.neurons | both, self.n_neurons, self.n_layers, settings)

    __or__, __and__ = union, intersection

    def save(self, path: str | Path) -> None:
        """Write the set to a safetensors file, atomically, with the settings as metadata.

        Examples
        --------
        >>> import tempfile
        >>> core = CoreSet({0: np.array([1, 4])}, n_neurons=8, n_layers=2, settings={"predictor": "mine"})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     core.save(f"{folder}/mine.core")
        ...     CoreSet.load(f"{folder}/mine.core") == core
        True
        """
        from safetensors.numpy import save_file

        meta = {"n_neurons": self.n_neurons, "n_layers": self.n_layers, "settings": self.settings}
        with atomic_write(path) as part:
            save_file(
                {str(i): ids for i, ids in self.neurons.items()},
                part,
                metadata={"minicore.core_set": json.dumps(meta)},
            )

    @classmethod
    def load(cls, path: str | Path) -> CoreSet:
        """Read a file that :meth:`save` wrote; raise InputError for any other file.

        Examples
        --------
        >>> CoreSet.load("no-such.core")
        Traceback (most recent call last):
        minicore.errors.InputError: core set file no-such.core does not exist
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                meta = json.loads((file.metadata() or {})["minicore.core_set"])
                neurons = {int(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if any(ids.dtype != np.int32 for ids in neurons.values()):
                raise ValueError("ids are not int32")
            return cls(neurons, meta["n_neurons"], meta["n_layers"], meta["settings"])
        except FileNotFoundError:
            raise InputError(f"core set file {path} does not exist") from None
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise InputError(f"{path} is not a core set file ({error})") from None


def parse_layers(layers: str | slice | range | list[int] | None, n_layers: int) -> list[int]:
    """Return the selected layers: None is all of them, ``"6:27"`` a Python slice, a list itself.

    Raises
    ------
    InputError
        If a string is not a slice, a layer is out of range, or nothing is selected.

    Examples
    --------
    >>> parse_layers("-2:", 6)
    [4, 5]
    """
    if layers is None:
        return list(range(n_layers))
    if isinstance(layers, str):
        layers = _read_layers(layers)
    if isinstance(layers, slice):
        for bound in (layers.start, layers.stop):
            if bound is not None and not -n_layers <= bound <= n_layers:
                raise InputError(f"layers {bound} is out of range, the model has layers 0 to {n_layers - 1}")
        if layers.step == 0:
            raise InputError("layers has a step of 0, expected a Python slice such as 6:27")
        chosen = sorted(range(n_layers)[layers])
    else:
        chosen = sorted({int(i) for i in layers})
        for i in chosen:
            if not 0 <= i < n_layers:
                raise InputError(f"layer {i} is out of range, the model has layers 0 to {n_layers - 1}")
    if not chosen:
        raise InputError(f"layers {layers} selects none of the model's {n_layers} layers")
    return chosen


def _read_layers(text: str) -> slice | list[int]:
    try:
        parts = [int(part) if part.strip() else None for part in text.split(":")]
        return slice(*parts) if len(parts) > 1 else [int(text)]
    except (ValueError, TypeError):
        raise InputError(f"layers is {text!r}, expected a Python slice such as 6:27") from None
