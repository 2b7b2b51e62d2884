"""Intrinsics for kernels, made of LLVM IR and PTX instructions. simulated.py documents each of them."""

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
    "cp_async_wait_all",
    "cp_async_wait_all_but_3",
    "float_as_uint",
    "uint_as_float",
    "half_to_float",
    "load16_cached",
    "dp4a",
    "shared_float4",
    "load",
    "store",
    "load16",
    "load_float4",
    "mma",
    "prefetch_l2",
    "ll_store",
    "rsqrt",
    "cp_async16",
    "cp_async_commit",
    "trap",
    "ll_load2",
]

launching.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # a short prompt has few blocks; that is no mistake

I32, I64, F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()


def device(function: Any) -> Any:
    """Make a function callable from kernels, where it is always inlined."""
    return cuda.jit(function, device=True, forceinline=True)


def _address(context: Any, builder: Any, array_type: Any, array: Any, i: Any, size: int) -> Any:
    """Return the address of item i, of ``size`` bytes, of an array."""
    data = context.make_array(array_type)(context, builder, array).data
    at = builder.mul(i, I64(size))
    return builder.add(builder.ptrtoint(data, I64), at)


def _asm(builder: Any, returns: Any, text: str, constraints: str, args: list[Any], effect: bool) -> Any:
    """Emit inline PTX. With ``effect`` the compiler neither removes nor moves it."""
    function = ir.FunctionType(returns, [a.type for a in args])
    return builder.call(ir.InlineAsm(function, text, constraints, side_effect=effect), args)


def _tuple(context: Any, builder: Any, kind: Any, struct: Any, n: int) -> Any:
    """Return the n fields of an LLVM struct as a Numba tuple."""
    return context.make_tuple(builder, kind, [builder.extract_value(struct, k) for k in range(n)])


@intrinsic
def uint_as_float(typingctx, bits):
    def code(context, builder, signature, args):
        return builder.bitcast(args[0], F32)

    return types.float32(types.uint32), code


@intrinsic
def float_as_uint(typingctx, x):
    def code(context, builder, signature, args):
        return builder.bitcast(args[0], I32)

    return types.uint32(types.float32), code


@intrinsic
def half_to_float(typingctx, bits):
    def code(context, builder, signature, args):
        text = "{ .reg .b16 l, h; mov.b32 {l, h}, $1; cvt.f32.f16 $0, l; }"
        return _asm(builder, F32, text, "=f,r", [args[0]], False)

    return types.float32(types.uint32), code


@intrinsic
def dp4a(typingctx, a, b, c):
    def code(context, builder, signature, args):
        return _asm(builder, I32, "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", args, False)

    return types.int32(types.uint32, types.uint32, types.int32), code


@intrinsic
def load16_cached(typingctx, arena, i):
    kind = types.UniTuple(types.uint32, 4)

    def code(context, builder, signature, args):
        at = _address(context, builder, signature.args[0], args[0], args[1], 16)
        shared_float4 = ir.LiteralStructType([I32] * 4)
        text = "ld.global.nc.v4.u32 {$0, $1, $2, $3}, [$4];"
        return _tuple(
            context, builder, kind, _asm(builder, shared_float4, text, "=r,=r,=r,=r,l", [at], False), 4
        )

    return kind(arena, types.int64), code


