"""Numbers in, matplotlib Axes out. Matplotlib is imported when something is drawn."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from minicore.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def new_axes(width: float = 7, height: float = 4) -> Axes:
    """Return the axes of a figure of its own, in inches, that no window manager knows of."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained").subplots()


def check_format(path: str) -> str:
    """Return the format that a file's ending asks for; raise InputError if matplotlib writes none such."""
    from matplotlib.figure import Figure

    known = Figure().canvas.get_supported_filetypes()
    ending = path.rpartition(".")[2].lower() if "." in path else ""
    if ending not in known:
        raise InputError(f"{path}: a plot's name ends in one of {', '.join('.' + k for k in sorted(known))}")
    return ending


def save(ax: Axes, path: str | PathLike[str], format: str | None = None) -> None:
    """Write the axes' figure to a file."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.savefig(path, format=format, dpi=150)


def decode_speed(report: dict[str, Any], context: int | None = None, ax: Axes | None = None) -> Axes:
    """Draw decode speeds of `minicore bench` as bars, each under the line that bandwidth allows it.

    Parameters
    ----------
    report : dict
        What :func:`minicore.bench.measure` returned.
    context : int or None
        Tokens in the kv cache; None is the first that was measured.
    ax : Axes or None
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        Tokens a second, medians with quartiles.
    """
    context = report["decode"][0]["context"] if context is None else context
    rows = [row for row in report["decode"] if row["context"] == context]
    reads = {row["n_threads"]: row["gb_per_s"]["median"] * 1e9 for row in report["bandwidth"]}
    settings = list(dict.fromkeys((row["dtype"], row["beta"]) for row in rows))
    ax = new_axes(max(5, 1.1 * len(settings) + 1.5)) if ax is None else ax
    width = 0.8 / len(reads)
    for i, n_threads in enumerate(reads):
        mine = [row for row in rows if row["n_threads"] == n_threads]
        at = [settings.index((row["dtype"], row["beta"])) + (i + 0.5) * width - 0.4 for row in mine]
        speed = [row["tokens_per_s"] for row in mine]
        spread = [
            [s["median"] - s["q1"] for s in speed],
            [s["q3"] - s["median"] for s in speed],
        ]
        label = f"{n_threads} thread{'s' if n_threads > 1 else ''}, {reads[n_threads] / 1e9:.1f} GB/s"
        ax.bar(at, [s["median"] for s in speed], 0.92 * width, yerr=spread, color=f"C{i}", label=label)
        limits = [reads[n_threads] / row["bytes_per_token"] for row in mine]
        ends = [x - width / 2 for x in at], [x + width / 2 for x in at]
        ax.hlines(limits, *ends, color="black", label="" if i else "bandwidth over bytes a token")
    names = [dtype if beta is None else f"{dtype}\ncore {beta}" for dtype, beta in settings]
    ax.set_xticks(range(len(settings)), names)
    ax.set_ylabel("tokens/s")
    ax.set_title(f"{report['model']}: decoding after {context} tokens", fontsize=11)
    top = max(reads[row["n_threads"]] / row["bytes_per_token"] for row in rows)
    top = max(top, *(row["tokens_per_s"]["q3"] for row in rows))
    ax.set_ylim(0, 1.35 * top)  # the legend goes above everything drawn
    ax.legend(frameon=False, fontsize=9, loc="upper left")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
