"""Tokenizers from both kinds of file: nothing lost, nothing half printed, nothing broken let in."""

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from minicore.errors import InputError
from minicore.tokenizer import Tokenizer, from_source
from tests.helpers import GOLDEN, SHARED

pytestmark = pytest.mark.numpy

ORACLE = SHARED / "oracle" / "smollm2"

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<tool>", "two words"]
LINES = [
    "the quick brown fox jumps over the lazy dog, and the dog is not amused",
    "東京は2,194平方キロメートル、naïve café déjà vu 🙂🙂👩‍👩‍👧 größer",
    "def f(x):\n    return x + 1\n\n    # done\n",
]
TEXTS = [
    *LINES,
    "",
    " ",
    "\x00\x01\x7f",
    "e\u0301",
    "\U0010ffff\ufffd",
    "<|im_start|>user\nhi<|im_end|>",
    "<tool>x",
]
# text without surrogates, mixed with the special tokens' own spelling
any_text = st.lists(st.text() | st.sampled_from([*CONTROL, *USER_DEFINED, "東京", "🙂", " 's"])).map("".join)


def trained(vocab_size: int = 300) -> tokenizers.Tokenizer:
    """Return a byte-level BPE that knows all 256 bytes."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        LINES * 2,
        trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=ALPHABET, show_progress=False),
    )
    bpe.add_special_tokens([AddedToken(token, normalized=False) for token in CONTROL])
    bpe.add_tokens([AddedToken(token, normalized=False) for token in USER_DEFINED])
    return bpe


def save(bpe: tokenizers.Tokenizer, folder: Path) -> Path:
    path = folder / "tokenizer.json"
    bpe.save(str(path))
    return path


def metadata(pre: str = "smollm", **changes: object) -> dict[str, object]:
    """Return GGUF metadata of the same tokenizer; a change to None removes a key."""
    bpe = trained()
    vocab = bpe.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=vocab.__getitem__)
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if t in CONTROL else 4 if t in USER_DEFINED else 1 for t in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": tokens.index("<|im_start|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.ggml.add_bos_token": False,
    }
    values |= {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return {key: value for key, value in values.items() if value is not None}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_file(save(trained(), tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    bpe = trained()
    bos = bpe.token_to_id("<|im_start|>")
    bpe.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)]
    )
    return Tokenizer.from_file(save(bpe, tmp_path_factory.mktemp("bos")), bos_id=bos)


GGUF = {
    pre: Tokenizer.from_gguf(metadata(pre, add_bos_token=None))
    for pre in ("smollm", "gpt2", "llama-bpe", "qwen2")
}


# --- nothing is lost ---


@given(any_text)
def test_decode_undoes_encode_of_a_tokenizer_json(plain, with_bos, text):
    for tokenizer in (plain, with_bos):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode(tokenizer.encode(text, special=False)) == text or text.startswith(
            "<|im_start|>"
        )


@pytest.mark.parametrize("pre", GGUF)
@given(text=any_text)
def test_decode_undoes_encode_of_gguf(pre, text):
    assert GGUF[pre].decode(GGUF[pre].encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_gguf_and_json_of_one_tokenizer_agree(plain, text):
    assert GGUF["gpt2"].encode(text) == plain.encode(text)


def test_bos_is_added_and_taken_away(with_bos):
    bos = with_bos.bos_id
    assert with_bos.encode("hi") == [bos, *with_bos.encode("hi", special=False)]
    assert with_bos.encode("") == [bos]
    assert with_bos.encode("<|im_start|>hi")[:2] == [bos, bos]
    assert with_bos.decode([bos, bos]) == "<|im_start|>"


@pytest.mark.parametrize(
    ("pre", "add_bos", "added"),
    [
        ("smollm", None, False),
        ("smollm", True, True),
        ("smollm", False, False),
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
    ],
)
def test_add_bos_token_of_gguf_is_honoured(pre, add_bos, added):
    tokenizer = Tokenizer.from_gguf(metadata(pre, add_bos_token=add_bos))
    assert (tokenizer.encode("hi")[0] == tokenizer.bos_id) is added
    assert tokenizer.decode(tokenizer.encode("hi")) == "hi"


def test_special_tokens_in_the_text_are_parsed(plain):
    for tokenizer in (plain, GGUF["smollm"]):
        ids = tokenizer.encode("<|im_start|>the<tool><|im_end|>")
        assert len(ids) == 4
        assert tokenizer.decode(ids) == "<|im_start|>the<tool><|im_end|>"
        assert tokenizer.decode(ids, skip_special=True) == "the<tool>"  # a user-defined token is text


def test_settings_of_a_training_run_do_not_cut_or_pad(tmp_path):
    bpe = trained()
    bpe.enable_truncation(3)
    bpe.enable_padding(length=50)
    tokenizer = Tokenizer.from_file(save(bpe, tmp_path))
    assert tokenizer.decode(tokenizer.encode(LINES[0])) == LINES[0]


def test_a_normaliser_of_tokenizer_json_is_kept(tmp_path):
    bpe = trained()
    bpe.normalizer = normalizers.NFC()
    tokenizer = Tokenizer.from_file(save(bpe, tmp_path))
    assert tokenizer.decode(tokenizer.encode("cafe\u0301")) == "café"


def test_bytes_that_are_no_utf8_become_the_replacement_character(plain):
    half = plain._inner.token_to_id("Ã")  # how byte-level BPE writes 0xc3, which begins é
    assert plain.decode([half]) == "\ufffd"
    assert plain.decode([half, *plain.encode("a")]) == "\ufffda"


# --- how text is cut into words ---

CUT_TEXT = "I'LL pay 12345 €, ok?\n\n  don't"
CUT = {
    "gpt2": ["I", "'", "LL", " pay", " 12345", " €,", " ok", "?", "\n\n ", " don", "'t"],
    "smollm": ["I", "'", "LL", " pay", " ", *"12345", " €,", " ok", "?", "\n\n ", " don", "'t"],
    "llama-bpe": ["I", "'LL", " pay", " ", "123", "45", " €,", " ok", "?\n\n", " ", " don", "'t"],
    "qwen2": ["I", "'LL", " pay", " ", *"12345", " €,", " ok", "?\n\n", " ", " don", "'t"],
}


@pytest.mark.parametrize("pre", CUT)
def test_words_are_cut_as_the_pre_tokenizer_says(pre):
    words = GGUF[pre]._inner.pre_tokenizer.pre_tokenize_str(CUT_TEXT)
    assert [CUT_TEXT[start:end] for _, (start, end) in words] == CUT[pre]


def test_gpt2_has_two_spellings():
    other = Tokenizer.from_gguf(metadata("gpt-2"))
    assert [other.encode(text) for text in TEXTS] == [GGUF["gpt2"].encode(text) for text in TEXTS]


def test_llama_takes_a_known_word_whole():
    """Llama 3 looks a word up before it merges: a token that no merge makes is still found."""
    values = metadata("llama-bpe", add_bos_token=False)
    values["tokenizer.ggml.tokens"] = [*values["tokenizer.ggml.tokens"], "zyx"]
    values["tokenizer.ggml.token_type"] = [*values["tokenizer.ggml.token_type"], 1]
    assert len(Tokenizer.from_gguf(values).encode("zyx")) == 1
    assert len(Tokenizer.from_gguf(values | {"tokenizer.ggml.pre": "qwen2"}).encode("zyx")) == 3


# --- streaming ---


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.push(i) for i in ids), stream.flush()]


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer of single bytes: the hardest case for streaming."""
    return Tokenizer.from_file(save(trained(vocab_size=256), tmp_path_factory.mktemp("bytes")))


