"""The tokenizer that GGUF metadata describe: a byte-level BPE, or SentencePiece's BPE with byte fallback."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minicore.checkpoint.gguf_vocabulary import (
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    need,
    read_vocabulary,
)
from minicore.checkpoint.pre_tokenizers import PRE_TOKENIZERS
from minicore.errors import InputError, one_line

if TYPE_CHECKING:
    import tokenizers

SPACE = "\u2581"  # how SentencePiece writes a space
_SPECIAL = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}  # found in a text; whether left out of answers


def build_tokenizer(metadata: Mapping[str, Any], source: str) -> tokenizers.Tokenizer:
    """Return the tokenizer that GGUF metadata describe.

    Parameters
    ----------
    metadata : mapping of str to str, int, float, bool or list
        The file's key-value section.
    source : str
        The file's name, for messages.

    Raises
    ------
    InputError
        If a key is missing or malformed, or the tokenizer is one that minicore does not have.

    Examples
    --------
    >>> values = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "ab"], "merges": ["a b"]}
    >>> metadata = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    >>> build_tokenizer(metadata, "model.gguf").encode("abba").ids
    [2, 1, 0]
    """
    vocabulary = read_vocabulary(metadata, source)
    build = _sentencepiece if vocabulary.model == "llama" else _byte_level_bpe
    inner = build(vocabulary, metadata, source)
    _add_special_tokens(inner, vocabulary, metadata, source)
    return inner


def _byte_level_bpe(vocabulary: Vocabulary, metadata: Mapping[str, Any], source: str) -> tokenizers.Tokenizer:
    from tokenizers import decoders

    pairs = []
    for i, merge in enumerate(need(metadata, "tokenizer.ggml.merges", list, source)):
        left, _, right = str(merge).partition(" ")
        if not left or not right or " " in right:
            raise InputError(f"{source}: tokenizer.ggml.merges[{i}] is {merge!r}, expected two tokens")
        pairs.append((left, right))
    pre_tokenizer = PRE_TOKENIZERS[vocabulary.pre]
    inner = _bpe(vocabulary, pairs, source, ignore_merges=pre_tokenizer.ignore_merges)
    inner.pre_tokenizer = pre_tokenizer.library_object()
    inner.decoder = decoders.ByteLevel()
    return inner


def _sentencepiece(vocabulary: Vocabulary, metadata: Mapping[str, Any], source: str) -> tokenizers.Tokenizer:
    """Return SentencePiece's BPE. Its merges have scores instead of ranks."""
    from tokenizers import decoders, normalizers

    scores = need(metadata, "tokenizer.ggml.scores", list, source)
    if len(scores) != len(vocabulary.tokens) or not all(math.isfinite(score) for score in scores):
        raise InputError(
            f"{source}: tokenizer.ggml.scores has {len(scores)} entries or one that is not finite, "
            f"expected {len(vocabulary.tokens)} finite numbers"
        )
    unknown = None if vocabulary.unk_id is None else vocabulary.tokens[vocabulary.unk_id]
    pairs = _merges(vocabulary, scores, source)
    inner = _bpe(vocabulary, pairs, source, byte_fallback=True, fuse_unk=True, unk_token=unknown)
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    front = [normalizers.Prepend(SPACE)] if prefix else []
    inner.normalizer = normalizers.Sequence([*front, normalizers.Replace(" ", SPACE)])
    back = [decoders.Strip(" ", 1, 0)] if prefix else []
    inner.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *back]
    )
    return inner


def _merges(vocabulary: Vocabulary, scores: list[float], source: str) -> list[tuple[str, str]]:
    """Return every way to make a token of two tokens, in an order in which ranks do what scores do.

    SentencePiece merges the leftmost of several pairs with the highest score, a BPE with ranks the pair of
    lowest rank. The two agree if different tokens have different scores, and if of all ways to make one token
    the longest left part comes first: repeated text is merged from the left, so its left parts are longer.
    """
    known = set(vocabulary.tokens)
    found = []
    for token, kind, score in zip(vocabulary.tokens, vocabulary.kinds, scores, strict=True):
        if kind in _SPECIAL and SPACE not in token:
            continue  # a text is searched for these before it is merged
        for cut in range(len(token) - 1, 0, -1):
            if token[:cut] in known and token[cut:] in known:
                found.append((score, token[:cut], token[cut:]))
    found.sort(key=lambda merge: (-merge[0], -len(merge[1])))
    _refuse_ties(found, source)
    return [(left, right) for _, left, right in found]


def _refuse_ties(found: list[tuple[float, str, str]], source: str) -> None:
    """Refuse tokens of one score that can compete for the same text: ranks cannot say which is leftmost."""
    by_right: dict[tuple[float, str], set[str]] = {}
    for score, left, right in found:
        by_right.setdefault((score, right), set()).add(left + right)
    for score, left, right in found:
        others = by_right.get((score, left), set()) - {left + right}
        if others:
            raise InputError(
                f"{source}: tokenizer.ggml.scores gives {min(others)!r} and {left + right!r} one score, "
                f"{score:g}, expected different scores, which say what is merged first"
            )


def _bpe(
    vocabulary: Vocabulary, pairs: list[tuple[str, str]], source: str, **options: Any
) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, models

    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    try:
        return Tokenizer(models.BPE(ids, pairs, **options))
    except Exception as error:  # the library raises nothing more specific
        raise InputError(
            f"{source}: the tokenizer's merges do not fit its tokens ({one_line(error)})"
        ) from error


def _add_special_tokens(
    inner: tokenizers.Tokenizer, vocabulary: Vocabulary, metadata: Mapping[str, Any], source: str
) -> None:
    """Let the tokenizer find special tokens in a text, and add BOS and EOS around it."""
    from tokenizers import AddedToken, processors

    inner.add_tokens(
        [
            AddedToken(token, special=_SPECIAL[kind], normalized=False)
            for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
            if kind in _SPECIAL
        ]
    )
    around = ["$A"]
    tokens = []
    for name, wanted in (("bos", vocabulary.adds_bos), ("eos", vocabulary.adds_eos)):
        if wanted:
            token_id = _around_id(name, vocabulary, metadata, source)
            tokens.append({"id": name, "ids": [token_id], "tokens": [vocabulary.tokens[token_id]]})
            around = [name, *around] if name == "bos" else [*around, name]
    if tokens:
        inner.post_processor = processors.TemplateProcessing(single=around, special_tokens=tokens)


def _around_id(name: str, vocabulary: Vocabulary, metadata: Mapping[str, Any], source: str) -> int:
    """Return the id of BOS or EOS, which the file says to add; it must say a valid one."""
    key = f"tokenizer.ggml.{name}_token_id"
    given = metadata.get(key)
    token_id = vocabulary.bos_id if name == "bos" else vocabulary.eos_id
    if token_id is None or given not in (None, token_id):
        problem = "missing" if given is None else repr(given)
        raise InputError(f"{source}: {key} is {problem}, expected an id below {len(vocabulary.tokens)}")
    return token_id
