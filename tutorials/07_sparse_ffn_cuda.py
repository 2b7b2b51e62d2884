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
# # 07 · The same ladder on a GPU
#
# After this notebook you will be able to
#
# - write CUDA kernels in Python with `numba.cuda`, and try them on a machine without a GPU,
# - say why a GPU kernel is slow: uncoalesced reads, too few threads, launches, bytes,
# - read the figures of the same kernels on an H100.
#
# A simulator stands in for the GPU: every thread is a Python thread. It is good for finding out whether a
# kernel is *right*, and says nothing about speed. It has to be switched on before Numba is imported.

# %%
import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"

import inspect
import json
from pathlib import Path

import ladder_h100 as ladder
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Code, display
from numba import cuda, float32

from minicore import plots


def show(*kernels):
    """Show the source of kernels of ladder_h100.py, the script that also measures them."""
    source = "\n\n".join(inspect.getsource(getattr(one, "fn", one)) for one in kernels)
    display(Code(source, language="python"))


# %% [markdown]
# ## A grid of threads
#
# A kernel is what *one thread* does. It is launched as `kernel[blocks, threads](...)`: so many blocks of so
# many threads, and each thread finds out who it is.


# %%
@cuda.jit
def who(where):
    i = cuda.grid(1)  # blockIdx.x * blockDim.x + threadIdx.x
    if i < where.size:  # there may be more threads than work
        where[i] = cuda.blockIdx.x


where = np.zeros(10, np.int32)
who[3, 4](where)
print(where)

# %% [markdown]
# ## The task
#
# As in notebook 06: `y += w_out[rows].T @ relu(w_in[rows] @ x)`, in small integers, so that results are
# right if they are equal. Sizes are tiny here, because the simulator is slow.

