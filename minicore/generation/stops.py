"""Stop texts: found in a stream of pieces, across pieces and in the names of special tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class StopText:
    """Releases text once it cannot be the start of a stop text.

    Attributes
    ----------
    found : bool
        Whether a stop text has come. It and what follows are not released.
    names : dict of int to str
        The special tokens whose names occur in stop texts. They are not part of the text, but are looked at.

    Examples
    --------
    >>> text = StopText(["<|end|>"], {7: "<|end|>"})
    >>> text.push("one <|", token_id=3), text.push("two ", token_id=4), text.push("", token_id=7), text.found
    ('one ', '<|two ', '', True)
    """

    def __init__(self, stops: Sequence[str], special: Mapping[int, str]) -> None:
        self.found = False
        self._stops = stops
        self.names = {i: name for i, name in special.items() if any(name in stop for stop in stops)}
        self._held = ""  # not released yet, with names
        self._hidden: list[tuple[int, int]] = []  # where names lie in it

    def push(self, piece: str, token_id: int | None = None) -> str:
        """Add a token's piece of text, then its name, and return the text that is released."""
        name = self.names.get(token_id, "") if token_id is not None else ""
        self._held += piece
        if name:
            self._hidden.append((len(self._held), len(self._held) + len(name)))
            self._held += name
        found = [at for at in map(self._held.find, self._stops) if at >= 0]
        self.found = bool(found)
        ready = len(self._held) - max((overlap(self._held, stop) for stop in self._stops), default=0)
        return self._release(min(found, default=ready))

    def flush(self, rest: str) -> str:
        """Add the end of the text and return all that is left before a stop text."""
        text = self.push(rest)
        return text if self.found else text + self._release(len(self._held))

    def _release(self, n: int) -> str:
        """Take n characters and return those that are not names."""
        text, at = "", 0
        for start, stop in self._hidden:
            text += self._held[at : min(start, n)]
            at = min(stop, n)
        text += self._held[at:n]
        self._held = self._held[n:]
        self._hidden = [(max(start - n, 0), stop - n) for start, stop in self._hidden if stop > n]
        return text


def overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of text could start the stop text."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
