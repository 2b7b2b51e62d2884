"""The vocabulary in GGUF metadata: tokens, what each is, and which begin a text and end a generation.

The rules are those of llama.cpp (src/llama-vocab.cpp), so that a file means the same here and there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from minicore.checkpoint.chat_template import ChatTemplate
from minicore.checkpoint.pre_tokenizers import PRE_TOKENIZERS
from minicore.errors import InputError, unknown

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # values of tokenizer.ggml.token_type
MODELS = {"llama": "SentencePiece", "gpt2": "byte-level BPE"}  # of tokenizer.ggml.model
NONE = ("none", "no_vocab")  # a model of a file without a tokenizer

END_KEYS = ("eos", "eot", "eom")  # keys of tokens that end a text, a turn, a message
# Tokens that end a generation wherever a vocabulary has them, whatever the file says about them.
END_TEXTS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"),
    *("<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
    *("<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>"),
    *("<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~["),
)
# Tokens for filling in the middle of a text: keys of the metadata, and texts to look for without the key.
FILL_TEXTS = {
    "fim_pre": (
        *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>"),
        *("\u2581<PRE>", "<|code_prefix|>", "<|prefix|>"),
    ),
    "fim_suf": (
        *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>"),
        *("\u2581<SUF>", "<|code_suffix|>", "<|suffix|>"),
    ),
    "fim_mid": (
        *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim\u2581end\uff5c>", "<MID>"),
        *("\u2581<MID>", "<|code_middle|>", "<|middle|>"),
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
ENDING_FILLS = ("fim_pad", "fim_rep", "fim_sep")
SHOWN_TEXTS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")  # part of an answer's text


@dataclass(frozen=True)
class Vocabulary:
    """What GGUF metadata say about tokens.

    Attributes
    ----------
    model : str
        ``llama`` (SentencePiece) or ``gpt2`` (byte-level BPE).
    pre : str
        Name of the pre-tokenizer; only a byte-level BPE has one.
    tokens, kinds : list of str, list of int
        The text and the type of each id: NORMAL, UNKNOWN, CONTROL, USER_DEFINED, 5 (unused) or 6 (byte).
    bos_id, eos_id, unk_id : int or None
        The tokens that begin and end a text, and the token of unknown text.
    end_ids : tuple of int
        All tokens that end a generation, ``eos_id`` first.
    adds_bos, adds_eos : bool
        Whether encoding adds them around a text.
    """

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    end_ids: tuple[int, ...]
    adds_bos: bool
    adds_eos: bool


def has_tokenizer(metadata: Mapping[str, Any]) -> bool:
    """Say whether metadata describe a tokenizer.

    Examples
    --------
    >>> has_tokenizer({"tokenizer.ggml.model": "none"})
    False
    """
    return metadata.get("tokenizer.ggml.model") not in (None, *NONE)


def read_vocabulary(metadata: Mapping[str, Any], source: str) -> Vocabulary:
    """Return the vocabulary of a file.

    Parameters
    ----------
    metadata : mapping of str to str, int, float, bool or list
        The file's key-value section.
    source : str
        The file's name, for messages.

    Raises
    ------
    InputError
        If a key is missing or malformed, or names a tokenizer that minicore does not have.

    Examples
    --------
    >>> metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "<|im_end|>"]}
    >>> vocabulary = read_vocabulary(metadata, "model.gguf")
    >>> vocabulary.pre, vocabulary.end_ids, vocabulary.kinds
    ('default', (1,), [1, 3])
    """
    model = need(metadata, "tokenizer.ggml.model", str, source)
    if model not in MODELS:
        expected = " or ".join(f"{name!r} ({what})" for name, what in MODELS.items())
        raise InputError(f"{source}: tokenizer.ggml.model is {model!r}, expected {expected}")
    pre = metadata.get("tokenizer.ggml.pre") or "default"
    if model == "gpt2" and pre not in PRE_TOKENIZERS:
        raise InputError(f"{source}: tokenizer.ggml.pre: {unknown('pre-tokenizer', pre, PRE_TOKENIZERS)}")
    texts = need(metadata, "tokenizer.ggml.tokens", list, source)
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(texts)]
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise InputError(f"{source}: tokenizer.ggml.tokens has a token twice, expected every token once")
    kinds = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if len(kinds) != len(tokens):
        raise InputError(
            f"{source}: tokenizer.ggml.token_type has {len(kinds)} entries, expected {len(tokens)}"
        )
    special = _Special(metadata, ids)
    spm = model == "llama"
    eos_id = special.id("eos", default=2 if spm else None)
    end_ids, shown = special.ends(eos_id)
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", spm or PRE_TOKENIZERS[pre].adds_bos)
    return Vocabulary(
        model=model,
        pre=pre,
        tokens=tokens,
        kinds=_kinds(kinds, ids, shown),
        bos_id=special.id("bos", default=1 if spm else None),
        eos_id=eos_id,
        unk_id=special.id("unk", "unknown", default=0 if spm else None),
        end_ids=end_ids,
        adds_bos=bool(adds_bos),
        adds_eos=bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
    )


@dataclass(frozen=True)
class _Special:
    """Looks special tokens up: by their key in the metadata, or by their text."""

    metadata: Mapping[str, Any]
    ids: Mapping[str, int]

    def id(self, *names: str, default: int | None = None) -> int | None:
        """Return the id under the first key that is present; a key with an id out of range is ignored."""
        given = (self.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in names)
        for value in (*given, default):
            if type(value) is int and 0 <= value < len(self.ids):
                return value
        return None

    def texts(self, texts: Iterable[str]) -> list[int]:
        """Return the ids of those texts that are tokens, in ascending order."""
        return sorted(self.ids[text] for text in texts if text in self.ids)

    def ends(self, eos_id: int | None) -> tuple[tuple[int, ...], list[int]]:
        """Return the tokens that end a generation, and those of END_TEXTS that are ordinary text instead."""
        others = set(self.texts(END_TEXTS))
        for name in ENDING_FILLS:
            found = self.id(name)
            others.update(self.texts(FILL_TEXTS[name])[:1] if found is None else [found])
        named = [eos_id, *(self.id(name) for name in END_KEYS[1:])]
        ends = [i for i in (*named, *sorted(others)) if i is not None]
        present = self.ids.keys()
        calls = {"<|call|>", "<|calls|>"} & present
        harmony = "<|end|>" in present and calls and {"<|return|>", "<|flush|>"} & present
        shown = [self.ids["<|end|>"]] if harmony else []  # there it ends a part of an answer only
        if {"<|tool_response>", "</s>"} <= present:
            shown.append(self.ids["</s>"])
        return tuple(dict.fromkeys(i for i in ends if i not in shown)), shown


def _kinds(kinds: list[int], ids: Mapping[str, int], shown: list[int]) -> list[int]:
    """Return the types of tokens, corrected: well-known control tokens are control tokens in every file."""
    kinds = list(kinds)
    for text in (*END_TEXTS, *(text for texts in FILL_TEXTS.values() for text in texts)):
        if text in ids:
            kinds[ids[text]] = CONTROL
    for i in (*shown, *(ids[text] for text in SHOWN_TEXTS if text in ids)):
        kinds[i] = USER_DEFINED
    return kinds


def chat_template(metadata: Mapping[str, Any]) -> ChatTemplate:
    """Return the chat template of a file; if it has several and none is the default, all by name.

    Examples
    --------
    >>> chat_template({"tokenizer.chat_template.rag": "{{ documents }}"})
    {'rag': '{{ documents }}'}
    """
    key = "tokenizer.chat_template"
    named = {
        name.removeprefix(f"{key}."): text for name, text in metadata.items() if name.startswith(f"{key}.")
    }
    return metadata.get(key) or named or None


def special_ids(metadata: Mapping[str, Any], source: str) -> tuple[int | None, tuple[int, ...]]:
    """Return the token that begins a text and those that end a generation, with or without a tokenizer.

    Examples
    --------
    >>> special_ids({"tokenizer.ggml.model": "none", "tokenizer.ggml.eos_token_id": 2}, "model.gguf")
    (None, (2,))
    """
    if has_tokenizer(metadata):
        vocabulary = read_vocabulary(metadata, source)
        return vocabulary.bos_id, vocabulary.end_ids
    bos_id, *ends = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", *END_KEYS))
    return bos_id, tuple(dict.fromkeys(i for i in ends if i is not None))


def need(metadata: Mapping[str, Any], key: str, kind: type, source: str) -> Any:
    """Return a value of the metadata; raise InputError if it is missing or of another type.

    Examples
    --------
    >>> need({"tokenizer.ggml.model": "gpt2"}, "tokenizer.ggml.model", str, "model.gguf")
    'gpt2'
    """
    value = metadata.get(key)
    if not isinstance(value, kind):
        given = "missing" if value is None else f"a {type(value).__name__}"
        raise InputError(f"{source}: {key} is {given}, expected a {kind.__name__}")
    return value
