"""The CPU's kernels compute what NumPy computes, whatever options of families a config combines."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from minicore.backends import make_backend
from minicore.config import ACTIVATIONS, BLOCKS, QK_NORMS, ModelConfig
from minicore.core.neurons import CoreSet
from minicore.model import Model, split_blocks

D_HEAD, N_VOCAB, N_CTX = 8, 40, 32
FLAGS = ("qkv_bias", "attn_out_bias", "mlp_bias", "head_bias", "tied_head", "gated")
SCALES = st.sampled_from([1.0, 0.5, 3.0])
CAPS = st.sampled_from([0.0, 2.0])


@st.composite
def configs(draw):
    """Return a config with any combination of options that the kernels have."""
    n_layers, n_kv_heads = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2]))
    block = draw(st.sampled_from(BLOCKS))
    after = block in ("sandwich", "output_norm")  # these families have RMSNorm
    layers = st.sampled_from([0, 3])
    fields = {flag: draw(st.booleans()) for flag in FLAGS} | {
        "norm": "rmsnorm" if after else draw(st.sampled_from(["rmsnorm", "layernorm"])),
        "block": block,
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "activation_threshold": 0.1,
        "positions": draw(st.sampled_from(["rope", "learned", "alibi"])),
        "qk_norm": draw(st.sampled_from(QK_NORMS)),
        "windows": draw(st.sampled_from([(), tuple(draw(layers) for _ in range(n_layers))])),
        "final_norm": draw(st.booleans()),
        "score_scale": draw(st.sampled_from([None, 0.2])),
        "score_softcap": draw(CAPS),
        "logit_softcap": draw(CAPS),
        "embed_scale": draw(SCALES),
        "residual_scale": draw(SCALES),
        "logit_scale": draw(SCALES),
    }
    if fields["gated"]:
        fields["up_activation"] = draw(st.sampled_from(["identity", "relu"]))
    if fields["positions"] == "rope":
        d_rope = draw(st.sampled_from([4, 8]))
        fields |= {
            "d_rope": d_rope,
            "rope_scale": draw(st.sampled_from([1.0, 1.2])),
            "rope_local_theta": draw(st.sampled_from([None, 50.0])),
            "nope_layers": draw(st.sampled_from([(), (0,)])),
            "rope_long_factors": draw(st.sampled_from([None, (3.0,) * (d_rope // 2)])),
            "rope_long_after": draw(st.sampled_from([0, 100])),
        }
    return ModelConfig(
        family="llama", n_layers=n_layers, d_model=16, n_heads=2 * n_kv_heads, n_kv_heads=n_kv_heads,
        d_head=D_HEAD, n_neurons=24, n_vocab=N_VOCAB, n_ctx=N_CTX, norm_eps=1e-5, **fields,
    )  # fmt: skip


def model_of(config, seed):
    rng, params = np.random.default_rng(seed), {}
    for name, shape in config.shapes().items():
        noise = rng.standard_normal(shape).astype(np.float32)
        params[name] = noise / np.float32(np.sqrt(shape[-1])) if len(shape) > 1 else 0.5 + 0.3 * noise
    return Model(config=config, params=params, blocks=split_blocks(params, config.n_layers))


def decoded(model, backend, ids, selection):
    cache, made = model.new_cache(len(ids)), make_backend(model, backend)
    rows = [made.prefill(ids[:6], cache)]
    decoder = made.decoder(cache, selection)
    return np.stack(rows + [decoder.step(int(i)) for i in ids[6:]])


@settings(deadline=None, max_examples=60)
@given(configs(), st.integers(0, 1000))
def test_the_cpu_computes_what_numpy_computes(config, seed):
    model, rng = model_of(config, seed), np.random.default_rng(seed)
    ids = rng.integers(0, N_VOCAB, 12)
    core = {i: np.sort(rng.choice(24, 9, replace=False)) for i in range(config.n_layers)}
    for selection in (None, CoreSet(core, 24, config.n_layers)):
        theirs, ours = (decoded(model, backend, ids, selection) for backend in ("numpy", "cpu"))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4 * max(np.abs(theirs).max(), 1))
    full = model.forward(ids)[5:]
    np.testing.assert_allclose(
        decoded(model, "numpy", ids, None), full, rtol=0, atol=1e-4 * np.abs(full).max()
    )
