"""The recorder: it collects a predictor's statistics while the prompt is read, then selects the neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from minicore.core.budgets import BUDGETS, Beta, layer_betas, plain
from minicore.core.neurons import CoreSet, check_fraction, core_from_scores
from minicore.core.predictors import Arrays, find_predictor
from minicore.core.rules import Selection, TokenRule
from minicore.core.similarity import Clusters, core_vector
from minicore.core.stability import WANTED, Verdict, growth_marks, is_stable
from minicore.core.statistics import Adder, Recording
from minicore.errors import InputError, unknown

Array = np.ndarray


class Recorder:
    """Collects the statistics of a predictor during prefill, then returns its selection.

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
        How beta is distributed over the layers, a name of :data:`BUDGETS`.
    gamma : float, str, sequence of float or None
        Like beta, for the set of a cluster; None is beta.
    token_beta : float, str, sequence of float or None
        Like beta, for the token rule within a set.
    given : mapping of str to (n_layers, n_neurons) array
        The predictor's inputs other than the prompt.
    clusters : Clusters or None
        Input of similarity-guided prediction and of ``static``.
    embedding : (d,) array or None
        The embedding of the prompt, for clusters of embeddings.
    window : int or None
        Record only this many tokens at the end. None is the predictor's default, usually all.
    wanted : float
        Expected recall above which ``auto`` treats the prompt's set as stable.
    gated : bool
        Whether the FFN has a gate. Without one, statistics of gates read the activations themselves.
    settings : mapping
        Stored with the selection to document its origin (JSON values).

    Attributes
    ----------
    used, why : str
        After :meth:`core`: the predictor that made the selection, and why, where ``auto`` decided.
    fixed : bool
        Whether it has all its statistics and ignores prompts that follow.
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
        gamma: Beta | None = None,
        token_beta: Beta | None = None,
        given: Mapping[str, Array] | None = None,
        clusters: Clusters | None = None,
        embedding: Array | None = None,
        window: int | None = None,
        wanted: float = WANTED,
        gated: bool = True,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.predictor, self.row = predictor, find_predictor(predictor)
        self.used, self.why = predictor, ""
        self.alpha = check_fraction("alpha", alpha)
        self.beta, self.gamma, self.token_beta = beta, gamma, token_beta
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
        self.gated, self.fixed = gated, False
        self._recording: Recording | None = None
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

    def start(self, n_tokens: int | None, adders: Mapping[str, Adder] | None = None) -> None:
        """Forget what was recorded and prepare for that many tokens (None: any number).

        A window and the stability test have to know where the prompt ends. ``adders`` are a backend's
        faster sums (:class:`~minicore.core.statistics.Recording`).
        """
        layers, records = list(self.layers), list(self.row.records)
        if self._assigns and self.clusters:
            layers = sorted({*layers, self.clusters.layer or 0})
            records += find_predictor(str(self.clusters.settings.get("predictor", "stability"))).records
        self.n_tokens = n_tokens
        self._recording = None  # its memory is free before more is asked for
        first = max(n_tokens - self.window, 0) if n_tokens and self.window else 0
        marks = growth_marks(n_tokens) if n_tokens and self.row.checks_stability else []
        self._recording = Recording(records, layers, self.n_neurons, self.alpha, first, marks, adders)

    @property
    def recording(self) -> Recording:
        """The statistics of the tokens read so far."""
        assert self._recording is not None
        return self._recording

    def update(self, layer: int, a: Array, reads: str = "post") -> None:  # (n_tokens, n_neurons)
        """Add one chunk's activations of one layer; ``reads`` says which, see :class:`Statistic`."""
        self.recording.update(layer, a, reads)

    def hooks(self) -> Iterator[tuple[str, Callable[[Array], None]]]:
        """Yield the names of the tensors to record, and what is to see each."""
        names = {"post": "mlp.hook_post", "gate": "mlp.hook_gate" if self.gated else "mlp.hook_post"}
        for layer in self.recording.layers:
            for reads in self.recording.reads:
                yield f"blocks.{layer}.{names[reads]}", partial(self.update, layer, reads=reads)

    def fix(self) -> None:
        """Keep what is recorded: prompts that follow are not to be recorded."""
        self.fixed = True

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

    def core(
        self, beta: Beta | None = None, budget: str | None = None, token_beta: Beta | None = None
    ) -> Selection | None:
        """Return the selection that the statistics so far predict; None stands for dense.

        Another beta, budget or token_beta than the recorder's own may be asked for: one prefill serves
        them all.
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
        token_beta = self.token_beta if token_beta is None else token_beta
        share = token_beta if core and token_beta is not None else beta
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
