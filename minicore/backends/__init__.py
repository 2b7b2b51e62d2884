"""Backends: what reads prompts and decodes. The NumPy backend is the specification of the others.

:class:`Backend` and :class:`Decoder` are the protocols that all of them implement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minicore.backends.dims import missing
from minicore.backends.protocol import Backend as Backend
from minicore.backends.protocol import Decoder as Decoder
from minicore.backends.protocol import DecoderStats as DecoderStats
from minicore.core.rules import Selection
from minicore.errors import InputError, unknown

if TYPE_CHECKING:
    from minicore.config import ModelConfig
    from minicore.kv_cache import KVCache
    from minicore.model import Model

BACKENDS = ("numpy", "numba", "cpu", "cuda")


def check_backend(
    backend: str, dtype: str = "float32", config: ModelConfig | None = None
) -> tuple[str, str | None]:
    """Return the backend's own name, and why ``auto`` did not take a faster one.

    ``auto`` is ``cuda`` where a GPU can be used for weights of this dtype and a model of this config, else
    ``cpu`` where the kernels have all options of the config, else ``numpy``, which has them all.

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
    if backend != "auto" and config and (lacking := missing(backend, config)):
        raise InputError(
            f"backend {backend}: its kernels lack this model's {lacking}, expected backend numpy or auto"
        )
    if backend == "auto" and config and (lacking := missing("cpu", config)):
        return "numpy", f"the compiled kernels do not have {lacking}"
    if backend == "numba" and dtype != "float32":
        raise InputError(f"backend numba decodes float32, expected that dtype in place of {dtype}")
    if backend not in ("cuda", "auto"):
        return backend, None
    from minicore.backends.cuda import availability

    why = availability.trouble(dtype, config)
    if backend == "cuda" and why:
        raise InputError(f"backend cuda: {why}")
    there = availability.ask().there
    if backend == "cuda" or (there and not why):
        return "cuda", None
    return "cpu", why if there else None


def make_backend(model: Model, backend: str = "auto", memory_limit: int | None = None) -> Backend:
    """Return a model on a backend.

    Parameters
    ----------
    model : Model
    backend : str
        ``numpy`` (the reference), ``numba`` (plain loops, float32), ``cpu`` (vectors and threads), ``cuda``
        (an NVIDIA GPU) or ``auto``.
    memory_limit : int or None
        Bytes. The process keeps to it while it decodes with the core neurons of a mapped model, whose FFN
        weights are given back layer by layer. With ``cuda`` these are bytes on the GPU: FFN weights stay in
        the host's memory but for the core neurons' rows.

    Raises
    ------
    InputError
        If the backend is unknown or cannot be used.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> make_backend(model, "numpy").prefill(model.check_ids([5, 6]), model.new_cache(2)).shape
    (6144,)
    """
    name, _ = check_backend(backend, model.dtype, model.config)
    if name == "numpy":
        from minicore.backends.numpy import NumpyBackend

        return NumpyBackend(model, memory_limit)
    if name == "numba":
        from minicore.backends.cpu.plain_decoder import NumbaBackend

        return NumbaBackend(model, memory_limit)
    if name == "cuda":
        from minicore.backends.cuda.backend import CudaBackend

        return CudaBackend(model, memory_limit)
    from minicore.backends.cpu.backend import CpuBackend

    return CpuBackend(model, memory_limit)


def make_decoder(
    model: Model,
    cache: KVCache,
    selection: Selection | None = None,
    backend: str = "auto",
    memory_limit: int | None = None,
) -> Decoder:
    """Return a decoder that continues a prefilled cache.

    Parameters
    ----------
    model : Model
    cache : KVCache
        Holds the prompt; :meth:`Decoder.step` appends to it.
    selection : CoreSet, TokenRule or None
        Neurons to decode with, or how each token selects its own; None is all.
    backend, memory_limit
        As :func:`make_backend` takes them.

    Raises
    ------
    InputError
        If the backend is unknown or cannot be used, the selection is another model's, or more memory is
        needed than the limit allows.

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
    return make_backend(model, backend, memory_limit).decoder(cache, selection)
