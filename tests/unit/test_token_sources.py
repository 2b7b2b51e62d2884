"""Where special and added tokens come from: golden answers of Transformers, and laws over random files."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minicore as mc
from minicore.checkpoint.chat_template import read_chat_template
from minicore.checkpoint.hf_tokenizer import read_files, tokenizer_file
from minicore.checkpoint.settings import read_json
from minicore.errors import InputError
from minicore.tokenizer import Tokenizer, from_source
from tests.golden import make_token_sources as make
from tests.helpers import checkpoints

pytestmark = pytest.mark.numpy

CASES = json.loads(make.OUT.read_text(encoding="utf-8"))
TOKENS = ("<s>", "</s>", "<bos>", "[PAD]")


def load(directory: Path) -> Tokenizer:
    path = tokenizer_file(directory)
    assert path is not None
    template = read_chat_template(directory, read_json(directory / "tokenizer_config.json"))
    tokenizer = from_source(("json", path), template)
    assert tokenizer is not None
    return tokenizer


def written(tmp_path: Path, tokenizer: tuple | None = (2, None), **files: object) -> Path:
    """Write a directory; ``tokenizer_config`` stands for tokenizer_config.json."""
    named = {f"{name}.json": content for name, content in files.items()}
    return make.write_directory(tmp_path / "model", {"files": named, "tokenizer": tokenizer})


@pytest.mark.parametrize("number", range(len(CASES)))
def test_tokens_and_chats_are_those_of_transformers(tmp_path, number):
    case = CASES[number]
    expected, tokenizer = case["expected"], load(make.write_directory(tmp_path / "model", case))
    assert tokenizer.special_tokens == expected["special_tokens"]
    assert [tokenizer.encode(text) for text in make.TEXTS] == expected["ids"]
    assert [tokenizer.decode(ids, skip_special=True) for ids in expected["ids"]] == expected["texts"]
    if "chat" in expected:
        assert tokenizer.render_chat(make.MESSAGES) == expected["chat"]
        assert tokenizer.chat(make.MESSAGES) == expected["chat_ids"]


def test_the_golden_cases_reach_every_source():
    files = {name for case in CASES for name in case["files"]}
    assert {"special_tokens_map.json", "added_tokens.json", "chat_template.jinja"} < files
    assert len({case["tokenizer"] is None for case in CASES}) == 2


@given(seed=st.integers(0, 10**9))
@settings(max_examples=25, deadline=None)
def test_a_saved_tokenizer_is_the_same(tmp_path_factory, seed):
    directory = make.write_directory(tmp_path_factory.mktemp("drawn"), make.draw_case(random.Random(seed)))
    if tokenizer_file(directory) is None:
        return
    tokenizer, saved = load(directory), tmp_path_factory.mktemp("saved")
    (saved / "config.json").write_text('{"model_type": "minicore"}')
    (saved / "tokenizer.json").write_text(tokenizer.to_json())
    (saved / "tokenizer_config.json").write_text(json.dumps(tokenizer.to_config()))
    again = load(saved)
    assert again.special_tokens == tokenizer.special_tokens
    assert [again.encode(text) for text in make.TEXTS] == [tokenizer.encode(text) for text in make.TEXTS]
    if tokenizer.chat_template:
        assert again.render_chat(make.MESSAGES) == tokenizer.render_chat(make.MESSAGES)


@given(seed=st.integers(0, 10**9))
@settings(max_examples=25, deadline=None)
def test_each_special_and_each_added_token_is_one_id(tmp_path_factory, seed):
    case = make.draw_case(random.Random(seed))
    directory = make.write_directory(tmp_path_factory.mktemp("drawn"), case)
    if tokenizer_file(directory) is None:
        return
    tokenizer, files = load(directory), read_files(directory)
    texts = {token.content for token in (*files.special.values(), *files.added.values(), *files.extra)}
    for text in texts:
        (token_id,) = tokenizer.encode(text, special=False)
        if "sentencepiece" not in case:  # its normalizer changes what normalized tokens are compared with
            assert token_id in tokenizer.encode(f"hi{text}the", special=False)
    for text in tokenizer.special_tokens.values():
        assert tokenizer.decode(tokenizer.encode(text, special=False), skip_special=True) == ""


@given(bos=st.sampled_from(TOKENS), other=st.sampled_from(TOKENS), wrong=st.integers(0, 200))
@settings(max_examples=20, deadline=None)
def test_the_model_config_does_not_name_the_tokens_of_a_template(tmp_path_factory, bos, other, wrong):
    template = "{{ bos_token }}|{{ pad_token }}|{% for m in messages %}{{ m.content }}{% endfor %}"
    directory = written(
        tmp_path_factory.mktemp("drawn"),
        config={"model_type": "llama", "bos_token_id": wrong, "pad_token_id": wrong, "eos_token_id": wrong},
        tokenizer_config={"bos_token": bos, "pad_token": other, "chat_template": template},
    )
    assert load(directory).render_chat("hi") == f"{bos}|{other}|hi"
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({"bos_token": None, "chat_template": template}))
    assert load(directory).render_chat("hi") == "||hi"


@pytest.mark.slow
@given(seed=st.integers(0, 10**9))
@settings(max_examples=100, deadline=None)
def test_random_files_give_what_transformers_gives(tmp_path_factory, seed):
    pytest.importorskip(
        "transformers", reason="Transformers is not installed; the golden cases hold its answers"
    )
    case = make.draw_case(random.Random(seed))
    directory = make.write_directory(tmp_path_factory.mktemp("drawn"), case)
    if (expected := make.ask_transformers(directory)) is not None:
        tokenizer = load(directory)
        assert tokenizer.special_tokens == expected["special_tokens"]
        assert [tokenizer.encode(text) for text in make.TEXTS] == expected["ids"]
        assert "chat" not in expected or tokenizer.render_chat(make.MESSAGES) == expected["chat"]


def test_several_templates_without_a_default_are_named(tmp_path):
    templates = [{"name": "rag", "template": "r"}, {"name": "tool_use", "template": "t"}]
    directory = written(tmp_path, config={}, tokenizer_config={"chat_template": templates})
    with pytest.raises(InputError, match="the chat templates are rag, tool_use, expected one named default"):
        load(directory).render_chat("hi")


def test_templates_see_reasoning_under_each_name_and_no_keys_that_are_none(tmp_path):
    shown = "{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.name is defined }};"
    template = f"{{% for m in messages %}}{shown}{{% endfor %}}"
    tokenizer = load(written(tmp_path, config={}, tokenizer_config={"chat_template": template}))
    message = {"role": "assistant", "content": "a", "name": None}
    conversation = [message | {"reasoning": "r"}, message | {"thinking": "t"}, message]
    assert tokenizer.render_chat(conversation) == "r|r|False;t|t|False;||False;"
    with pytest.raises(InputError, match="the conversation is empty"):
        tokenizer.render_chat([])


def test_a_model_keeps_its_special_tokens_when_it_is_packed(tmp_path):
    config = checkpoints.LLAMA | {"vocab_size": 300, "bos_token_id": 7}
    directory = written(tmp_path, config=config, tokenizer_config={"bos_token": "</s>", "pad_token": "[PAD]"})
    checkpoints.write_directory(directory, config, checkpoints.random_tensors(config))
    (directory / "chat_template.jinja").write_text("{{ bos_token }}{{ pad_token }}{{ messages[0].content }}")
    model = mc.load(directory)
    model.save(tmp_path / "packed")
    again = mc.load(tmp_path / "packed").tokenizer
    assert again.render_chat("hi") == model.tokenizer.render_chat("hi") == "</s>[PAD]hi"


def test_a_directory_that_version_0_2_packed_takes_its_tokens_from_the_config(tmp_path):
    config = checkpoints.LLAMA | {"vocab_size": 300, "bos_token_id": 1}
    directory = written(tmp_path, config=config)
    checkpoints.write_directory(directory, config, checkpoints.random_tensors(config))
    mc.load(directory).save(tmp_path / "packed")
    (tmp_path / "packed" / "tokenizer_config.json").unlink()
    (tmp_path / "packed" / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    assert mc.load(tmp_path / "packed").tokenizer.render_chat("hi") == "</s>hi"


def test_a_tokenizer_may_have_more_ids_than_the_embedding(tmp_path):
    n = len(make.vocabulary())
    config = checkpoints.LLAMA | {"vocab_size": n}
    directory = written(tmp_path, config=config, tokenizer_config={"pad_token": "[PAD]"})
    checkpoints.write_directory(directory, config, checkpoints.random_tensors(config))
    model = mc.load(directory)
    ids = model.tokenizer.encode("hi[PAD]")
    assert ids[-1] == n and len(model.forward(ids[:-1])) == len(ids) - 1
    for run in (model.forward, lambda ids: model.generate("hi[PAD]", max_new_tokens=1)):
        with pytest.raises(
            InputError, match=rf"token id {n} \(the tokenizer's '\[PAD\]'\) is not in the voc"
        ):
            run(ids)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("tokenizer_config", {"added_tokens_decoder": {"x": "a"}}, "from ids to tokens"),
        ("tokenizer_config", {"added_tokens_decoder": ["a"]}, "from ids to tokens"),
        ("tokenizer_config", {"added_tokens_decoder": {"3": {"special": True}}}, "added_tokens_decoder.3 is"),
        ("tokenizer_config", {"bos_token": 3}, "bos_token is 3, expected a token's text"),
        ("special_tokens_map", {"pad_token": {"text": "a"}}, "pad_token is"),
        ("special_tokens_map", ["a"], "holds a list"),
        ("added_tokens", {"a": "b"}, "from tokens to ids"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path, name, content, part):
    directory = written(tmp_path, config={"model_type": "llama"}, **{name: content})
    with pytest.raises(InputError, match=part) as caught:
        load(directory)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_broken_merges_are_one_sentence(tmp_path):
    directory = written(tmp_path, None, config={"model_type": "gpt2"})
    (directory / "merges.txt").write_text("#version: 0.2\nno such\n")
    with pytest.raises(InputError, match=r"vocab\.json: cannot be read together with merges\.txt"):
        load(directory)


def test_a_vocabulary_of_an_unknown_class_is_no_tokenizer(tmp_path):
    assert tokenizer_file(written(tmp_path, None, config={"model_type": "llama"})) is None


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json"])
def test_a_tokenizer_that_is_not_read_is_named(tmp_path, caplog, name):
    checkpoints.write_directory(tmp_path, checkpoints.LLAMA, checkpoints.random_tensors(checkpoints.LLAMA))
    (tmp_path / name).write_text("{}")
    assert mc.load(tmp_path).tokenizer is None
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}: {name} is not read, expected tokenizer.json")


def test_a_template_of_ids_gets_empty_texts_for_tokens_that_are_not_there():
    path = make.OUT.parent / "llama-chat" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(path, "{{ bos_token + messages[0].content + eos_token }}")
    assert tokenizer.render_chat("hi") == "hi"


def test_a_byte_order_mark_is_no_part_of_a_json_file(tmp_path):
    directory = written(tmp_path, config={}, tokenizer_config={"bos_token": "<s>"})
    for path in directory.glob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(directory).special_tokens == {"bos_token": "<s>"}


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_git_lfs_pointer_is_named(tmp_path, name):
    directory = written(tmp_path, config={"model_type": "llama"}, tokenizer_config={})
    (directory / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InputError, match=rf"{name}: is a Git LFS pointer.*git lfs pull"):
        load(directory)
