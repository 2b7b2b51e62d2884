"""Vectors of floats in LLVM's own terms, for what Numba's loops do not become by themselves.

Every function here writes code where ``builder`` stands. Vectors have sixteen lanes, which LLVM splits on a
CPU with shorter ones; code that must keep in mind how many registers there are takes :data:`REGISTER` lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
from llvmlite import ir
from numba.core import config, types
from numba.extending import intrinsic

I8, I16, I32, I64, F16, F32 = (
    ir.IntType(8),
    ir.IntType(16),
    ir.IntType(32),
    ir.IntType(64),
    ir.HalfType(),
    ir.FloatType(),
)
LANES = 16


def has_feature(name: str) -> bool:
    """Say whether the CPU that Numba compiles for has a feature, by LLVM's name of it."""
    if config.CPU_NAME or config.CPU_FEATURES:  # the user asked for another CPU's code
        return f"+{name}" in (config.CPU_FEATURES or "").split(",")
    return bool(llvm.get_host_cpu_features().get(name))


REGISTER = LANES if has_feature("avx512f") else LANES // 2  # floats of one register
FOUR_ADDRESSES = types.UniTuple(types.int64, 4)  # type: ignore[attr-defined]
FOUR_FLOATS = types.UniTuple(types.float32, 4)  # type: ignore[attr-defined]


def vector(kind: ir.Type, n: int = LANES) -> ir.VectorType:
    return ir.VectorType(kind, n)


def constant(kind: ir.Type, values: Sequence[float]) -> ir.Constant:
    return ir.Constant(vector(kind, len(values)), list(values))


def address(builder: Any, integer: Any) -> Any:
    """Return an int64 as a pointer to bytes."""
    return builder.inttoptr(integer, I8.as_pointer())


def addresses(builder: Any, integers: Any) -> list[Any]:
    """Return a tuple of int64 as pointers to bytes."""
    return [address(builder, builder.extract_value(integers, i)) for i in range(integers.type.count)]


def times(builder: Any, i: Any, k: int) -> Any:
    return builder.mul(i, ir.Constant(I64, k))


def load(builder: Any, kind: ir.Type, pointer: Any, offset: Any) -> Any:
    """Load a vector or number that lies ``offset`` bytes on, wherever that is aligned."""
    at = builder.bitcast(builder.gep(pointer, [offset]), kind.as_pointer())
    return builder.load(at, align=1)


def store(builder: Any, value: Any, pointer: Any, offset: Any) -> None:
    """Store a vector or number ``offset`` bytes on, wherever that is aligned."""
    at = builder.bitcast(builder.gep(pointer, [offset]), value.type.as_pointer())
    builder.store(value, at, align=1)


def fetch(builder: Any, pointer: Any, offset: Any) -> None:
    """Have the cache line ``offset`` bytes on fetched, to be read soon; memory of nobody does no harm."""
    kind, name = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32]), "llvm.prefetch.p0"
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    hints = (ir.Constant(I32, k) for k in (0, 3, 1))  # read, keep, data
    builder.call(function, [builder.gep(pointer, [offset]), *hints])


def pick(builder: Any, numbers: Any, lanes: Sequence[int], others: Any = None) -> Any:
    """Return a vector made of the given lanes of one vector, or of two that follow one another."""
    second = ir.Constant(numbers.type, ir.Undefined) if others is None else others
    return builder.shuffle_vector(numbers, second, constant(I32, lanes))


def splat(builder: Any, number: Any, n: int = LANES) -> Any:
    empty = ir.Constant(vector(number.type, n), ir.Undefined)
    return pick(builder, builder.insert_element(empty, number, ir.Constant(I32, 0)), [0] * n)


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


def even_and_odd(builder: Any, pairs: Any) -> list[Any]:
    """Return the even numbers of a register of bfloat16, taken as int32, then the odd ones, as float32.

    A bfloat16 is the upper half of a float32: two are apart in three steps, and in order in four.
    """
    n = pairs.type.count
    even = builder.shl(pairs, constant(I32, [16] * n))
    odd = builder.and_(pairs, constant(I32, [-65536] * n))
    return [builder.bitcast(half, vector(F32, n)) for half in (even, odd)]


