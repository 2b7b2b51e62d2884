"""How far two generations agree."""

from __future__ import annotations

from collections.abc import Sequence


def agreement(a: Sequence[int], b: Sequence[int]) -> tuple[int, float]:
    """Return the length of the common prefix, and the fraction of the longer's positions that are equal.

    Examples
    --------
    >>> agreement([1, 2, 3, 4], [1, 9, 3])
    (1, 0.5)
    """
    same = [x == y for x, y in zip(a, b, strict=False)]
    prefix = same.index(False) if False in same else len(same)
    longer = max(len(a), len(b))
    return prefix, sum(same) / longer if longer else 1.0
