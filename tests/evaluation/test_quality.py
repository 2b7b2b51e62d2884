"""What a core set costs: the measures obey their definitions, studies resume, bad texts are named."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minicore as mc
from minicore import cli, ops
from minicore.backends.numpy import NumpyBackend
from minicore.bootstrap import bootstrap, ranks, spearman
from minicore.cli import eval_frontier, eval_quality, eval_sts
from minicore.errors import InputError
from minicore.evaluation.frontier import STEP, next_beta, search
from minicore.evaluation.quality import Conditions, Reading, Rows, Setting, grid, study
from minicore.evaluation.quality.hot_sets import read_others
from minicore.evaluation.quality.storage import key_of
from minicore.evaluation.sweep import Workers
from minicore.evaluation.texts import Passage, passages
from minicore.reproduce import sts
from tests.helpers import GOLDEN

FAMILIES = ("llama-chat", "llama-gqa", "opt", "gpt2", "qwen2")
EVERY = (
    "dense",
    "stability",
    "magnitude",
    "griffin",
    "griffin@others",
    "static",
    "oracle",
    "random",
    "topk",
    "gate",
)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request) -> mc.Model:
    return mc.load(GOLDEN / request.param)


@pytest.fixture(scope="module")
def chat() -> mc.Model:
    return mc.load(GOLDEN / "llama-chat")


def conditions(model: mc.Model, **other) -> Conditions:
    return Conditions.of(model, **{"prompt_tokens": 12, "continuation_tokens": 9, "fit_passages": 2} | other)


def draw(model: mc.Model, n: int, n_tokens: int = 22, seed: int = 0) -> list[Passage]:
    rng = np.random.default_rng(seed)
    return [Passage(f"p{i}", rng.integers(0, model.config.n_vocab, n_tokens)) for i in range(n)]


def read(model: mc.Model, *predictors: str, **other) -> Reading:
    return Reading(NumpyBackend(model), draw(model, 1)[0], conditions(model, **other), predictors)


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "birds.txt"
    path.write_text("a bird sang in the tree and the cat heard it. " * 30, encoding="utf-8")
    return path


# --- one passage ---


def test_dense_costs_nothing(model):
    row = read(model, "dense").measure(Setting("dense", 1.0), n_generated=5)
    assert row["nll"] == row["dense_nll"]
    assert (row["kl"], row["agreement"], row["recall"], row["kept"], row["common_prefix"]) == (0, 1, 1, 1, 5)
    assert row["ffn_bytes"] == sum(
        w.nbytes for block in model.blocks for name, w in block.items() if name.startswith("mlp.")
    )


def test_perplexity_is_that_of_one_forward_pass_over_everything(model):
    passage = draw(model, 1)[0]
    row = read(model, "dense").measure(Setting("dense", 1.0))
    log_probs = ops.log_softmax(model.forward(passage.ids[:-1]))
    after = np.arange(12, len(passage.ids) - 1)  # the continuation's tokens; each is asked for its successor
    direct = -log_probs[after, passage.ids[after + 1]].mean()
    assert row["nll"] == pytest.approx(direct, rel=1e-5)


def test_every_neuron_kept_is_dense(model):
    """By a choice that leaves none out: what ReLU silenced in the prompt is never in a set made from it."""
    reading = read(model, "random", "weight-norm", "topk")
    for setting in (Setting("random", 1.0), Setting("weight-norm", 1.0), Setting("topk", 1.0)):
        row = reading.measure(setting)
        assert row["nll"] == pytest.approx(row["dense_nll"], rel=1e-5)
        assert row["kl"] == pytest.approx(0, abs=1e-5)
        assert row["agreement"] == 1
        assert setting.name == "topk" or row["kept"] == 1


def test_a_set_is_measured_as_decoding_with_it_step_by_step(model):
    """The one pass over the continuation gives what a decoder gives, fed the same tokens."""
    from minicore.backends import make_decoder
    from minicore.forward import prefill
    from minicore.kv_cache import KVCache

    passage, setting = draw(model, 1)[0], Setting("griffin", 0.4)
    reading = read(model, "griffin")
    cache = KVCache(model.config, len(passage.ids))
    prefill(model, passage.ids[:12], cache)
    decoder = make_decoder(model, cache, reading.select(setting), "numpy")
    nll = [
        -ops.log_softmax(decoder.step(int(passage.ids[i])))[passage.ids[i + 1]]
        for i in range(12, len(passage.ids) - 1)
    ]
    assert reading.measure(setting)["nll"] == pytest.approx(np.mean(nll), rel=1e-5)


def test_the_set_is_the_prompts_alone(model):
    chosen = read(model, "stability").select(Setting("stability", 0.3))
    assert chosen == mc.predict(model, draw(model, 1)[0].ids[:12], "stability", 0.4, 0.3)


def test_sources_are_the_tokens_they_name(model):
    ids = draw(model, 1)[0].ids
    reading = read(model, "stability@all", "oracle", "griffin@continuation")
    whole = mc.predict(model, ids[:-1], "stability", 0.4, 0.3)
    assert reading.select(Setting("stability@all", 0.3)) == reading.select(Setting("oracle", 0.3)) == whole
    _, seen = model.run_with_cache(ids[:-1], "*.mlp.hook_post")
    for layer, chosen in reading.select(Setting("griffin@continuation", 0.3)).neurons.items():
        a = seen[f"blocks.{layer}.mlp.hook_post"][12:].astype(np.float64)
        scores = np.square(a / np.linalg.norm(a, axis=1, keepdims=True)).sum(axis=0)
        best = np.argsort(-scores, kind="stable")[: math.floor(0.3 * len(scores))]
        np.testing.assert_array_equal(chosen, np.sort(best))


def test_recall_is_the_share_of_the_target_that_was_predicted(model):
    reading = read(model, "stability", "oracle", "random")
    assert reading.measure(Setting("oracle", 0.3))["recall"] == 1
    mine, target = (reading.select(Setting(name, 0.3)) for name in ("stability", "oracle"))
    shares = [len(set(mine.neurons[i]) & set(target.neurons[i])) / len(target.neurons[i]) for i in target]
    assert reading.measure(Setting("stability", 0.3))["recall"] == pytest.approx(np.mean(shares))
    assert reading.measure(Setting("random", 0.3))["recall"] < 1


def test_settings_do_not_disturb_each_other(model):
    """Whatever was measured before on the same kv cache, a setting's row is the same to the bit."""
    settings = [Setting("griffin", 0.2), Setting("topk", 0.3), Setting("dense", 1.0), Setting("random", 0.5)]
    alone = {setting: read(model, setting.predictor).measure(setting) for setting in settings}
    reading = read(model, *(setting.predictor for setting in settings))
    for setting in [*settings, *reversed(settings)]:
        assert reading.measure(setting) == alone[setting]


