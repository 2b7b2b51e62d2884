"""Tiny random checkpoints of many families, written on the fly: names decide their weights."""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

ARRAYS = ("ids", "rows", "logits", "greedy", "margins")
RECORDED = Path(__file__).parents[1] / "golden" / "families.npz"


class Family(NamedTuple):
    """A config, the shapes of its tensors, and what Transformers computed with them."""

    config: dict[str, Any]
    shapes: dict[str, list[int]]
    ids: np.ndarray  # (n_tokens,)
    rows: np.ndarray  # (n_rows,): positions of the logits
    logits: np.ndarray  # (n_rows, n_vocab)
    largest: float  # of all logits' magnitudes
    greedy: np.ndarray  # (12,)
    margins: np.ndarray  # (12,): by how much the best logit led


@cache
def families() -> dict[str, Family]:
    """Return what tests/golden/make_families.py recorded, by name."""
    with np.load(RECORDED) as file:
        about = json.loads(file["about"].tobytes())
        return {
            name: Family(**values, **{key: file[f"{name}/{key}"] for key in ARRAYS})
            for name, values in about.items()
        }


def tensor(model: str, name: str, shape: list[int], plus_one: bool) -> np.ndarray:
    """Return a random tensor of a size that matters: no bias is zero, no norm weight one."""
    rng = np.random.default_rng(zlib.crc32(f"{model}/{name}".encode()))
    noise = rng.standard_normal(tuple(shape)).astype(np.float32)
    if name.endswith("bias"):
        return np.float32(0.3) * noise
    if len(shape) == 1:
        return np.float32(0 if plus_one else 1) + np.float32(0.3) * noise
    if any(part in name for part in ("embed", "wte", "wpe", "lm_head")):
        return np.float32(0.5) * noise
    return np.float32(1.8 / np.sqrt(shape[-1])) * noise


def write(folder: Path, name: str, config: dict[str, Any], shapes: dict[str, list[int]]) -> Path:
    """Write a checkpoint in Hugging Face layout and return its directory."""
    folder.mkdir(parents=True, exist_ok=True)
    plus_one = str(config.get("model_type")).startswith(("gemma", "nemotron"))
    tensors = {key: tensor(name, key, shape, plus_one) for key, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder
