"""GGUF files of every architecture, as llama.cpp's converter writes them: the same model, or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicore.checkpoint.families import GGUF_FAMILIES
from minicore.errors import InputError
from minicore.model import load
from tests.helpers import checkpoints as make
from tests.helpers.families import families, write
from tests.helpers.gguf_converter import convert
from tests.helpers.gguf_models import IDS, gguf_models

pytestmark = pytest.mark.numpy

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
SILU = {"hidden_act": "silu"}
# name -> a recorded family, and what changes
MORE = {
    "llama": ("llama-relu", SILU),
    "llama-linear": ("llama-relu", SILU | {"rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
    "llama-yarn-attention": ("llama-relu", SILU | {"rope_parameters": YARN | {"attention_factor": 1.3}}),
    "llama-yarn-beta": ("llama-relu", SILU | {"rope_parameters": YARN | {"beta_fast": 8.0}}),
    "qwen2": ("qwen2-window", {"use_sliding_window": False}),
    "qwen2-yarn": ("qwen2-window", {"use_sliding_window": False, "rope_parameters": YARN}),
    "phi3-window": ("phi3", {}),
    "gptneox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "gemma3-linear": (
        "gemma3_text",
        {
            "query_pre_attn_scalar": 16,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            },
        },
    ),
    "gemma3-capped": ("gemma3_text", {"query_pre_attn_scalar": 16, "final_logit_softcapping": 2.0}),
    "gpt2": ("gpt2-relu", {"activation_function": "gelu_new"}),
}


def models() -> dict[str, tuple[dict[str, Any], dict[str, list[int]]]]:
    """Return the config and the tensors' shapes of models that llama.cpp's converter keeps whole."""
    recorded = families()
    more = {
        name: (recorded[source].config | changes, recorded[source].shapes)
        for name, (source, changes) in MORE.items()
    }
    lossy = ("llama-longrope", "llama-yarn")  # no factors; an older yarn
    return {name: model for name, model in gguf_models().items() if name not in lossy} | more


@pytest.mark.parametrize("name", models())
def test_a_converted_model_is_the_same(tmp_path, name):
    """The Hugging Face directories are held to Transformers by test_families.py."""
    config, shapes = models()[name]
    folder = write(tmp_path / name, name, config, shapes)
    theirs, ours = load(folder), load(convert(folder, tmp_path / "model.gguf"))
    assert ours.config.family == theirs.config.family
    for parameter, expected in theirs.params.items():
        np.testing.assert_allclose(ours.params[parameter], expected, rtol=1e-6, atol=1e-7)
    expected = theirs.forward(IDS)
    np.testing.assert_allclose(ours.forward(IDS), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_every_architecture_is_converted(tmp_path):
    assert GGUF_FAMILIES.keys() == {name.split("-")[0] for name in models()}


# --- what metadata and tensors say ---


def tiny(
    folder: Path,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, Any] | None = None,
    architecture: str = "llama",
) -> Path:
    """Write a model of Llama's tensors; values of None are left out."""
    keys = make.GGUF_LLAMA | (metadata or {})
    held = make.random_gguf_tensors("llama", make.GGUF_LLAMA) | (tensors or {})
    given = [{name: value for name, value in values.items() if value is not None} for values in (keys, held)]
    return make.write_gguf(folder / "tiny.gguf", architecture, *given)


POST_NORMS = ("post_attention_norm", "post_ffw_norm")


def gemma3_norms() -> dict[str, np.ndarray]:
    """Return the tensors that a Gemma 3 has beyond Llama's."""
    sizes = dict.fromkeys(POST_NORMS, 32) | {"attn_q_norm": 8, "attn_k_norm": 8}
    return {
        f"blk.{i}.{name}.weight": np.ones(size, np.float32) for i in range(2) for name, size in sizes.items()
    }


def fused(held: dict[str, np.ndarray], kind: str) -> dict[str, Any]:
    """Return changes that put queries, keys and values into one tensor."""
    changes: dict[str, Any] = {}
    for i in range(2):
        names = [f"blk.{i}.attn_{part}.{kind}" for part in "qkv"]
        changes |= dict.fromkeys(names)
        changes[f"blk.{i}.attn_qkv.{kind}"] = np.concatenate([held[name] for name in names])
    return changes


@pytest.mark.parametrize("kinds", [("weight", "bias"), ("weight",)])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_queries_keys_and_values_may_be_one_tensor(tmp_path, architecture, kinds):
    """The converter's --fuse-qkv; older files have one matrix and three biases."""
    held = make.random_gguf_tensors("qwen2", make.GGUF_LLAMA)
    apart = load(tiny(tmp_path, {}, held, architecture))
    changes = {name: value for kind in kinds for name, value in fused(held, kind).items()}
    together = load(tiny(tmp_path, {}, held | changes, architecture))
    assert all(np.array_equal(together.params[name], value) for name, value in apart.params.items())


