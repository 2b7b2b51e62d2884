"""Do sentences with close meaning have close core neurons? (CoreInfer, 2410.18311 table 1 and sec. 3.2)

The model reads pairs of sentences that people have scored for similarity. The core neurons of the two
sentences are compared in each layer, and Spearman's rho tells whether that ranks the pairs as people do.
Measure and layer are chosen on all files but the last, and tested on the last.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from minicore.backends import Backend, make_backend
from minicore.bootstrap import bootstrap, rhos, spearman
from minicore.core.neurons import check_fraction, core_from_scores, parse_layers, token_core
from minicore.errors import InputError
from minicore.evaluation.texts import read_text
from minicore.files import atomic_write
from minicore.forward import ForwardPass
from minicore.model import Model

Array = np.ndarray

BATCH = 32  # sentences read together


@dataclass(frozen=True)
class Pairs:
    """A file of sentence pairs.

    Attributes
    ----------
    name : str
        Name of the file.
    scores : (n,) float64 array
        Human similarity.
    first, second : list of str
        The sentences.
    """

    name: str
    scores: Array
    first: list[str]
    second: list[str]


def read_pairs(path: str | PathLike[str], most: int | None = None) -> Pairs:
    """Read a file whose lines are: score, tab, sentence, tab, sentence.

    Raises
    ------
    InputError
        If a line has another form (by file and line), or there are fewer than two.

    Examples
    --------
    >>> import tempfile
    >>> lines = "5\\tA cat sleeps.\\tA cat is asleep.\\n1\\tA cat sleeps.\\tWe bake bread.\\n"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "pairs.tsv"
    ...     _ = path.write_text(lines)
    ...     read_pairs(path).scores
    array([5., 1.])
    """
    scores, first, second = [], [], []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split("\t")
        try:
            score = float(fields[0])
        except ValueError:
            score = float("nan")
        if len(fields) != 3 or not np.isfinite(score) or not all(text.strip() for text in fields[1:]):
            raise InputError(f"{path}, line {number}: expected a score, a tab, a sentence, a tab, a sentence")
        scores.append(score)
        first.append(fields[1])
        second.append(fields[2])
    if len(scores) < 2:
        raise InputError(f"{path}: holds {len(scores)} pairs, expected at least two to correlate")
    return Pairs(Path(path).name, np.array(scores[:most]), first[:most], second[:most])


def read_files(paths: Sequence[str | PathLike[str]], most: int | None = None) -> list[Pairs]:
    """Read files of pairs, whose names must differ."""
    files = [read_pairs(path, most) for path in paths]
    if len({pairs.name for pairs in files}) < len(files):
        raise InputError("two files of pairs have the same name, expected different ones")
    return files


def read_sentences(
    backend: Backend, sentences: Sequence[str], alpha: float, layers: Sequence[int], progress: bool = False
) -> dict[str, Array]:  # sentence -> (n_layers, n_neurons) float32
    """Return how often each neuron is in a token's core, as a share of the sentence's tokens (eq. 3)."""
    from tqdm import tqdm

    model = backend.model
    if model.tokenizer is None:
        raise InputError(f"{model.source} has no tokenizer, so sentences cannot be read with it")
    frequency: dict[str, Array] = {}
    distinct = list(dict.fromkeys(sentences))
    with tqdm(total=len(distinct), unit=" sentences", disable=not (progress and sys.stderr.isatty())) as bar:
        for start in range(0, len(distinct), BATCH):
            batch = distinct[start : start + BATCH]
            ids = [model.check_ids(model.tokenizer.encode(text)[: model.config.n_ctx]) for text in batch]
            frequency |= zip(batch, read_batch(backend, ids, alpha, layers), strict=True)
            bar.update(len(batch))
    return frequency


def read_batch(backend: Backend, batch: Sequence[Array], alpha: float, layers: Sequence[int]) -> Array:
    # (n_tokens of each,) -> (n_texts, n_layers, n_neurons) float32
    """Read short texts together: each attends only to itself; the FFNs' weights are read once for all."""
    model, config, n_tokens = backend.model, backend.model.config, [len(ids) for ids in batch]
    starts = np.cumsum([0, *n_tokens[:-1]])
    texts = [slice(start, start + n) for start, n in zip(starts, n_tokens, strict=True)]
    positions = np.concatenate([np.arange(n) for n in n_tokens])
    caches = [model.new_cache(n) for n in n_tokens]
    frequency = np.empty((len(batch), len(layers), config.n_neurons), np.float32)

    def count(column: int, a: Array) -> None:
        counts = np.add.reduceat(token_core(a, alpha), starts, axis=0, dtype=np.float32)
        frequency[:, column] = counts / np.array(n_tokens)[:, None]

    hooks = {f"blocks.{layer}.mlp.hook_post": partial(count, column) for column, layer in enumerate(layers)}
    run = ForwardPass(model, hooks, backend.ops)
    x = run.embed(np.concatenate(batch), positions)
    for layer in range(max(layers) + 1):
        p = model.blocks[layer]
        normed = run.norm(x, p["ln1.w"], p.get("ln1.b"))
        x = x + np.concatenate(
            [
                run.attention(layer, normed[text], positions[text], cache)
                for text, cache in zip(texts, caches, strict=True)
            ]
        )
        x = x + run.ffn(layer, run.norm(x, p["ln2.w"], p.get("ln2.b")))
    return frequency


