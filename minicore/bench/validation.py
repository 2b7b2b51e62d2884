"""Results come first: logits are compared with the NumPy reference before anything is timed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minicore.bench.plan import BOUNDS
from minicore.bench.summary import plain_value
from minicore.bench.workload import LoadedModel, prompt_ids
from minicore.core.budgets import Beta
from minicore.forward import forward

Array = np.ndarray

N_CHECKED = 8  # tokens that are decoded, after a prompt of as many


class WrongResult(Exception):
    """The logits of a setting are not those of the reference, so its speed means nothing.

    Examples
    --------
    >>> checked_row("decode", "float32", None, 1, np.array([1.0, 3.0]), np.array([1.0, 2.0]))
    Traceback (most recent call last):
    minicore.bench.validation.WrongResult: decode, float32, dense, 1 threads: logits differ from ...
    """


def validate(loaded: LoadedModel) -> Iterator[dict[str, Any]]:
    """Read and decode a few tokens with every setting and with the reference; yield how far they differ.

    Parameters
    ----------
    loaded : LoadedModel

    Yields
    ------
    dict
        ``phase``, ``dtype``, ``beta``, ``n_threads``, and ``error``: the largest difference of a logit,
        divided by the largest logit.

    Raises
    ------
    WrongResult
        If an error exceeds the format's bound, or a logit is finite in only one of the two.

    Examples
    --------
    >>> from minicore.bench.plan import Plan
    >>> from minicore.bench.run import make_device
    >>> plan = Plan(threads=(1,), prompt_tokens=8, new_tokens=4).checked()
    >>> loaded = LoadedModel("minicore-opt-core", "float32", plan, make_device(plan))
    >>> [(row["phase"], row["beta"]) for row in validate(loaded)]
    [('prefill', None), ('decode', None), ('decode', 0.4)]
    """
    model, plan = loaded.model, loaded.plan
    n = min(N_CHECKED, model.config.n_ctx // 2)
    ids = np.array(prompt_ids(model, 2 * n))
    for beta in (None, *plan.betas):
        cache = model.new_cache(2 * n)
        selection = loaded.prefill(cache, ids[:n].tolist(), beta)
        cache.rewind(0)
        expected = forward(model.restrict(selection), ids, cache)
        for n_threads in plan.threads:
            if beta is None:
                with loaded.device.limited(n_threads):
                    read = loaded.backend.prefill(ids, model.new_cache(2 * n))
                yield checked_row("prefill", model.dtype, None, n_threads, read, expected[-1])
            cache.rewind(n)
            decoder = loaded.decoder(cache, selection, n_threads)
            decoded = np.stack([decoder.step(int(token)) for token in ids[n:]])
            yield checked_row("decode", model.dtype, beta, n_threads, decoded, expected[n:])


def checked_row(
    phase: str, dtype: str, beta: Beta | None, n_threads: int | None, got: Array, expected: Array
) -> dict[str, Any]:
    """Return the row of a setting whose logits are close enough to the reference's."""
    error = relative_error(got, expected)
    if not error <= BOUNDS[dtype]:
        neurons = "dense" if beta is None else f"core {beta}"
        where = "on the GPU" if n_threads is None else f"{n_threads} threads"
        raise WrongResult(
            f"{phase}, {dtype}, {neurons}, {where}: logits differ from the reference's by {error:.2g} of the "
            f"largest, expected at most {BOUNDS[dtype]:g}; nothing was timed"
        )
    return {
        "phase": phase,
        "dtype": dtype,
        "beta": plain_value(beta),
        "n_threads": n_threads,
        "error": error,
    }


def relative_error(got: Array, expected: Array) -> float:
    """Return the largest difference divided by the largest magnitude; infinite where only one is finite."""
    finite = np.isfinite(expected)
    if not np.array_equal(np.isfinite(got), finite) or not finite.any():
        return float("inf")
    return float(np.abs(got - expected)[finite].max() / np.abs(expected)[finite].max())
