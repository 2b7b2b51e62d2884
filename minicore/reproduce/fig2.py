"""Figure 2: what alpha and beta cost, and the sets of tokens in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from minicore.backends import Backend
from minicore.bootstrap import bootstrap, exp_mean
from minicore.core.neurons import token_core
from minicore.evaluation.stability import counts_at
from minicore.formatting import format_ratio
from minicore.generation.prediction import make_recorder, recorder_hooks
from minicore.projection import project
from minicore.reproduce.material import ALPHA, Document, Material, nats
from minicore.reproduce.verdict import SMALL_LOSS, Findings, Row, findings, nearest, percent

Array = np.ndarray

NEIGHBOURS = 10  # sets looked at around each token's


def measure(
    material: Material,
    *,
    alphas: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8),
    betas: Sequence[float] = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8),
    n_tokens: int = 256,
    n_texts: int = 16,
    n_projected: int = 50,
    tokens_each: int = 16,
) -> Findings:
    """Measure perplexity when each token keeps its own core, or each text its core; project tokens' sets."""
    documents = material.long_documents(n_tokens, n_texts)
    lost = [read_restricted(material.backend, one, alphas, betas) for one in material.bar(documents, "texts")]
    table: list[Row] = []
    for kind, kept in lost[0]:
        means = np.array([of_text[kind, kept].mean() for of_text in lost])
        table.append({"kept by": kind, "fraction": kept, "ratio to dense": bootstrap(means, exp_mean)})
    ratio = {(row["kept by"], row["fraction"]): row["ratio to dense"][0] for row in table}
    alpha, beta = nearest(alphas, 0.4), nearest(betas, 0.4)
    token, text = ratio["alpha", alpha], ratio["beta", beta]
    drawn, own, chance = token_sets(material, n_projected, tokens_each)
    return findings(
        table=table,
        compared=[
            (f"perplexity at alpha {alpha} / dense", "hardly above 1", format_ratio(token)),
            (f"perplexity at beta {beta} (alpha {ALPHA}) / dense", "hardly above 1", format_ratio(text)),
            (
                "nearest sets from the same text",
                "sets gather by text",
                f"{percent(own)}, by chance {percent(chance)}",
            ),
        ],
        checks=[
            (
                token < SMALL_LOSS,
                f"with each token's own set at alpha {alpha} perplexity is {format_ratio(token)} times dense",
            ),
            (
                text < SMALL_LOSS,
                f"with each text's own set at beta {beta} it is {format_ratio(text)} times dense",
            ),
            (
                own > 2 * chance,
                f"{percent(own)} of a token's {NEIGHBOURS} nearest sets come from its own text",
            ),
        ],
        drawn=drawn,
    )


def read_restricted(
    backend: Backend, document: Document, alphas: Sequence[float], betas: Sequence[float]
) -> dict[tuple[str, float], Array]:  # -> (what is kept, fraction) -> (n_tokens - 1,)
    """Return the nats lost per token when every token keeps its own core, or that of the whole text."""
    recorder = make_recorder(backend.model, "stability", ALPHA)
    recorder.start(len(document.ids) - 1)
    dense = nats(backend, document.ids, recorder_hooks(recorder))
    names = [f"blocks.{layer}.mlp.hook_post" for layer in range(backend.model.config.n_layers)]
    lost = {}
    for alpha in alphas:
        hooks = dict.fromkeys(names, partial(keep_core, alpha))
        lost["alpha", alpha] = nats(backend, document.ids, hooks) - dense
    for beta in betas:
        lost["beta", beta] = nats(backend.restrict(recorder.core(beta)), document.ids) - dense
    return lost


def keep_core(alpha: float, a: Array) -> None:  # (n_tokens, n_neurons)
    """Set the activations outside each token's core to zero."""
    a[~token_core(a, alpha)] = 0


def token_sets(material: Material, n_texts: int, tokens_each: int) -> tuple[Row, float, float]:
    """Return tokens' sets in the plane, the share of nearest sets from the same text, and that by chance."""
    documents = material.long_documents(tokens_each + 8, n_texts)
    cores: list[Array] = []

    def add(a: Array) -> None:
        cores.append(token_core(a, ALPHA)[-tokens_each:])

    hooks = {f"blocks.{material.layer}.mlp.hook_post": add}
    for document in documents:
        counts_at(material.backend, document.ids, [material.layer], ALPHA, [], hooks)
    sets = np.concatenate(cores).astype(np.float32)  # (n_texts * tokens_each, n_neurons)
    sets /= np.sqrt(np.maximum(sets.sum(axis=1, keepdims=True), 1))
    text = np.repeat(np.arange(len(documents)), tokens_each)
    similarity = sets @ sets.T
    np.fill_diagonal(similarity, -1)
    near = np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS]
    own = float((text[near] == text[:, None]).mean())
    drawn = {
        "points": project(sets, "tsne", material.seed).tolist(),
        "labels": [document.label or "texts" for document in documents for _ in range(tokens_each)],
        "layer": material.layer,
        "n_texts": len(documents),
    }
    return drawn, own, (tokens_each - 1) / (len(sets) - 1)
