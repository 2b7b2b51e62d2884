"""Numba kernels against NumPy: to the bit on small integers, within the error bound on real data."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minicore import ops
from minicore.kernels import cpu

NONE = np.zeros(0, np.float32)
DTYPES = [np.float32, ml_dtypes.bfloat16]
small = st.integers(-4, 4).map(float)  # sums of a few thousand products stay exact in float32


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def integers(rng, *shape):
    return rng.integers(-4, 5, shape).astype(np.float32)


def ffn(w_gate, w_in, w_out, biases, rows, activation, x, n_threads):
    y = np.full(x.size, np.nan, np.float32)
    partial = np.full((n_threads, x.size), np.nan, np.float32)
    code = cpu.ACTIVATION_CODES[activation]
    cpu.ffn(*map(cpu.bits, (w_gate, w_in, w_out)), *biases, rows, code, np.float32(-1), x, partial, y)
    return y


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data(), m=st.integers(1, 70), d=st.integers(1, 70))
@settings(max_examples=40)
def test_gemv_is_exact_on_small_integers(dtype, data, m, d):
    w = data.draw(hnp.arrays(np.float32, (m, d), elements=small))
    x = data.draw(hnp.arrays(np.float32, d, elements=small))
    b = data.draw(st.sampled_from([NONE, np.arange(m, dtype=np.float32)]))
    y = np.full(m, np.nan, np.float32)
    cpu.gemv(cpu.bits(w.astype(dtype)), x, b, y)
    np.testing.assert_array_equal(y, w @ x + (b if b.size else 0))


def gamma(n, u=2.0**-24):
    return n * u / (1 - n * u)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, d", [(1536, 576), (257, 2048), (3, 7)])
def test_gemv_is_within_the_error_bound(dtype, m, d, rng):
    w, x = rng.standard_normal((m, d)).astype(dtype), rng.standard_normal(d).astype(np.float32)
    y = np.empty(m, np.float32)
    cpu.gemv(cpu.bits(w), x, NONE, y)
    exact = w.astype(np.float64) @ x.astype(np.float64)
    bound = gamma(d) * (np.abs(w.astype(np.float64)) @ np.abs(x.astype(np.float64)))
    assert (np.abs(y - exact) <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 60), d=st.integers(1, 40), n_threads=st.integers(1, 5))
@settings(max_examples=40)
def test_relu_ffn_is_exact_on_small_integers_for_any_rows(dtype, seed, n, d, n_threads):
    rng = np.random.default_rng(seed)
    w_in, w_out, x = integers(rng, n, d), integers(rng, n, d), integers(rng, d)
    rows = np.flatnonzero(rng.random(n) < 0.5).astype(np.int32)
    b_in, b_out = integers(rng, n), integers(rng, d)
    y = ffn(
        w_in[:0].astype(dtype),
        w_in.astype(dtype),
        w_out.astype(dtype),
        (NONE, b_in, b_out),
        rows,
        "relu",
        x,
        n_threads,
    )
    a = np.maximum(w_in[rows] @ x + b_in[rows], 0)
    np.testing.assert_array_equal(y, a @ w_out[rows] + b_out)


@pytest.mark.parametrize("activation", list(ops.ACTIVATIONS))
@pytest.mark.parametrize("gated", [False, True])
def test_ffn_agrees_with_numpy(activation, gated, rng):
    n, d = 200, 64
    w_gate, w_in, w_out = (rng.standard_normal((n, d)).astype(np.float32) for _ in range(3))
    biases = tuple(rng.standard_normal(k).astype(np.float32) for k in (n, n, d))
    x = rng.standard_normal(d).astype(np.float32) / 8
    rows = np.arange(0, n, 3, dtype=np.int32)
    y = ffn(w_gate if gated else w_gate[:0], w_in, w_out, biases, rows, activation, x, 2)
    act, wide = ops.ACTIVATIONS[activation], [w.astype(np.float64)[rows] for w in (w_gate, w_in, w_out)]
    up = wide[1] @ x + biases[1][rows]
    a = act(wide[0] @ x + biases[0][rows]) * up if gated else act(up)
    bound = 50 * gamma(d) * (np.abs(a) + 1) @ np.abs(wide[2]) + gamma(n) * np.abs(biases[2])
    assert (np.abs(y - (a @ wide[2] + biases[2])) <= bound).all()


@pytest.mark.parametrize("n_kv", [1, 2, 33])
@pytest.mark.parametrize("n_heads, n_kv_heads", [(4, 4), (6, 2), (3, 1)])
def test_attention_agrees_with_numpy(n_heads, n_kv_heads, n_kv, rng):
    q = rng.standard_normal((n_heads, 16)).astype(np.float32)
    k, v = (rng.standard_normal((n_kv_heads, 40, 16)).astype(np.float32) for _ in "kv")
    z = np.full_like(q, np.nan)
    cpu.attend(q, k, v, n_kv, np.empty((n_heads, 40), np.float32), z)
    _, pattern = ops.attention_pattern(q[None], k[:, :n_kv])
    np.testing.assert_allclose(z, ops.attend(pattern, v[:, :n_kv])[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_survive(bad, rng):
    w, x = rng.standard_normal((40, 24)).astype(np.float32), rng.standard_normal(24).astype(np.float32)
    w[7, 5] = bad
    y = np.empty(40, np.float32)
    cpu.gemv(w, x, NONE, y)
    with np.errstate(invalid="ignore"):
        expected = w @ x
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    np.testing.assert_array_equal(y[7], expected[7])
    w_out = np.ones((40, 24), np.float32)
    out = ffn(w[:0], w, w_out, (NONE, NONE, NONE), np.array([7], np.int32), "relu", x, 2)
    np.testing.assert_array_equal(out, np.full(24, np.maximum(expected[7], 0)))
