"""The exception for bad input, and helpers for its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input. The message is one sentence that names the input and says what was expected.

    The command line prints it without a traceback and exits with code 2.

    Examples
    --------
    >>> import minicore as mc
    >>> mc.load("no-such-model")
    Traceback (most recent call last):
    minicore.errors.InputError: ...
    """


def unknown(what: str, given: object, known: Iterable[str]) -> InputError:
    """Return the error for an unknown name, with the closest known names.

    Parameters
    ----------
    what : str
        The kind of name, such as ``"predictor"``.
    given : object
        The user's input.
    known : iterable of str
        The valid names.

    Examples
    --------
    >>> print(unknown("predictor", "stabilty", ["dense", "stability"]))
    unknown predictor 'stabilty'; did you mean stability?
    """
    names = list(known)
    near = difflib.get_close_matches(str(given), names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return InputError(f"unknown {what} {given!r}; {hint}")


def one_line(error: BaseException) -> str:
    """Return an exception's message as one line, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
