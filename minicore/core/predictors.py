"""Ways of choosing a sentence's neurons while its prompt is read: a few lines each, one table.

A predictor gives every neuron of a layer a score; decoding keeps the neurons that score highest. What the
scores are made of is either summed up over the prompt (a statistic, see recording.py) or handed in (norms of
the model's weights, frequencies in other texts). Both come as arrays by name, and no model is seen here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicore.core.neurons import CoreSet, check_fraction, core_from_scores
from minicore.core.recording import Recording
from minicore.errors import InputError, unknown

Array = np.ndarray
Arrays = Mapping[str, Array]


# --- scores: one layer's arrays by name -> (n_neurons,), higher is kept first, 0 never ---


def stability(of: Arrays) -> Array:
    """The prompt's own sentence-wise core: f_alpha (CoreInfer, 2410.18311 sec. 4.1)."""
    return of["counts"]


def magnitude(of: Arrays) -> Array:
    """CoreInfer with a token's core taken by |a|: a large negative activation counts as well."""
    return of["magnitude_counts"]


def coreinfer_code(of: Arrays) -> Array:
    """The authors' decode path: every token's core has floor(alpha * mean number of positives) neurons."""
    n_tokens, n_positive = of["positives"]
    k = math.floor(float(of["alpha"]) * (n_positive / n_tokens)) if n_tokens else 0
    return of["rank_counts"][:, :k].sum(axis=1, dtype=np.int64)


def griffin(of: Arrays) -> Array:
    """The norm over tokens of a / ||a||, squared, which ranks alike (GRIFFIN, 2404.01365 eq. 6)."""
    return of["relative_energy"]


def griffin_weighted(of: Arrays) -> Array:
    """GRIFFIN times the norm of the neuron's output row: what it adds to the residual stream."""
    return of["relative_energy"] * np.square(of["w_out_norm"])


def static(of: Arrays) -> Array:
    """One hot set for every prompt: how often other texts had the neuron (PowerInfer, 2312.12456 sec. 4)."""
    return of["frequency"]


def weight_norm(of: Arrays) -> Array:
    """The product of the norms of the neuron's rows: no text at all (magnitude pruning, 1506.02626)."""
    return of["weight_norm"]


def random(of: Arrays) -> Array:
    """Chance."""
    return of["random"]


@dataclass(frozen=True)
class Predictor:
    """A row of the table.

    Attributes
    ----------
    scores : callable or None
        From a layer's arrays by name to (n_neurons,) scores; None keeps every neuron.
    records : tuple of str
        The statistics of the prompt that it reads.
    given : tuple of str
        The arrays that it reads besides, handed in by whoever has the model.
    whole : bool
        It records prompt and continuation, not the prompt alone.
    """

    scores: Callable[[Arrays], Array] | None
    records: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    whole: bool = False

    @property
    def dense(self) -> bool:
        """Whether it never restricts anything."""
        return self.scores is None


PREDICTORS: dict[str, Predictor] = {
    "dense": Predictor(None),
    "stability": Predictor(stability, ("counts",)),
    "magnitude": Predictor(magnitude, ("magnitude_counts",)),
    "coreinfer-code": Predictor(coreinfer_code, ("rank_counts", "positives")),
    "griffin": Predictor(griffin, ("relative_energy",)),
    "griffin-weighted": Predictor(griffin_weighted, ("relative_energy",), ("w_out_norm",)),
    "oracle": Predictor(stability, ("counts",), whole=True),  # the target: C_alpha^beta([s, g])
    "oracle-griffin": Predictor(griffin, ("relative_energy",), whole=True),
    "static": Predictor(static, (), ("frequency",)),
    "weight-norm": Predictor(weight_norm, (), ("weight_norm",)),
    "random": Predictor(random, (), ("random",)),
}


def find_predictor(name: str) -> Predictor:
    """Return the table's row, or raise InputError with the nearest names."""
    if name not in PREDICTORS:
        raise unknown("predictor", name, PREDICTORS)
    return PREDICTORS[name]


# --- from scores to sets ---

Beta = float | str | Sequence[float]


def layer_betas(beta: Beta, n: int) -> list[float]:
    """Return the fraction kept in each of n layers: a constant, a range ``"0.2:0.6"``, or one a layer.

    A range runs evenly from the first restricted layer to the last.

    Raises
    ------
    InputError
        If a fraction is not in (0, 1], or there are not n of them.
    """
    if isinstance(beta, str):
        try:
            ends = [float(part) for part in beta.split(":")]
        except ValueError:
            ends = []
        if len(ends) not in (1, 2):
            raise InputError(f"beta is {beta!r}, expected a fraction such as 0.4 or a range such as 0.2:0.6")
        first, last = (check_fraction("beta", end) for end in (ends[0], ends[-1]))
        return [float(one) for one in np.linspace(first, last, n)]
    if isinstance(beta, int | float | np.number):
        return [check_fraction("beta", beta)] * n
    betas = [check_fraction("beta", one) for one in beta]
    if len(betas) != n:
        raise InputError(f"beta has {len(betas)} values, expected one for each of the {n} layers restricted")
    return betas


