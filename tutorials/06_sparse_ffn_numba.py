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
# - compute from bytes and bandwidth how fast a matrix-vector product can be at best,
# - take an FFN of core neurons from NumPy to a kernel at more than half of that limit, and say what each
#   step gained,
# - measure it in a way that you would believe yourself,
# - read the decode step of a whole model in plain Numba loops.
#
# Decoding one token uses every weight once: little arithmetic, much reading. The measure of a kernel is
# therefore the **GB/s** of weights that it processes, compared with the bandwidth of a loop that only
# reads.

# %%
import inspect
import time

import matplotlib.pyplot as plt
import numba as nb
import numpy as np
from IPython.display import Code, display

import minicore as mc
from minicore import plots
from minicore.backends.cpu import plain_step
from minicore.backends.cpu.bandwidth import bandwidth, buffer

n, d, kept = 16384, 1024, 0.4  # neurons, width, fraction of core neurons
rng = np.random.default_rng(0)
w_in, w_out = (rng.integers(-2, 3, (n, d), dtype=np.int8).astype(np.float32) for _ in range(2))
x = rng.integers(-2, 3, d).astype(np.float32)
rows = np.sort(rng.permutation(n)[: int(kept * n)]).astype(np.int32)
print(
    f"two matrices of {w_in.nbytes / 1e6:.0f} MB; {len(rows) * d * 4 / 1e6:.0f} MB of each are core neurons"
)

# %% [markdown]
# We want to compute `y = w_out[rows].T @ relu(w_in[rows] @ x)`. Neuron i is row i of both matrices, so a
# core set is a list of rows, and each row is contiguous in memory. All values are small integers. Every
# order of summation then gives the same bits, and a kernel is correct if its result is **equal**.

# %%
want = np.maximum(w_in[rows] @ x, 0) @ w_out[rows]
active = np.count_nonzero(w_in[rows] @ x > 0)
n_threads = nb.get_num_threads()
memory = buffer(64 << 20)
limit = {threads: max(bandwidth(memory, threads, 1) for _ in range(40)) / 1e9 for threads in (1, n_threads)}
print(f"read bandwidth: {limit[1]:.0f} GB/s with one thread, {limit[n_threads]:.0f} with {n_threads}")

times, speeds = {}, {}


def fastest(function, runs=15):
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def rung(name, function, n_rows, size=4):
    """Check a kernel, then time it; the fastest of 15 runs is least disturbed by other work."""
    assert np.array_equal(function(), want), f"{name} is wrong"
    seconds = fastest(function)
    times[name] = 1e3 * seconds
    speeds[name] = n_rows * d * size / seconds / 1e9
    print(f"{' '.join(name.split()):<16} {times[name]:6.2f} ms  {speeds[name]:5.1f} GB/s")


# %% [markdown]
# ## Rung 0: NumPy
#
# With a mask, NumPy reads all rows and throws most of the work away. With an index it uses only the core
# rows, but it *copies* them first: it reads them, writes them and reads them again.

# %%
mask = np.zeros(n, np.float32)
mask[rows] = 1
rung("NumPy\nmasked", lambda: (np.maximum(w_in @ x, 0) * mask) @ w_out, 2 * n)
rung("NumPy\nindexed", lambda: np.maximum(w_in[rows] @ x, 0) @ w_out[rows], 2 * len(rows))

# %% [markdown]
# ## Rung 1: the loops, compiled
#
# This version makes no copy, but it is slow. A floating-point sum depends on its order, so the compiler
# must add one element after another and cannot use vector instructions.


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
# ## Rung 2: allow reordering
#
# `reassoc` allows another order of summation, and `contract` allows fused multiply-adds. Do not use
# `fastmath=True`: it also promises that no NaN and no infinity occurs, and a kernel that hides a NaN
# hides a bug.

# %%
vectorised = nb.njit(plain, fastmath={"reassoc", "contract"})
rung("reordered", lambda: vectorised(w_in, w_out, rows, x), 2 * len(rows))

# %% [markdown]
# ## Rung 3: skip what ReLU set to zero
#
# A zero activation adds nothing, so its row of `w_out` need not be read. One *fused* kernel computes the
# whole FFN, so the activation is available when the kernel decides whether to read the row.


# %%
@nb.njit(fastmath={"reassoc", "contract"}, nogil=True)
def skipping(w_in, w_out, rows, x, y):
    for r in range(rows.size):
        i = rows[r]
        a = np.float32(0)
        for j in range(x.size):
            a += w_in[i, j] * x[j]
        if not a <= 0:  # true for NaN, so that NaN reaches y
            for j in range(x.size):
                y[j] += a * w_out[i, j]
    return y


rung("zeros\nskipped", lambda: skipping(w_in, w_out, rows, x, np.zeros(d, np.float32)), len(rows) + active)

# %% [markdown]
# ## Rung 4: more threads
#
# Each thread processes part of the rows and has its own `y`, because two threads that add to the same
# elements would interfere. The partial results are summed at the end.


# %%
@nb.njit(parallel=True)
def threaded(split, w_in, w_out, x):  # (n_threads, n_rows), ... -> (n_threads, d)
    partial = np.zeros((split.shape[0], x.size), np.float32)
    for t in nb.prange(split.shape[0]):
        skipping(w_in, w_out, split[t], x, partial[t])
    return partial


