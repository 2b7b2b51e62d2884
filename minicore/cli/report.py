"""Numbers in, lines for a person out: what the commands print about a generation, two of them, or a model."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minicore.evaluation.agreement import agreement
from minicore.formatting import (
    format_bytes,
    format_cell,
    format_interval,
    format_number,
    format_quartiles,
    format_table,
)

if TYPE_CHECKING:
    from minicore.checkpoint import Checkpoint
    from minicore.generation.stream import Generation


def summary(stats: dict[str, Any]) -> str:
    """Return the line that follows a generated text."""
    parts = [
        f"prefill {stats['prompt_tokens']} tokens at {stats['prefill_tokens_per_s']:.1f} tokens/s",
        f"decode {stats['new_tokens']} tokens at {stats['decode_tokens_per_s']:.1f} tokens/s",
        f"core {stats['core_fraction']:.0%}",
        f"{format_bytes(stats['bytes_per_token'])} read a token",
        f"weights {format_bytes(stats['weights_bytes'])}",
        f"resident {format_bytes(stats['resident_bytes'])}",
    ]
    if stats["device_bytes"]:
        parts.append(f"{format_bytes(stats['device_bytes'])} on the GPU")
    if stats["compile_s"] >= 0.1:
        parts.append(f"kernels ready in {stats['compile_s']:.1f} s")
    if stats["why_backend"]:
        parts.append(f"not on the GPU: {stats['why_backend']}")
    if stats["why"]:
        parts.append(f"{stats['predictor']} chose {stats['predictor_used']} ({stats['why']})")
    if stats["stop_reason"] == "context":
        parts.append("stopped at the model's context limit")
    if stats["stop_reason"] == "interrupt":
        parts.append("interrupted")
    return (
        f"[{stats['model']}, {stats['dtype']}, {stats['backend']}, {stats['predictor']}] {', '.join(parts)}"
    )


def core_title(stats: dict[str, Any]) -> str:
    return f"{stats['predictor']}, {stats['core_fraction']:.0%} of the neurons"


def comparison(dense: Generation, core: Generation) -> list[str]:
    """Return the lines under the two texts."""
    prefix, equal = agreement(dense.token_ids, core.token_ids)
    longer = max(len(dense.token_ids), len(core.token_ids))
    lines = [
        f"agreement     first {prefix} of {longer} tokens the same, {equal:.1%} equal position by position"
    ]
    for label, key, show in (
        ("decode", "decode_tokens_per_s", lambda x: f"{x:.1f} tokens/s"),
        ("a token reads", "bytes_per_token", format_bytes),
    ):
        was, now = dense.stats[key], core.stats[key]
        ratio = f" ({now / was:.2f}x)" if was else ""
        lines.append(f"{label:<13} {show(was)} dense, {show(now)} core{ratio}")
    return lines


def side_by_side(titles: Sequence[str], texts: Sequence[str], width: int) -> str:
    """Set two texts in columns that fit ``width`` characters, or one under the other where that is narrow."""
    column = (width - 3) // 2
    if column < 30:
        return "\n\n".join(f"--- {title}\n{text}" for title, text in zip(titles, texts, strict=True))
    left, right = (
        [*wrap(title, column), "-" * column, *wrap(text, column)]
        for title, text in zip(titles, texts, strict=True)
    )
    height = max(len(left), len(right))
    left, right = (side + [""] * (height - len(side)) for side in (left, right))
    return "\n".join(f"{a:<{column}} | {b}".rstrip() for a, b in zip(left, right, strict=True))


def wrap(text: str, width: int) -> list[str]:
    return [row for line in text.expandtabs(4).splitlines() for row in textwrap.wrap(line, width) or [""]]


def quality(study: dict[str, Any]) -> list[str]:
    """Return the lines that `eval quality` prints: a row a setting, means and 95% intervals."""
    head = ["predictor", "beta", "kept", "FFN read", "perplexity", "ratio to dense", "KL", "top-1", "recall"]
    generated = any(row["common_prefix"] for row in study["settings"])
    rows = []
    for row in study["settings"]:
        cells = [
            _predictor(row),
            "-" if row["predictor"] == "dense" else f"{row['beta']}",
            f"{row['kept'][0]:.1%}",
            format_bytes(row["ffn_bytes"][0]),
            format_number(row["perplexity"][0]),
            format_interval(row["ratio"]),
            format_number(row["kl"][0]),
            f"{row['agreement'][0]:.1%}",
            f"{row['recall'][0]:.1%}" if row["recall"] else "-",
        ]
        rows.append(cells + [f"{row['common_prefix'][0]:.1f}" if row["common_prefix"] else "-"] * generated)
    return [*format_table(head + ["same tokens"] * generated, rows), _conditions(study)]


def frontier(study: dict[str, Any]) -> list[str]:
    """Return the lines that `eval frontier` prints: a row a predictor and loss."""
    head = ["predictor", "loss within", "beta", "kept", "FFN read", "ratio to dense", "top-1"]
    rows = [
        [
            _predictor(row),
            f"{row['loss']:.1%}",
            f"{row['beta']:.3f}" + ("" if row["tight"] else " or less"),
            f"{row['kept'][0]:.1%}",
            format_bytes(row["ffn_bytes"][0]),
            format_interval(row["ratio"]),
            f"{row['agreement'][0]:.1%}",
        ]
        for row in study["settings"]
    ]
    return [*format_table(head, rows), _conditions(study)]


def tasks(study: dict[str, Any]) -> list[str]:
    """Return the lines that `eval tasks` prints: a table a metric, the floor beneath the settings."""
    said, floor, lines = study["conditions"], study["floor"], []
    for metric in floor["scores"]:
        rows = [
            [
                _predictor(row),
                "-" if row["predictor"] == "dense" else f"{row['beta']}",
                f"{row['kept'][0]:.1%}",
                points(row["scores"][metric]),
                points(row["to_dense"][metric], "+") if row["to_dense"] else "-",
                f"{row['empty']:.0%}",
            ]
            for row in study["settings"]
        ]
        rows.append([f"floor: {floor['floor']}", "-", "-", points(floor["scores"][metric]), "-", "-"])
        head = ["predictor", "beta", "kept", metric, "to dense", "no answer"]
        lines += [*format_table(head, rows), ""]
    cut = study["n_cut"]
    return [
        *lines,
        f"{study['n_examples']} of {study['n_data']} examples of {', '.join(study['data'])}, prompts "
        f"{said['prompts']} with {said['shots']} worked examples; {said['model']}, {said['dtype']}; "
        "95% bootstrap intervals over examples",
        *([f"{cut} documents did not fit the context and lost their first words"] if cut else []),
    ]


def points(values: Sequence[float], sign: str = "") -> str:
    """Return a score of 0 to 100, or a difference of two, with its interval."""
    estimate, low, high = (f"{value:{sign}.1f}" for value in values)
    return f"{estimate} [{low}, {high}]"


def _predictor(row: dict[str, Any]) -> str:
    name = row["predictor"] + ("" if row["budget"] == "uniform" else f" ({row['budget']})")
    return name + (f" (token beta {row['token_beta']})" if row["token_beta"] else "")


def _conditions(study: dict[str, Any]) -> str:
    said = study["conditions"]
    return (
        f"{study['n_passages']} passages of {', '.join(study['texts'])}: a prompt of {said['prompt_tokens']} "
        f"tokens, the next {said['continuation_tokens']} scored; {said['model']}, {said['dtype']}; "
        "95% bootstrap intervals over passages"
    )


def sts(study: dict[str, Any]) -> list[str]:
    """Return the lines that `eval sts` prints: rho by layer for the paper's measure and the best."""
    lines, rho, files = [], study["rho"], study["files"]
    bests = [study["best_jaccard"], study["chosen"]]
    for measure in dict.fromkeys(best["measure"] for best in bests):
        rows = [
            [str(layer), *(f"{rho[measure][name][i]:.3f}" for name in files)]
            for i, layer in enumerate(study["layers"])
        ]
        lines += [f"Spearman's rho, {measure}:", *format_table(["layer", *files], rows), ""]
    for best in bests:
        estimate, low, high = best["test_rho"]
        lines.append(
            f"{best['measure']}, layer {best['layer']}: rho {best['rho_where_chosen']:.3f} where it was "
            f"chosen, {estimate:.3f} [{low:.3f}, {high:.3f}] on {best['test_file']}"
        )
    overlap = ", ".join(f"{rho:.3f} on {name}" for name, rho in study["overlap"].items())
    lines.append(f"for comparison, the overlap of the sentences' tokens: rho {overlap}")
    return [*lines, f"alpha {study['alpha']}; {study['model']}, {study['dtype']}"]


