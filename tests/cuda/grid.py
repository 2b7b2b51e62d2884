"""Run the GPU's decode kernel as a grid: several blocks, warps of 32 lanes, one greenlet a thread.

Numba's simulator knows one block and no warps. Here threads take turns until each waits for others: at a
barrier, at a shuffle, for a word. Lanes that reach different shuffles, and waiting that nobody ends, are
errors, which on a GPU would hang.

Usage: NUMBA_ENABLE_CUDASIM=1 python tests/cuda/grid.py CHECKPOINT [CHECKPOINT...]
"""

from __future__ import annotations

import sys
from collections import Counter
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import greenlet
import numpy as np

from minicore.backends.cuda.kernels import intrinsics as device

device.LANES = 32  # before the kernels take it from there

from minicore.backends.cuda import decoder  # noqa: E402
from minicore.backends.cuda.kernels.decode import step as kernels  # noqa: E402
from minicore.backends.numpy import ReferenceDecoder  # noqa: E402
from minicore.model import KVCache, load, prefill  # noqa: E402

BLOCKS, THREADS = 3, 64
AHEAD = 1 << 16, 0  # bytes for rows on their way: a layer's, and none
N_READ, N_NEW = 70, 3  # more positions than a warp has lanes; SPLIT below makes blocks share them


def added(x: Any, i: int, value: Any) -> Any:
    """Add to x[i] and return what was there."""
    before = x[i]
    x[i] = before + value
    return before


