"""Threads that share a compiled call: a few of ours that sleep in between, each running without the GIL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from threading import Lock
from typing import Any

SMALL = 1 << 19  # numbers that one thread passes over sooner than another wakes up, a tenth of a millisecond

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


class ProductsOfOne:
    """While any thread is inside, each thread does its own matrix products.

    The threads of a BLAS go on spinning for a while after a product, in the way of ours; and one team can
    share out what lies between products too.
    """

    def __init__(self) -> None:
        from threadpoolctl import ThreadpoolController

        self.libraries = ThreadpoolController().select(user_api="blas").lib_controllers
        self.lock, self.n_inside, self.before = Lock(), 0, [0] * len(self.libraries)

    def __enter__(self) -> None:
        with self.lock:
            if self.n_inside == 0:
                self.before = [library.get_num_threads() for library in self.libraries]
                self._set([1] * len(self.before))
            self.n_inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.n_inside -= 1
            if self.n_inside == 0:
                self._set(self.before)

    def _set(self, numbers: list[int]) -> None:
        for library, n_threads in zip(self.libraries, numbers, strict=True):
            library.set_num_threads(n_threads)


products_of_one = cache(ProductsOfOne)  # libraries are looked for once


def run(function: Callable[..., Any], n_threads: int, *args: Any) -> None:
    """Call ``function(thread, n_threads, *args)`` for every thread at once; the caller is thread 0."""
    others = [
        _others(n_threads - 1).submit(function, thread, n_threads, *args) for thread in range(1, n_threads)
    ]
    function(0, n_threads, *args)
    for other in others:
        other.result()
