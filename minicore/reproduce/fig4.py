"""Figure 4: the sentence-wise sets of texts, by topic."""

from __future__ import annotations

import numpy as np

from minicore.formatting import format_ratio
from minicore.projection import project
from minicore.reproduce.material import Material
from minicore.reproduce.topics import topics_found, word_vectors
from minicore.reproduce.verdict import Findings, findings

FOUND = 0.5  # an adjusted Rand index from which on clusters are topics


def measure(material: Material, *, n_seeds: int = 5) -> Findings:
    """Measure whether k-means on texts' sets finds their topics; project the sets at three depths."""
    layers, three = range(material.model.config.n_layers), material.three_layers
    found = [topics_found(material, material.directions(layer), n_seeds) for layer in layers]
    words = topics_found(material, word_vectors(material), n_seeds)[0]
    ari = [mean for mean, _, _ in found]
    best, first, last = int(np.argmax(ari)), three[0], three[-1]
    shown = ", ".join(f"{format_ratio(ari[layer])} in layer {layer}" for layer in three)
    return findings(
        table=[{"layer": i, "adjusted Rand index": one} for i, one in zip(layers, found, strict=True)],
        compared=[
            ("topics found by k-means (adjusted Rand index)", "clusters seen in t-SNE, no number", shown),
            (
                "... in the best layer",
                "clearer in deeper layers",
                f"{format_ratio(ari[best])} in layer {best}",
            ),
            ("... from words only (tf-idf)", "not given", format_ratio(words)),
        ],
        checks=[
            (
                max(ari[i] for i in three) >= FOUND,
                f"k-means finds the topics with an adjusted Rand index of {shown}",
            ),
            (
                ari[last] > ari[first],
                f"layer {last} has {format_ratio(ari[last])}, layer {first} {format_ratio(ari[first])}",
            ),
            (
                ari[best] > words,
                f"the best layer, {best}, has {format_ratio(ari[best])}, words only {format_ratio(words)}",
            ),
        ],
        drawn={
            "layers": three,
            "points": [project(material.directions(i), "tsne", material.seed).tolist() for i in three],
            "labels": material.labels.tolist(),
            "ari": [ari[layer] for layer in three],
        },
    )
