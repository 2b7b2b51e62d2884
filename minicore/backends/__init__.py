"""Decoders: one token in, logits out, on each backend; the reference is the specification of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from minicore.core.rules import Selection
from minicore.errors import InputError, unknown

if TYPE_CHECKING:
    from minicore.config import ModelConfig
    from minicore.model import KVCache, Model

BACKENDS = ("numpy", "cpu", "cuda")


class Decoder(Protocol):
    """What generation sees of a backend."""

    @property
    def n_used(self) -> np.ndarray:  # (n_layers,) int64
        """Neurons whose output rows were read, added up over the steps since the last :meth:`use`."""
        ...

    def use(self, core: Selection | None) -> None:
        """Decode with this selection, behind what the kv cache holds, from now on; None is all neurons."""
        ...

    def flush(self) -> None:
        """Make the kv cache hold what steps have read."""
        ...

    def step(self, token_id: int) -> np.ndarray:  # -> (n_vocab,) float32
        """Read one token into the kv cache and return the logits after it."""
        ...


def check_backend(
    backend: str, dtype: str = "float32", config: ModelConfig | None = None
) -> tuple[str, str | None]:
    """Return the backend's own name, and why ``auto`` did not take the GPU that is there.

    ``auto`` is ``cuda`` where a GPU can be used for weights of this dtype and a model of this config, else
    ``cpu``.

    Raises
    ------
    InputError
        If the backend is unknown, with the nearest names, or cannot be used here.

    Examples
    --------
    >>> check_backend("numpy")
    ('numpy', None)
    """
    if backend not in (*BACKENDS, "auto"):
        raise unknown("backend", backend, (*BACKENDS, "auto"))
    if backend not in ("cuda", "auto"):
        return backend, None
    from minicore.backends.cuda import availability as gpu

    why = gpu.trouble(dtype, config)
    if backend == "cuda" and why:
        raise InputError(f"backend cuda: {why}")
    if backend == "cuda" or (gpu.ask().there and not why):
        return "cuda", None
    return "cpu", why if gpu.ask().there else None


def reader(model: Model, backend: str = "auto", memory_limit: int | None = None) -> Model:
    """Return the model as a backend reads prompts with it: compiled but for ``numpy``, on a GPU for ``cuda``.

    With a memory limit a GPU gets FFN weights layer by layer, and a mapped model gives them back.

    Raises
    ------
    InputError
        If the backend is unknown or cannot be used.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> reader(model, "numpy") is model
    True
    """
    chosen = check_backend(backend, model.dtype, model.config)[0]
    if chosen == "numpy":
        return model if memory_limit is None else model.frugal()
    from minicore.backends.cpu import prefill as ops

    ops.compile_all(model.dtype)
    read = model.using(ops)
    if chosen == "cuda":
        from minicore.backends.cuda.prefill import Reader

        read.on_device = Reader(model, memory_limit)
    elif memory_limit is not None:
        return read.frugal()
    return read


def make_decoder(
    model: Model,
    cache: KVCache,
    core: Selection | None = None,
    backend: str = "auto",
    memory_limit: int | None = None,
) -> Decoder:
    """Return a decoder that continues a prefilled cache.

    Parameters
    ----------
    model : Model
    cache : KVCache
        Holds the prompt; :meth:`Decoder.step` appends to it.
    core : CoreSet, TokenRule or None
        Neurons to decode with, or how each token chooses its own; None is all.
    backend : str
        ``numpy`` (the reference), ``cpu`` (Numba), ``cuda`` (an NVIDIA GPU) or ``auto``.
    memory_limit : int or None
        Bytes that ``cuda`` may hold on the GPU: FFN weights then stay in the host's memory, but for the core
        neurons' rows. Other backends hold what the model holds.

    Raises
    ------
    InputError
        If the backend is unknown or cannot be used, the core set is another model's, or more is needed.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> cache, ids = model.new_cache(8), model.tokenizer.encode("The old house")
    >>> model.forward(ids).shape == (len(ids), model.config.n_vocab)
    True
    >>> decoder = make_decoder(model, cache, backend="numpy")
    >>> decoder.step(ids[0]).shape == (model.config.n_vocab,)
    True
    """
    backend, _ = check_backend(backend, model.dtype, model.config)
    if backend == "numpy":
        from minicore.backends.numpy import ReferenceDecoder

        return ReferenceDecoder(model, cache, core)
    if backend == "cuda":
        from minicore.backends.cuda.decoder import CudaDecoder

        return CudaDecoder(model, cache, core, memory_limit=memory_limit)
    from minicore.backends.cpu.decoder import CpuDecoder

    return CpuDecoder(model, cache, core)
