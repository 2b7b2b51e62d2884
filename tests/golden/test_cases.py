"""The small failing inputs of ../shared/cases against what Transformers 5.23 makes of them."""

import json

import numpy as np
import pytest

import minicore as mc
from tests.helpers import SHARED

CASES = SHARED / "cases"
EXPECTED = json.loads((CASES / "expected.json").read_text()) if CASES.is_dir() else {}
pytestmark = pytest.mark.shared("cases")


@pytest.mark.parametrize("name", list(EXPECTED) or ["none"])
def test_cases(name):
    expected, model = EXPECTED[name], mc.load(CASES / name)
    logits = model.forward(expected["prompt"])[-1]
    largest = np.abs(expected["last_logits"]).max()
    n = len(expected["last_logits"])
    np.testing.assert_allclose(logits[:n], expected["last_logits"], rtol=0, atol=1e-4 * largest)
    if expected.get("ids"):
        assert model.tokenizer.encode(expected["text"]) == expected["ids"]
    if "chat" in expected:
        assert model.tokenizer.render_chat("hi") == expected["chat"]
