"""Core sets: overlap, stability, clusters by topic, and change over a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import MaxNLocator

from minicore.core.neurons import CoreSet, jaccard
from minicore.core.similarity import core_vector
from minicore.errors import InputError
from minicore.plots.axes import (
    add_colorbar,
    add_legend,
    check_length,
    checked_array,
    color_scale,
    inches,
    new_axes,
    open_frame,
    readable_on,
    sequential,
    series_style,
    text_color,
    ticks_that_fit,
)
from minicore.projection import METHODS, project

Array = np.ndarray


def overlap_matrix(
    sets: CoreSet | Mapping[str, CoreSet] | Sequence[CoreSet] | Array,
    names: Sequence[str] | None = None,
    *,
    layer: int | None = None,
    ax: Axes | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw the pairwise overlap of core sets: of sentences, predictors or layers.

    Parameters
    ----------
    sets : mapping of str to CoreSet, sequence of CoreSet, CoreSet, or (n, n) array
        Sets to compare by Jaccard similarity, averaged over layers. The layers of a single CoreSet are
        compared with each other; equal ids in different layers are unrelated, so this shows chance overlap.
        An array of overlaps in [0, 1] is drawn as it is.
    names : (n,) sequence of str or None
        Labels of rows and columns; None uses the keys, the layers, or numbers.
    layer : int or None
        Compare only this layer.
    ax : Axes or None
        Axes to draw on; None makes a figure.
    colorbar : bool
        Whether to draw a color bar.

    Returns
    -------
    Axes
        Up to 12 sets, each cell also shows its value.

    Raises
    ------
    InputError
        If sets belong to different models or do not restrict the layer, or an array is not square in [0, 1].

    Examples
    --------
    >>> one, other = (CoreSet({0: np.array(ids)}, 8, 1) for ids in ([0, 1, 2], [1, 2, 3]))
    >>> overlap_matrix({"one": one, "other": other}).images[0].get_array().data
    array([[1. , 0.5],
           [0.5, 1. ]])
    """
    if isinstance(sets, Mapping):
        names, sets = names or list(sets), list(sets.values())
    if isinstance(sets, CoreSet):
        names = names or [f"layer {i}" for i in sets]
    matrix, label = overlaps(sets, layer)
    n = len(matrix)
    names = [str(i) for i in range(n)] if names is None else list(names)
    check_length("names", names, n, "sets")
    ax = new_axes(min(2.8 + 0.45 * n, 9), min(1.8 + 0.45 * n, 8)) if ax is None else ax
    colors = color_scale(ax, matrix, 1.0)
    image = ax.imshow(matrix, interpolation="nearest", **colors)
    if n <= 12:
        for (i, j), value in np.ndenumerate(matrix):
            color = readable_on(colors["cmap"](value))
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    width, height = inches(ax)
    for axis, room in ((ax.xaxis, width), (ax.yaxis, height)):
        shown = ticks_that_fit(n, room, 0.18)
        axis.set_ticks(shown, [names[i] for i in shown], fontsize=8)
    if max(len(name) for name in names) * n > 30:
        ax.tick_params(axis="x", rotation=90)
    if colorbar:
        add_colorbar(ax, image, label)
    return ax


def overlaps(sets: CoreSet | Sequence[CoreSet] | Array, layer: int | None) -> tuple[Array, str]:
    """Return the (n, n) matrix for :func:`overlap_matrix`, and the name of its values."""
    label = "Jaccard similarity"
    if isinstance(sets, CoreSet):
        if layer is not None:
            raise InputError(
                f"layer is {layer}, but there is one set, whose layers are compared; expected several sets"
            )
        layers = list(sets.neurons.values())
        return np.array([[jaccard(a, b) for b in layers] for a in layers]), label
    if len(sets) and all(isinstance(one, CoreSet) for one in sets):
        selected = [one if layer is None else only_layer(one, layer) for one in sets]
        label += "" if layer is None else f", layer {layer}"
        return np.array([[a.jaccard(b) for b in selected] for a in selected]), label
    matrix = checked_array("overlap", sets, "(n, n)")
    if matrix.shape != (len(matrix), len(matrix)) or matrix.min() < 0 or matrix.max() > 1:
        raise InputError(
            f"overlap has shape {matrix.shape} and values {matrix.min():g} to {matrix.max():g}, "
            "expected (n, n) and 0 to 1"
        )
    return matrix, "overlap"


