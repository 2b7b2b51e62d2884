"""Short helpers that write LLVM code for vectors, where Numba's own loops do not vectorise well.

Every function writes code at the builder's position and returns LLVM values. Vectors have the 16 float32
elements of a cache line unless said otherwise; LLVM splits them on a CPU with shorter registers. Code that
must count registers uses vectors of ``REGISTER`` elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import config, types

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
LINE = 16  # float32 elements of a cache line


def has_feature(name: str) -> bool:
    """Say whether the CPU that Numba compiles for has a feature, by LLVM's name of it."""
    if config.CPU_NAME or config.CPU_FEATURES:  # the user asked for another CPU's code
        return f"+{name}" in (config.CPU_FEATURES or "").split(",")
    return bool(llvm.get_host_cpu_features().get(name))


REGISTER = LINE if has_feature("avx512f") else LINE // 2  # float32 elements of a register
FOUR_INTEGERS = types.UniTuple(types.int64, 4)  # type: ignore[attr-defined]
FOUR_FLOATS = types.UniTuple(types.float32, 4)  # type: ignore[attr-defined]


# --- values and memory ---


def vector(kind: ir.Type, n: int = LINE) -> ir.VectorType:
    return ir.VectorType(kind, n)


def constant(kind: ir.Type, values: Sequence[float]) -> ir.Constant:
    return ir.Constant(vector(kind, len(values)), list(values))


def zeros(n: int, elements: int = LINE) -> list[Any]:
    """Return n float32 vectors of zeros."""
    return [constant(F32, [0.0] * elements)] * n


def integer(k: int) -> Any:
    return ir.Constant(I64, k)


def times(builder: Any, i: Any, k: int) -> Any:
    return builder.mul(i, integer(k))


def pointer(builder: Any, address: Any) -> Any:
    """Return an int64 as a pointer to bytes."""
    return builder.inttoptr(address, I8.as_pointer())


def elements(builder: Any, values: Any) -> list[Any]:
    """Return the elements of a tuple of equal types."""
    return [builder.extract_value(values, i) for i in range(values.type.count)]


def load(builder: Any, kind: ir.Type, start: Any, offset: Any) -> Any:
    """Load a vector or element that lies ``offset`` bytes after a pointer, aligned or not."""
    at = builder.bitcast(builder.gep(start, [offset]), kind.as_pointer())
    return builder.load(at, align=1)


def store(builder: Any, value: Any, start: Any, offset: Any) -> None:
    """Store a vector or element ``offset`` bytes after a pointer, aligned or not."""
    at = builder.bitcast(builder.gep(start, [offset]), value.type.as_pointer())
    builder.store(value, at, align=1)


def prefetch(builder: Any, start: Any, offset: Any) -> None:
    """Ask for the cache line ``offset`` bytes after a pointer; an address outside the array does no harm."""
    kind, name = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32]), "llvm.prefetch.p0"
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    read_keep_data = (ir.Constant(I32, k) for k in (0, 3, 1))
    builder.call(function, [builder.gep(start, [offset]), *read_keep_data])


# --- arithmetic ---


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


def horizontal_sums(builder: Any, four: Sequence[Any]) -> Any:
    """Return the sums of four vectors, of floats or integers, as one vector of four elements."""
    plus = builder.add if isinstance(four[0].type.element, ir.IntType) else builder.fadd
    if four[0].type.count == 16:  # shuffling long registers takes twice as long
        four = [plus(shuffle(builder, v, range(8)), shuffle(builder, v, range(8, 16))) for v in four]
    a, b, c, d = four
    n = a.type.count
    half, quarter = n // 2, n // 4

    def folded(first: Any, second: Any, lanes: Sequence[int], apart: int) -> Any:
        rest = shuffle(builder, first, [lane + apart for lane in lanes], second)
        return plus(shuffle(builder, first, lanes, second), rest)

    low = [*range(half), *range(n, n + half)]
    quarters = [start + lane for start in (0, n, half, n + half) for lane in range(quarter)]
    sums = folded(folded(a, c, low, half), folded(b, d, low, half), quarters, quarter)
    for apart in (2, 1)[quarter < 4 :]:  # each quarter of the lanes belongs to one of the vectors
        sums = plus(sums, shuffle(builder, sums, [lane ^ apart for lane in range(n)]))
    return shuffle(builder, sums, range(0, n, quarter))


