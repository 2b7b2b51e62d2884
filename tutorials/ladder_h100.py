"""The ladder of tutorial 07: the FFN of one token on a GPU, from one thread per row to bfloat16 core rows.

    python tutorials/ladder_h100.py [-o tutorials/data/ladder_h100.json]

It needs a GPU, numba-cuda and NumPy, and takes about fifteen seconds. Every rung computes

    y += w_out[rows].T @ relu(w_in[rows] @ x)

for the FFN of OPT-30B (width 7168, 28672 neurons). All values are small integers, so every order of summation
gives the same bits. Results are compared with NumPy's bit for bit before anything is timed. CUDA events time
ten launches at a time; the report has medians and quartiles over interleaved rounds. GB/s are the bytes of
weights that must be read, divided by the time. The limit is what a kernel that only reads reaches in the same
run.

With NUMBA_ENABLE_CUDASIM=1 the kernels run in Python on small arrays. Kernels that sum over a warp are left
out, because the simulator has no shuffles.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import config, cuda, float32

Array = np.ndarray

SIMULATED = bool(config.ENABLE_CUDASIM)
WIDEST, MOST_THREADS, WARPS = 7168, 256, 8  # elements of x, threads and warps of a block
ALL = 0xFFFFFFFF  # mask of all lanes of a warp


# --- rung 1: one thread per row ---


@cuda.jit
def in_by_thread(w, rows, x, a):  # (n, d), (n_rows,), (d,), (n_rows,)
    r = cuda.grid(1)
    if r < rows.size:
        total = float32(0)
        for j in range(x.size):
            total += w[rows[r], j] * x[j]  # neighbouring threads read elements a whole row apart
        a[r] = max(total, float32(0))


@cuda.jit
def out_by_thread(w, rows, a, y):  # (n, d), (n_rows,), (n_rows,), (d,)
    j = cuda.grid(1)
    if j < y.size:
        total = float32(0)
        for r in range(rows.size):
            total += a[r] * w[rows[r], j]  # coalesced here, but there are only d threads
        y[j] += total


# --- rung 2: one block per row ---


@cuda.jit(device=True)
def block_sum(value):
    """Return the sum of the block's values to every thread; values are added pairwise in a tree."""
    part = cuda.shared.array(MOST_THREADS, float32)
    t, width = cuda.threadIdx.x, cuda.blockDim.x // 2
    part[t] = value
    cuda.syncthreads()
    while width > 0:
        if t < width:
            part[t] += part[t + width]
        cuda.syncthreads()
        width //= 2
    total = part[0]
    cuda.syncthreads()  # no thread writes the next value before all have read this one
    return total


@cuda.jit
def in_by_block(w, rows, x, a):
    r = cuda.blockIdx.x
    total = float32(0)
    for j in range(cuda.threadIdx.x, x.size, cuda.blockDim.x):
        total += w[rows[r], j] * x[j]  # neighbouring threads read neighbouring elements
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        a[r] = max(total, float32(0))


@cuda.jit
def out_by_block(w, rows, a, y):
    j = cuda.grid(1)
    if j < y.size:
        total = float32(0)
        for r in range(cuda.blockIdx.y, rows.size, cuda.gridDim.y):
            if a[r] > 0:  # a zero activation: its row need not be read
                total += a[r] * w[rows[r], j]
        cuda.atomic.add(y, j, total)  # other blocks add other rows to the same column


# --- rung 3: one kernel ---


@cuda.jit
def fused_by_block(w_in, w_out, rows, x, y):
    mine = cuda.shared.array(WIDEST, float32)  # the block's part of y; each thread uses its own columns
    t, step = cuda.threadIdx.x, cuda.blockDim.x
    for j in range(t, y.size, step):
        mine[j] = float32(0)
    for r in range(cuda.blockIdx.x, rows.size, cuda.gridDim.x):
        total = float32(0)
        for j in range(t, x.size, step):
            total += w_in[rows[r], j] * x[j]
        a = block_sum(total)
        if a > 0:  # the activation is in a register: no memory traffic, no second launch
            for j in range(t, y.size, step):
                mine[j] += a * w_out[rows[r], j]
    for j in range(t, y.size, step):
        cuda.atomic.add(y, j, mine[j])


# --- rung 5: one warp per row, eight rows at a time; needs a real GPU ---


@cuda.jit(device=True)
def warp_sum(value):
    """Return the sum of the warp's values to its first lane; values move between registers."""
    for offset in (16, 8, 4, 2, 1):
        value += cuda.shfl_down_sync(ALL, value, offset)
    return value


