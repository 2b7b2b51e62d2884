"""The one exception a user's mistake raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input, told in one sentence that names the thing and what was expected.

    The command line prints it without a traceback and exits with code 2.

    Examples
    --------
    >>> import minicore as mc
    >>> mc.load("no-such-model")
    Traceback (most recent call last):
    minicore.errors.InputError: ...
    """


def unknown(what: str, given: object, known: Iterable[str]) -> InputError:
    """Return the error for a name that is not in a table, with the nearest ones that are.

    Parameters
    ----------
    what : str
        What the name stands for, such as ``"predictor"``.
    given : object
        What the user wrote.
    known : iterable of str
        The names that would have been right.

    Examples
    --------
    >>> print(unknown("predictor", "stabilty", ["dense", "stability"]))
    unknown predictor 'stabilty'; did you mean stability?
    """
    names = list(known)
    near = difflib.get_close_matches(str(given), names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return InputError(f"unknown {what} {given!r}; {hint}")
