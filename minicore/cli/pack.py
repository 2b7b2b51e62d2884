"""``minicore pack``."""

from __future__ import annotations

import argparse
from pathlib import Path

from minicore.cli.options import (
    MODEL_HELP,
    activation_option,
    adapter_option,
    dtype_option,
    json_option,
    load_model,
)
from minicore.cli.terminal import print_json
from minicore.files import check_absent

EXAMPLES = """
minicore pack smollm2-135m --dtype int8 -o smollm2-int8
minicore generate "Once upon a time" -m smollm2-int8 --predictor griffin --memory-limit 300e6
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL", help=f"{MODEL_HELP}.")
    dtype_option(parser)
    activation_option(parser)
    adapter_option(parser)
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="Directory to create.")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Write a model in the layout that kernels read, and print the directory."""
    target = Path(args.output)
    check_absent(target)  # before reading and packing, which may take minutes
    model = load_model(args)
    model.save(target)
    if args.json:
        print_json({"path": str(target), "dtype": model.dtype, "weights_bytes": model.weights_bytes})
    else:
        print(target)
    return 0
