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
# # 01 · A forward pass by hand
#
# After this notebook you will be able to
#
# - write the forward pass of an OPT model in about thirty lines of array code,
# - name every intermediate tensor and give its shape,
# - show that your logits match those of minicore and of Transformers.
#
# The model is `minicore-opt-core`. It ships with minicore, it is small, and it has the architecture of
# OPT-6.7B.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minicore as mc
from minicore import ops, plots

model = mc.load("minicore-opt-core")
cfg = model.config
print(model)
print(f"{cfg.n_heads} heads of {cfg.d_head}, vocabulary of {cfg.n_vocab}")

# %% [markdown]
# ## From text to token ids
#
# The tokenizer splits a text into tokens and gives each token an id. The first token here marks the
# beginning of the text.

# %%
text = "The jury came back into the room, and everyone stood up. The judge asked for the"
ids = np.array(model.tokenizer.encode(text))
tokens = model.tokenizer.pieces(ids)
n = len(ids)
print(list(zip(tokens, ids.tolist(), strict=True)))

# %% [markdown]
# Each id selects a row of the embedding matrix, and each position selects a row of the position
# embeddings (OPT starts at row 2). Their sum is the **residual stream**. It has one row per token, and
# every block adds to it.

# %%
w = model.params
x = w["embed"][ids] + w["pos_embed"][np.arange(n) + cfg.position_offset]
print("residual stream", x.shape)

# %% [markdown]
# ## Attention
#
# In each head, every token has a query, a key and a value. The dot products of a query with the keys give
# the scores: how much the token attends to each other token. Later tokens are masked out. The softmax of
# the scores gives the weights with which the values are averaged.


