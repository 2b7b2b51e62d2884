"""``minicore info``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minicore.cli.options import (
    MODEL_HELP,
    activation_option,
    adapter_option,
    dtype_option,
    json_option,
    load_model,
)
from minicore.cli.terminal import print_json, print_report, read_prompt, show_progress
from minicore.errors import InputError
from minicore.formatting import format_bytes, format_table

if TYPE_CHECKING:
    from minicore.checkpoint import Checkpoint
    from minicore.model import Model

EXAMPLES = """
minicore info
minicore info smollm2-135m
minicore info path/to/model.gguf --dtype bfloat16 --json
minicore info --sparsity smollm2-135m
minicore info --sparsity smollm2-135m "A text of your own."
"""
PARTS = {  # the part that a parameter belongs to, by the first word of its name; the rest are norms
    "embed": "embedding",
    "pos_embed": "embedding",
    "attn": "attention",
    "mlp": "FFN",
    "head": "head",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help=f"{MODEL_HELP}; omit it to list the known names."
    )
    parser.add_argument(
        "text",
        metavar="TEXT",
        nargs="?",
        help="The text for --sparsity; - reads it from standard input (default: one of the sample corpus).",
    )
    parser.add_argument(
        "--sparsity", action="store_true", help="Show how sparse each layer's activations are on a text."
    )
    dtype_option(parser)
    activation_option(parser)
    adapter_option(parser)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Describe a model or its activations, or list the known models."""
    if args.text is not None and not args.sparsity:
        raise InputError("TEXT is for --sparsity, expected both or neither (see minicore info --help)")
    if args.sparsity and args.model is None:
        raise InputError("--sparsity needs MODEL, expected a model to measure (see minicore info --help)")
    if args.model is None:
        return list_models(args)
    if args.sparsity:
        model = load_model(args)
        print_report(measure_sparsity(model, args.text), args.json, sparsity_lines)
        return 0
    from minicore.checkpoint import read

    checkpoint = read(
        args.model,
        dtype=args.dtype,
        progress=show_progress(),
        activation=args.activation,
        adapter=args.adapter,
    )
    print_report(describe(checkpoint), args.json, lambda _: description_lines(checkpoint))
    return 0


def list_models(args: argparse.Namespace) -> int:
    """Print the known names, each with its path."""
    from minicore.checkpoint import names

    found = {name: names.on_disk(name) for name in names.KNOWN}
    if args.json:
        print_json({name: str(path) if path else None for name, path in found.items()})
        return 0
    for name, path in found.items():
        shipped = name in names.SHIPPED
        absent = (
            "not part of this installation" if shipped else f"not on disk; `minicore pull {name}` fetches it"
        )
        print(f"{name:<20} {path or absent}")
    return 0


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what --json prints of a checkpoint."""
    return {
        "name": checkpoint.name,
        "source": str(checkpoint.source),
        "file_dtype": checkpoint.file_dtype,
        "parameters": parameter_count(checkpoint.params),
        "dtype": str(checkpoint.params["embed"].dtype),
        "bytes": bytes_by_part(checkpoint.params),
        "adapter": checkpoint.adapter._asdict() if checkpoint.adapter else None,
        "recommended": checkpoint.recommended,
        "given_activation": checkpoint.given_activation,
        "config": dataclasses.asdict(checkpoint.config),
    }


def description_lines(checkpoint: Checkpoint) -> list[str]:
    """Return the lines that describe a checkpoint and the bytes of its parts."""
    config, parts = checkpoint.config, bytes_by_part(checkpoint.params)
    dtype = str(checkpoint.params["embed"].dtype)
    total = sum(parts.values())
    heads = f"{config.n_heads} heads of {config.d_head} ({config.n_kv_heads} for keys and values)"
    options = [f"{name} {shown(value)}" for name, value in config.options().items()]
    given = " by --activation" if checkpoint.given_activation else ""
    neurons = f"{config.n_neurons} neurons ({config.activation}{given}{', gated' if config.gated else ''})"
    rows = [
        ("name", checkpoint.name),
        ("source", f"{checkpoint.source} ({checkpoint.file_dtype})"),
        *([("adapter", checkpoint.adapter.path)] if checkpoint.adapter else []),
        ("family", config.family),
        *([("options", ", ".join(options))] if options else []),
        ("blocks", f"{config.n_layers} of width {config.d_model}: {heads}, {neurons}"),
        ("vocabulary", f"{config.n_vocab} entries, context {config.n_ctx}"),
        ("parameters", f"{parameter_count(checkpoint.params):,}"),
        ("recommended", ", ".join(f"{k} {v}" for k, v in checkpoint.recommended.items()) or "nothing"),
        (dtype, f"{format_bytes(total)} in memory"),
    ]
    for part, n_bytes in parts.items():
        tied = " (tied to the embedding)" if part == "head" and not n_bytes else ""
        rows.append((f"  {part}", f"{format_bytes(n_bytes):>8}  {n_bytes / total:6.1%}{tied}"))
    return [f"{label:<12} {value}" for label, value in rows]


def shown(value: object) -> str:
    """Return an option's value as text; a long list by its first entries."""
    if not isinstance(value, tuple):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    dots = " ..." if len(value) > 4 else ""
    return " ".join(map(shown, value[:4])) + dots


