# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · A sparse FFN in Numba: the ladder
#
# After this notebook you will be able to
#
# - tell from bytes and bandwidth how fast a matrix-vector product can be at best,
# - take an FFN of core neurons from NumPy to a kernel near that limit, knowing what each step bought,
# - measure it so that you would believe it yourself.
#
# Decoding one token multiplies every weight once: little arithmetic, much reading. So a kernel is judged by
# the **GB/s** of weights it gets through, beside what the memory delivers to a loop that only reads.

# %%
import time

import matplotlib.pyplot as plt
import numba as nb
import numpy as np

from minicore import plots
from minicore.backends.cpu.bandwidth import bandwidth, buffer

n, d, kept = 16384, 1024, 0.4  # neurons, width, share of the neurons that are core
rng = np.random.default_rng(0)
w_in, w_out = (rng.integers(-2, 3, (n, d), dtype=np.int8).astype(np.float32) for _ in range(2))
x = rng.integers(-2, 3, d).astype(np.float32)
rows = np.sort(rng.permutation(n)[: int(kept * n)]).astype(np.int32)
print(
    f"two matrices of {w_in.nbytes / 1e6:.0f} MB; {len(rows) * d * 4 / 1e6:.0f} MB of each are core neurons"
)

# %% [markdown]
# What is to be computed: `y = w_out[rows].T @ relu(w_in[rows] @ x)`. Neuron i is row i of both matrices, so
# a core set is a list of rows, and a row lies in memory in one piece. The numbers are small integers: every
# order of summation gives the same bits, and a kernel is right if its result is **equal**.

# %%
want = np.maximum(w_in[rows] @ x, 0) @ w_out[rows]
active = np.count_nonzero(w_in[rows] @ x > 0)
reads = nb.get_num_threads()
memory = buffer(64 << 20)
limit = {threads: max(bandwidth(memory, threads, 1) for _ in range(40)) / 1e9 for threads in (1, reads)}
print(f"memory gives {limit[1]:.0f} GB/s to one thread, {limit[reads]:.0f} to {reads}")

times, speeds = {}, {}


def fastest(function, runs=15):
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def rung(name, function, n_rows, size=4):
    """Check a kernel, then time it: the fastest of 15 runs, for what other work adds is not the kernel's."""
    assert np.array_equal(function(), want), f"{name} is wrong"
    seconds = fastest(function)
    times[name] = 1e3 * seconds
    speeds[name] = n_rows * d * size / seconds / 1e9
    print(f"{' '.join(name.split()):<16} {times[name]:6.2f} ms  {speeds[name]:5.1f} GB/s")


# %% [markdown]
# ## Rung 0: NumPy
#
# With a mask all rows are read and most of the work is thrown away. With an index only the core's rows are
# used, but NumPy first *copies* them: read, write, read again.

# %%
mask = np.zeros(n, np.float32)
mask[rows] = 1
rung("NumPy\nmasked", lambda: (np.maximum(w_in @ x, 0) * mask) @ w_out, 2 * n)
rung("NumPy\nindexed", lambda: np.maximum(w_in[rows] @ x, 0) @ w_out[rows], 2 * len(rows))

# %% [markdown]
# ## Rung 1: the loops, compiled
#
# No copy any more. And slow, for a reason: a sum of floats depends on its order, so the compiler must add
# one number after the other and may not use the vector unit.


# %%
def plain(w_in, w_out, rows, x):  # (n, d), (n, d), (n_rows,), (d,) -> (d,)
    y = np.zeros(x.size, np.float32)
    for r in range(rows.size):
        i = rows[r]
        a = np.float32(0)
        for j in range(x.size):
            a += w_in[i, j] * x[j]
        a = max(a, np.float32(0))
        for j in range(x.size):
            y[j] += a * w_out[i, j]
    return y


loop = nb.njit(plain)
rung("loop", lambda: loop(w_in, w_out, rows, x), 2 * len(rows))

# %% [markdown]
# ## Rung 2: let it reorder
#
# `reassoc` allows another order of summation, `contract` a fused multiply-add. Not `fastmath=True`: that
# also promises that there is no NaN and no infinity, and a kernel that hides a NaN hides a fault.

# %%
vectorised = nb.njit(plain, fastmath={"reassoc", "contract"})
rung("reordered", lambda: vectorised(w_in, w_out, rows, x), 2 * len(rows))

# %% [markdown]
# ## Rung 3: leave out what ReLU left out
#
# An activation of zero adds nothing. Its row of `w_out` need not be read. The loop is one kernel for the
# whole FFN (*fused*), so the activation is at hand when that is decided.


# %%
@nb.njit(fastmath={"reassoc", "contract"}, nogil=True)
def skipping(w_in, w_out, rows, x, y):
    for r in range(rows.size):
        i = rows[r]
        a = np.float32(0)
        for j in range(x.size):
            a += w_in[i, j] * x[j]
        if not a <= 0:  # so that NaN passes
            for j in range(x.size):
                y[j] += a * w_out[i, j]
    return y


rung("zeros\nskipped", lambda: skipping(w_in, w_out, rows, x, np.zeros(d, np.float32)), len(rows) + active)

# %% [markdown]
# ## Rung 4: more threads
#
# Each thread takes a share of the rows and has a `y` of its own, for two threads that add to the same
# numbers would get in each other's way. The shares are added up at the end.