split = rows[: len(rows) // n_threads * n_threads].reshape(n_threads, -1)
rest = rows[split.size :]


def with_threads():
    y = threaded(split, w_in, w_out, x).sum(axis=0)
    return skipping(w_in, w_out, rest, x, y)


rung(f"{n_threads} threads", with_threads, len(rows) + active)

# %% [markdown]
# ## Rung 5: fewer bytes
#
# When memory bandwidth is the limit, only reading less helps. A bfloat16 is the upper half of a float32.
# The conversion is a shift, which costs little while the loop waits for memory. In the stored run one
# thread takes 2.21 ms instead of 3.26. That is 1.5 times as fast, where half the bytes would allow a
# factor of 2: this loop is partly limited by its instructions.


# %%
@nb.njit(inline="always")
def to_float32(w):  # the bits of a bfloat16, uint16 -> float32
    return np.uint32(np.uint32(w) << np.uint32(16)).view(np.float32)


@nb.njit(fastmath={"reassoc", "contract"}, nogil=True)
def halved(w_in, w_out, rows, x):
    y = np.zeros(x.size, np.float32)
    for r in range(rows.size):
        i = rows[r]
        a = np.float32(0)
        for j in range(x.size):
            a += to_float32(w_in[i, j]) * x[j]
        if not a <= 0:
            for j in range(x.size):
                y[j] += a * to_float32(w_out[i, j])
    return y


h_in, h_out = ((w.view(np.uint32) >> 16).astype(np.uint16) for w in (w_in, w_out))
rung("bfloat16\n1 thread", lambda: halved(h_in, h_out, rows, x), len(rows) + active, size=2)

# %% [markdown]
# ## The ladder

# %%
figure, axes = plt.subplots(2, 1, figsize=(9, 6.4), layout="constrained")
plots.bars({"time": list(times.values())}, list(times), "ms", ax=axes[0])
plots.bars({"speed": list(speeds.values())}, list(speeds), "GB/s of weights needed", ax=axes[1])
axes[0].set_title(f"FFN of {n} neurons of width {d}, {kept:.0%} core", fontsize=10)
for threads, place in ((1, "top"), (n_threads, "bottom")):
    axes[1].axhline(limit[threads], color="gray", linestyle="--", linewidth=1)
    label = f"read only,\n{threads} thread{'s' * (threads > 1)}"
    axes[1].text(1.01, limit[threads], label, va=place, fontsize=8, transform=axes[1].get_yaxis_transform())
_ = axes[1].set_ylim(0, 1.2 * max(*limit.values(), *speeds.values()))

# %% [markdown]
# Read the figure from the bottom. Once a bar of the lower plot reaches its dashed line, a better kernel
# cannot gain anything, and only fewer bytes can. The stored figures come from 2 virtual cores of an AMD
# EPYC (Milan, AVX2) that ran nothing else. There, one thread reaches about 60% of its limit in float32,
# and two threads reach about 54% of theirs. NumPy with a mask comes closest to the limit, but it reads
# 2.5 times as much as needed. Other work on the machine changes all of these figures, and so do its
# neighbours on the same chip, so compare them only within one run.
#
# ## Where the ladder leads: a whole token
#
# `minicore/backends/cpu/plain_step.py` extends rung 3 from an FFN to a model. It runs one token through
# all layers in plain loops, in float32 and one thread, with the flags of rung 2. Here is its FFN. It also
# handles gated families, biases and the rules that skip neurons with small gates:

# %%
display(Code(inspect.getsource(plain_step.ffn.py_func), language="python"))

# %% [markdown]
# A block is attention plus this FFN. Read the file from `block` downwards. It follows
# `minicore/forward.py` function by function. The backend `numba` decodes with it:

# %%
model = mc.load("minicore-opt-core")
prompt = "The jury came back into the room, and everyone stood up. The judge asked for the"
decoded = {name: model.generate(prompt, max_new_tokens=16, backend=name) for name in ("numpy", "numba")}
assert decoded["numba"].token_ids == decoded["numpy"].token_ids
print(decoded["numba"].text)

# %% [markdown]
# The step after this one is `minicore/backends/cpu/step.py`. It computes the same function with LLVM
# vectors, several threads and compressed weights, and each thread runs a whole token in one compiled
# call. Tests compare it with `plain_step.py`.
#
# ## Exercises
#
# **1.** Does the order of the rows matter? Time `skipping` with the rows shuffled, and with rows of 32
# elements instead of 1024 (the same number of bytes in total).

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
# Rows of 4 KB are long enough that their order hardly matters. With rows of 128 bytes the hardware cannot
# prefetch, because it cannot predict which row comes next.

# %% [markdown]
# **2.** Show that `skipping` lets a NaN in `w_in` reach `y`, and that the same kernel with
# `fastmath=True` may not.

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
# **3.** How many operations per second do the kernels reach, and how many could the processor execute?
# Put two rungs into `plots.roofline`, with the peak of your processor in GFLOP/s (cores x clock x 2 x 16
# for AVX-512).

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
# Two operations per weight of 4 bytes are 0.5 per byte. The peak is that of one core with AVX-512:
# 16 lanes x 2 (multiply and add) x 2.5 GHz.
points = {"loop": (0.5, 0.5 * speeds["loop"]), "bfloat16": (1.0, 1.0 * speeds["bfloat16\n1 thread"])}
ax = plots.roofline(points, {"memory, one thread": limit[1]}, peak=16 * 2 * 2.5)
