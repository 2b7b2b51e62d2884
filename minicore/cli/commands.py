"""What the subcommands do: arguments in, the library called, text or JSON out."""

from __future__ import annotations

import argparse
import shutil
import sys
from typing import TYPE_CHECKING, Any

from minicore.cli import report
from minicore.cli.terminal import (
    announce_compilation,
    note,
    print_json,
    print_piece,
    read_prompt,
    with_progress,
)
from minicore.errors import InputError
from minicore.files import atomic_write

if TYPE_CHECKING:
    from minicore.evaluation.sweep import Where
    from minicore.generation.stream import Generation
    from minicore.model import Model


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


def generate(args: argparse.Namespace) -> int:
    model = load(args)
    stream = model.stream(read_prompt(args.prompt), **settings(args))
    announce_compilation(stream.backend, stream.reading_backend())
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
    announce_compilation(streams[0].backend, streams[0].reading_backend())
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
    from minicore.backends import check_backend
    from minicore.explorer.builder import explore as make_page

    prompts = [read_prompt(prompt) for prompt in (args.prompt, args.other) if prompt is not None]
    model = load(args)
    announce_compilation(check_backend(args.backend, model.dtype, model.config)[0])
    names = "alpha beta layers max_new_tokens chat backend".split()
    page = make_page(model, prompts, **{name: getattr(args, name) for name in names})
    with atomic_write(args.output) as part:
        part.write_text(page, encoding="utf-8")
    print(args.output)
    return 0


def eval_quality(args: argparse.Namespace) -> int:
    from minicore.evaluation import quality

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
    from minicore.evaluation import frontier

    found = frontier.find(
        load(args), args.texts, args.predictors, args.losses, rounds=args.rounds, **conditions(args)
    )
    if args.json:
        print_json(found)
    else:
        print("\n".join(report.frontier(found)))
    return 0


def eval_stability(args: argparse.Namespace) -> int:
    from minicore.evaluation import stability

    rows = stability.measure(load(args), args.texts, args.passages, args.alpha, seed=args.seed)
    found = stability.calibrate(rows, args.wanted)
    if args.json:
        print_json(found | {"rows": rows})
    else:
        print("\n".join(report.stability(found, rows)))
    return 0


def eval_tasks(args: argparse.Namespace) -> int:
    from minicore.evaluation.tasks import run

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

    from minicore.evaluation.clusters import fit_clusters, read_labelled

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
    from minicore.bench import run as benchmark

    kind = None
    if args.plot:
        from minicore import plots

        kind = plots.check_format(args.plot)
    names = "backend dtypes betas threads prompt_tokens new_tokens rounds contexts layers alpha seed".split()
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
    from minicore.reproduce import sts

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

    from minicore.cli import reproduce_page as page
    from minicore.reproduce import runner as experiments

    results: dict[str, Any] = {}
    found = experiments.reproduce(
        args.figures,
        load(args),
        args.output,
        texts=args.texts,
        pairs=args.pairs,
        seed=args.seed,
        progress=True,
        workers=workers(args),
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


def load(args: argparse.Namespace) -> Model:
    import minicore

    return minicore.load(args.model, dtype=args.dtype, progress=sys.stderr.isatty())


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
    from minicore.evaluation.sweep import Where

    return Where(args.workers, args.threads, args.scheduler)


def record(out: Generation) -> dict[str, Any]:
    """Return one generation as --json prints it."""
    all_of_it = out.stats | {"token_ids": [int(i) for i in out.token_ids], "text": out.text}
    return {key: all_of_it[key] for key in JSON_KEYS} | all_of_it
