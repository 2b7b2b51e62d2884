"""Every kernel beside its NumPy counterpart: first the same result, then the time.

    pytest tests/benchmarks --benchmark-only

The default run of the tests leaves this folder out. Matrices are larger than the last cache, so that speeds
are those of memory; ``extra_info`` (in ``--benchmark-json``) has GB/s and the fraction of the bandwidth that
was measured around each. What is compared runs one after the other, since machines change by the minute.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba as nb
import numpy as np
import pytest
from conftest import N_BYTES

import minicore as mc
from minicore import ops
from minicore.backends.cpu import attention, ffn, intrinsics, step, table
from minicore.backends.cpu.attention_simd import tile_of
from minicore.backends.cpu.compiling import callable_from_python
from minicore.backends.cpu.decoder import CpuDecoder
from minicore.backends.cpu.quantized_inputs import input_size
from minicore.backends.cpu.rows import prepare_input, storage
from minicore.backends.dims import ACTIVATION_CODES, Dims
from minicore.backends.numpy import NumpyDecoder
from minicore.bench.plan import BOUNDS
from minicore.bench.validation import relative_error
from minicore.checkpoint import Checkpoint
from minicore.config import ModelConfig
from minicore.core.neurons import CoreSet
from minicore.core.rules import GATE
from minicore.generation.accounting import bytes_per_token
from minicore.model import Model
from minicore.quantization import QuantizedMatrix, fake_quantize, quantize_int8

FORMATS = ["float32", "bfloat16", "int8", "int4"]
D = 576  # SmolLM2-135M's width
THREADS = sorted({1, min(2, os.cpu_count() or 1)})


def held(format: str, w: np.ndarray) -> np.ndarray | QuantizedMatrix:
    """Return a float32 matrix in a format."""
    if format == "float32":
        return w
    if format == "bfloat16":
        import ml_dtypes

        return w.astype(ml_dtypes.bfloat16)
    return QuantizedMatrix.quantize(format, w)


def matrix(seed: int, m: int, d: int = D) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, d), np.float32) / np.float32(np.sqrt(d))


def address(w: np.ndarray | QuantizedMatrix | None) -> int:
    return 0 if w is None else (w.data if isinstance(w, QuantizedMatrix) else w).ctypes.data


def like(w: np.ndarray | QuantizedMatrix) -> np.ndarray:
    return storage(w).reshape(-1)[:0]


@nb.njit
def _prepare(like, d, x):
    prepare_input(like, d, x)


def prepared(w: np.ndarray | QuantizedMatrix, x: np.ndarray) -> np.ndarray:
    out = np.zeros(input_size(len(x)), np.float32)
    out[: len(x)] = x
    _prepare(like(w), len(x), out)
    return out


_matvec, _ffn = callable_from_python(step.matvec), callable_from_python(ffn.ffn)


def dims(**changes: object) -> Dims:
    plain = dict.fromkeys(Dims._fields, 0)
    return Dims(
        **(
            plain
            | {"layer_norm": False, "eps": 1e-5, "gated": False, "activation_threshold": np.float32(0)}
            | changes
        )
    )


# --- matrix times vector ---


@pytest.fixture(scope="module")
def wide() -> np.ndarray:
    return matrix(0, N_BYTES // 4 // D)


@pytest.mark.parametrize("way", ["numba", "numpy"])
@pytest.mark.parametrize("format", FORMATS)
def test_matvec(benchmark, reading, wide, format, way):
    benchmark.group = f"matvec {format}"
    w = held(format, wide)
    x = np.random.default_rng(1).standard_normal(D).astype(np.float32)
    seen = fake_quantize(x) if isinstance(w, QuantizedMatrix) else x
    if way == "numpy":  # on the float32 matrix that the format means, not widened within the time
        meant = np.asarray(ops.to_float32(w))
        reading(lambda: meant @ seen, meant.nbytes)
        return
    inputs, y = prepared(w, x), np.empty(len(wide), np.float32)

    def call() -> None:
        _matvec(like(w), address(w), 0, len(wide), D, 0, len(wide), inputs, y)

    call()
    meant = ops.to_float32(w)
    exact = meant.astype(np.float64) @ seen.astype(np.float64)
    u, n = 2.0**-24, D + 8
    size = np.abs(meant) + (np.abs(w.scales.astype(np.float32)).max() if format == "int4" else 0)
    assert (np.abs(y - exact) <= n * u / (1 - n * u) * (size.astype(np.float64) @ np.abs(seen))).all()
    reading(call, w.nbytes)


# --- FFN ---


@pytest.mark.parametrize("way", ["numba", "numpy"])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", ["dense", "core", "threshold"])
def test_ffn(benchmark, reading, format, rows, way):
    benchmark.group = f"ffn {rows} {format}"
    m = N_BYTES // 12 // D
    gate, up, out = (held(format, matrix(seed, m)) for seed in (1, 2, 3))
    x = np.random.default_rng(4).standard_normal(D).astype(np.float32)
    seen = fake_quantize(x) if isinstance(gate, QuantizedMatrix) else x
    ids = np.sort(np.random.default_rng(5).permutation(m)[: int(0.4 * m)]).astype(np.int32)
    chosen_ids = ids if rows == "core" else np.arange(m, dtype=np.int32)
    meant = [np.asarray(ops.to_float32(w))[chosen_ids] for w in (gate, up, out)]
    opened = ops.silu(meant[0] @ seen)
    limit = float(np.quantile(np.abs(opened), 0.6)) if rows == "threshold" else -1.0
    kept = np.abs(opened) > limit

    def by_numpy() -> np.ndarray:
        g = ops.silu(meant[0] @ seen)
        if rows != "threshold":
            return (g * (meant[1] @ seen)) @ meant[2]
        at = np.flatnonzero(np.abs(g) > limit)
        return (g[at] * (meant[1][at] @ seen)) @ meant[2][at]

    row_bytes = gate.nbytes / m
    n_bytes = row_bytes * (len(chosen_ids) + 2 * kept.sum())
    if way == "numpy":
        reading(by_numpy, n_bytes / row_bytes * 4 * D)
        return
    p = np.zeros(len(table.COLUMNS), np.int64)
    p[table.W_GATE], p[table.W_IN], p[table.W_OUT] = address(gate), address(up), address(out)
    p[table.ROWS] = address(ids) if rows == "core" else 0
    p[table.N_ROWS], p[table.N_STORED] = len(chosen_ids), m
    shape = dims(d_model=D, gated=True, activation=ACTIVATION_CODES["silu"])
    inputs, y = prepared(gate, x), np.zeros(D, np.float32)
    neurons = np.empty(ffn.NEURON_BLOCK, np.int32)
    activations = np.empty((2, ffn.NEURON_BLOCK), np.float32)

    def call() -> int:
        y[:] = 0
        n, threshold = len(chosen_ids), np.float32(limit)
        return _ffn(like(gate), p, 0, n, threshold, shape, None, inputs, neurons, activations, y)

    n_used = call()
    a = opened.astype(np.float64) * (meant[1].astype(np.float64) @ seen) * kept
    # a gate at the threshold may fall on either side; its neuron's share is then missing or there
    slack = np.abs(np.abs(opened) - limit) < 1e-5
    assert abs(n_used - kept.sum()) <= slack.sum()
    bound = 1e-4 * (np.abs(a) + 1e-3) @ np.abs(meant[2]) + (slack * np.abs(opened)) @ np.abs(meant[2])
    assert (np.abs(y - a @ meant[2].astype(np.float64)) <= bound).all()
    reading(call, n_bytes)


# --- attention ---


@nb.njit
def _prepare_queries(like, d, x, q, q_scales):
    attention.prepare_queries(like, d, x, q, q_scales)


_attend = callable_from_python(attention.attend)
_merge_shares = callable_from_python(attention.merge_shares)


@pytest.mark.parametrize("way", ["numba", "numpy"])
@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8"])
def test_attend(benchmark, reading, format, way):
    benchmark.group = f"attend {format}"
    n_heads, n_kv_heads, d = 9, 3, 64
    rng = np.random.default_rng(6)
    n = N_BYTES // (2 * n_kv_heads * d * {"float32": 4, "bfloat16": 2, "int8": 1}[format])
    q = rng.standard_normal((n_heads, d)).astype(np.float32)
    seen, scales = q, np.empty((2, n_kv_heads, 0), np.float32)
    k, v = (rng.standard_normal((n_kv_heads, n, d), np.float32) for _ in "kv")
    if format == "int8":
        (k, k_scales), (v, v_scales) = quantize_int8(k), quantize_int8(v)
        seen, scales = ops.fake_quantize(q, d), np.stack([k_scales, v_scales])[..., 0]
        meant = k * k_scales, v * v_scales
    else:
        k, v = held(format, k), held(format, v)
        meant = ops.to_float32(k), ops.to_float32(v)

    def by_numpy() -> np.ndarray:
        return ops.attend(ops.attention_pattern(seen[None], meant[0])[1], meant[1])[0]

    if way == "numpy":
        reading(by_numpy, meant[0].nbytes + meant[1].nbytes)
        return
    shape, scaled = dims(n_heads=n_heads, n_kv_heads=n_kv_heads, d_head=d), (q / np.float32(8)).reshape(-1)
    tile, z = tile_of(n_heads, n_kv_heads, d), np.empty(q.size, np.float32)
    mixture, (largest, total) = np.empty((1, q.size), np.float32), np.empty((2, 1, n_heads), np.float32)
    scores, queries = np.empty((len(tile.heads), n), np.float32), np.empty_like(scaled)
    keys, values, q_scales = storage(k), storage(v), np.empty(n_heads, np.float32)
    _prepare_queries(keys, d, scaled, queries, q_scales)
    share = attention.Share(scores, mixture[0], largest[0], total[0])

    def call() -> None:
        _attend(tile, shape, None, queries, q_scales, keys, values, scales, 0, n, share)
        _merge_shares(1, shape, mixture, largest, total, z)

    call()
    np.testing.assert_allclose(z.reshape(q.shape), by_numpy(), rtol=0, atol=1e-4)
    reading(call, k.nbytes + v.nbytes + scales.nbytes)


# --- threads ---

MEETINGS = 1000


@nb.njit(nogil=True)
def _meet(counter, n_threads):
    passed = 0
    for _ in range(MEETINGS):
        passed = intrinsics.barrier(counter, n_threads, passed)
    return passed


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two threads on one core do not meet, they take turns")
@pytest.mark.parametrize("way", ["numba", "python"])
def test_barrier(benchmark, way):
    """A thousand meetings of two threads; the counterpart is threading's own barrier."""
    benchmark.group = "1000 barriers"
    counter, plain = np.zeros(16, np.int64), threading.Barrier(2)

    def one() -> int:
        if way == "numba":
            return int(_meet(counter, 2))
        for _ in range(MEETINGS):
            plain.wait()
        return MEETINGS

    with ThreadPoolExecutor(1) as pool:

        def both() -> tuple[int, int]:
            counter[0] = 0
            other = pool.submit(one)
            return one(), other.result()

        assert both() == (MEETINGS, MEETINGS) and counter[0] == 2 * MEETINGS * (way == "numba")
        benchmark.pedantic(both, rounds=5, warmup_rounds=1)
    if benchmark.stats is not None:
        benchmark.extra_info["us_a_barrier"] = benchmark.stats.stats.median / MEETINGS * 1e6


