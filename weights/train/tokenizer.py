"""Stage 2: train the byte-level BPE on prose and sampled text.

python weights/train/tokenizer.py --prose train_pd.txt.xz --sampled work/sampled.jsonl --out work
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END = "<|endoftext|>"


def open_text(path: Path):
    return lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else open(path, encoding="utf-8")


def train(texts: Iterator[str], n_vocab: int) -> Tokenizer:
    """Byte-level BPE with digits one by one; END is id 0 and stands before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A $B:1", special_tokens=[(END, 0)]
    )
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prose", type=Path, required=True)
    parser.add_argument("--sampled", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocab", type=int, default=6144)
    parser.add_argument("--megabytes", type=int, default=40, help="how much of each source to train on")
    args = parser.parse_args()

    limit = args.megabytes * 2**20
    prose = open_text(args.prose).read()
    step = max(
        1, len(prose) // limit
    )  # every step-th block of 4096 characters, so that all documents have their say
    blocks = [prose[i : i + 4096] for i in range(0, len(prose), 4096 * step)]
    sampled, size = [], 0
    for line in (line for path in args.sampled for line in open_text(path)):
        document = json.loads(line)
        sampled.append(document["prompt"] + "\n" + document["reply"])
        size += len(sampled[-1])
        if size > limit:
            break
    texts = (text.replace(END, "\n") for text in [*blocks, *sampled])
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train(texts, args.vocab)
    tokenizer.save(str(args.out / "tokenizer.json"))
    print(f"{tokenizer.get_vocab_size()} entries from {len(prose) // step + size} characters")


if __name__ == "__main__":
    main()
