"""Calibrating the stability test: does what a prompt's set still changes say how well it will hold?

    minicore eval stability TEXTS -m MODEL

Passages are read once. At every prompt length the score of the test is taken from the tokens before it, and
the recall of the prompt's set against C_alpha^beta([s, g]) from these and ``horizon`` tokens after. Every
second passage changes its topic on the way: its beginning is another passage's. Half of the passages
calibrate (least squares of recall on score and log2 of the length), the other half tell how well that
predicts.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
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
from minicore.forward import Hook, join_hooks
from minicore.model import Model

Array = np.ndarray
Row = dict[str, Any]

LENGTHS = (16, 32, 64, 128, 256)
HORIZON = 128  # tokens of continuation


def with_shift(ids: Array, other: Array, rng: np.random.Generator) -> tuple[Array, int]:
    """Return a passage that begins as another one, and where it changes over (at a power of 2, drawn)."""
    at = 2 ** int(rng.integers(3, int(math.log2(max(LENGTHS)))))  # 8 to half of the longest prompt
    return np.concatenate([other[:at], ids[: len(ids) - at]]), at


def counts_at(
    backend: Backend,
    ids: Array,
    layers: Sequence[int],
    alpha: float,
    lengths: Iterable[int],
    hooks: Mapping[str, Hook] | None = None,
) -> dict[int, Array]:  # -> length -> (n_layers, n_neurons) int64
    """Return f_alpha (eq. 3) of prefixes of a text, which is read once; ``hooks`` see the pass as well."""
    model = backend.model
    recording = Recording(["counts"], layers, model.config.n_neurons, alpha, marks=sorted(set(lengths)))
    counted = ((f"blocks.{layer}.mlp.hook_post", partial(recording.update, layer)) for layer in layers)
    both = join_hooks(chain((hooks or {}).items(), counted))
    backend.prefill(ids, model.new_cache(len(ids)), both)
    at = recording.at_mark
    return {mark: np.stack([at[mark][layer]["counts"] for layer in layers]) for mark in at}


def read(backend: Backend, ids: Array, layers: Sequence[int], alpha: float, horizon: int) -> list[Row]:
    """Read one passage and return, for each prompt length, score and recall of the prompt's set."""
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


def recall(prompt: Array, whole: Array) -> float:  # (n_layers, n_neurons) counts twice -> in [0, 1]
    """Return the share of C([s, g]) that C(s) holds, the mean over layers."""
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
        As :func:`passages`, or if there are fewer than 4 passages.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> from minicore.reproduce.material import sample_files
    >>> rows = measure(model, sample_files(), n_passages=4, layers=[4])
    >>> [row["n"] for row in rows if row["passage"] == 0]
    [16, 32, 64, 128, 256]
    """
    from tqdm import tqdm

    backend = NumpyBackend(model)
    found, others = passages(model, paths, max(LENGTHS) + horizon, n_passages, n_passages // 2, seed)
    if len(found) < 4:
        raise InputError(f"{len(found)} passages of {max(LENGTHS) + horizon} tokens, expected at least 4")
    layers = range(model.config.n_layers) if layers is None else layers
    rng, rows = np.random.default_rng(seed), []
    others = others or found[::-1]
    bar = tqdm(found, desc="stability", unit=" passages", leave=False, disable=not sys.stderr.isatty())
    for i, passage in enumerate(bar):
        ids, shift = passage.ids, None
        if i % 2:
            ids, shift = with_shift(ids, others[i // 2 % len(others)].ids, rng)
        rows += [
            {"passage": i, "name": passage.name, "shift": shift} | row
            for row in read(backend, ids, layers, alpha, horizon)
        ]
    return rows


FEATURES = {
    "score and length": ("score", "log2_n"),
    "score alone": ("score",),
    "length alone": ("log2_n",),
}


def design(rows: Sequence[Row], features: Sequence[str]) -> Array:  # -> (n_rows, 1 + n_features)
    """Return the regression's matrix: ones and the features."""
    columns = {"score": [row["score"] for row in rows], "log2_n": [math.log2(row["n"]) for row in rows]}
    return np.column_stack([np.ones(len(rows)), *(columns[name] for name in features)])


def calibrate(rows: Sequence[Row], wanted: float = WANTED) -> dict[str, Any]:
    """Fit recall on half of the passages and say how well the other half is predicted.

    Passages i with i % 4 < 2 calibrate, so that both halves hold as many with a change of topic.

    Returns
    -------
    dict
        For each set of features: ``weights`` (constant first), ``rmse``, ``correlation`` and ``accuracy``
        of saying whether recall reaches ``wanted``, all on the passages held out (``rmse_shifted``: on
        prompts whose last half holds the change of topic); ``always``: the accuracy of the more frequent
        answer.

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
    held = [row for row in rows if row["passage"] % 4 >= 2]
    seen, true = (np.array([row["recall"] for row in part]) for part in (fit, held))
    recent = np.array([row["shift"] is not None and row["n"] / 2 <= row["shift"] < row["n"] for row in held])
    good = true >= wanted
    out: dict[str, Any] = {
        "wanted": wanted,
        "n_fit": len(fit),
        "n_held_out": len(held),
        "n_shifted": int(recent.sum()),
        "always": float(max(good.mean(), 1 - good.mean())),
    }
    for name, features in FEATURES.items():
        weights = np.linalg.lstsq(design(fit, features), seen, rcond=None)[0]
        said = design(held, features) @ weights
        error = said - true
        out[name] = {
            "weights": weights.tolist(),
            "rmse": float(np.sqrt(np.mean(error**2))),
            "rmse_shifted": float(np.sqrt(np.mean(error[recent] ** 2))) if recent.any() else None,
            "bias_shifted": float(np.mean(error[recent])) if recent.any() else None,
            "correlation": float(np.corrcoef(said, true)[0, 1]),
            "accuracy": float(((said >= wanted) == good).mean()),
            "accuracy_shifted": float(((said >= wanted) == good)[recent].mean()) if recent.any() else None,
        }
    return out
