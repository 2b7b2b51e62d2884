"""Whether a model computes what it should: its logits, greedy tokens and ids against a reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minicore.backends import Backend, make_backend
from minicore.errors import InputError
from minicore.evaluation.agreement import agreement
from minicore.evaluation.reference import Recording, Reference
from minicore.forward import chunks
from minicore.model import Model

Array = np.ndarray

TOLERANCE = 1e-4  # of the largest logit, for float32 weights
N_STEPS = 8  # tokens of a text that the decoder reads again


def check(
    model: Model, reference: Reference, backend: str = "numpy", tolerance: float | None = None
) -> list[dict[str, Any]]:
    """Compare a model with a reference, text by text.

    The backend reads each text twice: all positions at once, then all but the last 8 tokens by prefill and
    those token by token. The decoder then continues the text greedily.

    Parameters
    ----------
    tolerance : float or None
        Largest difference of a logit, as a fraction of the largest logit. None is 1e-4 for float32 weights.

    Returns
    -------
    list of dict
        For each text ``text``, ``n_tokens``, ``same_ids`` (None: nothing to compare), ``difference`` (as a
        fraction of the largest logit; None: not finite), ``n_new``, ``n_agree`` (greedy tokens before the
        first that differs), ``margin`` (how far the reference's token led there, as a fraction of the largest
        logit; None: all agree) and ``ok``. Tokens may differ at a margin of at most twice the tolerance,
        because both logits may be off by as much.

    Raises
    ------
    InputError
        If the reference is another model's, or a tolerance is needed.

    Examples
    --------
    >>> import minicore as mc
    >>> from minicore.evaluation.reference import from_model
    >>> model = mc.load("minicore-opt-core")
    >>> row, = check(model, from_model(model, ["The old house"], n_new=3))
    >>> row["ok"], row["n_agree"], row["difference"] < 1e-4
    (True, 3, True)
    """
    if tolerance is None and model.dtype != "float32":
        raise InputError(f"a tolerance is needed for {model.dtype} weights, expected --tolerance or float32")
    tolerance = TOLERANCE if tolerance is None else tolerance
    if not 0 <= tolerance < np.inf:
        raise InputError(f"the tolerance is {tolerance}, expected a number of at least 0")
    ready = make_backend(model, backend)
    return [_check_text(ready, reference, one, tolerance) for one in reference.recordings]


def _check_text(backend: Backend, reference: Reference, one: Recording, tolerance: float) -> dict[str, Any]:
    model, n_tokens, n_new = backend.model, len(one.logits), len(one.greedy)
    if reference.n_vocab != model.config.n_vocab or n_tokens + n_new > model.config.n_ctx:
        raise InputError(
            f"the reference has {reference.n_vocab} logits and texts of {n_tokens + n_new} tokens, "
            f"expected one of {model!r}: {model.config.n_vocab} logits, a context of {model.config.n_ctx}"
        )
    ids = model.check_ids(one.ids)
    same_ids = None
    if one.text is not None and model.tokenizer is not None:
        same_ids = model.tokenizer.encode(one.text) == ids.tolist()
    worst = 0.0
    found: list[int] = []
    for first, logits in _logits(backend, ids[:n_tokens], n_new, found):
        error = np.abs(logits[:, reference.columns] - one.logits[first : first + len(logits)]).max()
        worst = max(worst, float(error / one.largest)) if np.isfinite(error) else np.inf
    n_agree, _ = agreement(found, one.greedy.tolist())
    margin = None if n_agree == n_new else float(one.margins[n_agree] / one.largest)
    close = worst <= tolerance and (margin is None or margin <= 2 * tolerance)
    return {
        "text": one.text,
        "n_tokens": n_tokens,
        "same_ids": same_ids,
        "difference": worst if np.isfinite(worst) else None,
        "n_new": n_new,
        "n_agree": n_agree,
        "margin": margin,
        "ok": close and same_ids is not False,
    }


def _logits(backend: Backend, ids: Array, n_new: int, found: list[int]) -> Iterator[tuple[int, Array]]:
    """Yield logits (n, n_vocab) with the position of the first; then put the greedy tokens into ``found``."""
    cache, first = backend.model.new_cache(len(ids)), 0
    for chunk in chunks(ids):
        yield first, backend.forward(chunk, cache)
        first += len(chunk)
    cache, n_prefill = backend.model.new_cache(len(ids) + n_new), max(1, len(ids) - N_STEPS)
    logits = backend.prefill(ids[:n_prefill], cache)
    yield n_prefill - 1, logits[None]
    decoder = backend.decoder(cache)
    for i in range(n_prefill, len(ids)):
        logits = decoder.step(int(ids[i]))
        yield i, logits[None]
    found.append(int(logits.argmax()))
    found.extend(decoder.run(found[0], n_new - 1))
