"""Models written for other engines: minicore, the gguf package and Transformers read what was meant."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from minicore.checkpoint import gguf as gguf_files
from minicore.checkpoint import gguf_writer
from minicore.checkpoint.families import GGUF_FAMILIES
from minicore.errors import InputError
from minicore.model import Model, load
from minicore.quantization import QuantizedMatrix
from tests.helpers import GOLDEN, ROOT, WEIGHTS
from tests.helpers import checkpoints as make
from tests.helpers.families import families, write
from tests.helpers.gguf_models import IDS as IDS16
from tests.helpers.gguf_models import LLAMA_CPP_LACKS, gguf_models

pytestmark = pytest.mark.numpy

IDS = [5, 6, 7, 8, 9, 10, 11, 12]
FAMILIES = ["llama", "llama-untied", "llama-bias", "llama-gqa", "llama-head-dim", "llama-linear-rope"]
FAMILIES += ["llama3-rope", "llama-sharded", "llama-chat", "qwen2", "gpt2"]  # what a GGUF file can hold
CHAT = GOLDEN / "llama-chat"
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
BLOCKS = {"q8_0": "Q8_0", "q4_0": "Q4_0", "q4_1": "Q4_1"}


def tiny(folder: Path, **changes: object) -> Model:
    """Return a model of a GGUF file, with rows of whole blocks."""
    metadata = make.GGUF_LLAMA | changes
    path = folder / "tiny.gguf"
    return load(make.write_gguf(path, "llama", metadata, make.random_gguf_tensors("llama", metadata)))


def same_params(a: Model, b: Model) -> bool:
    return list(a.params) == list(b.params) and all(
        np.array_equal(value, b.params[name]) for name, value in a.params.items()
    )


# --- the same model comes back ---


@pytest.mark.parametrize(
    ("name", "format"), [("opt", "hf"), *((name, format) for name in FAMILIES for format in ("hf", "gguf"))]
)
def test_an_export_in_float32_is_the_same_model(tmp_path, name, format):
    model = load(GOLDEN / name)
    again = load(model.export(tmp_path / "out", format).path)
    assert same_params(model, again)
    assert (again.bos_id, again.eos_ids[:1]) == (model.bos_id, model.eos_ids[:1])
    assert np.array_equal(again.forward(IDS), model.forward(IDS))
    if format == "hf":
        assert again.config == model.config


@pytest.mark.parametrize("name", families())
def test_every_family_survives_hf_and_a_packed_model(tmp_path, name):
    """A packed model remembers the config.json that it was made from."""
    family = families()[name]
    model = load(write(tmp_path / name, name, family.config, family.shapes))
    model.save(tmp_path / "packed")
    for i, source in enumerate((model, load(tmp_path / "packed"))):
        again = load(source.export(tmp_path / f"{i}", "hf").path)
        assert again.config == model.config and same_params(model, again)


LLAMA_CPP = json.loads((GOLDEN / "gguf-logits.json").read_text())


@pytest.mark.parametrize("name", gguf_models())
def test_every_gguf_architecture_computes_what_llama_cpp_and_transformers_do(tmp_path, name):
    """minicore equals Transformers for the Hugging Face directory (test_families.py), and here llama.cpp."""
    config, shapes = gguf_models()[name]
    model = load(write(tmp_path / name, name, config, shapes))
    written = model.export(tmp_path / "out.gguf", "gguf")
    assert written.notes == []
    architecture = gguf_files.read_files(written.path)[0]["general.architecture"]
    assert name.startswith(architecture)
    again = load(written.path)
    assert same_params(model, again)
    expected = model.forward(IDS16)
    np.testing.assert_allclose(again.forward(IDS16), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    if name not in LLAMA_CPP_LACKS:  # its GELU is a table of float16 numbers
        np.testing.assert_allclose(expected[-1], LLAMA_CPP[name], rtol=0, atol=1e-3 * np.abs(expected).max())


def test_every_gguf_architecture_is_tested():
    others = {"llama", "qwen2", "gpt2"}
    described = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert all(f"`{kind}`" in described for kind in GGUF_FAMILIES)
    assert all(any(name.startswith(kind) for name in gguf_models()) for kind in GGUF_FAMILIES.keys() - others)


def test_a_model_of_phi2_may_have_its_queries_keys_and_values_in_one_tensor(tmp_path):
    config, shapes = gguf_models()["phi2"]
    model = load(write(tmp_path / "phi", "phi2", config, shapes))
    path = model.export(tmp_path / "out.gguf", "gguf").path
    metadata, tensors = gguf_files.read_files(path)
    held = {name: tensor.rows(0, tensor.shape[0]) for name, tensor in tensors.items()}
    for i in range(model.config.n_layers):
        for kind in ("weight", "bias"):
            parts = [held.pop(f"blk.{i}.attn_{part}.{kind}") for part in "qkv"]
            held[f"blk.{i}.attn_qkv.{kind}"] = np.concatenate(parts)
    again = tmp_path / "fused.gguf"
    new = [gguf_writer.encoded(name, "F32", value) for name, value in held.items()]
    gguf_writer.write(again, metadata, new)
    assert same_params(model, load(again))


@pytest.mark.parametrize("name", families())
def test_a_family_that_gguf_can_hold_survives_it_and_others_are_refused(tmp_path, name):
    family = families()[name]
    model = load(write(tmp_path / name, name, family.config, family.shapes))
    try:
        again = load(model.export(tmp_path / "out.gguf", "gguf").path)
    except InputError as error:
        assert "a GGUF file" in str(error) or "no GGUF architecture" in str(error)
        assert not (tmp_path / "out.gguf").exists()
        return
    assert same_params(model, again)
    np.testing.assert_allclose(
        again.forward(family.ids), model.forward(family.ids), rtol=0, atol=1e-5 * family.largest
    )


@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_a_gguf_model_and_a_packed_model_can_be_exported(tmp_path, format):
    model = tiny(tmp_path)
    model.save(tmp_path / "packed")
    for source in (model, load(tmp_path / "packed")):
        written = source.export(tmp_path / f"{format}-of-{source.source.name}", format)
        assert np.array_equal(load(written.path).forward(IDS), model.forward(IDS))


def test_int8_weights_are_exported_as_the_values_they_stand_for(tmp_path):
    model = load(GOLDEN / "llama-gqa", dtype="int8")
    again = load(model.export(tmp_path / "out", "hf").path)
    for name, value in model.params.items():
        expected = value.dequantize() if isinstance(value, QuantizedMatrix) else value
        assert np.array_equal(again.params[name], expected)


# --- element types ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_element_types_of_hf(tmp_path, dtype):
    model = load(GOLDEN / "llama-gqa")
    again = load(model.export(tmp_path / "out", "hf", dtype).path)
    assert again.file_dtype == DTYPES[dtype]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype
    kind = make.KINDS[DTYPES[dtype]]
    for name, value in model.params.items():
        assert np.array_equal(again.params[name], value.astype(kind).astype(np.float32))


@pytest.mark.parametrize("dtype", [*DTYPES, *BLOCKS])
def test_element_types_of_gguf_are_the_packages(tmp_path, dtype):
    """Vectors stay float32; a block is bit for bit what the gguf package makes of the same numbers."""
    model = tiny(tmp_path)
    path = model.export(tmp_path / "out.gguf", "gguf", dtype).path
    kind = gguf.GGMLQuantizationType[(DTYPES | BLOCKS)[dtype]]
    original = {t.name: t for t in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
    reader = gguf.GGUFReader(path)
    assert {t.name for t in reader.tensors} == original.keys()
    for tensor in reader.tensors:
        expected = np.asarray(original[tensor.name].data)
        if expected.ndim == 2:
            assert tensor.tensor_type == kind
            expected = quantize(expected, kind)
        assert np.array_equal(
            np.asarray(tensor.data).reshape(-1).view(np.uint8), expected.reshape(-1).view(np.uint8)
        )
    assert reader.fields["general.file_type"].contents() == gguf_writer.FILE_TYPES[kind.name]
    again = load(path)
    w = original["blk.0.attn_v.weight"]
    rounded = dequantize(quantize(np.asarray(w.data), kind), kind) if dtype != "float32" else w.data
    assert np.array_equal(again.params["blocks.0.attn.w_v"], rounded)


def test_rows_that_are_not_whole_blocks_are_float16(tmp_path):
    written = load(GOLDEN / "gpt2").export(tmp_path / "out", "gguf", "Q8_0")
    assert written.dtype == "q8_0"
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(written.path).tensors}
    assert kinds["position_embd.weight"] == "F32"  # added to the embeddings, not multiplied
    assert kinds["token_embd.weight"] == "Q8_0"
    narrow = load(GOLDEN / "llama-chat").export(tmp_path / "narrow.gguf", "gguf", "q4_0")
    assert load(narrow.path).file_dtype == "F16 + F32"


@pytest.mark.parametrize("dtype", ["float16", "q8_0", "q4_0", "q4_1"])
def test_values_too_large_for_a_type_name_the_tensor(tmp_path, dtype):
    model = tiny(tmp_path)
    model.params["blocks.1.mlp.w_in"][3, 5] = 1e9
    with pytest.raises(InputError, match="tensor blk.1.ffn_up.weight has values too large for"):
        model.export(tmp_path / "out", "gguf", dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


# --- what goes along ---


@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_tokenizer_template_and_ends_go_along(tmp_path, format):
    model = load(CHAT)
    again = load(model.export(tmp_path / "out", format).path)
    messages = [{"role": "user", "content": "naïve 12345's\n  x"}]
    assert again.tokenizer.chat(messages) == model.tokenizer.chat(messages)
    for text in ("The quick <|im_start|>fox<|im_end|>", "", "é  东\n"):
        assert again.tokenizer.encode(text) == model.tokenizer.encode(text)
    assert again.bos_id == model.bos_id and set(model.eos_ids) <= set(again.eos_ids)


@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_several_chat_templates_go_along(tmp_path, format):
    model = load(CHAT)
    model.tokenizer.chat_template = {"tools": "T", "rag": "R"}
    model.export(tmp_path / "first", "gguf")
    again = load(load(tmp_path / "first").export(tmp_path / "out", format).path)
    assert again.tokenizer.chat_template == {"tools": "T", "rag": "R"}


def test_a_models_own_code_goes_along(tmp_path):
    for path in CHAT.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "modeling_mine.py").write_text("# mine\n")
    load(tmp_path).export(tmp_path / "out", "hf")
    assert (tmp_path / "out" / "modeling_mine.py").read_text() == "# mine\n"


SPM = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "ab", "▁ab", "<0x0A>", "<tool>"],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -9.0, -8.0, -7.0, -3.0, -2.0, -1.0, 0.0, 0.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1, 1, 6, 4],
    "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}",
}


@pytest.mark.parametrize(
    "change", [{}, {"add_space_prefix": False}, {"add_eos_token": True, "eot_token_id": 10}]
)
def test_a_sentencepiece_tokenizer_survives_every_way_around(tmp_path, change):
    """GGUF to Hugging Face, to a packed model, and from each back to GGUF."""
    more = SPM | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    tensors = make.random_gguf_tensors("llama", make.GGUF_LLAMA)
    first = load(make.write_gguf(tmp_path / "a.gguf", "llama", make.GGUF_LLAMA, tensors, more=more))
    hf = load(first.export(tmp_path / "hf", "hf").path)
    hf.save(tmp_path / "packed")
    packed = load(tmp_path / "packed")
    sources = (first, hf, packed)
    again = [load(m.export(tmp_path / f"{i}.gguf", "gguf").path) for i, m in enumerate(sources)]
    for model in (hf, packed, *again):
        for text in ("ab ab</s>a<tool>ab", " a\nbb", "é", ""):
            assert model.tokenizer.encode(text) == first.tokenizer.encode(text)
        assert model.tokenizer.render_chat("ab") == "<s>ab"
        assert (model.bos_id, model.eos_ids) == (first.bos_id, first.eos_ids)


def test_a_tokenizer_that_prepends_a_space_once_is_written_with_a_note(tmp_path):
    """Newer files of Llama 2 and Mistral do so; llama.cpp's converter does not keep it either."""
    tensors = make.random_gguf_tensors("llama", make.GGUF_LLAMA)
    first = load(make.write_gguf(tmp_path / "a.gguf", "llama", make.GGUF_LLAMA, tensors, more=SPM))
    folder = first.export(tmp_path / "hf", "hf").path
    values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    step = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    values |= {"normalizer": None, "pre_tokenizer": step}
    (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    written = load(folder).export(tmp_path / "out.gguf", "gguf")
    assert [note.startswith("the tokenizer puts a space in front") for note in written.notes] == [True]
    for text in ("ab ab", "a\nbb", ""):
        assert load(written.path).tokenizer.encode(text) == first.tokenizer.encode(text)


@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_recommended_options_go_along(tmp_path, format):
    """A core-tuned model says how it is meant to be decoded."""
    advice = {"predictor": "stability", "alpha": 0.4, "beta": 0.3, "layers": "1:"}
    for model in (tiny(tmp_path), load(CHAT)):
        tuned = replace(model, recommended=advice)
        path = tuned.export(tmp_path / f"of-{model.name}", format).path
        assert load(path).recommended == advice
        if format == "hf":
            plain = replace(load(path), recommended={})
            assert load(plain.export(tmp_path / f"plain-{model.name}", format).path).recommended == {}


def test_the_shipped_core_tuned_model_keeps_its_advice(tmp_path):
    model = load(WEIGHTS / "minicore-opt-core")
    again = load(model.export(tmp_path / "out", "hf", "float16").path)
    assert again.recommended == model.recommended and same_params(model, again)
    assert again.tokenizer.chat("Hi") == model.tokenizer.chat("Hi")


def test_an_activation_that_gguf_does_not_record_is_recorded_and_noted(tmp_path):
    tensors = make.random_gguf_tensors("llama", make.GGUF_LLAMA)
    path = make.write_gguf(tmp_path / "a.gguf", "llama", make.GGUF_LLAMA, tensors)
    relu = load(path, activation="relu")
    written = relu.export(tmp_path / "out.gguf", "gguf")
    assert written.notes == [
        "GGUF does not record the activation: other engines compute silu for the architecture llama, and "
        "this model has relu"
    ]
    assert np.array_equal(load(written.path).forward(IDS), relu.forward(IDS))
    assert load(path).export(tmp_path / "silu.gguf", "gguf").notes == []


def test_end_tokens_that_do_not_fit_are_noted(tmp_path):
    model = load(CHAT)
    many = replace(model, eos_ids=(258, 1, 2, 3))
    assert load(many.export(tmp_path / "hf", "hf").path).eos_ids == (258, 1, 2, 3)
    (sentence,) = many.export(tmp_path / "out", "gguf").notes
    assert sentence.startswith("a GGUF file has three end tokens; these do not end a generation any more: ")


# --- refusals ---


def test_what_gguf_cannot_say_is_refused(tmp_path):
    with pytest.raises(InputError, match="architecture gpt2 cannot say position_offset 2"):
        load(GOLDEN / "opt").export(tmp_path / "out", "gguf")
    assert not any(tmp_path.iterdir())


def test_a_config_that_would_be_read_as_another_is_refused(tmp_path):
    model = tiny(tmp_path)
    odd = replace(model, config=model.config.replace(rope_factors=(1.0, 2.5, 3.0, 3.5)))
    with pytest.raises(InputError, match="config.json of the family llama cannot say rope_factors"):
        odd.export(tmp_path / "out", "hf")
    assert np.array_equal(load(odd.export(tmp_path / "out.gguf", "gguf").path).forward(IDS), odd.forward(IDS))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda v: v.update(pre_tokenizer={"type": "Whitespace"}), "has the step .*Whitespace"),
        (lambda v: v["pre_tokenizer"].update(add_prefix_space=True), "has the step .*ByteLevel"),
        (
            lambda v: v.update(pre_tokenizer={"type": "Sequence", "pretokenizers": []}),
            "no pre-tokenizer of GGUF",
        ),
        (lambda v: v["added_tokens"][0].update(lstrip=True), "it strips spaces around"),
        (lambda v: v.update(normalizer={"type": "Lowercase"}), "would have other ids"),
        (
            lambda v: v.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
            "is WordLevel",
        ),
    ],
)
def test_a_tokenizer_that_gguf_does_not_have_is_refused(tmp_path, change, part):
    for path in CHAT.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    values = json.loads((CHAT / "tokenizer.json").read_text(encoding="utf-8"))
    change(values)
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(InputError, match=f"cannot be written to a GGUF file: .*{part}"):
        load(tmp_path).export(tmp_path / "out.gguf", "gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_unknown_formats_types_and_existing_targets_are_refused(tmp_path):
    model = tiny(tmp_path)
    with pytest.raises(InputError, match="unknown format 'onnx'; known: hf, gguf"):
        model.export(tmp_path / "out", "onnx")
    with pytest.raises(InputError, match="unknown dtype of hf 'q8_0'"):
        model.export(tmp_path / "out", "hf", "q8_0")
    for format in ("hf", "gguf"):
        with pytest.raises(InputError, match="already exists"):
            model.export(tmp_path, format)


@pytest.mark.parametrize("target", ["out", "out.gguf"])
def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch, target):
    model, encode = tiny(tmp_path), gguf_writer.encode

    def interrupted(name, kind, values):
        if "ffn_down" in name:
            raise KeyboardInterrupt
        return encode(name, kind, values)

    monkeypatch.setattr(gguf_writer, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.export(tmp_path / target, "gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


# --- the command ---


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_a_bar_only_on_a_terminal_that_wants_one(tmp_path, monkeypatch, format):
    model = tiny(tmp_path)
    for stream, progress, expected in (
        (Terminal, True, True),
        (Terminal, False, False),
        (io.StringIO, True, False),
    ):
        monkeypatch.setattr(sys, "stderr", stream())
        model.export(tmp_path / f"{stream.__name__}{progress}", format, progress=progress)
        assert ("writing weights" in sys.stderr.getvalue()) is expected


def test_export_prints_what_to_load(tmp_path, run_cli):
    code, out, err = run_cli("export", CHAT, "--format", "hf", "-o", tmp_path / "hf")
    assert (code, out, err) == (0, f"{tmp_path / 'hf'}\n", "")
    argv = [
        "export",
        tmp_path / "hf",
        "--format",
        "gguf",
        "--dtype",
        "q8_0",
        "--activation",
        "relu",
        "--json",
    ]
    code, out, err = run_cli(*argv, "-o", tmp_path / "g")
    report = json.loads(out)
    assert code == 0 and err.startswith("note: GGUF does not record the activation")
    assert report | {"bytes": 0} == {
        "path": str(tmp_path / "g" / "hf.gguf"),
        "format": "gguf",
        "dtype": "q8_0",
        "bytes": 0,
        "notes": [err.removeprefix("note: ").strip()],
    }
    assert report["bytes"] == (tmp_path / "g" / "hf.gguf").stat().st_size
    assert load(report["path"]).config.activation == load(tmp_path / "g").config.activation == "relu"


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--format", "onnx"], "unknown format 'onnx'"),
        (["--format", "hf", "--dtype", "q4_0"], "unknown dtype of hf 'q4_0'"),
        ([], "--format"),
    ],
)
def test_bad_options_are_refused_before_anything_is_read(tmp_path, run_cli, argv, part):
    code, _, err = run_cli("export", tmp_path / "absent", *argv, "-o", tmp_path / "out")
    assert code == 2 and part in err


