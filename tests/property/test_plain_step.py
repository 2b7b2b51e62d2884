"""The plain step: equal to NumPy, and the oracle of the SIMD step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minicore as mc
from minicore.backends.cpu import ffn, plain_step
from minicore.backends.cpu import table as columns
from minicore.backends.cpu.compiling import callable_from_python
from minicore.backends.cpu.decoder import CpuDecoder
from minicore.backends.cpu.plain_decoder import PlainDecoder
from minicore.backends.dims import RELU, Dims
from minicore.backends.numpy import NumpyDecoder
from minicore.bench.plan import BOUNDS
from minicore.bench.validation import relative_error
from minicore.core.neurons import CoreSet
from minicore.core.rules import TokenRule
from minicore.errors import InputError
from tests.helpers import GOLDEN

NAMES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))


def selections(config):
    """Return all neurons, a core set in some layers, a threshold, and a threshold inside a core set."""
    rng = np.random.default_rng(5)
    neurons = {i: np.sort(rng.permutation(config.n_neurons)[: 5 + i]) for i in range(1, config.n_layers)}
    core = CoreSet(neurons, config.n_neurons, config.n_layers)
    limits = dict.fromkeys(range(config.n_layers), 0.05)
    rules = [TokenRule("gate", limits, config.n_neurons, config.n_layers, inside) for inside in (None, core)]
    return [None, core, *rules]


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_in_plain_loops_agrees_with_numpy_and_with_the_simd_step(name):
    model, tokens = mc.load(GOLDEN / name, dtype="float32"), range(3, 13)
    for selection in selections(model.config):
        plain, simd, numpy = (
            make(model, model.new_cache(len(tokens)), selection)
            for make in (PlainDecoder, CpuDecoder, NumpyDecoder)
        )
        for token in tokens:
            got, expected = plain.step(token), numpy.step(token)
            assert relative_error(got, expected) <= BOUNDS["float32"]
            assert relative_error(simd.step(token), got) <= BOUNDS["float32"]
            assert got.argmax() == expected.argmax()
        assert relative_error(plain.cache.k, numpy.cache.k) <= BOUNDS["float32"]
        assert relative_error(plain.cache.v, numpy.cache.v) <= BOUNDS["float32"]
        if model.config.activation != "gelu_tanh":  # which is zero or all but zero far to the left
            np.testing.assert_array_equal(plain.stats.neurons_read, numpy.stats.neurons_read)


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("predictor", ["dense", "stability", "gate"])
def test_generating_in_plain_loops_gives_the_same_set_and_tokens(backend, predictor):
    model = mc.load("minicore-opt-core")
    options = {"max_new_tokens": 20, "predictor": predictor, "beta": 0.3}
    mine = model.generate("The old house stood", backend="numba", **options)
    other = model.generate("The old house stood", backend=backend, **options)
    assert mine.token_ids == other.token_ids
    for layer, ids in getattr(other.core, "neurons", {}).items():
        np.testing.assert_array_equal(mine.core.neurons[layer], ids)


@given(seed=st.integers(0, 2**32), m=st.integers(1, 40), d=st.integers(1, 40), gated=st.booleans())
@settings(max_examples=30)
def test_products_and_the_ffn_are_exact_on_small_integers(seed, m, d, gated):
    rng = np.random.default_rng(seed)
    w_gate, w_in, w_out = rng.integers(-4, 5, (3, m, d)).astype(np.float32)
    b_gate, b_in = rng.integers(-4, 5, (2, m)).astype(np.float32)
    x, b_out = rng.integers(-4, 5, (2, d)).astype(np.float32)
    np.testing.assert_array_equal(plain_step.linear(w_in, b_in, x), w_in @ x + b_in)
    rows = np.flatnonzero(rng.random(m) < 0.5).astype(np.int32)
    parts = {"mlp_w_gate": w_gate if gated else w_gate[:0], "mlp_w_in": w_in, "mlp_w_out": w_out}
    biases = {"mlp_b_gate": b_gate, "mlp_b_in": b_in, "mlp_b_out": b_out}
    block = plain_step.Block(**dict.fromkeys(plain_step.Block._fields, x) | MATRICES | parts | biases)
    y, n_used = plain_step.ffn(DIMS, block, rows, np.float32(2), x)
    gate = np.maximum(w_gate @ x + b_gate if gated else w_in @ x + b_in, 0)
    a = np.where(gate > 2, gate * (w_in @ x + b_in) if gated else gate, 0)[rows]
    np.testing.assert_array_equal(y, a @ w_out[rows] + b_out)
    assert n_used == np.count_nonzero(a)
    table = np.zeros(len(columns.COLUMNS), np.int64)
    for column, array in (
        *(
            (columns.W_GATE, w_gate),
            (columns.W_IN, w_in),
            (columns.W_OUT, w_out),
            (columns.B_GATE, b_gate),
            (columns.B_IN, b_in),
        ),
        (columns.ROWS, rows),
    ):
        table[column] = array.ctypes.data if array.size else 0
    table[columns.N_ROWS], table[columns.N_STORED] = len(rows), m
    dims, simd = DIMS._replace(d_model=d, gated=gated), b_out.copy()
    neurons, activations = np.empty(ffn.NEURON_BLOCK, np.int32), np.empty((2, ffn.NEURON_BLOCK), np.float32)
    read = simd_ffn(x[:0], table, 0, len(rows), np.float32(2), dims, None, x, neurons, activations, simd)
    np.testing.assert_array_equal(simd, y)
    assert read == n_used


simd_ffn = callable_from_python(ffn.ffn)
MATRICES = dict.fromkeys(("attn_w_q", "attn_w_k", "attn_w_v", "attn_w_o"), np.zeros((1, 1), np.float32))
DIMS = Dims(
    **dict.fromkeys(Dims._fields, 1)
    | {
        "layer_norm": False,
        "eps": 1e-5,
        "gated": False,
        "activation": RELU,
        "activation_threshold": np.float32(0),
    }
)


def test_what_the_plain_step_does_not_do_is_refused():
    model = mc.load(GOLDEN / "llama-gqa", dtype="bfloat16")
    with pytest.raises(InputError, match="backend numba decodes float32"):
        PlainDecoder(model, model.new_cache(4), None)
    with pytest.raises(InputError, match="backend numba decodes float32"):
        model.generate([1, 2, 3], max_new_tokens=2, backend="numba")
    model = mc.load(GOLDEN / "llama-gqa")
    top = TokenRule("top", {0: 3}, model.config.n_neurons, model.config.n_layers)
    with pytest.raises(InputError, match="backend numba .* expected numpy or cpu"):
        PlainDecoder(model, model.new_cache(4), top)
