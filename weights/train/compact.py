"""Store a tuned checkpoint at a quarter of its size: int8 blocks of 32 weights with float16 scales.

    python weights/train/compact.py pack work/tuned.pt work/parts
    python weights/train/compact.py unpack work/parts work/start.pt --base SmolLM2-135M-Instruct.Q4_1.gguf

Tuning leaves the embedding as it is, so unpacking takes it from the base model. The rounding error is 0.55%
of the weights (root mean square). An unpacked checkpoint has no optimiser state: `tune.py --start` reads it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import llama
import numpy as np
import torch

MATRICES = ("qkv", "o", "gate_up", "down")
NORMS = ("norm1", "norm2", "norm")
BLOCK, N_PARTS = 32, 8


def quantise(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # (n, BLOCK) -> int8 the same, float16 (n,)
    scale = np.maximum((np.abs(flat).max(1) / 127).astype(np.float16), np.float16(1e-7))
    return np.clip(np.rint(flat / scale.astype(np.float32)[:, None]), -127, 127).astype(np.int8), scale


def pack(checkpoint: Path, folder: Path) -> None:
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    weights = {name: tensor.float().numpy() for name, tensor in state["model"].items()}
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.dumps(state["settings"])
    np.savez(folder / "norms.npz", **{n: weights[n] for n in NORMS}, step=state["step"], settings=settings)
    flat = np.concatenate([weights[name].ravel() for name in MATRICES]).reshape(-1, BLOCK)
    elements, scales = quantise(flat)
    parts = zip(np.array_split(elements, N_PARTS), np.array_split(scales, N_PARTS), strict=True)
    for i, (q, s) in enumerate(parts):
        np.savez(folder / f"w{i}.npz", q=q, s=s)


def unpack(folder: Path, base: Path) -> tuple[llama.Llama, int]:
    """Return the model and the number of steps of its last run."""
    model = llama.load(base)
    files = [np.load(folder / f"w{i}.npz") for i in range(N_PARTS)]
    flat = np.concatenate([f["q"] * f["s"].astype(np.float32)[:, None] for f in files]).ravel()
    norms = np.load(folder / "norms.npz")
    state, at = {name: torch.from_numpy(norms[name]) for name in NORMS}, 0
    for name in MATRICES:
        shape = getattr(model, name).shape
        state[name] = torch.from_numpy(flat[at : at + shape.numel()].reshape(shape))
        at += shape.numel()
    if at != flat.size:
        raise SystemExit(f"{folder} holds {flat.size} weights, expected {at}: they belong to another model")
    model.load_state_dict({**state, "embed": model.embed})
    return model, int(norms["step"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", type=Path, help="untuned GGUF file (needed to unpack)")
    args = parser.parse_args(argv)
    if args.action == "pack":
        return pack(args.source, args.out)
    model, step = unpack(args.source, args.base)
    state = {"model": model.state_dict(), "shape": asdict(model.shape), "settings": {}, "step": step}
    torch.save(state | {"optimisers": []}, args.out)


if __name__ == "__main__":
    main()
