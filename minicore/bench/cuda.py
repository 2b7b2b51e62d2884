"""An NVIDIA GPU as a device to benchmark, and the table of a token's phases on it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
from numba import cuda

from minicore.backends.cuda.backend import CudaBackend
from minicore.backends.cuda.decoder import CudaDecoder
from minicore.backends.cuda.kernels.decode import phases as kernels
from minicore.backends.cuda.kernels.intrinsics import SIMULATED
from minicore.backends.cuda.phases import PhaseTimer
from minicore.bench.summary import plain_value, ratios, spread
from minicore.bench.workload import Workload
from minicore.core.budgets import Beta
from minicore.generation.accounting import neurons_kept
from minicore.model import PER_NEURON, Model

COPIED_BYTES = 1 << 30  # far more than any cache holds
N_COPIES = 5  # in each measurement of the bandwidth
# The phase of a token that reads a matrix, by the matrix's name.
PHASE_OF = {
    **{f"attn.w_{name}": kernels.PROJECT for name in "qkv"},
    "attn.w_o": kernels.PROJECT_OUT,
    "mlp.w_in": kernels.NEURONS,
    "mlp.w_gate": kernels.NEURONS,
    "mlp.w_out": kernels.OUTPUTS,
}


class CudaDevice:
    """A GPU, which picks the tokens itself.

    Parameters
    ----------
    copied_bytes : int or None
        Size of the array that is copied to measure bandwidth; None is 1 GiB.
    """

    def __init__(self, copied_bytes: int | None) -> None:
        self.copied_bytes = copied_bytes or COPIED_BYTES

    def backend(self, model: Model, n_threads: int | None) -> CudaBackend:
        """Return a model on the GPU."""
        return CudaBackend(model)

    def limited(self, n_threads: int | None) -> AbstractContextManager[None]:
        """Change nothing: a GPU uses all its threads."""
        return nullcontext()

    def bandwidth(self, n_threads: int | None) -> float:
        """Measure the bytes per second that copies read and write."""
        source, target = self._arrays
        cuda.synchronize()
        began = time.perf_counter()
        for _ in range(N_COPIES):
            target.copy_to_device(source)
        cuda.synchronize()
        return 2 * N_COPIES * source.nbytes / (time.perf_counter() - began)

    @cached_property
    def _arrays(self) -> tuple[Any, Any]:
        n = self.copied_bytes // 4
        return cuda.device_array(n, np.uint32), cuda.device_array(n, np.uint32)

    def details(self, workloads: Sequence[Workload]) -> dict[str, Any]:
        """Return the GPU, and a row for each phase of a token and setting."""
        rows = []
        for workload in workloads:
            for beta in (None, *workload.plan.betas):
                rows += self.phase_rows(workload, beta)
        return {"gpu": gpu(), "phases": rows}

    def phase_rows(self, workload: Workload, beta: Beta | None) -> list[dict[str, Any]]:
        """Return how long each phase of a token takes, all layers together, with a launch for each."""
        context = workload.plan.contexts[0]
        decoder = workload.decoder(beta, None, context)
        assert isinstance(decoder, CudaDecoder)
        timer, bandwidths, seconds = PhaseTimer(decoder), [], []
        for _ in range(workload.plan.rounds + 1):
            bandwidths.append(self.bandwidth(None))
            seconds.append(timer.seconds(context))
        bandwidths, spent = bandwidths[1:], np.array(seconds[1:])  # (rounds, n_phases)
        n_bytes = bytes_by_phase(workload, beta, context)
        about = {"dtype": workload.model.dtype, "beta": plain_value(beta), "context": context}
        rows = []
        for name, n, mine in zip(kernels.PHASES, n_bytes, spent.T.tolist(), strict=True):
            rates = [n / s for s in mine]
            row = about | {"phase": name, "bytes": n, "microseconds": spread([1e6 * s for s in mine])}
            row["gb_per_s"] = spread([rate / 1e9 for rate in rates])
            row["of_bandwidth"] = spread(ratios(rates, bandwidths))
            rows.append(row)
        return rows


def gpu() -> dict[str, Any]:
    """Return what speeds depend on besides the host machine."""
    versions = {"numba_cuda": version("numba-cuda")}
    if SIMULATED:
        return {"name": "Numba's simulator"} | versions
    device, (_, total) = cuda.get_current_device(), cuda.current_context().get_memory_info()
    name = device.name.decode() if isinstance(device.name, bytes) else device.name
    about = {"name": name, "multiprocessors": device.MULTIPROCESSOR_COUNT, "memory_bytes": total}
    return about | {"compute_capability": list(device.compute_capability)} | versions


def bytes_by_phase(workload: Workload, beta: Beta | None, context: int) -> list[int]:
    """Return the bytes of weights, or of keys and values, that each phase of a token reads."""
    model, read = workload.model, [0.0] * len(kernels.PHASES)
    kept = neurons_kept(model, workload.selections[context, beta])
    for layer, block in enumerate(model.blocks):
        for name, phase in PHASE_OF.items():
            if name in block:
                share = kept[layer] / model.config.n_neurons if name in PER_NEURON else 1
                read[phase] += block[name].nbytes * share
    read[kernels.ATTEND] = workload.bytes_read(context, beta)["kv_bytes_per_token"]
    read[kernels.BEST] = model.head.nbytes
    return [round(n) for n in read]
