"""Tiny checkpoints of many families against what Transformers computed with them (make_families.py)."""

from __future__ import annotations

import numpy as np
import pytest

import minicore as mc
from minicore.backends import make_backend
from minicore.backends.dims import missing
from minicore.checkpoint.families import FAMILIES
from minicore.core.neurons import CoreSet
from minicore.errors import InputError
from minicore.forward import forward, hook_names
from tests.helpers.families import families, write

NAMES = list(families())
N_NEW = 12


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Return a function that gives a family's model, loaded once."""
    folder, models = tmp_path_factory.mktemp("families"), {}

    def model_of(name: str) -> mc.Model:
        if name not in models:
            family = families()[name]
            models[name] = mc.load(write(folder / name, name, family.config, family.shapes))
        return models[name]

    return model_of


def decoded(model, backend, ids, selection=None):
    """Return the logits after a prompt and after each of its greedy continuation's tokens, and these."""
    cache = model.new_cache(len(ids) + N_NEW)
    made = make_backend(model, backend)
    rows = [made.prefill(ids, cache)]
    decoder, tokens = made.decoder(cache, selection), [int(rows[0].argmax())]
    while len(tokens) < N_NEW:
        rows.append(decoder.step(tokens[-1]))
        tokens.append(int(rows[-1].argmax()))
    return np.stack(rows), tokens


def core_of(model, beta=0.4):
    """Return a random core set of a model."""
    rng, n = np.random.default_rng(0), model.config.n_neurons
    some = {i: np.sort(rng.choice(n, int(beta * n), replace=False)) for i in range(model.config.n_layers)}
    return CoreSet(some, n, model.config.n_layers)


def test_every_family_is_recorded():
    recorded = {family.config["model_type"] for family in families().values()}
    assert set(FAMILIES) - recorded == {"qwen2", "opt", "gpt2"} - recorded  # also in the other golden files


@pytest.mark.parametrize("name", NAMES)
def test_logits(name, load):
    family, model = families()[name], load(name)
    logits = model.forward(family.ids)
    np.testing.assert_allclose(logits[family.rows], family.logits, rtol=0, atol=1e-4 * family.largest)


@pytest.mark.parametrize("backend", ["numpy", "cpu", "numba"])
@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_and_cached_logits(name, backend, load):
    family, model = families()[name], load(name)
    if lacking := missing(backend, model.config):
        with pytest.raises(InputError, match=lacking.split()[0]):
            make_backend(model, backend)
        return
    rows, tokens = decoded(model, backend, family.ids)
    assert family.margins.min() > 1e-3  # so that no token is a matter of rounding
    assert tokens == family.greedy.tolist()
    full = model.forward(np.concatenate([family.ids, tokens[:-1]]))[len(family.ids) - 1 :]
    np.testing.assert_allclose(rows, full, rtol=0, atol=1e-4 * family.largest)


@pytest.mark.parametrize("name", NAMES)
def test_a_core_set_is_the_same_masked_and_sparse(name, load):
    family, model = families()[name], load(name)
    core = core_of(model)
    others = {i: np.delete(np.arange(core.n_neurons), ids) for i, ids in core.neurons.items()}

    def mask(name, value):
        if name.endswith("mlp.hook_post"):
            value[:, others[int(name.split(".")[1])]] = 0

    masked = forward(model, family.ids, model.new_cache(len(family.ids)), mask)
    sparse = model.restrict(core).forward(family.ids)
    np.testing.assert_allclose(sparse, masked, rtol=0, atol=1e-5 * family.largest)
    if missing("cpu", model.config):
        return
    theirs, _ = decoded(model, "numpy", family.ids, core)
    ours, _ = decoded(model, "cpu", family.ids, core)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * family.largest)


@pytest.mark.parametrize("name", NAMES)
def test_every_hook_sees_its_tensor(name, load):
    model = load(name)
    _, cache = model.run_with_cache([5, 6, 7])
    assert set(cache) == set(hook_names(model.config))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("name", ["gemma2", "minicpm", "olmo2", "falcon-rw", "phi3-longrope", "smollm3-yarn"])
def test_a_packed_model_is_the_loaded_one(name, dtype, load, tmp_path):
    loaded = mc.load(load(name).source, dtype=dtype)
    loaded.save(tmp_path / "packed")
    packed = mc.load(tmp_path / "packed")
    assert packed.config == loaded.config
    np.testing.assert_array_equal(packed.forward([5, 6, 7]), loaded.forward([5, 6, 7]))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize(
    "name", ["gemma2", "minicpm", "olmo2", "falcon-rw", "phi", "opt-350m", "qwen3-window"]
)
def test_packed_formats_decode_as_numpy_does(name, dtype, load):
    family, model = families()[name], mc.load(load(name).source, dtype=dtype)
    backend = "auto" if missing("cpu", model.config) else "cpu"
    theirs, _ = decoded(model, "numpy", family.ids)
    ours, _ = decoded(model, backend, family.ids)
    assert np.abs(ours[0] - theirs[0]).max() < 0.02 * family.largest


@pytest.mark.parametrize(
    "predictor",
    ["griffin", *(pytest.param(name, marks=pytest.mark.slow) for name in ("stability", "gate"))],
)
@pytest.mark.parametrize("name", NAMES)
def test_predictors_run_on_every_family(name, predictor, load):
    family, model = families()[name], load(name)
    if predictor == "gate" and not model.config.gated:
        predictor = "relu" if model.config.activation == "relu" else "topk"
    out = model.generate(family.ids.tolist(), max_new_tokens=5, predictor=predictor, ignore_eos=True)
    assert out.stats["predictor_used"] == predictor and len(out.token_ids) == 5
    numpy = model.generate(
        family.ids.tolist(), max_new_tokens=5, predictor=predictor, ignore_eos=True, backend="numpy"
    )
    assert out.token_ids[0] == numpy.token_ids[0] == family.greedy[0]