# %%
rng = np.random.default_rng(0)
n, d = 24, 32
w_in, w_out, x = (ladder.integers(rng, *shape) for shape in ((n, d), (n, d), (d,)))
rows = np.sort(rng.permutation(n)[: n // 2]).astype(np.int32)
want = np.maximum(w_in[rows] @ x, 0) @ w_out[rows]
threads = 8

# %% [markdown]
# ## Rung 1: a thread a row
#
# The obvious way. Its fault is invisible in the code: at any moment 32 threads of a *warp* read 32 numbers
# that lie a whole row apart, and the memory delivers 32 pieces of 32 bytes to use 4 of each. And the second
# kernel has only as many threads as the model is wide, a few thousand where the GPU wants a hundred
# thousand.

# %%
show(ladder.in_by_thread, ladder.out_by_thread)
a, y = np.zeros(len(rows), np.float32), np.zeros(d, np.float32)
ladder.in_by_thread[-(-len(rows) // threads), threads](w_in, rows, x, a)
ladder.out_by_thread[-(-d // threads), threads](w_out, rows, a, y)
assert np.array_equal(y, want)

# %% [markdown]
# ## Rung 2: a block a row
#
# Now neighbouring threads read neighbouring numbers: reads are *coalesced*. Each has a part of the sum, and
# the block adds the parts up in shared memory, pairs first. `syncthreads` is a barrier: nobody goes on
# before all have come. On the way out, rows are split over blocks too, and since several blocks add to the
# same column, they do it atomically.

# %%
show(ladder.block_sum, ladder.in_by_block, ladder.out_by_block)
a[:], y[:] = 0, 0
ladder.in_by_block[len(rows), threads](w_in, rows, x, a)
ladder.out_by_block[(-(-d // threads), 2), threads](w_out, rows, a, y)
assert np.array_equal(y, want)

# %% [markdown]
# The tree of that sum, drawn: 8 threads need 3 steps.

# %%
figure, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
part, width = np.arange(1, 9), 4
for step in range(4):
    for t, value in enumerate(part[: 8 >> step]):
        ax.text(
            t,
            -step,
            value,
            ha="center",
            va="center",
            bbox={"boxstyle": "round", "fc": "#cfe5f3", "ec": "none"},
        )
        if step < 3 and t >= 8 >> step + 1:
            ax.plot([t, t - (8 >> step + 1)], [-step - 0.18, -step - 0.82], color="gray", linewidth=1)
        elif step < 3:
            ax.plot([t, t], [-step - 0.18, -step - 0.82], color="gray", linewidth=1)
    part = part[: 4 >> step] + part[4 >> step : 8 >> step]
_ = ax.set(xticks=range(8), yticks=[], xlabel="thread", xlim=(-0.6, 7.6), ylim=(-3.4, 0.4))

# %% [markdown]
# ## Rung 3: one kernel
#
# A launch costs some microseconds, as much as reading ten megabytes. And in two kernels the activations go
# through memory in between. Fused, a block knows its activation and adds the neuron's row of `w_out` at
# once, or leaves it out.

# %%
show(ladder.fused_by_block)
y[:] = 0
ladder.fused_by_block[4, threads](w_in, w_out, rows, x, y)
assert np.array_equal(y, want)

# %% [markdown]
# ## Rungs 4 to 6: the core alone, warps, bfloat16
#
# The core set is only a shorter list of rows. Then two more steps that need a GPU: threads of one warp can
# hand each other numbers without shared memory (*shuffles*, which the simulator lacks), so that a warp does
# a row and a block needs one barrier for eight of them; and bfloat16, two numbers to a word of 4 bytes,
# halves what is read.

# %%
show(ladder.warp_sum, ladder.fused_by_warps)

# %% [markdown]
# ## On an H100
#
# `python tutorials/ladder_h100.py` measures these kernels on a GPU, for the FFN of OPT-30B (28672 neurons
# of width 7168, the first rungs in float32), and writes `data/ladder_h100.json`. GB/s are the bytes that a
# rung has to read over the time it takes; the dashed line is a kernel that only reads.

# %%
recorded = Path("data/ladder_h100.json")
if recorded.exists():
    found = json.loads(recorded.read_text(encoding="utf-8"))
    *steps, reading = found["rungs"]
    print(f"{found['device']}: {found['n_neurons']} neurons of {found['d_model']}, core {found['kept']:.0%}")
    for row in found["rungs"]:
        low, middle, high = row["microseconds"]
        print(
            f"{row['name']:<16} {middle:8.1f} us [{low:.1f}, {high:.1f}] "
            f"{row['megabytes']:7.0f} MB {row['gb_per_s']:7.0f} GB/s"
        )
    figure, axes = plt.subplots(2, 1, figsize=(8, 6), layout="constrained")
    names = [
        row["name"].replace(" a ", "\na ").replace("one ", "one\n").replace("core ", "core\n")
        for row in steps
    ]
    middle = [row["microseconds"][1] for row in steps]
    plots.bars({"time": middle}, names, "microseconds", ax=axes[0])
    plots.bars({"speed": [row["gb_per_s"] for row in steps]}, names, "GB/s", ax=axes[1])
    axes[0].set(yscale="log", ylim=(min(middle) / 3, max(middle) * 3))
    axes[1].axhline(reading["gb_per_s"], color="gray", linestyle="--", linewidth=1)
    axes[1].text(-0.45, reading["gb_per_s"], "reading alone", va="bottom", fontsize=8)
    _ = axes[1].set_ylim(0, 1.15 * max(row["gb_per_s"] for row in found["rungs"]))
else:
    print("nothing recorded yet: run ladder_h100.py where there is a GPU")

# %% [markdown]
# ## Exercises
#
# **1.** Write a kernel `relu(x, y)` and launch it with too few threads for the data, so that each takes
# several numbers (`for i in range(cuda.grid(1), x.size, cuda.gridsize(1))`, a *grid-stride* loop).

# %%
# your code


# %% jupyter={"source_hidden": true} tags=["solution"]
@cuda.jit
def relu(x, y):
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        y[i] = max(x[i], float32(0))


values, out = np.linspace(-1, 1, 50, dtype=np.float32), np.zeros(50, np.float32)
relu[2, 8](values, out)
assert np.array_equal(out, np.maximum(values, 0))

# %% [markdown]
# **2.** Take one `syncthreads` out of a copy of `block_sum` and explain what may happen. Does the simulator
# show it?

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
# Without the first barrier a thread may add a neighbour's number before the neighbour has written it; without
# the one in the loop it may add one that is already a sum, or not yet; without the last, the next value may
# overwrite part[0] before a slow thread has read it. The simulator's threads take turns as they like, so it
# may show a wrong sum, or not: a race that does not show is still a race.

# %% [markdown]
# **3.** From the recorded figures or from 3.35 TB/s (the H100's data sheet): how long does a token of
# OPT-30B take at least if FFNs are 2/3 of its 60 GB in float16, dense and with 20% of the neurons?

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
for share in (1.0, 0.2):
    n_bytes = 60e9 * (1 / 3 + 2 / 3 * share)
    print(f"{share:.0%} of the neurons: {n_bytes / 1e9:.0f} GB, {1e3 * n_bytes / 3.35e12:.1f} ms a token")
# At most 2.1 times faster, whatever the kernel: attention's weights are read all the same.
