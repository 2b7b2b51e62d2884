"""Table 4: stability-guided prediction forced on short prompts."""

from __future__ import annotations

from minicore.formatting import format_ratio
from minicore.reproduce.continuations import SHORT, table_row
from minicore.reproduce.material import Material
from minicore.reproduce.verdict import Findings, findings


def measure(
    material: Material, *, beta: float = 0.4, scored: int = 48, n_texts: int = 64, n_generated: int = 16
) -> Findings:
    """Measure short prompts decoded with their own set nevertheless, or with their cluster's."""
    documents = material.long_documents(SHORT + 1 + scored, n_texts)
    rows = material.study(documents, ["stability", "similarity"], [beta], SHORT, n_generated)
    forced, guided = rows[0]["ratio"], rows[1]["ratio"]
    apart = forced[1] > guided[2] or guided[1] > forced[2]
    overlap = "" if apart else " (the intervals overlap)"
    return findings(
        table=[table_row(row, "ratio", "kl", "agreement", "recall", "common_prefix") for row in rows],
        compared=[
            (
                "stability-guided forced on short prompts: ratio to dense",
                "7.88->6.22, 21.2->12.0, 28.7->12.2, 29.0->3.36 (scores, dense to core)",
                format_ratio(forced[0]),
            ),
            (
                "similarity-guided: ratio to dense",
                "7.88->9.12, 21.2->21.8, 28.7->26.3, 29.0->27.8",
                format_ratio(guided[0]),
            ),
        ],
        checks=[
            (
                forced[0] > guided[0] and apart,
                f"after {SHORT} tokens perplexity is {format_ratio(forced[0])} times dense with the prompt's "
                f"own set, {format_ratio(guided[0])} times with its cluster's{overlap}",
            ),
        ],
    )
