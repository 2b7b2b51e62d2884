"""What a decoding process holds besides weights and kv cache, and what is given back to get there."""

import pytest

from minicore.backends.cpu import memory
from tests.helpers import GOLDEN, run_python

SMAPS = """\
7f0000000000-7f0000004000 r-xp 00000000 fe:00 12 /lib/libllvmlite.so
Rss:                  16 kB
Anonymous:             0 kB
7f0000004000-7f0000006000 r--p 00004000 fe:00 12 /lib/libllvmlite.so
Rss:                   8 kB
Anonymous:             4 kB
7f0000006000-7f0000007000 rw-p 00006000 fe:00 12 /lib/libllvmlite.so
Rss:                   4 kB
Anonymous:             0 kB
7f0000007000-7f0000008000 r--p 00007000 fe:00 12 /lib/libllvmlite.so
Anonymous:             0 kB
7f0000008000-7f0000009000 r-xp 00000000 fe:00 13 /lib/libother.so
Anonymous:             0 kB
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [stack]
Anonymous:            40 kB
"""


def test_only_pages_that_nobody_wrote_are_given_back():
    assert memory.clean_pages(SMAPS, "libllvmlite") == [
        (0x7F0000000000, 0x7F0000004000),
        (0x7F0000007000, 0x7F0000008000),
    ]


MEASURE = """
import sys, minicore as mc
model = mc.load(sys.argv[1], dtype=sys.argv[2])
out = model.generate(list(range(1, 30)), max_new_tokens=8, ignore_eos=True, predictor="dense")
cache = model.new_cache(37)
print(out.stats["resident_bytes"] - out.stats["weights_bytes"] - cache.nbytes)
more = mc.load(sys.argv[1], dtype="float32")  # what was given back is still there to compile with
more.generate([1, 2, 3], max_new_tokens=4, predictor="dense")
"""


@pytest.mark.skipif(not memory.SMAPS.exists(), reason="resident memory is measured on Linux")
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_all_that_is_not_weights_or_cache_is_less_than_150_mb(dtype):
    for _ in range(2):  # the first may compile kernels, which takes memory of its own
        done = run_python("-c", MEASURE, GOLDEN / "llama-gqa", dtype, check=True)
    assert float(done.stdout) <= 150e6


REUSE = """
import resource, numpy as np
from minicore.checkpoint.heap import keep_freed
from tests.helpers import GOLDEN, run_python
keep_freed()
for round in range(60):
    if round == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(1 << 18, np.float32) for _ in range(5)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not memory.SMAPS.exists(), reason="page faults are counted on Linux")
def test_arrays_that_are_freed_are_used_again_without_asking_for_pages():
    done = run_python("-c", REUSE, check=True)
    assert int(done.stdout) < 1000  # of 50 times 5 times 256 pages
