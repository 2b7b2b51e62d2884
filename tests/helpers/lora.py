"""LoRA adapters as PEFT writes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors.numpy

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_rslora": False}


def random_update(shape, r=4, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Return A (r, in) and B (out, r) of quarters."""
    rng = np.random.default_rng([seed, *shape])
    return tuple(rng.integers(-4, 5, s).astype(np.float32) / 4 for s in ((r, shape[1]), (shape[0], r)))


def tensors_of(updates) -> dict[str, np.ndarray]:
    """Return an adapter's tensors by name."""
    named = ({"lora_A.weight": a, "lora_B.weight": b} for a, b in updates.values())
    return {
        f"base_model.model.{module}.{part}": tensor
        for module, parts in zip(updates, named, strict=True)
        for part, tensor in parts.items()
    }


def write_adapter(folder: Path, tensors, **config) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    return folder