# %%
def attention(x, p):  # (n, d_model) -> (n, d_model), (n_heads, n, n)
    n = len(x)
    q, k, v = (
        ops.linear(x, p[f"attn.w_{name}"], p[f"attn.b_{name}"]).reshape(n, cfg.n_heads, cfg.d_head)
        for name in "qkv"
    )
    scores = np.einsum("qhd,khd->hqk", q, k) / np.float32(np.sqrt(cfg.d_head))
    scores[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf  # later tokens
    pattern = ops.softmax(scores)
    z = np.einsum("hqk,khd->qhd", pattern, v)
    return ops.linear(z.reshape(n, -1), p["attn.w_o"], p["attn.b_o"]), pattern


p = model.blocks[0]  # the first block's parameters
normed = ops.layer_norm(x, p["ln1.w"], p["ln1.b"], cfg.norm_eps)
_, pattern = attention(normed, p)

figure, axes = plt.subplots(2, 4, figsize=(9, 4.6), layout="constrained")
for head, ax in enumerate(axes.flat):
    ax.imshow(pattern[head], cmap="Blues", vmin=0, vmax=1)
    ax.set(title=f"head {head}", xticks=[], yticks=[])
figure.supxlabel("key position")
_ = figure.supylabel("query position")

# %% [markdown]
# Each row sums to 1, and everything right of the diagonal is 0. A head that is dark along the diagonal
# attends to the token itself and its neighbours. A head that is dark in the first column mostly attends
# to the first token, which is how a head does nothing.
#
# ## The FFN and its neurons
#
# The second half of a block processes each token separately. `w_in` projects the token to `n_neurons`
# values, ReLU sets the negative ones to zero, and `w_out` projects back: **neuron i adds its activation
# times row i of `w_out` to the stream**. All other notebooks are about these activations, `a`.


# %%
def ffn(x, p):  # (n, d_model) -> (n, d_model), (n, n_neurons)
    a = np.maximum(ops.linear(x, p["mlp.w_in"], p["mlp.b_in"]), 0)
    return a @ p["mlp.w_out"] + p["mlp.b_out"], a


# %% [markdown]
# ## The whole model
#
# A block consists of attention and an FFN. Each reads the normalized stream and adds its output to the
# stream. A final norm and the unembedding follow the last block. This model ties the unembedding to the
# embedding matrix: a token's logit is the dot product of its embedding with the stream.


# %%
def forward(ids):  # (n,) -> (n, n_vocab), activations of every layer
    x = w["embed"][ids] + w["pos_embed"][np.arange(len(ids)) + cfg.position_offset]
    activations = []
    for p in model.blocks:
        x = x + attention(ops.layer_norm(x, p["ln1.w"], p["ln1.b"], cfg.norm_eps), p)[0]
        out, a = ffn(ops.layer_norm(x, p["ln2.w"], p["ln2.b"], cfg.norm_eps), p)
        x = x + out
        activations.append(a)
    x = ops.layer_norm(x, w["ln_f.w"], w["ln_f.b"], cfg.norm_eps)
    return x @ w["embed"].T, activations


logits, activations = forward(ids)
probabilities = ops.softmax(logits[-1])
print(text + " ...")
for i in np.argsort(-probabilities)[:5]:
    print(f"  {probabilities[i]:6.1%}  {model.tokenizer.decode([i])!r}")

# %% [markdown]
# ## Is it correct?
#
# minicore's own forward pass gives the same logits up to rounding. So does Transformers:
# `data/transformers_logits.npz` holds its logits for the last three tokens of this text. The script
# `data/record_logits.py` recorded them.

# %%
recorded = np.load("data/transformers_logits.npz")
assert np.array_equal(recorded["ids"], ids)


def furthest(a, b):  # -> largest difference, relative to the largest logit
    return np.abs(a - b).max() / np.abs(b).max()


print(f"difference from minicore     {furthest(logits, model.forward(ids)):.1e} of the largest logit")
print(f"difference from Transformers {furthest(logits[-3:], recorded['logits']):.1e}")
assert furthest(logits, model.forward(ids)) < 1e-4
assert furthest(logits[-3:], recorded["logits"]) < 1e-4

# %% [markdown]
# `run_with_cache` returns every tensor by its hook name, so you do not have to write this code again:

# %%
_, cache = model.run_with_cache(ids, ["blocks.0.attn.hook_pattern", "blocks.*.mlp.hook_post"])
print({name: value.shape for name, value in cache.items()})
assert np.allclose(cache["blocks.0.attn.hook_pattern"], pattern, atol=1e-3)
last = cfg.n_layers - 1
assert np.allclose(cache[f"blocks.{last}.mlp.hook_post"], activations[last], atol=1e-3)

# %% [markdown]
# ## Exercises
#
# **1.** What would the model predict if it stopped after an earlier block? Apply the final norm and the
# unembedding to the stream after each block (`blocks.*.hook_resid_post`) and print the most likely next
# tokens. This technique is called the logit lens.

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
_, cache = model.run_with_cache(ids, "blocks.*.hook_resid_post")
for layer in range(cfg.n_layers):
    stream = cache[f"blocks.{layer}.hook_resid_post"][-1:]
    seen = ops.layer_norm(stream, w["ln_f.w"], w["ln_f.b"], cfg.norm_eps) @ w["embed"].T
    best = np.argsort(-seen[0])[:3]
    print(f"after block {layer}: {[model.tokenizer.decode([i]) for i in best]}")

# %% [markdown]
# **2.** Drop the last three tokens and compute all logits again. Which rows change, and why does the
# answer make a kv cache possible?

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
shorter, _ = forward(ids[:-3])
print("largest change in the remaining rows:", np.abs(shorter - logits[:-3]).max())
# No row changes, except by rounding: a token attends only to itself and earlier tokens. Its keys and values
# therefore never change, and a decoder caches them instead of computing them again.

# %% [markdown]
# **3.** What fraction of the activations is zero in each layer? Plot one layer with
# `plots.activation_map`.

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
for layer, a in enumerate(activations):
    print(f"layer {layer}: {np.mean(a == 0):.1%} of the activations are zero")
ax = plots.activation_map(activations[last], tokens)

# %% [markdown]
# Most activations are zero, and which ones are not differs from token to token. Notebook 02 asks which of
# them matter.
