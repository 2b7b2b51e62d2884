"""Small checkpoints in shared/cases: text, ids, chat and logits are those of Transformers."""

import json

import numpy as np
import pytest

import minicore as mc
from tests.helpers import SHARED

CASES = ["added-in-config", "bos-mismatch", "bos-null", "gen-tag", "tied-save-model", "tok-bigger"]


@pytest.mark.shared("cases/expected.json")
@pytest.mark.parametrize("name", CASES)
def test_a_case_is_what_transformers_makes_of_it(name):
    expected = json.loads((SHARED / "cases" / "expected.json").read_text())[name]
    model = mc.load(SHARED / "cases" / name)
    logits = model.forward(expected["prompt"])[-1][: len(expected["last_logits"])]
    np.testing.assert_allclose(logits, expected["last_logits"], rtol=0, atol=1e-4)
    if "ids" in expected:
        assert model.tokenizer.encode(expected["text"]) == expected["ids"]
    if "chat" in expected:
        assert model.tokenizer.render_chat([{"role": "user", "content": "hi"}]) == expected["chat"]
