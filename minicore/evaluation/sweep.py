"""Many independent jobs, run in this process, in several processes or on a Dask cluster.

A job is a value that can be pickled, and a module-level function turns it into a result. A result does not
depend on where it was computed: each job runs in a fixed number of threads while no other job runs in its
process. (This holds for machines of one kind: the library behind NumPy's matrix products picks its loops by
the processor.)
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from minicore.errors import InputError
from minicore.evaluation.process_pool import ProcessPool

Job = TypeVar("Job")
Result = TypeVar("Result")

CONNECT_SECONDS = 10.0  # within which a Dask scheduler has to answer


@dataclass(frozen=True)
class Workers:
    """The workers of a sweep.

    Attributes
    ----------
    n_processes : int
        Processes on this machine; with 1, jobs run in this process.
    n_threads : int
        Threads of each job. Results are equal to the bit only between sweeps with equal n_threads.
    scheduler : str or None
        Address of a Dask scheduler, such as ``tcp://host:8786``, whose workers run the jobs instead.

    Examples
    --------
    >>> Workers(n_processes=0)
    Traceback (most recent call last):
    minicore.errors.InputError: workers is 0, expected 1 or more
    """

    n_processes: int = 1
    n_threads: int = 1
    scheduler: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("workers", self.n_processes), ("threads", self.n_threads)):
            if value < 1:
                raise InputError(f"{name} is {value}, expected 1 or more")

    @property
    def in_this_process(self) -> bool:
        """Whether jobs run one after the other in this process."""
        return self.n_processes == 1 and self.scheduler is None

    @contextmanager
    def executor(self) -> Iterator[Executor]:
        """Yield an executor; when the block ends, unfinished jobs are dropped."""
        if self.scheduler is not None:
            with dask_executor(self.scheduler) as pool:
                yield pool
            return
        pool = ThreadPoolExecutor(1) if self.in_this_process else ProcessPool(self.n_processes)
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def sweep(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: Workers | None = None,
    *,
    total: int | None = None,
    unit: str = " jobs",
    progress: bool = False,
) -> Iterator[tuple[int, Result]]:
    """Run independent jobs; yield each job's index and result as it finishes.

    Parameters
    ----------
    function : callable
        A module-level function from a job to its result.
    jobs : sequence
        Values that can be pickled.
    workers : Workers or None
        What runs the jobs; None is one thread of this process.
    total : int or None
        Number of jobs for the progress bar, including those done in an earlier run.
    unit : str
        The bar's word for jobs.
    progress : bool
        Show a bar with the time left on stderr if it is a terminal.

    Raises
    ------
    InputError
        If a Dask scheduler cannot be reached.
    WorkerDied
        If a job ends its worker process several times over. An exception of a job itself is raised here;
        in both cases the remaining jobs are dropped.

    Examples
    --------
    >>> list(sweep(len, ["one", "three"]))
    [(0, 3), (1, 5)]
    """
    from tqdm import tqdm

    if not jobs:
        return
    if getattr(_local, "in_job", False):  # a job's own sweep: the job has this thread to itself already
        yield from ((i, function(job)) for i, job in enumerate(jobs))
        return
    workers = Workers() if workers is None else workers
    total = len(jobs) if total is None else total
    hidden = not (progress and sys.stderr.isatty())
    with (
        workers.executor() as pool,
        tqdm(total=total, initial=total - len(jobs), unit=unit, disable=hidden) as bar,
    ):
        index = {
            pool.submit(run_exclusively, function, job, workers.n_threads): i for i, job in enumerate(jobs)
        }
        # the jobs of this process finish in their order
        for future in index if workers.in_this_process else as_completed(index):
            yield index[future], future.result()
            bar.update()


_one_job, _local = threading.Lock(), threading.local()


def run_exclusively(function: Callable[[Job], Result], job: Job, n_threads: int) -> Result:
    """Run one job in n_threads while no other runs in this process, such as a Dask worker with threads."""
    from minicore.backends.cpu.threads import limited

    with _one_job, limited(n_threads):
        _local.in_job = True
        try:
            return function(job)
        finally:
            _local.in_job = False


@contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """Yield an executor on a Dask cluster, which reassigns the jobs of a worker that died."""
    try:
        from distributed import Client
    except ImportError:
        raise InputError(
            "a Dask scheduler needs the package distributed: pip install 'minicore-lm[distributed]'"
        ) from None
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(f"scheduler {address} cannot be reached ({error})") from None
    with client:
        pool = client.get_executor(pure=False)
        try:
            yield pool
        finally:
            pool.shutdown(wait=False)


def __getattr__(name: str) -> Any:
    """Import ``Where`` as before version 0.2."""
    if name != "Where":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("Where is now minicore.evaluation.sweep.Workers", DeprecationWarning, stacklevel=2)

    def where(workers: int = 1, threads: int = 1, scheduler: str | None = None) -> Workers:
        return Workers(n_processes=workers, n_threads=threads, scheduler=scheduler)

    return where
