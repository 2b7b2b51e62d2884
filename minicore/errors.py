"""The exception for bad input, and helpers for its messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LONGEST_QUOTE = 80  # characters of a quoted value in a message


class InputError(ValueError):
    """Bad input. The message is one sentence that names the input and says what was expected.

    The command line prints it without a traceback and exits with code 2. Values that the message quotes are
    cut to LONGEST_QUOTE characters, and control characters are escaped, since they come from files. A
    ``command`` that helps follows the message whole.

    Examples
    --------
    >>> import minicore as mc
    >>> mc.load("no-such-model")
    Traceback (most recent call last):
    minicore.errors.InputError: ...
    """

    def __init__(self, message: str, command: str = "") -> None:
        super().__init__(printable(message) + _escaped(command))


def printable(message: str) -> str:
    """Return a message without control characters, its quoted values cut to LONGEST_QUOTE characters.

    Examples
    --------
    >>> len(printable("the key is '" + 200 * "x" + "', expected 'y'"))
    106
    >>> print(printable(chr(27) + "[2J"))
    \\x1b[2J
    """
    cut = _QUOTED.sub(lambda quoted: f"{quoted[0][: LONGEST_QUOTE - 3]}...{quoted[0][-1]}", message)
    return _escaped(cut)


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


# Text in quotes, or a list or mapping, that is longer than a message should quote.
_LONG = f"{{{LONGEST_QUOTE},}}"
_QUOTED = re.compile(
    rf"(?<!\w)'[^'\n]{_LONG}'(?!\w)|(?<!\w)\"[^\"\n]{_LONG}\"(?!\w)|\[[^\n]{_LONG}\]|\{{[^\n]{_LONG}\}}"
)


@contextmanager
def guarded(where: str, expected: str) -> Iterator[None]:
    """Turn what a library raises over a file's contents, panics of Rust included, into InputError.

    Examples
    --------
    >>> with guarded("tokenizer.json", "one that can be read"):
    ...     raise ZeroDivisionError("oh")
    Traceback (most recent call last):
    minicore.errors.InputError: tokenizer.json: oh, expected one that can be read
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"  # of PyO3: a BaseException that nobody exports
        if not panic and not isinstance(error, Exception):
            raise
        raise InputError(f"{where}: {one_line(error)}, expected {expected}") from error


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
