"""Messages stay short and printable, and what libraries raise over files becomes one."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import minicore as mc
from minicore.errors import LONGEST_QUOTE, InputError, guarded
from tests.helpers import GOLDEN, ROOT


@pytest.mark.parametrize("quote", ["'{}'", '"{}"', "[{}]", "{{'a': {}}}"])
def test_a_quoted_value_is_cut(quote):
    value = quote.format(70_000 * "x")
    message = str(InputError(f"config.json: the model's key is {value}, expected the other file's 'y'"))
    assert len(message) < 80 + LONGEST_QUOTE and message.endswith("expected the other file's 'y'")
    assert message.startswith("config.json: the model's key is ")


def test_apostrophes_are_not_quotes():
    sentence = "the model's " + "word " * 40 + "is not the file's"
    assert str(InputError(sentence)) == sentence


def test_control_characters_are_escaped():
    assert str(InputError("name is '\x1b]0;x\x07\u202e'")) == r"name is '\x1b]0;x\x07\u202e'"


class PanicException(BaseException):
    """What PyO3 raises when Rust code panics."""


@pytest.mark.parametrize("error", [PanicException("index out of bounds"), KeyError("x"), OverflowError()])
def test_guarded_turns_any_error_of_a_library_into_one(error):
    with pytest.raises(InputError, match="^file: .+, expected better$"), guarded("file", "better"):
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_guarded_lets_stops_pass(error):
    with pytest.raises(error), guarded("file", "better"):
        raise error


MUTATIONS = {
    "vocab of text": lambda t: t["model"].update(vocab={"a": "b"}),
    "merge of unknown tokens": lambda t: t["model"].update(merges=[["qq", "zz"]]),
    "empty regex": lambda t: t.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}}),
    "post-processor without its token": lambda t: t.update(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "none", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    ),
    "decoder of another kind": lambda t: t.update(
        decoder={"type": "Strip", "content": "aa", "start": -1, "stop": 0}
    ),
    "huge id": lambda t: t["model"]["vocab"].update({"a": 2**40}),
}


@pytest.mark.parametrize("what", list(MUTATIONS))
def test_a_broken_tokenizer_is_refused_by_its_file(what, tmp_path):
    for path in (GOLDEN / "llama-chat").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    values = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    MUTATIONS[what](values)
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(InputError, match="tokenizer.json"):
        mc.load(tmp_path).tokenizer.encode("a text")


def test_output_that_an_encoding_lacks_is_replaced(tmp_path):
    """What Windows does with standard output in a pipe."""
    shutil.copytree(GOLDEN / "llama", tmp_path / "東京")
    done = subprocess.run(
        [sys.executable, "-m", "minicore", "info", str(tmp_path / "東京")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252"}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0 and b"??" in done.stdout and not done.stderr
