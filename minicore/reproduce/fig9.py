"""Figure 9: similarity in every layer."""

from __future__ import annotations

import numpy as np

from minicore.bootstrap import ranks
from minicore.reproduce.material import Material
from minicore.reproduce.verdict import Findings, findings, percent

Array = np.ndarray


def measure(material: Material) -> Findings:
    """Measure the similarity of sets of texts on one topic and of texts on two, layer by layer."""
    labels = material.labels
    one, other = np.triu_indices(len(labels), 1)
    same = labels[one] == labels[other]  # (n_pairs,)
    table = []
    for layer in range(material.model.config.n_layers):
        sets = material.cores(layer).astype(np.float32)
        shared, sizes = sets @ sets.T, sets.sum(axis=1)
        jaccard = (shared / np.maximum(sizes[:, None] + sizes - shared, 1))[one, other]
        means = {"one topic": float(jaccard[same].mean()), "two topics": float(jaccard[~same].mean())}
        table.append({"layer": layer, **means, "told apart": area_under_roc(jaccard, same)})
    closer = sum(row["one topic"] > row["two topics"] for row in table)
    third = max(1, len(table) // 3)
    shallow, deep = (
        float(np.mean([row["told apart"] for row in rows])) for rows in (table[:third], table[-third:])
    )
    return findings(
        table=table,
        compared=[
            ("layers in which one topic's sets are closer", "all", f"{closer} of {len(table)}"),
            (
                "a pair on one topic is the closer one: first third of the layers",
                "less often",
                percent(shallow),
            ),
            ("... last third (by chance 50%)", "more often", percent(deep)),
        ],
        checks=[
            (
                closer == len(table),
                f"in {closer} of {len(table)} layers texts on one topic have closer sets",
            ),
            (
                deep > shallow,
                f"a pair on one topic is closer than a pair on two {percent(shallow)} of the time in the "
                f"first third of the layers, {percent(deep)} in the last",
            ),
        ],
    )


def area_under_roc(x: Array, group: Array) -> float:  # (n,), (n,) bool -> in [0, 1]
    """Return how often a value in the group is larger than one outside it; ties count half."""
    n = int(group.sum())
    return float((ranks(x)[group].sum() - n * (n + 1) / 2) / (n * (len(x) - n)))
