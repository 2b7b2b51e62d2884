"""The tokenizer of a Hugging Face directory: its files, its special tokens and its added tokens.

tokenizer.json describes the tokenizer; tokenizer_config.json, special_tokens_map.json and added_tokens.json
add tokens and say which of them begin, end and pad texts. Without a tokenizer.json, vocab.json and merges.txt
describe a byte-level BPE. The order in which the files count is that of Transformers 5
(``PreTrainedTokenizerBase._from_pretrained`` and ``TokenizersBackend.__init__``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicore.checkpoint.settings import read_bytes, read_json
from minicore.errors import InputError, one_line

if TYPE_CHECKING:
    import tokenizers

OTHER_FILES = ("tokenizer.model", "spiece.model", "tiktoken.model", "tekken.json", "vocab.json")  # not read
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_END_OF_TEXT = "<|endoftext|>"
# The special tokens that a tokenizer class of Transformers has where the files name none.
_DEFAULTS = {
    "GPT2Tokenizer": {"bos_token": _END_OF_TEXT, "eos_token": _END_OF_TEXT, "unk_token": _END_OF_TEXT},
    "Qwen2Tokenizer": {"eos_token": _END_OF_TEXT, "unk_token": _END_OF_TEXT, "pad_token": _END_OF_TEXT},
    "GPTNeoXTokenizer": {
        **{"bos_token": _END_OF_TEXT, "eos_token": _END_OF_TEXT, "unk_token": _END_OF_TEXT},
        "pad_token": "<|padding|>",
    },
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GemmaTokenizer": {
        **{"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"},
        **{"pad_token": "<pad>", "mask_token": "<mask>"},
    },
}
# The class of a model_type: always, as Transformers overrules the files of these, or if no file names one.
_ALWAYS = {
    "qwen2": "Qwen2Tokenizer",
    **dict.fromkeys(("mistral", "nemotron", "olmo2", "phi3", "stablelm"), ""),
}
_OTHERWISE = {
    **dict.fromkeys(("gpt2", "opt", "phi"), "GPT2Tokenizer"),
    **dict.fromkeys(("qwen3",), "Qwen2Tokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), "GemmaTokenizer"),
    "gpt_neox": "GPTNeoXTokenizer",
}
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Token:
    """A token that a file adds: its text, and the flags that the file gives (see tokenizers.AddedToken)."""

    content: str
    flags: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files next to tokenizer.json or vocab.json say.

    Attributes
    ----------
    kind : str
        The tokenizer class of Transformers, without ``Fast``; "" if the files name none.
    special : dict of str to Token
        ``bos_token``, ``eos_token`` and the like, and the model's own names.
    added : dict of int to Token
        Tokens to add, by the id that the file gives them.
    extra : tuple of Token
        Special tokens without a name.
    add_bos, add_eos : bool
        Whether a text begins with BOS and ends with EOS if there is no tokenizer.json to say so.
    add_prefix_space : bool or None
        Whether a text begins with a space; None is the class's default.
    legacy : bool
        Whether a text after a special token begins with a space too (Llama 2's classes).
    """

    kind: str
    special: dict[str, Token]
    added: dict[int, Token]
    extra: tuple[Token, ...]
    add_bos: bool
    add_eos: bool
    add_prefix_space: bool | None
    legacy: bool

    @property
    def special_tokens(self) -> dict[str, str]:
        """The names of special tokens and their texts, as a chat template sees them."""
        return {name: token.content for name, token in self.special.items()}


def tokenizer_file(directory: Path) -> Path | None:
    """Return tokenizer.json, or else vocab.json if merges.txt is with it and the class is a known one."""
    if (directory / "tokenizer.json").exists():
        return directory / "tokenizer.json"
    if not all((directory / name).exists() for name in ("vocab.json", "merges.txt")):
        return None
    return directory / "vocab.json" if read_files(directory).kind in _BYTE_LEVEL else None


