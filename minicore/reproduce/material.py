"""The material of the figures: a model and texts, each of which is read once for all figures."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from minicore import ops
from minicore.backends import Backend, make_backend
from minicore.core.neurons import core_from_scores
from minicore.core.similarity import Clusters, default_layer, fit, unit
from minicore.errors import InputError
from minicore.evaluation.clusters import read_labelled
from minicore.evaluation.quality.measurement import Row
from minicore.evaluation.quality.settings import Conditions, Setting
from minicore.evaluation.quality.study import study
from minicore.evaluation.texts import Passage, read_text, sample_files
from minicore.forward import Hooks
from minicore.generation.prediction import fingerprint
from minicore.model import Model
from minicore.reproduce.sts import in_core, read_batch

Array = np.ndarray
T = TypeVar("T")

LONGEST = 512  # tokens read of a document
ALPHA, BETA = 0.4, 0.2  # the paper's values, where a figure does not vary them


@dataclass(frozen=True)
class Document:
    """A text.

    Attributes
    ----------
    name : str
        File and line, or file and first token.
    label : str or None
        Its topic, if the file gives it.
    ids : (n_tokens,) int64 array
        Beginning with what the tokenizer puts before a text.
    """

    name: str
    label: str | None
    ids: Array


def read_documents(model: Model, paths: Sequence[str | PathLike[str]]) -> list[Document]:
    """Read files. Each line of JSON lines is a document; a plain text is cut into LONGEST tokens each.

    Raises
    ------
    InputError
        As :func:`minicore.evaluation.clusters.read_labelled`, or if the model has no tokenizer.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> documents = read_documents(model, sample_files())
    >>> documents[0].name, documents[0].label
    ('topics.jsonl:1', 'astronomy')
    """
    if model.tokenizer is None:
        raise InputError(f"{model.source} has no tokenizer, so texts cannot be read with it")
    front, longest = model.tokenizer.encode(""), min(LONGEST, model.config.n_ctx)
    found = []
    for path in map(Path, paths):
        if path.suffix in (".jsonl", ".ndjson"):
            texts, labels = read_labelled(path)
            for i, text in enumerate(texts):
                ids = model.check_ids(model.tokenizer.encode(text)[:longest])
                found.append(Document(f"{path.name}:{i + 1}", labels[i] if labels else None, ids))
            continue
        whole, room = model.tokenizer.encode(read_text(path), special=False), longest - len(front)
        found += [
            Document(f"{path.name}@{at}", None, model.check_ids(front + whole[at : at + room]))
            for at in range(0, len(whole), room)
        ]
    if not found:
        raise InputError(f"{', '.join(map(str, paths))}: holds no text")
    return found


class Material:
    """A model, documents and files of sentence pairs, with what several figures derive from them.

    Parameters
    ----------
    model : Model
    texts : sequence of path or None
        Files for :func:`read_documents`; None is the sample corpus.
    pairs : sequence of path
        Files of sentence pairs for Table 1.
    seed : int
        Random seed of draws, clusters and layouts.
    progress : bool
        Show progress bars on stderr if it is a terminal.
    """

    def __init__(
        self,
        model: Model,
        texts: Sequence[str | PathLike[str]] | None = None,
        pairs: Sequence[str | PathLike[str]] = (),
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        if seed < 0:
            raise InputError(f"seed is {seed}, expected 0 or more")
        self.documents = read_documents(model, sample_files() if texts is None else texts)
        self.model, self.backend = model, make_backend(model)
        self.pairs, self.seed = [Path(path) for path in pairs], seed
        self.progress = progress and sys.stderr.isatty()

    @property
    def layer(self) -> int:
        """The layer that is shown where only one is, at the depth of the paper's 25 of 32."""
        return default_layer(self.model.config.n_layers)

    @property
    def three_layers(self) -> list[int]:
        """The distinct layers at the depths of the paper's 5, 15 and 25 of 32."""
        n = self.model.config.n_layers
        return sorted({min(round(depth / 32 * n), n - 1) for depth in (5, 15, 25)})

    @cached_property
    def about(self) -> dict[str, Any]:
        """What identifies this material."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(json.dumps([document.label, document.ids.tolist()]).encode())
        return {
            "model": self.model.name,
            "fingerprint": fingerprint(self.model),
            "dtype": self.model.dtype,
            "texts": digest.hexdigest()[:32],
            "seed": self.seed,
        }

    @cached_property
    def about_pairs(self) -> dict[str, Any]:
        """What identifies the files of pairs."""
        texts = [read_text(path) for path in self.pairs]
        return {"pairs": hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:32]}

    def bar(self, items: Sequence[T], what: str) -> Iterable[T]:
        """Return the items under a progress bar."""
        from tqdm import tqdm

        return tqdm(items, desc=what, leave=False, disable=not self.progress)

    # --- documents ---

    def long_documents(self, n_tokens: int, most: int) -> list[Document]:
        """Return documents of n_tokens or more, cut to n_tokens; at most ``most`` are drawn."""
        found = [document for document in self.documents if len(document.ids) >= n_tokens]
        if len(found) < 2:
            raise InputError(
                f"{len(found)} of the {len(self.documents)} texts have {n_tokens} tokens, expected at least 2"
            )
        drawn = np.sort(np.random.default_rng(self.seed).permutation(len(found))[:most])
        return [Document(found[i].name, found[i].label, found[i].ids[:n_tokens]) for i in drawn]

    @cached_property
    def labelled(self) -> list[Document]:
        """The documents that have a topic."""
        found = [document for document in self.documents if document.label is not None]
        topics = {document.label for document in found}
        if len(topics) < 2 or len(found) < 2 * len(topics):
            raise InputError(
                f"{len(found)} texts have a label, of {len(topics)} topics, expected two topics or more and "
                'two texts of each: JSON lines with "text" and "label"'
            )
        return found

    @property
    def labels(self) -> Array:  # (n_labelled,) str
        """The topics of the labelled documents."""
        return np.array([document.label for document in self.labelled])

    # --- core neurons of the documents ---

    @cached_property
    def frequency(self) -> Array:  # (n_labelled, n_layers, n_neurons) float32
        """f_alpha of every labelled document, as shares of its tokens (eq. 3)."""
        order = np.argsort([len(document.ids) for document in self.labelled], kind="stable")
        layers, parts = range(self.model.config.n_layers), np.split(order, range(8, len(order), 8))
        found = np.empty((len(order), len(layers), self.model.config.n_neurons), np.float32)
        for part in self.bar(parts, "labelled texts"):
            found[part] = read_batch(self.backend, [self.labelled[i].ids for i in part], ALPHA, list(layers))
        return found

    def cores(self, layer: int, beta: float = BETA) -> Array:  # -> (n_labelled, n_neurons) bool
        """Return the sentence-wise core of every labelled document in one layer."""
        return in_core(self.frequency[:, layer], beta)

    def directions(self, layer: int) -> Array:  # -> (n_labelled, n_neurons) float32, of length 1
        """Return the same sets as vectors of length 1, whose distance is the sets' overlap."""
        return unit(self.cores(layer).astype(np.float32))

    def sets(self, counts: Array) -> list[Array]:  # (n_layers, n_neurons) -> n_layers of ids
        """Return the core of each layer of one text's counts."""
        return [core_from_scores(row, BETA) for row in counts]

    def study(
        self,
        documents: Sequence[Document],
        predictors: Sequence[str],
        betas: Sequence[float],
        prompt_tokens: int,
        n_generated: int = 0,
    ) -> list[Row]:
        """Measure predictors on documents' continuations (:func:`minicore.evaluation.quality.study.study`).

        Clusters for ``similarity`` are fitted on the labelled documents that are not measured.
        """
        with tempfile.TemporaryDirectory() as folder:
            clusters = None
            if "similarity" in predictors:
                clusters = Path(folder) / "clusters"
                self.clusters_without([document.name for document in documents]).save(clusters)
            conditions = Conditions.of(
                self.model,
                prompt_tokens=prompt_tokens,
                continuation_tokens=len(documents[0].ids) - prompt_tokens - 1,
                alpha=ALPHA,
                fit_passages=0,
                clusters=clusters,
                seed=self.seed,
            )
            passages = [Passage(document.name, document.ids) for document in documents]
            settings = [Setting(predictor, beta) for predictor in predictors for beta in betas]
            return study(
                self.model,
                passages,
                settings,
                conditions,
                n_generated=n_generated,
                progress=self.progress,
                backend="cpu",
            )

    def clusters_without(self, names: Sequence[str]) -> Clusters:
        """Return clusters by topic of the labelled documents other than those named."""
        kept = [i for i, document in enumerate(self.labelled) if document.name not in names]
        if not kept:
            raise InputError("all labelled texts are measured, expected others to fit clusters on")
        beta = 0.4
        sets = np.stack([in_core(self.frequency[i], beta) for i in kept])
        settings = {"predictor": "stability", "alpha": ALPHA, "beta": beta}
        return fit(sets, fingerprint(self.model), labels=self.labels[kept].tolist(), settings=settings)


def nats(
    backend: Backend, ids: Array, hooks: Hooks | Callable[[str, Array], None] | None = None
) -> Array:  # (n,) -> (n - 1,)
    """Return the cost of each token after the first to the model, -log p in nats."""
    logits = ops.log_softmax(backend.forward(ids[:-1], backend.model.new_cache(len(ids)), hooks))
    return -logits[np.arange(len(ids) - 1), ids[1:]]
