"""The paper's figures and tables as pictures: what an experiment found in, a matplotlib Figure out.

Each function draws what the function of the same name in :mod:`minicore.reproduce` returned, once it has
been JSON: tuples are lists, keys are texts.
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
from minicore.plots.axes import add_legend, ink, look, open_frame, plain_log, readable_on, scale
from minicore.plots.quality import quality_curves, similarity_scatter
from minicore.plots.sets import draw_coordinates, draw_points, stability_curves
from minicore.plots.speed import bars
from minicore.plots.text import CHARACTER, text_activations

Found = dict[str, Any]


def draw(name: str, found: Found) -> Figure:
    """Return the picture of an experiment."""
    pictures = {one.__name__: one for one in PICTURES}
    return pictures[name](found)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def band(ax: Axes, i: int, x: Sequence[float], values: Sequence[Sequence[float]], label: str) -> None:
    """Draw estimates with their intervals, (estimate, low, high) each."""
    y, low, high = np.array(values).T
    style = look(ax, i)
    ax.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
    ax.plot(x, y, label=label, markersize=5, **style)


def legend_beside(figure: Figure, ax: Axes) -> None:
    """Draw the legend of axes with points at the figure's right, for all of its axes."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside right center",
        frameon=False,
        fontsize=11,
        markerscale=1.6,  # small points' markers are to be told apart
        labelcolor=ink(ax),
    )


# --- one text ---


def fig2(found: Found) -> Figure:
    figure = new_figure(13, 4)
    axes = figure.subplots(1, 3)
    for i, (ax, kind) in enumerate(zip(axes, ("alpha", "beta"), strict=False)):
        rows = [row for row in found["table"] if row["kept by"] == kind]
        band(ax, i, [row["fraction"] for row in rows], [row["ratio to dense"] for row in rows], kind)
        ax.axhline(1, color=ink(ax), linewidth=1, linestyle="--")
        ax.set_yscale("log")
        plain_log(ax.yaxis)
        ax.set(ylabel="perplexity over dense", xlim=(0, 1))
        open_frame(ax)
    axes[0].set(xlabel="alpha", title="each token keeps its own core")
    axes[1].set(xlabel="beta", title="a text keeps its core (alpha 0.4)")
    drawn = found["drawn"]
    draw_points(np.array(drawn["points"]), drawn["labels"], "t-SNE", axes[2], size=14)
    axes[2].set_title(f"tokens' sets of {drawn['n_texts']} texts, layer {drawn['layer']}")
    if len(set(drawn["labels"])) > 1:
        legend_beside(figure, axes[2])
    return figure


def fig3(found: Found) -> Figure:
    drawn, table = found["drawn"], found["table"]
    figure = new_figure(13, 7.5)
    above, below = figure.subfigures(2, 1, height_ratios=[1.15, 1], squeeze=False)[:, 0]
    axes = above.subplots(1, 3)
    for ax, column, title in zip(
        axes,
        ("meaning", "core"),
        ("of meaning (cosine of hidden states)", "of core neurons (Jaccard)"),
        strict=False,
    ):
        for i, base in enumerate(dict.fromkeys(row["base"] for row in table)):
            rows = [row for row in table if row["base"] == base]
            band(
                ax, i, [row["added"] for row in rows], [row[column] for row in rows], f"{base} tokens before"
            )
        ax.set(xlabel="tokens added", ylabel="similarity", ylim=(min(0, ax.get_ylim()[0]), 1.02))
        ax.set_title(title)
        open_frame(ax)
    handles, labels = axes[0].get_legend_handles_labels()
    above.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, labelcolor=ink(axes[0])
    )
    draw_coordinates(drawn["points"], drawn["marks"], "PCA", axes[2])
    axes[2].set_title(f"one text's set, layer {drawn['layer']}")
    grids = below.subplots(1, len(drawn["lengths"]))
    for ax, length, counts in zip(grids, drawn["lengths"], drawn["counts"], strict=True):
        last = ax is grids[-1]
        frequency_grid(
            counts,
            length,
            256,
            vmax=top_share(drawn["counts"][1:], drawn["lengths"][1:]),
            ax=ax,
            colorbar=last,
        )
        ax.set_title(f"{length} tokens")
        ax.set(xlabel="", ylabel="" if ax is not grids[0] else "neuron at the row's start")
        if ax is not grids[0]:
            ax.set_yticks([])
    below.supxlabel(
        f"256 neurons of layer {drawn['layer']}: share of tokens that have them as core", fontsize=10
    )
    return figure


