"""Run the GPU's prefill kernels with warps of 32 lanes, as tests/cuda/grid.py does the decode kernel.

The tensor cores' instruction is done here as the PTX ISA lays its fragments out over a warp ("Matrix
Fragments for mma.m16n8k16 with floating point type"), which is what the kernel's own places are held to.

Usage: NUMBA_ENABLE_CUDASIM=1 python tests/cuda/tiles.py
"""

from __future__ import annotations

import sys
from itertools import product
from types import SimpleNamespace
from typing import Any

import greenlet
import grid  # first: it makes warps of 32 lanes
import ml_dtypes
import numpy as np
from grid import Grid, passed, shuffled, where
from numba.np.numpy_support import as_dtype

from minicore import ops
from minicore.backends.cuda.decoder import as_units
from minicore.backends.cuda.kernels import intrinsics as device
from minicore.backends.cuda.kernels.prefill import products as kernels
from minicore.core.recording import add_counts, add_relative_energy

UNIT = 2.0**-24  # rounding of a float32


class Tiles(Grid):
    """What the prefill kernels see as ``cuda``, and who runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = SimpleNamespace(array=self.array)
        self.atomic = SimpleNamespace(add=lambda x, i, value: x.__setitem__(i, x[i] + value))

    def array(self, n: int, dtype: Any) -> np.ndarray:
        """Return a block's array, one a line of the kernel; it holds what looks wrong."""
        empty = np.full(4 * n, 0x7FC0BEEF, np.uint32).view(as_dtype(dtype))[:n]
        return self.now.arrays.setdefault(sys._getframe(1).f_lineno, empty)

    @property
    def blockIdx(self) -> SimpleNamespace:
        return SimpleNamespace(**dict(zip("zyx", self.now.block, strict=True)))

    def grid(self, n: int) -> int:
        return self.now.block[2] * self.now.threads + self.now.thread

    def jit(self, function: Any) -> Any:
        return function

    def mma(self, a: Any, b: Any, c: Any) -> Any:
        return self.wait("mma", where(), (a, b, c))

    def launch(self, kernel: Any, blocks: tuple[int, ...], threads: int, *args: Any) -> None:
        """Run a kernel, block after block, x fastest."""
        kernel = getattr(kernel, "fn", kernel)
        for place in product(*(range(n) for n in reversed((*blocks, 1, 1)[:3]))):
            self.main, arrays, block = greenlet.getcurrent(), {}, []
            for thread in range(threads):
                g = greenlet.greenlet(lambda: kernel(*args))
                g.block, g.thread, g.threads, g.arrays, g.why, g.got = (
                    place,
                    thread,
                    threads,
                    arrays,
                    ("turn",),
                    None,
                )
                block.append(g)
            while not all(g.dead for g in block):
                moved = sum(self.turn(g) for g in block)
                warps = [block[i : i + 32] for i in range(0, threads, 32)]
                moved += sum(shuffled(warp) + multiplied(warp) for warp in warps) + passed(block)
                assert moved, {g.why[:2] for g in block if not g.dead}


