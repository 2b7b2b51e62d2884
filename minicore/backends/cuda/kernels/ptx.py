"""What a GPU kernel is made of, as PTX instructions."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import cuda
from numba.core import types
from numba.cuda.core import config as launching  # type: ignore[import-not-found, unused-ignore]
from numba.cuda.extending import intrinsic

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

launching.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # a short prompt has few blocks, and they are all there is to do

I32, I64, F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()


def device(function: Any) -> Any:
    """Make a function part of kernels."""
    return cuda.jit(function, device=True, forceinline=True)


def _address(context: Any, builder: Any, array_type: Any, array: Any, i: Any, size: int) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    at = builder.mul(i, I64(size))
    return builder.add(builder.ptrtoint(data, I64), at)


def _asm(builder: Any, returns: Any, text: str, constraints: str, args: list[Any], effect: bool) -> Any:
    function = ir.FunctionType(returns, [a.type for a in args])
    return builder.call(ir.InlineAsm(function, text, constraints, side_effect=effect), args)


def _tuple(context: Any, builder: Any, kind: Any, struct: Any, n: int) -> Any:
    return context.make_tuple(builder, kind, [builder.extract_value(struct, k) for k in range(n)])


@intrinsic
def as_float(typingctx, bits):  # type: ignore[no-untyped-def]
    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], F32)

    return types.float32(types.uint32), code


@intrinsic
def as_bits(typingctx, x):  # type: ignore[no-untyped-def]
    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], I32)

    return types.uint32(types.float32), code


@intrinsic
def as_half(typingctx, bits):  # type: ignore[no-untyped-def]
    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        text = "{ .reg .b16 l, h; mov.b32 {l, h}, $1; cvt.f32.f16 $0, l; }"
        return _asm(builder, F32, text, "=f,r", [args[0]], False)

    return types.float32(types.uint32), code


@intrinsic
def dp4a(typingctx, a, b, c):  # type: ignore[no-untyped-def]
    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return _asm(builder, I32, "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", args, False)

    return types.int32(types.uint32, types.uint32, types.int32), code


@intrinsic
def cached16(typingctx, arena, i):  # type: ignore[no-untyped-def]
    kind = types.UniTuple(types.uint32, 4)

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        at = _address(context, builder, signature.args[0], args[0], args[1], 16)
        four = ir.LiteralStructType([I32] * 4)
        text = "ld.global.nc.v4.u32 {$0, $1, $2, $3}, [$4];"
        return _tuple(context, builder, kind, _asm(builder, four, text, "=r,=r,=r,=r,l", [at], False), 4)

    return kind(arena, types.int64), code


@intrinsic
def mma(typingctx, a, b, c):  # type: ignore[no-untyped-def]
    kind = types.UniTuple(types.float32, 4)

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        text = (
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {$0, $1, $2, $3},"
            "{$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
        )
        each = [builder.extract_value(args[i], k) for i, n in enumerate((4, 2, 4)) for k in range(n)]
        four = ir.LiteralStructType([F32] * 4)
        out = _asm(builder, four, text, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", each, True)
        return _tuple(context, builder, kind, out, 4)

    return kind(types.UniTuple(types.uint32, 4), types.UniTuple(types.uint32, 2), kind), code


@intrinsic
def load16(typingctx, arena, i, there):  # type: ignore[no-untyped-def]
    kind = types.UniTuple(types.uint32, 4)

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        at = _address(context, builder, signature.args[0], args[0], args[1], 16)
        text = (
            "{ .reg .pred p; setp.ne.b32 p, $5, 0; mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0;"
            "mov.b32 $3, 0; @p ld.global.nc.L1::no_allocate.v4.u32 {$0, $1, $2, $3}, [$4]; }"
        )
        four = ir.LiteralStructType([I32] * 4)
        ok = builder.zext(args[2], I32)
        out = _asm(builder, four, text, "=&r,=&r,=&r,=&r,l,r", [at, ok], False)
        return _tuple(context, builder, kind, out, 4)

    return kind(arena, types.int64, types.boolean), code


@intrinsic
def load4(typingctx, x, i, there):  # type: ignore[no-untyped-def]
    kind = types.UniTuple(types.float32, 4)

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        at = _address(context, builder, signature.args[0], args[0], args[1], 16)
        text = (
            "{ .reg .pred p; setp.ne.b32 p, $5, 0; mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0;"
            "mov.b32 $3, 0; @p ld.global.cg.v4.f32 {$0, $1, $2, $3}, [$4]; }"
        )
        four = ir.LiteralStructType([F32] * 4)
        ok = builder.zext(args[2], I32)
        out = _asm(builder, four, text, "=&f,=&f,=&f,=&f,l,r", [at, ok], True)
        return _tuple(context, builder, kind, out, 4)

    return kind(x, types.int64, types.boolean), code


def _element(context: Any, builder: Any, array_type: Any, array: Any, i: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [i])


@intrinsic
def get(typingctx, x, i):  # type: ignore[no-untyped-def]
    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.load(_element(context, builder, signature.args[0], args[0], args[1]))

    return x.dtype(x, types.int64), code


@intrinsic
def let(typingctx, x, i, value):  # type: ignore[no-untyped-def]
    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        builder.store(args[2], _element(context, builder, signature.args[0], args[0], args[1]))
        return context.get_dummy_value()

    return types.none(x, types.int64, x.dtype), code


@intrinsic
def four(typingctx, x, i):  # type: ignore[no-untyped-def]
    kind = types.UniTuple(types.float32, 4)

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        at = _element(context, builder, signature.args[0], args[0], args[1])
        loaded = builder.load(builder.bitcast(at, ir.VectorType(F32, 4).as_pointer()), align=16)
        each = [builder.extract_element(loaded, ir.IntType(32)(k)) for k in range(4)]
        return context.make_tuple(builder, kind, each)

    return kind(x, types.int64), code


@intrinsic
def rsqrt(typingctx, x):  # type: ignore[no-untyped-def]
    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return _asm(builder, F32, "rsqrt.approx.f32 $0, $1;", "=f,f", [args[0]], False)

    return types.float32(types.float32), code


@intrinsic
def put(typingctx, words, i, value, tag):  # type: ignore[no-untyped-def]
    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        at = _address(context, builder, signature.args[0], args[0], args[1], 8)
        text = "{ .reg .b64 t; mov.b64 t, {$1, $2}; st.relaxed.gpu.global.b64 [$0], t; }"
        bits = builder.bitcast(args[2], I32)
        _asm(builder, ir.VoidType(), text, "l,r,r,~{memory}", [at, bits, args[3]], True)
        return context.get_dummy_value()

    return types.none(words, types.int64, types.float32, types.uint32), code


@intrinsic
def take2(typingctx, words, i, there):  # type: ignore[no-untyped-def]
    kind = types.Tuple((types.float32, types.uint32, types.float32, types.uint32))

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        at = _address(context, builder, signature.args[0], args[0], args[1], 16)
        text = (
            "{ .reg .pred p; .reg .b64 s, t; setp.ne.b32 p, $5, 0; mov.b64 s, 0; mov.b64 t, 0;"
            "@p ld.relaxed.gpu.global.v2.b64 {s, t}, [$4];"
            "mov.b64 {$0, $1}, s; mov.b64 {$2, $3}, t; }"
        )
        four = ir.LiteralStructType([F32, I32, F32, I32])
        ok = builder.zext(args[2], I32)
        out = _asm(builder, four, text, "=f,=r,=f,=r,l,r,~{memory}", [at, ok], True)
        return _tuple(context, builder, kind, out, 4)

    return kind(words, types.int64, types.boolean), code


@intrinsic
def prefetch(typingctx, arena, i):  # type: ignore[no-untyped-def]
    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        at = _address(context, builder, signature.args[0], args[0], args[1], 16)
        _asm(builder, ir.VoidType(), "prefetch.global.L2 [$0];", "l", [at], True)
        return context.get_dummy_value()

    return types.none(arena, types.int64), code


@intrinsic
def send16(typingctx, shared, i, arena, j, there):  # type: ignore[no-untyped-def]
    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        to = builder.ptrtoint(_element(context, builder, signature.args[0], args[0], args[1]), I64)
        at = _address(context, builder, signature.args[2], args[2], args[3], 16)
        size = builder.shl(builder.zext(args[4], I32), I32(4))  # 16 bytes or, filled up with zeros, none
        text = (
            "{ .reg .u64 t; .reg .u32 s; cvta.to.shared.u64 t, $0; cvt.u32.u64 s, t;"
            "cp.async.cg.shared.global [s], [$1], 16, $2; }"
        )
        _asm(builder, ir.VoidType(), text, "l,l,r,~{memory}", [to, at, size], True)
        return context.get_dummy_value()

    return types.none(shared, types.int64, arena, types.int64, types.boolean), code


def _statement(text: str) -> Any:
    def statement(typingctx):  # type: ignore[no-untyped-def]
        def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
            _asm(builder, ir.VoidType(), text, "~{memory}", [], True)
            return context.get_dummy_value()

        return types.none(), code

    return intrinsic(statement)


sent = _statement("cp.async.commit_group;")
arrived, arrived_but_three = _statement("cp.async.wait_group 0;"), _statement("cp.async.wait_group 3;")


@intrinsic
def stop(typingctx):  # type: ignore[no-untyped-def]
    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        _asm(builder, ir.VoidType(), "trap;", "", [], True)
        return context.get_dummy_value()

    return types.none(), code
