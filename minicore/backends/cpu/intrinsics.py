"""What Numba has no words for: memory at an address, atomics and a barrier between threads, a bit-exact
exponential.

A decode step is one compiled call per thread, so the threads meet inside it. They are our own threads (one
call each, without the GIL), not a parallel region per matrix: entering a region takes microseconds, the
barrier below less than one, and a token passes about a hundred of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from minicore.backends.cpu.compiling import exact, inner, kernel
from minicore.backends.cpu.simd import F32, I8, I32, integer

SPINS = 4000  # reads of the counter, about 10 microseconds, before a waiting thread offers its core to others
PATIENCE = 64_000  # reads of its flag, about 150 microseconds, before a thread without work returns
RETURNED, WAITING, CALLED = range(3)
FAILED, ABANDONED = 1, -1  # an element of the barrier's counter; what the barrier returns then


@intrinsic
def array_at(typingctx: Any, address: Any, n: Any, like: Any) -> Any:
    """Return the n elements at an address as an array of ``like``'s dtype; the caller keeps them alive."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        element = context.get_data_type(like.dtype)
        data = builder.inttoptr(args[0], element.as_pointer())
        stride = integer(context.get_abi_sizeof(element))
        return _view(context, builder, signature, data, [args[1]], [stride])

    return types.Array(like.dtype, 1, "C")(types.int64, types.int64, like), codegen


@intrinsic
def row(typingctx: Any, x: Any, i: Any) -> Any:
    """Return x[i] of a C array of two or more dimensions, i not negative: a tenth of an index's code."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = context.make_array(signature.args[0])(context, builder, args[0])
        shape, strides = (cgutils.unpack_tuple(builder, sizes) for sizes in (whole.shape, whole.strides))
        data = _bytes_on(builder, whole.data, builder.mul(args[1], strides[0]))
        return _view(context, builder, signature, data, shape[1:], strides[1:])

    return types.Array(x.dtype, x.ndim - 1, "C")(x, types.int64), codegen


@intrinsic
def part(typingctx: Any, x: Any, first: Any, last: Any) -> Any:
    """Return x[first:last] of a C array, both within it: a tenth of a slice's code."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = context.make_array(signature.args[0])(context, builder, args[0])
        shape, strides = (cgutils.unpack_tuple(builder, sizes) for sizes in (whole.shape, whole.strides))
        data = _bytes_on(builder, whole.data, builder.mul(args[1], strides[0]))
        return _view(context, builder, signature, data, [builder.sub(args[2], args[1]), *shape[1:]], strides)

    return types.Array(x.dtype, x.ndim, "C")(x, types.int64, types.int64), codegen


def _bytes_on(builder: Any, data: Any, offset: Any) -> Any:
    """Return a pointer so many bytes after another one, of its type."""
    return builder.bitcast(builder.gep(builder.bitcast(data, I8.as_pointer()), [offset]), data.type)


def _view(context: Any, builder: Any, signature: Any, data: Any, shape: list[Any], strides: list[Any]) -> Any:
    """Return the array that a signature returns; its memory is another array's."""
    kind = signature.return_type
    itemsize = integer(context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    array = context.make_array(kind)(context, builder)
    populate_array(array, data=data, shape=shape, strides=strides, itemsize=itemsize, meminfo=None)
    return array._getvalue()


def _first_element(context: Any, builder: Any, signature: Any, args: Any, k: int = 0) -> Any:
    """Return a pointer to the first element of the array that is the k-th argument."""
    return context.make_array(signature.args[k])(context, builder, args[k]).data


def array_start(context: Any, builder: Any, signature: Any, args: Any, k: int) -> Any:
    """Return a pointer to the first byte of the array that is the k-th argument."""
    return builder.bitcast(_first_element(context, builder, signature, args, k), I8.as_pointer())


@intrinsic
def bits_of(typingctx: Any, x: Any) -> Any:
    """Return the bits of a float32 as int32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], I32)

    return types.int32(types.float32), codegen


@intrinsic
def float_of(typingctx: Any, bits: Any) -> Any:
    """Return the float32 that an int32 holds the bits of."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], F32)

    return types.float32(types.int32), codegen


@intrinsic
def _atomic_increment(typingctx: Any, counter: Any) -> Any:
    """Add one to the first element of an int64 array, for all threads at once, and return the old value."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw(
            "add", _first_element(context, builder, signature, args), integer(1), "seq_cst"
        )

    return types.int64(counter), codegen


@intrinsic
def _atomic_load(typingctx: Any, counter: Any) -> Any:
    """Read the first element of an int64 array as other threads have left it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_first_element(context, builder, signature, args), "seq_cst", 8)

    return types.int64(counter), codegen


@intrinsic
def _compare_and_swap(typingctx: Any, flag: Any, old: Any, new: Any) -> Any:
    """Replace the first element of an int64 array if it equals ``old``; say whether it did."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = _first_element(context, builder, signature, args)
        both = builder.cmpxchg(data, args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(both, 1)

    return types.boolean(flag, types.int64, types.int64), codegen


@intrinsic
def _yield_core(typingctx: Any) -> Any:
    """Let the operating system run another thread on this core (POSIX sched_yield)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name, kind = "sched_yield", ir.FunctionType(I32, [])
        builder.call(builder.module.globals.get(name) or ir.Function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), codegen


@inner
def barrier(counter, n_threads, passed):  # (>= 2,) int64, int, int -> int
    """Wait until every thread has come here as often as this one; return how often that is.

    ``counter[0]`` starts at 0 and only grows, so the barrier needs no reset and no second phase. Whoever
    leaves its work, or cannot begin it, sets ``counter[FAILED]``: then nobody waits for it, and the barrier
    returns ABANDONED.
    """
    passed += 1
    if n_threads > 1:
        _atomic_increment(counter)
        spins = 0
        while _atomic_load(counter) < passed * n_threads:
            spins += 1
            if spins > SPINS:
                if _atomic_load(part(counter, FAILED, FAILED + 1)):
                    return ABANDONED
                _yield_core()
    return passed


@kernel
def call(flag):  # (>= 1,) int64 -> bool
    """Call the thread that waits at a flag; if it has returned, return False and expect it to be started."""
    waiting = _compare_and_swap(flag, WAITING, CALLED)
    if not waiting:
        flag[0] = CALLED
    return waiting


@inner
def called(flag):  # (>= 1,) int64, WAITING or CALLED -> bool
    """Wait awake for a call, and return whether it came in time; waking up takes longer than most pauses."""
    spins = 0
    while _atomic_load(flag) != CALLED:
        spins += 1
        if spins > PATIENCE and _compare_and_swap(flag, WAITING, RETURNED):
            return False
    return True


@exact
def exp(x):  # float32 -> float32
    """Return e to the x within 2**-22 of itself, in a form that loops can vectorise.

    x is first clipped to what float32 can hold (-87 to 88); NaN stays NaN. It is n ln 2 plus a rest, for
    which eight terms of the Taylor series are enough. n comes from adding 1.5 * 2**23, which rounds to an
    integer, and ln 2 in two parts, the first so short that n times it is exact. Reordering would undo both.
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
    return float_of(bits_of(p) + (bits_of(shifted) << np.int32(23)))
