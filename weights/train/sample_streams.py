"""Sample the tuning corpus from SmolLM2: conversations in its template and documents without it.

    python weights/train/sample_streams.py --model $G --passages train_pd.txt.xz --out work

Writes OUT/chat.SEED.npy and OUT/plain.SEED.npy, rows (n, n_ctx) uint16 in random order, and
OUT/streams.SEED.json, which counts rows kept and dropped by kind.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from dialogues import passages_of, scripts
from llama import from_gguf
from smollm2 import load_gguf, load_tokenizer
from streams import Streams
from tokenizer import open_text


def repetition(
    rows: np.ndarray,
) -> np.ndarray:  # (n, n_ctx) -> (n,): share of repeated runs of four
    wide = rows.astype(np.int64)
    grams = ((wide[:, :-3] * 49157 + wide[:, 1:-2]) * 49157 + wide[:, 2:-1]) * 49157 + wide[:, 3:]
    grams.sort(axis=1)
    return (grams[:, 1:] == grams[:, :-1]).mean(axis=1)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--passages", type=Path, required=True, help="prose to quote in questions")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=4096, help="texts sampled in parallel")
    parser.add_argument("--n-ctx", type=int, default=1024, help="tokens per row")
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--chat-share", type=float, default=0.45)
    parser.add_argument(
        "--min-p", type=float, nargs=2, default=(0.03, 0.03), help="least and greatest min-p of documents"
    )
    parser.add_argument(
        "--repetition",
        type=float,
        default=0.35,
        help="largest share of repeated runs of four in a row that is kept",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--time-limit", type=float, default=float("inf"), help="seconds after which no batch is started"
    )
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    fields, tensors = load_gguf(args.model)
    tokenizer = load_tokenizer(fields)
    dtype = torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    streams = Streams(from_gguf(fields, tensors, dtype).to(args.device), args.rows, args.n_ctx, width=640)
    passages = passages_of(open_text(args.passages).read(), 20000, args.seed)
    kept: dict[str, list[np.ndarray]] = {"chat": [], "plain": []}
    counts: Counter[str] = Counter()

    def script(batch: int):
        return scripts(args.rows, args.seed * 1000 + batch, tokenizer, passages, args.chat_share, args.min_p)

    def sift(rows: np.ndarray, lasted: np.ndarray, kinds: list[str]) -> None:
        good = lasted & (repetition(rows) < args.repetition)
        for row, kind, fine, whole in zip(rows, kinds, good, lasted, strict=True):
            counts[f"{kind}: {'kept' if fine else 'repetitive' if whole else 'script over'}"] += 1
            if fine:
                kept["chat" if kind.startswith("chat") else "plain"].append(row)

    with ThreadPoolExecutor(2) as pool:
        following, sifting = pool.submit(script, 0), []
        for batch in range(args.batches):
            if time.monotonic() - start > args.time_limit:
                break
            rows = following.result()
            following = pool.submit(script, batch + 1)
            began = time.monotonic()
            ids, lasted = streams.run(rows, (args.seed * 1000 + batch) * args.n_ctx)
            took = time.monotonic() - began
            sifting.append(pool.submit(sift, ids, lasted, [row.kind for row in rows]))
            print(
                f"batch {batch}: {ids.size / took / 1e3:.0f} k tokens/s, {time.monotonic() - start:.1f} s",
                flush=True,
            )
        for one in sifting:
            one.result()
    rng = np.random.default_rng(args.seed)
    for kind, parts in kept.items():
        rows = np.stack(parts)[rng.permutation(len(parts))] if parts else np.zeros((0, args.n_ctx), np.uint16)
        np.save(args.out / f"{kind}.{args.seed}.npy", rows)
        print(kind, rows.shape, f"{rows.size / 1e6:.1f} M tokens")
    summary = {
        "rows": args.rows,
        "n_ctx": args.n_ctx,
        "seed": args.seed,
        "rows_by_kind": dict(sorted(counts.items())),
    }
    (args.out / f"streams.{args.seed}.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
