"""Fitting clusters of texts on a model: one core set per text, for thousands of texts, resumable."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from minicore.backends.numpy import NumpyBackend
from minicore.core import similarity
from minicore.core.neurons import CoreSet
from minicore.core.similarity import Clusters
from minicore.errors import InputError
from minicore.evaluation.shared_model import ModelRef, register_model, resolve_model
from minicore.evaluation.sweep import Workers, sweep
from minicore.evaluation.texts import parse_json, read_text
from minicore.files import atomic_write
from minicore.generation.prediction import encode_prompt, fingerprint, make_recorder, record
from minicore.model import Model

Array = np.ndarray
Text = str | Sequence[int]  # a text, or its token ids

SAVE_EVERY = 30  # seconds between two writes of the sets so far


def read_labelled(path: str | PathLike[str]) -> tuple[list[str], list[str] | None]:
    """Return a file's texts, and their labels if every text has one.

    ``.jsonl`` holds JSON lines: a string, or an object with ``text`` and perhaps ``label``. Any other file
    holds one text per line. Empty lines are skipped.

    Raises
    ------
    InputError
        If the file cannot be read, is not UTF-8 or holds no text, or a line is not as described.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "texts.jsonl"
    ...     _ = path.write_text('{"text": "Knead the dough.", "label": "cooking"}')
    ...     read_labelled(path)
    (['Knead the dough.'], ['cooking'])
    """
    path = Path(path)
    texts: list[str] = []
    labels: list[str] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        if path.suffix not in (".jsonl", ".ndjson"):
            texts.append(line)
            continue
        value = parse_json(line, f"{path}, line {number}")
        value = {"text": value} if isinstance(value, str) else value
        if not isinstance(value, dict) or not isinstance(value.get("text"), str) or not value["text"]:
            raise InputError(f'{path}, line {number}: expected a text, or an object whose "text" is one')
        texts.append(value["text"])
        if "label" in value:
            labels.append(str(value["label"]))
    if not texts:
        raise InputError(f"{path} holds no text")
    if labels and len(labels) != len(texts):
        raise InputError(f"{path}: {len(labels)} of {len(texts)} texts have a label, expected all or none")
    return texts, labels or None


def fit_clusters(
    model: Model,
    texts: Sequence[str] | Sequence[Sequence[int]],
    labels: Sequence[str] | None = None,
    *,
    predictor: str = "stability",
    alpha: float = 0.4,
    beta: float = 0.4,
    layer: int | None = None,
    k: int | None = None,
    embeddings: Array | None = None,
    seed: int = 0,
    max_tokens: int = 512,
    partial: str | PathLike[str] | None = None,
    workers: Workers | None = None,
) -> Clusters:
    """Return clusters of texts by meaning, with the neurons frequent in each (2410.18311 sec. 4.1).

    Parameters
    ----------
    model : Model
    texts : sequence of str, or of sequences of ids
        Texts are prefilled one by one; only their core sets are kept, one bit per neuron.
    labels : sequence of str or None
        The cluster of each text, from the data set; None clusters by k-means.
    predictor, alpha, beta
        How a text's core sets are made. The predictor must be one that records the prompt.
    layer : int or None
        Layer whose core sets are clustered, and by which a prompt is assigned to a cluster; None is the
        layer at 25/32 of the depth, as in the paper.
    k : int or None
        Number of clusters of k-means; None chooses it by the elbow rule, at least 4.
    embeddings : (n_texts, d) array or None
        Sentence embeddings to cluster and assign by, in place of core sets.
    seed : int
        Random seed of k-means.
    max_tokens : int
        Only this many tokens of a text are read, from its beginning.
    partial : path or None
        File for the sets computed so far, from which an interrupted fit resumes.
    workers : Workers or None
        What reads the texts; None is one thread of this process.

    Raises
    ------
    InputError
        If an option is out of range, there are too few texts, or ``partial`` belongs to other texts,
        settings or another model.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> texts = ["Bread needs flour, water, salt and yeast.", "The judge asked for the verdict."]
    >>> fit_clusters(model, texts, ["cooking", "law"]).names
    ['cooking', 'law']
    """
    row = make_recorder(model, predictor, alpha, beta).row
    if row.scores is None or not row.records or row.limit:
        raise InputError(f"predictor {predictor} makes no set from a text's own tokens, stability does")
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}, expected 1 or more")
    if not len(texts):
        raise InputError("there are no texts to cluster")
    if labels is not None and len(labels) != len(texts):
        raise InputError(f"there are {len(labels)} labels for {len(texts)} texts")
    settings = {
        "predictor": predictor,
        "alpha": alpha,
        "beta": beta,
        "max_tokens": max_tokens,
        "n_neurons": model.config.n_neurons,
        "model": model.name,
    }
    sets = PartialSets(partial, fingerprint(model), settings, texts, model.config.n_layers)
    ref = register_model(model)
    jobs = [
        Job(
            model=ref,
            text=_as_json(text),
            predictor=predictor,
            alpha=alpha,
            beta=beta,
            max_tokens=max_tokens,
        )
        for text in texts[sets.n_done :]
    ]
    found = sweep(core_bits, jobs, workers, total=len(texts), unit=" texts", progress=True)
    return similarity.fit(
        sets.collect(found),
        sets.fingerprint,
        labels=labels,
        layer=layer,
        embeddings=embeddings,
        k=k,
        seed=seed,
        settings=settings,
    )


@dataclass(frozen=True, kw_only=True)
class Job:
    """A text, and how its core sets are made."""

    model: ModelRef
    text: str | list[int]
    predictor: str
    alpha: float
    beta: float
    max_tokens: int


def core_bits(job: Job) -> Array:  # -> (n_layers, n_bytes) uint8
    """Return a text's core sets, one bit per neuron."""
    model = resolve_model(job.model)
    ids, config = _first_tokens(model, job.text, job.max_tokens), model.config
    recorder = make_recorder(model, job.predictor, job.alpha, job.beta)
    record(NumpyBackend(model), ids, recorder, model.new_cache(len(ids)))
    core = recorder.core()
    assert isinstance(core, CoreSet)
    rows = [similarity.core_vector(core.neurons[layer], config.n_neurons) for layer in range(config.n_layers)]
    return np.packbits(np.stack(rows).astype(bool), axis=1)


