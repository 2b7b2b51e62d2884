"""minicore beside Transformers, llama.cpp and CTranslate2, on this machine, in one run.

    pip install '.[peers]'
    python tests/benchmarks/peers.py -m smollm2-135m --json peers.json
    python tests/benchmarks/peers.py --report peers.json

Each engine runs in a process of its own (this script as ``--worker``, JSON lines in and out), with the same
weights, the same prompt ids and the same number of new tokens, decoded greedily. Every round runs every
setting once, in an order drawn anew, and measures the bandwidth just before; all ratios are taken within a
round.
Engines that are not installed are skipped with a sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import engines
import numpy as np

from minicore.backends.cpu import bandwidth
from minicore.bench.machine import load_average, machine
from minicore.bench.plan import BOUNDS
from minicore.bench.summary import ratios, spread
from minicore.errors import InputError
from minicore.evaluation.agreement import agreement
from minicore.formatting import format_number, format_quartiles, format_table

PASSES = 3  # over the array whose reading measures bandwidth
HERE = Path(__file__).parent
REFERENCE = "Transformers float32"  # whose text the others' are compared with
CORE, SOME = {"predictor": "stability", "beta": 0.4}, {"layers": "6:27"}


class Contestant(NamedTuple):
    """A row of the table: the process it runs in, and what it is held against."""

    engine: str
    options: dict[str, str]
    settings: dict[str, Any]
    files: tuple[str, ...]
    peer: str | None


def _contestants() -> dict[str, Contestant]:
    rows = {
        f"Transformers {dtype}": Contestant("transformers", {"dtype": dtype}, {}, ("hf",), None)
        for dtype in ("float32", "bfloat16")
    }
    for kind in ("F32", "F16", "Q8_0", "Q4_1"):
        rows[f"llama.cpp {kind}"] = Contestant("llama_cpp", {"kind": kind}, {}, (kind,), None)
    for kind in ("float32", "int8"):
        files = ("hf", f"ct2-{kind}")
        rows[f"CTranslate2 {kind}"] = Contestant("ctranslate2", {"kind": kind}, {}, files, None)
    for dtype, kind in (("float32", "F32"), ("bfloat16", "F16"), ("int8", "Q8_0"), ("int4", "Q4_1")):
        name, options = f"minicore {dtype}", {"dtype": dtype}
        dense = {"predictor": "dense"}
        rows[name] = Contestant("minicore", options, dense, ("Q4_1",), f"llama.cpp {kind}")
        rows[f"{name}, core 0.4"] = Contestant("minicore", options, CORE, ("Q4_1",), name)
        rows[f"{name}, core 0.4 of 6:27"] = Contestant("minicore", options, CORE | SOME, ("Q4_1",), name)
    return rows


CONTESTANTS = _contestants()


# --- a worker: one engine, one process ---


def work() -> None:
    """Serve requests. Standard output is the parent's: what engines print goes to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        serve(out)


def serve(out: TextIO) -> None:
    """Answer each line of standard input, a JSON object, with another."""
    import psutil

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=out, flush=True)

    engine: Any = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if asked["do"] == "prepare":
                answer(engines.prepare(asked["model"], Path(asked["folder"]), asked["wanted"]))
            elif asked["do"] == "encode":
                answer({"ids": encode(asked["model"], asked["longest"])})
            elif asked["do"] == "load":
                began = time.perf_counter()
                kind = engines.ENGINES[asked["engine"]]
                engine = kind(asked["files"], asked["n_threads"], asked["n_ctx"], **asked["options"])
                answer({"load_s": time.perf_counter() - began})
            else:
                ids, seconds = engine.run(asked["ids"], asked["n_new"], **asked["settings"])
                rss = psutil.Process().memory_info().rss
                answer({"ids": ids, "seconds": seconds, "rss": rss, "about": engine.about()})
        except ImportError as error:
            answer({"skip": f"{error.name or error} is not installed"})


