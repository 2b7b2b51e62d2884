"""How the blocks of one kernel exchange values: NCCL's LL (low latency) protocol.

A *word* is 8 bytes, a float32 value and a uint32 flag, written by one store instruction. The receiver polls
a word until its flag is the one it waits for; then the value is there too. No barrier and no memory fence
lies between two phases of a kernel, only the way to the L2 cache and back. Each use of a word has a new
flag, so words need not be reset.

NCCL has it in src/device/prims_ll.h; Z. Hu et al., "Demystifying NCCL: An In-depth Analysis of GPU
Communication Protocols and Algorithms", arXiv:2507.04786 (2025), describes it.
"""

from __future__ import annotations

from minicore.backends.cuda.kernels.intrinsics import SIMULATED, cuda, device, ll_load2, trap

MAX_POLLS = 1 << 22  # some seconds; a word that has not arrived by then never will


@device
def simulator_barrier():
    """Wait for the whole block under the simulator, whose threads are too slow to poll. Nothing on a GPU."""
    if SIMULATED:
        cuda.syncthreads()


@device
def ll_wait2(words, i, loaded, flag):  # -> float32, float32
    """Return the values of words 2 i and 2 i + 1, loaded before; poll them until both have this flag."""
    a, flag_a, b, flag_b = loaded
    n_polls = 0
    while flag_a != flag or flag_b != flag:
        n_polls += 1
        if n_polls > MAX_POLLS:
            trap()
        a, flag_a, b, flag_b = ll_load2(words, i, True)
    return a, b


@device
def ll_receive2(words, i, flag):  # -> float32, float32
    """Wait for words 2 i and 2 i + 1 with this flag and return their values."""
    return ll_wait2(words, i, ll_load2(words, i, True), flag)
