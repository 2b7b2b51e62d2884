"""``minicore explore``."""

from __future__ import annotations

import argparse

from minicore.cli.options import (
    alpha_option,
    backend_option,
    layers_option,
    load_model,
    model_options,
    prompt_argument,
)
from minicore.cli.terminal import announce_compilation, read_prompt
from minicore.files import atomic_write

EXAMPLES = """
minicore explore "The jury came back into the room, and everyone stood up." -o page.html
minicore explore "Bread needs flour and water." --and "Rain fell on the hills." -o page.html
minicore explore - -m path/to/model --layers 10:20 -n 0 -o page.html < prompt.txt
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    prompt_argument(parser)
    parser.add_argument("--and", metavar="PROMPT", dest="other", help="A second text to compare with.")
    model_options(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="Page to write, such as page.html."
    )
    alpha_option(parser, default=None)
    parser.add_argument(
        "--beta",
        metavar="B",
        type=float,
        help="Fraction of each layer's neurons to keep when the page opens; the page has a slider "
        "(default: the model's recommendation, else 0.4).",
    )
    layers_option(parser, "Layers to show")
    backend_option(parser)
    parser.add_argument(
        "-n",
        "--max-new-tokens",
        metavar="N",
        type=int,
        default=48,
        help="Maximum number of tokens of each continuation (default 48).",
    )
    parser.add_argument("--chat", action="store_true", help="Put the prompts in the model's chat template.")


def run(args: argparse.Namespace) -> int:
    """Write the page and print its path."""
    from minicore.backends import check_backend
    from minicore.explorer.builder import explore

    prompts = [read_prompt(prompt) for prompt in (args.prompt, args.other) if prompt is not None]
    model = load_model(args)
    announce_compilation(check_backend(args.backend, model.dtype, model.config)[0])
    page = explore(
        model,
        prompts,
        alpha=args.alpha,
        beta=args.beta,
        layers=args.layers,
        max_new_tokens=args.max_new_tokens,
        chat=args.chat,
        backend=args.backend,
    )
    with atomic_write(args.output) as part:
        part.write_text(page, encoding="utf-8")
    print(args.output)
    return 0