@cuda.jit
def fused_by_warps(w_in, w_out, rows, x, y):
    mine = cuda.shared.array(WIDEST, float32)
    a = cuda.shared.array(WARPS, float32)
    t, warp, lane = cuda.threadIdx.x, cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
    for j in range(t, y.size, MOST_THREADS):
        mine[j] = float32(0)
    for first in range(cuda.blockIdx.x * WARPS, rows.size, cuda.gridDim.x * WARPS):
        total = float32(0)
        if first + warp < rows.size:
            for j in range(lane, x.size, 32):
                total += w_in[rows[first + warp], j] * x[j]
        total = warp_sum(total)
        if lane == 0:
            a[warp] = max(total, float32(0))
        cuda.syncthreads()  # one barrier for eight rows
        for k in range(WARPS):
            if a[k] > 0:
                row = rows[first + k]
                for j in range(t, y.size, MOST_THREADS):
                    mine[j] += a[k] * w_out[row, j]
        cuda.syncthreads()
    for j in range(t, y.size, MOST_THREADS):
        cuda.atomic.add(y, j, mine[j])


# --- rung 6: bfloat16, two elements per word ---

if SIMULATED:

    def as_float(bits: Any) -> Any:
        """Return the float32 with the given 32 bits."""
        return np.uint32(bits).view(np.float32)

else:
    from numba.cuda import libdevice

    @cuda.jit(device=True)
    def as_float(bits):
        return libdevice.int_as_float(np.int32(bits))


@cuda.jit(device=True)
def first_half(pair):
    """Return the first bfloat16 of a word; a bfloat16 is the upper half of a float32."""
    return as_float(pair << np.uint32(16))


@cuda.jit(device=True)
def second_half(pair):
    return as_float(pair & np.uint32(0xFFFF0000))


