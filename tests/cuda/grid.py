"""Run the decode kernel as a grid of several blocks with warps of 32 lanes (tests/cuda/warps.py).

Usage: NUMBA_ENABLE_CUDASIM=1 python tests/cuda/grid.py CHECKPOINT [CHECKPOINT...]
"""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from warps import LANES, Warps, install, pass_barrier, shuffle

from minicore.backends.cuda.kernels import simulated

BLOCKS, THREADS = 3, 64
STAGING_BYTES = 1 << 16, 0  # shared memory for rows that are copied ahead: enough for a layer, and none
N_READ, N_NEW = 70, 3  # more positions than a warp has lanes; SPLIT_POSITIONS below makes blocks share them


class Grid(Warps):
    """Runs all blocks of a kernel at once."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = SimpleNamespace(array=lambda n, dtype: self.now.shared)

    @property
    def blockIdx(self) -> SimpleNamespace:
        return SimpleNamespace(x=self.now.block)

    def run(self, kernel: Any, n_bytes: int, args: tuple[Any, ...]) -> None:
        """Run a kernel to its end."""
        blocks = []
        for block in range(BLOCKS):
            shared = np.full(n_bytes // 4, np.nan, np.float32)
            about = {"block": block, "shared": shared}
            blocks.append(
                [
                    self.thread(lambda: kernel(*args), thread=i, groups=[], group=[], **about)
                    for i in range(THREADS)
                ]
            )
        threads, idle = sum(blocks, []), 0
        while not all(thread.dead for thread in threads):
            progress = sum(self.resume(thread) for thread in threads)
            progress += sum(shuffle(b[i : i + LANES]) for b in blocks for i in range(0, THREADS, LANES))
            progress += sum(pass_barrier(block) for block in blocks)
            idle = 0 if progress else idle + 1
            assert idle < 4, Counter(thread.reason[:2] for thread in threads if not thread.dead)


grid = Grid()


def cp_async16(shared: Any, i: int, arena: Any, j: int, there: bool) -> None:
    """Hold 16 bytes back until the kernel waits for them; what was in their place is gone at once."""
    shared[i : i + 4] = np.nan
    grid.now.group.append((shared, i, arena, j, there))


def cp_async_commit() -> None:
    """Close this thread's group of copies."""
    grid.now.groups.append(grid.now.group)
    grid.now.group = []


def cp_async_wait(n_pending: int = 0) -> None:
    """Finish this thread's groups of copies except the newest ``n_pending``."""
    thread = grid.now
    n_done = max(len(thread.groups) - n_pending, 0)
    for arguments in sum(thread.groups[:n_done], []):
        simulated.cp_async16(*arguments)
    thread.groups = thread.groups[n_done:]


def ll_wait2(words: Any, i: int, loaded: Any, flag: Any) -> tuple[Any, Any]:
    """Wait for a pair of words while other threads run."""
    a, flag_a, b, flag_b = loaded
    while flag_a != flag or flag_b != flag:
        grid.wait("word", i)
        a, flag_a, b, flag_b = simulated.ll_load2(words, i, True)
    return a, b


install(
    grid,
    cp_async16=cp_async16,
    cp_async_commit=cp_async_commit,
    cp_async_wait_all=cp_async_wait,
    cp_async_wait_all_but_3=lambda: cp_async_wait(3),
)

from minicore.backends.cuda.kernels import ll_protocol  # noqa: E402

ll_protocol.ll_wait2, ll_protocol.simulator_barrier = ll_wait2, lambda: None

from minicore.backends.cuda import grid as cuda_grid  # noqa: E402
from minicore.backends.cuda.decoder import CudaDecoder  # noqa: E402
from minicore.backends.cuda.kernels.decode import attention, shape, step  # noqa: E402
from minicore.backends.numpy import NumpyDecoder  # noqa: E402
from minicore.forward import prefill  # noqa: E402
from minicore.kv_cache import KVCache  # noqa: E402
from minicore.model import load  # noqa: E402

attention.SPLIT_POSITIONS = shape.SPLIT_POSITIONS = 32


class GridDecoder(CudaDecoder):
    """The CUDA decoder on this grid."""

    def persistent_step(self) -> Any:
        kernel, n_bytes = step.make_step(self.shape), self.shared_bytes

        def call(*args: Any) -> None:
            grid.run(kernel, n_bytes, tuple(getattr(a, "_ary", a) for a in args))

        return partial(step.launch_step, call)


def main(checkpoints: list[str]) -> None:
    for checkpoint, cuda_grid.SIMULATED_STAGING in product(checkpoints, STAGING_BYTES):
        model = load(Path(checkpoint))
        n_read = min(N_READ, model.config.n_ctx - N_NEW)
        ids = np.random.default_rng(0).integers(0, model.config.n_vocab, n_read + N_NEW)
        caches = [KVCache(model.config, len(ids)) for _ in range(2)]
        for cache in caches:
            prefill(model, ids[:n_read], cache)
        reference = NumpyDecoder(model, caches[0], None)
        got = GridDecoder(model, caches[1], None, BLOCKS, THREADS)
        for token in ids[n_read:]:
            expected = reference.step(int(token))
            error = np.abs(got.step(int(token)) - expected).max() / np.abs(expected).max()
            assert error < 1e-4, (checkpoint, error)


if __name__ == "__main__":
    main(sys.argv[1:])
