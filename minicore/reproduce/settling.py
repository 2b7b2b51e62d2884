"""Core neurons of one text: what keeping them costs, and how they settle as it grows (figs. 2, 3, 8, 12).

Each function measures one figure of CoreInfer (2410.18311) on a :class:`Material` and returns its numbers;
:mod:`minicore.reproduce.runner` says what these have in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from minicore.backends import Backend
from minicore.bootstrap import bootstrap, exp_mean, spearman
from minicore.core.neurons import core_from_scores, jaccard, token_core
from minicore.evaluation.stability import counts_at
from minicore.formatting import format_ratio
from minicore.generation.prediction import make_recorder, recorder_hooks
from minicore.reproduce.material import ALPHA, BETA, Document, Material, nats
from minicore.reproduce.verdict import judge, percent

Array = np.ndarray

SMALL, ALIKE = 1.1, 0.8  # a perplexity this far over dense is little lost; sets this alike hardly differ


# --- fig. 2: what the two fractions cost, and what a token's set looks like ---


def fig2(
    material: Material,
    *,
    alphas: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8),
    betas: Sequence[float] = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8),
    n_tokens: int = 256,
    n_texts: int = 16,
    n_projected: int = 50,
    tokens_each: int = 16,
) -> dict[str, Any]:
    """Perplexity of texts read with each token's own core, and with the text's; tokens' sets in the plane."""
    documents = material.long(n_tokens, n_texts)
    table: list[dict[str, Any]] = []
    by_text = [
        read_restricted(material.backend, one, alphas, betas) for one in material.bar(documents, "texts")
    ]
    for kind, kept in by_text[0]:
        more = np.array([costs[kind, kept].mean() for costs in by_text])
        table.append({"kept by": kind, "fraction": kept, "ratio to dense": bootstrap(more, exp_mean)})
    at = {(row["kept by"], row["fraction"]): row["ratio to dense"][0] for row in table}
    alpha, beta = nearest(alphas, 0.4), nearest(betas, 0.4)
    token, text = at["alpha", alpha], at["beta", beta]
    drawn, own, chance = token_sets(material, n_projected, tokens_each)
    return {
        "table": table,
        "beside": [
            [f"perplexity at alpha {alpha}, over dense", "hardly above 1", format_ratio(token)],
            [f"perplexity at beta {beta} (alpha {ALPHA}), over dense", "hardly above 1", format_ratio(text)],
            ["nearest sets of the same text", "they gather", f"{percent(own)}, by chance {percent(chance)}"],
        ],
        **judge(
            (
                token < SMALL,
                f"tokens' own sets at alpha {alpha} cost {format_ratio(token)} times the dense perplexity",
            ),
            (text < SMALL, f"texts' own sets at beta {beta} cost {format_ratio(text)} times"),
            (own > 2 * chance, f"{percent(own)} of a token's 10 nearest sets are of its own text"),
        ),
        "drawn": drawn,
    }


def read_restricted(
    backend: Backend, document: Document, alphas: Sequence[float], betas: Sequence[float]
) -> dict[tuple[str, float], Array]:  # -> (what is kept, fraction) -> (n_tokens - 1,)
    """Return the nats lost when every token keeps its own core, or that of the whole text."""
    recorder = make_recorder(backend.model, "stability", ALPHA)
    recorder.start(len(document.ids) - 1)
    dense = nats(backend, document.ids, recorder_hooks(recorder))
    lost = {}
    for alpha in alphas:

        def keep_core(name: str, a: Array, alpha: float = alpha) -> None:
            if name.endswith("mlp.hook_post"):
                a[~token_core(a, alpha)] = 0

        lost["alpha", alpha] = nats(backend, document.ids, keep_core) - dense
    for beta in betas:
        lost["beta", beta] = nats(backend.restrict(recorder.core(beta)), document.ids) - dense
    return lost


def token_sets(material: Material, n_texts: int, tokens_each: int) -> tuple[dict[str, Any], float, float]:
    """Return tokens' sets in the plane, the share of the 10 nearest that are of their text, and chance's."""
    from minicore.projection import project

    documents = material.long(tokens_each + 8, n_texts)
    cores: list[Array] = []

    def add(a: Array) -> None:
        cores.append(token_core(a, ALPHA)[-tokens_each:])

    hooks = {f"blocks.{material.layer}.mlp.hook_post": add}
    for document in documents:
        counts_at(material.backend, document.ids, [material.layer], ALPHA, [], hooks)
    sets = np.concatenate(cores).astype(np.float32)
    sets /= np.sqrt(np.maximum(sets.sum(axis=1, keepdims=True), 1))
    text = np.repeat(np.arange(len(documents)), tokens_each)
    alike = sets @ sets.T
    np.fill_diagonal(alike, -1)
    near = np.argsort(-alike, axis=1, kind="stable")[:, :10]
    own = float((text[near] == text[:, None]).mean())
    labels = [document.label or "texts" for document in documents for _ in range(tokens_each)]
    points = project(sets, "tsne", material.seed)
    drawn = {"points": points.tolist(), "labels": labels, "layer": material.layer, "n_texts": len(documents)}
    return drawn, own, (tokens_each - 1) / (len(sets) - 1)


