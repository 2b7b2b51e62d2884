"""The settings of a generation, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from minicore.backends import check_backend
from minicore.core.budgets import Beta
from minicore.core.recorder import Recorder
from minicore.errors import InputError
from minicore.generation.logits_rules import LogitsRules
from minicore.generation.prediction import Layers

if TYPE_CHECKING:
    from minicore.model import Model


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a generation goes on and when it ends.

    Attributes
    ----------
    backend : str
        ``numpy``, ``numba``, ``cpu`` or ``cuda``.
    why_backend : str or None
        Why ``auto`` did not take the GPU that is there.
    max_new_tokens : int
    stops : tuple of str
        Texts that end it.
    eos_ids : frozenset of int
        Tokens that end it.
    refresh : int or None
        Tokens after which neurons are selected again.
    continuation : tuple of int or None
        What ``oracle`` takes for the continuation.
    memory_limit : int or None
        Bytes.
    rules : LogitsRules
        What changes logits before a token is chosen.
    """

    backend: str
    why_backend: str | None = None
    max_new_tokens: int = 128
    stops: tuple[str, ...] = ()
    eos_ids: frozenset[int] = frozenset()
    refresh: int | None = None
    continuation: tuple[int, ...] | None = None
    memory_limit: int | None = None
    rules: LogitsRules = LogitsRules()


def check_options(
    model: Model,
    recorder: Recorder,
    *,
    backend: str,
    max_new_tokens: int,
    stop: str | Sequence[str] | None,
    ignore_eos: bool,
    refresh: int | None,
    continuation: Sequence[int] | None,
    memory_limit: int | None,
    repetition_penalty: float | None = None,
    no_repeat_ngram_size: int | None = None,
) -> Options:
    """Return the options of :func:`minicore.generation.stream.stream`, or raise InputError."""
    if not isinstance(max_new_tokens, int | np.integer) or max_new_tokens < 0:
        raise InputError(f"max_new_tokens is {max_new_tokens!r}, expected 0 or more")
    refresh = recorder.row.refresh if refresh is None else refresh
    check_refresh(recorder, refresh)
    if continuation is not None and not recorder.row.needs_continuation:
        raise InputError(f"predictor {recorder.predictor} does not read the continuation, oracle does")
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if any(not text for text in stops):
        raise InputError("stop is an empty text, expected at least one character")
    if stops and model.tokenizer is None:
        raise InputError(f"stop needs a tokenizer, and {model.source} has none")
    name, why = check_backend(backend, model.dtype, model.config)
    return Options(
        backend=name,
        why_backend=why,
        max_new_tokens=int(max_new_tokens),
        stops=stops,
        eos_ids=frozenset(() if ignore_eos else model.eos_ids),
        refresh=refresh,
        continuation=None if continuation is None else tuple(model.check_ids(continuation).tolist()),
        memory_limit=check_memory_limit(model, recorder, memory_limit, refresh, name),
        rules=make_rules(model.generation, repetition_penalty, no_repeat_ngram_size),
    )


def make_rules(
    generation: Mapping[str, Any], repetition_penalty: float | None, no_repeat_ngram_size: int | None
) -> LogitsRules:
    """Return the checkpoint's rules, with what is not None in place of what the checkpoint says."""
    if repetition_penalty is not None and not 0 < repetition_penalty < np.inf:
        raise InputError(f"repetition_penalty is {repetition_penalty!r}, expected above 0")
    if no_repeat_ngram_size is not None and no_repeat_ngram_size < 0:
        raise InputError(f"no_repeat_ngram_size is {no_repeat_ngram_size!r}, expected 0 or more")
    names = {field.name for field in fields(LogitsRules)}
    values = {name: value for name, value in generation.items() if name in names}
    if repetition_penalty is not None:
        values["repetition_penalty"] = repetition_penalty
    if no_repeat_ngram_size is not None:
        values["no_repeat_ngram_size"] = no_repeat_ngram_size
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        values[name] = tuple(values.get(name, ()))
    values["bad_words_ids"] = tuple(tuple(ids) for ids in values.get("bad_words_ids", ()))
    return LogitsRules(**values)


def with_recommended(
    model: Model, predictor: str | None, alpha: float | None, beta: Beta | None, layers: Layers
) -> tuple[str, float, Beta, Layers]:
    """Return predictor, alpha, beta and layers; what is None is what the checkpoint recommends.

    The recommendation is for one predictor: whoever names a predictor gets minicore's defaults.
    """
    advice = model.recommended if predictor is None else {}
    return (
        predictor or advice.get("predictor", "dense"),
        advice.get("alpha", 0.4) if alpha is None else alpha,
        advice.get("beta", 0.4) if beta is None else beta,
        advice.get("layers") if layers is None else layers,
    )


def check_memory_limit(
    model: Model, recorder: Recorder, memory_limit: int | None, refresh: int | None, backend: str
) -> int | None:
    """Return the limit; raise InputError if decoding cannot keep to it."""
    if memory_limit is None:
        return None
    if memory_limit < 1:
        raise InputError(f"memory_limit is {memory_limit!r}, expected a number of bytes above 0")
    if model.mapping is None and backend != "cuda":
        raise InputError(
            f"memory_limit needs a mapped model, expected {model.source} packed by `minicore pack`"
        )
    if refresh is not None:
        raise InputError("memory_limit and refresh: rows outside the first core set are no longer held")
    return memory_limit


def check_refresh(recorder: Recorder, refresh: int | None) -> None:
    """Raise InputError unless a predictor can select again after that many tokens."""
    if refresh is None:
        return
    if not isinstance(refresh, int | np.integer) or refresh < 1:
        raise InputError(f"refresh is {refresh!r}, expected 1 or more tokens")
    if (
        not recorder.row.records
        or recorder.row.checks_stability
        or recorder.row.needs_continuation
        or recorder.fixed
    ):
        raise InputError(f"predictor {recorder.predictor} reads no prompt that could be read again")
