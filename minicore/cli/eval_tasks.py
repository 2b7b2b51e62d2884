"""``minicore eval tasks``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from minicore.cli.options import (
    Options,
    alpha_option,
    backend_option,
    betas_option,
    budget_option,
    chosen_workers,
    clusters_option,
    json_option,
    layers_option,
    load_model,
    model_options,
    predictors_option,
    seed_option,
    token_beta_option,
    worker_options,
)
from minicore.cli.studies import predictor_label
from minicore.cli.terminal import print_report
from minicore.formatting import format_table

EXAMPLES = """
minicore eval tasks --task steps --shots 6
minicore eval tasks --task qa --data dev-v1.1.json --shots 6 --betas .2,.4 --workers 2 -o qa
minicore eval tasks --task translation --data news.de news.en --predictors griffin --json
minicore eval tasks --task openqa --data hub:google-research-datasets/nq_open@validation --json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--task", metavar="T", required=True, help="Task: summary, qa, openqa, translation or steps."
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        nargs="+",
        default=[],
        help="Data of the task: XSum or SciTLDR (.jsonl), SQuAD (.json), TruthfulQA (.csv), NQ-open or "
        "TriviaQA (.jsonl), two files of parallel text (news.de news.en), or hub:NAME[:CONFIG]@SPLIT. The "
        "task steps has data of its own.",
    )
    model_options(parser)
    backend_option(parser, ["numpy", "cpu", "auto"])
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="Directory for the report and for every answer as it comes, so that a run that was stopped can "
        "continue.",
    )
    json_option(parser)
    group = parser.add_argument_group("predictors")
    predictors_option(group, ["dense", "stability"])
    betas_option(group, [0.4])
    alpha_option(group)
    token_beta_option(group)
    budget_option(group)
    layers_option(group)
    clusters_option(group)
    example_options(parser.add_argument_group("prompts"))
    worker_options(parser)


def example_options(group: Options) -> None:
    """Add the options that say what is asked."""
    group.add_argument(
        "--examples", metavar="N", type=int, default=100, help="Examples to draw from the data (default 100)."
    )
    group.add_argument(
        "--shots", metavar="N", type=int, default=0, help="Worked examples in each prompt (default 0)."
    )
    group.add_argument(
        "--prompts", metavar="FILE", help="Prompt templates (.toml; default: those that fit the data)."
    )
    seed_option(group, "the examples, of random sets and of the bootstrap")


def run(args: argparse.Namespace) -> int:
    """Put the task to the model with every predictor at every beta, and print the scores."""
    from minicore.evaluation.tasks import run as tasks

    study = tasks.evaluate(
        load_model(args),
        args.task,
        args.data,
        args.predictors,
        args.betas,
        budget=args.budget,
        token_beta=args.token_beta,
        shots=args.shots,
        n_examples=args.examples,
        alpha=args.alpha,
        layers=args.layers,
        clusters=args.clusters,
        prompts=args.prompts,
        backend=args.backend,
        seed=args.seed,
        workers=chosen_workers(args),
        out=args.output,
        progress=True,
    )
    print_report(study, args.json, report_lines)
    return 0


def report_lines(study: dict[str, Any]) -> list[str]:
    """Return a table for each metric, with the floor below the settings, and the conditions."""
    conditions, floor, lines = study["conditions"], study["floor"], []
    for metric in floor["scores"]:
        rows = [
            [
                predictor_label(row),
                "-" if row["predictor"] == "dense" else f"{row['beta']}",
                f"{row['kept'][0]:.1%}",
                format_points(row["scores"][metric]),
                format_points(row["to_dense"][metric], "+") if row["to_dense"] else "-",
                f"{row['empty']:.0%}",
            ]
            for row in study["settings"]
        ]
        rows.append([f"floor: {floor['floor']}", "-", "-", format_points(floor["scores"][metric]), "-", "-"])
        head = ["predictor", "beta", "kept", metric, "minus dense", "no answer"]
        lines += [*format_table(head, rows), ""]
    lines.append(
        f"{study['n_examples']} of {study['n_data']} examples of {', '.join(study['data'])}, prompts "
        f"{conditions['prompts']} with {conditions['shots']} worked examples; {conditions['model']}, "
        f"{conditions['dtype']}; 95% bootstrap intervals over examples"
    )
    if study["n_cut"]:
        lines.append(f"{study['n_cut']} documents did not fit the context and lost their first words")
    return lines


def format_points(values: Sequence[float], sign: str = "") -> str:
    """Return a score of 0 to 100, or a difference of two, with its interval."""
    estimate, low, high = (f"{value:{sign}.1f}" for value in values)
    return f"{estimate} [{low}, {high}]"
