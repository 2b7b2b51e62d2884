"""Core neurons of many texts: do those of close meaning have close ones? (figs. 4, 9, 11, table 1)

Each function measures one figure of CoreInfer (2410.18311) on a :class:`Material` and returns its numbers;
:mod:`minicore.reproduce.runner` says what these have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minicore.bootstrap import ranks, spearman
from minicore.core.similarity import kmeans
from minicore.errors import InputError
from minicore.formatting import format_ratio
from minicore.reproduce import sts
from minicore.reproduce.material import ALPHA, Material
from minicore.reproduce.verdict import judge, percent

Array = np.ndarray

CLEAR = 0.5  # an adjusted Rand index from which on clusters are topics


def topic_names(material: Material) -> list[str]:
    """Return the labelled texts' topics in order."""
    return sorted(set(material.labels.tolist()))


def rand_index(labels: Array, member: Array) -> float:
    """Return the adjusted Rand index of two partitions: 1 for the same, 0 for chance."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(labels, member))


def word_vectors(material: Material) -> Array:  # -> (n_labelled, n_words) float64
    """Return each text's tokens, weighted by rarity (tf-idf): what needs no model."""
    ids = [document.ids for document in material.labelled]
    counts = np.zeros((len(ids), material.model.config.n_vocab), np.float32)
    for row, one in zip(counts, ids, strict=True):
        np.add.at(row, one, 1)
    used = counts[:, counts.any(axis=0)]
    weighted = used / used.sum(axis=1, keepdims=True) * np.log(len(ids) / (used > 0).sum(axis=0))
    return weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-12)


def topics_found(material: Material, vectors: Array, n_seeds: int) -> tuple[float, float, float]:
    """Return how well k-means finds the topics: the adjusted Rand index, its mean and range over seeds.

    A bootstrap over texts would put copies of a text into one cluster and find too much. Where fewer vectors
    differ than there are topics, as in a layer without a positive activation, nothing is found.
    """
    k = len(topic_names(material))
    if len(np.unique(vectors, axis=0)) < k:
        return 0.0, 0.0, 0.0
    found = [rand_index(material.labels, kmeans(vectors, k, material.seed + i)) for i in range(n_seeds)]
    return float(np.mean(found)), min(found), max(found)


def fig4(material: Material, *, n_seeds: int = 5) -> dict[str, Any]:
    """Texts' sets in the plane by topic, at three depths, and whether k-means finds the topics."""
    from minicore.projection import project

    layers, three = range(material.model.config.n_layers), material.three_layers
    found = [topics_found(material, material.directions(layer), n_seeds) for layer in layers]
    words = topics_found(material, word_vectors(material), n_seeds)[0]
    ari = [mean for mean, _, _ in found]
    best, first, last = int(np.argmax(ari)), three[0], three[-1]
    shown = ", ".join(f"{format_ratio(ari[layer])} in layer {layer}" for layer in three)
    return {
        "table": [{"layer": i, "adjusted Rand index": one} for i, one in zip(layers, found, strict=True)],
        "beside": [
            ["topics found by k-means (adjusted Rand index)", "clusters seen in t-SNE, no number", shown],
            ["the best layer's", "clearer in deeper layers", f"{format_ratio(ari[best])} in layer {best}"],
            ["by words alone (tf-idf)", "not given", format_ratio(words)],
        ],
        **judge(
            (
                max(ari[i] for i in three) >= CLEAR,
                f"k-means finds the topics with an adjusted Rand index of {shown}",
            ),
            (
                ari[last] > ari[first],
                f"layer {last} has {format_ratio(ari[last])}, layer {first} {format_ratio(ari[first])}",
            ),
            (
                ari[best] > words,
                f"the best layer, {best}, has {format_ratio(ari[best])}, words alone {format_ratio(words)}",
            ),
        ),
        "drawn": {
            "layers": three,
            "points": [project(material.directions(i), "tsne", material.seed).tolist() for i in three],
            "labels": material.labels.tolist(),
            "ari": [ari[layer] for layer in three],
        },
    }


