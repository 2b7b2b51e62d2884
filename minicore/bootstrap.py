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
    """Return exp of the mean over the last axis: perplexity from nats, a ratio from differences of nats.

    Examples
    --------
    >>> float(exp_mean(np.log([2.0, 8.0])).round(6))
    4.0
    """
    return np.exp(np.mean(x, axis=-1))


def rhos(drawn: Array) -> Array:  # (n_resamples, n, 2) -> (n_resamples,)
    """Return the rank correlation of the two columns of each resample."""
    return np.array([spearman(rows[:, 0], rows[:, 1]) for rows in drawn])


def bootstrap(
    x: Array,
    statistic: Callable[[Array], Array] = mean,
    *,
    seed: int = 0,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float, float]:  # (n, ...) -> 3 floats
    """Return a statistic of the rows of x, and its percentile interval from resampled rows.

    Parameters
    ----------
    x : (n, ...) array
        Each row is an independent observation, such as a text.
    statistic : callable
        From (n_resamples, n, ...) to (n_resamples,).
    seed : int
        Random seed; the same seed gives the same interval.
    n_resamples : int
        How often n rows are drawn with replacement.
    level : float
        Share of the resampled statistics that the interval covers.

    Returns
    -------
    estimate, low, high : float
        The statistic of x, and the ends of the interval (Efron & Tibshirani 1993, ch. 13).

    Raises
    ------
    InputError
        If x has no rows.

    Examples
    --------
    >>> bootstrap(np.array([1.0, 1.0, 1.0]))
    (1.0, 1.0, 1.0)
    """
    x = np.asarray(x)
    if not len(x):
        raise InputError("a bootstrap interval needs at least one row, and there is none")
    rows = np.random.default_rng(seed).integers(0, len(x), (n_resamples, len(x)))
    low, high = np.quantile(statistic(x[rows]), [(1 - level) / 2, (1 + level) / 2])
    return float(statistic(x[None])[0]), float(low), float(high)


def ranks(x: Array) -> Array:  # (n,) -> float64 (n,)
    """Return the rank of each entry, from 1 up; equal entries share the mean of their ranks.

    Examples
    --------
    >>> ranks(np.array([10, 30, 10]))
    array([1.5, 3. , 1.5])
    """
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse]


def spearman(x: Array, y: Array) -> float:  # (n,), (n,) -> in [-1, 1]
    """Return Spearman's rank correlation; 0 if all entries of one side are equal.

    Examples
    --------
    >>> spearman(np.array([1, 2, 3]), np.array([1, 4, 9])), spearman(np.array([1, 2]), np.array([5, 5]))
    (1.0, 0.0)
    """
    if np.isnan(x).any() or np.isnan(y).any():
        raise InputError("the rank correlation of NaN is not defined, expected numbers")
    a, b = ranks(x) - (len(x) + 1) / 2, ranks(y) - (len(y) + 1) / 2
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale else 0.0
