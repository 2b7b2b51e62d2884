"""Run the decode kernel as a grid of several blocks with warps of 32 lanes (tests/cuda/warps.py).

Usage: NUMBA_ENABLE_CUDASIM=1 python tests/cuda/grid.py CHECKPOINT [CHECKPOINT...]
"""

from __future__ import annotations

import sys
from collections import Counter
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from warps import LANES, Warps, install, pass_barrier, shuffle

from minicore.backends.cuda.kernels import simulated

BLOCKS, THREADS = 3, 64
STAGING_BYTES = 1 << 16, 0  # shared memory for rows that are copied ahead: enough for a layer, and none
N_READ, N_NEW = 70, 3  # more positions than a warp has lanes; SPLIT below makes blocks share them


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


def send16(shared: Any, i: int, arena: Any, j: int, there: bool) -> None:
    """Hold 16 bytes back until the kernel waits for them; what was in their place is gone at once."""
    shared[i : i + 4] = np.nan
    grid.now.group.append((shared, i, arena, j, there))


def sent() -> None:
    """Close this thread's group of copies."""
    grid.now.groups.append(grid.now.group)
    grid.now.group = []


def arrived(n_pending: int = 0) -> None:
    """Finish this thread's groups of copies except the newest ``n_pending``."""
    thread = grid.now
    n_done = max(len(thread.groups) - n_pending, 0)
    for arguments in sum(thread.groups[:n_done], []):
        simulated.send16(*arguments)
    thread.groups = thread.groups[n_done:]


def complete(words: Any, i: int, pair: Any, tag: Any) -> tuple[Any, Any]:
    """Wait for a pair of words while other threads run."""
    a, tag_a, b, tag_b = pair
    while tag_a != tag or tag_b != tag:
        grid.wait("word", i)
        a, tag_a, b, tag_b = simulated.take2(words, i, True)
    return a, b


install(grid, send16=send16, sent=sent, arrived=arrived, arrived_but_three=lambda: arrived(3))

from minicore.backends.cuda.kernels import exchange  # noqa: E402

exchange.complete, exchange.settle = complete, lambda: None

from minicore.backends.cuda import decoder  # noqa: E402
from minicore.backends.cuda.kernels import decode as kernels  # noqa: E402
from minicore.backends.cuda.kernels.decode import attention, shape  # noqa: E402
from minicore.backends.numpy import NumpyDecoder  # noqa: E402
from minicore.forward import prefill  # noqa: E402
from minicore.kv_cache import KVCache  # noqa: E402
from minicore.model import load  # noqa: E402

attention.SPLIT = shape.SPLIT = 32


class GridDecoder(decoder.CudaDecoder):
    """The CUDA decoder on this grid."""

    def _compiled(self) -> tuple[Any, float]:
        step, n_bytes = kernels.make_step(self.shape), 4 * self.shape.shared_floats(self.cache.capacity)[-1]

        def call(*args: Any) -> None:
            grid.run(step, n_bytes, tuple(getattr(a, "_ary", a) for a in args))

        return call, 0.0


def main(checkpoints: list[str]) -> None:
    for checkpoint, decoder.SIMULATED_AHEAD in product(checkpoints, STAGING_BYTES):
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
