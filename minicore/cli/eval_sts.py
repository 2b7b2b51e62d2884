"""``minicore eval sts``."""

from __future__ import annotations

import argparse
from typing import Any

from minicore.cli.options import (
    alpha_option,
    betas_option,
    json_option,
    layers_option,
    load_model,
    model_options,
    seed_option,
)
from minicore.cli.terminal import print_report
from minicore.formatting import format_table

EXAMPLES = """
minicore eval sts headlines.tsv images.tsv definitions.tsv
minicore eval sts choose.tsv test.tsv -m path/to/model --betas .2 --layers 4: -o sts.json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "files",
        metavar="FILES",
        nargs="+",
        help="Sentence pairs, one per line: score, tab, sentence, tab, sentence. The measure and the layer "
        "are chosen on all files but the last, and tested on the last.",
    )
    model_options(parser)
    alpha_option(parser)
    betas_option(parser, [0.1, 0.2, 0.4], ranges=False)
    layers_option(parser, "Layers to compare")
    parser.add_argument(
        "--pairs", metavar="N", type=int, help="Pairs to read from the start of each file (default: all)."
    )
    seed_option(parser, "the bootstrap")
    parser.add_argument("-o", "--output", metavar="FILE", help="Write the result as JSON.")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Correlate core similarity with the ratings, layer by layer, and print the correlations."""
    from minicore.reproduce import sts

    study = sts.study(
        load_model(args),
        args.files,
        alpha=args.alpha,
        betas=args.betas,
        layers=args.layers,
        most=args.pairs,
        seed=args.seed,
        out=args.output,
        progress=True,
    )
    print_report(study, args.json, report_lines)
    return 0


def report_lines(study: dict[str, Any]) -> list[str]:
    """Return rho by layer for the best set measure and the best of all measures, and their test results."""
    lines, rho, files = [], study["rho"], study["files"]
    best = [study["best_jaccard"], study["chosen"]]
    for measure in dict.fromkeys(one["measure"] for one in best):
        rows = [
            [str(layer), *(f"{rho[measure][name][i]:.3f}" for name in files)]
            for i, layer in enumerate(study["layers"])
        ]
        lines += [f"Spearman's rho, {measure}:", *format_table(["layer", *files], rows), ""]
    for one in best:
        estimate, low, high = one["test_rho"]
        lines.append(
            f"{one['measure']}, layer {one['layer']}: rho {one['rho_where_chosen']:.3f} on the files it was "
            f"chosen on, {estimate:.3f} [{low:.3f}, {high:.3f}] on {one['test_file']}"
        )
    overlap = ", ".join(f"{value:.3f} on {name}" for name, value in study["overlap"].items())
    lines.append(f"for comparison, the overlap of the sentences' tokens: rho {overlap}")
    return [*lines, f"alpha {study['alpha']}; {study['model']}, {study['dtype']}"]
