"""The intrinsics of ptx.py as Python functions, for Numba's CUDA simulator."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numba import cuda as numba_cuda
from numba.cuda.simulator.kernel import _get_kernel_context as running_kernel
from numba.np.numpy_support import as_dtype

__all__ = [
    "cp_async16",
    "cp_async_commit",
    "cp_async_wait_all",
    "cp_async_wait_all_but_3",
    "cuda",
    "device",
    "dp4a",
    "float_as_uint",
    "half_to_float",
    "ll_load2",
    "ll_store",
    "load",
    "load16",
    "load16_cached",
    "load_float4",
    "mma",
    "prefetch_l2",
    "rsqrt",
    "shared_float4",
    "store",
    "trap",
    "uint_as_float",
]


class _Shared:
    """``cuda.shared`` without a race: Numba's own may give two threads of a block two arrays."""

    def array(self, shape: int, dtype: Any) -> Any:
        """Return the block's array that this line of the kernel creates."""
        shared = running_kernel().shared
        if shape == 0:
            return shared.array(shape, dtype)
        frame = sys._getframe(1)
        line = frame.f_code.co_filename, frame.f_lineno
        return shared._allocations.setdefault(line, np.empty(shape, as_dtype(dtype)))


class _Cuda:
    """``numba.cuda`` for kernels that span files. The simulator replaces it only in a kernel's own file."""

    shared = _Shared()

    def __getattr__(self, name: str) -> Any:
        return getattr(running_kernel() or numba_cuda, name)


cuda: Any = _Cuda()


def device(function: Any) -> Any:
    """Make a function callable from kernels, where it is always inlined."""
    return function


# --- bits ---


def uint_as_float(bits: Any) -> Any:
    """Return the float32 with the bits of a uint32."""
    return np.uint32(bits).view(np.float32)


def float_as_uint(x: Any) -> Any:
    """Return the bits of a float32 as a uint32."""
    return np.float32(x).view(np.uint32)


def half_to_float(bits: Any) -> Any:
    """Return the float16 in the lower half of a uint32 as float32."""
    return np.float32(np.uint16(bits & 0xFFFF).view(np.float16))


# --- arithmetic ---


def rsqrt(x: Any) -> Any:
    """Return 1 / sqrt(x)."""
    return np.float32(1) / np.sqrt(x)


def dp4a(a: Any, b: Any, c: Any) -> Any:
    """Return c plus the dot product of four int8 in a with four int8 in b."""
    x, y = np.array([a, b], np.uint32).view(np.int8).reshape(2, 4).astype(np.int32)
    return c + np.int32(x @ y)


def mma(a: Any, b: Any, c: Any) -> Any:
    """Return c + a b on the tensor cores: bfloat16 (16, 16) times (16, 8) plus float32 (16, 8).

    Each lane of a warp passes its fragment of a (4 words of two bfloat16), b (2 words) and c (4 float32), as
    the PTX ISA defines them for mma.sync.m16n8k16.
    """
    raise NotImplementedError("a simulated warp is one thread")


# --- memory ---


def load(x: Any, i: int) -> Any:
    """Return x[i] for i >= 0, without the check for a negative index."""
    return x[i]


def store(x: Any, i: int, value: Any) -> None:
    """Set x[i] for i >= 0."""
    x[i] = value


def load16(arena: Any, i: int, valid: bool) -> tuple[Any, ...]:
    """Return the four uint32 of chunk i of read-only memory, bypassing L1; zeros unless valid."""
    return tuple(np.uint32(arena[4 * i + k]) if valid else np.uint32(0) for k in range(4))


def load16_cached(arena: Any, i: int) -> tuple[Any, ...]:
    """Return the four uint32 of chunk i of read-only memory, through L1: the block reads it again."""
    return load16(arena, i, True)


def load_float4(x: Any, i: int, valid: bool) -> tuple[Any, ...]:
    """Return elements 4 i to 4 i + 3 of memory that other blocks write, from L2; zeros unless valid."""
    return tuple(np.float32(x[4 * i + k]) if valid else np.float32(0) for k in range(4))


def shared_float4(x: Any, i: int) -> tuple[Any, ...]:
    """Return elements i to i + 3 of shared memory, i a multiple of 4."""
    return x[i], x[i + 1], x[i + 2], x[i + 3]


def prefetch_l2(arena: Any, i: int) -> None:
    """Fetch the cache line of chunk i into L2 without waiting."""


def cp_async16(shared: Any, i: int, arena: Any, j: int, valid: bool) -> None:
    """Copy chunk j, or zeros unless valid, to float i of shared memory without waiting."""
    shared[i : i + 4] = np.asarray(load16(arena, j, valid), np.uint32).view(np.float32)


def cp_async_commit() -> None:
    """Make this thread's copies since the last commit a group."""


def cp_async_wait_all() -> None:
    """Wait for all groups of copies of this thread."""


def cp_async_wait_all_but_3() -> None:
    """Wait for this thread's groups of copies except the last three."""


# --- the LL protocol (ll_protocol.py) ---


def ll_store(words: Any, i: int, value: Any, flag: Any) -> None:
    """Store word i, a float32 value and its flag, in one instruction."""
    words[2 * i], words[2 * i + 1] = np.float32(value).view(np.uint32), flag


def ll_load2(words: Any, i: int, valid: bool) -> tuple[Any, ...]:
    """Return value, flag, value, flag of words 2 i and 2 i + 1; zeros unless valid."""
    if not valid:
        return np.float32(0), np.uint32(0), np.float32(0), np.uint32(0)
    a, b = words[4 * i], words[4 * i + 2]
    return uint_as_float(a), words[4 * i + 1], uint_as_float(b), words[4 * i + 3]


def trap() -> None:
    """Abort the kernel with an error."""
    raise RuntimeError("a word from another block never arrived")
