"""Continuations decoded with core neurons, for the figures and tables of quality (fig. 6, tables 2 and 4)."""

from __future__ import annotations

from minicore.evaluation.quality.measurement import Row

SETTLED = 256  # tokens of a prompt whose set has settled, as after the paper's few-shot prompts
SHORT = 16  # tokens of a prompt whose set has not, as after its zero-shot prompts


def table_row(summary: Row, *measures: str) -> Row:
    """Return a setting's summary as a row of a table, with some of its measures."""
    first = {"predictor": summary["predictor"], "beta": summary["beta"], "kept": summary["kept"][0]}
    return first | {name: summary[name] for name in measures}
