"""Calibration of the stability test: does a set that still moves predict how well it will hold?

    minicore eval stability TEXTS -m MODEL

Each passage is read once. At every prompt length, the test's score is computed from the tokens before it,
and the recall of the prompt's set against C_alpha^beta([s, g]) from those and ``horizon`` tokens after. In
every second passage the topic changes: it begins with the beginning of another passage. Half of the passages
calibrate (least squares of recall on score and log2 of the length); the other half measures how well that
predicts.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from os import PathLike
from typing import Any

import numpy as np

from minicore.backends import Backend
from minicore.backends.numpy import NumpyBackend
from minicore.core.neurons import core_from_scores
from minicore.core.stability import TEST_BETA, WANTED, growth_marks, similarity
from minicore.core.statistics import Recording
from minicore.errors import InputError
from minicore.evaluation.texts import passages
from minicore.forward import Hooks, join_hooks
from minicore.model import Model

Array = np.ndarray
Row = dict[str, Any]  # a measurement as JSON holds it

LENGTHS = (16, 32, 64, 128, 256)  # of prompts
HORIZON = 128  # tokens of continuation


def with_shift(ids: Array, other: Array, rng: np.random.Generator) -> tuple[Array, int]:
    """Return a passage that begins as another one does, and the token at which it changes.

    That is a power of 2, drawn from 8 to half of the longest prompt.
    """
    at = 2 ** int(rng.integers(3, int(math.log2(max(LENGTHS)))))
    return np.concatenate([other[:at], ids[: len(ids) - at]]), at


def counts_at(
    backend: Backend,
    ids: Array,
    layers: Sequence[int],
    alpha: float,
    lengths: Iterable[int],
    hooks: Hooks | None = None,
) -> dict[int, Array]:  # -> length -> (n_layers, n_neurons) int64
    """Return f_alpha (eq. 3) of a text's prefixes from one reading, which ``hooks`` see as well."""
    model = backend.model
    recording = Recording(["counts"], layers, model.config.n_neurons, alpha, marks=sorted(set(lengths)))
    counting = ((f"blocks.{layer}.mlp.hook_post", partial(recording.update, layer)) for layer in layers)
    backend.prefill(ids, model.new_cache(len(ids)), join_hooks(chain((hooks or {}).items(), counting)))
    at = recording.at_mark
    return {mark: np.stack([at[mark][layer]["counts"] for layer in layers]) for mark in at}


def read(backend: Backend, ids: Array, layers: Sequence[int], alpha: float, horizon: int) -> list[Row]:
    """Read one passage; return score and recall of the prompt's set for each prompt length."""
    lengths = [n for n in LENGTHS if n + horizon <= len(ids)]
    marks = {mark for n in lengths for mark in (*growth_marks(n), n, n + horizon)}
    counts = counts_at(backend, ids[: max(lengths) + horizon], layers, alpha, marks)
    return [
        {
            "n": n,
            "score": similarity([counts[mark] for mark in growth_marks(n)]),
            "recall": recall(counts[n], counts[n + horizon]),
        }
        for n in lengths
    ]


def recall(prompt: Array, whole: Array) -> float:  # counts, (n_layers, n_neurons) twice -> in [0, 1]
    """Return the share of C([s, g]) that C(s) holds, averaged over layers."""
    shares = []
    for before, after in zip(prompt, whole, strict=True):
        target = core_from_scores(after, TEST_BETA)
        shares.append(np.isin(target, core_from_scores(before, TEST_BETA)).mean() if len(target) else 1.0)
    return float(np.mean(shares))


