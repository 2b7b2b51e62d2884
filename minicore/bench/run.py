"""Validate, warm up, measure, report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np

from minicore.bench.machine import load_average, machine
from minicore.bench.plan import Plan
from minicore.bench.summary import plain_value, ratios, spread
from minicore.bench.validation import validate
from minicore.bench.workload import PREDICTOR, Device, LoadedModel, Measurement, Workload


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
        ``compile``, a row per setting; ``bandwidth``, a row per number of threads; ``prefill`` and
        ``decode``, a row per setting; for a GPU also ``gpu`` and ``phases``, a row per phase of a token and
        setting. Speeds are ``{median, q1, q3, rounds}``. ``of_bandwidth`` and ``to_dense`` are ratios within
        each round; ``gb_per_s`` counts ``bytes_per_token``.

    Raises
    ------
    InputError
        If the plan or the model is not valid.
    WrongResult
        If the logits of a setting are not the reference's.

    Examples
    --------
    >>> small = {"prompt_tokens": 8, "new_tokens": 4, "rounds": 1, "read_bytes": 1 << 20}
    >>> report = measure("minicore-opt-core", Plan(dtypes=("float32",), threads=(1,), **small))
    >>> [(row["beta"], row["tokens_per_s"]["median"] > 0) for row in report["decode"]]
    [(None, True), (0.4, True)]
    """
    plan, load_before = plan.checked(), load_average()
    quiet = not (progress and sys.stderr.isatty())
    device = make_device(plan)
    loaded = [LoadedModel(source, dtype, plan, device, progress) for dtype in plan.dtypes or ()]
    validation, workloads = prepare(loaded, quiet)
    measurements = [one for workload in workloads for one in workload.measurements()]
    run_rounds(measurements, plan, device, quiet)
    rows = [row_of(one, measurements) for one in measurements]
    return {
        "model": loaded[0].model.name,
        "machine": machine(),
        "conditions": conditions(plan, loaded[0]),
        "load_average": {"before": load_before, "after": load_average()},
        "validation": validation,
        "compile": [
            {"dtype": one.model.dtype, "n_threads": n, "compile_s": seconds}
            for one in loaded
            for n, seconds in one.compile_s.items()
        ],
        "bandwidth": [bandwidth_row(n, measurements) for n in plan.threads],
        "prefill": [row for row in rows if row["phase"] == "prefill"],
        "decode": [row for row in rows if row["phase"] == "decode"],
    } | device.details(workloads)


def make_device(plan: Plan) -> Device:
    """Return the device of a plan's backend."""
    if plan.backend == "cuda":
        from minicore.bench.cuda import CudaDevice

        return CudaDevice(plan.read_bytes)
    from minicore.bench.cpu import CpuDevice

    return CpuDevice(plan.read_bytes)


def prepare(loaded: Sequence[LoadedModel], quiet: bool) -> tuple[list[dict[str, Any]], list[Workload]]:
    """Return the rows of the validation, and the workloads."""
    from tqdm import tqdm

    validation, workloads = [], []
    with tqdm(total=2 * len(loaded), desc="validate, warm up", leave=False, disable=quiet) as bar:
        for one in loaded:
            validation += list(validate(one))
            bar.update()
            workloads.append(Workload(one))
            bar.update()
    return validation, workloads


def run_rounds(measurements: Sequence[Measurement], plan: Plan, device: Device, quiet: bool) -> None:
    """Time everything once per round, in a random order, after one round that does not count."""
    from tqdm import tqdm

    rng, n = np.random.default_rng(plan.seed), len(measurements)
    with tqdm(total=(plan.rounds + 1) * n, desc="rounds", leave=False, disable=quiet) as bar:
        for round_ in range(plan.rounds + 1):
            for i in rng.permutation(n):
                measurements[i].time(device, keep=round_ > 0)
                bar.update()


# --- rows of the report ---


def conditions(plan: Plan, loaded: LoadedModel) -> dict[str, Any]:
    """Return the plan, with the predictor and the layers it stands for."""
    return {
        **{name: plain_value(value) for name, value in vars(plan).items()},
        "predictor": PREDICTOR,
        "layers": list(loaded.recorders[plan.betas[0]].layers) if plan.betas else None,
    }


def bandwidth_row(n_threads: int | None, measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Return all bandwidths measured with this number of threads."""
    found = [speed for one in measurements if one.n_threads == n_threads for speed in one.bandwidths]
    return {"n_threads": n_threads, "gb_per_s": spread([speed / 1e9 for speed in found])}


def row_of(one: Measurement, measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Return the row of a measurement; ratios are taken round by round."""
    row = one.about | {"tokens_per_s": spread(one.speeds)}
    same = ("phase", "dtype", "n_threads", "context")
    dense = next(
        other
        for other in measurements
        if other.about["beta"] is None and all(other.about[key] == one.about[key] for key in same)
    )
    row["to_dense"] = spread(ratios(one.speeds, dense.speeds))
    if "bytes_per_token" in row:
        rates = [speed * row["bytes_per_token"] for speed in one.speeds]
        row["gb_per_s"] = spread([rate / 1e9 for rate in rates])
        row["of_bandwidth"] = spread(ratios(rates, one.bandwidths))
    return row
