"""Figure 12: the frequency of all neurons."""

from __future__ import annotations

import numpy as np

from minicore.bootstrap import bootstrap
from minicore.reproduce.growth import read_growing
from minicore.reproduce.material import Material
from minicore.reproduce.verdict import Findings, Row, findings, percent

Array = np.ndarray


def measure(material: Material, *, n_tokens: int = 300, n_texts: int = 8) -> Findings:
    """Measure how often each neuron of a layer is in a token's core."""
    documents = material.long_documents(n_tokens, n_texts)
    read = [counts[n_tokens] for counts, _ in read_growing(material, documents, [n_tokens])]
    table = []
    for layer in range(material.model.config.n_layers):
        counts = np.sort(np.stack([one[layer] for one in read]), axis=1)[:, ::-1]  # (n_texts, n_neurons)
        total = np.maximum(counts.sum(axis=1), 1)
        row: Row = {"layer": layer, "never core": bootstrap((counts == 0).mean(axis=1))}
        for beta in (0.1, 0.2, 0.4):
            held_by = counts[:, : int(beta * counts.shape[1])].sum(axis=1) / total
            row[f"held by the top {percent(beta)}"] = bootstrap(held_by)
        table.append(row)
    held = np.array([row["held by the top 40%"][0] for row in table])
    never = np.array([row["never core"][0] for row in table])
    return findings(
        table=table,
        compared=[
            ("core memberships held by the top 40% of the neurons", "figure only", span(held)),
            ("neurons that are never core", "figure only", span(never)),
        ],
        checks=[
            (
                bool(held.min() > 0.6),
                f"the 40% most frequent neurons of a layer hold {span(held)} of the memberships in tokens' "
                f"cores, and {span(never)} of its neurons are never core",
            ),
        ],
        drawn={
            "layers": material.three_layers,
            "counts": [read[0][layer].tolist() for layer in material.three_layers],
            "n_tokens": n_tokens,
        },
    )


def span(shares: Array) -> str:
    """Return the smallest and the largest of some shares."""
    return f"{percent(shares.min())} to {percent(shares.max())}"
