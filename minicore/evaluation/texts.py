"""Texts to measure on: files are cut into passages of token ids of one length, and some are drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minicore.errors import InputError

if TYPE_CHECKING:
    from minicore.model import Model

Array = np.ndarray


@dataclass(frozen=True)
class Passage:
    """A stretch of text as ids.

    Attributes
    ----------
    name : str
        File and position in it, for rows and messages.
    ids : (n_tokens,) int64 array
    """

    name: str
    ids: Array


SAMPLES = ("topics.jsonl", "long.jsonl")


def sample_files() -> list[Path]:
    """Return the paths of the sample corpus: in the package, or in ``tutorials/data`` of a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "data", package.parent / "tutorials" / "data"):
        if all((folder / name).is_file() for name in SAMPLES):
            return [folder / name for name in SAMPLES]
    raise InputError("the sample corpus is not in this installation, expected files of your own (--texts)")


def read_text(path: str | PathLike[str]) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    InputError names the file, line and byte that are wrong.
    """
    try:
        return Path(path).read_text(encoding="utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        wrong, at = error.object[error.start], error.start
        number = 1 + error.object.count(b"\n", 0, at)
        raise InputError(f"{path}, line {number}: is not UTF-8 text: byte {wrong:#04x} at {at}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def parse_json(text: str, where: str, loads: Callable[[str], Any] = json.loads) -> Any:
    """Return the value of a JSON text; InputError says where it is invalid or nested too deeply."""
    try:
        return loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: is not valid JSON ({error})") from None


def read_lines(path: str | PathLike[str]) -> Iterator[tuple[int, str]]:
    """Yield line number and text of each line of a JSON lines file: a string, or an object's "text"."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        value = parse_json(line, f"{path}, line {number}")
        text = value.get("text") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise InputError(f'{path}, line {number}: expected a string, or an object whose "text" is one')
        yield number, text


def passages(
    model: Model,
    paths: Sequence[str | PathLike[str]],
    n_tokens: int,
    n_passages: int,
    n_others: int = 0,
    seed: int = 0,
) -> tuple[list[Passage], list[Passage]]:
    """Cut files into passages of n_tokens, and draw some to measure and others to fit on.

    A plain text is cut end to end. From JSON lines (``.jsonl``), each line that is long enough contributes
    its beginning, so that no passage spans two documents.

    Parameters
    ----------
    model : Model
        Its tokenizer makes the ids. Every passage begins with what the tokenizer puts before a text (BOS).
    paths : sequence of path
        UTF-8 files, plain or JSON lines.
    n_tokens, n_passages, n_others : int
        Length of a passage, and how many to draw of each kind. If the files hold fewer passages, there are
        fewer others first.
    seed : int
        Random seed of the draw, which is without replacement. The measured passages do not depend on
        n_others.

    Returns
    -------
    measured, others : list of Passage
        Each in file order.

    Raises
    ------
    InputError
        If a file cannot be read or parsed (by file and line), no file holds a passage of that length, or
        passages do not fit the model's context. Their last token need not fit, as it is only predicted.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> measured, others = passages(model, sample_files(), n_tokens=64, n_passages=3, n_others=2)
    >>> len(measured), len(others), measured[0].ids.shape
    (3, 2, (64,))
    """
    if model.tokenizer is None:
        raise InputError(f"{model.source} has no tokenizer, so texts cannot be measured with it")
    if n_tokens - 1 > model.config.n_ctx:
        raise InputError(
            f"passages of {n_tokens} tokens do not fit the model's context of {model.config.n_ctx}"
        )
    front = model.tokenizer.encode("")
    found = [piece for path in paths for piece in _cut(model, Path(path), n_tokens - len(front))]
    if not found:
        names = ", ".join(str(path) for path in paths)
        raise InputError(f"{names}: no passage of {n_tokens} tokens in it, expected a longer text")
    drawn = np.random.default_rng(seed).permutation(len(found))
    measured, others = (
        [Passage(found[i][0], np.array(front + found[i][1])) for i in np.sort(part)]
        for part in (drawn[:n_passages], drawn[n_passages : n_passages + n_others])
    )
    return measured, others


def _cut(model: Model, path: Path, length: int) -> Iterator[tuple[str, list[int]]]:
    """Yield the name and ids of each passage of a file."""
    assert model.tokenizer is not None
    if path.suffix in (".jsonl", ".ndjson"):
        for number, text in read_lines(path):
            ids = model.tokenizer.encode(text, special=False)
            if len(ids) >= length:
                yield f"{path.name}:{number}", ids[:length]
        return
    ids = model.tokenizer.encode(read_text(path), special=False)
    for start in range(0, len(ids) - length + 1, length):
        yield f"{path.name}@{start}", ids[start : start + length]
