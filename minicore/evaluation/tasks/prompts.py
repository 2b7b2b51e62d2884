"""Prompts of examples: templates and worked examples from a data file; documents are cut where too long."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minicore.errors import InputError, unknown
from minicore.evaluation.tasks.metrics import METRICS, normalise
from minicore.evaluation.tasks.readers import Example
from minicore.evaluation.texts import read_text
from minicore.model import Model

FOLDER = Path(__file__).parent / "prompts"  # the prompts that come with minicore
FLOORS = ("lead", "majority", "source")


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts of a task.

    Attributes
    ----------
    name : str
        Name of the file.
    template : str
        The prompt of an example, with fields such as ``{question}``. The answer follows it directly.
    metrics : tuple of str
        Names of :data:`minicore.evaluation.tasks.metrics.METRICS`, the main one first.
    floor : str
        The answer that needs no model: the ``lead`` sentence of the document, the ``majority`` of the right
        answers, or the ``source`` text itself.
    new_tokens : int
        Most tokens of an answer.
    instruction : str
        The beginning of every prompt.
    between : str
        The text after each worked example.
    document : str
        The field whose beginning is cut where a prompt is too long; "" for none.
    stop : tuple of str
        Texts that end an answer.
    shots : tuple of mapping
        Worked examples: a text for each field, and ``answer``.
    """

    name: str
    template: str
    metrics: tuple[str, ...]
    floor: str
    new_tokens: int
    instruction: str = ""
    between: str = "\n\n"
    document: str = ""
    stop: tuple[str, ...] = ("\n",)
    shots: tuple[Mapping[str, str], ...] = ()

    @classmethod
    def read(cls, name: str) -> Prompts:
        """Read a file of prompts, or the prompts of that name that come with minicore.

        Raises
        ------
        InputError
            If the file cannot be read, or does not hold prompts.

        Examples
        --------
        >>> Prompts.read("qa").stop
        ('\\n',)
        """
        shipped = FOLDER / f"{name}.toml"
        path = shipped if shipped.exists() else Path(name)
        try:
            value = tomllib.loads(read_text(path))
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{path}: is not valid TOML ({error})") from None
        fields = {key: cls.__dataclass_fields__[key] for key in cls.__dataclass_fields__ if key != "name"}
        for key in value:
            if key not in fields:
                raise InputError(f"{path}: {unknown('key', key, fields)}")
        for key in ("template", "metrics", "floor", "new_tokens"):
            if key not in value:
                raise InputError(f"{path}: has no {key}")
        for metric in value["metrics"]:
            if metric not in METRICS:
                raise InputError(f"{path}: {unknown('metric', metric, METRICS)}")
        if value["floor"] not in FLOORS:
            raise InputError(f"{path}: {unknown('floor', value['floor'], FLOORS)}")
        if value["floor"] == "lead" and not value.get("document"):
            raise InputError(f"{path}: the floor lead needs document, the field whose first sentence it is")
        for shot in value.get("shots", []):
            if "answer" not in shot:
                raise InputError(f"{path}: a worked example has no answer: {shot}")
        value |= {key: tuple(value[key]) for key in ("metrics", "stop", "shots") if key in value}
        return cls(name=path.stem, **value)

    def fill(self, fields: Mapping[str, str]) -> str:
        """Return the template with its fields filled."""
        try:
            return self.template.format_map(fields)
        except KeyError as error:
            raise InputError(f"prompts {self.name}: the template needs {error}, which is missing") from None

    def front(self, example: Example, n_shots: int) -> str:
        """Return what precedes an example: the instruction and n_shots worked examples in its languages."""
        languages = {key: text for key, text in example.fields.items() if key.endswith("_language")}
        fitting = [shot for shot in self.shots if languages.items() <= shot.items()]
        if not 0 <= n_shots <= len(fitting):
            kind = f" from {' to '.join(languages.values())}" if languages else ""
            raise InputError(
                f"prompts {self.name}: shots is {n_shots}, but there are {len(fitting)} worked examples{kind}"
            )
        worked = [f"{self.fill(shot)} {shot['answer']}{self.between}" for shot in fitting[:n_shots]]
        return self.instruction + "".join(worked)

    def ids(self, model: Model, example: Example, n_shots: int) -> tuple[list[int], int]:
        """Return the ids of an example's prompt, and how many words of its document were left out.

        Words are left out from the beginning until prompt and longest answer fit the model's context.

        Raises
        ------
        InputError
            If the prompt does not fit even without its document, or there are fewer worked examples.

        Examples
        --------
        >>> import minicore as mc
        >>> model = mc.load("minicore-opt-core")
        >>> example = Example("1", "here", {"question": "How many legs has a cat?"}, ("4",))
        >>> ids, n_words_cut = Prompts.read("openqa").ids(model, example, n_shots=0)
        >>> model.tokenizer.decode(ids).splitlines()[-2:], n_words_cut
        (['Question: How many legs has a cat?', 'Answer:'], 0)
        """
        if model.tokenizer is None:
            raise InputError(f"{model.source} has no tokenizer, which tasks need")
        encode, room = model.tokenizer.encode, model.config.n_ctx - self.new_tokens
        front, fields = self.front(example, n_shots), dict(example.fields)
        document = fields.get(self.document, "")
        starts = [0, *(match.end() for match in re.finditer(r"\s+", document)), len(document)]

        def without(n: int) -> list[int]:
            fields[self.document] = document[starts[n] :]
            return encode(front + self.fill(fields))

        ids = without(0)
        if len(ids) <= room:
            return ids, 0
        low, high = 0, len(starts) - 1  # without `low` words it does not fit, without `high` it must
        if not document or len(ids := without(high)) > room:
            raise InputError(
                f"{example.where}: with {n_shots} worked examples its prompt has {len(ids)} tokens"
                f"{' without the document' if document else ''}, but the context of {model.config.n_ctx} "
                f"leaves {room} next to an answer of {self.new_tokens}"
            )
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if len(without(middle)) <= room else (middle, high)
        return without(high), high

    def floors(self, examples: Sequence[Example]) -> list[str]:
        """Return the answer to each example that needs no model."""
        if self.floor == "lead":
            field = self.document
            return [re.split(r"(?<=[.!?])\s", example.fields[field], maxsplit=1)[0] for example in examples]
        if self.floor == "source":
            return [example.fields["source"] for example in examples]
        right = [{normalise(text): text for text in example.references} for example in examples]
        counts = Counter(key for texts in right for key in texts)
        best = max(counts, key=lambda key: counts[key])  # the first of the most frequent
        return [next(texts[best] for texts in right if best in texts)] * len(examples)