@intrinsic
def mma(typingctx, a, b, c):
    kind = types.UniTuple(types.float32, 4)

    def code(context, builder, signature, args):
        text = (
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {$0, $1, $2, $3},"
            "{$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
        )
        each = [builder.extract_value(args[i], k) for i, n in enumerate((4, 2, 4)) for k in range(n)]
        shared_float4 = ir.LiteralStructType([F32] * 4)
        out = _asm(builder, shared_float4, text, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", each, True)
        return _tuple(context, builder, kind, out, 4)

    return kind(types.UniTuple(types.uint32, 4), types.UniTuple(types.uint32, 2), kind), code


@intrinsic
def load16(typingctx, arena, i, valid):
    kind = types.UniTuple(types.uint32, 4)

    def code(context, builder, signature, args):
        at = _address(context, builder, signature.args[0], args[0], args[1], 16)
        text = (
            "{ .reg .pred p; setp.ne.b32 p, $5, 0; mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0;"
            "mov.b32 $3, 0; @p ld.global.nc.L1::no_allocate.v4.u32 {$0, $1, $2, $3}, [$4]; }"
        )
        shared_float4 = ir.LiteralStructType([I32] * 4)
        ok = builder.zext(args[2], I32)
        out = _asm(builder, shared_float4, text, "=&r,=&r,=&r,=&r,l,r", [at, ok], False)
        return _tuple(context, builder, kind, out, 4)

    return kind(arena, types.int64, types.boolean), code


@intrinsic
def load_float4(typingctx, x, i, valid):
    kind = types.UniTuple(types.float32, 4)

    def code(context, builder, signature, args):
        at = _address(context, builder, signature.args[0], args[0], args[1], 16)
        text = (
            "{ .reg .pred p; setp.ne.b32 p, $5, 0; mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0;"
            "mov.b32 $3, 0; @p ld.global.cg.v4.f32 {$0, $1, $2, $3}, [$4]; }"
        )
        shared_float4 = ir.LiteralStructType([F32] * 4)
        ok = builder.zext(args[2], I32)
        out = _asm(builder, shared_float4, text, "=&f,=&f,=&f,=&f,l,r", [at, ok], True)
        return _tuple(context, builder, kind, out, 4)

    return kind(x, types.int64, types.boolean), code


def _element(context: Any, builder: Any, array_type: Any, array: Any, i: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [i])


@intrinsic
def load(typingctx, x, i):
    def code(context, builder, signature, args):
        return builder.load(_element(context, builder, signature.args[0], args[0], args[1]))

    return x.dtype(x, types.int64), code


@intrinsic
def store(typingctx, x, i, value):
    def code(context, builder, signature, args):
        builder.store(args[2], _element(context, builder, signature.args[0], args[0], args[1]))
        return context.get_dummy_value()

    return types.none(x, types.int64, x.dtype), code


@intrinsic
def shared_float4(typingctx, x, i):
    kind = types.UniTuple(types.float32, 4)

    def code(context, builder, signature, args):
        at = _element(context, builder, signature.args[0], args[0], args[1])
        loaded = builder.load(builder.bitcast(at, ir.VectorType(F32, 4).as_pointer()), align=16)
        each = [builder.extract_element(loaded, ir.IntType(32)(k)) for k in range(4)]
        return context.make_tuple(builder, kind, each)

    return kind(x, types.int64), code


@intrinsic
def rsqrt(typingctx, x):
    def code(context, builder, signature, args):
        return _asm(builder, F32, "rsqrt.approx.f32 $0, $1;", "=f,f", [args[0]], False)

    return types.float32(types.float32), code


@intrinsic
def ll_store(typingctx, words, i, value, flag):
    def code(context, builder, signature, args):
        at = _address(context, builder, signature.args[0], args[0], args[1], 8)
        text = "{ .reg .b64 t; mov.b64 t, {$1, $2}; st.relaxed.gpu.global.b64 [$0], t; }"
        bits = builder.bitcast(args[2], I32)
        _asm(builder, ir.VoidType(), text, "l,r,r,~{memory}", [at, bits, args[3]], True)
        return context.get_dummy_value()

    return types.none(words, types.int64, types.float32, types.uint32), code


@intrinsic
def ll_load2(typingctx, words, i, valid):
    kind = types.Tuple((types.float32, types.uint32, types.float32, types.uint32))

    def code(context, builder, signature, args):
        at = _address(context, builder, signature.args[0], args[0], args[1], 16)
        text = (
            "{ .reg .pred p; .reg .b64 s, t; setp.ne.b32 p, $5, 0; mov.b64 s, 0; mov.b64 t, 0;"
            "@p ld.relaxed.gpu.global.v2.b64 {s, t}, [$4];"
            "mov.b64 {$0, $1}, s; mov.b64 {$2, $3}, t; }"
        )
        shared_float4 = ir.LiteralStructType([F32, I32, F32, I32])
        ok = builder.zext(args[2], I32)
        out = _asm(builder, shared_float4, text, "=f,=r,=f,=r,l,r,~{memory}", [at, ok], True)
        return _tuple(context, builder, kind, out, 4)

    return kind(words, types.int64, types.boolean), code


@intrinsic
def prefetch_l2(typingctx, arena, i):
    def code(context, builder, signature, args):
        at = _address(context, builder, signature.args[0], args[0], args[1], 16)
        _asm(builder, ir.VoidType(), "prefetch.global.L2 [$0];", "l", [at], True)
        return context.get_dummy_value()

    return types.none(arena, types.int64), code


@intrinsic
def cp_async16(typingctx, shared, i, arena, j, valid):
    def code(context, builder, signature, args):
        to = builder.ptrtoint(_element(context, builder, signature.args[0], args[0], args[1]), I64)
        at = _address(context, builder, signature.args[2], args[2], args[3], 16)
        n_copied = builder.shl(builder.zext(args[4], I32), I32(4))  # 16 or 0; the rest becomes zeros
        text = (
            "{ .reg .u64 t; .reg .u32 s; cvta.to.shared.u64 t, $0; cvt.u32.u64 s, t;"
            "cp.async.cg.shared.global [s], [$1], 16, $2; }"
        )
        _asm(builder, ir.VoidType(), text, "l,l,r,~{memory}", [to, at, n_copied], True)
        return context.get_dummy_value()

    return types.none(shared, types.int64, arena, types.int64, types.boolean), code


def _statement(text: str) -> Any:
    def statement(typingctx):
        def code(context, builder, signature, args):
            _asm(builder, ir.VoidType(), text, "~{memory}", [], True)
            return context.get_dummy_value()

        return types.none(), code

    return intrinsic(statement)


cp_async_commit = _statement("cp.async.commit_group;")
cp_async_wait_all, cp_async_wait_all_but_3 = (
    _statement("cp.async.wait_group 0;"),
    _statement("cp.async.wait_group 3;"),
)


@intrinsic
def trap(typingctx):
    def code(context, builder, signature, args):
        _asm(builder, ir.VoidType(), "trap;", "", [], True)
        return context.get_dummy_value()

    return types.none(), code
