"""Dot products of packed rows in integers, as LLVM code: Numba has no words for vectors of bytes.

A group of 64 weights is one vector. With AVX-512 VNNI one instruction multiplies it and adds it up, with
AVX2 two do so for each half; elsewhere the same sums are written out and LLVM uses what there is. All three
compute the same sixteen integers for a group, so they differ only in the order of the last few float
additions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import reduce
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from minicore.backends.cpu.simd import (
    F16,
    F32,
    FOUR_ADDRESSES,
    FOUR_FLOATS,
    I8,
    I16,
    I32,
    LINE,
    as_tuple,
    broadcast,
    constant,
    fma,
    has_feature,
    horizontal_sums,
    integer,
    load,
    loop,
    pointer,
    pointers,
    shuffle,
    store,
    times,
    vector,
    zeros,
)
from minicore.quantization import GROUP, HALF

KINDS = {"vnni": "avx512vnni", "avx2": "avx2", "portable": ""}  # best first; the feature that each needs


def has(kind: str) -> bool:
    """Say whether the CPU that Numba compiles for can multiply bytes in this way."""
    return not KINDS[kind] or has_feature(KINDS[kind])


def best_kind() -> str:
    """Return the fastest way to multiply bytes that the CPU has."""
    return next(kind for kind in KINDS if has(kind))


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    """Call one of LLVM's functions."""
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(builder.module.declare_intrinsic(name, (), kind), args)


def signed_sums(builder: Any, kind: str, w: Any, x: Any, total: Any) -> Any:
    """Add to ``total`` the sums of four products each of 64 signed bytes, none of them -128.

    The instructions need one unsigned factor. AVX2 adds pairs in 16 bits, where 255 * 127 twice overflows,
    so x gives its signs to w and 127 * 127 twice fits; its eight sums are of two fours each. The other ways
    take w 128 higher, so their sixteen totals start at -128 times x's sum (:func:`start_of`).
    """
    if kind != "avx2":
        return _unsigned_sums(builder, kind, builder.xor(w, constant(I8, [-128] * 4 * LINE)), x, total)
    for w_half, x_half in zip(_halves(builder, w), _halves(builder, x), strict=True):
        size = _call(builder, "llvm.abs.v32i8", x_half.type, x_half, ir.Constant(ir.IntType(1), 0))
        signed = _call(builder, "llvm.x86.avx2.psign.b", w_half.type, w_half, x_half)
        total = builder.add(total, _avx2_sums(builder, _avx2_pairs(builder, size, signed)))
    return total


