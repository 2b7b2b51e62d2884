"""Storage of a quality study: rows that are kept and resumed, and the report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from minicore.errors import InputError
from minicore.evaluation.journal import read_results
from minicore.evaluation.quality.measurement import Row, digest
from minicore.evaluation.quality.settings import Conditions, Setting
from minicore.evaluation.texts import Passage
from minicore.files import atomic_write

Key = tuple[Any, ...]  # what a row is found by


class Rows:
    """Finished rows, written to a file after every passage so that a stopped study resumes there.

    Parameters
    ----------
    conditions : Conditions
    path : path or None
        JSON lines: the conditions first, then one row per line. None keeps the rows in memory only.

    Attributes
    ----------
    conditions : dict
        The conditions as JSON values.
    rows : dict
        The rows so far by :func:`row_key`.

    Raises
    ------
    InputError
        If the file was written under other conditions, or a line of it is not a row.
    """

    def __init__(self, conditions: Conditions, path: str | PathLike[str] | None = None) -> None:
        self.conditions = asdict(conditions) | {"layers": list(conditions.layers)}
        self.path = None if path is None else Path(path)
        self.rows: dict[Key, Row] = {}
        if self.path is None or not self.path.exists():
            return
        for number, row in read_results(self.path, self.conditions):
            try:
                self.rows[row_key(row)] = row
            except (KeyError, TypeError):
                raise InputError(f"{path}, line {number}: is not a row of a quality study") from None

    def missing(self, passage: Passage, settings: Sequence[Setting], n_generated: int) -> list[Setting]:
        """Return the settings under which a passage has not been measured."""
        rows = [self.rows.get(key_of(passage, setting)) for setting in settings]
        return [
            setting
            for setting, row in zip(settings, rows, strict=True)
            if row is None or (n_generated and "common_prefix" not in row)
        ]

    def add(self, rows: Iterable[Row]) -> None:
        """Add or replace rows and rewrite the file, completely or not at all."""
        self.rows |= {row_key(row): row for row in rows}
        if self.path is None:
            return
        with atomic_write(self.path) as part:
            lines = [{"conditions": self.conditions}, *self.rows.values()]
            part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def of(self, passages: Sequence[Passage], settings: Sequence[Setting]) -> list[list[Row]]:
        """Return each setting's rows, in the order of the passages."""
        return [[self.rows[key_of(passage, setting)] for passage in passages] for setting in settings]


def key_of(passage: Passage, setting: Setting) -> Key:
    """Return the key of the row of a passage and a setting."""
    return passage.name, digest(passage), *asdict(setting).values()


def row_key(row: Row) -> Key:
    """Return the key of a finished row."""
    return row["passage"], row["digest"], *(row[field] for field in Setting.__dataclass_fields__)


def rows_path(out: str | PathLike[str] | None) -> Path | None:
    """Return where the rows of a report are kept: next to it, as ``.rows.jsonl``."""
    return None if out is None else Path(out).with_suffix(".rows.jsonl")


def write_report(
    rows: Rows,
    texts: Sequence[str | PathLike[str]],
    measured: Sequence[Passage],
    summary: list[Row],
    out: str | PathLike[str] | None,
) -> dict[str, Any]:
    """Return a study's report; write it as JSON if ``out`` is given."""
    report = {
        "conditions": rows.conditions,
        "texts": [Path(path).name for path in texts],
        "n_passages": len(measured),
        "settings": summary,
    }
    if out is not None:
        with atomic_write(out) as part:
            part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report
