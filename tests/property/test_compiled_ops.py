"""The compiled maths of prompts against the NumPy maths it stands in for."""

from functools import partial

import ml_dtypes
import numpy as np
import pytest

import minicore as mc
from minicore import ops
from minicore.backends import make_backend
from minicore.backends.cpu import prefill as compiled
from minicore.model import KVCache, hook_names
from minicore.quantization import QuantizedMatrix, fake_quantize
from tests.helpers import GOLDEN

SIZES = [(1, 8), (37, 24), (300, 64)]  # the last is shared out over threads


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("n, d", SIZES)
def test_norms(n, d, rng):
    x, w, b = normal(rng, n, d) * 3 + 1, normal(rng, d), normal(rng, d)
    np.testing.assert_allclose(compiled.rms_norm(x, w, 1e-5), ops.rms_norm(x, w, 1e-5), rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        compiled.layer_norm(x, w, b, 1e-5), ops.layer_norm(x, w, b, 1e-5), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("name", list(ops.ACTIVATIONS))
@pytest.mark.parametrize("n, d", SIZES)
def test_activations(name, n, d, rng):
    x = normal(rng, n, d) * 6
    x[0, 0] = np.nan
    before = x.copy()
    got = compiled.ACTIVATIONS[name](x)
    np.testing.assert_allclose(got, ops.ACTIVATIONS[name](x), rtol=0, atol=3e-6)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("n", [1, 37, 300])
@pytest.mark.parametrize("n_heads, n_kv_heads", [(4, 4), (6, 2)])
def test_rope_and_attention(n, n_heads, n_kv_heads, rng):
    q, k = normal(rng, n, n_heads, 16), normal(rng, n_kv_heads, n + 5, 16)
    frequencies = np.geomspace(1, 1e-3, 8).astype(np.float32)
    positions = np.arange(5, n + 5)
    np.testing.assert_allclose(
        compiled.rope(q, positions, frequencies), ops.rope(q, positions, frequencies), rtol=0, atol=1e-5
    )
    v = normal(rng, *k.shape)
    before = q.copy()
    np.testing.assert_allclose(compiled.attention(q, k, v), ops.attention(q, k, v), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(q, before)


def test_attention_passes_nan_on_to_who_sees_it(rng):
    q, k, v = normal(rng, 150, 6, 16), normal(rng, 2, 150, 16), normal(rng, 2, 150, 16)
    k[1, 140, 3] = np.nan
    for attention in (compiled.attention, ops.attention):
        bad = np.isnan(attention(q, k, v)).any(axis=-1)
        assert bad[140:, 3:].all() and not bad[:140].any() and not bad[:, :3].any()


@pytest.mark.parametrize("n, m, d", [(1, 50, 24), (5, 7, 100), (300, 128, 192), (64, 640, 65)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_products_are_those_of_the_reference(dtype, n, m, d, rng):
    w = normal(rng, m, d)
    w = w if dtype == "float32" else in_format(dtype, w)
    x, a, b = normal(rng, n, d), normal(rng, n, m), normal(rng, m)
    x[:, d // 2] *= 20
    for got, expected, length in (
        (compiled.linear(x, w, b), ops.linear(x, w, b), d),
        (compiled.weighted_rows(a, w), ops.weighted_rows(a, w), m),
    ):
        size = np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=0, atol=length * 2**-23 * size)


def in_format(dtype, w):
    return w.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" else QuantizedMatrix.quantize(dtype, w)


@pytest.mark.parametrize("m, d", [(3, 64), (5, 100), (4, 31), (2, 640)])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_widening_is_exact(dtype, m, d, rng):
    w = in_format(dtype, normal(rng, m, d))
    for rows in (slice(0, m), slice(1, m - 1)):
        np.testing.assert_array_equal(compiled._rows_to_float32(w, rows), ops.to_float32(w[rows]))


@pytest.mark.parametrize("d, size", [(64, 64), (100, 64), (31, 64), (96, 16), (100, 20)])
def test_inputs_are_rounded_as_the_reference_rounds_them(d, size, rng):
    x = normal(rng, 9, d) * np.geomspace(1e-30, 1e30, 9, dtype=np.float32)[:, None]
    x[1], x[2, 5], x[3, 7], x[4, 1] = 0, np.nan, np.inf, -np.inf
    x[5, :16] = np.arange(-8, 8) + 0.5  # halves to even
    x[5, 16:] = 127
    np.testing.assert_array_equal(compiled.fake_quantize(x, size), fake_quantize(x, size))


SCORES = ("attn.hook_attn_scores", "attn.hook_pattern")  # where no hook wants them, neither is a whole tensor


def read(model, backend, ids, hook=None, names=()):
    """Return the logits after a prompt, and its cache; the hook sees the tensors of these names."""
    # beside bfloat16 weights, whose products need no rounding, a float32 cache, so that nothing is rounded
    cache = KVCache(model.config, len(ids)) if model.dtype == "bfloat16" else model.new_cache(len(ids))
    hooks = {name: partial(hook, name) for name in names}
    return make_backend(model, backend).prefill(ids, cache, hooks), cache


@pytest.fixture(params=["llama-gqa", "llama-bias", "opt", "gpt2", "qwen2"])
def family(request):
    return request.param


def prompt_and_names(model):
    ids = np.random.default_rng(0).integers(0, model.config.n_vocab, 40)
    names = hook_names(model.config)
    return ids, [name for name in names if not name.endswith(SCORES)], names


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prompt_reads_the_same_tensor_by_tensor(family, dtype):
    model = mc.load(GOLDEN / family, dtype=dtype)
    ids, _, names = prompt_and_names(model)
    seen = {"numpy": {}, "cpu": {}}
    for backend, into in seen.items():
        logits, cache = read(
            model, backend, ids, lambda name, value, into=into: into.update({name: value.copy()}), names
        )
        into |= {"logits": logits, "k": ops.to_float32(cache.k), "v": ops.to_float32(cache.v)}
    assert set(names) < set(seen["numpy"]) == set(seen["cpu"])
    for name, expected in seen["numpy"].items():
        np.testing.assert_allclose(seen["cpu"][name], expected, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_each_step_of_a_prompt_is_the_references(family, dtype):
    """From the reference's own tensors, step by step.

    Inputs of packed weights are rounded. Sums in another order may move an input across the border between
    two steps, and later layers amplify that; from equal inputs the roundings are equal.
    """
    model = mc.load(GOLDEN / family, dtype=dtype)
    ids, without_scores, names = prompt_and_names(model)
    expected = {}
    logits, cache = read(
        model, "numpy", ids, lambda name, value: expected.update({name: value.copy()}), names
    )
    for wanted in (names, without_scores):
        compared = []

        def compare(name, value, compared=compared):
            compared.append(name)
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)
            value[...] = expected[name]

        got, got_cache = read(model, "cpu", ids, compare, wanted)
        assert compared == wanted
        np.testing.assert_allclose(got, logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(ops.to_float32(got_cache.k), ops.to_float32(cache.k))
        np.testing.assert_array_equal(ops.to_float32(got_cache.v), ops.to_float32(cache.v))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_hooks_that_only_look_change_nothing(family, dtype):
    model = mc.load(GOLDEN / family, dtype=dtype)
    ids, without_scores, _ = prompt_and_names(model)
    logits, cache = read(model, "cpu", ids)
    watched, watched_cache = read(model, "cpu", ids, lambda name, value: None, without_scores)
    np.testing.assert_array_equal(watched, logits)
    np.testing.assert_array_equal(watched_cache.k, cache.k)
    np.testing.assert_array_equal(watched_cache.v, cache.v)


@pytest.mark.parametrize("tile", [7, 100, 1 << 20])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_widening_by_tiles_changes_nothing(dtype, tile, monkeypatch, rng):
    model = mc.load(GOLDEN / "llama-gqa", dtype=dtype)
    w_in, w_out = model.blocks[0]["mlp.w_in"], model.blocks[0]["mlp.w_out"]
    x, a = normal(rng, 5, w_in.shape[1]), normal(rng, 5, w_out.shape[0])
    monkeypatch.setattr(ops, "TILE", tile)
    seen = x if dtype == "bfloat16" else fake_quantize(x)
    np.testing.assert_allclose(ops.linear(x, w_in), seen @ ops.to_float32(w_in).T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ops.weighted_rows(a, w_out), a @ ops.to_float32(w_out), rtol=1e-5, atol=1e-5)