def fig9(material: Material) -> dict[str, Any]:
    """Similarity of the sets of texts on one topic and of texts on two, layer by layer."""
    labels = material.labels
    one, other = np.triu_indices(len(labels), 1)
    same = labels[one] == labels[other]
    table = []
    for layer in range(material.model.config.n_layers):
        sets = material.cores(layer).astype(np.float32)
        shared, sizes = sets @ sets.T, sets.sum(axis=1)
        jaccard = (shared / np.maximum(sizes[:, None] + sizes - shared, 1))[one, other]
        means = {"one topic": float(jaccard[same].mean()), "two topics": float(jaccard[~same].mean())}
        table.append({"layer": layer, **means, "told apart": area(jaccard, same)})
    closer = sum(row["one topic"] > row["two topics"] for row in table)
    third = max(1, len(table) // 3)
    shallow, deep = (
        float(np.mean([row["told apart"] for row in rows])) for rows in (table[:third], table[-third:])
    )
    return {
        "table": table,
        "beside": [
            ["layers in which one topic's sets are closer", "all", f"{closer} of {len(table)}"],
            [
                "a pair on one topic is the closer one: first third of the layers",
                "less often",
                percent(shallow),
            ],
            ["... last third (chance: 50%)", "more often", percent(deep)],
        ],
        **judge(
            (closer == len(table), f"in {closer} of {len(table)} layers texts on one topic have closer sets"),
            (
                deep > shallow,
                f"a pair on one topic is closer than a pair on two {percent(shallow)} of the time in the "
                f"first third of the layers, {percent(deep)} in the last",
            ),
        ),
        "drawn": {},
    }


def area(x: Array, group: Array) -> float:  # (n,), (n,) bool -> in [0, 1]
    """Return how often a value of the group is larger than one outside it, ties counting half.

    That is the area under the ROC curve, by the rank sum.
    """
    n = int(group.sum())
    return float((ranks(x)[group].sum() - n * (n + 1) / 2) / (n * (len(x) - n)))


def fig11(material: Material, *, width: int = 200) -> dict[str, Any]:
    """What texts gather when sets are clustered: the clusters' topics and most central texts."""
    names, labels = topic_names(material), material.labels
    vectors = material.directions(material.layer)
    member = kmeans(vectors, len(names), material.seed)
    counts = np.array(
        [[((member == i) & (labels == name)).sum() for name in names] for i in range(len(names))]
    )
    order = np.lexsort((-counts.max(axis=1), counts.argmax(axis=1)))
    texts, counts = [central_text(material, vectors, member == i)[:width] for i in order], counts[order]
    table = [
        {
            "cluster": i,
            "texts": int(row.sum()),
            "topic": names[row.argmax()],
            "of it": float(row.max() / row.sum()),
            "most central text": text[:60],
        }
        for i, (row, text) in enumerate(zip(counts, texts, strict=True))
    ]
    purity, chance = counts.max(axis=1).sum() / len(labels), counts.sum(axis=0).max() / len(labels)
    clear = sum(row["of it"] > 0.5 for row in table)
    return {
        "table": table,
        "beside": [
            [
                "texts in a cluster led by their topic",
                "not given",
                f"{percent(purity)}, in one cluster {percent(chance)}",
            ],
            ["clusters mostly of one topic", "all shown", f"{clear} of {len(table)}"],
        ],
        **judge(
            (clear == len(table), f"{clear} of {len(table)} clusters are mostly of one topic"),
            (bool(purity > 0.5), f"{percent(purity)} of the texts lie in a cluster led by their topic"),
        ),
        "drawn": {"counts": counts.tolist(), "topics": names, "texts": texts, "layer": material.layer},
    }


def central_text(material: Material, vectors: Array, of: Array) -> str:  # (n_texts, d), (n_texts,) bool
    """Return the text whose vector is nearest to the mean of a cluster's, on one line."""
    assert material.model.tokenizer is not None
    at = np.flatnonzero(of)[(vectors[of] @ vectors[of].mean(axis=0)).argmax()]
    text = material.model.tokenizer.decode(material.labelled[at].ids.tolist(), skip_special=True)
    return " ".join(text.split())


def table1(
    material: Material, *, betas: Sequence[float] = (0.1, 0.2, 0.4), most: int | None = None
) -> dict[str, Any]:
    """Rank correlation of core-neuron similarity with human similarity, each file tested in turn.

    Fraction and layer are chosen on the other files (:func:`minicore.reproduce.sts.held_out`).
    """
    if len(material.pairs) < 2:
        raise InputError(
            "table1 needs two or more files of sentence pairs (--pairs): score, tab, sentence, tab, sentence"
        )
    sets = [sts.read_pairs(path, most) for path in material.pairs]
    if len({pairs.name for pairs in sets}) < len(sets):
        raise InputError("two files of pairs have the same name, expected different ones")
    layers = list(range(material.model.config.n_layers))
    sentences = [text for pairs in sets for text in (*pairs.first, *pairs.second)]
    frequency = sts.read_sentences(material.backend, sentences, ALPHA, layers, material.progress)
    nowhere = np.zeros((len(layers), material.model.config.n_neurons))
    alike = {pairs.name: sts.similarities(pairs, frequency, betas, nowhere) for pairs in sets}
    measures = [measure for measure in alike[sets[0].name] if measure.startswith("jaccard")]
    rho = {
        measure: {
            pairs.name: [spearman(column, pairs.scores) for column in alike[pairs.name][measure].T]
            for pairs in sets
        }
        for measure in measures
    }
    found = []
    for pairs in sets:
        others = [one for one in sets if one is not pairs]
        found.append(sts.held_out(measures, rho, [*others, pairs], alike[pairs.name], layers, material.seed))
    table = [
        {
            "file": pairs.name,
            "pairs": len(pairs.scores),
            "rho": one["test_rho"],
            "chosen on the others": f"{one['measure']}, layer {one['layer']}",
            "rho of words": spearman(sts.word_overlap(material.model, pairs), pairs.scores),
        }
        for pairs, one in zip(sets, found, strict=True)
    ]
    mean = float(np.mean([row["rho"][0] for row in table]))
    words = float(np.mean([row["rho of words"] for row in table]))
    measure, layer, first = found[0]["measure"], found[0]["layer"], sets[0].name
    return {
        "table": table,
        "beside": [
            ["rho, mean over the files", "STS-B .52 to .66, SICK .41 to .51", format_ratio(mean)],
            ["rho of the overlap of words", "not given", format_ratio(words)],
        ],
        **judge(
            (mean >= 0.41, f"rho is {format_ratio(mean)} on average, where the paper has .41 to .66"),
            (
                mean > words,
                f"core neurons have {format_ratio(mean)}, the overlap of words alone {format_ratio(words)}",
            ),
        ),
        "drawn": {
            "scores": sets[0].scores.tolist(),
            "core": alike[first][measure][:, layer].tolist(),
            "rho": table[0]["rho"],
            "what": f"{first}: {measure}, layer {layer}",
            "by_layer": {pairs.name: rho[measure][pairs.name] for pairs in sets},
            "measure": measure,
        },
    }
