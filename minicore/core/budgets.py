"""From scores to sets: how many neurons each layer keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from minicore.core.neurons import check_fraction, core_from_scores
from minicore.errors import InputError

Array = np.ndarray

Beta = float | str | Sequence[float]


def layer_betas(beta: Beta, n: int) -> list[float]:
    """Return the fraction kept in each of n layers: a constant, a range ``"0.2:0.6"``, or one a layer.

    A range runs evenly from the first restricted layer to the last.

    Raises
    ------
    InputError
        If a fraction is not in (0, 1], or there are not n of them.

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
        raise InputError(f"beta has {len(betas)} values, expected one for each of the {n} layers restricted")
    return betas


def plain(beta: Beta) -> float | str | list[float]:
    """Return beta as JSON can hold it."""
    return beta if isinstance(beta, str) else np.asarray(beta, float).tolist()


def uniform(scores: Mapping[int, Array], betas: Sequence[float]) -> dict[int, Array]:
    """Keep each layer's own floor(beta * n_neurons) neurons, as the paper does."""
    return {layer: core_from_scores(s, beta) for (layer, s), beta in zip(scores.items(), betas, strict=True)}


def share(scores: Mapping[int, Array], betas: Sequence[float]) -> dict[int, Array]:
    """Keep as many neurons in all as `uniform` would, where they capture most.

    Say that dropping neurons costs a layer the share of its scores that they held, and that the layers'
    costs add up. With x_ln in {0, 1} for neuron n of layer l and s_ln its share (a layer's shares add up
    to 1), we maximise the sum of x_ln * s_ln under the budget sum of x_ln = B. All neurons cost the same,
    so the best choice is the B largest shares of all layers together: a layer whose scores lie on few
    neurons gives up places to one whose scores are spread out. Equal shares: the lower layer first, then
    the lower index.
    """
    for layer, s in scores.items():
        if np.isnan(s).any():
            raise InputError(f"scores of layer {layer} hold NaN, first at neuron {int(np.isnan(s).argmax())}")
    pooled = np.stack([s / (s.sum() or 1) for s in scores.values()]).astype(np.float64)
    places = sum(math.floor(beta * pooled.shape[1]) for beta in betas)
    best = np.argsort(-pooled, axis=None, kind="stable")[:places]
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
