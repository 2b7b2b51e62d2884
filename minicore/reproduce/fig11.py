"""Figure 11: what the texts of a cluster are about."""

from __future__ import annotations

import numpy as np

from minicore.core.similarity import kmeans
from minicore.reproduce.material import Material
from minicore.reproduce.topics import topic_names
from minicore.reproduce.verdict import Findings, findings, percent

Array = np.ndarray


def measure(material: Material, *, width: int = 200) -> Findings:
    """Cluster texts by their sets; report the topics and the most central text of each cluster."""
    names, labels = topic_names(material), material.labels
    vectors = material.directions(material.layer)
    member = kmeans(vectors, len(names), material.seed)
    counts = np.array(
        [[((member == i) & (labels == name)).sum() for name in names] for i in range(len(names))]
    )
    order = np.lexsort((-counts.max(axis=1), counts.argmax(axis=1)))
    texts, counts = [central_text(material, vectors, member == i)[:width] for i in order], counts[order]
    table = [
        {
            "cluster": i,
            "texts": int(row.sum()),
            "topic": names[row.argmax()],
            "of it": float(row.max() / row.sum()),
            "most central text": text[:60],
        }
        for i, (row, text) in enumerate(zip(counts, texts, strict=True))
    ]
    purity, chance = counts.max(axis=1).sum() / len(labels), counts.sum(axis=0).max() / len(labels)
    n_clear = sum(row["of it"] > 0.5 for row in table)
    return findings(
        table=table,
        compared=[
            (
                "texts in a cluster led by their topic",
                "not given",
                f"{percent(purity)}, in one single cluster {percent(chance)}",
            ),
            ("clusters mostly of one topic", "all shown", f"{n_clear} of {len(table)}"),
        ],
        checks=[
            (n_clear == len(table), f"{n_clear} of {len(table)} clusters are mostly of one topic"),
            (bool(purity > 0.5), f"{percent(purity)} of the texts are in a cluster led by their topic"),
        ],
        drawn={"counts": counts.tolist(), "topics": names, "texts": texts, "layer": material.layer},
    )


def central_text(material: Material, vectors: Array, inside: Array) -> str:
    # (n_texts, d), (n_texts,) bool
    """Return the text of a cluster whose vector is nearest to the cluster's mean, on one line."""
    assert material.model.tokenizer is not None
    at = np.flatnonzero(inside)[(vectors[inside] @ vectors[inside].mean(axis=0)).argmax()]
    text = material.model.tokenizer.decode(material.labelled[at].ids.tolist(), skip_special=True)
    return " ".join(text.split())
