"""Shared by all plots: figures, colors for light and dark styles, checked arrays, color bars, legends."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from os import PathLike
from typing import IO, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from minicore.errors import InputError

Array = np.ndarray

# The colors of Okabe and Ito, without those that have too little contrast with a light or dark background.
LIGHT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DARK = ("#56B4E9", "#E69F00", "#10B98A", "#CC79A7", "#F0E442", "#E8702A")
LAST_LIGHT, LAST_DARK = "#5B2A86", "#A44BFF"  # the eighth color; the seventh is that of the text
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":", "-.")


def new_axes(width: float = 7, height: float = 4) -> Axes:
    """Return the axes of a new figure of the given size in inches.

    If pyplot is in use, as in a notebook, the figure is managed by pyplot and shown as usual. Otherwise no
    window manager is involved.

    Examples
    --------
    >>> ax = new_axes(4, 3)
    >>> ax.figure.get_size_inches()
    array([4., 3.])
    """
    if "matplotlib.pyplot" in sys.modules or "ipykernel" in sys.modules:
        import matplotlib.pyplot as plt

        return plt.figure(figsize=(width, height), layout="constrained").subplots()
    return Figure(figsize=(width, height), layout="constrained").subplots()


def check_format(path: str) -> str:
    """Return the image format of a file name; raise InputError if matplotlib does not support it.

    Examples
    --------
    >>> check_format("figures/fig3.PNG")
    'png'
    """
    known = Figure().canvas.get_supported_filetypes()
    ending = path.rpartition(".")[2].lower() if "." in path else ""
    if ending not in known:
        raise InputError(
            f"{path}: expected a file name that ends in {', '.join('.' + k for k in sorted(known))}"
        )
    return ending


def save(ax: Axes, path: str | PathLike[str] | IO[bytes], format: str | None = None) -> None:
    """Write the axes' figure to a file.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryFile() as file:
    ...     save(new_axes(), file, format="png")
    ...     file.tell() > 1000
    True
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.savefig(path, format=format, dpi=150)


# --- checked arguments ---


def checked_array(name: str, value: Any, shape: str, gaps: bool = False) -> Array:  # -> float64
    """Return a finite array with as many dimensions as ``shape`` names, such as "(n, d)".

    If ``gaps`` is true, NaN is accepted for values that were not measured.
    """
    try:
        x = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} is not an array of numbers, expected shape {shape}") from None
    if x.ndim != len(shape.strip("(),").split(",")) or not x.size:
        raise InputError(f"{name} has shape {x.shape}, expected {shape}")
    invalid = np.isinf(x) if gaps else ~np.isfinite(x)
    if invalid.any():
        index = ", ".join(str(i) for i in np.argwhere(invalid)[0])
        raise InputError(f"{name}: {x[invalid][0]} at [{index}], expected finite numbers")
    return x


def check_length(name: str, value: Sequence[Any] | Array, n: int, per: str) -> None:
    """Raise InputError unless ``value`` has n entries, one for each of the entries that ``per`` names."""
    if len(value) != n:
        raise InputError(f"{name}: there are {len(value)}, expected {n}, one for each of the {per}")


def neuron_ids(name: str, value: Any, n_neurons: int) -> Array:  # -> int64 (n,)
    """Return neuron ids as an array; each must be an id of the layer."""
    ids = np.asarray(value)
    if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"{name}: expected a list of neuron ids, got {np.shape(value)} {ids.dtype}")
    if ids.min() < 0 or ids.max() >= n_neurons:
        raise InputError(
            f"{name}: {ids[(ids < 0) | (ids >= n_neurons)][0]} is not a neuron, expected 0 to {n_neurons - 1}"
        )
    return ids.astype(np.int64)


# --- colors ---


def text_color(ax: Axes) -> Any:
    """Return the color of the axes' text."""
    return ax.title.get_color()


