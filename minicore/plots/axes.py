"""What all plots share: figures, colours on light and dark, checked arrays, colour bars and legends."""

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

# Okabe and Ito's colours, without those that fade into a light or a dark background.
LIGHT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DARK = ("#56B4E9", "#E69F00", "#10B98A", "#CC79A7", "#F0E442", "#E8702A")
LAST_LIGHT, LAST_DARK = "#5B2A86", "#A44BFF"  # of eight; the seventh is the text's own
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":", "-.")


def new_axes(width: float = 7, height: float = 4) -> Axes:
    """Return the axes of a figure of its own, in inches.

    Where pyplot is in use, as in a notebook, the figure is one of pyplot's and is shown as others are;
    elsewhere no window manager knows of it.

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
    """Return the format that a file's ending asks for; raise InputError if matplotlib writes none such.

    Examples
    --------
    >>> check_format("figures/fig3.PNG")
    'png'
    """
    known = Figure().canvas.get_supported_filetypes()
    ending = path.rpartition(".")[2].lower() if "." in path else ""
    if ending not in known:
        raise InputError(f"{path}: a plot's name ends in one of {', '.join('.' + k for k in sorted(known))}")
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


# --- what is drawn ---


def numbers(name: str, value: Any, shape: str, gaps: bool = False) -> Array:  # -> float64
    """Return an array of numbers with as many dimensions as ``shape``, such as "(n, d)", names.

    NaN stands for what was not measured where ``gaps`` is true and is refused elsewhere, as infinity is
    everywhere.
    """
    try:
        x = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} is not an array of numbers, expected shape {shape}") from None
    if x.ndim != len(shape.strip("(),").split(",")) or not x.size:
        raise InputError(f"{name} has shape {x.shape}, expected {shape}")
    wrong = np.isinf(x) if gaps else ~np.isfinite(x)
    if wrong.any():
        at = ", ".join(str(i) for i in np.argwhere(wrong)[0])
        raise InputError(f"{name} holds {x[wrong][0]} at [{at}], expected finite numbers")
    return x


def same_length(name: str, value: Sequence[Any] | Array, n: int, of: str) -> None:
    """Raise InputError unless there is one of something for each of something else."""
    if len(value) != n:
        raise InputError(f"{name}: there are {len(value)}, expected {n}, one for each of the {of}")


def neuron_ids(name: str, value: Any, n_neurons: int) -> Array:  # -> int64 (n,)
    """Return ids of neurons as an array, each within the layer."""
    ids = np.asarray(value)
    if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"{name}: expected a list of neuron ids, got {np.shape(value)} {ids.dtype}")
    if ids.min() < 0 or ids.max() >= n_neurons:
        raise InputError(
            f"{name} holds {ids[(ids < 0) | (ids >= n_neurons)][0]}, not in 0 to {n_neurons - 1}"
        )
    return ids.astype(np.int64)


# --- colours ---


def ink(ax: Axes) -> Any:
    """Return the colour of the axes' text."""
    return ax.title.get_color()


