"""`minicore info --sparsity`: shares of positive and zero activations, and of the energy that few hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import minicore
from minicore.evaluation.sparsity import FRACTIONS, LayerSparsity, measure
from tests.helpers import ROOT

pytestmark = pytest.mark.numpy

GOLDEN = ROOT / "tests" / "golden"


def share_of_the_largest(energy: np.ndarray, fraction: float) -> float:
    """Return the mean over rows of the share that the largest entries hold."""
    k = max(1, int(fraction * energy.shape[1]))
    return float(np.mean([sorted(row)[-k:] @ np.ones(k) / row.sum() for row in energy]))


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2"])
def test_a_model_is_measured_layer_by_layer(name):
    model = minicore.load(GOLDEN / name)
    ids = np.arange(3, 23)
    _, cache = model.run_with_cache(ids, "*.hook_post")
    found = measure(model, ids)
    assert len(found) == model.config.n_layers
    for i, row in enumerate(found):
        a = cache[f"blocks.{i}.mlp.hook_post"].astype(np.float64)
        assert row["positive"] == (a > 0).mean() and row["zero"] == (a == 0).mean()
        energy = a**2 / (a**2).sum(axis=1, keepdims=True)
        own = [share_of_the_largest(energy, fraction) for fraction in FRACTIONS]
        shared = [share_of_the_largest(energy.mean(axis=0)[None], fraction) for fraction in FRACTIONS]
        assert row["own"] == pytest.approx(own) and row["shared"] == pytest.approx(shared)
    assert (found[0]["zero"] > 0.2) == (name == "opt")


ACTIVATIONS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 12)),
    elements=st.sampled_from([0.0, 0.0, 0.5, 1.0, -1.0, -3.0, 7.0, 1e-3]),
)


@given(ACTIVATIONS, st.integers(0, 6), st.data())
def test_laws(a, split, data):
    fractions = (0.1, 0.4, 0.7, 1.0)
    whole, parts, scaled = (LayerSparsity(a.shape[1]) for _ in range(3))
    whole.add(a)
    parts.add(a[:split])
    parts.add(a[split:])
    order = data.draw(st.permutations(range(len(a))))
    scaled.add(a[order] * np.float32(4.0) ** np.arange(len(a))[:, None].astype(np.float32))
    one = whole.result(fractions)
    for other in (parts.result(fractions), scaled.result(fractions)):
        assert (other["positive"], other["zero"]) == (one["positive"], one["zero"])
        for key in ("own", "shared"):
            assert other[key] == (pytest.approx(one[key]) if a.any() else [None] * 4)
    if a.any():
        assert one["own"] == sorted(one["own"]) and one["shared"] == sorted(one["shared"])
        assert all(own >= shared - 1e-12 for own, shared in zip(one["own"], one["shared"], strict=True))
        assert one["own"][-1] == pytest.approx(1) and one["shared"][-1] == pytest.approx(1)


def test_large_tokens_count_as_much_as_others():
    layer = LayerSparsity(4)
    layer.add(np.array([[1e6, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]]))
    assert layer.result((0.25,))["shared"] == [pytest.approx(2 / 3)]


# --- the command ---


def test_command(run_cli):
    model = GOLDEN / "llama-chat"
    code, out, err = run_cli("info", "--sparsity", model, "A fox is brown.")
    assert code == 0 and not err
    rows = [line.split() for line in out.splitlines()]
    assert ["layer", "positive", "zero"] in [row[:3] for row in rows]
    assert {"0", "1", "mean"} <= {row[0] for row in rows if row}
    code, out, _ = run_cli("info", model, "A fox is brown.", "--sparsity", "--json")
    report = json.loads(out)
    loaded = minicore.load(model)
    ids = loaded.tokenizer.encode("A fox is brown.")
    assert report["layers"] == measure(loaded, ids) and report["n_tokens"] == len(ids)


def test_the_default_text_fits_the_context(run_cli):
    _, out, _ = run_cli("info", "--sparsity", GOLDEN / "llama-chat", "--json")
    assert json.loads(out)["n_tokens"] == 128


def test_a_layer_without_activations(run_cli, monkeypatch):
    from minicore.evaluation import sparsity

    def nothing(model, ids):
        layer = LayerSparsity(80)
        layer.add(np.zeros((len(ids), 80)))
        return [layer.result()]

    monkeypatch.setattr(sparsity, "measure", nothing)
    code, out, _ = run_cli("info", "--sparsity", GOLDEN / "llama-chat")
    assert code == 0 and "100.0%" in out and " -" in out
    _, out, _ = run_cli("info", "--sparsity", GOLDEN / "llama-chat", "--json")
    assert json.loads(out)["layers"][0]["own"] == [None] * 3


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ((GOLDEN / "llama-chat", "text"), "--sparsity"),
        (("--sparsity",), "MODEL"),
        (("--sparsity", GOLDEN / "llama", "text"), "tokenizer"),
        (("--sparsity", GOLDEN / "llama-chat", "fox " * 200), "context"),
        (("--sparsity", GOLDEN / "llama-chat", ""), "empty"),
    ],
)
def test_bad_options(run_cli, argv, named):
    code, out, err = run_cli("info", *argv)
    assert code == 2 and not out and named in err