def test_a_scaling_factor_without_a_type_is_linear(tmp_path):
    assert load(tiny(tmp_path, {"rope.scaling.factor": 4.0})).config.rope_factors == (4.0,) * 4
    none = {"rope.scaling.factor": 4.0, "rope.scaling.type": "none"}
    assert load(tiny(tmp_path, none)).config.rope_factors is None


def test_divisors_in_tensors_multiply_those_of_the_scaling(tmp_path):
    """As in llama.cpp, which divides the frequencies first and scales them then."""
    freqs = np.array([1, 1.5, 4, 8], np.float32)
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
    assert load(tiny(tmp_path, linear, {"rope_freqs.weight": freqs})).config.rope_factors == (2, 3, 8, 16)
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    alone = load(tiny(tmp_path, yarn)).config
    both = load(tiny(tmp_path, yarn, {"rope_freqs.weight": freqs})).config
    assert alone.rope_factors and both.rope_scale == alone.rope_scale > 1
    np.testing.assert_allclose(both.rope_factors, freqs * alone.rope_factors)


def test_longrope_needs_both_tensors(tmp_path):
    """The converter forgets those of Llama: such a file is not computed as if it had no scaling."""
    factors = {
        "rope_factors_short.weight": np.array([1, 1.5, 2, 3], np.float32),
        "rope_factors_long.weight": np.array([2, 3, 5, 7], np.float32),
    }
    metadata = {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": 16}
    config = load(tiny(tmp_path, metadata, factors)).config
    assert config.rope_factors == (1, 1.5, 2, 3) and config.rope_long_factors == (2, 3, 5, 7)
    assert (config.rope_long_after, config.rope_scale) == (16, 1)
    for absent in (["rope_factors_short.weight"], ["rope_factors_long.weight"], list(factors)):
        with pytest.raises(InputError, match=f"tensor {absent[0]} is missing"):
            load(tiny(tmp_path, metadata, factors | dict.fromkeys(absent)))


def test_gemma3_has_windows_only_where_a_file_says_so(tmp_path):
    norms = gemma3_norms()
    assert load(tiny(tmp_path, {}, norms, "gemma3")).config.windows == ()
    assert load(tiny(tmp_path, {"attention.sliding_window": 0}, norms, "gemma3")).config.windows == ()
    window = {"attention.sliding_window": 5}
    assert load(tiny(tmp_path, window, norms, "gemma3")).config.windows == (5, 5)
    for pattern, windows in ((2, (5, 0)), (1, (0, 0)), ([False, True], (0, 5))):
        said = window | {"attention.sliding_window_pattern": pattern}
        assert load(tiny(tmp_path, said, norms, "gemma3")).config.windows == windows
    for pattern in ([True], [2, 0], "all"):
        said = window | {"attention.sliding_window_pattern": pattern}
        with pytest.raises(InputError, match=r"sliding_window_pattern is .*, expected a period"):
            load(tiny(tmp_path, said, norms, "gemma3"))


def olmo2_tensors() -> dict[str, Any]:
    """Return what an OLMo 2 has beyond Llama's tensors, and what it lacks."""
    sizes = dict.fromkeys(POST_NORMS, 32) | {"attn_q_norm": 32, "attn_k_norm": 16}
    changes: dict[str, Any] = {}
    for i in range(2):
        changes |= {f"blk.{i}.{name}.weight": np.ones(size, np.float32) for name, size in sizes.items()}
        changes |= dict.fromkeys((f"blk.{i}.attn_norm.weight", f"blk.{i}.ffn_norm.weight"))
    return changes


def test_olmo3_is_olmo2_with_windows(tmp_path):
    held = olmo2_tensors()
    assert load(tiny(tmp_path, {}, held, "olmo2")).config.windows == ()
    scaled = {"attention.sliding_window": 5, "rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
    pattern = {"attention.sliding_window_pattern": [True, False]}
    config = load(tiny(tmp_path, scaled | pattern, held, "olmo2")).config
    assert config.windows == (5, 0) and config.rope_factors == (2.0,) * 4
    assert config.rope_local_theta == config.rope_theta == 50000  # without factors
    with pytest.raises(InputError, match=r"rope\.scaling\.type is 'yarn', which is not supported"):
        load(tiny(tmp_path, scaled | {"rope.scaling.type": "yarn"}, held, "olmo2"))


def test_a_window_that_hides_nothing_is_none(tmp_path):
    assert load(tiny(tmp_path, {"attention.sliding_window": 64})).config.windows == ()
    tensors = {f"blk.{i}.{name}.weight": np.ones(32, np.float32) for i in range(2) for name in POST_NORMS}
    for window, windows in ((64, ()), (63, (63, 0))):
        wide = {"attention.sliding_window": window}
        assert load(tiny(tmp_path, wide, tensors, "gemma2")).config.windows == windows
    with pytest.raises(InputError, match="attention.sliding_window is 63, which is not supported"):
        load(tiny(tmp_path, {"attention.sliding_window": 63}))


SETTINGS = {
    "attention.causal": False,
    "attention.scale": 0.3,
    "attention.clamp_kqv": 8.0,
    "attention.max_alibi_bias": 8.0,
    "attention.temperature_length": 8192,
    "attention.key_length_swa": 4,
    "attn_logit_softcapping": 20.0,
    "final_logit_softcapping": 20.0,
    "embedding_scale": 12.0,
    "residual_scale": 0.2,
    "logit_scale": 8.0,
    "hidden_activation": "gelu",
    "rope.dimension_sections": [2, 1, 1, 0],
    "rope.scaling.alpha": 2.0,
    "rope.scaling.yarn_ext_factor": 0.5,
    "rope.scaling.yarn_log_multiplier": 0.1,
}
TINY_YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}


@pytest.mark.parametrize("key", SETTINGS)
def test_a_setting_that_is_not_implemented_is_refused_by_name(tmp_path, key):
    more = TINY_YARN if "yarn" in key else {}
    with pytest.raises(InputError, match=rf"tiny\.gguf: llama\.{key} is .*, which is not supported"):
        load(tiny(tmp_path, more | {key: SETTINGS[key]}))


def test_windows_with_another_rotation_are_refused(tmp_path):
    tensors = {f"blk.{i}.{name}.weight": np.ones(32, np.float32) for i in range(2) for name in POST_NORMS}
    for key, value in {"freq_base_swa": 20000.0, "dimension_count_swa": 4}.items():
        with pytest.raises(InputError, match=rf"gemma2\.rope\.{key} is {value}, which is not supported"):
            load(tiny(tmp_path, {f"rope.{key}": value, "attention.sliding_window": 5}, tensors, "gemma2"))


# What llama.cpp writes for every architecture when it saves a model (llama_model_save_to_file).
SAVED = {
    "vocab_size": 37, "leading_dense_block_count": 0, "expert_count": 0, "expert_used_count": 0,
    "logit_scale": 0.0, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    "residual_scale": 0.0, "embedding_scale": 0.0, "use_parallel_residual": False,
    "attention.max_alibi_bias": 0.0, "attention.clamp_kqv": 0.0, "attention.key_length": 8,
    "attention.value_length": 8, "attention.layer_norm_epsilon": 0.0, "attention.causal": True,
    "attention.rope_pattern": 1, "attention.sliding_window": 0, "attention.scale": 0.0,
    "attention.output_scale": 0.0, "attention.value_scale": 0.0, "attention.temperature_length": 0,
    "attention.temperature_scale": 0.0, "attention.key_length_swa": 8, "attention.value_length_swa": 8,
    "rope.dimension_count": 8, "rope.dimension_count_swa": 8, "rope.dimension_sections": [0, 0, 0, 0],
    "rope.freq_base_swa": 10000.0, "rope.scaling.type": "linear", "rope.scaling.factor": 0.0,
    "rope.scaling.attn_factor": 1.0, "rope.scaling.original_context_length": 64,
    "rope.scaling.finetuned": False, "rope.scaling.yarn_log_multiplier": 0.0,
    "rope.scaling.yarn_ext_factor": -1.0, "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("scaling", [{}, TINY_YARN, {"rope.scaling.factor": 2.0}])
def test_a_file_that_llama_cpp_saved_is_the_same_model(tmp_path, scaling):
    plain = load(tiny(tmp_path, scaling)).config
    assert load(tiny(tmp_path, SAVED | scaling)).config == plain


def test_values_that_change_nothing_are_accepted(tmp_path):
    neutral = {"num_loops": 1, "logit_scale": 1.0, "attn_logit_softcapping": 0.0, "embedding_scale": 1.0}
    assert load(tiny(tmp_path, neutral)).config == load(tiny(tmp_path)).config


def test_architectures_with_a_reason_to_be_refused(tmp_path):
    with pytest.raises(InputError, match="the architecture bitnet is not supported: its norm over all FFN"):
        load(tiny(tmp_path, architecture="bitnet"))


def test_what_a_file_leaves_open_is_not_guessed(tmp_path):
    biases = {f"blk.{i}.attn_{part}.bias": np.ones(8, np.float32) for i in range(2) for part in "qkv"}
    with pytest.raises(InputError, match=r"blk\.0\.attn_q\.bias is not supported for minicpm"):
        load(tiny(tmp_path, {}, biases, "minicpm"))
    with pytest.raises(InputError, match=r"falcon\.tensor_data_layout is 'other'"):
        layer_norm = {"tensor_data_layout": "other", "attention.layer_norm_epsilon": 1e-5}
        load(tiny(tmp_path, layer_norm, {}, "falcon"))


def test_minicpm_without_scales_has_those_of_the_first_models(tmp_path):
    config = load(tiny(tmp_path, architecture="minicpm")).config
    assert config.embed_scale == 12 and config.logit_scale == 256 / 32
    assert config.residual_scale == pytest.approx(1.4 / np.sqrt(2))
