"""Text to ids and back, streaming that never shows half a character, and the checkpoint's chat template.

The work is the ``tokenizers`` library's; this room says where a tokenizer comes from (tokenizer.json, or
the metadata of a GGUF file) and holds it to what the engine promises.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from minicore.errors import InputError, unknown

if TYPE_CHECKING:
    import tokenizers

# How a text is cut into words before merging. GGUF stores only the name of a rule; what each name stands
# for is fixed by the models' own tokenizer.json files. A row: splits made before the byte-level step
# (regular expression or "digits"), whether that step then applies GPT-2's own expression, whether a word
# that is in the vocabulary skips the merges, and whether BOS is added where the file does not say.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_PRE_TOKENIZERS: dict[str, tuple[str | None, bool, bool, bool]] = {
    "gpt2": (None, True, False, False),
    "gpt-2": (None, True, False, False),
    "smollm": ("digits", True, False, False),
    "llama-bpe": (_LLAMA3, False, True, True),
    "qwen2": (_QWEN2, False, False, False),
}
_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
_MAX_RENDERED = 1 << 24  # characters a chat template may produce; a real conversation has far fewer


class Tokenizer:
    """A checkpoint's tokenizer.

    Attributes
    ----------
    n_vocab : int
        One more than the highest id.
    bos_id, eos_id : int or None
        The ids that begin and end a text, where the checkpoint names them.
    chat_template : str or None
        The checkpoint's jinja2 template.
    source : str
        The file, for messages.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        source: str,
        chat_template: str | None = None,
        bos_id: int | None = None,
        eos_id: int | None = None,
        n_vocab: int | None = None,
    ) -> None:
        inner.no_truncation()  # some tokenizer.json files carry the settings of somebody's training run
        inner.no_padding()
        self._inner = inner
        self.source = source
        self.chat_template = chat_template
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.n_vocab = 1 + max(inner.get_vocab(with_added_tokens=True).values(), default=-1)
        if n_vocab is not None and self.n_vocab > n_vocab:
            raise InputError(
                f"{source}: the tokenizer has {self.n_vocab} ids, expected at most the model's {n_vocab}"
            )
        self._front = _added_in_front(inner)
        self._uncertain = _uncertain_ids(inner)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        chat_template: str | None = None,
        bos_id: int | None = None,
        eos_id: int | None = None,
        n_vocab: int | None = None,
    ) -> Tokenizer:
        """Read a tokenizer.json.

        Parameters
        ----------
        path : path
            The file.
        chat_template : str, optional
            The jinja2 template that the checkpoint keeps elsewhere.
        bos_id, eos_id : int, optional
            Ids that begin and end a text; templates see their tokens.
        n_vocab : int, optional
            Rows of the model's embedding; a tokenizer with more ids than that is refused.

        Raises
        ------
        InputError
            If the file is missing or is no tokenizer, or does not fit the model.

        Examples
        --------
        >>> from minicore.checkpoint.names import resolve
        >>> path = resolve("minicore-opt-core") / "tokenizer.json"
        >>> tokenizer = Tokenizer.from_file(path)
        >>> tokenizer.decode(tokenizer.encode("The old house"))
        'The old house'
        """
        import tokenizers

        path = Path(path)
        try:
            inner = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        except Exception as error:  # the library raises nothing more specific
            raise InputError(f"{path}: not a usable tokenizer.json ({_one_line(error)})") from error
        return cls(inner, str(path), chat_template, bos_id, eos_id, n_vocab)

    @classmethod
    def from_gguf(
        cls,
        metadata: Mapping[str, Any],
        chat_template: str | None = None,
        n_vocab: int | None = None,
        source: str = "GGUF metadata",
    ) -> Tokenizer:
        """Build a byte-level BPE tokenizer from a GGUF file's ``tokenizer.*`` metadata.

        The text is not normalised, so that it comes back as it was; Qwen2's tokenizer.json
        normalises to NFC, which makes a difference for decomposed accents only.

        Parameters
        ----------
        metadata : mapping of str to str, int, float, bool or list
            The file's key-value section.
        chat_template : str, optional
            Used instead of the file's ``tokenizer.chat_template``.
        n_vocab : int, optional
            Rows of the model's embedding; a tokenizer with more ids than that is refused.
        source : str
            The file's name, for messages.

        Raises
        ------
        InputError
            If a key is missing or malformed, the tokenizer is no byte-level BPE, or its
            pre-tokenizer is not one of smollm, gpt2 (gpt-2), llama-bpe and qwen2.

        Examples
        --------
        >>> metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt2"}
        >>> metadata |= {"tokenizer.ggml.tokens": ["a", "b", "ab"], "tokenizer.ggml.merges": ["a b"]}
        >>> Tokenizer.from_gguf(metadata).encode("abba")
        [2, 1, 0]
        """
        inner = _byte_level_bpe(metadata, source)
        return cls(
            inner,
            source,
            chat_template if chat_template is not None else metadata.get("tokenizer.chat_template"),
            metadata.get("tokenizer.ggml.bos_token_id"),
            metadata.get("tokenizer.ggml.eos_token_id"),
            n_vocab,
        )

    def to_json(self) -> str:
        """Return the text of a tokenizer.json that makes the same tokenizer, its chat template apart."""
        return str(self._inner.to_str())

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Return the ids of ``text``; special tokens written in it become their ids.

        Parameters
        ----------
        text : str
            Any text. Characters whose bytes the vocabulary lacks vanish, as they do in Transformers;
            a byte-level vocabulary with all 256 bytes loses nothing.
        special : bool
            Add what the tokenizer adds around a text, such as BOS.

        Examples
        --------
        >>> import minicore as mc
        >>> model = mc.load("minicore-opt-core")
        >>> tokenizer = model.tokenizer
        >>> tokenizer.decode(tokenizer.encode("naïve 😀"))
        'naïve 😀'
        """
        if not isinstance(text, str):
            raise InputError(f"text to encode is {type(text).__name__}, expected str")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"text holds half a surrogate pair ({text[error.start]!r} at character {error.start}), "
                "expected text that UTF-8 can hold"
            ) from error
        return list(self._inner.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Return the text of ``ids``, without what `encode` adds in front.

        Bytes that are no UTF-8 become U+FFFD. Ids of the model that no token belongs to are empty.
        """
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < 1 << 32:
                raise InputError(f"token id {i} is not in the vocabulary (0 to {self.n_vocab - 1})")
        front = self._front
        if not skip_special and front and ids[: len(front)] == front:
            ids = ids[len(front) :]
        return str(self._inner.decode(ids, skip_special_tokens=skip_special))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Return the text of each id, to show or to label tokens with.

        A special token is its name. A character whose bytes are spread over several ids belongs to the
        last of them, and the others are empty; joined, pieces of ordinary tokens are :meth:`decode`'s text.

        Examples
        --------
        >>> import minicore as mc
        >>> model = mc.load("minicore-opt-core")
        >>> tokenizer = model.tokenizer
        >>> tokenizer.pieces(tokenizer.encode("The cat sat."))
        ['<|endoftext|>', 'The', ' cat', ' sat', '.']
        """
        added = self._inner.get_added_tokens_decoder()
        names = {i: token.content for i, token in added.items() if token.special}
        stream = self.stream()
        found = [names[i] if i in names else stream.push(i) for i in map(int, ids)]
        if found:
            found[-1] += stream.flush()
        return found

    def stream(self) -> TokenStream:
        """Return a decoder that takes one id at a time."""
        return TokenStream(self)

    def chat(
        self, messages: Sequence[Mapping[str, str]] | str, add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the ids of a conversation in the checkpoint's own chat format.

        Parameters
        ----------
        messages : list of dict, or str
            ``{"role": ..., "content": ...}`` each; a str is one message of the user.
        add_generation_prompt : bool
            End with the words that open the assistant's answer.

        Raises
        ------
        InputError
            If there is no template, or it fails or refuses these messages.

        Examples
        --------
        >>> from minicore.checkpoint.names import resolve
        >>> path = resolve("minicore-opt-core") / "tokenizer.json"
        >>> tokenizer = Tokenizer.from_file(path, chat_template="Q: {{ messages[0].content }} A:")
        >>> tokenizer.decode(tokenizer.chat("Why?"))
        'Q: Why? A:'
        """
        text = self.render_chat(messages, add_generation_prompt)
        return self.encode(text, special=False)  # the template writes BOS itself where there is one

    def render_chat(
        self, messages: Sequence[Mapping[str, str]] | str, add_generation_prompt: bool = True
    ) -> str:
        """Return the text that `chat` encodes."""
        if not self.chat_template:
            raise InputError(f"{self.source}: the checkpoint has no chat template, so chat is not possible")
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        for message in messages:
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise InputError(f"chat message {message!r}: expected a dict with 'role' and 'content'")
        values = {
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self._token(self.bos_id),
            "eos_token": self._token(self.eos_id),
            "tools": None,
            "documents": None,
        }
        try:
            return _render(self.chat_template, values)
        except (
            Exception
        ) as error:  # the template is foreign code: whatever it raises is the checkpoint's doing
            raise InputError(f"{self.source}: the chat template failed ({_one_line(error)})") from error

    def _token(self, token_id: int | None) -> str:
        return "" if token_id is None else (self._inner.id_to_token(token_id) or "")


