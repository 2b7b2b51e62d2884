"""Table 2: quality after settled and short prompts."""

from __future__ import annotations

from collections.abc import Sequence

from minicore.evaluation.quality.measurement import Row
from minicore.formatting import format_number, format_ratio
from minicore.reproduce.continuations import SETTLED, SHORT, table_row
from minicore.reproduce.material import Material
from minicore.reproduce.verdict import SMALL_LOSS, Findings, findings, percent

PREDICTORS = ("stability", "similarity", "griffin")


def measure(
    material: Material,
    *,
    betas: Sequence[float] = (0.2, 0.4),
    scored: int = 96,
    n_generated: int = 32,
    n_texts: int = 16,
) -> Findings:
    """Measure perplexity / dense, and greedy agreement with dense, after long and after short prompts."""
    table, rows = [], {}
    for name, prompt in (("settled prompt", SETTLED), ("short prompt", SHORT)):
        documents = material.long_documents(prompt + 1 + scored, n_texts)
        rows[name] = material.study(documents, PREDICTORS, betas, prompt, n_generated)
        for row in rows[name]:
            measures = table_row(row, "ratio", "kl", "agreement", "common_prefix")
            table.append({"prompt": f"{name} ({prompt})"} | measures)
    most = max(betas)
    after_settled = _summary(rows["settled prompt"], "stability", most)
    after_short = _summary(rows["short prompt"], "similarity", most)
    settled, short = after_settled["ratio"][0], after_short["ratio"][0]
    return findings(
        table=table,
        compared=[
            (
                f"settled prompt, stability at {most}: ratio to dense",
                "few-shot scores 6.7->6.3, 52.1->53.2, 34.9->32.8, 30.4->27.9 (OPT-6.7B)",
                format_ratio(settled),
            ),
            (
                f"short prompt, similarity at {most}: ratio to dense",
                "zero-shot scores 7.88->9.12, 21.2->21.8, 28.7->26.3, 29.0->27.8 (OPT-6.7B)",
                format_ratio(short),
            ),
            (
                "greedy tokens as dense",
                "not given",
                f"{format_number(after_settled['common_prefix'][0])} of {n_generated}",
            ),
        ],
        checks=[
            (
                settled < SMALL_LOSS,
                f"after a settled prompt, with its own set of {percent(most)}, perplexity is "
                f"{format_ratio(settled)} times dense",
            ),
            (
                short < SMALL_LOSS,
                f"after a short prompt, with a cluster's set, it is {format_ratio(short)} times dense",
            ),
        ],
        drawn={"rows": rows},
    )


def _summary(rows: Sequence[Row], predictor: str, beta: float) -> Row:
    return next(row for row in rows if row["predictor"] == predictor and row["beta"] == beta)
