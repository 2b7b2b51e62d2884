"""Bootstrap intervals, and the statistics they are taken of: means, perplexities, rank correlation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minicore.errors import InputError

Array = np.ndarray


def mean(x: Array) -> Array:  # (..., n) -> (...)
    """Return the mean over the last axis."""
    return np.mean(x, axis=-1)


def exp_mean(x: Array) -> Array:  # (..., n) -> (...)
    """Return exp of the mean over the last axis: of nats a perplexity, of their difference a ratio.

    Examples
    --------
    >>> float(exp_mean(np.log([2.0, 8.0])).round(6))
    4.0
    """
    return np.exp(np.mean(x, axis=-1))


def rhos(drawn: Array) -> Array:  # (n_resamples, n, 2) -> (n_resamples,)
    """Return the rank correlation of each resample's columns."""
    return np.array([spearman(rows[:, 0], rows[:, 1]) for rows in drawn])


def bootstrap(
    x: Array,
    statistic: Callable[[Array], Array] = mean,
    *,
    seed: int = 0,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float, float]:  # (n, ...) -> 3 floats
    """Return a statistic of the rows of x and its percentile interval when rows are drawn anew.

    Parameters
    ----------
    x : (n, ...) array
        A row an independent observation, such as a text.
    statistic : callable
        From (n_resamples, n, ...) to (n_resamples,).
    seed : int
        Of the generator that draws; the same seed gives the same interval.
    n_resamples : int
        Times that n rows are drawn with replacement.
    level : float
        Share of the resampled statistics that the interval covers.

    Returns
    -------
    estimate, low, high : float
        The statistic of x and the interval's ends (Efron & Tibshirani 1993, ch. 13).

    Examples
    --------
    >>> bootstrap(np.array([1.0, 1.0, 1.0]))
    (1.0, 1.0, 1.0)
    """
    x = np.asarray(x)
    if not len(x):
        raise InputError("there is nothing to draw a bootstrap interval from, expected at least one row")
    rows = np.random.default_rng(seed).integers(0, len(x), (n_resamples, len(x)))
    low, high = np.quantile(statistic(x[rows]), [(1 - level) / 2, (1 + level) / 2])
    return float(statistic(x[None])[0]), float(low), float(high)


def ranks(x: Array) -> Array:  # (n,) -> float64 (n,)
    """Return each entry's rank from 1 upwards; equal entries share the mean of their ranks.

    Examples
    --------
    >>> ranks(np.array([10, 30, 10]))
    array([1.5, 3. , 1.5])
    """
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse]


def spearman(x: Array, y: Array) -> float:  # (n,), (n,) -> in [-1, 1]
    """Return the correlation of the ranks; 0 where one side has no spread to correlate with.

    Examples
    --------
    >>> spearman(np.array([1, 2, 3]), np.array([1, 4, 9])), spearman(np.array([1, 2]), np.array([5, 5]))
    (1.0, 0.0)
    """
    if np.isnan(x).any() or np.isnan(y).any():
        raise InputError("a rank correlation of NaN is not defined, expected numbers")
    a, b = ranks(x) - (len(x) + 1) / 2, ranks(y) - (len(y) + 1) / 2
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale else 0.0
