"""Predictors: laws that hold for any activations, and decoding with every row of the table."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minicore as mc
from minicore.backends import make_decoder
from minicore.backends.numpy import NumpyBackend
from minicore.core.budgets import BUDGETS, layer_betas
from minicore.core.neurons import core_from_scores
from minicore.core.predictors import PREDICTORS, find_predictor, gate_threshold
from minicore.core.recorder import Recorder
from minicore.core.rules import keep_open, keep_top
from minicore.core.statistics import STATISTICS, Recording
from minicore.forward import forward, prefill
from minicore.generation.accounting import bytes_per_token
from minicore.generation.prediction import fingerprint, make_recorder, record
from minicore.kv_cache import KVCache
from tests.helpers import GOLDEN, SHARED
from tests.helpers.clusters import clusters_of

fractions = st.floats(0.01, 1.0)
shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
# few distinct values, so that ties are the rule
tied = hnp.arrays(np.float32, shapes, elements=st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0]))
smooth = hnp.arrays(np.float32, shapes, elements=st.floats(-3, 3, width=32))
activations = st.one_of(tied, smooth)

READS_PROMPT = [
    name
    for name, row in PREDICTORS.items()
    if row.records and row.scores and not (row.needs_continuation or row.refresh)
]


def recorder_of(name, a, alpha=0.5, beta=0.5, **options):
    n = a.shape[1]
    given = {name: np.linspace(1, 2, n)[None] for name in find_predictor(name).given}
    return Recorder(name, alpha, beta, [0], 1, n, given=given, **options)


def ids_of(name, a, alpha, beta, chunk=None):
    recorder = recorder_of(name, a, alpha, beta)
    for start in range(0, len(a), chunk or len(a)):
        recorder.update(0, a[start : start + (chunk or len(a))])
    return recorder.core().neurons[0]


# --- recording ---


@pytest.mark.parametrize("name", STATISTICS)
@given(a=activations, alpha=fractions, chunks=st.lists(st.integers(1, 5)))
def test_not_a_bit_of_a_statistic_depends_on_the_chunks(name, a, alpha, chunks):
    reads = STATISTICS[name].reads
    whole, pieces = (Recording([name], [0], a.shape[1], alpha) for _ in range(2))
    whole.update(0, a, reads)
    start = 0
    for size in [*chunks, len(a)]:
        pieces.update(0, a[start : start + size], reads)
        start += size
    one, other = whole.totals[0][name], pieces.totals[0][name]
    assert one.dtype == other.dtype and one.tobytes() == other.tobytes()


@given(activations, fractions, st.integers(0, 12))
def test_a_recording_that_starts_later_is_one_of_the_last_tokens(a, alpha, first):
    late, last = (Recording(["counts"], [0], a.shape[1], alpha, first=n) for n in (first, 0))
    for row in a:
        late.update(0, row[None])
    last.update(0, a[first:])
    np.testing.assert_array_equal(late.totals[0]["counts"], last.totals[0]["counts"])


@pytest.mark.parametrize("name", [name for name, row in PREDICTORS.items() if row.records])
def test_4000_tokens_of_smollm2_need_less_than_100_mb(name):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((16, 1536)).astype(np.float32)
    n_layers, n_tokens = 30, 4000
    given = {key: np.ones((n_layers, 1536)) for key in PREDICTORS[name].given}
    tracemalloc.start()
    recorder = Recorder(name, 0.4, 0.4, range(n_layers), n_layers, 1536, given=given)
    recorder.start(n_tokens)
    for layer in range(n_layers):
        for reads in recorder.recording.reads:
            for _ in range(n_tokens // len(a) if layer == 0 else 1):  # a sum does not grow with tokens
                recorder.update(layer, a, reads)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6


@pytest.mark.parametrize("bad, kind", [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_what_is_not_finite_is_refused_by_layer_and_token(bad, kind):
    a = np.ones((3, 4), np.float32)
    recorder = Recorder("griffin", 0.4, 0.4, [2, 5], 6, 4)
    recorder.update(5, a)
    a[1, 2] = bad
    with pytest.raises(mc.InputError, match=f"layer 5 contain {kind}, first in token 4"):
        recorder.update(5, a)
    recorder.update(3, a)  # nobody looks at this layer


def test_ranks_are_counted_beyond_what_16_bits_hold():
    recording = Recording(["rank_counts"], [0], 2, alpha=1.0)
    a = np.tile(np.array([[1.0, 2.0]], np.float32), (40_000, 1))
    recording.update(0, a)
    recording.update(0, a)
    assert recording.totals[0]["rank_counts"].tolist() == [[0, 80_000], [80_000, 0]]


def test_a_width_that_is_not_the_models_is_refused():
    with pytest.raises(mc.InputError, match=r"layer 0 have shape \(3, 5\), expected \(n_tokens, 4\)"):
        Recorder("stability", 0.4, 0.4, [0], 1, 4).update(0, np.ones((3, 5)))


# --- the laws of sets ---


def same_but_for_ties(ids, other, scores):
    """Two sets by scores that rounding may have shifted: equal but for neurons of one score at the cut."""
    differ = np.setxor1d(ids, other)
    assert len(ids) == len(other)
    assert not len(differ) or np.ptp(scores[differ]) <= 1e-12 * scores.max()


@pytest.mark.parametrize("name", READS_PROMPT)
@given(a=activations, alpha=fractions, beta=fractions)
def test_a_prompt_said_twice_has_the_same_set(name, a, alpha, beta):
    once, twice = (recorder_of(name, a, alpha, beta) for _ in range(2))
    once.update(0, a)
    twice.update(0, np.concatenate([a, a]))
    scores = once.scores()[0]
    np.testing.assert_allclose(twice.scores()[0], 2 * scores, rtol=1e-12)  # counts: to the last one
    ids, again = once.core().neurons[0], twice.core().neurons[0]
    if scores.dtype.kind == "i":
        np.testing.assert_array_equal(again, ids)
    else:
        same_but_for_ties(again, ids, scores)


@pytest.mark.parametrize("name", [*READS_PROMPT, "random", "weight-norm"])
@pytest.mark.parametrize("budget", BUDGETS)
@given(a=activations, alpha=fractions, betas=st.tuples(fractions, fractions))
def test_larger_beta_gives_a_superset(name, budget, a, alpha, betas):
    recorder = recorder_of(name, a, alpha, budget=budget)
    recorder.update(0, a)
    small, large = (set(recorder.core(beta).neurons[0]) for beta in sorted(betas))
    assert small <= large


@pytest.mark.parametrize("name", READS_PROMPT)
@given(
    a=hnp.arrays(np.float32, shapes, elements=st.floats(0.125, 3, width=32), unique=True),
    beta=fractions,
    random=st.randoms(use_true_random=False),
)
def test_permuted_neurons_give_the_permuted_set(name, a, beta, random):
    if name == "griffin-weighted":
        return  # its weights belong to the neurons and would have to be permuted as well
    a = a * np.array([random.choice([-1, 1]) for _ in range(a.size)], np.float32).reshape(a.shape)
    order = np.array(random.sample(range(a.shape[1]), a.shape[1]))
    one, other = recorder_of(name, a, 0.5, beta), recorder_of(name, a, 0.5, beta)
    one.update(0, a)
    other.update(0, a[:, order])
    scores = one.scores()[0]
    np.testing.assert_allclose(other.scores()[0], scores[order], rtol=1e-12)
    # among neurons of one score the lower index wins, and they have moved
    same_but_for_ties(one.core().neurons[0], order[other.core().neurons[0]], scores)


@given(activations)
def test_alpha_and_beta_of_one_keep_every_neuron_ever_positive(a):
    kept = ids_of("stability", a, 1.0, 1.0)
    np.testing.assert_array_equal(kept, np.flatnonzero((a > 0).any(axis=0)))
    np.testing.assert_array_equal(ids_of("magnitude", a, 1.0, 1.0), np.flatnonzero(a.any(axis=0)))
    np.testing.assert_array_equal(ids_of("griffin", a, 1.0, 1.0), np.flatnonzero(a.any(axis=0)))


@given(activations, fractions, fractions)
def test_stability_is_the_sentence_core_and_magnitude_that_of_sizes(a, alpha, beta):
    np.testing.assert_array_equal(ids_of("stability", a, alpha, beta), mc.sentence_core(a, alpha, beta))
    np.testing.assert_array_equal(
        ids_of("magnitude", a, alpha, beta), mc.sentence_core(np.abs(a), alpha, beta)
    )


@given(activations, fractions)
def test_coreinfer_code_is_its_definition(a, alpha):
    """Every token the same number of neurons: alpha times the prompt's mean number of positives."""
    k = math.floor(alpha * ((a > 0).sum() / len(a)))
    counts = [0] * a.shape[1]
    for row in a:
        for i in sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]:
            counts[i] += 1
    recorder = recorder_of("coreinfer-code", a, alpha)
    recorder.update(0, a)
    assert recorder.scores()[0].tolist() == counts


