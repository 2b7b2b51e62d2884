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
# - write the forward pass of an OPT model in some thirty lines of array code,
# - say what every tensor on the way is called and what shape it has,
# - show that your logits are minicore's and Transformers'.
#
# The model is `minicore-opt-core`, which comes with minicore: small, and of the same architecture as
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
# ## Text to numbers
#
# The tokenizer cuts a text into tokens and gives each its id. The first one here marks the beginning of a
# text.

# %%
text = "The jury came back into the room, and everyone stood up. The judge asked for the"
ids = np.array(model.tokenizer.encode(text))
tokens = model.tokenizer.pieces(ids)
n = len(ids)
print(list(zip(tokens, ids.tolist(), strict=True)))

# %% [markdown]
# Every id has a row in the embedding matrix, every position one in another (OPT starts at row 2). Their sum
# is the **residual stream**: one row a token, to which each block adds.

# %%
w = model.params
x = w["embed"][ids] + w["pos_embed"][np.arange(n) + cfg.position_offset]
print("residual stream", x.shape)

# %% [markdown]
# ## Attention
#
# Each token makes a query, a key and a value for each head. A query's product with the keys says which
# tokens it looks at; what is later is masked out; the values are mixed accordingly.


# %%
def attention(x, p):  # (n, d_model) -> (n, d_model), (n_heads, n, n)
    n = len(x)
    q, k, v = (
        ops.linear(x, p[f"attn.w_{name}"], p[f"attn.b_{name}"]).reshape(n, cfg.n_heads, cfg.d_head)
        for name in "qkv"
    )
    scores = np.einsum("qhd,khd->hqk", q, k) / np.float32(np.sqrt(cfg.d_head))
    scores[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf  # the future
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
figure.supxlabel("token looked at")
_ = figure.supylabel("token that looks")

# %% [markdown]
# Rows add up to 1, and everything right of the diagonal is 0. A head dark along the diagonal looks at a
# token and its neighbours; one dark in the first column mostly rests there, which is how a head does
# nothing.
#
# ## The FFN and its neurons
#
# The other half of a block treats every token alone. `w_in` makes `n_neurons` numbers of it, ReLU sets the
# negative ones to zero, and `w_out` adds up: **neuron i adds its activation times row i of `w_out` to the
# stream**. These activations, `a`, are what all other notebooks are about.


# %%
def ffn(x, p):  # (n, d_model) -> (n, d_model), (n, n_neurons)
    a = np.maximum(ops.linear(x, p["mlp.w_in"], p["mlp.b_in"]), 0)
    return a @ p["mlp.w_out"] + p["mlp.b_out"], a


# %% [markdown]
# ## All of it
#
# A block is attention and FFN, each fed with the normed stream and added to it. After the last block come a
# norm and the head, which here is the embedding once more: a logit is how well a token's row fits the
# stream.


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
# ## Is it right?
#
# minicore's own pass gives the same logits, to a rounding. So does Transformers:
# `data/transformers_logits.npz` holds what it computed for the last three tokens of this text
# (`data/record_logits.py` is the script).

# %%
recorded = np.load("data/transformers_logits.npz")
assert np.array_equal(recorded["ids"], ids)


def furthest(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


print(f"from minicore     {furthest(logits, model.forward(ids)):.1e} of the largest logit")
print(f"from Transformers {furthest(logits[-3:], recorded['logits']):.1e}")
assert furthest(logits, model.forward(ids)) < 1e-4
assert furthest(logits[-3:], recorded["logits"]) < 1e-4

# %% [markdown]
# `run_with_cache` hands out every tensor by name, so that you need not write this again:

# %%
_, cache = model.run_with_cache(ids, ["blocks.0.attn.hook_pattern", "blocks.*.mlp.hook_post"])
print({name: value.shape for name, value in cache.items()})
assert np.allclose(cache["blocks.0.attn.hook_pattern"], pattern, atol=1e-3)
last = cfg.n_layers - 1
assert np.allclose(cache[f"blocks.{last}.mlp.hook_post"], activations[last], atol=1e-3)

# %% [markdown]
# ## Exercises
#
# **1.** What would the model say if it stopped after an earlier block? Apply the last norm and the head to
# the stream after each one (`blocks.*.hook_resid_post`) and print the likeliest next token. This is called
# the logit lens.

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
# **2.** Drop the last three tokens and compute all logits again. Which rows change, and why does that allow
# a kv cache?

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
shorter, _ = forward(ids[:-3])
print("largest change in the rows that stay:", np.abs(shorter - logits[:-3]).max())
# None but for rounding: a token sees what is before it alone. So its keys and values never change, and a
# decoder keeps them instead of computing them again.

# %% [markdown]
# **3.** Which share of the activations is zero, layer by layer? Draw one layer's with
# `plots.activation_map`.

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
for layer, a in enumerate(activations):
    print(f"layer {layer}: {np.mean(a == 0):.1%} of the activations are zero")
ax = plots.activation_map(activations[last], tokens)

# %% [markdown]
# Most are zero, and the rest differ from token to token. Notebook 02 asks which matter.
