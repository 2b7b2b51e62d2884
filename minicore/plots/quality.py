"""Quality against the fraction of neurons kept, and core similarity against similarity of meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from minicore.bootstrap import bootstrap, rhos
from minicore.errors import InputError, unknown
from minicore.plots.axes import (
    add_legend,
    check_length,
    checked_array,
    new_axes,
    open_frame,
    plain_log,
    series_style,
    text_color,
)

Array = np.ndarray


@dataclass(frozen=True)
class Measure:
    """A measure of an evaluation: axis label, whether its axis is logarithmic, and the value of dense."""

    label: str
    logarithmic: bool = False
    dense: float | None = None


MEASURES = {
    "ratio": Measure("perplexity relative to dense", logarithmic=True, dense=1.0),
    "perplexity": Measure("perplexity", logarithmic=True),
    "kl": Measure("KL divergence from dense (nats a token)", logarithmic=True),
    "agreement": Measure("tokens with dense's first choice", dense=1.0),
    "recall": Measure("recall of the core of prompt and continuation"),
    "common_prefix": Measure("tokens generated as dense does"),
}


def quality_curves(
    results: Sequence[Mapping[str, Any]] | Mapping[str, Any],
    measure: str = "ratio",
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw quality against the fraction of neurons kept, with intervals: one line per predictor (fig. 6).

    Parameters
    ----------
    results : sequence of dict, or mapping of str to (n, 4) array
        ``settings`` of a report of :func:`minicore.evaluation.quality.evaluate`. Or an array per predictor,
        with rows of fraction kept, estimate, and low and high end of its interval.
    measure : str
        The measure of a report to draw, and the label of the axis: ``ratio``, ``perplexity``, ``kl``,
        ``agreement``, ``recall`` or ``common_prefix``.
    ax : Axes or None
        Axes to draw on; None makes a figure.

    Returns
    -------
    Axes
        Perplexities and divergences have a logarithmic axis.

    Raises
    ------
    InputError
        If the measure is unknown or was not measured, or an array has the wrong shape or contains NaN.

    Examples
    --------
    >>> griffin = [[0.2, 77, 70, 85], [0.4, 7.2, 6.9, 7.5], [0.6, 2.6, 2.5, 2.7]]
    >>> ax = quality_curves({"griffin": griffin})
    >>> ax.get_ylabel(), ax.get_yscale()
    ('perplexity relative to dense', 'log')
    """
    if measure not in MEASURES:
        raise unknown("measure", measure, MEASURES)
    shown = MEASURES[measure]
    curves = results if isinstance(results, Mapping) else curves_of(results, measure)
    if not curves:
        raise InputError(f"no result has {measure}: there is nothing to draw")
    tables = {name: checked_array(f"results of {name}", rows, "(n, 4)") for name, rows in curves.items()}
    for name, table in tables.items():
        if table.shape[1] != 4:
            raise InputError(f"results of {name} have shape {table.shape}, expected (n, 4)")
        if shown.logarithmic and table[:, 1:].min() < 0:
            raise InputError(f"results of {name}: {table[:, 1:].min():g}, expected {shown.label} above 0")
    ax = new_axes(7.5 if len(tables) > 5 else 6.5, 4) if ax is None else ax
    for i, (name, table) in enumerate(tables.items()):
        x, y, low, high = table[np.argsort(table[:, 0], kind="stable")].T
        style = series_style(ax, i)
        ax.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
        ax.plot(x, y, label=name, markersize=5, **style)
    if shown.logarithmic:
        ax.set_yscale("log")
        plain_log(ax.yaxis)
    if shown.dense is not None:
        ax.axhline(shown.dense, color=text_color(ax), linewidth=1, linestyle="--", label="dense")
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if measure in ("agreement", "recall"):
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set(xlabel="FFN neurons kept", ylabel=shown.label)
    add_legend(ax)
    open_frame(ax)
    return ax


def curves_of(rows: Sequence[Mapping[str, Any]], measure: str) -> dict[str, list[list[float]]]:
    """Return the curves in the rows of a report, without dense."""
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
    """Draw the core similarity of pairs of texts against their similarity of meaning (table 1).

    Parameters
    ----------
    semantic : (n_pairs,) array
        Similarity of meaning on any scale, judged by people or from embeddings.
    core : (n_pairs,) array
        Similarity of core neurons, such as Jaccard similarity.
    rho : (estimate, low, high) or None
        Spearman's rho and its interval; None computes them, the interval by bootstrap over pairs.
    ax : Axes or None
        Axes to draw on; None makes a figure.

    Returns
    -------
    Axes
        The title states rho.

    Raises
    ------
    InputError
        If the lengths differ, there are fewer than 3 pairs, or a value is NaN.

    Examples
    --------
    >>> ax = similarity_scatter([0, 1, 2, 3, 4, 5], [0.1, 0.2, 0.2, 0.3, 0.4, 0.5])
    >>> ax.get_title()
    "Spearman's ρ 0.99 [0.87, 1.00], 6 pairs"
    """
    x, y = checked_array("semantic", semantic, "(n_pairs,)"), checked_array("core", core, "(n_pairs,)")
    check_length("core", y, len(x), "values of semantic")
    if len(x) < 3:
        raise InputError(f"{len(x)} pairs are too few for a rank correlation, expected at least 3")
    if rho is None:
        rho = bootstrap(np.stack([x, y], axis=1), rhos, n_resamples=1000)
    ax = new_axes(5.5, 4.5) if ax is None else ax
    ax.scatter(
        x, y, s=18, color=series_style(ax, 0)["color"], alpha=max(0.3, min(0.85, 150 / len(x))), linewidths=0
    )
    ax.set(xlabel="similarity of meaning", ylabel="similarity of core neurons (Jaccard)")
    ax.set_title(f"Spearman's ρ {rho[0]:.2f} [{rho[1]:.2f}, {rho[2]:.2f}], {len(x)} pairs", fontsize=11)
    open_frame(ax)
    return ax
