"""The command line: one function and one row of a table for each subcommand.

What was asked for goes to standard output, everything else to standard error. Exit codes: 0; 1 if a
benchmark finds a wrong result; 2 for bad input, told in one sentence; 130 after Ctrl-C; 141 when the reader
of the output went away. Nothing heavy is imported before a subcommand runs, so that ``minicore --help`` is
instant.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from minicore.cli.commands import (
    JSON_KEYS,
    bench,
    cluster_fit,
    compare,
    eval_frontier,
    eval_quality,
    eval_stability,
    eval_sts,
    eval_tasks,
    explore,
    generate,
    info,
    pack,
    pull,
    reproduce,
)
from minicore.cli.options import (
    DEFAULT_MODEL,
    bench_options,
    cluster_fit_options,
    decoding_options,
    eval_frontier_options,
    eval_quality_options,
    eval_stability_options,
    eval_sts_options,
    eval_tasks_options,
    explore_options,
    info_options,
    pack_options,
    pull_options,
    reproduce_options,
)
from minicore.cli.terminal import discard_output, fail, note
from minicore.errors import InputError

__all__ = ["COMMANDS", "DEFAULT_MODEL", "JSON_KEYS", "main", "make_parser"]


class Command(NamedTuple):
    """A row of the table: what it is for, its options, what runs, and examples for its --help."""

    help: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    examples: str


COMMANDS = {
    "generate": Command(
        "continue a prompt",
        decoding_options,
        generate,
        """
        minicore generate "The capital of France is"
        minicore generate "Why is the sky blue?" --chat -n 200
        minicore generate "Once upon a time" --predictor stability --beta 0.6 --layers 6:27
        minicore generate "Once upon a time" --temperature 0.8 --top-p 0.95 --seed 1
        minicore generate - -m path/to/model --json < prompt.txt
        """,
    ),
    "compare": Command(
        "dense and core decoding side by side",
        decoding_options,
        compare,
        """
        minicore compare "The three states of matter are"
        minicore compare "The three states of matter are" --beta 0.8 -n 64 --json
        """,
    ),
    "explore": Command(
        "write a page to look at a prompt's core neurons in",
        explore_options,
        explore,
        """
        minicore explore "The jury came back into the room, and everyone stood up." -o page.html
        minicore explore "Bread needs flour and water." --and "Rain fell on the hills." -o page.html
        minicore explore - -m path/to/model --layers 10:20 -n 0 -o page.html < prompt.txt
        """,
    ),
    "pack": Command(
        "write a model as kernels read it, to be mapped instead of read and packed",
        pack_options,
        pack,
        """
        minicore pack smollm2-135m --dtype int8 -o smollm2-int8
        minicore generate "Once upon a time" -m smollm2-int8 --predictor griffin --memory-limit 300e6
        """,
    ),
    "pull": Command(
        "fetch a model into the cache directory",
        pull_options,
        pull,
        """
        minicore pull smollm2-135m
        MINICORE_HOME=models minicore pull smollm2-135m
        """,
    ),
    "info": Command(
        "what a model is, its size by part, and where it came from",
        info_options,
        info,
        """
        minicore info
        minicore info smollm2-135m
        minicore info path/to/model.gguf --dtype bfloat16 --json
        """,
    ),
    "bench": Command(
        "decode and prefill speed on this machine, beside what its memory allows",
        bench_options,
        bench,
        """
        minicore bench
        minicore bench -m smollm2-135m --dtypes float32,int8 --betas .2,.4 --plot speed.png
        minicore bench --dtypes int8 --threads 1 --contexts 64,4096 --json
        minicore bench --dtypes float32 --betas '' --prompt-tokens 512 --rounds 9
        minicore bench --backend cuda -m smollm2-135m --contexts 64,2048 --new-tokens 256
        """,
    ),
    "eval quality": Command(
        "what core sets cost: perplexity, KL and agreement with dense on texts",
        eval_quality_options,
        eval_quality,
        """
        minicore eval quality book.txt
        minicore eval quality book.txt --predictors stability,griffin,random --betas .2,.4,.6 -o quality.json
        minicore eval quality a.jsonl b.jsonl --predictors griffin,griffin@continuation --betas 0.2:0.6 --json
        """,
    ),
    "eval tasks": Command(
        "the paper's tasks: summaries, questions, translations, problems in steps",
        eval_tasks_options,
        eval_tasks,
        """
        minicore eval tasks --task steps --shots 6
        minicore eval tasks --task qa --data dev-v1.1.json --shots 6 --betas .2,.4 --workers 2 -o qa
        minicore eval tasks --task translation --data news.de news.en --predictors griffin --json
        minicore eval tasks --task openqa --data hub:google-research-datasets/nq_open@validation --json
        """,
    ),
    "eval stability": Command(
        "calibrate the test of stability: score of a prompt against recall of its set",
        eval_stability_options,
        eval_stability,
        """
        minicore eval stability book.txt
        minicore eval stability book.txt articles.jsonl --passages 200 --json
        """,
    ),
    "cluster fit": Command(
        "cluster texts by their core neurons, for similarity-guided prediction",
        cluster_fit_options,
        cluster_fit,
        """
        minicore cluster fit news.jsonl -o news.clusters
        minicore cluster fit lines.txt -m smollm2-135m -o lines.clusters --k 8
        minicore generate "The match was" --predictor similarity --clusters news.clusters
        """,
    ),
    "eval frontier": Command(
        "the fewest neurons each predictor can keep within a loss of perplexity",
        eval_frontier_options,
        eval_frontier,
        """
        minicore eval frontier book.txt
        minicore eval frontier book.txt --predictors griffin,gate,topk --losses .01,.05,.2 -o frontier.json
        """,
    ),
    "eval sts": Command(
        "whether sentences of close meaning have close core neurons, layer by layer",
        eval_sts_options,
        eval_sts,
        """
        minicore eval sts headlines.tsv images.tsv definitions.tsv
        minicore eval sts choose.tsv test.tsv -m path/to/model --betas .2 --layers 4: -o sts.json
        """,
    ),
    "reproduce": Command(
        "the paper's figures and tables on a model, beside the paper's own",
        reproduce_options,
        reproduce,
        """
        minicore reproduce all -o report --workers 2
        minicore reproduce fig3 fig4 -m smollm2-135m -o report-smollm2
        minicore reproduce fig4 --texts news.jsonl -o report-news
        minicore reproduce table1 --pairs headlines.tsv images.tsv definitions.tsv -o report
        """,
    ),
}
GROUPS = {
    "eval": "measure what core neurons do to a model",
    "cluster": "clusters of texts",
}  # of the commands of two words


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one sentence, as every other one of the program is."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


class Version(argparse.Action):
    """Import the version only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        from minicore import __version__

        print(f"minicore {__version__}")
        parser.exit()