def encode(model: str, longest: int) -> list[int]:
    """Return the ids of prompt.txt."""
    import minicore

    text = (HERE / "prompt.txt").read_text(encoding="utf-8").strip()
    tokenizer = minicore.load(model, dtype="int8").tokenizer
    if tokenizer is None:
        raise SystemExit(f"{model} has no tokenizer")
    ids = tokenizer.encode(text)
    return (ids * -(-longest // len(ids)))[:longest]


class Worker:
    """The parent's end of a worker."""

    def __init__(self, n_threads: int = 1) -> None:
        names = "OMP_NUM_THREADS OPENBLAS_NUM_THREADS MKL_NUM_THREADS NUMBA_NUM_THREADS".split()
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | dict.fromkeys(names, str(n_threads)),
        )

    def ask(self, **asked: Any) -> dict[str, Any]:
        """Return the answer; raise RuntimeError with the worker's last words if there is none."""
        assert self.process.stdin and self.process.stdout
        try:
            print(json.dumps(asked), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.process.wait()
            self.errors.seek(0)
            last = [text for text in self.errors.read().splitlines() if text.strip()][-1:]
            raise RuntimeError(f"it ended with {self.process.returncode}: {''.join(last)}")
        return dict(json.loads(line))

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()


# --- the run ---


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Return everything measured, as JSON can hold it."""
    from minicore.checkpoint import names

    model = str(names.pull(args.model, progress=True)) if args.model in names.KNOWN else args.model
    if not Path(model).is_file():
        raise InputError(f"{model} is no GGUF file, which llama.cpp needs")
    if args.processor_time:
        if args.threads != [1]:
            raise InputError("--processor-time says how fast one thread is, expected --threads 1")
        os.environ[engines.PROCESSOR_TIME] = "1"  # workers inherit it
    wanted = {name: row for name, row in CONTESTANTS.items() if not args.only or chosen(name, args.only)}
    if not wanted:
        raise InputError(f"--only {','.join(args.only)} names none of {', '.join(CONTESTANTS)}")
    helper = Worker()
    try:
        note("making the files that the engines read")
        kinds = list(dict.fromkeys(kind for row in wanted.values() for kind in row.files))
        made = helper.ask(do="prepare", model=model, folder=str(args.files), wanted=kinds)
        ids = helper.ask(do="encode", model=model, longest=max(args.prompts))["ids"]
    finally:
        helper.close()
    before = load_average()
    runs: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    contexts: list[dict[str, Any]] = []
    for n_threads in args.threads:
        runs += list(rounds(wanted, made, ids, n_threads, args, skipped))
        if args.contexts:
            contexts += long_contexts(model, n_threads, args)
    return {
        "machine": machine(),
        "load_average": {"before": before, "after": load_average()},
        "versions": versions(),
        "conditions": {
            "model": Path(model).name,
            "prompts": args.prompts,
            "new_tokens": args.new_tokens,
            "rounds": args.rounds,
            "threads": args.threads,
            "clock": "processor" if args.processor_time else "wall",
        },
        "skipped": skipped,
        "runs": runs,
        "contexts": contexts,
    }


def chosen(name: str, only: Sequence[str]) -> bool:
    return any(part in name for part in only)


def rounds(
    wanted: dict[str, Contestant],
    made: dict[str, Any],
    ids: list[int],
    n_threads: int,
    args: argparse.Namespace,
    skipped: dict[str, str],
) -> Iterator[dict[str, Any]]:
    """Start all engines with so many threads and yield one result a contestant, prompt and round."""
    from tqdm import tqdm

    workers: dict[str, Worker] = {}
    memory, rng = bandwidth.buffer(), np.random.default_rng(args.seed)
    try:
        ready = [name for name in wanted if load(name, made, workers, n_threads, args, skipped)]
        plan = [(name, n) for name in ready for n in args.prompts]
        with tqdm(
            total=(args.rounds + 1) * len(plan), desc=f"{n_threads} threads", disable=not sys.stderr.isatty()
        ) as bar:
            for round_ in range(args.rounds + 1):  # the first does not count: it compiles, maps and fills
                for name, n_prompt in (plan[i] for i in rng.permutation(len(plan))):
                    began = engines.now()
                    bandwidth.bandwidth(memory, n_threads, PASSES)
                    read = memory.nbytes * PASSES / (engines.now() - began)
                    row = wanted[name]
                    got = workers[process_of(row)].ask(
                        do="run", ids=ids[:n_prompt], n_new=args.new_tokens, settings=row.settings
                    )
                    bar.update()
                    if round_:
                        yield {
                            "name": name,
                            "n_threads": n_threads,
                            "prompt": n_prompt,
                            "round": round_,
                            "read": read,
                            "prefill": n_prompt / got["seconds"][0],
                            "decode": (len(got["ids"]) - 1) / (got["seconds"][-1] - got["seconds"][0]),
                            **{key: got[key] for key in ("ids", "rss", "about")},
                        }
    finally:
        for worker in workers.values():
            worker.close()


def process_of(row: Contestant) -> str:
    return json.dumps([row.engine, row.options])


def load(
    name: str,
    made: dict[str, Any],
    workers: dict[str, Worker],
    n_threads: int,
    args: argparse.Namespace,
    skipped: dict[str, str],
) -> bool:
    """Start a contestant's process unless it runs already; say why if it cannot be."""
    row = CONTESTANTS[name]
    if process_of(row) in workers:
        return True
    missing = [made["missing"][kind] for kind in row.files if kind in made["missing"]]
    answer = {"skip": missing[0]} if missing else {}
    if not missing:
        worker = Worker(n_threads)
        n_ctx = max(args.prompts) + args.new_tokens
        try:
            answer = worker.ask(
                do="load",
                engine=row.engine,
                files=made["files"],
                n_threads=n_threads,
                n_ctx=n_ctx,
                options=row.options,
            )
        except RuntimeError as error:
            answer = {"skip": str(error)}
        if "skip" in answer:
            worker.close()
        else:
            workers[process_of(row)] = worker
    if "skip" in answer:
        if name not in skipped:
            note(f"{name} is skipped: {answer['skip']}")
        skipped[name] = answer["skip"]
        return False
    return True


def long_contexts(model: str, n_threads: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return decode rows of `minicore bench` after 64 and 4,096 tokens, dense, in a process of their own."""
    dtypes = [dtype for dtype in BOUNDS if not args.only or chosen(f"minicore {dtype}", args.only)]
    if not dtypes:
        return []
    note(f"minicore after {' and '.join(map(str, args.contexts))} tokens, {n_threads} threads")
    options = {
        "--dtypes": ",".join(dtypes),
        "--betas": "",
        "--threads": n_threads,
        "--contexts": ",".join(map(str, args.contexts)),
        "--rounds": args.rounds,
        "--new-tokens": min(args.new_tokens, 64),
    }
    words = [str(word) for pair in options.items() for word in pair]
    command = [sys.executable, "-m", "minicore", "bench", "-m", model, "--json", *words]
    names = "OMP_NUM_THREADS OPENBLAS_NUM_THREADS NUMBA_NUM_THREADS".split()
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | dict.fromkeys(names, str(n_threads)),
        cwd=HERE.parents[1],
    )
    if done.returncode:
        note(f"that was not measured: `minicore bench` ended with {done.returncode}")
        return []
    return list(json.loads(done.stdout)["decode"])


def versions() -> dict[str, str]:
    """Return the versions of what is installed."""
    import importlib.metadata

    found = {}
    for name in ("numba", "numpy", "transformers", "torch", "llama-cpp-python", "ctranslate2"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- what it shows ---


class Results:
    """A finished run, asked by name, threads and prompt; values are in the order of the rounds."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found
        self.rows: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
        for run in found["runs"]:
            self.rows.setdefault((run["name"], run["n_threads"], run["prompt"]), []).append(run)

    def values(self, name: str, n_threads: int, prompt: int, key: str) -> list[float]:
        """Return a measure, round by round; KeyError if it was not measured."""
        return [run[key] for run in self.rows[name, n_threads, prompt]]

    def of_bandwidth(self, name: str, n_threads: int, prompt: int) -> list[float]:
        """Return the fraction of the bandwidth that reading the weights once a token is."""
        runs = self.rows[name, n_threads, prompt]
        return [run["decode"] * run["about"]["bytes_per_token"] / run["read"] for run in runs]

    def text(self, name: str, prompt: int, n_threads: int) -> list[int]:
        """Return the ids generated in the last round."""
        return list(self.rows[name, n_threads, prompt][-1]["ids"])


def table(results: Results) -> Iterator[str]:
    """Yield the lines of the tables: one a number of threads and prompt length."""
    found = results.found
    said, load_ = found["conditions"], found["load_average"]
    about = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    yield f"{said['model']} on {found['machine']['cpu']}, {found['machine']['cores']} cores"
    yield f"({', '.join(found['machine']['flags'])}; {about})"
    yield f"load average {load_['before']:.1f} before, {load_['after']:.1f} after"
    if said.get("clock") == "processor":
        yield "seconds are the processor's, not the clock's: other work ran beside"
    for name, why in found["skipped"].items():
        yield f"{name} was skipped: {why}"
    for n_threads in said["threads"]:
        for prompt in said["prompts"]:
            names = [name for name in CONTESTANTS if (name, n_threads, prompt) in results.rows]
            reads = [run["read"] / 1e9 for n in names for run in results.rows[n, n_threads, prompt]]
            if not names:
                continue
            yield ""
            yield (
                f"{n_threads} thread{'s'[: n_threads - 1]}, {prompt} tokens of prompt, "
                f"{said['new_tokens']} new; reads {format_quartiles(spread(reads))} GB/s"
            )
            yield from format_table(
                ["", "decode tokens/s", "ratio", "to", "of bandwidth", "prefill tokens/s", "MB", "same text"],
                [cells(results, name, n_threads, prompt, names) for name in names],
            )
    yield ""
    yield (
        f"medians [quartiles] of {said['rounds']} interleaved rounds; ratios are medians of those within a "
        "round; of bandwidth: the weights' bytes alone, over what a plain sum reads in the same round; MB: "
        "resident size of the process; same text: tokens until the first that " + REFERENCE + " has not"
    )


def cells(results: Results, name: str, n_threads: int, prompt: int, names: Sequence[str]) -> list[str]:
    """Return a row of the table."""
    at, peer = (n_threads, prompt), CONTESTANTS[name].peer
    ratio = "-"
    if peer is not None and peer in names:
        pairs = ratios(results.values(name, *at, "decode"), results.values(peer, *at, "decode"))
        ratio = format_quartiles(spread(pairs))
    same = "-"
    if REFERENCE in names:
        mine, theirs = results.text(name, prompt, n_threads), results.text(REFERENCE, prompt, n_threads)
        same = "all" if mine == theirs else str(agreement(mine, theirs)[0])
    fraction = spread(results.of_bandwidth(name, *at))["median"]
    return [
        name,
        format_quartiles(spread(results.values(name, *at, "decode"))),
        ratio,
        peer if peer in names and peer is not None else "-",
        f"{fraction:.0%}",
        format_number(spread(results.values(name, *at, "prefill"))["median"]),
        f"{max(results.values(name, *at, 'rss')) / 1e6:.0f}",
        same,
    ]


class Wanted(NamedTuple):
    """A line of what minicore must show: a measure, and the least it must be with 1 and 2 threads."""

    what: str
    measure: Callable[[Results, int], list[float]]
    least: dict[int, float]


def decode_over(name: str, peer: str, scale: float = 1.0) -> Callable[[Results, int], list[float]]:
    """Return the measure: decode speed over a peer's (times a constant), after 64 tokens."""

    def measure(results: Results, n: int) -> list[float]:
        theirs = results.values(peer, n, 64, "decode")
        return ratios(results.values(name, n, 64, "decode"), [scale * speed for speed in theirs])

    return measure


def prefill_over(name: str, peer: str, prompt: int) -> Callable[[Results, int], list[float]]:
    def measure(results: Results, n: int) -> list[float]:
        return ratios(results.values(name, n, prompt, "prefill"), results.values(peer, n, prompt, "prefill"))

    return measure


def share_of_bandwidth(name: str) -> Callable[[Results, int], list[float]]:
    return lambda results, n: results.of_bandwidth(name, n, 64)


def after_long_context(dtype: str) -> Callable[[Results, int], list[float]]:
    def measure(results: Results, n: int) -> list[float]:
        rows = [row for row in results.found["contexts"] if (row["dtype"], row["n_threads"]) == (dtype, n)]
        speeds = {row["context"]: row["tokens_per_s"]["rounds"] for row in rows}
        return ratios(speeds[4096], speeds[64])

    return measure


def room_left(name: str) -> Callable[[Results, int], list[float]]:
    """Return the measure: weights, kv cache and 150 MB, over the resident size."""

    def measure(results: Results, n: int) -> list[float]:
        runs = results.rows[name, n, 64]
        allowed = [run["about"]["weights_bytes"] + run["about"]["kv_bytes"] + 150e6 for run in runs]
        return ratios(allowed, [run["rss"] for run in runs])

    return measure


# PowerInfer d3ebd7c at 40% active decoded 97.0 tokens/s beside 96.3 of llama.cpp F16 (2 threads, one run).
POWERINFER = 97.0 / 96.3


def _wanted() -> list[Wanted]:
    t32, t16 = "Transformers float32", "Transformers bfloat16"
    dense = {dtype: f"minicore {dtype}" for dtype in BOUNDS}
    lines = [
        Wanted(f"{dense[dtype]} over {peer}", decode_over(dense[dtype], peer), {1: one, 2: two})
        for dtype, peer, one, two in (
            ("float32", "llama.cpp F32", 1.25, 1.2),
            ("bfloat16", "llama.cpp F16", 1.3, 1.2),
            ("int8", "llama.cpp Q8_0", 1.6, 1.5),
            ("int4", "llama.cpp Q4_1", 1.9, 1.7),
        )
    ]
    lines += [
        Wanted(f"{dense[dtype]} over {peer}", decode_over(dense[dtype], peer), {2: two})
        for dtype, peer, two in (("float32", t32, 3.0), ("bfloat16", t16, 4.0), ("int8", t32, 10.33))
    ]
    lines += [
        Wanted(f"{dense[dtype]} of the bandwidth", share_of_bandwidth(dense[dtype]), {1: one, 2: two})
        for dtype, one, two in (("float32", 0.85, 0.85), ("bfloat16", 0.8, 0.8), ("int8", 0.7, 0.8))
    ]
    lines += [
        Wanted(f"{name}, core 0.4 over its dense", decode_over(f"{name}, core 0.4", name), {1: 1.45, 2: 1.45})
        for name in dense.values()
    ]
    core, some = f"{dense['int8']}, core 0.4", f"{dense['float32']}, core 0.4 of 6:27"
    lines += [
        Wanted(f"{core} over {t32}", decode_over(core, t32), {2: 15.0}),
        Wanted(
            f"{core} over PowerInfer at 40% (by llama.cpp F16)",
            decode_over(core, "llama.cpp F16", POWERINFER),
            {2: 2.72},
        ),
        Wanted(f"{some} over its dense", decode_over(some, dense["float32"]), {1: 1.28, 2: 1.28}),
        Wanted(
            f"{some}: prefill over dense prefill",
            prefill_over(some, dense["float32"], 64),
            {1: 1 / 1.05, 2: 1 / 1.05},
        ),
        Wanted(
            f"{dense['float32']}: prefill of 512 over {t32}",
            prefill_over(dense["float32"], t32, 512),
            {1: 1.2, 2: 1.2},
        ),
    ]
    lines += [
        Wanted(f"minicore {dtype} after 4,096 tokens over 64", after_long_context(dtype), {1: 0.6, 2: 0.6})
        for dtype in BOUNDS
    ]
    lines += [
        Wanted(f"{name}: weights, kv cache and 150 MB over resident", room_left(name), {1: 1.0, 2: 1.0})
        for name in dense.values()
    ]
    return lines


WANTED = _wanted()


def requirements(results: Results) -> Iterator[str]:
    """Yield a line for each thing that minicore must show: what was wanted, what came out."""
    rows = []
    for line in WANTED:
        for n_threads, least in line.least.items():
            if n_threads not in results.found["conditions"]["threads"]:
                continue
            try:
                came = spread(line.measure(results, n_threads))
            except KeyError:
                rows.append([line.what, str(n_threads), f"{least:.2f}", "-", "not measured"])
                continue
            met = "yes" if came["median"] >= least else "NO"
            rows.append([line.what, str(n_threads), f"{least:.2f}", format_quartiles(came), met])
    yield from format_table(["", "threads", "at least", "median [quartiles]", "met"], rows)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-m", "--model", default="smollm2-135m", help="a GGUF file, or smollm2-135m")
    parser.add_argument("--threads", type=counts, default=[1, 2], metavar="N,M")
    parser.add_argument("--prompts", type=counts, default=[64, 512], metavar="N,M", help="lengths in tokens")
    parser.add_argument("--new-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the order within a round")
    parser.add_argument("--contexts", type=counts, default=[64, 4096], metavar="N,M", help="'' for none")
    parser.add_argument(
        "--only", type=lambda t: t.split(";"), default=[], metavar="A;B", help="parts of contestants' names"
    )
    parser.add_argument(
        "--files",
        type=Path,
        default=Path(tempfile.gettempdir()) / "minicore-peers",
        metavar="DIR",
        help="where the converted weights are kept (2.2 GB for SmolLM2-135M)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="print the tables of a run written before"
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor seconds, for one thread on a machine that others use too",
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


def counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main() -> int:
    args = make_parser().parse_args()
    if args.worker:
        work()
        return 0
    if args.report:
        found = json.loads(args.report.read_text(encoding="utf-8"))
    else:
        try:
            found = compare(args)
        except (InputError, RuntimeError) as error:
            note(f"peers.py: {error}")
            return 2
        if args.json:
            args.json.write_text(json.dumps(found), encoding="utf-8")
    results = Results(found)
    print("\n".join(table(results)))
    print()
    print("\n".join(requirements(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