def test_layers_not_named_stay_dense(model):
    reading = read(model, "griffin", layers=[0])
    row = reading.measure(Setting("griffin", 0.25))
    n = model.config.n_neurons
    kept = math.floor(0.25 * n) + (model.config.n_layers - 1) * n
    assert row["kept"] == pytest.approx(kept / (model.config.n_layers * n))


def test_bytes_are_those_of_the_rows_read(chat):
    """A set reads its rows; a token's own choice reads first what it needs to choose by."""
    n, d, layers = chat.config.n_neurons, chat.config.d_model, chat.config.n_layers
    reading = read(chat, "griffin", "topk", "gate", "griffin+topk")
    k = math.floor(0.25 * n)
    assert reading.measure(Setting("griffin", 0.25))["ffn_bytes"] == layers * 3 * k * d * 4
    top = reading.measure(Setting("topk", 0.25))
    assert top["kept"] == k / n
    assert top["ffn_bytes"] == layers * (2 * n + k) * d * 4
    gate = reading.measure(Setting("gate", 0.25))
    assert gate["ffn_bytes"] == pytest.approx(layers * (n + 2 * gate["kept"] * n) * d * 4)
    half = math.floor(0.5 * n)
    mixed = reading.measure(Setting("griffin+topk", 0.5, token_beta=0.25))
    assert mixed["kept"] == k / n
    assert mixed["ffn_bytes"] == layers * (2 * half + k) * d * 4


