"""`minicore check`: right models pass and wrong ones are found, by Transformers' results in tests/golden."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import minicore
from minicore.errors import InputError
from minicore.evaluation import reference
from minicore.evaluation.check import check
from minicore.evaluation.reference import Recording, Reference
from tests.helpers import ROOT
from tests.helpers import checkpoints as make
from tests.helpers.families import families, write
from tests.helpers.lora import random_update, tensors_of, write_adapter

GOLDEN = ROOT / "tests" / "golden"
NAMES = sorted(path.parent.name for path in GOLDEN.glob("*/golden.npz"))


def recorded(name: str, **changes) -> Reference:
    """Return what Transformers computed for a checkpoint in tests/golden."""
    with np.load(GOLDEN / name / "golden.npz") as golden:
        one = Recording(
            text=None,
            ids=golden["ids"],
            logits=golden["logits"],
            largest=float(np.abs(golden["logits"]).max()),
            greedy=golden["greedy_ids"],
            margins=golden["margins"],
        )
        n_vocab = one.logits.shape[1]
        return Reference(
            made_with=str(golden["made_with"]),
            n_vocab=n_vocab,
            columns=np.arange(n_vocab),
            recordings=[replace(one, **changes)],
        )


@pytest.fixture(scope="module")
def llama() -> minicore.Model:
    return minicore.load(GOLDEN / "llama")


@pytest.mark.parametrize("name", NAMES)
def test_right_models_agree(name):
    (row,) = check(minicore.load(GOLDEN / name), recorded(name))
    assert row["ok"] and row["n_agree"] == row["n_new"] == 24 and row["margin"] is None
    assert row["difference"] < 1e-5


@pytest.mark.parametrize("backend", ["numba", "cpu"])
def test_other_backends_agree(llama, backend):
    (row,) = check(llama, recorded("llama"), backend)
    assert row["ok"] and row["n_agree"] == 24 and 0 < row["difference"] < 1e-5


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"rope_theta": 10100.0}),
        ("llama", {"norm_eps": 1e-3}),
        ("llama", {"activation": "relu"}),
        ("llama3-rope", {"rope_factors": None}),
        ("opt", {"position_offset": 1}),
        ("gpt2", {"activation": "relu"}),
    ],
)
def test_wrong_models_are_found(name, change):
    model = minicore.load(GOLDEN / name)
    (row,) = check(replace(model, config=model.config.replace(**change)), recorded(name))
    assert not row["ok"] and row["difference"] > 1e-4


def test_the_decoder_is_checked_as_well_as_prefill(llama, monkeypatch):
    from minicore.backends.numpy import NumpyDecoder

    step = NumpyDecoder.step
    monkeypatch.setattr(NumpyDecoder, "step", lambda self, token: step(self, token) + np.arange(112) % 2)
    (row,) = check(llama, recorded("llama"))
    assert not row["ok"]


@pytest.mark.parametrize(("part", "ok"), [(1.9, True), (2.1, False)])
def test_a_close_decision_may_go_either_way(llama, part, ok):
    golden = recorded("llama").recordings[0]
    greedy, margins = golden.greedy.copy(), golden.margins.copy()
    greedy[5] += 1
    margins[5] = part * 1e-4 * golden.largest
    (row,) = check(llama, recorded("llama", greedy=greedy, margins=margins))
    assert (row["ok"], row["n_agree"], row["margin"]) == (ok, 5, pytest.approx(part * 1e-4))


def test_the_tokenizer_is_checked():
    model = minicore.load(GOLDEN / "llama-chat")
    text = "A fox."
    ids = np.array(model.tokenizer.encode(text))
    golden = reference.from_model(model, [text], 3)
    assert check(model, golden)[0]["same_ids"] is True
    (one,) = golden.recordings
    (row,) = check(model, replace(golden, recordings=[replace(one, ids=np.append(ids, 7))]))
    assert row["same_ids"] is False and row["difference"] < 1e-6 and not row["ok"]


def test_what_is_not_finite_is_wrong(llama):
    golden = recorded("llama").recordings[0]
    logits = golden.logits.copy()
    logits[2, 3] = np.nan
    (row,) = check(llama, recorded("llama", logits=logits))
    assert row["difference"] is None and not row["ok"]


def test_texts_are_cut_to_the_context():
    model = minicore.load(GOLDEN / "llama-chat")
    golden = reference.from_model(model, ["word " * 200], 16)
    (one,) = golden.recordings
    assert len(one.ids) > model.config.n_ctx == len(one.logits) + len(one.greedy)
    assert check(model, golden)[0]["ok"]


def test_another_models_reference(llama):
    with pytest.raises(InputError, match="320 logits"):
        check(llama, reference.from_model(minicore.load(GOLDEN / "llama-chat"), ["A fox."], 3))


# --- files ---


def test_files_hold_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "N_COLUMNS", 100)
    model = minicore.load(GOLDEN / "llama-chat")
    golden = reference.from_model(model, ["The old house", "東京 🙂"], 3)
    reference.save(golden, tmp_path / "golden.npz")
    found = reference.load(tmp_path / "golden.npz")
    assert (found.made_with, found.n_vocab) == (golden.made_with, 320)
    np.testing.assert_array_equal(found.columns, np.arange(0, 320, 4))  # at most 100
    for one, other in zip(found.recordings, golden.recordings, strict=True):
        assert (one.text, one.largest) == (other.text, other.largest)
        np.testing.assert_array_equal(one.logits, other.logits[:, ::4])
        for key in ("ids", "greedy", "margins"):
            np.testing.assert_array_equal(getattr(one, key), getattr(other, key))
    assert all(row["ok"] for row in check(model, found))


@pytest.mark.parametrize("how", ["missing", "empty", "text", "another", "incomplete", "folder"])
def test_files_that_are_wrong(tmp_path, how):
    path = tmp_path / "golden.npz"
    if how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("not a file of arrays")
    elif how == "another":
        np.savez(path, x=np.zeros(3))
    elif how == "incomplete":
        np.savez(path, format=reference.FORMAT, n_texts=1, columns=np.arange(3), made_with="x", n_vocab=3)
    elif how == "folder":
        path.mkdir()
    with pytest.raises(InputError, match=r"golden\.npz"):
        reference.load(path)


# --- the command ---


def test_command_with_a_file(tmp_path, run_cli):
    path = tmp_path / "golden.npz"
    reference.save(recorded("llama"), path)
    code, out, _ = run_cli("check", GOLDEN / "llama", "--golden", path)
    assert code == 0 and "all texts agree" in out and "24/24" in out and "transformers" in out
    changed = tmp_path / "changed"
    shutil.copytree(GOLDEN / "llama", changed)
    config = json.loads((changed / "config.json").read_text()) | {"rms_norm_eps": 0.1}
    (changed / "config.json").write_text(json.dumps(config))
    code, out, _ = run_cli("check", changed, "--golden", path)
    assert code == 1 and "1 of 1 texts differ" in out
    code, out, _ = run_cli("check", changed, "--golden", path, "--json")
    report = json.loads(out)
    assert code == 1 and not report["ok"] and report["texts"][0]["difference"] > 1e-3
    assert {"model", "backend", "dtype", "reference", "tolerance"} <= set(report)


def test_command_without_transformers(tmp_path, run_cli, monkeypatch):
    monkeypatch.setattr(reference, "has_transformers", lambda: False)
    path, model = tmp_path / "golden.npz", GOLDEN / "gpt2"
    code, _, err = run_cli("check", model)
    assert code == 2 and "Transformers is not installed" in err and "--golden" in err
    code, out, err = run_cli("check", model, "--write", path, "-n", 4)
    assert code == 0 and "random ids" in out and "4/4" in out and "not installed" in err
    code, out, _ = run_cli("check", model, "--golden", path)
    assert code == 0 and f"minicore {minicore.__version__}" in out
    code, _, err = run_cli("check", model, "some text", "--write", path)
    assert code == 2 and "no tokenizer" in err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--dtype", "int8"), "--tolerance"),
        (("--tolerance", "-1"), "tolerance"),
        (("--tolerance", "nan"), "tolerance"),
        (("some text",), "TEXT"),
        (("-n", "0"), "--new-tokens"),
        (("--write", "x.npz"), "--write"),
        (("--backend", "gpu"), "backend"),
    ],
)
def test_bad_options(tmp_path, run_cli, options, named):
    path = tmp_path / "golden.npz"
    reference.save(recorded("llama"), path)
    code, out, err = run_cli("check", GOLDEN / "llama", *options, "--golden", path)
    assert code == 2 and not out and named in err


# --- with Transformers, where it is installed ---


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_command_with_transformers(name, run_cli, tmp_path):
    for package in ("torch", "transformers"):
        pytest.importorskip(package)
    code, out, err = run_cli("check", GOLDEN / name, "--write", tmp_path / "golden.npz", "--json")
    report = json.loads(out)
    assert code == 0, out + err
    assert report["reference"].startswith("Transformers ")
    assert all(row["n_agree"] == row["n_new"] == 16 for row in report["texts"])
    if name == "llama-chat":
        assert all(row["same_ids"] for row in report["texts"]) and len(report["texts"]) == 4
    code, out, _ = run_cli("check", GOLDEN / name, "--golden", tmp_path / "golden.npz")
    assert code == 0 and "Transformers " in out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", families())
def test_every_family_with_transformers(family, run_cli, tmp_path):
    pytest.importorskip("torch")
    transformers, made = pytest.importorskip("transformers"), families()[family]
    if made.config.get("model_type") not in transformers.CONFIG_MAPPING:
        pytest.skip("Transformers reads it with code of its own from the hub")
    folder = write(tmp_path / family, family, made.config, made.shapes)
    code, out, err = run_cli("check", folder)
    assert code == 0, out + err


@pytest.mark.filterwarnings("ignore")
def test_what_transformers_cannot_read(run_cli, tmp_path):
    for package in ("torch", "transformers"):
        pytest.importorskip(package)
    folder = make.write_directory(tmp_path / "mine", make.OPT, {"x": np.zeros(3, np.float32)})
    minicore.load(GOLDEN / "opt").save(tmp_path / "packed")
    code, _, err = run_cli("check", tmp_path / "packed")
    assert code == 2 and "cannot read" in err and "--golden" in err
    assert run_cli("check", folder)[0] == 2


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_with_peft(run_cli, tmp_path):
    for package in ("torch", "transformers", "peft"):
        pytest.importorskip(package)
    module = "model.layers.1.self_attn.q_proj"
    adapter = write_adapter(
        tmp_path / "adapter", tensors_of({module: random_update((32, 32))}), target_modules=[module]
    )
    code, out, err = run_cli("check", GOLDEN / "llama", "--adapter", adapter)
    assert code == 0, out + err
    assert "llama+adapter" in out


def test_the_path_is_named(run_cli):
    code, _, err = run_cli("check", Path("nowhere"), "--golden", "nowhere.npz")
    assert code == 2 and "nowhere" in err
