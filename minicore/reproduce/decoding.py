"""Decoding with core neurons: its text, its quality and its speed (figs. 5 and 6, tables 2, 3 and 4).

Each function measures one figure of CoreInfer (2410.18311) on a :class:`Material` and returns its numbers;
:mod:`minicore.reproduce.runner` says what these have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minicore.evaluation.agreement import agreement
from minicore.evaluation.quality import Row
from minicore.formatting import format_number, format_ratio
from minicore.reproduce.material import ALPHA, Material, nats
from minicore.reproduce.settling import SMALL, nearest
from minicore.reproduce.verdict import judge, percent

# A prompt that has settled, as the paper's few-shot ones, and one that has not, as its zero-shot ones.
SETTLED, SHORT = 256, 16

# Text reads as dense if it surprises the whole model little more, a share of what random neurons' text does,
# and does not repeat itself more: the same word over and over soon surprises nobody.
NEAR, VARIED = 0.25, 0.8


def fig5(
    material: Material,
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    betas: Sequence[float] = (0.4, 0.2),
    n_texts: int = 8,
) -> dict[str, Any]:
    """What a prompt's core neurons write, beside what all write: how surprised the whole model is by it."""
    documents = material.long(prompt_tokens, n_texts)
    ways: list[tuple[str, dict[str, Any]]] = [("dense", {"predictor": "dense"})]
    ways += [(f"core {beta}", {"predictor": "stability", "beta": beta}) for beta in betas]
    ways.append((f"random {betas[0]}", {"predictor": "random", "beta": betas[0], "seed": material.seed}))
    texts: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in ways}
    for document in material.bar(documents, "texts"):
        for name, how in ways:
            texts[name].append(write_on(material, document.ids, new_tokens, how))
    table: list[dict[str, Any]] = []
    for name, written in texts.items():
        same = [
            agreement(one["ids"], other["ids"]) for one, other in zip(texts["dense"], written, strict=True)
        ]
        table.append(
            {
                "neurons": name,
                "surprise (nats a token)": float(np.mean(np.concatenate([one["nats"] for one in written]))),
                "distinct words": float(np.mean([one["distinct"] for one in written])),
                "tokens before it parts from dense": float(np.mean([prefix for prefix, _ in same])),
            }
        )
    surprise = {row["neurons"]: row["surprise (nats a token)"] for row in table}
    words = {row["neurons"]: row["distinct words"] for row in table}
    core, chance = surprise[f"core {betas[0]}"], surprise[f"random {betas[0]}"]
    near = surprise["dense"] + NEAR * (chance - surprise["dense"])
    told = f"{format_ratio(surprise['dense'])} of its own text"
    return {
        "table": table,
        "beside": [
            [
                f"surprise of the whole model at core {betas[0]}",
                "reads as dense",
                f"{format_ratio(core)} nats a token, {told}",
            ],
            [
                f"tokens before core {betas[0]} parts from dense",
                "not given",
                f"{format_number(table[1]['tokens before it parts from dense'])} of {new_tokens}",
            ],
        ],
        **judge(
            (
                core < near,
                f"what {percent(betas[0])} of the neurons write surprises the whole model by "
                f"{format_ratio(core)} nats a token, its own text by {format_ratio(surprise['dense'])}, that "
                f"of as many random neurons by {format_ratio(chance)}",
            ),
            (
                words[f"core {betas[0]}"] > VARIED * words["dense"],
                f"{percent(words[f'core {betas[0]}'])} of its words are different ones, of the dense text's "
                f"{percent(words['dense'])}",
            ),
        ),
        "drawn": {
            "prompt": tail(material, documents[0].ids),
            "ways": [
                {"neurons": name, "pieces": written[0]["pieces"], "nats": written[0]["nats"]}
                for name, written in texts.items()
            ],
        },
    }


def write_on(material: Material, ids: np.ndarray, n: int, how: dict[str, Any]) -> dict[str, Any]:
    """Continue a text greedily and return the tokens, their text, and what they cost the whole model."""
    tokenizer = material.model.tokenizer
    assert tokenizer is not None
    out = material.model.generate(
        ids.tolist(), max_new_tokens=n, alpha=ALPHA, ignore_eos=True, temperature=0.0, **how
    )
    words = out.text.lower().split()
    stream = tokenizer.stream()
    return {
        "ids": out.token_ids,
        "pieces": [stream.push(token) for token in out.token_ids],
        "nats": nats(material.backend, np.concatenate([ids, out.token_ids]))[-len(out.token_ids) :].tolist(),
        "distinct": len(set(words)) / max(len(words), 1),
    }


