"""Speed and memory: bars, and the roof over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from minicore.errors import InputError
from minicore.plots.axes import add_legend, ink, look, new_axes, numbers, open_frame, plain_log, same_length

Array = np.ndarray


def bars(
    values: Mapping[str, Any],
    groups: Sequence[str],
    unit: str = "tokens/s",
    *,
    intervals: Mapping[str, Any] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw speeds or memory as bars: a colour an engine, a group a model or setting (fig. 7, table 3).

    Parameters
    ----------
    values : mapping of str to (n_groups,) array
        What each engine reached; NaN where it was not measured or did not fit.
    groups : (n_groups,) sequence of str
        What is written under each group.
    unit : str
        What the values are, such as ``"tokens/s"`` or ``"GB"``.
    intervals : mapping of str to (n_groups, 2) array or None
        Low and high end of each value.
    ax : Axes or None
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        Every bar has its value written at its end, n/a where it is NaN.

    Raises
    ------
    InputError
        If there is not one value a group, one is below 0, or there is none at all.

    Examples
    --------
    >>> ax = bars({"dense": [34.7, 3.1], "core": [57.2, 17.2]}, ["LLaMA2-7B", "LLaMA2-70B"])
    >>> [float(bar.get_height()) for bar in ax.patches]
    [34.7, 3.1, 57.2, 17.2]
    """
    tables = {name: numbers(f"values of {name}", v, "(n_groups,)", gaps=True) for name, v in values.items()}
    if not tables or all(np.isnan(v).all() for v in tables.values()):
        raise InputError("there are no values, expected at least one to draw")
    for name, v in tables.items():
        same_length(f"values of {name}", v, len(groups), "groups")
        if (v < 0).any():
            raise InputError(f"values of {name} hold {v[v < 0][0]:g} {unit}, expected 0 or more")
    ends = {name: ends_of(name, v, (intervals or {}).get(name)) for name, v in tables.items()}
    room = len(groups) * (len(tables) + 0.6)
    ax = new_axes(min(max(4.5, 0.5 * room + 1.5), 13), 4) if ax is None else ax
    width = 0.84 / len(tables)
    for i, (name, v) in enumerate(tables.items()):
        x = np.arange(len(groups)) + (i + 0.5) * width - 0.42
        low, high = ends[name].T
        drawn, colour = np.nan_to_num(v), look(ax, i)["color"]
        spread = None if name not in (intervals or {}) else np.nan_to_num([v - low, high - v])
        error = {"ecolor": ink(ax), "elinewidth": 1, "capsize": 2}
        ax.bar(x, drawn, 0.92 * width, yerr=spread, color=colour, label=name, error_kw=error)
        for at, value, top in zip(x, v, high, strict=True):
            text, end = ("n/a", 0.0) if np.isnan(value) else (figure(value), top)
            where = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "va": "bottom"}
            steep = 90 if len(tables) * len(groups) > 16 else 0
            ax.annotate(text, (at, end), color=ink(ax), fontsize=8, rotation=steep, **where)  # type: ignore[arg-type]
    longest = max(len(line) for group in groups for line in group.splitlines() or [""])
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if longest > 9 * len(tables) else {}
    ax.set_xticks(range(len(groups)), list(groups), **turned)  # type: ignore[arg-type]
    ax.set_ylabel(unit)
    ax.set_ylim(0, 1.12 * max(float(np.nanmax(high)) for high in ends.values()) or 1)
    if len(tables) > 1:
        ncols = min(len(tables), 4)
        add_legend(ax, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=ncols)
    open_frame(ax)
    return ax


def ends_of(name: str, values: Array, interval: Any) -> Array:  # (n,), (n, 2) or None -> (n, 2)
    """Return the ends of each value's interval, the value itself twice where there is none."""
    if interval is None:
        return np.stack([values, values], axis=1)
    ends = numbers(f"intervals of {name}", interval, "(n_groups, 2)", gaps=True)
    if ends.shape != (len(values), 2) or (ends[:, 0] > values).any() or (values > ends[:, 1]).any():
        want = f"({len(values)}, 2): low and high, the value between them"
        raise InputError(f"intervals of {name} have shape {ends.shape}, expected {want}")
    return np.where(np.isnan(ends), values[:, None], ends)


