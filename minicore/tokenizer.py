"""Text to ids and back, streaming that never emits half a character, and the checkpoint's chat template.

The ``tokenizers`` library does the work. Its tokenizer comes from the files of a directory
(:mod:`minicore.checkpoint.hf_tokenizer`) or from GGUF metadata.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicore.checkpoint import hf_tokenizer, mapped
from minicore.checkpoint.chat_template import ChatTemplate, render, with_reasoning
from minicore.checkpoint.gguf_tokenizer import build_tokenizer
from minicore.checkpoint.gguf_vocabulary import chat_template as gguf_chat_template
from minicore.checkpoint.gguf_vocabulary import read_vocabulary
from minicore.checkpoint.settings import read_json
from minicore.errors import InputError, guarded, one_line

if TYPE_CHECKING:
    import tokenizers


class Tokenizer:
    """A checkpoint's tokenizer.

    Attributes
    ----------
    n_vocab : int
        One more than the highest id.
    bos_id, eos_id : int or None
        The ids that begin and end a text, if the checkpoint has them.
    special_tokens : dict of str to str
        The texts of ``bos_token``, ``eos_token``, ``pad_token``, ``unk_token`` and other tokens that have a
        name, as far as the checkpoint names them. Chat templates receive them.
    chat_template : str, dict of str to str or None
        The checkpoint's Jinja template. Several without a default are held by name.
    source : str
        The file, for messages.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        source: str,
        chat_template: ChatTemplate = None,
        bos_id: int | None = None,
        eos_id: int | None = None,
        n_vocab: int | None = None,
        special_tokens: Mapping[str, str] | None = None,
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
        if special_tokens is None:
            ids = {"bos_token": bos_id, "eos_token": eos_id}
            special_tokens = {name: inner.id_to_token(i) or "" for name, i in ids.items() if i is not None}
            self._template_defaults = {"bos_token": "", "eos_token": ""}  # as llama.cpp has it
        else:
            self._template_defaults = {}
        self.special_tokens = dict(special_tokens)
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
        """Read a tokenizer.json, without the files next to it.

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
        inner = hf_tokenizer.load_json(Path(path))
        return cls(
            inner, str(path), chat_template=chat_template, bos_id=bos_id, eos_id=eos_id, n_vocab=n_vocab
        )

    @classmethod
    def from_gguf(
        cls,
        metadata: Mapping[str, Any],
        chat_template: ChatTemplate = None,
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
            chat_template = gguf_chat_template(metadata)
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

    def to_config(self) -> dict[str, Any]:
        """Return a tokenizer_config.json to go with :meth:`to_json`: special tokens and chat template."""
        return {"added_tokens_decoder": {}, **self.special_tokens, "chat_template": self.chat_template}

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
        with self._reading("text"):
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
        with self._reading("ids"):
            return str(self._inner.decode(ids, skip_special_tokens=skip_special))

    def _reading(self, what: str) -> AbstractContextManager[None]:
        return guarded(self.source, f"a tokenizer that can read these {what}")

    def token(self, token_id: int) -> str | None:
        """Return the text of a token as its vocabulary spells it, or None if no token has that id."""
        token = self._inner.id_to_token(token_id) if 0 <= token_id < 1 << 32 else None
        return None if token is None else str(token)

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
        names = self.special_names()
        stream = self.stream()
        found = [names[i] if i in names else stream.push(i) for i in map(int, ids)]
        if found:
            found[-1] += stream.flush()
        return found

    def special_names(self) -> dict[int, str]:
        """Return the text of each special token, by id; :meth:`decode` can leave these tokens out."""
        added = self._inner.get_added_tokens_decoder()
        return {i: token.content for i, token in added.items() if token.special}

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
        if not isinstance(self.chat_template, str):
            names = ", ".join(sorted(self.chat_template))
            raise InputError(f"{self.source}: the chat templates are {names}, expected one named default")
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if not messages:
            raise InputError("the conversation is empty, expected at least one message")
        for message in messages:
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise InputError(f"chat message {message!r}: expected a dict with 'role' and 'content'")
        values: dict[str, Any] = {
            "messages": [with_reasoning(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
        }
        try:
            return render(self.chat_template, self._template_defaults | self.special_tokens | values)
        except Exception as error:  # a template is the checkpoint's code and can raise anything
            raise InputError(f"{self.source}: the chat template failed ({one_line(error)})") from error


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
    chat_template: ChatTemplate = None,
    bos_id: int | None = None,
    eos_id: int | None = None,
    n_vocab: int | None = None,
    name: str = "GGUF metadata",
) -> Tokenizer | None:
    """Return the tokenizer of a checkpoint: ``("json", path)``, ``("gguf", metadata)`` or None.

    A Hugging Face tokenizer may have more ids than the embedding has rows, such as a ``[PAD]`` that only
    training used; models refuse such an id when they are given it.
    """
    if source is None:
        return None
    kind, value = source
    if kind == "gguf":
        with guarded(name, "a tokenizer that the tokenizers library can use"):
            return Tokenizer.from_gguf(value, chat_template, n_vocab, source=name)
    with guarded(str(value), "a tokenizer that the tokenizers library can use"):
        files = hf_tokenizer.read_files(value.parent)
        inner = hf_tokenizer.build_tokenizer(value, files)
        packed_before = mapped.is_packed(read_json(value.with_name("config.json"))) and not files.special
        special = None if packed_before else files.special_tokens  # version 0.2 packed no special tokens
        return Tokenizer(inner, str(value), chat_template, bos_id, eos_id, special_tokens=special)


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
