"""GGUF models in several files, and GGUF files of models whose activation they do not record."""

from pathlib import Path

import numpy as np
import pytest

from minicore.checkpoint import gguf, read
from minicore.config import ACTIVATIONS
from minicore.errors import InputError
from minicore.evaluation.shared_model import _loaded, register_model, resolve_model
from minicore.model import load
from tests.helpers import checkpoints as make

pytestmark = pytest.mark.numpy

TENSORS = make.random_gguf_tensors("llama", make.GGUF_LLAMA)


def write_parts(folder: Path, n: int = 3, **changes: object) -> list[Path]:
    """Write a model in n files, its tensors dealt out in turn; ``changes`` are of the last file's keys."""
    paths = gguf.part_names(folder / f"tiny-00001-of-{n:05}.gguf")
    for i, path in enumerate(paths):
        part = dict(list(TENSORS.items())[i::n])
        keys = {"split.no": i, "split.count": n, "split.tensors.count": len(TENSORS)}
        keys |= changes if i == n - 1 else {}
        make.write_gguf(path, "llama", make.GGUF_LLAMA if i == 0 else {}, part, more=keys)
    return paths


def test_a_model_in_parts_is_the_model_in_one_file(tmp_path):
    whole = read(make.write_gguf(tmp_path / "whole.gguf", "llama", make.GGUF_LLAMA, TENSORS))
    parts = read(write_parts(tmp_path)[0])
    assert parts.config == whole.config and parts.file_dtype == whole.file_dtype
    assert all(np.array_equal(parts.params[name], value) for name, value in whole.params.items())


def test_one_part_of_one_is_a_model(tmp_path):
    assert read(write_parts(tmp_path, n=1)[0]).config.n_layers == 2


def test_a_missing_part_is_named(tmp_path):
    paths = write_parts(tmp_path)
    paths[1].unlink()
    with pytest.raises(InputError, match="tiny-00002-of-00003.gguf: is missing, expected all 3 parts"):
        read(paths[0])


def test_another_part_than_the_first_names_the_first(tmp_path):
    with pytest.raises(InputError, match="is not the first of 3 parts, expected .*tiny-00001-of-00003.gguf"):
        read(write_parts(tmp_path)[2])


@pytest.mark.parametrize("name", ["tiny.gguf", "tiny-00001-of-00004.gguf"])
def test_a_part_of_another_name_says_what_its_name_should_be(tmp_path, name):
    path = write_parts(tmp_path)[0].rename(tmp_path / name)
    with pytest.raises(InputError, match="one of 3 parts, expected a name that ends in -00001-of-00003.gguf"):
        read(path)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"split.no": 1}, "00003-of-00003.gguf: has split.no 1 and split.count 3, expected 2 and 3"),
        ({"split.count": 4}, "00003-of-00003.gguf: has split.no 2 and split.count 4, expected 2 and 3"),
    ],
)
def test_a_part_that_is_another_is_named(tmp_path, changes, part):
    with pytest.raises(InputError, match=part):
        read(write_parts(tmp_path, **changes)[0])


def test_a_tensor_in_two_parts_is_named(tmp_path):
    paths = write_parts(tmp_path)
    keys = {"split.no": 2, "split.count": 3}
    make.write_gguf(paths[2], "llama", {}, dict(list(TENSORS.items())[:1]), more=keys)
    with pytest.raises(InputError, match="00003.gguf: tensor token_embd.weight is also in another part"):
        read(paths[0])


def test_too_few_tensors_are_counted(tmp_path):
    paths = write_parts(tmp_path)
    make.write_gguf(paths[2], "llama", {}, {}, more={"split.no": 2, "split.count": 3})
    with pytest.raises(InputError, match=rf"the parts have \d+ tensors, expected {len(TENSORS)}"):
        read(paths[0])


def test_a_directory_with_one_gguf_model_is_that_model(tmp_path):
    write_parts(tmp_path)
    assert read(tmp_path).config.n_layers == 2
    make.write_gguf(tmp_path / "other.gguf", "llama", make.GGUF_LLAMA, TENSORS)
    with pytest.raises(InputError, match="other.gguf and .*tiny-00001-of-00003.gguf, expected one"):
        read(tmp_path)


# --- activation ---


@pytest.fixture
def tiny(tmp_path) -> Path:
    return make.write_gguf(tmp_path / "tiny.gguf", "llama", make.GGUF_LLAMA, TENSORS)


def test_an_activation_that_a_file_does_not_record_can_be_given(tiny):
    plain, relu = load(tiny), load(tiny, activation="relu")
    assert (plain.config.activation, relu.config.activation) == ("silu", "relu")
    _, cache = relu.run_with_cache([1, 2, 3], ["blocks.0.mlp.hook_pre", "blocks.0.mlp.hook_post"])
    inactive = cache["blocks.0.mlp.hook_pre"] <= 0
    assert inactive.any() and not cache["blocks.0.mlp.hook_post"][inactive].any()
    assert not np.allclose(plain.forward([1, 2, 3]), relu.forward([1, 2, 3]))


def test_an_unknown_activation_offers_the_known_ones(tiny):
    with pytest.raises(InputError, match="unknown activation 'rleu'; did you mean relu"):
        load(tiny, activation="rleu")
    plain = [name for name in ACTIVATIONS if name != "fatrelu"]
    assert all(read(tiny, activation=name).config.activation == name for name in plain)


def test_fatrelu_has_a_threshold(tiny, tmp_path):
    model = load(tiny, activation="fatrelu:0.25")
    assert (model.config.activation, model.config.activation_threshold) == ("fatrelu", 0.25)
    ref = register_model(model)
    _loaded.clear()
    assert resolve_model(ref).config == model.config
    assert load(model.export(tmp_path / "out.gguf", "gguf").path).config == model.config
    exported = load(model.export(tmp_path / "hf", "hf").path).config
    assert exported == model.config.replace(family="sparsellama")
    for bad in ("fatrelu", "fatrelu:", "fatrelu:x"):
        with pytest.raises(InputError, match=f"activation is '{bad}', expected fatrelu: and its threshold"):
            load(tiny, activation=bad)
    with pytest.raises(InputError, match="activation is 'relu:1', expected relu"):
        load(tiny, activation="relu:1")


def test_a_given_activation_is_packed_and_goes_to_workers(tiny, tmp_path):
    relu = load(tiny, activation="relu")
    relu.save(tmp_path / "packed")
    assert load(tmp_path / "packed").config.activation == "relu"
    ref = register_model(relu)
    _loaded.clear()  # as in another process
    assert resolve_model(ref).config.activation == "relu"


def test_info_says_that_the_activation_was_given(tiny, run_cli):
    code, out, _ = run_cli("info", tiny, "--activation", "relu")
    assert code == 0 and "96 neurons (relu by --activation, gated)" in out
    assert "96 neurons (silu, gated)" in run_cli("info", tiny)[1]
    assert '"given_activation": "relu"' in run_cli("info", tiny, "--activation", "relu", "--json")[1]


@pytest.mark.parametrize("command", ["generate x -m", "pack -o out", "bench -m", "eval quality t -m"])
def test_commands_that_load_a_model_take_an_activation(tiny, run_cli, command):
    code, _, err = run_cli(*command.split(), tiny, "--activation", "rleu")
    assert code == 2 and "unknown activation 'rleu'" in err
