"""Figure 5: dense text and core text side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minicore.evaluation.agreement import agreement
from minicore.formatting import format_number, format_ratio
from minicore.reproduce.material import ALPHA, Material, nats
from minicore.reproduce.verdict import Findings, Row, findings, percent

Array = np.ndarray

# A text reads as dense text if it surprises the dense model little more, by a share of what text from random
# neurons adds, and repeats itself little more: a word that is repeated on and on soon surprises no model.
NEAR, VARIED = 0.25, 0.8


def measure(
    material: Material,
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    betas: Sequence[float] = (0.4, 0.2),
    n_texts: int = 8,
) -> Findings:
    """Measure how much the dense model is surprised by what core neurons write, and by what it writes."""
    documents = material.long_documents(prompt_tokens, n_texts)
    ways: dict[str, dict[str, Any]] = {
        "dense": {"predictor": "dense"},
        **{f"core {beta}": {"predictor": "stability", "beta": beta} for beta in betas},
        f"random {betas[0]}": {"predictor": "random", "beta": betas[0], "seed": material.seed},
    }
    written: dict[str, list[Row]] = {name: [] for name in ways}
    for document in material.bar(documents, "texts"):
        for name, options in ways.items():
            written[name].append(write_on(material, document.ids, new_tokens, options))
    table = [table_row(name, texts, written["dense"]) for name, texts in written.items()]
    surprise = {row["neurons"]: row["surprise (nats a token)"] for row in table}
    words = {row["neurons"]: row["distinct words"] for row in table}
    dense, core, chance = (surprise[name] for name in ("dense", f"core {betas[0]}", f"random {betas[0]}"))
    return findings(
        table=table,
        compared=[
            (
                f"surprise of the dense model by core {betas[0]}'s text",
                "reads as dense",
                f"{format_ratio(core)} nats per token, {format_ratio(dense)} by its own text",
            ),
            (
                f"tokens before core {betas[0]} diverges from dense",
                "not given",
                f"{format_number(table[1]['tokens before it parts from dense'])} of {new_tokens}",
            ),
        ],
        checks=[
            (
                core < dense + NEAR * (chance - dense),
                f"text written by {percent(betas[0])} of the neurons surprises the dense model by "
                f"{format_ratio(core)} nats per token, its own text by {format_ratio(dense)}, text from as "
                f"many random neurons by {format_ratio(chance)}",
            ),
            (
                words[f"core {betas[0]}"] > VARIED * words["dense"],
                f"{percent(words[f'core {betas[0]}'])} of its words are distinct, of the dense text's "
                f"{percent(words['dense'])}",
            ),
        ],
        drawn={
            "prompt": tail(material, documents[0].ids),
            "ways": [
                {"neurons": name, "pieces": texts[0]["pieces"], "nats": texts[0]["nats"]}
                for name, texts in written.items()
            ],
        },
    )


def table_row(name: str, texts: Sequence[Row], dense: Sequence[Row]) -> Row:
    """Return the means over one way's texts."""
    prefixes = [agreement(one["ids"], other["ids"])[0] for one, other in zip(dense, texts, strict=True)]
    return {
        "neurons": name,
        "surprise (nats a token)": float(np.mean(np.concatenate([one["nats"] for one in texts]))),
        "distinct words": float(np.mean([one["distinct"] for one in texts])),
        "tokens before it parts from dense": float(np.mean(prefixes)),
    }


def write_on(material: Material, ids: Array, n: int, options: Mapping[str, Any]) -> Row:
    """Continue a text greedily; return the tokens, their text, and what each costs the dense model."""
    tokenizer = material.model.tokenizer
    assert tokenizer is not None
    out = material.model.generate(
        ids.tolist(), max_new_tokens=n, alpha=ALPHA, ignore_eos=True, temperature=0.0, **options
    )
    words = out.text.lower().split()
    stream = tokenizer.stream()
    cost = nats(material.backend, np.concatenate([ids, out.token_ids]))
    return {
        "ids": out.token_ids,
        "pieces": [stream.push(token) for token in out.token_ids],
        "nats": cost[-len(out.token_ids) :].tolist(),
        "distinct": len(set(words)) / max(len(words), 1),
    }


def tail(material: Material, ids: Array, width: int = 150) -> str:
    """Return the end of a text on one line."""
    assert material.model.tokenizer is not None
    text = " ".join(material.model.tokenizer.decode(ids.tolist(), skip_special=True).split())
    return text if len(text) <= width else "... " + text[-width:].partition(" ")[2]
