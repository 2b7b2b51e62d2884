"""Numba kernels against NumPy: to the bit on small integers, within the error bound on real data."""

import importlib.util
import sys
import threading
import time
from functools import cache

import ml_dtypes
import numba as nb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minicore
from minicore import ops
from minicore.backends.cpu import attention, ffn, integer_rows, intrinsics, rows, simd, step, table
from minicore.backends.cpu.compiling import FAST, callable_from_python
from minicore.backends.cpu.rows import storage
from minicore.backends.dims import ACTIVATION_CODES, Dims
from minicore.quantization import quantize_int8
from tests.helpers import GOLDEN

DTYPES = [np.float32, ml_dtypes.bfloat16]
# float32 elements of a register; those of the other kind of CPU are compiled here as well
REGISTERS = [pytest.param(n, marks=[pytest.mark.slow] if n != simd.REGISTER else []) for n in (8, 16)]
small = st.integers(-4, 4).map(float)  # sums of a few thousand products stay exact in float32


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def integers(rng, *shape):
    return rng.integers(-4, 5, shape).astype(np.float32)


def address(w):
    return 0 if w is None or not w.size else w.ctypes.data


def dims(**changes):
    plain = dict.fromkeys(Dims._fields, 0)
    return Dims(
        **(
            plain
            | {"layer_norm": False, "eps": 1e-5, "gated": False, "activation_threshold": np.float32(0)}
            | changes
        )
    )


@nb.njit
def _prepare(like, d, x):
    rows.prepare_input(like, d, x)


def prepared(like, x):
    out = x.copy()
    _prepare(like, x.size, out)
    return out


_matvec, _ffn = callable_from_python(step.matvec), callable_from_python(ffn.ffn)


def matvec(w, x, b=None):
    w, y = storage(w), np.full(len(w), np.nan, np.float32)
    like = w[:0].reshape(-1)
    _matvec(like, address(w), address(b), *w.shape, 0, len(w), prepared(like, x), y)
    return y


def run_ffn(w_gate, w_in, w_out, biases, rows, activation, x, threshold=-1.0, shares=1):
    """Run the kernel over every thread's share of the rows, one after another."""
    parts = {
        "mlp.w_gate": w_gate,
        "mlp.w_in": w_in,
        "mlp.w_out": w_out,
        "mlp.b_gate": biases[0],
        "mlp.b_in": biases[1],
    }
    parts = {name: w if w is None or w.ndim == 1 else storage(w) for name, w in parts.items()}
    p = np.array([address(parts.get(name)) for name in table.COLUMNS], np.int64)
    p[table.ROWS], p[table.N_ROWS], p[table.N_STORED] = address(rows), len(rows), len(w_in)
    shape = dims(d_model=x.size, gated=w_gate is not None, activation=ACTIVATION_CODES[activation])
    like, y, n_used = parts["mlp.w_in"][:0].reshape(-1), np.zeros(x.size, np.float32), 0
    x = prepared(like, x)
    neurons = np.empty(ffn.NEURON_BLOCK, np.int32)
    activations = np.full((2, ffn.NEURON_BLOCK), np.nan, np.float32)
    for t in range(shares):
        first, last = t * len(rows) // shares, (t + 1) * len(rows) // shares
        n_used += _ffn(like, p, first, last, np.float32(threshold), shape, None, x, neurons, activations, y)
    return (y if biases[2] is None else y + biases[2]), n_used


def with_registers(name, elements, **replaced):
    """Return a module as it is where registers have so many float32 elements, with other modules replaced."""
    spec, mine = importlib.util.find_spec(f"minicore.backends.cpu.{name}"), simd.REGISTER
    module = importlib.util.module_from_spec(spec)
    replaced = {f"minicore.backends.cpu.{other}": found for other, found in replaced.items()}
    before = {other: sys.modules[other] for other in replaced}
    sys.modules.update(replaced)
    simd.REGISTER = elements
    try:
        spec.loader.exec_module(module)
    finally:
        simd.REGISTER = mine
        sys.modules.update(before)
    return module


