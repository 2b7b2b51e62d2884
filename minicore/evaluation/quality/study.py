"""A quality study: passages drawn from files, measured under each setting, and summarised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, Unpack

from minicore.backends import Backend, check_backend, make_backend
from minicore.errors import InputError
from minicore.evaluation.quality.hot_sets import OtherTexts, read_others
from minicore.evaluation.quality.measurement import Reading, Row, digest
from minicore.evaluation.quality.settings import ConditionOptions, Conditions, Setting, grid
from minicore.evaluation.quality.storage import Rows, rows_path, write_report
from minicore.evaluation.quality.summary import summarise
from minicore.evaluation.shared_model import ModelRef, register_model, resolve_model
from minicore.evaluation.sweep import Workers, sweep
from minicore.evaluation.texts import Passage, passages
from minicore.model import Model


def study(
    model: Model,
    passages: Sequence[Passage],
    settings: Sequence[Setting],
    conditions: Conditions,
    fit: Sequence[Passage] = (),
    rows: Rows | None = None,
    *,
    n_generated: int = 0,
    progress: bool = False,
    workers: Workers | None = None,
    backend: str = "numpy",
) -> list[Row]:
    """Measure settings on passages. Each passage is read densely once, whatever the number of settings.

    Parameters
    ----------
    model : Model
    passages : sequence of Passage
        Each of ``conditions.n_tokens`` tokens.
    settings : sequence of Setting
    conditions : Conditions
    fit : sequence of Passage
        Other texts, on which hot sets (``static`` and ``name@others``) are fitted.
    rows : Rows or None
        Where finished rows are kept; rows that it already has are not measured again.
    n_generated : int
        Tokens to generate greedily for ``common_prefix``; 0 leaves it out.
    progress : bool
        Show a progress bar on stderr if it is a terminal.
    workers : Workers or None
        What runs the study, one passage per job; None is one thread of this process.
    backend : str
        What reads the passages, ``numpy`` or ``cpu``.

    Returns
    -------
    list of dict
        A summary of each setting, see :func:`~minicore.evaluation.quality.summary.summarise`.

    Raises
    ------
    InputError
        If a predictor needs other texts and there are none, a passage has another length, or the rows
        were measured under other conditions.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> from minicore.evaluation.texts import passages, sample_files
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
    ref = register_model(model)
    jobs = [
        Job(
            model=ref,
            backend=backend,
            passage=passage,
            settings=missing,
            conditions=conditions,
            wanted=wanted,
            fit=tuple(fit),
            n_generated=n_generated,
        )
        for passage, missing in todo
    ]
    for _, done in sweep(
        measure_passage, jobs, workers, total=len(passages), unit=" passages", progress=progress
    ):
        rows.add(done)
    return summarise(rows.of(passages, settings), settings, conditions.seed)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One passage of a study, as a worker needs it.

    ``settings`` are those the passage is to be measured under, ``wanted`` those of all passages, and ``fit``
    the other texts.
    """

    model: ModelRef
    backend: str
    passage: Passage
    settings: list[Setting]
    conditions: Conditions
    wanted: tuple[Setting, ...]
    fit: tuple[Passage, ...]
    n_generated: int


def measure_passage(job: Job) -> list[Row]:
    """Return the rows of one passage."""
    backend = make_backend(resolve_model(job.model), job.backend)
    others = others_of(backend, job)
    names = [setting.predictor for setting in job.settings]
    reading = Reading(backend, job.passage, job.conditions, names, others.recorders, others.frequency)
    about = {"passage": job.passage.name, "digest": digest(job.passage)}
    return [about | asdict(one) | reading.measure(one, job.n_generated) for one in job.settings]


_others: dict[tuple[Any, ...], OtherTexts] = {}  # at most one: what this process read last


def others_of(backend: Backend, job: Job) -> OtherTexts:
    """Return what a job's other texts say; a process reads them once for all of its jobs of a study."""
    key = (job.model, job.backend, job.conditions, job.wanted, *map(digest, job.fit))
    if key not in _others:
        _others.clear()
        _others[key] = read_others(backend, job.fit, job.wanted, job.conditions)
    return _others[key]


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
    workers: Workers | None = None,
    **conditions: Unpack[ConditionOptions],
) -> dict[str, Any]:
    """Measure predictors at betas on passages of text files, as ``minicore eval quality`` does.

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
        What reads the texts: ``numpy``, or ``cpu`` (``auto``), which compiles what is between the matrix
        products. The two agree up to rounding.
    out : path or None
        Where to write the report as JSON. The rows of each passage are kept next to it
        (``.rows.jsonl``), so that a study that was stopped resumes.
    progress : bool
        Show a progress bar on stderr if it is a terminal.
    workers : Workers or None
        What runs the study, see :func:`study`.
    **conditions
        The keywords of :meth:`Conditions.of`.

    Returns
    -------
    dict
        ``conditions``, ``texts``, ``n_passages`` and ``settings``, the list of :func:`study`.

    Raises
    ------
    InputError
        If an option is out of range, a predictor is unknown, or a file cannot be read.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> from minicore.evaluation.texts import sample_files
    >>> lengths = {"prompt_tokens": 32, "continuation_tokens": 16}
    >>> report = evaluate(model, sample_files(), ["stability"], [0.4, 0.8], n_passages=2, **lengths)
    >>> [row["beta"] for row in report["settings"]]
    [0.4, 0.8]
    """
    if n_passages < 1 or n_generated < 0:
        raise InputError(f"passages is {n_passages}, generate {n_generated}; expected at least 1 and 0")
    settings, under = grid(predictors, betas, budget, token_beta), Conditions.of(model, **conditions)
    rows = Rows(under, rows_path(out))
    measured, others = passages(model, texts, under.n_tokens, n_passages, under.fit_passages, seed=under.seed)
    summary = study(
        model,
        measured,
        settings,
        under,
        others,
        rows,
        n_generated=n_generated,
        progress=progress,
        workers=workers,
        backend=reading_backend(model, backend),
    )
    return write_report(rows, texts, measured, summary, out)


def reading_backend(model: Model, backend: str) -> str:
    """Return the backend that reads passages; a machine with a GPU uses its CPU for that."""
    return "numpy" if check_backend(backend, model.dtype, model.config)[0] == "numpy" else "cpu"