def uniform(scores: Mapping[int, Array], betas: Sequence[float]) -> dict[int, Array]:
    """Keep each layer's own floor(beta * n_neurons) neurons, as the paper does."""
    return {layer: core_from_scores(s, beta) for (layer, s), beta in zip(scores.items(), betas, strict=True)}


def share(scores: Mapping[int, Array], betas: Sequence[float]) -> dict[int, Array]:
    """Keep as many neurons in all as `uniform` would, where they capture most.

    Say that dropping neurons costs a layer the share of its scores that they held, and that the layers'
    costs add up. With x_ln in {0, 1} for neuron n of layer l and s_ln its share (a layer's shares add up
    to 1), we maximise the sum of x_ln * s_ln under the budget sum of x_ln = B. All neurons cost the same,
    so the best choice is the B largest shares of all layers together: a layer whose scores lie on few
    neurons gives up places to one whose scores are spread out. Equal shares: the lower layer first, then
    the lower index.
    """
    for layer, s in scores.items():
        if np.isnan(s).any():
            raise InputError(f"scores of layer {layer} hold NaN, first at neuron {int(np.isnan(s).argmax())}")
    pooled = np.stack([s / (s.sum() or 1) for s in scores.values()]).astype(np.float64)
    places = sum(math.floor(beta * pooled.shape[1]) for beta in betas)
    best = np.argsort(-pooled, axis=None, kind="stable")[:places]
    kept = np.zeros(pooled.size, bool)
    kept[best] = pooled.ravel()[best] > 0
    return {
        layer: np.flatnonzero(row).astype(np.int32)
        for layer, row in zip(scores, kept.reshape(pooled.shape), strict=True)
    }


BUDGETS: dict[str, Callable[[Mapping[int, Array], Sequence[float]], dict[int, Array]]] = {
    "uniform": uniform,
    "share": share,
}


class Recorder:
    """A predictor at work: it records what it needs while prefill goes on, and then says its set.

    Parameters
    ----------
    predictor : str
        Name in the table.
    alpha : float
        Fraction of a token's positive activations kept, in (0, 1].
    beta : float, str or sequence of float
        Fraction of a layer's neurons kept, in (0, 1]; see :func:`layer_betas`.
    layers : sequence of int
        Layers to restrict; nothing is recorded for the others.
    n_layers, n_neurons : int
        The model's.
    budget : str
        How beta is spent over the layers, a name of :data:`BUDGETS`.
    given : mapping of str to (n_layers, n_neurons) array
        What the predictor reads besides the prompt.
    settings : mapping
        Kept with the set, to say where it came from (JSON values).
    """

    def __init__(
        self,
        predictor: str,
        alpha: float,
        beta: Beta,
        layers: Sequence[int],
        n_layers: int,
        n_neurons: int,
        *,
        budget: str = "uniform",
        given: Mapping[str, Array] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.predictor, self.row = predictor, find_predictor(predictor)
        self.alpha, self.beta = check_fraction("alpha", alpha), beta
        self.n_layers, self.n_neurons = n_layers, n_neurons
        self.layers = [] if self.row.dense else list(layers)
        layer_betas(beta, len(layers))
        if budget not in BUDGETS:
            raise unknown("budget", budget, BUDGETS)
        self.budget, self.settings = budget, dict(settings or {})
        self.given = {
            name: np.asarray((given or {})[name]) for name in self.row.given if name in (given or {})
        }
        for name in self.row.given:
            if name not in self.given or self.given[name].shape != (n_layers, n_neurons):
                raise InputError(f"predictor {predictor} needs {name}, (n_layers, n_neurons) numbers")
        self.recording = Recording(self.row.records, self.layers, n_neurons, self.alpha)

    def update(self, layer: int, a: Array, reads: str = "post") -> None:  # (n_tokens, n_neurons)
        """Add one chunk's activations of one layer."""
        self.recording.update(layer, a, reads)

    def scores(self) -> dict[int, Array]:
        """Return the layers' (n_neurons,) scores so far."""
        if self.row.scores is None:
            return {}
        alpha = {"alpha": np.array(self.alpha)}
        return {
            layer: self.row.scores(
                alpha
                | self.recording.totals[layer]
                | {name: rows[layer] for name, rows in self.given.items()}
            )
            for layer in self.layers
        }

    def core(self, beta: Beta | None = None, budget: str | None = None) -> CoreSet | None:
        """Return the set that the statistics so far predict; None stands for dense.

        Another beta or budget than the recorder's own may be asked for: one prefill serves them all.
        """
        if self.row.dense:
            return None
        beta, budget = self.beta if beta is None else beta, budget or self.budget
        neurons = BUDGETS[budget](self.scores(), layer_betas(beta, len(self.layers)))
        said = {"predictor": self.predictor, "alpha": self.alpha, "beta": _plain(beta), "budget": budget}
        return CoreSet(neurons, self.n_neurons, self.n_layers, said | self.settings)


def _plain(beta: Beta) -> float | str | list[float]:
    """Return beta as JSON can hold it."""
    return beta if isinstance(beta, str) else np.asarray(beta, float).tolist()
