"""Quantized formats: what the bytes mean, and integer kernels held to that meaning."""

import ml_dtypes
import numba as nb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minicore as mc
from minicore.backends import make_decoder
from minicore.backends.cpu import attention, integer_rows, quantized_inputs, rows
from minicore.forward import forward, prefill
from minicore.kv_cache import FloatStorage, KVCache
from minicore.quantization import FORMATS, GROUP, QuantizedMatrix, fake_quantize, n_groups, quantize_int8
from tests.helpers import GOLDEN

KINDS = [
    pytest.param(
        kind, marks=pytest.mark.skipif(not integer_rows.has(kind), reason=f"the CPU has no {feature}")
    )
    for kind, feature in integer_rows.KINDS.items()
]
STEPS = {"int8": 127, "int4": 7.5}  # half a group's range is this many steps


@nb.njit
def _prepare(like, d, x):
    rows.prepare_input(like, d, x)


@nb.njit
def _add(like, w, m, d, ids, a, y):
    four, numbers = (ids[0], ids[1], ids[2], ids[3]), (a[0], a[1], a[2], a[3])
    rows.add_rows(like, w, m, d, four, numbers, y)


@nb.njit
def _row_to_float32(like, w, m, d, i, y):
    rows.row_to_float32(like, w, m, d, i, y)


def _matvec_of(format, kind):
    dot_rows = rows.operations_on({STORED[format]: integer_rows.QuantizedRows(format, kind)}).dot_rows

    @nb.njit
    def run(like, w, m, d, x, y):
        n = m - 1
        for i in range(0, m, 4):
            r = i, min(i + 1, n), min(i + 2, n), min(i + 3, n)
            y[i], y[r[1]], y[r[2]], y[r[3]] = dot_rows(like, w, m, d, r, x)

    return run


STORED = {"int8": nb.int8, "int4": nb.uint8}
MATVECS = {(format, kind): _matvec_of(format, kind) for format in FORMATS for kind in integer_rows.KINDS}


def like(packed):
    return rows.storage(packed)[:0]


def prepared(packed, x):
    d = packed.shape[1]
    out = np.full(quantized_inputs.input_size(d), np.nan, np.float32)
    out[:d] = x
    _prepare(like(packed), d, out)
    return out


def matvec(packed, x, kind):
    """Rows times x by one of the two ways to multiply bytes."""
    m, d = packed.shape
    y = np.full(m, np.nan, np.float32)
    MATVECS[packed.format, kind](like(packed), packed.data.ctypes.data, m, d, prepared(packed, x), y)
    return y


def random_matrix(rng, m, d):
    return (rng.standard_normal((m, d)) * np.exp(rng.standard_normal((m, 1)))).astype(np.float32)


@pytest.mark.parametrize("format", FORMATS)
@given(seed=st.integers(0, 2**32), m=st.integers(1, 9), d=st.integers(1, 200))
@settings(max_examples=30)
def test_packing_rounds_to_the_nearest_step(format, seed, m, d):
    w = random_matrix(np.random.default_rng(seed), m, d)
    packed = QuantizedMatrix.quantize(format, w)
    exact = packed.dequantize()
    assert exact.shape == packed.shape == w.shape and exact.dtype == np.float32
    spread = np.concatenate([w, np.zeros((m, -d % GROUP), np.float32)], axis=1).reshape(m, -1, GROUP)
    step = (spread.max(-1) - spread.min(-1)).clip(np.abs(spread).max(-1)) / STEPS[format]
    error = np.abs(exact - w) / np.repeat(step, GROUP, axis=1)[:, :d].clip(1e-30)
    assert error.max() <= 0.51 + (0.1 if format == "int4" else 0)  # float16 scales add their own rounding
    again = QuantizedMatrix.quantize(format, exact).dequantize()
    np.testing.assert_allclose(again, exact, atol=float(step.max()) * 1e-2)


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_and_constants_come_back(format):
    w = np.zeros((3, 100), np.float32)
    w[1] = 0.5
    np.testing.assert_array_equal(QuantizedMatrix.quantize(format, w).dequantize()[0], w[0])
    np.testing.assert_allclose(QuantizedMatrix.quantize(format, w).dequantize()[1], w[1], rtol=1e-3)


@pytest.mark.parametrize("format", FORMATS)
def test_some_rows_are_a_matrix_of_their_own(format):
    packed = QuantizedMatrix.quantize(format, random_matrix(np.random.default_rng(0), 20, 70))
    ids = np.array([3, 0, 19])
    np.testing.assert_array_equal(packed[ids].dequantize(), packed.dequantize()[ids])
    assert packed[ids].nbytes * 20 == packed.nbytes * 3


