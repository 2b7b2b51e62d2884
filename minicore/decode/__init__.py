"""Decoders: one token in, logits out, on each backend; the reference is the specification of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from minicore.core.rules import Choice
from minicore.errors import unknown

if TYPE_CHECKING:
    from minicore.model import KVCache, Model

BACKENDS = ("numpy", "cpu")


class Decoder(Protocol):
    """What generation sees of a backend."""

    @property
    def n_used(self) -> np.ndarray:  # (n_layers,) int64
        """Neurons whose output rows were read, added up over the steps since the last :meth:`use`."""
        ...

    def use(self, core: Choice | None) -> None:
        """Decode with this choice from the next step on; None is all neurons."""
        ...

    def step(self, token_id: int) -> np.ndarray:  # -> (n_vocab,) float32
        """Read one token into the kv cache and return the logits after it."""
        ...


def check_backend(backend: str) -> str:
    """Return the backend's own name (``auto`` is ``cpu``), or raise InputError with the nearest names."""
    if backend not in (*BACKENDS, "auto"):
        raise unknown("backend", backend, (*BACKENDS, "auto"))
    return "cpu" if backend == "auto" else backend


def reader(model: Model, backend: str = "auto") -> Model:
    """Return the model as a backend reads prompts with it: the same, its maths compiled for ``cpu``.

    Raises
    ------
    InputError
        If the backend is unknown.
    """
    if check_backend(backend) == "numpy":
        return model
    from minicore.kernels import ops

    ops.compile_all()
    return model.using(ops)


def make_decoder(model: Model, cache: KVCache, core: Choice | None = None, backend: str = "auto") -> Decoder:
    """Return a decoder that continues a prefilled cache.

    Parameters
    ----------
    model : Model
    cache : KVCache
        Holds the prompt; :meth:`Decoder.step` appends to it.
    core : CoreSet, TokenRule or None
        Neurons to decode with, or how each token chooses its own; None is all.
    backend : str
        ``numpy`` (the reference), ``cpu`` (Numba) or ``auto``.

    Raises
    ------
    InputError
        If the backend is unknown or the core set is another model's.
    """
    if check_backend(backend) == "numpy":
        from minicore.decode.reference import ReferenceDecoder

        return ReferenceDecoder(model, cache, core)
    from minicore.decode.cpu import CpuDecoder

    return CpuDecoder(model, cache, core)
