"""Our own threads: each runs its share of a call without the GIL and sleeps until the next one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from threading import Lock
from typing import Any

# Elements that one thread passes over in the time another takes to wake up, 0.1 ms.
ONE_THREAD_ELEMENTS = 1 << 19

_limit: ContextVar[int | None] = ContextVar("threads", default=None)


def default_threads() -> int:
    """Return the number of threads: NUMBA_NUM_THREADS, by default one per core, or :func:`limited`."""
    import numba

    return _limit.get() or int(numba.config.NUMBA_NUM_THREADS)


@contextmanager
def limited(n_threads: int) -> Iterator[None]:
    """Use this many threads inside the block, for NumPy's matrix products too."""
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


class OneThreadPerProduct:
    """While any thread is inside, each thread computes its own matrix products.

    The threads of a BLAS spin for a while after a product and get in the way of ours. Ours can also share the
    work between products.
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


one_thread_per_product = cache(OneThreadPerProduct)  # looks for BLAS libraries once


def _forget_threads() -> None:
    """Forget, in a forked process, the threads and locks that it has copies of."""
    _others.cache_clear()
    one_thread_per_product.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def run(function: Callable[..., Any], n_threads: int, *args: Any) -> None:
    """Call ``function(thread, n_threads, *args)`` in all threads at once; the caller is thread 0."""
    others = [
        _others(n_threads - 1).submit(function, thread, n_threads, *args) for thread in range(1, n_threads)
    ]
    function(0, n_threads, *args)
    for other in others:
        other.result()
