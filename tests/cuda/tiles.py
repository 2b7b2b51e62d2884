"""Run the prefill kernels with warps of 32 lanes (tests/cuda/warps.py).

The tensor cores' instruction is computed here from the fragment layout in the PTX ISA ("Matrix Fragments for
mma.m16n8k16 with floating point type"). The kernel's own layout is held to that.

Usage: NUMBA_ENABLE_CUDASIM=1 python tests/cuda/tiles.py
"""

from __future__ import annotations

import sys
from itertools import product
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
from numba.np.numpy_support import as_dtype
from warps import LANES, Warps, all_wait, install, pass_barrier, shuffle, stack

UNIT = 2.0**-24  # rounding of a float32


class Tiles(Warps):
    """Runs the blocks of a kernel one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = SimpleNamespace(array=self.shared_array)

    @property
    def blockIdx(self) -> SimpleNamespace:
        return SimpleNamespace(**dict(zip("zyx", self.now.block, strict=True)))

    def grid(self, n: int) -> int:
        return self.now.block[2] * self.now.n_threads + self.now.thread

    def shared_array(self, n: int, dtype: Any) -> np.ndarray:
        """Return the block's array of this line of the kernel; its first values show up in results."""
        empty = np.full(4 * n, 0x7FC0BEEF, np.uint32).view(as_dtype(dtype))[:n]
        return self.now.arrays.setdefault(sys._getframe(1).f_lineno, empty)

    def mma(self, a: Any, b: Any, c: Any) -> Any:
        return self.wait("mma", stack(), (a, b, c))

    def launch(self, kernel: Any, blocks: tuple[int, ...], n_threads: int, *args: Any) -> None:
        """Run a kernel, block after block, x fastest."""
        for place in product(*(range(n) for n in reversed((*blocks, 1, 1)[:3]))):
            about = {"block": place, "n_threads": n_threads, "arrays": {}}
            block = [self.thread(lambda: kernel(*args), thread=i, **about) for i in range(n_threads)]
            warps = [block[i : i + LANES] for i in range(0, n_threads, LANES)]
            while not all(thread.dead for thread in block):
                progress = sum(self.resume(thread) for thread in block)
                progress += sum(shuffle(warp) + multiply(warp) for warp in warps) + pass_barrier(block)
                assert progress, {thread.reason[:2] for thread in block if not thread.dead}


