"""The paper's tasks on a model: every example is read once, answered under every setting, and scored."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minicore.backends import check_backend, make_backend
from minicore.bootstrap import bootstrap
from minicore.core.neurons import check_fraction, parse_layers
from minicore.core.predictors import find_predictor
from minicore.core.recorder import Recorder
from minicore.errors import InputError, unknown
from minicore.evaluation.quality import Setting, grid
from minicore.evaluation.sweep import Journal, ModelRef, Where, borrow, share, sweep
from minicore.evaluation.tasks import metrics, readers
from minicore.evaluation.tasks.prompts import Prompts
from minicore.evaluation.tasks.readers import Example
from minicore.files import atomic_write
from minicore.generation.options import check_options
from minicore.generation.prediction import fingerprint, make_recorder, record_all
from minicore.generation.sampling import Sampler
from minicore.generation.stream import Prefilled, Stream
from minicore.model import Model

Array = np.ndarray
Row = dict[str, Any]

SHIPPED = {"steps": Path(__file__).parent / "steps.jsonl"}  # data that come with minicore


# --- one example ---


@dataclass(frozen=True)
class How:
    """How answers are decoded: what all of a study's have in common."""

    alpha: float
    layers: tuple[int, ...]
    clusters: str | None
    backend: str
    new_tokens: int
    stop: tuple[str, ...]
    seed: int


class Job(NamedTuple):
    """A prompt, and the settings it is to be answered under."""

    model: ModelRef
    ids: list[int]
    settings: list[Setting]
    how: How


def answer(job: Job) -> list[Row]:
    """Return what a model answers a prompt under each setting; settings share one reading where they can."""
    model, how = borrow(job.model), job.how
    names = (name for name in names_of(job.settings) if shares(name))
    shared = {name: recorder_of(model, job, Setting(name, 1.0, token_beta=1.0)) for name in names}
    cache = model.new_cache(len(job.ids))
    logits = record_all(make_backend(model, how.backend), job.ids, list(shared.values()), cache)  # (n_vocab,)
    rows = []
    for setting in job.settings:
        if recorder := shared.get(setting.predictor):
            selection = recorder.core(setting.beta, setting.budget, setting.token_beta)
            rows.append(answer_one(model, job, setting, recorder, Prefilled(cache, logits, selection)))
        else:
            rows.append(answer_one(model, job, setting, recorder_of(model, job, setting)))
    return rows


def answer_one(
    model: Model, job: Job, setting: Setting, recorder: Recorder, prefilled: Prefilled | None = None
) -> Row:
    """Return one setting's answer to a prompt, which is read first unless it has been."""
    options = check_options(
        model,
        recorder,
        backend=job.how.backend,
        max_new_tokens=job.how.new_tokens,
        stop=job.how.stop,
        ignore_eos=False,
        refresh=None,
        continuation=None,
        memory_limit=None,
    )
    done = Stream(model, job.ids, recorder, Sampler(), options, prefilled).run()
    return {
        **asdict(setting),
        "text": done.text,
        "new_tokens": len(done.token_ids),
        "stop_reason": done.stats["stop_reason"],
        "kept": done.stats["core_fraction"],
    }


def names_of(settings: Iterable[Setting]) -> list[str]:
    return list(dict.fromkeys(setting.predictor for setting in settings))


def shares(predictor: str) -> bool:
    """Say whether a predictor reads the prompt alone, and once."""
    row = find_predictor(predictor)
    return not row.needs_continuation and row.refresh is None


def recorder_of(model: Model, job: Job, setting: Setting) -> Recorder:
    """Return the recorder of a setting's predictor under a study's conditions."""
    how, row = job.how, find_predictor(setting.predictor)
    reads = row.checks_stability or {"frequency", "cluster_frequency"} & set(row.given)
    return make_recorder(
        model,
        setting.predictor,
        how.alpha,
        setting.beta,
        list(how.layers),
        budget=setting.budget,
        token_beta=setting.token_beta,
        clusters=how.clusters if reads else None,
        seed=how.seed + digest(job.ids),
    )


def digest(ids: Sequence[int]) -> int:
    """Return a number that says which ids a prompt holds."""
    return zlib.crc32(np.array(ids, "<i8").tobytes())


# --- all of them ---


@dataclass(frozen=True)
class Asked:
    """An example as it is put to the model."""

    example: Example
    ids: list[int]
    cut: int  # words of its document left out

    def key(self, setting: Setting) -> tuple[Any, ...]:
        """Return what an answer is found by."""
        return self.example.id, digest(self.ids), *asdict(setting).values()