def nearest(values: Sequence[float], wanted: float) -> float:
    """Return the value nearest to one."""
    return min(values, key=lambda value: abs(value - wanted))


# --- figs. 3 and 8: sets of a growing text ---


def fig3(
    material: Material,
    *,
    bases: Sequence[int] = (8, 64, 256),
    added: Sequence[int] = (4, 8, 16, 32, 64, 128),
    lengths: Sequence[int] = (10, 50, 100, 200, 300),
    step: int = 8,
    n_texts: int = 16,
) -> dict[str, Any]:
    """How meaning and core of a text change as tokens are added; one text's coordinates and frequencies."""
    from minicore.projection import project

    n_tokens = max(max(bases) + max(added), *lengths)
    documents = material.long(n_tokens, n_texts)
    grown = sorted({base + more for base in bases for more in (0, *added)} | set(lengths))
    read = read_growing(material, documents, [*grown, *range(step, n_tokens + 1, step)])
    table: list[dict[str, Any]] = []
    points = []
    for base in bases:
        for more in added:
            core = [alike(material, counts[base], counts[base + more]) for counts, _ in read]
            meaning = [cosine(vectors[base], vectors[base + more]) for _, vectors in read]
            points.append((meaning, core))
            row = {"base": base, "added": more, "meaning": bootstrap(np.array(meaning))}
            table.append(row | {"core": bootstrap(np.array(core))})
    rho = bootstrap(np.array([spearman(*of_text) for of_text in np.array(points).transpose(2, 1, 0)]))
    at = {(row["base"], row["added"]): row["core"][0] for row in table}
    early, late = ([alike(material, c[a], c[b]) for c, _ in read] for a, b in (lengths[:2], lengths[-2:]))
    first, last = float(np.mean(early)), float(np.mean(late))
    usual = nearest(added, 32)
    same = [at[base, usual] for base in bases]
    counts, marks = read[0][0], list(range(step, n_tokens + 1, step))
    path = np.stack([core_mask(counts[n][material.layer]) for n in marks])
    a, b = lengths[-2:]
    return {
        "table": table,
        "beside": [
            [
                f"likeness of the sets of {lengths[0]} and {lengths[1]} tokens",
                "still move below 100",
                format_ratio(first),
            ],
            [f"likeness of the sets of {a} and {b} tokens", "hardly move at 200 to 300", format_ratio(last)],
            ["core and meaning change together, rho", "as little as the meaning", f"{rho[0]:.2f}"],
        ],
        **judge(
            (
                same == sorted(same),
                f"after {usual} more tokens the likeness to the set of {', '.join(map(str, bases))} is "
                f"{', '.join(format_ratio(one) for one in same)}",
            ),
            (last > ALIKE, f"the sets of {a} and {b} tokens have a likeness of {format_ratio(last)}"),
            (rho[1] > 0.5, f"core and meaning change with a rank correlation of {rho[0]:.2f}"),
        ),
        "drawn": {
            "lengths": list(lengths),
            "counts": [counts[n][material.layer].tolist() for n in lengths],
            "marks": marks,
            "points": project(path, "pca").tolist(),
            "layer": material.layer,
        },
    }


