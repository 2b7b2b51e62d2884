"""``minicore info``."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from minicore.cli.options import MODEL_HELP, activation_option, adapter_option, dtype_option, json_option
from minicore.cli.terminal import print_json, print_report, show_progress
from minicore.formatting import format_bytes

if TYPE_CHECKING:
    from minicore.checkpoint import Checkpoint

EXAMPLES = """
minicore info
minicore info smollm2-135m
minicore info path/to/model.gguf --dtype bfloat16 --json
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
    dtype_option(parser)
    activation_option(parser)
    adapter_option(parser)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Describe a model, or list the known ones."""
    if args.model is None:
        return list_models(args)
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
    given = " by --activation" if checkpoint.given_activation else ""
    neurons = f"{config.n_neurons} neurons ({config.activation}{given}{', gated' if config.gated else ''})"
    rows = [
        ("name", checkpoint.name),
        ("source", f"{checkpoint.source} ({checkpoint.file_dtype})"),
        *([("adapter", checkpoint.adapter.path)] if checkpoint.adapter else []),
        ("family", config.family),
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