@pytest.mark.parametrize("text", ["🙂", "東京タワー", "a🙂b👩‍👩‍👧c", "größer, naïve", "🙂<|im_end|>京"])
def test_no_half_character_is_shown(bytewise, text):
    ids = bytewise.encode(text)
    assert "🙂" not in text or len(bytewise.encode("🙂")) == 4
    pieces = pieces_of(bytewise, ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == bytewise.decode(ids, skip_special=True)
    # each character appears with the token that completes it, not later
    so_far = ""
    for i, piece in enumerate(pieces[:-1], start=1):
        so_far += piece
        assert so_far == bytewise.decode(ids[:i], skip_special=True).rstrip("\ufffd")


@given(text=any_text)
def test_streamed_text_is_the_decoded_text(plain, bytewise, text):
    for tokenizer in (plain, bytewise, *GGUF.values()):
        ids = tokenizer.encode(text)
        pieces = pieces_of(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids, skip_special=True)
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(ids=st.lists(st.integers(0, 300)))
def test_streaming_any_ids_gives_what_decode_gives(plain, ids):
    """Also where the ids are no text at all, as a model with random weights makes them."""
    assert "".join(pieces_of(plain, ids)) == plain.decode(ids, skip_special=True)


@pytest.fixture(scope="module")
def spelled() -> Tokenizer:
    """A tokenizer as Llama 2's: spaces are part of words, rare characters are spelled byte by byte."""
    words = ["▁", "▁▁", "▁the", "▁dog", "s", "東"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocab = {token: i for i, token in enumerate(tokens)}
    bpe = tokenizers.Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(bpe, "spelled")


@given(ids=st.lists(st.integers(0, 264) | st.sampled_from([1, 259, 260, 261, 0xE6 + 3, 0x9D + 3, 0xB1 + 3])))
def test_streaming_spelled_characters_gives_what_decode_gives(spelled, ids):
    assert "".join(pieces_of(spelled, ids)) == spelled.decode(ids, skip_special=True)


def test_spelled_characters_are_shown_whole(spelled):
    ids = [261, 260, *(byte + 3 for byte in "🙂".encode()), 262, 263, *(byte + 3 for byte in "é".encode())]
    pieces = pieces_of(spelled, ids)
    assert pieces == ["the", "  ", "", "", "", "", "🙂 dog", "s", "", "", "é"]


def test_half_a_character_at_the_end_is_flushed_once(bytewise):
    ids = bytewise.encode("ok 🙂")[:-1]
    stream = bytewise.stream()
    assert "".join(stream.push(i) for i in ids) == "ok "
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


# --- chat ---

MESSAGES = [{"role": "system", "content": "Be <brief> & 'kind'."}, {"role": "user", "content": "naïve?"}]


def chatty(template: str | None) -> Tokenizer:
    return Tokenizer.from_gguf(metadata(), chat_template=template)


def test_a_template_sees_what_transformers_gives_it():
    template = """
{%- for message in messages %}
    {% if loop.index0 == 5 %}{% break %}{% endif %}
    {{ bos_token }}{{ message.role }}: {{ message['content'] | tojson }}
{% endfor %}
{% if add_generation_prompt %}
{{ eos_token }}{{ strftime_now('%Y') }}{% endif %}
"""
    expected = (
        '    <|im_start|>system: "Be <brief> & \'kind\'."\n    <|im_start|>user: "naïve?"\n'
        f"<|im_end|>{datetime.now().year}"
    )
    assert chatty(template).render_chat(MESSAGES).lstrip("\n") == expected
    assert "<|im_end|>" not in chatty(template).render_chat(MESSAGES, add_generation_prompt=False)


def test_chat_gives_the_ids_of_the_rendered_text_and_no_second_bos():
    tokenizer = Tokenizer.from_gguf(metadata("llama-bpe", add_bos_token=True))
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    assert tokenizer.chat("the dog") == [tokenizer.bos_id, *tokenizer.encode("the dog", special=False)]


def test_chat_equals_transformers():
    golden = np.load(GOLDEN / "llama-chat" / "golden.npz")
    settings = json.loads((GOLDEN / "llama-chat" / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(GOLDEN / "llama-chat" / "tokenizer.json", settings["chat_template"])
    assert tokenizer.chat(json.loads(str(golden["messages"]))) == golden["chat_ids"].tolist()
    assert tokenizer.encode(str(golden["text"])) == golden["text_ids"].tolist()


@pytest.mark.parametrize(
    ("template", "part"),
    [
        (None, "no chat template"),
        ("", "no chat template"),
        ("{% for %}", "failed"),
        ("{{ nothing.at.all }}", "failed"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "failed"),
        ("{{ messages.append(1) }}", "failed"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "failed"),
        (
            "{% for i in range(9999) %}{% for j in range(9999) %}xxxxxxxxxx{% endfor %}{% endfor %}",
            "more than",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "failed"),
        ("{% include '/etc/passwd' %}", "failed"),
        ("{{ 1 / 0 }}", "failed"),
    ],
)
def test_a_template_that_misbehaves_is_one_sentence(template, part):
    with pytest.raises(InputError, match=part) as caught:
        chatty(template).chat("hi")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("messages", [[{"role": "user"}], ["hi"], [{"content": "hi"}]])
def test_messages_of_another_shape_are_refused(messages):
    with pytest.raises(InputError, match="role"):
        chatty("{{ messages }}").chat(messages)


# --- bad input ---


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "not a usable"),
        (b"{}", "not a usable"),
        (b"[]", "not a usable"),
        (b"not json", "not a usable"),
        (b"\xff\xfe\x00", "not a usable"),
        (b'{"model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}', "not a usable"),
        (b'{"model": {"type": "Nonsense"}}', "not a usable"),
    ],
)
def test_a_broken_tokenizer_json_is_one_sentence(tmp_path, content, part):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=part) as caught:
        Tokenizer.from_file(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_half_a_tokenizer_json_is_one_sentence(tmp_path):
    path = save(trained(), tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="not a usable tokenizer.json"):
        Tokenizer.from_file(path)


def test_a_missing_tokenizer_json_is_one_sentence(tmp_path):
    for path in (tmp_path / "tokenizer.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            Tokenizer.from_file(path)


def test_a_vocabulary_beyond_the_model_is_refused(tmp_path):
    path = save(trained(), tmp_path)
    n = Tokenizer.from_file(path).n_vocab
    assert Tokenizer.from_file(path, n_vocab=n).n_vocab == n
    for make in (
        lambda: Tokenizer.from_file(path, n_vocab=n - 1),
        lambda: Tokenizer.from_gguf(metadata(), n_vocab=n - 1),
    ):
        with pytest.raises(InputError, match=f"{n} ids, expected at most the model's {n - 1}"):
            make()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model is 'bert', expected 'llama'"),
        ({"model": None}, "tokenizer.ggml.model is missing"),
        ({"pre": "kimi-k2"}, "unknown pre-tokenizer 'kimi-k2'"),
        ({"pre": "qwen3"}, "did you mean .*qwen2"),
        ({"tokens": None}, "tokens is missing"),
        ({"tokens": "abc"}, "tokens is a str, expected a list"),
        ({"merges": None}, "merges is missing"),
        ({"merges": ["a"]}, r"merges\[0\] is 'a'"),
        ({"merges": ["a nonsense"]}, "merges do not fit"),
        ({"token_type": [1, 1]}, "token_type has 2 entries"),
        ({"tokens": ["a", "a"], "merges": [], "token_type": None}, "twice"),
        ({"add_bos_token": True, "bos_token_id": None}, "bos_token_id is missing"),
        ({"add_bos_token": True, "bos_token_id": 10**6}, "bos_token_id is 1000000"),
    ],
)
def test_gguf_metadata_that_does_not_do_is_refused(changes, part):
    with pytest.raises(InputError, match=part) as caught:
        Tokenizer.from_gguf(metadata(**changes), source="model.gguf")
    assert str(caught.value).startswith("model.gguf: ")