# %%
@nb.njit(parallel=True)
def threaded(kernel_rows, w_in, w_out, x):
    shares = np.zeros((kernel_rows.shape[0], x.size), np.float32)
    for t in nb.prange(kernel_rows.shape[0]):
        skipping(w_in, w_out, kernel_rows[t], x, shares[t])
    return shares


split = rows[: len(rows) // reads * reads].reshape(reads, -1)
rest = rows[split.size :]


def with_threads():
    y = threaded(split, w_in, w_out, x).sum(axis=0)
    return skipping(w_in, w_out, rest, x, y)


rung(f"{reads} threads", with_threads, len(rows) + active)

# %% [markdown]
# ## Rung 5: fewer bytes
#
# When the memory is the limit, only reading less helps. A bfloat16 is the upper half of a float32: widening
# it is a shift, which costs nothing while the loop waits for memory.


# %%
@nb.njit(inline="always")
def widen(w):  # uint16 -> float32
    return np.uint32(np.uint32(w) << np.uint32(16)).view(np.float32)


@nb.njit(fastmath={"reassoc", "contract"}, nogil=True)
def halved(w_in, w_out, rows, x):
    y = np.zeros(x.size, np.float32)
    for r in range(rows.size):
        i = rows[r]
        a = np.float32(0)
        for j in range(x.size):
            a += widen(w_in[i, j]) * x[j]
        if not a <= 0:
            for j in range(x.size):
                y[j] += a * widen(w_out[i, j])
    return y


h_in, h_out = ((w.view(np.uint32) >> 16).astype(np.uint16) for w in (w_in, w_out))
rung("bfloat16\n1 thread", lambda: halved(h_in, h_out, rows, x), len(rows) + active, size=2)

# %% [markdown]
# ## The ladder

# %%
figure, axes = plt.subplots(2, 1, figsize=(9, 6.4), layout="constrained")
plots.bars({"time": list(times.values())}, list(times), "ms", ax=axes[0])
plots.bars({"speed": list(speeds.values())}, list(speeds), "GB/s of weights needed", ax=axes[1])
axes[0].set_title(f"FFN of {n} neurons, width {d}, {kept:.0%} of them core", fontsize=10)
for threads, place in ((1, "top"), (reads, "bottom")):
    axes[1].axhline(limit[threads], color="gray", linestyle="--", linewidth=1)
    said = f"reading alone,\n{threads} thread{'s' * (threads > 1)}"
    axes[1].text(1.01, limit[threads], said, va=place, fontsize=8, transform=axes[1].get_yaxis_transform())
_ = axes[1].set_ylim(0, 1.2 * max(*limit.values(), *speeds.values()))

# %% [markdown]
# Read the picture from the bottom: once the bars of speed reach the dashed line there is nothing left to
# gain from a better kernel, only from fewer bytes. The figures kept here are of 2 virtual cores of an AMD
# EPYC (Milan, AVX2) that did nothing else. Other work on the machine moves all of these figures, and so do
# its neighbours on the same chip; compare them within a run. `minicore/backends/cpu/step.py` is this ladder's
# end: a whole token in one compiled call a thread.
#
# ## Exercises
#
# **1.** Does the order of the rows matter? Time `skipping` with the rows shuffled, and with rows of 32
# numbers instead of 1024 (the same number of bytes in all).

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
shuffled = rng.permutation(rows)
rung("shuffled", lambda: skipping(w_in, w_out, shuffled, x, np.zeros(d, np.float32)), len(rows) + active)
short_in, short_out = w_in.reshape(-1, 32), w_out.reshape(-1, 32)
many = rng.permutation(len(short_in))[: len(rows) * 32].astype(np.int32)
seconds = fastest(lambda: skipping(short_in, short_out, many, x[:32], np.zeros(32, np.float32)))
needed = (len(many) + np.count_nonzero(short_in[many] @ x[:32] > 0)) * 32 * 4
print(f"short rows, shuffled           {needed / seconds / 1e9:5.1f} GB/s")
# Rows of 4 kB are long enough that their order hardly matters. Short ones keep the memory guessing.

# %% [markdown]
# **2.** Show that `skipping` lets a NaN in `w_in` reach `y`, and that the same kernel with `fastmath=True`
# need not.

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
careless = nb.njit(skipping.py_func, fastmath=True)
spoiled = w_in[rows[:8]].copy()
spoiled[3, 5] = np.nan
some = np.arange(8, dtype=np.int32)
for name, kernel in (("reassoc, contract", skipping), ("fastmath=True", careless)):
    y = kernel(spoiled, w_out[rows[:8]], some, x, np.zeros(d, np.float32))
    print(f"{name:<18} {np.isnan(y).sum()} of {d} outputs are NaN")

# %% [markdown]
# **3.** How many multiplications a second are that, and how many could the processor do? Put a rung into
# `plots.roofline` with a peak of your processor (cores x clock x 2 x 16 for AVX-512, in GFLOP/s).

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
# Two operations for each weight of 4 bytes: 0.5 a byte. 16 lanes x 2 (multiply and add) x 2.5 GHz, one core.
points = {"loop": (0.5, 0.5 * speeds["loop"]), "bfloat16": (1.0, 1.0 * speeds["bfloat16\n1 thread"])}
ax = plots.roofline(points, {"memory, one thread": limit[1]}, peak=16 * 2 * 2.5)
