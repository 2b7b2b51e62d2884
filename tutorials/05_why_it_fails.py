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
# # 05 · Why it fails on an ordinary small model, and what training changes
#
# After this notebook you will be able to
#
# - measure what one set of neurons for a whole text costs a model, and split the cost into its causes,
# - explain why OPT-6.7B may bear it and an ordinary small model does not,
# - say what training with the core mask in the loop does, and what it is paid with.
#
# Two models, alike in shape, data and seeds. `minicore-opt` was trained plainly. `minicore-opt-core` was
# then tuned with core sets in its training loop.

# %%
import json

import matplotlib.pyplot as plt
import numpy as np

import minicore as mc
from minicore import ops, plots
from minicore.evaluation import quality
from minicore.evaluation.texts import passages
from minicore.forward import forward, prefill

models = {name: mc.load(name) for name in ("minicore-opt", "minicore-opt-core")}
n_layers, n_neurons = models["minicore-opt"].config.n_layers, models["minicore-opt"].config.n_neurons
with open("data/topics.jsonl", encoding="utf-8") as lines:
    corpus = [json.loads(line) for line in lines]
text = next(row["text"] for row in corpus if row["label"] == "gardening")
prompt = models["minicore-opt"].tokenizer.encode(text)[:96]

# %% [markdown]
# ## What it looks like
#
# The same prompt, dense and with the 20% of the neurons that the prompt's core holds:

# %%
for name, model in models.items():
    for predictor in ("dense", "stability"):
        out = model.generate(prompt, max_new_tokens=32, predictor=predictor, alpha=0.4, beta=0.2)
        print(f"{name}, {predictor}: {out.text!r}\n")

# %% [markdown]
# ## What it costs
#
# Perplexity of the 48 tokens after a prompt of 64, over the model's own dense one. Three choices of
# different knowledge:
#
# - `stability`, CoreInfer's: from the prompt;
# - `oracle`: CoreInfer's choice, from prompt and continuation, which no prediction can have;
# - `topk`: each token its own largest activations: no set for a text at all.

# %%
study = {
    name: quality.evaluate(
        model,
        ["data/topics.jsonl"],
        ["stability", "oracle", "topk"],
        [0.1, 0.2, 0.4, 0.7],
        n_passages=8,
        prompt_tokens=64,
        continuation_tokens=48,
        fit_passages=0,
    )["settings"]
    for name, model in models.items()
}
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
for ax, (name, rows) in zip(axes, study.items(), strict=True):
    plots.quality_curves(rows, ax=ax)
    ax.set_title(f"{name}, dense perplexity {rows[0]['dense_perplexity'][0]:.1f}", fontsize=10)
axes[1].set_ylabel("")
_ = axes[1].tick_params(labelleft=True)

# %% [markdown]
# On the plain model `topk` is nearly free: the sparsity is there, **token by token**. But even the oracle's
# set is expensive: so it is not the prediction that fails first, it is the idea that many tokens can share
# one small set.
#
# ## Why: tokens spread over all neurons
#
# Read a text and count the neurons that were active at least once. If every token uses few but always
# others, the text uses all.

# %%
passage = passages(models["minicore-opt"], ["data/topics.jsonl"], 113, 12)[0]


def activations(model, ids):  # -> (n_layers, n_tokens, n_neurons)
    _, cache = model.run_with_cache(ids, "blocks.*.mlp.hook_post")
    return np.stack([cache[f"blocks.{i}.mlp.hook_post"] for i in range(n_layers)])


figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for mark, (name, model) in zip("os", models.items(), strict=True):
    active = np.stack([activations(model, one.ids) > 0 for one in passage])
    # (n_passages, n_layers, n_tokens, n_neurons)
    ever = np.logical_or.accumulate(active, axis=2).mean(axis=(0, 1, 3))
    axes[0].plot(np.arange(1, len(ever) + 1), ever, label=name)
    print(
        f"{name}: {active.mean():.1%} of the neurons are active for a token, "
        f"{ever[-1]:.0%} for some token of {len(ever)}"
    )
    outside = []
    for one in passage:
        a = activations(model, one.ids)
        core = mc.predict(model, one.ids[:64], "stability", 0.4, 0.2)
        rest = np.square(a[:, 65:], dtype=np.float64)
        kept = [rest[i][:, core.neurons[i]].sum() for i in range(n_layers)]
        whole = np.maximum(rest.sum(axis=(1, 2)), 1e-30)  # a layer may be silent
        outside.append((whole - kept) / whole)
    axes[1].plot(range(n_layers), np.mean(outside, axis=0), mark + "-", label=name)