def test_common_prefix_counts_tokens_until_they_part(chat):
    reading = read(chat, "random")
    setting, n = Setting("random", 0.2), 8
    dense, core = (
        reading._generate(reading.backend.restrict(selection), n)
        for selection in (None, reading.select(setting))
    )
    same = next((i for i in range(n) if dense[i] != core[i]), n)
    assert reading.measure(setting, n)["common_prefix"] == same
    prompt = [int(i) for i in draw(chat, 1)[0].ids[:12]]
    out = chat.generate(prompt, max_new_tokens=n, predictor="dense", backend="numpy", ignore_eos=True)
    assert dense == out.token_ids


# --- many passages ---


def test_hot_sets_come_from_other_texts_alone(chat):
    fit, measured = draw(chat, 3, seed=7), draw(chat, 1)
    settings = grid(["griffin@others", "static"], [0.3])
    backend, predictors = NumpyBackend(chat), ["griffin@others", "static"]
    others = read_others(backend, fit, settings, conditions(chat))
    reading = Reading(backend, measured[0], conditions(chat), predictors, others.recorders, others.frequency)
    counts = sum(
        mc.token_core(chat.run_with_cache(p.ids)[1]["blocks.0.mlp.hook_post"], 0.4).sum(axis=0) for p in fit
    )
    best = np.sort(np.argsort(-counts, kind="stable")[: math.floor(0.3 * len(counts))])
    np.testing.assert_array_equal(reading.select(settings[1]).neurons[0], best)
    with pytest.raises(InputError, match="other texts"):
        study(chat, measured, settings, conditions(chat))


def test_summary_is_of_the_rows(chat):
    texts, settings = draw(chat, 6), grid(["dense", "stability"], [0.3])
    rows = Rows(conditions(chat))
    dense, core = study(chat, texts, settings, conditions(chat), rows=rows)
    of = [rows.rows[key_of(passage, settings[1])] for passage in texts]
    differences = np.array([row["nll"] - row["dense_nll"] for row in of])
    assert dense["ratio"] == (1, 1, 1)
    assert core["ratio"][0] == pytest.approx(np.exp(differences.mean()))
    assert core["ratio"][1] <= core["ratio"][0] <= core["ratio"][2]
    assert core["perplexity"][0] == pytest.approx(np.exp(np.mean([row["nll"] for row in of])))
    assert core["ratio"][0] * core["dense_perplexity"][0] == pytest.approx(core["perplexity"][0])
    assert core["n_passages"] == 6


def test_two_processes_measure_the_same(chat, tmp_path):
    texts, others = draw(chat, 3), draw(chat, 2, seed=9)
    settings, where = grid(EVERY, [0.3]), conditions(chat)
    one = study(chat, texts, settings, where, others, backend="cpu")
    assert study(chat, texts, settings, where, others, workers=Workers(2), backend="cpu") == one