@cache
def attention_in(elements, kind=None):
    """Return the modules with one way to multiply bytes, and their functions as Python calls them."""
    vectors = with_registers("attention_simd", elements)
    vectors.best_kind = (lambda: kind) if kind else integer_rows.best_kind
    module = with_registers("attention", elements, attention_simd=vectors)
    prepare = nb.njit(lambda like, d, x, q, q_scales: module.prepare_queries(like, d, x, q, q_scales))
    return vectors, prepare, callable_from_python(module.attend), callable_from_python(module.merge_shares)


def attend(q, k, v, shares, elements=simd.REGISTER, scales=None, kind=None):
    vectors, prepare, attend_share, merge_shares = attention_in(elements, kind)
    n_heads, d_head = q.shape
    shape = dims(n_heads=n_heads, n_kv_heads=len(k), d_head=d_head)
    tile = vectors.tile_of(n_heads, len(k), d_head)
    n, scaled = k.shape[1], (q / np.sqrt(d_head)).astype(np.float32).reshape(-1)
    mixture = np.full((shares, q.size), np.nan, np.float32)
    largest, total = np.full((2, shares, n_heads), np.nan, np.float32)
    scores = np.full((len(tile.heads) or 1, n), np.nan, np.float32)
    k, v = storage(k), storage(v)
    scales = np.empty((2, len(k), 0), np.float32) if scales is None else scales
    queries, q_scales = np.full(q.size, np.nan, np.float32), np.full(n_heads, np.nan, np.float32)
    prepare(k, d_head, scaled, queries, q_scales)
    for t in range(shares):
        first, last = t * n // shares, (t + 1) * n // shares
        share = attention.Share(scores, mixture[t], largest[t], total[t])
        attend_share(tile, shape, None, queries, q_scales, k, v, scales, first, last, share)
    z = np.full(q.size, np.nan, np.float32)
    merge_shares(shares, shape, mixture, largest, total, z)
    return z.reshape(q.shape)


@pytest.mark.parametrize("elements", [8, 16])
def test_four_rows_are_read_alike_in_short_registers_and_long_ones(rng, elements):
    """bfloat16 is read out of order, by registers; small integers show that sums are put in order again."""
    plain = with_registers("plain_rows", elements)
    dot_rows, add_rows, begin_sum, end_sum = rows.operations_on({nb.uint16: plain.PlainRows(2)})
    d = 96 + 7

    @nb.njit
    def run(like, w, x, a, y, products):
        begin_sum(like, d, x)
        begin_sum(like, d, y)
        products[0], products[1], products[2], products[3] = dot_rows(like, w, 4, d, (0, 1, 2, 3), x)
        add_rows(like, w, 4, d, (0, 1, 2, 3), (a[0], a[1], a[2], a[3]), y)
        end_sum(like, d, y)

    w, x, y, a = integers(rng, 4, d), integers(rng, d), integers(rng, d), integers(rng, 4)
    codes, products, got = storage(w.astype(ml_dtypes.bfloat16)), np.zeros(4, np.float32), y.copy()
    run(codes[0], codes.ctypes.data, x.copy(), a, got, products)
    np.testing.assert_array_equal(products, w @ x)
    np.testing.assert_array_equal(got, y + a @ w)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data(), m=st.integers(1, 70), d=st.integers(1, 70))
@settings(max_examples=40)
def test_matvec_is_exact_on_small_integers(dtype, data, m, d):
    w = data.draw(hnp.arrays(np.float32, (m, d), elements=small))
    x = data.draw(hnp.arrays(np.float32, d, elements=small))
    b = data.draw(st.sampled_from([None, np.arange(m, dtype=np.float32)]))
    np.testing.assert_array_equal(matvec(w.astype(dtype), x, b), w @ x + (0 if b is None else b))


def gamma(n, u=2.0**-24):
    return n * u / (1 - n * u)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, d", [(1536, 576), (257, 2048), (3, 7)])
def test_matvec_is_within_the_error_bound(dtype, m, d, rng):
    w, x = rng.standard_normal((m, d)).astype(dtype), rng.standard_normal(d).astype(np.float32)
    exact = w.astype(np.float64) @ x.astype(np.float64)
    bound = gamma(d) * (np.abs(w.astype(np.float64)) @ np.abs(x.astype(np.float64)))
    assert (np.abs(matvec(w, x) - exact) <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 90), d=st.integers(1, 40), shares=st.integers(1, 5))