def speeds(found: dict[str, Any]) -> list[str]:
    """Return the lines that `bench` prints: the machine, its bandwidth, prefill and decode."""
    machine, said, load = found["machine"], found["conditions"], found["load_average"]
    what = f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['flags'])})"
    lines = [
        f"{found['model']} on {found['gpu']['name'] + ' in ' if 'gpu' in found else ''}{what}",
        *(
            f"copies {format_quartiles(row['gb_per_s'])} GB/s on the GPU, read and written"
            if row["n_threads"] is None
            else f"reads {format_quartiles(row['gb_per_s'])} GB/s in {row['n_threads']} thread"
            f"{'s'[: row['n_threads'] - 1]}"
            for row in found["bandwidth"]
        ),
        "",
    ]
    head = ["", "neurons", "threads", "after", "tokens/s", "to dense", "GB/s", "of bandwidth"]
    rows = [
        [
            f"{row['phase']} {row['dtype']}",
            "all" if row["beta"] is None else f"core {row['beta']}",
            str(row["n_threads"] or "GPU"),
            str(row["context"] if row["phase"] == "decode" else 0),
            format_quartiles(row["tokens_per_s"]),
            "" if row["beta"] is None else f"{row['to_dense']['median']:.2f}x",
            format_number(row["gb_per_s"]["median"]) if "gb_per_s" in row else "",
            f"{row['of_bandwidth']['median']:.0%}" if "of_bandwidth" in row else "",
        ]
        for row in found["prefill"] + found["decode"]
    ]
    worst = max(row["error"] for row in found["validation"])
    compiled = max(row["compile_s"] for row in found["compile"])
    busy = "" if load["before"] is None else f"; load average {load['before']:.1f} to {load['after']:.1f}"
    return [
        *lines,
        *format_table(head, rows),
        *(["", *format_table(*phase_table(found["phases"]))] if "phases" in found else []),
        "",
        f"medians [quartiles] of {said['rounds']} interleaved rounds: {said['prompt_tokens']} tokens read, "
        f"{said['new_tokens']} decoded; ratios are taken within a round{busy}",
        f"logits of every setting were held to the reference first (furthest {worst:.1e} of the largest); "
        f"machine code took {compiled:.1f} s at most",
    ]


