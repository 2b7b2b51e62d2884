"""The paper's figures: they measure what the definitions say, and what they write is whole and kept."""

import csv
import json
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minicore
from minicore import InputError, cli, sentence_core
from minicore.backends.numpy import NumpyBackend
from minicore.cli import reproduce_page as page
from minicore.cli.reproduce import draw_picture
from minicore.core.neurons import jaccard
from minicore.evaluation.sweep import Workers
from minicore.reproduce import fig2, fig3, fig5, fig11, growth, runner, sts, topics
from minicore.reproduce.material import ALPHA, BETA, Material, nats, read_documents, sample_files
from minicore.reproduce.verdict import judge

reproduce = partial(runner.reproduce, draw=draw_picture)

NAME = "minicore-opt-core"
TOPICS = ("astronomy", "cooking", "law")
PAIRS = [
    (5.0, "A cat sat on the mat.", "The cat was sitting on a mat."),
    (4.0, "He cooks rice.", "He is cooking some rice."),
    (3.0, "The court was full.", "The judge spoke in court."),
    (1.0, "She sings well.", "The train is late."),
    (0.0, "A star is born.", "He lost his keys."),
]
SMALL = {
    "fig2": {
        "alphas": [0.4, 1.0],
        "betas": [0.4, 1.0],
        "n_tokens": 24,
        "n_texts": 3,
        "n_projected": 4,
        "tokens_each": 8,
    },
    "fig3": {"bases": [4, 16], "added": [4, 16], "lengths": [8, 16, 32], "n_texts": 3},
    "fig4": {"n_seeds": 2},
    "fig5": {"prompt_tokens": 24, "new_tokens": 6, "n_texts": 2},
    "fig6": {"betas": [0.2, 0.4], "n_tokens": 300, "n_texts": 2},
    "fig8": {"step": 8, "longest": 32, "n_texts": 3},
    "fig9": {},
    "fig11": {"width": 60},
    "fig12": {"n_tokens": 32, "n_texts": 3},
    "table1": {"betas": [0.2]},
    "table2": {"betas": [0.4], "scored": 8, "n_generated": 3, "n_texts": 2},
    "table3": {"dtypes": ["float32"], "betas": [0.4], "prompt_tokens": 8, "new_tokens": 4, "rounds": 1},
    "table4": {"scored": 8, "n_texts": 4, "n_generated": 2},
}


@pytest.fixture(scope="module")
def model() -> minicore.Model:
    return minicore.load(NAME)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """Four texts on each of three topics, and two of them longer; of the sample corpus."""
    folder = tmp_path_factory.mktemp("texts")
    lines = [json.loads(line) for path in sample_files() for line in path.read_text("utf-8").splitlines()]
    short, long = (
        [line for line in lines if (len(line["text"]) > 2500) == longer] for longer in (False, True)
    )
    chosen = [line for topic in TOPICS for line in [one for one in short if one["label"] == topic][:4]]
    paths = folder / "short.jsonl", folder / "long.jsonl"
    for path, texts in zip(paths, (chosen, long[:2]), strict=True):
        path.write_text("".join(json.dumps(line) + "\n" for line in texts), "utf-8")
    return paths


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pairs")
    for name, rows in (("a.tsv", PAIRS), ("b.tsv", PAIRS[::-1]), ("c.tsv", PAIRS[1:])):
        (folder / name).write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), "utf-8")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def material(model, files) -> Material:
    return Material(model, files)


@pytest.fixture(scope="module")
def made(model, files, pairs, tmp_path_factory) -> tuple[Path, dict]:
    """Every figure, small."""
    out = tmp_path_factory.mktemp("out")
    return out, dict(reproduce(["all"], model, out, texts=files, pairs=pairs, sizes=SMALL))


# --- what is written ---


@pytest.mark.slow
def test_all_is_every_figure(made):
    assert sorted(made[1]) == sorted(runner.EXPERIMENTS)
    assert list(made[1])[-1] == "table3"  # speed is measured when nothing else is