def bytes_by_part(params: dict[str, Any]) -> dict[str, int]:
    """Return the bytes of the embedding, attention, FFN, norms and head."""
    parts = dict.fromkeys(("embedding", "attention", "FFN", "norms", "head"), 0)
    for name, array in params.items():
        words = name.split(".")
        part = words[2] if words[0] == "blocks" else words[0]
        parts[PARTS.get(part, "norms")] += array.nbytes
    return parts


def parameter_count(params: dict[str, Any]) -> int:
    """Return the number of elements of all parameters."""
    return sum(array.size for array in params.values())


def measure_sparsity(model: Model, text: str | None) -> dict[str, Any]:
    """Return what --json prints of a model's activations."""
    from minicore.evaluation import sparsity

    if model.tokenizer is None:
        raise InputError(f"{model.source}: has no tokenizer, expected one for --sparsity, which reads a text")
    ids = sparsity.default_ids(model) if text is None else model.tokenizer.encode(read_prompt(text))
    if not ids:
        raise InputError("TEXT is empty, expected a text for --sparsity")
    return {
        "model": model.name,
        "dtype": model.dtype,
        "activation": model.config.activation,
        "gated": model.config.gated,
        "n_tokens": len(ids),
        "n_neurons": model.config.n_neurons,
        "fractions": list(sparsity.FRACTIONS),
        "layers": sparsity.measure(model, ids),
    }


def sparsity_lines(report: dict[str, Any]) -> list[str]:
    """Return a table with a row for each layer and their mean, and what its columns mean."""
    fractions = [f"{fraction:.0%}" for fraction in report["fractions"]]
    head = ["layer", "positive", "zero", *(f"own {f}" for f in fractions), *(f"set {f}" for f in fractions)]
    rows = [[row["positive"], row["zero"], *row["own"], *row["shared"]] for row in report["layers"]]
    means = [mean_share(column) for column in zip(*rows, strict=True)]
    labels = [*map(str, range(len(rows))), "mean"]
    gated = ", gated" if report["gated"] else ""
    return [
        f"{report['model']} ({report['activation']}{gated}, {report['n_neurons']} neurons a layer) on "
        f"{report['n_tokens']} tokens",
        "",
        *format_table(
            head,
            [
                [label, *("-" if share is None else f"{share:.1%}" for share in row)]
                for label, row in zip(labels, [*rows, means], strict=True)
            ],
        ),
        "",
        "positive, zero: share of the activations that are above zero, and exactly zero.",
        "own: share of a token's energy (squared activations) in its own largest 10, 20, 40% of neurons.",
        "set: the same for one set of neurons, the best one for the whole text. No core set of that size",
        "can hold more; where it holds little, decoding with a fixed set leaves much out.",
    ]


def mean_share(shares: Sequence[float | None]) -> float | None:
    """Return the mean of the shares that are there: a layer whose activations are all zero has none."""
    found = [share for share in shares if share is not None]
    return sum(found) / len(found) if found else None
