"""Statistics of a quality study's report: means over passages with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from minicore.bootstrap import bootstrap, exp_mean
from minicore.evaluation.quality.measurement import Row
from minicore.evaluation.quality.settings import Setting

MEASURES = ("kl", "agreement", "recall", "kept", "ffn_bytes", "common_prefix")


def summarise(rows: Sequence[Sequence[Row]], settings: Sequence[Setting], seed: int = 0) -> list[Row]:
    """Return means over passages with 95% bootstrap intervals, a dict for each setting.

    ``ratio`` is exp of the mean difference to dense in nats. The difference is taken passage by passage, so
    that a passage that is hard for both does not widen the interval. Every value is
    ``[estimate, low, high]``.
    """
    table = []
    for setting, measured in zip(settings, rows, strict=True):
        nll, dense = (np.array([row[key] for row in measured]) for key in ("nll", "dense_nll"))
        summary: Row = asdict(setting) | {"n_passages": len(measured)}
        summary["perplexity"] = bootstrap(nll, exp_mean, seed=seed)
        summary["dense_perplexity"] = bootstrap(dense, exp_mean, seed=seed)
        summary["ratio"] = bootstrap(nll - dense, exp_mean, seed=seed)
        for key in MEASURES:
            values = [row.get(key) for row in measured]
            summary[key] = None if None in values else bootstrap(np.array(values), seed=seed)
        table.append(summary)
    return table