def measure(
    model: Model,
    paths: Sequence[str | PathLike[str]],
    n_passages: int = 64,
    alpha: float = 0.4,
    layers: Sequence[int] | None = None,
    horizon: int = HORIZON,
    seed: int = 0,
) -> list[Row]:
    """Return a row for each passage and prompt length: passage, shift (or None), n, score, recall.

    Raises
    ------
    InputError
        As :func:`~minicore.evaluation.texts.passages`, or if there are fewer than 4 passages.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> from minicore.evaluation.texts import sample_files
    >>> rows = measure(model, sample_files(), n_passages=4, layers=[4])
    >>> [row["n"] for row in rows if row["passage"] == 0]
    [16, 32, 64, 128, 256]
    """
    from tqdm import tqdm

    found, others = passages(model, paths, max(LENGTHS) + horizon, n_passages, n_passages // 2, seed)
    if len(found) < 4:
        raise InputError(f"{len(found)} passages of {max(LENGTHS) + horizon} tokens, expected at least 4")
    layers = range(model.config.n_layers) if layers is None else layers
    backend, rng, rows = NumpyBackend(model), np.random.default_rng(seed), []
    others = others or found[::-1]
    bar = tqdm(found, desc="stability", unit=" passages", leave=False, disable=not sys.stderr.isatty())
    for i, passage in enumerate(bar):
        ids, shift = passage.ids, None
        if i % 2:
            ids, shift = with_shift(ids, others[i // 2 % len(others)].ids, rng)
        about = {"passage": i, "name": passage.name, "shift": shift}
        rows += [about | row for row in read(backend, ids, layers, alpha, horizon)]
    return rows


FEATURES = {
    "score and length": ("score", "log2_n"),
    "score alone": ("score",),
    "length alone": ("log2_n",),
}


def calibrate(rows: Sequence[Row], wanted: float = WANTED) -> dict[str, Any]:
    """Fit recall on half of the passages and measure how well it is predicted on the other half.

    Passages i with i % 4 < 2 calibrate, so that both halves have as many topic shifts.

    Returns
    -------
    dict
        For each set of features, ``weights`` (constant first), and on the held-out passages ``rmse``,
        ``correlation`` and ``accuracy`` (of predicting whether recall reaches ``wanted``). Keys that end in
        ``_shifted`` are those of prompts whose last half holds a topic shift. ``always`` is the accuracy of
        always giving the more frequent answer.

    Examples
    --------
    Four passages, whose recall is 0.2 above the score at every length:

    >>> rows = [
    ...     {"passage": i, "shift": None, "n": n, "score": score, "recall": score + 0.2}
    ...     for i in range(4)
    ...     for n, score in zip(LENGTHS, np.linspace(0.1, 0.1 * i + 0.4, len(LENGTHS)))
    ... ]
    >>> np.round(calibrate(rows)["score alone"]["weights"], 6).tolist()
    [0.2, 1.0]
    """
    fit = [row for row in rows if row["passage"] % 4 < 2]
    held_out = [row for row in rows if row["passage"] % 4 >= 2]
    target, true = (np.array([row["recall"] for row in part]) for part in (fit, held_out))
    shifted = np.array(
        [row["shift"] is not None and row["n"] / 2 <= row["shift"] < row["n"] for row in held_out]
    )
    good = true >= wanted
    report: dict[str, Any] = {
        "wanted": wanted,
        "n_fit": len(fit),
        "n_held_out": len(held_out),
        "n_shifted": int(shifted.sum()),
        "always": float(max(good.mean(), 1 - good.mean())),
    }
    for name, features in FEATURES.items():
        weights = np.linalg.lstsq(design(fit, features), target, rcond=None)[0]
        predicted = design(held_out, features) @ weights
        error, right = predicted - true, (predicted >= wanted) == good
        report[name] = {
            "weights": weights.tolist(),
            "rmse": float(np.sqrt(np.mean(error**2))),
            "rmse_shifted": float(np.sqrt(np.mean(error[shifted] ** 2))) if shifted.any() else None,
            "bias_shifted": float(np.mean(error[shifted])) if shifted.any() else None,
            "correlation": float(np.corrcoef(predicted, true)[0, 1]),
            "accuracy": float(right.mean()),
            "accuracy_shifted": float(right[shifted].mean()) if shifted.any() else None,
        }
    return report


def design(rows: Sequence[Row], features: Sequence[str]) -> Array:  # -> (n_rows, 1 + n_features)
    """Return the design matrix of the regression: ones and the features."""
    columns = {"score": [row["score"] for row in rows], "log2_n": [math.log2(row["n"]) for row in rows]}
    return np.column_stack([np.ones(len(rows)), *(columns[name] for name in features)])
