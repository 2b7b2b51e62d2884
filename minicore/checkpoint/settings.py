"""JSON files of a checkpoint, and the keys of a config, checked as they are read."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minicore.errors import InputError
from minicore.files import check_lfs_pointer


def read_bytes(path: Path) -> bytes:
    """Return what is in a file; raise InputError if it cannot be read or is a Git LFS pointer."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    check_lfs_pointer(path, raw)
    return raw


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, empty if there is no file."""
    if not path.exists():
        return {}
    raw = read_bytes(path)
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}), expected a JSON object") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds a {type(values).__name__}, expected a JSON object")
    return values


LARGEST = 1 << 31  # integers in a config stay below; no size, count or id is near it


class Settings:
    """A config's keys and values. A bad value raises InputError with file, key and what was expected.

    Parameters
    ----------
    values : mapping of str to JSON value
    source : Path
        The file, for messages.
    prefix : str
        Put before every key, such as ``llama.`` for GGUF metadata.
    """

    def __init__(self, values: Mapping[str, Any], source: Path, prefix: str = "") -> None:
        self.values, self.source, self.prefix = values, source, prefix

    def get(self, *keys: str, default: Any = None) -> Any:
        """Return the value of the first key that is present and not null."""
        found = (self.values.get(self.prefix + key) for key in keys)
        return next((value for value in found if value is not None), default)

    def _number(self, kinds: tuple[type, ...], what: str, keys: tuple[str, ...], default: object) -> Any:
        value = self.get(*keys, default=default)
        limit = LARGEST if kinds == (int,) else sys.float_info.max
        if type(value) not in kinds or not 0 < value <= limit:
            problem = "is missing" if value is None else f"is {value!r}"
            raise InputError(f"{self.source}: {self.prefix}{keys[0]} {problem}, expected {what}")
        return value

    def integer(self, *keys: str, default: int | None = None) -> int:
        """Return a positive integer."""
        return int(self._number((int,), "a positive integer", keys, default))

    def number(self, *keys: str, default: float | None = None) -> float:
        """Return a positive finite number."""
        return float(self._number((int, float), "a positive number", keys, default))

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean."""
        value = self.get(key, default=default)
        if not isinstance(value, bool):
            raise InputError(f"{self.source}: {self.prefix}{key} is {value!r}, expected true or false")
        return value

    def mapping(self, *keys: str) -> dict[str, Any]:
        """Return a JSON object, empty if there is none."""
        value = self.get(*keys, default={})
        if not isinstance(value, dict):
            raise InputError(f"{self.source}: {self.prefix}{keys[0]} is {value!r}, expected an object")
        return value

    def one_of(self, key: str, table: Mapping[str, str], default: str) -> str:
        """Return the table's entry for a string value."""
        value = self.get(key, default=default)
        if not isinstance(value, str) or value not in table:
            raise InputError(
                f"{self.source}: {key} is {value!r}, which is not supported; expected {' or '.join(table)}"
            )
        return table[value]

    def only(self, key: str, *supported: object) -> None:
        """Refuse a value that the forward pass does not implement. A null or absent key is accepted."""
        value = self.get(key)
        if value is not None and value not in supported:
            expected = " or ".join(map(str, supported)) if supported else "none"
            raise InputError(
                f"{self.source}: {self.prefix}{key} is {value!r}, which is not supported; expected {expected}"
            )
