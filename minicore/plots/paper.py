"""The paper's figures and tables: results of an experiment in, a matplotlib Figure out.

Each function draws the result of the function of the same name in :mod:`minicore.reproduce`, as read from
JSON: tuples are lists, and keys are strings.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from minicore.plots.activations import frequency_grid
from minicore.plots.axes import (
    add_legend,
    color_scale,
    open_frame,
    plain_log,
    readable_on,
    series_style,
    text_color,
)
from minicore.plots.quality import quality_curves, similarity_scatter
from minicore.plots.sets import draw_coordinates, draw_points, stability_curves
from minicore.plots.speed import bars
from minicore.plots.text import CHARACTER, text_activations

Results = dict[str, Any]


def draw(name: str, results: Results) -> Figure:
    """Return the figure of an experiment."""
    figures = {one.__name__: one for one in FIGURES}
    return figures[name](results)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of the given size in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def line_with_interval(
    ax: Axes, i: int, x: Sequence[float], values: Sequence[Sequence[float]], label: str
) -> None:
    """Draw the i-th series: estimates with their intervals, each (estimate, low, high)."""
    y, low, high = np.array(values).T
    style = series_style(ax, i)
    ax.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
    ax.plot(x, y, label=label, markersize=5, **style)


def legend_beside(figure: Figure, ax: Axes) -> None:
    """Draw the legend of one of a figure's axes to the right of all of them."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside right center",
        frameon=False,
        fontsize=11,
        markerscale=1.6,  # makes the markers of small points distinguishable
        labelcolor=text_color(ax),
    )


# --- one text ---


def fig2(results: Results) -> Figure:
    figure = new_figure(13, 4)
    axes = figure.subplots(1, 3)
    for i, (ax, kind) in enumerate(zip(axes, ("alpha", "beta"), strict=False)):
        rows = [row for row in results["table"] if row["kept by"] == kind]
        x, values = [row["fraction"] for row in rows], [row["ratio to dense"] for row in rows]
        line_with_interval(ax, i, x, values, kind)
        ax.axhline(1, color=text_color(ax), linewidth=1, linestyle="--")
        ax.set_yscale("log")
        plain_log(ax.yaxis)
        ax.set(ylabel="perplexity relative to dense", xlim=(0, 1))
        open_frame(ax)
    axes[0].set(xlabel="alpha", title="each token keeps its own core")
    axes[1].set(xlabel="beta", title="a text keeps its core (alpha 0.4)")
    drawn = results["drawn"]
    draw_points(np.array(drawn["points"]), drawn["labels"], "t-SNE", axes[2], size=14)
    axes[2].set_title(f"tokens' sets of {drawn['n_texts']} texts, layer {drawn['layer']}")
    if len(set(drawn["labels"])) > 1:
        legend_beside(figure, axes[2])
    return figure


def fig3(results: Results) -> Figure:
    drawn = results["drawn"]
    figure = new_figure(13, 7.5)
    above, below = figure.subfigures(2, 1, height_ratios=[1.15, 1], squeeze=False)[:, 0]
    axes = above.subplots(1, 3)
    draw_similarity(axes[0], results["table"], "meaning", "of meaning (cosine of hidden states)")
    draw_similarity(axes[1], results["table"], "core", "of core neurons (Jaccard)")
    handles, labels = axes[0].get_legend_handles_labels()
    color = text_color(axes[0])
    above.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, labelcolor=color
    )
    draw_coordinates(drawn["points"], drawn["marks"], "PCA", axes[2])
    axes[2].set_title(f"one text's set, layer {drawn['layer']}")
    top = top_share(drawn["counts"][1:], drawn["lengths"][1:])
    grids = below.subplots(1, len(drawn["lengths"]))
    for ax, length, counts in zip(grids, drawn["lengths"], drawn["counts"], strict=True):
        frequency_grid(counts, length, 256, vmax=top, ax=ax, colorbar=ax is grids[-1])
        ax.set_title(f"{length} tokens")
        ax.set(xlabel="", ylabel="" if ax is not grids[0] else "neuron at the row's start")
        if ax is not grids[0]:
            ax.set_yticks([])
    below.supxlabel(
        f"256 neurons of layer {drawn['layer']}: share of tokens that have them as core", fontsize=10
    )
    return figure


def draw_similarity(ax: Axes, table: Sequence[dict[str, Any]], column: str, title: str) -> None:
    """Draw similarity against tokens added, one line per length of the text before."""
    for i, base in enumerate(dict.fromkeys(row["base"] for row in table)):
        rows = [row for row in table if row["base"] == base]
        x, values = [row["added"] for row in rows], [row[column] for row in rows]
        line_with_interval(ax, i, x, values, f"{base} tokens before")
    ax.set(xlabel="tokens added", ylabel="similarity", ylim=(min(0, ax.get_ylim()[0]), 1.02))
    ax.set_title(title)
    open_frame(ax)


