"""One sentence on whether numbers agree with the paper's: the same for every figure."""

from __future__ import annotations


def judge(*checks: tuple[bool, str]) -> dict[str, str]:
    """Return ``agrees`` (yes, in part, no) and the sentence that says why.

    Parameters
    ----------
    *checks : (bool, str)
        Whether a finding is the paper's, and the finding with its numbers.

    Examples
    --------
    >>> judge((True, "cores settle"), (False, "topics do not show"))["sentence"]
    'Agrees in part: as in the paper, cores settle; unlike it, topics do not show.'
    """
    same = [text for holds, text in checks if holds]
    other = [text for holds, text in checks if not holds]
    if not other:
        return {"agrees": "yes", "sentence": f"Agrees with the paper: {'; '.join(same)}."}
    if not same:
        return {"agrees": "no", "sentence": f"Does not agree with the paper: {'; '.join(other)}."}
    return {
        "agrees": "in part",
        "sentence": f"Agrees in part: as in the paper, {'; '.join(same)}; unlike it, {'; '.join(other)}.",
    }


def percent(x: float) -> str:
    """Return a share as a whole percentage."""
    return f"{x:.0%}"