def tail(material: Material, ids: np.ndarray, width: int = 150) -> str:
    """Return the end of a text on one line."""
    assert material.model.tokenizer is not None
    text = " ".join(material.model.tokenizer.decode(ids.tolist(), skip_special=True).split())
    return text if len(text) <= width else "... " + text[-width:].partition(" ")[2]


def fig6(
    material: Material,
    *,
    betas: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8),
    n_tokens: int = 384,
    n_texts: int = 16,
) -> dict[str, Any]:
    """Perplexity over dense against beta (the prompt's own set) and gamma (its cluster's)."""
    documents = material.long(n_tokens, n_texts)
    rows = material.study(documents, ["stability", "similarity"], betas, SETTLED)
    table = [line(row, "ratio", "agreement", "recall") for row in rows]
    at = {(row["predictor"], row["beta"]): row["ratio"][0] for row in rows}
    usual, small = nearest(betas, 0.4), nearest(betas, 0.2)
    own, cluster = at["stability", usual], at["similarity", usual]
    return {
        "table": table,
        "beside": [
            [f"ratio to dense at beta {usual}", "near 1 from 0.4 on", format_ratio(own)],
            [
                f"ratio to dense at beta {small}",
                "near 1 from 0.2 on for extraction and QA",
                format_ratio(at["stability", small]),
            ],
            [f"ratio to dense at gamma {usual}", "near 1 from 0.4 on", format_ratio(cluster)],
        ],
        **judge(
            (
                own < SMALL,
                f"the prompt's own set at beta {usual} costs {format_ratio(own)} times the dense perplexity",
            ),
            (
                at["stability", small] < SMALL,
                f"at beta {small} it costs {format_ratio(at['stability', small])} times",
            ),
            (cluster < SMALL, f"a cluster's set at gamma {usual} costs {format_ratio(cluster)} times"),
        ),
        "drawn": {"rows": rows},
    }


def line(row: Row, *measures: str) -> dict[str, Any]:
    """Return a row of a study as a row of a table."""
    return {"predictor": row["predictor"], "beta": row["beta"], "kept": row["kept"][0]} | {
        name: row[name] for name in measures
    }


def table2(
    material: Material,
    *,
    betas: Sequence[float] = (0.2, 0.4),
    scored: int = 96,
    n_generated: int = 32,
    n_texts: int = 16,
) -> dict[str, Any]:
    """Quality after long and after short prompts: perplexity over dense, and greedy agreement with it."""
    table, rows = [], {}
    for name, prompt in (("settled prompt", SETTLED), ("short prompt", SHORT)):
        documents = material.long(prompt + 1 + scored, n_texts)
        predictors = ["stability", "similarity", "griffin"]
        rows[name] = material.study(documents, predictors, betas, prompt, n_generated)
        for row in rows[name]:
            table.append(
                {"prompt": f"{name} ({prompt})"} | line(row, "ratio", "kl", "agreement", "common_prefix")
            )
    best = {
        name: next(row for row in of if row["predictor"] == predictor and row["beta"] == max(betas))
        for (name, of), predictor in zip(rows.items(), ("stability", "similarity"), strict=True)
    }
    settled, short = best["settled prompt"]["ratio"][0], best["short prompt"]["ratio"][0]
    prefix = best["settled prompt"]["common_prefix"][0]
    return {
        "table": table,
        "beside": [
            [
                f"settled prompt, stability at {max(betas)}: ratio to dense",
                "few-shot scores 6.7->6.3, 52.1->53.2, 34.9->32.8, 30.4->27.9 (OPT-6.7B)",
                format_ratio(settled),
            ],
            [
                f"short prompt, similarity at {max(betas)}: ratio to dense",
                "zero-shot scores 7.88->9.12, 21.2->21.8, 28.7->26.3, 29.0->27.8 (OPT-6.7B)",
                format_ratio(short),
            ],
            ["greedy tokens as dense", "not given", f"{format_number(prefix)} of {n_generated}"],
        ],
        **judge(
            (
                settled < SMALL,
                f"after a settled prompt its own set of {percent(max(betas))} costs "
                f"{format_ratio(settled)} times the dense perplexity",
            ),
            (short < SMALL, f"after a short one a cluster's set costs {format_ratio(short)} times"),
        ),
        "drawn": {"rows": rows},
    }


