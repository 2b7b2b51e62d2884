"""Data of the paper's tasks as published: JSON lines, SQuAD's JSON, CSV, parallel text, hub data sets.

A file is read into records that know their line. A table says which keys make a record which kind of example.
Errors name file and line.
"""

from __future__ import annotations

import bisect
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from json import decoder, scanner
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from minicore.errors import InputError
from minicore.evaluation.texts import parse_json, read_text

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")

HUB = "hub:"  # the prefix of names of Hugging Face datasets

LANGUAGES = {
    **dict.fromkeys(("de", "deu"), "German"),
    **dict.fromkeys(("en", "eng"), "English"),
    **dict.fromkeys(("fr", "fra"), "French"),
    **dict.fromkeys(("ro", "ron"), "Romanian"),
}


@dataclass(frozen=True)
class Example:
    """One question to a model, with its answers.

    Attributes
    ----------
    id : str
        Unique in its data.
    where : str
        File and line, or name and row.
    fields : dict of str to str
        The fields of a prompt's template.
    references : tuple of str
        The right answers.
    wrong : tuple of str
        Answers known to be wrong, where the data have them.
    prompts : str
        Name of the prompts that fit it.
    """

    id: str
    where: str
    fields: Mapping[str, str]
    references: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    prompts: str = ""


class Record(NamedTuple):
    """One record of a file, and where it stands."""

    where: str
    values: Mapping[str, Any]

    def text(self, key: str, empty: bool = False) -> str:
        """Return a value that must be a text, and not an empty one unless ``empty`` is set."""
        value = self.values[key]
        if not _is_text(value, empty):
            raise InputError(f"{self.where}: {key} is {_short(value)}, expected a text")
        return value.strip()

    def texts(self, key: str, values: object = None) -> tuple[str, ...]:
        """Return a value that must be a text or a non-empty list of texts."""
        values = self.values[key] if values is None else values
        listed = [values] if isinstance(values, str) else values
        if not isinstance(listed, list | tuple) or not listed or not all(map(_is_text, listed)):
            raise InputError(f"{self.where}: {key} is {_short(values)}, expected a text or a list of texts")
        return tuple(dict.fromkeys(value.strip() for value in listed))


def _is_text(value: object, empty: bool = False) -> bool:
    """Return whether a value is a text that UTF-8 can hold; JSON's escapes can spell half a character."""
    if not isinstance(value, str) or not (value.strip() or empty):
        return False
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


# --- from a record to an example ---

Parts = tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]  # fields, references, wrong answers


def xsum(record: Record) -> Parts:
    """XSum, in which a few articles have no text, only pictures."""
    return {"document": record.text("document", empty=True)}, (record.text("summary"),), ()


def scitldr(record: Record) -> Parts:
    """SciTLDR, whose documents are lists of sentences."""
    return {"document": " ".join(record.texts("source"))}, record.texts("target"), ()


def squad(record: Record) -> Parts:
    """SQuAD 1.1, and 2.0, whose unanswerable questions have the empty answer."""
    answers = record.values["answers"]
    if isinstance(answers, list):  # the form of the files; the hub has {"text": [...]}
        answers = {"text": [answer.get("text") if isinstance(answer, dict) else answer for answer in answers]}
    if not isinstance(answers, dict) or "text" not in answers:
        raise InputError(f"{record.where}: answers is {_short(answers)}, expected a list of answers")
    unanswerable = record.values.get("is_impossible") is True and not answers["text"]
    right = ("",) if unanswerable else record.texts("answers", answers["text"])
    return {"context": record.text("context"), "question": record.text("question")}, right, ()


def truthful(record: Record) -> Parts:
    """TruthfulQA: answers end in a full stop, and abstaining is right, as its authors score it."""
    right, wrong = (
        tuple(answer if answer.endswith(".") else answer + "." for answer in record.texts(key))
        for key in ("correct_answers", "incorrect_answers")
    )
    right += () if "I have no comment." in right else ("I have no comment.",)
    return {"question": record.text("question")}, right, wrong