# --- the order of elements ---


def shuffle(builder: Any, elements: Any, lanes: Sequence[int], others: Any = None) -> Any:
    """Return a vector of the given lanes of one vector, or of two that follow one another."""
    second = ir.Constant(elements.type, ir.Undefined) if others is None else others
    return builder.shuffle_vector(elements, second, constant(I32, lanes))


def broadcast(builder: Any, element: Any, n: int = LINE) -> Any:
    empty = ir.Constant(vector(element.type, n), ir.Undefined)
    return shuffle(builder, builder.insert_element(empty, element, ir.Constant(I32, 0)), [0] * n)


def bfloat16_pairs(builder: Any, pairs: Any) -> list[Any]:
    """Return a register of bfloat16, taken as int32, as float32: the even elements, then the odd ones.

    A bfloat16 is the upper half of a float32. Splitting pairs takes three instructions, keeping their order
    four.
    """
    n = pairs.type.count
    even = builder.shl(pairs, constant(I32, [16] * n))
    odd = builder.and_(pairs, constant(I32, [-65536] * n))
    return [builder.bitcast(half, vector(F32, n)) for half in (even, odd)]


def deinterleaved(builder: Any, first: Any, second: Any) -> list[Any]:
    """Return the even elements of two vectors that follow one another, then the odd ones."""
    n = first.type.count
    return [shuffle(builder, first, range(odd, 2 * n, 2), second) for odd in range(2)]


def interleaved(builder: Any, even: Any, odd: Any) -> list[Any]:
    """Undo :func:`deinterleaved`."""
    n = even.type.count
    in_turn = [lane + n * which for lane in range(n) for which in range(2)]
    return [shuffle(builder, even, in_turn[first : first + n], odd) for first in (0, n)]


Order = Callable[[Any, Any, Any], list[Any]]  # of a pair of vectors: deinterleaved or interleaved


def reorder_pairs(builder: Any, order: Order, n: int, x: Any, n_pairs: Any) -> None:
    """Bring pairs of float32 vectors of n elements, which follow one another at x, into another order."""

    def body(i: Any, nothing: list[Any]) -> list[Any]:
        first = times(builder, i, 8 * n)
        places = [builder.add(first, integer(4 * n * k)) for k in range(2)]
        pair = [load(builder, vector(F32, n), x, place) for place in places]
        for part, place in zip(order(builder, pair[0], pair[1]), places, strict=True):
            store(builder, part, x, place)
        return []

    loop(builder, n_pairs, [], body)


# --- control flow ---


def _as_written(module: Any) -> Any:
    """Return the metadata of a loop that LLVM leaves as it is: unrolled again, it takes longer to compile."""
    options = [[ir.MetaDataString(module, "llvm.loop.unroll.disable")]]
    options += [[ir.MetaDataString(module, "llvm.loop.vectorize.enable"), ir.IntType(1)(0)]]
    loop_id = ir.values.MDValue(module, [], name=str(len(module.metadata)))
    loop_id.operands = (loop_id, *(module.add_metadata(option) for option in options))  # itself comes first
    return loop_id


def loop(
    builder: Any, n: Any, start: Sequence[Any], body: Callable[[Any, list[Any]], Sequence[Any]]
) -> list[Any]:
    """Write a loop over i in [0, n) with ``values = body(i, values)``, and return the last values."""
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    i, values = builder.phi(I64), [builder.phi(first.type) for first in start]
    builder.cbranch(builder.icmp_signed("<", i, n), inside, after)
    builder.position_at_end(inside)
    results = body(i, list(values))
    following = builder.add(i, integer(1))
    back = builder.block
    builder.branch(head).set_metadata("llvm.loop", _as_written(builder.module))
    firsts = (integer(0), *start)
    for phi, first, later in zip((i, *values), firsts, (following, *results), strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, back)
    builder.position_at_end(after)
    return list(values)
