"""From parameters back to the tensors of a family's files: the inverse of reading them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from minicore.checkpoint.parameters import Place
from minicore.checkpoint.tensors import Array
from minicore.config import ModelConfig
from minicore.ops import to_float32
from minicore.quantization import Weight


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a family's files: its name and shape, and a function that returns its float32 values."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], Array]


def stored_tensors(
    config: ModelConfig, where: Mapping[str, Place], params: Mapping[str, Weight]
) -> list[StoredTensor]:
    """Return the tensors that hold a model's parameters, in the order of the forward pass.

    Parameters
    ----------
    where : mapping of str to Place
        The place of each parameter (:func:`minicore.checkpoint.parameters.places`).
    params : mapping of str to array or QuantizedMatrix
        Names and shapes of ``config.shapes()``.

    Examples
    --------
    >>> import minicore as mc
    >>> from minicore.checkpoint import families, parameters
    >>> model = mc.load("minicore-opt-core")
    >>> where = parameters.places(model.config, families.FAMILIES["opt"].names)
    >>> tensor = stored_tensors(model.config, where, model.params)[-3]
    >>> tensor.name, tensor.shape, tensor.values().dtype
    ('layers.4.fc2.bias', (256,), dtype('float32'))
    """
    by_name: dict[str, dict[str, Place]] = {}
    for parameter in config.shapes():
        by_name.setdefault(where[parameter].name, {})[parameter] = where[parameter]
    found = []
    for name, held in by_name.items():
        first, place = next(iter(held.items()))
        shape = place.shape_in_file(config.shapes()[first], config)
        found.append(StoredTensor(name, shape, _assembler(shape, held, params, config)))
    return found


def _assembler(
    shape: tuple[int, ...], held: Mapping[str, Place], params: Mapping[str, Weight], config: ModelConfig
) -> Callable[[], Array]:
    def values() -> Array:
        if len(held) == 1:
            parameter, place = next(iter(held.items()))
            if place == Place(place.name):  # as it is in memory
                return to_float32(params[parameter])
        out = np.empty(shape, np.float32)
        for parameter, place in held.items():
            _put(out, to_float32(params[parameter]), place, config)
        return out

    return values


def _put(out: Array, values: Array, place: Place, config: ModelConfig) -> None:
    """Write a parameter into its part of a tensor."""
    if place.plus:
        values = values - np.float32(place.plus)
    if place.interleaved:
        half = config.d_head // 2
        heads = values.reshape(-1, 2, half, values.size // len(values))
        values = heads.swapaxes(1, 2).reshape(values.shape)
    rows = out.T if place.transposed else out
    for first, last, at in place.segments(values.shape, config):
        rows[first:last] = values[at : at + last - first]