def fig8(material: Material, *, step: int = 32, longest: int = 384, n_texts: int = 16) -> dict[str, Any]:
    """How alike a text's sets are before and after 32 more tokens, layer by layer."""
    documents, lengths = material.long(longest, n_texts), list(range(step, longest + 1, step))
    read = read_growing(material, documents, [step // 4, *lengths])
    marks = [step // 4, *lengths]
    curves = np.mean(  # (n_layers, n_steps)
        [
            [by_layer(material, counts[a], counts[b]) for a, b in zip(marks, marks[1:], strict=False)]
            for counts, _ in read
        ],
        axis=0,
    ).T
    table = [
        {"layer": layer, **{f"{n} tokens": float(value) for n, value in zip(lengths, row, strict=True)}}
        for layer, row in enumerate(curves)
    ]
    settled, calmer = curves[:, -1], int((curves[:, -1] > curves[:, 0]).sum())
    return {
        "table": table,
        "beside": [
            ["layers whose set settles", "all", f"{calmer} of {len(curves)}"],
            [
                f"likeness at {longest} tokens",
                "figure only",
                f"{format_ratio(settled.min())} to {format_ratio(settled.max())}",
            ],
        ],
        **judge(
            (calmer == len(curves), f"in {calmer} of {len(curves)} layers the set changes less in the end"),
            (
                bool((settled > ALIKE).all()),
                f"at {longest} tokens the likeness to the set {step} before is "
                f"{format_ratio(settled.min())} or more",
            ),
        ),
        "drawn": {"lengths": lengths, "curves": curves.tolist()},
    }


def fig12(material: Material, *, n_tokens: int = 300, n_texts: int = 8) -> dict[str, Any]:
    """How often each neuron of whole layers is a token's core neuron."""
    documents = material.long(n_tokens, n_texts)
    read = [counts[n_tokens] for counts, _ in read_growing(material, documents, [n_tokens])]
    table = []
    for layer in range(material.model.config.n_layers):
        counts = np.sort(np.stack([one[layer] for one in read]), axis=1)[:, ::-1]
        total = np.maximum(counts.sum(axis=1), 1)
        row: dict[str, Any] = {"layer": layer, "never core": bootstrap((counts == 0).mean(axis=1))}
        for beta in (0.1, 0.2, 0.4):
            held_by = counts[:, : int(beta * counts.shape[1])].sum(axis=1) / total
            row[f"held by the top {percent(beta)}"] = bootstrap(held_by)
        table.append(row)
    held = np.array([row["held by the top 40%"][0] for row in table])
    never = np.array([row["never core"][0] for row in table])
    return {
        "table": table,
        "beside": [
            ["memberships in tokens' cores that the top 40% hold", "figure only", between(held)],
            ["neurons that are never core", "figure only", between(never)],
        ],
        **judge(
            (
                bool(held.min() > 0.6),
                f"the 40% most frequent neurons of a layer hold {between(held)} of the memberships in "
                f"tokens' cores, and {between(never)} of all are never core",
            ),
        ),
        "drawn": {
            "layers": material.three_layers,
            "counts": [read[0][layer].tolist() for layer in material.three_layers],
            "n_tokens": n_tokens,
        },
    }


def between(shares: Array) -> str:
    """Return the smallest and the largest of some shares."""
    return f"{percent(shares.min())} to {percent(shares.max())}"


def read_growing(
    material: Material, documents: Sequence[Document], lengths: Iterable[int]
) -> list[tuple[dict[int, Array], dict[int, Array]]]:
    """Return each text's counts (n_layers, n_neurons) and meaning (d_model,) by length.

    Meaning is the mean over tokens of the residual stream after the middle block, less the mean of that
    over the texts at the same length: what all texts share, positions included, has no meaning. The first
    token, where models park what has no place elsewhere, is left out.
    """
    layers, wanted = range(material.model.config.n_layers), sorted(set(lengths))
    hook = f"blocks.{len(layers) // 2}.hook_resid_post"
    counts, vectors = [], []
    for document in material.bar(documents, "texts"):
        chunks: list[Array] = []

        def add(x: Array, chunks: list[Array] = chunks) -> None:
            chunks.append(x.copy())

        counts.append(counts_at(material.backend, document.ids, list(layers), ALPHA, wanted, {hook: add}))
        running = np.cumsum(np.concatenate(chunks)[1:], axis=0, dtype=np.float64)
        vectors.append({n: running[n - 2] / (n - 1) for n in wanted if n > 1})
    centre = {n: np.mean([one[n] for one in vectors], axis=0) for n in vectors[0]}
    meaning = [{n: vector - centre[n] for n, vector in one.items()} for one in vectors]
    return list(zip(counts, meaning, strict=True))


def by_layer(material: Material, a: Array, b: Array) -> list[float]:  # (n_layers, n_neurons) twice
    """Return the similarity of two counts' cores in each layer."""
    return [jaccard(one, other) for one, other in zip(material.sets(a), material.sets(b), strict=True)]


def alike(material: Material, a: Array, b: Array) -> float:
    """Return the mean of that over layers."""
    return float(np.mean(by_layer(material, a, b)))


def cosine(a: Array, b: Array) -> float:
    """Return the cosine of two vectors."""
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12))


def core_mask(counts: Array) -> Array:  # (n_neurons,) -> float (n_neurons,)
    """Return one layer's core as a vector of 0 and 1."""
    return np.isin(np.arange(len(counts)), core_from_scores(counts, BETA)).astype(float)