def figure(x: float) -> str:
    """Return a value with about three digits."""
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def roofline(
    points: Mapping[str, tuple[float, float]],
    bandwidth: float | Mapping[str, float],
    peak: float,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw kernels under the roof that memory and arithmetic are (Williams et al., CACM 52(4), 2009).

    Parameters
    ----------
    points : mapping of str to (float, float)
        Of each kernel: operations for each byte it reads, and the GFLOP/s it reached.
    bandwidth : float or mapping of str to float
        GB/s, of memory or of each level named.
    peak : float
        GFLOP/s of arithmetic.
    ax : Axes or None
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        Both axes logarithmic.

    Raises
    ------
    InputError
        If a number is not above 0, or there are no points.

    Examples
    --------
    >>> ax = roofline({"gemv float32": (0.5, 9.0), "gemv int8": (2.0, 30.0)}, bandwidth=20, peak=150)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('operations per byte (FLOP/B)', 'speed (GFLOP/s)')
    """
    levels = bandwidth if isinstance(bandwidth, Mapping) else {"memory": bandwidth}
    if not points or not levels:
        raise InputError("there are no points or no bandwidth, expected at least one of each")
    at = {name: numbers(name, point, "(2,)") for name, point in points.items()}
    for value in np.concatenate(
        [*at.values(), numbers("bandwidth", [*levels.values(), peak], "(n_levels,)")]
    ):
        if value <= 0:
            raise InputError(f"the roofline holds {value:g}, expected numbers above 0")
    for name, point in at.items():
        same_length(name, point, 2, "axes: FLOP/B and GFLOP/s")
    ax = new_axes(7, 4.5) if ax is None else ax
    ridges = [peak / level for level in levels.values()]
    x_all = [point[0] for point in at.values()]
    x = np.geomspace(min(*x_all, *ridges) / 4, max(*x_all, *ridges) * 4, 200)
    ax.set(xscale="log", yscale="log")
    for level in levels.values():
        ax.plot(x, np.minimum(level * x, peak), color=ink(ax), linewidth=1.5)
    for i, (name, point) in enumerate(at.items()):
        style = look(ax, i) | {"linestyle": "none"}
        ax.plot(*point, markersize=8, label=name, **style)
    ys = [point[1] for point in at.values()]
    low = min(*ys, *(level * x[0] for level in levels.values())) / 1.5
    ax.set(xlim=(x[0], x[-1]), ylim=(low, peak * 2))
    plain_log(ax.xaxis)
    plain_log(ax.yaxis)
    near: dict[str, Any] = {"textcoords": "offset points", "color": ink(ax), "fontsize": 8}
    ax.annotate(f"{figure(peak)} GFLOP/s", (x[-1], peak), xytext=(-2, 3), ha="right", **near)
    for name, level in levels.items():
        left, up = x[0] * 1.15, level * x[0] * 1.3
        # A line of slope one on two logarithmic axes runs in data as y / x does at the point.
        turn = float(np.degrees(np.arctan(up / left)))
        how: dict[str, Any] = {"rotation": turn, "transform_rotates_text": True, "rotation_mode": "anchor"}
        ax.text(left, up, f"{name}, {figure(level)} GB/s", color=ink(ax), fontsize=8, **how)
    ax.set(xlabel="operations per byte (FLOP/B)", ylabel="speed (GFLOP/s)")
    add_legend(ax, **({} if len(at) > 5 else {"loc": "lower right"}))
    open_frame(ax)
    return ax


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

    Examples
    --------
    >>> speed = {"median": 90.0, "q1": 88.0, "q3": 91.0}
    >>> row = {"context": 64, "n_threads": 1, "dtype": "int8", "beta": None, "bytes_per_token": 1e8}
    >>> report = {
    ...     "model": "minicore-opt-core",
    ...     "decode": [row | {"tokens_per_s": speed}],
    ...     "bandwidth": [{"n_threads": 1, "gb_per_s": {"median": 12.0}}],
    ... }
    >>> [label.get_text() for label in decode_speed(report).get_xticklabels()]
    ['int8']
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
        where = "GPU" if n_threads is None else f"{n_threads} thread{'s' if n_threads > 1 else ''}"
        label = f"{where}, {reads[n_threads] / 1e9:.1f} GB/s"
        style = {"color": look(ax, i)["color"], "ecolor": ink(ax)}
        ax.bar(at, [s["median"] for s in speed], 0.92 * width, yerr=spread, label=label, **style)
        limits = [reads[n_threads] / row["bytes_per_token"] for row in mine]
        ends = [x - width / 2 for x in at], [x + width / 2 for x in at]
        ax.hlines(limits, *ends, color=ink(ax), label="" if i else "bandwidth over bytes a token")
    names = [dtype if beta is None else f"{dtype}\ncore {beta}" for dtype, beta in settings]
    ax.set_xticks(range(len(settings)), names)
    ax.set_ylabel("tokens/s")
    ax.set_title(f"{report['model']}: decoding after {context} tokens", fontsize=11)
    top = max(reads[row["n_threads"]] / row["bytes_per_token"] for row in rows)
    top = max(top, *(row["tokens_per_s"]["q3"] for row in rows))
    ax.set_ylim(0, 1.35 * top)  # the legend goes above everything drawn
    add_legend(ax, loc="upper left")
    open_frame(ax)
    return ax
