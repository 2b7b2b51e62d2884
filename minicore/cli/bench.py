"""``minicore bench``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from minicore.cli.options import (
    Options,
    activation_option,
    adapter_option,
    comma_list,
    fraction_list,
    integer_list,
    json_option,
    layers_option,
    model_option,
)
from minicore.cli.terminal import note, print_report
from minicore.files import atomic_write
from minicore.formatting import format_bytes, format_number, format_quartiles, format_table

EXAMPLES = """
minicore bench
minicore bench -m smollm2-135m --dtypes float32,int8 --betas .2,.4 --plot speed.png
minicore bench --dtypes int8 --threads 1 --contexts 64,4096 --json
minicore bench --dtypes float32 --betas '' --prompt-tokens 512 --rounds 9
minicore bench --backend cuda -m smollm2-135m --contexts 64,2048 --new-tokens 256
"""
# The options that are passed to the library under their own names, where the user gave them.
SETTINGS = (
    *("backend", "dtypes", "betas", "threads", "prompt_tokens", "new_tokens"),
    *("rounds", "contexts", "layers", "alpha", "seed", "activation", "adapter"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; the library knows their defaults."""
    model_option(parser)
    activation_option(parser)
    adapter_option(parser)
    parser.add_argument("--plot", metavar="FILE", help="Draw the decode speeds (.png, .svg, .pdf, ...).")
    json_option(parser)
    setting_options(parser.add_argument_group("settings"))
    timing_options(parser.add_argument_group("timing"))


def setting_options(group: Options) -> None:
    """Add the options that say what is measured."""
    group.add_argument("--backend", metavar="B", help="Backend: cpu or cuda (default cpu).")
    group.add_argument(
        "--dtypes",
        metavar="D,E",
        type=comma_list,
        help="Weight formats, all in memory at once (default: all that the backend supports).",
    )
    group.add_argument(
        "--threads",
        metavar="N,M",
        type=integer_list,
        help="Numbers of CPU threads (default: 1 and the number of cores).",
    )
    group.add_argument(
        "--betas",
        metavar="B,C",
        type=fraction_list,
        help="Fractions of the neurons to keep, besides all of them; '' measures only dense (default 0.4).",
    )
    group.add_argument(
        "--alpha",
        metavar="A",
        type=float,
        help="Fraction of each token's active neurons to keep, above 0 and at most 1 (default 0.4).",
    )
    layers_option(group)
    group.add_argument(
        "--contexts",
        metavar="N,M",
        type=integer_list,
        help="Tokens in the kv cache when decoding starts (default: as many as --prompt-tokens).",
    )


def timing_options(group: Options) -> None:
    """Add the options that say how long and how often."""
    group.add_argument(
        "--prompt-tokens", metavar="N", type=int, help="Length of the prompt to time prefill on (default 64)."
    )
    group.add_argument(
        "--new-tokens", metavar="N", type=int, help="Tokens to decode in each measurement (default 128)."
    )
    group.add_argument("--rounds", metavar="N", type=int, help="Measurements of each setting (default 5).")
    group.add_argument(
        "--seed",
        metavar="S",
        type=int,
        help="Random seed of the order of settings within a round (default 0).",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, then print the table and draw the plot."""
    from minicore import bench

    kind = None
    if args.plot:
        from minicore import plots

        kind = plots.check_format(args.plot)  # before the measurement, which takes minutes
    try:
        found = bench.measure(args.model, bench.Plan(**plan_settings(args)), progress=True)
    except bench.WrongResult as error:
        note(f"minicore: {error}")
        return 1
    if args.plot:
        with atomic_write(args.plot) as part:
            plots.save(plots.decode_speed(found), part, kind)
    print_report(found, args.json, report_lines)
    return 0


def plan_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given; a plan knows the other defaults."""
    given = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def report_lines(found: dict[str, Any]) -> list[str]:
    """Return the machine, its bandwidth, the speeds, and how they were measured."""
    return [
        *machine_lines(found),
        "",
        *speed_lines(found["prefill"] + found["decode"]),
        *(["", *phase_lines(found["phases"])] if "phases" in found else []),
        "",
        *method_lines(found),
    ]


def machine_lines(found: dict[str, Any]) -> list[str]:
    """Return the processor and the bandwidth of its memory."""
    machine = found["machine"]
    cpu = f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['flags'])})"
    gpu = f"{found['gpu']['name']} in " if "gpu" in found else ""
    lines = [f"{found['model']} on {gpu}{cpu}"]
    for row in found["bandwidth"]:
        speed, n = f"{format_quartiles(row['gb_per_s'])} GB/s", row["n_threads"]
        if n is None:
            lines.append(f"GPU memory bandwidth: {speed} (a copy, read and written bytes)")
        else:
            lines.append(f"read bandwidth, {n} {'thread' if n == 1 else 'threads'}: {speed}")
    return lines


def speed_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of prefill and decode speeds."""
    head = ["", "neurons", "threads", "context", "tokens/s", "vs dense", "GB/s", "of bandwidth"]
    cells = [
        [
            f"{row['phase']} {row['dtype']}",
            neurons_label(row["beta"]),
            str(row["n_threads"] or "GPU"),
            str(row["context"] if row["phase"] == "decode" else 0),
            format_quartiles(row["tokens_per_s"]),
            "" if row["beta"] is None else f"{row['to_dense']['median']:.2f}x",
            format_number(row["gb_per_s"]["median"]) if "gb_per_s" in row else "",
            f"{row['of_bandwidth']['median']:.0%}" if "of_bandwidth" in row else "",
        ]
        for row in rows
    ]
    return format_table(head, cells)


def phase_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of a token's phases on a GPU."""
    head = ["phase, all layers", "neurons", "context", "us per token", "reads", "GB/s", "of bandwidth"]
    cells = [
        [
            f"{row['phase']} ({row['dtype']})",
            neurons_label(row["beta"]),
            str(row["context"]),
            format_quartiles(row["microseconds"]),
            format_bytes(row["bytes"]),
            format_number(row["gb_per_s"]["median"]),
            f"{row['of_bandwidth']['median']:.0%}",
        ]
        for row in rows
    ]
    return format_table(head, cells)


def neurons_label(beta: Any) -> str:
    """Return how a table names the neurons that are kept."""
    return "all" if beta is None else f"core {beta}"


def method_lines(found: dict[str, Any]) -> list[str]:
    """Return the lines that say how the speeds were measured."""
    conditions, load = found["conditions"], found["load_average"]
    worst = max(row["error"] for row in found["validation"])
    compiled = max(row["compile_s"] for row in found["compile"])
    busy = "" if load["before"] is None else f"; load average {load['before']:.1f} to {load['after']:.1f}"
    return [
        f"median [quartiles] of {conditions['rounds']} interleaved rounds: {conditions['prompt_tokens']} "
        f"prompt tokens, {conditions['new_tokens']} new tokens; ratios are taken within each round{busy}",
        f"all logits were checked against the reference first (largest error: {worst:.1e} of the largest "
        f"logit); compilation took at most {compiled:.1f} s",
    ]