@settings(max_examples=40)
def test_relu_ffn_is_exact_on_small_integers_for_any_rows(dtype, seed, n, d, shares):
    rng = np.random.default_rng(seed)
    w_in, w_out, x = integers(rng, n, d), integers(rng, n, d), integers(rng, d)
    rows = np.flatnonzero(rng.random(n) < 0.5).astype(np.int32)
    b_in, b_out = integers(rng, n), integers(rng, d)
    y, n_used = run_ffn(
        None, w_in.astype(dtype), w_out.astype(dtype), (None, b_in, b_out), rows, "relu", x, shares=shares
    )
    a = np.maximum(w_in[rows] @ x + b_in[rows], 0)
    np.testing.assert_array_equal(y, a @ w_out[rows] + b_out)
    assert n_used == np.count_nonzero(a)


def test_neurons_beyond_a_block_count_too(rng):
    n, d = 2 * ffn.NEURON_BLOCK + 3, 8
    w_in, w_out, x = integers(rng, n, d), integers(rng, n, d), integers(rng, d)
    rows = np.arange(0, n, dtype=np.int32)
    y, n_used = run_ffn(None, w_in, w_out, (None, None, None), rows, "relu", x)
    a = np.maximum(w_in @ x, 0)
    np.testing.assert_array_equal(y, a @ w_out)
    assert n_used == np.count_nonzero(a)


