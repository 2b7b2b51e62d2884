"""The selection tier: the same activations give the same sums on every backend, to the element."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minicore.backends.cpu import statistics as select
from minicore.core import statistics as recording

shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)
tied = hnp.arrays(np.float32, shapes, elements=st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0, 2.0]))
smooth = hnp.arrays(np.float32, shapes, elements=st.floats(-3, 3, width=32))
extreme = hnp.arrays(np.float32, shapes, elements=st.floats(allow_nan=False, allow_infinity=False, width=32))


def both(a, alpha, name="counts"):
    statistic = recording.STATISTICS[name]
    start = np.arange(*statistic.shape(a.shape[1], alpha)).astype(statistic.dtype)
    return [add(start.copy(), a, alpha) for add in (statistic.add, select.ADDERS[name])]


def assert_same(expected, got, name):
    """Counts are the same; what is added up in float64 may be in another order."""
    tolerance = 1e-12 if expected.dtype == np.float64 else 0
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=0, err_msg=name)


@pytest.mark.parametrize("name", select.ADDERS)
@given(st.one_of(tied, smooth, extreme), st.floats(0.01, 1.0))
def test_compiled_sums_are_the_reference_s(name, a, alpha):
    expected, got = both(a, alpha, name)
    assert_same(expected, got, name)


@pytest.mark.parametrize("n_tokens, n_neurons", [(1, 1), (1, 16384), (300, 1536), (9, 33)])
def test_large_ones_too(n_tokens, n_neurons):
    rng = np.random.default_rng(n_neurons)
    for a in (rng.standard_normal((n_tokens, n_neurons)), rng.integers(-3, 4, (n_tokens, n_neurons))):
        for name, alpha in itertools.product(select.ADDERS, (0.01, 0.4, 1.0)):
            expected, got = both(a.astype(np.float32), alpha, name)
            assert_same(expected, got, name)


def test_the_smallest_and_the_largest_floats():
    tiny, huge = np.float32(1e-45), np.float32(3.4e38)
    a = np.array([[tiny, huge, -huge, 0, tiny, huge]], np.float32)
    for alpha in (0.1, 0.5, 0.75, 1.0):
        expected, got = both(a, alpha)
        np.testing.assert_array_equal(got, expected)
