"""The other threads of a decoder: a failure in one of them ends the step, and none outlives it unseen."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from minicore.backends.cpu.intrinsics import FAILED


class Workers:
    """Threads that do their share of a step.

    Parameters
    ----------
    n : int
        How many.
    counter : (>= 2,) int64
        The barrier's counter, where a failure is told.

    Attributes
    ----------
    process : int
        The process that they run in: a forked one has a copy of the object, but not the threads.
    """

    def __init__(self, n: int, counter: np.ndarray) -> None:
        self.process, self._counter = os.getpid(), counter
        self._pool = ThreadPoolExecutor(max(n, 1), thread_name_prefix="minicore-step")
        self._errors: list[BaseException] = []

    def submit(self, step: Callable[[int], None], thread: int) -> None:
        """Start a thread's share of a step."""
        self._pool.submit(self._work, step, thread)

    def check(self) -> None:
        """Raise the error of a thread that has failed."""
        if self._errors:
            raise self._errors[0]

    def stop(self) -> None:
        """Wait until all threads have returned; after a failure they do."""
        self._pool.shutdown(cancel_futures=True)

    def _work(self, step: Callable[[int], None], thread: int) -> None:
        try:
            step(thread)
        except BaseException as error:  # whatever it is, the others wait for this thread
            self._errors.append(error)
            self._counter[FAILED] = 1
