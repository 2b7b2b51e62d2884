"""What ``eval quality`` and ``eval frontier`` share: both measure predictors on passages of texts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from minicore.cli.options import (
    Options,
    alpha_option,
    backend_option,
    budget_option,
    clusters_option,
    json_option,
    layers_option,
    model_options,
    predictors_option,
    seed_option,
    texts_argument,
    token_beta_option,
)

# The options that are passed to the library under their own names.
CONDITIONS = (
    *("budget", "token_beta", "backend", "prompt_tokens", "continuation_tokens"),
    *("alpha", "layers", "fit_passages", "clusters", "seed"),
)


def add_study_options(
    parser: argparse.ArgumentParser, predictors: Sequence[str], passages: int
) -> argparse._ArgumentGroup:
    """Add the shared options with these defaults; return the group of what is measured, for further ones."""
    texts_argument(parser)
    model_options(parser)
    backend_option(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="Write the report as JSON. Finished measurements are kept next to it, so that a run that was "
        "stopped can continue.",
    )
    json_option(parser)
    group = parser.add_argument_group("predictors")
    predictors_option(
        group,
        predictors,
        "griffin@continuation takes the set from the continuation itself, griffin@others from other texts.",
    )
    alpha_option(group)
    token_beta_option(group)
    budget_option(group)
    layers_option(group)
    clusters_option(group)
    passage_options(parser.add_argument_group("passages"), passages)
    return group


def passage_options(group: Options, passages: int) -> None:
    """Add the options that say what is read."""
    group.add_argument(
        "--passages",
        metavar="N",
        type=int,
        default=passages,
        help=f"Passages to draw from the texts (default {passages}).",
    )
    group.add_argument(
        "--prompt-tokens",
        metavar="N",
        type=int,
        default=256,
        help="Tokens of a passage that are read densely, as the prompt (default 256).",
    )
    group.add_argument(
        "--continuation-tokens",
        metavar="N",
        type=int,
        default=256,
        help="Tokens after the prompt that are read with the core set and scored (default 256).",
    )
    group.add_argument(
        "--fit-passages",
        metavar="N",
        type=int,
        default=16,
        help="Further passages, for sets fitted on other texts (static, griffin@others; default 16).",
    )
    seed_option(group, "the passages, of random sets and of the bootstrap")


def study_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords that both library functions take."""
    given = {name: getattr(args, name) for name in CONDITIONS}
    return given | {"n_passages": args.passages, "out": args.output, "progress": True}


def predictor_label(row: dict[str, Any]) -> str:
    """Return how a setting's predictor is named in a table."""
    name = row["predictor"] + ("" if row["budget"] == "uniform" else f" ({row['budget']})")
    return name + (f" (token beta {row['token_beta']})" if row["token_beta"] else "")


def conditions_line(study: dict[str, Any]) -> str:
    """Return the line under a table that says what was measured."""
    conditions, texts = study["conditions"], ", ".join(study["texts"])
    return (
        f"{study['n_passages']} passages of {texts}: a prompt of {conditions['prompt_tokens']} tokens, "
        f"the next {conditions['continuation_tokens']} scored; {conditions['model']}, {conditions['dtype']}; "
        "95% bootstrap intervals over passages"
    )
