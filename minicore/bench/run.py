"""Validate, warm up, measure, report: how fast this machine decodes, beside what its memory allows.

The same for a GPU: :class:`Cpu` and :class:`minicore.bench.cuda.Gpu` say how each makes a decoder, decodes,
and measures its memory.

Other work on a machine, and states that its memory goes through, change speeds by more than most
improvements do. So nothing is timed twice in a row: every setting runs once a round, in an order drawn anew,
just after the bandwidth is measured in as many threads; what is compared is compared within a round; and the
report has medians and quartiles over rounds. A setting whose logits are not those of the NumPy reference is
refused before anything is timed.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from typing import Any

import numpy as np

from minicore.backends import check_backend, make_backend
from minicore.backends.cpu import bandwidth
from minicore.backends.cpu import threads as team
from minicore.backends.cpu.decoder import CpuDecoder
from minicore.core.budgets import Beta, plain
from minicore.core.rules import Selection
from minicore.errors import InputError, unknown
from minicore.forward import forward
from minicore.generation.accounting import bytes_per_token, neurons_kept
from minicore.generation.prediction import Layers, make_recorder, record
from minicore.kv_cache import KVCache
from minicore.model import Model, load

Array = np.ndarray
Meter = Callable[[int | None], float]  # threads, None on a GPU -> bytes a second

PREDICTOR = "stability"
PROMPT = (
    "A reader who wants to know how fast a machine decodes should first ask how fast it reads, because every "
    "token takes all the weights once. Then the question is what else takes time, and how much of it. "
)
# The largest error of a logit, over the largest logit. Float formats differ from the reference in the order
# of additions (2e-6 on SmolLM2-135M). Where keys and values are rounded to bfloat16, or they and inputs to
# integers, such a difference makes a few of them fall the other way (3e-3 and 0.04 there).
BOUNDS = {"float32": 1e-4, "bfloat16": 1e-2, "int8": 0.1, "int4": 0.1}
N_CHECKED = 8  # tokens that are decoded by both, after as many of prompt
FLAGS = (
    *("avx2", "fma", "avx512f", "avx512vnni", "avx512bf16", "avxvnni", "amx-int8"),
    *("neon", "dotprod", "i8mm", "bf16", "sve"),
)


class WrongResult(Exception):
    """A kernel's logits are not those of the reference: there is nothing worth timing."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes
    ----------
    backend : str
        ``cpu`` or ``cuda``.
    dtypes : tuple of str or None
        Weight formats, each a model of its own in memory; None is all that the backend reads.
    betas : tuple of float
        Fractions of the neurons kept, beside dense.
    threads : tuple of int
        Of the CPU: one and all by default. A GPU has none to choose.
    prompt_tokens : int
        Length of the prompt that prefill is timed on.
    new_tokens : int
        Tokens decoded at a time.
    rounds : int
        How often each setting is timed.
    contexts : tuple of int
        Tokens in the kv cache when decoding begins; empty is ``prompt_tokens``.
    layers : as in :func:`minicore.generation.prediction.make_recorder`
    alpha : float
    read_bytes : int or None
        Size of the array whose reading (on a GPU, copying) measures bandwidth; None is several times the
        last cache.
    seed : int
        Of the order of settings in a round.
    """

    backend: str = "cpu"
    dtypes: tuple[str, ...] | None = None
    betas: tuple[Beta, ...] = (0.4,)
    threads: tuple[int | None, ...] = ()
    prompt_tokens: int = 64
    new_tokens: int = 128
    rounds: int = 5
    contexts: tuple[int, ...] = ()
    layers: Layers = None
    alpha: float = 0.4
    read_bytes: int | None = None
    seed: int = 0

    def checked(self) -> Plan:
        """Return the plan with its defaults filled in and doubles left out, or raise InputError."""
        if self.backend not in ("cpu", "cuda"):
            raise unknown("backend", self.backend, ("cpu", "cuda"))
        for name, least in (("prompt_tokens", 1), ("new_tokens", 1), ("rounds", 1), ("read_bytes", 4)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} is {value}, expected {least} or more")
        for n in self.contexts:
            if n < 1:
                raise InputError(f"contexts has {n}, expected 1 token or more")
        dtypes = _dtypes_of(self.backend) if self.dtypes is None else self.dtypes
        if not dtypes:
            raise InputError(f"dtypes is empty, expected some of {', '.join(_dtypes_of(self.backend))}")
        for dtype in dtypes:
            if dtype in BOUNDS:
                check_backend(self.backend, dtype)
        return replace(
            self,
            dtypes=tuple(dict.fromkeys(dtypes)),
            betas=tuple(dict.fromkeys(self.betas)),
            threads=tuple(dict.fromkeys(self._threads())),
            contexts=tuple(dict.fromkeys(self.contexts or (self.prompt_tokens,))),
        )

    def _threads(self) -> tuple[int | None, ...]:
        """Return the numbers of threads; a GPU's is None."""
        if self.backend == "cuda":
            if self.threads:
                raise InputError(f"threads is {self.threads[0]}, but backend cuda has no number of threads")
            return (None,)
        cores = max(os.cpu_count() or 1, team.default_threads())
        threads = self.threads or (1, team.default_threads())
        for n in threads:
            if n is None or not 1 <= n <= cores:
                raise InputError(f"threads is {n}, expected 1 to {cores}, the cores of this machine")
        return threads


