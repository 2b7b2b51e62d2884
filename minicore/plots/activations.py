"""Activations over tokens as a heat map, and core frequencies as a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle

from minicore.errors import InputError
from minicore.plots.axes import (
    add_colorbar,
    background,
    check_length,
    checked_array,
    color_scale,
    inches,
    neuron_ids,
    new_axes,
    series_style,
    text_color,
    ticks_that_fit,
)
from minicore.plots.text import plain_font, printable

Array = np.ndarray


def activation_map(
    a: Any,
    tokens: Sequence[str] | None = None,
    neurons: Sequence[int] | Array | None = None,
    *,
    core: Any = None,
    most: int = 40,
    ax: Axes | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw activations as a heat map: one row per neuron, one column per token.

    Parameters
    ----------
    a : (n_tokens, n_neurons) array
        FFN activations of one layer, such as the hook ``mlp.hook_post``.
    tokens : (n_tokens,) sequence of str or None
        Labels of the columns; None numbers them.
    neurons : (n,) sequence of int or None
        Neurons to show; None is the ``most`` neurons with the largest mean ``|a|``, ids ascending.
    core : (n_tokens, n_neurons) bool array or None
        Cells to mark with a dot, such as the result of :func:`minicore.token_core`.
    most : int
        Number of rows if ``neurons`` is None.
    ax : Axes or None
        Axes to draw on; None makes a figure.
    colorbar : bool
        Whether to draw a color bar.

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        If an array has the wrong shape or contains NaN, or an id is not a neuron of the layer.

    Examples
    --------
    >>> ax = activation_map([[0.0, 2.0, -1.0], [1.0, 0.5, 0.0]], tokens=["Hello", " world"])
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['Hello', '·world']
    """
    a = checked_array("activations", a, "(n_tokens, n_neurons)")
    n_tokens, n_neurons = a.shape
    label = "neuron"
    if neurons is None:
        if most < 1:
            raise InputError(f"most is {most}, expected at least one neuron to show")
        neurons = np.sort(np.argsort(-np.abs(a).mean(axis=0), kind="stable")[:most])
        label += f" ({most} of {n_neurons}, by mean |a|)" if most < n_neurons else ""
    rows = neuron_ids("neurons", neurons, n_neurons)
    if tokens is not None:
        check_length("tokens", tokens, n_tokens, "rows of the activations")
    if ax is None:
        ax = new_axes(min(2.5 + 0.22 * n_tokens, 14), min(1.5 + 0.15 * len(rows), 10))
    drawn = a[:, rows].T
    image = ax.imshow(drawn, aspect="auto", interpolation="nearest", **color_scale(ax, drawn))
    if core is not None:
        core = np.asarray(core)
        if core.shape != a.shape or core.dtype != bool:
            raise InputError(f"core has shape {core.shape} of {core.dtype}, expected {a.shape} of bool")
        y, x = np.nonzero(core[:, rows].T)
        ax.scatter(
            x, y, s=9, color=[background(ax)], edgecolors=text_color(ax), linewidths=0.6, label="core neuron"
        )
    width, height = inches(ax)
    shown = ticks_that_fit(n_tokens, width)
    if tokens is None:
        ax.set_xticks(shown)
    else:
        labels = [printable(tokens[i], plain_font()).replace(" ", "·") for i in shown]
        ax.set_xticks(shown, labels, rotation=90, fontsize=8, parse_math=False)
    shown = ticks_that_fit(len(rows), height, 0.13)
    ax.set_yticks(shown, [str(i) for i in rows[shown]], fontsize=8)
    ax.set_xlabel("token")
    ax.set_ylabel(label)
    if colorbar:
        add_colorbar(ax, image, "activation")
    return ax


def frequency_grid(
    counts: Any,
    n_tokens: int | None = None,
    neurons: int | Sequence[int] | Array | None = 256,
    *,
    core: Any = None,
    vmax: float | None = None,
    ax: Axes | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw a grid of how often each neuron of a layer is a core neuron of a token (figs. 3 and 12).

    Parameters
    ----------
    counts : (n_neurons,) array
        f_alpha of eq. 3: the number of tokens whose core contains the neuron, such as a row of
        :func:`minicore.core.stability.prefix_counts`.
    n_tokens : int or None
        Length of the text, to draw fractions of its tokens; None draws the counts.
    neurons : int, (n,) sequence of int or None
        Number of neurons to show, from the first on (256 give the paper's 16 x 16), or their ids; None is the
        whole layer.
    core : (n_core,) array of int or None
        Ids of neurons to frame, such as the result of :func:`minicore.sentence_core`.
    vmax : float or None
        End of the color scale, to compare grids; None is the largest value.
    ax : Axes or None
        Axes to draw on; None makes a figure.
    colorbar : bool
        Whether to draw a color bar.

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        If counts have the wrong shape, contain NaN or exceed n_tokens, or an id is not a neuron of the layer.

    Examples
    --------
    >>> ax = frequency_grid(np.arange(80), neurons=None)
    >>> ax.images[0].get_array().shape
    (8, 10)
    """
    counts = checked_array("counts", counts, "(n_neurons,)")
    if counts.min() < 0 or (n_tokens is not None and counts.max() > n_tokens):
        most = "counts of 0 or more" if n_tokens is None else f"0 to n_tokens, {n_tokens}"
        raise InputError(f"counts run from {counts.min():g} to {counts.max():g}, expected {most}")
    if neurons is None or isinstance(neurons, int | np.integer):
        n = len(counts) if neurons is None else min(int(neurons), len(counts))
        in_order, neurons = True, np.arange(n)
    else:
        in_order = False
    ids = neuron_ids("neurons", neurons, len(counts))
    n_rows, n_columns = grid_shape(len(ids))
    drawn = np.full(n_rows * n_columns, np.nan)
    drawn[: len(ids)] = counts[ids] / (n_tokens or 1)
    ax = new_axes(5, 1 + 4 * n_rows / n_columns) if ax is None else ax
    colors = color_scale(ax, drawn, vmax)
    image = ax.imshow(drawn.reshape(n_rows, n_columns), interpolation="nearest", **colors)
    if core is not None:
        at = np.flatnonzero(np.isin(ids, neuron_ids("core", core, len(counts))))
        frames = [Rectangle((i % n_columns - 0.5, i // n_columns - 0.5), 1, 1) for i in at]
        edge = series_style(ax, 1)["color"]
        ax.add_collection(PatchCollection(frames, facecolor="none", edgecolor=edge, linewidth=1.2))
    if in_order:
        shown = ticks_that_fit(n_rows, inches(ax)[1], 0.3)
        ax.set_yticks(shown, [str(i * n_columns) for i in shown], fontsize=8)
        ax.set_xticks(np.unique([0, n_columns // 2, n_columns - 1]))
        ax.tick_params(axis="x", labelsize=8)
        ax.set_ylabel("neuron at the row's start")
        ax.set_xlabel("+ neurons along the row")
    else:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_xlabel(f"{len(ids)} neurons, as given")
    if colorbar:
        add_colorbar(ax, image, "tokens with it as core" if n_tokens is None else "share of tokens")
    return ax


def grid_shape(n: int) -> tuple[int, int]:
    """Return rows and columns of a grid for n cells: an exact divisor pair if it is at most 2 : 1."""
    for n_rows in range(math.isqrt(n), 0, -1):
        if n % n_rows == 0 and n // n_rows <= 2 * n_rows:
            return n_rows, n // n_rows
    n_columns = math.ceil(math.sqrt(n))
    return math.ceil(n / n_columns), n_columns