def by_parity(builder: Any, first: Any, second: Any) -> list[Any]:
    """Return the even numbers of two vectors that follow one another, then the odd ones."""
    n = first.type.count
    return [pick(builder, first, range(odd, 2 * n, 2), second) for odd in range(2)]


def by_turns(builder: Any, even: Any, odd: Any) -> list[Any]:
    """Undo :func:`by_parity`."""
    n = even.type.count
    in_turn = [lane + n * which for lane in range(n) for which in range(2)]
    return [pick(builder, even, in_turn[first : first + n], odd) for first in (0, n)]


def reordered(way: Callable[[Any, Any, Any], list[Any]], lanes: int) -> Any:
    """Return the intrinsic that puts n pairs of registers of floats at an address in another order."""

    @intrinsic
    def reorder(typingctx: Any, x: Any, n: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x = address(builder, args[0])

            def body(i: Any, nothing: list[Any]) -> list[Any]:
                first = times(builder, i, 8 * lanes)
                places = [builder.add(first, ir.Constant(I64, 4 * lanes * k)) for k in range(2)]
                pair = [load(builder, vector(F32, lanes), x, place) for place in places]
                for part, place in zip(way(builder, *pair), places, strict=True):
                    store(builder, part, x, place)
                return []

            fold(builder, args[1], [], body)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return reorder


def add_up(builder: Any, v: Any) -> Any:
    """Return the sum of a vector's floats."""
    name, kind = f"llvm.vector.reduce.fadd.v{LANES}f32", ir.FunctionType(F32, [F32, v.type])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, [ir.Constant(F32, -0.0), v], fastmath=("reassoc",))


def add_up_four(builder: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Return the sums of four vectors' numbers, floats or integers, as one short vector, in few steps."""
    plus = builder.add if isinstance(a.type.element, ir.IntType) else builder.fadd
    if a.type.count == 16:  # shuffling long registers takes twice as long
        a, b, c, d = (plus(pick(builder, v, range(8)), pick(builder, v, range(8, 16))) for v in (a, b, c, d))
    n = a.type.count
    half, quarter = n // 2, n // 4

    def folded(first: Any, second: Any, lanes: Sequence[int], apart: int) -> Any:
        rest = pick(builder, first, [lane + apart for lane in lanes], second)
        return plus(pick(builder, first, lanes, second), rest)

    low = [*range(half), *range(n, n + half)]
    quarters = [start + lane for start in (0, n, half, n + half) for lane in range(quarter)]
    sums = folded(folded(a, c, low, half), folded(b, d, low, half), quarters, quarter)
    for apart in (2, 1)[quarter < 4 :]:  # each quarter of the lanes belongs to one of the vectors
        sums = plus(sums, pick(builder, sums, [lane ^ apart for lane in range(n)]))
    return pick(builder, sums, range(0, n, quarter))


def as_tuple(context: Any, builder: Any, kind: Any, v: Any) -> Any:
    """Return a short vector as the tuple, of Numba's type ``kind``, of its numbers."""
    lanes = [builder.extract_element(v, ir.Constant(I32, i)) for i in range(v.type.count)]
    return context.make_tuple(builder, kind, lanes)


def zeros(n: int, lanes: int = LANES) -> list[Any]:
    return [constant(F32, [0.0] * lanes)] * n


def fold(
    builder: Any, n: Any, start: Sequence[Any], body: Callable[[Any, list[Any]], Sequence[Any]]
) -> list[Any]:
    """Fold ``body(i, values)`` over i in [0, n) and return the last values."""
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    i, values = builder.phi(I64), [builder.phi(first.type) for first in start]
    builder.cbranch(builder.icmp_signed("<", i, n), inside, after)
    builder.position_at_end(inside)
    results = body(i, list(values))
    step = builder.add(i, ir.Constant(I64, 1))
    back = builder.block
    builder.branch(head)
    firsts = (ir.Constant(I64, 0), *start)
    for phi, first, later in zip((i, *values), firsts, (step, *results), strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, back)
    builder.position_at_end(after)
    return list(values)
