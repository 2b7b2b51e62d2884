"""One example of a task: its prompt is read once, and answered under every setting."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minicore.backends import make_backend
from minicore.core.predictors import find_predictor
from minicore.core.recorder import Recorder
from minicore.evaluation.quality.settings import Setting
from minicore.evaluation.shared_model import ModelRef, resolve_model
from minicore.evaluation.tasks.readers import Example
from minicore.generation.options import check_options
from minicore.generation.prediction import make_recorder, record_all
from minicore.generation.sampling import Sampler
from minicore.generation.stream import Prefilled, Stream
from minicore.model import Model

Row = dict[str, Any]  # an answer as JSON holds it
Key = tuple[Any, ...]  # what an answer is found by


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How answers are decoded; all answers of a study share it.

    Attributes
    ----------
    alpha : float
        Fraction of a token's positive activations kept.
    layers : tuple of int
        The layers that are restricted.
    clusters : str or None
        File of the clusters that predictors read.
    backend : str
        ``numpy``, ``cpu`` or ``cuda``.
    new_tokens : int
        Most tokens of an answer.
    stop : tuple of str
        Texts that end an answer.
    seed : int
        Random seed of predictors.
    """

    alpha: float
    layers: tuple[int, ...]
    clusters: str | None
    backend: str
    new_tokens: int
    stop: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Prompted:
    """An example with its prompt.

    Attributes
    ----------
    example : Example
    ids : list of int
        The prompt's token ids.
    words_cut : int
        Words of the document that were left out to make the prompt fit.
    """

    example: Example
    ids: list[int]
    words_cut: int

    def key(self, setting: Setting) -> Key:
        """Return what the answer under a setting is found by."""
        return self.example.id, digest(self.ids), *asdict(setting).values()


def row_key(row: Row) -> Key:
    """Return :meth:`Prompted.key` of a finished answer."""
    return row["example"], row["prompt"], *(row[field] for field in Setting.__dataclass_fields__)


@dataclass(frozen=True)
class Job:
    """A prompt, and the settings to answer it under."""

    model: ModelRef
    ids: list[int]
    settings: list[Setting]
    options: AnswerOptions


def answer(job: Job) -> list[Row]:
    """Return a model's answer to a prompt under each setting; settings share one reading where they can."""
    model = resolve_model(job.model)
    names = dict.fromkeys(setting.predictor for setting in job.settings)
    recorders = {
        name: recorder_of(model, job, Setting(name, 1.0, token_beta=1.0))
        for name in names
        if reads_only_the_prompt(name)
    }
    cache = model.new_cache(len(job.ids))
    backend = make_backend(model, job.options.backend)
    logits = record_all(backend, job.ids, list(recorders.values()), cache)  # (n_vocab,)
    rows = []
    for setting in job.settings:
        recorder, prefilled = recorders.get(setting.predictor), None
        if recorder:
            selection = recorder.core(setting.beta, setting.budget, setting.token_beta)
            prefilled = Prefilled(cache, logits, selection)
        else:
            recorder = recorder_of(model, job, setting)
        rows.append(answer_one(model, job, setting, recorder, prefilled))
    return rows


def answer_one(
    model: Model, job: Job, setting: Setting, recorder: Recorder, prefilled: Prefilled | None
) -> Row:
    """Return the answer under one setting; the prompt is read first unless it is prefilled."""
    options = check_options(
        model,
        recorder,
        backend=job.options.backend,
        max_new_tokens=job.options.new_tokens,
        stop=job.options.stop,
        ignore_eos=False,
        refresh=None,
        continuation=None,
        memory_limit=None,
    )
    generation = Stream(model, job.ids, recorder, Sampler(), options, prefilled).run()
    return {
        **asdict(setting),
        "text": generation.text,
        "new_tokens": len(generation.token_ids),
        "stop_reason": generation.stats["stop_reason"],
        "kept": generation.stats["core_fraction"],
    }


def reads_only_the_prompt(predictor: str) -> bool:
    """Return whether a predictor needs nothing but one reading of the prompt."""
    row = find_predictor(predictor)
    return not row.needs_continuation and row.refresh is None


def recorder_of(model: Model, job: Job, setting: Setting) -> Recorder:
    """Return the recorder of a setting's predictor under a study's options."""
    options, row = job.options, find_predictor(setting.predictor)
    reads_clusters = row.checks_stability or {"frequency", "cluster_frequency"} & set(row.given)
    return make_recorder(
        model,
        setting.predictor,
        options.alpha,
        setting.beta,
        list(options.layers),
        budget=setting.budget,
        token_beta=setting.token_beta,
        clusters=options.clusters if reads_clusters else None,
        seed=options.seed + digest(job.ids),
    )


def check_recorders(model: Model, job: Job) -> None:
    """Make every recorder once, so that a mistake is reported before any work."""
    for setting in job.settings:
        recorder_of(model, job, setting)


def digest(ids: Sequence[int]) -> int:
    """Return a checksum of a prompt's ids."""
    return zlib.crc32(np.array(ids, "<i8").tobytes())
