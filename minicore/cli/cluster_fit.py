"""``minicore cluster fit``."""

from __future__ import annotations

import argparse
from pathlib import Path

from minicore.cli.options import (
    Options,
    alpha_option,
    chosen_workers,
    json_option,
    load_model,
    model_options,
    seed_option,
    worker_options,
)
from minicore.cli.terminal import note, print_json

EXAMPLES = """
minicore cluster fit news.jsonl -o news.clusters
minicore cluster fit lines.txt -m smollm2-135m -o lines.clusters --k 8
minicore generate "The match was" --predictor similarity --clusters news.clusters
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "texts",
        metavar="TEXTS",
        help='Texts, one per line, or JSON lines (.jsonl) with "text" and optionally "label".',
    )
    model_options(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="File to write the clusters to."
    )
    json_option(parser)
    cluster_options(parser.add_argument_group("clusters"))
    set_options(parser.add_argument_group("core sets"))
    worker_options(parser)


def cluster_options(group: Options) -> None:
    """Add the options of the clustering."""
    group.add_argument(
        "--no-labels", action="store_true", help="Ignore labels and cluster with k-means instead."
    )
    group.add_argument(
        "--k",
        metavar="K",
        type=int,
        help="Number of k-means clusters (default: the elbow of the error curve).",
    )
    group.add_argument(
        "--layer",
        metavar="L",
        type=int,
        help="Layer whose core sets are clustered (default: at 25/32 of the depth).",
    )
    seed_option(group, "k-means")


def set_options(group: Options) -> None:
    """Add the options of the core sets that are clustered."""
    group.add_argument(
        "--predictor",
        metavar="P",
        default="stability",
        help="Predictor that makes the sets (default stability).",
    )
    alpha_option(group)
    group.add_argument(
        "--beta",
        metavar="B",
        type=float,
        default=0.4,
        help="Fraction of each layer's neurons to keep (default 0.4).",
    )
    group.add_argument(
        "--max-tokens",
        metavar="N",
        type=int,
        default=512,
        help="Maximum number of tokens to read of each text (default 512).",
    )


def run(args: argparse.Namespace) -> int:
    """Fit the clusters, write them, and print their sizes."""
    from minicore.evaluation.clusters import fit_clusters, read_labelled

    texts, labels = read_labelled(args.texts)
    partial = Path(f"{args.output}.partial")
    clusters = fit_clusters(
        load_model(args),
        texts,
        None if args.no_labels else labels,
        predictor=args.predictor,
        alpha=args.alpha,
        beta=args.beta,
        layer=args.layer,
        k=args.k,
        seed=args.seed,
        max_tokens=args.max_tokens,
        partial=partial,
        workers=chosen_workers(args),
    )
    clusters.save(args.output)
    partial.unlink(missing_ok=True)
    sizes = dict(zip(clusters.names, clusters.sizes.tolist(), strict=True))
    if args.json:
        about = {"path": str(args.output), "layer": clusters.layer, "texts": len(texts)}
        print_json(about | {"clusters": sizes})
        return 0
    for name, size in sizes.items():
        print(f"{name:<24} {size} texts")
    note(f"{args.output}: {clusters!r}")
    return 0