def paper(ax: Axes) -> tuple[float, float, float]:
    """Return the colour behind the axes; where there is none, the one that their text is meant for."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    for face in (ax.get_facecolor(), figure.get_facecolor()):
        if to_rgba(face)[3] > 0.5:
            return to_rgb(face)
    return (0, 0, 0) if luminance(ink(ax)) > 0.5 else (1, 1, 1)


def luminance(colour: Any) -> float:  # -> in [0, 1]
    """Return how light a colour is to the eye, about (Rec. 709 weights, gamma 2.2)."""
    return float(np.array(to_rgb(colour)) ** 2.2 @ [0.2126, 0.7152, 0.0722])


def is_dark(ax: Axes) -> bool:
    """Say whether the axes are light text on dark."""
    return luminance(paper(ax)) < 0.2


def readable_on(colour: Any) -> str:
    """Return black or white, whichever contrasts more with a colour (WCAG 2.2, 1.4.3)."""
    return "black" if luminance(colour) > 0.179 else "white"


def sequential(ax: Axes) -> LinearSegmentedColormap:
    """Return a colour map from the background, for zero, through blue to what contrasts most with it."""
    blues = ["#0d4a72", "#3b9fd8", "#d9f1ff"] if is_dark(ax) else ["#9ccbe8", "#0072B2", "#00243b"]
    colours = [paper(ax), *map(to_rgb, blues)]
    return LinearSegmentedColormap.from_list("minicore sequential", colours)


def diverging(ax: Axes) -> LinearSegmentedColormap:
    """Return a colour map from blue, for what is below zero, through the background to orange."""
    if is_dark(ax):
        ends = ["#d9f1ff", "#3b9fd8"], ["#e8702a", "#ffe3c2"]
    else:
        ends = ["#00365a", "#3b93c9"], ["#e27a35", "#6b2500"]
    colours = [*map(to_rgb, ends[0]), paper(ax), *map(to_rgb, ends[1])]
    return LinearSegmentedColormap.from_list("minicore diverging", colours)


def scale(ax: Axes, x: Array, vmax: float | None = None) -> dict[str, Any]:
    """Return colour map and limits for values: zero is the background, whether or not some are below it."""
    if vmax is not None and not vmax > 0:
        raise InputError(f"vmax is {vmax}, expected a number above 0")
    top = vmax if vmax is not None else float(np.nanmax(np.abs(x))) or 1.0
    signed = bool(np.nanmin(x) < 0)
    return {
        "cmap": diverging(ax) if signed else sequential(ax),
        "vmin": -top if signed else 0.0,
        "vmax": top,
    }


def look(ax: Axes, i: int) -> dict[str, Any]:
    """Return colour, marker and line style of the i-th series; no two of the first 32 are alike."""
    few, last = (DARK, LAST_DARK) if is_dark(ax) else (LIGHT, LAST_LIGHT)
    colours = [*few, ink(ax), last]
    return {
        "color": colours[i % len(colours)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": LINES[i // len(colours) % len(LINES)],
    }


# --- what goes around it ---


def add_colorbar(ax: Axes, mappable: ScalarMappable, label: str, **where: Any) -> Colorbar:
    """Draw a colour bar as high as the axes, in the colours of their own text.

    Where the figure has a layout engine the bar hangs on the axes and the engine makes room; elsewhere the
    axes themselves give it some.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    if "cax" not in where and figure.get_layout_engine() is not None:
        where["cax"] = ax.inset_axes((1 + 0.1 / inches(ax)[0], 0, 0.15 / inches(ax)[0], 1))
    else:
        where.setdefault("ax", None if "cax" in where else ax)
    bar = figure.colorbar(mappable, **where)
    bar.set_label(label, color=ink(ax))
    bar.ax.tick_params(which="both", color=ink(ax), labelcolor=ink(ax))
    bar.outline.set_visible(False)
    return bar


def add_legend(ax: Axes, title: str | None = None, **options: Any) -> None:
    """Draw a legend: inside while it is short, at the right of the axes where it is long."""
    handles, labels = ax.get_legend_handles_labels()
    if not labels:
        return
    if len(labels) > 5:
        options = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0} | options
    legend = ax.legend(handles, labels, frameon=False, labelcolor=ink(ax), title=title, fontsize=9, **options)
    legend.get_title().set_color(ink(ax))
    legend.get_title().set_fontsize(9)


def open_frame(ax: Axes) -> None:
    """Take away the two spines that carry no ticks."""
    ax.spines[["top", "right"]].set_visible(False)


def plain_log(axis: Axis) -> None:
    """Write plain numbers at the ticks of a logarithmic axis, more of them where it spans little."""
    low, high = axis.get_view_interval()
    powers = high >= 1e6 and high >= 300 * low

    def written(x: float, _: int) -> str:
        if powers and x >= 1e3:
            return f"$10^{{{round(np.log10(x))}}}$"
        return f"{x:,g}" if x < 1e6 else f"{x:.0e}"

    if high < 8 * low:  # few of 1, 2 and 5 would be in it
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(LogLocator(subs=[1, 2, 5] if high < 300 * low else [1]))
    axis.set_major_formatter(FuncFormatter(written))
    axis.set_minor_formatter(NullFormatter())


def thin(n: int, room: float, each: float = 0.16) -> Array:  # -> int (n_shown,)
    """Return which of n tick labels to write where there are ``room`` inches and a label takes ``each``."""
    return np.arange(0, n, max(1, int(np.ceil(n * each / max(room, each)))))


def inches(ax: Axes) -> tuple[float, float]:
    """Return about how wide and high the axes are."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    box = ax.get_window_extent()
    return box.width / figure.dpi, box.height / figure.dpi
