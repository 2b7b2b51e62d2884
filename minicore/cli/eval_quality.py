"""``minicore eval quality``."""

from __future__ import annotations

import argparse
from typing import Any

from minicore.cli.options import betas_option, chosen_workers, load_model, worker_options
from minicore.cli.studies import add_study_options, conditions_line, predictor_label, study_settings
from minicore.cli.terminal import print_report
from minicore.formatting import format_bytes, format_interval, format_number, format_table

EXAMPLES = """
minicore eval quality book.txt
minicore eval quality book.txt --predictors stability,griffin,random --betas .2,.4,.6 -o quality.json
minicore eval quality a.jsonl b.jsonl --predictors griffin,griffin@continuation --betas 0.2:0.6 --json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = add_study_options(parser, ["dense", "stability", "griffin"], passages=40)
    betas_option(group, [0.2, 0.4, 0.6])
    parser.add_argument(
        "--generate",
        metavar="N",
        type=int,
        default=0,
        help="Also generate N tokens greedily and count those before the first that differs from dense "
        "decoding (default 0).",
    )
    worker_options(parser)


def run(args: argparse.Namespace) -> int:
    """Measure every predictor at every beta, and print a table."""
    from minicore.evaluation import quality

    study = quality.evaluate(
        load_model(args),
        args.texts,
        args.predictors,
        args.betas,
        n_generated=args.generate,
        workers=chosen_workers(args),
        **study_settings(args),
    )
    print_report(study, args.json, report_lines)
    return 0


def report_lines(study: dict[str, Any]) -> list[str]:
    """Return a table with a row for each setting, and the conditions; intervals are in brackets."""
    head = ["predictor", "beta", "kept", "FFN read", "perplexity", "ratio to dense", "KL", "top-1", "recall"]
    generated = any(row["common_prefix"] for row in study["settings"])
    rows = []
    for row in study["settings"]:
        cells = [
            predictor_label(row),
            "-" if row["predictor"] == "dense" else f"{row['beta']}",
            f"{row['kept'][0]:.1%}",
            format_bytes(row["ffn_bytes"][0]),
            format_number(row["perplexity"][0]),
            format_interval(row["ratio"]),
            format_number(row["kl"][0]),
            f"{row['agreement'][0]:.1%}",
            f"{row['recall'][0]:.1%}" if row["recall"] else "-",
        ]
        if generated:
            cells.append(f"{row['common_prefix'][0]:.1f}" if row["common_prefix"] else "-")
        rows.append(cells)
    return [*format_table(head + ["equal tokens"] * generated, rows), conditions_line(study)]