def top_share(counts: Sequence[Sequence[int]], lengths: Sequence[int]) -> float:
    """Return the fraction of tokens that few neurons exceed: where the color scale of several grids ends."""
    shares = [np.array(one) / n for one, n in zip(counts, lengths, strict=True)]
    return max(float(np.quantile(np.concatenate(shares), 0.995)), 0.05)


def fig8(results: Results) -> Figure:
    figure = new_figure(8, 4.5)
    drawn = results["drawn"]
    stability_curves(
        drawn["lengths"],
        drawn["curves"],
        label="Jaccard similarity to the set 32 tokens before",
        ax=figure.subplots(),
    )
    return figure


def fig12(results: Results) -> Figure:
    drawn = results["drawn"]
    n = len(drawn["layers"])
    figure = new_figure(4.4 * n + 0.6, 3)
    top = top_share(drawn["counts"], [drawn["n_tokens"]] * n)
    axes = figure.subplots(1, n, squeeze=False)[0]
    for ax, layer, counts in zip(axes, drawn["layers"], drawn["counts"], strict=True):
        frequency_grid(counts, drawn["n_tokens"], None, vmax=top, ax=ax, colorbar=ax is axes[-1])
        ax.set_title(f"layer {layer}: all {len(counts)} neurons")
        if ax is not axes[0]:
            ax.set_ylabel("")
    return figure


# --- many texts ---


def fig4(results: Results) -> Figure:
    drawn = results["drawn"]
    n = len(drawn["layers"])
    figure = new_figure(4 * n + 1.5, 4)
    axes = figure.subplots(1, n, squeeze=False)[0]
    for ax, layer, points, ari in zip(axes, drawn["layers"], drawn["points"], drawn["ari"], strict=True):
        draw_points(np.array(points), drawn["labels"], "t-SNE", ax)
        ax.set_title(f"layer {layer}: adjusted Rand index {ari:.2f}")
    legend_beside(figure, axes[-1])
    return figure


def fig9(results: Results) -> Figure:
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    layers = [row["layer"] for row in results["table"]]
    for i, name in enumerate(("one topic", "two topics")):
        left.plot(
            layers, [row[name] for row in results["table"]], label=f"texts on {name}", **series_style(left, i)
        )
    right.plot(layers, [row["told apart"] for row in results["table"]], **series_style(right, 2))
    right.axhline(0.5, color=text_color(right), linewidth=1, linestyle="--")
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    left.set(xlabel="layer", ylabel="Jaccard similarity, mean over pairs")
    left.set_ylim(bottom=0)
    right.set(xlabel="layer", ylabel="a pair on one topic is the closer one")
    add_legend(left)
    for ax in (left, right):
        whole_ticks(ax, layers)
        open_frame(ax)
    return figure


