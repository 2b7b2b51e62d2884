"""Options that several commands share, and what their values mean."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from minicore.cli.terminal import show_progress

if TYPE_CHECKING:
    from minicore.evaluation.sweep import Workers
    from minicore.model import Model

DEFAULT_MODEL = "minicore-opt-core"  # part of the package; shows the paper's phenomena in minutes
Options = argparse._ActionsContainer  # a parser, or a group of its options
MODEL_HELP = "A model name, org/name on the Hugging Face hub, a Hugging Face directory or a .gguf file"


# --- values ---


def byte_count(text: str) -> int:
    """Return a number of bytes, such as 300000000 or 300e6."""
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"expected a number of bytes such as 300e6, not {text!r}") from None


def fraction(text: str) -> float | str:
    """Return a number; a range such as 0.2:0.6 stays text, which the library reads."""
    return text if ":" in text else float(text)


def comma_list(text: str) -> list[str]:
    """Return the parts between commas, without empty ones."""
    return [part.strip() for part in text.split(",") if part.strip()]


def fraction_list(text: str) -> list[float | str]:
    """Return numbers as floats; other parts stay text, which the library reads or refuses."""
    betas: list[float | str] = []
    for part in comma_list(text):
        try:
            betas.append(float(part))
        except ValueError:
            betas.append(part)
    return betas


def number_list(text: str) -> list[float]:
    """Return numbers that are separated by commas."""
    try:
        return [float(part) for part in comma_list(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, not {text!r}") from None


def integer_list(text: str) -> list[int]:
    """Return integers that are separated by commas."""
    try:
        return [int(part) for part in comma_list(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected integers separated by commas, not {text!r}") from None


# --- input and output ---


def prompt_argument(parser: Options) -> None:
    """Add PROMPT."""
    parser.add_argument("prompt", metavar="PROMPT", help="The text; - reads it from standard input.")


def texts_argument(parser: Options) -> None:
    """Add TEXTS."""
    parser.add_argument("texts", metavar="TEXTS", nargs="+", help="Plain text or JSON lines (.jsonl) files.")


def model_option(parser: Options) -> None:
    """Add -m, for commands that choose the weight formats in another way."""
    parser.add_argument(
        "-m", "--model", default=DEFAULT_MODEL, help=f"{MODEL_HELP} (default {DEFAULT_MODEL})."
    )


def dtype_option(parser: Options) -> None:
    """Add --dtype."""
    parser.add_argument(
        "--dtype",
        metavar="D",
        help="Format of the weights in memory: float32, bfloat16, int8 or int4 (default: the format of a "
        "packed directory, float32 for other models).",
    )


def activation_option(parser: Options) -> None:
    """Add --activation."""
    parser.add_argument(
        "--activation",
        metavar="A",
        help="The FFN's activation, such as relu or fatrelu:0.01 (with its threshold). GGUF files do not "
        "record it, so those of ReLU models need this option (default: what the checkpoint says).",
    )


def adapter_option(parser: Options) -> None:
    """Add --adapter."""
    parser.add_argument(
        "--adapter",
        metavar="DIR",
        help="Directory of a LoRA adapter of PEFT, added to the weights when the model is loaded.",
    )


def model_options(parser: Options) -> None:
    """Add -m, --dtype, --activation and --adapter."""
    model_option(parser)
    dtype_option(parser)
    activation_option(parser)
    adapter_option(parser)


def load_model(args: argparse.Namespace) -> Model:
    """Return the model of ``model_options``."""
    import minicore

    return minicore.load(
        args.model,
        dtype=args.dtype,
        activation=args.activation,
        adapter=args.adapter,
        progress=show_progress(),
    )


def json_option(parser: Options) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead of text.")


# --- how neurons are chosen ---


def predictors_option(parser: Options, default: Sequence[str], more: str = "") -> None:
    """Add --predictors, with a further sentence of help."""
    parser.add_argument(
        "--predictors",
        metavar="P,Q",
        type=comma_list,
        default=list(default),
        help=f"Predictors to measure (default {','.join(default)}).{more and ' ' + more}",
    )


def alpha_option(parser: Options, default: float | None = 0.4) -> None:
    """Add --alpha; None leaves the default to the library."""
    shown = ": the model's recommendation, else 0.4" if default is None else f" {default}"
    parser.add_argument(
        "--alpha",
        metavar="A",
        type=float,
        default=default,
        help=f"Fraction of each token's active neurons to keep, above 0 and at most 1 (default{shown}).",
    )


def betas_option(parser: Options, default: Sequence[float | str], ranges: bool = True) -> None:
    """Add --betas; say whether a beta may be a range."""
    rises = "; 0.2:0.6 rises from the first layer to the last" if ranges else ""
    parser.add_argument(
        "--betas",
        metavar="B,C",
        type=fraction_list,
        default=list(default),
        help=f"Fractions of each layer's neurons to keep{rises} (default {','.join(map(str, default))}).",
    )


def token_beta_option(parser: Options, read: Callable[[str], float | str] = str) -> None:
    """Add --token-beta."""
    parser.add_argument(
        "--token-beta",
        metavar="B",
        type=read,
        help="With a predictor such as griffin+gate: fraction of the neurons that each token keeps.",
    )


def layers_option(parser: Options, what: str = "Layers to restrict", default: str = "all") -> None:
    """Add --layers."""
    parser.add_argument(
        "--layers",
        metavar="6:27",
        help=f"{what}, as a Python slice; --layers=-8: means the last 8 (default: {default}).",
    )


def budget_option(parser: Options, default: str | None = "uniform") -> None:
    """Add --budget; None is the library's default, the same."""
    parser.add_argument(
        "--budget",
        metavar="R",
        default=default,
        help="How beta is distributed over the layers: uniform, or share, which gives more neurons to layers "
        "whose scores are spread more widely (default uniform).",
    )


def clusters_option(parser: Options) -> None:
    """Add --clusters."""
    parser.add_argument(
        "--clusters",
        metavar="FILE",
        help="Clusters from `minicore cluster fit`, for the predictors similarity, static and auto.",
    )


# --- how the command runs ---


def backend_option(parser: Options, names: Sequence[str] = ("numpy", "numba", "cpu", "cuda", "auto")) -> None:
    """Add --backend; the last name is the default."""
    known = f"{', '.join(names[:-1])} or {names[-1]}"
    parser.add_argument(
        "--backend", metavar="B", default=names[-1], help=f"Backend: {known} (default {names[-1]})."
    )


def seed_option(parser: Options, of: str) -> None:
    """Add --seed."""
    parser.add_argument("--seed", metavar="S", type=int, default=0, help=f"Random seed of {of} (default 0).")


def worker_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where jobs run."""
    group = parser.add_argument_group("workers")
    group.add_argument(
        "--workers", metavar="N", type=int, default=1, help="Worker processes on this machine (default 1)."
    )
    group.add_argument(
        "--threads", metavar="N", type=int, default=1, help="Threads of each worker (default 1)."
    )
    group.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="Dask scheduler whose workers run the jobs instead, such as tcp://host:8786.",
    )


def chosen_workers(args: argparse.Namespace) -> Workers:
    """Return the workers that run the jobs."""
    from minicore.evaluation.sweep import Workers

    return Workers(n_processes=args.workers, n_threads=args.threads, scheduler=args.scheduler)
