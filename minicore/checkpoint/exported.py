"""What is written when a model is exported."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from minicore.config import ModelConfig
from minicore.errors import InputError
from minicore.quantization import Weight


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A model, and what it is used with.

    Attributes
    ----------
    config, params : ModelConfig, mapping of str to array or QuantizedMatrix
        Names and shapes of ``config.shapes()``.
    name, source : str, Path
        Its name, and the file or directory that it was read from.
    tokenizer : str or None
        The text of tokenizer.json.
    tokenizer_config : mapping
        What tokenizer_config.json holds: special tokens, and the chat template or several by name.
    bos_id, eos_ids : int or None, tuple of int
        The token that begins a text, and those that end a generation.
    recommended : mapping
        Recommended options for core decoding.
    """

    config: ModelConfig
    params: Mapping[str, Weight]
    name: str
    source: Path
    tokenizer: str | None = None
    tokenizer_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    recommended: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def chat_templates(self) -> dict[str, str]:
        """Chat templates by name; the only one is the ``default``."""
        given = self.tokenizer_config.get("chat_template")
        return given if isinstance(given, dict) else {"default": given} if given else {}

    @cached_property
    def vocabulary(self) -> dict[int, str]:
        """The text of each id of the tokenizer."""
        if self.tokenizer is None:
            return {}
        values = json.loads(self.tokenizer)
        found = {i: token for token, i in values["model"]["vocab"].items()}
        return found | {token["id"]: token["content"] for token in values["added_tokens"]}


def check_same(config: ModelConfig, again: ModelConfig, file: str) -> None:
    """Raise InputError unless a file, read again, has the config that was written.

    Numbers may differ by float32's rounding, in which GGUF holds them.

    Examples
    --------
    >>> import minicore as mc
    >>> config = mc.load("minicore-opt-core").config
    >>> check_same(config, config.replace(activation="silu"), "config.json")
    Traceback (most recent call last):
    minicore.errors.InputError: a config.json of the family opt cannot say activation 'relu' ...
    """
    if found := differences(config, again):
        raise InputError(
            f"a {file} of the family {config.family} cannot say {found[0]}, expected another --format"
        )


def differences(config: ModelConfig, again: ModelConfig) -> list[str]:
    """Return the fields in which two configs differ, each with its value and how it would be read.

    Examples
    --------
    >>> import minicore as mc
    >>> config = mc.load("minicore-opt-core").config
    >>> differences(config, config.replace(activation="silu"))
    ["activation 'relu' (it would be read as 'silu')"]
    """
    found = []
    for field in dataclasses.fields(config):
        mine, read = getattr(config, field.name), getattr(again, field.name)
        if field.name != "family" and not _close(mine, read):
            found.append(f"{field.name} {mine!r} (it would be read as {read!r})")
    return found


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_close, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=2**-23)
    return bool(a == b)
