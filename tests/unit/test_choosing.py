"""How tokens are chosen and where a text ends: generation_config.json, logits rules, filters, stop texts."""

import io
import json
import logging
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minicore as mc
from minicore.checkpoint.generation_config import APPLIED, NOT_APPLIED
from minicore.cli.terminal import read_prompt
from minicore.errors import InputError
from minicore.evaluation.texts import read_text
from minicore.generation.options import make_rules
from minicore.generation.sampling import make_sampler
from minicore.generation.stops import StopText
from tests.golden.make_logits_rules import ENDS, OUT
from tests.helpers import GOLDEN
from tests.helpers import checkpoints as make

pytestmark = pytest.mark.numpy

CASES = json.loads(OUT.read_text())


@pytest.fixture(scope="module")
def chat_model() -> mc.Model:
    return mc.load(GOLDEN / "llama-chat")


# --- rules and filters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(CASES)))
def test_logits_and_distributions_are_those_of_transformers(number):
    case = CASES[number]
    asked = case["settings"]
    scores = np.array([-np.inf if score is None else score for score in case["scores"]])
    rules = make_rules(asked, None, None)
    logits = rules(np.float32(case["logits"]), case["ids"], case["n_prompt"], ENDS)
    if not asked.get("do_sample"):
        np.testing.assert_allclose(logits, scores, rtol=1e-6)
        return
    sampler = make_sampler(asked["temperature"], {}, asked, np.random.default_rng(0))
    expected = np.exp(scores - scores.max())
    np.testing.assert_allclose(sampler.probabilities(logits), expected / expected.sum(), atol=1e-6)


def test_the_golden_cases_reach_every_setting():
    asked = {key for case in CASES for key in case["settings"]}
    assert asked == set(APPLIED)


def greedy_by_hand(model: mc.Model, prompt: list[int], n: int, asked: dict) -> list[int]:
    rules, ids = make_rules(asked, None, None), list(prompt)
    for _ in range(n):
        logits = rules(model.forward(ids)[-1], ids, len(prompt), model.eos_ids)
        ids.append(int(np.argmax(logits)))
    return ids[len(prompt) :]


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize(
    "asked",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": [4, 5, 6], "begin_suppress_tokens": [7]},
    ],
)
def test_what_the_checkpoint_says_holds_for_a_generation(chat_model, asked, backend):
    model = replace(chat_model, generation=asked, eos_ids=())
    prompt = model.tokenizer.encode("the sea")
    out = model.generate(prompt, max_new_tokens=16, backend=backend)
    assert out.token_ids == greedy_by_hand(model, prompt, 16, asked)
    plain = replace(chat_model, eos_ids=()).generate(prompt, max_new_tokens=16, backend=backend)
    if len(asked) == 1:
        assert out.token_ids != plain.token_ids
        off = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
        again = model.generate(prompt, max_new_tokens=16, backend=backend, **off)
        assert again.token_ids == plain.token_ids
        given_here = replace(chat_model, eos_ids=()).generate(prompt, max_new_tokens=16, **asked)
        assert given_here.token_ids == out.token_ids


def test_no_text_ends_before_it_is_as_long_as_the_checkpoint_says(chat_model):
    free = chat_model.generate("the sea", max_new_tokens=12, ignore_eos=True).token_ids
    model = replace(chat_model, eos_ids=(free[2],))
    assert len(model.generate("the sea", max_new_tokens=12).token_ids) == 2
    model = replace(model, generation={"min_new_tokens": 6})
    assert len(model.generate("the sea", max_new_tokens=12).token_ids) >= 6


def test_filters_of_the_checkpoint_hold_when_sampling(chat_model):
    model = replace(chat_model, generation={"top_k": 1})
    one = {"max_new_tokens": 12, "ignore_eos": True, "seed": 1}
    assert (
        model.generate("the sea", temperature=1.0, **one).token_ids
        == model.generate("the sea", **one).token_ids
    )
    wide = model.generate("the sea", temperature=1.0, top_k=300, **one).token_ids
    assert wide == chat_model.generate("the sea", temperature=1.0, **one).token_ids != []


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"typical_p": 0}, "typical_p is 0"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0, expected above 0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1, expected 0 or more"),
    ],
)
def test_options_outside_their_range_are_refused(chat_model, options, part):
    with pytest.raises(InputError, match=part):
        chat_model.generate("the sea", temperature=1.0, **options)


# --- generation_config.json -----------------------------------------------------------------------------


def with_generation(tmp_path, values: dict, config: dict | None = None) -> mc.Model:
    directory = make.write_directory(
        tmp_path / "m", make.LLAMA | (config or {}), make.random_tensors(make.LLAMA)
    )
    if values:
        (directory / "generation_config.json").write_text(json.dumps(values))
    return mc.load(directory)


def test_settings_are_read_and_kept_when_a_model_is_packed(tmp_path):
    values = {"repetition_penalty": 1.3, "min_p": 0.1, "top_k": 5, "use_cache": True, "num_beams": 1}
    model = with_generation(tmp_path, values)
    assert model.generation == {"repetition_penalty": 1.3, "min_p": 0.1, "top_k": 5}
    model.save(tmp_path / "packed")
    assert mc.load(tmp_path / "packed").generation == model.generation


def test_without_the_file_the_settings_are_those_of_the_config(tmp_path):
    assert with_generation(tmp_path, {}, {"no_repeat_ngram_size": 3}).generation == {
        "no_repeat_ngram_size": 3
    }
    assert with_generation(tmp_path, {"top_k": 5}, {"no_repeat_ngram_size": 3}).generation == {"top_k": 5}


