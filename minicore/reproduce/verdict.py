"""Findings of an experiment, and the sentence that says whether they agree with the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

Row = dict[str, Any]  # a row of a table, as JSON holds it

# What counts as agreement; the paper's own words are "hardly" and "similar".
SMALL_LOSS = 1.1  # a perplexity below this many times the dense one
ALIKE = 0.8  # a Jaccard similarity above which a set has hardly moved


class Findings(TypedDict):
    """What an experiment returns.

    ``table`` holds the numbers, one dict per row; a value with an interval is ``(estimate, low, high)``.
    ``beside`` holds rows of quantity, the paper's value and ours. ``agrees`` and ``sentence`` are the
    verdict (:func:`judge`), and ``drawn`` what else the picture needs.
    """

    table: list[Row]
    beside: list[list[str]]
    agrees: str
    sentence: str
    drawn: Row


def findings(
    *,
    table: list[Row],
    compared: Sequence[tuple[str, str, str]],
    checks: Sequence[tuple[bool, str]],
    drawn: Row | None = None,
) -> Findings:
    """Return findings with their verdict.

    Parameters
    ----------
    table : list of dict
        The numbers.
    compared : sequence of (str, str, str)
        Quantity, the paper's value, ours.
    checks : sequence of (bool, str)
        See :func:`judge`.
    drawn : dict or None
        What else the picture needs.

    Examples
    --------
    >>> checks = [(True, "sets settle")]
    >>> found = findings(table=[{"n": 1}], compared=[("sets", "settle", "yes")], checks=checks)
    >>> found["agrees"], found["beside"]
    ('yes', [['sets', 'settle', 'yes']])
    """
    agrees, sentence = judge(checks)
    return {
        "table": table,
        "beside": [list(row) for row in compared],
        "agrees": agrees,
        "sentence": sentence,
        "drawn": {} if drawn is None else drawn,
    }


def judge(checks: Sequence[tuple[bool, str]]) -> tuple[str, str]:
    """Return whether findings agree with the paper (yes, in part, no), and a sentence that says why.

    Parameters
    ----------
    checks : sequence of (bool, str)
        Whether a finding agrees with the paper, and the finding with its numbers.

    Examples
    --------
    >>> judge([(True, "cores settle"), (False, "topics do not show")])
    ('in part', 'Agrees in part: as in the paper, cores settle; unlike it, topics do not show.')
    """
    same = "; ".join(text for holds, text in checks if holds)
    other = "; ".join(text for holds, text in checks if not holds)
    if not other:
        return "yes", f"Agrees with the paper: {same}."
    if not same:
        return "no", f"Does not agree with the paper: {other}."
    return "in part", f"Agrees in part: as in the paper, {same}; unlike it, {other}."


def percent(x: float) -> str:
    """Return a share as a whole percentage."""
    return f"{x:.0%}"


def nearest(values: Sequence[float], wanted: float) -> float:
    """Return the value that is nearest to the one wanted."""
    return min(values, key=lambda value: abs(value - wanted))