@pytest.mark.shared("oracle/coreinfer_code_64.npz")
def test_coreinfer_code_is_what_the_authors_code_does(smollm2_path):
    model = mc.load(smollm2_path)
    with np.load(SHARED / "oracle" / "coreinfer_code_64.npz") as theirs:
        recorder = make_recorder(model, "coreinfer-code", 0.2, 0.4, "6:27")
        record(NumpyBackend(model), theirs["ids"].tolist(), recorder, KVCache(model.config, 64))
        ours, scores = recorder.core(), recorder.scores()
        for layer in range(6, 27):
            counts, cut = theirs[f"counts_{layer}"], theirs[f"cut_{layer}"]
            # an activation within rounding of the k-th may fall on either side: a count or two
            assert np.abs(scores[layer] - counts).sum() <= 4
            assert set(np.flatnonzero(counts > cut + 1)) <= set(ours.neurons[layer])
            assert (counts[ours.neurons[layer]] >= cut - 1).all()


@given(smooth)
def test_griffin_is_the_norm_over_tokens_of_relative_activations(a):
    norms = np.linalg.norm(a.astype(float), axis=1, keepdims=True)
    relative = np.divide(a, norms, out=np.zeros(a.shape), where=norms > 0)
    recorder = recorder_of("griffin-weighted", a)
    recorder.update(0, a)
    weights = np.linspace(1, 2, a.shape[1])
    np.testing.assert_allclose(
        recorder.scores()[0], (np.linalg.norm(relative, axis=0) * weights) ** 2, rtol=1e-9, atol=1e-300
    )


