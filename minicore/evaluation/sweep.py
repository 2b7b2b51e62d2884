"""Many independent jobs: run here, in several processes or on a Dask cluster, and kept as they finish.

A job is a value that can be pickled; a function of a module turns it into a result. Nothing of a result
depends on who worked it out: every job runs alone in its process and in a fixed number of threads. (On
machines of one kind, that is: the library behind NumPy's matrix products picks its loops by the processor.)
"""

from __future__ import annotations

import json
import multiprocessing
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minicore.errors import InputError
from minicore.files import atomic_write

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from minicore.model import Model

CONNECT = 10  # seconds that a Dask scheduler has to answer, and an idle process to end
ATTEMPTS = 3  # how often a job may take its worker with it before the sweep gives up


class WorkerDied(RuntimeError):
    """A process ended in the middle of a job, time after time."""


# --- what runs the jobs ---


@dataclass(frozen=True)
class Where:
    """What works a sweep off.

    Attributes
    ----------
    workers : int
        Processes on this machine; 1 is this one.
    threads : int
        That each job works in. Results are equal to the bit only between sweeps of equal threads.
    scheduler : str or None
        Address of a Dask scheduler, such as ``tcp://host:8786``, whose workers are used instead.
    """

    workers: int = 1
    threads: int = 1
    scheduler: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("workers", self.workers), ("threads", self.threads)):
            if value < 1:
                raise InputError(f"{name} is {value}, expected 1 or more")

    @contextmanager
    def executor(self) -> Iterator[Executor]:
        """Yield a ``concurrent.futures`` executor; when the block ends, unfinished jobs are dropped."""
        if self.scheduler is not None:
            with dask_executor(self.scheduler) as pool:
                yield pool
            return
        pool = ThreadPoolExecutor(1) if self.workers == 1 else Processes(self.workers)
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def sweep(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    where: Where | None = None,
    *,
    total: int | None = None,
    unit: str = " jobs",
    progress: bool = False,
) -> Iterator[tuple[int, Any]]:
    """Run independent jobs and yield each one's place in the list and its result, as they finish.

    Parameters
    ----------
    function : callable
        Of a module, from a job to its result.
    jobs : sequence
        Values that can be pickled.
    where : Where or None
        What runs them; None is this process.
    total : int or None
        Jobs there are with those done earlier, for the progress bar.
    unit : str
        What a job is called there.
    progress : bool
        Show a bar with the time left on stderr if it is a terminal.

    Raises
    ------
    InputError
        If a Dask scheduler cannot be reached.
    WorkerDied
        If a job ends its worker ``ATTEMPTS`` times over. What a job itself raises comes through; either way
        the other jobs are dropped.

    Examples
    --------
    >>> list(sweep(len, ["one", "three"]))
    [(0, 3), (1, 5)]
    """
    from tqdm import tqdm

    if not jobs:
        return
    if getattr(_inside, "a_job", False):  # whose sweep this is: it has this thread to itself
        yield from ((i, function(job)) for i, job in enumerate(jobs))
        return
    where = Where() if where is None else where
    total = len(jobs) if total is None else total
    with (
        where.executor() as pool,
        tqdm(
            total=total,
            initial=total - len(jobs),
            unit=unit,
            disable=not (progress and sys.stderr.isatty()),
        ) as bar,
    ):
        place = {pool.submit(run_alone, function, job, where.threads): i for i, job in enumerate(jobs)}
        alone = where.workers == 1 and where.scheduler is None  # then they finish in their order
        for future in place if alone else as_completed(place):
            yield place[future], future.result()
            bar.update()


_alone, _inside = threading.Lock(), threading.local()


def run_alone(function: Callable[[Any], Any], job: Any, n_threads: int) -> Any:
    """Run one job in so many threads while no other runs in this process: a Dask worker may have threads."""
    from minicore.backends.cpu.threads import limited

    with _alone, limited(n_threads):
        _inside.a_job = True
        try:
            return function(job)
        finally:
            _inside.a_job = False


class Processes(ThreadPoolExecutor):
    """Processes that take one job at a time: one that ends takes nothing but its job along.

    ``ProcessPoolExecutor`` gives up all of its processes when one ends. Here every thread of a pool has a
    process of its own, starts another in its place and hands it the job again.
    """

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.own, self.workers, self.closing = threading.local(), list[Worker](), False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a process call ``fn(*args, **kwargs)``."""
        return super().submit(self._call, fn, args, kwargs)

    def _call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for _ in range(ATTEMPTS):
            worker = getattr(self.own, "worker", None)
            if worker is None:
                worker = self.own.worker = Worker()
                self.workers.append(worker)
            try:
                good, value = worker.call(fn, args, kwargs)
            except (EOFError, OSError):
                self.own.worker = None
                if self.closing:
                    break
                continue
            if good:
                return value
            raise value
        raise WorkerDied(f"a job ended its process {ATTEMPTS} times; the last one was {args}")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes, those in the middle of a job too."""
        self.closing = True
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        for worker in self.workers:
            if cancel_futures and worker.busy:
                worker.process.kill()
        super().shutdown(wait=True)
        for worker in self.workers:
            worker.end()


