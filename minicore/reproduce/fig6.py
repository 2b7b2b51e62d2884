"""Figure 6: quality against beta and gamma."""

from __future__ import annotations

from collections.abc import Sequence

from minicore.formatting import format_ratio
from minicore.reproduce.continuations import SETTLED, table_row
from minicore.reproduce.material import Material
from minicore.reproduce.verdict import SMALL_LOSS, Findings, findings, nearest


def measure(
    material: Material,
    *,
    betas: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8),
    n_tokens: int = 384,
    n_texts: int = 16,
) -> Findings:
    """Measure perplexity / dense against beta (the prompt's own set) and gamma (its cluster's)."""
    documents = material.long_documents(n_tokens, n_texts)
    rows = material.study(documents, ["stability", "similarity"], betas, SETTLED)
    ratio = {(row["predictor"], row["beta"]): row["ratio"][0] for row in rows}
    usual, small = nearest(betas, 0.4), nearest(betas, 0.2)
    own, own_small = ratio["stability", usual], ratio["stability", small]
    cluster = ratio["similarity", usual]
    return findings(
        table=[table_row(row, "ratio", "agreement", "recall") for row in rows],
        compared=[
            (f"ratio to dense at beta {usual}", "near 1 from 0.4 on", format_ratio(own)),
            (
                f"ratio to dense at beta {small}",
                "near 1 from 0.2 on for extraction and QA",
                format_ratio(own_small),
            ),
            (f"ratio to dense at gamma {usual}", "near 1 from 0.4 on", format_ratio(cluster)),
        ],
        checks=[
            (
                own < SMALL_LOSS,
                f"with the prompt's own set at beta {usual} perplexity is {format_ratio(own)} times dense",
            ),
            (own_small < SMALL_LOSS, f"at beta {small} it is {format_ratio(own_small)} times dense"),
            (
                cluster < SMALL_LOSS,
                f"with a cluster's set at gamma {usual} it is {format_ratio(cluster)} times dense",
            ),
        ],
        drawn={"rows": rows},
    )