def test_bits_a_weight():
    for format, bits in (("int8", 8.25), ("int4", 5)):
        assert QuantizedMatrix.empty(format, (10, 576)).nbytes * 8 / 5760 == bits


@given(st.integers(0, 2**32), st.integers(1, 150))
def test_rounded_inputs(seed, d):
    x = random_matrix(np.random.default_rng(seed), 3, d)
    y = fake_quantize(x)
    for row, rounded in zip(x, y, strict=True):
        for g in range(0, d, GROUP):
            step = np.abs(row[g : g + GROUP]).max() / 127
            assert np.abs(rounded[g : g + GROUP] - row[g : g + GROUP]).max() <= step * 0.5001
    np.testing.assert_allclose(fake_quantize(y), y, rtol=1e-6)
    np.testing.assert_array_equal(fake_quantize(x[1]), y[1])


@pytest.mark.parametrize("format", FORMATS)
@given(seed=st.integers(0, 2**32), d=st.integers(1, 200))
@settings(max_examples=30)
def test_kernels_round_inputs_as_numpy_does(format, seed, d):
    x = random_matrix(np.random.default_rng(seed), 1, d)[0]
    inputs = prepared(QuantizedMatrix.empty(format, (1, d)), x)
    at_bytes, at_sums, at_scales, end = quantized_inputs.input_parts.py_func(d)
    q, scales = inputs[at_bytes:at_sums].view(np.int8), inputs[at_scales:end]
    np.testing.assert_array_equal((q.reshape(-1, GROUP) * scales[:, None]).reshape(-1)[:d], fake_quantize(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", FORMATS)
@given(seed=st.integers(0, 2**32), m=st.integers(1, 20), d=st.integers(2, 300))
@settings(max_examples=30)
def test_products_are_exact_where_all_scales_are_one(format, kind, seed, m, d):
    rng = np.random.default_rng(seed)
    groups = n_groups(d)
    low, high = (-127, 127) if format == "int8" else (0, 15)
    w = rng.integers(low, high + 1, (m, groups, 2, GROUP // 2)).astype(np.float32)
    w[..., 0], w[..., 1] = low, high  # every half group spans the range, so that a step is 1
    x = rng.integers(-3, 4, (groups, GROUP)).astype(np.float32)
    x[:, 2] = 127
    w, x = w.reshape(m, -1), x.reshape(-1)
    packed = QuantizedMatrix.quantize(format, w)
    np.testing.assert_array_equal(packed.dequantize(), w)
    np.testing.assert_array_equal(matvec(packed, x, kind), w @ x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("m, d", [(300, 576), (17, 100), (5, 2048)])
def test_products_are_within_the_error_bound_of_what_the_bytes_mean(format, kind, m, d):
    rng = np.random.default_rng(3)
    packed, x = QuantizedMatrix.quantize(format, random_matrix(rng, m, d)), random_matrix(rng, 1, d)[0]
    wide, rounded = packed.dequantize().astype(np.float64), fake_quantize(x).astype(np.float64)
    n, u = d + 8, 2.0**-24  # the scales' products round a few times more
    # int4 adds the minima's share on its own, so the bound is on the parts before they cancel
    size = np.abs(wide) + (np.abs(packed.scales.astype(np.float64)).max() if format == "int4" else 0)
    bound = n * u / (1 - n * u) * (size @ np.abs(rounded))
    assert (np.abs(matvec(packed, x, kind) - wide @ rounded) <= bound).all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("d", [64, 100, 576])
def test_rows_are_added_and_widened_as_they_mean(format, d):
    rng = np.random.default_rng(4)
    packed = QuantizedMatrix.quantize(format, random_matrix(rng, 9, d))
    wide, a, rows = (
        packed.dequantize(),
        rng.standard_normal(4).astype(np.float32),
        np.array([8, 0, 3, 3], np.int32),
    )
    y = np.ones(n_groups(d) * GROUP, np.float32)  # whole groups are added
    _add(like(packed), packed.data.ctypes.data, 9, d, rows, a, y)
    np.testing.assert_allclose(y[:d], 1 + a @ wide[rows], rtol=0, atol=2e-5 * np.abs(wide).max())
    out = np.full(d, np.nan, np.float32)
    _row_to_float32(like(packed), packed.data.ctypes.data, 9, d, 5, out)
    np.testing.assert_allclose(out, wide[5], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_in_the_input_are_not_rounded_away(format, kind, bad):
    packed = QuantizedMatrix.quantize(format, random_matrix(np.random.default_rng(0), 4, 130))
    x = np.ones(130, np.float32)
    x[70] = bad
    assert np.isnan(matvec(packed, x, kind)).all()
    with np.errstate(invalid="ignore"):
        assert np.isnan(fake_quantize(x)[64:128]).any()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("family", ["llama-gqa", "llama-bias", "opt", "gpt2"])
def test_a_packed_model_is_its_dequantised_weights(format, family):
    """Reference: float32 weights of the values the bytes mean, inputs of integer products rounded alike."""
    model = mc.load(GOLDEN / family, dtype=format)
    assert model.dtype == format and model.weights_bytes < mc.load(GOLDEN / family).weights_bytes
    ids = np.random.default_rng(0).integers(0, model.config.n_vocab, 16)
    core = mc.predict(model, ids[:8], alpha=0.4, beta=0.5)
    for selection in (None, core):
        cache, again = (model.new_cache(16) for _ in range(2))
        prefill(model, ids[:8], cache)
        prefill(model, ids[:8], again)
        expected = forward(model.restrict(selection), ids[8:], cache)
        decoder = make_decoder(model, again, selection, "cpu")
        got = np.stack([decoder.step(int(i)) for i in ids[8:]])
        # a rounding of an input may fall the other way where it lies between two steps
        assert np.median(np.abs(got - expected)) < 1e-5
        assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
        for name in ("keys", "values"):
            mine, theirs = getattr(again.storage, name), getattr(cache.storage, name)
            apart = np.abs(mine.astype(int) - theirs)
            assert apart.max() <= 8 and (apart > 0).mean() < 0.05  # likewise


def test_an_int8_cache_holds_codes_and_scales():
    cfg = mc.load(GOLDEN / "llama-gqa", dtype="int4").config
    cache = KVCache(cfg, 6, "int8")
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, 4, cfg.n_kv_heads, cfg.d_head)).astype(np.float32)
    k[1], v[2, 0], k[3, 1, 5] = 0, 1e30, np.nan
    for which, (x, got) in enumerate(zip((k, v), cache.append(1, k, v), strict=True)):
        codes, scales = quantize_int8(x.transpose(1, 0, 2))
        np.testing.assert_array_equal(got, codes * scales)
        held = (cache.storage.keys, cache.storage.values)[which]
        np.testing.assert_array_equal(held[1, :, :4], codes)
        np.testing.assert_array_equal(cache.storage.scales[1, which, :, :4], scales[..., 0])
    assert np.isnan(cache.k[1, 1, 3]).all() and np.isfinite(cache.k[1, 0]).all()
    assert cache.nbytes == 2 * cfg.n_layers * cfg.n_kv_heads * 6 * (cfg.d_head + 4)


@nb.njit
def keep(held, scales, x):
    for head in range(len(x)):
        attention.store_head(held, scales, head, 1, x[head])


@pytest.mark.parametrize("d_head", [8, 64, 80])
def test_kernels_write_a_cache_as_numpy_does(d_head):
    x = np.random.default_rng(0).standard_normal((5, d_head)).astype(np.float32)
    x[1], x[2, 3], x[3, :] = 0, np.inf, np.arange(d_head) + 0.5
    held, scales = np.full((5, 2, d_head), 7, np.int8), np.full((5, 2), 7, np.float32)
    keep(held, scales, x)
    codes, expected = quantize_int8(x)
    np.testing.assert_array_equal(scales[:, 1:], expected)
    finite = np.isfinite(expected[:, 0])  # else what the codes are means nothing
    np.testing.assert_array_equal(held[finite, 1], codes[finite])
    assert (held[:, 0] == 7).all() and (scales[:, 0] == 7).all()


def test_a_cache_moves_to_another_and_to_bfloat16():
    model = mc.load(GOLDEN / "llama-gqa", dtype="int8")
    short, long, other = model.new_cache(5), model.new_cache(9), KVCache(model.config, 9, "bfloat16")
    prefill(model, np.array([3, 4, 5]), short)
    for cache in (long, other):
        cache.copy(short)
        assert cache.length == 3 and cache.dtype == "int8" and cache.capacity == 9
        np.testing.assert_array_equal(cache.k[:, :, :3], short.k[:, :, :3])
        np.testing.assert_array_equal(cache.v[:, :, :3], short.v[:, :, :3])
    meant = short.k.astype(ml_dtypes.bfloat16)
    short.convert(FloatStorage(short.shape, "bfloat16"))
    np.testing.assert_array_equal(short.k.view(np.uint16), meant.view(np.uint16))
    assert short.dtype == "bfloat16" and short.length == 3


@pytest.mark.parametrize("format", FORMATS)
def test_loading_packs_what_it_would_have_loaded(format):
    wide, packed = mc.load(GOLDEN / "llama-gqa"), mc.load(GOLDEN / "llama-gqa", dtype=format)
    for name, w in wide.params.items():
        if w.ndim == 2:
            np.testing.assert_array_equal(packed.params[name].data, QuantizedMatrix.quantize(format, w).data)
        else:
            np.testing.assert_array_equal(packed.params[name], w)