def test_half_a_surrogate_pair_is_refused(plain):
    with pytest.raises(InputError, match="character 2"):
        plain.encode("ab\ud800")
    with pytest.raises(InputError, match="expected str"):
        plain.encode(b"ab")


@pytest.mark.parametrize("bad", [-1, 2**40])
def test_an_id_out_of_range_is_refused(plain, bad):
    with pytest.raises(InputError, match="not in the vocabulary"):
        plain.decode([bad])


def test_a_source_says_which_kind_it_is(tmp_path):
    path = save(trained(), tmp_path)
    assert from_source(None) is None
    assert from_source(("json", path), n_vocab=400).encode("hi") == GGUF["gpt2"].encode("hi")
    assert from_source(("gguf", metadata("gpt2")), n_vocab=400).encode("hi") == GGUF["gpt2"].encode("hi")


# --- SmolLM2 ---


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    from gguf import GGUFReader

    fields = GGUFReader(smollm2_path).fields
    return Tokenizer.from_gguf({key: field.contents() for key, field in fields.items()}, n_vocab=49152)


# From Transformers, PreTrainedTokenizerFast of the model's own tokenizer.json.
SMOLLM2_IDS = {
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "<|im_start|>user\n": [1, 4093, 198],
}


@pytest.mark.parametrize("text", SMOLLM2_IDS)
def test_smollm2_ids(smollm2, text):
    assert smollm2.encode(text) == SMOLLM2_IDS[text]


@given(text=st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs", "Cc"])))
def test_smollm2_loses_nothing(smollm2, text):
    """Its vocabulary lacks 21 bytes: some control characters, and what begins U+40000 to U+BFFFF."""
    assert smollm2.decode(smollm2.encode(text)) == text
    if not any(name in text for name in smollm2.special_names().values()):  # Hypothesis knows their names
        assert "".join(pieces_of(smollm2, smollm2.encode(text))) == text


@pytest.mark.shared("oracle/smollm2")
def test_smollm2_prompts_equal_transformers(smollm2):
    prompts = json.loads((ORACLE / "prompts.json").read_text(encoding="utf-8"))
    for prompt in prompts:
        assert smollm2.encode(prompt["text"]) == prompt["ids"], prompt["name"]
        assert smollm2.decode(prompt["ids"]) == prompt["text"], prompt["name"]
        assert smollm2.decode(prompt["greedy_ids"]) == prompt["greedy_text"], prompt["name"]
    chat = next(prompt for prompt in prompts if prompt["name"] == "chat")
    assert smollm2.chat("Name three primary colours.") == chat["ids"]
