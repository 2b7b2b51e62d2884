"""What ``generate`` and ``compare`` share: the options of decoding, and the JSON of a generation."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from minicore.cli.options import (
    Options,
    alpha_option,
    backend_option,
    budget_option,
    byte_count,
    clusters_option,
    fraction,
    json_option,
    layers_option,
    model_options,
    prompt_argument,
    token_beta_option,
)
from minicore.cli.terminal import note

if TYPE_CHECKING:
    from minicore.generation.stream import Generation
    from minicore.model import Model

# The keys of --json that scripts may rely on, in this order; other keys follow them.
JSON_KEYS = (
    "model",
    "backend",
    "dtype",
    "predictor",
    "alpha",
    "beta",
    "prompt_tokens",
    "new_tokens",
    "token_ids",
    "text",
    "core_fraction",
    "prefill_s",
    "predict_s",
    "decode_tokens_per_s",
    "weights_bytes",
    "resident_bytes",
)
# The options that are passed to the library under their own names, where the user gave them.
SETTINGS = (
    *("predictor", "alpha", "beta", "gamma", "token_beta", "budget", "clusters", "window", "refresh"),
    *("memory_limit", "layers", "backend", "max_new_tokens"),
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size"),
    *("seed", "stop"),
)


def add_decoding_options(parser: argparse.ArgumentParser, predictor: str = "dense") -> None:
    """Add PROMPT and all options that ``decoding_settings`` reads; say which predictor is the last resort."""
    prompt_argument(parser)
    model_options(parser)
    core_options(parser.add_argument_group("core neurons"), predictor)
    sampling_options(parser.add_argument_group("sampling"))
    parser.add_argument("--chat", action="store_true", help="Put the prompt in the model's chat template.")
    json_option(parser)


def core_options(group: Options, predictor: str) -> None:
    """Add the options that choose the neurons to decode with; the library knows their defaults."""
    group.add_argument(
        "--predictor",
        metavar="P",
        help="How to choose core neurons, such as stability or griffin; dense keeps all neurons. With a "
        "predictor given, the model's recommended alpha, beta and layers are not used (default: the model's "
        f"recommendation, else {predictor}).",
    )
    alpha_option(group, default=None)
    group.add_argument(
        "--beta",
        metavar="B",
        type=fraction,
        help="Fraction of each layer's neurons to keep; 0.2:0.6 rises from the first layer to the last "
        "(default: the model's recommendation, else 0.4).",
    )
    layers_option(group, default="the model's recommendation, else all")
    clusters_option(group)
    group.add_argument(
        "--gamma",
        metavar="G",
        type=fraction,
        help="Like --beta, for the set of a cluster (default: same as --beta).",
    )
    token_beta_option(group, fraction)
    budget_option(group, default=None)
    group.add_argument(
        "--window", metavar="W", type=int, help="Choose core neurons from the last W tokens only."
    )
    group.add_argument("--refresh", metavar="R", type=int, help="Choose core neurons again every R tokens.")
    group.add_argument(
        "--memory-limit",
        metavar="BYTES",
        type=byte_count,
        help="Maximum memory while decoding, in bytes, such as 300e6. On the CPU this needs a model from "
        "`minicore pack` and limits the process; with --backend cuda it limits the memory of the GPU. Only "
        "the FFN weights of core neurons are then held.",
    )
    backend_option(group)


def sampling_options(group: Options) -> None:
    """Add the options that choose the tokens."""
    group.add_argument(
        "-n", "--max-new-tokens", metavar="N", type=int, help="Maximum number of tokens (default 128)."
    )
    group.add_argument(
        "--temperature",
        metavar="T",
        type=float,
        help="Sampling temperature; 0 always takes the most likely token (default 0).",
    )
    group.add_argument("--top-k", metavar="K", type=int, help="Sample from the K most likely tokens.")
    group.add_argument(
        "--top-p",
        metavar="P",
        type=float,
        help="Sample from the smallest set of most likely tokens whose probabilities add up to P.",
    )
    group.add_argument(
        "--min-p",
        metavar="P",
        type=float,
        help="Sample only tokens at least P times as likely as the likeliest.",
    )
    group.add_argument(
        "--typical-p",
        metavar="P",
        type=float,
        help="Sample from the most typical tokens whose probabilities add up to P.",
    )
    group.add_argument(
        "--repetition-penalty",
        metavar="R",
        type=float,
        help="Divide positive logits of tokens that have occurred by R and multiply negative ones.",
    )
    group.add_argument(
        "--no-repeat-ngram-size",
        metavar="N",
        type=int,
        help="Let no sequence of N tokens occur twice; 0 allows it.",
    )
    group.add_argument(
        "--seed", metavar="S", type=int, help="Random seed of sampling; the same seed gives the same text."
    )
    group.add_argument(
        "--stop",
        metavar="TEXT",
        action="append",
        help="Stop before TEXT, or a special token of that name, appears; may be given several times.",
    )


def decoding_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords of ``Model.stream`` that were given; the library knows the other defaults."""
    given = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    return given | {"chat": args.chat}


def note_sampling(model: Model, args: argparse.Namespace) -> None:
    """Say that decoding is greedy where the checkpoint asks for sampling and no temperature is given."""
    asked = model.generation
    if args.temperature is None and asked.get("do_sample"):
        settings = ("temperature", "top_k", "top_p", "min_p", "typical_p")
        given = ", ".join(f"{name} {asked[name]}" for name in settings if name in asked) or "no settings"
        note(
            f"decoding is greedy; generation_config.json asks for sampling ({given}); "
            f"--temperature {asked.get('temperature', 1.0)} samples"
        )


def json_record(out: Generation) -> dict[str, Any]:
    """Return a generation as --json prints it."""
    record = out.stats | {"token_ids": [int(i) for i in out.token_ids], "text": out.text}
    return {key: record[key] for key in JSON_KEYS} | record