# --- measures of similarity: two (n_layers, n_neurons) frequencies -> (n_layers,) ---


def jaccard(a: Array, b: Array, beta: float) -> Array:
    """Return shared / involved neurons of the sentence-wise cores, the paper's measure."""
    in_a, in_b = in_core(a, beta), in_core(b, beta)
    involved = (in_a | in_b).sum(axis=1)
    return np.where(involved, (in_a & in_b).sum(axis=1) / np.maximum(involved, 1), 1.0)


def in_core(frequency: Array, beta: float) -> Array:  # (n_layers, n_neurons) -> bool, the same shape
    """Mark each layer's sentence-wise core (eq. 2)."""
    mask = np.zeros(frequency.shape, bool)
    for row, marked in zip(frequency, mask, strict=True):
        marked[core_from_scores(row, beta)] = True
    return mask


def ruzicka(a: Array, b: Array) -> Array:
    """Return the Jaccard similarity of frequencies instead of sets: sum of minima / sum of maxima."""
    return np.minimum(a, b).sum(axis=1) / np.maximum(np.maximum(a, b).sum(axis=1), 1e-12)


def cosine(a: Array, b: Array) -> Array:
    """Return the cosine of the frequencies, 0 where one is all zero."""
    lengths = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1)


def similarities(
    pairs: Pairs, frequency: dict[str, Array], betas: Sequence[float], centre: Array
) -> dict[str, Array]:  # measure -> (n_pairs, n_layers)
    """Return every measure of every pair. "Centred" subtracts ``centre`` (n_layers, n_neurons).

    Most neurons' frequencies hardly depend on the sentence; without their mean the cosine sees what does.
    """
    measures: dict[str, Callable[[Array, Array], Array]] = {
        **{f"jaccard, beta {beta}": lambda a, b, beta=beta: jaccard(a, b, beta) for beta in betas},  # type: ignore[misc]
        "ruzicka": ruzicka,
        "cosine": cosine,
        "centred cosine": lambda a, b: cosine(a - centre, b - centre),
    }
    read = [(frequency[a], frequency[b]) for a, b in zip(pairs.first, pairs.second, strict=True)]
    return {name: np.stack([measure(a, b) for a, b in read]) for name, measure in measures.items()}


def word_overlap(model: Model, pairs: Pairs) -> Array:  # -> (n_pairs,)
    """Return the Jaccard similarity of the pairs' token ids, the baseline that needs no model."""
    assert model.tokenizer is not None
    ids = [[set(model.tokenizer.encode(text)) for text in side] for side in (pairs.first, pairs.second)]
    return np.array([len(a & b) / len(a | b) for a, b in zip(*ids, strict=True)])