def trivia(record: Record) -> Parts:
    """TriviaQA, whose answers have aliases."""
    answer = record.values["answer"]
    aliases = answer.get("aliases") or []
    if not isinstance(aliases, list | tuple):
        raise InputError(f"{record.where}: aliases is {_short(aliases)}, expected a list of texts")
    return {"question": record.text("question")}, record.texts("answer", [answer.get("value"), *aliases]), ()


def short_answer(record: Record) -> Parts:
    """NQ-open, TriviaQA, and other data that have a question and its answers."""
    if isinstance(record.values["answer"], dict):
        return trivia(record)
    return {"question": record.text("question")}, record.texts("answer"), ()


def steps(record: Record) -> Parts:
    """A problem and a number, which may follow a solution and ``####`` as in GSM8K."""
    number = record.text("answer").rpartition("####")[2].strip()
    if not NUMBER.fullmatch(number):
        raise InputError(f"{record.where}: answer is {_short(number)}, expected a number")
    return {"question": record.text("question")}, (number,), ()


def translation(record: Record) -> Parts:
    """A sentence in two languages, as in WMT: from the first to the second."""
    pair = record.values["translation"]
    if not isinstance(pair, dict) or len(pair) != 2:
        raise InputError(f"{record.where}: translation is {_short(pair)}, expected a text in two languages")
    source, target = pair
    for code in (source, target):
        if code not in LANGUAGES:
            known = ", ".join(LANGUAGES)
            raise InputError(f"{record.where}: {code!r} is not a known language, expected one of {known}")
    if LANGUAGES[source] == LANGUAGES[target]:
        raise InputError(f"{record.where}: {source} and {target} are the same language, expected two")
    both = Record(record.where, pair)
    fields = {"source_language": LANGUAGES[source], "target_language": LANGUAGES[target]}
    return fields | {"source": both.text(source)}, (both.text(target),), ()


class Shape(NamedTuple):
    """A row of the table: a data set's name, task, keys and reader, and the prompts that fit it."""

    name: str
    task: str
    keys: tuple[str, ...]
    read: Callable[[Record], Parts]
    prompts: str


SHAPES = [
    Shape("XSum", "summary", ("document", "summary"), xsum, "summary"),
    Shape("SciTLDR", "summary", ("source", "target"), scitldr, "summary"),
    Shape("SQuAD", "qa", ("context", "question", "answers"), squad, "qa"),
    Shape("TruthfulQA", "openqa", ("question", "correct_answers", "incorrect_answers"), truthful, "truthful"),
    Shape("NQ-open or TriviaQA", "openqa", ("question", "answer"), short_answer, "openqa"),
    Shape("WMT", "translation", ("translation",), translation, "translation"),
    Shape("a set of problems", "steps", ("question", "answer"), steps, "steps"),
]
TASKS = tuple(dict.fromkeys(shape.task for shape in SHAPES))
ID_KEYS = ("id", "paper_id", "question_id")


