"""What a benchmark measures: the options of ``minicore bench``, checked."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from minicore.backends import check_backend
from minicore.backends.cpu import threads as cpu_threads
from minicore.core.budgets import Beta
from minicore.errors import InputError, unknown
from minicore.generation.prediction import Layers

BACKENDS = ("cpu", "cuda")
# The largest error of a logit that each format may have, as a fraction of the largest logit. Float formats
# differ from the reference in the order of additions (2e-6 on SmolLM2-135M). Where keys and values are
# rounded to bfloat16, or they and the inputs to integers, such a difference makes a few of them round the
# other way (3e-3 and 0.04 there).
BOUNDS = {"float32": 1e-4, "bfloat16": 1e-2, "int8": 0.1, "int4": 0.1}


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes
    ----------
    backend : str
        ``cpu`` or ``cuda``.
    dtypes : tuple of str or None
        Weight formats, all in memory at once; None is all that the backend supports.
    betas : tuple of float
        Fractions of the neurons kept; dense decoding is always measured.
    threads : tuple of int
        Numbers of CPU threads, by default one and all. For ``cuda`` it must be empty.
    prompt_tokens : int
        Length of the prompt that prefill is timed on.
    new_tokens : int
        Tokens decoded in each measurement.
    rounds : int
        Measurements of each setting.
    contexts : tuple of int
        Tokens in the kv cache when decoding starts; empty is ``prompt_tokens``.
    layers : as in :func:`minicore.generation.prediction.make_recorder`
    alpha : float
        Fraction of each token's positive activations kept, in (0, 1].
    read_bytes : int or None
        Size of the array that is read (on a GPU, copied) to measure bandwidth; None is several times the
        last cache.
    seed : int
        Random seed of the order of settings within a round.
    activation, adapter : str or None
        What :func:`minicore.load` takes.

    Examples
    --------
    >>> Plan(dtypes=("int8",), threads=(1,), contexts=(64, 2048)).betas
    (0.4,)
    """

    backend: str = "cpu"
    dtypes: tuple[str, ...] | None = None
    betas: tuple[Beta, ...] = (0.4,)
    threads: tuple[int | None, ...] = ()
    prompt_tokens: int = 64
    new_tokens: int = 128
    rounds: int = 5
    contexts: tuple[int, ...] = ()
    layers: Layers = None
    alpha: float = 0.4
    read_bytes: int | None = None
    seed: int = 0
    activation: str | None = None
    adapter: str | None = None

    def checked(self) -> Plan:
        """Return the plan with defaults filled in and without duplicates, or raise InputError.

        Examples
        --------
        >>> plan = Plan(threads=(1, 1), prompt_tokens=32).checked()
        >>> plan.threads, plan.contexts, plan.dtypes
        ((1,), (32,), ('float32', 'bfloat16', 'int8', 'int4'))
        """
        if self.backend not in BACKENDS:
            raise unknown("backend", self.backend, BACKENDS)
        self._check_counts()
        dtypes = supported_dtypes(self.backend) if self.dtypes is None else self.dtypes
        if not dtypes:
            known = ", ".join(supported_dtypes(self.backend))
            raise InputError(f"dtypes is empty, expected some of {known}")
        for dtype in dtypes:
            if dtype in BOUNDS:
                check_backend(self.backend, dtype)
        return replace(
            self,
            dtypes=tuple(dict.fromkeys(dtypes)),
            betas=tuple(dict.fromkeys(self.betas)),
            threads=tuple(dict.fromkeys(self._checked_threads())),
            contexts=tuple(dict.fromkeys(self.contexts or (self.prompt_tokens,))),
        )

    def _check_counts(self) -> None:
        """Raise InputError for a number below its least value."""
        for name, least in (("prompt_tokens", 1), ("new_tokens", 1), ("rounds", 1), ("read_bytes", 4)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} is {value}, expected {least} or more")
        for n in self.contexts:
            if n < 1:
                raise InputError(f"contexts has {n}, expected 1 token or more")

    def _checked_threads(self) -> tuple[int | None, ...]:
        """Return the numbers of threads; that of a GPU is None."""
        if self.backend == "cuda":
            if self.threads:
                raise InputError(f"threads is {self.threads[0]}, expected none: they are for backend cpu")
            return (None,)
        cores = max(os.cpu_count() or 1, cpu_threads.default_threads())
        threads = self.threads or (1, cpu_threads.default_threads())
        for n in threads:
            if n is None or not 1 <= n <= cores:
                raise InputError(f"threads is {n}, expected 1 to {cores}, the cores of this machine")
        return threads


def supported_dtypes(backend: str) -> tuple[str, ...]:
    """Return the weight formats that a backend reads."""
    if backend == "cpu":
        return tuple(BOUNDS)
    from minicore.backends.cuda import availability

    return tuple(availability.DTYPES)
