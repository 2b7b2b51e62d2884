"""Write a tuned SmolLM2 as a GGUF file that llama.cpp reads, with tokenizer and chat template.

    python weights/train/export_gguf.py --checkpoint work/tuned.pt --base SmolLM2-135M-Instruct.Q4_1.gguf \
        --out weights/smollm2-135m-core/model.gguf --matrices Q4_1 --embedding Q5_0

The metadata come from the base file. Matrices are rounded to their block format.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from llama import to_gguf
from tune import load

from minicore.checkpoint import gguf, gguf_writer

FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "F32")


def write(
    path: Path, base: Path, tensors: dict[str, np.ndarray], formats: dict[str, str], changes: dict
) -> None:
    """Write float32 tensors in the named block formats (F32 where none is named).

    Metadata come from the base file, except for the keys in changes.
    """
    metadata, _ = gguf.read_files(base)
    found = [
        gguf_writer.encoded(name, formats.get(name, "F32"), np.asarray(array, np.float32))
        for name, array in tensors.items()
    ]
    gguf_writer.write(path, metadata | changes, found)


def formats_of(tensors: dict[str, np.ndarray], matrices: str, embedding: str) -> dict[str, str]:
    chosen = {name: matrices for name, array in tensors.items() if array.ndim == 2}
    return chosen | {"token_embd.weight": embedding}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="checkpoint of tune.py, or a GGUF file"
    )
    parser.add_argument("--base", type=Path, required=True, help="untuned GGUF file whose metadata are used")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--matrices", choices=FORMATS, default="Q4_1")
    parser.add_argument("--embedding", choices=FORMATS, default="Q5_0")
    parser.add_argument("--name", default="SmolLM2 135M Core")
    args = parser.parse_args(argv)
    tensors = to_gguf(load(args.checkpoint)[0])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    formats = formats_of(tensors, args.matrices, args.embedding)
    write(args.out, args.base, tensors, formats, {"general.name": args.name})
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