@pytest.mark.parametrize("name", READS_PROMPT)
def test_corners_one_token_one_neuron_nothing_positive_and_very_many(name):
    assert ids_of(name, np.array([[2.0]], np.float32), 1.0, 1.0).tolist() == [0]
    assert ids_of(name, np.array([[2.0]], np.float32), 1.0, 0.9).tolist() == []
    assert ids_of(name, np.zeros((3, 4), np.float32), 0.5, 1.0).tolist() == []
    wide = np.random.default_rng(0).standard_normal((3, 16384)).astype(np.float32)
    assert len(ids_of(name, wide, 0.5, 0.25)) == 4096
    assert len(ids_of(name, np.ones((2, 16384), np.float32), 1.0, 0.25)) == 4096


def test_equal_scores_take_the_lower_index():
    scores = np.array([1, 3, 3, 0, 3, 1])
    assert core_from_scores(scores, 0.5).tolist() == [1, 2, 4]
    assert core_from_scores(scores, 0.7).tolist() == [0, 1, 2, 4]
    assert core_from_scores(scores, 1.0).tolist() == [0, 1, 2, 4, 5]


# --- budgets ---


@given(st.integers(1, 40), fractions, fractions)
def test_a_range_of_beta_runs_from_the_first_layer_to_the_last(n, first, last):
    betas = layer_betas(f"{first}:{last}", n)
    assert len(betas) == n and betas[0] == first
    assert n == 1 or betas[-1] == pytest.approx(last)
    assert layer_betas(betas, n) == betas and layer_betas(first, n) == [first] * n


