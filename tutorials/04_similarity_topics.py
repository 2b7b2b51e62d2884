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
# # 04 · Texts of close meaning have close cores
#
# After this notebook you will be able to
#
# - compare texts by their core neurons, and say what that is worth beside comparing their words,
# - show the clusters that topics form, layer by layer (the paper's fig. 4),
# - use clusters to choose neurons for a prompt too short to choose for itself.

# %%
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import minicore as mc
from minicore import plots
from minicore.bootstrap import bootstrap
from minicore.evaluation import quality
from minicore.evaluation.clusters import fit_clusters

model = mc.load("minicore-opt-core")
n_layers = model.config.n_layers
with open("data/topics.jsonl", encoding="utf-8") as lines:
    corpus = [json.loads(line) for line in lines]
topics = sorted({row["label"] for row in corpus})
used = [row for topic in topics for row in [r for r in corpus if r["label"] == topic][:12]]
labels = np.array([row["label"] for row in used])
texts = [model.tokenizer.encode(row["text"])[:160] for row in used]
print(len(texts), "texts about", ", ".join(topics))

# %% [markdown]
# ## Every text's core
#
# Each text's sentence-wise core, as notebook 03 defines it, and how much any two share (Jaccard).

# %%
alpha, beta = 0.4, 0.2
cores = [mc.predict(model, ids, "stability", alpha, beta) for ids in texts]

few = [i for topic in topics[:3] for i in np.flatnonzero(labels == topic)[:4]]
last = n_layers - 1
ax = plots.overlap_matrix([cores[i] for i in few], [labels[i] for i in few], layer=last)

# %% [markdown]
# Dark blocks along the diagonal: texts about one topic share more neurons. All texts, laid out in the plane
# by their sets (principal components), in the first, a middle and the last layer:

# %%
figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
for ax, layer in zip(axes, (0, n_layers // 2, last), strict=True):
    sets = [mc.CoreSet({layer: core.neurons[layer]}, core.n_neurons, n_layers) for core in cores]
    plots.embedding(sets, labels, ax=ax)
    ax.set_title(f"layer {layer}", fontsize=10)
    if layer != last:
        ax.get_legend().remove()

# %% [markdown]
# ## Is it more than words?
#
# A picture convinces too easily. Two questions with numbers: how often is a text's **nearest neighbour**
# about the same topic, and how often would it be if one compared nothing but the *sets of tokens*, without
# any model?


# %%
def nearest(overlap):  # (n, n) -> bool (n,): whether each text's nearest other one has its topic
    overlap = overlap - np.eye(len(overlap)) * 2
    return labels[overlap.argmax(axis=1)] == labels


def overlaps(has):  # bool (n, n_things) -> (n, n): shared over involved things of every two rows
    shared = has.astype(np.float32) @ has.T.astype(np.float32)
    size = has.sum(axis=1)
    return shared / np.maximum(size[:, None] + size[None] - shared, 1)


def masks(sets, n):  # lists of ids -> bool (n_sets, n)
    return np.stack([np.isin(np.arange(n), ids) for ids in sets])


has = [masks([core.neurons[layer] for core in cores], model.config.n_neurons) for layer in range(n_layers)]
by_layer = [overlaps(one) for one in has]
words = overlaps(masks(texts, model.config.n_vocab))
chance = np.mean([(labels == label).sum() - 1 for label in labels]) / (len(labels) - 1)
rows = {f"layer {i}": overlap for i, overlap in enumerate(by_layer)} | {"words": words}
scores = {name: bootstrap(nearest(overlap).astype(float)) for name, overlap in rows.items()}

ax = plots.bars(
    {"texts whose nearest neighbour has their topic": [score[0] for score in scores.values()]},
    list(scores),
    "share of the texts",
    intervals={"texts whose nearest neighbour has their topic": [score[1:] for score in scores.values()]},
)
ax.axhline(chance, color="gray", linestyle="--", linewidth=1)
_ = ax.text(1.01, chance, "chance", transform=ax.get_yaxis_transform(), va="center", fontsize=8)

# %% [markdown]
# Core neurons know the topic far better than chance. Whether they know it better than the plain words do is
# for you to read off, with its interval: topics have words of their own, and a first layer sees little
# else. The two measures agree to some degree:

# %%
one, other = np.triu_indices(len(texts), 1)
drawn = np.random.default_rng(0).choice(len(one), 1500, replace=False)
ax = plots.similarity_scatter(words[one, other][drawn], by_layer[last][one, other][drawn])
_ = ax.set(xlabel="similarity of words (Jaccard)")

# %% [markdown]
# `minicore eval sts` asks people instead of words: it correlates core similarity with human ratings of
# sentence pairs (the paper's Table 1). `docs/quality.md` has what came out for SmolLM2.
#
# ## What it is good for: prompts too short to choose
#
# A prompt of a few tokens has hardly any core (notebook 03). CoreInfer's way out is **similarity-guided
# prediction**: fit clusters of texts beforehand; find the prompt's cluster; decode with the neurons
# frequent *there*. Here clusters are the topics, fitted on texts that are not measured.

# %%
folder = Path(tempfile.mkdtemp())
fitted = [row for i, row in enumerate(used) if i % 2]
measured = [row for i, row in enumerate(used) if not i % 2]
(folder / "measured.jsonl").write_text("".join(json.dumps(row) + "\n" for row in measured), encoding="utf-8")

clusters = fit_clusters(
    model, [row["text"] for row in fitted], [row["label"] for row in fitted], alpha=alpha, beta=beta
)
clusters.save(folder / "topics.clusters")
print(clusters)

study = {}
for n in (8, 64):
    study[n] = quality.evaluate(
        model,
        [folder / "measured.jsonl"],
        ["stability", "similarity", "oracle"],
        [beta],
        clusters=folder / "topics.clusters",
        n_passages=12,
        prompt_tokens=n,
        continuation_tokens=40,
        fit_passages=0,
    )["settings"]
names = [row["predictor"] for row in study[8]]
ax = plots.bars(
    {f"prompt of {n} tokens": [row["ratio"][0] for row in rows] for n, rows in study.items()},
    names,
    "perplexity over dense",
    intervals={f"prompt of {n} tokens": [row["ratio"][1:] for row in rows] for n, rows in study.items()},
)

# %% [markdown]
# With eight tokens the prompt's own set is too small and another texts' set does better; with 64 it is the
# other way round, or nearly. That is the paper's Table 4 in small, and why the predictor `auto` first tests
# whether a prompt is settled.
#
# ## Exercises
#
# **1.** Draw the last layer's texts with `method="tsne"` instead of PCA, twice with different seeds. What
# may you read from the distances between clusters?

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
sets = [mc.CoreSet({last: core.neurons[last]}, core.n_neurons, n_layers) for core in cores]
for seed, ax in enumerate(axes):
    plots.embedding(sets, labels, method="tsne", seed=seed, ax=ax)
    ax.set_title(f"t-SNE, seed {seed}", fontsize=10)
axes[0].get_legend().remove()
# Neighbours mean something in t-SNE; distances between clusters, and their places, do not.

# %% [markdown]
# **2.** Cluster the texts without their labels (`similarity.kmeans` on the core sets as vectors) and
# compare with the topics by the adjusted Rand index (`sklearn.metrics.adjusted_rand_score`), layer by
# layer.

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
from sklearn.metrics import adjusted_rand_score

from minicore.core.similarity import core_vector, kmeans, unit

for layer in range(n_layers):
    vectors = unit(np.stack([core_vector(core.neurons[layer], core.n_neurons) for core in cores]))
    if len(np.unique(vectors, axis=0)) < len(topics):
        print(f"layer {layer}: the sets are too much alike to be clustered")
        continue
    found = kmeans(vectors, k=len(topics), seed=0)
    print(f"layer {layer}: adjusted Rand index {adjusted_rand_score(labels, found):.2f} (1: the topics)")

# %% [markdown]
# **3.** Which neuron of the last layer tells the topics apart best? Find the one whose share of texts that
# have it as core differs most between a topic and the rest, and look at the texts where it is strongest
# (`plots.top_snippets`).

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
core_of = has[last]
gap = np.stack([core_of[labels == one].mean(axis=0) - core_of[labels != one].mean(axis=0) for one in topics])
which, neuron = np.unravel_index(gap.argmax(), gap.shape)
print(f"neuron {neuron}: core to {gap[which, neuron]:+.0%} more of the texts about {topics[which]}")
hook = f"blocks.{last}.mlp.hook_post"
shown = texts[:: max(1, len(texts) // 32)]
a = [model.run_with_cache(ids, hook)[1][hook][1:, neuron] for ids in shown]
ax = plots.top_snippets([model.tokenizer.pieces(ids)[1:] for ids in shown], a, n=6)