def background(ax: Axes) -> tuple[float, float, float]:
    """Return the background color of the axes; if they are transparent, the one that suits their text."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    for face in (ax.get_facecolor(), figure.get_facecolor()):
        if to_rgba(face)[3] > 0.5:
            return to_rgb(face)
    return (0, 0, 0) if luminance(text_color(ax)) > 0.5 else (1, 1, 1)


def luminance(color: Any) -> float:  # -> in [0, 1]
    """Return the approximate luminance of a color (Rec. 709 weights, gamma 2.2)."""
    return float(np.array(to_rgb(color)) ** 2.2 @ [0.2126, 0.7152, 0.0722])


def is_dark(ax: Axes) -> bool:
    """Return whether the axes have a dark background."""
    return luminance(background(ax)) < 0.2


def readable_on(color: Any) -> str:
    """Return black or white, whichever has more contrast with a color (WCAG 2.2, 1.4.3)."""
    return "black" if luminance(color) > 0.179 else "white"


def sequential(ax: Axes) -> LinearSegmentedColormap:
    """Return a color map for values from zero: from the background through blue to the strongest contrast."""
    blues = ["#0d4a72", "#3b9fd8", "#d9f1ff"] if is_dark(ax) else ["#9ccbe8", "#0072B2", "#00243b"]
    colors = [background(ax), *map(to_rgb, blues)]
    return LinearSegmentedColormap.from_list("minicore sequential", colors)


def diverging(ax: Axes) -> LinearSegmentedColormap:
    """Return a color map for signed values: blue below zero, the background at zero, orange above."""
    if is_dark(ax):
        ends = ["#d9f1ff", "#3b9fd8"], ["#e8702a", "#ffe3c2"]
    else:
        ends = ["#00365a", "#3b93c9"], ["#e27a35", "#6b2500"]
    colors = [*map(to_rgb, ends[0]), background(ax), *map(to_rgb, ends[1])]
    return LinearSegmentedColormap.from_list("minicore diverging", colors)


def color_scale(ax: Axes, x: Array, vmax: float | None = None) -> dict[str, Any]:
    """Return color map, vmin and vmax for values. Zero has the color of the background."""
    if vmax is not None and not vmax > 0:
        raise InputError(f"vmax is {vmax}, expected a number above 0")
    top = vmax if vmax is not None else float(np.nanmax(np.abs(x))) or 1.0
    signed = bool(np.nanmin(x) < 0)
    return {
        "cmap": diverging(ax) if signed else sequential(ax),
        "vmin": -top if signed else 0.0,
        "vmax": top,
    }


def series_style(ax: Axes, i: int) -> dict[str, Any]:
    """Return color, marker and line style of the i-th series; the first 32 all differ."""
    first, last = (DARK, LAST_DARK) if is_dark(ax) else (LIGHT, LAST_LIGHT)
    colors = [*first, text_color(ax), last]
    return {
        "color": colors[i % len(colors)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": LINES[i // len(colors) % len(LINES)],
    }


# --- color bars, legends, ticks ---


def add_colorbar(ax: Axes, mappable: ScalarMappable, label: str, **where: Any) -> Colorbar:
    """Draw a color bar as high as the axes, labeled in the color of their text.

    If the figure has a layout engine, the bar is placed next to the axes and the engine makes room for it.
    Otherwise the axes shrink.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    if "cax" not in where and figure.get_layout_engine() is not None:
        where["cax"] = ax.inset_axes((1 + 0.1 / inches(ax)[0], 0, 0.15 / inches(ax)[0], 1))
    else:
        where.setdefault("ax", None if "cax" in where else ax)
    bar = figure.colorbar(mappable, **where)
    bar.set_label(label, color=text_color(ax))
    bar.ax.tick_params(which="both", color=text_color(ax), labelcolor=text_color(ax))
    bar.outline.set_visible(False)
    return bar


def add_legend(ax: Axes, title: str | None = None, **options: Any) -> None:
    """Draw a legend: inside the axes if it is short, to the right of them if it is long."""
    handles, labels = ax.get_legend_handles_labels()
    if not labels:
        return
    if len(labels) > 5:
        options = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0} | options
    legend = ax.legend(
        handles, labels, frameon=False, labelcolor=text_color(ax), title=title, fontsize=9, **options
    )
    legend.get_title().set_color(text_color(ax))
    legend.get_title().set_fontsize(9)


def open_frame(ax: Axes) -> None:
    """Hide the two spines without ticks."""
    ax.spines[["top", "right"]].set_visible(False)


def plain_log(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers; use more ticks if it spans a small range."""
    low, high = axis.get_view_interval()
    powers = high >= 1e6 and high >= 300 * low

    def label(x: float, _: int) -> str:
        if powers and x >= 1e3:
            return f"$10^{{{round(np.log10(x))}}}$"
        return f"{x:,g}" if x < 1e6 else f"{x:.0e}"

    if high < 8 * low:  # too few ticks at 1, 2 and 5
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(LogLocator(subs=[1, 2, 5] if high < 300 * low else [1]))
    axis.set_major_formatter(FuncFormatter(label))
    axis.set_minor_formatter(NullFormatter())


def ticks_that_fit(n: int, room: float, each: float = 0.16) -> Array:  # -> int (n_shown,)
    """Return which of n tick labels fit in ``room`` inches, if a label takes ``each`` inch."""
    return np.arange(0, n, max(1, int(np.ceil(n * each / max(room, each)))))


def inches(ax: Axes) -> tuple[float, float]:
    """Return the approximate width and height of the axes in inches."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    box = ax.get_window_extent()
    return box.width / figure.dpi, box.height / figure.dpi
