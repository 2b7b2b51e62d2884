"""What the benchmarks share: memory that no cache holds, and the bandwidth of this session."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minicore.kernels import bandwidth

N_BYTES = max(4 * bandwidth.last_cache_bytes(), 64 << 20)  # that a kernel reads in one call, about


def pytest_report_header() -> str:
    from minicore.bench import machine

    about = machine()
    return f"machine: {about['cpu']}, {about['cores']} cores, {' '.join(about['flags'])}"


@pytest.fixture(scope="session")
def memory() -> np.ndarray:
    return bandwidth.buffer()


@pytest.fixture
def reading(benchmark: Any, memory: np.ndarray) -> Callable[..., Any]:
    """Time a call that reads so many bytes; note GB/s and the fraction of the bandwidth around it."""

    def run(call: Callable[[], Any], n_bytes: float, n_threads: int = 1) -> None:
        before = bandwidth.bandwidth(memory, n_threads)
        benchmark.pedantic(call, rounds=5, iterations=1, warmup_rounds=1)
        if benchmark.stats is None:  # --benchmark-disable
            return
        after = bandwidth.bandwidth(memory, n_threads)
        rate = n_bytes / benchmark.stats.stats.median
        benchmark.extra_info |= {
            "gb_per_s": rate / 1e9,
            "read_gb_per_s": (before + after) / 2e9,
            "of_bandwidth": 2 * rate / (before + after),
            "n_threads": n_threads,
        }

    return run
