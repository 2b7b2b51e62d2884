"""An example to a prompt: templates and worked examples in a data file, documents cut where too long."""

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

FOLDER = Path(__file__).parent / "prompts"
FLOORS = ("lead", "majority", "source")


@dataclass(frozen=True)
class Prompts:
    """How a task is put to a model.

    Attributes
    ----------
    name : str
        Of the file.
    instruction : str
        What every prompt begins with.
    template : str
        An example with places such as ``{question}``; the answer comes right behind it.
    between : str
        What parts a worked example from the next one.
    document : str
        The place whose text is cut on its left where a prompt is too long; "" for none.
    stop : tuple of str
        Texts that end an answer.
    new_tokens : int
        Most tokens of an answer.
    metrics : tuple of str
        Names of :data:`minicore.evaluation.tasks.metrics.METRICS`, the one that counts first.
    floor : str
        An answer that no model is needed for: the ``lead`` sentence of the document, the ``majority`` of
        the right answers, or the ``source`` text itself.
    shots : tuple of mapping
        Worked examples: a text for each place, and ``answer``.
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
        """Read a file of prompts, or the one of that name that comes with minicore.

        Raises
        ------
        InputError
            If it cannot be read or is no such file.

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
            raise InputError(f"{path}: the floor lead needs document, the place whose first sentence it is")
        for shot in value.get("shots", []):
            if "answer" not in shot:
                raise InputError(f"{path}: a worked example has no answer: {shot}")
        value |= {key: tuple(value[key]) for key in ("metrics", "stop", "shots") if key in value}
        return cls(name=path.stem, **value)

    def fill(self, fields: Mapping[str, str]) -> str:
        """Return the template with its places filled."""
        try:
            return self.template.format_map(fields)
        except KeyError as error:
            raise InputError(f"prompts {self.name}: there is no {error} to fill the template with") from None

    def front(self, example: Example, n_shots: int) -> str:
        """Return what comes before an example: the instruction and the worked examples of its kind."""
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
        """Return a prompt's ids, and how many words of its document were left out to make room.

        The words left out are the first ones: a prompt and the longest answer fit the model's context.

        Raises
        ------
        InputError
            If it does not fit without any document, or there are not that many worked examples.

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
            raise InputError(f"{model.source} has no tokenizer, so tasks cannot be put to it")
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
        low, high = 0, len(starts) - 1  # with `low` words left out it does not fit, with `high` it must
        if not document or len(ids := without(high)) > room:
            raise InputError(
                f"{example.where}: with {n_shots} worked examples its prompt has {len(ids)} tokens"
                f"{' without the document' if document else ''}, but the context of {model.config.n_ctx} "
                f"leaves {room} beside an answer of {self.new_tokens}"
            )
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if len(without(middle)) <= room else (middle, high)
        return without(high), high

    def floors(self, examples: Sequence[Example]) -> list[str]:
        """Return the answer to each example that no model is needed for."""
        if self.floor == "lead":
            field = self.document
            return [re.split(r"(?<=[.!?])\s", example.fields[field], maxsplit=1)[0] for example in examples]
        if self.floor == "source":
            return [example.fields["source"] for example in examples]
        said = [{normalise(right): right for right in example.references} for example in examples]
        counts = Counter(key for of in said for key in of)
        best = max(counts, key=lambda key: counts[key])  # the first of the most frequent
        return [next(of[best] for of in said if best in of)] * len(examples)
