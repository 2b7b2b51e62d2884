"""What texts that are not measured say about neurons: the hot sets of ``static`` and ``name@others``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from minicore.backends import Backend
from minicore.core.predictors import find_predictor
from minicore.core.recorder import Recorder
from minicore.errors import InputError
from minicore.evaluation.quality.measurement import new_recorder
from minicore.evaluation.quality.settings import Conditions, Setting
from minicore.evaluation.texts import Passage
from minicore.generation.prediction import recorder_hooks

Array = np.ndarray


@dataclass(frozen=True)
class OtherTexts:
    """What predictors know from other texts.

    Attributes
    ----------
    recorders : dict of str to Recorder
        For each predictor ``name@others``, its recorder, which has read them.
    frequency : (n_layers, n_neurons) array or None
        How many of their tokens have each neuron in their core, for predictors that need it.
    """

    recorders: dict[str, Recorder] = field(default_factory=dict)
    frequency: Array | None = None


def read_others(
    backend: Backend, fit: Sequence[Passage], settings: Sequence[Setting], conditions: Conditions
) -> OtherTexts:
    """Read the texts that are not measured, if any of the settings needs them."""
    named = {setting.predictor: setting.name for setting in settings if setting.source == "others"}
    frequency_wanted = any("frequency" in find_predictor(setting.name).given for setting in settings)
    if not named and not frequency_wanted:
        return OtherTexts()
    if not fit:
        raise InputError("a hot set is fitted on other texts, expected at least one passage to fit on")
    model = backend.model
    recorders = {predictor: new_recorder(model, name, conditions) for predictor, name in named.items()}
    counts = new_recorder(model, "stability", conditions)
    for passage in fit:
        ids = passage.ids[: model.config.n_ctx]
        backend.prefill(ids, model.new_cache(len(ids)), recorder_hooks(counts, *recorders.values()))
    frequency = np.zeros((model.config.n_layers, model.config.n_neurons))
    for layer, scores in counts.scores().items():
        frequency[layer] = scores
    return OtherTexts(recorders, frequency)