def make_parser() -> Parser:
    """Return the parser of the command line, subcommands and all.

    Examples
    --------
    >>> make_parser().parse_args(["generate", "Once", "-n", "5"]).max_new_tokens
    5
    """
    parser = Parser(prog="minicore", description="Transformer inference with a sentence's core neurons.")
    parser.add_argument("--version", action=Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    groups = {
        name: commands.add_parser(name, help=help).add_subparsers(metavar="COMMAND", required=True)
        for name, help in GROUPS.items()
    }
    for name, command in COMMANDS.items():
        group, _, short = name.rpartition(" ")
        sub = (groups[group] if group else commands).add_parser(
            short,
            help=command.help,
            description=command.help[0].upper() + command.help[1:] + ".",
            epilog="examples:\n" + textwrap.indent(textwrap.dedent(command.examples).strip(), "  "),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.options(sub)
        sub.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``minicore`` with these arguments (the process's own if None) and return its exit code.

    Examples
    --------
    >>> main(["pull", "no-such-model"])  # says on stderr which models there are
    2
    """
    try:
        try:
            args = make_parser().parse_args(argv)
            return args.run(args)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a reader that went away can still be handled
    except InputError as error:
        return fail(str(error))
    except BrokenPipeError:
        discard_output()
        return 141
    except OSError as error:
        discard_output()
        return fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        note("interrupted")
        return 130
