"""Weights as they lie about: wrappers, tied heads, unused tensors, 64 and 8-bit floats, pointers."""

import json
import logging
import math

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import minicore as mc
from minicore.checkpoint import read
from minicore.errors import InputError
from tests.helpers import checkpoints as make
from tests.helpers.families import families, write

pytestmark = pytest.mark.numpy

BASES = {"llama": make.LLAMA, "opt": make.OPT, "gpt2": make.GPT2}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LAYER = "model.layers.1.mlp.up_proj.weight"


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def loaded(directory, config, tensors) -> mc.Model:
    return mc.load(make.write_directory(directory, config, tensors))


# --- prefixes -------------------------------------------------------------------------------------------


@given(
    family=st.sampled_from(sorted(BASES)),
    front=st.lists(st.sampled_from(["module.", "_orig_mod.", "_fsdp_wrapped_module."]), max_size=3),
    inner=st.sampled_from(["", "model."]),
    compiled=st.booleans(),
    head=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_wrappers_leave_no_trace(tmp_path_factory, family, front, inner, compiled, head):
    config, held = BASES[family], make.random_tensors(BASES[family])
    if head:
        held[HEAD] = held[next(name for name in held if "embed_tokens" in name or "wte" in name)].copy()
    plain = read(make.write_directory(tmp_path_factory.mktemp("plain"), config, held)).params

    def rename(name: str) -> str:
        if compiled:  # torch.compile of each layer
            name = name.replace(".1.", ".1._orig_mod.")
        return "".join(front) + inner + name

    wrapped = {rename(name): tensor for name, tensor in held.items()}
    assert same(read(make.write_directory(tmp_path_factory.mktemp("wrapped"), config, wrapped)).params, plain)


def test_two_tensors_of_one_name_are_refused(tmp_path):
    held = make.random_tensors(make.LLAMA)
    held[f"_orig_mod.{EMBED}"] = held[EMBED]
    with pytest.raises(InputError, match=f"are both {EMBED}"):
        loaded(tmp_path, make.LLAMA, held)


# --- the output head ------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("tensors", ["both", "both, the same", "head", "embedding"])
def test_the_tensors_decide_whether_the_head_is_tied(tmp_path, caplog, flag, tensors):
    held = make.random_tensors(make.LLAMA | {"tie_word_embeddings": False})
    if tensors != "both":
        held[HEAD] = held[EMBED].copy()
    tied = tensors in ("head", "embedding") or (flag and tensors != "both")
    right = loaded(tmp_path / "right", make.LLAMA | {"tie_word_embeddings": False}, held)
    if tensors in ("head", "embedding"):
        del held[EMBED if tensors == "head" else HEAD]
    with caplog.at_level(logging.WARNING, "minicore"):
        model = loaded(tmp_path / "model", make.LLAMA | {"tie_word_embeddings": flag}, held)
    assert model.config.tied_head == tied
    np.testing.assert_array_equal(model.forward([3, 4, 5]), right.forward([3, 4, 5]))
    said = flag if tensors == "both" else not flag and tensors != "both, the same"
    assert ["tie_word_embeddings is" in message for message in caplog.messages] == [True] * said


@pytest.mark.parametrize("architecture", ["LlamaForSequenceClassification", "LlamaModel"])
def test_a_model_for_another_task_has_no_output_head(tmp_path, architecture):
    config = make.LLAMA | {"tie_word_embeddings": False, "architectures": [architecture]}
    held = make.random_tensors(config)
    del held[HEAD]
    with pytest.raises(InputError, match=r"tensor lm_head\.weight is missing"):
        loaded(tmp_path, config, held)


def test_a_head_without_an_embedding_in_another_family(tmp_path):
    held = make.random_tensors(make.GPT2)
    right = loaded(tmp_path / "right", make.GPT2, held)
    held[HEAD] = held.pop("transformer.wte.weight")
    np.testing.assert_array_equal(loaded(tmp_path / "m", make.GPT2, held).forward([1]), right.forward([1]))


def test_the_head_of_gpt_neox_has_either_name(tmp_path):
    family = families()["gpt_neox"]
    written = write(tmp_path / "files", "gpt_neox", family.config, family.shapes)
    held = safetensors.numpy.load_file(written / "model.safetensors")
    held[HEAD] = held.pop("embed_out.weight")  # as in the state of Transformers' model
    model = loaded(tmp_path / "state", family.config, held)
    np.testing.assert_array_equal(model.head, held[HEAD])


# --- tensors that are not used --------------------------------------------------------------------------


def test_unused_tensors_are_named_in_one_line(tmp_path, caplog):
    held = make.random_tensors(make.LLAMA)
    right = read(make.write_directory(tmp_path / "right", make.LLAMA, held)).params
    more = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for i in range(2)}
    more |= {
        "v_head.summary.weight": np.ones((1, 24), np.float32),
        "score.weight": np.ones((2, 24), np.int64),
    }
    with caplog.at_level(logging.WARNING, "minicore"):
        found = read(make.write_directory(tmp_path / "model", make.LLAMA, held | more)).params
    assert same(found, right)
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'model'}: not used: ")
    assert set(message.split("not used: ")[1].split(", ")) == {
        *("model.layers.{i}.self_attn.rotary_emb.inv_freq", "v_head.summary.weight", "score.weight")
    }


