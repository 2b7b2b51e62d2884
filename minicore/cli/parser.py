"""The parser of the command line, and the table of commands."""

from __future__ import annotations

import argparse
import textwrap
from importlib import import_module
from typing import Any, NoReturn

from minicore.errors import InputError

# What each command does. "eval quality" is the module minicore.cli.eval_quality, which has EXAMPLES,
# add_options(parser) and run(args), which returns the exit code.
COMMANDS = {
    "generate": "Continue a prompt.",
    "compare": "Decode a prompt with all neurons and with core neurons; show both texts.",
    "explore": "Write a web page that shows the core neurons of a prompt.",
    "pull": "Download a model to the cache directory.",
    "info": "Show a model's shape, the size of its parts, and its source.",
    "check": "Compare a model's logits, greedy tokens and ids with Transformers.",
    "pack": "Convert a model to a directory that loads by memory mapping.",
    "export": "Write a model for other engines: a Hugging Face directory or a GGUF file.",
    "bench": "Measure decode and prefill speed, and compare with the memory bandwidth.",
    "eval quality": "Measure what core sets cost: perplexity, KL divergence, agreement with dense.",
    "eval frontier": "Find the fewest neurons that keep each predictor within a loss of perplexity.",
    "eval tasks": "Score answers to summary, question, translation and multi-step tasks.",
    "eval stability": "Calibrate the stability test, which predicts a core set's recall.",
    "eval sts": "Correlate core-set similarity with human ratings of sentence similarity.",
    "cluster fit": "Cluster texts by their core neurons, for similarity-guided prediction.",
    "reproduce": "Reproduce the paper's figures and tables on a model.",
}
GROUPS = {
    "eval": "Evaluate core neurons: quality, frontier, tasks, stability or sts.",
    "cluster": "Cluster texts: fit.",
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises InputError."""

    def __init__(self, **options: Any) -> None:
        super().__init__(add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.add_argument("-h", "--help", action="help", help="Show this help and exit.")

    def error(self, message: str) -> NoReturn:
        """Raise the complaint as one sentence."""
        raise InputError(f"{message} (see {self.prog} --help)")


class CommandParser(Parser):
    """The parser of a command, whose module is imported when its first argument is parsed."""

    def __init__(self, module: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.module = module

    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        """Add the command's options, then parse."""
        if self.module is not None:
            command, self.module = import_module(self.module), None
            examples = textwrap.dedent(command.EXAMPLES).strip()
            self.epilog = "examples:\n" + textwrap.indent(examples, "  ")
            command.add_options(self)
            self.set_defaults(run=command.run)
        return super().parse_known_args(*args, **options)


class Version(argparse.Action):
    """Print the version; the package is imported only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        from minicore import __version__

        print(f"minicore {__version__}")
        parser.exit()


def make_parser() -> Parser:
    """Return the parser of the command line with all its commands.

    Examples
    --------
    >>> make_parser().parse_args(["generate", "Once", "-n", "5"]).max_new_tokens
    5
    """
    parser = Parser(prog="minicore", description="Transformer inference with a sentence's core neurons.")
    parser.add_argument("--version", action=Version, nargs=0, help="Show the version and exit.")
    tables = {"": add_table(parser)}
    for name, summary in COMMANDS.items():
        group, _, short = name.rpartition(" ")
        if group not in tables:
            sub = tables[""].add_parser(group, help=GROUPS[group], description=GROUPS[group])
            tables[group] = add_table(sub)
        module = f"minicore.cli.{name.replace(' ', '_')}"
        tables[group].add_parser(short, help=summary, description=summary, module=module)
    return parser


def add_table(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[CommandParser]:
    """Let a parser have commands, and return the table to add them to."""
    return parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=CommandParser
    )
