"""How few neurons can be kept for a given loss: each predictor's smallest beta within it.

The search measures and does not extrapolate: every point is a study on the same passages, and the result is
always a setting that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Unpack

from minicore.errors import InputError
from minicore.evaluation.quality.measurement import Row
from minicore.evaluation.quality.settings import DENSE, ConditionOptions, Conditions, Setting, grid
from minicore.evaluation.quality.storage import Rows, rows_path, write_report
from minicore.evaluation.quality.study import reading_backend, study
from minicore.evaluation.texts import Passage, passages
from minicore.model import Model

FIRST = (0.6, 0.8)  # betas that every search measures first
STEP = 0.005  # betas are multiples of it; a search ends between two neighbours


def next_beta(loss_at: Mapping[float, float], target: float, step: float = STEP) -> float | None:
    """Return the beta to measure next in search of a loss of ``target`` nats, None when it is found.

    Near 1 the loss of keeping beta is about c (1 - beta)**p, a straight line in logarithms. The line through
    two measured points meets the target at the guess. The guess is kept strictly between the largest beta
    that loses too much and the smallest that does not, so that every step narrows this bracket.

    Parameters
    ----------
    loss_at : mapping of float to float
        Measured points: beta to the nats lost per token. Keeping all neurons (1.0) loses nothing.
    target : float
        Nats per token.
    step : float
        Smallest difference between two betas.

    Examples
    --------
    >>> next_beta({0.6: 0.12, 0.8: 0.03}, target=0.05)
    0.74
    """
    known = dict(loss_at) | {1.0: 0.0}
    low = max((beta for beta, loss in known.items() if loss > target), default=0.0)
    high = min(beta for beta, loss in known.items() if loss <= target and beta > low)
    low_i, high_i = round(low / step), round(high / step)
    if high_i - low_i <= 1:
        return None
    guess = (low + high) / 2
    fit = sorted((beta for beta in loss_at if loss_at[beta] > 0 and beta < 1), key=lambda b: abs(b - low))[:2]
    if len(fit) == 2 and loss_at[fit[0]] != loss_at[fit[1]]:
        (x0, y0), (x1, y1) = ((math.log(1 - beta), math.log(loss_at[beta])) for beta in fit)
        power = (y1 - y0) / (x1 - x0)
        if power > 0:
            guess = 1 - math.exp(min(x0 + (math.log(target) - y0) / power, 0.0))
    return round(min(max(round(guess / step), low_i + 1), high_i - 1) * step, 6)


def search(
    model: Model,
    texts: Sequence[Passage],
    predictors: Sequence[str],
    losses: Sequence[float],
    conditions: Conditions,
    others: Sequence[Passage] = (),
    rows: Rows | None = None,
    *,
    budget: str = "uniform",
    token_beta: float | str | None = None,
    rounds: int = 6,
    progress: bool = False,
    backend: str = "numpy",
) -> list[Row]:
    """Find each predictor's smallest beta within each loss; each round measures one more point of each.

    Parameters
    ----------
    model, texts, predictors, conditions, others, rows, budget, token_beta, progress, backend
        As for :func:`minicore.evaluation.quality.study.study` and
        :func:`~minicore.evaluation.quality.settings.grid`.
    losses : sequence of float
        Perplexity relative to dense, minus one: 0.05 is five percent.
    rounds : int
        Most points measured after the first two, for each predictor and loss.

    Returns
    -------
    list of dict
        The summary of the setting found, with ``loss`` (the one asked for) and ``tight`` (whether the next
        smaller beta was measured and loses too much). ``beta`` is 1 where no smaller one is within the loss.

    Raises
    ------
    InputError
        If a loss is not above 0, or as :func:`~minicore.evaluation.quality.study.study`.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> from minicore.evaluation.texts import sample_files
    >>> conditions = Conditions.of(model, prompt_tokens=32, continuation_tokens=16)
    >>> texts, _ = passages(model, sample_files(), conditions.n_tokens, n_passages=2)
    >>> [found] = search(model, texts, ["griffin"], [0.2], conditions, rounds=1)
    >>> found["predictor"], found["loss"], found["ratio"][0] <= 1.2
    ('griffin', 0.2, True)
    """
    for loss in losses:
        if not loss > 0:
            raise InputError(f"loss is {loss}, expected above 0: 0.05 is five percent more perplexity")
    rows = Rows(conditions) if rows is None else rows
    measured: dict[str, dict[float, Row]] = {name: {} for name in predictors}
    todo = [setting for name in predictors for setting in grid([name], FIRST, budget, token_beta)]
    for _ in range(rounds + 1):
        found = study(model, texts, todo, conditions, others, rows, progress=progress, backend=backend)
        for setting, row in zip(todo, found, strict=True):
            measured[setting.predictor][float(setting.beta)] = row
        wanted = {
            (name, next_beta(_nats_lost(measured[name]), math.log1p(loss)))
            for name in predictors
            for loss in losses
        }
        todo = [
            Setting(name, beta, budget, token_beta if "+" in name else None)
            for name, beta in sorted(wanted, key=str)
            if beta is not None
        ]
        if not todo:
            break
    [dense] = study(model, texts, [DENSE], conditions, others, rows, backend=backend)
    return [smallest_within(loss, name, measured[name], dense) for name in predictors for loss in losses]


def _nats_lost(rows: Mapping[float, Row]) -> dict[float, float]:  # beta -> nats per token
    return {beta: math.log(row["ratio"][0]) for beta, row in rows.items()}


def smallest_within(loss: float, predictor: str, rows: Mapping[float, Row], dense: Row) -> Row:
    """Return the smallest measured beta above all those that lose more than the loss."""
    target, lost = math.log1p(loss), _nats_lost(rows)
    low = max((beta for beta in lost if lost[beta] > target), default=0.0)
    high = min((beta for beta in lost if beta > low), default=1.0)
    row = rows[high] if high < 1 else dense | {"predictor": predictor}
    return row | {"loss": loss, "tight": next_beta(lost, target) is None}


def find(
    model: Model,
    texts: Sequence[str | PathLike[str]],
    predictors: Sequence[str],
    losses: Sequence[float],
    *,
    budget: str = "uniform",
    token_beta: float | str | None = None,
    n_passages: int = 24,
    rounds: int = 6,
    backend: str = "auto",
    out: str | PathLike[str] | None = None,
    progress: bool = False,
    **conditions: Unpack[ConditionOptions],
) -> dict[str, Any]:
    """Search on passages of text files, as ``minicore eval frontier`` does.

    Takes the parameters of :func:`minicore.evaluation.quality.study.evaluate`, with ``losses`` and
    ``rounds`` of :func:`search` in place of betas, and returns the same report.
    """
    if n_passages < 1 or rounds < 0:
        raise InputError(f"passages is {n_passages}, rounds {rounds}; expected at least 1 and 0")
    under = Conditions.of(model, **conditions)
    grid(predictors, FIRST, budget, token_beta)  # report a mistake before any work
    rows = Rows(under, rows_path(out))
    measured, others = passages(model, texts, under.n_tokens, n_passages, under.fit_passages, under.seed)
    found = search(
        model,
        measured,
        predictors,
        losses,
        under,
        others,
        rows,
        budget=budget,
        token_beta=token_beta,
        rounds=rounds,
        progress=progress,
        backend=reading_backend(model, backend),
    )
    return write_report(rows, texts, measured, found, out)