class Worker:
    """A process that calls functions, one after the other, until its pipe is closed."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.busy = False

    def call(self, *task: Any) -> tuple[bool, Any]:
        """Return whether it went well, and the result or the exception; EOFError if the process ended."""
        self.busy = True
        self.pipe.send(task)
        good, value = self.pipe.recv()
        self.busy = False
        return good, value

    def end(self) -> None:
        """Let the process end by itself, which an idle one does at once."""
        self.pipe.close()
        self.process.join(CONNECT)
        self.process.kill()
        self.process.join()


def _serve(pipe: Connection) -> None:
    """Answer calls; the other end's end, however it came, is this process's end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, who then ends us
    with suppress(EOFError, OSError):
        while True:
            fn, args, kwargs = pipe.recv()
            try:
                pipe.send((True, fn(*args, **kwargs)))
            except Exception as error:
                pipe.send((False, _picklable(error)))


def _picklable(error: Exception) -> Exception:
    """Return an exception that another process can raise, with the words of its traceback."""
    said = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(repr(error))
    error.add_note(said)
    return error


@contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """Yield an executor on a Dask cluster, which by itself hands a dead worker's jobs to others."""
    try:
        from distributed import Client
    except ImportError:
        raise InputError(
            "a Dask scheduler needs the package distributed: pip install 'minicore-lm[distributed]'"
        ) from None
    try:
        client = Client(address, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(f"scheduler {address} cannot be reached ({error})") from None
    with client:
        pool = client.get_executor(pure=False)
        try:
            yield pool
        finally:
            pool.shutdown(wait=False)


# --- the model of a sweep, loaded once in each process ---


class ModelRef(NamedTuple):
    """What a worker needs to get hold of a model."""

    name: str
    source: str
    dtype: str
    fingerprint: str


_held: dict[ModelRef, Model] = {}


def share(model: Model) -> ModelRef:
    """Return what jobs carry in place of a model; this process keeps the model itself."""
    from minicore.generation.prediction import fingerprint

    ref = ModelRef(model.name, str(Path(model.source).absolute()), model.dtype, fingerprint(model))
    _held.clear()
    _held[ref] = model
    return ref


def borrow(ref: ModelRef) -> Model:
    """Return the model, loaded if this process does not hold it yet.

    Raises
    ------
    InputError
        If there is no such model here, or it is another one.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> borrow(share(model)) is model
    True
    """
    if ref not in _held:
        import minicore
        from minicore.generation.prediction import fingerprint

        _held.clear()
        model = minicore.load(ref.source if Path(ref.source).exists() else ref.name, dtype=ref.dtype)
        if fingerprint(model) != ref.fingerprint:
            raise InputError(f"{model.source} is another model on this machine than on the driver's")
        _held[ref] = model
    return _held[ref]


# --- results that outlive the driver ---


class Journal:
    """Results of a study, each written behind the others as soon as it is there.

    Parameters
    ----------
    path : path or None
        JSON lines: first what all have in common, then a result each. None keeps them in memory alone.
    head : mapping
        What all results have in common; those of another are never mixed in.

    Attributes
    ----------
    rows : list of dict
        The results so far. A last line that was cut off in the middle is left out and made again.

    Raises
    ------
    InputError
        If the file is there and is of another study, or a line of it is no result.
    """

    def __init__(self, path: str | PathLike[str] | None, head: Mapping[str, Any]) -> None:
        self.path, self.head = None if path is None else Path(path), json.loads(json.dumps(head))
        self.rows: list[dict[str, Any]] = []
        if self.path is None:
            return
        if self.path.exists():
            self._read(self.path)
        with atomic_write(self.path) as part:
            part.write_text(_lines([{"conditions": self.head}, *self.rows]), encoding="utf-8")

    def _read(self, path: Path) -> None:
        lines = path.read_bytes().split(b"\n")[:-1]  # a whole line ends, and the next is empty
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
                said = value["conditions"] if number == 1 else value
                assert isinstance(said, dict)
            except (ValueError, KeyError, TypeError, AssertionError):
                raise InputError(f"{path}, line {number}: is no result of a study") from None
            if number > 1:
                self.rows.append(said)
                continue
            for key in [key for key in self.head if said.get(key) != self.head[key]][:1]:
                raise InputError(
                    f"{path}: its results are of {key} {said.get(key)}, expected {self.head[key]}; "
                    "choose another place or remove this one"
                )

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take results and write them before returning."""
        new = [dict(row) for row in rows]
        self.rows += new
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_lines(new))


def _lines(values: Iterable[Any]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