def whole_ticks(ax: Axes, layers: Sequence[int]) -> None:
    """Set ticks at whole layers, at most a dozen."""
    ax.set_xticks(layers[:: max(1, -(-len(layers) // 12))])


def fig11(results: Results) -> Figure:
    drawn = results["drawn"]
    counts = np.array(drawn["counts"])
    n_clusters, n_topics = counts.shape
    figure = new_figure(12.5, 0.45 * n_clusters + 1.6)
    ax, beside = figure.subplots(1, 2, width_ratios=[n_topics * 0.55, 9.5 - 0.2 * n_topics])
    colors = color_scale(ax, counts)
    ax.imshow(counts, aspect="auto", **colors)
    for (i, j), value in np.ndenumerate(counts):
        ink_on = readable_on(colors["cmap"](value / counts.max()))
        ax.text(j, i, str(value), ha="center", va="center", color=ink_on, fontsize=9)
    ax.set_xticks(range(n_topics), drawn["topics"], rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(n_clusters))
    ax.set(ylabel="cluster", title=f"texts by topic, layer {drawn['layer']}")
    beside.set_ylim(ax.get_ylim())
    beside.set_title("the text nearest to the cluster's centre", loc="left")
    beside.set_axis_off()
    for i, text in enumerate(drawn["texts"]):
        lines = textwrap.fill(text.replace("$", r"\$") + "...", 104)
        beside.text(0, i, lines, va="center", fontsize=9.5, color=text_color(beside))
    return figure


def table1(results: Results) -> Figure:
    drawn = results["drawn"]
    figure = new_figure(11, 4.5)
    left, right = figure.subplots(1, 2)
    similarity_scatter(drawn["scores"], drawn["core"], rho=drawn["rho"], ax=left)
    left.set_xlabel("similarity of meaning, by people (0 to 5)")
    left.set_title(f"{drawn['what']}\n{left.get_title()}", fontsize=10)
    for i, (name, values) in enumerate(drawn["by_layer"].items()):
        right.plot(range(len(values)), values, label=name, **series_style(right, i))
    whole_ticks(right, range(len(values)))
    right.set(xlabel="layer", ylabel="Spearman's ρ", title=drawn["measure"])
    add_legend(right)
    open_frame(right)
    return figure


# --- decoding ---


def fig5(results: Results) -> Figure:
    ways = results["drawn"]["ways"]
    figure = new_figure(9.5, 1)
    axes = figure.subplots(len(ways), 1)
    figure.suptitle(textwrap.fill(results["drawn"]["prompt"].replace("$", r"\$"), 105), fontsize=9)
    for ax, way in zip(axes, ways, strict=True):
        label = "surprise of the whole model (nats)"
        pieces = one_break(way["pieces"])
        text_activations(pieces, way["nats"], width=104, vmax=10, label=label, ax=ax, colorbar=ax is axes[-1])
        ax.set_title(f"{way['neurons']} writes on", loc="left", fontsize=10, fontweight="bold")
    heights = [-ax.get_ylim()[0] * CHARACTER for ax in axes]  # of the texts, in inches
    axes[0].get_gridspec().set_height_ratios(heights)
    figure.set_size_inches(9.5, 1.02 * sum(heights) + 0.35 * len(ways) + 1.1)
    return figure


def one_break(pieces: list[str]) -> list[str]:
    """Return a text's pieces with every run of line breaks on one line, so that it breaks only once."""
    following = [*pieces[1:], ""]
    return [
        piece.replace("\n", "↵") if piece.strip("\n") == "" and after.startswith("\n") else piece
        for piece, after in zip(pieces, following, strict=True)
    ]


def fig6(results: Results) -> Figure:
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2)
    labels = {"stability": "stability-guided (beta)", "similarity": "similarity-guided (gamma)"}
    rows = [row | {"predictor": labels[row["predictor"]]} for row in results["drawn"]["rows"]]
    quality_curves(rows, "ratio", ax=left)
    quality_curves(rows, "agreement", ax=right)
    return figure


def table2(results: Results) -> Figure:
    figure = new_figure(11, 4)
    for ax, (name, rows) in zip(
        figure.subplots(1, 2, sharey=True), results["drawn"]["rows"].items(), strict=True
    ):
        predictors = list(dict.fromkeys(row["predictor"] for row in rows))
        for i, predictor in enumerate(predictors):
            mine = [row for row in rows if row["predictor"] == predictor]
            x = [row["beta"] + 0.012 * (i - 1) for row in mine]
            y, low, high = np.array([row["ratio"] for row in mine]).T
            style = series_style(ax, i) | {"linestyle": "none"}
            ax.errorbar(x, y, [y - low, high - y], label=predictor, capsize=3, **style)
        ax.axhline(1, color=text_color(ax), linewidth=1, linestyle="--")
        ax.set(xlabel="neurons kept (beta, gamma)", title=name, yscale="log", xlim=(0, 0.6))
        ax.set_xticks(sorted({row["beta"] for row in rows}))
        plain_log(ax.yaxis)
        open_frame(ax)
        add_legend(ax)
    figure.axes[0].set_ylabel("perplexity relative to dense")
    return figure


def table3(results: Results) -> Figure:
    figure = new_figure(12, 4)
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    table = results["table"]
    kinds = list(dict.fromkeys(row["neurons"] for row in table))
    groups = list(dict.fromkeys((row["format"], row["threads"]) for row in table))
    at = {(row["format"], row["threads"], row["neurons"]): row for row in table}
    names = [f"{format}\n{n} thread{'s' if n > 1 else ''}" for format, n in groups]
    speed = {kind: [at[(*group, kind)]["tokens/s"] for group in groups] for kind in kinds}
    bars(
        {kind: [values[0] for values in rows] for kind, rows in speed.items()},
        names,
        intervals={kind: [values[1:] for values in rows] for kind, rows in speed.items()},
        ax=left,
    )
    formats = list(dict.fromkeys(format for format, _ in groups))
    read = {kind: [at[format, groups[0][1], kind]["MB a token"] for format in formats] for kind in kinds}
    bars(read, formats, "MB read a token", ax=right)
    return figure


def table4(results: Results) -> Figure:
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    table = results["table"]
    names = {"stability": "stability-guided,\nforced", "similarity": "similarity-guided"}
    for ax, column, label in (
        (left, "ratio", "perplexity relative to dense"),
        (right, "agreement", "tokens with dense's first choice"),
    ):
        rows = np.array([row[column] for row in table])
        x = np.arange(len(table))
        colors = [series_style(ax, i)["color"] for i in range(len(table))]
        spread = [rows[:, 0] - rows[:, 1], rows[:, 2] - rows[:, 0]]
        ax.bar(x, rows[:, 0], 0.6, yerr=spread, color=colors, ecolor=text_color(ax), capsize=4)
        ax.set_xticks(x, [names[row["predictor"]] for row in table])
        ax.set_ylabel(label)
        open_frame(ax)
    left.axhline(1, color=text_color(left), linewidth=1, linestyle="--")
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


FIGURES = (fig2, fig3, fig4, fig5, fig6, fig8, fig9, fig11, fig12, table1, table2, table3, table4)
