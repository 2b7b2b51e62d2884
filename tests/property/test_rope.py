"""Rotary positions mean the same however a config spells them, and what Transformers' precedence says."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicore import ops
from minicore.checkpoint.hf_rope import read_rope
from minicore.checkpoint.settings import Settings
from minicore.config import ModelConfig

D_HEAD, N_CTX = 16, 256
POSITIVE = st.floats(1.0, 64.0)
SHARES = st.sampled_from([0.25, 0.5, 1.0])


@st.composite
def scalings(draw):
    """Return a kind of scaling with its values, and how many dimensions are rotated."""
    kind = draw(st.sampled_from(["default", "linear", "dynamic", "yarn", "llama3", "longrope"]))
    share = draw(SHARES)
    n_pairs = int(D_HEAD * share) // 2
    values = {"rope_type": kind}
    if kind != "default":
        values["factor"] = draw(POSITIVE)
    if kind in ("yarn", "llama3", "longrope"):
        values["original_max_position_embeddings"] = draw(st.sampled_from([32, 64, 256]))
    if kind == "llama3":
        values |= {"low_freq_factor": 1.0, "high_freq_factor": draw(st.floats(1.5, 8.0))}
    if kind == "longrope":
        factors = st.lists(POSITIVE, min_size=n_pairs, max_size=n_pairs)
        values |= {"short_factor": draw(factors), "long_factor": draw(factors)}
    return values, share


def read(values):
    return read_rope(Settings(values, Path("config.json")), D_HEAD, N_CTX)


@settings(deadline=None)
@given(scalings(), st.floats(100.0, 1e6))
def test_spellings_mean_the_same(scaling, theta):
    values, share = scaling
    new = {"rope_parameters": {**values, "rope_theta": theta, "partial_rotary_factor": share}}
    top = {"rope_theta": theta, "partial_rotary_factor": share}
    kind = {key: value for key, value in values.items() if key != "rope_type"} | {"type": values["rope_type"]}
    spellings = [
        new,
        {"rope_parameters": values, **top},
        {"rope_scaling": values, **top},
        {"rope_scaling": kind, **top},  # as files before 4.43 have it
        {
            "rope_scaling": new["rope_parameters"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1.0},
        },
    ]
    if values["rope_type"] == "default":
        spellings.append({"rope_scaling": None, **top})
    first, *others = map(read, spellings)
    assert all(other == first for other in others)
    assert first["rope_theta"] == theta and first.get("d_rope", D_HEAD) == int(D_HEAD * share)


@settings(deadline=None)
@given(scalings(), st.floats(100.0, 1e6), st.integers(0, 1000))
def test_rotations_keep_lengths_and_depend_on_distances(scaling, theta, position):
    """The dot product of a query and a key depends on how far apart they are, whatever the scaling."""
    values, share = scaling
    fields = read({"rope_parameters": {**values, "rope_theta": theta, "partial_rotary_factor": share}})
    cfg = ModelConfig(
        "llama", 1, 32, 2, 2, D_HEAD, 8, 16, N_CTX, "rmsnorm", 1e-5, "silu", True, "rope", **fields
    )
    rng = np.random.default_rng(position)
    q, k = rng.standard_normal((2, 1, 1, D_HEAD)).astype(np.float32)
    for long in (False, True):
        frequencies = ops.rope_frequencies(cfg, 0, long)
        assert (frequencies > 0).all() and frequencies[0] <= 1

        def rotated(x, at, frequencies=frequencies):
            return ops.rope(x, np.array([at]), frequencies, cfg.rope_scale)[0, 0].astype(np.float64)

        near = rotated(q, 7) @ rotated(k, 4)
        far = rotated(q, position + 3) @ rotated(k, position)
        assert far == pytest.approx(near, abs=2e-3 * cfg.rope_scale**2)
        rotated_part = np.linalg.norm(rotated(q, position)[: cfg.n_rotated])
        assert rotated_part == pytest.approx(
            cfg.rope_scale * np.linalg.norm(q[0, 0, : cfg.n_rotated]), rel=1e-4
        )
        np.testing.assert_array_equal(rotated(q, position)[cfg.n_rotated :], q[0, 0, cfg.n_rotated :])
