"""Statistics over rounds, and values as JSON holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minicore.core.budgets import plain


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the median, the quartiles, and the values themselves in the order of the rounds."""
    q1, median, q3 = (float(q) for q in np.percentile(values, [25, 50, 75]))
    return {"median": median, "q1": q1, "q3": q3, "rounds": [float(value) for value in values]}


def ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """Return the ratio of two values for each round."""
    return [x / y for x, y in zip(a, b, strict=True)]


def plain_value(value: Any) -> Any:
    """Return a setting as JSON holds it."""
    if isinstance(value, tuple):
        return [plain_value(item) for item in value]
    if isinstance(value, slice | range):
        return str(value)
    return value if value is None or isinstance(value, str | int) else plain(value)
