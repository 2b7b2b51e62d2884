"""What a GPU kernel is made of: 16-byte loads, words that carry their own arrival, sums over a warp.

Blocks of one kernel hand numbers to one another in words of 8 bytes: the number and a tag, written by one
store. Whoever needs a word reads it until the tag is the one it waits for, so that no barrier and no fence
lies between two phases, only the way to the L2 cache and back.

Under Numba's CUDA simulator (NUMBA_ENABLE_CUDASIM=1) the same names are plain Python: a warp is one thread,
and a kernel one block.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numba import cuda
from numba.core import config

SIMULATED = bool(config.ENABLE_CUDASIM)
LANES = 1 if SIMULATED else 32
SPINS = 1 << 22  # polls of a word, some seconds: whoever waits longer waits for ever, and stops the kernel
ALL = 0xFFFFFFFF
# part of the key of kernels kept on disk: Numba itself looks at a kernel's own file alone
SOURCE = zlib.crc32(b"".join(path.read_bytes() for path in sorted(Path(__file__).parents[1].rglob("*.py"))))


def device(function: Any) -> Any:
    """Make a function part of kernels; a simulated one stays what it is."""
    return function if SIMULATED else cuda.jit(function, device=True, forceinline=True)


def configured(kernel: Any, n_blocks: int, n_threads: int, n_bytes: int = 0, stream: Any = 0) -> Any:
    """Return a kernel ready to be called, with so many bytes of shared memory a block."""
    if n_bytes and not SIMULATED:
        allow_shared(kernel, n_bytes)
    return kernel[n_blocks, n_threads, stream, n_bytes]


def allow_shared(kernel: Any, n_bytes: int) -> None:
    """Let a block of a compiled kernel have more shared memory than the 48 KB it gets unasked."""
    from numba.cuda.cudadrv.driver import binding, driver

    # the kernel is every decoder's of its shape: one with a short kv cache must not lower what another needs
    if n_bytes <= getattr(kernel, "shared_bytes", 0):
        return
    kernel.shared_bytes = n_bytes
    attribute = binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    for compiled in kernel.overloads.values():
        function = compiled._codelibrary.get_cufunc()
        driver.cuKernelSetAttribute(attribute, n_bytes, function.handle, function.device.id)


if SIMULATED:

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

else:
    from llvmlite import ir  # type: ignore[import-untyped]
    from numba.core import types
    from numba.cuda.core import config as launching  # type: ignore[import-not-found, unused-ignore]
    from numba.cuda.extending import intrinsic

    launching.CUDA_LOW_OCCUPANCY_WARNINGS = (
        0  # a short prompt has few blocks, and they are all there is to do
    )

    I32, I64, F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()

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


@cuda.jit(device=True)
def settle():  # type: ignore[no-untyped-def]
    """Let all of a simulated block arrive: its threads are too slow to poll. On a GPU this is nothing."""
    if SIMULATED:
        cuda.syncthreads()


@device
def complete(words, i, pair, tag):  # type: ignore[no-untyped-def]  # -> float32, float32
    """Return the values of a pair of words that was read; read it again until it has this tag."""
    a, tag_a, b, tag_b = pair
    spins = 0
    while tag_a != tag or tag_b != tag:
        spins += 1
        if spins > SPINS:
            stop()
        a, tag_a, b, tag_b = take2(words, i, True)
    return a, b


@device
def take(words, i, tag):  # type: ignore[no-untyped-def]  # -> float32, float32
    """Wait for words 2 i and 2 i + 1 with this tag and return their values."""
    return complete(words, i, take2(words, i, True), tag)


@device
def group_sum(x, width):  # type: ignore[no-untyped-def]
    """Return the sum of x over neighbouring lanes, so many at a time; each of them gets it."""
    offset = width >> 1
    while offset > 0:
        x += cuda.shfl_xor_sync(ALL, x, offset)
        offset >>= 1
    return x


@device
def warp_sum(x):  # type: ignore[no-untyped-def]
    """Return the sum of x over the lanes of a warp."""
    return group_sum(x, LANES)


@device
def from_first(x):  # type: ignore[no-untyped-def]
    """Return the first lane's x to all lanes of a warp."""
    return cuda.shfl_sync(ALL, x, 0) if LANES > 1 else x


@device
def group_sum2(a, b, width):  # type: ignore[no-untyped-def]
    """Return two such sums: one is added up while the other is on its way to the neighbours."""
    offset = width >> 1
    while offset > 0:
        c, d = cuda.shfl_xor_sync(ALL, a, offset), cuda.shfl_xor_sync(ALL, b, offset)
        a, b = a + c, b + d
        offset >>= 1
    return a, b


@device
def group_sum4(a, b, c, d, width):  # type: ignore[no-untyped-def]
    """Return four such sums."""
    offset = width >> 1
    while offset > 0:
        e, f = cuda.shfl_xor_sync(ALL, a, offset), cuda.shfl_xor_sync(ALL, b, offset)
        g, h = cuda.shfl_xor_sync(ALL, c, offset), cuda.shfl_xor_sync(ALL, d, offset)
        a, b, c, d = a + e, b + f, c + g, d + h
        offset >>= 1
    return a, b, c, d


@device
def group_max(x, width):  # type: ignore[no-untyped-def]
    """Return the largest x of neighbouring lanes, so many at a time."""
    offset = width >> 1
    while offset > 0:
        x = max(x, cuda.shfl_xor_sync(ALL, x, offset))
        offset >>= 1
    return x


@device
def warp_max(x):  # type: ignore[no-untyped-def]
    """Return the largest x of a warp."""
    return group_max(x, LANES)


@device
def warp_best(score, at):  # type: ignore[no-untyped-def]  # float32, int32 -> the same
    """Return a warp's largest score and where it is; of equal ones the first."""
    offset = LANES >> 1
    while offset > 0:
        other, other_at = cuda.shfl_xor_sync(ALL, score, offset), cuda.shfl_xor_sync(ALL, at, offset)
        if other > score or (other == score and other_at < at):
            score, at = other, other_at
        offset >>= 1
    return score, at
