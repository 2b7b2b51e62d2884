"""Fitting clusters of texts on a model: thousands of texts, one core set each, resumable."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minicore.backends.numpy import NumpyBackend
from minicore.core import similarity
from minicore.core.neurons import CoreSet
from minicore.core.similarity import Clusters
from minicore.errors import InputError
from minicore.evaluation.sweep import ModelRef, Where, borrow, share, sweep
from minicore.files import atomic_write
from minicore.generation.prediction import encode_prompt, fingerprint, make_recorder, record
from minicore.model import Model

Array = np.ndarray

SAVE_EVERY = 30  # seconds between two writes of what is done so far


def read_labelled(path: str | PathLike[str]) -> tuple[list[str], list[str] | None]:
    """Return a file's texts and, where every one has it, their labels.

    ``.jsonl`` holds JSON lines: a string, or an object with ``text`` and perhaps ``label``; any other file
    one text a line. Empty lines are left out.

    Raises
    ------
    InputError
        If the file cannot be read, is not UTF-8, holds no text, or a line is not as described.

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
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: byte {error.object[error.start]:#04x}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None
    texts: list[str] = []
    labels: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix not in (".jsonl", ".ndjson"):
            texts.append(line)
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: is not valid JSON ({error})") from None
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
    workers: Where | None = None,
) -> Clusters:
    """Return clusters of texts by meaning, with the neurons frequent in each (2410.18311 sec. 4.1).

    Parameters
    ----------
    model : Model
    texts : sequence of str, or of sequences of ids
        One after the other is prefilled; what is kept of each is its core sets, a bit a neuron.
    labels : sequence of str or None
        The texts' clusters as the data have them; None is k-means.
    predictor, alpha, beta
        How a text's core sets are made: of the predictors that record the prompt.
    layer : int or None
        Layer whose core sets are clustered and by which a prompt is assigned; None is at 25/32 of the
        depth, where the paper has it.
    k : int or None
        Number of clusters of k-means; None is chosen by the elbow rule, at least 4.
    embeddings : (n_texts, d) array or None
        Sentence embeddings to cluster and assign by, in place of core sets.
    seed : int
        For k-means.
    max_tokens : int
        A longer text counts with its first so many tokens.
    partial : path or None
        Where the work done so far is kept, so that a fit that was cut off goes on where it was.
    workers : Where or None
        What reads the texts; None is one thread of this process.

    Raises
    ------
    InputError
        If an option is out of range, there are too few texts, or ``partial`` holds work on other texts,
        settings or another model.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> texts = ["Bread needs flour, water, salt and yeast.", "The judge asked for the verdict."]
    >>> fit_clusters(model, texts, ["cooking", "law"]).names
    ['cooking', 'law']
    """
    recorder = make_recorder(model, predictor, alpha, beta)
    if recorder.row.scores is None or not recorder.row.records or recorder.row.limit:
        raise InputError(f"predictor {predictor} makes no set of a text's own, stability does")
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}, expected 1 or more")
    if not len(texts):
        raise InputError("there are no texts to cluster")
    if labels is not None and len(labels) != len(texts):
        raise InputError(f"there are {len(labels)} labels for {len(texts)} texts")
    config = model.config
    settings = {
        "predictor": predictor,
        "alpha": alpha,
        "beta": beta,
        "max_tokens": max_tokens,
        "n_neurons": config.n_neurons,
        "model": model.name,
    }
    work = Work(partial, fingerprint(model), settings, texts, config.n_layers)

    ref = share(model)
    jobs = [Job(ref, _plain(text), predictor, alpha, beta, max_tokens) for text in texts[work.n_done :]]
    sets = work.run(sweep(core_bits, jobs, workers, total=len(texts), unit=" texts", progress=True))
    return similarity.fit(
        sets,
        work.fingerprint,
        labels=labels,
        layer=layer,
        embeddings=embeddings,
        k=k,
        seed=seed,
        settings=settings,
    )


class Job(NamedTuple):
    """A text, and how its core sets are made."""

    model: ModelRef
    text: str | list[int]
    predictor: str
    alpha: float
    beta: float
    max_tokens: int


def core_bits(job: Job) -> Array:  # -> (n_layers, n_bytes) uint8
    """Return a text's core sets, a bit a neuron."""
    model = borrow(job.model)
    ids, config = _first_tokens(model, job.text, job.max_tokens), model.config
    recorder = make_recorder(model, job.predictor, job.alpha, job.beta)
    record(NumpyBackend(model), ids, recorder, model.new_cache(len(ids)))
    core = recorder.core()
    assert isinstance(core, CoreSet)
    rows = [similarity.core_vector(core.neurons[layer], config.n_neurons) for layer in range(config.n_layers)]
    return np.packbits(np.stack(rows).astype(bool), axis=1)


def _first_tokens(model: Model, text: str | Sequence[int], most: int) -> list[int]:
    if isinstance(text, str) and model.tokenizer is not None:
        text = model.tokenizer.encode(text)
    return encode_prompt(model, text if isinstance(text, str) else text[: min(most, model.config.n_ctx)])


class Work:
    """One core set a text, kept in a file from time to time.

    Parameters
    ----------
    path : path or None
        The file; None keeps nothing.
    fingerprint, settings
        Of the model, and how the sets are made; work on others is refused.
    texts : sequence
        All of them.
    n_layers : int
        The model's.
    """

    def __init__(
        self,
        path: str | PathLike[str] | None,
        fingerprint: str,
        settings: dict[str, Any],
        texts: Sequence[Any],
        n_layers: int,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.fingerprint, self.settings = fingerprint, settings
        self.texts, self.n_done = texts, 0
        self.sets = np.zeros((len(texts), n_layers, -(-settings["n_neurons"] // 8)), np.uint8)
        if self.path and self.path.exists():
            self._load(self.path)

    def run(self, found: Iterable[tuple[int, Array]]) -> Array:  # -> (n_texts, n_layers, n_bytes) uint8
        """Take the sets of the texts not done yet, in any order, and return all.

        ``n_done`` texts are kept, those before the first that has not come.
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
        """Return what says whose work it is; the digest is of the texts done."""
        digest = hashlib.sha256(json.dumps(list(map(_plain, self.texts[:n_done]))).encode()).hexdigest()
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
            raise InputError(f"{path} is not unfinished work of a cluster fit ({error})") from None
        n_done = len(sets)
        if n_done > len(self.texts) or sets.shape[1:] != self.sets.shape[1:] or meta != self._meta(n_done):
            raise InputError(
                f"{path} holds unfinished work on other texts, settings or another model; remove it to go on"
            )
        self.sets[:n_done], self.n_done = sets, n_done


def _plain(text: Any) -> Any:
    """Return a text or ids as JSON can hold them."""
    return text if isinstance(text, str) else [int(i) for i in text]
