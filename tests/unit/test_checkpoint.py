"""Checkpoints that are right: each value lands where it belongs, in the dtype asked for, in little memory."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from minicore.checkpoint import names, parameters, read
from minicore.errors import InputError
from tests.helpers import checkpoints as make
from tests.helpers import run_python

pytestmark = pytest.mark.numpy


@pytest.fixture(params=[100, parameters.CHUNK], ids=["small-chunks", "chunks"])
def chunk(request, monkeypatch):
    """Read in pieces that end in the middle of things, and in pieces that hold all."""
    monkeypatch.setattr(parameters, "CHUNK", request.param)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a.astype(np.float32), b.astype(np.float32))


# --- families -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_llama_values(tmp_path, chunk, kind, shards):
    config = make.LLAMA | {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}
    held = make.random_tensors(config, kind)
    checkpoint = read(make.write_directory(tmp_path, config, held, shards))
    p, layer = checkpoint.params, "model.layers.1"
    assert list(p) == list(checkpoint.config.shapes()) and checkpoint.file_dtype == kind
    assert all(a.shape == checkpoint.config.shapes()[k] and a.flags.c_contiguous for k, a in p.items())
    assert same(p["embed"], held["model.embed_tokens.weight"])
    assert same(p["head"], held["lm_head.weight"])
    assert same(p["ln_f.w"], held["model.norm.weight"])
    assert same(p["blocks.1.ln1.w"], held[f"{layer}.input_layernorm.weight"])
    assert same(p["blocks.1.ln2.w"], held[f"{layer}.post_attention_layernorm.weight"])
    for mine, theirs in {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}.items():
        assert same(p[f"blocks.1.attn.w_{mine}"], held[f"{layer}.self_attn.{theirs}.weight"])
        assert same(p[f"blocks.1.attn.b_{mine}"], held[f"{layer}.self_attn.{theirs}.bias"])
    for mine, theirs in {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"}.items():
        weight = held[f"{layer}.mlp.{theirs}.weight"]
        assert same(p[f"blocks.1.mlp.w_{mine}"], weight.T if mine == "out" else weight)
        assert same(p[f"blocks.1.mlp.b_{mine}"], held[f"{layer}.mlp.{theirs}.bias"])


def test_qwen2_has_qkv_bias_only(tmp_path):
    config = make.LLAMA | {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 32}
    held = make.random_tensors(config)
    checkpoint = read(make.write_directory(tmp_path, config, held))
    assert checkpoint.config.family == "llama" and checkpoint.config.qkv_bias
    assert not checkpoint.config.attn_out_bias
    assert same(checkpoint.params["blocks.0.attn.b_k"], held["model.layers.0.self_attn.k_proj.bias"])


def test_mistral_without_a_window(tmp_path):
    config = make.LLAMA | {"model_type": "mistral", "sliding_window": None}
    assert read(make.write_directory(tmp_path, config, make.random_tensors(config))).config.n_layers == 2


@pytest.mark.parametrize("prefix", ["model.decoder.", "decoder."])
def test_opt_values(tmp_path, chunk, prefix):
    held = make.random_tensors(make.OPT)
    renamed = {name.replace("model.decoder.", prefix): value for name, value in held.items()}
    checkpoint = read(make.write_directory(tmp_path, make.OPT, renamed))
    p, layer = checkpoint.params, "model.decoder.layers.1"
    assert checkpoint.config.position_offset == 2 and checkpoint.config.activation == "relu"
    assert same(p["pos_embed"], held["model.decoder.embed_positions.weight"])
    assert same(p["ln_f.b"], held["model.decoder.final_layer_norm.bias"])
    assert same(p["blocks.1.ln1.w"], held[f"{layer}.self_attn_layer_norm.weight"])
    assert same(p["blocks.1.ln2.b"], held[f"{layer}.final_layer_norm.bias"])
    assert same(p["blocks.1.attn.w_o"], held[f"{layer}.self_attn.out_proj.weight"])
    assert same(p["blocks.1.mlp.w_in"], held[f"{layer}.fc1.weight"])
    assert same(p["blocks.1.mlp.w_out"], held[f"{layer}.fc2.weight"].T)
    assert same(p["blocks.1.mlp.b_out"], held[f"{layer}.fc2.bias"])


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2_values(tmp_path, chunk, prefix):
    held = make.random_tensors(make.GPT2)
    renamed = {name.replace("transformer.", prefix): value for name, value in held.items()}
    renamed[f"{prefix}h.0.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), np.uint8))
    renamed[f"{prefix}h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    renamed["lm_head.weight"] = held["transformer.wte.weight"].copy()
    checkpoint = read(make.write_directory(tmp_path, make.GPT2, renamed))
    p, layer = checkpoint.params, "transformer.h.1"
    assert checkpoint.config.n_neurons == 96 and checkpoint.config.activation == "gelu_tanh"
    assert checkpoint.config.tied_head and "head" not in p
    fused, bias = held[f"{layer}.attn.c_attn.weight"], held[f"{layer}.attn.c_attn.bias"]
    for part, name in enumerate("qkv"):
        assert same(p[f"blocks.1.attn.w_{name}"], fused[:, 24 * part : 24 * (part + 1)].T)
        assert same(p[f"blocks.1.attn.b_{name}"], bias[24 * part : 24 * (part + 1)])
    assert same(p["blocks.1.attn.w_o"], held[f"{layer}.attn.c_proj.weight"].T)
    assert same(p["blocks.1.mlp.w_in"], held[f"{layer}.mlp.c_fc.weight"].T)
    assert same(p["blocks.1.mlp.w_out"], held[f"{layer}.mlp.c_proj.weight"])
    assert same(p["pos_embed"], held["transformer.wpe.weight"])


# --- dtypes ---------------------------------------------------------------------------------------------


def nearest_even_bfloat16(values: np.ndarray) -> np.ndarray:  # float32 -> its bfloat16 as float32
    bits = values.view(np.uint32).astype(np.uint64)
    upper, lower = bits >> 16, bits & 0xFFFF
    up = (lower > 0x8000) | ((lower == 0x8000) & (upper & 1 == 1))
    return ((upper + up) << 16).astype(np.uint32).view(np.float32)


def test_rounding_to_bfloat16_is_to_nearest_even(tmp_path):
    held = make.random_tensors(make.LLAMA)
    embed = held["model.embed_tokens.weight"].view(np.uint32)
    embed[:8] = (embed[:8] & 0xFFFF0000) | 0x8000  # ties, of odd and of even upper halves
    checkpoint = read(make.write_directory(tmp_path, make.LLAMA, held), dtype="bfloat16")
    p = checkpoint.params
    assert all(a.dtype == (np.float32 if a.ndim == 1 else make.BF16) for a in p.values())
    assert same(p["embed"], nearest_even_bfloat16(held["model.embed_tokens.weight"]))
    down = held["model.layers.0.mlp.down_proj.weight"]
    assert same(p["blocks.0.mlp.w_out"], nearest_even_bfloat16(down).T)
    assert same(p["blocks.0.ln1.w"], held["model.layers.0.input_layernorm.weight"])


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_files_as_bfloat16(tmp_path, kind):
    held = make.random_tensors(make.LLAMA, kind)
    p = read(make.write_directory(tmp_path, make.LLAMA, held), dtype="bfloat16").params
    expected = nearest_even_bfloat16(held["model.layers.1.mlp.up_proj.weight"].astype(np.float32))
    assert p["blocks.1.mlp.w_in"].dtype == make.BF16 and same(p["blocks.1.mlp.w_in"], expected)


# --- configs --------------------------------------------------------------------------------------------

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


def config_of(tmp_path: Path, **changes):
    config = make.LLAMA | {"head_dim": 32} | changes
    return read(make.write_directory(tmp_path, config, make.random_tensors(config))).config


def test_both_spellings_of_rope_give_one_config(tmp_path):
    new = config_of(
        tmp_path / "new",
        dtype="float32",
        rope_parameters={"rope_type": "llama3", "rope_theta": 5e5} | LLAMA3,
    )
    old = config_of(
        tmp_path / "old",
        torch_dtype="float32",
        rope_parameters=None,
        rope_theta=5e5,
        rope_scaling={"type": "llama3"} | LLAMA3,
    )
    assert new == old and new.rope_theta == 5e5 and new.rope_factors is not None


def test_llama3_factors_follow_the_wavelengths(tmp_path):
    """Frequencies by Meta's rule, case by case on the wavelength."""
    got = config_of(tmp_path, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5} | LLAMA3)
    kinds = set()
    for i, divisor in enumerate(got.rope_factors):
        frequency = 5e5 ** (-2 * i / 32)
        wavelength = 2 * math.pi / frequency
        if wavelength < 256 / 4.0:
            kind, scaled = "high", frequency
        elif wavelength > 256 / 1.0:
            kind, scaled = "low", frequency / 8.0
        else:
            smooth = (256 / wavelength - 1.0) / (4.0 - 1.0)
            kind, scaled = "medium", (1 - smooth) * frequency / 8.0 + smooth * frequency
        kinds.add(kind)
        assert frequency / divisor == pytest.approx(scaled, rel=1e-12)
    assert kinds == {"high", "medium", "low"}


