"""Dot products of packed rows in integers, as LLVM code: Numba has no words for bytes in vectors.

A group of 64 weights is one vector. Where the CPU has AVX-512 VNNI, one instruction multiplies and adds it
up; elsewhere the same sums are written out for LLVM to do with what there is. The integers are the same, so
the two differ in the order of the last few float additions only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
from llvmlite import ir
from numba.core import types
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


def has_vnni() -> bool:
    """Say whether the CPU that Numba compiles for multiplies and adds bytes in 512-bit vectors."""
    from numba.core import config

    if config.CPU_NAME or config.CPU_FEATURES:  # the user asked for another CPU's code
        return "+avx512vnni" in (config.CPU_FEATURES or "")
    return bool(llvm.get_host_cpu_features().get("avx512vnni"))


def _vector(kind: ir.Type, n: int) -> ir.VectorType:
    return ir.VectorType(kind, n)


def _constant(kind: ir.Type, values: list[int]) -> ir.Constant:
    return ir.Constant(_vector(kind, len(values)), values)


def _load(builder: Any, kind: ir.Type, pointer: Any, offset: Any) -> Any:
    """Load a vector or number that lies ``offset`` bytes on, wherever that is aligned."""
    at = builder.bitcast(builder.gep(pointer, [offset]), kind.as_pointer())
    return builder.load(at, align=1)


def _spread(builder: Any, numbers: Any, lanes: list[int]) -> Any:
    """Return a vector made of the given lanes of another."""
    return builder.shuffle_vector(numbers, ir.Constant(numbers.type, ir.Undefined), _constant(I32, lanes))


def _add_up(builder: Any, kind: Any, a: Any, b: Any) -> Any:
    """Return sixteen sums of four products each: unsigned bytes a times signed bytes b."""
    if kind == "vnni":
        v = _vector(I32, LANES)
        name = "llvm.x86.avx512.vpdpbusd.512"
        function = builder.module.declare_intrinsic(name, (), ir.FunctionType(v, [v, v, v]))
        return builder.call(function, [ir.Constant(v, None), builder.bitcast(a, v), builder.bitcast(b, v)])
    wide = _vector(I32, 4 * LANES)
    products = builder.mul(builder.zext(a, wide), builder.sext(b, wide))
    quarters = [_spread(builder, products, list(range(i, 4 * LANES, 4))) for i in range(4)]
    return builder.add(builder.add(quarters[0], quarters[1]), builder.add(quarters[2], quarters[3]))


def _sum(builder: Any, v: Any) -> Any:
    name, kind = f"llvm.vector.reduce.fadd.v{LANES}f32", ir.FunctionType(F32, [F32, v.type])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, [ir.Constant(F32, -0.0), v], fastmath=("reassoc",))


def _loop(builder: Any, n: Any, start: Any, body: Callable[[Any, Any], Any]) -> Any:
    """Fold ``body(i, value)`` over i in [0, n) and return the last value."""
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    i, value = builder.phi(I64), builder.phi(start.type)
    builder.cbranch(builder.icmp_signed("<", i, n), inside, after)
    builder.position_at_end(inside)
    result, back = body(i, value), builder.block
    step = builder.add(i, ir.Constant(I64, 1))
    back = builder.block
    builder.branch(head)
    for phi, first, later in ((i, ir.Constant(I64, 0), step), (value, start, result)):
        phi.add_incoming(first, before)
        phi.add_incoming(later, back)
    builder.position_at_end(after)
    return value


def _dot_of(weights: Callable[..., Any], kind: str) -> Any:
    """Return the intrinsic that adds up groups: ``(codes, scales, inputs, steps, sums, n_groups)``.

    ``inputs`` are addresses: 64 signed bytes a group, their float32 step, and what :func:`weights` wants to
    know of a group's sum in 16 lanes.
    """

    @intrinsic
    def dot(typingctx: Any, codes: Any, scales: Any, bytes_: Any, steps: Any, sums: Any, n: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            p = [builder.inttoptr(a, I8.as_pointer()) for a in args[:5]]
            v = _vector(F32, LANES)

            def body(i: Any, total: Any) -> Any:
                def times(k: int) -> Any:
                    return builder.mul(i, ir.Constant(I64, k))

                x = _load(builder, _vector(I8, 4 * LANES), p[2], times(64))
                step = _load(builder, F32, p[3], times(4))
                return weights(builder, kind, p[0], p[1], x, step, p[4], times, total)

            return _sum(builder, _loop(builder, args[5], ir.Constant(v, [0.0] * LANES), body))

        return types.float32(*[types.int64] * 6), codegen

    return dot


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


def _splat(builder: Any, number: Any) -> Any:
    one = builder.insert_element(
        ir.Constant(_vector(number.type, LANES), ir.Undefined), number, ir.Constant(I32, 0)
    )
    return _spread(builder, one, [0] * LANES)


def _int8_group(
    builder: Any, kind: str, codes: Any, scales: Any, x: Any, step: Any, sums: Any, times: Any, total: Any
) -> Any:
    """Signed weights are taken 128 higher, as unsigned; ``sums`` has 128 times the input's sum to go off."""
    w = _load(builder, _vector(I8, 4 * LANES), codes, times(64))
    w = builder.xor(w, _constant(I8, [-128] * 4 * LANES))
    products = builder.sub(_add_up(builder, kind, w, x), _load(builder, _vector(I32, LANES), sums, times(64)))
    scale = builder.fmul(builder.fpext(_load(builder, F16, scales, times(2)), F32), step)
    return _fma(builder, builder.sitofp(products, _vector(F32, LANES)), _splat(builder, scale), total)


def _int4_group(
    builder: Any, kind: str, codes: Any, scales: Any, x: Any, step: Any, sums: Any, times: Any, total: Any
) -> Any:
    """Two halves of 32 in nibbles; a half's minimum goes with the input's sum, float32 in ``sums``."""
    packed = _load(builder, _vector(I8, 2 * LANES), codes, times(32))
    low = builder.and_(packed, _constant(I8, [15] * 2 * LANES))
    high = builder.lshr(packed, _constant(I8, [4] * 2 * LANES))
    w = builder.shuffle_vector(low, high, _constant(I32, list(range(4 * LANES))))
    products = builder.sitofp(_add_up(builder, kind, w, x), _vector(F32, LANES))
    four = builder.fpext(_load(builder, _vector(F16, 4), scales, times(8)), _vector(F32, 4))
    scale = builder.fmul(_spread(builder, four, [0] * 8 + [1] * 8), _splat(builder, step))
    low_end = _spread(builder, four, [2] * 8 + [3] * 8)
    total = _fma(builder, products, scale, total)
    return _fma(builder, low_end, _load(builder, _vector(F32, LANES), sums, times(64)), total)


DOTS = {
    (format, kind): _dot_of(weights, kind)
    for format, weights in (("int8", _int8_group), ("int4", _int4_group))
    for kind in ("vnni", "portable")
}


@intrinsic
def half(typingctx: Any, address: Any) -> Any:
    """Return the float16 at an address as float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], I8.as_pointer())
        return builder.fpext(_load(builder, F16, pointer, ir.Constant(I64, 0)), F32)

    return types.float32(types.int64), codegen
