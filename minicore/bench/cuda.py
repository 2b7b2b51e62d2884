"""What `minicore bench` does otherwise on a GPU: many tokens a launch, a copy as limit, a table of phases."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from typing import Any

import numpy as np
from numba import cuda

from minicore.backends.cuda.decoder import AT_ONCE, CudaDecoder
from minicore.backends.cuda.graph import GraphStep
from minicore.backends.cuda.kernels import decode as kernels
from minicore.backends.cuda.kernels.intrinsics import SIMULATED
from minicore.bench.run import Bed, Cpu, Meter, plain_or_none, ratios, spread
from minicore.core.budgets import Beta
from minicore.core.rules import Selection
from minicore.generation.accounting import neurons_kept
from minicore.kv_cache import KVCache
from minicore.model import PER_NEURON, Model

COPIED = 1 << 30  # bytes, far more than any cache holds
COPIES = 5  # at a time


class Gpu(Cpu):
    """Where decoding is measured, and how: on a GPU, which chooses the tokens itself."""

    compiled_in = 0.0

    def decoder(
        self, model: Model, cache: KVCache, selection: Selection | None, n_threads: int | None
    ) -> Any:
        """Return a decoder."""
        decoder = CudaDecoder(model, cache, selection)
        self.compiled_in = max(self.compiled_in, decoder.compile_s)
        return decoder

    def compile_seconds(self, decoder: Any) -> float:
        """Return what the first decoder took to compile: all of them share its kernel."""
        return self.compiled_in

    def limited(self, n_threads: int | None) -> AbstractContextManager[None]:
        """Change nothing: a GPU has all its threads."""
        return nullcontext()

    def decode(self, decoder: Any, token: int, n: int) -> None:
        """Decode n tokens greedily behind a token."""
        for _ in decoder.run(token, n):
            pass

    def meter(self, n_bytes: int | None) -> Meter:
        """Return what measures the memory's bytes a second: those that copies read and write."""
        source, target = (cuda.device_array((n_bytes or COPIED) // 4, np.uint32) for _ in range(2))

        def copied(n_threads: int | None) -> float:
            cuda.synchronize()
            began = time.perf_counter()
            for _ in range(COPIES):
                target.copy_to_device(source)
            cuda.synchronize()
            return 2 * COPIES * source.nbytes / (time.perf_counter() - began)

        return copied

    def details(self, beds: Sequence[Bed], meter: Meter) -> dict[str, Any]:
        """Return the GPU's name and a row a phase of a token and setting."""
        rows = []
        for bed in beds:
            for beta in (None, *bed.plan.betas):
                rows += phase_rows(bed, beta, meter)
        return {"gpu": about_gpu(), "phases": rows}


def about_gpu() -> dict[str, Any]:
    """Return what speeds depend on besides the machine."""
    versions = {"numba_cuda": version("numba-cuda")}
    if SIMULATED:
        return {"name": "Numba's simulator"} | versions
    device, (_, total) = cuda.get_current_device(), cuda.current_context().get_memory_info()
    name = device.name.decode() if isinstance(device.name, bytes) else device.name
    about = {"name": name, "multiprocessors": device.MULTIPROCESSOR_COUNT, "memory_bytes": total}
    return about | {"compute_capability": list(device.compute_capability)} | versions


def phase_rows(bed: Bed, beta: Beta | None, meter: Meter) -> list[dict[str, Any]]:
    """Return how long each phase of a token takes, all layers together, a launch of its own for each."""
    context = bed.plan.contexts[0]
    decoder, reads, seconds = bed.ready(beta, None, context), [], []
    step = GraphStep(decoder.shape, decoder.shared_bytes)
    for _ in range(bed.plan.rounds + 1):
        reads.append(meter(None))
        seconds.append(phase_seconds(decoder, step, context))
    reads, spent = reads[1:], np.array(seconds[1:])  # (rounds, n_phases)
    n_bytes = bytes_of_phases(bed, beta, context)
    about = {"dtype": bed.model.dtype, "beta": plain_or_none(beta), "context": context}
    rows = []
    for name, n, mine in zip(kernels.PHASES, n_bytes, spent.T.tolist(), strict=True):
        row = about | {"phase": name, "bytes": n, "microseconds": spread([1e6 * s for s in mine])}
        rates = [n / s for s in mine]
        row |= {"gb_per_s": spread([r / 1e9 for r in rates]), "of_bandwidth": spread(ratios(rates, reads))}
        rows.append(row)
    return rows


def phase_seconds(decoder: CudaDecoder, step: GraphStep, context: int) -> list[float]:
    """Return the seconds of each phase of one token, by events between launches.

    A launch takes Python longer than the GPU, so other tokens come first: while they are decoded, all
    launches of this one are queued.
    """
    order, spent = list(step.order()), [0.0] * len(kernels.PHASES)
    events = [cuda.event() for _ in range(len(order) + 1)]
    room = decoder.cache.capacity - context - 1
    for _ in range(-(-AT_ONCE // max(room, 1)) if room else 0):
        decoder.cache.length = context
        decoder.launch(min(room, AT_ONCE), decoder.tokens[1])
    arguments = decoder.arguments(1, decoder.tokens[0], 0.0, 0)
    step.begin(*arguments)
    events[0].record()
    for (which, layer), event in zip(order, events[1:], strict=True):
        step.launch(step.arrays(arguments), which, layer, 0)
        event.record()
    events[-1].synchronize()
    decoder.epoch += 1
    for (which, _), begin, end in zip(order, events, events[1:], strict=False):
        spent[which] += begin.elapsed_time(end) / 1e3
    return spent


def bytes_of_phases(bed: Bed, beta: Beta | None, context: int) -> list[int]:
    """Return the bytes of weights, or of keys and values, that each phase of a token reads."""
    model, read = bed.model, [0.0] * len(kernels.PHASES)
    kept = neurons_kept(model, bed.selections[context, beta])
    which = {"attn.w_o": kernels.PROJECT_OUT, "mlp.w_in": kernels.NEURONS, "mlp.w_gate": kernels.NEURONS}
    which |= {f"attn.w_{name}": kernels.PROJECT for name in "qkv"} | {"mlp.w_out": kernels.OUTPUTS}
    for layer, block in enumerate(model.blocks):
        for name, phase in which.items():
            if name in block:
                share = kept[layer] / model.config.n_neurons if name in PER_NEURON else 1
                read[phase] += block[name].nbytes * share
    read[kernels.ATTEND] = bed.bytes_of(context, beta)["kv_bytes_per_token"]
    read[kernels.BEST] = model.head.nbytes
    return [round(n) for n in read]