def test_a_plain_checkpoint_says_nothing(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG, "minicore"):
        loaded(tmp_path, make.LLAMA, make.random_tensors(make.LLAMA))
    assert not caplog.messages


def test_unused_tensors_of_a_model_without_a_prefix(tmp_path):
    held = {name.removeprefix("transformer."): w for name, w in make.random_tensors(make.GPT2).items()}
    more = {"v_head.summary.weight": np.ones(24, np.float32), "h.0.attn.masked_bias": np.float32([1])}
    loaded(tmp_path / "good", make.GPT2, held | more)
    with pytest.raises(InputError, match="tensor embed_norm.weight is not one"):
        loaded(tmp_path / "bad", make.GPT2, held | {"embed_norm.weight": np.ones(24, np.float32)})


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.q_norm.weight",
        "model.layers.0.mlp.down_proj.bias",
        "model.layers.2.mlp.down_proj.weight",
        "model.norm.bias",
        "model.embed_norm.weight",
        "lm_head.bias",
    ],
)
def test_a_tensor_that_the_model_would_need_is_refused(tmp_path, name):
    held = make.random_tensors(make.LLAMA) | {name: np.ones(24, np.float32)}
    with pytest.raises(InputError, match=f"tensor {name} is not one that a llama model of this config has"):
        loaded(tmp_path, make.LLAMA, held)


# --- kinds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_64_bit_floats(tmp_path, dtype):
    held = make.random_tensors(make.LLAMA)
    right = mc.load(make.write_directory(tmp_path / "right", make.LLAMA, held), dtype)
    wide = {name: w.astype(np.float64) for name, w in held.items()}
    model = mc.load(make.write_directory(tmp_path / "model", make.LLAMA, wide), dtype)
    assert model.file_dtype == "F64"
    np.testing.assert_array_equal(model.forward([3, 4, 5]), right.forward([3, 4, 5]))


def test_a_64_bit_float_beyond_32_bits_is_refused(tmp_path):
    held = make.random_tensors(make.LLAMA)
    held[LAYER] = held[LAYER].astype(np.float64)
    held[LAYER][3, 3] = 1e300
    with pytest.raises(InputError, match=f"tensor {LAYER} holds NaN or infinity"):
        loaded(tmp_path, make.LLAMA, held)


def write_float8(directory, tensors: dict[str, np.ndarray], config: dict) -> None:
    """Write safetensors with float8 matrices, which the package does not write from NumPy."""
    kinds = {ml_dtypes.float8_e4m3fn: "F8_E4M3", ml_dtypes.float8_e5m2: "F8_E5M2", np.float32: "F32"}
    header, data = {}, b""
    for name, w in tensors.items():
        w = np.asarray(w)
        end = len(data) + w.nbytes
        header[name] = {"dtype": kinds[w.dtype.type], "shape": w.shape, "data_offsets": [len(data), end]}
        data += w.tobytes()
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes(make.safetensors_bytes(header, data))


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 8], "activation_scheme": "dynamic"}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized"}
SCALES = {
    "none": (None, None),
    "one": ("_scale", lambda rng, w: rng.uniform(0.5, 2, ())),
    "one in a list": ("_scale", lambda rng, w: rng.uniform(0.5, 2, 1)),
    "rows": ("_scale", lambda rng, w: rng.uniform(0.5, 2, (w.shape[0], 1))),
    "blocks": (
        "_scale_inv",
        lambda rng, w: rng.uniform(0.5, 2, (math.ceil(w.shape[0] / 16), math.ceil(w.shape[1] / 8))),
    ),
}