@pytest.mark.parametrize("spelling", ["rope_type", "type"])
def test_linear_rope(tmp_path, spelling):
    got = config_of(tmp_path, rope_parameters=None, rope_scaling={spelling: "linear", "factor": 4.0})
    assert got.rope_factors == (4.0,) * 16


def test_defaults_of_older_configs(tmp_path):
    config = {k: v for k, v in make.LLAMA.items() if k not in ("head_dim", "rope_parameters", "hidden_act")}
    config |= {"hidden_size": 32, "rope_theta": 1e6, "rope_scaling": None}
    held = make.random_tensors(config | {"head_dim": 8})
    got = read(make.write_directory(tmp_path, config, held)).config
    assert (got.d_head, got.rope_theta, got.rope_factors, got.activation) == (8, 1e6, None, "silu")


# --- what comes with the weights ------------------------------------------------------------------------


def with_files(tmp_path: Path, files: dict[str, str]):
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return read(make.write_directory(tmp_path, make.LLAMA, make.random_tensors(make.LLAMA)))


def test_ids_and_name(tmp_path):
    checkpoint = with_files(tmp_path, {})
    assert (checkpoint.bos_id, checkpoint.eos_ids) == (1, (2,))
    assert checkpoint.name == tmp_path.name and checkpoint.source == tmp_path
    assert checkpoint.tokenizer_source is None and checkpoint.chat_template is None
    assert checkpoint.recommended == {}


