"""Worker processes of which one can die without taking the others with it.

``concurrent.futures.ProcessPoolExecutor`` gives up all of its processes when one dies. Here each thread of a
pool owns one process; when that dies, the thread starts another one and gives it the same job again.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

P = ParamSpec("P")
T = TypeVar("T")

ATTEMPTS = 3  # processes that one job may end before the sweep gives up
END_SECONDS = 10  # within which an idle process ends by itself


class WorkerDied(RuntimeError):
    """The same job ended its process several times."""


class ProcessPool(ThreadPoolExecutor):
    """An executor of n processes, each of which runs one job at a time."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self._own = threading.local()
        self._processes: list[WorkerProcess] = []
        self._closing = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a process call ``fn(*args, **kwargs)``."""
        return super().submit(self._call, fn, args, kwargs)

    def _call(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        for _ in range(ATTEMPTS):
            process = getattr(self._own, "process", None)
            if process is None:
                process = self._own.process = WorkerProcess()
                self._processes.append(process)
            try:
                returned, value = process.call(fn, args, kwargs)
            except (EOFError, OSError):
                self._own.process = None
                if self._closing:
                    break
                continue
            if returned:
                result: T = value
                return result
            raise value
        raise WorkerDied(f"a job ended its process {ATTEMPTS} times; the last one was {args}")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes; with ``cancel_futures`` also those in the middle of a job."""
        self._closing = True
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        for process in self._processes:
            if cancel_futures:
                process.interrupt()
        super().shutdown(wait=True)
        for process in self._processes:
            process.end()


class WorkerProcess:
    """A process that calls functions, one after the other, until its pipe is closed."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._busy = False

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, Any]:
        """Return (True, result) or (False, exception); raise EOFError if the process ended."""
        self._busy = True
        self._pipe.send((fn, args, kwargs))
        returned, value = self._pipe.recv()
        self._busy = False
        return returned, value

    def interrupt(self) -> None:
        """Kill the process if it is in the middle of a call."""
        if self._busy:
            self._process.kill()

    def end(self) -> None:
        """Let the process end by itself, which an idle one does at once."""
        self._pipe.close()
        self._process.join(END_SECONDS)
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection) -> None:
    """Answer calls until the other end of the pipe is closed, for whatever reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which then ends this process
    with suppress(EOFError, OSError):
        while True:
            fn, args, kwargs = pipe.recv()
            try:
                pipe.send((True, fn(*args, **kwargs)))
            except Exception as error:
                pipe.send((False, _picklable(error)))


def _picklable(error: Exception) -> Exception:
    """Return an exception that another process can raise, with its traceback as a note."""
    trace = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(repr(error))
    error.add_note(trace)
    return error