@pytest.mark.parametrize(
    "beta, said", [("x", "fraction such as"), ("0.1:0.2:0.3", "range such as"), ([0.1], "for each of the 2"),
                   ([0.1, 2.0], "beta is 2.0"), ("0:1", "beta is 0.0"), (0, "beta is 0")]
)  # fmt: skip
def test_a_beta_that_is_none_is_refused(beta, said):
    with pytest.raises(mc.InputError, match=said):
        layer_betas(beta, 2)


@given(
    hnp.arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 8)), elements=st.integers(0, 5)),
    fractions,
)
def test_a_shared_budget_captures_the_most_that_so_many_neurons_can(scores, beta):
    layers = dict(enumerate(scores))
    betas = [beta] * len(layers)
    uniform, shared = (BUDGETS[name](layers, betas) for name in ("uniform", "share"))

    def captured(sets):
        return sum(layers[i][ids].sum() / max(layers[i].sum(), 1) for i, ids in sets.items())

    assert sum(map(len, uniform.values())) <= sum(map(len, shared.values()))
    assert sum(map(len, shared.values())) <= len(layers) * math.floor(beta * scores.shape[1])
    assert captured(shared) >= captured(uniform) - 1e-12
    assert len(layers) > 1 or np.array_equal(shared[0], uniform[0])


def test_a_shared_budget_goes_where_scores_are_spread_out():
    sets = BUDGETS["share"]({0: np.array([100, 1, 1, 1]), 1: np.array([5, 5, 5, 5])}, [0.5, 0.5])
    assert sets[0].tolist() == [0] and sets[1].tolist() == [0, 1, 2]


# --- what each token chooses ---


@given(activations, st.integers(0, 14))
def test_keep_top_keeps_the_largest_of_each_token(a, k):
    kept = keep_top(a, k)
    for row, was in zip(kept, a, strict=True):
        best = sorted(range(len(was)), key=lambda i: (-abs(was[i]), i))[:k]
        np.testing.assert_array_equal(row, [was[i] if i in best else 0 for i in range(len(was))])


@given(activations, st.floats(-1, 3))
def test_keep_open_keeps_larger_gates(gate, threshold):
    a = np.arange(1, gate.size + 1, dtype=np.float32).reshape(gate.shape)
    np.testing.assert_array_equal(keep_open(a, gate, threshold), a * (np.abs(gate) > threshold))


def test_nan_passes_the_rules():
    a = np.array([[1.0, np.nan, 3.0]], np.float32)
    assert np.isnan(keep_top(a, 1)[0, 1]) and np.isnan(keep_open(a, a, 2.0)[0, 1])


@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=st.floats(-3, 3, width=32)
    ),
    fractions,
)
def test_a_gate_threshold_lets_at_most_its_share_pass_and_hardly_less(gate, beta):
    recording = Recording(["gate_bins"], [0], gate.shape[1])
    recording.update(0, gate, "gate")
    threshold = gate_threshold(recording.totals[0], beta, gate.shape[1])
    passing = np.abs(gate) > threshold
    if beta == 1:
        assert passing.all()
    assert passing.mean() <= beta
    # the next lower bin, 2**-9 of its value below, would have let more than the share pass
    lower = np.abs(gate) >= threshold * (1 - 2**-8)
    assert threshold < 0 or lower.mean() > beta or not lower.any() or threshold < 1e-30


