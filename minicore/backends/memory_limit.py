"""Keeping to a limit of memory on the CPU: a mapped model's FFN weights are read, used and given back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain

import numpy as np

from minicore.core.neurons import CoreSet
from minicore.core.rules import Selection
from minicore.errors import InputError
from minicore.forward import Hooks, as_hooks, join_hooks
from minicore.model import Model

Array = np.ndarray


def releasing(model: Model, hooks: Hooks | Callable[[str, Array], None] | None) -> Hooks:
    """Return hooks that also give back each layer's FFN weights as soon as the layer has used them."""

    def release(layer: int, out: Array) -> None:
        model.release(layer)

    used = ((f"blocks.{i}.hook_mlp_out", partial(release, i)) for i in range(model.config.n_layers))
    return join_hooks(chain(as_hooks(hooks, model.config).items(), used))


def core_only(model: Model, selection: Selection | None, memory_limit: int) -> Model:
    """Return the model that holds copies of the core neurons' rows and nothing else of those FFNs.

    Raises InputError if the selection is not a core set, or the process then holds more than the limit.
    """
    if not isinstance(selection, CoreSet):
        raise InputError("memory_limit needs a core set, and the predictor chose none")
    narrow = model.restrict(selection, after_layer=model.release)
    held = resident_bytes()
    if held > memory_limit:
        raise InputError(
            f"memory_limit is {memory_limit} bytes, but {held} are held with "
            f"{selection.fraction:.0%} of the neurons; expected a higher limit or a smaller beta"
        )
    return narrow


def resident_bytes() -> int:
    """Return the bytes of memory this process holds."""
    import psutil

    return int(psutil.Process().memory_info().rss)
