"""Threads that share a compiled call: a few of ours that sleep in between, each running without the GIL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

_limit: ContextVar[int | None] = ContextVar("threads", default=None)


def default_threads() -> int:
    """Return how many threads work: as many as Numba's NUMBA_NUM_THREADS says, by default one a core."""
    import numba

    return _limit.get() or int(numba.config.NUMBA_NUM_THREADS)


@contextmanager
def limited(n_threads: int) -> Iterator[None]:
    """Work in so many threads inside the block, NumPy's matrix products included."""
    from threadpoolctl import threadpool_limits

    before = _limit.set(n_threads)
    try:
        with threadpool_limits(n_threads, user_api="blas"):
            yield
    finally:
        _limit.reset(before)


@cache
def _others(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, thread_name_prefix="minicore")


def run(function: Callable[..., Any], n_threads: int, *args: Any) -> None:
    """Call ``function(thread, n_threads, *args)`` for every thread at once; the caller is thread 0."""
    others = [
        _others(n_threads - 1).submit(function, thread, n_threads, *args) for thread in range(1, n_threads)
    ]
    function(0, n_threads, *args)
    for other in others:
        other.result()