@nb.njit(parallel=True)
def _fork_and_join(counts, times):
    for _ in range(times):
        for t in nb.prange(counts.shape[0]):
            counts[t, 0] += 1


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has nothing to fork to")
def test_fork_and_join(benchmark):
    """What a parallel loop of Numba's costs, where the step has a barrier: two threads start and end."""
    benchmark.group = "1000 barriers"
    counts = np.zeros((2, 16), np.int64)
    _fork_and_join(counts, MEETINGS)
    assert counts[:, 0].tolist() == [MEETINGS, MEETINGS]
    benchmark.pedantic(_fork_and_join, (counts, MEETINGS), rounds=5)
    if benchmark.stats is not None:
        benchmark.extra_info["us_a_loop"] = benchmark.stats.stats.median / MEETINGS * 1e6


# --- the whole step ---


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    """SmolLM2-135M's shape with drawn weights, and fewer layers: its reference takes seconds a token."""
    config = ModelConfig(
        family="llama",
        n_layers=8,
        d_model=D,
        n_heads=9,
        n_kv_heads=3,
        d_head=64,
        n_neurons=1536,
        n_vocab=49152,
        n_ctx=256,
        norm="rmsnorm",
        norm_eps=1e-5,
        activation="silu",
        gated=True,
        positions="rope",
    )
    rng = np.random.default_rng(7)
    params = {}
    for name, shape in config.shapes().items():
        w = rng.standard_normal(shape, np.float32)
        params[name] = w / np.float32(np.sqrt(shape[-1])) if len(shape) == 2 else 1 + w / 100

    def checkpoint(format: str) -> Checkpoint:
        weights = {n: held(format, w) if w.ndim == 2 else w for n, w in params.items()}
        about = {"tokenizer_source": None, "chat_template": None, "bos_id": None, "eos_ids": ()}
        about |= {"recommended": {}, "name": f"drawn {format}", "source": Path(), "file_dtype": "drawn"}
        return Checkpoint(config, weights, **about)

    return {format: Model.of(checkpoint(format), None) for format in FORMATS}