def read(task: str, data: Sequence[str | PathLike[str]]) -> list[Example]:
    """Return the examples of a task in a file, two files of parallel text, or a data set of the hub.

    Parameters
    ----------
    task : str
        One of TASKS.
    data : sequence of path
        One ``.jsonl``, ``.json`` or ``.csv`` file or ``hub:NAME[:CONFIG]@SPLIT``; or two files of parallel
        text, source first, named by their languages (``news.de news.en``).

    Returns
    -------
    list of Example
        Each with a unique id: the record's own, with ``#2`` appended where it is repeated, or else its
        position.

    Raises
    ------
    InputError
        If a file cannot be read or holds no example, or a record does not have the task's form (by file and
        line).

    Examples
    --------
    >>> from minicore.evaluation.tasks.run import SHIPPED
    >>> first = read("steps", [SHIPPED["steps"]])[0]
    >>> first.fields["question"]
    'Iris has 11 stamps. Iris finds 9 more. How many stamps does Iris have now?'
    >>> first.references
    ('20',)
    """
    shapes = [shape for shape in SHAPES if shape.task == task]
    seen: Counter[str] = Counter()
    found = []
    for record in records(data):
        shape = next((shape for shape in shapes if set(shape.keys) <= set(record.values)), None)
        if shape is None:
            wanted = " or ".join(f"{', '.join(shape.keys)} ({shape.name})" for shape in shapes)
            raise InputError(
                f"{record.where}: has {', '.join(record.values) or 'nothing'}, expected {wanted}"
            )
        fields, right, wrong = shape.read(record)
        given = next((record.values[key] for key in ID_KEYS if key in record.values), Path(record.where).name)
        example = Example(
            id=_unique_id(str(given), seen),
            where=record.where,
            fields=fields,
            references=right,
            wrong=wrong,
            prompts=shape.prompts,
        )
        found.append(example)
    if not found:
        raise InputError(f"{', '.join(map(str, data))}: holds no example")
    return found


def _unique_id(name: str, seen: Counter[str]) -> str:
    seen[name] += 1
    if seen[name] == 1:
        return name
    return _unique_id(f"{name}#{seen[name]}", seen)  # another record may have this very id


# --- from a file to records ---


def records(data: Sequence[str | PathLike[str]]) -> Iterator[Record]:
    """Yield the records of a file of any of the formats."""
    if len(data) == 2:
        return parallel(Path(data[0]), Path(data[1]))
    if len(data) != 1:
        raise InputError(f"{len(data)} files of data, expected one, or two of parallel text")
    if str(data[0]).startswith(HUB):
        return hub(str(data[0]))
    path = Path(data[0])
    kinds = {".jsonl": json_lines, ".ndjson": json_lines, ".json": nested_json, ".csv": csv_rows}
    if path.suffix not in kinds:
        raise InputError(f"{path}: expected a .jsonl, .json or .csv file, or two files of parallel text")
    return kinds[path.suffix](path)


def json_lines(path: Path) -> Iterator[Record]:
    """Yield the objects of a JSON lines file."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        value = parse_json(line, where)
        if not isinstance(value, dict):
            raise InputError(f"{where}: is {_short(value)}, expected an object")
        yield Record(where, value)


CSV_COLUMNS = {
    "Question": "question",
    "Correct Answers": "correct_answers",
    "Incorrect Answers": "incorrect_answers",
}  # TruthfulQA's; answers are separated by semicolons


def csv_rows(path: Path) -> Iterator[Record]:
    """Yield the rows of TruthfulQA's CSV file."""
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    missing = [column for column in CSV_COLUMNS if column not in (rows.fieldnames or [])]
    if missing:
        raise InputError(f"{path}, line 1: has no column {missing[0]}, expected {', '.join(CSV_COLUMNS)}")
    try:
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if None in row or None in row.values():
                raise InputError(f"{where}: expected {len(rows.fieldnames or [])} columns")
            values: dict[str, Any] = {name: row[column] for column, name in CSV_COLUMNS.items()}
            for key in ("correct_answers", "incorrect_answers"):
                values[key] = [part for part in values[key].split(";") if part.strip()]
            yield Record(where, values)
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: is not valid CSV ({error})") from None


def nested_json(path: Path) -> Iterator[Record]:
    """Yield the questions of files in SQuAD's or TriviaQA's format."""
    value = parse_json(read_text(path), str(path), loads_located)
    if isinstance(value, dict) and isinstance(value.get("Data"), list):
        for entry in value["Data"]:
            yield _trivia_entry(path, entry)
        return
    for article in _parts(path, value, "data"):
        for paragraph in _parts(path, article, "paragraphs"):
            for question in _parts(path, paragraph, "qas"):
                where = f"{path}, line {Located.line(question)}"
                if not isinstance(question, dict):
                    raise InputError(f"{where}: is {_short(question)}, expected a question")
                yield Record(where, {"context": paragraph.get("context"), **question})


