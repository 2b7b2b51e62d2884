"""The recorder: collect a predictor's statistics while the prompt is read, then make its selection."""

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
    """Collects the statistics of a predictor during prefill, and makes the selection from them.

    Parameters
    ----------
    predictor : str
        Name in the table of predictors, or ``SET+RULE``.
    alpha : float
        Fraction of a token's positive activations kept, in (0, 1].
    beta : float, str or sequence of float
        Fraction of a layer's neurons kept, in (0, 1]; see :func:`layer_betas`.
    layers : sequence of int
        Layers to restrict; nothing is recorded for the others.
    n_layers, n_neurons : int
        Number of layers and FFN width of the model.
    budget : str
        How beta is distributed over the layers, a name in :data:`BUDGETS`.
    gamma : float, str, sequence of float or None
        Like beta, for the set of a cluster; None is beta.
    token_beta : float, str, sequence of float or None
        Like beta, for a token rule inside a core set.
    given : mapping of str to (n_layers, n_neurons) array
        Arrays that the predictor uses in addition to statistics of the prompt.
    clusters : Clusters or None
        Clusters of other texts, for similarity-guided prediction and ``static``.
    embedding : (d,) array or None
        The embedding of the prompt, for clusters of embeddings.
    window : int or None
        Record only this many tokens at the end of the prompt; None is the predictor's default, usually all.
    wanted : float
        Predicted recall from which on ``auto`` treats the prompt's core set as stable.
    gated : bool
        Whether the FFN has a gate. Without one, statistics of gates read the activations themselves.
    settings : mapping
        Stored with the selection to document its origin (JSON values).

    Attributes
    ----------
    used, why : str
        After :meth:`core`: the predictor that made the selection, and the reason if ``auto`` chose it.
    fixed : bool
        Whether recording is complete, so that later prompts are not recorded.
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
        self.budget, self.settings = budget, dict(settings or {})
        self.wanted = check_fraction("wanted", wanted)
        self.clusters, self.embedding = self._check_clusters(clusters, embedding), embedding
        self.given = self._check_given(given or {})
        self.gated, self.fixed = gated, False
        self._recording: Recording | None = None
        self.start(None)

    def _check_clusters(self, clusters: Clusters | None, embedding: Array | None) -> Clusters | None:
        if clusters is None or not (self._uses_cluster or "frequency" in self.row.given):
            if "cluster_frequency" in self.row.given:
                raise InputError(
                    f"predictor {self.predictor} needs clusters, such as from `minicore cluster fit`"
                )
            return None
        if (clusters.n_layers, clusters.n_neurons) != (self.n_layers, self.n_neurons):
            raise InputError(
                f"{clusters!r} belong to another model, expected {self.n_layers} x {self.n_neurons} neurons"
            )
        if self._uses_cluster and clusters.layer is None and embedding is None:
            raise InputError(f"{clusters!r} need the prompt's embedding")
        fitted = clusters.settings.get("alpha", self.alpha)
        if self._uses_cluster and clusters.layer is not None and fitted != self.alpha:
            raise InputError(f"the clusters were fitted with alpha {fitted}, but alpha is {self.alpha}")
        return clusters

    def _check_given(self, given: Mapping[str, Array]) -> dict[str, Array]:
        arrays = {name: np.asarray(given[name]) for name in self.row.given if name in given}
        if self.clusters and "frequency" in self.row.given:
            arrays["frequency"] = self.clusters.frequency()
        for name in self.row.given:
            if name == "cluster_frequency":
                continue  # depends on the prompt's cluster
            if name not in arrays:
                needed = "clusters fitted on other texts" if name == "frequency" else f"the array {name}"
                raise InputError(f"predictor {self.predictor} needs {needed}")
            if arrays[name].shape != (self.n_layers, self.n_neurons):
                raise InputError(
                    f"{name} has shape {arrays[name].shape}, expected ({self.n_layers}, {self.n_neurons})"
                )
        return arrays

    @property
    def _uses_cluster(self) -> bool:
        """Whether the predictor may use the prompt's cluster."""
        return self.row.checks_stability or "cluster_frequency" in self.row.given

    @property
    def _assigns(self) -> bool:
        """Whether the prompt's cluster is found from its core set."""
        return self._uses_cluster and self.clusters is not None and self.clusters.layer is not None

    def start(self, n_tokens: int | None, adders: Mapping[str, Adder] | None = None) -> None:
        """Discard all statistics and prepare for a prompt of n tokens, or of any length if None.

        A window and the stability test need the length. ``adders`` are a backend's faster implementations of
        statistics (see :class:`~minicore.core.statistics.Recording`).
        """
        layers, records = list(self.layers), list(self.row.records)
        if self._assigns and self.clusters:
            layers = sorted({*layers, self.clusters.layer or 0})
            records += find_predictor(str(self.clusters.settings.get("predictor", "stability"))).records
        self.n_tokens = n_tokens
        self._recording = None  # free its memory first
        first = max(n_tokens - self.window, 0) if n_tokens and self.window else 0
        marks = growth_marks(n_tokens) if n_tokens and self.row.checks_stability else []
        self._recording = Recording(
            records,
            layers,
            self.n_neurons,
            alpha=self.alpha,
            first=first,
            marks=marks,
            adders=adders,
        )

    @property
    def recording(self) -> Recording:
        """The statistics of the tokens read so far."""
        assert self._recording is not None
        return self._recording

    def update(self, layer: int, a: Array, reads: str = "post") -> None:  # (n_tokens, n_neurons)
        """Add a chunk of activations of one layer; ``reads`` is their kind, see :class:`Statistic`."""
        self.recording.update(layer, a, reads)

    def hooks(self) -> Iterator[tuple[str, Callable[[Array], None]]]:
        """Yield the name of each hook to record, and the function that takes its tensor."""
        names = {"post": "mlp.hook_post", "gate": "mlp.hook_gate" if self.gated else "mlp.hook_post"}
        for layer in self.recording.layers:
            for reads in self.recording.reads:
                yield f"blocks.{layer}.{names[reads]}", partial(self.update, layer, reads=reads)

    def fix(self) -> None:
        """Mark recording as complete: later prompts are not recorded."""
        self.fixed = True

    def scores(self, predictor: str | None = None) -> dict[int, Array]:
        """Return the scores (n_neurons,) of each restricted layer so far, of this or another predictor."""
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
        """Return the cluster of the prompt, as far as it has been read."""
        clusters = self.clusters
        if clusters is None:
            raise InputError("the prompt cannot be assigned to a cluster, expected clusters")
        if clusters.layer is None:
            return clusters.assign(np.asarray(self.embedding))
        row = find_predictor(str(clusters.settings.get("predictor", "stability")))
        assert row.scores is not None
        scores = row.scores(self._arrays(clusters.layer, self.given))
        beta = layer_betas(clusters.settings.get("beta", 0.4), 1)[0]
        return clusters.assign(core_vector(core_from_scores(scores, beta), self.n_neurons))

    def verdict(self) -> Verdict:
        """Return the result of the stability test. It needs the prompt's length in :meth:`start`."""
        if self.n_tokens is None:
            raise InputError("the stability test needs the prompt's length before the prompt is read")
        marks = growth_marks(self.n_tokens)
        at_mark = [self.recording.at_mark[mark] for mark in marks]
        counts = [np.stack([prefix[layer]["counts"] for layer in self.layers]) for prefix in at_mark]
        return is_stable(counts, self.n_tokens, self.wanted)

    def core(
        self, beta: Beta | None = None, budget: str | None = None, token_beta: Beta | None = None
    ) -> Selection | None:
        """Return the selection from the statistics so far; None is dense.

        beta, budget and token_beta override the recorder's own, so one prefill serves several settings.
        """
        self.used = self._resolve() if self.row.checks_stability else self.predictor
        row = find_predictor(self.used)
        if row.dense:
            return None
        beta = self.beta if beta is None else beta
        if "cluster_frequency" in row.given and self.gamma is not None:
            beta = self.gamma
        budget = budget or self.budget
        settings, core = self._selection_settings(beta, budget), None
        token_beta = self.token_beta if token_beta is None else token_beta
        if row.limit and row.scores:
            settings["token_beta"] = plain(beta if token_beta is None else token_beta)
        if row.scores:
            neurons = BUDGETS[budget](self.scores(self.used), layer_betas(beta, len(self.layers)))
            core = CoreSet(neurons, self.n_neurons, self.n_layers, settings)
        if row.limit is None:
            return core
        beta = token_beta if row.scores and token_beta is not None else beta
        limits = {
            layer: row.limit(self._arrays(layer, self.given), fraction, self.n_neurons)
            for layer, fraction in zip(self.layers, layer_betas(beta, len(self.layers)), strict=True)
        }
        return TokenRule(
            kind=str(row.kind),
            limits=limits,
            n_neurons=self.n_neurons,
            n_layers=self.n_layers,
            core=core,
            settings=settings,
        )

    def _selection_settings(self, beta: Beta, budget: str) -> dict[str, Any]:
        """Return how a selection is made, as JSON values."""
        settings = {"predictor": self.used, "alpha": self.alpha, "beta": plain(beta), "budget": budget}
        settings |= {"prompt_tokens": self.n_tokens} if self.n_tokens is not None else {}
        settings |= {"why": self.why} if self.why else {}
        return settings | self.settings

    def _resolve(self) -> str:
        """Return the predictor that the stability test selects, and store the reason."""
        verdict = self.verdict()
        self.why = str(verdict)
        if verdict.stable:
            return "stability"
        if self.clusters:
            return "similarity"
        self.why += "; dense decoding, because there are no clusters"
        return "dense"
