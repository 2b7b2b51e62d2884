"""Core rows copied together, for decoding to read them as it reads a narrower model: without gaps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from minicore.backends.cpu import threads as team
from minicore.backends.cpu.rows import copy_rows, row_parts
from minicore.core.rules import Selection
from minicore.model import PER_NEURON, Model
from minicore.quantization import QuantizedMatrix

Array = np.ndarray
LINE = 64  # matrices begin with a cache line


def compact(model: Model, core: Selection, n_threads: int, piece: Array) -> tuple[Model, Array]:
    """Return :meth:`minicore.model.Model.restrict` of the chosen rows, copied by threads, and where they lie.

    That is the given piece, bytes of an earlier copy, if it is large enough: new memory takes longer than
    copying does. It is one piece because the system gives huge pages to no smaller ones.
    """
    sizes = {
        (layer, name): len(ids) * sum(size for _, size in row_parts(model.blocks[layer][name]))
        for layer, ids in core.neurons.items()
        for name in PER_NEURON
        if name in model.blocks[layer]
    }
    ends = np.cumsum([-(-size // LINE) * LINE for size in sizes.values()], dtype=np.int64)
    n_bytes = int(ends[-1]) if len(ends) else 0
    if len(piece) < n_bytes:
        piece = np.empty(n_bytes, np.uint8)
    blocks: list[dict[str, Any]] = [dict(block) for block in model.blocks]
    jobs = []
    for (layer, name), start in zip(sizes, [0, *ends.tolist()], strict=False):
        ids, data = core.neurons[layer], piece[start : start + sizes[layer, name]]
        w: Any = model.blocks[layer][name]
        at = data.ctypes.data
        for first, size in row_parts(w):
            source = (w.data if isinstance(w, QuantizedMatrix) else w).ctypes.data + first
            jobs.append((source, at, ids.ctypes.data, len(ids), size))
            at += len(ids) * size
        blocks[layer][name] = _like(w, data, len(ids))
    team.run(copy_rows, n_threads, np.array(jobs, np.int64).reshape(-1, 5), np.empty(0, np.int32))
    return replace(model, blocks=blocks), piece


def _like(w: Any, data: Array, n: int) -> Any:
    """Return bytes as n rows like a matrix's."""
    if isinstance(w, QuantizedMatrix):
        return QuantizedMatrix(w.format, (n, w.shape[1]), data)
    return data.view(w.dtype).reshape(n, *w.shape[1:])
