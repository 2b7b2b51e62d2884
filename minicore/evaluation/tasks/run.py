"""A study of a task: each example is read once, answered under every setting, and scored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from minicore.backends import check_backend
from minicore.core.neurons import check_fraction, parse_layers
from minicore.errors import InputError, unknown
from minicore.evaluation.journal import Journal
from minicore.evaluation.quality.settings import DENSE, Setting, grid
from minicore.evaluation.shared_model import ModelRef, register_model
from minicore.evaluation.sweep import Workers, sweep
from minicore.evaluation.tasks import readers
from minicore.evaluation.tasks.answers import (
    AnswerOptions,
    Job,
    Key,
    Prompted,
    Row,
    answer,
    check_recorders,
    digest,
    row_key,
)
from minicore.evaluation.tasks.prompts import Prompts
from minicore.evaluation.tasks.readers import Example
from minicore.evaluation.tasks.scoring import score_answers, summarise
from minicore.files import atomic_write
from minicore.generation.prediction import fingerprint
from minicore.model import Model

SHIPPED = {"steps": Path(__file__).parent / "steps.jsonl"}  # data that come with minicore


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
    workers: Workers | None = None,
    out: str | PathLike[str] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure a task under predictors at betas, as ``minicore eval tasks`` does.

    Parameters
    ----------
    model : Model
    task : str
        One of :data:`minicore.evaluation.tasks.readers.TASKS`.
    data : sequence of path
        See :func:`minicore.evaluation.tasks.readers.read`. For ``steps``, an empty sequence is the data set
        that comes with minicore.
    predictors, betas, budget, token_beta
        See :class:`minicore.evaluation.quality.settings.Setting`.
    shots : int
        Worked examples before each prompt.
    n_examples : int
        Examples drawn, without replacement; fewer if the data hold fewer.
    alpha, layers, clusters
        See :func:`minicore.generation.prediction.make_recorder`.
    prompts : str or None
        Name or file of the prompts; None is the prompts that fit the data.
    backend : str
        ``numpy``, ``cpu`` or ``auto``.
    seed : int
        Random seed of the draw, of random sets and of the bootstrap.
    workers : Workers or None
        What runs the study; None is one thread of this process.
    out : path or None
        A directory. ``answers.jsonl`` receives every answer as it is made, so that a study that was stopped
        resumes, and ``report.json`` the report.
    progress : bool
        Show a progress bar on stderr if it is a terminal.

    Returns
    -------
    dict
        ``conditions``, ``data``, ``n_examples``, ``n_data``, ``n_cut`` (prompts whose document was cut),
        ``floor`` (the scores of answers that need no model) and ``settings``, a list of
        :func:`~minicore.evaluation.tasks.scoring.summarise`.

    Raises
    ------
    InputError
        If data or prompts are malformed or do not fit, or an option is out of range.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> report = evaluate(model, "steps", [], ["dense", "stability"], [0.4], n_examples=2)
    >>> [(row["predictor"], row["beta"]) for row in report["settings"]]
    [('dense', 1.0), ('stability', 0.4)]
    """
    workers = Workers() if workers is None else workers
    settings = checked_grid(predictors, betas, budget, token_beta)
    examples = examples_of(task, data)
    template = Prompts.read(prompts or examples[0].prompts)
    prompted = [prompt_of(one, template, model, shots) for one in draw(examples, n_examples, seed)]
    options = AnswerOptions(
        alpha=check_fraction("alpha", alpha),
        layers=tuple(parse_layers(layers, model.config.n_layers)),
        clusters=None if clusters is None else str(Path(clusters).absolute()),
        backend=check_backend(backend, model.dtype, model.config)[0],
        new_tokens=template.new_tokens,
        stop=template.stop,
        seed=seed,
    )
    conditions = {
        "model": model.name,
        "dtype": model.dtype,
        "fingerprint": fingerprint(model),
        "task": task,
        "prompts": template.name,
        "shots": shots,
        "threads": workers.n_threads,
        **asdict(options),
    }
    journal = Journal(None if out is None else Path(out) / "answers.jsonl", conditions)
    ref = register_model(model)
    check_recorders(model, Job(ref, prompted[0].ids, settings, options))
    rows = answers(ref, prompted, settings, options, journal, workers, progress)
    report = {
        "conditions": journal.conditions,
        "data": [Path(path).name for path in data] or [SHIPPED[task].name],
        "n_examples": len(prompted),
        "n_data": len(examples),
        "n_cut": sum(one.words_cut > 0 for one in prompted),
        "floor": floor_of(template, prompted, seed),
        "settings": table(template, prompted, settings, rows, seed),
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
    """Return the settings. Only ``eval quality`` makes sets from other sources than the prompt."""
    settings = grid(predictors, betas, budget, token_beta)
    for setting in settings:
        if "@" in setting.predictor:
            raise InputError(
                f"predictor {setting.predictor}: the answers of a task come from the prompt's set, "
                "expected a predictor without @"
            )
    return settings


def examples_of(task: str, data: Sequence[str | PathLike[str]]) -> list[Example]:
    """Return the examples of a task."""
    if task not in readers.TASKS:
        raise unknown("task", task, readers.TASKS)
    if not data and task not in SHIPPED:
        raise InputError(f"task {task} needs data, expected a file or two")
    return readers.read(task, data or [SHIPPED[task]])


def draw(examples: Sequence[Example], n: int, seed: int) -> list[Example]:
    """Return n examples, drawn with a random seed, in the order of the data."""
    if n < 1 or seed < 0:
        raise InputError(f"examples is {n}, seed {seed}; expected at least 1 and 0")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(examples))[:n])
    return [examples[i] for i in chosen]