def study(
    model: Model,
    files: Sequence[str | PathLike[str]],
    *,
    alpha: float = 0.4,
    betas: Sequence[float] = (0.1, 0.2, 0.4),
    layers: str | slice | range | list[int] | None = None,
    most: int | None = None,
    seed: int = 0,
    out: str | PathLike[str] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Correlate core-neuron similarity with human similarity, layer by layer.

    Parameters
    ----------
    model : Model
    files : sequence of path
        Pairs, see :func:`read_pairs`. Measure and layer are chosen on all files but the last (by the highest
        mean rho) and tested on the last.
    alpha : float
        Fraction of a token's positive activations kept.
    betas : sequence of float
        Fractions of the neurons kept in the sets that are compared.
    layers : str, slice, range, list of int or None
        Layers to compare; None is all.
    most : int or None
        Pairs read from each file; None is all.
    seed : int
        Random seed of the bootstrap over pairs.
    out : path or None
        Where to write the result as JSON.
    progress : bool
        Show a progress bar on stderr if it is a terminal.

    Returns
    -------
    dict
        ``rho``: measure -> file -> one value for each of ``layers``. ``chosen``: measure and layer with the
        highest mean rho where they were chosen, and ``test_rho``, ``[rho, low, high]`` on the last file.
        ``best_jaccard``: the same for the best of the paper's own measure. ``overlap``: file -> rho of the
        token overlap, which a measure has to beat to be about meaning.

    Raises
    ------
    InputError
        If a file is malformed (by file and line), there are fewer than two files, or an option is out of
        range.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> import tempfile
    >>> lines = "5\\tA cat sleeps.\\tA cat is asleep.\\n1\\tA cat sleeps.\\tWe bake bread.\\n"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = [Path(folder) / name for name in ("choose.tsv", "test.tsv")]
    ...     sizes = [path.write_text(lines) for path in files]
    ...     found = study(model, files, betas=[0.2])
    >>> len(found["rho"]["jaccard, beta 0.2"]["test.tsv"])  # one for each layer
    5
    """
    if len(files) < 2:
        raise InputError(f"{len(files)} file of pairs, expected one or more to choose on and one to test on")
    if most is not None and most < 2:
        raise InputError(f"pairs is {most}, expected at least two to correlate")
    if seed < 0:
        raise InputError(f"seed is {seed}, expected 0 or more")
    for beta in betas:
        check_fraction("beta", beta)
    check_fraction("alpha", alpha)
    chosen_layers = parse_layers(layers, model.config.n_layers)
    sets = read_files(files, most)
    sentences = [text for pairs in sets for text in (*pairs.first, *pairs.second)]
    frequency = read_sentences(make_backend(model), sentences, alpha, chosen_layers, progress)
    seen = {text for pairs in sets[:-1] for text in (*pairs.first, *pairs.second)}
    centre = np.mean([frequency[text] for text in seen], axis=0)  # nothing is taken from the test file
    similarity = {pairs.name: similarities(pairs, frequency, betas, centre) for pairs in sets}
    rho = {
        measure: {pairs.name: correlations(similarity[pairs.name][measure], pairs) for pairs in sets}
        for measure in similarity[sets[0].name]
    }
    tested = similarity[sets[-1].name]
    jaccards = [measure for measure in rho if measure.startswith("jaccard")]
    found = {
        "model": model.name,
        "dtype": model.dtype,
        "alpha": alpha,
        "betas": list(betas),
        "files": [pairs.name for pairs in sets],
        "n_pairs": [len(pairs.scores) for pairs in sets],
        "layers": chosen_layers,
        "rho": rho,
        "overlap": {pairs.name: spearman(word_overlap(model, pairs), pairs.scores) for pairs in sets},
        "chosen": held_out(list(rho), rho, sets, tested, chosen_layers, seed),
        "best_jaccard": held_out(jaccards, rho, sets, tested, chosen_layers, seed),
    }
    if out is not None:
        with atomic_write(out) as part:
            part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def correlations(similarity: Array, pairs: Pairs) -> list[float]:  # (n_pairs, n_layers) -> n_layers
    """Return Spearman's rho of a measure with human similarity, layer by layer."""
    return [spearman(column, pairs.scores) for column in similarity.T]


def held_out(
    measures: Sequence[str],
    rho: dict[str, dict[str, list[float]]],
    sets: Sequence[Pairs],
    tested: dict[str, Array],
    layers: Sequence[int],
    seed: int,
) -> dict[str, Any]:
    """Choose measure and layer by rho on all files but the last, and test them on the last.

    ``tested`` holds the last file's similarities, measure -> (n_pairs, n_layers).
    """
    mean = np.array([np.mean([rho[m][pairs.name] for pairs in sets[:-1]], axis=0) for m in measures])
    which, layer = np.unravel_index(mean.argmax(), mean.shape)
    both = np.stack([tested[measures[int(which)]][:, layer], sets[-1].scores], axis=1)
    return {
        "measure": measures[int(which)],
        "layer": layers[int(layer)],
        "rho_where_chosen": float(mean[which, layer]),
        "test_file": sets[-1].name,
        "test_rho": bootstrap(both, rhos, seed=seed),
    }
