"""Blocks of warps with 32 lanes, in Python: one greenlet for each GPU thread.

Numba's CUDA simulator runs one block at a time and knows no warps. Here the threads take turns. A thread
runs until it waits for others: at a barrier, at a shuffle, or for a word from another block. Two mistakes
that hang a GPU are errors here: lanes of one warp that reach different shuffles, and threads that wait for
something that never happens.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import greenlet
import numpy as np

from minicore.backends.cuda.kernels import intrinsics

LANES = 32


def install(cuda: Any, **replacements: Any) -> None:
    """Replace ``cuda`` and some primitives for all kernels. Kernel modules must not be imported yet."""
    assert "minicore.backends.cuda.kernels.launch" not in sys.modules, "kernels have their primitives already"
    for name, value in {"WARP_SIZE": LANES, "cuda": cuda, **replacements}.items():
        setattr(intrinsics, name, value)


class Warps:
    """What kernels see as ``cuda``."""

    def __init__(self) -> None:
        self.now: Any = None
        self.cg = SimpleNamespace(this_grid=lambda: None)
        self.atomic = SimpleNamespace(add=fetch_add)
        self.local = SimpleNamespace(array=lambda n, dtype: np.full(n, np.nan, np.float32))

    @property
    def threadIdx(self) -> SimpleNamespace:
        return SimpleNamespace(x=self.now.thread)

    def jit(self, *args: Any, **options: Any) -> Any:
        """Return kernels as they are, decorated with or without options."""
        return args[0] if callable(args[0] if args else None) else lambda function: function

    def threadfence(self) -> None:
        """Do nothing: there is one memory."""

    def syncthreads(self) -> None:
        self.wait("barrier")

    def shfl_xor_sync(self, mask: int, x: Any, offset: int) -> Any:
        return self.wait("shuffle", stack(), x, offset)

    def shfl_sync(self, mask: int, x: Any, lane: int) -> Any:
        return self.wait("shuffle", stack(), x, self.now.thread % LANES ^ lane)

    def wait(self, *reason: Any) -> Any:
        """Let other threads run; return what this thread waited for."""
        self.now.reason = reason
        self.main.switch()
        return self.now.result

    def thread(self, function: Any, **attributes: Any) -> Any:
        """Return a new thread that is ready to run."""
        self.main = greenlet.getcurrent()
        thread = greenlet.greenlet(function)
        for name, value in {"reason": ("ready",), "result": None, **attributes}.items():
            setattr(thread, name, value)
        return thread

    def resume(self, thread: Any) -> bool:
        """Let a thread run until it waits; return whether it waits for something new."""
        if thread.dead or thread.reason[0] not in ("ready", "word"):
            return False
        before, self.now = thread.reason, thread
        thread.switch()
        return thread.dead or thread.reason != before


def fetch_add(x: Any, i: int, value: Any) -> Any:
    """Add to x[i] and return what it was before."""
    before = x[i]
    x[i] = before + value
    return before


def stack() -> tuple[Any, ...]:
    """Return the lines that lead here from the kernel."""
    lines, frame = [], sys._getframe(2)
    while frame is not None and frame.f_code.co_name != "step":
        lines.append((frame.f_code.co_name, frame.f_lineno))
        frame = frame.f_back
    return tuple(lines)


def all_wait(threads: list[Any], reason: str) -> bool:
    """Return whether all of these threads wait for the same kind of event."""
    return all(not thread.dead and thread.reason[0] == reason for thread in threads)


def shuffle(warp: list[Any]) -> bool:
    """Exchange values if all lanes of a warp wait for that, and at the same place."""
    if not all_wait(warp, "shuffle"):
        return False
    assert len({lane.reason[1] for lane in warp}) == 1, {lane.reason[1] for lane in warp}
    for i, lane in enumerate(warp):
        lane.result = warp[i ^ lane.reason[3]].reason[2]
    for lane in warp:
        lane.reason = ("ready",)
    return True


def pass_barrier(block: list[Any]) -> bool:
    """Let a block go on if all of its threads wait at the barrier."""
    if not all_wait(block, "barrier"):
        return False
    for thread in block:
        thread.reason = ("ready",)
    return True
