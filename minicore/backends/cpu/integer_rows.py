"""Dot products of packed rows in integers, as LLVM code: Numba has no words for vectors of bytes.

A group of 64 weights is one vector. With AVX-512 VNNI one instruction multiplies it and adds it up, with
AVX2 two do so for each half; elsewhere the same sums are written out and LLVM uses what there is. All three
compute the same sixteen integers for a group, so they differ only in the order of the last few float
additions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from minicore.backends.cpu.simd import (
    F16,
    F32,
    I8,
    I16,
    I32,
    LINE,
    broadcast,
    constant,
    fma,
    has_feature,
    horizontal_sums,
    integer,
    load,
    loop,
    pointer,
    shuffle,
    store,
    times,
    vector,
    zeros,
)
from minicore.quantization import FORMATS, GROUP, HALF

# Where codes, sums and scales of an input begin, in bytes for each of its groups (quantized_inputs.py).
INPUT_PARTS = 4 * GROUP, 5 * GROUP, 6 * GROUP
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


def _dot_int8_group(
    builder: Any, kind: str, codes: Any, scales: Any, x: Any, x_scale: Any, sums: Any, i: Any, total: Any
) -> Any:
    """Add a group's products to ``total``: a group has one scale, which is multiplied by the input's."""
    at, n = times(builder, i, 64), total.type.count
    w = load(builder, vector(I8, 4 * LINE), codes, at)
    products = signed_sums(builder, kind, w, x, start_of(builder, kind, sums, at))
    scale = _scaled(builder, scales, times(builder, i, 2), x_scale, n)
    return fma(builder, builder.sitofp(products, vector(F32, n)), scale, total)


def _dot_int4_group(
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


# --- rows times numbers, added up ---


def _add_int8_group(
    builder: Any, rows: list[tuple[Any, Any]], i: Any, a: Sequence[Any], out: list[Any]
) -> None:
    """Add four numbers times group i of their rows to the four vectors ``out``."""
    for (codes, scales), number in zip(rows, a, strict=True):
        scale = _scaled(builder, scales, times(builder, i, 2), number, LINE)
        for k in range(4):
            at = builder.add(times(builder, i, GROUP), integer(LINE * k))
            w = builder.sitofp(load(builder, vector(I8), codes, at), vector(F32))
            out[k] = fma(builder, w, scale, out[k])


def _add_int4_group(
    builder: Any, rows: list[tuple[Any, Any]], i: Any, a: Sequence[Any], out: list[Any]
) -> None:
    """Add four numbers times group i of their rows to ``out``; low nibbles are the first half of a group."""
    scaled = []
    for (_, scales), number in zip(rows, a, strict=True):
        four = builder.fpext(load(builder, vector(F16, 4), scales, times(builder, i, 8)), vector(F32, 4))
        scaled.append(builder.fmul(four, broadcast(builder, number, 4)))
    least = builder.fadd(builder.fadd(scaled[0], scaled[1]), builder.fadd(scaled[2], scaled[3]))
    for k in range(4):
        out[k] = builder.fadd(out[k], shuffle(builder, least, [2 + k // 2] * LINE))
    for ((codes, _), four), k in itertools.product(zip(rows, scaled, strict=True), range(2)):
        at = builder.add(times(builder, i, HALF), integer(LINE * k))
        byte = builder.zext(load(builder, vector(I8), codes, at), vector(I32))
        low = builder.and_(byte, constant(I32, [15] * LINE))
        for part, q in ((0, low), (1, builder.lshr(byte, constant(I32, [4] * LINE)))):
            scale = shuffle(builder, four, [part] * LINE)
            out[2 * part + k] = fma(builder, builder.sitofp(q, vector(F32)), scale, out[2 * part + k])


# --- the rows of a matrix ---


class QuantizedRows:
    """Rows of int8 or int4 groups, multiplied as integers in one of the :data:`KINDS` of ways.

    The input of products is as quantized_inputs.py writes it. Sums have room for whole groups. Matrices and
    vectors are pointers to bytes; sizes, rows and numbers are LLVM values.
    """

    def __init__(self, format: str, kind: str) -> None:
        self.n_bytes, self.n_scales, self.kind = FORMATS[format].n_bytes, FORMATS[format].n_scales, kind
        self.dot_group, self.add_group = _GROUPS[format]

    def dot(self, builder: Any, w: Any, m: Any, d: Any, rows: Sequence[Any], x: Any) -> list[Any]:
        """Return the products of four rows of the m x d matrix at w with x; a group of x is loaded once."""
        n_groups, starts = self._starts(builder, w, m, d, rows)
        codes, sums, scales = (builder.gep(x, [times(builder, n_groups, at)]) for at in INPUT_PARTS)

        def body(i: Any, totals: list[Any]) -> list[Any]:
            group = load(builder, vector(I8, GROUP), codes, times(builder, i, GROUP))
            x_scale = load(builder, F32, scales, times(builder, i, 4))
            return [
                self.dot_group(builder, self.kind, row, row_scales, group, x_scale, sums, i, total)
                for (row, row_scales), total in zip(starts, totals, strict=True)
            ]

        elements = LINE // 2 if self.kind == "avx2" else LINE
        four = horizontal_sums(builder, loop(builder, n_groups, zeros(4, elements), body))
        return [builder.extract_element(four, I32(r)) for r in range(4)]

    def add(
        self, builder: Any, w: Any, m: Any, d: Any, rows: Sequence[Any], a: Sequence[Any], y: Any
    ) -> None:
        """Add a[r] times row rows[r] of the m x d matrix at w to y, for four r."""
        n_groups, starts = self._starts(builder, w, m, d, rows)

        def body(i: Any, nothing: list[Any]) -> list[Any]:
            first = times(builder, i, 4 * GROUP)
            places = [builder.add(first, integer(4 * LINE * k)) for k in range(4)]
            out = [load(builder, vector(F32), y, at) for at in places]
            self.add_group(builder, starts, i, a, out)
            for at, total in zip(places, out, strict=True):
                store(builder, total, y, at)
            return []

        loop(builder, n_groups, [], body)

    def begin(self, builder: Any, d: Any, y: Any) -> None:
        """Do nothing: sums are in their own order."""

    def end(self, builder: Any, d: Any, y: Any) -> None:
        """Do nothing."""

    def _starts(
        self, builder: Any, w: Any, m: Any, d: Any, rows: Sequence[Any]
    ) -> tuple[Any, list[tuple[Any, Any]]]:
        """Return the number of groups of a row, and pointers to each row's codes and scales."""
        n_groups = builder.sdiv(builder.add(d, integer(GROUP - 1)), integer(GROUP))
        of_codes = times(builder, n_groups, self.n_bytes)
        of_scales = times(builder, n_groups, 2 * self.n_scales)
        first_scale = builder.gep(w, [builder.mul(m, of_codes)])
        return n_groups, [
            (
                builder.gep(w, [builder.mul(row, of_codes)]),
                builder.gep(first_scale, [builder.mul(row, of_scales)]),
            )
            for row in rows
        ]


_GROUPS: dict[str, tuple[Callable[..., Any], Callable[..., None]]] = {
    "int8": (_dot_int8_group, _add_int8_group),
    "int4": (_dot_int4_group, _add_int4_group),
}


@intrinsic
def float16_at(typingctx: Any, at: Any) -> Any:
    """Return the float16 at an address as float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(load(builder, F16, pointer(builder, args[0]), integer(0)), F32)

    return types.float32(types.int64), codegen
