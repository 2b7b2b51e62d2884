"""What a core set costs: a text's continuation read with the prompt's set fixed, beside dense.

Every passage is prompt + 1 + continuation tokens long. The prompt is read once, densely, and every
predictor's statistics are recorded on the way; the continuation's tokens are then read in one forward
pass per setting, on the prompt's kv cache, and each one's prediction of its successor is scored. (The
first token after the prompt is prefill's own and dense under every setting, so it is not scored.)
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minicore import ops
from minicore.backends import Backend, check_backend, make_backend
from minicore.bootstrap import bootstrap, exp_mean
from minicore.core.budgets import BUDGETS, layer_betas
from minicore.core.neurons import CoreSet, check_fraction, parse_layers
from minicore.core.predictors import find_predictor
from minicore.core.recorder import Recorder
from minicore.core.rules import Selection, TokenRule
from minicore.errors import InputError, unknown
from minicore.evaluation.sweep import ModelRef, Where, borrow, share, sweep
from minicore.evaluation.texts import Passage, passages
from minicore.files import atomic_write
from minicore.forward import Hooks
from minicore.generation.prediction import fingerprint, make_recorder, recorder_hooks
from minicore.model import PER_NEURON, Model

Array = np.ndarray
Row = dict[str, Any]

SOURCES = ("prompt", "continuation", "all", "others")


@dataclass(frozen=True)
class Setting:
    """A way of choosing and how much it keeps.

    Attributes
    ----------
    predictor : str
        A name of the table of predictors or ``SET+RULE``; ``name@source`` makes the same selection from
        other tokens than the prompt's: the ``continuation`` itself, ``all`` of the passage, or
        ``others``, texts that are not measured (a static hot set).
    beta : float or str
        Fraction of a layer's neurons kept, or a range over the layers such as ``"0.2:0.6"``.
    budget : str
        How beta is spent over the layers.
    token_beta : float, str or None
        As beta, for the rule of ``SET+RULE``.
    """

    predictor: str
    beta: float | str
    budget: str = "uniform"
    token_beta: float | str | None = None

    @property
    def name(self) -> str:
        """The predictor without its source."""
        return self.predictor.partition("@")[0]

    @property
    def source(self) -> str:
        """Which tokens the set is made from, one of SOURCES."""
        given = self.predictor.partition("@")[2]
        return given or ("all" if find_predictor(self.name).needs_continuation else "prompt")


@dataclass(frozen=True)
class Conditions:
    """What all rows of one study have in common; rows of other conditions are never mixed in."""

    model: str
    dtype: str
    fingerprint: str
    clusters: str | None
    prompt_tokens: int
    continuation_tokens: int
    alpha: float
    layers: tuple[int, ...]
    fit_passages: int
    seed: int

    @classmethod
    def of(
        cls,
        model: Model,
        prompt_tokens: int = 256,
        continuation_tokens: int = 256,
        alpha: float = 0.4,
        layers: str | slice | range | list[int] | None = None,
        fit_passages: int = 16,
        clusters: str | PathLike[str] | None = None,
        seed: int = 0,
    ) -> Conditions:
        """Return a study's conditions, checked against the model."""
        for name, value, least in (
            ("prompt-tokens", prompt_tokens, 1),
            ("continuation-tokens", continuation_tokens, 1),
            ("fit-passages", fit_passages, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise InputError(f"{name} is {value}, expected {least} or more")
        return cls(
            model.name,
            model.dtype,
            fingerprint(model),
            None if clusters is None else str(clusters),
            prompt_tokens,
            continuation_tokens,
            check_fraction("alpha", alpha),
            tuple(parse_layers(layers, model.config.n_layers)),
            fit_passages,
            seed,
        )

    @property
    def n_tokens(self) -> int:
        """Length of a passage."""
        return self.prompt_tokens + 1 + self.continuation_tokens


def grid(
    predictors: Sequence[str],
    betas: Sequence[float | str],
    budget: str = "uniform",
    token_beta: float | str | None = None,
) -> list[Setting]:
    """Return every predictor at every beta; ``dense``, which has none, once.

    Raises
    ------
    InputError
        If there are none, a predictor, source or budget is unknown, or a beta is no fraction.

    Examples
    --------
    >>> [(one.predictor, one.beta) for one in grid(["dense", "griffin"], [0.2, 0.4])]
    [('dense', 1.0), ('griffin', 0.2), ('griffin', 0.4)]
    """
    if budget not in BUDGETS:
        raise unknown("budget", budget, BUDGETS)
    for beta in [*betas, *([] if token_beta is None else [token_beta])]:
        layer_betas(beta, 2)
    for predictor in predictors:
        setting = Setting(predictor, 1.0)
        find_predictor(setting.name)
        if "+" in setting.name and token_beta is None:
            raise InputError(f"{predictor} needs a token_beta, the fraction of neurons that each token keeps")
        if setting.source not in SOURCES:
            raise unknown(f"source of the set in {predictor}", setting.source, SOURCES)
    chosen = [
        Setting(predictor, beta, budget, token_beta if "+" in predictor else None)
        for predictor in predictors
        for beta in ([1.0] if predictor == "dense" else betas)
    ]
    if not chosen:
        raise InputError("there is nothing to measure, expected at least one predictor and one beta")
    return list(dict.fromkeys(chosen))


# --- one passage ---


class Reading:
    """A passage read once, densely: what every setting is measured on and against.

    Parameters
    ----------
    model : Model
    passage : Passage
    conditions : Conditions
        Where the prompt ends, alpha and layers.
    predictors : iterable of str
        As :class:`Setting` names them; what all of them need is recorded in this one reading.
    others : mapping of str to Recorder
        Of the predictors ``name@others``: recorders that have read other texts.
    frequency : (n_layers, n_neurons) array or None
        How often other texts had each neuron, for predictors that ask for it.
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
        self.rest, self.targets = passage.ids[n:-1], passage.ids[n + 1 :]
        self.cache = self.model.new_cache(len(passage.ids) - 1)
        self.recorders = dict(others or {})
        self._greedy: list[int] | None = None
        before, after = [], []
        for setting in {Setting(name, 1.0) for name in (*predictors, "oracle")}:
            if setting.source == "others":
                continue
            recorder = new_recorder(self.model, setting.name, conditions, frequency, digest(passage))
            self.recorders[setting.predictor] = recorder
            recorder.start(
                {"prompt": n, "continuation": len(self.rest)}.get(setting.source, len(passage.ids) - 1)
            )
            before += [recorder] if setting.source in ("prompt", "all") else []
            after += [recorder] if setting.source in ("continuation", "all") else []
        self.first = backend.prefill(passage.ids[:n], self.cache, recorder_hooks(*before))  # (n_vocab,)
        self.dense = ops.log_softmax(backend.forward(self.rest, self.cache, recorder_hooks(*after)))

    def choose(self, setting: Setting) -> Selection | None:
        """Return the neurons that a setting chooses for this passage; None is all."""
        return self.recorders[setting.predictor].core(setting.beta, setting.budget, setting.token_beta)

    def measure(self, setting: Setting, n_generated: int = 0) -> Row:
        """Read the continuation under a setting and compare it with dense.

        Returns
        -------
        dict
            What :meth:`score` gives, and ``recall`` (of C([s, g]) at the same beta, mean over the
            restricted layers; None for a selection per token), ``kept`` (share of all FFN neurons),
            ``ffn_bytes`` (of weights, read per token), and with n_generated > 0 ``common_prefix``: how
            many of that many greedily generated tokens come before the first one that dense has not.

        Examples
        --------
        >>> import minicore as mc
        >>> model = mc.load("minicore-opt-core")
        >>> from minicore.reproduce.material import sample_files
        >>> conditions = Conditions.of(model, prompt_tokens=32, continuation_tokens=16)
        >>> [passage], _ = passages(model, sample_files(), conditions.n_tokens, n_passages=1)
        >>> reading = Reading(make_backend(model), passage, conditions, ["stability"])
        >>> row = reading.measure(Setting("stability", 0.4))
        >>> row["kept"] <= 0.4, 0 < row["recall"] <= 1
        (True, True)
        """
        selection = self.choose(setting)
        restricted, counter = self.backend.restrict(selection), NonZero()
        row = self.score(restricted, counter if isinstance(selection, TokenRule) else None)
        kept: dict[int, float] = {i: len(ids) for i, ids in selection.neurons.items()} if selection else {}
        row["recall"] = None
        if selection is None:
            row["recall"] = 1.0
        elif isinstance(selection, CoreSet):
            target = self.recorders["oracle"].core(setting.beta)
            assert isinstance(target, CoreSet)
            row["recall"] = selection.recall(target)
        row["kept"] = kept_fraction(self.model, kept | counter.mean())
        row["ffn_bytes"] = ffn_bytes(self.model, kept, counter.mean(), read_whole(self.model, selection))
        if n_generated:
            row["common_prefix"] = self.common_prefix(restricted, n_generated)
        return row

    def score(self, backend: Backend, hooks: Hooks | Callable[[str, Array], None] | None = None) -> Row:
        """Return how a model, such as a restricted one, reads the continuation after the dense prompt.

        ``nll`` and ``dense_nll`` are nats a token, ``kl`` is KL(dense || model) in nats a token,
        ``agreement`` the share of tokens whose likeliest successor is dense's. ``hooks`` may change the
        activations they see.
        """
        self.cache.length = self.conditions.prompt_tokens  # what lies behind is written anew
        logits = backend.forward(self.rest, self.cache, hooks)
        parts = [
            compare(self.dense[at : at + ROWS], logits[at : at + ROWS], self.targets[at : at + ROWS])
            for at in range(0, len(logits), ROWS)
        ]
        return {key: _mean(np.concatenate([part[key] for part in parts])) for key in parts[0]}

    def common_prefix(self, backend: Backend, n: int) -> int:
        """Return how many of n greedily generated tokens two models share before they part."""
        if self._greedy is None or len(self._greedy) < n:
            self._greedy = self._generate(self.backend, n)
        generated = self._generate(backend, n)
        same = [a == b for a, b in zip(generated, self._greedy[:n], strict=True)]
        return same.index(False) if False in same else n

    def _generate(self, backend: Backend, n: int) -> list[int]:
        """Return n greedy tokens after the prompt; the first is prefill's."""
        cache = self.model.new_cache(self.conditions.prompt_tokens + n)
        self.cache.length = self.conditions.prompt_tokens
        cache.copy(self.cache)
        ids = [int(self.first.argmax())]
        while len(ids) < n:
            ids.append(int(backend.forward(np.array(ids[-1:]), cache)[0].argmax()))
        return ids


ROWS = 8  # tokens compared at a time: their logits stay in the processor's cache


def compare(dense: Array, logits: Array, targets: Array) -> dict[str, Array]:
    # (n, n_vocab) log-probabilities, (n, n_vocab), (n,) -> (n,) each
    """Return each token's nats under both, the divergence, and whether the likeliest token is the same."""
    other, at = ops.log_softmax(logits), np.arange(len(targets))
    return {
        "nll": -other[at, targets],
        "dense_nll": -dense[at, targets],
        "kl": np.array([np.exp(p) @ (p - q) for p, q in zip(dense, other, strict=True)]),
        "agreement": other.argmax(axis=1) == dense.argmax(axis=1),
    }


class NonZero:
    """Tap that counts, layer by layer, how many activations of a token are not zero."""

    def __init__(self) -> None:
        self.counts: dict[int, list[float]] = {}

    def __call__(self, name: str, a: Array) -> None:
        if name.endswith("mlp.hook_post"):
            self.counts.setdefault(int(name.split(".")[1]), []).extend(np.count_nonzero(a, axis=1))

    def mean(self) -> dict[int, float]:
        """Return layer -> mean count."""
        return {layer: float(np.mean(counts)) for layer, counts in self.counts.items()}


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
    """Return a number that says which ids a passage holds."""
    return zlib.crc32(passage.ids.astype("<i8").tobytes())


def kept_fraction(model: Model, kept: Mapping[int, float]) -> float:
    """Return the share of all FFN neurons when some layers keep only so many."""
    n_layers, n = model.config.n_layers, model.config.n_neurons
    return sum(kept.get(layer, n) for layer in range(n_layers)) / (n_layers * n)


def read_whole(model: Model, selection: Selection | None) -> tuple[str, ...]:
    """Return what is read of every neuron there is to choose from, before a token has chosen."""
    if not isinstance(selection, TokenRule):
        return ()
    gate = ("mlp.w_gate", "mlp.b_gate") if model.config.gated else ()
    return gate if gate and selection.kind == "gate" else (*gate, "mlp.w_in", "mlp.b_in")


def ffn_bytes(
    model: Model, kept: Mapping[int, float], active: Mapping[int, float], whole: Sequence[str] = ()
) -> float:
    """Return the bytes of FFN weights that one token reads, on average.

    Of each layer ``kept`` neurons are there to choose from (all where it is not listed) and ``active``
    ones are used (those kept where it is not listed); the parameters in ``whole`` are read for all kept.
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


# --- many passages ---


class Rows:
    """Finished rows, kept in a file after every passage so that a stopped run goes on where it was.

    Parameters
    ----------
    conditions : Conditions
    path : path or None
        JSON lines: the conditions first, then a row each. None keeps them in memory alone.

    Raises
    ------
    InputError
        If the file is there and is of other conditions, or a line of it is no row.
    """

    def __init__(self, conditions: Conditions, path: str | PathLike[str] | None = None) -> None:
        self.head, self.path = asdict(conditions) | {"layers": list(conditions.layers)}, path
        self.rows: dict[tuple[Any, ...], Row] = {}
        if path is not None and Path(path).exists():
            self._read(Path(path))

    def _read(self, path: Path) -> None:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                value = json.loads(line)
                if number == 1:
                    wrong = [key for key, said in self.head.items() if value["conditions"].get(key) != said]
                    for key in wrong[:1]:
                        raise InputError(
                            f"{path}: its rows were measured with {key} {value['conditions'].get(key)}, "
                            f"expected {self.head[key]}; choose another file or remove this one"
                        )
                else:
                    self.rows[row_key(value)] = value
            except InputError:
                raise
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InputError(f"{path}, line {number}: is no row of a quality study") from None

    def missing(self, passage: Passage, settings: Sequence[Setting], n_generated: int) -> list[Setting]:
        """Return the settings that a passage has not been measured under."""
        return [
            setting
            for setting in settings
            if (n_generated and "common_prefix" not in self.rows.get(key_of(passage, setting), {}))
            or key_of(passage, setting) not in self.rows
        ]

    def add(self, rows: Iterable[Row]) -> None:
        """Take rows and write the file anew: whole or not at all."""
        self.rows |= {row_key(row): row for row in rows}
        if self.path is None:
            return
        with atomic_write(self.path) as part:
            lines = [{"conditions": self.head}, *self.rows.values()]
            part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def of(self, passages: Sequence[Passage], settings: Sequence[Setting]) -> list[list[Row]]:
        """Return the rows setting by setting, the passages in order."""
        return [[self.rows[key_of(passage, setting)] for passage in passages] for setting in settings]


def key_of(passage: Passage, setting: Setting) -> tuple[Any, ...]:
    """Return what a row is found by."""
    return passage.name, digest(passage), *asdict(setting).values()


def row_key(row: Row) -> tuple[Any, ...]:
    """Return :func:`key_of` of a finished row."""
    return row["passage"], row["digest"], *(row[field] for field in Setting.__dataclass_fields__)


def study(
    model: Model,
    passages: Sequence[Passage],
    settings: Sequence[Setting],
    conditions: Conditions,
    fit: Sequence[Passage] = (),
    rows: Rows | None = None,
    n_generated: int = 0,
    progress: bool = False,
    workers: Where | None = None,
    backend: str = "numpy",
) -> list[Row]:
    """Measure settings on passages; every passage is read once however many settings there are.

    Parameters
    ----------
    model : Model
    passages : sequence of Passage
        Each ``conditions.n_tokens`` long.
    settings : sequence of Setting
    conditions : Conditions
    fit : sequence of Passage
        Other texts, which hot sets (``static`` and ``name@others``) are fitted on.
    rows : Rows or None
        Where finished rows are kept; those that are there already are not measured again.
    n_generated : int
        Tokens to generate greedily for ``common_prefix``; 0 leaves it out.
    progress : bool
        Show a progress bar on stderr if it is a terminal.
    workers : Where or None
        What runs it, a passage a job; None is one thread of this process.
    backend : str
        ``numpy`` or ``cpu``: what reads the passages.

    Returns
    -------
    list of dict
        A summary of each setting, see :func:`summarise`.

    Raises
    ------
    InputError
        If a predictor needs other texts and there are none, a passage has another length, or the rows
        are of other conditions.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> from minicore.reproduce.material import sample_files
    >>> conditions = Conditions.of(model, prompt_tokens=32, continuation_tokens=16)
    >>> texts, _ = passages(model, sample_files(), conditions.n_tokens, n_passages=2)
    >>> [dense, core] = study(model, texts, grid(["dense", "stability"], [0.4]), conditions)
    >>> dense["ratio"][0], core["kept"][0] <= 0.4
    (1.0, True)
    """
    for passage in passages:
        if len(passage.ids) != conditions.n_tokens:
            raise InputError(
                f"{passage.name} has {len(passage.ids)} tokens, expected {conditions.n_tokens}: prompt + 1 + "
                "continuation"
            )
    rows = Rows(conditions) if rows is None else rows
    todo = [(passage, rows.missing(passage, settings, n_generated)) for passage in passages]
    todo = [(passage, missing) for passage, missing in todo if missing]
    wanted = tuple(dict.fromkeys(setting for _, missing in todo for setting in missing))
    ref = share(model)
    jobs = [
        Job(ref, backend, passage, missing, conditions, wanted, tuple(fit), n_generated)
        for passage, missing in todo
    ]
    for _, done in sweep(
        measure_passage, jobs, workers, total=len(passages), unit=" passages", progress=progress
    ):
        rows.add(done)
    return summarise(rows.of(passages, settings), settings, conditions.seed)


class Job(NamedTuple):
    """A passage, the settings it is to be measured under, and what those that are fitted read."""

    model: ModelRef
    backend: str
    passage: Passage
    settings: list[Setting]
    conditions: Conditions
    wanted: tuple[Setting, ...]  # of all passages
    fit: tuple[Passage, ...]
    n_generated: int


def measure_passage(job: Job) -> list[Row]:
    """Return one passage's rows."""
    backend = make_backend(borrow(job.model), job.backend)
    others, frequency = fitted(backend, job)
    names = [setting.predictor for setting in job.settings]
    reading = Reading(backend, job.passage, job.conditions, names, others, frequency)
    said = {"passage": job.passage.name, "digest": digest(job.passage)}
    return [said | asdict(one) | reading.measure(one, job.n_generated) for one in job.settings]


Fitted = tuple[dict[str, Recorder], Array | None]
_fitted: dict[tuple[Any, ...], Fitted] = {}  # one at a time: what this process read last


def fitted(backend: Backend, job: Job) -> Fitted:
    """Return :func:`read_others` of a job's texts; the jobs of a study that a process runs read them once."""
    key = (job.model, job.backend, job.conditions, job.wanted, *map(digest, job.fit))
    if key not in _fitted:
        _fitted.clear()
        _fitted[key] = read_others(backend, job.fit, job.wanted, job.conditions)
    return _fitted[key]


def read_others(
    backend: Backend, fit: Sequence[Passage], settings: Sequence[Setting], conditions: Conditions
) -> Fitted:  # the second of the two: (n_layers, n_neurons)
    """Let the predictors that are fitted read the texts that are not measured.

    Returns the recorders of the predictors ``name@others``, and the counts for those that ask for a
    frequency; neither needs a reading where no setting wants it.
    """
    named = {setting.predictor: setting.name for setting in settings if setting.source == "others"}
    fitted = any("frequency" in find_predictor(setting.name).given for setting in settings)
    if not named and not fitted:
        return {}, None
    if not fit:
        raise InputError("a hot set is fitted on other texts, expected at least one passage to fit on")
    model = backend.model
    recorders = {predictor: new_recorder(model, name, conditions) for predictor, name in named.items()}
    counts = new_recorder(model, "stability", conditions)
    for passage in fit:
        ids = passage.ids[: model.config.n_ctx]
        backend.prefill(ids, model.new_cache(len(ids)), recorder_hooks(counts, *recorders.values()))
    frequency = np.zeros((model.config.n_layers, model.config.n_neurons))
    for layer, scores in counts.scores().items():
        frequency[layer] = scores
    return recorders, frequency


MEASURES = ("kl", "agreement", "recall", "kept", "ffn_bytes", "common_prefix")


def summarise(rows: Sequence[Sequence[Row]], settings: Sequence[Setting], seed: int = 0) -> list[Row]:
    """Return means over passages with 95% bootstrap intervals, a dict for each setting.

    ``ratio`` is exp of the mean difference to dense in nats, passage by passage, so that what makes a
    passage hard for both does not widen its interval. Every value is ``[estimate, low, high]``.
    """
    table = []
    for setting, of in zip(settings, rows, strict=True):
        nll, dense = (np.array([row[key] for row in of]) for key in ("nll", "dense_nll"))
        out: Row = asdict(setting) | {"n_passages": len(of)}
        out["perplexity"] = bootstrap(nll, exp_mean, seed=seed)
        out["dense_perplexity"] = bootstrap(dense, exp_mean, seed=seed)
        out["ratio"] = bootstrap(nll - dense, exp_mean, seed=seed)
        for key in MEASURES:
            values = [row.get(key) for row in of]
            out[key] = None if None in values else bootstrap(np.array(values), seed=seed)
        table.append(out)
    return table


def evaluate(
    model: Model,
    texts: Sequence[str | PathLike[str]],
    predictors: Sequence[str],
    betas: Sequence[float | str],
    *,
    budget: str = "uniform",
    token_beta: float | str | None = None,
    n_passages: int = 40,
    n_generated: int = 0,
    backend: str = "auto",
    out: str | PathLike[str] | None = None,
    progress: bool = False,
    workers: Where | None = None,
    **conditions: Any,
) -> dict[str, Any]:
    """Measure predictors at betas on passages of text files: what ``minicore eval quality`` does.

    Parameters
    ----------
    model : Model
    texts : sequence of path
        Plain text or JSON lines, see :func:`minicore.evaluation.texts.passages`.
    predictors, betas, budget, token_beta
        See :class:`Setting`.
    n_passages, n_generated : int
        Passages drawn; tokens to generate for ``common_prefix``, 0 for none.
    backend : str
        Whose maths reads the texts: ``numpy``, or ``cpu`` (``auto``), which compiles what is between the
        matrix products; they agree but for rounding.
    out : path or None
        Where to write the report as JSON; the rows of each passage are kept beside it
        (``.rows.jsonl``), so that a stopped run goes on.
    progress : bool
        Show a progress bar on stderr if it is a terminal.
    workers : Where or None
        What runs it, see :func:`study`.
    **conditions
        Of :meth:`Conditions.of`.

    Returns
    -------
    dict
        ``conditions``, ``texts``, ``n_passages`` and ``settings``, the list of :func:`study`.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> from minicore.reproduce.material import sample_files
    >>> lengths = {"prompt_tokens": 32, "continuation_tokens": 16}
    >>> report = evaluate(model, sample_files(), ["stability"], [0.4, 0.8], n_passages=2, **lengths)
    >>> [row["beta"] for row in report["settings"]]
    [0.4, 0.8]
    """
    if n_passages < 1 or n_generated < 0:
        raise InputError(f"passages is {n_passages}, generate {n_generated}; expected at least 1 and 0")
    settings, where = grid(predictors, betas, budget, token_beta), Conditions.of(model, **conditions)
    rows = Rows(where, None if out is None else Path(out).with_suffix(".rows.jsonl"))
    measured, others = passages(model, texts, where.n_tokens, n_passages, where.fit_passages, seed=where.seed)
    summary = study(
        model,
        measured,
        settings,
        where,
        others,
        rows,
        n_generated,
        progress,
        workers,
        backend=reading_backend(model, backend),
    )
    return write_report(rows, texts, measured, summary, out)


def reading_backend(model: Model, backend: str) -> str:
    """Return the backend that reads passages whole: a GPU's machine uses the CPU's."""
    return "numpy" if check_backend(backend, model.dtype, model.config)[0] == "numpy" else "cpu"


def write_report(
    rows: Rows,
    texts: Sequence[str | PathLike[str]],
    measured: Sequence[Passage],
    summary: list[Row],
    out: str | PathLike[str] | None,
) -> dict[str, Any]:
    """Return a study's report, and write it as JSON if there is a place for it."""
    report = {
        "conditions": rows.head,
        "texts": [Path(path).name for path in texts],
        "n_passages": len(measured),
        "settings": summary,
    }
    if out is not None:
        with atomic_write(out) as part:
            part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report