def phase_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return head and cells of the table of a token's phases on a GPU."""
    cells = [
        [
            f"{row['phase']} ({row['dtype']})",
            "all" if row["beta"] is None else f"core {row['beta']}",
            str(row["context"]),
            format_quartiles(row["microseconds"]),
            format_bytes(row["bytes"]),
            format_number(row["gb_per_s"]["median"]),
            f"{row['of_bandwidth']['median']:.0%}",
        ]
        for row in rows
    ]
    return ["a phase, all layers", "neurons", "after", "us a token", "reads", "GB/s", "of bandwidth"], cells


def about(checkpoint: Checkpoint) -> list[str]:
    """Return the lines that say what a checkpoint is and how many bytes its parts take."""
    config, parts = checkpoint.config, bytes_by_part(checkpoint.params)
    dtype = str(checkpoint.params["embed"].dtype)
    total = sum(parts.values())
    heads = f"{config.n_heads} heads of {config.d_head} ({config.n_kv_heads} for keys and values)"
    neurons = f"{config.n_neurons} neurons ({config.activation}{', gated' if config.gated else ''})"
    rows = [
        ("name", checkpoint.name),
        ("from", f"{checkpoint.source} ({checkpoint.file_dtype})"),
        ("family", config.family),
        ("blocks", f"{config.n_layers} of width {config.d_model}: {heads}, {neurons}"),
        ("vocabulary", f"{config.n_vocab} entries, context {config.n_ctx}"),
        ("parameters", f"{count(checkpoint.params):,}"),
        ("recommended", ", ".join(f"{k} {v}" for k, v in checkpoint.recommended.items()) or "nothing"),
        (f"{dtype}", f"{format_bytes(total)} in memory"),
    ]
    for part, n_bytes in parts.items():
        tied = " (the embedding serves as head)" if part == "head" and not n_bytes else ""
        rows.append((f"  {part}", f"{format_bytes(n_bytes):>8}  {n_bytes / total:6.1%}{tied}"))
    return [f"{label:<12} {value}" for label, value in rows]


