"""Values of a wrong kind or size in any key of a config: each is refused in a sentence, or read."""

import copy
from pathlib import Path

import pytest

from minicore.checkpoint.families import read_config
from minicore.errors import InputError
from tests.helpers.families import families

JUNK = [None, True, 0, -1, 1, 0.5, 10**20, "x", [], ["x"], [[1]], {}, {"x": 1}, {"x": {"y": 1}}]
MORE = (
    *("architectures", "rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor"),
    *("layer_types", "sliding_window", "max_window_layers", "quantization_config", "head_dim"),
    *("hidden_act", "hidden_activation", "original_max_position_embeddings"),
)
# What a config needs for the key to matter, by the key.
CONTEXT = {"architectures": {"model_type": None}, "max_window_layers": {"use_sliding_window": True}}


def read(config, shapes) -> None:
    """Read a config; anything but an InputError that names the file is a fault."""
    try:
        read_config(config, Path("config.json"), shapes)
    except InputError as error:
        assert str(error).startswith("config.json: ") and "\n" not in str(error)


@pytest.mark.parametrize("name", list(families()))
def test_junk_in_any_key_is_refused_or_read(name):
    family = families()[name]
    for key in dict.fromkeys([*family.config, *MORE]):
        for junk in JUNK:
            read(family.config | CONTEXT.get(key, {}) | {key: junk}, family.shapes)


@pytest.mark.parametrize("name", list(families()))
def test_junk_in_any_rope_parameter_is_refused_or_read(name):
    family = families()[name]
    for outer in ("rope_scaling", "rope_parameters"):
        config = copy.deepcopy(family.config)
        inner = config.get(outer) or {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
        for key in inner:
            for junk in JUNK:
                read(config | {outer: inner | {key: junk}}, family.shapes)
