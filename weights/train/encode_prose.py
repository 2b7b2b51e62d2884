"""Encode prose with SmolLM2's tokenizer, for tuning.

    python weights/train/encode_prose.py --model $G --prose train_pd.txt.xz --out work

Writes OUT/prose.npy, one stream of uint16 ids with <|endoftext|> before each document.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from corpus import encode_prose
from smollm2 import load_gguf_fields, load_tokenizer


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prose", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    ids = encode_prose(load_tokenizer(load_gguf_fields(args.model)), args.prose)
    np.save(args.out / "prose.npy", ids)
    print(f"{len(ids) / 1e6:.1f} M tokens")


if __name__ == "__main__":
    main()