def table3(
    material: Material,
    *,
    dtypes: Sequence[str] = ("float32", "int8"),
    betas: Sequence[float] = (0.4, 0.2),
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    rounds: int = 5,
) -> dict[str, Any]:
    """Decode speed with and without core neurons on this machine, and what a token reads."""
    from minicore import bench

    plan = bench.Plan(
        dtypes=tuple(dtypes),
        betas=tuple(betas),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
    )
    found = bench.measure(material.model.source, plan, progress=material.progress)
    table = [
        {
            "format": row["dtype"],
            "threads": row["n_threads"],
            "neurons": "all" if row["beta"] is None else f"core {row['beta']}",
            "tokens/s": quartiles(row["tokens_per_s"]),
            "over dense": quartiles(row["to_dense"]),
            "MB a token": row["bytes_per_token"] / 1e6,
        }
        for row in found["decode"]
    ]
    gains = {
        row["neurons"]: row["over dense"]
        for row in table
        if row["threads"] == 1 and row["format"] == dtypes[0]
    }
    gain = gains[f"core {betas[0]}"][0]
    best = max(row["over dense"][0] for row in table)
    choosing = next(row for row in found["prefill"] if row["beta"] is not None)["to_dense"]["median"]
    cpu = found["machine"]["cpu"]
    return {
        "table": table,
        "beside": [
            [
                f"core {betas[0]} over dense, {dtypes[0]}, one thread",
                "1.4 to 1.65 where the model fits in memory",
                format_ratio(gain),
            ],
            ["largest of all settings", "10.33 where the other engine offloads", format_ratio(best)],
            ["prefill that chooses neurons, its speed over prefill alone", "no cost", format_ratio(choosing)],
        ],
        **judge(
            (
                1.4 <= gain,
                f"on this machine ({cpu}) {percent(betas[0])} of the neurons decode "
                f"{format_ratio(gain)} times as fast as all of them",
            ),
            (best >= 1.4, f"the largest gain of all settings is {format_ratio(best)}"),
        ),
        "drawn": {"machine": cpu, "load_average": found["load_average"]},
    }


def quartiles(speed: dict[str, Any]) -> tuple[float, float, float]:
    """Return a median with its quartiles."""
    return speed["median"], speed["q1"], speed["q3"]


def table4(
    material: Material, *, beta: float = 0.4, scored: int = 48, n_texts: int = 64, n_generated: int = 16
) -> dict[str, Any]:
    """Short prompts, decoded with the prompt's own set all the same, or with their cluster's."""
    documents = material.long(SHORT + 1 + scored, n_texts)
    predictors = ["stability", "similarity"]
    rows = material.study(documents, predictors, [beta], SHORT, n_generated)
    table = [line(row, "ratio", "kl", "agreement", "recall", "common_prefix") for row in rows]
    forced, guided = rows[0]["ratio"], rows[1]["ratio"]
    apart = forced[1] > guided[2] or guided[1] > forced[2]
    return {
        "table": table,
        "beside": [
            [
                "stability-guided forced on short prompts",
                "7.88->6.22, 21.2->12.0, 28.7->12.2, 29.0->3.36 (scores, dense to core)",
                f"{format_ratio(forced[0])} times the dense perplexity",
            ],
            [
                "similarity-guided",
                "7.88->9.12, 21.2->21.8, 28.7->26.3, 29.0->27.8",
                f"{format_ratio(guided[0])} times",
            ],
        ],
        **judge(
            (
                forced[0] > guided[0] and apart,
                f"after {SHORT} tokens the prompt's own set costs {format_ratio(forced[0])} times the dense "
                f"perplexity, its cluster's {format_ratio(guided[0])} times"
                + ("" if apart else " (the intervals overlap)"),
            ),
        ),
        "drawn": {},
    }
