"""Sweeps: one result a job whatever runs them, lost workers, stopped drivers, journals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from minicore.backends.cpu.threads import default_threads
from minicore.errors import InputError
from minicore.evaluation.journal import Journal
from minicore.evaluation.process_pool import ATTEMPTS, WorkerDied
from minicore.evaluation.shared_model import register_model, resolve_model
from minicore.evaluation.sweep import Workers, sweep
from tests.helpers import GOLDEN, run_python


def square(n: int) -> int:
    return n * n


def threads(_: int) -> int:
    return default_threads()


def process(_: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def fail(n: int) -> int:
    if n == 3:
        raise InputError("three is too much")
    return n


class Odd(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("odd")


def fail_oddly(_: int) -> None:
    raise Odd(1, 2)  # which no other process can rebuild


def die_once(job: tuple[int, str]) -> int:
    """End this process in the middle of job 2, the first time that comes up."""
    n, folder = job
    with open(Path(folder) / "log", "a") as file:
        file.write(f"{n}\n")
    if n == 2:
        try:
            (Path(folder) / "died").touch(exist_ok=False)
        except FileExistsError:
            return n * n
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return n * n


def die(_: int) -> None:
    os._exit(1)


def logits(job: tuple[object, list[int]]) -> np.ndarray:
    ref, ids = job
    return resolve_model(ref).forward(ids)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_has_its_result(workers):
    assert dict(sweep(square, range(9), Workers(workers))) == {i: i * i for i in range(9)}


def test_jobs_run_in_as_many_threads_as_asked_wherever_they_run():
    for where in (Workers(1, 1), Workers(1, 3), Workers(2, 3)):
        assert {n for _, n in sweep(threads, range(3), where)} == {where.n_threads}


def test_two_workers_are_two_other_processes_that_end_with_the_sweep():
    pids = {pid for _, pid in sweep(process, range(8), Workers(2))}
    assert len(pids) == 2 and os.getpid() not in pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_nothing_is_left_behind(tmp_path):
    """No process, and none of the semaphores that Python complains of when it ends."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.replace("10_000", "4"))
    done = run_python(script, tmp_path / "rows.jsonl")
    assert (done.returncode, done.stderr) == (0, "")


def test_no_jobs_need_no_workers():
    assert list(sweep(square, [], Workers(2))) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_job_raises_comes_through(workers):
    with pytest.raises(InputError, match="three is too much"):
        list(sweep(fail, range(9), Workers(workers)))


def test_what_cannot_be_pickled_is_told_in_words():
    with pytest.raises(RuntimeError, match="Odd") as told:
        list(sweep(fail_oddly, range(2), Workers(2)))
    assert "fail_oddly" in "".join(told.value.__notes__)


def test_a_worker_that_dies_loses_its_job_alone_and_that_is_retried(tmp_path):
    jobs = [(n, str(tmp_path)) for n in range(6)]
    assert dict(sweep(die_once, jobs, Workers(2))) == {n: n * n for n in range(6)}
    started = sorted((tmp_path / "log").read_text().split())
    assert started == sorted("0 1 2 2 3 4 5".split())  # the other worker's jobs were not begun again


def test_a_job_that_always_ends_its_worker_is_given_up():
    with pytest.raises(WorkerDied, match=str(ATTEMPTS)):
        list(sweep(die, [0], Workers(2)))


def test_workers_are_checked(monkeypatch):
    monkeypatch.setattr("minicore.evaluation.sweep.CONNECT_SECONDS", 0.3)
    for wrong in ({"n_processes": 0}, {"n_threads": 0}):
        with pytest.raises(InputError, match="expected 1 or more"):
            Workers(**wrong)
    with pytest.raises(InputError, match="cannot be reached"):
        list(sweep(square, [1], Workers(scheduler="tcp://127.0.0.1:9")))


def test_workers_still_have_their_old_name():
    from minicore.evaluation import sweep as module

    with pytest.warns(DeprecationWarning, match="Workers"):
        assert module.Where(workers=2, threads=3) == Workers(n_processes=2, n_threads=3)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match="pip install"):
        list(sweep(square, [1], Workers(scheduler="tcp://127.0.0.1:9")))


# --- a Dask cluster ---


@pytest.fixture
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:
        yield cluster