def test_a_stopped_study_goes_on_with_the_same_rows(chat, tmp_path, monkeypatch):
    texts, others = draw(chat, 4), draw(chat, 2, seed=9)
    settings, where = grid(EVERY, [0.3, 0.6]), conditions(chat)
    whole = study(chat, texts, settings, where, others, Rows(where, tmp_path / "whole.jsonl"))
    measured = []
    original = Reading.measure

    def stop_in_the_third(self, setting, n_generated=0):
        if len(measured) == 2 * len(settings) + 3:
            raise KeyboardInterrupt
        measured.append(setting)
        return original(self, setting, n_generated)

    monkeypatch.setattr(Reading, "measure", stop_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        study(chat, texts, settings, where, others, Rows(where, tmp_path / "part.jsonl"))
    kept = Rows(where, tmp_path / "part.jsonl")
    assert len(kept.rows) == 2 * len(settings)
    measured.clear()
    monkeypatch.setattr(Reading, "measure", original)
    assert study(chat, texts, settings, where, others, kept) == whole
    assert (tmp_path / "part.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    monkeypatch.setattr(Reading, "__init__", None)  # nothing is read again, hot sets neither
    assert study(chat, texts, settings, where, (), Rows(where, tmp_path / "whole.jsonl")) == whole


def test_rows_of_other_conditions_are_refused(chat, tmp_path):
    path = tmp_path / "rows.jsonl"
    Rows(conditions(chat), path).add([])
    with pytest.raises(InputError, match="alpha 0.4, expected 0.2"):
        Rows(conditions(chat, alpha=0.2), path)
    with pytest.raises(InputError, match="fingerprint"):
        Rows(replace(conditions(chat), fingerprint="another model's"), path)


@pytest.mark.parametrize("line", ["{", '"text"', '{"passage": "p0"}', "[1]"])
def test_what_is_no_row_is_named_by_file_and_line(chat, tmp_path, line):
    path = tmp_path / "rows.jsonl"
    Rows(conditions(chat), path).add([])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=r"rows\.jsonl, line 2"):
        Rows(conditions(chat), path)
    path.write_text(line + "\n")
    with pytest.raises(InputError, match=r"rows\.jsonl, line 1"):
        Rows(conditions(chat), path)


def test_a_passage_of_another_length_is_refused(chat):
    with pytest.raises(InputError, match="p0 has 21 tokens, expected 22"):
        study(chat, draw(chat, 1, n_tokens=21), grid(["dense"], []), conditions(chat))


# --- texts ---


def test_passages_are_cut_end_to_end_and_drawn_by_seed(chat, text):
    ids = chat.tokenizer.encode(text.read_text(), special=False)
    front = chat.tokenizer.encode("")
    every, none = passages(chat, [text], 20, 10**6)
    step = 20 - len(front)
    assert len(every) == len(ids) // step and not none
    assert [i for p in every for i in p.ids[len(front) :]] == ids[: step * len(every)]
    assert all(list(p.ids[: len(front)]) == front for p in every)
    some, others = passages(chat, [text], 20, 4, 3, seed=1)
    names = [p.name for p in some]
    assert [p.name for p in passages(chat, [text], 20, 4, 0, seed=1)[0]] == names
    assert [p.name for p in passages(chat, [text], 20, 4, 0, seed=2)[0]] != names
    assert len({*names, *(p.name for p in others)}) == 7


def test_a_passage_may_be_one_longer_than_the_context(chat, text):
    """Its last token is only predicted, so 256 + 256 tokens and the one between fit a context of 512."""
    n = chat.config.n_ctx
    every = conditions(chat, prompt_tokens=n // 2, continuation_tokens=n - n // 2)
    found, others = passages(chat, [text], every.n_tokens, 1, 1)
    assert len(found[0].ids) == len(others[0].ids) == n + 1
    settings = grid(["static", "griffin@others", "griffin@continuation", "griffin@all", "oracle"], [0.5])
    assert all(math.isfinite(row["ratio"][0]) for row in study(chat, found, settings, every, others))
    with pytest.raises(InputError, match=f"passages of {n + 2} tokens do not fit the model's context of {n}"):
        passages(chat, [text], n + 2, 1)


def test_each_json_line_gives_its_beginning(chat, tmp_path):
    path = tmp_path / "lines.jsonl"
    long = "a bird sang in the tree and the cat heard it. " * 4
    path.write_text(f'{{"text": {json.dumps(long)}}}\n\n"too short"\n{json.dumps(long)}\n')
    found, _ = passages(chat, [path], 10, 5)
    assert [p.name for p in found] == ["lines.jsonl:1", "lines.jsonl:4"]
    np.testing.assert_array_equal(found[0].ids, found[1].ids)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'"fine"\n{"text": 3}\n', r"a\.jsonl, line 2"),
        ("a.jsonl", b'{"title": "x"}\n', r"a\.jsonl, line 1"),
        ("a.jsonl", b"plain text\n", r"a\.jsonl, line 1: is not valid JSON"),
        ("a.txt", b"caf\xe9", r"a\.txt, line 1: is not UTF-8 text: byte 0xe9 at 3"),
        ("a.txt", b"short", r"a\.txt: no passage of 22 tokens"),
        ("a.txt", b"", r"a\.txt: no passage"),
        ("a.txt", None, r"a\.txt: cannot be read"),
    ],
)
def test_malformed_texts_are_named(capsys, tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    argv = ["eval", "quality", path, "-m", GOLDEN / "llama-chat", "--prompt-tokens", 12]
    assert cli.main([str(arg) for arg in [*argv, "--continuation-tokens", 9]]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("minicore: ") and len(err.splitlines()) == 1
    assert re.search(said, err), err


# --- the command ---


def test_the_command_prints_a_table_and_writes_what_it_prints(capsys, tmp_path, text):
    out = tmp_path / "out.json"
    argv = [
        "eval",
        "quality",
        str(text),
        "-m",
        str(GOLDEN / "llama-chat"),
        "--prompt-tokens",
        "12",
        "--passages",
    ]
    argv += [
        "4",
        "--continuation-tokens",
        "9",
        "--predictors",
        "dense,griffin,topk",
        "--betas",
        ".25,0.2:0.6",
    ]
    argv += ["--generate", "3", "-o", str(out)]
    assert cli.main(argv) == 0
    table = capsys.readouterr().out.splitlines()
    written = json.loads(out.read_text())
    assert table == eval_quality.report_lines(written)
    assert [line.split()[0] for line in table[1:6]] == ["dense", "griffin", "griffin", "topk", "topk"]
    assert cli.main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == written
    rows = (tmp_path / "out.rows.jsonl").read_text().splitlines()
    assert len(rows) == 1 + 4 * 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--betas", "x"], "beta is 'x'"),
        (["--betas", "1.5"], "beta is 1.5"),
        (["--betas", "0"], "beta is 0.0"),
        (["--predictors", "grifin"], "did you mean griffin"),
        (["--predictors", "griffin@yesterday"], "griffin@yesterday"),
        (["--predictors", ","], "nothing to measure"),
        (["--predictors", "griffin+gate"], "token_beta"),
        (["--predictors", "similarity"], "clusters"),
        (["--predictors", "static", "--fit-passages", "0"], "other texts"),
        (["--passages", "0"], "passages is 0"),
        (["--prompt-tokens", "0"], "prompt-tokens is 0"),
        (["--prompt-tokens", "100000"], "context"),
        (["--layers", "7"], "layer 7"),
        (["--alpha", "2"], "alpha is 2.0"),
        (["--budget", "lavish"], "unknown budget 'lavish'"),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_wrong_options_are_one_sentence(capsys, text, options, said):
    argv = ["eval", "quality", str(text), "-m", str(GOLDEN / "llama-chat"), "--prompt-tokens", "12"]
    assert cli.main([*argv, "--continuation-tokens", "9", *options]) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1 and said in err


# --- the frontier ---


@given(st.floats(0.5, 4), st.floats(0.05, 3), st.floats(0.001, 0.5))
def test_the_search_ends_at_the_smallest_beta_within_the_loss(power, scale, target):
    """On a loss that falls as beta grows, whatever its shape, in few steps and exactly."""
    loss_at: dict[float, float] = {}
    beta: float | None = 0.7
    while beta is not None:
        assert beta not in loss_at and 0 < beta < 1
        loss_at[beta] = scale * (1 - beta) ** power
        beta = next_beta(loss_at, target)
    assert len(loss_at) <= 40
    found = min((b for b, loss in loss_at.items() if loss <= target), default=1.0)
    assert found == pytest.approx(STEP) or scale * (1 - (found - STEP)) ** power > target


def test_the_search_is_quick_where_the_loss_is_a_power():
    loss_at = {beta: 3 * (1 - beta) ** 1.7 for beta in (0.7, 0.9)}
    while (beta := next_beta(loss_at, 0.05)) is not None:
        loss_at[beta] = 3 * (1 - beta) ** 1.7
    assert len(loss_at) <= 6


def test_the_frontier_reports_what_was_measured(chat, tmp_path):
    texts, where = draw(chat, 3), conditions(chat)
    rows = Rows(where, tmp_path / "rows.jsonl")
    for row in search(chat, texts, ["topk", "random"], [0.05, 0.3], where, rows=rows, rounds=30):
        assert row["tight"]
        assert row["ratio"][0] <= 1 + row["loss"]
        same = Setting(row["predictor"], row["beta"])
        if row["beta"] < 1:
            assert study(chat, texts, [same], where, rows=rows)[0] == {
                key: value for key, value in row.items() if key not in ("loss", "tight")
            }
        less = round(row["beta"] - STEP, 6)
        if less > 0:
            lost = study(chat, texts, [Setting(row["predictor"], less)], where)[0]
            assert lost["ratio"][0] > 1 + row["loss"]


def test_the_frontier_command(capsys, tmp_path, text):
    argv = ["eval", "frontier", str(text), "-m", str(GOLDEN / "llama-chat"), "--prompt-tokens", "12"]
    argv += ["--continuation-tokens", "9", "--passages", "3", "--predictors", "topk", "--rounds", "2"]
    assert cli.main([*argv, "-o", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out.splitlines()
    written = json.loads((tmp_path / "out.json").read_text())
    assert printed == eval_frontier.report_lines(written)
    assert cli.main([*argv, "--json", "-o", str(tmp_path / "out.json")]) == 0
    assert json.loads(capsys.readouterr().out) == written
    for wrong in (["--losses", "0"], ["--losses", "x"], ["--rounds", "-1"], ["--passages", "0"]):
        assert cli.main([*argv, *wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


# --- close meaning, close neurons ---

PAIRS = "5\ta bird sang\ta bird sang\n0\ta bird sang\tthe cat heard it in the tree\n2.5\tthe cat\tthe bird\n"

PAIRED = PAIRS.replace("\n", "\t").split("\t")[:9]


@pytest.fixture
def pair_files(tmp_path) -> list[Path]:
    paths = [tmp_path / "choose.tsv", tmp_path / "test.tsv"]
    for path in paths:
        path.write_text(PAIRS, encoding="utf-8")
    return paths


def test_frequencies_are_those_of_each_tokens_core(model):
    """Texts read together are what each is on its own."""
    batch = [passage.ids[:n] for passage, n in zip(draw(model, 4), (1, 7, 22, 3), strict=True)]
    together = sts.read_batch(NumpyBackend(model), batch, 0.4, [0, 1])
    for ids, frequency in zip(batch, together, strict=True):
        _, seen = model.run_with_cache(ids, "*.mlp.hook_post")
        for layer in (0, 1):
            core = mc.token_core(seen[f"blocks.{layer}.mlp.hook_post"], 0.4)
            # a sum in another order may turn two near equal activations around, in one token
            assert np.abs(frequency[layer] - core.mean(axis=0)).sum() <= 2.01 / len(ids)


def test_measures_by_hand():
    a, b = np.array([[1.0, 0.5, 0.5, 0.0]]), np.array([[0.5, 0.5, 0.0, 1.0]])
    assert sts.jaccard(a, b, 0.5) == pytest.approx([1 / 3])  # {0, 1} and {0, 3}
    assert sts.ruzicka(a, b) == pytest.approx([1.0 / 3.0])
    assert sts.cosine(a, b) == pytest.approx([0.75 / 1.5])
    for measure in (lambda x, y: sts.jaccard(x, y, 0.5), sts.ruzicka, sts.cosine):
        assert measure(a, a) == pytest.approx([1])
        np.testing.assert_array_equal(measure(a, b), measure(b, a))
    assert sts.cosine(a, np.zeros_like(a)) == pytest.approx([0])


def test_the_same_sentence_is_most_alike_and_the_last_file_is_the_test(chat, pair_files):
    found = sts.study(chat, pair_files)
    assert found["chosen"]["test_file"] == "test.tsv"
    for of in found["rho"].values():
        assert of["choose.tsv"] == of["test.tsv"]  # the same pairs
    chosen = found["chosen"]
    at = found["layers"].index(chosen["layer"])
    assert chosen["rho_where_chosen"] == max(max(of["choose.tsv"]) for of in found["rho"].values())
    sides = [[set(chat.tokenizer.encode(text)) for text in side] for side in (PAIRED[1::3], PAIRED[2::3])]
    overlap = [len(a & b) / len(a | b) for a, b in zip(*sides, strict=True)]
    assert found["overlap"]["test.tsv"] == spearman(np.array(overlap), np.array(PAIRED[::3], float))
    assert chosen["test_rho"][0] == found["rho"][chosen["measure"]]["test.tsv"][at]


def test_the_test_file_does_not_move_what_is_chosen(chat, pair_files, tmp_path):
    other = tmp_path / "other.tsv"
    other.write_text(PAIRS.replace("5\t", "0\t", 1).replace("bird", "tree"), encoding="utf-8")
    one, two = (sts.study(chat, [pair_files[0], test]) for test in (pair_files[1], other))
    for measure, of in one["rho"].items():
        assert of["choose.tsv"] == two["rho"][measure]["choose.tsv"]
    assert [one["chosen"][key] for key in ("measure", "layer")] == [
        two["chosen"][key] for key in ("measure", "layer")
    ]


@pytest.mark.parametrize("line", ["3\tone", "x\ta bird\ta cat", "nan\ta\tb", "3\ta\tb\tc", "3\ta\t "])
def test_a_malformed_pair_is_named_by_file_and_line(capsys, pair_files, line):
    pair_files[1].write_text(PAIRS + line + "\n", encoding="utf-8")
    assert cli.main(["eval", "sts", *map(str, pair_files), "-m", str(GOLDEN / "llama-chat")]) == 2
    out, err = capsys.readouterr()
    assert not out and "test.tsv, line 4" in err and len(err.splitlines()) == 1


def test_the_sts_command(capsys, pair_files, tmp_path):
    argv = ["eval", "sts", *map(str, pair_files), "-m", str(GOLDEN / "llama-chat"), "--betas", ".3"]
    assert cli.main([*argv, "-o", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out.splitlines()
    written = json.loads((tmp_path / "out.json").read_text())
    assert printed == eval_sts.report_lines(written)
    assert cli.main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == written
    for wrong in (
        argv[:3] + argv[4:],
        [*argv, "--pairs", "1"],
        [*argv, "--seed", "-1"],
        [*argv, "--alpha", "0"],
    ):
        assert cli.main(wrong) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


# --- statistics ---


def test_bootstrap_is_the_same_under_the_same_seed():
    x = np.random.default_rng(0).standard_normal(30)
    assert bootstrap(x, seed=1) == bootstrap(x, seed=1) != bootstrap(x, seed=2)


def test_bootstrap_interval_of_a_mean_is_about_the_normal_one():
    x = np.random.default_rng(3).standard_normal(400)
    mean, low, high = bootstrap(x, n_resamples=4000)
    half = 1.96 * x.std() / 20
    assert mean == pytest.approx(x.mean())
    assert (mean - low, high - mean) == (pytest.approx(half, rel=0.1), pytest.approx(half, rel=0.1))


def test_bootstrap_of_equal_rows_has_no_width_and_of_none_is_refused():
    assert bootstrap(np.full(5, 2.0)) == (2, 2, 2)
    with pytest.raises(InputError, match="at least one"):
        bootstrap(np.zeros(0))


@given(hnp.arrays(np.float64, st.integers(1, 20), elements=st.integers(-3, 3)))
def test_ranks_by_definition(x):
    by_definition = [((x < v).sum() + 1 + (x <= v).sum()) / 2 for v in x]
    np.testing.assert_array_equal(ranks(x), by_definition)


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=20, unique=True))
def test_spearman_sees_the_order_alone(values):
    x = np.array(values, float)
    assert spearman(x, np.exp(x / 10)) == pytest.approx(1)
    assert spearman(x, -(x**3)) == pytest.approx(-1)
    assert spearman(x, np.ones(len(x))) == 0


def test_spearman_on_an_example_by_hand():
    # ranks 1 2 3 4 5 and 2 1 4 3 5: rho = 1 - 6 * 4 / (5 * 24)
    assert spearman(np.array([1.0, 2, 3, 4, 5]), np.array([20.0, 10, 40, 30, 50])) == pytest.approx(0.8)
    with pytest.raises(InputError, match="NaN"):
        spearman(np.array([1.0, np.nan]), np.array([1.0, 2]))
