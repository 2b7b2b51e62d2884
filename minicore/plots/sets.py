"""Core sets: how they overlap, settle, gather by topic and change."""

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
from minicore.errors import InputError, unknown
from minicore.plots.axes import (
    add_colorbar,
    add_legend,
    inches,
    ink,
    look,
    new_axes,
    numbers,
    open_frame,
    readable_on,
    same_length,
    scale,
    sequential,
    thin,
)

Array = np.ndarray


def overlap_matrix(
    sets: CoreSet | Mapping[str, CoreSet] | Sequence[CoreSet] | Array,
    names: Sequence[str] | None = None,
    *,
    layer: int | None = None,
    ax: Axes | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw the overlap of every two of several core sets: of sentences, predictors or layers.

    Parameters
    ----------
    sets : mapping of str to CoreSet, sequence of CoreSet, CoreSet, or (n, n) array
        Sets to compare by Jaccard similarity, the mean over their layers. Of a single CoreSet its layers are
        compared; there neurons of the same id have nothing to do with each other, and what is seen is what
        chance gives. An array is drawn as it is: any overlap in [0, 1].
    names : (n,) sequence of str or None
        What to write at rows and columns; None takes the keys, the layers, or numbers.
    layer : int or None
        Compare this layer alone.
    ax : Axes or None
        Where to draw; None makes a figure.
    colorbar : bool
        Whether to draw one.

    Returns
    -------
    Axes
        Where there are at most 12 sets the figures are in the cells.

    Raises
    ------
    InputError
        If sets are of different models or do not restrict the layer, or an array is not one of overlaps.

    Examples
    --------
    >>> one, other = (CoreSet({0: np.array(ids)}, 8, 1) for ids in ([0, 1, 2], [1, 2, 3]))
    >>> overlap_matrix({"one": one, "other": other}).images[0].get_array().data
    array([[1. , 0.5],
           [0.5, 1. ]])
    """
    if isinstance(sets, Mapping):
        names, sets = names or list(sets), list(sets.values())
    what = "Jaccard similarity"
    if isinstance(sets, CoreSet):
        if layer is not None:
            raise InputError(
                f"layer is {layer} but there is one set, whose layers are compared: expected several"
            )
        names = names or [f"layer {i}" for i in sets]
        matrix = np.array([[jaccard(a, b) for b in sets.neurons.values()] for a in sets.neurons.values()])
    elif len(sets) and all(isinstance(one, CoreSet) for one in sets):
        chosen = [one if layer is None else only(one, layer) for one in sets]
        matrix = np.array([[a.jaccard(b) for b in chosen] for a in chosen])
        what += "" if layer is None else f", layer {layer}"
    else:
        matrix, what = sets, "overlap"  # type: ignore[assignment]  # an array, or refused below
    matrix = numbers("overlap", matrix, "(n, n)")
    n = len(matrix)
    if matrix.shape != (n, n) or matrix.min() < 0 or matrix.max() > 1:
        raise InputError(
            f"overlap has shape {matrix.shape} and values {matrix.min():g} to {matrix.max():g}, "
            "expected (n, n) and 0 to 1"
        )
    names = [str(i) for i in range(n)] if names is None else list(names)
    same_length("names", names, n, "sets")
    ax = new_axes(min(2.8 + 0.45 * n, 9), min(1.8 + 0.45 * n, 8)) if ax is None else ax
    colours = scale(ax, matrix, 1.0)
    image = ax.imshow(matrix, interpolation="nearest", **colours)
    if n <= 12:
        for (i, j), value in np.ndenumerate(matrix):
            colour = readable_on(colours["cmap"](value))
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    width, height = inches(ax)
    for axis, room in ((ax.xaxis, width), (ax.yaxis, height)):
        shown = thin(n, room, 0.18)
        axis.set_ticks(shown, [names[i] for i in shown], fontsize=8)
    if max(len(name) for name in names) * n > 30:
        ax.tick_params(axis="x", rotation=90)
    if colorbar:
        add_colorbar(ax, image, what)
    return ax


def only(core: CoreSet, layer: int) -> CoreSet:
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
    """Draw how alike the core sets of a growing text are, a line a layer (figs. 3 and 8).

    Parameters
    ----------
    lengths : (n_steps,) or (n_steps + 1,) sequence of int
        Tokens. With one more than steps each step stands at its longer prefix, as
        :func:`minicore.core.stability.stability_curve` returns them.
    similarity : (n_steps,) or (n_layers, n_steps) array
        NaN leaves a gap.
    layers : (n_layers,) sequence of int or None
        Their numbers; None counts from 0.
    label : str
        What similarity is of.
    ax : Axes or None
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        Several layers are coloured by depth, their mean is the thick line.

    Raises
    ------
    InputError
        If shapes differ or lengths do not ascend.

    Examples
    --------
    >>> ax = stability_curves([8, 16, 32, 64], [0.5, 0.7, 0.8])
    >>> ax.lines[0].get_xdata()
    array([16., 32., 64.])
    """
    if np.ndim(similarity) == 1:
        y = numbers("similarity", similarity, "(n_steps,)", gaps=True)[None]
    else:
        y = numbers("similarity", similarity, "(n_layers, n_steps)", gaps=True)
    x = ascending("lengths", lengths)
    if len(x) not in (y.shape[1], y.shape[1] + 1):
        raise InputError(f"{len(x)} lengths for {y.shape[1]} steps, expected as many or one more")
    x = x[len(x) - y.shape[1] :]
    numbers_of = np.arange(len(y)) if layers is None else np.asarray(layers)
    same_length("layers", numbers_of, len(y), "rows of similarity")
    ax = new_axes() if ax is None else ax
    if len(y) > 1:
        norm = Normalize(numbers_of.min(), numbers_of.max())
        colours = ListedColormap(sequential(ax)(np.linspace(0.3, 1, 256)))  # the first ones are background
        for layer, row in zip(numbers_of, y, strict=True):
            ax.plot(x, row, color=colours(norm(layer)), linewidth=1, label=f"layer {layer}")
        add_colorbar(ax, ScalarMappable(norm, colours), "layer", ticks=MaxNLocator(integer=True))
        mean = np.array(
            [column[~np.isnan(column)].mean() if not np.isnan(column).all() else np.nan for column in y.T]
        )
        ax.plot(x, mean, color=look(ax, 1)["color"], linewidth=2.5, label="mean of the layers")
        ax.legend(*[part[-1:] for part in ax.get_legend_handles_labels()], frameon=False, labelcolor=ink(ax))
    else:
        ax.plot(x, y[0], **look(ax, 0))
    ax.set(xlabel="length of the text (tokens)", ylabel=label)
    ax.set_ylim(top=1.02)
    open_frame(ax)
    return ax


def coordinates_over_length(
    sets: Sequence[CoreSet] | Array,
    lengths: Sequence[int] | Array,
    *,
    method: str = "pca",
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw where the core sets of a growing text lie, in two coordinates against its length (fig. 3c).

    Parameters
    ----------
    sets : (n_lengths,) sequence of CoreSet or (n_lengths, d) array
        Sets, or any vectors.
    lengths : (n_lengths,) sequence of int
        Tokens.
    method, seed
        As :func:`embedding`.
    ax : Axes or None
        Where to draw; None makes a figure.

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        As :func:`embedding`, or if lengths do not ascend.

    Examples
    --------
    >>> ax = coordinates_over_length(np.eye(3), [8, 16, 32])
    >>> [line.get_label() for line in ax.lines]
    ['PCA 1', 'PCA 2']
    """
    x, points = ascending("lengths", lengths), project(vectors(sets), method, seed)
    same_length("lengths", x, len(points), "sets")
    return draw_coordinates(points, x, METHODS[method], new_axes() if ax is None else ax)


def draw_coordinates(
    points: Array, lengths: Array, name: str, ax: Axes
) -> Axes:  # (n_lengths, 2), (n_lengths,)
    """Draw two coordinates against length."""
    for i, column in enumerate(np.asarray(points).T):
        ax.plot(lengths, column, label=f"{name} {i + 1}", **look(ax, i))
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
    """Draw which neurons are core as a text goes on, across changes of its topic.

    Parameters
    ----------
    sets : (n_steps,) sequence of CoreSet or (n_steps, n_neurons) bool array
        The core set of the tokens before each position, or of a window that ends there.
    positions : (n_steps,) sequence of int or None
        Tokens read; None counts steps.
    shifts : sequence of float
        Positions of the first tokens of new topics.
    layer : int or None
        Which layer of core sets; None is their only one.
    ax : Axes or None
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        A row for each neuron that is ever core; those first core in one stretch between shifts have one
        colour and stand together, the earliest at the top.

    Raises
    ------
    InputError
        If shapes differ, positions do not ascend, or the layer is not restricted in all of the sets.

    Examples
    --------
    >>> steps = np.array([[1, 1, 0, 0], [1, 0, 0, 1]], bool)
    >>> ax = timeline(steps, positions=[16, 32], shifts=[20])
    >>> ax.get_ylabel()
    '3 of 4 neurons, by when they are core'
    """
    core = masks(sets, layer)
    x = np.arange(len(core), dtype=float) if positions is None else ascending("positions", positions)
    same_length("positions", x, len(core), "sets")
    bounds = numbers("shifts", sorted(shifts), "(n_shifts,)") if len(shifts) else np.empty(0)
    ever = np.flatnonzero(core.any(axis=0))
    if not len(ever):
        raise InputError("no neuron is core at any step: there is nothing to draw")
    rows = core[:, ever]
    stretch = np.searchsorted(bounds, x[rows.argmax(axis=0)], side="left")  # in which each was first core
    centre = (x @ rows) / rows.sum(axis=0)
    order = np.lexsort((centre, stretch))
    ax = new_axes(8, 4.5) if ax is None else ax
    drawn = np.where(rows, stretch, np.nan)[:, order].T
    colours = [look(ax, i)["color"] for i in range(len(bounds) + 1)]
    half = np.diff(x) / 2 if len(x) > 1 else np.array([0.5])
    edges = np.concatenate([[x[0] - half[0]], x[:-1] + half if len(x) > 1 else [], [x[-1] + half[-1]]])
    cmap = ListedColormap(colours)
    ax.pcolormesh(
        edges,
        np.arange(len(ever) + 1),
        drawn,
        cmap=cmap,
        vmin=-0.5,
        vmax=len(bounds) + 0.5,
        rasterized=True,
    )
    for at in bounds:
        ax.axvline(at, color=ink(ax), linestyle="--", linewidth=1)
    for i in range(len(bounds) + 1 if len(bounds) else 0):
        name = f"new after the shift at {bounds[i - 1]:g}" if i else f"core before {bounds[0]:g}"
        ax.fill_between([], [], color=colours[i], label=name)
    if len(bounds):
        add_legend(ax, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=min(3, len(bounds) + 1))
    ax.set(xlim=(edges[0], edges[-1]), ylim=(len(ever), 0))
    ax.set_xlabel("step" if positions is None else "position in the text (tokens)")
    ax.set_ylabel(f"{len(ever)} of {core.shape[1]} neurons, by when they are core")
    open_frame(ax)
    return ax


# --- in the plane ---

METHODS = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}