def _parts(path: Path, value: object, key: str) -> Iterable[Any]:
    if not isinstance(value, dict) or not isinstance(value.get(key), list):
        raise InputError(f'{path}, line {Located.line(value)}: expected an object with a list "{key}"')
    return value[key]


def _trivia_entry(path: Path, entry: object) -> Record:
    where = f"{path}, line {Located.line(entry)}"
    answer = entry.get("Answer") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(answer, dict):
        raise InputError(f'{where}: expected an object with "Question" and "Answer"')
    right = {"value": answer.get("Value"), "aliases": answer.get("Aliases")}
    given = {"id": entry["QuestionId"]} if "QuestionId" in entry else {}
    return Record(where, {"question": entry.get("Question"), "answer": right, **given})


class Located(dict[str, Any]):
    """A JSON object that knows the line it ends in."""

    def __init__(self, values: Mapping[str, Any], at: int) -> None:
        super().__init__(values)
        self.at = at

    @staticmethod
    def line(value: object) -> int:
        """Return the line of an object, 1 for anything else."""
        return value.at if isinstance(value, Located) else 1


class LocatingDecoder(json.JSONDecoder):
    """A decoder of one JSON text that makes :class:`Located` objects (the library's drops positions)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._breaks = [i for i, character in enumerate(text) if character == "\n"]
        self.parse_object = self._parse_object
        self.scan_once = scanner.py_make_scanner(self)  # type: ignore[attr-defined]

    def _parse_object(self, start: tuple[str, int], *rest: Any) -> tuple[Located, int]:
        value, end = decoder.JSONObject(start, *rest)  # type: ignore[attr-defined]
        return Located(value, at=1 + bisect.bisect_left(self._breaks, end - 1)), end


def loads_located(text: str) -> Any:
    """Return the value of a JSON text, with located objects."""
    return LocatingDecoder(text).decode(text)


def parallel(source: Path, target: Path) -> Iterator[Record]:
    """Yield the pairs of lines of two files of parallel text."""
    codes = [path.suffix.removeprefix(".") for path in (source, target)]
    for path, code in zip((source, target), codes, strict=True):
        if code not in LANGUAGES:
            raise InputError(f"{path}: expected a name that ends in its language: {', '.join(LANGUAGES)}")
    if LANGUAGES[codes[0]] == LANGUAGES[codes[1]]:
        raise InputError(f"{source} and {target} are in the same language, expected two")
    lines = [read_text(path).removesuffix("\n").split("\n") for path in (source, target)]
    if len(lines[0]) != len(lines[1]):
        raise InputError(
            f"{source} has {len(lines[0])} lines and {target} {len(lines[1])}, expected the same number"
        )
    for number, pair in enumerate(zip(*lines, strict=True), 1):
        for path, line in zip((source, target), pair, strict=True):
            if not line.strip():
                raise InputError(f"{path}, line {number}: is empty, expected a sentence")
        yield Record(f"{source}, line {number}", {"translation": dict(zip(codes, pair, strict=True))})


def hub(name: str) -> Iterator[Record]:
    """Yield the rows of a data set of the Hugging Face hub: ``hub:NAME[:CONFIG]@SPLIT``."""
    rest, at, split = name.removeprefix(HUB).partition("@")
    dataset, _, config = rest.partition(":")
    if not dataset or not at or not split:
        raise InputError(f"{name}: expected {HUB}NAME@SPLIT or {HUB}NAME:CONFIG@SPLIT")
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(f"{name} needs the package datasets: pip install 'minicore-lm[hub]'") from None
    try:
        rows = load_dataset(dataset, config or None, split=split)
    except Exception as error:  # the library passes on whatever its dependencies raise
        raise InputError(f"{name}: cannot be loaded ({' '.join(str(error).split())})") from None
    for number, row in enumerate(rows, 1):
        yield Record(f"{name}, row {number}", dict(row))