# --- other engines ---


@pytest.mark.parametrize("name", ["llama-chat", "llama3-rope", "qwen2", "gpt2", "opt"])
def test_transformers_computes_the_same(tmp_path, name):
    transformers = pytest.importorskip("transformers", reason="Transformers is not installed")
    import torch

    model = load(GOLDEN / name)
    path = model.export(tmp_path / "out", "hf").path
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        logits = theirs(torch.tensor([IDS])).logits[0].numpy()
    expected = model.forward(IDS)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    if model.tokenizer:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        assert tokenizer.encode("The quick <|im_start|> fox's\n") == model.tokenizer.encode(
            "The quick <|im_start|> fox's\n"
        )


def test_metadata_are_what_llama_cpp_asks_for(tmp_path):
    path = load(CHAT).export(tmp_path / "out", "gguf", "float16").path
    metadata, _ = gguf_files.read_files(path)
    assert {
        key: metadata[f"llama.{key}"] for key in ("block_count", "rope.dimension_count", "vocab_size")
    } == {
        "block_count": 2,
        "rope.dimension_count": load(CHAT).config.d_head,
        "vocab_size": load(CHAT).config.n_vocab,
    }
    assert len(metadata["tokenizer.ggml.tokens"]) == load(CHAT).config.n_vocab
    types = {name: field.types[0].name for name, field in gguf.GGUFReader(path).fields.items()}
    assert types["llama.attention.layer_norm_rms_epsilon"] == "FLOAT32"
    assert types["llama.block_count"] == types["tokenizer.ggml.bos_token_id"] == "UINT32"
    assert types["tokenizer.ggml.add_bos_token"] == "BOOL"
