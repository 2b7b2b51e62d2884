"""Measurement of one passage: prompt and continuation are read once, densely, then under each setting.

A passage is prompt + 1 + continuation tokens long. The prompt is read once, densely, while every predictor
records its statistics. The continuation is then read in one forward pass per setting, on the prompt's kv
cache, and each token's prediction of the next one is scored. (The first token after the prompt is predicted
by prefill, which is dense under every setting, so it is not scored.)
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from minicore import ops
from minicore.backends import Backend
from minicore.core.neurons import CoreSet
from minicore.core.recorder import Recorder
from minicore.core.rules import Selection, TokenRule
from minicore.evaluation.agreement import agreement
from minicore.evaluation.quality.settings import Conditions, Setting
from minicore.evaluation.texts import Passage
from minicore.forward import Hooks
from minicore.generation.prediction import make_recorder, recorder_hooks
from minicore.model import PER_NEURON, Model

Array = np.ndarray
Row = dict[str, Any]  # a measurement as JSON holds it

BLOCK = 8  # tokens compared at a time: their logits stay in the processor's cache


class Reading:
    """A passage read once, densely: every setting is measured on it and against it.

    Parameters
    ----------
    backend : Backend
        The model on a backend, which reads everything.
    passage : Passage
    conditions : Conditions
        Where the prompt ends, alpha and layers.
    predictors : iterable of str
        Named as in :class:`Setting`. One reading records what all of them need.
    others : mapping of str to Recorder or None
        For predictors ``name@others``: recorders that have read other texts.
    frequency : (n_layers, n_neurons) array or None
        How often each neuron was in other texts' cores, for predictors that need it.

    Attributes
    ----------
    continuation : (n,) int64 array
        The ids that are read under each setting.
    targets : (n,) int64 array
        The ids that follow each of them.
    """

    def __init__(
        self,
        backend: Backend,
        passage: Passage,
        conditions: Conditions,
        predictors: Iterable[str],
        others: Mapping[str, Recorder] | None = None,
        frequency: Array | None = None,
    ) -> None:
        n = conditions.prompt_tokens
        self.backend, self.model = backend, backend.model
        self.conditions, self.passage = conditions, passage
        self.continuation, self.targets = passage.ids[n:-1], passage.ids[n + 1 :]
        self.cache = self.model.new_cache(len(passage.ids) - 1)
        self.recorders = dict(others or {})
        self._greedy: list[int] | None = None
        in_prompt, in_continuation = [], []
        for setting in {Setting(name, 1.0) for name in (*predictors, "oracle")}:
            if setting.source == "others":
                continue
            recorder = new_recorder(self.model, setting.name, conditions, frequency, digest(passage))
            self.recorders[setting.predictor] = recorder
            lengths = {"prompt": n, "continuation": len(self.continuation)}
            recorder.start(lengths.get(setting.source, len(passage.ids) - 1))
            in_prompt += [recorder] if setting.source in ("prompt", "all") else []
            in_continuation += [recorder] if setting.source in ("continuation", "all") else []
        self._prompt_logits = backend.prefill(passage.ids[:n], self.cache, recorder_hooks(*in_prompt))
        logits = backend.forward(self.continuation, self.cache, recorder_hooks(*in_continuation))
        self._dense = ops.log_softmax(logits)  # (n, n_vocab)

    def select(self, setting: Setting) -> Selection | None:
        """Return the neurons that a setting selects for this passage; None is all of them."""
        return self.recorders[setting.predictor].core(setting.beta, setting.budget, setting.token_beta)

    def measure(self, setting: Setting, n_generated: int = 0) -> Row:
        """Read the continuation under a setting and compare it with dense.

        Returns
        -------
        dict
            The keys of :meth:`score`, and ``recall`` (of C([s, g]) at the same beta, mean over the
            restricted layers; None for a rule that each token applies), ``kept`` (share of all FFN neurons),
            ``ffn_bytes`` (bytes of FFN weights read per token), and with n_generated > 0
            ``common_prefix``: how many of that many greedily generated tokens are the same as dense
            generates, up to the first difference.

        Examples
        --------
        >>> import minicore as mc
        >>> model = mc.load("minicore-opt-core")
        >>> from minicore.evaluation.texts import passages, sample_files
        >>> conditions = Conditions.of(model, prompt_tokens=32, continuation_tokens=16)
        >>> [passage], _ = passages(model, sample_files(), conditions.n_tokens, n_passages=1)
        >>> from minicore.backends import make_backend
        >>> reading = Reading(make_backend(model), passage, conditions, ["stability"])
        >>> row = reading.measure(Setting("stability", 0.4))
        >>> row["kept"] <= 0.4, 0 < row["recall"] <= 1
        (True, True)
        """
        selection = self.select(setting)
        restricted, counter = self.backend.restrict(selection), ActiveNeurons(self.model.config.n_layers)
        row = self.score(restricted, counter.hooks if isinstance(selection, TokenRule) else None)
        kept: dict[int, float] = {i: len(ids) for i, ids in selection.neurons.items()} if selection else {}
        active = counter.means()
        row["recall"] = self._recall(selection, setting.beta)
        row["kept"] = kept_fraction(self.model, kept | active)
        row["ffn_bytes"] = ffn_bytes(self.model, kept, active, read_whole(self.model, selection))
        if n_generated:
            row["common_prefix"] = self.common_prefix(restricted, n_generated)
        return row

    def _recall(self, selection: Selection | None, beta: float | str) -> float | None:
        """Return the share of the target set that was selected; None where each token selects its own."""
        if selection is None:
            return 1.0
        if isinstance(selection, TokenRule):
            return None
        target = self.recorders["oracle"].core(beta)
        assert isinstance(target, CoreSet)
        return selection.recall(target)

    def score(self, backend: Backend, hooks: Hooks | Callable[[str, Array], None] | None = None) -> Row:
        """Return how a backend, such as a restricted one, reads the continuation after the dense prompt.

        ``nll`` and ``dense_nll`` are in nats per token, ``kl`` is KL(dense || backend) in nats per token, and
        ``agreement`` is the share of tokens whose most likely successor is the same as dense's. ``hooks`` may
        change the activations they see.
        """
        self.cache.rewind(self.conditions.prompt_tokens)  # drop the continuation read before
        logits = backend.forward(self.continuation, self.cache, hooks)
        blocks = [slice(start, start + BLOCK) for start in range(0, len(logits), BLOCK)]
        parts = [compare(self._dense[at], logits[at], self.targets[at]) for at in blocks]
        return {key: _mean(np.concatenate([part[key] for part in parts])) for key in parts[0]}

    def common_prefix(self, backend: Backend, n: int) -> int:
        """Return how many of n greedily generated tokens are dense's, up to the first that differs."""
        if self._greedy is None or len(self._greedy) < n:
            self._greedy = self._generate(self.backend, n)
        return agreement(self._generate(backend, n), self._greedy[:n])[0]

    def _generate(self, backend: Backend, n: int) -> list[int]:
        """Return n greedy tokens after the prompt; the first comes from prefill."""
        cache = self.model.new_cache(self.conditions.prompt_tokens + n)
        self.cache.rewind(self.conditions.prompt_tokens)
        cache.copy(self.cache)
        ids = [int(self._prompt_logits.argmax())]
        while len(ids) < n:
            ids.append(int(backend.forward(np.array(ids[-1:]), cache)[0].argmax()))
        return ids


