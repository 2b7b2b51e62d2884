"""Results of a study on disk, so that a study that was stopped resumes where it was."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from minicore.errors import InputError
from minicore.files import atomic_write

Result = dict[str, Any]  # JSON values


class Journal:
    """A file to which each result of a study is appended as soon as it is known.

    Parameters
    ----------
    path : path or None
        JSON lines: first the conditions, then one result per line. None keeps results in memory only.
    conditions : mapping
        What all results share. Results of other conditions are never mixed with them.

    Attributes
    ----------
    rows : list of dict
        The results so far. A last line that was cut off is dropped, so that its result is made again.

    Raises
    ------
    InputError
        If the file belongs to another study, or a line of it is not a result.

    Examples
    --------
    >>> journal = Journal(None, {"seed": 0})
    >>> journal.add([{"example": 1, "text": "a cat"}])
    >>> len(journal.rows)
    1
    """

    def __init__(self, path: str | PathLike[str] | None, conditions: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.conditions: Result = json.loads(json.dumps(conditions))
        self.rows: list[Result] = []
        if self.path is None:
            return
        if self.path.exists():
            self.rows = [row for _, row in read_results(self.path, self.conditions)]
        with atomic_write(self.path) as part:
            part.write_text(_lines([{"conditions": self.conditions}, *self.rows]), encoding="utf-8")

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add results; they are in the file when this returns."""
        new = [dict(row) for row in rows]
        self.rows += new
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_lines(new))


def read_results(path: Path, conditions: Mapping[str, Any]) -> Iterator[tuple[int, Result]]:
    """Yield the line number and the result of each complete line of a study's file.

    Raises
    ------
    InputError
        If the file was written under other conditions, or a line is not a JSON object.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "rows.jsonl"
    ...     Journal(path, {"seed": 0}).add([{"kl": 0.1}])
    ...     print(*read_results(path, {"seed": 0}))
    (2, {'kl': 0.1})
    """
    lines = path.read_bytes().split(b"\n")[:-1]  # a complete line ends in a newline
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            found = value["conditions"] if number == 1 else value
        except (ValueError, KeyError, TypeError):
            found = None
        if not isinstance(found, dict):
            raise InputError(f"{path}, line {number}: is not a result of a study")
        if number > 1:
            yield number, found
            continue
        for key, wanted in conditions.items():
            if found.get(key) != wanted:
                raise InputError(
                    f"{path}: its results were measured with {key} {found.get(key)}, expected {wanted}; "
                    "choose another file or remove this one"
                )


def _lines(values: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
