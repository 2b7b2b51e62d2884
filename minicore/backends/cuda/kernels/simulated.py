"""The primitives of kernels in plain Python, for Numba's CUDA simulator: a warp is one thread."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numba import cuda as numba_cuda
from numba.cuda.simulator.kernel import _get_kernel_context as running
from numba.np.numpy_support import as_dtype

__all__ = [
    "cuda",
    "device",
    "arrived",
    "arrived_but_three",
    "as_bits",
    "as_float",
    "as_half",
    "cached16",
    "dp4a",
    "four",
    "get",
    "let",
    "load16",
    "load4",
    "mma",
    "prefetch",
    "put",
    "rsqrt",
    "send16",
    "sent",
    "stop",
    "take2",
]


class _SharedArrays:
    """Shared memory of the block that runs."""

    def array(self, shape: int, dtype: Any) -> Any:
        """Return a block's array, one a line: Numba's own may give two threads two of them."""
        shared = running().shared
        if shape == 0:
            return shared.array(shape, dtype)
        frame = sys._getframe(1)
        line = frame.f_code.co_filename, frame.f_lineno
        return shared._allocations.setdefault(line, np.empty(shape, as_dtype(dtype)))


class _Cuda:
    """``numba.cuda`` in kernels of several files: Numba swaps it in the file of the kernel itself alone."""

    shared = _SharedArrays()

    def __getattr__(self, name: str) -> Any:
        return getattr(running() or numba_cuda, name)


cuda: Any = _Cuda()


def device(function: Any) -> Any:
    """Return a function as it is."""
    return function


def as_float(bits: Any) -> Any:
    """Return the float32 of these bits."""
    return np.uint32(bits).view(np.float32)


def as_bits(x: Any) -> Any:
    """Return the bits of a float32."""
    return np.float32(x).view(np.uint32)


def load16(arena: Any, i: int, there: bool) -> tuple[Any, ...]:
    """Return the four uint32 of 16-byte unit i of read-only memory; zeros unless it is there."""
    return tuple(np.uint32(arena[4 * i + k]) if there else np.uint32(0) for k in range(4))


def load4(x: Any, i: int, there: bool) -> tuple[Any, ...]:
    """Return the four float32 of 16-byte unit i of memory that other blocks write; zeros unless there."""
    return tuple(np.float32(x[4 * i + k]) if there else np.float32(0) for k in range(4))


def get(x: Any, i: int) -> Any:
    """Return x[i], i not negative: without the check for that."""
    return x[i]


def let(x: Any, i: int, value: Any) -> None:
    """Write x[i], i not negative."""
    x[i] = value


def four(x: Any, i: int) -> tuple[Any, ...]:
    """Return x[i] to x[i + 3] of shared memory, i a multiple of 4."""
    return x[i], x[i + 1], x[i + 2], x[i + 3]


def rsqrt(x: Any) -> Any:
    """Return 1 over the root of x."""
    return np.float32(1) / np.sqrt(x)


def put(words: Any, i: int, value: Any, tag: Any) -> None:
    """Write word i: a float32 and its tag."""
    words[2 * i], words[2 * i + 1] = np.float32(value).view(np.uint32), tag


def take2(words: Any, i: int, there: bool) -> tuple[Any, ...]:
    """Return words 2 i and 2 i + 1: value, tag, value, tag; nothing is read unless they are there."""
    if not there:
        return np.float32(0), np.uint32(0), np.float32(0), np.uint32(0)
    a, b = words[4 * i], words[4 * i + 2]
    return as_float(a), words[4 * i + 1], as_float(b), words[4 * i + 3]


def as_half(bits: Any) -> Any:
    """Return the float16 of the lower half of these bits, as float32."""
    return np.float32(np.uint16(bits & 0xFFFF).view(np.float16))


def dp4a(a: Any, b: Any, c: Any) -> Any:
    """Return c plus four signed bytes of a times those of b."""
    x, y = np.array([a, b], np.uint32).view(np.int8).reshape(2, 4).astype(np.int32)
    return c + np.int32(x @ y)


def cached16(arena: Any, i: int) -> tuple[Any, ...]:
    """Return the four uint32 of 16-byte unit i, which the block reads again: L1 keeps them."""
    return load16(arena, i, True)


def mma(a: Any, b: Any, c: Any) -> Any:
    """Return c plus 16 x 16 bfloat16 times 16 x 8, shared out to a warp's lanes as the PTX ISA says.

    A lane has 4, 2 and 4 registers of them: words of two bfloat16, and float32.
    """
    raise NotImplementedError("a simulated warp is one thread")


def prefetch(arena: Any, i: int) -> None:
    """Bring the line with 16-byte unit i on its way to the L2 cache."""


def send16(shared: Any, i: int, arena: Any, j: int, there: bool) -> None:
    """Bring 16-byte unit j on its way to float i of shared memory; zeros unless it is there."""
    shared[i : i + 4] = np.asarray(load16(arena, j, there), np.uint32).view(np.float32)


def sent() -> None:
    """Make what this thread sent since the last call one lot."""


def arrived() -> None:
    """Wait for all lots of this thread."""


def arrived_but_three() -> None:
    """Wait for all lots of this thread but the last three."""


def stop() -> None:
    """End the kernel with an error."""
    raise RuntimeError("a word never came")
