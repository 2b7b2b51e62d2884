"""Ways of choosing a sentence's neurons while its prompt is read: one function each, one table.

A predictor says which statistics it needs. Each statistic is a sum over tokens, so prefill adds up
chunk after chunk and keeps (n_layers, n_neurons) numbers, however long the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from minicore.core.neurons import CoreSet, check_fraction, core_from_scores, token_core
from minicore.errors import unknown

Array = np.ndarray


def token_counts(a: Array, alpha: float) -> Array:  # (n_tokens, n_neurons) -> (n_neurons,)
    """Count the tokens whose core contains each neuron (f_alpha, eq. 3)."""
    return token_core(a, alpha).sum(axis=0)


STATISTICS: dict[str, Callable[[Array, float], Array]] = {"counts": token_counts}


@dataclass(frozen=True)
class Predictor:
    """One way of choosing: the statistics it reads and the function from them to a layer's ids.

    ``choose(recorded, beta)`` gets statistic name -> (n_neurons,) of one layer and returns ascending ids;
    None stands for dense decoding.
    """

    needs: tuple[str, ...]
    choose: Callable[[dict[str, Array], float], Array] | None


PREDICTORS: dict[str, Predictor] = {
    # every neuron: ordinary decoding
    "dense": Predictor((), None),
    # the prompt's own sentence-wise core (CoreInfer sec. 4.1, "stability-guided")
    "stability": Predictor(("counts",), lambda recorded, beta: core_from_scores(recorded["counts"], beta)),
}


def find_predictor(name: str) -> Predictor:
    """Return the table's row, or raise InputError with the nearest names."""
    if name not in PREDICTORS:
        raise unknown("predictor", name, PREDICTORS)
    return PREDICTORS[name]


class Recorder:
    """Adds up what a predictor needs while prefill hands over activations, chunk by chunk.

    Parameters
    ----------
    predictor : str
        Name in the table.
    alpha, beta : float
        Fractions kept, in (0, 1].
    layers : sequence of int
        Layers to restrict; nothing is recorded for the others.
    n_layers, n_neurons : int
        The model's.
    """

    def __init__(
        self, predictor: str, alpha: float, beta: float, layers: Sequence[int], n_layers: int, n_neurons: int
    ) -> None:
        self.predictor, self.row = predictor, find_predictor(predictor)
        self.alpha, self.beta = check_fraction("alpha", alpha), check_fraction("beta", beta)
        self.n_layers, self.n_neurons = n_layers, n_neurons
        self.layers = list(layers) if self.row.choose else []
        self.recorded = {
            layer: {name: np.zeros(n_neurons) for name in self.row.needs} for layer in self.layers
        }

    def update(self, layer: int, a: Array) -> None:  # (n_tokens, n_neurons)
        """Add one chunk's activations of one layer."""
        for name, total in self.recorded.get(layer, {}).items():
            total += STATISTICS[name](a, self.alpha)

    def core(self) -> CoreSet | None:
        """Return the set that the statistics so far predict; None stands for dense."""
        if self.row.choose is None:
            return None
        neurons = {layer: self.row.choose(self.recorded[layer], self.beta) for layer in self.layers}
        settings = {"predictor": self.predictor, "alpha": self.alpha, "beta": self.beta}
        return CoreSet(neurons, self.n_neurons, self.n_layers, settings)