def read_files(directory: Path) -> TokenizerFiles:
    """Read what the files of a directory say about special and added tokens.

    Raises
    ------
    InputError
        If a file is not JSON, or a token in it is neither a text nor an object with ``content``.

    Examples
    --------
    >>> from minicore.checkpoint.names import resolve
    >>> read_files(resolve("minicore-opt-core")).special_tokens["eos_token"]
    '<|endoftext|>'
    """
    path, special_map = directory / "tokenizer_config.json", directory / "special_tokens_map.json"
    config = dict(read_json(path))
    mapped: dict[str, Any] = {}
    if config.get("additional_special_tokens") and not config.get("extra_special_tokens"):
        config["extra_special_tokens"] = config["additional_special_tokens"]
    decoder = config.get("added_tokens_decoder")
    if decoder is None:  # files of earlier versions of Transformers
        mapped = _with_lists_joined(config, read_json(special_map))
        config |= mapped
    kind = _class_of(directory, config)
    own = config.get("extra_special_tokens")
    named = {key: config[key] for key in config if key.endswith("_token") and _is_token(config[key])}
    named |= own if isinstance(own, dict) else {}
    named |= {key: config[key] for key in NAMED if config.get(key) is not None}
    given = {key: _token(value, key, special_map if key in mapped else path) for key, value in named.items()}
    defaults = {key: Token(text) for key, text in _DEFAULTS.get(kind, {}).items() if key not in config}
    unordered = defaults | given
    special = {key: unordered[key] for key in dict.fromkeys([*NAMED, *unordered]) if key in unordered}
    extra = [_token(value, "extra_special_tokens", path) for value in own] if isinstance(own, list) else []
    if decoder is None:
        # As in Transformers, a token that tokenizer_config.json gives as an object does not count here.
        objects = {key for key in named if isinstance(named[key], dict) and key not in mapped}
        texts = {token.content for key, token in special.items() if key in NAMED and key not in objects}
        texts |= {token for token in own or () if isinstance(token, str)}
        added = _legacy_added(directory / "added_tokens.json", texts)
    else:
        added = _added(decoder, path)
    by_text = {token.content: token for token in added.values()}
    return TokenizerFiles(
        kind=kind,
        special={key: by_text.get(token.content, token) for key, token in special.items()},
        added=added,
        extra=tuple(extra),
        add_bos=config.get("add_bos_token") is True,
        add_eos=config.get("add_eos_token") is True,
        add_prefix_space=config.get("add_prefix_space"),
        legacy=config.get("legacy") is True,
    )