axes[0].set(xlabel="tokens read", ylabel="neurons active so far", ylim=(0, 1))
axes[1].set(xlabel="layer", ylabel="energy outside the prompt's core", ylim=(0, None), xticks=range(n_layers))
for ax in axes:
    ax.legend(frameon=False)

# %% [markdown]
# On the right: of what the continuation's activations hold (their squares, summed), how much lies on
# neurons that the prompt's set of 20% leaves out. Compare the first layer of the two models: what is lost
# there spoils the input of all others, which none of them has ever seen in training. Exercise 1 measures
# layer by layer what that costs.
#
# The models of the paper are hundreds of times as large: 32 layers or more of 11008 neurons or more, each a
# smaller part of a wider stream. They may bear what a small one does not. This notebook measures instead of
# believing; do the same on yours.
#
# ## What training for it does
#
# A recipe of four lines, run for each batch (`weights/train` has all of it):
#
#     split, beta = random()                        # anywhere in the text; 0.07 to 0.7
#     core = sentence_core(activations[:split])     # of each layer, without gradient
#     activations[split:] *= core                   # what is outside is masked
#     loss = cross_entropy + distance to the plain model's logits
#
# One forward pass suffices, because attention is causal. The model learns to need fewer neurons, to choose
# them early, and to do without what is left out; the first two can be seen in the picture above. Does the
# set still have to be the right one? Other choices at the same size:

# %%
choices = ["stability", "griffin", "magnitude", "weight-norm", "random"]
rows = {}
for name, model in models.items():
    found = quality.evaluate(
        model,
        ["data/topics.jsonl"],
        choices,
        [0.2],
        n_passages=8,
        prompt_tokens=64,
        continuation_tokens=48,
        fit_passages=0,
    )["settings"]
    rows[name] = found
ax = plots.bars(
    {name: [np.log(row["ratio"][0]) for row in found] for name, found in rows.items()},
    choices,
    "nats lost a token (log of the ratio)",
)

# %% [markdown]
# ## Exercises
#
# **1.** Which layer hurts most? Restrict one layer at a time (`layers=[i]`) at beta 0.2 and draw the losses
# of both models.

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
hurt = {}
for name, model in models.items():
    hurt[name] = []
    for layer in range(n_layers):
        found = quality.evaluate(
            model,
            ["data/topics.jsonl"],
            ["stability"],
            [0.2],
            n_passages=4,
            prompt_tokens=64,
            continuation_tokens=48,
            fit_passages=0,
            layers=[layer],
        )["settings"]
        hurt[name].append(np.log(found[0]["ratio"][0]))
figure, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
x = np.arange(n_layers)
for shift, (name, lost) in zip((-0.2, 0.2), hurt.items(), strict=True):
    ax.bar(x + shift, lost, 0.38, label=name)
ax.axhline(0, color="gray", linewidth=1)
ax.set(xlabel="the layer restricted", ylabel="nats lost a token", xticks=x)
_ = ax.legend(frameon=False)

# %% [markdown]
# **2.** Is it enough that the *continuation* is read sparsely, or does the loss grow from token to token?
# Measure the loss against the position in the continuation for the plain model.

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
model = models["minicore-opt"]
lost = []
for one in passage:
    core = mc.predict(model, one.ids[:64], "stability", 0.4, 0.4)
    cache = mc.KVCache(model.config, len(one.ids))
    prefill(model, one.ids[:64], cache)
    nats = []
    for which in (model, model.restrict(core)):
        cache.length = 64
        logits = ops.log_softmax(forward(which, one.ids[64:-1], cache))
        nats.append(-logits[np.arange(len(logits)), one.ids[65:]])
    lost.append(nats[1] - nats[0])
blocks = np.mean(lost, axis=0)[:48].reshape(6, 8).mean(axis=1)
figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
ax.plot(np.arange(6) * 8 + 4, blocks, "o-")
_ = ax.set(xlabel="position in the continuation", ylabel="nats lost a token", ylim=(0, None))

# %% [markdown]
# **3.** `minicore pull smollm2-135m` fetches a model with 1536 gated SiLU neurons a layer. What changes in
# the definition of "active" there, and which predictor would you expect to lose least? Then look at the
# table in `docs/quality.md`.

# %% jupyter={"source_hidden": true} tags=["solution"]
# With SiLU no activation is exactly zero, and a large negative product matters as much as a positive one, yet
# CoreInfer counts positive values alone. GRIFFIN ranks by energy, signs aside, and loses least of those that
# choose from the prompt; each token's own choice loses a few per cent. A text's set is expensive there too.