def only_layer(core: CoreSet, layer: int) -> CoreSet:
    """Return one layer of a core set."""
    if layer not in core.neurons:
        raise InputError(f"layer {layer} is not restricted in {core!r}")
    return CoreSet({layer: core.neurons[layer]}, core.n_neurons, core.n_layers)


# --- over the length of a text ---


def stability_curves(
    lengths: Sequence[int] | Array,
    similarity: Any,
    layers: Sequence[int] | None = None,
    *,
    label: str = "Jaccard similarity to the set before",
    ax: Axes | None = None,
) -> Axes:
    """Draw the similarity of the core sets of a growing text: one line per layer (figs. 3 and 8).

    Parameters
    ----------
    lengths : (n_steps,) or (n_steps + 1,) sequence of int
        Lengths of the prefixes in tokens. With n_steps + 1 lengths, each similarity is drawn at the longer of
        its two prefixes, as for the result of :func:`minicore.core.stability.stability_curve`.
    similarity : (n_steps,) or (n_layers, n_steps) array
        NaN leaves a gap.
    layers : (n_layers,) sequence of int or None
        Numbers of the layers; None counts from 0.
    label : str
        Label of the similarity axis.
    ax : Axes or None
        Axes to draw on; None makes a figure.

    Returns
    -------
    Axes
        Several layers are colored by depth; the thick line is their mean.

    Raises
    ------
    InputError
        If shapes do not match or lengths are not ascending.

    Examples
    --------
    >>> ax = stability_curves([8, 16, 32, 64], [0.5, 0.7, 0.8])
    >>> ax.lines[0].get_xdata()
    array([16., 32., 64.])
    """
    if np.ndim(similarity) == 1:
        y = checked_array("similarity", similarity, "(n_steps,)", gaps=True)[None]
    else:
        y = checked_array("similarity", similarity, "(n_layers, n_steps)", gaps=True)
    x = ascending("lengths", lengths)
    if len(x) not in (y.shape[1], y.shape[1] + 1):
        raise InputError(f"{len(x)} lengths for {y.shape[1]} steps, expected as many, or one more")
    x = x[len(x) - y.shape[1] :]
    layer_ids = np.arange(len(y)) if layers is None else np.asarray(layers)
    check_length("layers", layer_ids, len(y), "rows of similarity")
    ax = new_axes() if ax is None else ax
    if len(y) > 1:
        draw_layers(ax, x, y, layer_ids)
    else:
        ax.plot(x, y[0], **series_style(ax, 0))
    ax.set(xlabel="length of the text (tokens)", ylabel=label)
    ax.set_ylim(top=1.02)
    open_frame(ax)
    return ax


def draw_layers(ax: Axes, x: Array, y: Array, layers: Array) -> None:
    # (n_steps,), (n_layers, n_steps), (n_layers,)
    """Draw a line per layer, colored by depth, and the mean of the layers."""
    norm = Normalize(layers.min(), layers.max())
    # the first colors of the map are those of the background
    colors = ListedColormap(sequential(ax)(np.linspace(0.3, 1, 256)))
    for layer, row in zip(layers, y, strict=True):
        ax.plot(x, row, color=colors(norm(layer)), linewidth=1, label=f"layer {layer}")
    add_colorbar(ax, ScalarMappable(norm, colors), "layer", ticks=MaxNLocator(integer=True))
    mean = [np.nan if np.isnan(step).all() else np.nanmean(step) for step in y.T]
    ax.plot(x, mean, color=series_style(ax, 1)["color"], linewidth=2.5, label="mean of the layers")
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(handles[-1:], labels[-1:], frameon=False, labelcolor=text_color(ax))


