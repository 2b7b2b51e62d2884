"""Rotary positions of GGUF metadata against ggml's arithmetic: rope_yarn of ggml-cpu, llama-context.cpp."""

from math import ceil, floor, log, pi
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from minicore import ops
from minicore.checkpoint.gguf_rope import read_rope
from minicore.checkpoint.settings import Settings
from minicore.checkpoint.tensors import Tensor
from minicore.config import ModelConfig

D_HEAD, N_CTX = 64, 4096
KEY = "rope.scaling."
FACTOR = {KEY + "factor": st.sampled_from([1.0, 2.0, 7.5, 40.0])}
OPTIONAL = {KEY + "attn_factor": st.sampled_from([0.5, 1.25])}
YARN = {
    KEY + "original_context_length": st.sampled_from([64, 1024]),
    KEY + "yarn_beta_fast": st.sampled_from([8.0, 24.0]),
    KEY + "yarn_beta_slow": st.sampled_from([0.5, 3.0]),
}


def files():
    """Return a strategy of metadata of rotary positions."""
    shape = {
        "rope.dimension_count": st.sampled_from([16, 32, 64]),
        "rope.freq_base": st.floats(1e3, 1e6, width=32),
    }
    typed = shape | {KEY + "type": st.sampled_from(["none", "linear"])}
    yarn = shape | {KEY + "type": st.just("yarn")} | FACTOR
    return st.one_of(
        st.fixed_dictionaries(shape, optional=FACTOR | OPTIONAL),
        st.fixed_dictionaries(typed, optional=FACTOR | OPTIONAL),
        st.fixed_dictionaries(yarn, optional=YARN | OPTIONAL),
    )


def ggml_rotation(file, freqs):
    """Return the angle of each pair per position, and what cosines and sines are multiplied by."""
    n, base = file["rope.dimension_count"], file["rope.freq_base"]
    kind = file.get(KEY + "type", "linear")
    freq_scale = 1.0 if kind == "none" else 1 / file.get(KEY + "factor", 1.0)
    ext_factor = 1.0 if kind == "yarn" else 0.0
    mscale = file.get(KEY + "attn_factor", 1.0)
    if ext_factor:
        mscale *= (0.1 * log(1 / freq_scale) + 1) if freq_scale < 1 else 1.0
    original = file.get(KEY + "original_context_length", N_CTX)

    def corr_dim(turns):
        return n * log(original / (turns * 2 * pi)) / (2 * log(base))

    low = max(0, floor(corr_dim(file.get(KEY + "yarn_beta_fast", 32.0))))
    high = min(n - 1, ceil(corr_dim(file.get(KEY + "yarn_beta_slow", 1.0))))
    angles = []
    for i in range(n // 2):
        extrapolated = base ** (-2 * i / n) / (1.0 if freqs is None else float(freqs[i]))
        ramp = 1 - min(1, max(0, (i - low) / max(0.001, high - low)))
        mix = ramp * ext_factor
        angles.append(freq_scale * extrapolated * (1 - mix) + extrapolated * mix)
    return angles, mscale


@settings(deadline=None)
@given(files(), st.booleans())
def test_frequencies_are_those_of_ggml(metadata, has_freqs):
    n_pairs = metadata["rope.dimension_count"] // 2
    freqs = np.linspace(1, 8, n_pairs, dtype=np.float32) if has_freqs else None
    tensors = {}
    if has_freqs:
        tensors["rope_freqs.weight"] = Tensor(
            name="rope_freqs.weight", file=Path("a.gguf"), shape=(n_pairs,), kind="F32",
            rows=lambda start, stop: freqs[start:stop], release=lambda start, stop: None,
        )  # fmt: skip
    fields = read_rope(Settings(metadata, Path("a.gguf")), tensors, D_HEAD, N_CTX)
    shape = (1, 128, 2, 2, D_HEAD, 8, 16, N_CTX)
    cfg = ModelConfig("llama", *shape, "rmsnorm", 1e-5, "silu", True, "rope", **fields)
    angles, mscale = ggml_rotation(metadata, freqs)
    assert cfg.n_rotated == 2 * n_pairs
    np.testing.assert_allclose(ops.rope_frequencies(cfg), angles, rtol=1e-6)
    np.testing.assert_allclose(cfg.rope_scale, mscale, rtol=1e-6)