def start_of(builder: Any, kind: str, pointer: Any, offset: Any) -> Any:
    """Return where the totals of :func:`signed_sums` start: zeros, or sixteen integers kept with an input."""
    if kind == "avx2":
        return ir.Constant(vector(I32, LINE // 2), None)
    return load(builder, vector(I32), pointer, offset)


def _unsigned_sums(builder: Any, kind: str, w: Any, x: Any, total: Any) -> Any:
    """Add to ``total`` sixteen sums of four products each, unsigned bytes times signed; not for AVX2."""
    if kind == "vnni":
        v, name = total.type, "llvm.x86.avx512.vpdpbusd.512"
        return _call(builder, name, v, total, builder.bitcast(w, v), builder.bitcast(x, v))
    wide = vector(I32, 4 * LINE)
    products = builder.mul(builder.zext(w, wide), builder.sext(x, wide))
    return reduce(builder.add, [shuffle(builder, products, range(i, 4 * LINE, 4)) for i in range(4)], total)


def _avx2_pairs(builder: Any, w: Any, x: Any) -> Any:
    """Return sixteen sums of two products each of 32 bytes, unsigned times signed; each must fit 16 bits."""
    return _call(builder, "llvm.x86.avx2.pmadd.ub.sw", vector(I16), w, x)


def _avx2_sums(builder: Any, pairs: Any) -> Any:
    """Return eight sums of two, in 32 bits."""
    return _call(builder, "llvm.x86.avx2.pmadd.wd", vector(I32, 8), pairs, constant(I16, [1] * LINE))


def _scaled(builder: Any, pointer: Any, offset: Any, factor: Any, n: int) -> Any:
    """Return n times the product of a float16 in memory and a factor."""
    number = broadcast(builder, load(builder, I16, pointer, offset), n)
    wide = builder.fpext(builder.bitcast(number, vector(F16, n)), vector(F32, n))
    return builder.fmul(wide, broadcast(builder, factor, n))


def _halves(builder: Any, bytes_: Any) -> list[Any]:
    half = range(2 * LINE), range(2 * LINE, 4 * LINE)
    return [shuffle(builder, bytes_, lanes) for lanes in half]


def _dots_of(weights: Callable[..., Any], kind: str) -> Any:
    """Return the intrinsic that multiplies four rows with one input.

    Its arguments are the rows' codes and scales, the input's codes, scales and sums, all addresses, and the
    number of groups. A group of an input is 64 signed bytes, their float32 scale, and sixteen numbers that
    ``weights`` needs of its sum. It is loaded once for four rows.
    """
    lanes = LINE // 2 if kind == "avx2" else LINE  # of a register

    @intrinsic
    def dots(typingctx: Any, codes: Any, scales: Any, x: Any, x_scales: Any, sums: Any, n: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x, x_scales, sums = (pointer(builder, args[k]) for k in (2, 3, 4))
            rows = list(zip(pointers(builder, args[0]), pointers(builder, args[1]), strict=True))

            def body(i: Any, totals: list[Any]) -> list[Any]:
                group = load(builder, vector(I8, 4 * LINE), x, times(builder, i, 64))
                x_scale = load(builder, F32, x_scales, times(builder, i, 4))
                return [
                    weights(builder, kind, codes, scales, group, x_scale, sums, i, total)
                    for (codes, scales), total in zip(rows, totals, strict=True)
                ]

            four = horizontal_sums(builder, loop(builder, args[5], zeros(4, lanes), body))
            return as_tuple(context, builder, signature.return_type, four)

        four, one = FOUR_ADDRESSES, types.int64
        return FOUR_FLOATS(four, four, one, one, one, one), codegen

    return dots


def _int8_group(
    builder: Any, kind: str, codes: Any, scales: Any, x: Any, x_scale: Any, sums: Any, i: Any, total: Any
) -> Any:
    """Add a group's products to ``total``: a group has one scale, which is multiplied by the input's."""
    at, n = times(builder, i, 64), total.type.count
    w = load(builder, vector(I8, 4 * LINE), codes, at)
    products = signed_sums(builder, kind, w, x, start_of(builder, kind, sums, at))
    scale = _scaled(builder, scales, times(builder, i, 2), x_scale, n)
    return fma(builder, builder.sitofp(products, vector(F32, n)), scale, total)


def _int4_group(
    builder: Any, kind: str, codes: Any, scales: Any, x: Any, x_scale: Any, sums: Any, i: Any, total: Any
) -> Any:
    """Add a group's products to ``total``: two halves of 32 nibbles, each with a scale and a minimum.

    A half's minimum is multiplied by the input's sum, which is float32. The minima are stored after the
    scales, so their sums are in lanes 2 and 3, and the other lanes are zero.
    """
    packed = load(builder, vector(I8, 2 * LINE), codes, times(builder, i, 32))
    low = builder.and_(packed, constant(I8, [15] * 2 * LINE))
    high = builder.lshr(packed, constant(I8, [4] * 2 * LINE))
    four = builder.fpext(load(builder, vector(F16, 4), scales, times(builder, i, 8)), vector(F32, 4))
    four = builder.fmul(four, broadcast(builder, x_scale, 4))
    sums = load(builder, vector(F32, total.type.count), sums, times(builder, i, 64))
    if kind == "avx2":
        products = _alternating_sums(builder, low, high, x)
        scale = shuffle(builder, four, [0, 1] * 4)
    else:
        both, nothing = shuffle(builder, low, range(4 * LINE), high), ir.Constant(vector(I32), None)
        products = _unsigned_sums(builder, kind, both, x, nothing)
        scale = shuffle(builder, four, [0] * 8 + [1] * 8)
    products = builder.sitofp(products, scale.type)
    minima = shuffle(builder, four, [0, 1, 2, 3] + [4] * (total.type.count - 4), constant(F32, [0.0] * 4))
    return fma(builder, products, scale, fma(builder, minima, sums, total))


def _alternating_sums(builder: Any, low: Any, high: Any, x: Any) -> Any:
    """Return eight sums of eight products, alternately of low with x's first half and high with its second.

    One vector of the two scales then fits both, and both become floats together.
    """
    pairs = (
        builder.bitcast(_avx2_pairs(builder, w, half), vector(I32, 8))
        for w, half in zip((low, high), _halves(builder, x), strict=True)
    )
    first, second = pairs
    in_turn = (
        builder.bitcast(
            shuffle(builder, first, [at + k for at in lanes for k in (0, 8)], second), vector(I16)
        )
        for lanes in ((0, 1, 4, 5), (2, 3, 6, 7))
    )
    return _avx2_sums(builder, builder.add(*in_turn))


DOTS = {
    (format, kind): _dots_of(weights, kind)
    for format, weights in (("int8", _int8_group), ("int4", _int4_group))
    for kind in KINDS
}


# --- rows times numbers, added up ---


def _int8_rows(builder: Any, p: list[Any], i: Any, a: list[Any], out: list[Any]) -> None:
    """Add four numbers times group i of their rows to the four vectors ``out``."""
    for r in range(4):
        scale = _scaled(builder, p[4 + r], times(builder, i, 2), a[r], LINE)
        for k in range(4):
            at = builder.add(times(builder, i, GROUP), integer(LINE * k))
            w = builder.sitofp(load(builder, vector(I8), p[r], at), vector(F32))
            out[k] = fma(builder, w, scale, out[k])


def _int4_rows(builder: Any, p: list[Any], i: Any, a: list[Any], out: list[Any]) -> None:
    """Add four numbers times group i of their rows to ``out``; low nibbles are the first half of a group."""
    scales = []
    for r in range(4):
        four = builder.fpext(load(builder, vector(F16, 4), p[4 + r], times(builder, i, 8)), vector(F32, 4))
        scales.append(builder.fmul(four, shuffle(builder, broadcast(builder, a[r]), range(4))))
    least = builder.fadd(builder.fadd(scales[0], scales[1]), builder.fadd(scales[2], scales[3]))
    for k in range(4):
        out[k] = builder.fadd(out[k], shuffle(builder, least, [2 + k // 2] * LINE))
    for r, k in itertools.product(range(4), range(2)):
        at = builder.add(times(builder, i, HALF), integer(LINE * k))
        byte = builder.zext(load(builder, vector(I8), p[r], at), vector(I32))
        low = builder.and_(byte, constant(I32, [15] * LINE))
        for part, q in ((0, low), (1, builder.lshr(byte, constant(I32, [4] * LINE)))):
            scale = shuffle(builder, scales[r], [part] * LINE)
            out[2 * part + k] = fma(builder, builder.sitofp(q, vector(F32)), scale, out[2 * part + k])


def _rows_of(add: Callable[..., None]) -> Any:
    """Return the intrinsic that adds ``a[r]`` times row r to y, for four rows.

    Its arguments are the rows' codes and scales, a and y, all addresses, and the number of groups. y has
    room for whole groups.
    """

    @intrinsic
    def add_rows(typingctx: Any, codes: Any, scales: Any, a: Any, y: Any, n: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            rows = pointers(builder, args[0]) + pointers(builder, args[1])
            a, y = pointer(builder, args[2]), pointer(builder, args[3])
            weights = [load(builder, F32, a, integer(4 * r)) for r in range(4)]

            def body(i: Any, nothing: list[Any]) -> list[Any]:
                first = times(builder, i, 4 * GROUP)
                places = [builder.add(first, integer(4 * LINE * k)) for k in range(4)]
                out = [load(builder, vector(F32), y, at) for at in places]
                add(builder, rows, i, weights, out)
                for at, total in zip(places, out, strict=True):
                    store(builder, total, y, at)
                return []

            loop(builder, args[4], [], body)
            return context.get_dummy_value()

        four, one = FOUR_ADDRESSES, types.int64
        return types.void(four, four, one, one, one), codegen

    return add_rows


ROWS = {"int8": _rows_of(_int8_rows), "int4": _rows_of(_int4_rows)}


@intrinsic
def float16_at(typingctx: Any, at: Any) -> Any:
    """Return the float16 at an address as float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(load(builder, F16, pointer(builder, args[0]), integer(0)), F32)

    return types.float32(types.int64), codegen