def top_share(counts: Sequence[Sequence[int]], lengths: Sequence[int]) -> float:
    """Return the share of tokens that few neurons exceed: where the colours of several grids end."""
    shares = [np.array(one) / n for one, n in zip(counts, lengths, strict=True)]
    return max(float(np.quantile(np.concatenate(shares), 0.995)), 0.05)


def fig8(found: Found) -> Figure:
    figure = new_figure(8, 4.5)
    drawn = found["drawn"]
    stability_curves(
        drawn["lengths"],
        drawn["curves"],
        label="Jaccard similarity to the set 32 tokens before",
        ax=figure.subplots(),
    )
    return figure


def fig12(found: Found) -> Figure:
    drawn = found["drawn"]
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


def fig4(found: Found) -> Figure:
    drawn = found["drawn"]
    n = len(drawn["layers"])
    figure = new_figure(4 * n + 1.5, 4)
    axes = figure.subplots(1, n, squeeze=False)[0]
    for ax, layer, points, ari in zip(axes, drawn["layers"], drawn["points"], drawn["ari"], strict=True):
        draw_points(np.array(points), drawn["labels"], "t-SNE", ax)
        ax.set_title(f"layer {layer}: adjusted Rand index {ari:.2f}")
    legend_beside(figure, axes[-1])
    return figure


