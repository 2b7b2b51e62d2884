"""How fast this machine reads memory, in the way that a decoder does: the limit that speeds are held against.

Decoding a token reads every weight once and writes next to nothing, so the fair limit is a loop that only
reads: a sum over float32 numbers, in as many threads, each with its own contiguous share.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache as once
from pathlib import Path

import numba as nb
import numpy as np

from minicore.kernels import FAST

Array = np.ndarray

SMALLEST, LARGEST = 64 << 20, 512 << 20  # bytes


@nb.njit("float32(float32[::1])", nogil=True, cache=True, fastmath=FAST)
def read(x):  # type: ignore[no-untyped-def]  # (n,) -> float32
    """Return the sum: every number is read once, in vectors."""
    total = np.float32(0)
    for i in range(x.size):
        total += x[i]
    return total


def buffer(n_bytes: int | None = None) -> Array:  # -> (n,) float32
    """Return memory to read: ones (zeros may all be one page), by default several times the last cache.

    NumPy asks the system for huge pages on arrays of this size, as it does on a model's matrices.
    """
    if n_bytes is None:
        n_bytes = min(max(4 * last_cache_bytes(), SMALLEST), LARGEST)
    return np.ones(max(n_bytes // 4, 1), np.float32)


def bandwidth(x: Array, n_threads: int, passes: int = 3) -> float:
    """Return the bytes a second at which ``n_threads`` threads read the array, over so many passes."""
    shares = np.array_split(x, n_threads)
    began = time.perf_counter()
    others = [_team(n_threads).submit(_passes, share, passes) for share in shares[1:]]
    _passes(shares[0], passes)
    for other in others:
        other.result()
    return x.nbytes * passes / (time.perf_counter() - began)


def _passes(x: Array, n: int) -> None:
    for _ in range(n):
        read(x)


@once
def _team(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads - 1, thread_name_prefix="minicore-read")


def last_cache_bytes() -> int:
    """Return the size of the last level of cache, or 32 MiB where the system does not say."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text or 0))
    return max(sizes, default=32 << 20)
