"""The compiled maths of prompts against the NumPy maths it stands in for."""

from pathlib import Path

import numpy as np
import pytest

import minicore as mc
from minicore import ops
from minicore.decode import reader
from minicore.kernels import ops as compiled
from minicore.model import KVCache, hook_names, prefill

GOLDEN = Path(__file__).parent / "golden"
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
    for got, expected in zip(compiled.attention_pattern(q, k), ops.attention_pattern(q, k), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("family", ["llama-gqa", "llama-bias", "opt", "gpt2", "qwen2"])
def test_a_prompt_reads_the_same_tensor_by_tensor(family, dtype):
    model = mc.load(GOLDEN / family, dtype=dtype)
    # beside bfloat16 weights, whose products need no rounding, a float32 cache, so that nothing is rounded
    ids, seen = np.random.default_rng(0).integers(0, model.config.n_vocab, 40), [{}, {}]
    for into, which in zip(seen, (model, reader(model, "cpu")), strict=True):
        cache = KVCache(model.config, 40) if dtype == "bfloat16" else model.new_cache(40)
        into["logits"] = prefill(
            which, ids, cache, lambda name, value, into=into: into.update({name: value.copy()})
        )
        into |= {"k": ops.f32(cache.k), "v": ops.f32(cache.v)}
    assert set(hook_names(model.config)) <= set(seen[0])
    for name, expected in seen[0].items():
        got = seen[1][name]
        assert got.shape == expected.shape, name
        if dtype in ("float32", "bfloat16"):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4, err_msg=name)
        else:  # the rounding of an input may fall the other way where it lies between two steps
            finite = np.isfinite(expected)
            assert np.median(np.abs(got[finite] - expected[finite])) < 1e-4, name


@pytest.mark.parametrize("tile", [7, 100, 1 << 20])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_widening_by_tiles_changes_nothing(dtype, tile, monkeypatch, rng):
    model = mc.load(GOLDEN / "llama-gqa", dtype=dtype)
    w_in, w_out = model.blocks[0]["mlp.w_in"], model.blocks[0]["mlp.w_out"]
    x, a = normal(rng, 5, w_in.shape[1]), normal(rng, 5, w_out.shape[0])
    monkeypatch.setattr(ops, "TILE", tile)
    seen = x if dtype == "bfloat16" else ops.round_input(x)
    np.testing.assert_allclose(ops.linear(x, w_in), seen @ ops.f32(w_in).T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ops.weighted_rows(a, w_out), a @ ops.f32(w_out), rtol=1e-5, atol=1e-5)