def coordinates_over_length(
    sets: Sequence[CoreSet] | Array,
    lengths: Sequence[int] | Array,
    *,
    method: str = "pca",
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw two coordinates of the core sets of a growing text against its length (fig. 3c).

    Parameters
    ----------
    sets : (n_lengths,) sequence of CoreSet or (n_lengths, d) array
        Core sets, or any vectors.
    lengths : (n_lengths,) sequence of int
        Lengths in tokens.
    method, seed
        As for :func:`embedding`.
    ax : Axes or None
        Axes to draw on; None makes a figure.

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        As :func:`embedding`, and if lengths are not ascending.

    Examples
    --------
    >>> ax = coordinates_over_length(np.eye(3), [8, 16, 32])
    >>> [line.get_label() for line in ax.lines]
    ['PCA 1', 'PCA 2']
    """
    x, points = ascending("lengths", lengths), project(vectors(sets), method, seed)
    check_length("lengths", x, len(points), "sets")
    return draw_coordinates(points, x, METHODS[method], new_axes() if ax is None else ax)


def draw_coordinates(
    points: Array, lengths: Array, name: str, ax: Axes
) -> Axes:  # (n_lengths, 2), (n_lengths,)
    """Draw two coordinates against length."""
    for i, column in enumerate(np.asarray(points).T):
        ax.plot(lengths, column, label=f"{name} {i + 1}", **series_style(ax, i))
    ax.set(xlabel="length of the text (tokens)", ylabel=f"{name} coordinate")
    add_legend(ax)
    open_frame(ax)
    return ax


def timeline(
    sets: Sequence[CoreSet] | Array,
    positions: Sequence[int] | Array | None = None,
    *,
    shifts: Sequence[float] = (),
    layer: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw which neurons are core neurons over the course of a text with changes of topic.

    Parameters
    ----------
    sets : (n_steps,) sequence of CoreSet or (n_steps, n_neurons) bool array
        The core set of the tokens before each position, or of a window that ends there.
    positions : (n_steps,) sequence of int or None
        Number of tokens read at each step; None counts steps.
    shifts : sequence of float
        Positions at which a new topic starts.
    layer : int or None
        The layer to draw; None if the core sets have only one.
    ax : Axes or None
        Axes to draw on; None makes a figure.

    Returns
    -------
    Axes
        One row per neuron that is ever a core neuron. Rows are grouped and colored by the topic in which the
        neuron first is a core neuron, the first topic at the top.

    Raises
    ------
    InputError
        If shapes do not match, positions are not ascending, or a set does not restrict the layer.

    Examples
    --------
    >>> steps = np.array([[1, 1, 0, 0], [1, 0, 0, 1]], bool)
    >>> ax = timeline(steps, positions=[16, 32], shifts=[20])
    >>> ax.get_ylabel()
    '3 of 4 neurons, by when they are core'
    """
    core = masks(sets, layer)
    x = np.arange(len(core), dtype=float) if positions is None else ascending("positions", positions)
    check_length("positions", x, len(core), "sets")
    bounds = checked_array("shifts", sorted(shifts), "(n_shifts,)") if len(shifts) else np.empty(0)
    ever = np.flatnonzero(core.any(axis=0))
    if not len(ever):
        raise InputError("no neuron is a core neuron at any step: there is nothing to draw")
    rows = core[:, ever]
    topic = np.searchsorted(bounds, x[rows.argmax(axis=0)], side="left")  # in which each row first is core
    mean_position = (x @ rows) / rows.sum(axis=0)
    order = np.lexsort((mean_position, topic))
    ax = new_axes(8, 4.5) if ax is None else ax
    colors = [series_style(ax, i)["color"] for i in range(len(bounds) + 1)]
    edges = cell_edges(x)
    ax.pcolormesh(
        edges,
        np.arange(len(ever) + 1),
        np.where(rows, topic, np.nan)[:, order].T,
        cmap=ListedColormap(colors),
        vmin=-0.5,
        vmax=len(bounds) + 0.5,
        rasterized=True,
    )
    for bound in bounds:
        ax.axvline(bound, color=text_color(ax), linestyle="--", linewidth=1)
    for i in range(len(bounds) + 1 if len(bounds) else 0):
        name = f"new after the shift at {bounds[i - 1]:g}" if i else f"core before {bounds[0]:g}"
        ax.fill_between([], [], color=colors[i], label=name)
    if len(bounds):
        add_legend(ax, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=min(3, len(bounds) + 1))
    ax.set(xlim=(edges[0], edges[-1]), ylim=(len(ever), 0))
    ax.set_xlabel("step" if positions is None else "position in the text (tokens)")
    ax.set_ylabel(f"{len(ever)} of {core.shape[1]} neurons, by when they are core")
    open_frame(ax)
    return ax


def cell_edges(x: Array) -> Array:  # (n,) ascending -> (n + 1,)
    """Return the edges of cells around points: halfway between neighbors."""
    if len(x) == 1:
        return x[0] + np.array([-0.5, 0.5])
    half = np.diff(x) / 2
    return np.concatenate([[x[0] - half[0]], x[:-1] + half, [x[-1] + half[-1]]])


# --- in the plane ---


def embedding(
    sets: Sequence[CoreSet] | Array,
    labels: Sequence[str],
    *,
    method: str = "pca",
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw texts as points in the plane by their core sets, colored by topic (fig. 4).

    Parameters
    ----------
    sets : (n_texts,) sequence of CoreSet or (n_texts, d) array
        Core sets, as vectors over the layers that all of them restrict, or any vectors.
    labels : (n_texts,) sequence of str
        Topics.
    method : str
        ``pca``, ``tsne`` (needs scikit-learn) or ``umap`` (needs umap-learn).
    seed : int
        Random seed of t-SNE and UMAP.
    ax : Axes or None
        Axes to draw on; None makes a figure.

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        If there is not one label per text, there are fewer than 3 texts, or the method is unknown or not
        installed.

    Examples
    --------
    >>> ax = embedding(np.eye(4), ["sport", "sport", "law", "law"])
    >>> [points.get_label() for points in ax.collections]
    ['law', 'sport']
    """
    points = project(vectors(sets), method, seed)
    check_length("labels", labels, len(points), "texts")
    ax = draw_points(points, labels, METHODS[method], new_axes(6, 4.5) if ax is None else ax)
    add_legend(ax)
    return ax


def draw_points(points: Array, labels: Sequence[str], name: str, ax: Axes, size: float = 26) -> Axes:
    # (n_texts, 2), (n_texts,)
    """Draw points in the plane, colored by label, without a legend."""
    names = np.array([str(label) for label in labels])
    for i, label in enumerate(np.unique(names)):
        x, y = np.asarray(points)[names == label].T
        style = series_style(ax, i)
        color, marker = style["color"], style["marker"]
        ax.scatter(x, y, s=size, alpha=0.85, linewidths=0, color=color, marker=marker, label=label)
    ax.set(xlabel=f"{name} 1", ylabel=f"{name} 2")
    if name != METHODS["pca"]:  # the axes of the others have no unit and no origin
        ax.set(xticks=[], yticks=[])
    open_frame(ax)
    return ax


# --- sets as arrays ---


def vectors(sets: Sequence[CoreSet] | Array) -> Array:  # -> (n_sets, d)
    """Return core sets as vectors of 0 and 1 over the layers that all of them restrict; arrays unchanged."""
    if len(sets) and all(isinstance(one, CoreSet) for one in sets):
        shared = set.intersection(*[set(one) for one in sets])
        if not shared or len({(one.n_layers, one.n_neurons) for one in sets}) > 1:
            raise InputError("core sets without a common layer, or of different models, cannot be compared")
        return np.stack(
            [
                np.concatenate([core_vector(one.neurons[i], one.n_neurons) for i in sorted(shared)])
                for one in sets
            ]
        )
    return checked_array("vectors", sets, "(n, d)")


def masks(sets: Sequence[CoreSet] | Array, layer: int | None) -> Array:  # -> bool (n_steps, n_neurons)
    """Return one layer of core sets as boolean masks; a bool array unchanged."""
    if len(sets) and all(isinstance(one, CoreSet) for one in sets):
        if layer is None and any(len(one.neurons) != 1 for one in sets):
            raise InputError("the core sets have several layers, expected a layer to draw")
        return vectors([one if layer is None else only_layer(one, layer) for one in sets]).astype(bool)
    core = np.asarray(sets)
    if core.ndim != 2 or not core.size or core.dtype != bool:
        raise InputError(
            f"sets have shape {core.shape} of {core.dtype}, expected (n_steps, n_neurons) of bool"
        )
    return core


def ascending(name: str, value: Any) -> Array:  # -> float64 (n,)
    """Return a strictly ascending array."""
    x = checked_array(name, value, "(n,)")
    if (np.diff(x) <= 0).any():
        raise InputError(f"{name} are not ascending, first at {x[1:][np.diff(x) <= 0][0]:g}")
    return x
