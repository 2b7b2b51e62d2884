"""Activations of neurons over tokens: as a map, and as a grid of frequencies."""

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
    inches,
    ink,
    look,
    neuron_ids,
    new_axes,
    numbers,
    paper,
    same_length,
    scale,
    thin,
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
    """Draw activations as a heat map, a row a neuron and a column a token.

    Parameters
    ----------
    a : (n_tokens, n_neurons) array
        FFN activations of one layer, as ``mlp.hook_post`` has them.
    tokens : (n_tokens,) sequence of str or None
        What to write under the columns; None numbers them.
    neurons : (n,) sequence of int or None
        The rows; None shows the ``most`` neurons of largest mean ``|a|``, ids ascending.
    core : (n_tokens, n_neurons) bool array or None
        Cells to mark with a dot, such as :func:`minicore.token_core` gives.
    most : int
        Rows where ``neurons`` is None.
    ax : Axes or None
        Where to draw; None makes a figure.
    colorbar : bool
        Whether to draw one.

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        If an array has another shape or holds NaN, or an id is none of the layer's.

    Examples
    --------
    >>> ax = activation_map([[0.0, 2.0, -1.0], [1.0, 0.5, 0.0]], tokens=["Hello", " world"])
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['Hello', '·world']
    """
    a = numbers("activations", a, "(n_tokens, n_neurons)")
    n_tokens, n_neurons = a.shape
    what = "neuron"
    if neurons is None:
        if most < 1:
            raise InputError(f"most is {most}, expected at least one neuron to show")
        neurons = np.sort(np.argsort(-np.abs(a).mean(axis=0), kind="stable")[:most])
        what += f" ({most} of {n_neurons}, by mean |a|)" if most < n_neurons else ""
    rows = neuron_ids("neurons", neurons, n_neurons)
    if tokens is not None:
        same_length("tokens", tokens, n_tokens, "rows of the activations")
    if ax is None:
        ax = new_axes(min(2.5 + 0.22 * n_tokens, 14), min(1.5 + 0.15 * len(rows), 10))
    drawn = a[:, rows].T
    image = ax.imshow(drawn, aspect="auto", interpolation="nearest", **scale(ax, drawn))
    if core is not None:
        core = np.asarray(core)
        if core.shape != a.shape or core.dtype != bool:
            raise InputError(f"core has shape {core.shape} of {core.dtype}, expected {a.shape} of bool")
        y, x = np.nonzero(core[:, rows].T)
        ax.scatter(x, y, s=9, color=[paper(ax)], edgecolors=ink(ax), linewidths=0.6, label="core neuron")
    width, height = inches(ax)
    shown = thin(n_tokens, width)
    if tokens is None:
        ax.set_xticks(shown)
    else:
        labels = [printable(tokens[i], plain_font()).replace(" ", "·") for i in shown]
        ax.set_xticks(shown, labels, rotation=90, fontsize=8, parse_math=False)
    shown = thin(len(rows), height, 0.13)
    ax.set_yticks(shown, [str(i) for i in rows[shown]], fontsize=8)
    ax.set_xlabel("token")
    ax.set_ylabel(what)
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
    """Draw how often each neuron of a layer is a token's core neuron, as a grid (figs. 3 and 12).

    Parameters
    ----------
    counts : (n_neurons,) array
        f_alpha of eq. 3: tokens whose core holds the neuron; a row of
        :func:`minicore.core.stability.prefix_counts`.
    n_tokens : int or None
        Length of the text, to draw shares of its tokens; None draws the counts.
    neurons : int, (n,) sequence of int or None
        How many neurons, from the first on (256 make the paper's 16 x 16), or which; None is the whole
        layer.
    core : (n_core,) array of int or None
        Ids to frame, such as :func:`minicore.sentence_core` gives.
    vmax : float or None
        Where the colours end, to compare grids; None is the largest value drawn.
    ax : Axes or None
        Where to draw; None makes a figure.
    colorbar : bool
        Whether to draw one.

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        If counts have another shape, hold NaN or exceed n_tokens, or an id is none of the layer's.

    Examples
    --------
    >>> ax = frequency_grid(np.arange(80), neurons=None)
    >>> ax.images[0].get_array().shape
    (8, 10)
    """
    counts = numbers("counts", counts, "(n_neurons,)")
    if counts.min() < 0 or (n_tokens is not None and counts.max() > n_tokens):
        most = "counts of 0 or more" if n_tokens is None else f"0 to n_tokens, {n_tokens}"
        raise InputError(f"counts run from {counts.min():g} to {counts.max():g}, expected {most}")
    in_order = neurons is None or isinstance(neurons, int | np.integer)
    if in_order:
        n = len(counts) if neurons is None else min(int(neurons), len(counts))  # type: ignore[arg-type]
        ids = neuron_ids("neurons", np.arange(n), len(counts))
    else:
        ids = neuron_ids("neurons", neurons, len(counts))
    n_rows, n_columns = grid_shape(len(ids))
    drawn = np.full(n_rows * n_columns, np.nan)
    drawn[: len(ids)] = counts[ids] / (n_tokens or 1)
    ax = new_axes(5, 1 + 4 * n_rows / n_columns) if ax is None else ax
    colours = scale(ax, drawn, vmax)
    image = ax.imshow(drawn.reshape(n_rows, n_columns), interpolation="nearest", **colours)
    if core is not None:
        at = np.flatnonzero(np.isin(ids, neuron_ids("core", core, len(counts))))
        frames = [Rectangle((i % n_columns - 0.5, i // n_columns - 0.5), 1, 1) for i in at]
        edge = look(ax, 1)["color"]
        ax.add_collection(PatchCollection(frames, facecolor="none", edgecolor=edge, linewidth=1.2))
    if in_order:
        shown = thin(n_rows, inches(ax)[1], 0.3)
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
    """Return rows and columns for n cells: without a remainder if that is at most twice as wide as high."""
    for n_rows in range(math.isqrt(n), 0, -1):
        if n % n_rows == 0 and n // n_rows <= 2 * n_rows:
            return n_rows, n // n_rows
    n_columns = math.ceil(math.sqrt(n))
    return math.ceil(n / n_columns), n_columns
