"""Text to ids and back, streaming that never emits half a character, and the checkpoint's chat template.

The ``tokenizers`` library does the work. This module builds its tokenizer from a tokenizer.json or from GGUF
metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from minicore.checkpoint.gguf_tokenizer import build_tokenizer
from minicore.checkpoint.gguf_vocabulary import read_vocabulary
from minicore.errors import InputError, one_line

if TYPE_CHECKING:
    import tokenizers

_MAX_RENDERED = 1 << 24  # most characters that a chat template may produce; conversations have far fewer


class Tokenizer:
    """A checkpoint's tokenizer.

    Attributes
    ----------
    n_vocab : int
        One more than the highest id.
    bos_id, eos_id : int or None
        The ids that begin and end a text, if the checkpoint has them.
    chat_template : str or None
        The checkpoint's Jinja template.
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
        inner.no_truncation()  # some tokenizer.json files carry the settings of a training run
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
        self._front_ids = _ids_in_front(inner)
        self._non_text = _non_text_ids(inner)

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
            The checkpoint's Jinja template, which is in another file.
        bos_id, eos_id : int, optional
            Ids that begin and end a text. Templates receive their tokens.
        n_vocab : int, optional
            Rows of the model's embedding. A tokenizer with more ids is refused.

        Raises
        ------
        InputError
            If the file is missing, is not a tokenizer, or does not fit the model.

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
            raise InputError(f"{path}: not a usable tokenizer.json ({one_line(error)})") from error
        return cls(
            inner, str(path), chat_template=chat_template, bos_id=bos_id, eos_id=eos_id, n_vocab=n_vocab
        )

    @classmethod
    def from_gguf(
        cls,
        metadata: Mapping[str, Any],
        chat_template: str | None = None,
        n_vocab: int | None = None,
        source: str = "GGUF metadata",
    ) -> Tokenizer:
        """Build the tokenizer of a GGUF file's ``tokenizer.*`` metadata.

        It is a byte-level BPE (``gpt2``) or SentencePiece's BPE with byte fallback (``llama``), as llama.cpp
        has them. Text is not normalized, so decoding returns it unchanged. (Qwen2's tokenizer.json
        normalizes to NFC, which makes a difference only for decomposed accents.)

        Parameters
        ----------
        metadata : mapping of str to str, int, float, bool or list
            The file's key-value section.
        chat_template : str, optional
            Used instead of the file's ``tokenizer.chat_template``.
        n_vocab : int, optional
            Rows of the model's embedding. A tokenizer with more ids is refused.
        source : str
            The file's name, for messages.

        Raises
        ------
        InputError
            If a key is missing or malformed, or the tokenizer or its pre-tokenizer is one that minicore does
            not have (:mod:`minicore.checkpoint.pre_tokenizers` lists those it has).

        Examples
        --------
        >>> metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt2"}
        >>> metadata |= {"tokenizer.ggml.tokens": ["a", "b", "ab"], "tokenizer.ggml.merges": ["a b"]}
        >>> Tokenizer.from_gguf(metadata).encode("abba")
        [2, 1, 0]
        """
        inner = build_tokenizer(metadata, source)
        vocabulary = read_vocabulary(metadata, source)
        if chat_template is None:
            chat_template = metadata.get("tokenizer.chat_template")
        return cls(
            inner,
            source,
            chat_template=chat_template,
            bos_id=vocabulary.bos_id,
            eos_id=vocabulary.eos_id,
            n_vocab=n_vocab,
        )

    def to_json(self) -> str:
        """Return a tokenizer.json that makes the same tokenizer; the chat template is not part of it."""
        return str(self._inner.to_str())

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Return the ids of ``text``. Special tokens that are spelled out in it become their ids.

        Parameters
        ----------
        text : str
            Any text. Characters whose bytes are not in the vocabulary are dropped, as in Transformers. A
            byte-level vocabulary with all 256 bytes drops nothing.
        special : bool
            Add the tokens that the tokenizer adds around a text, such as BOS.

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
                f"text has half a surrogate pair ({text[error.start]!r} at character {error.start}), "
                "expected text that UTF-8 can encode"
            ) from error
        return list(self._inner.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Return the text of ``ids``, without the tokens that :meth:`encode` adds in front.

        Bytes that are not UTF-8 become U+FFFD. Ids without a token are empty.
        """
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < 1 << 32:
                raise InputError(f"token id {i} is not in the vocabulary (0 to {self.n_vocab - 1})")
        added = self._front_ids
        if not skip_special and added and ids[: len(added)] == added:
            ids = ids[len(added) :]
        return str(self._inner.decode(ids, skip_special_tokens=skip_special))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Return the text of each id, for display and labels.

        A special token gives its name. A character whose bytes are spread over several ids belongs to the
        last of them, and the others are empty. Joined pieces of ordinary tokens equal :meth:`decode`'s text.

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
        """Return the ids of a conversation in the checkpoint's chat format.

        Parameters
        ----------
        messages : list of dict, or str
            Each ``{"role": ..., "content": ...}``. A str is one user message.
        add_generation_prompt : bool
            End with the text that starts the assistant's answer.

        Raises
        ------
        InputError
            If there is no template, or it fails or rejects these messages.

        Examples
        --------
        >>> from minicore.checkpoint.names import resolve
        >>> path = resolve("minicore-opt-core") / "tokenizer.json"
        >>> tokenizer = Tokenizer.from_file(path, chat_template="Q: {{ messages[0].content }} A:")
        >>> tokenizer.decode(tokenizer.chat("Why?"))
        'Q: Why? A:'
        """
        text = self.render_chat(messages, add_generation_prompt)
        return self.encode(text, special=False)  # the template itself adds BOS where needed

    def render_chat(
        self, messages: Sequence[Mapping[str, str]] | str, add_generation_prompt: bool = True
    ) -> str:
        """Return the text that :meth:`chat` encodes."""
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
        except Exception as error:  # a template is the checkpoint's code and can raise anything
            raise InputError(f"{self.source}: the chat template failed ({one_line(error)})") from error

    def _token(self, token_id: int | None) -> str:
        return "" if token_id is None else (self._inner.id_to_token(token_id) or "")


class TokenStream:
    """Decodes one id at a time and holds a character back until all its bytes have arrived.

    The joined pieces equal ``decode(ids, skip_special=True)``, even for ids that are not text. (The library's
    DecodeStream raises on some of those ids, and does not expose the text that it holds back.)
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # Each step decodes only a window of ids, from _start on; _sent of its characters have been returned.
        # The window starts one piece before the complete ids end (_complete), because some decoders treat the
        # first token of a text differently.
        self._start = self._complete = self._sent = 0

    def push(self, token_id: int) -> str:
        """Add one id and return the text that is now complete, often ``""``."""
        self._ids.append(int(token_id))
        if token_id in self._tokenizer._non_text:
            return ""
        text = self._window()
        complete = text.rstrip("\ufffd")  # a character with missing bytes decodes to U+FFFD
        piece = complete[self._sent :]
        self._sent += len(piece)
        if piece and complete == text:
            self._start, self._complete = self._complete, len(self._ids)
            self._sent = len(self._window())
        return piece

    def flush(self) -> str:
        """Return the text that is held back at the end of the ids; half a character becomes U+FFFD."""
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


def _ids_in_front(inner: tokenizers.Tokenizer) -> list[int]:
    """Return the ids that the tokenizer adds in front of every text."""
    bare = inner.encode("a", add_special_tokens=False).ids
    full = inner.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return list(full[:start])
    return []


def _non_text_ids(inner: tokenizers.Tokenizer) -> frozenset[int]:
    """Return the ids after which a piece of text cannot be complete: byte tokens and special tokens.

    Llama 2 spells rare characters as byte tokens ``<0xE6>``, and only a whole run of them is text. Special
    tokens are not text and do not end such a run.
    """
    special = {i for i, token in inner.get_added_tokens_decoder().items() if token.special}
    spelled = (inner.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    return frozenset(special | {i for i in spelled if i is not None})


def _render(template: str, values: Mapping[str, Any]) -> str:
    """Render a chat template in a sandbox, with the environment that Transformers documents."""
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
    ) -> str:  # Jinja's own filter escapes <, > and & for HTML
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
