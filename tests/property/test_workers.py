"""Decoding ends, with the error, when a thread fails, when the user interrupts it, and after a fork."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import minicore as mc
from minicore.backends.cpu import step
from minicore.backends.cpu.decoder import CpuDecoder
from tests.helpers import ROOT

SECONDS = 60  # a hang takes for ever


@pytest.fixture(scope="module")
def model():
    return mc.load("minicore-opt-core")


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_thread_that_fails_ends_the_step_with_its_error(model, failing, monkeypatch):
    decoder, real = CpuDecoder(model, model.new_cache(16), n_threads=3), step.step
    expected = [decoder.step(token).copy() for token in (5, 6, 7)][-1]

    def fail(thread, **arguments):
        if thread == failing:
            raise OSError(28, "No space left on device")
        real(thread, **arguments)

    time.sleep(0.1)  # threads return, so that the next step starts them
    monkeypatch.setattr(step, "step", fail)
    decoder.cache.length = 2
    with pytest.raises(OSError, match="No space left"):
        decoder.step(7)
    assert decoder.cache.length == 2
    monkeypatch.setattr(step, "step", real)
    np.testing.assert_array_equal(decoder.step(7), expected)  # it goes on with new threads


RUN = """
import sys
import minicore as mc
from minicore.backends.cpu.decoder import CpuDecoder
model = mc.load("minicore-opt-core")
decoder = CpuDecoder(model, model.new_cache(256), n_threads=3)
print("ready", flush=True)
try:
    while True:
        for token in range(200):
            decoder.step(token)
        decoder.cache.length = 0
except KeyboardInterrupt:
    decoder.cache.length = 0
    decoder.step(5)
    print("stopped", flush=True)
"""


def test_an_interrupt_leaves_no_thread_behind():
    for delay in (0.0, 0.013, 0.05, 0.11):
        process = subprocess.Popen(
            [sys.executable, "-c", RUN],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=SECONDS)
        assert out == "stopped\n" and process.returncode == 0


FORK = """
import os
import numpy as np
import minicore as mc
model = mc.load("minicore-opt-core")
ids = np.arange(5, 405) % 1000
options = {"max_new_tokens": 4, "ignore_eos": True, "backend": "cpu"}
def tokens():
    return model.generate(ids, predictor="griffin", **options).token_ids
next(iter(model.stream(ids, predictor="dense", **options)))
before = tokens()
child = os.fork()
if child == 0:
    os._exit(0 if tokens() == before else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_has_threads_of_its_own():
    done = subprocess.run(
        [sys.executable, "-c", FORK],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=SECONDS, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
