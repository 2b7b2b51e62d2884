"""Numbers and tables as text, for the command line, reports and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))


def format_bytes(n_bytes: float) -> str:
    """Return a number of bytes in the unit that leaves about three digits.

    Examples
    --------
    >>> format_bytes(999), format_bytes(12_340), format_bytes(538_000_000)
    ('999 B', '12.3 kB', '538 MB')
    """
    scale, unit = next((row for row in UNITS if n_bytes >= row[0]), UNITS[-1])
    n = n_bytes / scale
    digits = 0 if n >= 100 or scale == 1 else 1 if n >= 10 else 2
    return f"{n:.{digits}f} {unit}"


def format_number(x: float) -> str:
    """Return a number with about three significant digits.

    Examples
    --------
    >>> [format_number(x) for x in (0.0123, 1.414, 33.33, 146271.0)]
    ['0.012', '1.41', '33.3', '146271']
    """
    digits = 0 if abs(x) >= 100 else 1 if abs(x) >= 10 else 2 if abs(x) >= 1 else 3
    return f"{x:.{digits}f}"


def format_ratio(x: float) -> str:
    """Return a ratio as :func:`format_number` does, but with three decimals near 1, where they matter.

    Examples
    --------
    >>> format_ratio(1.0213), format_ratio(2.5)
    ('1.021', '2.50')
    """
    return f"{x:.3f}" if 0.5 < x < 2 else format_number(x)


def format_interval(values: Sequence[float]) -> str:
    """Return ``(estimate, low, high)`` as a ratio and its interval.

    Examples
    --------
    >>> format_interval([1.07, 1.05, 1.1])
    '1.070 [1.050, 1.100]'
    """
    estimate, low, high = (format_ratio(value) for value in values)
    return f"{estimate} [{low}, {high}]"


def format_quartiles(spread: Mapping[str, Any]) -> str:
    """Return the median with the quartiles of ``{"median": ..., "q1": ..., "q3": ...}``.

    Examples
    --------
    >>> format_quartiles({"median": 35.0, "q1": 33.25, "q3": 36.0})
    '35.0 [33.2, 36.0]'
    """
    median, q1, q3 = (format_number(spread[key]) for key in ("median", "q1", "q3"))
    return f"{median} [{q1}, {q3}]"


def format_cell(value: Any) -> str:
    """Return a value of a result table: a list is an estimate with its interval, a float a ratio.

    Examples
    --------
    >>> format_cell("layer 3"), format_cell(1.5), format_cell([1.07, 1.05, 1.1])
    ('layer 3', '1.500', '1.070 [1.050, 1.100]')
    """
    if isinstance(value, list):
        return format_interval(value)
    return format_ratio(value) if isinstance(value, float) else str(value)


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table: the first column is left-aligned, the others right-aligned.

    Examples
    --------
    >>> print(*format_table(["layer", "rho"], [["3", "0.41"], ["12", "0.5"]]), sep="\\n")
    layer   rho
    3      0.41
    12      0.5
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            f"{cell:{'>' if i else '<'}{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
