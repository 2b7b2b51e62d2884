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
# # 04 · Texts of similar meaning have similar cores
#
# After this notebook you will be able to
#
# - compare texts by their core neurons, and judge what this adds to comparing their words,
# - show the clusters that topics form, layer by layer (the paper's fig. 4),
# - use clusters to choose neurons for a prompt that is too short to choose its own.

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
# ## The core of each text
#
# First compute the sentence-wise core of each text, as defined in notebook 03, and the Jaccard overlap of
# each pair.

# %%
alpha, beta = 0.4, 0.2
cores = [mc.predict(model, ids, "stability", alpha, beta) for ids in texts]

few = [i for topic in topics[:3] for i in np.flatnonzero(labels == topic)[:4]]
last = n_layers - 1
ax = plots.overlap_matrix([cores[i] for i in few], [labels[i] for i in few], layer=last)

# %% [markdown]
# Dark blocks along the diagonal show that texts about the same topic share more neurons. The next figure
# projects the cores of all texts onto a plane (their first two principal components), for the first, a
# middle and the last layer:

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
# A picture convinces too easily. Two measurements help. How often is a text's **nearest neighbour** about
# the same topic? And how often is it when the texts are compared only by their *sets of tokens*, without
# any model?


# %%
def nearest(overlap):  # (n, n) -> bool (n,): whether each text's nearest neighbour has the same topic
    overlap = overlap - np.eye(len(overlap)) * 2  # a text is not its own neighbour
    return labels[overlap.argmax(axis=1)] == labels


def overlaps(has):  # bool (n, n_items) -> (n, n): Jaccard overlap of each pair of rows
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
    {"nearest neighbour has the same topic": [score[0] for score in scores.values()]},
    list(scores),
    "fraction of texts",
    intervals={"nearest neighbour has the same topic": [score[1:] for score in scores.values()]},
)
ax.axhline(chance, color="gray", linestyle="--", linewidth=1)
_ = ax.text(1.01, chance, "chance", transform=ax.get_yaxis_transform(), va="center", fontsize=8)

# %% [markdown]
# Core neurons identify the topic far better than chance. Compare the bars and their intervals to see
# whether they do it better than plain words: topics have a vocabulary of their own, and a first layer
# sees little else. The next figure compares the two measures pair by pair:

# %%
one, other = np.triu_indices(len(texts), 1)
drawn = np.random.default_rng(0).choice(len(one), 1500, replace=False)
ax = plots.similarity_scatter(words[one, other][drawn], by_layer[last][one, other][drawn])
_ = ax.set(xlabel="word overlap (Jaccard)")

# %% [markdown]
# `minicore eval sts` compares core similarity with human judgement instead of words: it correlates core
# similarity with human ratings of sentence pairs (the paper's Table 1). `docs/quality.md` has the results
# for SmolLM2.
#
# ## What it is good for: prompts too short to choose
#
# A prompt of a few tokens has hardly any core (notebook 03). CoreInfer's answer is **similarity-guided
# prediction**: fit clusters of texts beforehand, find the cluster nearest to the prompt, and decode with
# the neurons that are frequent *in that cluster*. Here the clusters are the topics. They are fitted on
# texts that are not used for the measurement.

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
    "perplexity relative to dense",
    intervals={f"prompt of {n} tokens": [row["ratio"][1:] for row in rows] for n, rows in study.items()},
)

# %% [markdown]
# With eight tokens the prompt's own core is too small, and the core of the cluster does better: 1.30
# against 1.48 times the dense perplexity. With 64 tokens the order is reversed: 1.17 against 1.11, with
# overlapping intervals. This is the paper's Table 4 at a small scale. It is also why the predictor `auto`
# first checks whether the core of a prompt is stable.
#
# ## Exercises
#
# **1.** Plot the texts by the last layer's cores with `method="tsne"` instead of PCA, twice with
# different seeds. What do the distances between clusters tell you?

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
sets = [mc.CoreSet({last: core.neurons[last]}, core.n_neurons, n_layers) for core in cores]
for seed, ax in enumerate(axes):
    plots.embedding(sets, labels, method="tsne", seed=seed, ax=ax)
    ax.set_title(f"t-SNE, seed {seed}", fontsize=10)
axes[0].get_legend().remove()
# In t-SNE only neighbourhoods are meaningful: neither the positions of clusters nor their distances are.

# %% [markdown]
# **2.** Cluster the texts without their labels (`similarity.kmeans` on the cores as vectors). Compare the
# clusters with the topics by the adjusted Rand index (`sklearn.metrics.adjusted_rand_score`), layer by
# layer.

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
from sklearn.metrics import adjusted_rand_score

from minicore.core.similarity import core_vector, kmeans, unit

for layer in range(n_layers):
    vectors = unit(np.stack([core_vector(core.neurons[layer], core.n_neurons) for core in cores]))
    if len(np.unique(vectors, axis=0)) < len(topics):
        print(f"layer {layer}: the cores are too similar to be clustered")
        continue
    found = kmeans(vectors, k=len(topics), seed=0)
    print(f"layer {layer}: adjusted Rand index {adjusted_rand_score(labels, found):.2f} (1 is perfect)")

# %% [markdown]
# **3.** Which neuron of the last layer separates the topics best? For each neuron and topic, take the
# fraction of the topic's texts whose core contains the neuron, minus the same fraction for all other
# texts. Find the neuron with the largest difference, and look at the places where it is strongest
# (`plots.top_snippets`).

# %%
# your code

# %% jupyter={"source_hidden": true} tags=["solution"]
core_of = has[last]
gap = np.stack([core_of[labels == one].mean(axis=0) - core_of[labels != one].mean(axis=0) for one in topics])
which, neuron = np.unravel_index(gap.argmax(), gap.shape)
print(f"neuron {neuron} is core in {gap[which, neuron]:.0%} more of the texts about {topics[which]}")
hook = f"blocks.{last}.mlp.hook_post"
shown = texts[:: max(1, len(texts) // 32)]
a = [model.run_with_cache(ids, hook)[1][hook][1:, neuron] for ids in shown]
ax = plots.top_snippets([model.tokenizer.pieces(ids)[1:] for ids in shown], a, n=6)
