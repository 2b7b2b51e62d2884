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
# # 08 · Your own predictor in ten lines
#
# After this notebook you will be able to
#
# - write a predictor, add it to minicore's table and decode with it,
# - test that it obeys the laws of every predictor,
# - compare it with the other predictors, fairly and with intervals.

# %%
import json

import matplotlib.pyplot as plt
import numpy as np

import minicore as mc
from minicore import plots
from minicore.core.neurons import core_from_scores
from minicore.core.predictors import PREDICTORS, Predictor
from minicore.evaluation import quality

model = mc.load("minicore-opt-core")
with open("data/topics.jsonl", encoding="utf-8") as lines:
    corpus = [json.loads(line) for line in lines]
prompt = next(row["text"] for row in corpus if row["label"] == "cooking")
ids = model.tokenizer.encode(prompt)[:120]

# %% [markdown]
# ## What a predictor is
#
# During prefill, the recorder sums statistics of the activations, layer by layer. A predictor turns these
# sums into a **score per neuron**, and the neurons with the highest scores are kept. CoreInfer's score is
# the frequency f, recorded as `counts`. GRIFFIN's score is based on each neuron's share of a token's
# energy, summed over tokens and recorded as `relative_energy`.
#
# Here is another idea. Frequency forgets how *strong* a neuron was, and energy forgets how *often* it was
# core. Combine the two:


# %%
def often_and_strong(of):  # arrays by name -> (n_neurons,) scores
    """Return f times the square root of the summed energy shares."""
    return of["counts"] * np.sqrt(of["relative_energy"])


PREDICTORS["often-and-strong"] = Predictor(often_and_strong, ("counts", "relative_energy"))

# %% [markdown]
# That is all: a function and a row in the table. Everything that takes the name of a predictor now
# accepts this one.

# %%
core = mc.predict(model, ids, "often-and-strong", alpha=0.4, beta=0.2)
print(core)
out = model.generate(ids, max_new_tokens=40, predictor="often-and-strong", beta=0.2)
print(out.text)

# %% [markdown]
# ## Laws
#
# Before you ask whether a predictor is good, ask whether it is correct. Every predictor that scores
# neurons must obey these laws:

# %%
for beta in (0.05, 0.2, 0.5):
    chosen = mc.predict(model, ids, "often-and-strong", beta=beta)
    for kept in chosen.neurons.values():
        assert len(kept) <= int(beta * model.config.n_neurons)  # at most the requested number
        assert (np.diff(kept) > 0).all()  # ascending, without duplicates

smaller, larger = (mc.predict(model, ids, "often-and-strong", beta=beta) for beta in (0.1, 0.3))
assert all(
    np.isin(smaller.neurons[layer], larger.neurons[layer]).all() for layer in smaller
)  # a larger beta gives a superset

every = mc.CoreSet(
    {i: np.arange(model.config.n_neurons) for i in range(model.config.n_layers)},
    model.config.n_neurons,
    model.config.n_layers,
)
assert np.allclose(model.restrict(every).forward(ids), model.forward(ids))  # all neurons equal dense

again = mc.predict(model, ids, "often-and-strong", backend="numpy")
assert again == mc.predict(model, ids, "often-and-strong", backend="numpy")  # deterministic
print("all laws hold")

# %% [markdown]
# The next cell computes the same scores by hand from the activations, without the recorder.

# %%
_, cache = model.run_with_cache(ids, "blocks.0.mlp.hook_post")
a = cache["blocks.0.mlp.hook_post"].astype(np.float64)
energy = (a**2 / (a**2).sum(axis=1, keepdims=True)).sum(axis=0)
mine = core_from_scores(mc.token_core(a, 0.4).sum(axis=0) * np.sqrt(energy), 0.2)
assert np.array_equal(mine, mc.predict(model, ids, "often-and-strong", beta=0.2, backend="numpy").neurons[0])

# %% [markdown]
# ## Is it any good?
#
# `quality.evaluate` runs a dense prefill on each prompt, fixes the core of each predictor, and measures
# how much worse the model predicts the continuation. All predictors see the same passages, so differences
# are paired, and the intervals are bootstrapped over passages. Always include two references: **random**
# shows what any choice is worth, and **the continuation's own core** (`@continuation`) shows how much of
# the loss is due to prediction and how much is the price of one core for many tokens.

# %%
names = ["stability", "often-and-strong", "griffin", "griffin@continuation", "random"]
study = quality.evaluate(
    model,
    ["data/topics.jsonl"],
    names,
    [0.05, 0.1, 0.2, 0.4],
    n_passages=12,
    prompt_tokens=64,
    continuation_tokens=48,
    fit_passages=0,
)
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
plots.quality_curves(study["settings"], ax=axes[0])
plots.quality_curves([row for row in study["settings"] if row["predictor"] != "random"], ax=axes[1])
axes[0].get_legend().remove()
axes[0].set_title("with random (top curve)", fontsize=10)
axes[1].set_title("without random", fontsize=10)
for row in study["settings"]:
    if row["beta"] == 0.1:
        estimate, low, high = row["ratio"]
        print(f"{row['predictor']:<22} {estimate:6.2f} times the dense perplexity [{low:.2f}, {high:.2f}]")

# %% [markdown]
# If the band of your curve lies inside another one, you have not shown that your predictor is better,
# whatever the means say. A model that was tuned for one predictor also favours that predictor.
# `minicore-opt-core` was trained with CoreInfer's cores in the loop, so also compare on a model that was
# not (`minicore-opt` or SmolLM2).
#
# ## Exercises
#
# **1.** Write the predictor `last`: the frequency over only the last 32 tokens of the prompt
# (`Predictor(..., window=32)`). Is the recent past a better guide?

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
PREDICTORS["last"] = Predictor(lambda of: of["counts"], ("counts",), window=32)
for n in (8, 32):
    recent = mc.predict(model, ids, "last", beta=0.2, window=n)
    whole = mc.predict(model, ids, "stability", beta=0.2)
    print(
        f"only the last {n} tokens: {recent.fraction:.0%} kept, "
        f"Jaccard similarity to the core of the whole prompt {recent.jaccard(whole):.2f}"
    )

# %% [markdown]
# **2.** Measure both of your predictors and `stability` at beta = 0.1 on `minicore-opt`. Which one loses
# least?

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
other = quality.evaluate(
    mc.load("minicore-opt"),
    ["data/topics.jsonl"],
    ["stability", "often-and-strong", "last", "griffin"],
    [0.1],
    n_passages=6,
    prompt_tokens=64,
    continuation_tokens=48,
    fit_passages=0,
)
for row in other["settings"]:
    estimate, low, high = row["ratio"]
    print(f"{row['predictor']:<18} {estimate:8.1f} times the dense perplexity [{low:.1f}, {high:.1f}]")

# %% [markdown]
# **3.** A predictor may also use the weights: name `weight_norm` or `w_out_norm` in `given`. Multiply the
# frequency by the norm of the neuron's row of `w_out`. Does it help?

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
PREDICTORS["often-and-loud"] = Predictor(
    lambda of: of["counts"] * of["w_out_norm"], ("counts",), ("w_out_norm",)
)
weighted = quality.evaluate(
    model,
    ["data/topics.jsonl"],
    ["stability", "often-and-loud"],
    [0.1],
    n_passages=12,
    prompt_tokens=64,
    continuation_tokens=48,
    fit_passages=0,
)
for row in weighted["settings"]:
    estimate, low, high = row["ratio"]
    print(f"{row['predictor']:<18} {estimate:6.3f} times the dense perplexity [{low:.3f}, {high:.3f}]")