@pytest.mark.slow
@pytest.mark.parametrize("name", runner.EXPERIMENTS)
def test_a_figure_is_numbers_a_table_and_a_picture(made, name):
    out, found = made[0], made[1][name]
    assert json.loads((out / f"{name}.json").read_text("utf-8")) == found
    assert found["table"] and all(list(row) == list(found["table"][0]) for row in found["table"])
    assert all(len(row) == 3 for row in found["beside"]) and found["agrees"] in ("yes", "in part", "no")
    with (out / f"{name}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row, numbers in zip(rows, found["table"], strict=True):
        for column, value in numbers.items():
            if isinstance(value, list):
                estimate, low, high = (float(row[c]) for c in (column, f"{column} low", f"{column} high"))
                assert [estimate, low, high] == value and low <= estimate <= high
            else:
                assert row[column] == str(value)
    with Image.open(out / f"{name}.png") as image:
        picture = np.asarray(image.convert("L"))
    assert min(picture.shape) > 200 and (picture < 128).mean() > 0.001  # there is something on it


@pytest.mark.slow
def test_what_is_there_is_not_measured_again(made, model, files, pairs, monkeypatch):
    def refuse(material, **sizes):
        raise AssertionError("measured again")

    out, found = made
    refusing = {name: replace(one, measure=refuse) for name, one in runner.EXPERIMENTS.items()}
    with monkeypatch.context() as patch:
        patch.setattr(runner, "EXPERIMENTS", refusing)
        patch.setattr(runner, "settings", lambda name, sizes: found[name]["key"]["settings"])
        again = dict(reproduce(["all"], model, out, texts=files, pairs=pairs, sizes=SMALL))
        assert again == found
        for other in ({"seed": 1}, {"texts": files[:1]}):
            with pytest.raises(AssertionError, match="measured again"):
                list(reproduce(["fig9"], model, out, **{"texts": files, **other}))
    with pytest.raises(AssertionError, match="measured again"), monkeypatch.context() as patch:
        patch.setattr(runner, "settings", lambda name, sizes: {"n_texts": 5})
        patch.setattr(runner, "EXPERIMENTS", refusing)
        list(reproduce(["fig9"], model, out, texts=files))


@pytest.mark.slow
def test_two_workers_measure_the_same(made, model, files, tmp_path):
    names = ["fig9", "fig12"]
    found = dict(reproduce(names, model, tmp_path, texts=files, sizes=SMALL, workers=Workers(2)))
    assert sorted(found) == sorted(names)
    for name in names:
        assert found[name] | {"seconds": 0} == made[1][name] | {"seconds": 0}
        assert (tmp_path / f"{name}.png").exists()


def test_a_broken_file_is_measured_anew(model, files, tmp_path):
    (tmp_path / "fig9.json").write_text('{"half', "utf-8")
    (tmp_path / "fig9.png").write_text("of other numbers", "utf-8")
    dict(reproduce(["fig9"], model, tmp_path, texts=files))
    assert json.loads((tmp_path / "fig9.json").read_text("utf-8"))["figure"] == "fig9"
    with Image.open(tmp_path / "fig9.png") as picture:
        assert picture.width > 200


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.images, self.ids, self.text = [], [], set(), ""

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert tag not in ("script", "link", "iframe")
        self.found += [attrs[key] for key in ("href", "src") if key in attrs]
        self.images += [attrs["src"]] if tag == "img" else []
        self.ids |= {attrs["id"]} if "id" in attrs else set()


@pytest.mark.slow
def test_the_report_holds_everything_itself(made):
    out, found = made
    found = {name: dict(one) for name, one in found.items()}
    found["fig2"]["sentence"] = "<b>not bold</b>"
    text = page.write_page(found, out).read_text("utf-8")
    links = Links()
    links.feed(text)
    assert len(links.images) == len(found)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links.found)
    assert {link[1:] for link in links.found if link.startswith("#")} == links.ids
    assert "&lt;b&gt;not bold" in text
    assert all(one["sentence"] in links.text for one in found.values())


# --- what is measured ---


def test_sets_of_a_growing_text_are_the_definitions(material):
    found = fig3.measure(material, **SMALL["fig3"])
    row = next(row for row in found["table"] if (row["base"], row["added"]) == (16, 16))
    alike = []
    for document in material.long_documents(32, 3):
        _, cache = material.model.run_with_cache(document.ids, "*mlp.hook_post")
        alike += [[jaccard(*(sentence_core(a[:n], ALPHA, BETA) for n in (16, 32))) for a in cache.values()]]
    assert row["core"][0] == pytest.approx(np.mean(alike), abs=1e-3)  # compiled maths rounds otherwise


