"""What the benchmarks share: memory that no cache holds, and the bandwidth of this session."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minicore.backends.cpu import bandwidth
from minicore.backends.cpu import threads as team
from minicore.formatting import format_number, format_table

N_BYTES = max(4 * bandwidth.last_cache_bytes(), 64 << 20)  # that a kernel reads in one call, about


def pytest_report_header() -> str:
    from minicore.bench.machine import machine

    about = machine()
    return f"machine: {about['cpu']}, {about['cores']} cores, {' '.join(about['flags'])}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """List what pytest-benchmark keeps for its JSON: GB/s, and the fraction of the bandwidth around it."""
    rows = [
        [
            bench.name.removeprefix("test_"),
            format_number(bench.extra_info["gb_per_s"]),
            format_number(bench.extra_info["read_gb_per_s"]),
            f"{bench.extra_info['of_bandwidth']:.0%}",
        ]
        for bench in config._benchmarksession.benchmarks
        if "gb_per_s" in bench.extra_info
    ]
    if rows:
        terminalreporter.section("bytes read")
        for line in format_table(["", "GB/s", "bandwidth", "of it"], rows):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def memory() -> np.ndarray:
    return bandwidth.buffer()


@pytest.fixture
def reading(benchmark: Any, memory: np.ndarray) -> Callable[..., Any]:
    """Time a call that reads so many bytes; note GB/s and the fraction of the bandwidth around it."""

    def run(call: Callable[[], Any], n_bytes: float, n_threads: int = 1) -> None:
        before = bandwidth.bandwidth(memory, n_threads)
        with team.limited(n_threads):  # BLAS too
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
