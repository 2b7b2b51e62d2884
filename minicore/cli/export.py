"""``minicore export``."""

from __future__ import annotations

import argparse
from pathlib import Path

from minicore.cli.options import MODEL_HELP, activation_option, adapter_option, json_option
from minicore.cli.terminal import note, print_json, show_progress
from minicore.files import check_absent

EXAMPLES = """
minicore export minicore-opt-core --format hf --dtype bfloat16 -o minicore-opt-core-hf
minicore export smollm2-135m --format gguf --dtype q8_0 -o smollm2.gguf
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL", help=f"{MODEL_HELP}.")
    parser.add_argument("--format", metavar="F", required=True, help="What to write: hf or gguf.")
    parser.add_argument(
        "--dtype",
        metavar="D",
        help="Type of the matrices in the file: float32, float16 or bfloat16; for gguf also q8_0, q4_0 or "
        "q4_1 (default: float32, which rounds nothing; bfloat16 for a model packed in it).",
    )
    activation_option(parser)
    adapter_option(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        required=True,
        help="Directory to create; for gguf also a file whose name ends in .gguf.",
    )
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Write a model, and print what to load."""
    import minicore
    from minicore.checkpoint.export import check_options

    target = Path(args.output)
    check_absent(target)  # before reading, which may take minutes
    check_options(args.format, args.dtype or "float32")
    model = minicore.load(
        args.model, activation=args.activation, adapter=args.adapter, progress=show_progress()
    )
    written = model.export(target, args.format, args.dtype, progress=show_progress())
    for sentence in written.notes:
        note(f"note: {sentence}")
    if args.json:
        size = sum(path.stat().st_size for path in (target, *target.glob("*")) if path.is_file())
        about = {"path": str(written.path), "format": args.format, "dtype": written.dtype}
        print_json(about | {"bytes": size, "notes": written.notes})
    else:
        print(written.path)
    return 0
