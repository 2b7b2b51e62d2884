"""The definitions of core neurons: laws for any activations, and the corners by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minicore as mc
from minicore.core.neurons import core_from_scores, jaccard, parse_layers
from minicore.core.recorder import Recorder

pytestmark = pytest.mark.numpy

fractions = st.floats(0.01, 1.0)
shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
# few distinct values, so that ties are the rule
tied = hnp.arrays(np.float32, shapes, elements=st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0, 2.0]))
smooth = hnp.arrays(np.float32, shapes, elements=st.floats(-3, 3, width=32))
activations = st.one_of(tied, smooth)


def token_core_by_definition(a, alpha):
    """One token at a time, one neuron at a time: slow and plain."""
    core = np.zeros(a.shape, bool)
    for t, row in enumerate(a):
        positive = [i for i in range(len(row)) if row[i] > 0]
        k = math.floor(alpha * len(positive))
        if k == 0 and positive:
            k = 1
        core[t, sorted(positive, key=lambda i: (-row[i], i))[:k]] = True
    return core


def sentence_core_by_definition(a, alpha, beta):
    counts = token_core_by_definition(a, alpha).sum(axis=0)
    ranked = sorted((i for i in range(len(counts)) if counts[i]), key=lambda i: (-counts[i], i))
    return np.array(sorted(ranked[: math.floor(beta * len(counts))]), np.int32)


@given(activations, fractions)
def test_token_core_is_its_definition(a, alpha):
    np.testing.assert_array_equal(mc.token_core(a, alpha), token_core_by_definition(a, alpha))


@given(activations, fractions, fractions)
def test_sentence_core_is_its_definition(a, alpha, beta):
    core = mc.sentence_core(a, alpha, beta)
    assert core.dtype == np.int32
    np.testing.assert_array_equal(core, sentence_core_by_definition(a, alpha, beta))


@given(activations, fractions, fractions, st.randoms(use_true_random=False))
def test_token_order_does_not_matter(a, alpha, beta, random):
    order = random.sample(range(len(a)), len(a))
    np.testing.assert_array_equal(mc.sentence_core(a[order], alpha, beta), mc.sentence_core(a, alpha, beta))


@given(activations, fractions, fractions, fractions)
def test_larger_beta_gives_a_superset(a, alpha, beta, other):
    small, large = sorted((beta, other))
    assert set(mc.sentence_core(a, alpha, small)) <= set(mc.sentence_core(a, alpha, large))


@given(activations, fractions, fractions)
def test_a_text_said_twice_has_the_same_core(a, alpha, beta):
    twice = np.concatenate([a, a])
    np.testing.assert_array_equal(mc.sentence_core(twice, alpha, beta), mc.sentence_core(a, alpha, beta))


@given(activations)
def test_alpha_and_beta_of_one_keep_every_neuron_ever_positive(a):
    np.testing.assert_array_equal(mc.sentence_core(a, 1.0, 1.0), np.flatnonzero((a > 0).any(axis=0)))


@given(activations, fractions, fractions, st.integers(1, 5))
def test_the_chunk_size_of_prefill_does_not_matter(a, alpha, beta, chunk):
    recorder = Recorder("stability", alpha, beta, [0], 1, a.shape[1])
    for start in range(0, len(a), chunk):
        recorder.update(0, a[start : start + chunk])
    np.testing.assert_array_equal(recorder.core().neurons[0], mc.sentence_core(a, alpha, beta))


def test_many_neurons_and_adversarial_ties():
    a = np.ones((3, 16384), np.float32)
    a[:, ::2] = 2
    core = mc.token_core(a, 0.75)
    assert core.sum(axis=1).tolist() == [12288] * 3
    assert core[:, ::2].all() and core[0, 1:8192:2].all() and not core[0, 8193::2].any()


def test_one_token_one_neuron_and_all_negative():
    assert mc.sentence_core(np.array([[2.0]]), 0.1, 1.0).tolist() == [0]
    assert mc.sentence_core(np.array([[2.0]]), 0.1, 0.5).tolist() == []  # floor(0.5 * 1) neurons
    assert mc.sentence_core(np.full((4, 6), -1.0), 1.0, 1.0).tolist() == []


@pytest.mark.parametrize(
    "alpha, beta, named",
    [
        (0, 0.4, "alpha"),
        (1.01, 0.4, "alpha"),
        (0.4, -1, "beta"),
        (0.4, math.nan, "beta"),
        ("x", 0.4, "alpha"),
    ],
)
def test_fractions_outside_their_range_are_refused(alpha, beta, named):
    with pytest.raises(mc.InputError, match=f"{named} is"):
        mc.sentence_core(np.ones((2, 3)), alpha, beta)


def test_nan_and_wrong_shapes_are_refused_by_name():
    a = np.ones((3, 4))
    a[1, 2] = np.nan
    with pytest.raises(mc.InputError, match="NaN, first in token 1"):
        mc.token_core(a, 0.5)
    with pytest.raises(mc.InputError, match=r"shape \(4,\)"):
        mc.token_core(np.ones(4), 0.5)
    with pytest.raises(mc.InputError, match="NaN, first at neuron 1"):
        core_from_scores(np.array([1.0, np.nan]), 0.5)


@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)))
def test_jaccard(a, b):
    expected = len(a & b) / len(a | b) if a | b else 1.0
    assert jaccard(np.array(sorted(a), int), np.array(sorted(b), int)) == expected


@given(st.dictionaries(st.integers(0, 5), st.sets(st.integers(0, 40))))
def test_a_core_set_comes_back_from_its_file(tmp_path_factory, neurons):
    path = tmp_path_factory.mktemp("core") / "a.safetensors"
    core = mc.CoreSet({i: np.array(sorted(ids), int) for i, ids in neurons.items()}, 41, 6, {"alpha": 0.4})
    core.save(path)
    again = mc.CoreSet.load(path)
    assert again == core and again.settings == core.settings and repr(again) == repr(core)
    kept = sum(len(ids) for ids in neurons.values())
    assert core.fraction == pytest.approx((kept + 41 * (6 - len(neurons))) / (41 * 6))


@pytest.mark.parametrize(
    "neurons, named",
    [
        ({6: [1]}, "layer 6"),
        ({0: [2, 1]}, "ascending"),
        ({0: [1, 1]}, "ascending"),
        ({0: [41]}, "within 0 to 40"),
        ({0: [-1]}, "within 0 to 40"),
    ],
)
def test_a_core_set_that_cannot_be_is_refused(neurons, named):
    with pytest.raises(mc.InputError, match=named):
        mc.CoreSet({i: np.array(ids) for i, ids in neurons.items()}, 41, 6)


def test_a_file_that_is_no_core_set_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(mc.InputError, match="does not exist"):
        mc.CoreSet.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(mc.InputError, match="is not a core set file"):
        mc.CoreSet.load(path)


def test_core_sets_of_different_models_do_not_compare():
    a, b = mc.CoreSet({0: np.array([1])}, 4, 2), mc.CoreSet({0: np.array([1])}, 5, 2)
    with pytest.raises(mc.InputError, match="different models"):
        a.jaccard(b)
    with pytest.raises(mc.InputError, match="without a common layer"):
        a.jaccard(mc.CoreSet({1: np.array([1])}, 4, 2))


def test_layers_are_python_slices():
    assert parse_layers("6:27", 30) == list(range(6, 27))
    assert parse_layers(":", 3) == parse_layers(None, 3) == [0, 1, 2]
    assert parse_layers("-2:", 5) == [3, 4]
    assert parse_layers("::2", 5) == [0, 2, 4]
    assert parse_layers("3", 5) == parse_layers([3], 5) == [3]
    assert parse_layers(range(1, 3), 5) == parse_layers(slice(1, 3), 5) == [1, 2]


@pytest.mark.parametrize("layers", ["6:31", "x", "", "1:2:3:4", "5:5", "::0", [5], [-1], [], slice(0, 9)])
def test_layers_out_of_range_are_refused(layers):
    with pytest.raises(mc.InputError, match="layer"):
        parse_layers(layers, 5)
