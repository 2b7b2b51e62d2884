"""LoRA adapters: a model with one is the model whose files hold W + s * B @ A; all else is refused by name.

Updates are small multiples of 1/4 and scales are powers of 2, so the update itself is exact in float32 and
the merged weights are compared bit by bit. Where PEFT is installed its merge_and_unload is asked as well.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

import minicore
from minicore import cli
from minicore.errors import InputError
from minicore.evaluation import shared_model
from minicore.generation.prediction import fingerprint
from minicore.quantization import QuantizedMatrix
from tests.helpers import ROOT
from tests.helpers import checkpoints as make
from tests.helpers.families import families, write
from tests.helpers.lora import random_update, tensors_of, write_adapter

pytestmark = pytest.mark.numpy

Q_PROJ = "model.layers.1.self_attn.q_proj"


UNTIED = make.LLAMA | {"tie_word_embeddings": False}
# Of the recorded families, one for each set of tensor names.
MODELS = {frozenset(made.shapes): name for name, made in reversed(families().items())}.values()


def matrices(shapes, swapped=False) -> dict[str, tuple[int, int]]:
    """Return (out, in) of each linear module but the head, by the name that PEFT gives it."""
    return {
        name.removesuffix(".weight"): tuple(shape[::-1] if swapped else shape)
        for name, shape in shapes.items()
        if len(shape) == 2 and not re.search("embed|wte|wpe|lm_head", name)
    }


SHAPES = matrices(make.shapes_of(UNTIED))


def assert_same(model, other):
    assert model.config == other.config
    for name, w in other.params.items():
        pairs = [(model.params[name], w)]
        if isinstance(w, QuantizedMatrix):
            pairs = [(model.params[name].codes, w.codes), (model.params[name].scales, w.scales)]
        for found, expected in pairs:
            np.testing.assert_array_equal(found, expected, err_msg=name)


@pytest.fixture
def base(tmp_path) -> Path:
    return make.write_directory(tmp_path / "base", UNTIED, make.random_tensors(UNTIED))


# --- what is computed ---


@pytest.mark.parametrize(
    ("family", "dtype"),
    [*((family, "float32") for family in MODELS)]
    + [(family, dtype) for family in ("phi3", "gpt2-relu") for dtype in ("bfloat16", "int8", "int4")],
)
def test_every_matrix_is_updated_before_it_is_converted(tmp_path, family, dtype):
    made = families()[family]
    swapped = family.startswith("gpt2")  # its files have (in, out)
    updates = {module: random_update(shape) for module, shape in matrices(made.shapes, swapped).items()}
    folder = write(tmp_path / "base", family, made.config, made.shapes)
    adapter = write_adapter(tmp_path / "adapter", tensors_of(updates), target_modules=list(updates))
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    for module, (a, b) in updates.items():
        update = np.float32(2) * (b @ a)  # lora_alpha / r
        weights[f"{module}.weight"] += update.T if swapped else update
    merged = make.write_directory(tmp_path / "merged", made.config, weights)
    model = minicore.load(folder, dtype, adapter=adapter)
    assert_same(model, minicore.load(merged, dtype))
    assert (model.name, model.adapter.path) == ("base+adapter", str(adapter))


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_short_floats_are_widened_before_the_update(tmp_path, kind):
    weights = make.random_tensors(UNTIED, kind)
    a, b = random_update((32, 24))
    folder = make.write_directory(tmp_path / "base", UNTIED, weights)
    adapter = write_adapter(tmp_path / "adapter", tensors_of({Q_PROJ: (a, b)}), target_modules=[Q_PROJ])
    found = minicore.load(folder, adapter=adapter).params["blocks.1.attn.w_q"]
    expected = weights[f"{Q_PROJ}.weight"].astype(np.float32) + np.float32(2) * (b @ a)
    np.testing.assert_array_equal(found, expected)


def test_an_adapter_may_be_in_bfloat16(tmp_path, base):
    update = random_update((32, 24))
    short = {name: w.astype(make.BF16) for name, w in tensors_of({Q_PROJ: update}).items()}
    one = write_adapter(tmp_path / "float32", tensors_of({Q_PROJ: update}), target_modules=[Q_PROJ])
    two = write_adapter(tmp_path / "bfloat16", short, target_modules=[Q_PROJ])
    assert_same(minicore.load(base, adapter=one), minicore.load(base, adapter=two))


def test_embedding_and_head_with_the_base_weights_that_peft_saves(tmp_path, base):
    weights, rng = make.random_tensors(UNTIED, seed=1), np.random.default_rng(0)
    a, b = random_update((24, 37))
    head_a, head_b = random_update((37, 24))
    embed, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    embed += rng.standard_normal(embed.shape).astype(np.float32)
    tensors = {
        "base_model.model.model.embed_tokens.lora_embedding_A": a,
        "base_model.model.model.embed_tokens.lora_embedding_B": b,
        "base_model.model.model.embed_tokens.base_layer.weight": embed,
        "base_model.model.lm_head.lora_A.weight": head_a,
        "base_model.model.lm_head.lora_B.weight": head_b,
        "base_model.model.lm_head.base_layer.weight": head,
    }
    adapter = write_adapter(tmp_path / "adapter", tensors, target_modules=["embed_tokens", "lm_head"])
    model = minicore.load(base, adapter=adapter)
    np.testing.assert_array_equal(model.params["embed"], embed + np.float32(2) * (b @ a).T)
    np.testing.assert_array_equal(model.params["head"], head + np.float32(2) * (head_b @ head_a))


@pytest.mark.parametrize(
    ("changes", "r", "scale"),
    [
        ({}, 4, 2.0),
        ({"use_rslora": True}, 4, 4.0),
        ({"rank_pattern": {"q_proj": 2}}, 2, 4.0),
        ({"rank_pattern": {"k_proj": 2}}, 4, 2.0),
        ({"rank_pattern": {r"layers\.1\..*": 2, "q_proj": 4}}, 2, 4.0),  # the first that matches
        ({"rank_pattern": {"proj": 2}}, 4, 2.0),  # only whole parts of a name match
        ({"alpha_pattern": {"^model.layers.1.self_attn.q_proj": 4}}, 4, 1.0),
        ({"alpha_pattern": {"self_attn.q_proj": 16}, "rank_pattern": {"q_proj": 2}}, 2, 8.0),
    ],
)
def test_rank_and_scale(tmp_path, base, changes, r, scale):
    a, b = random_update((32, 24), r)
    adapter = write_adapter(
        tmp_path / "adapter", tensors_of({Q_PROJ: (a, b)}), target_modules=[Q_PROJ], **changes
    )
    w, adapted = (minicore.load(base, adapter=x).params["blocks.1.attn.w_q"] for x in (None, adapter))
    np.testing.assert_array_equal(adapted, w + np.float32(scale) * (b @ a))


@pytest.mark.parametrize("stored", ["", "transformer."])
@pytest.mark.parametrize("spelled", ["", "transformer."])
def test_an_adapter_may_spell_names_with_another_prefix(tmp_path, stored, spelled):
    weights = {name.replace("transformer.", stored): w for name, w in make.random_tensors(make.GPT2).items()}
    folder = make.write_directory(tmp_path / "base", make.GPT2, weights)
    a, b = random_update((24, 24))
    updates = {f"{spelled}h.{i}.attn.c_proj": (a, b) for i in range(2)}
    adapter = write_adapter(tmp_path / "adapter", tensors_of(updates), target_modules=["attn.c_proj"])
    w, adapted = (minicore.load(folder, adapter=x).params["blocks.1.attn.w_o"] for x in (None, adapter))
    np.testing.assert_array_equal(adapted, w + np.float32(2) * (b @ a))


TARGETED = [  # (config, layers and modules that it names)
    ({"target_modules": ["q_proj", "down_proj"]}, {(i, m) for i in (0, 1) for m in ("q_proj", "down_proj")}),
    ({"target_modules": r".*\.1\..*(q|k)_proj"}, {(1, "q_proj"), (1, "k_proj")}),
    ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, {(1, "q_proj")}),
    ({"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"}, {(0, "q_proj")}),
    ({"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]}, {(0, "q_proj"), (1, "q_proj")}),
    ({"target_modules": ["q_proj"], "exclude_modules": r".*\.0\..*"}, {(1, "q_proj")}),
    ({"target_modules": [Q_PROJ]}, {(1, "q_proj")}),
]


@pytest.mark.parametrize(("config", "named"), TARGETED)
def test_the_tensors_are_those_that_target_modules_names(tmp_path, base, config, named):
    shapes = {(int(m.split(".")[2]), m.rsplit(".")[-1]): m for m in SHAPES}
    updates = {shapes[key]: random_update(SHAPES[shapes[key]]) for key in sorted(named)}
    minicore.load(base, adapter=write_adapter(tmp_path / "right", tensors_of(updates), **config))
    first, *others = updates
    few = tensors_of({module: updates[module] for module in others})
    refused(base, write_adapter(tmp_path / "few", few, **config), f"has no tensors for {first}")
    other = next(module for key, module in shapes.items() if key not in named)
    many = tensors_of(updates | {other: random_update(SHAPES[other])})
    refused(base, write_adapter(tmp_path / "many", many, **config), other, "target_modules")


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
def test_a_head_or_embedding_that_is_named_needs_tensors(tmp_path, base, module):
    updates = tensors_of({Q_PROJ: random_update((32, 24))})
    adapter = write_adapter(tmp_path / "adapter", updates, target_modules=[Q_PROJ, module])
    refused(base, adapter, f"has no tensors for {module}")


# --- what is refused ---


def refused(base: Path, adapter: Path, *fragments: str) -> None:
    """Assert that loading fails with one sentence that has all the fragments."""
    with pytest.raises(InputError) as caught:
        minicore.load(base, adapter=adapter)
    told = str(caught.value)
    assert "\n" not in told and "expected" in told
    for fragment in fragments:
        assert fragment in told, told


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "ADALORA"),
        ("peft_type", None),
        ("bias", "all"),
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("layer_replication", [[0, 1]]),
        ("lora_bias", True),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("trainable_token_indices", [1]),
        ("init_lora_weights", "pissa_niter_4"),
        ("some_later_variant", {"on": True}),
        ("r", 0),
        ("r", 1.5),
        ("lora_alpha", "8"),
        ("use_rslora", "no"),
        ("rank_pattern", [4]),
        ("rank_pattern", {"q_proj": "4"}),
        ("alpha_pattern", {"(": 4}),
        ("target_modules", None),
        ("target_modules", [1]),
        ("target_modules", "("),
    ],
)
def test_settings_that_are_not_followed(tmp_path, base, key, value):
    config = {"target_modules": [Q_PROJ]} | {key: value}
    adapter = write_adapter(tmp_path / "adapter", tensors_of({Q_PROJ: random_update((32, 24))}), **config)
    refused(base, adapter, "adapter_config.json", key if value != 1.5 else "rank")


@pytest.mark.parametrize(
    ("name", "shape", "fragment"),
    [
        (f"{Q_PROJ}.lora_magnitude_vector", (32,), "plain LoRA"),
        (f"{Q_PROJ}.lora_A.default.weight", (4, 24), "plain LoRA"),
        ("model.norm.weight", (24,), "plain LoRA"),
        (f"{Q_PROJ}.lora_embedding_A", (4, 24), "does not belong"),
        (f"{Q_PROJ}.lora_A.weight", (4, 25), "expected (4, 24)"),
        (f"{Q_PROJ}.lora_A.weight", (5, 24), "expected (4, 24)"),
        (f"{Q_PROJ}.lora_B.weight", (32,), "expected (32, 4)"),
        (f"{Q_PROJ}.base_layer.weight", (31, 24), "expected (32, 24)"),
        ("model.layers.7.self_attn.q_proj.lora_A.weight", (4, 24), "does not have"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, base, name, shape, fragment):
    tensors = tensors_of({Q_PROJ: random_update((32, 24))})
    tensors[f"base_model.model.{name}"] = np.zeros(shape, np.float32)
    refused(base, write_adapter(tmp_path / "adapter", tensors, target_modules=[Q_PROJ]), name, fragment)


@pytest.mark.parametrize("part", ["lora_A.weight", "lora_B.weight"])
def test_half_an_update(tmp_path, base, part):
    tensors = tensors_of({Q_PROJ: random_update((32, 24))})
    del tensors[f"base_model.model.{Q_PROJ}.{part}"]
    refused(base, write_adapter(tmp_path / "adapter", tensors, target_modules=[Q_PROJ]), part, "missing")


def test_an_update_that_is_not_finite(tmp_path, base):
    a, b = random_update((32, 24))
    a[1, 2] = np.nan
    adapter = write_adapter(tmp_path / "adapter", tensors_of({Q_PROJ: (a, b)}), target_modules=[Q_PROJ])
    refused(base, adapter, "adapter_model.safetensors", f"{Q_PROJ}.lora_A.weight", "NaN")


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
def test_half_of_a_tied_pair(tmp_path, module):
    folder = make.write_directory(tmp_path / "base", make.LLAMA, make.random_tensors(make.LLAMA))
    a, b = random_update((37, 24))
    parts = {"lora_A.weight": a, "lora_B.weight": b}
    if module != "lm_head":
        parts = {"lora_embedding_A": b.T.copy(), "lora_embedding_B": a.T.copy()}
    tensors = {f"base_model.model.{module}.{part}": w for part, w in parts.items()}
    adapter = write_adapter(tmp_path / "adapter", tensors, target_modules=[module])
    refused(folder, adapter, module, "ties")


def test_files_that_are_not_there(tmp_path, base):
    adapter = tmp_path / "adapter"
    refused(base, adapter, str(adapter), "adapter_config.json")
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("[]")
    refused(base, adapter, "adapter_model.safetensors")
    (adapter / "adapter_model.bin").write_bytes(b"\x80\x04K\x01.")
    refused(base, adapter, "adapter_model.bin", "pickled")
    safetensors.numpy.save_file({"x": np.zeros(1)}, adapter / "adapter_model.safetensors")
    refused(base, adapter, "adapter_config.json", "JSON object")


def test_models_that_take_no_adapter(tmp_path, base):
    updates = tensors_of({Q_PROJ: random_update((32, 24))})
    adapter = write_adapter(tmp_path / "adapter", updates, target_modules=[Q_PROJ])
    minicore.load(base).save(tmp_path / "packed")
    refused(tmp_path / "packed", adapter, "packed")
    file = tmp_path / "model.gguf"
    make.write_gguf(file, "llama", make.GGUF_LLAMA, make.random_gguf_tensors("llama", make.GGUF_LLAMA))
    refused(file, adapter, "model.gguf", "directory")


# --- which model it is ---


def test_an_adapted_model_is_another_model(tmp_path, base, monkeypatch):
    updates = tensors_of({Q_PROJ: random_update((32, 24))})
    adapter = write_adapter(tmp_path / "adapter", updates, target_modules=[Q_PROJ])
    plain, adapted = minicore.load(base), minicore.load(base, adapter=adapter)
    assert fingerprint(plain) != fingerprint(adapted)
    adapted.save(tmp_path / "packed")
    packed = minicore.load(tmp_path / "packed")
    assert packed.adapter == adapted.adapter and fingerprint(packed) == fingerprint(adapted)
    for model in (adapted, packed):  # as another process of a sweep loads it
        ref = shared_model.register_model(model)
        monkeypatch.setattr(shared_model, "_loaded", {})
        found = shared_model.resolve_model(ref)
        assert_same(found, model)
        assert found.adapter == model.adapter


@pytest.mark.parametrize("command", sorted(set(cli.COMMANDS) - {"pull"}))
def test_every_command_that_loads_a_model_takes_an_adapter(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([*command.split(), "--help"])
    assert "--adapter DIR" in capsys.readouterr().out


def test_an_export_holds_the_sum(tmp_path, base, run_cli):
    updates = tensors_of({Q_PROJ: random_update((32, 24))})
    adapter = write_adapter(tmp_path / "adapter", updates, target_modules=[Q_PROJ])
    code, out, err = run_cli("export", base, "--adapter", adapter, "--format", "hf", "-o", tmp_path / "sum")
    assert code == 0, err
    assert_same(minicore.load(tmp_path / "sum"), minicore.load(base, adapter=adapter))


def test_commands_take_an_adapter(tmp_path, base, run_cli):
    updates = tensors_of({Q_PROJ: random_update((32, 24))})
    adapter = write_adapter(tmp_path / "adapter", updates, target_modules=[Q_PROJ])
    code, out, err = run_cli("info", base, "--adapter", adapter, "--json")
    assert code == 0, err
    assert json.loads(out)["adapter"]["path"] == str(adapter)
    code, out, _ = run_cli("info", base, "--adapter", adapter)
    assert code == 0 and str(adapter) in out
    code, _, err = run_cli("pack", base, "--adapter", adapter, "-o", tmp_path / "packed")
    assert code == 0, err
    assert_same(minicore.load(tmp_path / "packed"), minicore.load(base, adapter=adapter))
    code, _, err = run_cli("generate", "text", "-m", base, "--adapter", tmp_path / "nowhere")
    assert code == 2 and "nowhere" in err and "adapter_config.json" in err


# --- compared with PEFT: recorded (tests/golden/make_adapters.py), and live where it is installed ---

GOLDEN = ROOT / "tests" / "golden"


@pytest.mark.parametrize("name", ["gpt2", "llama-untied", "opt"])
def test_logits_are_those_that_peft_recorded(name):
    adapter = GOLDEN / "adapters" / name
    with np.load(adapter / "expected.npz") as expected:
        ids, logits = expected["ids"], expected["logits"]
    largest = np.abs(logits).max()
    found = minicore.load(GOLDEN / name, adapter=adapter).forward(ids)
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-5 * largest)
    assert np.abs(minicore.load(GOLDEN / name).forward(ids) - logits).max() > 0.1 * largest


LISTS = {
    "llama-relu": ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj", "lm_head", "embed_tokens"],
    "opt-350m": ["q_proj", "out_proj", "fc1", "fc2"],
    "gpt2-relu": ["c_attn", "c_proj", "c_fc"],
}
OPTIONS = {
    "plain": {},
    "scaled": {"use_rslora": True, "r": 3},
    "patterns": {"rank_pattern": {r".*\.0\..*": 2}, "alpha_pattern": {"q_proj|fc1": 3}},
    "layers": {"layers_to_transform": [1]},
    "regex": {"fan_in_fan_out": True, "target_modules": r".*\.0\..*(q_proj|fc2|attn\.c_attn|mlp\.c_proj)"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "options"),
    [
        *((family, option) for family in LISTS for option in OPTIONS),
        *((family, "plain") for family in MODELS if family not in LISTS),
    ],
)
def test_merged_as_peft_merges(tmp_path, family, options):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    made, changes = families()[family], dict(OPTIONS[options])
    if made.config.get("model_type") not in transformers.CONFIG_MAPPING:
        pytest.skip("Transformers reads it with code of its own from the hub")
    if family != "gpt2-relu":
        changes.pop("fan_in_fan_out", None)
    folder = write(tmp_path / "base", family, made.config, made.shapes)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    changes = {"target_modules": LISTS.get(family, "all-linear"), "r": 4, "lora_alpha": 6} | changes
    adapted = peft.get_peft_model(base, peft.LoraConfig(**changes))
    generator = torch.Generator().manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, 0, 0.3, generator=generator)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    model = minicore.load(folder, adapter=tmp_path / "adapter")
    expected = minicore.load(tmp_path / "merged").params
    changed = [
        name for name, w in minicore.load(folder).params.items() if not np.array_equal(w, expected[name])
    ]
    assert changed
    for name, w in expected.items():
        np.testing.assert_allclose(model.params[name], w, rtol=0, atol=1e-5 * np.abs(w).max(), err_msg=name)
    ids = np.arange(3, 15)
    with torch.no_grad():
        logits = merged(torch.tensor(ids)[None]).logits[0].numpy()
    np.testing.assert_allclose(model.forward(ids), logits, rtol=0, atol=1e-4 * np.abs(logits).max())


NAMES = [*SHAPES, "model.embed_tokens", "model.norm"]
PARTS = st.sampled_from(["q_proj", "self_attn.k_proj", "proj", "mlp", Q_PROJ, "lm_head", "embed_tokens"])


@given(
    st.lists(PARTS, min_size=1, max_size=3)
    | st.sampled_from([r".*q_proj", r"model\.layers\.0\..*", "lm_head|.*down_proj", "all-linear"]),
    st.none() | st.lists(PARTS, max_size=2) | st.just(r".*\.1\..*"),
    st.none() | st.integers(0, 2) | st.lists(st.integers(0, 2), max_size=2),
    st.none() | st.sampled_from(["layers", "h", ["h", "layers"], []]),
)
def test_modules_are_named_as_in_peft(targets, excluded, layers, pattern):
    tuners = pytest.importorskip("peft.tuners.tuners_utils")
    from types import SimpleNamespace

    from minicore.checkpoint.adapters import _is_targeted
    from minicore.checkpoint.settings import Settings

    if targets == "all-linear" or isinstance(targets, str):
        layers = None  # PEFT refuses the two together
    values = {"target_modules": targets, "exclude_modules": excluded}
    values |= {"layers_to_transform": layers, "layers_pattern": pattern}
    settings = Settings(values, Path("adapter_config.json"))
    for name in NAMES:
        kind = {"lm_head": "head", "model.embed_tokens": "embedding"}.get(name, "linear")
        if targets == "all-linear":
            continue
        theirs = tuners.check_target_module_exists(SimpleNamespace(**values), name)
        assert _is_targeted(settings, name, kind) == bool(theirs), name