def _first_tokens(model: Model, text: Text, most: int) -> list[int]:
    if isinstance(text, str) and model.tokenizer is not None:
        text = model.tokenizer.encode(text)
    return encode_prompt(model, text if isinstance(text, str) else text[: min(most, model.config.n_ctx)])


class PartialSets:
    """The core sets of texts, saved to a file from time to time.

    Parameters
    ----------
    path : path or None
        The file; None saves nothing.
    fingerprint : str
        The model's.
    settings : dict
        How the sets are made. A file of another model or of other settings is refused.
    texts : sequence
        All texts.
    n_layers : int
        The model's.

    Attributes
    ----------
    n_done : int
        The sets of that many texts are known, counted from the first.
    """

    def __init__(
        self,
        path: str | PathLike[str] | None,
        fingerprint: str,
        settings: dict[str, Any],
        texts: Sequence[Text],
        n_layers: int,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.fingerprint, self.settings = fingerprint, settings
        self.texts, self.n_done = texts, 0
        self.sets = np.zeros((len(texts), n_layers, -(-settings["n_neurons"] // 8)), np.uint8)
        if self.path and self.path.exists():
            self._load(self.path)

    def collect(self, found: Iterable[tuple[int, Array]]) -> Array:
        # -> (n_texts, n_layers, n_bytes) uint8
        """Take the sets of the remaining texts, in any order, and return the sets of all texts.

        The file holds the sets before the first text whose set is still missing.
        """
        saved, first, ahead = time.monotonic(), self.n_done, set[int]()
        try:
            for i, bits in found:
                self.sets[first + i] = bits
                ahead.add(first + i)
                while self.n_done in ahead:
                    self.n_done += 1
                if time.monotonic() - saved > SAVE_EVERY:
                    self._save()
                    saved = time.monotonic()
        finally:
            self._save()  # Ctrl-C and errors lose nothing
        return self.sets

    def _meta(self, n_done: int) -> dict[str, str]:
        """Return the metadata that identify the sets; the digest is that of the first n_done texts."""
        done = json.dumps([_as_json(text) for text in self.texts[:n_done]])
        digest = hashlib.sha256(done.encode()).hexdigest()
        meta = {"fingerprint": self.fingerprint, "settings": self.settings, "texts": digest}
        return {"minicore.cluster_work": json.dumps(meta, sort_keys=True)}

    def _save(self) -> None:
        from safetensors.numpy import save_file

        if self.path and self.n_done:
            with atomic_write(self.path) as part:
                save_file({"sets": self.sets[: self.n_done]}, part, metadata=self._meta(self.n_done))

    def _load(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                meta, sets = file.metadata() or {}, file.get_tensor("sets")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not an unfinished cluster fit ({error})") from None
        n_done = len(sets)
        if n_done > len(self.texts) or sets.shape[1:] != self.sets.shape[1:] or meta != self._meta(n_done):
            raise InputError(
                f"{path} is an unfinished fit of other texts, settings or another model; remove it to go on"
            )
        self.sets[:n_done], self.n_done = sets, n_done


def _as_json(text: Text) -> str | list[int]:
    """Return a text or its ids as JSON can hold them."""
    return text if isinstance(text, str) else [int(i) for i in text]
