"""``minicore compare``."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minicore.cli.decoding import add_decoding_options, decoding_settings, json_record, note_sampling
from minicore.cli.options import load_model
from minicore.cli.terminal import announce_compilation, print_json, read_prompt, with_progress
from minicore.formatting import format_bytes

if TYPE_CHECKING:
    from minicore.generation.stream import Generation, Stream
    from minicore.model import Model

EXAMPLES = """
minicore compare "The three states of matter are"
minicore compare "The three states of matter are" --beta 0.8 -n 64 --json
"""
DEFAULT_PREDICTOR = "stability"  # where the checkpoint recommends none
NARROW = 30  # characters; with less for each text, they are printed one after the other


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_decoding_options(parser, DEFAULT_PREDICTOR)


def run(args: argparse.Namespace) -> int:
    """Decode with all neurons and with core neurons; print both texts and how they differ."""
    from minicore.evaluation.agreement import agreement

    model = load_model(args)
    streams = both_streams(model, read_prompt(args.prompt), decoding_settings(args))
    note_sampling(model, args)
    announce_compilation(streams[0].options.backend, streams[0].prefill_backend())
    for stream in streams:
        for _ in with_progress(stream):
            pass
    dense, core = (stream.result for stream in streams)
    prefix, equal = agreement(dense.token_ids, core.token_ids)
    if args.json:
        pair = {"dense": json_record(dense), "core": json_record(core)}
        print_json(pair | {"common_prefix": prefix, "equal_positions": equal})
        return 0
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    titles = ["dense", f"{core.stats['predictor']}, {core.stats['core_fraction']:.0%} of the neurons"]
    print(side_by_side(titles, [dense.text, core.text], width), end="\n\n")
    print("\n".join(comparison_lines(dense, core, prefix, equal)))
    return 0


def both_streams(model: Model, prompt: str, settings: dict[str, Any]) -> list[Stream]:
    """Return a dense stream and one with core neurons; both check the options before either runs."""
    recommended = model.recommended.get("predictor", "dense") != "dense"
    core = settings if recommended else {"predictor": DEFAULT_PREDICTOR} | settings
    return [model.stream(prompt, **settings | {"predictor": "dense"}), model.stream(prompt, **core)]


def comparison_lines(dense: Generation, core: Generation, prefix: int, equal: float) -> list[str]:
    """Return the lines under the two texts; prefix and equal are what ``agreement`` returns."""
    longer = max(len(dense.token_ids), len(core.token_ids))
    lines = [f"agreement       first {prefix} of {longer} tokens equal, {equal:.1%} of all positions equal"]
    for label, key, show in (
        ("decode", "decode_tokens_per_s", lambda x: f"{x:.1f} tokens/s"),
        ("read per token", "bytes_per_token", format_bytes),
    ):
        before, after = dense.stats[key], core.stats[key]
        ratio = f" ({after / before:.2f}x)" if before else ""
        lines.append(f"{label:<15} {show(before)} dense, {show(after)} core{ratio}")
    return lines


def side_by_side(titles: Sequence[str], texts: Sequence[str], width: int) -> str:
    """Return two texts in columns that fit ``width`` characters, or one below the other if it is narrow."""
    column = (width - 3) // 2
    if column < NARROW:
        return "\n\n".join(f"--- {title}\n{text}" for title, text in zip(titles, texts, strict=True))
    left, right = (
        [*wrap(title, column), "-" * column, *wrap(text, column)]
        for title, text in zip(titles, texts, strict=True)
    )
    height = max(len(left), len(right))
    left, right = (side + [""] * (height - len(side)) for side in (left, right))
    return "\n".join(f"{a:<{column}} | {b}".rstrip() for a, b in zip(left, right, strict=True))


def wrap(text: str, width: int) -> list[str]:
    """Return the lines of a text, wrapped; empty lines stay."""
    return [row for line in text.expandtabs(4).splitlines() for row in textwrap.wrap(line, width) or [""]]
