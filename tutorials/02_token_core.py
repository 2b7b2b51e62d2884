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
# # 02 · The core neurons of a token
#
# After this notebook you will be able to
#
# - compute a token's core neurons as CoreInfer defines them (arXiv 2410.18311, eq. 1),
# - measure how few neurons a token needs,
# - find out what a neuron responds to.
#
# You should know what the activations of an FFN are. Notebook 01 explains them.

# %%
import json

import matplotlib.pyplot as plt
import numpy as np

import minicore as mc
from minicore import ops, plots
from minicore.forward import forward

model = mc.load("minicore-opt-core")
n_layers, n_neurons = model.config.n_layers, model.config.n_neurons
with open("data/topics.jsonl", encoding="utf-8") as lines:
    texts = [json.loads(line)["text"] for line in lines]

text = "The jury came back into the room, and everyone stood up. The judge asked for the verdict."
ids = model.tokenizer.encode(text)
tokens = model.tokenizer.pieces(ids)
layer = n_layers - 1
_, cache = model.run_with_cache(ids, "blocks.*.mlp.hook_post")
a = cache[f"blocks.{layer}.mlp.hook_post"]  # (n_tokens, n_neurons)
a.shape

# %% [markdown]
# ## The definition
#
# Take a token's positive activations and keep the largest of them, a fraction **alpha**. The paper uses
# alpha = 0.4 everywhere. For one token this takes two lines:

# %%
alpha = 0.4
row = a[-2]
k = int(alpha * (row > 0).sum())
core = np.argsort(-row, kind="stable")[:k]
print(
    f"{tokens[-2]!r}: {(row > 0).sum()} of {n_neurons} neurons are active, {k} are core:",
    np.sort(core)[:8],
    "...",
)

# %% [markdown]
# `token_core` does this for all tokens at once and returns a mask. Where values are equal, it prefers the
# lower index. If a token has any positive activation, `token_core` keeps at least one.

# %%
core_of = mc.token_core(a, alpha)
assert np.array_equal(np.flatnonzero(core_of[-2]), np.sort(core))
ax = plots.activation_map(a, tokens, core=core_of, most=30)

# %% [markdown]
# A dot marks a core neuron. Most neurons are core for some tokens and silent for others. Different tokens
# also have different cores. A matrix of their Jaccard overlaps (size of the intersection over size of the
# union) shows this at a glance.

# %%
intersection, union = core_of[:, None] & core_of[None], core_of[:, None] | core_of[None]
overlap = intersection.sum(axis=2) / union.sum(axis=2)
ax = plots.overlap_matrix(overlap, tokens)

# %% [markdown]
# ## Is the core enough for a token?
#
# Set every activation outside the token's own core to zero, in all layers, and measure how much worse the
# model predicts the next token. `forward` calls a hook with each activation array before it uses the
# array, and the hook may change the array in place.


# %%
def nats(ids, change=lambda a: None):
    """Return the mean loss per token, in nats; `change` edits a layer's activations in place."""

    def hook(name, value):
        if name.endswith("mlp.hook_post"):
            change(value)

    logits = forward(model, np.array(ids), mc.KVCache(model.config, len(ids)), hook)
    return -ops.log_softmax(logits[:-1])[np.arange(len(ids) - 1), ids[1:]].mean()


def keep_core(alpha):
    def change(a):
        a[~mc.token_core(a, alpha)] = 0

    return change


passages = [model.tokenizer.encode(text)[:160] for text in texts[::30]]
dense = np.mean([nats(ids) for ids in passages])
alphas = [0.05, 0.1, 0.2, 0.4, 0.6, 0.8]
kept = [np.mean([nats(ids, keep_core(alpha)) for ids in passages]) for alpha in alphas]

figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
ax.semilogy(alphas, np.exp(np.array(kept) - dense), "o-")
ax.axhline(1, color="gray", linestyle="--", linewidth=1)
ax.set(xlabel="alpha: fraction of active neurons kept", ylabel="perplexity relative to dense")
ax.set_title(f"{len(passages)} texts, dense perplexity {np.exp(dense):.1f}", fontsize=10)
share = np.mean([mc.token_core(cache[f"blocks.{i}.mlp.hook_post"], 0.4).mean() for i in range(n_layers)])
print(f"at alpha 0.4 a token uses {share:.1%} of the neurons")

# %% [markdown]
# This is the paper's fig. 2a on a small model. A token needs only a few of its neurons, if we know which
# ones. That is the difficulty: this choice was made *after* all activations had been computed. Notebook
# 03 makes it beforehand.
#
# ## What does a neuron respond to?
#
# Take the neuron whose activation varies most from token to token, and find the places in a sample of the
# texts where it is strongest.

# %%
everything = [model.tokenizer.encode(text)[:200] for text in texts[::8]]
hook = f"blocks.{layer}.mlp.hook_post"
activations = [model.run_with_cache(ids, hook)[1][hook] for ids in everything]
peak, mean = (np.stack([getattr(a[1:], by)(axis=0) for a in activations]) for by in ("max", "mean"))
neuron = int(np.argmax(peak.max(axis=0) / (mean.mean(axis=0) + 0.05)))
pieces = [model.tokenizer.pieces(ids)[1:] for ids in everything]
ax = plots.top_snippets(pieces, [a[1:, neuron] for a in activations], n=8)
print(f"neuron {neuron} of layer {layer}")

# %% [markdown]
# ## Exercises
#
# **1.** What fraction of the sum of a token's activations lies in its core? Plot it against alpha, and
# read off the value at alpha = 0.4.

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
steps = np.linspace(0.05, 1, 20)
held = [(a * mc.token_core(a, one)).sum(axis=1) / a.sum(axis=1) for one in steps]
figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
ax.plot(steps, np.mean(held, axis=1))
ax.fill_between(steps, np.min(held, axis=1), np.max(held, axis=1), alpha=0.2)
_ = ax.set(xlabel="alpha", ylabel="fraction of activation in the core", title="mean and range over tokens")

# %% [markdown]
# **2.** Keep as many neurons as the core has, but choose them at random from the active ones. How much
# worse is the prediction?

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
rng = np.random.default_rng(0)


def keep_random(alpha):
    def change(a):
        shuffled = np.where(a > 0, rng.random(a.shape), 0)  # random values in place of the activations
        a[~mc.token_core(shuffled, alpha)] = 0

    return change


for name, change in (("core", keep_core(0.4)), ("random", keep_random(0.4))):
    ratio = np.exp(np.mean([nats(ids, change) for ids in passages]) - dense)
    print(f"{name:<7} {ratio:.2f} times the dense perplexity")

# %% [markdown]
# **3.** Take the word "bank" in "the bank of the river" and in "money in the bank". Do the two tokens
# share more core neurons than two different words do? Compare the first and the last layer.

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
found = {}
for words in (
    "They sat on the bank of the river",
    "She keeps her money in the bank",
    "They sat on the roof of",
):
    some = model.tokenizer.encode(words)
    at = max(i for i, piece in enumerate(model.tokenizer.pieces(some)) if piece in (" bank", " roof"))
    _, seen = model.run_with_cache(some, "blocks.*.mlp.hook_post")
    found[words] = [
        set(np.flatnonzero(mc.token_core(seen[f"blocks.{i}.mlp.hook_post"][at : at + 1], 0.4)))
        for i in range(n_layers)
    ]
river, money, roof = found.values()
for i in (0, n_layers - 1):
    same, other = (len(river[i] & them[i]) / len(river[i] | them[i]) for them in (money, roof))
    print(f"layer {i}: bank and bank {same:.2f}, bank and roof {other:.2f}")
# In the first layer the core depends mostly on the word, in the last layer more on its context.