def test_generation_config_has_the_last_word_on_eos(tmp_path):
    advice = {"predictor": "stability", "alpha": 0.4, "beta": 1, "layers": "1:"}
    text = json.dumps({"eos_token_id": [5, 6], "minicore": advice})
    checkpoint = with_files(tmp_path, {"generation_config.json": text})
    assert checkpoint.eos_ids == (5, 6) and checkpoint.recommended == advice


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config.json": json.dumps({"chat_template": "one"})}, "one"),
        (
            {
                "tokenizer_config.json": json.dumps(
                    {
                        "chat_template": [
                            {"name": "tool", "template": "x"},
                            {"name": "default", "template": "two"},
                        ]
                    }
                )
            },
            "two",
        ),
        ({"chat_template.jinja": "three é", "tokenizer_config.json": '{"chat_template": "no"}'}, "three é"),
        ({"tokenizer_config.json": "{}"}, None),
    ],
)
def test_chat_template(tmp_path, files, expected):
    assert with_files(tmp_path, files).chat_template == expected


def test_a_broken_tokenizer_is_passed_on(tmp_path):
    checkpoint = with_files(tmp_path, {"tokenizer.json": "{"})
    assert checkpoint.tokenizer_source == ("json", tmp_path / "tokenizer.json")


# --- GGUF -----------------------------------------------------------------------------------------------


def as_llama_cpp_keeps_it(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Reorder the rows of query or key as llama.cpp's converter does for the llama architecture."""
    halves = weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def test_gguf_llama_rows_are_put_back(tmp_path, chunk):
    held = make.random_gguf_tensors("llama", make.GGUF_LLAMA)
    stored = dict(held)
    for i in range(2):
        for name, heads in (("q", 4), ("k", 2)):
            stored[f"blk.{i}.attn_{name}.weight"] = as_llama_cpp_keeps_it(
                held[f"blk.{i}.attn_{name}.weight"], heads
            )
    tokens = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "b", "é"],
        "tokenizer.ggml.scores": [0.5, 1.0, 2.0],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages }}",
    }
    path = make.write_gguf(tmp_path / "m.gguf", "llama", make.GGUF_LLAMA, stored, more=tokens)
    checkpoint = read(path)
    p, config = checkpoint.params, checkpoint.config
    assert (config.n_vocab, config.d_head, config.n_kv_heads, config.rope_theta) == (37, 8, 2, 50000.0)
    assert config.tied_head and config.rope_factors is None and not config.qkv_bias
    for mine, theirs in {"attn.w_q": "attn_q", "attn.w_k": "attn_k", "attn.w_v": "attn_v"}.items():
        assert same(p[f"blocks.1.{mine}"], held[f"blk.1.{theirs}.weight"])
    assert same(p["blocks.1.mlp.w_gate"], held["blk.1.ffn_gate.weight"])
    assert same(p["blocks.1.mlp.w_in"], held["blk.1.ffn_up.weight"])
    assert same(p["blocks.1.mlp.w_out"], held["blk.1.ffn_down.weight"].T)
    assert checkpoint.eos_ids == (2, 0) and checkpoint.bos_id == 1
    assert checkpoint.chat_template == "{{ messages }}"
    kind, metadata = checkpoint.tokenizer_source
    assert kind == "gguf" and tokens.items() <= metadata.items()
    assert all(type(metadata[key]) is type(value) for key, value in tokens.items())