def test_meaning_is_the_centred_mean_of_the_middle_layer(material):
    documents = material.long_documents(20, 3)
    read = growth.read_growing(material, documents, [8, 20])
    states = [
        material.model.run_with_cache(document.ids, "blocks.2.hook_resid_post")[1]["blocks.2.hook_resid_post"]
        for document in documents
    ]
    centre = np.mean([x[1:8].mean(axis=0) for x in states], axis=0)
    for (_, vectors), x in zip(read, states, strict=True):
        np.testing.assert_allclose(vectors[8], x[1:8].mean(axis=0) - centre, atol=1e-4)
    np.testing.assert_allclose(np.sum([vectors[20] for _, vectors in read], axis=0), 0, atol=1e-4)


@pytest.mark.slow
def test_keeping_everything_costs_nothing(made):
    ratio = {(row["kept by"], row["fraction"]): row["ratio to dense"] for row in made[1]["fig2"]["table"]}
    np.testing.assert_allclose(ratio["alpha", 1.0], 1, atol=1e-4)  # ReLU: what is not positive is zero
    assert ratio["alpha", 0.4][0] > 1.001


def test_a_text_is_read_with_its_own_set(material):
    document, model = material.long_documents(24, 3)[0], material.model
    lost = fig2.read_restricted(NumpyBackend(model), document, [], [0.4])["beta", 0.4]
    core = minicore.predict(model, document.ids[:-1].tolist(), "stability", 0.4, 0.4)
    narrow = nats(NumpyBackend(model.restrict(core)), document.ids)
    np.testing.assert_allclose(lost, narrow - nats(NumpyBackend(model), document.ids), atol=1e-3)
    assert np.abs(lost).max() > 0.01


@pytest.mark.slow
def test_jaccard_of_pairs_of_texts(material, made):
    row, labels = made[1]["fig9"]["table"][3], material.labels
    sets = [np.flatnonzero(mask) for mask in material.cores(3)]
    alike = {True: [], False: []}
    for i, one in enumerate(sets):
        for j in range(i):
            alike[bool(labels[i] == labels[j])].append(jaccard(one, sets[j]))
    assert row["one topic"] == pytest.approx(np.mean(alike[True]), abs=1e-6)
    assert row["two topics"] == pytest.approx(np.mean(alike[False]), abs=1e-6)
    wins = [(x > y) + (x == y) / 2 for x in alike[True] for y in alike[False]]
    assert row["told apart"] == pytest.approx(np.mean(wins), abs=1e-6)


def test_cores_of_labelled_texts_are_the_definitions(material):
    document = material.labelled[5]
    _, cache = material.model.run_with_cache(document.ids, "blocks.4.mlp.hook_post")
    core = sentence_core(cache["blocks.4.mlp.hook_post"], ALPHA, BETA)
    assert jaccard(np.flatnonzero(material.cores(4)[5]), core) > 0.98


def test_clusters_of_perfect_sets_are_the_topics(material, monkeypatch):
    topic = np.unique(material.labels, return_inverse=True)[1]
    monkeypatch.setattr(
        Material,
        "directions",
        lambda self, layer: np.eye(4, dtype=np.float32)[topic] + 1e-3 * np.arange(len(topic))[:, None],
    )
    assert topics.topics_found(material, material.directions(0), 2) == (1, 1, 1)
    counts = np.array(fig11.measure(material)["drawn"]["counts"])
    assert (counts == np.diag(counts.sum(axis=0))).all()


def test_a_layer_without_activity_has_no_topics(material):
    assert topics.topics_found(material, np.zeros((len(material.labels), 8)), 1) == (0, 0, 0)


@pytest.mark.slow
def test_every_file_of_pairs_is_tested_in_turn(made, model, pairs):
    table = made[1]["table1"]["table"]
    assert [row["file"] for row in table] == ["a.tsv", "b.tsv", "c.tsv"]
    study = sts.study(model, pairs, betas=[0.2])["best_jaccard"]
    assert table[-1]["rho"] == pytest.approx(study["test_rho"])
    assert table[-1]["chosen on the others"] == f"{study['measure']}, layer {study['layer']}"


