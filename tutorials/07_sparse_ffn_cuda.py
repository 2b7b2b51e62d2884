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
# - name what makes a GPU kernel slow: uncoalesced reads, too few threads, launches, bytes,
# - interpret measurements of the same kernels on an H100.
#
# A simulator stands in for the GPU and runs every GPU thread as a Python thread. It shows whether a
# kernel is *correct*, but tells nothing about speed. It must be enabled before Numba is imported.

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
    """Show the source of kernels in ladder_h100.py, the script that also measures them."""
    source = "\n\n".join(inspect.getsource(getattr(one, "fn", one)) for one in kernels)
    display(Code(source, language="python"))


# %% [markdown]
# ## A grid of threads
#
# A kernel describes the work of *one thread*. `kernel[blocks, threads](...)` launches it with that many
# blocks of that many threads, and each thread computes its own index.


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
# The task is that of notebook 06: `y += w_out[rows].T @ relu(w_in[rows] @ x)` with small integers, so a
# result is correct if it is equal. The sizes are tiny because the simulator is slow.

# %%
rng = np.random.default_rng(0)
n, d = 24, 32
w_in, w_out, x = (ladder.integers(rng, *shape) for shape in ((n, d), (n, d), (d,)))
rows = np.sort(rng.permutation(n)[: n // 2]).astype(np.int32)
want = np.maximum(w_in[rows] @ x, 0) @ w_out[rows]
threads = 8

# %% [markdown]
# ## Rung 1: one thread per row
#
# This is the obvious version. Its problem does not show in the code. At any moment the 32 threads of a
# *warp* read 32 elements that lie a whole row apart, so the memory delivers 32 sectors of 32 bytes to use
# 4 bytes of each. In addition, the second kernel has only as many threads as the model is wide: a few
# thousand, where the GPU needs a hundred thousand.

# %%
show(ladder.in_by_thread, ladder.out_by_thread)
a, y = np.zeros(len(rows), np.float32), np.zeros(d, np.float32)
ladder.in_by_thread[-(-len(rows) // threads), threads](w_in, rows, x, a)
ladder.out_by_thread[-(-d // threads), threads](w_out, rows, a, y)
assert np.array_equal(y, want)

# %% [markdown]
# ## Rung 2: one block per row
#
# Now neighbouring threads read neighbouring elements: the reads are *coalesced*. Each thread computes
# part of the sum, and the block adds the parts pairwise in shared memory. `syncthreads` is a barrier: no
# thread continues until all threads of the block have reached it. In the second kernel the rows are split
# over blocks as well. Several blocks then add to the same column, so they add atomically.

# %%
show(ladder.block_sum, ladder.in_by_block, ladder.out_by_block)
a[:], y[:] = 0, 0
ladder.in_by_block[len(rows), threads](w_in, rows, x, a)
ladder.out_by_block[(-(-d // threads), 2), threads](w_out, rows, a, y)
assert np.array_equal(y, want)

# %% [markdown]
# The figure shows the tree of that sum. 8 threads need 3 steps.

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
# A launch costs a few microseconds, as much as reading ten megabytes. With two kernels, the activations
# also pass through memory in between. In a fused kernel, a block has its activation at hand and adds the
# neuron's row of `w_out` immediately, or skips the row if the activation is zero.

# %%
show(ladder.fused_by_block)
y[:] = 0
ladder.fused_by_block[4, threads](w_in, w_out, rows, x, y)
assert np.array_equal(y, want)

# %% [markdown]
# ## Rungs 4 to 6: core rows only, warps, bfloat16
#
# The core set is just a shorter list of rows. Two more steps need a real GPU. The threads of a warp can
# exchange values without shared memory (*shuffles*, which the simulator lacks), so each warp computes one
# row and the block needs one barrier for eight rows. And bfloat16 packs two elements into a word of 4
# bytes, which halves the bytes to read.

# %%
show(ladder.warp_sum, ladder.fused_by_warps)

# %% [markdown]
# ## On an H100
#
# `python tutorials/ladder_h100.py` measures these kernels on a GPU and writes `data/ladder_h100.json`. It
# uses the FFN of OPT-30B (28672 neurons, width 7168), in float32 up to the last rung. GB/s are the bytes
# that a rung has to read divided by its time. The dashed line is a kernel that only reads.

# %%
recorded = Path("data/ladder_h100.json")
if recorded.exists():
    found = json.loads(recorded.read_text(encoding="utf-8"))
    *steps, reading = found["rungs"]
    print(f"{found['device']}: {found['n_neurons']} neurons of {found['d_model']}, core {found['kept']:.0%}")
    for row in found["rungs"]:
        low, middle, high = row["microseconds"]
        print(
            f"{row['name']:<18} {middle:8.1f} us [{low:.1f}, {high:.1f}] "
            f"{row['megabytes']:7.0f} MB {row['gb_per_s']:7.0f} GB/s"
        )
    figure, axes = plt.subplots(2, 1, figsize=(8, 6), layout="constrained")
    names = [
        row["name"].replace("one ", "one\n").replace(" per", "\nper").replace("core ", "core\n")
        for row in steps
    ]
    middle = [row["microseconds"][1] for row in steps]
    plots.bars({"time": middle}, names, "microseconds", ax=axes[0])
    plots.bars({"speed": [row["gb_per_s"] for row in steps]}, names, "GB/s", ax=axes[1])
    axes[0].set(yscale="log", ylim=(min(middle) / 3, max(middle) * 3))
    axes[1].axhline(reading["gb_per_s"], color="gray", linestyle="--", linewidth=1)
    axes[1].text(-0.45, reading["gb_per_s"], "read only", va="bottom", fontsize=8)
    _ = axes[1].set_ylim(0, 1.15 * max(row["gb_per_s"] for row in found["rungs"]))
else:
    print("no measurements recorded: run ladder_h100.py on a machine with a GPU")

# %% [markdown]
# In the stored run, one block per row is 10.7 times as fast as one thread per row, and the core rows take
# 43% of the time of all rows. One warp per row needs fewer barriers and is nevertheless *slower*, by a
# factor of 2.7. With bfloat16 the same scheme is the fastest rung. Measure each step, even one that seems
# obvious.
#
# ## Exercises
#
# **1.** Write a kernel `relu(x, y)`. Launch it with fewer threads than there are elements, so that each
# thread processes several (`for i in range(cuda.grid(1), x.size, cuda.gridsize(1))`, a *grid-stride*
# loop).

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
# **2.** Remove one `syncthreads` from a copy of `block_sum` and explain what may happen. Does the
# simulator show it?

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
# Without the first barrier a thread may add a neighbour's value before the neighbour has written it. Without
# the one in the loop it may add a partial sum that is one step ahead or behind. Without the last one the next
# value may overwrite part[0] before a slow thread has read it. The order of the simulator's threads is not
# defined, so it may or may not show a wrong sum. A race that does not show is still a race.

# %% [markdown]
# **3.** How long does one token of OPT-30B take at least, dense and with 20% of the neurons? Assume that
# the FFNs are 2/3 of its 60 GB in float16. Use the recorded figures or the 3.35 TB/s of the H100's data
# sheet.

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
for share in (1.0, 0.2):
    n_bytes = 60e9 * (1 / 3 + 2 / 3 * share)
    print(f"{share:.0%} of the neurons: {n_bytes / 1e9:.0f} GB, {1e3 * n_bytes / 3.35e12:.1f} ms per token")
# At most 2.1 times faster, whatever the kernel: the attention weights are still read in full.
