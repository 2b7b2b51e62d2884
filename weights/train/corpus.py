"""Stage 3: encode both sources and hold a part back.

    python weights/train/corpus.py --prose train_pd.txt.xz --prose-held-out valid_pd.txt.xz \
        --sampled work/sampled.jsonl --out work

Writes OUT/prose.npy and OUT/sampled.npy (uint16 ids; prose that is there already is kept),
OUT/sampled.starts.npy (where each document starts), the held-out windows OUT/heldout.npy (n, 513) with
OUT/heldout.source.npy (0 prose, 1 sampled) and as text in OUT/heldout.{prose,sampled}.jsonl,
OUT/topics.jsonl (labelled held-out texts) and OUT/corpus.counts.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from tokenizer import END, open_text
from tokenizers import Tokenizer

LABELS = (
    "animals",
    "astronomy",
    "business",
    "computers",
    "cooking",
    "health",
    "music",
    "sports",
)  # of topics.jsonl


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    ids: list[np.ndarray] = []
    for i in range(0, len(texts), 4096):
        batch = tokenizer.encode_batch_fast(texts[i : i + 4096], add_special_tokens=False)
        ids += [np.array([0, *e.ids], np.uint16) for e in batch]
    return ids


def encode_prose(tokenizer: Tokenizer, path: Path) -> np.ndarray:
    return encode_documents(tokenizer, [d.strip() for d in open_text(path).read().split(END)])


def encode_documents(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """Paragraphs are encoded one by one (the merges do not cross blank lines) so that all cores have work."""
    parts, first = [], []
    for document in filter(None, documents):
        pieces = document.split("\n\n")
        for i, piece in enumerate(pieces):
            parts.append(piece + "\n\n" if i + 1 < len(pieces) else piece)
            first.append(i == 0)
    ids = encode(tokenizer, parts)
    return np.concatenate([x if new else x[1:] for x, new in zip(ids, first, strict=True)])


def as_text(document: dict, with_prompt: bool) -> str:
    return (
        f"User: {document['prompt']}\n\nAssistant: {document['reply']}" if with_prompt else document["reply"]
    )


def grouped(documents: list[dict], rng: np.random.Generator, size: int = 4) -> list[list[dict]]:
    """Groups of up to `size` documents on one topic: neighbours in the stream share their subject."""
    by_topic: dict[str, list[dict]] = {}
    for i in rng.permutation(len(documents)):
        by_topic.setdefault(documents[i]["topic"], []).append(documents[i])
    groups = [docs[i : i + size] for docs in by_topic.values() for i in range(0, len(docs), size)]
    return [groups[i] for i in rng.permutation(len(groups))]


def windows(ids: np.ndarray, starts: np.ndarray, n_ctx: int = 512) -> np.ndarray:  # -> (n, n_ctx + 1)
    """Texts as training reads them: id 0, <|endoftext|>, is the first token of each."""
    starts = starts[starts + n_ctx < len(ids)]
    found = ids[starts[:, None] + np.arange(n_ctx + 1)]
    found[:, 0] = 0
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prose", type=Path, required=True)
    parser.add_argument("--prose-held-out", type=Path, required=True)
    parser.add_argument("--sampled", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--held-out-documents", type=int, default=2400)
    parser.add_argument(
        "--windows",
        type=int,
        nargs=2,
        default=(80, 120),
        help="held-out windows of prose and of sampled text",
    )
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))

    groups = grouped([json.loads(line) for path in args.sampled for line in open_text(path)], rng)
    n_held = args.held_out_documents // 4
    held_groups, groups = groups[:n_held], groups[n_held:]

    def stream(groups: list[list[dict]]) -> tuple[np.ndarray, np.ndarray]:  # -> ids, document starts
        documents = [d for group in groups for d in group]
        ids = encode(
            tokenizer,
            [as_text(d, flip) for d, flip in zip(documents, rng.random(len(documents)) < 0.5, strict=True)],
        )
        return np.concatenate(ids), np.cumsum([0, *map(len, ids[:-1])])

    def prose_ids(name: str, path: Path) -> np.ndarray:
        if not (args.out / name).exists():  # the slow half, and the same whatever was sampled
            np.save(args.out / name, encode_prose(tokenizer, path))
        return np.load(args.out / name)

    prose, prose_held = (
        prose_ids("prose.npy", args.prose),
        prose_ids("prose.heldout.npy", args.prose_held_out),
    )
    sampled, starts = stream(groups)
    sampled_held, starts_held = stream(held_groups)
    np.save(args.out / "sampled.npy", sampled)
    np.save(args.out / "sampled.starts.npy", starts)

    # Drawn as training draws its own: prose anywhere, sampled text from the start of a document on.
    n_prose, n_sampled = args.windows
    prose_windows = windows(prose_held, np.linspace(0, len(prose_held) - 514, n_prose).astype(int))
    sampled_windows = windows(
        sampled_held,
        np.sort(rng.choice(starts_held[starts_held < len(sampled_held) - 513], n_sampled, replace=False)),
    )
    np.save(args.out / "heldout.npy", np.concatenate([prose_windows, sampled_windows]))
    np.save(args.out / "heldout.source.npy", np.repeat([0, 1], [len(prose_windows), len(sampled_windows)]))
    for name, part in {
        "prose": prose_windows,
        "sampled": sampled_windows,
    }.items():  # for `minicore eval quality`
        texts = tokenizer.decode_batch([row.tolist() for row in part], skip_special_tokens=False)
        lines = [json.dumps({"text": text.removeprefix(END)}, ensure_ascii=False) + "\n" for text in texts]
        (args.out / f"heldout.{name}.jsonl").write_text("".join(lines), encoding="utf-8")

    kinds = ("explanation", "news", "answers", "history", "opinion", "advice", "recipe")
    with open(args.out / "topics.jsonl", "w", encoding="utf-8") as file:
        for label in LABELS:
            texts = [
                d
                for g in held_groups
                for d in g
                if d["domain"] == label and d["form"] in kinds and len(d["reply"].split()) >= 60
            ]
            for d in texts[:48]:
                file.write(
                    json.dumps(
                        {"label": label, "topic": d["topic"], "form": d["form"], "text": d["reply"]},
                        ensure_ascii=False,
                    )
                    + "\n"
                )
    counts = {
        "prose_tokens": len(prose),
        "sampled_tokens": len(sampled),
        "sampled_documents": len(starts),
        "held_out": {
            "prose_tokens": len(prose_held),
            "sampled_tokens": len(sampled_held),
            "sampled_documents": len(starts_held),
        },
        "windows": {"prose": len(prose_windows), "sampled": len(sampled_windows)},
        "seed": args.seed,
    }
    (args.out / "corpus.counts.json").write_text(json.dumps(counts, indent=1) + "\n")
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
