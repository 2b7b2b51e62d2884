"""What Numba has no word for: memory at an address, a barrier between threads, a bit-exact exponential.

A decode step is one compiled call a thread, so the threads meet inside it. They are threads of ours
(one nogil call each), not a parallel region per matrix: a region costs microseconds, the barrier below
less than one, and there are about a hundred of them in a token.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

SPINS = 4000  # looks at the counter, some 10 microseconds, before a waiting thread offers its core to others
PATIENCE = 64_000  # looks for a call, some 150 microseconds, before a thread goes back to sleep
GONE, WAITING, CALLED = range(3)


@intrinsic
def pointer(typingctx: Any, address: Any, like: Any) -> Any:
    """Return the address as a pointer to elements of the array ``like``'s dtype."""
    kind = types.CPointer(like.dtype)  # type: ignore[attr-defined]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(types.int64, like), codegen


@nb.njit(inline="always")
def view1(address, n, like):  # type: ignore[no-untyped-def]  # int64, int -> (n,)
    """Return the n elements at an address as an array."""
    return nb.carray(pointer(address, like), (n,))


@nb.njit(inline="always")
def view2(address, m, n, like):  # type: ignore[no-untyped-def]  # int64, int, int -> (m, n)
    """Return the m x n elements at an address as a matrix."""
    return nb.carray(pointer(address, like), (m, n))


@intrinsic
def copy_bytes(typingctx: Any, target: Any, source: Any, n: Any) -> Any:
    """Copy n bytes from one address to another."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, start = (builder.inttoptr(args[k], ir.IntType(8).as_pointer()) for k in range(2))
        cgutils.raw_memcpy(builder, to, start, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def _arrive(typingctx: Any, counter: Any) -> Any:
    """Add one to the first element of an int64 array, seen by all threads at once; return the old value."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "seq_cst")

    return types.int64(counter), codegen


@intrinsic
def _look(typingctx: Any, counter: Any) -> Any:
    """Read the first element of an int64 array as other threads have left it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load_atomic(data, "seq_cst", 8)

    return types.int64(counter), codegen


@intrinsic
def _swap(typingctx: Any, flag: Any, old: Any, new: Any) -> Any:
    """Put a new value for an old one into the first element of an int64 array; say whether it was there."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        both = builder.cmpxchg(data, args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(both, 1)

    return types.boolean(flag, types.int64, types.int64), codegen


@intrinsic
def _give_way(typingctx: Any) -> Any:
    """Let the operating system run another thread on this core (POSIX sched_yield)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name = "sched_yield"
        function = builder.module.globals.get(name)
        if function is None:
            function = ir.Function(builder.module, ir.FunctionType(ir.IntType(32), []), name)
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), codegen


@nb.njit
def barrier(counter, n_threads, passed):  # type: ignore[no-untyped-def]  # (>= 1,) int64, int, int -> int
    """Wait until every thread has come here as often as this one; return how often that is.

    ``counter`` starts at 0 and only grows, so the barrier needs no reset and no second phase.
    """
    passed += 1
    if n_threads > 1:
        _arrive(counter)
        spins = 0
        while _look(counter) < passed * n_threads:
            spins += 1
            if spins > SPINS:
                _give_way()
    return passed


@nb.njit(cache=True)
def call(flag):  # type: ignore[no-untyped-def]  # (>= 1,) int64 -> bool
    """Call the thread that waits at a flag; if it has gone, return False and expect it to be started."""
    waiting = _swap(flag, WAITING, CALLED)
    if not waiting:
        flag[0] = CALLED
    return waiting


@nb.njit
def called(flag):  # type: ignore[no-untyped-def]  # (>= 1,) int64, WAITING or CALLED -> bool
    """Wait a while for a call, awake, and return whether it came; waking up takes longer than most pauses."""
    spins = 0
    while _look(flag) != CALLED:
        spins += 1
        if spins > PATIENCE and _swap(flag, WAITING, GONE):
            return False
    return True


@nb.njit
def exp(x):  # type: ignore[no-untyped-def]  # float32 -> float32
    """Return e to the x within 2**-22 of itself, in a form that loops can vectorise.

    x is first held within what float32 can say (-87 to 88); NaN stays NaN. It is n ln 2 plus a rest, of
    which Taylor's series takes eight terms. n comes from adding 1.5 * 2**23, which rounds to an integer, and
    ln 2 in two parts, the first so short that n times it is exact: fastmath would undo both, so this
    function is compiled without it.
    """
    if x > np.float32(88):
        x = np.float32(88)
    if x < np.float32(-87):
        x = np.float32(-87)
    shifted = x * np.float32(1.4426950408889634) + np.float32(12582912)
    n = shifted - np.float32(12582912)
    r = (x - n * np.float32(0.693359375)) + n * np.float32(2.1219444e-4)  # in [-0.35, 0.35]
    p = np.float32(1 / 5040)
    p = p * r + np.float32(1 / 720)
    p = p * r + np.float32(1 / 120)
    p = p * r + np.float32(1 / 24)
    p = p * r + np.float32(1 / 6)
    p = p * r + np.float32(0.5)
    p = p * r + np.float32(1)
    p = p * r + np.float32(1)
    power = np.int32(np.float32(shifted).view(np.int32) << np.int32(23))
    return np.int32(np.float32(p).view(np.int32) + power).view(np.float32)
