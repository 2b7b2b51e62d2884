"""Figure 3: meaning and core of a growing text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minicore.bootstrap import bootstrap, spearman
from minicore.core.neurons import core_from_scores
from minicore.formatting import format_ratio
from minicore.projection import project
from minicore.reproduce.growth import read_growing, similarity
from minicore.reproduce.material import BETA, Material
from minicore.reproduce.verdict import ALIKE, Findings, Row, findings, nearest

Array = np.ndarray


def measure(
    material: Material,
    *,
    bases: Sequence[int] = (8, 64, 256),
    added: Sequence[int] = (4, 8, 16, 32, 64, 128),
    lengths: Sequence[int] = (10, 50, 100, 200, 300),
    step: int = 8,
    n_texts: int = 16,
) -> Findings:
    """Measure how meaning and core change as tokens are added; lay out one text's sets."""
    n_tokens = max(max(bases) + max(added), *lengths)
    documents = material.long_documents(n_tokens, n_texts)
    grown = sorted({base + more for base in bases for more in (0, *added)} | set(lengths))
    read = read_growing(material, documents, [*grown, *range(step, n_tokens + 1, step)])
    table: list[Row] = []
    points = []  # (n_points, 2, n_texts)
    for base in bases:
        for more in added:
            meaning = [cosine(vectors[base], vectors[base + more]) for _, vectors in read]
            core = [similarity(material, counts[base], counts[base + more]) for counts, _ in read]
            points.append((meaning, core))
            row = {"base": base, "added": more, "meaning": bootstrap(np.array(meaning))}
            table.append(row | {"core": bootstrap(np.array(core))})
    by_text = np.array(points).transpose(2, 1, 0)
    rho = bootstrap(np.array([spearman(meaning, core) for meaning, core in by_text]))
    early, late = (
        float(np.mean([similarity(material, counts[a], counts[b]) for counts, _ in read]))
        for a, b in (lengths[:2], lengths[-2:])
    )
    usual = nearest(added, 32)
    core_at = {(row["base"], row["added"]): row["core"][0] for row in table}
    growing = [core_at[base, usual] for base in bases]
    a, b = lengths[-2:]
    return findings(
        table=table,
        compared=[
            (
                f"similarity of the sets of {lengths[0]} and {lengths[1]} tokens",
                "still move below 100",
                format_ratio(early),
            ),
            (
                f"similarity of the sets of {a} and {b} tokens",
                "hardly move at 200 to 300",
                format_ratio(late),
            ),
            (
                "rank correlation of change in core and in meaning",
                "as little as the meaning",
                f"{rho[0]:.2f}",
            ),
        ],
        checks=[
            (
                growing == sorted(growing),
                f"after {usual} more tokens the similarity to the set of {', '.join(map(str, bases))} tokens "
                f"is {', '.join(format_ratio(one) for one in growing)}",
            ),
            (late > ALIKE, f"the sets of {a} and {b} tokens have a similarity of {format_ratio(late)}"),
            (rho[1] > 0.5, f"core and meaning change with a rank correlation of {rho[0]:.2f}"),
        ],
        drawn=one_text(material, read[0][0], lengths, list(range(step, n_tokens + 1, step))),
    )


def one_text(
    material: Material, counts: dict[int, Array], lengths: Sequence[int], marks: Sequence[int]
) -> Row:
    """Return one text's frequencies at some lengths, and the coordinates of its set at each mark."""
    layer = material.layer
    sets = np.stack([core_mask(counts[n][layer]) for n in marks])  # (n_marks, n_neurons)
    return {
        "lengths": list(lengths),
        "counts": [counts[n][layer].tolist() for n in lengths],
        "marks": list(marks),
        "points": project(sets, "pca").tolist(),
        "layer": layer,
    }


def cosine(a: Array, b: Array) -> float:  # (d,), (d,)
    """Return the cosine of two vectors."""
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12))


def core_mask(counts: Array) -> Array:  # (n_neurons,) -> float (n_neurons,)
    """Return the core of one layer's counts as a vector of 0 and 1."""
    return np.isin(np.arange(len(counts)), core_from_scores(counts, BETA)).astype(float)
