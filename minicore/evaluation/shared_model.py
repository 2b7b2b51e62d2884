"""The model of a sweep: jobs carry a small reference to it, and each process loads it once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import minicore
from minicore.errors import InputError
from minicore.generation.prediction import fingerprint
from minicore.model import Model


class ModelRef(NamedTuple):
    """What a worker needs to find a model: its name, source path, dtype, activation and fingerprint.

    ``adapter`` is the path of a LoRA adapter that must be added to the source.
    """

    name: str
    source: str
    dtype: str
    activation: str
    fingerprint: str
    adapter: str | None = None


_loaded: dict[ModelRef, Model] = {}  # at most one: the model that this process used last


def register_model(model: Model) -> ModelRef:
    """Return the reference that jobs carry in place of a model; this process keeps the model itself."""
    ref = ModelRef(
        name=model.name.removesuffix(model.adapter.suffix) if model.adapter else model.name,
        source=str(Path(model.source).absolute()),
        dtype=model.dtype,
        activation=model.config.spelled_activation,
        fingerprint=fingerprint(model),
        adapter=model.adapter.path if model.adapter and model.mapping is None else None,
    )
    _loaded.clear()
    _loaded[ref] = model
    return ref


def resolve_model(ref: ModelRef) -> Model:
    """Return the model of a reference, loading it if this process does not have it yet.

    Raises
    ------
    InputError
        If this machine has no such model, or another one under its name.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> resolve_model(register_model(model)) is model
    True
    """
    if ref not in _loaded:
        _loaded.clear()
        source = ref.source if Path(ref.source).exists() else ref.name
        model = minicore.load(source, dtype=ref.dtype, activation=ref.activation, adapter=ref.adapter)
        if fingerprint(model) != ref.fingerprint:
            raise InputError(f"{model.source} is another model on this machine than on the driver's")
        _loaded[ref] = model
    return _loaded[ref]
