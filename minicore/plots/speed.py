"""Speed and memory: bars, the roofline, and the results of `minicore bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from minicore.errors import InputError
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


def bars(
    values: Mapping[str, Any],
    groups: Sequence[str],
    unit: str = "tokens/s",
    *,
    intervals: Mapping[str, Any] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw speeds or memory as bars: one color per engine, one group per model or setting (fig. 7, table 3).

    Parameters
    ----------
    values : mapping of str to (n_groups,) array
        Results of each engine; NaN if not measured, or if the model did not fit.
    groups : (n_groups,) sequence of str
        Labels of the groups.
    unit : str
        Unit of the values, such as ``"tokens/s"`` or ``"GB"``.
    intervals : mapping of str to (n_groups, 2) array or None
        Low and high end of each value's interval.
    ax : Axes or None
        Axes to draw on; None makes a figure.

    Returns
    -------
    Axes
        The value is written above each bar, n/a for NaN.

    Raises
    ------
    InputError
        If there is not one value per group, a value is below 0, or there are no values.

    Examples
    --------
    >>> ax = bars({"dense": [34.7, 3.1], "core": [57.2, 17.2]}, ["LLaMA2-7B", "LLaMA2-70B"])
    >>> [float(bar.get_height()) for bar in ax.patches]
    [34.7, 3.1, 57.2, 17.2]
    """
    tables = {
        name: checked_array(f"values of {name}", v, "(n_groups,)", gaps=True) for name, v in values.items()
    }
    if not tables or all(np.isnan(v).all() for v in tables.values()):
        raise InputError("there are no values, expected at least one to draw")
    for name, v in tables.items():
        check_length(f"values of {name}", v, len(groups), "groups")
        if (v < 0).any():
            raise InputError(f"values of {name}: {v[v < 0][0]:g} {unit}, expected 0 or more")
    intervals = intervals or {}
    ends = {name: interval_ends(name, v, intervals.get(name)) for name, v in tables.items()}
    room = len(groups) * (len(tables) + 0.6)
    ax = new_axes(min(max(4.5, 0.5 * room + 1.5), 13), 4) if ax is None else ax
    width = 0.84 / len(tables)
    for i, (name, v) in enumerate(tables.items()):
        x = np.arange(len(groups)) + (i + 0.5) * width - 0.42
        spread = np.nan_to_num(np.abs(ends[name].T - v)) if name in intervals else None
        error = {"ecolor": text_color(ax), "elinewidth": 1, "capsize": 2}
        color = series_style(ax, i)["color"]
        ax.bar(x, np.nan_to_num(v), 0.92 * width, yerr=spread, color=color, label=name, error_kw=error)
        label_bars(ax, x, v, ends[name][:, 1], vertical=len(tables) * len(groups) > 16)
    label_groups(ax, groups, len(tables))
    ax.set_ylabel(unit)
    ax.set_ylim(0, 1.12 * max(float(np.nanmax(end)) for end in ends.values()) or 1)
    if len(tables) > 1:
        add_legend(ax, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=min(len(tables), 4))
    open_frame(ax)
    return ax


def interval_ends(name: str, values: Array, interval: Any) -> Array:  # (n,), (n, 2) or None -> (n, 2)
    """Return the ends of each value's interval; without an interval, the value twice."""
    if interval is None:
        return np.stack([values, values], axis=1)
    ends = checked_array(f"intervals of {name}", interval, "(n_groups, 2)", gaps=True)
    if ends.shape != (len(values), 2) or (ends[:, 0] > values).any() or (values > ends[:, 1]).any():
        expected = f"({len(values)}, 2): low and high, with the value in between"
        raise InputError(f"intervals of {name} have shape {ends.shape}, expected {expected}")
    return np.where(np.isnan(ends), values[:, None], ends)


def label_bars(ax: Axes, x: Array, values: Array, tops: Array, vertical: bool) -> None:
    """Write each value above its bar."""
    for at, value, top in zip(x, values, tops, strict=True):
        text, y = ("n/a", 0.0) if np.isnan(value) else (three_digits(value), top)
        ax.annotate(
            text,
            (at, y),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=text_color(ax),
            fontsize=8,
            rotation=90 if vertical else 0,
        )


def label_groups(ax: Axes, groups: Sequence[str], n_bars: int) -> None:
    """Write the groups' labels; turn them if they are wider than their bars."""
    longest = max(len(line) for group in groups for line in group.splitlines() or [""])
    if longest > 9 * n_bars:
        ax.set_xticks(range(len(groups)), list(groups), rotation=30, ha="right", rotation_mode="anchor")
    else:
        ax.set_xticks(range(len(groups)), list(groups))


