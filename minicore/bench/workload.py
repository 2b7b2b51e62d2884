"""What is timed: a model in one weight format on a device, with all that its settings need."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from typing import Any, Protocol

import numpy as np

from minicore.backends.protocol import Backend, Decoder
from minicore.bench.plan import Plan
from minicore.bench.summary import plain_value
from minicore.core.budgets import Beta
from minicore.core.rules import Selection
from minicore.errors import InputError
from minicore.generation.accounting import bytes_per_token, neurons_kept
from minicore.generation.prediction import make_recorder, record
from minicore.kv_cache import KVCache
from minicore.model import Model, load

PREDICTOR = "stability"
PROMPT = (
    "A reader who wants to know how fast a machine decodes should first ask how fast it reads, because every "
    "token takes all the weights once. Then the question is what else takes time, and how much of it. "
)


class Device(Protocol):
    """A processor or a GPU. The number of threads is None on a GPU, which always uses all it has."""

    def backend(self, model: Model, n_threads: int | None) -> Backend:
        """Return a model on this device."""
        ...

    def limited(self, n_threads: int | None) -> AbstractContextManager[None]:
        """Use this many threads inside the block."""
        ...

    def bandwidth(self, n_threads: int | None) -> float:
        """Measure the memory bandwidth, in bytes per second."""
        ...

    def details(self, workloads: Sequence[Workload]) -> dict[str, Any]:
        """Return further entries of the report."""
        ...


class LoadedModel:
    """A model in one format on a device, and the recorders that choose its core neurons.

    Parameters
    ----------
    source : str or path
        What :func:`minicore.load` takes.
    dtype : str
        Weight format.
    plan : Plan
        A checked one.
    device : Device
    progress : bool
        Show progress bars on stderr if it is a terminal.
    """

    def __init__(
        self, source: str | PathLike[str], dtype: str, plan: Plan, device: Device, progress: bool = False
    ) -> None:
        self.model = load(source, dtype, activation=plan.activation, adapter=plan.adapter, progress=progress)
        self.plan, self.device = plan, device
        config, longest = self.model.config, max(plan.prompt_tokens, *plan.contexts)
        if longest + plan.new_tokens > config.n_ctx:
            raise InputError(
                f"{longest} tokens and {plan.new_tokens} new ones do not fit "
                f"the context of {config.n_ctx} tokens of {self.model.name}"
            )
        self.backends = {n: device.backend(self.model, n) for n in plan.threads}
        self.backend = self.backends[plan.threads[0]]  # to read prompts with, in as many threads as allowed
        self.recorders = {
            beta: make_recorder(self.model, PREDICTOR, plan.alpha, beta, plan.layers) for beta in plan.betas
        }
        self.compile_s = dict.fromkeys(plan.threads, 0.0)  # decoders of one kind share their machine code

    def prefill(self, cache: KVCache, ids: Sequence[int], beta: Beta | None = None) -> Selection | None:
        """Read a prompt into an emptied cache; with a beta, return the neurons chosen meanwhile."""
        cache.rewind(0)
        if beta is None:
            self.backend.prefill(np.asarray(ids), cache)
            return None
        record(self.backend, ids, self.recorders[beta], cache)
        return self.recorders[beta].core()

    def decoder(self, cache: KVCache, selection: Selection | None, n_threads: int | None) -> Decoder:
        """Return a decoder, and note how long its machine code took."""
        decoder = self.backends[n_threads].decoder(cache, selection)
        self.compile_s[n_threads] = max(self.compile_s[n_threads], decoder.stats.compile_s)
        return decoder


@dataclass(frozen=True)
class Measurement:
    """One thing that is timed once per round.

    Attributes
    ----------
    about : dict
        The setting, as the report has it.
    run : callable
        Does it once and returns tokens and seconds.
    speeds : list of float
        Tokens per second, one for each round.
    bandwidths : list of float
        Bytes per second, measured right before each run.
    """

    about: dict[str, Any]
    run: Callable[[], tuple[int, float]]
    speeds: list[float] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)

    @property
    def n_threads(self) -> int | None:
        """Number of threads, None on a GPU."""
        n: int | None = self.about["n_threads"]
        return n

    def time(self, device: Device, keep: bool) -> None:
        """Measure the bandwidth, then run; keep both results or, to warm up, neither."""
        bandwidth = device.bandwidth(self.n_threads)
        tokens, seconds = self.run()
        if keep:
            self.bandwidths.append(bandwidth)
            self.speeds.append(tokens / seconds)


class Workload:
    """All that the settings of a loaded model need: filled caches, core sets and decoders.

    Parameters
    ----------
    loaded : LoadedModel
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded, self.model, self.plan = loaded, loaded.model, loaded.plan
        plan = self.plan
        self.ids = prompt_ids(self.model, max(plan.prompt_tokens, *plan.contexts))
        self.scratch = self.model.new_cache(plan.prompt_tokens)  # for timing prefill
        self.caches: dict[int, KVCache] = {}
        self.selections: dict[tuple[int, Beta | None], Selection | None] = {}
        for context in plan.contexts:
            self.caches[context] = cache = self.model.new_cache(context + plan.new_tokens)
            for beta in plan.betas or (None,):
                self.selections[context, beta] = loaded.prefill(cache, self.ids[:context], beta)
            self.selections[context, None] = None
        self.decoders = {
            (context, n): loaded.decoder(cache, None, n)
            for n in plan.threads
            for context, cache in self.caches.items()
        }

    def measurements(self) -> Iterator[Measurement]:
        """Yield what is timed, dense first."""
        dtype, plan = self.model.dtype, self.plan
        for n_threads in plan.threads:
            for beta in (None, *plan.betas[:1]):  # what prefill costs does not depend on beta
                about = {"dtype": dtype, "beta": plain_value(beta), "n_threads": n_threads}
                about |= {"phase": "prefill", "context": plan.prompt_tokens}
                yield Measurement(about, partial(self.prefill, beta, n_threads))
            for context in plan.contexts:
                for beta in (None, *plan.betas):
                    about = {"dtype": dtype, "beta": plain_value(beta), "n_threads": n_threads}
                    about |= {"phase": "decode", "context": context, **self.bytes_read(context, beta)}
                    yield Measurement(about, partial(self.decode, beta, n_threads, context))

    def prefill(self, beta: Beta | None, n_threads: int | None) -> tuple[int, float]:
        """Return tokens and seconds of reading the prompt, and of choosing neurons if there is a beta."""
        ids = self.ids[: self.plan.prompt_tokens]
        with self.loaded.device.limited(n_threads):
            began = time.perf_counter()
            self.loaded.prefill(self.scratch, ids, beta)
            return len(ids), time.perf_counter() - began

    def decode(self, beta: Beta | None, n_threads: int | None, context: int) -> tuple[int, float]:
        """Return tokens and seconds of greedy decoding after a context."""
        decoder = self.decoder(beta, n_threads, context)
        began = time.perf_counter()
        for _ in decoder.run(self.ids[context - 1], self.plan.new_tokens):
            pass
        return self.plan.new_tokens, time.perf_counter() - began

    def decoder(self, beta: Beta | None, n_threads: int | None, context: int) -> Decoder:
        """Return the decoder after a context, with the neurons chosen there."""
        decoder = self.decoders[context, n_threads]
        self.caches[context].rewind(context)
        decoder.use(self.selections[context, beta])
        return decoder

    def bytes_read(self, context: int, beta: Beta | None) -> dict[str, Any]:
        """Return what a token reads: weights, and keys and values halfway through the new tokens."""
        decoder, selection = self.decoders[context, self.plan.threads[0]], self.selections[context, beta]
        bytes_per_position = decoder.stats.kv_bytes / self.caches[context].capacity
        kv_bytes = round((context + (self.plan.new_tokens + 1) / 2) * bytes_per_position)
        weights = bytes_per_token(self.model, selection)
        kept = neurons_kept(self.model, selection).mean() / self.model.config.n_neurons
        return {
            "core_fraction": float(kept),
            "weights_bytes_per_token": weights,
            "kv_bytes_per_token": kv_bytes,
            "bytes_per_token": weights + kv_bytes,
        }


def prompt_ids(model: Model, n: int) -> list[int]:
    """Return n ids: a text, repeated, or random ids if the model has no tokenizer."""
    if model.tokenizer is None:
        return np.random.default_rng(0).integers(0, model.config.n_vocab, n).tolist()
    ids = model.tokenizer.encode(PROMPT)
    return (ids * -(-n // len(ids)))[:n]
