"""Tokenizers of GGUF files: the same ids, special tokens and ends as llama.cpp has them."""

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from minicore.checkpoint import read
from minicore.checkpoint.gguf_vocabulary import read_vocabulary
from minicore.checkpoint.pre_tokenizers import PRE_TOKENIZERS
from minicore.errors import InputError
from minicore.model import load
from minicore.tokenizer import Tokenizer
from tests.helpers import GOLDEN, SHARED
from tests.helpers import checkpoints as make
from tests.helpers import sentencepiece as reference

pytestmark = pytest.mark.numpy

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
FRONT = ["<unk>", "<s>", "</s>", *BYTES]


def spm(pieces: list[str], scores: list[float] | None = None, **changes: object) -> dict[str, object]:
    """Return GGUF metadata of a SentencePiece tokenizer; without scores, pieces score less and less."""
    tokens = [*FRONT, *pieces]
    given = [-1.0 - i for i in range(len(pieces))] if scores is None else scores
    values = {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0] * len(FRONT) + given,
        "token_type": [2, 3, 3, *[6] * 256, *[1] * len(pieces)],
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (values | changes).items()}


def tables(metadata: dict[str, object]) -> tuple[dict[str, int], dict[str, float]]:
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    return {t: i for i, t in enumerate(tokens)}, dict(zip(tokens, scores, strict=True))


# --- SentencePiece ---


@st.composite
def vocabularies(draw) -> dict[str, object]:
    """Pieces over few letters in any order of scores, and the letters: texts have many ways to be merged."""
    letters = draw(st.sampled_from(["ab", "ab▁", "abc▁", "a東▁"]))
    pieces = draw(st.lists(st.text(letters, min_size=2, max_size=6), max_size=30, unique=True))
    return spm(draw(st.permutations([*pieces, *letters])))


@given(vocabularies(), st.text("ab c東▁é", max_size=40))
def test_sentencepiece_merges_as_its_scores_say(metadata, text):
    tokenizer = Tokenizer.from_gguf(metadata)
    expected = reference.encode_with_prefix(text, *tables(metadata))
    assert tokenizer.encode(text, special=False) == expected
    assert tokenizer.encode(text) == [1, *expected]


def test_sentencepiece_merges_long_runs_from_the_left():
    """Runs of one letter are where the order of equal pairs shows most."""
    rng = random.Random(0)
    for _ in range(30):
        pieces = ["a" * n for n in rng.sample(range(2, 17), 8)] + ["a", "b", "▁", "▁▁", "▁a", "ab"]
        rng.shuffle(pieces)
        metadata = spm(pieces)
        tokenizer = Tokenizer.from_gguf(metadata)
        for n in range(1, 40):
            text = "a" * n + "b" + "a" * (40 - n)
            assert tokenizer.encode(text, special=False) == reference.encode_with_prefix(
                text, *tables(metadata)
            )


WORDS = ["▁t", "he", "▁the", "▁s", "ea", "▁sea", *"▁thesa"]


