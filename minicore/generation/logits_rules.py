"""Rules that change logits before a token is chosen, greedily or not, as Transformers' processors do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class LogitsRules:
    """What changes the logits, in this order. The defaults change nothing.

    Attributes
    ----------
    repetition_penalty : float
        Positive logits of tokens that have occurred, in the prompt too, are divided by it, negative ones
        multiplied (CTRL, 1909.05858).
    no_repeat_ngram_size : int
        No sequence of this many tokens occurs twice; 0 is off.
    bad_words_ids : tuple of tuple of int
        Sequences that must not be completed.
    min_length, min_new_tokens : int
        Until there are so many tokens, with or without the prompt, no token ends the text.
    suppress_tokens, begin_suppress_tokens : tuple of int
        Tokens that never occur, and that do not occur first.
    """

    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    min_length: int = 0
    min_new_tokens: int = 0
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        """Return whether anything can change."""
        return self != LogitsRules()

    def __call__(
        self, logits: Array, ids: Sequence[int], n_prompt: int, ends: Iterable[int]
    ) -> Array:  # (n_vocab,) -> (n_vocab,)
        """Return the logits of the next token as the rules change them.

        Parameters
        ----------
        logits : (n_vocab,) float32 array
        ids : sequence of int
            All tokens so far; the first ``n_prompt`` are the prompt.
        ends : iterable of int
            Tokens that end the text.

        Examples
        --------
        >>> rules = LogitsRules(repetition_penalty=2.0, suppress_tokens=(3,))
        >>> rules(np.float32([4, -4, 4, 4]), [0, 1], 2, ())
        array([  2.,  -8.,   4., -inf], dtype=float32)
        """
        logits = np.array(logits, np.float32)
        if self.repetition_penalty != 1:
            seen = np.unique(np.asarray(ids, np.int64))
            penalty, found = np.float32(self.repetition_penalty), logits[seen]
            logits[seen] = np.where(found < 0, found * penalty, found / penalty)
        ends = tuple(ends)
        banned = set(self._repeating(ids)) | set(self._completing(ids, ends)) | set(self.suppress_tokens)
        if len(ids) < self.min_length or len(ids) - n_prompt < self.min_new_tokens:
            banned.update(ends)
        if len(ids) == n_prompt:
            banned.update(self.begin_suppress_tokens)
        logits[[i for i in banned if i < len(logits)]] = -np.inf
        return logits

    def _repeating(self, ids: Sequence[int]) -> Iterable[int]:
        """Yield the tokens that would make a sequence of ``no_repeat_ngram_size`` tokens occur again."""
        n = self.no_repeat_ngram_size
        if not n or len(ids) < n:
            return
        windows = np.lib.stride_tricks.sliding_window_view(np.asarray(ids, np.int64), n)
        last = np.asarray(ids[len(ids) - n + 1 :], np.int64)
        yield from windows[(windows[:, : n - 1] == last).all(axis=1), n - 1].tolist()

    def _completing(self, ids: Sequence[int], ends: tuple[int, ...]) -> Iterable[int]:
        """Yield the tokens that would complete a sequence of ``bad_words_ids``; ends stay possible."""
        for word in self.bad_words_ids:
            *start, last = word
            if start and list(ids[-len(start) :]) == start:
                yield last
            elif not start and last not in ends:
                yield last