@pytest.mark.parametrize("kind", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize("scales", SCALES)
def test_8_bit_floats_are_multiplied_by_their_scales(tmp_path, monkeypatch, kind, scales):
    monkeypatch.setattr("minicore.checkpoint.parameters.CHUNK", 100)  # many pieces, cut within blocks
    suffix, draw = SCALES[scales]
    rng, stored, right = np.random.default_rng(0), {}, {}
    for name, w in make.random_tensors(make.LLAMA).items():
        stored[name] = right[name] = w
        if w.ndim == 2 and "proj" in name:
            stored[name] = w.astype(kind)
            right[name] = stored[name].astype(np.float32)
            if draw:
                scale = np.asarray(draw(rng, w), np.float32)
                stored[name + suffix] = scale
                if scales == "blocks":
                    scale = np.kron(scale, np.ones((16, 8), np.float32))[: w.shape[0], : w.shape[1]]
                right[name] = right[name] * scale
    config = make.LLAMA | {"quantization_config": FP8 if scales == "blocks" else COMPRESSED}
    write_float8(tmp_path / "model", stored, config)
    expected = read(make.write_directory(tmp_path / "right", make.LLAMA, right)).params
    assert same(read(tmp_path / "model").params, expected)


@pytest.mark.parametrize("kind", ["wrapped", "untied against the config", "float8"])
def test_what_is_tidied_can_be_written_again(tmp_path, kind):
    held = dict(make.random_tensors(make.LLAMA))
    if kind == "untied against the config":
        held[HEAD] = held[EMBED] + 1
    if kind == "wrapped":
        held = {f"module._orig_mod.{name}": w for name, w in held.items()}
    if kind == "float8":
        held[LAYER] = held[LAYER].astype(ml_dtypes.float8_e4m3fn)
        held[f"{LAYER}_scale"] = np.float32(3)
    about = {"quantization_config": COMPRESSED} if kind == "float8" else {}
    write_float8(tmp_path / "model", held, make.LLAMA | about)
    model = mc.load(tmp_path / "model")
    model.export(tmp_path / "exported", format="hf")
    model.save(tmp_path / "packed")
    for directory in ("exported", "packed"):
        again = mc.load(tmp_path / directory)
        assert again.config == model.config
        np.testing.assert_array_equal(again.forward([3, 4]), model.forward([3, 4]))


def test_scales_that_do_not_fit_are_refused(tmp_path):
    held = dict(make.random_tensors(make.LLAMA))
    held[LAYER] = held[LAYER].astype(ml_dtypes.float8_e4m3fn)
    write_float8(tmp_path, held | {f"{LAYER}_scale": np.ones((7, 1), np.float32)}, make.LLAMA)
    with pytest.raises(InputError, match=rf"{LAYER}_scale has shape \(7, 1\), which does not fit \(40, 24\)"):
        read(tmp_path)


@pytest.mark.parametrize("about", [{"quant_method": "gptq"}, COMPRESSED | {"format": "pack-quantized"}])
def test_other_quantization_methods_are_refused(tmp_path, about):
    held = dict(make.random_tensors(make.LLAMA))
    held[LAYER] = held[LAYER].astype(ml_dtypes.float8_e4m3fn)
    write_float8(tmp_path, held, make.LLAMA | {"quantization_config": about})
    with pytest.raises(InputError, match="quantization_config"):
        read(tmp_path)


# --- what is not safetensors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("pytorch_model.bin", "pytorch_model*.bin"), ("pytorch_model-00001-of-00002.bin", "pytorch_model*.bin"),
     ("model.pt", "model.pt")],
)  # fmt: skip
def test_pickled_weights_are_refused_with_the_command_that_converts_them(tmp_path, name, pattern):
    (tmp_path / "config.json").write_text(json.dumps(make.LLAMA))
    (tmp_path / name).write_bytes(b"\x80\x02")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match="pickled weights are not supported") as caught:
            read(path)
        message = str(caught.value)
        assert f"glob('{pattern}')" in message and f'cd "{tmp_path}" && python -c "' in message
        command = message.split('python -c "')[1].removesuffix('"')
        compile(command, "the command", "exec")
        assert '"' not in command and "\n" not in message


FILES = ["model.safetensors", "model.safetensors.index.json", "model.gguf", "config.json", "merges.txt"]


@pytest.mark.parametrize("name", [*FILES, "vocab.json", "chat_template.jinja", "generation_config.json"])
def test_a_git_lfs_pointer_is_named(tmp_path, name):
    config = make.GPT2 | {"tokenizer_class": "GPT2Tokenizer"}
    make.write_directory(tmp_path, config, make.random_tensors(config))
    for other in ("merges.txt", "vocab.json"):
        (tmp_path / other).write_text("{}")
    if name == "model.safetensors.index.json":
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    told = f"{name}: is a Git LFS pointer, expected the file itself; `git lfs pull`"
    with pytest.raises(InputError, match=told):
        mc.load(tmp_path / name if name.endswith("gguf") else tmp_path)


def test_the_files_here_are_what_the_package_writes(tmp_path):
    held = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    write_float8(tmp_path, held, {})
    assert np.array_equal(safetensors.numpy.load_file(tmp_path / "model.safetensors")["x"], held["x"])