def compare(dense: Array, logits: Array, targets: Array) -> dict[str, Array]:
    # (n, n_vocab) log-probabilities, (n, n_vocab), (n,) -> (n,) each
    """Return each token's nats under both, the divergence, and whether the most likely token is the same."""
    other, at = ops.log_softmax(logits), np.arange(len(targets))
    return {
        "nll": -other[at, targets],
        "dense_nll": -dense[at, targets],
        "kl": np.array([np.exp(p) @ (p - q) for p, q in zip(dense, other, strict=True)]),
        "agreement": other.argmax(axis=1) == dense.argmax(axis=1),
    }


class ActiveNeurons:
    """Counts how many of a token's activations are not zero in each layer, through ``hooks``."""

    def __init__(self, n_layers: int) -> None:
        self._counts: dict[int, list[float]] = {}
        self.hooks: Hooks = {f"blocks.{i}.mlp.hook_post": partial(self._count, i) for i in range(n_layers)}

    def _count(self, layer: int, a: Array) -> None:  # (n_tokens, n_neurons)
        self._counts.setdefault(layer, []).extend(np.count_nonzero(a, axis=1))

    def means(self) -> dict[int, float]:
        """Return the mean count over tokens, of the layers that were seen."""
        return {layer: float(np.mean(counts)) for layer, counts in self._counts.items()}


def new_recorder(
    model: Model, name: str, conditions: Conditions, frequency: Array | None = None, seed: int = 0
) -> Recorder:
    """Return a recorder of a predictor under a study's conditions."""
    return make_recorder(
        model,
        name,
        conditions.alpha,
        1.0,
        list(conditions.layers),
        token_beta=1.0,
        clusters=conditions.clusters if name in ("similarity", "auto") else None,
        frequency=frequency,
        seed=conditions.seed + seed,
    )


def digest(passage: Passage) -> int:
    """Return a checksum of a passage's ids."""
    return zlib.crc32(passage.ids.astype("<i8").tobytes())


def kept_fraction(model: Model, kept: Mapping[int, float]) -> float:
    """Return the share of all FFN neurons that is kept; a layer that is not in ``kept`` keeps all."""
    n_layers, n = model.config.n_layers, model.config.n_neurons
    return sum(kept.get(layer, n) for layer in range(n_layers)) / (n_layers * n)


def read_whole(model: Model, selection: Selection | None) -> tuple[str, ...]:
    """Return the parameters that a token reads for every candidate neuron before it has chosen."""
    if not isinstance(selection, TokenRule):
        return ()
    gate = ("mlp.w_gate", "mlp.b_gate") if model.config.gated else ()
    return gate if gate and selection.kind == "gate" else (*gate, "mlp.w_in", "mlp.b_in")


def ffn_bytes(
    model: Model, kept: Mapping[int, float], active: Mapping[int, float], whole: Sequence[str] = ()
) -> float:
    """Return the bytes of FFN weights that one token reads, on average.

    Parameters
    ----------
    model : Model
    kept : mapping of int to float
        Candidate neurons of each layer; a layer that is missing has all.
    active : mapping of int to float
        Neurons that a token uses in each layer; a layer that is missing uses all candidates.
    whole : sequence of str
        Parameters that are read for all candidates.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> half = dict.fromkeys(range(model.config.n_layers), model.config.n_neurons / 2)
    >>> round(ffn_bytes(model, half, {}) / ffn_bytes(model, {}, {}), 3)
    0.5
    """
    n_bytes = 0.0
    for layer, block in enumerate(model.blocks):
        rows = kept.get(layer, model.config.n_neurons)
        for name, w in block.items():
            if name in PER_NEURON:
                n_bytes += w.nbytes / len(w) * (rows if name in whole else active.get(layer, rows))
            elif name.startswith("mlp."):
                n_bytes += w.nbytes
    return n_bytes


def _mean(x: Array) -> float:
    return float(np.mean(x, dtype=np.float64))
