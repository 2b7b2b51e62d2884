"""Predictors at work on a model: what they are handed, and the taps through which they watch prefill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from minicore import ops
from minicore.core.neurons import parse_layers
from minicore.core.predictors import Beta, Recorder, find_predictor
from minicore.errors import InputError
from minicore.model import KVCache, Tap, prefill

if TYPE_CHECKING:
    from minicore.model import Model

Array = np.ndarray
Layers = str | slice | range | list[int] | None


def row_norms(model: Model, names: Sequence[str]) -> Array:  # -> (n_layers, n_neurons) float64
    """Return the product, over the matrices named, of the norms of each neuron's row."""
    norms = np.ones((model.config.n_layers, model.config.n_neurons))
    for layer, block in enumerate(model.blocks):
        for name in names:
            if name in block:
                norms[layer] *= np.sqrt(np.square(ops.f32(block[name]), dtype=np.float64).sum(axis=1))
    return norms


def given_arrays(
    model: Model, predictor: str, frequency: Array | None, seed: int | None
) -> dict[str, Array]:  # name -> (n_layers, n_neurons)
    """Return what a predictor reads besides the prompt; raise InputError if it was not handed in."""
    config, given = model.config, {}
    for name in find_predictor(predictor).given:
        if name == "w_out_norm":
            given[name] = row_norms(model, ["mlp.w_out"])
        elif name == "weight_norm":
            given[name] = row_norms(model, ["mlp.w_gate", "mlp.w_in", "mlp.w_out"])
        elif name == "random":  # 1 - [0, 1): no neuron gets the 0 that would leave it out
            given[name] = 1 - np.random.default_rng(seed).random((config.n_layers, config.n_neurons))
        elif frequency is None:
            raise InputError(f"predictor {predictor} needs clusters fitted on other texts")
        else:
            given[name] = frequency
    return given


def make_recorder(
    model: Model,
    predictor: str,
    alpha: float = 0.4,
    beta: Beta = 0.4,
    layers: Layers = None,
    *,
    budget: str = "uniform",
    frequency: Array | None = None,
    seed: int | None = None,
    settings: Mapping[str, object] | None = None,
) -> Recorder:
    """Return a predictor's recorder for a model, with everything it reads besides the prompt.

    Parameters
    ----------
    model : Model
    predictor, alpha, beta, layers, budget
        As for :func:`predict`.
    frequency : (n_layers, n_neurons) array or None
        How often other texts had each neuron (``static`` needs it).
    seed : int or None
        For ``random``.
    settings : mapping or None
        Further provenance to keep with the set.
    """
    config = model.config
    return Recorder(
        predictor,
        alpha,
        beta,
        parse_layers(layers, config.n_layers),
        config.n_layers,
        config.n_neurons,
        budget=budget,
        given=given_arrays(model, predictor, frequency, seed),
        settings={"model": model.name} | dict(settings or {}),
    )


def recorder_tap(*recorders: Recorder) -> Tap:
    """Return the tap that hands a forward pass's FFN activations to recorders."""
    watched = {f"blocks.{layer}.mlp.hook_post": layer for recorder in recorders for layer in recorder.layers}

    def tap(name: str, value: Array) -> None:
        if name in watched:
            for recorder in recorders:
                recorder.update(watched[name], value)

    return tap


def record(model: Model, ids: Sequence[int], recorder: Recorder, cache: KVCache) -> Array:  # -> (n_vocab,)
    """Prefill the cache while the recorder sees the FFN activations; return the last logits."""
    return prefill(model, np.asarray(ids), cache, recorder_tap(recorder))
