"""Table 1: core-neuron similarity against human similarity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minicore.bootstrap import spearman
from minicore.errors import InputError
from minicore.formatting import format_ratio
from minicore.reproduce import sts
from minicore.reproduce.material import ALPHA, Material
from minicore.reproduce.verdict import Findings, findings


def measure(
    material: Material, *, betas: Sequence[float] = (0.1, 0.2, 0.4), most: int | None = None
) -> Findings:
    """Correlate core-neuron similarity with human similarity, testing each file in turn.

    Beta and layer are chosen on the other files (:func:`minicore.reproduce.sts.held_out`).
    """
    if len(material.pairs) < 2:
        raise InputError(
            "table1 needs two or more files of sentence pairs (--pairs): score, tab, sentence, tab, sentence"
        )
    sets = sts.read_files(material.pairs, most)
    layers = list(range(material.model.config.n_layers))
    sentences = [text for pairs in sets for text in (*pairs.first, *pairs.second)]
    frequency = sts.read_sentences(material.backend, sentences, ALPHA, layers, material.progress)
    no_centre = np.zeros((len(layers), material.model.config.n_neurons))
    similarity = {pairs.name: sts.similarities(pairs, frequency, betas, no_centre) for pairs in sets}
    measures = [name for name in similarity[sets[0].name] if name.startswith("jaccard")]
    rho = {
        measure: {pairs.name: sts.correlations(similarity[pairs.name][measure], pairs) for pairs in sets}
        for measure in measures
    }
    found = []
    for pairs in sets:
        others = [one for one in sets if one is not pairs]
        tested = similarity[pairs.name]
        found.append(sts.held_out(measures, rho, [*others, pairs], tested, layers, material.seed))
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
    return findings(
        table=table,
        compared=[
            ("rho, mean over the files", "STS-B .52 to .66, SICK .41 to .51", format_ratio(mean)),
            ("rho of the word overlap", "not given", format_ratio(words)),
        ],
        checks=[
            (mean >= 0.41, f"rho is {format_ratio(mean)} on average, where the paper has .41 to .66"),
            (
                mean > words,
                f"core neurons have a rho of {format_ratio(mean)}, the word overlap of {format_ratio(words)}",
            ),
        ],
        drawn={
            "scores": sets[0].scores.tolist(),
            "core": similarity[first][measure][:, layer].tolist(),
            "rho": table[0]["rho"],
            "what": f"{first}: {measure}, layer {layer}",
            "by_layer": {pairs.name: rho[measure][pairs.name] for pairs in sets},
            "measure": measure,
        },
    )