def embedding(
    sets: Sequence[CoreSet] | Array,
    labels: Sequence[str],
    *,
    method: str = "pca",
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw texts in the plane by their core sets, coloured by topic (fig. 4).

    Parameters
    ----------
    sets : (n_texts,) sequence of CoreSet or (n_texts, d) array
        Sets, compared neuron by neuron over the layers that all restrict, or any vectors.
    labels : (n_texts,) sequence of str
        Topics.
    method : str
        ``pca``; ``tsne``, through scikit-learn; or ``umap``, if umap-learn is installed.
    seed : int
        For t-SNE and UMAP.
    ax : Axes or None
        Where to draw; None makes a figure.

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        If there is not one label a text, there are fewer than 3 texts, or the method is unknown or not
        installed.

    Examples
    --------
    >>> ax = embedding(np.eye(4), ["sport", "sport", "law", "law"])
    >>> [points.get_label() for points in ax.collections]
    ['law', 'sport']
    """
    points = project(vectors(sets), method, seed)
    same_length("labels", labels, len(points), "texts")
    ax = draw_points(points, labels, METHODS[method], new_axes(6, 4.5) if ax is None else ax)
    add_legend(ax)
    return ax


def draw_points(points: Array, labels: Sequence[str], name: str, ax: Axes, size: float = 26) -> Axes:
    # (n_texts, 2), (n_texts,)
    """Draw points in the plane, coloured by label; the legend is the caller's."""
    names = np.array([str(label) for label in labels])
    for i, label in enumerate(np.unique(names)):
        of = np.asarray(points)[names == label]
        style = look(ax, i)
        how = {"color": style["color"], "marker": style["marker"], "label": label}
        ax.scatter(of[:, 0], of[:, 1], s=size, alpha=0.85, linewidths=0, **how)
    ax.set(xlabel=f"{name} 1", ylabel=f"{name} 2")
    if name != METHODS["pca"]:  # their axes have no unit and no origin
        ax.set(xticks=[], yticks=[])
    open_frame(ax)
    return ax


def project(x: Array, method: str = "pca", seed: int = 0) -> Array:  # (n, d) -> (n, 2)
    """Return two coordinates of each vector; see :func:`embedding`."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if len(x) < 3:
        raise InputError(f"{len(x)} vectors cannot be laid out in the plane, expected at least 3")
    if method == "pca":
        return pca(x)
    if method == "tsne":
        from sklearn.manifold import TSNE

        return TSNE(perplexity=min(30.0, (len(x) - 1) / 3), init="random", random_state=seed).fit_transform(x)
    try:
        from umap import UMAP
    except ImportError:
        raise InputError(
            "method umap needs umap-learn: pip install umap-learn, or take pca or tsne"
        ) from None
    return UMAP(n_neighbors=min(15, len(x) - 1), random_state=seed, n_jobs=1).fit_transform(x)


def pca(x: Array) -> Array:  # (n, d) -> (n, 2)
    """Return each vector's coordinates along the two directions of largest variance.

    Of the two signs of a direction the one is taken whose largest coordinate is positive.
    """
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    points = np.zeros((len(x), 2))
    points[:, : min(2, len(s))] = (u * s)[:, :2]
    far = points[np.abs(points).argmax(axis=0), [0, 1]]
    return points * np.where(far < 0, -1, 1)


# --- sets as arrays ---


def vectors(sets: Sequence[CoreSet] | Array) -> Array:  # -> (n_sets, d)
    """Return core sets as vectors of 0 and 1 over the layers that all restrict; arrays as they are."""
    if len(sets) and all(isinstance(one, CoreSet) for one in sets):
        shared = set.intersection(*[set(one) for one in sets])
        if not shared or len({(one.n_layers, one.n_neurons) for one in sets}) > 1:
            raise InputError("core sets that share no layer, or are of different models, cannot be compared")
        return np.stack(
            [
                np.concatenate([core_vector(one.neurons[i], one.n_neurons) for i in sorted(shared)])
                for one in sets
            ]
        )
    return numbers("vectors", sets, "(n, d)")


def masks(sets: Sequence[CoreSet] | Array, layer: int | None) -> Array:  # -> bool (n_steps, n_neurons)
    """Return one layer of core sets as masks; a bool array as it is."""
    if len(sets) and all(isinstance(one, CoreSet) for one in sets):
        if layer is None and any(len(one.neurons) != 1 for one in sets):
            raise InputError("core sets of several layers: expected a layer to draw")
        chosen = [one if layer is None else only(one, layer) for one in sets]
        return vectors(chosen).astype(bool)
    steps = np.asarray(sets)
    if steps.ndim != 2 or not steps.size or steps.dtype != bool:
        raise InputError(
            f"sets have shape {steps.shape} of {steps.dtype}, expected (n_steps, n_neurons) of bool"
        )
    return steps


def ascending(name: str, value: Any) -> Array:  # -> float64 (n,)
    """Return numbers that grow from one to the next."""
    x = numbers(name, value, "(n,)")
    if (np.diff(x) <= 0).any():
        raise InputError(f"{name} do not ascend, first at {x[1:][np.diff(x) <= 0][0]:g}")
    return x
