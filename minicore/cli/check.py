"""``minicore check``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from minicore.cli.options import (
    MODEL_HELP,
    activation_option,
    adapter_option,
    backend_option,
    dtype_option,
    json_option,
    load_model,
)
from minicore.cli.terminal import note, print_report, show_progress
from minicore.errors import InputError
from minicore.formatting import format_table

if TYPE_CHECKING:
    from minicore.evaluation.reference import Reference

EXAMPLES = """
minicore check path/to/model
minicore check path/to/model "A text of your own" --backend cpu --json
minicore check path/to/model --write golden.npz
minicore check path/to/model --golden golden.npz --dtype bfloat16 --tolerance 0.05
"""
LABEL = 28  # characters of a text that the table shows


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL", help=f"{MODEL_HELP}.")
    parser.add_argument(
        "texts",
        metavar="TEXT",
        nargs="*",
        help="Texts to compare on (default: four texts, or random ids if the model has no tokenizer).",
    )
    dtype_option(parser)
    activation_option(parser)
    adapter_option(parser)
    backend_option(parser, ("numba", "cpu", "cuda", "auto", "numpy"))
    parser.add_argument(
        "-n",
        "--new-tokens",
        metavar="N",
        type=int,
        default=16,
        help="Greedy tokens to compare after each text (default 16).",
    )
    parser.add_argument(
        "--tolerance",
        metavar="T",
        type=float,
        help="Largest difference of a logit, as a fraction of the largest logit (default 1e-4 for float32; "
        "needed for other formats).",
    )
    files = parser.add_mutually_exclusive_group()
    files.add_argument(
        "--golden", metavar="FILE", help="Compare with a file that --write made instead of with Transformers."
    )
    files.add_argument(
        "--write",
        metavar="FILE",
        help="Write what Transformers computes to a .npz file; without Transformers, what minicore computes.",
    )
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Compare a model with its reference; return 1 if they differ."""
    from minicore.evaluation import reference
    from minicore.evaluation.check import TOLERANCE, check

    if args.new_tokens < 1:
        raise InputError(f"--new-tokens is {args.new_tokens}, expected at least 1")
    if args.golden and args.texts:
        raise InputError("TEXT and --golden exclude each other: the file has the texts, expected one of them")
    expected = reference.load(args.golden) if args.golden else compute_reference(args)
    if args.write:
        reference.save(expected, args.write)
    model = load_model(args)
    rows = check(model, expected, args.backend, args.tolerance)
    report = {
        "model": model.name,
        "source": str(model.source),
        "backend": args.backend,
        "dtype": model.dtype,
        "reference": expected.made_with,
        "tolerance": TOLERANCE if args.tolerance is None else args.tolerance,
        "ok": all(row["ok"] for row in rows),
        "texts": rows,
    }
    print_report(report, args.json, report_lines)
    return 0 if report["ok"] else 1


def compute_reference(args: argparse.Namespace) -> Reference:
    """Return what Transformers computes; to write a file without it, what minicore computes."""
    from minicore.checkpoint import names
    from minicore.evaluation import reference

    if args.write and not reference.has_transformers():
        note("Transformers is not installed: the file records what minicore's numpy backend computes")
        return reference.from_model(load_model(args), args.texts, args.new_tokens)
    if args.activation:
        raise InputError(
            "Transformers does not know --activation, expected a recorded file (--golden) with it"
        )
    path = names.resolve(args.model, progress=show_progress())
    return reference.from_transformers(path, args.texts, args.new_tokens, args.adapter)


def report_lines(report: dict[str, Any]) -> list[str]:
    """Return a table with a row for each text, and the verdict."""
    head = ["text", "tokens", "ids", "logits off by", "greedy", "margin", ""]
    rows = report["texts"]
    n_wrong = sum(not row["ok"] for row in rows)
    verdict = "all texts agree" if report["ok"] else f"{n_wrong} of {len(rows)} texts differ"
    return [
        *format_table(head, [cells(row) for row in rows]),
        "",
        f"{report['model']} ({report['backend']}, {report['dtype']}) and {report['reference']}: {verdict}",
        "",
        f"Differences and margins are fractions of the largest logit; logits may be off by "
        f"{report['tolerance']:g}.",
        "margin: how far the reference's token led where the first greedy token differs.",
    ]


def cells(row: dict[str, Any]) -> list[str]:
    """Return a text's row of the table."""
    text = "random ids" if row["text"] is None else " ".join(row["text"].split())
    same = {True: "same", False: "differ", None: "-"}
    return [
        text if len(text) <= LABEL else text[: LABEL - 3] + "...",
        str(row["n_tokens"]),
        same[row["same_ids"]],
        "not finite" if row["difference"] is None else f"{row['difference']:.1e}",
        f"{row['n_agree']}/{row['n_new']}",
        "-" if row["margin"] is None else f"{row['margin']:.1e}",
        "ok" if row["ok"] else "differs",
    ]
