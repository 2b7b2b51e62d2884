"""The read bandwidth of this machine, as a decoder uses it: the limit that speeds are compared with.

Decoding a token reads every weight once and writes next to nothing. So the fair limit is a loop that only
reads: a sum of float32 elements, in as many threads, each with its own contiguous share. It reads four
quarters of a share side by side as kernels do; reading from end to end is slower
(docs/notes/cpu-kernels.md).
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from minicore.backends.cpu import threads
from minicore.backends.cpu.compiling import kernel

Array = np.ndarray

SMALLEST, LARGEST = 64 << 20, 512 << 20  # bytes


@kernel
def read(x):  # (n,) -> float32
    """Return the sum: every element is read once, in vectors, in four streams."""
    n, total = x.size // 4, np.float32(0)
    a, b, c, d = x[:n], x[n : 2 * n], x[2 * n : 3 * n], x[3 * n :]
    for i in range(n):
        total += (a[i] + b[i]) + (c[i] + d[i])
    for i in range(n, d.size):
        total += d[i]
    return total


def buffer(n_bytes: int | None = None) -> Array:  # -> (n,) float32
    """Return memory to read, by default several times the last cache. (Zeros might share one page, so: ones.)

    NumPy asks the system for huge pages on arrays of this size, as it does on a model's matrices.
    """
    if n_bytes is None:
        n_bytes = min(max(4 * last_cache_bytes(), SMALLEST), LARGEST)
    return np.ones(max(n_bytes // 4, 1), np.float32)


def bandwidth(x: Array, n_threads: int, passes: int = 3) -> float:
    """Return the bytes per second that ``n_threads`` threads read from an array in some passes over it."""
    read(x[:1])  # compiled before the clock starts
    began = time.perf_counter()
    threads.run(_read_share, n_threads, x, passes)
    return x.nbytes * passes / (time.perf_counter() - began)


def _read_share(thread: int, n_threads: int, x: Array, passes: int) -> None:
    share = x[thread * x.size // n_threads : (thread + 1) * x.size // n_threads]
    for _ in range(passes):
        read(share)


def last_cache_bytes() -> int:
    """Return the size of the last level of cache, or 32 MiB where the system does not say."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text or 0))
    return max(sizes, default=32 << 20)
