"""Tiny random checkpoints of every family and variant against what Transformers computed with them.

golden/make_golden.py made the files and says what is in them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import minicore as mc
from minicore.backends import make_decoder
from minicore.backends.cuda import availability as gpu
from minicore.forward import forward, prefill
from minicore.kv_cache import KVCache
from tests.helpers import GOLDEN

NAMES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
TOLERANCE = {"rtol": 0, "atol": 1e-4}
BACKENDS = ["numpy", "numba", "cpu", pytest.param("cuda", marks=pytest.mark.cuda)]

_models: dict[str, mc.Model] = {}


def model_of(name: str) -> mc.Model:
    if name not in _models:
        _models[name] = mc.load(GOLDEN / name)
    return _models[name]


def skip_unless_read(name: str, backend: str) -> None:
    """Skip what a backend refuses: the GPU's kernels read no heads of 6 numbers (test_cuda.py)."""
    if backend == "cuda" and (why := gpu.trouble(model_of(name).dtype, model_of(name).config)):
        pytest.skip(why)


def golden_of(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name / "golden.npz") as file:
        return dict(file)


def decoded(model: mc.Model, prompt: np.ndarray, ids: np.ndarray, backend: str) -> np.ndarray:
    """Return the logits after the prompt and after each of the ids, (n_ids + 1, n_vocab), one step each."""
    cache = KVCache(model.config, len(prompt) + len(ids))
    rows = [prefill(model, prompt, cache)]
    decoder = make_decoder(model, cache, backend=backend)
    rows += [np.array(decoder.step(int(i))) for i in ids]
    return np.stack(rows)


