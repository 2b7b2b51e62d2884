"""Core and meaning of a growing text, for the figures that follow one text (figs. 3, 8 and 12)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from minicore.core.neurons import jaccard
from minicore.evaluation.stability import counts_at
from minicore.reproduce.material import ALPHA, Document, Material

Array = np.ndarray


def read_growing(
    material: Material, documents: Sequence[Document], lengths: Iterable[int]
) -> list[tuple[dict[int, Array], dict[int, Array]]]:
    """Return each text's counts (n_layers, n_neurons) and meaning (d_model,) by length.

    Meaning is the mean over tokens of the residual stream after the middle block, minus the mean of that over
    all texts at the same length, since what all texts share (positions, for example) has no meaning. The
    first token is left out: models use it to store what has no place elsewhere.
    """
    layers, wanted = range(material.model.config.n_layers), sorted(set(lengths))
    name = f"blocks.{len(layers) // 2}.hook_resid_post"
    counts, vectors = [], []
    for document in material.bar(documents, "texts"):
        chunks: list[Array] = []

        def add(x: Array, chunks: list[Array] = chunks) -> None:
            chunks.append(x.copy())

        counts.append(counts_at(material.backend, document.ids, list(layers), ALPHA, wanted, {name: add}))
        running = np.cumsum(np.concatenate(chunks)[1:], axis=0, dtype=np.float64)
        vectors.append({n: running[n - 2] / (n - 1) for n in wanted if n > 1})
    centre = {n: np.mean([one[n] for one in vectors], axis=0) for n in vectors[0]}
    meaning = [{n: vector - centre[n] for n, vector in one.items()} for one in vectors]
    return list(zip(counts, meaning, strict=True))


def similarity_by_layer(material: Material, a: Array, b: Array) -> list[float]:
    # counts, (n_layers, n_neurons) twice
    """Return the Jaccard similarity of two counts' cores in each layer."""
    return [jaccard(one, other) for one, other in zip(material.sets(a), material.sets(b), strict=True)]


def similarity(material: Material, a: Array, b: Array) -> float:
    """Return the mean of :func:`similarity_by_layer` over layers."""
    return float(np.mean(similarity_by_layer(material, a, b)))