@pytest.mark.parametrize("prefix", [None, True, False])
def test_add_space_prefix_is_honoured(prefix):
    changes = {} if prefix is None else {"add_space_prefix": prefix}
    tokenizer = Tokenizer.from_gguf(spm(WORDS, **changes))
    first = tokenizer.pieces(tokenizer.encode("the sea", special=False))
    assert first == (["t", "he", " sea"] if prefix is False else ["the", " sea"])
    for text in ("the sea", " the  sea ", "é\n東", "▁x", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


def test_the_space_prefix_follows_special_tokens_too():
    """llama.cpp puts the space in front of each text between special tokens."""
    tokenizer = Tokenizer.from_gguf(spm(WORDS))
    the, sea = (tokenizer.encode(word, special=False) for word in ("the", "sea"))
    assert tokenizer.encode("<s>the</s>sea") == [1, 1, *the, 2, *sea]
    assert tokenizer.encode("the<unk>") == [1, *the, 0]


def test_characters_without_a_token_are_spelled_in_bytes():
    tokenizer = Tokenizer.from_gguf(spm(["a", "▁", "▁a"]))
    ids = tokenizer.encode("a🙂", special=False)
    assert [tokenizer._inner.id_to_token(i) for i in ids] == ["▁a", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]


def test_special_tokens_are_found_whatever_their_score():
    metadata = spm(["▁", "a", "<|im_end|>", "<tool>"])
    metadata["tokenizer.ggml.token_type"][-1] = 4  # the file says nothing of <|im_end|>
    tokenizer = Tokenizer.from_gguf(metadata)
    n = len(FRONT)
    assert tokenizer.encode("<|im_end|><tool>", special=False) == [n + 2, n + 3]
    assert tokenizer.decode([n + 2, n + 3], skip_special=True) == "<tool>"


def test_scores_that_do_not_order_merges_are_refused():
    with pytest.raises(InputError, match="'ab' and 'bb' one score, -1000"):
        Tokenizer.from_gguf(spm(["a", "b", "ab", "bb"], [-1000.0] * 4))
    fine = spm(["a", "b", "c", "d", "ab", "cd"], [-1000.0] * 6)  # never in one another's way
    assert Tokenizer.from_gguf(fine).encode("abcd", special=False)[-2:] == [len(FRONT) + 4, len(FRONT) + 5]


@pytest.mark.parametrize("scores", [[0.0], [float("nan")] * (len(FRONT) + 1), None])
def test_scores_that_are_not_a_number_for_each_token_are_refused(scores):
    with pytest.raises(InputError, match="tokenizer.ggml.scores"):
        Tokenizer.from_gguf(spm(["a"]) | {"tokenizer.ggml.scores": scores})


# --- what is added around a text ---


@pytest.mark.parametrize("bos", [None, True, False])
@pytest.mark.parametrize("eos", [None, True, False])
def test_bos_and_eos_are_added_as_the_file_says(bos, eos):
    changes = {"add_bos_token": bos, "add_eos_token": eos}
    tokenizer = Tokenizer.from_gguf(spm(WORDS, **{k: v for k, v in changes.items() if v is not None}))
    bare = tokenizer.encode("the sea", special=False)
    assert tokenizer.encode("the sea") == [1] * (bos is not False) + bare + [2] * bool(eos)


def test_ids_of_bos_and_eos_may_be_others():
    tokenizer = Tokenizer.from_gguf(spm(WORDS, bos_token_id=2, eos_token_id=1, add_eos_token=True))
    assert tokenizer.encode("")[0] == 2 and tokenizer.encode("")[-1] == 1
    with pytest.raises(InputError, match="eos_token_id is 100000, expected an id below"):
        Tokenizer.from_gguf(spm(WORDS, eos_token_id=10**5, add_eos_token=True))


# --- tokens that end a generation ---


def ends(tokens: list[str], model: str = "gpt2", **changes: object) -> list[str]:
    keys = {"model": model, "tokens": tokens, "merges": [], "scores": [0.0] * len(tokens)} | changes
    vocabulary = read_vocabulary({f"tokenizer.ggml.{key}": value for key, value in keys.items()}, "m.gguf")
    return [tokens[i] for i in vocabulary.end_ids]


@pytest.mark.parametrize(
    ("tokens", "changes", "expected"),
    [
        (["a", "b"], {}, []),
        (["a", "b"], {"eos_token_id": 1}, ["b"]),
        (["a", "b", "c", "d"], {"eos_token_id": 2, "eot_token_id": 0, "eom_token_id": 3}, ["c", "a", "d"]),
        (["a", "<|im_end|>"], {"eos_token_id": 0}, ["a", "<|im_end|>"]),
        (["<|eot_id|>", "<|eom_id|>", "e"], {"eos_token_id": 2}, ["e", "<|eot_id|>", "<|eom_id|>"]),
        (["<|endoftext|>", "</s>", "<end_of_turn>"], {}, ["<|endoftext|>", "</s>", "<end_of_turn>"]),
        (["a", "<|fim_pad|>", "<|file_sep|>"], {}, ["<|fim_pad|>", "<|file_sep|>"]),
        (["a", "[PAD]", "x"], {"fim_pad_token_id": 2}, ["x"]),
        (["<|fim_prefix|>", "<|fim_middle|>"], {}, []),
        (["<|return|>", "<|call|>", "<|end|>"], {}, ["<|return|>", "<|call|>"]),
        (["<|flush|>", "<|calls|>", "<|end|>"], {}, ["<|flush|>", "<|calls|>"]),
        (["<|return|>", "<|end|>"], {}, ["<|return|>", "<|end|>"]),
        (["<|tool_response>", "</s>", "<eos>"], {}, ["<|tool_response>", "<eos>"]),
        (["a", "b"], {"eos_token_id": 7}, []),
        (["a", "b", "c"], {"model": "llama"}, ["c"]),  # SentencePiece's own ids: 1 begins, 2 ends
    ],
)
def test_what_ends_a_generation(tokens, changes, expected):
    assert ends(tokens, **changes) == expected


def test_a_file_without_a_tokenizer_has_no_ends(tmp_path):
    tensors = make.random_gguf_tensors("llama", make.GGUF_LLAMA)
    for more in ({}, {"tokenizer.ggml.model": "none"}):
        path = make.write_gguf(tmp_path / "m.gguf", "llama", make.GGUF_LLAMA, tensors, more=more)
        checkpoint = read(path)
        assert (checkpoint.tokenizer_source, checkpoint.bos_id, checkpoint.eos_ids) == (None, None, ())


def test_empty_tokens_have_names_of_their_own():
    vocabulary = read_vocabulary(spm(["", "a"]), "m.gguf")
    assert vocabulary.tokens[-2:] == [f"[EMPTY_{len(FRONT)}]", "a"]


# --- pre-tokenizers ---


WORDS_OF_LLAMA_CPP = json.loads((GOLDEN / "gguf-words.json").read_text(encoding="utf-8"))


def byte_level(pre: str | None, **changes: object) -> dict[str, object]:
    """Return GGUF metadata of the vocabulary that llama.cpp's ids are of."""
    merges = WORDS_OF_LLAMA_CPP["merges"]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in merges)]
    values = {"model": "gpt2", "tokens": list(dict.fromkeys(tokens)), "merges": merges} | changes
    values |= {"add_bos_token": False} | ({} if pre is None else {"pre": pre})
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