def bytes_by_part(params: dict[str, Any]) -> dict[str, int]:
    """Return how many bytes the embedding, attention, FFN, norms and head take."""
    of_prefix = {
        "embed": "embedding",
        "pos_embed": "embedding",
        "attn": "attention",
        "mlp": "FFN",
        "head": "head",
    }
    parts = dict.fromkeys(("embedding", "attention", "FFN", "norms", "head"), 0)
    for name, array in params.items():
        pieces = name.split(".")
        part = pieces[2] if pieces[0] == "blocks" else pieces[0]
        parts[of_prefix.get(part, "norms")] += array.nbytes
    return parts


def count(params: dict[str, Any]) -> int:
    return sum(array.size for array in params.values())


def stability(found: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a calibration of the stability test."""
    lines = [f"{'prompt':>8} {'score':>8} {'recall':>8}   mean over passages"]
    for n in sorted({row["n"] for row in rows}):
        here = [row for row in rows if row["n"] == n]
        means = (sum(row[key] for row in here) / len(here) for key in ("score", "recall"))
        lines.append(f"{n:>8} " + " ".join(f"{mean:8.3f}" for mean in means))
    lines += [
        "",
        f"recall >= {found['wanted']}: fitted on {found['n_fit']} prompts, told on {found['n_held_out']} "
        f"others (always the more frequent answer: right {found['always']:.1%} of the time)",
        f"{'by':<18} {'rmse':>7} {'corr.':>7} {'right':>7}   weights (constant first)",
    ]
    for name, fit in ((name, fit) for name, fit in found.items() if isinstance(fit, dict)):
        weights = " ".join(f"{weight:.4f}" for weight in fit["weights"])
        numbers = f"{fit['rmse']:7.4f} {fit['correlation']:7.3f} {fit['accuracy']:7.1%}"
        lines.append(f"{name:<18} {numbers}   {weights}")
        if fit["rmse_shifted"] is not None:
            lines.append(
                f"{'  topic changed':<18} {fit['rmse_shifted']:7.4f} {'':7} {fit['accuracy_shifted']:7.1%}   "
                f"bias {fit['bias_shifted']:+.4f} on {found['n_shifted']} prompts"
            )
    return lines


def reproduced(name: str, found: dict[str, Any], title: str, claim: str) -> list[str]:
    """Return the lines of one figure: its numbers, the paper's beside ours, and whether they agree."""
    table = found["table"]
    return [
        f"{name}  {title}",
        *textwrap.wrap(f"The paper: {claim}", 100, initial_indent="  ", subsequent_indent="  "),
        "",
        *format_table(list(table[0]), [[format_cell(value) for value in row.values()] for row in table]),
        "",
        *format_table(["", "the paper", "here"], [list(row) for row in found["beside"]]),
        "",
        *textwrap.wrap(found["sentence"], 100),
        "",
    ]