def test_what_is_not_applied_is_named_once(tmp_path, caplog):
    values = {"num_beams": 4, "guidance_scale": 1.5, "top_h": 0.4, "penalty_alpha": None, "min_p": 0.1}
    with caplog.at_level(logging.WARNING, "minicore"):
        with_generation(tmp_path, values)
    (message,) = caplog.messages
    assert message.endswith("generation_config.json: not applied: num_beams 4, guidance_scale 1.5, top_h 0.4")


def test_no_setting_is_both_applied_and_not():
    assert not APPLIED.keys() & NOT_APPLIED.keys()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("repetition_penalty", 0),
        ("repetition_penalty", "1.1"),
        ("repetition_penalty", float("inf")),
        ("no_repeat_ngram_size", -1),
        ("bad_words_ids", [3]),
        ("bad_words_ids", [[]]),
        ("suppress_tokens", [1.5]),
        ("top_k", True),
        ("top_p", 2),
        ("do_sample", 1),
    ],
)
def test_a_setting_that_is_not_valid_is_refused(tmp_path, key, value):
    with pytest.raises(InputError, match=rf"generation_config\.json: {key} is .*, expected "):
        with_generation(tmp_path, {key: value})


def test_the_command_line_says_that_it_does_not_sample(run_cli, tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    for path in (GOLDEN / "llama-chat").iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    asked = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    (directory / "generation_config.json").write_text(json.dumps(asked))
    told = "generation_config.json asks for sampling (temperature 0.6, top_p 0.9); --temperature 0.6 samples"
    assert told in run_cli("generate", "the", "-m", str(directory), "-n", "2")[2]
    assert told not in run_cli("generate", "the", "-m", str(directory), "-n", "2", "--temperature", "0")[2]


# --- stop texts -----------------------------------------------------------------------------------------


def cut_by_hand(tokens: list[tuple[str, bool]], stops: list[str]) -> tuple[str, bool]:
    """Return what comes before the first stop text and whether one came; special tokens count by name."""
    whole = "".join(text for text, special in tokens if not special or any(text in stop for stop in stops))
    shown = "".join(
        ("x" if special else " ") * len(text)
        for text, special in tokens
        if not special or any(text in stop for stop in stops)
    )
    found = [at for at in map(whole.find, stops) if at >= 0]
    end = min(found, default=len(whole))
    return "".join(c for c, hidden in zip(whole[:end], shown, strict=False) if hidden == " "), bool(found)


TOKENS = st.lists(
    st.tuples(st.text("ab<", max_size=3), st.just(False))
    | st.tuples(st.sampled_from(["<e>", "<ab>"]), st.just(True)),
    max_size=8,
)
STOPS = st.lists(
    st.text("ab<e>", min_size=1, max_size=4) | st.sampled_from(["<e>", "a<e>", "<ab>b"]), max_size=3
)


@given(tokens=TOKENS, stops=STOPS)
@settings(max_examples=100, deadline=None)
def test_stop_texts_are_found_across_tokens_and_in_special_tokens(tokens, stops):
    special = {10: "<e>", 11: "<ab>"}
    ids = {name: i for i, name in special.items()}
    stream, text = StopText(stops, special), ""
    for piece, is_special in tokens:
        if not stream.found:
            text += stream.push("" if is_special else piece, ids[piece] if is_special else 1)
    if not stream.found:
        text += stream.flush("")
    expected, found = cut_by_hand(tokens, stops)
    assert (text, stream.found) == (expected, found)


def test_a_special_token_stops_a_generation(chat_model):
    tokenizer = chat_model.tokenizer
    special = tokenizer.special_names()
    token_id, name = next((i, name) for i, name in special.items() if name == "<|im_end|>")
    free = chat_model.generate("the sea", max_new_tokens=8, ignore_eos=True).token_ids
    # A model that says the token after five others: whatever it would have said there is made impossible.
    bias = {"bad_words_ids": [[free[4], i] for i in range(chat_model.config.n_vocab) if i != token_id]}
    model = replace(chat_model, generation=bias, eos_ids=())
    out = model.generate("the sea", max_new_tokens=8)
    assert token_id in out.token_ids and name not in out.text and out.stats["stop_reason"] == "length"
    stopped = model.generate("the sea", max_new_tokens=8, stop=name)
    assert stopped.stats["stop_reason"] == "stop" and stopped.token_ids[-1] == token_id
    assert stopped.text == tokenizer.decode(stopped.token_ids[:-1], skip_special=True)
    both = model.generate("the sea", max_new_tokens=8, stop=stopped.text[-1] + name)
    assert both.text == stopped.text[:-1] and both.stats["stop_reason"] == "stop"


def test_stop_texts_need_a_tokenizer():
    with pytest.raises(InputError, match="stop needs a tokenizer"):
        mc.load(GOLDEN / "llama-gqa").generate([1, 2], stop="x")


# --- standard input and files ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"hi\n", "hi"),
        (b"hi\r\n", "hi"),
        (b"hi\n\n", "hi\n"),
        (b"hi\r\n\r\n", "hi\r\n"),
        (b"hi\r", "hi\r"),
        (b"\r\n", ""),
        (b"\xef\xbb\xbfhi", "hi"),
        (b"hi\xef\xbb\xbf", "hi\ufeff"),
    ],
)
def test_standard_input(monkeypatch, raw, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert read_prompt("-") == text


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbfone\n")
    assert read_text(tmp_path / "text.txt") == "one\n" and read_prompt("\ufeffone\r\n") == "one\r\n"
