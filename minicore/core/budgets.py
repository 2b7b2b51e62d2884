"""Budgets: how many neurons each layer keeps, and the sets that follow from scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from minicore.core.neurons import check_fraction, core_from_scores
from minicore.errors import InputError

Array = np.ndarray

Beta = float | str | Sequence[float]


def layer_betas(beta: Beta, n: int) -> list[float]:
    """Return the fraction kept in each of n layers.

    Parameters
    ----------
    beta : float, str or sequence of float
        One fraction for all layers, a range ``"0.2:0.6"`` that is interpolated linearly from the first
        restricted layer to the last, or one fraction per layer.
    n : int
        Number of restricted layers.

    Raises
    ------
    InputError
        If a fraction is not in (0, 1], or a sequence does not have n of them.

    Examples
    --------
    >>> layer_betas(0.4, 3), layer_betas("0.25:0.75", 3)
    ([0.4, 0.4, 0.4], [0.25, 0.5, 0.75])
    """
    if isinstance(beta, str):
        try:
            ends = [float(part) for part in beta.split(":")]
        except ValueError:
            ends = []
        if len(ends) not in (1, 2):
            raise InputError(f"beta is {beta!r}, expected a fraction such as 0.4 or a range such as 0.2:0.6")
        first, last = (check_fraction("beta", end) for end in (ends[0], ends[-1]))
        return [float(one) for one in np.linspace(first, last, n)]
    if isinstance(beta, int | float | np.number):
        return [check_fraction("beta", beta)] * n
    betas = [check_fraction("beta", one) for one in beta]
    if len(betas) != n:
        raise InputError(f"beta has {len(betas)} values, expected one for each of the {n} restricted layers")
    return betas


def plain(beta: Beta) -> float | str | list[float]:
    """Return beta as a JSON value."""
    return beta if isinstance(beta, str) else np.asarray(beta, float).tolist()


def uniform(scores: Mapping[int, Array], betas: Sequence[float]) -> dict[int, Array]:
    """Keep the top floor(beta * n_neurons) neurons of each layer, as the paper does."""
    return {layer: core_from_scores(s, beta) for (layer, s), beta in zip(scores.items(), betas, strict=True)}


def share(scores: Mapping[int, Array], betas: Sequence[float]) -> dict[int, Array]:
    """Keep as many neurons in total as `uniform`, distributed over layers by their share of the scores.

    The share s_ln of neuron n in layer l is its score over the sum of the layer's scores. Assume that
    dropping neurons costs a layer their shares, and that costs add up over layers. Then the best set of B
    neurons maximizes the sum of the kept shares, and all neurons have the same weight in the budget, so it
    consists of the B largest shares of all layers. A layer with few high scores keeps fewer neurons than a
    layer whose scores are spread out. Of equal shares the lower layer is kept first, then the lower index.
    """
    for layer, s in scores.items():
        if np.isnan(s).any():
            raise InputError(
                f"scores of layer {layer} contain NaN, first at neuron {int(np.isnan(s).argmax())}"
            )
    pooled = np.stack([s / (s.sum() or 1) for s in scores.values()]).astype(np.float64)
    budget = sum(math.floor(beta * pooled.shape[1]) for beta in betas)
    best = np.argsort(-pooled, axis=None, kind="stable")[:budget]
    kept = np.zeros(pooled.size, bool)
    kept[best] = pooled.ravel()[best] > 0
    return {
        layer: np.flatnonzero(row).astype(np.int32)
        for layer, row in zip(scores, kept.reshape(pooled.shape), strict=True)
    }


BUDGETS: dict[str, Callable[[Mapping[int, Array], Sequence[float]], dict[int, Array]]] = {
    "uniform": uniform,
    "share": share,
}
