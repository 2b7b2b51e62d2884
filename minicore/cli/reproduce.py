"""``minicore reproduce``."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

from minicore.cli.options import (
    chosen_workers,
    json_option,
    load_model,
    model_options,
    seed_option,
    worker_options,
)
from minicore.cli.terminal import note, print_json
from minicore.files import atomic_write
from minicore.formatting import format_cell, format_table

EXAMPLES = """
minicore reproduce all -o report --workers 2
minicore reproduce fig3 fig4 -m smollm2-135m -o report-smollm2
minicore reproduce fig4 --texts news.jsonl -o report-news
minicore reproduce table1 --pairs headlines.tsv images.tsv definitions.tsv -o report
"""
FOR_DRAWING = ("drawn", "key")  # what the pictures and later runs read, which --json leaves out


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "figures",
        metavar="FIGURE",
        nargs="+",
        help="fig2, fig3, fig4, fig5, fig6, fig8, fig9, fig11, fig12, table1, table2, table3, table4, or "
        "all, which also writes report.html.",
    )
    model_options(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        required=True,
        help="Directory for FIGURE.json, .csv and .png. Results that it already holds for the same model, "
        "texts and settings are kept.",
    )
    parser.add_argument(
        "--texts",
        metavar="FILE",
        nargs="+",
        help='Texts to measure on: JSON lines (.jsonl) with "text" and, for topics, "label", or plain text '
        "(default: the sample corpus).",
    )
    parser.add_argument(
        "--pairs",
        metavar="FILE",
        nargs="+",
        default=[],
        help="Two or more files of sentence pairs for table1, one pair per line: score, tab, sentence, tab, "
        "sentence.",
    )
    seed_option(parser, "draws, clusters and layouts")
    json_option(parser)
    worker_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the experiments and print each as it finishes."""
    from minicore.reproduce.experiments import EXPERIMENTS
    from minicore.reproduce.runner import reproduce

    results: dict[str, dict[str, Any]] = {}
    for name, found in reproduce(
        args.figures,
        load_model(args),
        args.output,
        texts=args.texts,
        pairs=args.pairs,
        seed=args.seed,
        progress=True,
        workers=chosen_workers(args),
        draw=draw_picture,
    ):
        results[name] = found
        if not args.json:
            experiment = EXPERIMENTS[name]
            lines = report_lines(name, found, experiment.title, experiment.claim)
            print("\n".join(lines), flush=True)
    if args.json:
        print_json(
            {
                name: {key: value for key, value in found.items() if key not in FOR_DRAWING}
                for name, found in results.items()
            }
        )
    note_files(args, results)
    return 0


def draw_picture(name: str, found: dict[str, Any], path: Path) -> None:
    """Draw the picture of an experiment's result to a PNG file."""
    from minicore.plots import paper

    with atomic_write(path) as part:
        paper.draw(name, found).savefig(part, format="png", dpi=120)


def note_files(args: argparse.Namespace, results: dict[str, dict[str, Any]]) -> None:
    """Write the report's page if all figures were asked for, and say which files there are."""
    from minicore.cli import reproduce_page as page

    if "all" not in args.figures:
        note(f"{args.output}: {', '.join(results)} as .json, .csv and .png")
        return
    note(f"{page.write_page(results, args.output)}: {len(results)} figures and tables")
    if not args.pairs:
        note("table1 is left out: it needs files of sentence pairs (--pairs)")


def report_lines(name: str, found: dict[str, Any], title: str, claim: str) -> list[str]:
    """Return the results of one figure, next to the paper's, and whether they agree."""
    table = found["table"]
    return [
        f"{name}  {title}",
        *textwrap.wrap(f"The paper: {claim}", 100, initial_indent="  ", subsequent_indent="  "),
        "",
        *format_table(list(table[0]), [[format_cell(value) for value in row.values()] for row in table]),
        "",
        *format_table(["", "the paper", "here"], [list(row) for row in found["beside"]]),
        "",
        *textwrap.wrap(found["sentence"], 100),
        "",
    ]
