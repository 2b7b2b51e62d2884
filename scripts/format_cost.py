"""What each weight format costs in perplexity, and how much comes from rounding weights, inputs and cache.

Usage: python scripts/format_cost.py TEXT -m MODEL [--passages 24] [--json FILE]

The first 256 tokens of a passage are the prompt; perplexity is that of the next 256. Prints its ratio to
float32's on the same passages, with a 95% bootstrap interval over passages.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tqdm import tqdm

import minicore as mc
from minicore import ops
from minicore.backends import Backend
from minicore.backends.cpu import prefill as compiled
from minicore.backends.numpy import NumpyBackend
from minicore.evaluation.texts import passages
from minicore.kv_cache import KVCache
from minicore.quantization import fake_quantize

Array = np.ndarray
N = 256


def plain_inputs(x: Array, w: Array, b: Array | None = None) -> Array:
    return ops.linear(x, ops.to_float32(w), b)


def rounded_inputs(x: Array, w: Array, b: Array | None = None) -> Array:
    return ops.linear(fake_quantize(x), w, b)


# name: dtype of the weights, matrix products if not the format's own, dtype of the cache
WAYS = {
    "float32": ("float32", None, "float32"),
    "cache in bfloat16 alone": ("float32", None, "bfloat16"),
    "cache in int8 alone": ("float32", None, "int8"),
    "inputs rounded alone": ("float32", rounded_inputs, "float32"),
    "bfloat16": ("bfloat16", None, "float32"),
    "int8, weights alone": ("int8", plain_inputs, "float32"),
    "int8": ("int8", None, "int8"),
    "int4, weights alone": ("int4", plain_inputs, "float32"),
    "int4": ("int4", None, "int8"),
}


def with_products(linear: Callable[..., Array]) -> Any:
    """Return the compiled maths with other matrix products."""
    others = {"linear": linear, "linears": lambda x, weights: [linear(x, *w) for w in weights]}
    return SimpleNamespace(**(vars(compiled) | others))


def loss(backend: Backend, ids: Array, cache_dtype: str) -> float:
    """Return the mean negative log-likelihood of the last N of 2 N tokens."""
    cache = KVCache(backend.model.config, 2 * N, cache_dtype)
    logits = [backend.prefill(ids[:N], cache)[None], backend.forward(ids[N:-1], cache)]
    likely = ops.log_softmax(np.concatenate(logits))
    return float(-likely[np.arange(N), ids[N:]].mean())


def measure(name: str, texts: list[str], n_passages: int) -> dict[str, list[float]]:
    losses: dict[str, list[float]] = {}
    for way, (dtype, linear, cache_dtype) in WAYS.items():
        model = mc.load(name, dtype=dtype)
        maths = with_products(linear) if linear else compiled
        backend = NumpyBackend(model, ops=maths)
        chosen, _ = passages(model, texts, 2 * N, n_passages)
        losses[way] = [loss(backend, p.ids, cache_dtype) for p in tqdm(chosen, desc=way, leave=False)]
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("texts", nargs="+")
    parser.add_argument("-m", "--model", default="smollm2-135m")
    parser.add_argument("--passages", type=int, default=24)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    losses = measure(args.model, args.texts, args.passages)
    if args.json:
        args.json.write_text(json.dumps(losses), encoding="utf-8")
    base, rng = np.array(losses["float32"]), np.random.default_rng(0)
    draws = rng.integers(0, len(base), (10_000, len(base)))
    print(f"perplexity {np.exp(base.mean()):.2f} in float32, {len(base)} passages")
    for way, values in losses.items():
        more = np.array(values) - base
        low, high = np.percentile(np.exp(more[draws].mean(axis=1)), [2.5, 97.5])
        print(f"{way:26} x {np.exp(more.mean()):.4f} [{low:.4f}, {high:.4f}]")


if __name__ == "__main__":
    main()
