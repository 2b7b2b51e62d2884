"""Packed directories: what is saved comes back, mapped; decoding within a limit of memory."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import minicore as mc
from minicore import cli
from tests.helpers import GOLDEN, run_python

DTYPES = ["float32", "bfloat16", "int8", "int4"]


def raw(w):
    return w if isinstance(w, np.ndarray) else w.data


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama-bias", "opt", "gpt2", "llama3-rope", "llama-untied", "llama-chat"])
def test_a_saved_model_is_the_same_mapped(family, dtype, tmp_path):
    model = mc.load(GOLDEN / family, dtype=dtype)
    model = replace(model, recommended={"predictor": "stability", "beta": 0.5})
    model.save(tmp_path / "packed")
    again = mc.load(tmp_path / "packed")
    assert (again.config, again.dtype, again.eos_ids, again.bos_id) == (
        model.config, dtype, model.eos_ids, model.bos_id)  # fmt: skip
    assert again.recommended == model.recommended and again.mapping is not None
    for name, w in model.params.items():
        np.testing.assert_array_equal(raw(again.params[name]), raw(w), err_msg=name)
    ids = np.random.default_rng(0).integers(0, model.config.n_vocab, 12).tolist()
    for options in ({"backend": "numpy"}, {"backend": "cpu"}, {"backend": "cpu", "predictor": "griffin"}):
        outs = [m.generate(ids, max_new_tokens=5, ignore_eos=True, **options) for m in (model, again)]
        assert outs[0].token_ids == outs[1].token_ids
    if model.tokenizer:
        assert again.tokenizer.encode("the sea") == model.tokenizer.encode("the sea")
        assert again.tokenizer.chat("the sea") == model.tokenizer.chat("the sea")


def test_decoding_within_a_limit_gives_the_same_tokens(tmp_path):
    mc.load(GOLDEN / "llama-gqa", dtype="int8").save(tmp_path / "packed")
    model = mc.load(tmp_path / "packed")
    options = {"max_new_tokens": 8, "ignore_eos": True, "predictor": "stability", "beta": 0.3}
    free, held = (model.generate([3, 1, 4, 1, 5], memory_limit=m, **options) for m in (None, int(1e12)))
    assert held.token_ids == free.token_ids and held.core == free.core
    assert held.stats["bytes_per_token"] == free.stats["bytes_per_token"]


@pytest.mark.parametrize(
    "options, named",
    [
        ({"memory_limit": 0}, "memory_limit is 0"),
        ({"memory_limit": 1000, "predictor": "stability"}, "memory_limit is 1000 bytes, but"),
        ({"memory_limit": int(1e12)}, "needs a core set, and dense chose none"),
        ({"memory_limit": int(1e12), "predictor": "gate"}, "needs a core set, and gate chose none"),
        ({"memory_limit": int(1e12), "predictor": "stability", "refresh": 4}, "memory_limit and refresh"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(options, named, tmp_path):
    mc.load(GOLDEN / "llama-gqa").save(tmp_path / "packed")
    with pytest.raises(mc.InputError, match=named):
        mc.load(tmp_path / "packed").generate([1, 2, 3], **options)


def test_a_limit_needs_a_mapped_model():
    with pytest.raises(mc.InputError, match="packed by `minicore pack`"):
        mc.load(GOLDEN / "llama-gqa").generate([1, 2], memory_limit=int(1e12), predictor="stability")


@pytest.fixture
def packed(tmp_path):
    mc.load(GOLDEN / "llama-gqa", dtype="int8").save(tmp_path / "packed")
    return tmp_path / "packed"


def test_another_dtype_than_it_holds_is_refused(packed):
    assert mc.load(packed, dtype="int8").dtype == "int8"
    with pytest.raises(mc.InputError, match="is packed as int8"):
        mc.load(packed, dtype="float32")


def test_nothing_is_overwritten(packed):
    with pytest.raises(mc.InputError, match="already exists"):
        mc.load(packed).save(packed)


def change(path, function):
    values = json.loads(path.read_text())
    function(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "edit, named",
    [
        (lambda v: v.pop("config"), "expected a file that `minicore pack` wrote"),
        (lambda v: v["config"].pop("n_layers"), "expected a file that `minicore pack` wrote"),
        (lambda v: v["config"].update(n_layers=4), "tensor blocks.3.ln1.w is missing"),
        (lambda v: v["config"].update(n_layers=2), "is not a parameter of this config"),
        (lambda v: v["config"].update(n_neurons=81), "expected U8 of"),
        (lambda v: v.update(dtype="int3"), "dtype is 'int3'"),
        (lambda v: v.update(dtype="float32"), "expected F32 of"),
    ],
)
def test_a_directory_that_does_not_fit_together_is_refused(packed, edit, named):
    change(packed / "config.json", edit)
    with pytest.raises(mc.InputError, match=named):
        mc.load(packed)


def test_a_truncated_file_is_refused(packed):
    path = packed / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(mc.InputError, match="truncated"):
        mc.load(packed)


def test_the_command(tmp_path, capsys):
    target = tmp_path / "x"
    assert cli.main(["pack", str(GOLDEN / "llama-chat"), "--dtype", "int8", "-o", str(target)]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    assert cli.main(["pack", str(GOLDEN / "llama-chat"), "-o", str(target)]) == 2
    assert "already exists" in capsys.readouterr().err
    run = [
        "generate",
        "the sea",
        "-m",
        str(target),
        "-n",
        "4",
        "--predictor",
        "stability",
        "--memory-limit",
        "1e12",
    ]
    assert cli.main([*run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "int8"


MEASURE = """
import sys, numpy as np, minicore as mc
from minicore.config import ModelConfig
from minicore.backends.memory_limit import resident_bytes
model = mc.load(sys.argv[1])
limit = int(float(sys.argv[2]))
choice = {"predictor": "stability", "alpha": 0.4, "beta": 0.2, "memory_limit": limit}
out = model.generate(list(range(1, 40)), max_new_tokens=4, ignore_eos=True, **choice)
print(resident_bytes(), out.stats["weights_bytes"], out.core.fraction)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is measured on Linux")
def test_only_the_core_rows_stay_resident(tmp_path):
    """A model of which nearly all is FFN: decoding holds the fifth that was chosen, measured from outside."""
    small = mc.load(GOLDEN / "opt")
    config = small.config.replace(n_neurons=400_000)
    rng = np.random.default_rng(0)
    for name, shape in config.shapes().items():
        if small.params[name].shape != shape:
            small.params[name] = rng.standard_normal(shape).astype(np.float32)
    small = replace(small, config=config)
    small.save(tmp_path / "wide")
    ffn = sum(w.nbytes for name, w in small.params.items() if ".mlp." in name)
    assert ffn > 2e8
    for _ in range(2):  # the first may compile kernels, which takes memory of its own
        done = run_python("-c", MEASURE, tmp_path / "wide", "1e12", check=True)
    resident, weights, fraction = map(float, done.stdout.split())
    assert fraction < 0.21
    assert resident < weights - ffn + 0.25 * ffn + 250e6  # the rest is Python, Numba and BLAS
