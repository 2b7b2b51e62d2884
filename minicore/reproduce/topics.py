"""Topics of labelled texts, and how well k-means finds them (figs. 4 and 11)."""

from __future__ import annotations

import numpy as np

from minicore.core.similarity import kmeans
from minicore.reproduce.material import Material

Array = np.ndarray


def topic_names(material: Material) -> list[str]:
    """Return the topics of the labelled texts, sorted."""
    return sorted(set(material.labels.tolist()))


def rand_index(labels: Array, member: Array) -> float:
    """Return the adjusted Rand index of two partitions: 1 if they are equal, 0 by chance."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(labels, member))


def word_vectors(material: Material) -> Array:  # -> (n_labelled, n_words) float64
    """Return tf-idf vectors of the texts' tokens, the baseline that needs no model."""
    ids = [document.ids for document in material.labelled]
    counts = np.zeros((len(ids), material.model.config.n_vocab), np.float32)
    for row, one in zip(counts, ids, strict=True):
        np.add.at(row, one, 1)
    used = counts[:, counts.any(axis=0)]
    weighted = used / used.sum(axis=1, keepdims=True) * np.log(len(ids) / (used > 0).sum(axis=0))
    return weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-12)


def topics_found(material: Material, vectors: Array, n_seeds: int) -> tuple[float, float, float]:
    """Return how well k-means finds the topics: the adjusted Rand index, as mean and range over seeds.

    (A bootstrap over texts would put copies of a text into one cluster and overstate the index.) The index is
    0 where there are fewer distinct vectors than topics, as in a layer without positive activations.
    """
    k = len(topic_names(material))
    if len(np.unique(vectors, axis=0)) < k:
        return 0.0, 0.0, 0.0
    found = [rand_index(material.labels, kmeans(vectors, k, material.seed + i)) for i in range(n_seeds)]
    return float(np.mean(found)), min(found), max(found)
