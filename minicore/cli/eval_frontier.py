"""``minicore eval frontier``."""

from __future__ import annotations

import argparse
from typing import Any

from minicore.cli.options import load_model, number_list
from minicore.cli.studies import add_study_options, conditions_line, predictor_label, study_settings
from minicore.cli.terminal import print_report
from minicore.formatting import format_bytes, format_interval, format_table

EXAMPLES = """
minicore eval frontier book.txt
minicore eval frontier book.txt --predictors griffin,gate,topk --losses .01,.05,.2 -o frontier.json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = add_study_options(parser, ["stability", "griffin", "gate"], passages=24)
    group.add_argument(
        "--losses",
        metavar="L,M",
        type=number_list,
        default=[0.01, 0.05],
        help="Increases of perplexity that are allowed, as fractions (default 0.01,0.05).",
    )
    group.add_argument(
        "--rounds",
        metavar="N",
        type=int,
        default=6,
        help="At most so many betas after the first two, for each predictor and loss (default 6).",
    )


def run(args: argparse.Namespace) -> int:
    """Search the smallest beta of every predictor within every loss, and print a table."""
    from minicore.evaluation import frontier

    study = frontier.find(
        load_model(args), args.texts, args.predictors, args.losses, rounds=args.rounds, **study_settings(args)
    )
    print_report(study, args.json, report_lines)
    return 0


def report_lines(study: dict[str, Any]) -> list[str]:
    """Return a table with a row for each predictor and loss, and the conditions."""
    head = ["predictor", "allowed loss", "beta", "kept", "FFN read", "ratio to dense", "top-1"]
    rows = [
        [
            predictor_label(row),
            f"{row['loss']:.1%}",
            f"{row['beta']:.3f}" + ("" if row["tight"] else " or less"),
            f"{row['kept'][0]:.1%}",
            format_bytes(row["ffn_bytes"][0]),
            format_interval(row["ratio"]),
            f"{row['agreement'][0]:.1%}",
        ]
        for row in study["settings"]
    ]
    return [*format_table(head, rows), conditions_line(study)]