def _dtypes_of(backend: str) -> tuple[str, ...]:
    """Return the weight formats that a backend reads."""
    if backend == "cpu":
        return tuple(BOUNDS)
    from minicore.backends.cuda import availability as gpu

    return tuple(gpu.DTYPES)


class Cpu:
    """Where decoding is measured, and how; here on the processor, in so many threads."""

    def decoder(
        self, model: Model, cache: KVCache, selection: Selection | None, n_threads: int | None
    ) -> Any:
        """Return a decoder."""
        return CpuDecoder(model, cache, selection, n_threads=n_threads)

    def compile_seconds(self, decoder: Any) -> float:
        """Return what it took to get a decoder's machine code."""
        return float(decoder.stats.compile_s)

    def limited(self, n_threads: int | None) -> AbstractContextManager[None]:
        """Keep to so many threads inside the block."""
        return team.limited(n_threads or team.default_threads())

    def decode(self, decoder: Any, token: int, n: int) -> None:
        """Decode n tokens greedily behind a token."""
        for _ in range(n):
            token = int(decoder.step(token).argmax())

    def meter(self, n_bytes: int | None) -> Meter:
        """Return what measures the memory's bytes a second: here a sum over an array."""
        memory = bandwidth.buffer(n_bytes)
        return lambda n_threads: bandwidth.bandwidth(memory, n_threads or 1)

    def details(self, beds: Sequence[Bed], meter: Meter) -> dict[str, Any]:
        """Return what else the report says."""
        return {}


def place_of(backend: str) -> Cpu:
    """Return where a backend decodes."""
    if backend == "cpu":
        return Cpu()
    from minicore.bench.cuda import Gpu

    return Gpu()


@dataclass(frozen=True)
class Task:
    """One thing that is timed once a round: ``run`` returns tokens and seconds."""

    about: dict[str, Any]
    run: Callable[[], tuple[int, float]]
    rates: list[float] = field(default_factory=list)  # tokens a second, a round each
    reads: list[float] = field(default_factory=list)  # bytes a second of the bandwidth measured just before

    @property
    def n_threads(self) -> int | None:
        n: int | None = self.about["n_threads"]
        return n

    def time(self, meter: Meter) -> None:
        """Measure the bandwidth, then the task."""
        self.reads.append(meter(self.n_threads))
        tokens, seconds = self.run()
        self.rates.append(tokens / seconds)


