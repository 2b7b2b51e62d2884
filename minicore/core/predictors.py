"""Predictors: ways to choose a sentence's neurons while its prompt is read. A few lines each, in one table.

A predictor gives every neuron of a layer a score, and decoding keeps the neurons with the highest scores. Or
it sets a limit by which every token selects its own neurons. Scores and limits are computed from statistics
of the prompt (see recording.py) and from arrays that the caller provides (norms of weights, clusters of other
texts). Both are arrays by name; no model is needed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minicore.core.budgets import BUDGETS, Beta, layer_betas, plain
from minicore.core.neurons import CoreSet, check_fraction, core_from_scores
from minicore.core.recording import GATE_SHIFT, Recording
from minicore.core.rules import Selection, TokenRule
from minicore.core.similarity import Clusters, core_vector
from minicore.core.stability import WANTED, Verdict, growth_marks, is_stable
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


class Recorder:
    """A predictor at work: it records what it needs while prefill goes on, and then says its choice.

    Parameters
    ----------
    predictor : str
        Name in the table, or ``SET+RULE``.
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
    gamma : float, str, sequence of float or None
        As beta, for a cluster's set; None is beta.
    token_beta : float, str, sequence of float or None
        As beta, for the token rule inside a set.
    given : mapping of str to (n_layers, n_neurons) array
        What the predictor reads besides the prompt.
    clusters : Clusters or None
        What similarity-guided prediction and ``static`` read.
    embedding : (d,) array or None
        The prompt's vector, for clusters of embeddings.
    window : int or None
        Tokens, the last ones, that are recorded; None is the predictor's own, mostly all.
    wanted : float
        Expected recall from which on ``auto`` takes a prompt's set for stable.
    settings : mapping
        Kept with the choice, to say where it came from (JSON values).

    Attributes
    ----------
    used, why : str
        After :meth:`core`: the row of the table it came from, and the reason if it was chosen.
    hooks : mapping of str to str
        The name, inside a block, of each kind of activation that statistics read.
    """

    hooks: Mapping[str, str] = {"post": "mlp.hook_post", "gate": "mlp.hook_gate"}

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
        gamma: Beta | None = None,
        token_beta: Beta | None = None,
        given: Mapping[str, Array] | None = None,
        clusters: Clusters | None = None,
        embedding: Array | None = None,
        window: int | None = None,
        wanted: float = WANTED,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.predictor, self.row = predictor, find_predictor(predictor)
        self.used, self.why = predictor, ""
        self.alpha, self.beta, self.gamma, self.token_beta = (
            check_fraction("alpha", alpha),
            beta,
            gamma,
            token_beta,
        )
        self.n_layers, self.n_neurons = n_layers, n_neurons
        self.layers = [] if self.row.dense else list(layers)
        for one in (beta, gamma, token_beta):
            layer_betas(0.5 if one is None else one, len(layers))
        if self.row.limit and self.row.scores and token_beta is None:
            raise InputError(
                f"predictor {predictor} needs token_beta, the fraction of neurons each token keeps"
            )
        if budget not in BUDGETS:
            raise unknown("budget", budget, BUDGETS)
        if window is not None and window < 1:
            raise InputError(f"window is {window}, expected 1 or more tokens")
        self.window = self.row.window if window is None else window
        self.budget, self.wanted, self.settings = (
            budget,
            check_fraction("wanted", wanted),
            dict(settings or {}),
        )
        self.clusters, self.embedding = self._check_clusters(clusters, embedding), embedding
        self.given = self._check_given(given or {})
        self.fixed = False  # set once the recorder has read what it shall, so that the prompt is not recorded
        self.start(None)

    def _check_clusters(self, clusters: Clusters | None, embedding: Array | None) -> Clusters | None:
        reads = self.row.checks_stability or "cluster_frequency" in self.row.given
        if clusters is None or not (reads or "frequency" in self.row.given):
            if "cluster_frequency" in self.row.given:
                raise InputError(
                    f"predictor {self.predictor} needs clusters, such as `minicore cluster fit` makes"
                )
            return None
        if (clusters.n_layers, clusters.n_neurons) != (self.n_layers, self.n_neurons):
            raise InputError(f"{clusters!r} are another model's, expected {self.n_layers} x {self.n_neurons}")
        if reads and clusters.layer is None and embedding is None:
            raise InputError(f"{clusters!r} need the prompt's embedding")
        fitted = clusters.settings.get("alpha", self.alpha)
        if reads and clusters.layer is not None and fitted != self.alpha:
            raise InputError(f"the clusters were fitted with alpha {fitted}, alpha is {self.alpha}")
        return clusters

    def _check_given(self, given: Mapping[str, Array]) -> dict[str, Array]:
        arrays = {name: np.asarray(given[name]) for name in self.row.given if name in given}
        if self.clusters and "frequency" in self.row.given:
            arrays["frequency"] = self.clusters.frequency()
        for name in self.row.given:
            if name == "cluster_frequency":
                continue  # known once the prompt has its cluster
            if name not in arrays:
                what = "clusters fitted on other texts" if name == "frequency" else f"{name}, an array"
                raise InputError(f"predictor {self.predictor} needs {what}")
            if arrays[name].shape != (self.n_layers, self.n_neurons):
                raise InputError(
                    f"{name} has shape {arrays[name].shape}, expected ({self.n_layers}, {self.n_neurons})"
                )
        return arrays

    @property
    def _assigns(self) -> bool:
        """Whether the prompt's own set says which cluster it belongs to."""
        reads = self.row.checks_stability or "cluster_frequency" in self.row.given
        return reads and self.clusters is not None and self.clusters.layer is not None

    def start(self, n_tokens: int | None) -> None:
        """Forget what was recorded, and make ready for that many tokens (None: any number).

        A window and the test of stability have to know where the prompt ends.
        """
        layers, records = list(self.layers), list(self.row.records)
        if self._assigns and self.clusters:
            layers = sorted({*layers, self.clusters.layer or 0})
            records += find_predictor(str(self.clusters.settings.get("predictor", "stability"))).records
        self.n_tokens = n_tokens
        self.__dict__.pop("recording", None)  # not to hold both at once
        first = max(n_tokens - self.window, 0) if n_tokens and self.window else 0
        marks = growth_marks(n_tokens) if n_tokens and self.row.checks_stability else []
        self.recording = Recording(records, layers, self.n_neurons, self.alpha, first, marks)

    def update(self, layer: int, a: Array, reads: str = "post") -> None:  # (n_tokens, n_neurons)
        """Add one chunk's activations of one layer; ``reads`` says which, see :class:`Statistic`."""
        self.recording.update(layer, a, reads)

    def scores(self, predictor: str | None = None) -> dict[int, Array]:
        """Return the restricted layers' (n_neurons,) scores so far, of this or another row of the table."""
        row = find_predictor(predictor) if predictor else self.row
        if row.scores is None:
            return {}
        given = dict(self.given)
        if "cluster_frequency" in row.given and self.clusters:
            given["cluster_frequency"] = self.clusters.frequency(self.cluster())
        return {layer: row.scores(self._arrays(layer, given)) for layer in self.layers}

    def _arrays(self, layer: int, given: Mapping[str, Array]) -> Arrays:
        of_layer = {name: rows[layer] for name, rows in given.items()}
        return {"alpha": np.array(self.alpha)} | self.recording.totals[layer] | of_layer

    def cluster(self) -> int:
        """Return the cluster that the prompt so far belongs to."""
        clusters = self.clusters
        if clusters is None:
            raise InputError("there are no clusters to assign the prompt to")
        if clusters.layer is None:
            return clusters.assign(np.asarray(self.embedding))
        row = find_predictor(str(clusters.settings.get("predictor", "stability")))
        assert row.scores is not None
        scores = row.scores(self._arrays(clusters.layer, self.given))
        beta = layer_betas(clusters.settings.get("beta", 0.4), 1)[0]
        return clusters.assign(core_vector(core_from_scores(scores, beta), self.n_neurons))

    def verdict(self) -> Verdict:
        """Return whether the prompt's set is settled; :meth:`start` must have been told its length."""
        if self.n_tokens is None:
            raise InputError("the stability test needs the prompt's length before it is read")
        marks = growth_marks(self.n_tokens)
        at_mark = [self.recording.at_mark[mark] for mark in marks]
        counts = [np.stack([step[layer]["counts"] for layer in self.layers]) for step in at_mark]
        return is_stable(counts, self.n_tokens, self.wanted)

    def core(self, beta: Beta | None = None, budget: str | None = None) -> Selection | None:
        """Return the choice that the statistics so far predict; None stands for dense.

        Another beta or budget than the recorder's own may be asked for: one prefill serves them all.
        """
        self.used = self._resolve() if self.row.checks_stability else self.predictor
        row = find_predictor(self.used)
        if row.dense:
            return None
        beta = self.beta if beta is None else beta
        if "cluster_frequency" in row.given and self.gamma is not None:
            beta = self.gamma
        said = {
            "predictor": self.used,
            "alpha": self.alpha,
            "beta": plain(beta),
            "budget": budget or self.budget,
        }
        said |= {"prompt_tokens": self.n_tokens} if self.n_tokens is not None else {}
        said |= {"why": self.why} if self.why else {}
        said |= self.settings
        core = None
        if row.scores:
            betas = layer_betas(beta, len(self.layers))
            neurons = BUDGETS[budget or self.budget](self.scores(self.used), betas)
            core = CoreSet(neurons, self.n_neurons, self.n_layers, said)
        if row.limit is None:
            return core
        share = self.token_beta if core and self.token_beta is not None else beta
        limits = {
            layer: row.limit(self._arrays(layer, self.given), one, self.n_neurons)
            for layer, one in zip(self.layers, layer_betas(share, len(self.layers)), strict=True)
        }
        said |= {"token_beta": plain(share)} if core else {}
        return TokenRule(str(row.kind), limits, self.n_neurons, self.n_layers, core, said)

    def _resolve(self) -> str:
        """Return the row that the stability test leads to, and note why."""
        verdict = self.verdict()
        used = "stability" if verdict.stable else "similarity" if self.clusters else "dense"
        without = (
            "" if verdict.stable or self.clusters else "; without clusters dense decoding is the safe choice"
        )
        self.why = f"{verdict}{without}"
        return used