def test_clusters_are_fitted_on_texts_that_are_not_measured(material):
    measured = material.long_documents(25, 4)
    clusters = material.clusters_without([document.name for document in measured])
    assert clusters.sizes.sum() == len(material.labelled) - 4
    with pytest.raises(InputError, match="expected others to fit clusters on"):
        material.clusters_without([document.name for document in material.documents])


def test_surprise_is_the_whole_models(material):
    ids = material.long_documents(24, 2)[0].ids
    written = fig5.write_on(material, ids, 5, {"predictor": "dense"})
    logits = material.model.forward([*ids, *written["ids"]])[len(ids) - 1 : -1].astype(np.float64)
    wanted = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(5), written["ids"]]
    np.testing.assert_allclose(written["nats"], wanted, atol=1e-3)
    assert (logits.argmax(axis=1) == written["ids"]).all() and len(written["pieces"]) == 5


@pytest.mark.parametrize(
    ("checks", "agrees", "begins"),
    [
        ([(True, "one"), (True, "two")], "yes", "Agrees with the paper: one; two."),
        ([(True, "one"), (False, "two")], "in part", "Agrees in part: as in the paper, one; unlike it, two."),
        ([(False, "two")], "no", "Does not agree with the paper: two."),
    ],
)
def test_a_sentence_says_what_holds(checks, agrees, begins):
    assert judge(checks) == (agrees, begins)


# --- texts ---


def test_the_sample_corpus_is_whole():
    lines = [json.loads(line) for path in sample_files() for line in path.read_text("utf-8").splitlines()]
    labels = [line["label"] for line in lines]
    assert {label: labels.count(label) for label in labels} == dict.fromkeys(
        "astronomy cooking football gardening law medicine music programming".split(), 32
    )
    assert sum(path.stat().st_size for path in sample_files()) < 500_000
    assert len({line["text"] for line in lines}) == len(lines)


def test_a_plain_text_is_cut_into_documents(model, tmp_path):
    text = "The moon rose over the hill. " * 200
    (tmp_path / "book.txt").write_text(text, "utf-8")
    documents = read_documents(model, [tmp_path / "book.txt"])
    assert {len(document.ids) for document in documents[:-1]} == {512}
    front = len(model.tokenizer.encode(""))
    ids = [i for document in documents for i in document.ids[front:]]
    assert ids == model.tokenizer.encode(text, special=False)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["fig1"], "unknown figure 'fig1'"),
        (["fig4", "--texts", "plain.txt"], "0 texts have a label"),
        (["fig8", "--texts", "plain.txt"], "0 of the 1 texts have 384 tokens"),
        (["fig3", "--texts", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["fig3", "--texts", "broken.jsonl"], "broken.jsonl, line 1"),
        (["fig3", "--seed", "-1"], "seed is -1"),
        (["table1"], "two or more files of sentence pairs"),
        (["table1", "--pairs", "plain.txt", "plain.txt"], "plain.txt, line 1"),
    ],
)
def test_bad_input_is_one_sentence(argv, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plain.txt").write_text("The moon rose over the hill.", "utf-8")
    Path("broken.jsonl").write_text("{", "utf-8")
    assert cli.main(["reproduce", *argv, "-m", NAME, "-o", "out"]) == 2
    out, err = capsys.readouterr()
    assert not out and said in err and err.startswith("minicore: ") and err.count("\n") == 1
    assert not Path("out").exists()


def test_an_unknown_setting_is_named(model, files, tmp_path):
    with pytest.raises(InputError, match="unknown setting of fig9 'depth'"):
        list(reproduce(["fig9"], model, tmp_path, texts=files, sizes={"fig9": {"depth": 3}}))


# --- the command ---


def test_the_command_prints_numbers_and_the_sentence(files, tmp_path, capsys):
    argv = ["reproduce", "fig9", "-m", NAME, "-o", str(tmp_path), "--texts", *map(str, files)]
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    found = json.loads((tmp_path / "fig9.json").read_text("utf-8"))
    assert (
        out.startswith("fig9  Figure 9") and found["beside"][0][2] in out and "The paper: Texts on one" in out
    )
    assert " ".join(found["sentence"].split()) in " ".join(out.split())
    assert err.strip().endswith("fig9 as .json, .csv and .png")
    assert cli.main([*argv, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["fig9"]["table"] == found["table"] and "drawn" not in printed["fig9"]
