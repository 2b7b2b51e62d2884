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
# # 03 · The core neurons of a sentence, and when they settle
#
# After this notebook you will be able to
#
# - compute sentence-wise core neurons (CoreInfer, eqs. 2 and 3) and decode with only those neurons,
# - show how the core settles as a text grows and how it follows a change of topic,
# - judge whether a prompt is long enough for its core to be used.
#
# Notebook 02 showed that a token needs few neurons, if they are chosen after the fact. CoreInfer starts
# from the observation that neighbouring tokens choose similar neurons: **let the prompt choose for the
# text that follows**.

# %%
import json

import matplotlib.pyplot as plt
import numpy as np

import minicore as mc
from minicore import plots
from minicore.core.stability import prefix_cores, prefix_counts, stability_curve

model = mc.load("minicore-opt-core")
n_layers, n_neurons = model.config.n_layers, model.config.n_neurons
with open("data/topics.jsonl", encoding="utf-8") as lines:
    corpus = [json.loads(line) for line in lines]
topics = sorted({row["label"] for row in corpus})
print(len(corpus), "texts about", ", ".join(topics))


def long_text(topic, n_tokens=400):
    """Return the token ids of several texts about one topic, joined."""
    joined = "\n\n".join(row["text"] for row in corpus if row["label"] == topic)
    return model.tokenizer.encode(joined)[:n_tokens]


def activations(ids):
    _, cache = model.run_with_cache(ids, "blocks.*.mlp.hook_post")
    return [cache[f"blocks.{layer}.mlp.hook_post"] for layer in range(n_layers)]


# %% [markdown]
# ## The definition
#
# For each neuron, count the tokens whose core contains it. This count is its frequency f. The core of the
# sentence is the fraction **beta** of the layer's neurons with the highest frequency. In the code, `f` is
# eq. 3, and `best` and `core` are eq. 2.

# %%
alpha, beta = 0.4, 0.3
ids = long_text(topics[0])
a = activations(ids)[-1]

f = mc.token_core(a, alpha).sum(axis=0)
best = np.argsort(-f, kind="stable")[: int(beta * n_neurons)]
core = np.sort(best[f[best] > 0])

assert np.array_equal(core, mc.sentence_core(a, alpha, beta))
print(
    f"{len(core)} of {n_neurons} neurons, each in the core of at least {f[core].min()} of {len(ids)} tokens"
)

# %% [markdown]
# The next figure shows the frequencies of one layer's first 256 neurons after 10, 50, 100, 200 and 300
# tokens, as the lower half of the paper's fig. 3 does.

# %%
lengths = [10, 50, 100, 200, 300]
figure, axes = plt.subplots(1, 5, figsize=(13, 2.9), layout="constrained")
for ax, n, counts in zip(axes, lengths, prefix_counts(a, alpha, lengths), strict=True):
    plots.frequency_grid(counts, n, ax=ax, vmax=0.5, colorbar=n == lengths[-1])
    ax.set(title=f"{n} tokens", xlabel="", ylabel="", xticks=[], yticks=[])

# %% [markdown]
# The grid starts as noise and turns into a stable pattern. To measure this, compare the core before and
# after sixteen more tokens:

# %%
lengths = list(range(16, 400, 16))
curves = [stability_curve(layer, alpha, beta, lengths) for layer in activations(ids)]
ax = plots.stability_curves(lengths, curves)
ax.set_title(f"a text about {topics[0]}, beta {beta}", fontsize=10)

ends = list(range(8, 400, 8))
sets = np.zeros((len(ends), n_neurons), np.float32)
for row, neurons in zip(sets, prefix_cores(a, alpha, beta, ends), strict=True):
    row[neurons] = 1
ax = plots.coordinates_over_length(sets, ends)

# %% [markdown]
# The first figure compares successive cores. The second follows the first two principal components of the
# core as the text grows. Both show fast changes at first and slow changes later, as in the paper's figs.
# 3b and 3c. Be careful: sixteen more tokens *must* change the core of 400 tokens less than the core of 32
# tokens, so part of the effect is arithmetic. Exercise 2 removes that part.
#
# ## When the topic changes
#
# The next text is half about one topic and half about another. Each step shows the core of the last 64
# tokens.