class Bed:
    """A model in one format with all that its settings need: prefilled caches, core sets, warm decoders."""

    def __init__(self, source: str | PathLike[str], dtype: str, plan: Plan, progress: bool = False) -> None:
        self.model, self.plan = load(source, dtype, progress=progress), plan
        self.place, self.backend = place_of(plan.backend), make_backend(self.model, plan.backend)
        config, longest = self.model.config, max(plan.prompt_tokens, *plan.contexts)
        if longest + plan.new_tokens > config.n_ctx:
            raise InputError(
                f"{longest} tokens and {plan.new_tokens} new ones do not fit "
                f"the context of {config.n_ctx} tokens of {self.model.name}"
            )
        self.ids = prompt_ids(self.model, longest)
        self.recorders = {
            beta: make_recorder(self.model, PREDICTOR, plan.alpha, beta, plan.layers) for beta in plan.betas
        }

    def warm_up(self) -> Iterator[tuple[int | None, float]]:
        """Fill caches, choose core sets, make decoders; yield threads and seconds to get machine code."""
        self.caches: dict[int, KVCache] = {}
        self.selections: dict[tuple[int, Beta | None], Selection | None] = {}
        self.decoders: dict[tuple[int, int | None], Any] = {}
        self.scratch = self.model.new_cache(self.plan.prompt_tokens)
        for context in self.plan.contexts:
            self.caches[context] = cache = self.model.new_cache(context + self.plan.new_tokens)
            for beta in self.recorders or (None,):
                self.selections[context, beta] = self.prefilled(cache, self.ids[:context], beta)
            self.selections[context, None] = None
        for n in self.plan.threads:
            for context, cache in self.caches.items():
                self.decoders[context, n] = self.place.decoder(self.model, cache, None, n)
            yield n, self.place.compile_seconds(self.decoders[self.plan.contexts[0], n])

    def validate(self) -> Iterator[dict[str, Any]]:
        """Read and decode a few tokens with every setting and with the reference; yield how far they differ.

        Raises
        ------
        WrongResult
            If that is more than the format's bound, or a logit is finite in one alone.

        Examples
        --------
        >>> plan = Plan(threads=(1,), prompt_tokens=8, new_tokens=4).checked()
        >>> bed = Bed("minicore-opt-core", "float32", plan)
        >>> [(row["phase"], row["beta"]) for row in bed.validate()]
        [('prefill', None), ('decode', None), ('decode', 0.4)]
        """
        n = min(N_CHECKED, self.model.config.n_ctx // 2)
        ids = np.array(prompt_ids(self.model, 2 * n))
        for beta in (None, *self.recorders):
            cache = self.model.new_cache(2 * n)
            selection = self.prefilled(cache, ids[:n].tolist(), beta)
            cache.length = 0
            expected = forward(self.model.restrict(selection), ids, cache)
            for n_threads in self.plan.threads:
                if beta is None:
                    with self.place.limited(n_threads):
                        read = self.backend.prefill(ids, self.model.new_cache(2 * n))
                    yield self.checked("prefill", None, n_threads, read, expected[-1])
                cache.length = n  # what follows is written anew
                decoder = self.place.decoder(self.model, cache, selection, n_threads)
                got = np.stack([decoder.step(int(token)) for token in ids[n:]])
                yield self.checked("decode", beta, n_threads, got, expected[n:])

    def checked(
        self, phase: str, beta: Beta | None, n_threads: int | None, got: Array, expected: Array
    ) -> dict[str, Any]:
        """Return the row of a setting whose logits are near enough to the reference's."""
        dtype, error = self.model.dtype, relative_error(got, expected)
        if not error <= BOUNDS[dtype]:
            where = "on the GPU" if n_threads is None else f"{n_threads} threads"
            what = f"{phase}, {dtype}, {'dense' if beta is None else f'core {beta}'}, {where}"
            raise WrongResult(
                f"{what}: logits are {error:.2g} of the largest away from the reference's, "
                f"expected at most {BOUNDS[dtype]:g}; nothing was timed"
            )
        about = {"phase": phase, "dtype": dtype, "beta": plain_or_none(beta), "n_threads": n_threads}
        return about | {"error": error}

    def tasks(self) -> Iterator[Task]:
        """Yield what is timed, dense first."""
        dtype, plan = self.model.dtype, self.plan
        for n_threads in plan.threads:
            for beta in (None, *plan.betas[:1]):  # what prefill costs does not depend on beta
                about = {"dtype": dtype, "beta": plain_or_none(beta), "n_threads": n_threads}
                about |= {"phase": "prefill", "context": plan.prompt_tokens}
                yield Task(about, partial(self.prefill, beta, n_threads))
            for context in plan.contexts:
                for beta in (None, *plan.betas):
                    about = {"dtype": dtype, "beta": plain_or_none(beta), "n_threads": n_threads}
                    about |= {"phase": "decode", "context": context, **self.bytes_of(context, beta)}
                    yield Task(about, partial(self.decode, beta, n_threads, context))

    def prefill(self, beta: Beta | None, n_threads: int | None) -> tuple[int, float]:
        """Return tokens and seconds of reading the prompt, and of choosing neurons if there is a beta."""
        ids = self.ids[: self.plan.prompt_tokens]
        with self.place.limited(n_threads):
            began = time.perf_counter()
            self.prefilled(self.scratch, ids, beta)
            return len(ids), time.perf_counter() - began

    def decode(self, beta: Beta | None, n_threads: int | None, context: int) -> tuple[int, float]:
        """Return tokens and seconds of decoding greedily behind a prefilled context."""
        decoder = self.ready(beta, n_threads, context)
        began = time.perf_counter()
        self.place.decode(decoder, self.ids[context - 1], self.plan.new_tokens)
        return self.plan.new_tokens, time.perf_counter() - began

    def ready(self, beta: Beta | None, n_threads: int | None, context: int) -> Any:
        """Return the decoder behind a prefilled context, set to the neurons chosen there."""
        decoder = self.decoders[context, n_threads]
        self.caches[context].length = context
        decoder.use(self.selections[context, beta])
        return decoder

    def bytes_of(self, context: int, beta: Beta | None) -> dict[str, Any]:
        """Return what a token reads: weights, and keys and values at the middle of the tokens decoded."""
        decoder, selection = self.decoders[context, self.plan.threads[0]], self.selections[context, beta]
        a_position = decoder.stats.kv_bytes / self.caches[context].capacity
        kv_bytes = round((context + (self.plan.new_tokens + 1) / 2) * a_position)
        weights = bytes_per_token(self.model, selection)
        kept = neurons_kept(self.model, selection).mean() / self.model.config.n_neurons
        return {
            "core_fraction": float(kept),
            "weights_bytes_per_token": weights,
            "kv_bytes_per_token": kv_bytes,
            "bytes_per_token": weights + kv_bytes,
        }

    def prefilled(self, cache: KVCache, ids: Sequence[int], beta: Beta | None = None) -> Selection | None:
        """Read a prompt into an emptied cache and return the neurons chosen meanwhile, if there is a beta."""
        cache.length = 0
        if beta is None:
            self.backend.prefill(np.asarray(ids), cache)
            return None
        record(self.backend, ids, self.recorders[beta], cache)
        return self.recorders[beta].core()


def measure(source: str | PathLike[str], plan: Plan, *, progress: bool = False) -> dict[str, Any]:
    """Return the report of a benchmark, as JSON can hold it.

    Parameters
    ----------
    source : str or path
        What :func:`minicore.load` takes.
    plan : Plan
    progress : bool
        Show progress bars on stderr if it is a terminal.

    Returns
    -------
    dict
        ``model``, ``machine``, ``conditions``, ``load_average`` before and after; ``validation`` and
        ``compile``, a row a setting; ``bandwidth``, a row a number of threads; ``prefill`` and ``decode``,
        a row a setting; for a GPU also ``gpu`` and ``phases``, a row a kernel and setting. Speeds are
        ``{median, q1, q3, rounds}``. ``of_bandwidth`` and ``to_dense`` are ratios within each round,
        ``gb_per_s`` counts ``bytes_per_token``.

    Raises
    ------
    InputError
        If the plan or the model is not valid.
    WrongResult
        If a setting's logits are not the reference's.

    Examples
    --------
    >>> small = {"prompt_tokens": 8, "new_tokens": 4, "rounds": 1, "read_bytes": 1 << 20}
    >>> report = measure("minicore-opt-core", Plan(dtypes=("float32",), threads=(1,), **small))
    >>> [(row["beta"], row["tokens_per_s"]["median"] > 0) for row in report["decode"]]
    [(None, True), (0.4, True)]
    """
    from tqdm import tqdm

    plan, load_before = plan.checked(), load_average()
    beds = [Bed(source, dtype, plan, progress) for dtype in plan.dtypes or ()]
    quiet = not (progress and sys.stderr.isatty())
    validation, compile_s = [], []
    with tqdm(total=2 * len(beds), desc="validate, warm up", leave=False, disable=quiet) as bar:
        for bed in beds:
            validation += list(bed.validate())
            bar.update()
            rows = [{"dtype": bed.model.dtype, "n_threads": n, "compile_s": s} for n, s in bed.warm_up()]
            compile_s += rows
            bar.update()
    tasks = [task for bed in beds for task in bed.tasks()]
    place = beds[0].place
    meter = place.meter(plan.read_bytes)
    run_rounds(tasks, plan, meter, quiet)
    rows = [row_of(task, tasks) for task in tasks]
    return {
        "model": beds[0].model.name,
        "machine": machine(),
        "conditions": {
            **{name: plain_or_none(value) for name, value in plan.__dict__.items()},
            "predictor": PREDICTOR,
            "layers": list(beds[0].recorders[plan.betas[0]].layers) if plan.betas else None,
        },
        "load_average": {"before": load_before, "after": load_average()},
        "validation": validation,
        "compile": compile_s,
        "bandwidth": [
            {
                "n_threads": n,
                "gb_per_s": spread([r / 1e9 for t in tasks if t.n_threads == n for r in t.reads]),
            }
            for n in plan.threads
        ],
        "prefill": [row for row in rows if row["phase"] == "prefill"],
        "decode": [row for row in rows if row["phase"] == "decode"],
    } | place.details(beds, meter)


def run_rounds(tasks: Sequence[Task], plan: Plan, meter: Meter, quiet: bool) -> None:
    """Time every task once a round, in an order drawn anew, after one round that does not count."""
    from tqdm import tqdm

    rng = np.random.default_rng(plan.seed)
    with tqdm(total=(plan.rounds + 1) * len(tasks), desc="rounds", leave=False, disable=quiet) as bar:
        for round_ in range(plan.rounds + 1):
            for i in rng.permutation(len(tasks)):
                tasks[i].time(meter)
                bar.update()
            if round_ == 0:
                for task in tasks:
                    task.rates.clear()
                    task.reads.clear()


def row_of(task: Task, tasks: Sequence[Task]) -> dict[str, Any]:
    """Return a task's row of the report; ratios are taken round by round."""
    row = dict(task.about) | {"tokens_per_s": spread(task.rates)}
    like = ("phase", "dtype", "n_threads", "context")
    dense = next(
        t for t in tasks if t.about["beta"] is None and all(t.about[k] == task.about[k] for k in like)
    )
    row["to_dense"] = spread(ratios(task.rates, dense.rates))
    if "bytes_per_token" in row:
        rates = [rate * row["bytes_per_token"] for rate in task.rates]
        row["gb_per_s"] = spread([rate / 1e9 for rate in rates])
        row["of_bandwidth"] = spread(ratios(rates, task.reads))
    return row


def ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x / y for x, y in zip(a, b, strict=True)]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return median, quartiles and the values themselves, in the order of the rounds."""
    q1, median, q3 = (float(q) for q in np.percentile(values, [25, 50, 75]))
    return {"median": median, "q1": q1, "q3": q3, "rounds": [float(v) for v in values]}


def relative_error(got: Array, expected: Array) -> float:
    """Return the largest difference over the largest magnitude; infinite where only one is finite."""
    finite = np.isfinite(expected)
    if not np.array_equal(np.isfinite(got), finite) or not finite.any():
        return float("inf")
    return float(np.abs(got - expected)[finite].max() / np.abs(expected)[finite].max())


def plain_or_none(value: Any) -> Any:
    """Return a setting as JSON holds it."""
    if isinstance(value, tuple):
        return [plain_or_none(v) for v in value]
    if isinstance(value, slice | range):
        return str(value)
    return value if value is None or isinstance(value, str | int) else plain(value)


def prompt_ids(model: Model, n: int) -> list[int]:
    """Return n ids: a text over and over, or drawn ones where the model has no tokenizer."""
    if model.tokenizer is None:
        return np.random.default_rng(0).integers(0, model.config.n_vocab, n).tolist()
    ids = model.tokenizer.encode(PROMPT)
    return (ids * -(-n // len(ids)))[:n]


def machine() -> dict[str, Any]:
    """Return what speeds depend on: processor, cores, instructions that code is compiled for, memory."""
    import llvmlite.binding as llvm
    import numba
    import psutil

    features = llvm.get_host_cpu_features()
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "flags": [flag for flag in FLAGS if features.get(flag)],
        "last_cache_bytes": bandwidth.last_cache_bytes(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
    }


def cpu_name() -> str:
    """Return the processor's name as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def load_average() -> float | None:
    """Return how many processes wanted to run in the last minute, where the system says."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