@pytest.mark.parametrize("way", [*(f"numba {n}" for n in THREADS), "numpy"])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", ["dense", "core", "threshold"])
def test_step(benchmark, reading, models, format, rows, way):
    benchmark.group = f"step {rows} {format}"
    model = models[format]
    selection = None
    if rows == "core":
        n = model.config.n_neurons
        neurons = {
            layer: np.sort(np.random.default_rng(layer).permutation(n)[: int(0.4 * n)]).astype(np.int32)
            for layer in range(model.config.n_layers)
        }
        selection = CoreSet(neurons, n, model.config.n_layers, {})
    elif rows == "threshold":
        prompt = np.random.default_rng(8).integers(0, model.config.n_vocab, 32).tolist()
        selection = mc.predict(model, prompt, "gate", beta=0.4)
        assert GATE in selection.parameters(0)
    tokens = np.random.default_rng(9).integers(0, model.config.n_vocab, 4).tolist()
    reference = NumpyDecoder(model, model.new_cache(128), selection)
    if way == "numpy":
        reading(lambda: reference.step(tokens[0]), bytes_per_token(model, selection))
        return
    n_threads = int(way.split()[1])
    decoder = CpuDecoder(model, model.new_cache(128), selection, n_threads=n_threads)
    error = max(relative_error(decoder.step(token), reference.step(token)) for token in tokens)
    # a gate next to the threshold may fall on either side of it, and its neuron's share be there or not
    assert error <= max(BOUNDS[format], 0.02 if rows == "threshold" else 0)
    reading(lambda: decoder.step(tokens[0]), bytes_per_token(model, selection), n_threads)