class TokenStream:
    """Decodes one id at a time and holds back a character until all its bytes are there.

    The pieces, joined, equal ``decode(ids, skip_special=True)``, also for ids that are no text. (The
    library's own DecodeStream raises on some of these, and cannot be asked for what it holds back.)
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # Only the end is decoded again: ids from _start on, of which _sent characters are out. The window
        # keeps the ids of one piece before _whole, because some decoders treat a text's first token apart.
        self._start = self._whole = self._sent = 0

    def push(self, token_id: int) -> str:
        """Take one id; return the text that is now certain, often ``""``."""
        self._ids.append(int(token_id))
        if token_id in self._tokenizer._uncertain:
            return ""
        text = self._window()
        certain = text.rstrip("\ufffd")  # what a character of which bytes are missing looks like
        piece = certain[self._sent :]
        self._sent += len(piece)
        if piece and certain == text:
            self._start, self._whole = self._whole, len(self._ids)
            self._sent = len(self._window())
        return piece

    def flush(self) -> str:
        """Return what is held back, when no more ids come; half a character becomes U+FFFD."""
        rest = self._window()[self._sent :]
        self._sent += len(rest)
        return rest

    def _window(self) -> str:
        return self._tokenizer.decode(self._ids[self._start :], skip_special=True)


def from_source(
    source: tuple[str, Any] | None,
    chat_template: str | None = None,
    bos_id: int | None = None,
    eos_id: int | None = None,
    n_vocab: int | None = None,
    name: str = "GGUF metadata",
) -> Tokenizer | None:
    """Return the tokenizer of a checkpoint: ``("json", path)``, ``("gguf", metadata)`` or None."""
    if source is None:
        return None
    kind, value = source
    if kind == "json":
        return Tokenizer.from_file(value, chat_template, bos_id, eos_id, n_vocab)
    return Tokenizer.from_gguf(value, chat_template, n_vocab, source=name)


def _added_in_front(inner: tokenizers.Tokenizer) -> list[int]:
    """Return the ids that the tokenizer puts before every text."""
    bare = inner.encode("a", add_special_tokens=False).ids
    full = inner.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return list(full[:start])
    return []


def _uncertain_ids(inner: tokenizers.Tokenizer) -> frozenset[int]:
    """Return the ids after which a text is not certain yet.

    Llama 2 spells rare characters as tokens ``<0xE6>``; a run of them is text only as a whole. Special
    tokens are no text and do not end such a run.
    """
    special = {i for i, token in inner.get_added_tokens_decoder().items() if token.special}
    spelled = (inner.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    return frozenset(special | {i for i in spelled if i is not None})


def _byte_level_bpe(metadata: Mapping[str, Any], source: str) -> tokenizers.Tokenizer:
    """Return the tokenizer that GGUF metadata describes."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    model = _need(metadata, "tokenizer.ggml.model", str, source)
    if model != "gpt2":
        raise InputError(f"{source}: tokenizer.ggml.model is {model!r}, expected 'gpt2' (byte-level BPE)")
    pre = _need(metadata, "tokenizer.ggml.pre", str, source)
    if pre not in _PRE_TOKENIZERS:
        raise InputError(f"{source}: tokenizer.ggml.pre: {unknown('pre-tokenizer', pre, _PRE_TOKENIZERS)}")
    split, gpt2_regex, ignore_merges, adds_bos = _PRE_TOKENIZERS[pre]

    tokens = _need(metadata, "tokenizer.ggml.tokens", list, source)
    merges = [str(merge).split(" ") for merge in _need(metadata, "tokenizer.ggml.merges", list, source)]
    kinds = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if len(kinds) != len(tokens):
        raise InputError(
            f"{source}: tokenizer.ggml.token_type has {len(kinds)} entries, expected {len(tokens)}"
        )
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise InputError(f"{source}: tokenizer.ggml.tokens names a token twice, expected every token once")
    for i, merge in enumerate(merges):
        if len(merge) != 2:
            raise InputError(
                f"{source}: tokenizer.ggml.merges[{i}] is {' '.join(merge)!r}, expected two tokens"
            )
    try:
        inner = Tokenizer(models.BPE(vocab, [(a, b) for a, b in merges], ignore_merges=ignore_merges))
    except Exception as error:  # the library raises nothing more specific
        raise InputError(
            f"{source}: the tokenizer's merges do not fit its tokens ({_one_line(error)})"
        ) from error

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2_regex)
    if split == "digits":
        words: Any = pre_tokenizers.Digits(individual_digits=True)
    else:
        words = pre_tokenizers.Split(Regex(split), "isolated") if split else None
    inner.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level]) if words else byte_level
    inner.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (_CONTROL, _USER_DEFINED):  # both are matched in the text whole; only control is no text
            inner.add_tokens([AddedToken(token, special=kind == _CONTROL, normalized=False)])
    if metadata.get("tokenizer.ggml.add_bos_token", adds_bos):
        bos_id = _need(metadata, "tokenizer.ggml.bos_token_id", int, source)
        if not 0 <= bos_id < len(tokens):
            raise InputError(
                f"{source}: tokenizer.ggml.bos_token_id is {bos_id}, expected an id below {len(tokens)}"
            )
        inner.post_processor = processors.TemplateProcessing(
            single=["bos", "$A"], special_tokens=[{"id": "bos", "ids": [bos_id], "tokens": [tokens[bos_id]]}]
        )
    return inner


def _need(metadata: Mapping[str, Any], key: str, kind: type, source: str) -> Any:
    value = metadata.get(key)
    if not isinstance(value, kind):
        given = "missing" if value is None else f"a {type(value).__name__}"
        raise InputError(f"{source}: {key} is {given}, expected a {kind.__name__}")
    return value


def _render(template: str, values: Mapping[str, Any]) -> str:
    """Render a chat template with the environment that Transformers documents for them, sandboxed."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:  # jinja2's own escapes <, > and & for HTML
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    pieces, length = [], 0
    for piece in environment.from_string(template).generate(**values):
        pieces.append(piece)
        length += len(piece)
        if length > _MAX_RENDERED:
            raise jinja2.TemplateError(f"it produces more than {_MAX_RENDERED} characters")
    return "".join(pieces)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
