"""How settled a core set is: curves over prefixes, the test of stability, and what auto makes of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minicore as mc
from minicore.backends.numpy import NumpyBackend
from minicore.core import stability
from minicore.core.neurons import jaccard
from minicore.core.recorder import Recorder
from minicore.core.stability import growth_marks, is_stable, prefix_cores, prefix_counts, stability_curve
from minicore.evaluation import stability as study
from minicore.generation.prediction import make_recorder, record
from tests.helpers import GOLDEN
from tests.helpers.clusters import clusters_of

fractions = st.floats(0.01, 1.0)
activations = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
    elements=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]),
)


@given(activations, fractions, fractions, st.data())
def test_the_curve_of_prefixes_equals_computing_each_anew(a, alpha, beta, data):
    lengths = sorted(data.draw(st.lists(st.integers(0, len(a)), max_size=6)))
    cores = prefix_cores(a, alpha, beta, lengths)
    anew = [mc.sentence_core(a[:n], alpha, beta) for n in lengths]
    for one, other in zip(cores, anew, strict=True):
        np.testing.assert_array_equal(one, other)
    curve = [jaccard(one, other) for one, other in zip(anew, anew[1:], strict=False)]
    np.testing.assert_array_equal(stability_curve(a, alpha, beta, lengths), curve)


@given(activations, fractions, st.data(), st.integers(1, 5))
def test_a_recorders_marks_are_the_prefixes(a, alpha, data, chunk):
    recorder = Recorder("auto", alpha, 0.5, [0], 1, a.shape[1])
    recorder.start(len(a))
    for start in range(0, len(a), chunk):
        recorder.update(0, a[start : start + chunk])
    marks = growth_marks(len(a))
    for mark, counts in zip(marks, prefix_counts(a, alpha, marks), strict=True):
        np.testing.assert_array_equal(recorder.recording.at_mark[mark][0]["counts"], counts)


@given(st.integers(0, 10_000))
def test_growth_marks_ascend_to_the_whole_prompt(n_tokens):
    marks = growth_marks(n_tokens)
    assert marks == sorted(set(marks)) and (not marks or (marks[0] > 0 and marks[-1] == n_tokens))
    assert bool(marks) == (n_tokens >= stability.SHORTEST)


def test_prefix_lengths_that_cannot_be_are_refused():
    for lengths in ([2, 1], [-1], [4]):
        with pytest.raises(mc.InputError, match="expected ascending lengths within 0 to 3"):
            prefix_counts(np.ones((3, 2)), 0.5, lengths)


def settled(n_layers=2, n=50, n_steps=3):
    return [np.tile(np.arange(n), (n_layers, 1))] * n_steps


def test_a_set_that_stays_is_more_stable_than_one_that_moves():
    rng = np.random.default_rng(0)
    moving = [np.stack([rng.permutation(50) for _ in range(2)]) for _ in range(3)]
    same, other = is_stable(settled(), 64), is_stable(moving, 64)
    assert same.score == 1 and other.score < 0.5 and same.recall > other.recall
    assert is_stable(settled(), 4096).recall >= same.recall
    assert 0 <= other.recall <= same.recall <= 1


def test_the_verdict_is_recall_against_what_is_wanted_and_says_so():
    verdict = is_stable(settled(), 512, wanted=0.8)
    assert verdict.stable and "stable: similarity of growing prefixes 1.000" in str(verdict)
    strict = is_stable(settled(), 16, wanted=1.0)
    assert not strict.stable and str(strict).startswith("not stable")
    short = is_stable([], 5)
    assert not short.stable and "too few to test" in str(short)
    with pytest.raises(mc.InputError, match="wanted recall is 0"):
        is_stable(settled(), 512, wanted=0)


@pytest.fixture(scope="module")
def model():
    return mc.load(GOLDEN / "llama-gqa")


def prompt(model, n=24, seed=0):
    return np.random.default_rng(seed).integers(0, model.config.n_vocab, n).tolist()


def test_auto_takes_a_stable_prompts_own_set(model):
    out = model.generate(prompt(model), predictor="auto", wanted=0.01, max_new_tokens=3)
    assert out.core == mc.predict(model, prompt(model), "stability")
    assert out.stats["predictor_used"] == "stability" and out.stats["why"].startswith("stable")
    assert out.stats["predictor"] == "auto"


def test_auto_decodes_an_unstable_prompt_densely_without_clusters(model):
    out = model.generate(prompt(model), predictor="auto", wanted=1.0, max_new_tokens=3)
    assert out.core is None and out.stats["core_fraction"] == 1
    assert out.stats["predictor_used"] == "dense" and "there are no clusters" in out.stats["why"]
    assert "not stable" in mc.predict(model, prompt(model), "auto", wanted=1.0).settings["why"]


def test_auto_asks_the_clusters_about_an_unstable_prompt(model):
    clusters = clusters_of(model)
    out = model.generate(
        prompt(model, 5), predictor="auto", clusters=clusters, gamma=0.3, max_new_tokens=3, backend="numpy"
    )
    assert out.stats["predictor_used"] == "similarity" and "too few" in out.stats["why"]
    assert out.core == mc.predict(model, prompt(model, 5), "similarity", clusters=clusters, gamma=0.3)


def test_the_test_of_stability_has_to_know_where_the_prompt_ends(model):
    recorder = make_recorder(model, "auto")
    with pytest.raises(mc.InputError, match="needs the prompt's length"):
        recorder.core()


def test_is_stable_of_a_model_is_what_auto_goes_by(model):
    verdict = mc.is_stable(model, prompt(model), wanted=0.01)
    assert verdict and 0 < verdict.score < 1
    assert not mc.is_stable(model, prompt(model), wanted=1.0) and not mc.is_stable(model, [1, 2])
    out = model.generate(prompt(model), predictor="auto", wanted=0.01, max_new_tokens=0)
    assert out.stats["why"] == str(verdict)


def test_the_study_measures_what_a_prompts_set_is_worth(model, monkeypatch):
    monkeypatch.setattr(study, "LENGTHS", (8, 16))
    ids = np.array(prompt(model, 26))
    rows = study.read(NumpyBackend(model), ids, range(3), alpha=0.4, horizon=10)
    assert [row["n"] for row in rows] == [8, 16]
    for row in rows:
        whole = mc.predict(model, ids[: row["n"] + 10].tolist(), "stability", beta=stability.TEST_BETA)
        own = mc.predict(model, ids[: row["n"]].tolist(), "stability", beta=stability.TEST_BETA)
        assert row["recall"] == pytest.approx(own.recall(whole))
        recorder = make_recorder(model, "auto")
        record(NumpyBackend(model), ids[: row["n"]].tolist(), recorder, mc.KVCache(model.config, row["n"]))
        assert recorder.verdict().score == pytest.approx(row["score"])


def test_the_calibration_finds_the_line_it_was_made_from():
    rng = np.random.default_rng(0)
    rows = [
        {"passage": i, "name": "x", "shift": None, "n": n, "score": float(rng.random())}
        for i in range(16)
        for n in (16, 64, 256)
    ]
    for row in rows:
        row["recall"] = 0.1 + 0.5 * row["score"] + 0.05 * np.log2(row["n"])
    found = study.calibrate(rows, wanted=0.6)
    np.testing.assert_allclose(found["score and length"]["weights"], [0.1, 0.5, 0.05], atol=1e-9)
    assert found["score and length"]["rmse"] < 1e-9 and found["score and length"]["accuracy"] > 0.95
    assert found["length alone"]["rmse"] > 0.05 and found["n_fit"] == found["n_held_out"] == 24