@pytest.mark.filterwarnings("ignore")  # what dask warns of is not ours to mend
def test_a_dask_cluster_gives_the_same_to_the_bit_and_outlives_a_worker(cluster, tmp_path):
    import minicore

    ref = register_model(minicore.load(GOLDEN / "llama"))
    jobs = [(ref, list(range(1, n))) for n in (5, 9, 12, 3)]
    where = Workers(scheduler=cluster.scheduler_address)
    here, two = dict(sweep(logits, jobs)), dict(sweep(logits, jobs, Workers(2)))
    there = dict(sweep(logits, jobs, where))
    for i in range(len(jobs)):
        np.testing.assert_array_equal(here[i], two[i])
        np.testing.assert_array_equal(here[i], there[i])
    dying = [(n, str(tmp_path)) for n in range(8)]
    assert dict(sweep(die_once, dying, where)) == {n: n * n for n in range(8)}
    assert (tmp_path / "died").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_study_of_a_task_goes_on_when_one_of_two_dask_workers_is_killed(cluster, tmp_path):
    import minicore
    from minicore.evaluation.tasks.run import evaluate

    model = minicore.load(GOLDEN / "llama-chat")
    lines = [{"question": f"who saw bird {i}", "answer": ["a bird"]} for i in range(40)]
    data = tmp_path / "q.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = model, "openqa", [data], ["dense", "stability", "griffin"], [0.2, 0.4]
    whole, out = evaluate(*said), tmp_path / "out"

    def kill_one() -> None:
        wait_until(lambda: (out / "answers.jsonl").exists() and (out / "answers.jsonl").stat().st_size > 2000)
        os.kill(cluster.workers[0].process.process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    assert evaluate(*said, workers=Workers(scheduler=cluster.scheduler_address), out=out) == whole
    killer.join()
    rows = Journal(out / "answers.jsonl", whole["conditions"]).rows
    assert len(rows) == 40 * 5 == len({(row["example"], row["predictor"], row["beta"]) for row in rows})


# --- models ---


def test_a_model_is_loaded_once_a_process_and_another_is_refused(tmp_path):
    import minicore

    model = minicore.load(GOLDEN / "llama")
    ref = register_model(model)
    assert resolve_model(ref) is model
    with pytest.raises(InputError, match="another model"):
        resolve_model(ref._replace(fingerprint="0" * 32))
    again = resolve_model(ref)  # dropped in between, so read anew
    assert again is not model and resolve_model(ref) is again


# --- the journal ---


def test_a_journal_goes_on_where_it_was(tmp_path):
    path = tmp_path / "rows.jsonl"
    Journal(path, {"seed": 0}).add([{"n": 1}, {"n": "zwei\u2028é"}])
    again = Journal(path, {"seed": 0})
    again.add([{"n": 3}])
    assert Journal(path, {"seed": 0}).rows == again.rows == [{"n": 1}, {"n": "zwei\u2028é"}, {"n": 3}]


def test_a_line_cut_off_in_the_middle_is_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    Journal(path, {"seed": 0}).add([{"n": 1}, {"n": 2}])
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        rows = Journal(path, {"seed": 0}).rows
        assert rows == [{"n": 1}, {"n": 2}][: max(whole[:end].count(b"\n") - 1, 0)]
        Journal(path, {"seed": 0}).add([{"n": 4}])
        assert Journal(path, {"seed": 0}).rows == [*rows, {"n": 4}]


def test_a_journal_of_another_study_or_no_journal_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    Journal(path, {"seed": 0}).add([{"n": 1}])
    with pytest.raises(InputError, match="seed 0, expected 1"):
        Journal(path, {"seed": 1})
    path.write_text('{"conditions": {"seed": 0}}\n[1]\n')
    with pytest.raises(InputError, match="line 2"):
        Journal(path, {"seed": 0})
    path.write_text("a text\n")
    with pytest.raises(InputError, match="line 1"):
        Journal(path, {"seed": 0})


DRIVER = """
import sys
from minicore.evaluation.journal import Journal
from minicore.evaluation.sweep import Workers, sweep
from tests.evaluation.test_sweep import process
if __name__ == "__main__":
    journal = Journal(sys.argv[1], {})
    for i, pid in sweep(process, range(10_000), Workers(2)):
        journal.add([{"i": i, "pid": pid}])
"""


def test_workers_end_with_a_driver_that_is_killed(tmp_path):
    script, path = tmp_path / "driver.py", tmp_path / "rows.jsonl"
    script.write_text(DRIVER)
    driver = subprocess.Popen([sys.executable, str(script), str(path)])
    try:
        wait_until(lambda: len(workers_of(path)) == 2)
    finally:
        driver.kill()
        driver.wait()
    wait_until(lambda: not any(running(pid) for pid in workers_of(path)))
    rows = Journal(path, {}).rows
    assert 2 <= len(rows) == len({row["i"] for row in rows})


def workers_of(path: Path) -> set[int]:
    """Return whose results a journal holds that is still being written."""
    lines = path.read_bytes().split(b"\n")[1:-1] if path.exists() else []
    return {json.loads(line)["pid"] for line in lines}


def running(pid: int) -> bool:
    """Say whether a process is there; one that ended and whom nobody asked about is not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(holds, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "not within half a minute"
        time.sleep(0.05)


def test_the_journal_is_json_lines(tmp_path):
    Journal(tmp_path / "rows.jsonl", {"seed": 0}).add([{"n": 1}])
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"conditions": {"seed": 0}}, {"n": 1}]


def lengths(words):
    """A job that is a sweep itself."""
    return [found for _, found in sweep(len, words)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_may_be_a_sweep(workers):
    found = dict(sweep(lengths, [["one", "three"], ["seven"]], Workers(workers)))
    assert found == {0: [3, 5], 1: [5]}
