"""``minicore pull``."""

from __future__ import annotations

import argparse

from minicore.cli.options import json_option
from minicore.cli.terminal import print_json, show_progress

EXAMPLES = """
minicore pull smollm2-135m
MINICORE_HOME=models minicore pull smollm2-135m
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("name", metavar="NAME", help="A name that `minicore info` lists, or org/name.")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Download a model and print its path."""
    from minicore.checkpoint import names

    path = names.pull(args.name, progress=show_progress())
    if args.json:
        print_json({"name": args.name, "path": str(path)})
    else:
        print(path)
    return 0