def evaluate(
    model: Model,
    task: str,
    data: Sequence[str | PathLike[str]],
    predictors: Sequence[str],
    betas: Sequence[float | str],
    *,
    shots: int = 0,
    n_examples: int = 100,
    alpha: float = 0.4,
    layers: str | None = None,
    clusters: str | None = None,
    budget: str = "uniform",
    token_beta: float | str | None = None,
    prompts: str | None = None,
    backend: str = "auto",
    seed: int = 0,
    where: Where | None = None,
    out: str | PathLike[str] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Put a task to a model under predictors at betas: what ``minicore eval tasks`` does.

    Parameters
    ----------
    model : Model
    task : str
        One of :data:`minicore.evaluation.tasks.readers.TASKS`.
    data : sequence of path
        See :func:`minicore.evaluation.tasks.readers.read`; none is the set that comes with minicore, for
        ``steps``.
    predictors, betas, budget, token_beta
        See :class:`minicore.evaluation.quality.Setting`.
    shots : int
        Worked examples before each prompt.
    n_examples : int
        Examples drawn, without replacement; fewer if there are fewer.
    alpha, layers, clusters
        See :func:`minicore.generation.prediction.make_recorder`.
    prompts : str or None
        Name or file of the prompts; None is what fits the data.
    backend : str
        ``numpy``, ``cpu`` or ``auto``.
    seed : int
        Of the draw, of random sets and of the bootstrap.
    where : Where or None
        What runs it; None is one thread of this process.
    out : path or None
        A directory: ``answers.jsonl`` holds every answer as it comes, so that a stopped run goes on, and
        ``report.json`` the report.
    progress : bool
        Show a progress bar on stderr if it is a terminal.

    Returns
    -------
    dict
        ``conditions``, ``data``, ``n_examples``, ``n_data``, ``n_cut`` (prompts whose document was cut),
        ``floor`` and ``settings``, the lists of :func:`summarise`.

    Raises
    ------
    InputError
        For data or prompts that are malformed or do not fit, and options outside their range.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> report = evaluate(model, "steps", [], ["dense", "stability"], [0.4], n_examples=2)
    >>> [(row["predictor"], row["beta"]) for row in report["settings"]]
    [('dense', 1.0), ('stability', 0.4)]
    """
    where = Where() if where is None else where
    settings = checked_grid(predictors, betas, budget, token_beta)
    found = examples_of(task, data)
    put = Prompts.read(prompts or found[0].prompts)
    asked = [Asked(one, *put.ids(model, one, shots)) for one in draw(found, n_examples, seed)]
    how = How(
        check_fraction("alpha", alpha),
        tuple(parse_layers(layers, model.config.n_layers)),
        None if clusters is None else str(Path(clusters).absolute()),
        check_backend(backend, model.dtype, model.config)[0],
        put.new_tokens,
        put.stop,
        seed,
    )
    about = {"model": model.name, "dtype": model.dtype, "fingerprint": fingerprint(model), "task": task}
    head = about | {"prompts": put.name, "shots": shots, "threads": where.threads} | asdict(how)
    journal = Journal(None if out is None else Path(out) / "answers.jsonl", head)
    ref = share(model)
    recorder_checks(model, Job(ref, asked[0].ids, settings, how))
    rows = answers(ref, asked, settings, how, journal, where, progress)
    table = [
        summarise(put, asked, [rows[one.key(setting)] for one in asked], dense_rows(rows, asked), seed)
        | asdict(setting)
        for setting in settings
    ]
    floor = {"floor": put.floor} | scores(put, put.floors([a.example for a in asked]), asked, None, seed)
    report = {
        "conditions": journal.head,
        "data": [Path(path).name for path in data] or [SHIPPED[task].name],
        "n_examples": len(asked),
        "n_data": len(found),
        "n_cut": sum(one.cut > 0 for one in asked),
        "floor": floor,
        "settings": table,
    }
    if out is not None:
        with atomic_write(Path(out) / "report.json") as part:
            part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def checked_grid(
    predictors: Sequence[str],
    betas: Sequence[float | str],
    budget: str,
    token_beta: float | str | None,
) -> list[Setting]:
    """Return the settings; other sources of a set than the prompt are for ``eval quality``."""
    settings = grid(predictors, betas, budget, token_beta)
    for setting in settings:
        if "@" in setting.predictor:
            raise InputError(
                f"predictor {setting.predictor}: a task's answers come from the prompt's set alone"
            )
    return settings


def examples_of(task: str, data: Sequence[str | PathLike[str]]) -> list[Example]:
    """Return the examples of a task."""
    if task not in readers.TASKS:
        raise unknown("task", task, readers.TASKS)
    if not data and task not in SHIPPED:
        raise InputError(f"task {task} needs data, a file or two")
    return readers.read(task, data or [SHIPPED[task]])


def draw(found: Sequence[Example], n: int, seed: int) -> list[Example]:
    """Return so many examples, drawn by a seed, in the order of the data."""
    if n < 1 or seed < 0:
        raise InputError(f"examples is {n}, seed {seed}; expected at least 1 and 0")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(found))[:n])
    return [found[i] for i in chosen]


def recorder_checks(model: Model, job: Job) -> None:
    """Make every recorder once, so that what is missing or does not fit is told before any work."""
    for setting in job.settings:
        recorder_of(model, job, setting)


def answers(
    ref: ModelRef,
    asked: Sequence[Asked],
    settings: Sequence[Setting],
    how: How,
    journal: Journal,
    where: Where,
    progress: bool,
) -> dict[tuple[Any, ...], Row]:
    """Return every answer by its key, those that the journal lacks worked out and kept there."""
    fields = ("example", "prompt", *Setting.__dataclass_fields__)
    rows = {tuple(row[field] for field in fields): row for row in journal.rows}
    todo = [(one, [s for s in settings if one.key(s) not in rows]) for one in asked]
    todo = [(one, missing) for one, missing in todo if missing]
    jobs = [Job(ref, one.ids, missing, how) for one, missing in todo]
    for i, found in sweep(answer, jobs, where, total=len(asked), unit=" examples", progress=progress):
        one = todo[i][0]
        said = {"example": one.example.id, "prompt": digest(one.ids)}
        more = {"words_cut": one.cut, "references": list(one.example.references)}
        new = [said | row | more for row in found]
        journal.add(new)
        rows |= {tuple(row[field] for field in fields): row for row in new}
    return rows


def dense_rows(rows: dict[tuple[Any, ...], Row], asked: Sequence[Asked]) -> list[Row] | None:
    """Return the dense answers, if there are all of them."""
    found = [rows.get(one.key(Setting("dense", 1.0))) for one in asked]
    return [row for row in found if row] if all(found) else None


def summarise(
    put: Prompts, asked: Sequence[Asked], of: Sequence[Row], dense: Sequence[Row] | None, seed: int
) -> Row:
    """Return one setting's scores with 95% bootstrap intervals over examples, each ``[score, low, high]``.

    ``to_dense`` are the differences to dense answers of the same examples, drawn together (None without
    dense ones); ``kept`` the share of all FFN neurons; ``empty`` the share of answers with no text.
    """
    texts, others = ([row["text"] for row in some] if some else None for some in (of, dense))
    assert texts is not None
    about = {"kept": bootstrap(np.array([row["kept"] for row in of]), seed=seed)}
    return (
        about
        | {"empty": sum(not text.strip() for text in texts) / len(texts)}
        | scores(put, texts, asked, others, seed)
    )


def scores(
    put: Prompts, texts: Sequence[str], asked: Sequence[Asked], others: Sequence[str] | None, seed: int
) -> Row:
    """Return the metrics of answers, and their differences to other answers to the same examples."""
    examples, each = [one.example for one in asked], [texts] if others is None else [texts, others]
    found = {name: [statistics_of(name, some, examples) for some in each] for name in put.metrics}
    return {
        "scores": {name: interval(name, of[:1], seed) for name, of in found.items()},
        "to_dense": others and {name: interval(name, of, seed) for name, of in found.items()},
    }


def statistics_of(name: str, texts: Sequence[str], examples: Sequence[Example]) -> Array:  # -> (n, k)
    return metrics.statistics(name, [text.strip() for text in texts], examples)


def interval(name: str, each: Sequence[Array], seed: int) -> tuple[float, float, float]:  # one or two (n, k)
    """Return a metric's score, or how much the first one's is above the second's, and its interval."""
    n, score = len(each[0]), metrics.METRICS[name].score

    def statistic(rows: Array) -> Array:  # (n_resamples, n) -> (n_resamples,)
        times = np.stack([np.bincount(drawn, minlength=n) for drawn in rows]).astype(float)
        first, *second = (score(times @ stats) for stats in each)
        return first - second[0] if second else first

    return bootstrap(np.arange(n), statistic, seed=seed)
