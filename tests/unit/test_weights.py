"""The shipped models: what they weigh, what they recommend, and what a core set costs each of them."""

from __future__ import annotations

import pytest

import minicore as mc
from minicore.evaluation.quality import evaluate
from tests.helpers import TESTS, WEIGHTS

HELD_OUT = TESTS / "texts" / "held_out.jsonl"  # sampled as the training text was, never trained on
NAMES = ("minicore-opt-core", "minicore-opt")


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> mc.Model:
    return mc.load(request.param)


def test_both_together_weigh_at_most_40_mib() -> None:
    assert sum(path.stat().st_size for name in NAMES for path in (WEIGHTS / name).iterdir()) <= 40 * 2**20


def test_most_parameters_are_where_sparsity_acts(model: mc.Model) -> None:
    config = model.config
    in_ffn = 2 * config.n_layers * config.d_model * config.n_neurons
    assert config.n_ctx >= 512
    assert in_ffn > sum(p.size for p in model.params.values()) / 2


def test_text_and_chat_begin_as_in_training(model: mc.Model) -> None:
    ids = model.tokenizer.encode("It was 1984.")
    assert ids[0] == 0 and model.tokenizer.decode(ids) == "It was 1984."
    chat = model.tokenizer.chat("Hello")
    assert model.tokenizer.decode(chat[1:]) == "User: Hello\n\nAssistant:" and chat[0] == 0
    assert model.eos_ids == (0,)


def test_only_the_core_model_recommends_core_decoding() -> None:
    assert mc.load("minicore-opt-core").recommended == {"predictor": "stability", "alpha": 0.4, "beta": 0.3}
    assert mc.load("minicore-opt").recommended == {}


@pytest.mark.slow
def test_a_core_set_is_cheap_for_the_model_tuned_for_it_and_ruinous_for_its_sibling() -> None:
    ratios = {}
    for name in NAMES:
        settings = {"prompt_tokens": 128, "continuation_tokens": 160, "fit_passages": 0, "n_passages": 3}
        report = evaluate(mc.load(name), [HELD_OUT], ["stability"], [0.4], backend="numpy", **settings)
        ratios[name] = report["settings"][0]["ratio"][0]
    assert ratios["minicore-opt-core"] < 1.25
    assert ratios["minicore-opt"] > 4