@given(smooth, st.data())
def test_relu_with_any_superset_of_the_active_neurons_is_dense(x, data):
    a = np.maximum(x, 0)
    w_out = np.arange(a.shape[1] * 3, dtype=np.float32).reshape(-1, 3)
    kept = (a > 0).any(axis=0) | data.draw(hnp.arrays(bool, a.shape[1]))
    np.testing.assert_allclose(a[:, kept] @ w_out[kept], a @ w_out, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(keep_open(a, a, 0.0), a)


# --- on models ---


@pytest.fixture(scope="module", params=["llama-gqa", "opt", "gpt2"])
def model(request):
    return mc.load(GOLDEN / request.param)


def prompt(model, n=20, seed=0):
    return np.random.default_rng(seed).integers(0, model.config.n_vocab, n).tolist()


def steps(model, ids, new, selection, backend):
    """Logits of decoding ``new`` after prefilling ``ids``, and the neurons used."""
    cache = KVCache(model.config, len(ids) + len(new))
    prefill(model, np.array(ids), cache)
    decoder = make_decoder(model, cache, selection, backend)
    return np.stack([decoder.step(token) for token in new]), decoder.stats.neurons_read


MIXED = ["griffin+gate", "stability+topk", "magnitude+relu"]


@pytest.mark.parametrize("name", [*PREDICTORS, *MIXED])
def test_backends_agree_and_a_masked_forward_is_the_decoding(model, name):
    ids, new = prompt(model), prompt(model, 6, seed=1)
    options = {"clusters": clusters_of(model)} if name in ("similarity", "static", "auto") else {}
    options |= {"token_beta": 0.3} if "+" in name else {}
    options |= {"continuation": new} if find_predictor(name).needs_continuation else {}
    selection = mc.predict(model, ids, name, beta=0.5, seed=1, **options)
    numpy, used = steps(model, ids, new, selection, "numpy")
    cpu, used_cpu = steps(model, ids, new, selection, "cpu")
    np.testing.assert_allclose(cpu, numpy, rtol=0, atol=2e-4)
    if isinstance(selection, mc.TokenRule):
        # an activation that rounds to zero on one backend need not on the other (GELU of very negative x)
        np.testing.assert_allclose(used_cpu, used, rtol=0.02)
    cache = KVCache(model.config, len(ids) + len(new))
    prefill(model, np.array(ids), cache)
    together = forward(model.restrict(selection), np.array(new), cache)
    np.testing.assert_allclose(together, numpy, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["topk", "gate"])
def test_a_rule_that_keeps_all_is_dense(model, name):
    ids, new = prompt(model), prompt(model, 4, seed=1)
    selection = mc.predict(model, ids, name, beta=1.0)
    for backend in ("numpy", "cpu"):
        dense, _ = steps(model, ids, new, None, backend)
        np.testing.assert_allclose(steps(model, ids, new, selection, backend)[0], dense, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_exact_relu_skipping_is_exact(backend):
    model = mc.load(GOLDEN / "opt")
    ids, new = prompt(model), prompt(model, 6, seed=1)
    dense, _ = steps(model, ids, new, None, backend)
    sparse, used = steps(model, ids, new, mc.predict(model, ids, "relu"), backend)
    np.testing.assert_allclose(sparse, dense, rtol=0, atol=1e-5)
    assert (used < len(new) * model.config.n_neurons).all()


def test_a_topk_rule_uses_k_neurons_a_token(model):
    ids, new = prompt(model), prompt(model, 4, seed=1)
    rule = mc.predict(model, ids, "topk", beta=0.25, layers=[1])
    k = math.floor(0.25 * model.config.n_neurons)
    a = {}

    def tap(name, value):
        a[name] = value.copy()

    forward(model.restrict(rule), np.array(new), KVCache(model.config, len(new)), tap)
    # ReLU may leave fewer than k that are not zero
    assert (np.count_nonzero(a["blocks.1.mlp.hook_post"], axis=1) <= k).all()
    assert np.count_nonzero(a["blocks.0.mlp.hook_post"][0]) > 0 and rule.neurons == {}


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_sliding_over_everything_and_never_again_is_stability(model, backend):
    ids = prompt(model)
    options = {"max_new_tokens": 8, "backend": backend, "ignore_eos": True}
    plain = model.generate(ids, predictor="stability", **options)
    slid = model.generate(ids, predictor="sliding", window=10**6, refresh=10**6, **options)
    assert slid.token_ids == plain.token_ids and slid.core == plain.core and slid.stats["refreshes"] == 0


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("window", [1, 5, 100])
def test_a_set_chosen_anew_is_that_of_the_last_tokens(model, backend, window):
    ids = prompt(model)
    options = {"max_new_tokens": 8, "backend": backend, "ignore_eos": True}
    out = model.generate(ids, predictor="sliding", window=window, refresh=3, **options)
    assert out.stats["refreshes"] == 2
    read = (ids + out.token_ids)[:-2]  # the last refresh came with the 6th of 8 new tokens
    if window >= len(read):  # all of it was read anew, so the set is the one of the whole text
        assert out.core == mc.predict(model, read, "stability")


def test_reading_every_token_densely_is_dense_decoding(model):
    ids = prompt(model)
    dense = model.generate(ids, predictor="dense", max_new_tokens=8, backend="numpy", ignore_eos=True)
    options = {"max_new_tokens": 8, "backend": "numpy", "ignore_eos": True}
    slid = model.generate(ids, predictor="stability", beta=0.1, refresh=1, **options)
    assert slid.token_ids == dense.token_ids and slid.stats["refreshes"] == 7
    whole = ids + slid.token_ids[:-1]
    assert slid.core.jaccard(mc.predict(model, whole, "stability", beta=0.1)) > 0.95  # sums of one token each


def test_random_is_the_same_for_the_same_seed_and_another_for_another(model):
    ids = prompt(model)
    one, same, other = (mc.predict(model, ids, "random", seed=seed) for seed in (1, 1, 2))
    assert one == same and one != other
    assert all(len(kept) == math.floor(0.4 * model.config.n_neurons) for kept in one.neurons.values())


def test_the_oracle_reads_prompt_and_continuation(model):
    ids, after = prompt(model), prompt(model, 9, seed=2)
    target = mc.predict(model, ids, "oracle", continuation=after)
    assert target == mc.predict(model, ids + after, "stability")
    given = model.generate(ids, predictor="oracle", continuation=after, max_new_tokens=3, backend="numpy")
    assert given.core == target
    dense = model.generate(ids, predictor="dense", max_new_tokens=5, backend="numpy", ignore_eos=True)
    own = model.generate(ids, predictor="oracle", max_new_tokens=5, backend="numpy", ignore_eos=True)
    assert own.core == mc.predict(model, ids + dense.token_ids, "stability")
    with pytest.raises(mc.InputError, match="oracle needs the continuation"):
        mc.predict(model, ids, "oracle")
    with pytest.raises(mc.InputError, match="stability does not read the continuation"):
        mc.predict(model, ids, "stability", continuation=after)


def test_a_recorder_calibrated_on_other_texts_ignores_the_prompt(model):
    other = prompt(model, 30, seed=5)
    fixed = mc.predict(model, prompt(model), "griffin", calibration=[other])
    assert fixed.neurons.keys() == mc.predict(model, other, "griffin").neurons.keys()
    assert fixed == mc.predict(model, other, "griffin")
    rule = mc.predict(model, prompt(model), "gate", calibration=[other])
    assert rule.limits == mc.predict(model, other, "gate").limits


def test_the_share_that_tokens_use_is_measured(model):
    ids = prompt(model)
    out = model.generate(ids, predictor="gate", beta=0.3, max_new_tokens=12, ignore_eos=True)
    dense = model.generate(ids, predictor="dense", max_new_tokens=2)
    assert 0.05 < out.stats["core_fraction"] < 0.7
    assert out.stats["bytes_per_token"] < dense.stats["bytes_per_token"] == bytes_per_token(model, None)
    assert isinstance(out.core, mc.TokenRule) and "gate" in repr(out.core)


def test_a_set_says_where_it_came_from(model):
    core = mc.predict(model, prompt(model), "griffin", beta="0.2:0.4", budget="share", layers="0:2")
    assert core.settings["predictor"] == "griffin" and core.settings["beta"] == "0.2:0.4"
    assert core.settings["prompt_tokens"] == 20 and core.settings["model"] == model.name
    assert core.settings["fingerprint"] == fingerprint(model) and list(core) == [0, 1]


@pytest.mark.parametrize("predictor, options, said", [
    ("grifin", {}, "did you mean griffin"),
    ("griffin+stability", {}, "a set's name"),
    ("gate+topk", {}, "a set's name"),
    ("griffin+gate", {}, "needs token_beta"),
    ("similarity", {}, "needs clusters"),
    ("static", {}, "needs clusters"),
    ("griffin", {"budget": "even"}, "unknown budget"),
    ("griffin", {"window": 0}, "window is 0"),
    ("griffin", {"beta": [0.1]}, "beta has 1 values"),
    ("auto", {"wanted": 2}, "wanted is 2"),
])  # fmt: skip
def test_options_that_cannot_be_are_refused(predictor, options, said):
    model = mc.load(GOLDEN / "opt")
    with pytest.raises(mc.InputError, match=said):
        model.generate([1, 2, 3], predictor=predictor, **options)


@pytest.mark.parametrize(
    "predictor, refresh, said",
    [("griffin", 0, "refresh is 0"), ("random", 3, "no prompt"), ("auto", 3, "no prompt")],
)
def test_what_cannot_be_chosen_anew_is_refused(predictor, refresh, said):
    model = mc.load(GOLDEN / "opt")
    with pytest.raises(mc.InputError, match=said):
        model.generate([1, 2, 3], predictor=predictor, refresh=refresh)


# --- core sets ---

id_sets = st.dictionaries(st.integers(0, 3), st.sets(st.integers(0, 20)))


def as_core(neurons):
    return mc.CoreSet({i: np.array(sorted(ids), int) for i, ids in neurons.items()}, 21, 4)


@given(id_sets, id_sets)
def test_union_intersection_overlap_and_recall(a, b):
    one, other = as_core(a), as_core(b)
    union, both = one | other, one & other
    assert set(union) == a.keys() & b.keys() and set(both) == a.keys() | b.keys()
    for layer in union:
        assert set(union.neurons[layer]) == a[layer] | b[layer]
        assert set(both.neurons[layer]) == a[layer] & b[layer]
    assert union.fraction >= max(one.fraction, other.fraction) - 1e-12
    assert both.fraction <= min(one.fraction, other.fraction) + 1e-12
    if union.neurons:
        shared = [len(a[i] & b[i]) for i in union]
        recall = [n / len(b[i]) if b[i] else 1 for n, i in zip(shared, union, strict=True)]
        assert one.recall(other) == pytest.approx(np.mean(recall))
        assert one.recall(other) <= one.overlap(other) + 1e-12
        assert one.overlap(other) == other.overlap(one) and one.jaccard(other) <= one.overlap(other) + 1e-12
        assert one.recall(one) == one.overlap(one) == 1


def test_a_core_file_of_another_kind_is_refused(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "x"
    save_file({"0": np.ones(3, np.float32)}, path,
              metadata={"minicore.core_set": '{"n_neurons": 4, "n_layers": 1, "settings": {}}'})  # fmt: skip
    with pytest.raises(mc.InputError, match="is not a core set file"):
        mc.CoreSet.load(path)


@settings(max_examples=20)
@given(st.integers(1, 3), fractions)
def test_all_neurons_of_any_set_decode_as_dense(seed, alpha):
    model = mc.load(GOLDEN / "llama-gqa")
    everything = mc.predict(model, prompt(model, seed=seed), "random", alpha, 1.0, seed=seed)
    assert everything.fraction == 1
    ids = prompt(model, 5, seed)
    np.testing.assert_array_equal(model.restrict(everything).forward(ids), model.forward(ids))
