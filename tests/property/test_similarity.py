"""Similarity-guided prediction: clusters of texts, their sets and files, and fitting that can be cut off."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minicore as mc
from minicore import cli
from minicore.core import similarity
from minicore.core.similarity import Clusters, elbow, fit, kmeans, unit
from minicore.evaluation import clusters as fitting
from minicore.evaluation.clusters import fit_clusters, read_labelled
from minicore.evaluation.sweep import Workers
from minicore.generation.prediction import fingerprint
from tests.helpers import GOLDEN
from tests.helpers.clusters import clusters_of

fractions = st.floats(0.05, 1.0)
masks = hnp.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 20)))


@pytest.fixture(scope="module")
def model():
    return mc.load(GOLDEN / "llama-chat")


def texts_of(n, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 100, rng.integers(4, 12)).tolist() for _ in range(n)]


# --- arrays ---


@given(masks, st.data())
def test_a_clusters_frequency_counts_its_texts(sets, data):
    labels = data.draw(st.lists(st.sampled_from("abc"), min_size=len(sets), max_size=len(sets)))
    clusters = fit(sets, "f", labels=labels, layer=0)
    assert clusters.names == sorted(set(labels)) and clusters.sizes.sum() == len(sets)
    for i, name in enumerate(clusters.names):
        member = np.array(labels) == name
        np.testing.assert_array_equal(clusters.frequency(i), sets[member].sum(axis=0))
        assert clusters.sizes[i] == member.sum()
    np.testing.assert_array_equal(clusters.frequency(), sets.sum(axis=0))


@given(masks, fractions)
def test_packed_sets_are_the_same_as_masks(sets, gamma):
    settings = {"n_neurons": sets.shape[2]}
    one = fit(sets, "f", labels=["a"] * len(sets), layer=0)
    other = fit(np.packbits(sets, axis=-1), "f", labels=["a"] * len(sets), layer=0, settings=settings)
    np.testing.assert_array_equal(one.counts, other.counts)
    np.testing.assert_array_equal(one.centroids, other.centroids)
    assert one.core(0, gamma, [0]) == other.core(0, gamma, [0])


@given(masks)
def test_the_cluster_of_one_text_reproduces_its_set(sets):
    clusters = fit(sets[:1], "f", labels=["only"], layer=0)
    core = clusters.core(0, 1.0, range(sets.shape[1]))
    for layer, mask in enumerate(sets[0]):
        np.testing.assert_array_equal(core.neurons[layer], np.flatnonzero(mask))


@given(masks, fractions, fractions)
def test_larger_gamma_gives_a_superset(sets, gamma, other):
    clusters = fit(sets, "f", labels=["a"] * len(sets), layer=0)
    small, large = (set(clusters.core(0, one, [0]).neurons[0]) for one in sorted((gamma, other)))
    assert small <= large


@given(hnp.arrays(np.float32, (6, 3), elements=st.floats(-2, 2, width=32)), st.integers(1, 100))
def test_a_vectors_length_does_not_decide_its_cluster(vectors, times):
    sets = np.ones((6, 1, 3), bool)
    clusters = fit(sets, "f", labels=list("aabbcc"), embeddings=vectors)
    assert clusters.layer is None
    for vector in unit(vectors):
        distances = ((clusters.centroids - vector) ** 2).sum(axis=1)
        nearest, next_nearest = np.sort(distances)[:2]
        if next_nearest - nearest > 1e-4:  # of equally near ones rounding chooses
            assert clusters.assign(vector * times) == clusters.assign(vector) == int(np.argmin(distances))


def test_kmeans_finds_clusters_that_are_there():
    rng = np.random.default_rng(0)
    centres = np.eye(6, 20) * 10
    true = np.repeat(np.arange(6), 15)
    vectors = centres[true] + rng.standard_normal((90, 20)) * 0.3
    for k in (6, None):
        member = kmeans(vectors, k)
        assert len(set(member)) == 6
        assert len({(a, b) for a, b in zip(true, member, strict=True)}) == 6
    np.testing.assert_array_equal(kmeans(vectors, 6, seed=1), kmeans(vectors, 6, seed=1))


def test_the_elbow_is_where_the_curve_bends():
    assert elbow([100, 60, 20, 18, 16, 14]) == 2
    assert elbow([5.0]) == elbow([5.0, 4.0]) == 0


def test_fewer_texts_than_clusters_are_refused():
    with pytest.raises(mc.InputError, match="3 distinct texts cannot make 4 clusters"):
        kmeans(np.eye(3))
    with pytest.raises(mc.InputError, match="cannot make 0 clusters"):
        kmeans(np.eye(3), 0)
    assert len(set(kmeans(np.eye(4)))) == 4


@pytest.mark.parametrize("options, said", [
    ({"labels": ["a"]}, "1 labels for 2 texts"),
    ({"labels": ["a", "b"], "layer": 5}, "layer 5 is out of range"),
    ({"embeddings": np.ones((3, 2))}, r"shape \(3, 2\), expected \(2, d\)"),
    ({"embeddings": np.array([[1.0], [np.nan]])}, "finite numbers"),
])  # fmt: skip
def test_what_cannot_be_clustered_is_refused(options, said):
    with pytest.raises(mc.InputError, match=said):
        fit(np.ones((2, 1, 4), bool), "f", **options)


@given(st.integers(1, 5), st.integers(0, 99))
def test_clusters_come_back_from_their_file(tmp_path_factory, n_clusters, seed):
    path = tmp_path_factory.mktemp("clusters") / "a"
    clusters = clusters_of(mc.load(GOLDEN / "llama-chat"), n_clusters, seed)
    clusters.save(path)
    again = Clusters.load(path)
    for name in ("counts", "sizes", "centroids"):
        np.testing.assert_array_equal(getattr(again, name), getattr(clusters, name))
    assert (again.layer, again.names, again.fingerprint, again.settings) == (
        (clusters.layer, clusters.names, clusters.fingerprint, clusters.settings)
    )
    assert repr(again) == repr(clusters)


def test_files_that_are_no_clusters_are_refused(tmp_path):
    with pytest.raises(mc.InputError, match="does not exist"):
        Clusters.load(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"nonsense")
    with pytest.raises(mc.InputError, match="is not a clusters file"):
        Clusters.load(tmp_path / "bad")
    mc.CoreSet({}, 4, 2).save(tmp_path / "core")
    with pytest.raises(mc.InputError, match="is not a clusters file"):
        Clusters.load(tmp_path / "core")


# --- on a model ---


def test_clusters_of_another_model_are_refused(model):
    other = mc.load(GOLDEN / "opt")
    with pytest.raises(mc.InputError, match="fitted on another model than opt"):
        mc.predict(other, [1, 2], "similarity", clusters=clusters_of(model))
    assert fingerprint(model) != fingerprint(other)
    assert fingerprint(model) == fingerprint(mc.load(GOLDEN / "llama-chat", dtype="bfloat16"))


def test_a_model_with_one_weight_changed_has_another_fingerprint(model):
    changed = mc.load(GOLDEN / "llama-chat")
    changed.params["ln_f.w"] = changed.params["ln_f.w"] * np.float32(1.5)
    assert fingerprint(changed) != fingerprint(model)


def test_a_cluster_of_one_text_predicts_the_texts_own_set(model):
    text = texts_of(1)[0]
    clusters = fit_clusters(model, [text], ["only"])
    assert mc.predict(model, text, "similarity", clusters=clusters) == mc.predict(model, text, "stability")
    assert mc.predict(model, [5, 6], "static", clusters=clusters) == mc.predict(model, text, "stability")


def test_a_text_of_a_cluster_is_assigned_to_it(model):
    texts = texts_of(6)
    labels = [str(i) for i in range(6)]
    clusters = fit_clusters(model, texts, labels, layer=0)
    for text, label in zip(texts, labels, strict=True):
        core = mc.predict(model, text, "similarity", clusters=clusters)
        # each text is its cluster's only one, unless another has the very same set in layer 0
        assert core == mc.predict(model, text, "stability"), label


@pytest.mark.parametrize("predictor", ["stability", "griffin"])
def test_a_cluster_keeps_what_most_of_its_texts_have(model, predictor):
    texts = texts_of(5)
    clusters = fit_clusters(model, texts, ["a"] * 5, predictor=predictor, beta=0.3)
    cores = [mc.predict(model, text, predictor, beta=0.3) for text in texts]
    for layer in range(model.config.n_layers):
        counts = np.bincount(
            np.concatenate([core.neurons[layer] for core in cores]), minlength=model.config.n_neurons
        )
        np.testing.assert_array_equal(clusters.counts[0, layer], counts)
    kept = mc.predict(model, texts[0], "similarity", gamma=0.2, clusters=clusters)
    assert kept == clusters.core(0, 0.2, range(model.config.n_layers))
    assert kept.settings["predictor"] == "similarity" and kept.settings["beta"] == 0.2


def test_embeddings_cluster_and_assign(model):
    texts, rng = texts_of(8), np.random.default_rng(0)
    embeddings = rng.standard_normal((8, 5))
    clusters = fit_clusters(model, texts, k=2, embeddings=embeddings)
    assert clusters.layer is None and len(clusters.names) == 2
    core = mc.predict(model, texts[0], "similarity", clusters=clusters, embedding=embeddings[0])
    cluster = clusters.assign(embeddings[0].astype(np.float32))
    assert core == clusters.core(cluster, 0.4, range(model.config.n_layers))
    with pytest.raises(mc.InputError, match="need the prompt's embedding"):
        mc.predict(model, texts[0], "similarity", clusters=clusters)
    with pytest.raises(mc.InputError, match=r"shape \(3,\), expected \(5,\)"):
        mc.predict(model, texts[0], "similarity", clusters=clusters, embedding=np.ones(3))


def test_another_alpha_than_the_clusters_is_refused(model):
    with pytest.raises(mc.InputError, match="fitted with alpha 0.4, but alpha is 0.3"):
        mc.predict(model, [5, 6], "similarity", alpha=0.3, clusters=clusters_of(model))


# --- fitting that is cut off ---


class CutOff(Exception):
    pass


def test_two_processes_fit_the_same(model, tmp_path):
    texts, labels = texts_of(6), list("ababab")
    one, two = (fit_clusters(model, texts, labels, workers=Workers(n)) for n in (1, 2))
    np.testing.assert_array_equal(one.counts, two.counts)
    np.testing.assert_array_equal(one.centroids, two.centroids)


def test_sets_that_come_in_any_order_are_kept_up_to_the_first_that_is_missing(tmp_path):
    def work():
        return fitting.PartialSets(tmp_path / "p", "f", {"n_neurons": 8}, list("abcd"), 1)

    def found():
        for i in (1, 0, 3):
            yield i, np.full((1, 1), i + 1, np.uint8)
        raise CutOff

    with pytest.raises(CutOff):
        work().collect(found())
    again = work()
    assert again.n_done == 2 and again.sets.ravel().tolist() == [1, 2, 0, 0]
    rest = [(1, np.full((1, 1), 4, np.uint8)), (0, np.full((1, 1), 3, np.uint8))]
    assert again.collect(iter(rest)).ravel().tolist() == [1, 2, 3, 4]


def test_a_fit_that_was_cut_off_goes_on_where_it_was(model, tmp_path, monkeypatch):
    texts, labels, partial = texts_of(6), list("ababab"), tmp_path / "p"
    whole = fit_clusters(model, texts, labels)
    real, read = fitting.record, []

    def record(model, ids, recorder, cache):
        if len(read) == 4:
            raise CutOff
        read.append(list(ids))
        return real(model, ids, recorder, cache)

    monkeypatch.setattr(fitting, "record", record)
    with pytest.raises(CutOff):
        fit_clusters(model, texts, labels, partial=partial)
    assert read == texts[:4] and partial.exists()
    read.clear()
    again = fit_clusters(model, texts, labels, partial=partial)
    assert read == texts[4:]
    np.testing.assert_array_equal(again.counts, whole.counts)
    np.testing.assert_array_equal(again.centroids, whole.centroids)
    monkeypatch.undo()
    for changed in ({"texts": texts[::-1]}, {"beta": 0.3}, {"texts": texts[:3]}):
        with pytest.raises(mc.InputError, match="unfinished fit of other texts, settings"):
            fit_clusters(model, changed.pop("texts", texts), partial=partial, k=1, **changed)
    partial.write_bytes(b"nonsense")
    with pytest.raises(mc.InputError, match="is not an unfinished cluster fit"):
        fit_clusters(model, texts, labels, partial=partial)


@pytest.mark.parametrize("options, said", [
    ({"predictor": "random"}, "makes no set from a text's own"), ({"predictor": "gate"}, "makes no set"),
    ({"max_tokens": 0}, "max_tokens is 0"), ({"labels": ["a"]}, "1 labels for 3 texts"),
    ({"alpha": 0}, "alpha"),
])  # fmt: skip
def test_a_fit_that_cannot_be_is_refused(model, options, said):
    with pytest.raises(mc.InputError, match=said):
        fit_clusters(model, texts_of(3), **options)


def test_long_texts_count_with_their_first_tokens(model):
    text = texts_of(1)[0]
    one, other = (fit_clusters(model, [long], ["a"], max_tokens=4) for long in (text, text[:4] + [7] * 30))
    np.testing.assert_array_equal(one.counts, other.counts)


def test_files_of_texts(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo \n", encoding="utf-8")
    assert read_labelled(path) == (["one", "two "], None)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "label": 3}\n{"text": "two", "label": "b"}\n')
    assert read_labelled(path) == (["one", "two"], ["3", "b"])
    path.write_text('"one"\n{"text": "two"}\n')
    assert read_labelled(path) == (["one", "two"], None)


@pytest.mark.parametrize("name, content, said", [
    ("a.txt", b"\n\n", "holds no text"), ("a.txt", b"\xff", "not UTF-8 text: byte 0xff"),
    ("a.jsonl", b"{", "line 1: is not valid JSON"), ("a.jsonl", b'{"txt": "x"}', "line 1: expected a text"),
    ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": "y"}', "1 of 2 texts have a label"),
])  # fmt: skip
def test_files_of_texts_that_cannot_be_are_refused(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(mc.InputError, match=said):
        read_labelled(path)
    with pytest.raises(mc.InputError, match="cannot be read"):
        read_labelled(tmp_path / "none")


def test_the_command_fits_clusters_that_generate_reads(tmp_path, capsys):
    texts, out = tmp_path / "t.jsonl", tmp_path / "c"
    lines = [{"text": f"the {word} is here", "label": word[0]} for word in ("apple", "ant", "bee", "boat")]
    texts.write_text("\n".join(map(json.dumps, lines)))
    model = str(GOLDEN / "llama-chat")
    assert cli.main(["cluster", "fit", str(texts), "-m", model, "-o", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["clusters"] == {"a": 2, "b": 2} and printed["texts"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "t.jsonl"]  # the unfinished fit is gone
    said = ["generate", "the ant", "-m", model, "--predictor", "similarity", "--clusters", str(out)]
    assert cli.main([*said, "--gamma", "0.25", "-n", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["core_fraction"] == 0.25
    assert cli.main(["cluster", "fit", str(tmp_path / "none"), "-m", model, "-o", str(out)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_default_layer_is_the_papers():
    assert similarity.default_layer(32) == 25
    assert similarity.default_layer(1) == 0
