"""Checkpoints that are wrong: each is refused in one sentence that names the thing and what was expected."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from minicore.checkpoint import read
from minicore.errors import InputError
from tests.helpers import checkpoints as make

pytestmark = pytest.mark.numpy


def refused(path: object, *fragments: str) -> None:
    """Assert that reading fails with one sentence that has all the fragments."""
    with pytest.raises(InputError) as caught:
        read(path)
    told = str(caught.value)
    assert "\n" not in told and "expected" in told
    for fragment in fragments:
        assert fragment in told, told


# --- paths ----------------------------------------------------------------------------------------------


def test_missing_path(tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "does not exist")
    refused(str(tmp_path / "nowhere"), "nowhere", "does not exist")
    refused("./nowhere.gguf", "nowhere.gguf", "does not exist")


@pytest.mark.parametrize("empty", ["", "  "])
def test_empty_path(empty):
    refused(empty, "empty")


def test_directory_without_config(tmp_path):
    refused(tmp_path, str(tmp_path), "config.json")


def test_directory_without_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(make.LLAMA))
    refused(tmp_path, str(tmp_path), "model.safetensors", "neither")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickles_are_not_opened(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(make.LLAMA))
    (tmp_path / name).write_bytes(b"\x80\x04K\x01.")
    refused(tmp_path, name, "safetensors")
    refused(tmp_path / name, name, "safetensors")


def test_one_safetensors_file_is_not_a_model(tmp_path):
    make.write_directory(tmp_path, make.LLAMA, make.random_tensors(make.LLAMA))
    refused(tmp_path / "model.safetensors", "directory")


# --- config.json ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["{", "[]", "", "\x00"])
def test_config_that_is_not_an_object(tmp_path, text):
    make.write_directory(tmp_path, make.LLAMA, make.random_tensors(make.LLAMA))
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path, "config.json", "JSON object")


LLAMA_CASES = {
    "unknown family": ({"model_type": "lama"}, "'lama'", "llama"),
    "no family": ({"model_type": None}, "model_type", "llama"),
    "missing key": ({"hidden_size": None}, "hidden_size", "missing"),
    "text for a number": ({"hidden_size": "24"}, "hidden_size", "'24'"),
    "absurd": ({"num_hidden_layers": 10**12}, "1000000000000 layers"),
    "negative": ({"num_hidden_layers": -1}, "num_hidden_layers", "-1"),
    "true for a number": ({"num_hidden_layers": True}, "num_hidden_layers", "True"),
    "text for a flag": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings", "'yes'"),
    "heads that do not divide": ({"num_key_value_heads": 3}, "n_kv_heads 3"),
    "odd heads": ({"head_dim": 7}, "d_head", "7"),
    "width that heads do not divide": ({"head_dim": None, "num_attention_heads": 5}, "head_dim"),
    "activation": ({"hidden_act": "laplace"}, "hidden_act", "'laplace'", "silu"),
    "fatrelu without threshold": ({"hidden_act": "fatrelu"}, "hidden_act_param", "missing"),
    "refused family": ({"model_type": "bitnet"}, "bitnet", "ffn_sub_norm"),
    "falcon's family": ({"model_type": None, "architectures": ["FalconForCausalLM"]}, "model_type"),
    "activation list": ({"hidden_act": ["silu"]}, "hidden_act"),
    "quantised": ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config", "gptq"),
    "bidirectional": ({"is_causal": False}, "is_causal is False", "expected True"),
    "eos": ({"eos_token_id": "x"}, "eos_token_id", "'x'"),
    "layer types": ({"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
    "too few layer types": ({"layer_types": ["full_attention"]}, "layer_types", "2"),
    "llama's layers do not slide": ({"layer_types": ["sliding_attention"] * 2}, "sliding_attention"),
    "window without a width": (
        {"model_type": "smollm3", "layer_types": ["sliding_attention"] * 2},
        "sliding_window",
        "missing",
    ),
    "mistral's window": ({"model_type": "mistral", "sliding_window": "32"}, "sliding_window", "'32'"),
    "unknown rope": ({"rope_parameters": {"rope_type": "proportional"}}, "'proportional'", "llama3"),
    "multimodal rope": ({"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 1]}}, "rope"),
    "yarn": ({"rope_parameters": {"rope_type": "yarn", "factor": "4"}}, "factor", "'4'"),
    "old yarn": ({"rope_parameters": None, "rope_scaling": {"type": "yarn", "factor": -4.0}}, "factor"),
    "longrope": ({"rope_parameters": {"rope_type": "longrope"}}, "short_factor", "None"),
    "partial rope": ({"partial_rotary_factor": 0.2}, "rotated", "even"),
    "rope by layer": ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope"),
    "rope that is text": ({"rope_parameters": "llama3"}, "rope", "llama3"),
    "linear without factor": ({"rope_parameters": {"rope_type": "linear"}}, "factor", "missing"),
    "llama3 without a key": ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
    "llama3 the wrong way": (
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 2.0,
                "low_freq_factor": 4.0,
                "high_freq_factor": 1.0,
                "original_max_position_embeddings": 64,
            }
        },
        "low_freq_factor",
    ),
}
OPT_CASES = {
    "post-norm": ({"do_layer_norm_before": "no"}, "do_layer_norm_before", "'no'"),
    "projection": ({"word_embed_proj_dim": 12}, "embed_tokens.weight", "12"),
    "no final norm": ({"_remove_final_layer_norm": True}, "final_layer_norm"),
    "norm without weights": ({"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
    "activation": ({"activation_function": "laplace"}, "activation_function", "relu"),
}
GPT2_CASES = {
    "unscaled": ({"scale_attn_weights": False}, "scale_attn_weights"),
    "scaled by layer": ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    "upcast": ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
    "cross": ({"add_cross_attention": True}, "add_cross_attention"),
    "activation": ({"activation_function": "laplace"}, "activation_function", "gelu_new"),
}
CASES = [
    pytest.param(base, *case, id=f"{base['model_type']}: {what}")
    for base, cases in ((make.LLAMA, LLAMA_CASES), (make.OPT, OPT_CASES), (make.GPT2, GPT2_CASES))
    for what, (*case,) in ((what, (changes, told)) for what, (changes, *told) in cases.items())
]


@pytest.mark.parametrize(("base", "changes", "told"), CASES)
def test_configs_that_are_not_supported(tmp_path, base, changes, told):
    make.write_directory(tmp_path, base, make.random_tensors(base))
    (tmp_path / "config.json").write_text(json.dumps(base | changes))
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert all(fragment in str(caught.value) for fragment in told), str(caught.value)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("advice", "told"),
    [
        ({"predictor": 3}, "minicore.predictor"),
        ({"alpha": 0}, "minicore.alpha"),
        ({"beta": 1.5}, "minicore.beta"),
        ({"beta": float("nan")}, "minicore.beta"),
        ({"layers": [1, 2]}, "minicore.layers"),
        ({"gamma": 0.1}, "'gamma'"),
        ("stability", "'stability'"),
    ],
)
def test_bad_advice(tmp_path, advice, told):
    make.write_directory(tmp_path, make.LLAMA, make.random_tensors(make.LLAMA))
    (tmp_path / "generation_config.json").write_text(json.dumps({"minicore": advice}))
    with pytest.raises(InputError, match="generation_config.json") as caught:
        read(tmp_path)
    assert told in str(caught.value)


# --- safetensors ----------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path) -> Path:
    return make.write_directory(tmp_path, make.LLAMA, make.random_tensors(make.LLAMA))


def rewritten(directory: Path, change) -> Path:
    """Write the weights again after ``change`` has had its way with them."""
    held = make.random_tensors(make.LLAMA)
    change(held)
    return make.write_directory(directory, make.LLAMA, held)


@pytest.mark.parametrize("cut", [0, 3, 8, 100, -1, -5000])
def test_truncated_safetensors(model, cut):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    refused(model, "model.safetensors", "file")


def test_header_length_beyond_the_file(model):
    (model / "model.safetensors").write_bytes(make.safetensors_bytes({}, length=1 << 40))
    refused(model, "model.safetensors", str(1 << 40), "header")


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS = {
    "not JSON": (b"{]", b"", "header"),
    "too deep": (b"[" * 100_000, b"", "header"),
    "not text": (b"\xff\xfe\xfd", b"", "header"),
    "not an object": ([1], b"", "header"),
    "entry is no object": ({"x": 3}, b"", "x"),
    "no dtype": ({"x": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8), "x"),
    "negative shape": ({"x": F32 | {"shape": [-2]}}, bytes(8), "x"),
    "shape is text": ({"x": F32 | {"shape": "2"}}, bytes(8), "x"),
    "offsets backwards": ({"x": F32 | {"data_offsets": [8, 0]}}, bytes(8), "x"),
    "bytes and shape differ": ({"x": F32 | {"shape": [3]}}, bytes(8), "x", "12"),
    "unknown dtype": ({"x": F32 | {"dtype": "F31"}}, bytes(8), "x", "F31", "BF16"),
    "dtype is a list": ({"x": F32 | {"dtype": ["F32"]}}, bytes(8), "x"),
    "beyond the file": ({"x": F32}, bytes(4), "x", "truncated"),
    "overlap": ({"x": F32, "y": F32 | {"data_offsets": [4, 12]}}, bytes(12), "y", "8"),
    "hole": ({"x": F32, "y": F32 | {"data_offsets": [12, 20]}}, bytes(20), "y", "8"),
    "bytes left over": ({"x": F32}, bytes(9), "9", "8"),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_broken_headers(model, header):
    text, data, *told = header
    (model / "model.safetensors").write_bytes(make.safetensors_bytes(text, data))
    refused(model, "model.safetensors", *told)


def test_missing_tensor(model):
    name = "model.layers.1.mlp.up_proj.weight"
    refused(rewritten(model, lambda held: held.pop(name)), str(model), name, "missing", "(40, 24)")


def test_extra_tensor(model):
    name = "model.layers.1.self_attn.q_norm.weight"
    refused(rewritten(model, lambda held: held.update({name: np.zeros(8, np.float32)})), name, "llama")


def test_layers_beyond_the_config(model):
    (model / "config.json").write_text(json.dumps(make.LLAMA | {"num_hidden_layers": 1}))
    refused(model, "model.layers.1.", "absent")


def test_wrong_shape(model):
    name = "model.layers.0.self_attn.k_proj.weight"
    change = {name: np.zeros((32, 24), np.float32)}
    refused(rewritten(model, lambda held: held.update(change)), name, "(32, 24)", "(16, 24)")


@pytest.mark.parametrize("dtype", [np.int8, np.int32])
def test_wrong_dtype(model, dtype):
    name = "model.layers.0.self_attn.k_proj.weight"
    change = {name: np.zeros((16, 24), dtype)}
    refused(rewritten(model, lambda held: held.update(change)), name, "F32, F16, BF16")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.layers.0.mlp.down_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_no_numbers(tmp_path, value, name, kind, dtype):
    held = make.random_tensors(make.LLAMA, kind)
    held[name].reshape(-1)[-1] = value
    make.write_directory(tmp_path, make.LLAMA, held)
    with pytest.raises(InputError, match="NaN or infinity") as caught:
        read(tmp_path, dtype=dtype)
    assert name in str(caught.value)


def test_values_too_large_for_bfloat16(model):
    name = "model.embed_tokens.weight"
    rewritten(model, lambda held: held[name].fill(np.finfo(np.float32).max))
    assert read(model).params["embed"][0, 0] == np.finfo(np.float32).max
    with pytest.raises(InputError, match="bfloat16"):
        read(model, dtype="bfloat16")


# --- shards ---------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path) -> Path:
    return make.write_directory(tmp_path, make.LLAMA, make.random_tensors(make.LLAMA), shards=2)


def edited_index(directory: Path, change) -> Path:
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    return directory


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_missing_shard(sharded):
    (sharded / SECOND).unlink()
    refused(sharded, SECOND, "missing")


def test_shards_that_disagree_with_the_index(sharded):
    embed = "model.embed_tokens.weight"  # lies in the first
    refused(edited_index(sharded, lambda m: m.update({embed: SECOND})), embed, FIRST, SECOND)
    refused(edited_index(sharded, lambda m: m.pop(embed)), embed, FIRST, "none")
    refused(edited_index(sharded, lambda m: m.update({embed: FIRST, "x": FIRST})), "x", FIRST, "missing")


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", ""])
def test_shards_elsewhere(sharded, shard):
    refused(edited_index(sharded, lambda m: m.update(x=shard)), "index.json", repr(shard))


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": 3}'])
def test_broken_index(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    refused(sharded, "index.json", "weight_map")


# --- GGUF -----------------------------------------------------------------------------------------------


def write(tmp_path: Path, change=None, metadata=make.GGUF_LLAMA, architecture="llama", **options) -> Path:
    held = make.random_gguf_tensors(architecture, make.GGUF_LLAMA)
    if change:
        change(held)
    return make.write_gguf(tmp_path / "m.gguf", architecture, metadata, held, **options)


@pytest.mark.parametrize("content", [b"", b"G", b"GGML1234", b"PK\x03\x04" + bytes(100)])
def test_files_that_are_not_gguf(tmp_path, content):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    refused(path, "m.gguf")


@pytest.mark.parametrize("version", [1, 4, 3 << 24])
def test_gguf_versions(tmp_path, version):
    path = write(tmp_path)
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", version)
    path.write_bytes(data)
    refused(path, "m.gguf", str(version), "2 or 3")


@pytest.mark.parametrize("share", [0.0003, 0.001, 0.01, 0.03, 0.5, 0.999])
def test_truncated_gguf(tmp_path, share):
    path = write(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(path, "m.gguf", "truncated")


def test_every_cut_of_a_gguf_header_is_refused(tmp_path):
    path = write(tmp_path, more={"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.scores": [1.0, 2.0]})
    data = path.read_bytes()
    for size in range(0, 4000, 37):
        path.write_bytes(data[:size])
        refused(path, "m.gguf")


@pytest.mark.parametrize("place", [8, 16, 24])  # tensors, metadata, length of the first key
def test_absurd_counts(tmp_path, place):
    path = write(tmp_path)
    data = bytearray(path.read_bytes())
    data[place : place + 8] = struct.pack("<Q", 1 << 60)
    path.write_bytes(data)
    refused(path, "m.gguf")


def test_arrays_in_arrays(tmp_path):
    path = write(tmp_path, more={"tokenizer.ggml.tokens": ["a", "b"]})
    data = path.read_bytes()
    at = data.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 4
    path.write_bytes(data[:at] + struct.pack("<I", 9) + data[at + 4 :])
    refused(path, "array", "9")


def test_unknown_architecture(tmp_path):
    metadata = dict.fromkeys(make.GGUF_LLAMA, 1)
    path = make.write_gguf(
        tmp_path / "m.gguf", "mamba", metadata, make.random_gguf_tensors("llama", make.GGUF_LLAMA)
    )
    refused(path, "general.architecture", "'mamba'", "llama, qwen2, ", " or gpt2")


def test_unknown_quantization(tmp_path):
    path = write(tmp_path, kind="Q8_0")
    data = path.read_bytes()
    name = b"token_embd.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8  # number of axes, then two of them
    assert data[at : at + 4] == struct.pack("<I", 8)
    path.write_bytes(data[:at] + struct.pack("<I", 99) + data[at + 4 :])
    refused(path, "token_embd.weight", "99", "unknown type")


def test_quantization_that_cannot_be_undone(tmp_path):
    blocks = np.zeros((37, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_1][1]), np.uint8)
    only = {"token_embd.weight": blocks}
    path = make.write_gguf(tmp_path / "m.gguf", "llama", make.GGUF_LLAMA | {"block_count": 1}, only, "Q8_1")
    refused(path, "token_embd.weight", "Q8_1")


GGUF_CASES = {
    "missing key": ({"block_count": None}, "llama.block_count", "missing"),
    "heads by layer": ({"attention.head_count_kv": [2, 1]}, "attention.head_count_kv", "[2, 1]"),
    "experts": ({"expert_count": 8}, "expert_count", "8"),
    "window": ({"attention.sliding_window": 32}, "sliding_window", "32"),
    "yarn": ({"rope.scaling.type": "yarn"}, "rope.scaling.factor", "missing"),
    "scaling": ({"rope.scaling.type": "su"}, "rope.scaling.type", "su", "linear", "yarn"),
    "partial rope": ({"rope.dimension_count": 4}, "rope.dimension_count", "4"),
    "value width": ({"attention.value_length": 4}, "attention.value_length", "4"),
    "layers": ({"block_count": 3}, "blk.2.", "missing"),
    "width": ({"embedding_length": 64}, "token_embd.weight", "(37, 32)", "(37, 64)"),
}


@pytest.mark.parametrize(("changes", "told"), [(c, t) for c, *t in GGUF_CASES.values()], ids=GGUF_CASES)
def test_gguf_metadata(tmp_path, changes, told):
    metadata = {k: v for k, v in (make.GGUF_LLAMA | changes).items() if v is not None}
    refused(write(tmp_path, metadata=metadata), *told)


def test_gguf_tensors(tmp_path):
    refused(write(tmp_path, lambda t: t.pop("blk.0.ffn_up.weight")), "blk.0.ffn_up.weight", "missing")
    refused(write(tmp_path, lambda t: t.pop("token_embd.weight")), "token_embd.weight", "missing")
    extra = {"blk.0.attn_q_norm.weight": np.zeros(8, np.float32)}
    refused(write(tmp_path, lambda t: t.update(extra)), "blk.0.attn_q_norm.weight", "absent")
    factors = {"rope_freqs.weight": np.zeros(4, np.float32)}
    refused(write(tmp_path, lambda t: t.update(factors)), "rope_freqs.weight", "zero")
    factors = {"rope_freqs.weight": np.ones(3, np.float32)}
    refused(write(tmp_path, lambda t: t.update(factors)), "rope_freqs.weight", "(3,)", "(4,)")


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_gguf_weights_that_are_no_numbers(tmp_path, kind):
    path = write(tmp_path, lambda t: t["blk.1.attn_q.weight"].__setitem__((3, 3), np.nan), kind=kind)
    refused(path, "blk.1.attn_q.weight", "NaN")


def test_gguf_blocks_with_a_scale_that_is_no_number(tmp_path):
    held = make.random_gguf_tensors("llama", make.GGUF_LLAMA)
    blocks = gguf.quants.quantize(held["blk.1.ffn_down.weight"], gguf.GGMLQuantizationType.Q8_0)
    blocks[5, :2] = np.array([np.inf], np.float16).view(np.uint8)  # infinity times zero would warn
    blocks[5, 2] = 0
    path = write(tmp_path, lambda t: t.update({"blk.1.ffn_down.weight": blocks}), kind="Q8_0")
    refused(path, "blk.1.ffn_down.weight", "NaN")