def with_config(name: str, tmp_path: Path, **changes: object) -> Path:
    """Copy a checkpoint and change its config."""
    folder = tmp_path / name
    shutil.copytree(GOLDEN / name, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_every_family_and_variant_is_there():
    variants = {"gqa", "head-dim", "bias", "untied", "sharded", "f16", "bf16", "linear-rope", "chat"}
    expected = {"llama", "llama3-rope", "qwen2", "opt", "gpt2"} | {f"llama-{variant}" for variant in variants}
    assert set(NAMES) == expected
    assert len(list((GOLDEN / "llama-sharded").glob("model-*.safetensors"))) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_logits(name):
    golden = golden_of(name)
    logits = model_of(name).forward(golden["ids"])
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, golden["logits"], **TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_activations_and_residual_stream(name):
    golden = golden_of(name)
    logits, cache = model_of(name).run_with_cache(golden["ids"])
    np.testing.assert_allclose(logits, golden["logits"], **TOLERANCE)
    compared = 0
    for key, recorded in golden.items():
        if key.startswith("hook_"):
            hook, layer = key.rsplit("_l", 1)
            ours = cache[f"blocks.{layer}.{'mlp.' if hook == 'hook_post' else ''}{hook}"]
            np.testing.assert_allclose(ours, recorded, rtol=1e-4, atol=1e-4, err_msg=key)
            compared += 1
    assert compared == 2 * model_of(name).config.n_layers - 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_greedy_ids(name, backend):
    skip_unless_read(name, backend)
    golden = golden_of(name)
    assert golden["margins"].min() > 0.01  # make_golden.py sees to that: no id is a matter of rounding
    out = model_of(name).generate(
        golden["ids"].tolist(),
        max_new_tokens=len(golden["greedy_ids"]),
        predictor="dense",
        backend=backend,
        ignore_eos=True,
    )
    assert out.token_ids == golden["greedy_ids"].tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_cached_decoding_equals_the_full_forward(name, backend):
    skip_unless_read(name, backend)
    golden, model = golden_of(name), model_of(name)
    prompt, new = golden["ids"], golden["greedy_ids"]
    steps = decoded(model, prompt, new[:-1], backend)
    np.testing.assert_allclose(steps, golden["greedy_logits"], **TOLERANCE)
    full = model.forward(np.concatenate([prompt, new[:-1]]))
    np.testing.assert_allclose(steps, full[len(prompt) - 1 :], **TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_decoding_a_text_from_its_first_token_equals_the_full_forward(name, backend):
    """No prompt to speak of: every position goes through the decoder."""
    skip_unless_read(name, backend)
    golden = golden_of(name)
    steps = decoded(model_of(name), golden["ids"][:1], golden["ids"][1:], backend)
    np.testing.assert_allclose(steps, golden["logits"], **TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_backends_agree(name):
    golden, model = golden_of(name), model_of(name)
    numpy, cpu = (
        decoded(model, golden["ids"], golden["greedy_ids"], backend) for backend in ("numpy", "cpu")
    )
    np.testing.assert_allclose(cpu, numpy, **TOLERANCE)


@pytest.mark.parametrize("chunk", [1, 7])
@pytest.mark.parametrize("name", NAMES)
def test_prefill_in_chunks_equals_the_full_forward(name, chunk, monkeypatch):
    golden, model = golden_of(name), model_of(name)
    monkeypatch.setattr("minicore.forward.CHUNK", chunk)
    np.testing.assert_allclose(model.forward(golden["ids"]), golden["logits"], **TOLERANCE)
    cache = KVCache(model.config, len(golden["ids"]))
    np.testing.assert_allclose(prefill(model, golden["ids"], cache), golden["logits"][-1], **TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_both_spellings_of_the_config_mean_the_same(name, tmp_path):
    old = json.loads((GOLDEN / name / "config.old.json").read_text())
    new = json.loads((GOLDEN / name / "config.json").read_text())
    assert "torch_dtype" in old and "dtype" not in old and "rope_parameters" not in old
    assert "dtype" in new and "rope_theta" not in new
    shutil.copytree(GOLDEN / name, tmp_path / name)
    (tmp_path / name / "config.json").write_text(json.dumps(old))
    model = mc.load(tmp_path / name)
    assert model.config == model_of(name).config
    ids = golden_of(name)["ids"]
    np.testing.assert_array_equal(model.forward(ids), model_of(name).forward(ids))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama3-rope", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
        ("llama-linear-rope", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
        ("llama", {"rms_norm_eps": 0.1}),
    ],
)
def test_the_golden_logits_notice_a_wrong_config(name, changes, tmp_path):
    """The tests above can fail: what the config says matters to these checkpoints."""
    golden = golden_of(name)
    logits = mc.load(with_config(name, tmp_path, **changes)).forward(golden["ids"])
    assert np.abs(logits - golden["logits"]).max() > 0.05


@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend != "numba"])  # float32 only
def test_bfloat16_weights_lose_nothing_that_the_file_holds(backend):
    golden = golden_of("llama-bf16")
    model = mc.load(GOLDEN / "llama-bf16", dtype="bfloat16")
    assert model.dtype == "bfloat16"
    assert model.weights_bytes < 0.52 * model_of("llama-bf16").weights_bytes
    logits = forward(model, golden["ids"], KVCache(model.config, len(golden["ids"])))
    np.testing.assert_allclose(logits, golden["logits"], **TOLERANCE)
    steps = decoded(model, golden["ids"], golden["greedy_ids"][:-1], backend)
    np.testing.assert_allclose(steps, golden["greedy_logits"], **TOLERANCE)


@pytest.mark.parametrize(("name", "dtype"), [("llama", "F32"), ("llama-f16", "F16"), ("llama-bf16", "BF16")])
def test_the_files_hold_what_their_names_say(name, dtype):
    assert model_of(name).file_dtype == dtype


@pytest.mark.parametrize("backend", BACKENDS)
def test_text_in_text_out(backend):
    skip_unless_read("llama-chat", backend)
    golden, model = golden_of("llama-chat"), model_of("llama-chat")
    assert model.tokenizer.encode(str(golden["text"])) == golden["text_ids"].tolist()
    assert model.tokenizer.chat(json.loads(str(golden["messages"]))) == golden["chat_ids"].tolist()
    options = {"max_new_tokens": len(golden["greedy_ids"]), "backend": backend, "ignore_eos": True}
    out = model.generate(str(golden["text"]), **options)
    assert out.prompt_ids == golden["text_ids"].tolist()
    assert model.tokenizer.decode(out.token_ids) == str(golden["greedy_text"])
    assert out.text == model.tokenizer.decode(out.token_ids, skip_special=True)
    assert "".join(model.stream(str(golden["text"]), **options)) == out.text