def _with_lists_joined(config: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the second file's values, with both files' lists of extra special tokens joined."""
    lists = [values.get("extra_special_tokens") for values in (config, more)]
    if "additional_special_tokens" in more and not lists[1]:
        lists[1] = more["additional_special_tokens"]
    if not isinstance(lists[1], list):
        return dict(more)
    first = lists[0] if isinstance(lists[0], list) else []
    return {**more, "extra_special_tokens": first + [token for token in lists[1] if token not in first]}


def _class_of(directory: Path, config: Mapping[str, Any]) -> str:
    model = read_json(directory / "config.json")
    family = model.get("model_type")
    named = str(config.get("tokenizer_class") or model.get("tokenizer_class") or "").removesuffix("Fast")
    if family in _ALWAYS:
        return _ALWAYS[family]
    if named == "LlamaTokenizer" and not _DEFAULTS[named].keys() <= config.keys():
        if _is_byte_level(directory / "tokenizer.json"):
            return ""  # a tokenizer as Llama 3's, which Transformers does not take for that class
    return named or _OTHERWISE.get(str(family), "")


def _is_byte_level(path: Path) -> bool:
    """Return whether a tokenizer.json splits text into bytes."""
    pre = read_json(path).get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre]) if isinstance(pre, dict) else []
    return any(isinstance(step, dict) and step.get("type") == "ByteLevel" for step in steps)


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and "content" in value)


def _token(value: Any, key: str, path: Path) -> Token:
    if isinstance(value, str):
        return Token(value)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise InputError(f"{path}: {key} is {value!r}, expected a token's text, or an object with content")
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return Token(value["content"], {flag: bool(value[flag]) for flag in flags if flag in value})


def _added(decoder: Any, path: Path) -> dict[int, Token]:
    if not isinstance(decoder, dict) or not all(str(i).isdecimal() for i in decoder):
        raise InputError(
            f"{path}: added_tokens_decoder is {decoder!r}, expected an object from ids to tokens"
        )
    return {int(i): _token(value, f"added_tokens_decoder.{i}", path) for i, value in decoder.items()}


def _legacy_added(path: Path, special: set[str]) -> dict[int, Token]:
    values = read_json(path)
    if any(type(i) is not int for i in values.values()):
        raise InputError(f"{path}: holds {values!r}, expected an object from tokens to ids")
    return {
        i: Token(text, {"special": text in special, "normalized": text not in special})
        for text, i in values.items()
    }


def build_tokenizer(path: Path, files: TokenizerFiles) -> tokenizers.Tokenizer:
    """Build the tokenizer of a tokenizer.json or vocab.json, with the tokens that other files add.

    Raises
    ------
    InputError
        If a file cannot be read or is not a tokenizer's.

    Examples
    --------
    >>> from minicore.checkpoint.names import resolve
    >>> folder = resolve("minicore-opt-core")
    >>> build_tokenizer(folder / "tokenizer.json", read_files(folder)).token_to_id("<|endoftext|>")
    0
    """
    inner = _byte_level_bpe(path) if path.name == "vocab.json" else load_json(path)
    replaced = path.name == "vocab.json" or _is_replaced(inner, files.kind)
    if files.kind in _DEFAULTS and (replaced or files.kind != "LlamaTokenizer"):
        inner = _with_flags(inner, files.added)
    if replaced and files.kind in _SPLITTING:
        _SPLITTING[files.kind](inner, files)
    add_tokens(inner, files)
    if path.name == "vocab.json" and (files.add_bos or files.add_eos):
        inner.post_processor = _around(inner, files)
    elif files.kind == "GPTNeoXTokenizer":  # this class does not believe tokenizer.json about BOS and EOS
        inner.post_processor = None
    return inner


def _with_flags(inner: tokenizers.Tokenizer, added: Mapping[int, Token]) -> tokenizers.Tokenizer:
    """Return the tokenizer with the flags that other files give its added tokens.

    The library keeps the flags of a token that it has, but Transformers builds these classes without them.
    """
    from tokenizers import Tokenizer

    flags = {token.content: dict(token.flags) for token in added.values()}
    known = inner.get_added_tokens_decoder().values()
    if all(
        getattr(token, key) == flag for token in known for key, flag in flags.get(token.content, {}).items()
    ):
        return inner
    values = json.loads(inner.to_str())
    values["added_tokens"] = [token | flags.get(token["content"], {}) for token in values["added_tokens"]]
    return Tokenizer.from_str(json.dumps(values))


def _is_replaced(inner: tokenizers.Tokenizer, kind: str) -> bool:
    """Return whether the class, not tokenizer.json, says how text is split.

    Transformers always believes the class. minicore does where tokenizer.json splits as the class does, apart
    from spaces in front of a text: elsewhere the model was trained with what tokenizer.json says.
    """
    from tokenizers import models

    if not isinstance(inner.model, models.BPE):
        return False
    pre = json.loads(inner.pre_tokenizer.__getstate__()) if inner.pre_tokenizer else {}
    if kind == "LlamaTokenizer":
        return pre.get("type") in (None, "Metaspace")
    return kind in ("GPT2Tokenizer", "GPTNeoXTokenizer") and pre.get("type") == "ByteLevel"


def load_json(path: Path) -> tokenizers.Tokenizer:
    """Return the tokenizer of a tokenizer.json."""
    import tokenizers

    raw = read_bytes(path)
    try:
        return tokenizers.Tokenizer.from_str(raw.decode("utf-8-sig"))
    except Exception as error:  # the library raises nothing more specific
        raise InputError(f"{path}: not a usable tokenizer.json ({one_line(error)})") from error


def add_tokens(inner: tokenizers.Tokenizer, files: TokenizerFiles) -> None:
    """Add the files' tokens in Transformers' order. A token that is there already keeps its id."""
    from tokenizers import AddedToken

    tokens = [token for _, token in sorted(files.added.items())]
    known = {token.content for token in inner.get_added_tokens_decoder().values()}
    known |= {token.content for token in tokens}
    for token in (*files.special.values(), *files.extra):
        if token.content not in known:
            tokens.append(Token(token.content, {"special": True, **token.flags}))
            known.add(token.content)
    names = set(files.special_tokens.values())
    added = []
    for token in tokens:
        flags = dict(token.flags)
        if token.content in names:
            flags["special"] = True
        added.append(AddedToken(token.content, **flags))
    inner.add_tokens(added)
    if files.kind == "Qwen2Tokenizer":  # this class makes tokens without a name special as well
        inner.add_tokens([AddedToken(token.content, special=True) for token in files.extra])


def _byte_level_bpe(path: Path) -> tokenizers.Tokenizer:
    """Return the byte-level BPE of vocab.json and the merges.txt next to it."""
    from tokenizers import Tokenizer, models

    merges = path.with_name("merges.txt")
    for file in (path, merges):
        read_bytes(file)  # says what it is if it is not the file itself; the library would not
    try:
        return Tokenizer(models.BPE.from_file(str(path), str(merges)))
    except Exception as error:  # the library raises nothing more specific
        raise InputError(f"{path}: cannot be read together with {merges.name} ({one_line(error)})") from error


def _split_as_gpt2(inner: tokenizers.Tokenizer, files: TokenizerFiles) -> None:
    from tokenizers import decoders, pre_tokenizers

    inner.decoder = decoders.ByteLevel()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(files.add_prefix_space))


def _split_as_neox(inner: tokenizers.Tokenizer, files: TokenizerFiles) -> None:
    from tokenizers import normalizers

    inner.normalizer = normalizers.NFC()
    _split_as_gpt2(inner, files)


def _split_as_qwen2(inner: tokenizers.Tokenizer, files: TokenizerFiles) -> None:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    inner.normalizer, inner.decoder = normalizers.NFC(), decoders.ByteLevel()
    words = pre_tokenizers.Split(Regex(_QWEN2_WORDS), "isolated")
    spaced = bool(files.add_prefix_space)
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=spaced, use_regex=False)]
    )


def _split_as_llama(inner: tokenizers.Tokenizer, files: TokenizerFiles) -> None:
    """Put a space in front of a text as SentencePiece does: of the whole, or (legacy) of each part."""
    from tokenizers import decoders, pre_tokenizers

    spaced = files.add_prefix_space is not False
    scheme = ("always" if files.legacy else "first") if spaced else "never"
    inner.normalizer = None
    inner.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * spaced)


_SPLITTING = {
    "GPT2Tokenizer": _split_as_gpt2,
    "GPTNeoXTokenizer": _split_as_neox,
    "Qwen2Tokenizer": _split_as_qwen2,
    "LlamaTokenizer": _split_as_llama,
}
_BYTE_LEVEL = ("GPT2Tokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer")


def _around(inner: tokenizers.Tokenizer, files: TokenizerFiles) -> tokenizers.processors.PostProcessor:
    """Return the step that puts BOS in front of a text and EOS behind it."""
    from tokenizers import processors

    bos, eos = (files.special_tokens.get(name) for name in ("bos_token", "eos_token"))
    front = [bos] if files.add_bos and bos is not None else []
    back = [eos] if files.add_eos and eos is not None else []
    return processors.TemplateProcessing(
        single=[*front, "$A", *back],
        special_tokens=[(token, inner.token_to_id(token)) for token in {*front, *back}],
    )