@cuda.jit
def fused_bfloat16(w_in, w_out, rows, x, y):  # (n, d // 2) uint32 twice, ...
    mine = cuda.shared.array(WIDEST, float32)
    a = cuda.shared.array(WARPS, float32)
    t, warp, lane = cuda.threadIdx.x, cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
    for j in range(t, y.size, MOST_THREADS):
        mine[j] = float32(0)
    cuda.syncthreads()
    for first in range(cuda.blockIdx.x * WARPS, rows.size, cuda.gridDim.x * WARPS):
        total = float32(0)
        if first + warp < rows.size:
            for j in range(lane, x.size // 2, 32):
                pair = w_in[rows[first + warp], j]
                total += first_half(pair) * x[2 * j] + second_half(pair) * x[2 * j + 1]
        total = warp_sum(total)
        if lane == 0:
            a[warp] = max(total, float32(0))
        cuda.syncthreads()
        for k in range(WARPS):
            if a[k] > 0:
                row = rows[first + k]
                for j in range(t, y.size // 2, MOST_THREADS):
                    pair = w_out[row, j]
                    mine[2 * j] += a[k] * first_half(pair)
                    mine[2 * j + 1] += a[k] * second_half(pair)
        cuda.syncthreads()
    for j in range(t, y.size, MOST_THREADS):
        cuda.atomic.add(y, j, mine[j])


# --- the limit ---


@cuda.jit
def read_only(w, sums):  # (n,), (n_threads,)
    at, step, total = cuda.grid(1), cuda.gridsize(1), float32(0)
    for i in range(at, w.size, step):
        total += w[i]
    sums[at] = total


# --- measuring ---


class Rung(NamedTuple):
    """A step of the ladder: its name, its launch, and the bytes that it must read."""

    name: str
    launch: Callable[[], None]
    n_bytes: int
    want: Array | None  # the expected y after one launch


def halves(w: Array) -> Array:  # (n, d) float32 -> (n, d // 2) uint32
    """Pack values two per word as bfloat16, the upper half of float32; the lower halves must be zero."""
    return (np.ascontiguousarray(w).view(np.uint32) >> 16).astype(np.uint16).view(np.uint32)


def integers(rng: np.random.Generator, *shape: int) -> Array:
    """Return integers from -2 to 2 as float32; bfloat16 represents them exactly."""
    return rng.integers(-2, 3, shape, dtype=np.int8).astype(np.float32)


def rungs(n: int, d: int, kept: float, rng: np.random.Generator) -> tuple[list[Rung], Any]:
    """Copy the FFN to the GPU; return the steps of the ladder and the y that they add to."""
    w_in, w_out, x = integers(rng, n, d), integers(rng, n, d), integers(rng, d)
    everything = np.arange(n, dtype=np.int32)
    core = np.sort(rng.permutation(n)[: int(kept * n)]).astype(np.int32)
    a = np.maximum(w_in @ x, 0)
    on = cuda.to_device
    matrices = on(w_in), on(w_out)
    words = on(halves(w_in)), on(halves(w_out))
    x_there, y, a_there = on(x), on(np.zeros(d, np.float32)), on(np.zeros(n, np.float32))
    lists = {"all": (everything, on(everything)), "core": (core, on(core))}
    blocks = 4 if SIMULATED else 6 * cuda.get_current_device().MULTIPROCESSOR_COUNT
    threads = 8 if SIMULATED else MOST_THREADS

    def by_thread(rows):
        in_by_thread[-(-len(rows) // threads), threads](matrices[0], rows, x_there, a_there)
        out_by_thread[-(-d // threads), threads](matrices[1], rows, a_there, y)

    def by_block(rows):
        in_by_block[len(rows), threads](matrices[0], rows, x_there, a_there)
        out_by_block[(-(-d // threads), 2 if SIMULATED else 64), threads](matrices[1], rows, a_there, y)

    def fused(kernel, weights):
        return lambda rows: kernel[blocks, threads](*weights, rows, x_there, y)

    def rung(name, launch, which, size=4, skips=True):
        rows, there = lists[which]
        n_read = len(rows) + (np.count_nonzero(a[rows]) if skips else len(rows))
        return Rung(name, lambda: launch(there), int(n_read) * d * size, a[rows] @ w_out[rows])

    ladder = [
        rung("one thread per row", by_thread, "all", skips=False),
        rung("one block per row", by_block, "all"),
        rung("one kernel", fused(fused_by_block, matrices), "all"),
        rung("core rows only", fused(fused_by_block, matrices), "core"),
    ]
    if not SIMULATED:
        ladder += [
            rung("one warp per row", fused(fused_by_warps, matrices), "core"),
            rung("bfloat16", fused(fused_bfloat16, words), "core", size=2),
        ]
        flat, sums = matrices[0].ravel(), on(np.zeros(blocks * threads, np.float32))
        ladder.append(Rung("read only", lambda: read_only[blocks, threads](flat, sums), w_in.nbytes, None))
    return ladder, y


def check(ladder: list[Rung], y: Any) -> None:
    """Exit with an error unless the result of every rung equals that of NumPy, bit for bit."""
    for rung in ladder:
        y.copy_to_device(np.zeros(y.size, np.float32))
        rung.launch()
        if rung.want is not None and not np.array_equal(y.copy_to_host(), rung.want):
            raise SystemExit(f"{rung.name}: the result differs from that of NumPy")


def measure(ladder: list[Rung], rounds: int = 15, launches: int = 10) -> list[dict[str, Any]]:
    """Return for each rung the quartiles of its microseconds, its megabytes, and GB/s at the median."""
    seconds = np.zeros((len(ladder), rounds))
    for i in range(rounds):
        for rung, row in zip(ladder, seconds, strict=True):
            begin, end = cuda.event(), cuda.event()
            begin.record()
            for _ in range(launches):
                rung.launch()
            end.record()
            end.synchronize()
            row[i] = cuda.event_elapsed_time(begin, end) / 1e3 / launches
    quartiles = np.quantile(seconds[:, 1:], [0.25, 0.5, 0.75], axis=1).T  # the first round warms up
    return [
        {
            "name": rung.name,
            "microseconds": [round(1e6 * s, 2) for s in spread],
            "megabytes": round(rung.n_bytes / 1e6, 1),
            "gb_per_s": round(rung.n_bytes / spread[1] / 1e9, 1),
        }
        for rung, spread in zip(ladder, quartiles.tolist(), strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the ladder of tutorial 07 on a GPU.")
    default = Path(__file__).parent / "data" / "ladder_h100.json"
    parser.add_argument("-o", "--output", type=Path, default=default)
    parser.add_argument("--neurons", type=int, default=28672)
    parser.add_argument("--width", type=int, default=WIDEST)
    parser.add_argument("--kept", type=float, default=0.4)
    args = parser.parse_args()
    if not 2 <= args.width <= WIDEST or args.width % 2:
        parser.error(f"--width is {args.width}, expected an even number up to {WIDEST}")
    began = time.perf_counter()
    ladder, y = rungs(args.neurons, args.width, args.kept, np.random.default_rng(0))
    check(ladder, y)
    name = cuda.get_current_device().name
    found = {
        "device": name.decode() if isinstance(name, bytes) else str(name),
        "n_neurons": args.neurons,
        "d_model": args.width,
        "kept": args.kept,
        "rungs": measure(ladder),
    }
    args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for row in found["rungs"]:
        low, middle, high = row["microseconds"]
        print(f"{row['name']:<18} {middle:9.1f} us [{low:.1f}, {high:.1f}]  {row['gb_per_s']:7.1f} GB/s")
    print(f"{found['device']}; {time.perf_counter() - began:.1f} s in total; written to {args.output}")


if __name__ == "__main__":
    main()
