"""The command line: one function and one row of a table for each subcommand.

What was asked for goes to standard output, everything else to standard error. Exit codes: 0; 1 if a
benchmark finds a wrong result; 2 for bad input, told in one sentence; 130 after Ctrl-C; 141 when the reader
of the output went away. Nothing heavy is imported before a subcommand runs, so that ``minicore --help`` is
instant.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from minicore import report
from minicore.errors import InputError
from minicore.files import atomic_write

if TYPE_CHECKING:
    from minicore.generate import Generation, Stream
    from minicore.model import Model
    from minicore.sweep import Where

DEFAULT_MODEL = "smollm2-135m"
CORE_MODEL = "minicore-opt-core"  # what shows the paper's phenomena in minutes
DEFAULT_CORE_PREDICTOR = "stability"  # what compare sets against dense where the checkpoint recommends none

# The keys of --json that scripts may rely on, in this order; further ones may follow them.
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


# --- the subcommands ---


def generate(args: argparse.Namespace) -> int:
    model = load(args)
    stream = model.stream(read_prompt(args.prompt), **settings(args))
    announce_compilation(stream.backend)
    try:
        for piece in with_progress(stream) if args.json else stream:
            if not args.json:
                print_piece(piece)
        code = 0
    except KeyboardInterrupt:
        stream.close()
        code = 130
    out = stream.result
    if args.json:
        print_json(record(out))
        return code
    if out.text and not out.text.endswith("\n"):
        print(flush=True)
    note(report.summary(out.stats))
    return code


def compare(args: argparse.Namespace) -> int:
    model = load(args)
    prompt = read_prompt(args.prompt)
    chosen = settings(args)
    advised = model.recommended.get("predictor", "dense") != "dense"
    core_settings = chosen if advised else {"predictor": DEFAULT_CORE_PREDICTOR} | chosen
    # Both are made before either runs: a wrong option is told at once.
    streams = [
        model.stream(prompt, **chosen | {"predictor": "dense"}),
        model.stream(prompt, **core_settings),
    ]
    announce_compilation(streams[0].backend)
    for stream in streams:
        for _ in with_progress(stream):
            pass
    dense, core = (stream.result for stream in streams)
    prefix, equal = report.agreement(dense.token_ids, core.token_ids)
    if args.json:
        pair = {"dense": record(dense), "core": record(core)}
        print_json(pair | {"common_prefix": prefix, "equal_positions": equal})
        return 0
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    titles = ["dense", report.core_title(core.stats)]
    print(report.side_by_side(titles, [dense.text, core.text], width))
    print()
    for line in report.comparison(dense, core):
        print(line)
    return 0


def pull(args: argparse.Namespace) -> int:
    from minicore.checkpoint import names

    path = names.pull(args.name, progress=sys.stderr.isatty())
    if args.json:
        print_json({"name": args.name, "path": str(path)})
    else:
        print(path)
    return 0


def pack(args: argparse.Namespace) -> int:
    from pathlib import Path

    target = Path(args.output)
    if target.exists():  # before the minutes that reading and packing may take
        raise InputError(f"{target}: exists already, expected a new directory to write to")
    model = load(args)
    model.save(target)
    if args.json:
        print_json({"path": str(target), "dtype": model.dtype, "weights_bytes": model.weights_bytes})
    else:
        print(target)
    return 0


def explore(args: argparse.Namespace) -> int:
    from minicore.decode import check_backend
    from minicore.explore import explore as make_page

    prompts = [read_prompt(prompt) for prompt in (args.prompt, args.other) if prompt is not None]
    model = load(args)
    announce_compilation(check_backend(args.backend, model.dtype)[0])
    names = "alpha beta layers max_new_tokens chat backend".split()
    page = make_page(model, prompts, **{name: getattr(args, name) for name in names})
    with atomic_write(args.output) as part:
        part.write_text(page, encoding="utf-8")
    print(args.output)
    return 0


def eval_quality(args: argparse.Namespace) -> int:
    from minicore.experiments import quality

    found = quality.evaluate(
        load(args),
        args.texts,
        args.predictors,
        args.betas,
        n_generated=args.generate,
        workers=workers(args),
        **conditions(args),
    )
    if args.json:
        print_json(found)
    else:
        print("\n".join(report.quality(found)))
    return 0


def eval_frontier(args: argparse.Namespace) -> int:
    from minicore.experiments import frontier

    found = frontier.find(
        load(args), args.texts, args.predictors, args.losses, rounds=args.rounds, **conditions(args)
    )
    if args.json:
        print_json(found)
    else:
        print("\n".join(report.frontier(found)))
    return 0


def eval_stability(args: argparse.Namespace) -> int:
    from minicore.experiments import stability

    rows = stability.measure(load(args), args.texts, args.passages, args.alpha, seed=args.seed)
    found = stability.calibrate(rows, args.wanted)
    if args.json:
        print_json(found | {"rows": rows})
    else:
        print("\n".join(report.stability(found, rows)))
    return 0


def eval_tasks(args: argparse.Namespace) -> int:
    from minicore.tasks import run

    same = "shots alpha layers clusters budget token_beta prompts backend seed"
    said = {name: getattr(args, name) for name in same.split()}
    found = run.evaluate(
        load(args),
        args.task,
        args.data,
        args.predictors,
        args.betas,
        n_examples=args.examples,
        where=workers(args),
        out=args.output,
        progress=True,
        **said,
    )
    if args.json:
        print_json(found)
    else:
        print("\n".join(report.tasks(found)))
    return 0


def cluster_fit(args: argparse.Namespace) -> int:
    from pathlib import Path

    from minicore.fitting import fit_clusters, read_labelled

    texts, labels = read_labelled(args.texts)
    partial = Path(f"{args.output}.partial")
    clusters = fit_clusters(
        load(args),
        texts,
        None if args.no_labels else labels,
        predictor=args.predictor,
        alpha=args.alpha,
        beta=args.beta,
        layer=args.layer,
        k=args.k,
        seed=args.seed,
        max_tokens=args.max_tokens,
        partial=partial,
        workers=workers(args),
    )
    clusters.save(args.output)
    partial.unlink(missing_ok=True)
    if args.json:
        sizes = dict(zip(clusters.names, clusters.sizes.tolist(), strict=True))
        print_json(
            {"path": str(args.output), "layer": clusters.layer, "texts": len(texts), "clusters": sizes}
        )
        return 0
    for name, size in zip(clusters.names, clusters.sizes, strict=True):
        print(f"{name:<24} {size} texts")
    note(f"{args.output}: {clusters!r}")
    return 0


def bench(args: argparse.Namespace) -> int:
    from minicore import bench as benchmark

    kind = None
    if args.plot:
        from minicore import plots

        kind = plots.check_format(args.plot)
    names = "dtypes betas threads prompt_tokens new_tokens rounds contexts layers alpha seed".split()
    said = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    try:
        found = benchmark.measure(args.model, benchmark.Plan(**said), progress=True)
    except benchmark.WrongResult as error:
        note(f"minicore: {error}")
        return 1
    if args.plot:
        with atomic_write(args.plot) as part:
            plots.save(plots.decode_speed(found), part, kind)
    if args.json:
        print_json(found)
    else:
        print("\n".join(report.speeds(found)))
    return 0


def eval_sts(args: argparse.Namespace) -> int:
    from minicore.experiments import sts

    found = sts.study(
        load(args),
        args.files,
        alpha=args.alpha,
        betas=args.betas,
        layers=args.layers,
        most=args.pairs,
        seed=args.seed,
        out=args.output,
        progress=True,
    )
    if args.json:
        print_json(found)
    else:
        print("\n".join(report.sts(found)))
    return 0


def reproduce(args: argparse.Namespace) -> int:
    from pathlib import Path

    from minicore.experiments import page
    from minicore.experiments import reproduce as experiments

    results: dict[str, Any] = {}
    found = experiments.reproduce(
        args.figures,
        load(args),
        args.output,
        texts=args.texts,
        pairs=args.pairs,
        seed=args.seed,
        progress=True,
    )
    for name, one in found:
        results[name] = one
        if not args.json:
            experiment = experiments.EXPERIMENTS[name]
            print("\n".join(report.reproduced(name, one, experiment.title, experiment.claim)), flush=True)
    if args.json:
        drawn = ("drawn", "key")
        print_json({name: {k: v for k, v in one.items() if k not in drawn} for name, one in results.items()})
    if "all" in args.figures:
        note(f"{page.write_page(results, args.output)}: {len(results)} figures")
        if not args.pairs:
            note("table1 is left out: it needs files of sentence pairs (--pairs)")
    else:
        note(f"{Path(args.output)}: {', '.join(results)} as .json, .csv and .png")
    return 0


def info(args: argparse.Namespace) -> int:
    if args.model is None:
        return list_models(args)
    from minicore.checkpoint import read

    checkpoint = read(args.model, dtype=args.dtype, progress=sys.stderr.isatty())
    if args.json:
        import dataclasses

        about = {
            "name": checkpoint.name,
            "source": str(checkpoint.source),
            "file_dtype": checkpoint.file_dtype,
        }
        sizes = {
            "parameters": report.count(checkpoint.params),
            "dtype": str(checkpoint.params["embed"].dtype),
            "bytes": report.bytes_by_part(checkpoint.params),
        }
        more = {"recommended": checkpoint.recommended, "config": dataclasses.asdict(checkpoint.config)}
        print_json(about | sizes | more)
        return 0
    for line in report.about(checkpoint):
        print(line)
    return 0


def list_models(args: argparse.Namespace) -> int:
    from minicore.checkpoint import names

    found = {name: names.on_disk(name) for name in names.KNOWN}
    if args.json:
        print_json({name: str(path) if path else None for name, path in found.items()})
        return 0
    for name, path in found.items():
        shipped = name in names.SHIPPED
        absent = "not in this installation" if shipped else f"not on disk; `minicore pull {name}` fetches it"
        print(f"{name:<20} {path or absent}")
    return 0


# --- their options ---


def model_options(parser: argparse.ArgumentParser, default: str = DEFAULT_MODEL) -> None:
    parser.add_argument(
        "-m",
        "--model",
        default=default,
        help=f"a name, a Hugging Face directory or a .gguf file (default: {default})",
    )
    dtype_option(parser)


def dtype_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        metavar="D",
        help="of the weights in memory: float32, bfloat16, int8 or int4 (default: what a packed directory "
        "holds, else float32)",
    )


def json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def decoding_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="the text; - reads it from standard input")
    model_options(parser)
    core = parser.add_argument_group("core neurons")
    core.add_argument(
        "--predictor",
        metavar="P",
        help="how they are chosen: stability, ...; dense means all (default: what the model recommends)",
    )
    core.add_argument(
        "--alpha", metavar="A", type=float, help="fraction of a token's active neurons kept, 0 to 1"
    )
    core.add_argument(
        "--beta", metavar="B", type=fraction, help="of a layer's neurons kept; 0.2:0.6 rises over the layers"
    )
    core.add_argument(
        "--layers", metavar="6:27", help="the layers it applies to, a Python slice; --layers=-8: too"
    )
    core.add_argument("--clusters", metavar="FILE", help="of texts, for similarity, static and auto")
    core.add_argument("--gamma", metavar="G", type=fraction, help="as --beta, for the set of a cluster")
    core.add_argument(
        "--token-beta", metavar="B", type=fraction, help="kept by each token, for griffin+gate and such"
    )
    core.add_argument("--budget", metavar="R", help="how beta is spent over the layers: uniform or share")
    core.add_argument("--window", metavar="W", type=int, help="choose by the last W tokens")
    core.add_argument("--refresh", metavar="R", type=int, help="choose anew every R tokens")
    core.add_argument(
        "--memory-limit",
        metavar="BYTES",
        type=n_bytes,
        help="hold no more while decoding; needs a model that `minicore pack` wrote",
    )
    core.add_argument("--backend", metavar="B", help="numpy, cpu, cuda or auto (default: auto)")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "-n", "--max-new-tokens", metavar="N", type=int, help="tokens to generate at most (default: 128)"
    )
    sampling.add_argument(
        "--temperature", metavar="T", type=float, help="0 takes the likeliest token (default)"
    )
    sampling.add_argument("--top-k", metavar="K", type=int, help="draw from the K likeliest tokens")
    sampling.add_argument("--top-p", metavar="P", type=float, help="draw from the likeliest that add up to P")
    sampling.add_argument("--seed", metavar="S", type=int, help="the same seed draws the same text")
    sampling.add_argument("--stop", metavar="TEXT", action="append", help="end before TEXT; may be repeated")
    parser.add_argument("--chat", action="store_true", help="wrap the prompt in the model's chat template")
    json_option(parser)


def pull_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a name that `minicore info` lists, or org/name")
    json_option(parser)


def pack_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a name, a Hugging Face directory or a .gguf file")
    dtype_option(parser)
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="a directory to make")
    json_option(parser)


def explore_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="the text; - reads it from standard input")
    parser.add_argument("--and", metavar="PROMPT", dest="other", help="a second text to compare it with")
    model_options(parser, CORE_MODEL)
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the page, such as page.html")
    parser.add_argument("--alpha", metavar="A", type=float, help="fraction of a token's active neurons kept")
    parser.add_argument(
        "--beta",
        metavar="B",
        type=float,
        help="of a layer's neurons kept when the page opens; it has a slider",
    )
    parser.add_argument("--layers", metavar="6:27", help="the layers shown, a Python slice (default: all)")
    parser.add_argument(
        "--backend", metavar="B", default="auto", help="numpy, cpu, cuda or auto (default: auto)"
    )
    parser.add_argument(
        "-n", "--max-new-tokens", metavar="N", type=int, default=48, help="to continue with (default: 48)"
    )
    parser.add_argument("--chat", action="store_true", help="wrap the prompts in the model's chat template")


def info_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="a name, directory or .gguf file; none: list names"
    )
    dtype_option(parser)
    json_option(parser)


def n_bytes(text: str) -> int:
    """Return a number of bytes: 300000000, 300e6."""
    return int(float(text))


def fraction(text: str) -> float | str:
    """Return a number, or a range of two as it is: the library reads it."""
    return text if ":" in text else float(text)


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def listed_betas(text: str) -> list[float | str]:
    """Return numbers as numbers; the library tells what a text means, or that it means nothing."""
    betas: list[float | str] = []
    for part in listed(text):
        try:
            betas.append(float(part))
        except ValueError:
            betas.append(part)
    return betas


def study_options(parser: argparse.ArgumentParser, predictors: list[str], passages: int) -> None:
    """Add what the commands that measure predictors on texts have in common."""
    parser.add_argument("texts", metavar="TEXTS", nargs="+", help="plain text files, or JSON lines (.jsonl)")
    model_options(parser)
    parser.add_argument(
        "--backend", metavar="B", default="auto", help="numpy, cpu, cuda or auto (default: auto)"
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--predictors",
        metavar="P,Q",
        type=listed,
        default=predictors,
        help="ways of choosing; griffin@continuation takes the set from the continuation itself, "
        f"griffin@others from texts that are not measured (default: {','.join(predictors)})",
    )
    what.add_argument(
        "--budget", default="uniform", help="how beta is spent over the layers: uniform or share"
    )
    what.add_argument(
        "--token-beta",
        metavar="B",
        help="fraction kept by the rule of SET+RULE, such as griffin+gate, whose set keeps beta",
    )
    what.add_argument("--clusters", metavar="FILE", help="of other texts, for similarity and auto")
    what.add_argument(
        "--alpha",
        metavar="A",
        type=float,
        default=0.4,
        help="fraction of a token's active neurons kept (default: 0.4)",
    )
    what.add_argument("--layers", metavar="6:27", help="the layers restricted, a Python slice (default: all)")
    on = parser.add_argument_group("on what")
    on.add_argument("--prompt-tokens", metavar="N", type=int, default=256, help="read densely (default: 256)")
    on.add_argument(
        "--continuation-tokens",
        metavar="N",
        type=int,
        default=256,
        help="read with the set and scored (default: 256)",
    )
    on.add_argument(
        "--passages",
        metavar="N",
        type=int,
        default=passages,
        help=f"drawn from the texts (default: {passages})",
    )
    on.add_argument(
        "--fit-passages",
        metavar="N",
        type=int,
        default=16,
        help="further ones that hot sets are fitted on (default: 16)",
    )
    on.add_argument(
        "--seed",
        metavar="S",
        type=int,
        default=0,
        help="of the draw, of random sets and of the bootstrap (default: 0)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write the report as JSON; rows are kept beside it, so that a stopped run goes on",
    )
    json_option(parser)


def eval_quality_options(parser: argparse.ArgumentParser) -> None:
    study_options(parser, ["dense", "stability", "griffin"], passages=40)
    parser.add_argument(
        "--betas",
        metavar="B,C",
        type=listed_betas,
        default=[0.2, 0.4, 0.6],
        help="fractions of a layer's neurons kept; 0.2:0.6 rises over the layers (default: .2,.4,.6)",
    )
    parser.add_argument(
        "--generate",
        metavar="N",
        type=int,
        default=0,
        help="also count how many of N greedy tokens come before the first that dense has not",
    )
    worker_options(parser)


def eval_frontier_options(parser: argparse.ArgumentParser) -> None:
    study_options(parser, ["stability", "griffin", "gate"], passages=24)
    parser.add_argument(
        "--losses",
        metavar="L,M",
        type=lambda text: [float(part) for part in listed(text)],
        default=[0.01, 0.05],
        help="perplexity that may be lost, as a fraction (default: .01,.05)",
    )
    parser.add_argument(
        "--rounds", metavar="N", type=int, default=6, help="points measured after the first two (default: 6)"
    )


def eval_stability_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("texts", metavar="TEXTS", nargs="+", help="plain text files, or JSON lines (.jsonl)")
    model_options(parser)
    parser.add_argument(
        "--passages", metavar="N", type=int, default=64, help="drawn from the texts (default: 64)"
    )
    parser.add_argument(
        "--alpha", metavar="A", type=float, default=0.4, help="of the core sets (default: 0.4)"
    )
    parser.add_argument(
        "--wanted", metavar="R", type=float, default=0.8, help="recall of a stable set (default: 0.8)"
    )
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of the draw (default: 0)")
    json_option(parser)


def eval_tasks_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task", metavar="T", required=True, help="summary, qa, openqa, translation or steps"
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        nargs="+",
        default=[],
        help="XSum or SciTLDR (.jsonl), SQuAD (.json), TruthfulQA (.csv), NQ-open or TriviaQA (.jsonl), two "
        "files of parallel text (news.de news.en), or hub:NAME[:CONFIG]@SPLIT; steps has a set of its own",
    )
    model_options(parser)
    parser.add_argument("--backend", metavar="B", default="auto", help="numpy, cpu or auto (default: auto)")
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--predictors",
        metavar="P,Q",
        type=listed,
        default=["dense", "stability"],
        help="ways of choosing (default: dense,stability)",
    )
    what.add_argument(
        "--betas",
        metavar="B,C",
        type=listed_betas,
        default=[0.4],
        help="fractions of a layer's neurons kept (default: .4)",
    )
    what.add_argument(
        "--budget", default="uniform", help="how beta is spent over the layers: uniform or share"
    )
    what.add_argument("--token-beta", metavar="B", help="kept by each token, for griffin+gate and such")
    what.add_argument("--clusters", metavar="FILE", help="of other texts, for similarity, static and auto")
    what.add_argument(
        "--alpha", metavar="A", type=float, default=0.4, help="of a token's active neurons (default: 0.4)"
    )
    what.add_argument("--layers", metavar="6:27", help="the layers restricted, a Python slice (default: all)")
    on = parser.add_argument_group("on what")
    on.add_argument(
        "--shots", metavar="N", type=int, default=0, help="worked examples before each prompt (default: 0)"
    )
    on.add_argument("--prompts", metavar="FILE", help="other prompts than those that fit the data (.toml)")
    on.add_argument(
        "--examples", metavar="N", type=int, default=100, help="drawn from the data (default: 100)"
    )
    on.add_argument(
        "--seed",
        metavar="S",
        type=int,
        default=0,
        help="of the draw, of random sets and of the bootstrap (default: 0)",
    )
    worker_options(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="keep every answer as it comes, so that a stopped run goes on, and write the report as JSON",
    )
    json_option(parser)


def worker_options(parser: argparse.ArgumentParser) -> None:
    """Add what says who works the jobs of a study off."""
    by = parser.add_argument_group("by whom")
    by.add_argument("--workers", metavar="N", type=int, default=1, help="processes here (default: 1)")
    by.add_argument("--threads", metavar="N", type=int, default=1, help="of each worker (default: 1)")
    by.add_argument("--scheduler", metavar="ADDRESS", help="a Dask cluster's instead: tcp://host:8786")


def cluster_fit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "texts",
        metavar="TEXTS",
        help='one text a line, or JSON lines (.jsonl) with "text" and perhaps "label"',
    )
    model_options(parser)
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the clusters, for --clusters")
    parser.add_argument("--no-labels", action="store_true", help="cluster by k-means though there are labels")
    parser.add_argument(
        "--k", metavar="K", type=int, help="clusters of k-means (default: where the curve bends)"
    )
    parser.add_argument(
        "--layer", metavar="L", type=int, help="whose core sets are clustered (default: at 25/32)"
    )
    parser.add_argument(
        "--predictor", metavar="P", default="stability", help="makes the sets (default: stability)"
    )
    parser.add_argument("--alpha", metavar="A", type=float, default=0.4, help="of the sets (default: 0.4)")
    parser.add_argument("--beta", metavar="B", type=float, default=0.4, help="of the sets (default: 0.4)")
    parser.add_argument("--max-tokens", metavar="N", type=int, default=512, help="of a text (default: 512)")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of k-means (default: 0)")
    worker_options(parser)
    json_option(parser)


def counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in listed(text))


counts.__name__ = "list of integers"  # as argparse calls it when it complains


def bench_options(parser: argparse.ArgumentParser) -> None:
    model = f"a name, a Hugging Face directory or a .gguf file (default: {DEFAULT_MODEL})"
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, help=model)
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--dtypes",
        metavar="D,E",
        type=lambda text: tuple(listed(text)),
        help="weight formats, all in memory at once (default: float32,bfloat16,int8,int4)",
    )
    what.add_argument(
        "--betas",
        metavar="B,C",
        type=lambda text: tuple(listed_betas(text)),
        help="fractions of the neurons kept, beside dense; '' measures dense alone (default: 0.4)",
    )
    what.add_argument("--alpha", metavar="A", type=float, help="fraction of a token's active neurons kept")
    what.add_argument("--layers", metavar="6:27", help="the layers restricted, a Python slice (default: all)")
    what.add_argument(
        "--threads", metavar="N,M", type=counts, help="(default: 1 and as many as there are cores)"
    )
    what.add_argument("--prompt-tokens", metavar="N", type=int, help="that prefill is timed on (default: 64)")
    what.add_argument(
        "--contexts",
        metavar="N,M",
        type=counts,
        help="tokens in the kv cache when decoding begins (default: as --prompt-tokens)",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--new-tokens", metavar="N", type=int, help="decoded at a time (default: 128)")
    how.add_argument("--rounds", metavar="N", type=int, help="how often each is timed (default: 5)")
    how.add_argument("--seed", metavar="S", type=int, help="of the order within a round (default: 0)")
    parser.add_argument("--plot", metavar="FILE", help="draw decode speeds (.png, .svg, .pdf, ...)")
    json_option(parser)


def eval_sts_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        metavar="FILES",
        nargs="+",
        help="lines of score, tab, sentence, tab, sentence; measure and layer are chosen on all files but "
        "the last and tested on the last",
    )
    model_options(parser)
    parser.add_argument(
        "--alpha",
        metavar="A",
        type=float,
        default=0.4,
        help="fraction of a token's active neurons kept (default: 0.4)",
    )
    parser.add_argument(
        "--betas",
        metavar="B,C",
        type=listed_betas,
        default=[0.1, 0.2, 0.4],
        help="fractions of a layer's neurons in the sets compared (default: .1,.2,.4)",
    )
    parser.add_argument(
        "--layers", metavar="6:27", help="the layers looked at, a Python slice (default: all)"
    )
    parser.add_argument("--pairs", metavar="N", type=int, help="read the first N of each file (default: all)")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the figures as JSON")
    json_option(parser)


def reproduce_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "figures",
        metavar="FIGURE",
        nargs="+",
        help="fig2, fig3, fig4, fig5, fig6, fig8, fig9, fig11, fig12, table1, table2, table3, table4, or "
        "all, which writes report.html too",
    )
    model_options(parser, CORE_MODEL)
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        required=True,
        help="for FIGURE.json, .csv and .png; what is there of the same model, texts and settings is kept",
    )
    parser.add_argument(
        "--texts",
        metavar="FILE",
        nargs="+",
        help='JSON lines (.jsonl) with "text" and, for topics, "label", or plain text (default: a sample)',
    )
    parser.add_argument(
        "--pairs",
        metavar="FILE",
        nargs="+",
        default=[],
        help="for table1, two or more: lines of score, tab, sentence, tab, sentence",
    )
    parser.add_argument(
        "--seed", metavar="S", type=int, default=0, help="of draws, clusters and layouts (default: 0)"
    )
    json_option(parser)


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
        minicore reproduce all -o report
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
    """Run ``minicore`` with these arguments (the process's own if None) and return its exit code."""
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


# --- in ---


def load(args: argparse.Namespace) -> Model:
    import minicore

    return minicore.load(args.model, dtype=args.dtype, progress=sys.stderr.isatty())


def read_prompt(prompt: str) -> str:
    """Return the prompt, from standard input (less one final newline) if it is ``-``."""
    if prompt == "-":
        raw = sys.stdin.buffer.read() if sys.stdin is not None else b""
        where = "standard input"
    else:
        raw = os.fsencode(prompt)  # bytes of the command line that are no text come back as they were
        where = "PROMPT"
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is not UTF-8 text: byte {raw[error.start]:#04x} at {error.start}"
        ) from None
    return text.removesuffix("\n") if prompt == "-" else text


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was said on the command line; the library knows the defaults of the rest."""
    names = """predictor alpha beta gamma token_beta budget clusters window refresh memory_limit layers
        backend max_new_tokens temperature top_k top_p seed stop""".split()
    said = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return said | {"chat": args.chat}


def conditions(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the commands that measure predictors on texts hand to the library alike."""
    same = (
        "budget token_beta backend prompt_tokens continuation_tokens alpha layers fit_passages clusters seed"
    )
    said = {name: getattr(args, name) for name in same.split()}
    return said | {"n_passages": args.passages, "out": args.output, "progress": True}


def workers(args: argparse.Namespace) -> Where:
    """Return who works the jobs of a study off."""
    from minicore.sweep import Where

    return Where(args.workers, args.threads, args.scheduler)


# --- out ---


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def fail(sentence: str) -> int:
    note("minicore: " + " ".join(sentence.splitlines()))
    return 2


def discard_output() -> None:
    """Point standard output at nothing, so that Python's own flush at exit has nothing to complain about."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # no file descriptor behind it
        pass


def print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value))


def announce_compilation(backend: str) -> None:
    """Say what is waited for: the CPU's kernels are compiled once and kept on disk, the GPU's every time."""
    if backend == "cuda":
        note("compiling the GPU's kernel for this model's shape, which takes some ten seconds")
    if backend in ("cpu", "cuda"):
        from minicore.decode import cpu

        if not cpu.kernels_cached():
            note("compiling kernels for this machine; they are kept, and later runs start at once")


def print_piece(piece: str) -> None:
    print(piece, end="", flush=True)


def with_progress(stream: Stream) -> Iterable[str]:
    """Return the stream's pieces under a progress bar, for runs that print nothing as they go."""
    from tqdm import tqdm

    return tqdm(
        stream,
        desc=stream.recorder.predictor,
        total=stream.max_new_tokens,
        unit=" tokens",
        leave=False,
        disable=not sys.stderr.isatty(),
    )


def record(out: Generation) -> dict[str, Any]:
    """Return one generation as --json prints it."""
    all_of_it = out.stats | {"token_ids": [int(i) for i in out.token_ids], "text": out.text}
    return {key: all_of_it[key] for key in JSON_KEYS} | all_of_it