def prompt_of(example: Example, template: Prompts, model: Model, shots: int) -> Prompted:
    """Return an example with its prompt."""
    ids, words_cut = template.ids(model, example, shots)
    return Prompted(example, ids, words_cut)


def answers(
    ref: ModelRef,
    prompted: Sequence[Prompted],
    settings: Sequence[Setting],
    options: AnswerOptions,
    journal: Journal,
    workers: Workers,
    progress: bool,
) -> dict[Key, Row]:
    """Return every answer by its key; those that the journal lacks are made and added to it."""
    rows = {row_key(row): row for row in journal.rows}
    todo = [(one, [setting for setting in settings if one.key(setting) not in rows]) for one in prompted]
    todo = [(one, missing) for one, missing in todo if missing]
    jobs = [Job(ref, one.ids, missing, options) for one, missing in todo]
    for i, found in sweep(answer, jobs, workers, total=len(prompted), unit=" examples", progress=progress):
        one = todo[i][0]
        before = {"example": one.example.id, "prompt": digest(one.ids)}
        after = {"words_cut": one.words_cut, "references": list(one.example.references)}
        new = [before | row | after for row in found]
        journal.add(new)
        rows |= {row_key(row): row for row in new}
    return rows


def table(
    template: Prompts,
    prompted: Sequence[Prompted],
    settings: Sequence[Setting],
    rows: Mapping[Key, Row],
    seed: int,
) -> list[dict[str, Any]]:
    """Return a summary of each setting, compared with dense where there is every dense answer."""
    dense = [rows[key] for one in prompted if (key := one.key(DENSE)) in rows]
    to_dense = dense if len(dense) == len(prompted) else None
    found = []
    for setting in settings:
        answered = [rows[one.key(setting)] for one in prompted]
        found.append(summarise(template, prompted, answered, to_dense, seed) | asdict(setting))
    return found


def floor_of(template: Prompts, prompted: Sequence[Prompted], seed: int) -> dict[str, Any]:
    """Return the scores of the answers that need no model."""
    texts = template.floors([one.example for one in prompted])
    return {"floor": template.floor} | score_answers(template, texts, prompted, None, seed)
