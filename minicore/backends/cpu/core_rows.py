"""Core rows copied together, so that decoding reads them as it reads a narrower model: without gaps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from minicore.backends.cpu import threads
from minicore.backends.cpu.rows import row_parts
from minicore.core.rules import Selection
from minicore.model import PER_NEURON, Model
from minicore.quantization import QuantizedMatrix

Array = np.ndarray
CACHE_LINE = 64  # bytes; each matrix begins with one


def compact(model: Model, core: Selection, n_threads: int, buffer: Array) -> tuple[Model, Array]:
    """Return :meth:`minicore.model.Model.restrict` of the chosen rows, copied by threads, and the copies'
    memory.

    The memory is ``buffer``, the bytes of an earlier copy, if that is large enough: new memory takes longer
    than copying does. It is one array because the system gives huge pages only to large ones.
    """
    sizes = {
        (layer, name): len(ids) * sum(size for _, size in row_parts(model.blocks[layer][name]))
        for layer, ids in core.neurons.items()
        for name in PER_NEURON
        if name in model.blocks[layer]
    }
    ends = np.cumsum([-(-size // CACHE_LINE) * CACHE_LINE for size in sizes.values()], dtype=np.int64)
    n_bytes = int(ends[-1]) if len(ends) else 0
    if len(buffer) < n_bytes:
        buffer = np.empty(n_bytes, np.uint8)
    blocks: list[dict[str, Any]] = [dict(block) for block in model.blocks]
    copies = []
    for (layer, name), start in zip(sizes, [0, *ends.tolist()], strict=False):
        ids, data = core.neurons[layer], buffer[start : start + sizes[layer, name]]
        w: Any = model.blocks[layer][name]
        stored, at = (w.data if isinstance(w, QuantizedMatrix) else w).reshape(-1).view(np.uint8), 0
        for first, size in row_parts(w):
            source = stored[first : first + len(w) * size].reshape(len(w), size)
            copies.append((source, ids, data[at : at + len(ids) * size].reshape(len(ids), size)))
            at += len(ids) * size
        blocks[layer][name] = _like(w, data, len(ids))
    threads.run(_copy, n_threads, copies)
    return replace(model, blocks=blocks), buffer


def _copy(thread: int, n_threads: int, copies: list[tuple[Array, Array, Array]]) -> None:
    """Copy a thread's share of the rows of each (source, ids, target); NumPy releases the GIL."""
    for source, ids, target in copies:
        share = slice(thread * len(ids) // n_threads, (thread + 1) * len(ids) // n_threads)
        np.take(source, ids[share], axis=0, out=target[share], mode="clip")


def _like(w: Any, data: Array, n: int) -> Any:
    """Return bytes as n rows like a matrix's."""
    if isinstance(w, QuantizedMatrix):
        return QuantizedMatrix(w.format, (n, w.shape[1]), data)
    return data.view(w.dtype).reshape(n, *w.shape[1:])