@pytest.mark.parametrize("pre", WORDS_OF_LLAMA_CPP["ids"])
def test_words_are_llama_cpps(pre):
    tokenizer = Tokenizer.from_gguf(byte_level(pre))
    assert [tokenizer.encode(text) for text in WORDS_OF_LLAMA_CPP["texts"]] == WORDS_OF_LLAMA_CPP["ids"][pre]


def test_a_missing_pre_tokenizer_is_the_default():
    tokenizer = Tokenizer.from_gguf(byte_level(None))
    found = [tokenizer.encode(text) for text in WORDS_OF_LLAMA_CPP["texts"]]
    assert found == WORDS_OF_LLAMA_CPP["ids"]["default"]
    assert found != WORDS_OF_LLAMA_CPP["ids"]["gpt-2"]  # the texts tell them apart


@given(text=st.text() | st.text("aB1 2'sé\n\r\t.,東/{}_", max_size=30))
def test_pre_tokenizers_lose_nothing(text):
    for pre_tokenizer in set(PRE_TOKENIZERS.values()):
        pieces = pre_tokenizer.library_object().pre_tokenize_str(text)
        assert "".join(text[start:stop] for _, (start, stop) in pieces) == text


def test_words_by_case_are_those_of_the_models():
    """Where llama.cpp approximates an expression, minicore has the model's own: accents belong to words."""
    text = "NAÏVEServer e\u0301tat 12"
    words = PRE_TOKENIZERS["tekken"].library_object().pre_tokenize_str(text)
    cut = [text[start:stop] for _, (start, stop) in words]
    assert cut == ["NAÏVEServer", " e\u0301tat", " ", "1", "2"]


# --- shared cases ---

TEXT = "hi there <|im_end|> the quick brown fox"
BPE_IDS = [75, 76, 314, 224, 3, 266, 330, 324, 327]
SPM_IDS = (
    *(1, 299, 280, 281, 358, 299, 63, 127, 281, 285),
    *(98, 277, 286, 276, 127, 65, 307, 375, 369, 372),
)
# Ids and ends of llama.cpp; logits of Transformers 5.23 after the ids 5 to 12: the first, and the largest.
CASES = {
    "r1qwen.gguf": (BPE_IDS, (1, 3), [-0.69825, 0.66239, 0.43832, 0.11865, -1.01247], 7.40343),
    "spm.gguf": (list(SPM_IDS), (2,), [-5.14356, -3.68203, -0.74459, 1.29196, -2.08255], 5.96322),
    "split-00001-of-00004.gguf": (BPE_IDS, (1, 3), [-3.61526, -0.2523, -1.15374, 1.08613, -4.03708], 7.50036),
}


@pytest.mark.shared("cases")
@pytest.mark.parametrize("name", CASES)
def test_shared_cases(name):
    ids, ends_, first, largest = CASES[name]
    model = load(SHARED / "cases" / name)
    assert model.tokenizer.encode(TEXT) == ids and model.eos_ids == ends_
    logits = model.forward(range(5, 13))[-1]
    np.testing.assert_allclose(logits[:5], first, atol=1e-4 * largest)
    assert abs(logits.max() - largest) < 1e-4 * largest


@pytest.mark.shared("cases")
def test_the_shared_split_file_is_the_model_in_one_file():
    expected = json.loads((SHARED / "cases" / "expected.json").read_text())["bos-mismatch"]
    model = load(SHARED / "cases" / "split-00001-of-00004.gguf")
    logits = model.forward(expected["prompt"])[-1][: len(expected["last_logits"])]
    np.testing.assert_allclose(logits, expected["last_logits"], atol=1e-3)