@pytest.mark.parametrize("activation", list(ops.ACTIVATIONS))
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("threshold", [-1.0, 0.3])
def test_ffn_agrees_with_numpy(activation, gated, threshold, rng):
    n, d = 200, 64
    w_gate, w_in, w_out = (rng.standard_normal((n, d)).astype(np.float32) for _ in range(3))
    biases = tuple(rng.standard_normal(k).astype(np.float32) for k in (n, n, d))
    x = rng.standard_normal(d).astype(np.float32) / 8
    rows = np.arange(0, n, 3, dtype=np.int32)
    y, n_used = run_ffn(
        w_gate if gated else None, w_in, w_out, biases, rows, activation, x, threshold, shares=2
    )
    act, wide = ops.ACTIVATIONS[activation], [w.astype(np.float64)[rows] for w in (w_gate, w_in, w_out)]
    up = wide[1] @ x + biases[1][rows]
    gate = act(wide[0] @ x + biases[0][rows]) if gated else act(up)
    a = np.where(np.abs(gate) > threshold, gate * up if gated else gate, 0)
    bound = 50 * gamma(d) * (np.abs(a) + 1) @ np.abs(wide[2]) + gamma(n) * np.abs(biases[2])
    assert (np.abs(y - (a @ wide[2] + biases[2])) <= bound).all()
    assert n_used == np.count_nonzero(a)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "n_heads, n_kv_heads, n_kv, d_head",
    [(4, 4, 1, 16), (4, 4, 33, 64), (6, 2, 2, 64), (6, 2, 33, 80), (4, 1, 150, 128), (7, 1, 33, 64)]
    + [(2, 1, 150, 128), (2, 1, 2, 16), (4, 4, 150, 24)],
)
@pytest.mark.parametrize("shares", [1, 2, 5])
@pytest.mark.parametrize("elements", REGISTERS)
def test_attention_agrees_with_numpy_however_positions_are_shared_out(
    n_heads, n_kv_heads, n_kv, d_head, shares, elements, dtype, rng
):
    q = rng.standard_normal((n_heads, d_head)).astype(np.float32)
    k, v = (rng.standard_normal((n_kv_heads, n_kv, d_head)).astype(dtype) for _ in "kv")
    _, pattern = ops.attention_pattern(q[None], ops.to_float32(k))
    expected = ops.attend(pattern, ops.to_float32(v))[0]
    np.testing.assert_allclose(attend(q, k, v, shares, elements), expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("kind", [kind for kind in integer_rows.KINDS if integer_rows.has(kind)])
@pytest.mark.parametrize(
    "n_heads, n_kv_heads, n_kv, d_head",
    [(6, 2, 1, 64), (6, 2, 33, 80), (4, 1, 33, 64), (2, 1, 150, 128), (2, 1, 5, 24)],
)
@pytest.mark.parametrize("shares", [1, 3])
@pytest.mark.parametrize("elements", REGISTERS)
def test_attention_in_bytes_agrees_with_numpy(n_heads, n_kv_heads, n_kv, d_head, shares, elements, kind, rng):
    q = rng.standard_normal((n_heads, d_head)).astype(np.float32)
    k, v = rng.standard_normal((2, n_kv_heads, n_kv, d_head))
    (k, k_scales), (v, v_scales) = quantize_int8(k), quantize_int8(v)
    scales = np.stack([k_scales, v_scales])[..., 0].astype(np.float32)
    meant = [(codes * by).astype(np.float32) for codes, by in ((k, k_scales), (v, v_scales))]
    # whole steps of a quarter, 127 at most, so that rounding changes nothing
    q = np.rint(q * 30) / 4
    q[:, 0] = 127 / 4
    _, pattern = ops.attention_pattern(q[None], meant[0])
    expected = ops.attend(pattern, meant[1])[0]
    np.testing.assert_allclose(
        attend(q, k, v, shares, elements, scales, kind), expected, rtol=0, atol=2e-5 * np.abs(expected).max()
    )


def test_attention_does_not_overflow_on_large_scores(rng):
    q = np.full((1, 4), 1e3, np.float32)
    k, v = rng.standard_normal((2, 1, 9, 4)).astype(np.float32) * 100
    _, pattern = ops.attention_pattern(q[None], k)
    np.testing.assert_allclose(attend(q, k, v, 2), ops.attend(pattern, v)[0], rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_survive(bad, rng):
    w, x = rng.standard_normal((40, 24)).astype(np.float32), rng.standard_normal(24).astype(np.float32)
    w[7, 5] = bad
    with np.errstate(invalid="ignore"):
        expected = w @ x
    np.testing.assert_array_equal(np.isnan(matvec(w, x)), np.isnan(expected))
    np.testing.assert_array_equal(matvec(w, x)[7], expected[7])
    y, _ = run_ffn(None, w, np.ones_like(w), (None, None, None), np.array([7], np.int32), "relu", x)
    np.testing.assert_array_equal(y, np.full(24, np.maximum(expected[7], 0)))


@nb.njit
def from_float32(like, x):
    for i in range(x.size):
        like[i] = rows.from_float32(like, x[i])


def test_numbers_are_rounded_to_bfloat16_as_ml_dtypes_does():
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 1 << 32, 20_000, dtype=np.uint32)
    bits[:4000] = bits[:4000] & 0xFFFF0000 | 0x8000  # halfway
    ends = np.array([0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, 1e-45], np.float32)
    x = np.concatenate([bits.view(np.float32), ends])
    got = np.zeros(x.size, np.uint16)
    from_float32(got, x)
    with np.errstate(invalid="ignore"):
        expected = x.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(ops.to_float32(got.view(ml_dtypes.bfloat16)), ops.to_float32(expected))


@nb.njit(fastmath=FAST)
def exponentials(x, y):
    for i in range(x.size):
        y[i] = intrinsics.exp(x[i])


def test_exp_is_as_exact_as_its_docstring_says():
    x = np.linspace(-87, 87, 200_001).astype(np.float32)
    y = np.empty_like(x)
    exponentials(x, y)
    assert np.abs(y / np.exp(x.astype(np.float64)) - 1).max() <= 2.0**-22
    ends = np.array([np.nan, np.inf, -np.inf, 0, 1e30, -1e30], np.float32)
    y = np.empty_like(ends)
    exponentials(ends, y)
    assert np.isnan(y[0]) and y[1] == y[4] > 1e38 and 0 < y[2] == y[5] < 2e-38 and y[3] == 1


@nb.njit(nogil=True)
def add_in_turns(thread, n_threads, counter, log, n):
    """Every thread writes its turn's number and checks that all have before anybody goes on."""
    passed, missed = 0, 0
    for turn in range(1, n + 1):
        log[thread] = turn
        passed = intrinsics.barrier(counter, n_threads, passed)
        for t in range(n_threads):
            missed += log[t] != turn
        passed = intrinsics.barrier(counter, n_threads, passed)
    return missed


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_nobody_passes_a_barrier_before_all_have_come(n_threads):
    counter, log, missed = np.zeros(2, np.int64), np.zeros(n_threads, np.int64), []
    run = [
        threading.Thread(target=lambda t=t: missed.append(add_in_turns(t, n_threads, counter, log, 200)))
        for t in range(n_threads)
    ]
    for thread in run:
        thread.start()
    for thread in run:
        thread.join()
    assert missed == [0] * n_threads


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_core_rows_decode_alike_where_they_lie_and_copied_together(monkeypatch, dtype):
    from minicore.backends.cpu import decoder as cpu
    from minicore.core.neurons import CoreSet

    model = minicore.load(GOLDEN / "llama-gqa", dtype)
    config, rng = model.config, np.random.default_rng(3)
    neurons = {i: np.sort(rng.permutation(config.n_neurons)[: i + 5]) for i in range(config.n_layers)}
    core, logits = CoreSet(neurons, config.n_neurons, config.n_layers), []
    for short in (0, 1 << 30):
        monkeypatch.setattr(cpu, "COPY_BELOW", short)
        decoder = cpu.CpuDecoder(model, model.new_cache(4), core)
        assert decoder.held is model  # copying waits for the first step
        logits.append([decoder.step(token) for token in (1, 2, 3)])
        assert (decoder.held is not model) == bool(short)
        assert decoder.stats.neurons_read.tolist() == [3 * len(rows) for rows in neurons.values()]
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_a_later_core_set_takes_the_memory_of_an_earlier_one(dtype):
    from minicore.backends.cpu.decoder import CpuDecoder
    from minicore.core.neurons import CoreSet

    model = minicore.load(GOLDEN / "llama-gqa", dtype)
    config, rng = model.config, np.random.default_rng(4)

    def core(n):
        neurons = {i: np.sort(rng.permutation(config.n_neurons)[:n]) for i in range(config.n_layers)}
        return CoreSet(neurons, config.n_neurons, config.n_layers)

    first, second, larger = core(9), core(5), core(12)
    decoder = CpuDecoder(model, model.new_cache(4), first, n_threads=2)
    decoder.step(1)
    for selection, kept in ((second, True), (larger, False)):
        before = decoder.copied
        decoder.use(selection)
        decoder.cache.length = 0
        fresh = CpuDecoder(model, model.new_cache(4), selection, n_threads=1)
        np.testing.assert_allclose(decoder.step(1), fresh.step(1), rtol=0, atol=1e-5)
        assert (decoder.copied is before) == kept


def test_threads_that_wait_for_a_call_and_threads_that_sleep_do_the_same_work():
    from minicore.backends.cpu.decoder import CpuDecoder

    model, tokens = minicore.load(GOLDEN / "llama-gqa"), range(1, 13)
    runs = []
    for pauses in ([0.0] * 12, [0.0, 0.02, 1e-4] * 4):
        decoder, logits = CpuDecoder(model, model.new_cache(12), None, n_threads=3), []
        for token, pause in zip(tokens, pauses, strict=True):
            time.sleep(pause)
            logits.append(decoder.step(token))
        runs.append(logits)
    np.testing.assert_array_equal(*runs)
    deadline = time.monotonic() + 30
    while (decoder.state.flags[1:, 0] != intrinsics.RETURNED).any():
        assert time.monotonic() < deadline, "threads wait for a call forever"
        time.sleep(1e-3)


def test_decoders_of_two_threads_at_once_do_not_wait_for_each_other():
    from minicore.backends.cpu.decoder import CpuDecoder

    model, tokens = minicore.load(GOLDEN / "llama-gqa"), range(1, 41)
    decoders = [CpuDecoder(model, model.new_cache(40), None, n_threads=2) for _ in range(3)]
    alone, *together = decoders
    expected, logits = [alone.step(token) for token in tokens], {}

    def run(decoder):
        logits[id(decoder)] = [decoder.step(token) for token in tokens]

    threads = [threading.Thread(target=run, args=[decoder], daemon=True) for decoder in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for decoder in together:
        np.testing.assert_array_equal(logits[id(decoder)], expected)
