"""The byte-level BPE tokenizer that GGUF metadata describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minicore.errors import InputError, one_line, unknown

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True)
class PreTokenizer:
    """How a text is split into words before byte-pair merging.

    Attributes
    ----------
    split : str or None
        A split before the byte-level step: a regular expression, or ``digits`` for single digits.
    gpt2_regex : bool
        Whether the byte-level step also splits by GPT-2's regular expression.
    ignore_merges : bool
        Whether a word that is a token is taken whole, without merges.
    adds_bos : bool
        Whether BOS is added if the file does not say.
    """

    split: str | None = None
    gpt2_regex: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False


# GGUF stores only the name of a pre-tokenizer. The models' own tokenizer.json files define what it does.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_PRE_TOKENIZERS = {
    "gpt2": PreTokenizer(gpt2_regex=True),
    "gpt-2": PreTokenizer(gpt2_regex=True),
    "smollm": PreTokenizer("digits", gpt2_regex=True),
    "llama-bpe": PreTokenizer(_LLAMA3, ignore_merges=True, adds_bos=True),
    "qwen2": PreTokenizer(_QWEN2),
}
_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


def byte_level_bpe(metadata: Mapping[str, Any], source: str) -> tokenizers.Tokenizer:
    """Build the tokenizer that GGUF metadata describes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    model = _need(metadata, "tokenizer.ggml.model", str, source)
    if model != "gpt2":
        raise InputError(f"{source}: tokenizer.ggml.model is {model!r}, expected 'gpt2' (byte-level BPE)")
    pre = _need(metadata, "tokenizer.ggml.pre", str, source)
    if pre not in _PRE_TOKENIZERS:
        raise InputError(f"{source}: tokenizer.ggml.pre: {unknown('pre-tokenizer', pre, _PRE_TOKENIZERS)}")
    pre_tokenizer = _PRE_TOKENIZERS[pre]
    tokens = _need(metadata, "tokenizer.ggml.tokens", list, source)
    merges = [str(merge).split(" ") for merge in _need(metadata, "tokenizer.ggml.merges", list, source)]
    kinds = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if len(kinds) != len(tokens):
        raise InputError(
            f"{source}: tokenizer.ggml.token_type has {len(kinds)} entries, expected {len(tokens)}"
        )
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise InputError(f"{source}: tokenizer.ggml.tokens has a token twice, expected every token once")
    for i, merge in enumerate(merges):
        if len(merge) != 2:
            raise InputError(
                f"{source}: tokenizer.ggml.merges[{i}] is {' '.join(merge)!r}, expected two tokens"
            )
    pairs = [(a, b) for a, b in merges]
    try:
        inner = Tokenizer(models.BPE(vocab, pairs, ignore_merges=pre_tokenizer.ignore_merges))
    except Exception as error:  # the library raises nothing more specific
        raise InputError(
            f"{source}: the tokenizer's merges do not fit its tokens ({one_line(error)})"
        ) from error

    inner.pre_tokenizer = _library_pre_tokenizer(pre_tokenizer)
    inner.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (_CONTROL, _USER_DEFINED):  # text is searched for both; only control tokens are not text
            inner.add_tokens([AddedToken(token, special=kind == _CONTROL, normalized=False)])
    if metadata.get("tokenizer.ggml.add_bos_token", pre_tokenizer.adds_bos):
        bos_id = _need(metadata, "tokenizer.ggml.bos_token_id", int, source)
        if not 0 <= bos_id < len(tokens):
            raise InputError(
                f"{source}: tokenizer.ggml.bos_token_id is {bos_id}, expected an id below {len(tokens)}"
            )
        inner.post_processor = processors.TemplateProcessing(
            single=["bos", "$A"], special_tokens=[{"id": "bos", "ids": [bos_id], "tokens": [tokens[bos_id]]}]
        )
    return inner


def _library_pre_tokenizer(pre_tokenizer: PreTokenizer) -> tokenizers.pre_tokenizers.PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre_tokenizer.gpt2_regex)
    if pre_tokenizer.split is None:
        return byte_level
    words: tokenizers.pre_tokenizers.PreTokenizer
    if pre_tokenizer.split == "digits":
        words = pre_tokenizers.Digits(individual_digits=True)
    else:
        words = pre_tokenizers.Split(Regex(pre_tokenizer.split), "isolated")
    return pre_tokenizers.Sequence([words, byte_level])


def _need(metadata: Mapping[str, Any], key: str, kind: type, source: str) -> Any:
    value = metadata.get(key)
    if not isinstance(value, kind):
        given = "missing" if value is None else f"a {type(value).__name__}"
        raise InputError(f"{source}: {key} is {given}, expected a {kind.__name__}")
    return value
