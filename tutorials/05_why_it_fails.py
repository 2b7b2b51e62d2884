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
# - measure the cost of using one core for a whole text, and split the cost into its causes,
# - explain why OPT-6.7B may tolerate it when an ordinary small model does not,
# - describe what training with the core mask in the loop does, and what it costs.
#
# We compare two models of the same shape, trained on the same data with the same seeds. `minicore-opt`
# was trained plainly. `minicore-opt-core` was then fine-tuned with core masks in its training loop.

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
# Both models continue the same prompt, first with all neurons and then with the prompt's core of 20%:

# %%
for name, model in models.items():
    for predictor in ("dense", "stability"):
        out = model.generate(prompt, max_new_tokens=32, predictor=predictor, alpha=0.4, beta=0.2)
        print(f"{name}, {predictor}: {out.text!r}\n")

# %% [markdown]
# ## What it costs
#
# We measure the perplexity of the 48 tokens that follow a prompt of 64 tokens, relative to the perplexity
# of the same model with all neurons. The three predictors differ in what they know:
#
# - `stability` is CoreInfer's choice. It sees only the prompt.
# - `oracle` applies CoreInfer's rule to prompt and continuation. No predictor can know that much.
# - `topk` keeps the largest activations of each token. It does not choose one core for the text.

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
# On the plain model `topk` costs almost nothing from beta = 0.2 on. The sparsity exists, but **token by
# token**. Even the core of the oracle is expensive. Prediction is therefore not the first thing that
# fails: the first thing is the assumption that many tokens can share one small core.
#
# ## Why: tokens spread over all neurons
#
# Read a text and count the neurons that were active at least once. If every token uses few neurons, but
# each token uses different ones, the text as a whole uses all of them.

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
        f"{name}: a token activates {active.mean():.1%} of the neurons on average, "
        f"{len(ever)} tokens together activate {ever[-1]:.0%}"
    )
    outside = []
    for one in passage:
        a = activations(model, one.ids)
        core = mc.predict(model, one.ids[:64], "stability", 0.4, 0.2)
        rest = np.square(a[:, 65:], dtype=np.float64)
        kept = [rest[i][:, core.neurons[i]].sum() for i in range(n_layers)]
        whole = np.maximum(rest.sum(axis=(1, 2)), 1e-30)  # avoids 0 / 0 where a layer is silent
        outside.append((whole - kept) / whole)
    axes[1].plot(range(n_layers), np.mean(outside, axis=0), mark + "-", label=name)
axes[0].set(xlabel="tokens read", ylabel="fraction of neurons active so far", ylim=(0, 1))
axes[1].set(
    xlabel="layer", ylabel="fraction of energy outside the core", ylim=(0, None), xticks=range(n_layers)
)
for ax in axes:
    ax.legend(frameon=False)

# %% [markdown]
# The right-hand plot takes the energy of the continuation's activations (the sum of their squares) and
# shows which fraction lies on neurons outside the prompt's core of 20%. Compare the first layer of the
# two models. What is lost there changes the input of all later layers, and the plain model never saw such
# inputs in training. Exercise 1 measures the cost layer by layer.
#
# The models of the paper are hundreds of times larger. They have 32 or more layers of 11008 or more
# neurons, and each neuron is a smaller part of a wider stream. They may tolerate what a small model does
# not. This notebook measures it for two small models, and you can do the same for yours.
#
# ## What training for it does
#
# The recipe has four lines, which run for each batch (`weights/train` has the full code):
#
#     split, beta = random()                        # anywhere in the text; 0.07 to 0.7
#     core = sentence_core(activations[:split])     # of each layer, without gradient
#     activations[split:] *= core                   # mask everything outside the core
#     loss = cross_entropy + distance to the plain model's logits
#
# One forward pass is enough, because attention is causal. The model learns to use fewer neurons, to use
# them early, and to do without the others. The previous figure shows the first two effects. Does the
# choice of core still matter? The next figure compares other choices of the same size:

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
    "loss increase per token (nats)",
)

# %% [markdown]
# ## Exercises
#
# **1.** Which layer contributes most to the loss? Restrict one layer at a time (`layers=[i]`) at beta =
# 0.2 and plot the losses of both models.

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
ax.set(xlabel="restricted layer", ylabel="loss increase per token (nats)", xticks=x)
_ = ax.legend(frameon=False)

# %% [markdown]
# **2.** Is the loss constant over the continuation, or does it grow from token to token because the keys
# and values of earlier tokens come from the sparse model too? Plot the loss of the plain model against
# the position in the continuation, at beta = 0.4.

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
_ = ax.set(xlabel="position in the continuation", ylabel="loss increase per token (nats)", ylim=(0, None))

# %% [markdown]
# **3.** `minicore pull smollm2-135m` downloads a model with 1536 gated SiLU neurons per layer. What does
# "active" mean for such a model, and which predictor do you expect to lose least? Compare your answer
# with the table in `docs/quality.md`.

# %% jupyter={"source_hidden": true} tags=["solution"]
# With SiLU no activation is exactly zero, and a large negative product matters as much as a positive one.
# CoreInfer nevertheless counts only positive values. GRIFFIN ranks by energy, which ignores the sign. It
# loses least of the predictors that see only the prompt. A choice for each token loses a few per cent. One
# core for a whole text is expensive on this model too.
