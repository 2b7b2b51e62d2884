"""Figure 8: stability in every layer."""

from __future__ import annotations

import numpy as np

from minicore.formatting import format_ratio
from minicore.reproduce.growth import read_growing, similarity_by_layer
from minicore.reproduce.material import Material
from minicore.reproduce.verdict import ALIKE, Findings, findings


def measure(material: Material, *, step: int = 32, longest: int = 384, n_texts: int = 16) -> Findings:
    """Measure how similar a text's sets are before and after ``step`` more tokens, layer by layer."""
    documents, lengths = material.long_documents(longest, n_texts), list(range(step, longest + 1, step))
    marks = [step // 4, *lengths]
    pairs = list(zip(marks, marks[1:], strict=False))
    read = read_growing(material, documents, marks)
    curves = np.mean(
        [[similarity_by_layer(material, counts[a], counts[b]) for a, b in pairs] for counts, _ in read],
        axis=0,
    ).T  # (n_layers, n_steps)
    table = [
        {"layer": layer, **{f"{n} tokens": float(value) for n, value in zip(lengths, row, strict=True)}}
        for layer, row in enumerate(curves)
    ]
    last, n_settling = curves[:, -1], int((curves[:, -1] > curves[:, 0]).sum())
    least, most = format_ratio(last.min()), format_ratio(last.max())
    return findings(
        table=table,
        compared=[
            ("layers whose set settles", "all", f"{n_settling} of {len(curves)}"),
            (f"similarity at {longest} tokens", "figure only", f"{least} to {most}"),
        ],
        checks=[
            (
                n_settling == len(curves),
                f"in {n_settling} of {len(curves)} layers the set changes less at the end than at the start",
            ),
            (
                bool((last > ALIKE).all()),
                f"at {longest} tokens the similarity to the set {step} tokens before is {least} or more",
            ),
        ],
        drawn={"lengths": lengths, "curves": curves.tolist()},
    )