# %%
other = topics[len(topics) // 2]
shift = 192
mixed = long_text(topics[0], shift) + long_text(other, shift)[1:]
window, ends = 64, list(range(64, len(mixed) + 1, 8))
b = activations(mixed)[-1]
rows = np.zeros((len(ends), n_neurons), bool)
for row, end in zip(rows, ends, strict=True):
    row[mc.sentence_core(b[end - window : end], alpha, 0.1)] = True
ax = plots.timeline(rows, ends, shifts=[shift])
_ = ax.set_title(f"{topics[0]}, then {other}", fontsize=10, loc="right")

# %% [markdown]
# Old neurons leave the core and new ones enter it within the length of the window. A core that is fixed
# after the prompt does not follow such a change. The predictor `sliding` refreshes its core every 64
# tokens.
#
# ## Decoding with the core
#
# `generate` reads the prompt with all neurons and decodes with only the prompt's core.

# %%
prompt = long_text(topics[0], 120)
for predictor in ("dense", "stability"):
    out = model.generate(prompt, max_new_tokens=40, predictor=predictor, alpha=alpha, beta=beta)
    print(f"{predictor}, {out.stats['core_fraction']:.0%} of the neurons:{out.text}\n")

# %% [markdown]
# Does the prompt choose the right neurons? We measure **recall**: the fraction of the core of prompt
# *and* continuation that the prompt's core already contains. The predictor `oracle` computes the former.

# %%
for n in (8, 16, 32, 64, 128, 256):
    ids = long_text(topics[0], n + 64)
    chosen = mc.predict(model, ids[:n], "stability", alpha, beta)
    wanted = mc.predict(model, ids[:n], "oracle", alpha, beta, continuation=ids[n:])
    print(f"{n:4} tokens: recall {chosen.recall(wanted):.0%}, with {chosen.fraction:.0%} of all neurons kept")

# %% [markdown]
# ## Exercises
#
# **1.** A sentence-wise core does not depend on the order in which the activations are counted. Show
# this, and explain why the order of the words in the *text* matters nevertheless.

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
shuffled = np.random.default_rng(0).permutation(a)
assert np.array_equal(mc.sentence_core(shuffled, alpha, beta), mc.sentence_core(a, alpha, beta))
words = np.random.default_rng(0).permutation(ids[1:]).tolist()
same = mc.predict(model, ids, "stability", alpha, beta).jaccard(
    mc.predict(model, ids[:1] + words, "stability", alpha, beta)
)
print(f"same tokens in another order: Jaccard similarity of the cores {same:.2f}")
# Frequencies are a sum over tokens, so their order does not matter. But the activations of each token depend
# on the tokens before it.

# %% [markdown]
# **2.** Remove the arithmetic: compare the core of tokens 0 to n with the core of the *next n tokens*.
# The two stretches share no token. Does the similarity still rise with n? Repeat this with the second
# stretch taken from a text about another topic.

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
long, foreign = long_text(topics[0], 384), long_text(other, 384)
c, d = activations(long)[-1], activations(foreign)[-1]


def similarity(one, two):
    x, y = (set(mc.sentence_core(part, alpha, beta).tolist()) for part in (one, two))
    return len(x & y) / len(x | y)


ns = [8, 16, 32, 64, 96, 128, 192]
figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
ax.plot(ns, [similarity(c[:n], c[n : 2 * n]) for n in ns], "o-", label="next tokens of the same text")
ax.plot(ns, [similarity(c[:n], d[n : 2 * n]) for n in ns], "s--", label=f"tokens of a text about {other}")
ax.set(xlabel="tokens in each stretch", ylabel="similarity of the cores", ylim=(0, 1))
_ = ax.legend(frameon=False)
# It rises until about 128 tokens: longer stretches estimate the same frequencies with less noise. The gap
# between the two lines is what the core tells about the topic.

# %% [markdown]
# **3.** `mc.is_stable(model, ids)` estimates the recall from the prompt only. It was calibrated on
# SmolLM2-135M. Compare its estimate with the measured recall on this model, for prompts of 16, 64 and 256
# tokens.

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
for n in (16, 64, 256):
    ids = long_text(other, n + 128)
    wanted = mc.predict(model, ids[:n], "oracle", alpha, 0.4, continuation=ids[n:])
    found = mc.predict(model, ids[:n], "stability", alpha, 0.4).recall(wanted)
    print(f"{n:4} tokens: expected {mc.is_stable(model, ids[:n]).recall:.2f}, found {found:.2f}")
# Each model needs its own calibration. `minicore eval stability` computes one.
