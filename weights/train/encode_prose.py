"""Encode prose with SmolLM2's tokenizer, for tuning.

    python weights/train/encode_prose.py --model $G --prose train_pd.txt.xz --out work

Writes OUT/prose.npy, one stream of uint16 ids with <|endoftext|> before each document.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from corpus import encode_documents
from smollm2 import load_gguf_fields, load_tokenizer
from tokenizer import END, open_text
from typography import tokenised

SECTION = 40  # paragraphs


def restyled(documents: Iterable[str], share: float, seed: int) -> Iterator[str]:
    """Set a share of the sections of each document in the typography of tokenised corpora."""
    rng = np.random.default_rng(seed)
    for document in documents:
        paragraphs = document.split("\n\n")
        for at in range(0, len(paragraphs), SECTION):
            section = "\n\n".join(paragraphs[at : at + SECTION])
            yield tokenised(section) if rng.random() < share else section


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prose", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--skip", type=int, default=0, help="documents at the beginning to leave out")
    parser.add_argument(
        "--tokenised-share", type=float, default=0.0,
        help="share of the sections set in the typography of tokenised corpora",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    documents = [d.strip() for d in open_text(args.prose).read().split(END)]
    documents = [d for d in documents if d][args.skip :]
    if args.tokenised_share:
        documents = list(restyled(documents, args.tokenised_share, args.seed))
    ids = encode_documents(load_tokenizer(load_gguf_fields(args.model)), documents)
    np.save(args.out / "prose.npy", ids)
    print(f"{len(ids) / 1e6:.1f} M tokens")


if __name__ == "__main__":
    main()