def multiply(warp: list[Any]) -> bool:
    """Multiply the fragments of a warp's lanes if all of them wait for that."""
    if not all_wait(warp, "mma"):
        return False
    assert len({thread.reason[1] for thread in warp}) == 1
    a, b, c = np.zeros((16, 16)), np.zeros((16, 8)), np.zeros((16, 8))
    for lane, thread in enumerate(warp):
        group, member = lane >> 2, lane & 3
        words_a, words_b, sums = thread.reason[2]
        for i in range(8):
            row = group if i < 2 or 4 <= i < 6 else group + 8
            a[row, 2 * member + (i & 1) + (8 if i >= 4 else 0)] = bfloat16_of(words_a[i // 2], i & 1)
        for i in range(4):
            b[2 * member + (i & 1) + (8 if i >= 2 else 0), group] = bfloat16_of(words_b[i // 2], i & 1)
            c[group + (8 if i >= 2 else 0), 2 * member + (i & 1)] = sums[i]
    d = (a @ b + c).astype(np.float32)
    for lane, thread in enumerate(warp):
        group, member = lane >> 2, lane & 3
        thread.result = tuple(d[group + (8 if i >= 2 else 0), 2 * member + (i & 1)] for i in range(4))
        thread.reason = ("ready",)
    return True


def bfloat16_of(word: int, upper: int) -> float:
    """Return one of the two bfloat16 of a word."""
    return float(np.uint32((int(word) >> 16 * upper & 0xFFFF) << 16).view(np.float32))


tiles = Tiles()
install(tiles, mma=tiles.mma)

from minicore import ops  # noqa: E402
from minicore.backends.cuda.arena import as_chunks  # noqa: E402
from minicore.backends.cuda.kernels.intrinsics import WARP_SIZE  # noqa: E402
from minicore.backends.cuda.kernels.prefill import attention, norms, statistics  # noqa: E402
from minicore.backends.cuda.kernels.prefill.products import (  # noqa: E402
    PRODUCT_THREADS,
    TILE,
    make_product,
)
from minicore.backends.cuda.kernels.prefill.tensor_cores import (  # noqa: E402
    make_tensor_core_product,
    split_bf16x3,
)
from minicore.core.statistics import add_counts, add_relative_energy  # noqa: E402


def check_product(kernel: Any, threads: int, n: int, k: int, m: int, bfloat16: bool, whole: bool) -> None:
    """Multiply by two matrices, add biases and the old y. Products of integers must be exact."""
    rng = np.random.default_rng(n)
    draw = (lambda *s: rng.integers(-9, 10, s)) if whole else (lambda *s: rng.standard_normal(s))
    x, w, b, y = (draw(*s).astype(np.float32) for s in ((n, k), (2, m, k), (2, m), (2, n, m)))
    stored = w.astype(ml_dtypes.bfloat16) if bfloat16 else w
    arena = np.concatenate([as_chunks(each) for each in stored] + [as_chunks(each) for each in b])
    step, at_b = (arena.size // 4 - 2 * -(-m // 4)) // 2, arena.size // 4 - 2 * -(-m // 4)
    got = y.reshape(-1).copy()
    grid = -(-m // TILE), -(-n // TILE), 2
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
    """Three bfloat16 add up to a float32, from the smallest to the largest and with all bits set."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 2000, dtype=np.uint64).astype(np.uint32)
    x = np.concatenate([bits.view(np.float32), np.array([0, -0.0, 3.4e38, 1e-38, 1.9999999], np.float32)])
    x = x[np.isfinite(x) & ((np.abs(x) > 1e-30) | (x == 0))]  # below, the last part has too few bits left
    for u in x:
        parts = [bfloat16_of(word, half) for half in (0, 1) for word in split_bf16x3(u, -u)]
        assert sum(parts[:3]) == u and sum(parts[3:]) == -u


def check_rows() -> None:
    """Check norms, softmax and sums over tokens, whose blocks of four warps have a token each."""
    rng = np.random.default_rng(1)
    n, d, threads = 3, 200, 4 * 32
    x, w = rng.standard_normal((n, d)).astype(np.float32), rng.standard_normal(d).astype(np.float32)
    y, arena = np.empty(n * d, np.float32), as_chunks(w)
    tiles.launch(norms.norm, (n,), threads, x.reshape(-1), arena, 0, -1, d, False, np.float32(1e-5), y)
    np.testing.assert_allclose(y.reshape(n, d), ops.rms_norm(x, w, 1e-5), rtol=2e-6)
    tiles.launch(norms.norm, (n,), threads, x.reshape(-1), arena, 0, 0, d, True, np.float32(1e-5), y)
    np.testing.assert_allclose(y.reshape(n, d), ops.layer_norm(x, w, w, 1e-5), rtol=1e-5, atol=1e-6)
    scores = rng.standard_normal((2, n, 150 + n)).astype(np.float32)
    pattern = scores.reshape(-1).copy()
    tiles.launch(attention.softmax, (n, 2), threads, pattern, 150, n, np.float32(1))
    for t in range(n):
        got = pattern.reshape(scores.shape)[:, t]
        np.testing.assert_allclose(got[:, : 151 + t], ops.softmax(scores[:, t, : 151 + t]), rtol=1e-5)
        assert not got[:, 151 + t :].any()
    a = np.concatenate([x, np.round(x), np.zeros((1, d), np.float32)])
    counts, whole, sums = np.zeros(d, np.int64), np.zeros(len(a)), np.zeros(d)
    tiles.launch(statistics.count_cores, (len(a),), threads, a.reshape(-1), d, 0.3, False, counts)
    np.testing.assert_array_equal(counts, add_counts(np.zeros(d, np.int64), a, 0.3))
    tiles.launch(statistics.token_energies, (len(a),), threads, a.reshape(-1), d, whole)
    tiles.launch(statistics.add_relative_energy, (2,), threads, a.reshape(-1), len(a), d, whole, sums)
    np.testing.assert_allclose(sums, add_relative_energy(np.zeros(d), a, 0.3), rtol=1e-12)


def main() -> None:
    assert TILE == 64 and WARP_SIZE == 32
    check_cut()
    for whole in (True, False):
        check_product(make_tensor_core_product(), 128, 70, 40, 72, True, whole)
        check_product(make_tensor_core_product(), 128, 3, 72, 9, True, whole)
    check_product(make_product(3), PRODUCT_THREADS, 5, 21, 66, True, False)
    check_product(make_product(2), PRODUCT_THREADS, 66, 18, 5, False, False)
    check_rows()


if __name__ == "__main__":
    main()