def fig9(found: Found) -> Figure:
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    layers = [row["layer"] for row in found["table"]]
    for i, name in enumerate(("one topic", "two topics")):
        left.plot(layers, [row[name] for row in found["table"]], label=f"texts on {name}", **look(left, i))
    right.plot(layers, [row["told apart"] for row in found["table"]], **look(right, 2))
    right.axhline(0.5, color=ink(right), linewidth=1, linestyle="--")
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
    """Put ticks at whole layers, at most a dozen."""
    ax.set_xticks(layers[:: max(1, -(-len(layers) // 12))])


def fig11(found: Found) -> Figure:
    drawn = found["drawn"]
    counts = np.array(drawn["counts"])
    n_clusters, n_topics = counts.shape
    figure = new_figure(12.5, 0.45 * n_clusters + 1.6)
    ax, beside = figure.subplots(1, 2, width_ratios=[n_topics * 0.55, 9.5 - 0.2 * n_topics])
    colours = scale(ax, counts)
    ax.imshow(counts, aspect="auto", **colours)
    for (i, j), value in np.ndenumerate(counts):
        ink_on = readable_on(colours["cmap"](value / counts.max()))
        ax.text(j, i, str(value), ha="center", va="center", color=ink_on, fontsize=9)
    ax.set_xticks(range(n_topics), drawn["topics"], rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(n_clusters))
    ax.set(ylabel="cluster", title=f"texts by topic, layer {drawn['layer']}")
    beside.set_ylim(ax.get_ylim())
    beside.set_title("the text nearest to the cluster's centre", loc="left")
    beside.set_axis_off()
    for i, text in enumerate(drawn["texts"]):
        lines = textwrap.fill(text.replace("$", r"\$") + "...", 104)
        beside.text(0, i, lines, va="center", fontsize=9.5, color=ink(beside))
    return figure


def table1(found: Found) -> Figure:
    drawn = found["drawn"]
    figure = new_figure(11, 4.5)
    left, right = figure.subplots(1, 2)
    similarity_scatter(drawn["scores"], drawn["core"], rho=drawn["rho"], ax=left)
    left.set_xlabel("similarity of meaning, by people (0 to 5)")
    left.set_title(f"{drawn['what']}\n{left.get_title()}", fontsize=10)
    for i, (name, values) in enumerate(drawn["by_layer"].items()):
        right.plot(range(len(values)), values, label=name, **look(right, i))
    whole_ticks(right, range(len(values)))
    right.set(xlabel="layer", ylabel="Spearman's ρ", title=drawn["measure"])
    add_legend(right)
    open_frame(right)
    return figure


# --- decoding ---


def fig5(found: Found) -> Figure:
    ways = found["drawn"]["ways"]
    figure = new_figure(9.5, 1)
    axes = figure.subplots(len(ways), 1)
    figure.suptitle(textwrap.fill(found["drawn"]["prompt"].replace("$", r"\$"), 105), fontsize=9)
    for ax, way in zip(axes, ways, strict=True):
        label = "surprise of the whole model (nats)"
        pieces = one_break(way["pieces"])
        text_activations(pieces, way["nats"], width=104, vmax=10, label=label, ax=ax, colorbar=ax is axes[-1])
        ax.set_title(f"{way['neurons']} writes on", loc="left", fontsize=10, fontweight="bold")
    heights = [-ax.get_ylim()[0] * CHARACTER for ax in axes]  # what each text needs, in inches
    axes[0].get_gridspec().set_height_ratios(heights)
    figure.set_size_inches(9.5, 1.02 * sum(heights) + 0.35 * len(ways) + 1.1)
    return figure


def one_break(pieces: list[str]) -> list[str]:
    """Return a text's pieces with runs of line breaks on one line, which breaks behind the last."""
    following = [*pieces[1:], ""]
    return [
        piece.replace("\n", "↵") if piece.strip("\n") == "" and after.startswith("\n") else piece
        for piece, after in zip(pieces, following, strict=True)
    ]


def fig6(found: Found) -> Figure:
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2)
    named = {"stability": "stability-guided (beta)", "similarity": "similarity-guided (gamma)"}
    rows = [row | {"predictor": named[row["predictor"]]} for row in found["drawn"]["rows"]]
    quality_curves(rows, "ratio", ax=left)
    quality_curves(rows, "agreement", ax=right)
    return figure


def table2(found: Found) -> Figure:
    figure = new_figure(11, 4)
    for ax, (name, rows) in zip(
        figure.subplots(1, 2, sharey=True), found["drawn"]["rows"].items(), strict=True
    ):
        predictors = list(dict.fromkeys(row["predictor"] for row in rows))
        for i, predictor in enumerate(predictors):
            mine = [row for row in rows if row["predictor"] == predictor]
            x = [row["beta"] + 0.012 * (i - 1) for row in mine]
            y, low, high = np.array([row["ratio"] for row in mine]).T
            style = look(ax, i) | {"linestyle": "none"}
            ax.errorbar(x, y, [y - low, high - y], label=predictor, capsize=3, **style)
        ax.axhline(1, color=ink(ax), linewidth=1, linestyle="--")
        ax.set(xlabel="neurons kept (beta, gamma)", title=name, yscale="log", xlim=(0, 0.6))
        ax.set_xticks(sorted({row["beta"] for row in rows}))
        plain_log(ax.yaxis)
        open_frame(ax)
        add_legend(ax)
    figure.axes[0].set_ylabel("perplexity over dense")
    return figure


def table3(found: Found) -> Figure:
    figure = new_figure(12, 4)
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    table = found["table"]
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


def table4(found: Found) -> Figure:
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    table = found["table"]
    names = {"stability": "stability-guided,\nforced", "similarity": "similarity-guided"}
    for ax, column, label in (
        (left, "ratio", "perplexity over dense"),
        (right, "agreement", "tokens with dense's first choice"),
    ):
        rows = np.array([row[column] for row in table])
        x = np.arange(len(table))
        colours = [look(ax, i)["color"] for i in range(len(table))]
        spread = [rows[:, 0] - rows[:, 1], rows[:, 2] - rows[:, 0]]
        ax.bar(x, rows[:, 0], 0.6, yerr=spread, color=colours, ecolor=ink(ax), capsize=4)
        ax.set_xticks(x, [names[row["predictor"]] for row in table])
        ax.set_ylabel(label)
        open_frame(ax)
    left.axhline(1, color=ink(left), linewidth=1, linestyle="--")
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


PICTURES = (fig2, fig3, fig4, fig5, fig6, fig8, fig9, fig11, fig12, table1, table2, table3, table4)
