"""``minicore generate``."""

from __future__ import annotations

import argparse
from typing import Any

from minicore.cli.decoding import add_decoding_options, decoding_settings, json_record, note_sampling
from minicore.cli.options import load_model
from minicore.cli.terminal import (
    announce_compilation,
    note,
    print_json,
    print_piece,
    read_prompt,
    with_progress,
)
from minicore.formatting import format_bytes

EXAMPLES = """
minicore generate "The capital of France is"
minicore generate "Why is the sky blue?" --chat -n 200
minicore generate "Once upon a time" --predictor stability --beta 0.6 --layers 6:27
minicore generate "Once upon a time" --temperature 0.8 --top-p 0.95 --seed 1
minicore generate - -m path/to/model --json < prompt.txt
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_decoding_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the continuation as it comes, then a summary on standard error."""
    model = load_model(args)
    stream = model.stream(read_prompt(args.prompt), **decoding_settings(args))
    note_sampling(model, args)
    announce_compilation(stream.options.backend, stream.prefill_backend())
    code = 0
    try:
        for piece in with_progress(stream) if args.json else stream:
            if not args.json:
                print_piece(piece)
    except KeyboardInterrupt:
        stream.close()
        code = 130
    out = stream.result
    if args.json:
        print_json(json_record(out))
        return code
    if out.text and not out.text.endswith("\n"):
        print(flush=True)
    note(summary(out.stats))
    return code


def summary(stats: dict[str, Any]) -> str:
    """Return the line that follows a generated text."""
    parts = [
        f"prefill {stats['prompt_tokens']} tokens at {stats['prefill_tokens_per_s']:.1f} tokens/s",
        f"decode {stats['new_tokens']} tokens at {stats['decode_tokens_per_s']:.1f} tokens/s",
        f"core {stats['core_fraction']:.0%}",
        f"{format_bytes(stats['bytes_per_token'])} read per token",
        f"weights {format_bytes(stats['weights_bytes'])}",
        f"resident {format_bytes(stats['resident_bytes'])}",
    ]
    if stats["device_bytes"]:
        parts.append(f"{format_bytes(stats['device_bytes'])} on the GPU")
    if stats["compile_s"] >= 0.1:
        parts.append(f"kernels ready after {stats['compile_s']:.1f} s")
    if stats["why_backend"]:
        parts.append(f"not on the GPU: {stats['why_backend']}")
    if stats["why"]:
        parts.append(f"{stats['predictor']} chose {stats['predictor_used']} ({stats['why']})")
    if stats["stop_reason"] == "context":
        parts.append("stopped at the model's context limit")
    if stats["stop_reason"] == "interrupt":
        parts.append("interrupted")
    settings = ", ".join(stats[key] for key in ("model", "dtype", "backend", "predictor"))
    return f"[{settings}] {', '.join(parts)}"
