"""Stage 7: what an exported model computes: core and dense perplexity with exact sets, clusters, stability.

python weights/train/evaluate.py --model weights/minicore-opt-core --data work
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from layout import from_hugging_face
from opt import ALPHA, OPT, core_counts, most_frequent, sentence_core
from tokenizers import Tokenizer
from torch import Tensor


@torch.no_grad()
def read(
    model: OPT, ids: Tensor, n_prompt: int = 0, cores: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Read one text once for each choice of cores, or once, densely.

    ids (T,); cores (n_choices, n_layers, n_neurons) bool: the neurons that tokens from n_prompt on see
    -> logits (n_choices, T, n_vocab), activations a layer (n_choices, T, n_neurons).
    """
    x = model.start(ids.expand(1 if cores is None else len(cores), -1))
    recorded = []
    for i, block in enumerate(model.blocks):
        x = block.attend(x)
        a = block.activate(x)
        recorded.append(a)
        if cores is not None:
            a = torch.cat([a[:, :n_prompt], a[:, n_prompt:] * cores[:, i, None]], 1)
        x = x + block.fc2(a)
    return model.logits(x), recorded


def perplexity_table(model: OPT, windows: Tensor, source: Tensor, n_prompt: int, betas: list[float]) -> dict:
    """Perplexity of the n_prompt tokens after a prompt of n_prompt, and what a fixed core set makes of it.

    {mix, prose, sampled: {dense: perplexity, beta: ratio, "oracle beta": ratio with the continuation's set}}
    """
    keys = [*map(str, betas), *(f"oracle {beta}" for beta in betas)]
    losses: dict[str, list[Tensor]] = {key: [] for key in ("dense", *keys)}
    active = []
    for ids in windows[:, : 2 * n_prompt]:
        logits, a = read(model, ids[:-1])
        active.append(np.mean([(layer > 0).float().mean().item() for layer in a]))
        counts = [[core_counts(part) for part in (layer[0, :n_prompt], layer[0, n_prompt:])] for layer in a]
        n_kept = [torch.tensor([int(beta * model.shape.n_neurons)], device=ids.device) for beta in betas]
        cores = torch.stack(
            [torch.cat([most_frequent(c[of][None], n) for c in counts]) for of in (0, 1) for n in n_kept]
        )
        rows = torch.cat([logits, read(model, ids[:-1], n_prompt, cores)[0]])[:, n_prompt - 1 :]
        for key, row in zip(losses, rows, strict=True):
            losses[key].append(F.cross_entropy(row, ids[n_prompt:], reduction="none"))
    result: dict = {"active": float(np.mean(active))}
    for name, rows in {"mix": source >= 0, "prose": source == 0, "sampled": source == 1}.items():
        means = {key: torch.stack(values)[rows].mean().exp().item() for key, values in losses.items()}
        result[name] = {"dense": means["dense"]} | {key: means[key] / means["dense"] for key in keys}
    return result


def topic_scores(rows: np.ndarray, labels: list[str], n_seeds: int = 3) -> list[float]:  # (n_texts, any)
    """Adjusted Rand index of k-means over the rows' directions against the labels, a seed each."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    x = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    x = x[:, x.std(0) > 0] - x[:, x.std(0) > 0].mean(0)
    found = [KMeans(len(set(labels)), n_init=20, random_state=i).fit_predict(x) for i in range(n_seeds)]
    return [round(float(adjusted_rand_score(labels, clusters)), 3) for clusters in found]


def core_rows(model: OPT, texts: list[list[int]], betas: tuple[float, ...], device: str) -> np.ndarray:
    """The texts' core sets as zeros and ones, (n_betas, n_layers, n_texts, n_neurons) float32."""
    counts = torch.stack(
        [
            torch.stack([core_counts(a[0]) for a in read(model, torch.tensor(ids, device=device))[1]])
            for ids in texts
        ],
        dim=1,
    )
    kept = [torch.full((len(texts),), int(beta * model.shape.n_neurons), device=device) for beta in betas]
    sets = torch.stack([torch.stack([most_frequent(layer, n) for layer in counts]) for n in kept])
    return sets.float().cpu().numpy()


def topics(model: OPT, documents: list[dict], tokenizer: Tokenizer, device: str) -> dict:
    """How well core sets alone tell the labels of texts, by beta and layer; and words alone (tf-idf)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    labels, texts = [d["label"] for d in documents], [d["text"] for d in documents]
    words = TfidfVectorizer(stop_words="english").fit_transform(texts).toarray()
    result: dict = {"texts": len(texts), "words": topic_scores(words, labels)}
    ids = [tokenizer.encode(text).ids[: model.shape.n_ctx] for text in texts]
    betas = (0.02, 0.1, 0.4)
    for beta, layers in zip(betas, core_rows(model, ids, betas, device), strict=True):
        result[f"beta {beta}"] = [topic_scores(rows, labels) for rows in layers]
    return result


def stability_curve(model: OPT, windows: Tensor, beta: float, lengths: list[int]) -> dict[int, float]:
    """Mean Jaccard of the cores of the first n and the first n + 32 tokens, over windows and layers."""
    curve: dict[int, list[float]] = {n: [] for n in lengths}
    for ids in windows:
        a = [layer[0] for layer in read(model, ids[:-1])[1]]
        for n in lengths:
            for layer in a:
                one, two = (sentence_core(layer[:m], ALPHA, beta) for m in (n, n + 32))
                curve[n].append(((one & two).sum() / (one | two).sum()).item())
    return {n: float(np.mean(values)) for n, values in curve.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.4, 0.3, 0.2, 0.1])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--windows", type=int, help="the first so many of every source only")
    parser.add_argument("--topics", type=Path, nargs="*", default=[], help="more labelled texts, JSON lines")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    model = from_hugging_face(args.model, args.device)
    windows = torch.from_numpy(np.load(args.data / "heldout.npy").astype(np.int64)).to(args.device)
    source = torch.from_numpy(np.load(args.data / "heldout.source.npy")).to(args.device)
    if args.windows:
        rows = torch.cat([(source == of).nonzero()[: args.windows, 0] for of in (0, 1)])
        windows, source = windows[rows], source[rows]
    result: dict = {}
    for n_prompt in (256, 128):
        key = f"prompt {n_prompt}, next {n_prompt}"
        result[key] = perplexity_table(model, windows, source, n_prompt, args.betas)
        print(key, json.dumps(result[key]), flush=True)
    result["stability"] = stability_curve(
        model, windows[::4], 0.2, [8, 16, 32, 64, 96, 128, 192, 256, 384, 448]
    )
    print("stability", result["stability"], flush=True)

    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    for path in (args.data / "topics.jsonl", *args.topics):
        documents = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        result[f"topics of {path}"] = topics(model, documents, tokenizer, args.device)
        print(path, json.dumps(result[f"topics of {path}"]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