def multiplied(warp: list[Any]) -> bool:
    """Multiply what the lanes of a warp hold, if all of them wait for that."""
    if not all(not g.dead and g.why[0] == "mma" for g in warp):
        return False
    assert len({g.why[1] for g in warp}) == 1
    a, b, c = np.zeros((16, 16)), np.zeros((16, 8)), np.zeros((16, 8))
    for lane, g in enumerate(warp):
        group, member = lane >> 2, lane & 3
        words_a, words_b, sums = g.why[2]
        for i in range(8):
            row = group if i < 2 or 4 <= i < 6 else group + 8
            a[row, 2 * member + (i & 1) + (8 if i >= 4 else 0)] = bfloat16_of(words_a[i // 2], i & 1)
        for i in range(4):
            b[2 * member + (i & 1) + (8 if i >= 2 else 0), group] = bfloat16_of(words_b[i // 2], i & 1)
            c[group + (8 if i >= 2 else 0), 2 * member + (i & 1)] = sums[i]
    d = (a @ b + c).astype(np.float32)
    for lane, g in enumerate(warp):
        group, member = lane >> 2, lane & 3
        g.got = tuple(d[group + (8 if i >= 2 else 0), 2 * member + (i & 1)] for i in range(4))
        g.why = ("turn",)
    return True


def bfloat16_of(word: int, upper: int) -> float:
    """Return one of the two bfloat16 of a word."""
    return float(np.uint32((int(word) >> 16 * upper & 0xFFFF) << 16).view(np.float32))


tiles = Tiles()
kernels.cuda = device.cuda = tiles
kernels.mma = tiles.mma


def check_product(kernel: Any, threads: int, n: int, k: int, m: int, bfloat16: bool, whole: bool) -> None:
    """Multiply by two matrices, add biases and what is there; whole numbers come out exactly."""
    rng = np.random.default_rng(n)
    draw = (lambda *s: rng.integers(-9, 10, s)) if whole else (lambda *s: rng.standard_normal(s))
    x, w, b, y = (draw(*s).astype(np.float32) for s in ((n, k), (2, m, k), (2, m), (2, n, m)))
    stored = w.astype(ml_dtypes.bfloat16) if bfloat16 else w
    arena = np.concatenate([as_units(each) for each in stored] + [as_units(each) for each in b])
    step, at_b = (arena.size // 4 - 2 * -(-m // 4)) // 2, arena.size // 4 - 2 * -(-m // 4)
    got = y.reshape(-1).copy()
    grid = -(-m // kernels.TILE), -(-n // kernels.TILE), 2
    tiles.launch(
        kernel, grid, threads, x.reshape(-1), arena, 0, arena, at_b, got, n, k, m, step, -(-m // 4), True
    )
    w64, x64 = stored.astype(np.float64), x.astype(np.float64)
    exact = x64 @ w64.transpose(0, 2, 1) + b[:, None] + y
    size = np.abs(x64) @ np.abs(w64).transpose(0, 2, 1) + np.abs(b[:, None]) + np.abs(y)
    terms = k + 2
    bound = 0 if whole else terms * UNIT / (1 - terms * UNIT) * size
    error = np.abs(got.reshape(exact.shape) - exact)
    assert (error <= bound).all(), (n, k, m, error.max())


def check_cut() -> None:
    """Three bfloat16 hold a float32, from the smallest to the largest and with all bits set."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 2000, dtype=np.uint64).astype(np.uint32)
    x = np.concatenate([bits.view(np.float32), np.array([0, -0.0, 3.4e38, 1e-38, 1.9999999], np.float32)])
    x = x[np.isfinite(x) & ((np.abs(x) > 1e-30) | (x == 0))]  # below, the last part has too few bits left
    for u in x:
        parts = [bfloat16_of(word, half) for half in (0, 1) for word in kernels.cut(u, -u)]
        assert sum(parts[:3]) == u and sum(parts[3:]) == -u


def check_rows() -> None:
    """Norm, softmax and sums over tokens, a block of four warps a token."""
    rng = np.random.default_rng(1)
    n, d, threads = 3, 200, 4 * 32
    x, w = rng.standard_normal((n, d)).astype(np.float32), rng.standard_normal(d).astype(np.float32)
    y, arena = np.empty(n * d, np.float32), as_units(w)
    tiles.launch(kernels.norm, (n,), threads, x.reshape(-1), arena, 0, -1, d, False, np.float32(1e-5), y)
    np.testing.assert_allclose(y.reshape(n, d), ops.rms_norm(x, w, 1e-5), rtol=2e-6)
    tiles.launch(kernels.norm, (n,), threads, x.reshape(-1), arena, 0, 0, d, True, np.float32(1e-5), y)
    np.testing.assert_allclose(y.reshape(n, d), ops.layer_norm(x, w, w, 1e-5), rtol=1e-5, atol=1e-6)
    scores = rng.standard_normal((2, n, 150 + n)).astype(np.float32)
    pattern = scores.reshape(-1).copy()
    tiles.launch(kernels.softmax, (n, 2), threads, pattern, 150, n, np.float32(1))
    for t in range(n):
        got = pattern.reshape(scores.shape)[:, t]
        np.testing.assert_allclose(got[:, : 151 + t], ops.softmax(scores[:, t, : 151 + t]), rtol=1e-5)
        assert not got[:, 151 + t :].any()
    a = np.concatenate([x, np.round(x), np.zeros((1, d), np.float32)])
    counts, whole, sums = np.zeros(d, np.int64), np.zeros(len(a)), np.zeros(d)
    tiles.launch(kernels.count_cores, (len(a),), threads, a.reshape(-1), d, 0.3, False, counts)
    np.testing.assert_array_equal(counts, add_counts(np.zeros(d, np.int64), a, 0.3))
    tiles.launch(kernels.energies, (len(a),), threads, a.reshape(-1), d, whole)
    tiles.launch(kernels.add_energies, (2,), threads, a.reshape(-1), len(a), d, whole, sums)
    np.testing.assert_allclose(sums, add_relative_energy(np.zeros(d), a, 0.3), rtol=1e-12)


def main() -> None:
    assert kernels.TILE == 64 and grid.device.LANES == 32
    check_cut()
    for whole in (True, False):
        check_product(kernels.tensor_product, 128, 70, 40, 72, True, whole)
        check_product(kernels.tensor_product, 128, 3, 72, 9, True, whole)
    check_product(kernels.make_product(3), kernels.THREADS, 5, 21, 66, True, False)
    check_product(kernels.make_product(2), kernels.THREADS, 66, 18, 5, False, False)
    check_rows()


if __name__ == "__main__":
    main()
