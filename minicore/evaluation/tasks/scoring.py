"""Scores of a task's answers with 95% bootstrap intervals over examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minicore.bootstrap import bootstrap
from minicore.evaluation.tasks import metrics
from minicore.evaluation.tasks.answers import Prompted, Row
from minicore.evaluation.tasks.prompts import Prompts
from minicore.evaluation.tasks.readers import Example

Array = np.ndarray


def summarise(
    prompts: Prompts,
    prompted: Sequence[Prompted],
    rows: Sequence[Row],
    dense: Sequence[Row] | None,
    seed: int,
) -> dict[str, Any]:
    """Return one setting's scores, each ``[score, low, high]``.

    ``to_dense`` holds the differences to dense answers of the same examples, which are drawn together (None
    without dense answers), ``kept`` the share of all FFN neurons, and ``empty`` the share of answers without
    text.
    """
    texts = [row["text"] for row in rows]
    dense_texts = [row["text"] for row in dense] if dense else None
    return {
        "kept": bootstrap(np.array([row["kept"] for row in rows]), seed=seed),
        "empty": sum(not text.strip() for text in texts) / len(texts),
        **score_answers(prompts, texts, prompted, dense_texts, seed),
    }


def score_answers(
    prompts: Prompts,
    texts: Sequence[str],
    prompted: Sequence[Prompted],
    dense: Sequence[str] | None,
    seed: int,
) -> dict[str, Any]:
    """Return the metrics of answers, and their differences to dense answers to the same examples."""
    examples, answers = [one.example for one in prompted], [texts] if dense is None else [texts, dense]
    found = {name: [statistics_of(name, some, examples) for some in answers] for name in prompts.metrics}
    return {
        "scores": {name: interval(name, stats[:1], seed) for name, stats in found.items()},
        "to_dense": dense and {name: interval(name, stats, seed) for name, stats in found.items()},
    }


def statistics_of(name: str, texts: Sequence[str], examples: Sequence[Example]) -> Array:  # -> (n, k)
    """Return a metric's statistics of each answer, without the space around it."""
    return metrics.statistics(name, [text.strip() for text in texts], examples)


def interval(name: str, answers: Sequence[Array], seed: int) -> tuple[float, float, float]:
    # one or two (n, k)
    """Return a metric's score with its interval, or by how much the first score exceeds the second."""
    n, score = len(answers[0]), metrics.METRICS[name].score

    def statistic(rows: Array) -> Array:  # (n_resamples, n) -> (n_resamples,)
        times = np.stack([np.bincount(drawn, minlength=n) for drawn in rows]).astype(float)
        first, *second = (score(times @ stats) for stats in answers)
        return first - second[0] if second else first

    return bootstrap(np.arange(n), statistic, seed=seed)
