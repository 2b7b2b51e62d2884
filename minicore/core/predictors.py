"""Predictors: ways to choose a sentence's neurons while its prompt is read. A few lines each, in one table.

A predictor gives every neuron of a layer a score, and decoding keeps the neurons with the highest scores. Or
it sets a limit by which every token selects its own neurons. Scores and limits are computed from statistics
of the prompt (see statistics.py) and from arrays that the caller provides (norms of weights, clusters of
other texts). Both are arrays by name; no model is needed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from minicore.core.statistics import GATE_SHIFT
from minicore.errors import InputError, unknown

Array = np.ndarray
Arrays = Mapping[str, Array]


# --- scores: one layer's arrays by name -> (n_neurons,); the highest are kept, 0 never ---


def stability(of: Arrays) -> Array:
    """f_alpha of the prompt: its own sentence-wise core (CoreInfer, 2410.18311 sec. 4.1)."""
    return of["counts"]


def magnitude(of: Arrays) -> Array:
    """CoreInfer with token cores by |a|, so that large negative activations count too."""
    return of["magnitude_counts"]


def coreinfer_code(of: Arrays) -> Array:
    """The authors' code: every token's core has floor(alpha * mean number of positives) neurons."""
    n_tokens, n_positive = of["positives"]
    k = math.floor(float(of["alpha"]) * (n_positive / n_tokens)) if n_tokens else 0
    return of["rank_counts"][:, :k].sum(axis=1, dtype=np.int64)


def griffin(of: Arrays) -> Array:
    """The squared norm over tokens of a / ||a||; squaring keeps the ranking (GRIFFIN, 2404.01365 eq. 6)."""
    return of["relative_energy"]


def griffin_weighted(of: Arrays) -> Array:
    """GRIFFIN times the norm of the neuron's output row: its contribution to the residual stream."""
    return of["relative_energy"] * np.square(of["w_out_norm"])


def static(of: Arrays) -> Array:
    """The neuron's frequency in other texts: one set for all prompts (PowerInfer, 2312.12456 sec. 4)."""
    return of["frequency"]


def similarity(of: Arrays) -> Array:
    """The neuron's frequency in the texts of the prompt's cluster (2410.18311 sec. 4.1)."""
    return of["cluster_frequency"]


def weight_norm(of: Arrays) -> Array:
    """The product of the norms of the neuron's rows, without any text (magnitude pruning, 1506.02626)."""
    return of["weight_norm"]


def random(of: Arrays) -> Array:
    """Random scores, as a baseline."""
    return of["random"]


# --- limits of token rules: one layer's arrays, fraction kept, n_neurons -> number ---


def top_k(of: Arrays, beta: float, n_neurons: int) -> float:
    """k for each token's own largest |a|. They need all activations: an upper bound for every prediction."""
    return math.floor(beta * n_neurons)


def gate_threshold(of: Arrays, beta: float, n_neurons: int) -> float:
    """The quantile that a fraction beta of the recorded gates exceeds (CATS, 2404.08763 sec. 4.2)."""
    passing = np.cumsum(of["gate_bins"][::-1])[::-1]  # gates in this bin or higher ones
    first = int(np.argmax(passing <= beta * passing[0]))  # the last bin is empty: infinity is refused
    edge = np.array(first << GATE_SHIFT, np.uint32).view(np.float32)
    return float(np.nextafter(edge, np.float32(-1))) if first else -1.0


def exact_zero(of: Arrays, beta: float, n_neurons: int) -> float:
    """Skip zero activations only: exact, and useful if the activation is ReLU (Deja Vu, 2310.17157)."""
    return 0.0


@dataclass(frozen=True)
class Predictor:
    """A row of the table of predictors.

    Attributes
    ----------
    scores : callable or None
        From a layer's arrays by name to scores (n_neurons,); None keeps every neuron.
    records : tuple of str
        The statistics of the prompt that it uses.
    given : tuple of str
        Further arrays that it uses; the caller provides them.
    needs_continuation : bool
        Whether it records the continuation as well as the prompt.
    kind, limit : str, callable or None
        For a token rule: its kind (see :class:`TokenRule`), and the function that computes a layer's limit.
    checks_stability : bool
        Whether it tests the prompt's stability and then acts as another predictor.
    window, refresh : int or None
        Defaults for the number of most recent tokens that it uses, and for the number of generated tokens
        after which it predicts again.
    """

    scores: Callable[[Arrays], Array] | None = None
    records: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    needs_continuation: bool = False
    kind: str | None = None
    limit: Callable[[Arrays, float, int], float] | None = None
    checks_stability: bool = False
    window: int | None = None
    refresh: int | None = None

    @property
    def dense(self) -> bool:
        """Whether it never restricts a layer."""
        return self.scores is None and self.limit is None and not self.checks_stability

    def inside(self, other: Predictor) -> Predictor:
        """Return the predictor that applies this token rule inside the other's core set."""
        if self.limit is None or other.scores is None or other.limit is not None:
            raise InputError(
                "a mixed predictor is a set's name, +, and a token rule's name, such as griffin+gate"
            )
        return replace(other, kind=self.kind, limit=self.limit, records=other.records + self.records)


PREDICTORS: dict[str, Predictor] = {
    "dense": Predictor(),
    # the prompt's own activations
    "stability": Predictor(stability, ("counts",)),
    "magnitude": Predictor(magnitude, ("magnitude_counts",)),
    "coreinfer-code": Predictor(coreinfer_code, ("rank_counts", "positives")),
    "griffin": Predictor(griffin, ("relative_energy",)),
    "griffin-weighted": Predictor(griffin_weighted, ("relative_energy",), ("w_out_norm",)),
    "sliding": Predictor(stability, ("counts",), window=256, refresh=64),
    # activations of prompt and continuation, which no real prediction has
    "oracle": Predictor(stability, ("counts",), needs_continuation=True),  # the target: C_alpha^beta([s, g])
    "oracle-griffin": Predictor(griffin, ("relative_energy",), needs_continuation=True),
    # other texts
    "similarity": Predictor(similarity, (), ("cluster_frequency",)),
    "auto": Predictor(records=("counts",), checks_stability=True),
    "static": Predictor(static, (), ("frequency",)),
    # no text
    "weight-norm": Predictor(weight_norm, (), ("weight_norm",)),
    "random": Predictor(random, (), ("random",)),
    # token rules
    "topk": Predictor(kind="top", limit=top_k),
    "gate": Predictor(records=("gate_bins",), kind="gate", limit=gate_threshold),
    "relu": Predictor(kind="gate", limit=exact_zero),
}


def find_predictor(name: str) -> Predictor:
    """Return a predictor by its name; ``SET+RULE`` is a token rule inside a core set.

    Raises
    ------
    InputError
        If a name is unknown, or the two names cannot be combined.

    Examples
    --------
    >>> find_predictor("stability").records
    ('counts',)
    """
    for part in name.split("+", 1):
        if part not in PREDICTORS:
            raise unknown("predictor", part, PREDICTORS)
    outer, _, rule = name.partition("+")
    return PREDICTORS[rule].inside(PREDICTORS[outer]) if rule else PREDICTORS[outer]
