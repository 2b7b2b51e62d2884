"""What keeping less costs, and whether core neurons follow meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from minicore.bootstrap import bootstrap, rhos
from minicore.errors import InputError, unknown
from minicore.plots.axes import add_legend, ink, look, new_axes, numbers, open_frame, plain_log, same_length

Array = np.ndarray

# What a study measures: label, whether its scale is logarithmic, and where dense is.
MEASURES: dict[str, tuple[str, bool, float | None]] = {
    "ratio": ("perplexity over dense", True, 1.0),
    "perplexity": ("perplexity", True, None),
    "kl": ("KL divergence from dense (nats a token)", True, None),
    "agreement": ("tokens with dense's first choice", False, 1.0),
    "recall": ("recall of the core of prompt and continuation", False, None),
    "common_prefix": ("tokens generated as dense does", False, None),
}


def quality_curves(
    results: Sequence[Mapping[str, Any]] | Mapping[str, Any],
    measure: str = "ratio",
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw quality against the fraction of neurons kept, a line a predictor, with intervals (fig. 6).

    Parameters
    ----------
    results : sequence of dict, or mapping of str to (n, 4) array
        ``settings`` of a report of :func:`minicore.evaluation.quality.evaluate`; or for each predictor rows
        of fraction kept, estimate, and the low and high end of its interval.
    measure : str
        What is drawn of a report, and how the axis is labelled: ``ratio``, ``perplexity``, ``kl``,
        ``agreement``, ``recall`` or ``common_prefix``.
    ax : Axes or None
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        Perplexities and divergences on a logarithmic axis.

    Raises
    ------
    InputError
        If the measure is unknown or was not measured, or an array has another shape or holds NaN.

    Examples
    --------
    >>> griffin = [[0.2, 77, 70, 85], [0.4, 7.2, 6.9, 7.5], [0.6, 2.6, 2.5, 2.7]]
    >>> ax = quality_curves({"griffin": griffin})
    >>> ax.get_ylabel(), ax.get_yscale()
    ('perplexity over dense', 'log')
    """
    if measure not in MEASURES:
        raise unknown("measure", measure, MEASURES)
    label, logarithmic, dense = MEASURES[measure]
    curves = results if isinstance(results, Mapping) else curves_of(results, measure)
    if not curves:
        raise InputError(f"no result has {measure}: there is nothing to draw")
    tables = {name: numbers(f"results of {name}", rows, "(n, 4)") for name, rows in curves.items()}
    for name, table in tables.items():
        if table.shape[1] != 4:
            raise InputError(f"results of {name} have shape {table.shape}, expected (n, 4)")
        if logarithmic and table[:, 1:].min() < 0:
            raise InputError(f"results of {name} hold {table[:, 1:].min():g}, expected {label} above 0")
    ax = new_axes(7.5 if len(tables) > 5 else 6.5, 4) if ax is None else ax
    for i, (name, table) in enumerate(tables.items()):
        x, y, low, high = table[np.argsort(table[:, 0], kind="stable")].T
        style = look(ax, i)
        ax.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
        ax.plot(x, y, label=name, markersize=5, **style)
    if logarithmic:
        ax.set_yscale("log")
        plain_log(ax.yaxis)
    if dense is not None:
        ax.axhline(dense, color=ink(ax), linewidth=1, linestyle="--", label="dense")
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if measure in ("agreement", "recall"):
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set(xlabel="FFN neurons kept", ylabel=label)
    add_legend(ax)
    open_frame(ax)
    return ax


def curves_of(rows: Sequence[Mapping[str, Any]], measure: str) -> dict[str, list[list[float]]]:
    """Return the curves in the rows of a study; dense, a setting that keeps all, is left out."""
    curves: dict[str, list[list[float]]] = {}
    for row in rows:
        if row["predictor"] == "dense" or row.get(measure) is None:
            continue
        name = row["predictor"] + ("" if row.get("budget", "uniform") == "uniform" else f" ({row['budget']})")
        curves.setdefault(name, []).append([row["kept"][0], *row[measure]])
    return curves


def similarity_scatter(
    semantic: Any,
    core: Any,
    *,
    rho: tuple[float, float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the core-neuron similarity of pairs of texts against their similarity of meaning (table 1).

    Parameters
    ----------
    semantic : (n_pairs,) array
        Similarity of meaning, on any scale: of people, or of an embedding.
    core : (n_pairs,) array
        Similarity of core neurons, such as Jaccard's.
    rho : (estimate, low, high) or None
        Spearman's rho and its interval; None computes both, the interval by bootstrap over pairs.
    ax : Axes or None
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        Rho is in the title.

    Raises
    ------
    InputError
        If there are not as many of both, fewer than 3 pairs, or a value is NaN.

    Examples
    --------
    >>> ax = similarity_scatter([0, 1, 2, 3, 4, 5], [0.1, 0.2, 0.2, 0.3, 0.4, 0.5])
    >>> ax.get_title()
    "Spearman's ρ 0.99 [0.87, 1.00], 6 pairs"
    """
    x, y = numbers("semantic", semantic, "(n_pairs,)"), numbers("core", core, "(n_pairs,)")
    same_length("core", y, len(x), "values of semantic")
    if len(x) < 3:
        raise InputError(f"{len(x)} pairs have no rank correlation to speak of, expected at least 3")
    if rho is None:
        rho = bootstrap(np.stack([x, y], axis=1), rhos, n_resamples=1000)
    ax = new_axes(5.5, 4.5) if ax is None else ax
    ax.scatter(x, y, s=18, color=look(ax, 0)["color"], alpha=max(0.3, min(0.85, 150 / len(x))), linewidths=0)
    ax.set(xlabel="similarity of meaning", ylabel="similarity of core neurons (Jaccard)")
    ax.set_title(f"Spearman's ρ {rho[0]:.2f} [{rho[1]:.2f}, {rho[2]:.2f}], {len(x)} pairs", fontsize=11)
    open_frame(ax)
    return ax