def test_gguf_biases_are_reordered_with_their_rows(tmp_path):
    held = make.random_gguf_tensors("llama", make.GGUF_LLAMA)
    biases = {}
    for i in range(2):
        for name, heads in (("q", 4), ("k", 2), ("v", 2)):
            biases[f"blk.{i}.attn_{name}.bias"] = np.arange(8 * heads, dtype=np.float32)
    stored = held | {
        k: as_llama_cpp_keeps_it(v, v.size // 8) if "v" not in k[6:] else v for k, v in biases.items()
    }
    p = read(make.write_gguf(tmp_path / "m.gguf", "llama", make.GGUF_LLAMA, stored)).params
    assert all(same(p[f"blocks.1.attn.b_{k}"], biases[f"blk.1.attn_{k}.bias"]) for k in "qkv")


def test_gguf_qwen2_rows_stay(tmp_path):
    held = make.random_gguf_tensors("qwen2", make.GGUF_LLAMA)
    held["output.weight"] = held["token_embd.weight"] + 1
    checkpoint = read(make.write_gguf(tmp_path / "m.gguf", "qwen2", make.GGUF_LLAMA, held))
    assert checkpoint.config.qkv_bias and not checkpoint.config.tied_head
    assert same(checkpoint.params["blocks.0.attn.w_q"], held["blk.0.attn_q.weight"])
    assert same(checkpoint.params["blocks.0.attn.b_q"], held["blk.0.attn_q.bias"])
    assert same(checkpoint.params["head"], held["output.weight"])


def test_gguf_gpt2(tmp_path, chunk):
    held = make.random_gguf_tensors("gpt2", make.GGUF_GPT2)
    checkpoint = read(make.write_gguf(tmp_path / "m.gguf", "gpt2", make.GGUF_GPT2, held))
    p = checkpoint.params
    assert checkpoint.config.activation == "gelu_tanh" and checkpoint.config.norm == "layernorm"
    for part, name in enumerate("qkv"):
        rows = slice(32 * part, 32 * (part + 1))
        assert same(p[f"blocks.1.attn.w_{name}"], held["blk.1.attn_qkv.weight"][rows])
        assert same(p[f"blocks.1.attn.b_{name}"], held["blk.1.attn_qkv.bias"][rows])
    assert same(p["blocks.1.mlp.w_out"], held["blk.1.ffn_down.weight"].T)
    assert same(p["pos_embed"], held["position_embd.weight"])


def test_gguf_rope_factors(tmp_path):
    held = make.random_gguf_tensors("llama", make.GGUF_LLAMA)
    held["rope_freqs.weight"] = np.array([1.0, 1.5, 4.0, 8.0], np.float32)
    path = make.write_gguf(tmp_path / "a.gguf", "llama", make.GGUF_LLAMA, held)
    assert read(path).config.rope_factors == (1.0, 1.5, 4.0, 8.0)
    del held["rope_freqs.weight"]
    linear = make.GGUF_LLAMA | {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
    path = make.write_gguf(tmp_path / "b.gguf", "llama", linear, held)
    assert read(path).config.rope_factors == (2.0,) * 4


def test_gguf_head_width_of_its_own(tmp_path):
    metadata = make.GGUF_LLAMA | {"attention.key_length": 16, "attention.value_length": 16}
    held = make.random_gguf_tensors("llama", metadata)
    assert read(make.write_gguf(tmp_path / "m.gguf", "llama", metadata, held)).config.d_head == 16


# Where a block keeps its float16 scales, which random bytes would make NaN now and then.
SCALES = {
    "Q2_K": (slice(80, 82), slice(82, 84)),
    "Q3_K": (slice(108, 110),),
    "Q4_K": (slice(0, 2), slice(2, 4)),
    "Q5_K": (slice(0, 2), slice(2, 4)),
    "Q6_K": (slice(208, 210),),
}


def random_blocks(kind: str, rows: int, width: int, rng: np.random.Generator) -> np.ndarray:
    quantization = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[quantization]
    raw = rng.integers(0, 256, (rows * width // block, size), dtype=np.uint8)
    for place in SCALES[kind]:
        scale = rng.uniform(0.01, 0.1, (len(raw), 1)).astype(np.float16)
        raw[:, place] = scale.view(np.uint8)
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", *SCALES])
def test_gguf_quantizations(tmp_path, chunk, kind):
    metadata = make.GGUF_LLAMA | {"embedding_length": 256, "feed_forward_length": 512}
    held = make.random_gguf_tensors("qwen2", metadata)
    rng = np.random.default_rng(1)
    quantization = gguf.GGMLQuantizationType[kind]
    if kind in SCALES:
        held = {k: v if v.ndim == 1 else random_blocks(kind, *v.shape, rng) for k, v in held.items()}
        expected = {k: v if v.ndim == 1 else gguf.quants.dequantize(v, quantization) for k, v in held.items()}
    else:
        expected = {
            k: v
            if v.ndim == 1
            else gguf.quants.dequantize(gguf.quants.quantize(v, quantization), quantization)
            for k, v in held.items()
        }
    checkpoint = read(make.write_gguf(tmp_path / "m.gguf", "qwen2", metadata, held, kind))
    p = checkpoint.params
    assert checkpoint.file_dtype == f"{kind} + F32"
    assert same(p["embed"], expected["token_embd.weight"])
    assert same(p["blocks.1.attn.w_k"], expected["blk.1.attn_k.weight"])
    assert same(p["blocks.1.mlp.w_out"], expected["blk.1.ffn_down.weight"].T)


# --- memory ---------------------------------------------------------------------------------------------

MEASURE = """
import sys
from minicore.checkpoint import read
params = read(sys.argv[1], dtype=sys.argv[2]).params
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(sum(a.nbytes for a in params.values()), int(peak) * 1024)
"""


def assert_little_memory(path: Path, dtype: str) -> None:
    """The issue's bound, on the whole process: 1.15 times the weights and 150 MB."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of resident memory is read from /proc/self/status, which is not there")
    done = run_python("-c", MEASURE, path, dtype, check=True)
    weights, peak = map(int, done.stdout.split())
    assert weights > 2e8, "too small to say anything"
    assert peak <= 1.15 * weights + 150e6, f"peak {peak / 1e6:.0f} MB for {weights / 1e6:.0f} MB of weights"


@pytest.mark.parametrize(("kind", "dtype"), [("F16", "float32"), ("BF16", "bfloat16")])
def test_peak_memory_of_safetensors(tmp_path, kind, dtype):
    big = {"vocab_size": 16000, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8}
    config = make.LLAMA | big | {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64}
    header, offset = {}, 0
    for name, shape in make.shapes_of(config).items():
        n_bytes = 2 * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": (offset, offset + n_bytes)}
        offset += n_bytes
    values = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32).astype(make.KINDS[kind])
    block = values.tobytes()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(make.safetensors_bytes(header))
        for start in range(0, offset, len(block)):
            file.write(block[: offset - start])
    assert_little_memory(tmp_path, dtype)
    (tmp_path / "model.safetensors").unlink()  # pytest keeps its folders


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_of_smollm2(dtype):
    path = names.on_disk("smollm2-135m")
    if path is None:
        pytest.skip("smollm2-135m is not on disk; `minicore pull smollm2-135m` fetches it")
    assert_little_memory(path, dtype)


def test_smollm2():
    path = names.on_disk("smollm2-135m")
    if path is None:
        pytest.skip("smollm2-135m is not on disk; `minicore pull smollm2-135m` fetches it")
    checkpoint = read("SmolLM2-135M", dtype="bfloat16")
    assert checkpoint.name == "smollm2-135m" and checkpoint.file_dtype == "Q4_1 + Q8_0 + F32"
    assert (checkpoint.bos_id, checkpoint.eos_ids) == (1, (2, 0, 4))
    assert checkpoint.chat_template is not None and "<|im_start|>" in checkpoint.chat_template
    assert sum(a.size for a in checkpoint.params.values()) == 134_515_008


def test_unknown_dtype_offers_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="unknown dtype 'float23'; did you mean float32"):
        read(tmp_path, dtype="float23")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "progress"), [(Terminal, True), (Terminal, False), (io.StringIO, True)])
def test_a_bar_only_on_a_terminal_that_wants_one(tmp_path, monkeypatch, stream, progress):
    make.write_directory(tmp_path, make.LLAMA, make.random_tensors(make.LLAMA))
    monkeypatch.setattr(sys, "stderr", stream())
    read(tmp_path, progress=progress)
    assert ("loading weights" in sys.stderr.getvalue()) == (stream is Terminal and progress)
