"""``minicore eval stability``."""

from __future__ import annotations

import argparse
from typing import Any

from minicore.cli.options import (
    alpha_option,
    json_option,
    load_model,
    model_options,
    seed_option,
    texts_argument,
)
from minicore.cli.terminal import print_report
from minicore.formatting import format_table

EXAMPLES = """
minicore eval stability book.txt
minicore eval stability book.txt articles.jsonl --passages 200 --json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    texts_argument(parser)
    model_options(parser)
    parser.add_argument(
        "--passages",
        metavar="N",
        type=int,
        default=64,
        help="Passages to draw from the texts (default 64).",
    )
    alpha_option(parser)
    parser.add_argument(
        "--wanted",
        metavar="R",
        type=float,
        default=0.8,
        help="Recall at which a set counts as stable (default 0.8).",
    )
    seed_option(parser, "the passages")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Measure scores and recalls, fit the test on half of the passages, and print both."""
    from minicore.evaluation import stability

    rows = stability.measure(load_model(args), args.texts, args.passages, args.alpha, seed=args.seed)
    print_report(stability.calibrate(rows, args.wanted) | {"rows": rows}, args.json, report_lines)
    return 0


def report_lines(found: dict[str, Any]) -> list[str]:
    """Return a table of means by prompt length, and what the fits achieve."""
    fits = {name: fit for name, fit in found.items() if isinstance(fit, dict)}
    return [
        "means over passages:",
        *length_lines(found["rows"]),
        "",
        f"test of recall >= {found['wanted']}, fitted on {found['n_fit']} prompts, tested on "
        f"{found['n_held_out']} others:",
        *fit_lines(fits),
        f"always giving the more frequent answer is correct for {found['always']:.1%}",
        *shifted_lines(fits, found["n_shifted"]),
    ]


def length_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the mean score and recall for each prompt length."""
    cells = []
    for n in sorted({row["n"] for row in rows}):
        here = [row for row in rows if row["n"] == n]
        means = (sum(row[key] for row in here) / len(here) for key in ("score", "recall"))
        cells.append([str(n), *(f"{mean:.3f}" for mean in means)])
    return format_table(["prompt tokens", "score", "recall"], cells)


def fit_lines(fits: dict[str, dict[str, Any]]) -> list[str]:
    """Return a row for each fit."""
    cells = [
        [
            name,
            f"{fit['rmse']:.4f}",
            f"{fit['correlation']:.3f}",
            f"{fit['accuracy']:.1%}",
            " ".join(f"{weight:.4f}" for weight in fit["weights"]),
        ]
        for name, fit in fits.items()
    ]
    return format_table(["fitted on", "RMSE", "correlation", "correct", "weights (constant first)"], cells)


def shifted_lines(fits: dict[str, dict[str, Any]], n_shifted: int) -> list[str]:
    """Return a row for each fit, on tested prompts whose second half changes the topic, if there are any."""
    if not n_shifted:
        return []
    cells = [
        [
            name,
            f"{fit['rmse_shifted']:.4f}",
            f"{fit['bias_shifted']:+.4f}",
            f"{fit['accuracy_shifted']:.1%}",
        ]
        for name, fit in fits.items()
    ]
    return [
        "",
        f"{n_shifted} of the tested prompts, those with a change of topic in the second half:",
        *format_table(["fitted on", "RMSE", "bias", "correct"], cells),
    ]