class Grid:
    """What kernels see as ``cuda``, and who runs them."""

    def __init__(self) -> None:
        self.now: Any = None
        self.shared = SimpleNamespace(array=lambda n, dtype: self.now.shared)
        self.local = SimpleNamespace(array=lambda n, dtype: np.full(n, np.nan, np.float32))
        self.cg = SimpleNamespace(this_grid=lambda: None)
        self.atomic = SimpleNamespace(add=added)

    @property
    def threadIdx(self) -> SimpleNamespace:
        return SimpleNamespace(x=self.now.thread)

    @property
    def blockIdx(self) -> SimpleNamespace:
        return SimpleNamespace(x=self.now.block)

    def jit(self, signature: str, **options: Any) -> Any:
        return lambda function: function

    def threadfence(self) -> None:
        """Do nothing: memory is one."""

    def wait(self, *why: Any) -> Any:
        """Let others run; return what this thread waited for."""
        self.now.why = why
        self.main.switch()
        return self.now.got

    def syncthreads(self) -> None:
        self.wait("barrier")

    def shfl_xor_sync(self, mask: int, x: Any, offset: int) -> Any:
        return self.wait("shuffle", where(), x, offset)

    def shfl_sync(self, mask: int, x: Any, lane: int) -> Any:
        return self.wait("shuffle", where(), x, self.now.thread % 32 ^ lane)

    def run(self, kernel: Any, n_bytes: int, args: tuple[Any, ...]) -> None:
        """Run a kernel to its end."""
        self.main, threads = greenlet.getcurrent(), []
        for block in range(BLOCKS):
            shared = np.full(n_bytes // 4, np.nan, np.float32)
            for thread in range(THREADS):
                g = greenlet.greenlet(lambda: kernel(*args))
                g.block, g.thread, g.shared, g.why, g.got = block, thread, shared, ("turn",), None
                g.lots, g.lot = [], []
                threads.append(g)
        blocks = [threads[i : i + THREADS] for i in range(0, len(threads), THREADS)]
        idle = 0
        while not all(g.dead for g in threads):
            moved = sum(self.turn(g) for g in threads)
            moved += sum(shuffled(g[i : i + 32]) for g in blocks for i in range(0, THREADS, 32))
            moved += sum(passed(g) for g in blocks)
            idle = 0 if moved else idle + 1
            assert idle < 4, Counter(g.why[:2] for g in threads if not g.dead)

    def turn(self, g: Any) -> bool:
        """Let a thread run until it waits; say whether it waits for something new."""
        if g.dead or g.why[0] not in ("turn", "word"):
            return False
        before, self.now = g.why, g
        g.switch()
        return g.dead or g.why != before


def where() -> tuple[Any, ...]:
    """Return the lines that lead here from the kernel."""
    lines, frame = [], sys._getframe(2)
    while frame is not None and frame.f_code.co_name != "step":
        lines.append((frame.f_code.co_name, frame.f_lineno))
        frame = frame.f_back
    return tuple(lines)


def shuffled(warp: list[Any]) -> bool:
    """Hand values over if all lanes of a warp wait for that."""
    if not all(not g.dead and g.why[0] == "shuffle" for g in warp):
        return False
    assert len({g.why[1] for g in warp}) == 1, {g.why[1] for g in warp}
    for i, g in enumerate(warp):
        g.got = warp[i ^ g.why[3]].why[2]
    for g in warp:
        g.why = ("turn",)
    return True


def passed(block: list[Any]) -> bool:
    """Let a block go on if all of it waits at the barrier."""
    if not all(not g.dead and g.why[0] == "barrier" for g in block):
        return False
    for g in block:
        g.why = ("turn",)
    return True


class GridDecoder(decoder.CudaDecoder):
    """The GPU decoder on this grid."""

    def _compiled(self) -> tuple[Any, float]:
        step, n_bytes = (
            kernels.make_step(self.shape),
            4 * self.shape.shared_floats(self.cache.capacity)[-1],
        )

        def call(*args: Any) -> None:
            grid.run(step, n_bytes, tuple(getattr(a, "_ary", a) for a in args))

        return call, 0.0


def complete(words: Any, i: int, pair: Any, tag: Any) -> tuple[Any, Any]:
    """Wait for a pair of words, others running meanwhile."""
    a, tag_a, b, tag_b = pair
    while tag_a != tag or tag_b != tag:
        grid.wait("word", i)
        a, tag_a, b, tag_b = device.take2(words, i, True)
    return a, b


def send16(shared: Any, i: int, arena: Any, j: int, there: bool) -> None:
    """Keep 16 bytes on their way until they are awaited; what was in their place is gone at once."""
    shared[i : i + 4] = np.nan
    grid.now.lot.append((shared, i, arena, j, there))


def sent() -> None:
    """Make what a thread sent one lot."""
    grid.now.lots.append(grid.now.lot)
    grid.now.lot = []


def arrived(newer: int = 0) -> None:
    """Let a thread's lots arrive, but for the newest."""
    g = grid.now
    for lot in g.lots[: max(len(g.lots) - newer, 0)]:
        for arguments in lot:
            device.send16(*arguments)
    g.lots = g.lots[max(len(g.lots) - newer, 0) :]


grid = Grid()
device.cuda = kernels.cuda = grid
kernels.send16, kernels.sent, kernels.arrived = send16, sent, arrived
kernels.arrived_but_three = lambda: arrived(3)
device.complete = kernels.complete = complete
kernels.settle = lambda: None
kernels.SPLIT = 32


def main(checkpoints: list[str]) -> None:
    for checkpoint, decoder.SIMULATED_AHEAD in product(checkpoints, AHEAD):
        model = load(Path(checkpoint))
        n_read = min(N_READ, model.config.n_ctx - N_NEW)
        ids = np.random.default_rng(0).integers(0, model.config.n_vocab, n_read + N_NEW)
        caches = [KVCache(model.config, len(ids)) for _ in range(2)]
        for cache in caches:
            prefill(model, ids[:n_read], cache)
        reference = ReferenceDecoder(model, caches[0], None)
        got = GridDecoder(model, caches[1], None, BLOCKS, THREADS)
        for token in ids[n_read:]:
            expected = reference.step(int(token))
            error = np.abs(got.step(int(token)) - expected).max() / np.abs(expected).max()
            assert error < 1e-4, (checkpoint, error)


if __name__ == "__main__":
    main(sys.argv[1:])