def three_digits(x: float) -> str:
    """Return a number with about three significant digits."""
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def roofline(
    points: Mapping[str, tuple[float, float]],
    bandwidth: float | Mapping[str, float],
    peak: float,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw kernels under the roofline of memory bandwidth and arithmetic (Williams et al., CACM 52(4), 2009).

    Parameters
    ----------
    points : mapping of str to (float, float)
        For each kernel, arithmetic intensity (FLOP per byte read) and speed (GFLOP/s).
    bandwidth : float or mapping of str to float
        GB/s of memory, or of each named memory level.
    peak : float
        Peak GFLOP/s.
    ax : Axes or None
        Axes to draw on; None makes a figure.

    Returns
    -------
    Axes
        Both axes are logarithmic.

    Raises
    ------
    InputError
        If a number is not positive, or there are no points.

    Examples
    --------
    >>> ax = roofline({"gemv float32": (0.5, 9.0), "gemv int8": (2.0, 30.0)}, bandwidth=20, peak=150)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('operations per byte (FLOP/B)', 'speed (GFLOP/s)')
    """
    levels = bandwidth if isinstance(bandwidth, Mapping) else {"memory": bandwidth}
    if not points or not levels:
        raise InputError("there are no points or no bandwidth, expected at least one of each")
    at = {name: checked_array(name, point, "(2,)") for name, point in points.items()}
    limits = checked_array("bandwidth", [*levels.values(), peak], "(n_levels,)")
    for value in np.concatenate([*at.values(), limits]):
        if value <= 0:
            raise InputError(f"the roofline: {value:g}, expected numbers above 0")
    for name, point in at.items():
        check_length(name, point, 2, "axes: FLOP/B and GFLOP/s")
    ax = new_axes(7, 4.5) if ax is None else ax
    ridges = [peak / level for level in levels.values()]
    x_all = [point[0] for point in at.values()]
    x = np.geomspace(min(*x_all, *ridges) / 4, max(*x_all, *ridges) * 4, 200)
    ax.set(xscale="log", yscale="log")
    for level in levels.values():
        ax.plot(x, np.minimum(level * x, peak), color=text_color(ax), linewidth=1.5)
    for i, (name, (intensity, speed)) in enumerate(at.items()):
        style = series_style(ax, i) | {"linestyle": "none"}
        ax.plot(intensity, speed, markersize=8, label=name, **style)
    lowest = min(*(point[1] for point in at.values()), *(level * x[0] for level in levels.values()))
    ax.set(xlim=(x[0], x[-1]), ylim=(lowest / 1.5, peak * 2))
    plain_log(ax.xaxis)
    plain_log(ax.yaxis)
    label_roofs(ax, levels, peak, x[0], x[-1])
    ax.set(xlabel="operations per byte (FLOP/B)", ylabel="speed (GFLOP/s)")
    add_legend(ax, **({} if len(at) > 5 else {"loc": "lower right"}))
    open_frame(ax)
    return ax


def label_roofs(ax: Axes, levels: Mapping[str, float], peak: float, left: float, right: float) -> None:
    """Write peak and bandwidths at their lines."""
    style: dict[str, Any] = {"color": text_color(ax), "fontsize": 8}
    offset: dict[str, Any] = {"xytext": (-2, 3), "textcoords": "offset points", "ha": "right"}
    ax.annotate(f"{three_digits(peak)} GFLOP/s", (right, peak), **offset, **style)
    for name, level in levels.items():
        x, y = left * 1.15, level * left * 1.3
        # on two logarithmic axes, a line of slope one has the slope y / x in data coordinates
        angle = float(np.degrees(np.arctan(y / x)))
        turn: dict[str, Any] = {"rotation": angle, "transform_rotates_text": True, "rotation_mode": "anchor"}
        ax.text(x, y, f"{name}, {three_digits(level)} GB/s", **turn, **style)


def decode_speed(report: dict[str, Any], context: int | None = None, ax: Axes | None = None) -> Axes:
    """Draw decode speeds of `minicore bench` as bars, each with the limit that memory bandwidth sets.

    Parameters
    ----------
    report : dict
        The result of :func:`minicore.bench.measure`.
    context : int or None
        Tokens in the kv cache; None is the first context that was measured.
    ax : Axes or None
        Axes to draw on; None makes a figure.

    Returns
    -------
    Axes
        Medians with quartiles, in tokens per second.

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
    bandwidths = {row["n_threads"]: row["gb_per_s"]["median"] * 1e9 for row in report["bandwidth"]}
    settings = list(dict.fromkeys((row["dtype"], row["beta"]) for row in rows))
    ax = new_axes(max(5, 1.1 * len(settings) + 1.5)) if ax is None else ax
    width = 0.8 / len(bandwidths)
    for i, (n_threads, bandwidth) in enumerate(bandwidths.items()):
        mine = [row for row in rows if row["n_threads"] == n_threads]
        x = np.array([settings.index((row["dtype"], row["beta"])) for row in mine]) + (i + 0.5) * width - 0.4
        low, median, high = (
            np.array([row["tokens_per_s"][key] for row in mine]) for key in ("q1", "median", "q3")
        )
        device = "GPU" if n_threads is None else f"{n_threads} thread{'s' if n_threads > 1 else ''}"
        style = {"color": series_style(ax, i)["color"], "ecolor": text_color(ax)}
        style["label"] = f"{device}, {bandwidth / 1e9:.1f} GB/s"
        ax.bar(x, median, 0.92 * width, yerr=[median - low, high - median], **style)
        limits = [bandwidth / row["bytes_per_token"] for row in mine]
        label = "" if i else "bandwidth over bytes a token"
        ax.hlines(limits, x - width / 2, x + width / 2, color=text_color(ax), label=label)
    names = [dtype if beta is None else f"{dtype}\ncore {beta}" for dtype, beta in settings]
    ax.set_xticks(range(len(settings)), names)
    ax.set_ylabel("tokens/s")
    ax.set_title(f"{report['model']}: decoding after {context} tokens", fontsize=11)
    top = max(bandwidths[row["n_threads"]] / row["bytes_per_token"] for row in rows)
    top = max(top, *(row["tokens_per_s"]["q3"] for row in rows))
    ax.set_ylim(0, 1.35 * top)  # leaves room for the legend
    add_legend(ax, loc="upper left")
    open_frame(ax)
    return ax
