"""Speed on an NVIDIA GPU, a row a line of docs/cuda.md: shapes of SmolLM2-135M and OPT-6.7B, random weights.

Usage: python tests/benchmarks/cuda_speed.py [--transformers | --graph | --shrink] [--only smol|opt]
                                             [--dtypes D,D] [--json FILE]

Weights are drawn on the device, because speed does not depend on their values; nothing is said about quality.
With --transformers the same shape of SmolLM2 is timed with Transformers' generate, plain and with a static
cache and torch.compile, and nothing else. With --graph the decode step is a captured graph, a kernel a phase.
With --shrink SmolLM2 decodes with fewer and fewer neurons: what a core set can save at most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from unittest import mock

import numpy as np

from minicore.config import ModelConfig
from minicore.core.neurons import CoreSet
from minicore.core.recorder import Recorder
from minicore.generation.prediction import recorder_hooks
from minicore.kv_cache import KVCache
from minicore.model import Model, split_blocks

SMOL = ModelConfig(
    *("llama", 30, 576, 9, 3, 64, 1536, 49152, 8192, "rmsnorm", 1e-5, "silu", True, "rope"), rope_theta=1e5
)
OPT = ModelConfig(
    *("opt", 32, 4096, 32, 32, 128, 16384, 50272, 2048, "layernorm", 1e-5, "relu", False, "learned", 2),
    **dict.fromkeys(("qkv_bias", "attn_out_bias", "mlp_bias"), True),
)
ROUNDS = 5
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 66 / 64}  # of a weight
PROMPT = 512  # tokens


class Drawn:
    """A parameter that exists on the device alone: here it has a shape."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype = shape, dtype

    def __len__(self) -> int:
        return self.shape[0]


def drawn(config: ModelConfig, dtype: str) -> Model:
    """Return a model whose weights are drawn on the device, in bfloat16 0.002 to 0.004 in magnitude."""
    from numba import cuda

    from minicore.backends.cuda.arena import Arena
    from minicore.backends.cuda.memory import allocate
    from minicore.backends.cuda.weights import weights_of

    @cuda.jit
    def draw(bits):
        i = cuda.grid(1)
        while i < bits.shape[0]:
            mixed = (i * 2654435761 + 12345) & 0xFFFFFFFF
            mixed = ((mixed ^ (mixed >> 15)) * 2246822519) & 0xFFFFFFFF
            bits[i] = (mixed & 0x807F807F) | 0x3B003B00
            i += cuda.gridsize(1)

    def to_device(arena):
        bits = allocate(4 * arena.n_chunks, np.uint32)
        draw[1024, 256](bits)
        return bits

    params = {name: Drawn(shape, dtype) for name, shape in config.shapes().items()}
    model = Model(config=config, params=params, blocks=split_blocks(params, config.n_layers))
    with mock.patch.object(Arena, "to_device", to_device):
        weights = weights_of(model)
        assert weights.fixed.size and weights.ffn.size  # drawn when first asked for
    return model


def core_set(config: ModelConfig, layers: range, kept: float = 0.4) -> CoreSet:
    """Return a fraction of the neurons, drawn."""
    rng, n = np.random.default_rng(0), round(kept * config.n_neurons)
    ids = {layer: np.sort(rng.permutation(config.n_neurons)[:n]) for layer in layers}
    return CoreSet(ids, config.n_neurons, config.n_layers)


def bytes_read(config: ModelConfig, core: CoreSet | None, positions: float, dtype: str) -> float:
    """Return the bytes of weights and of float32 keys and values that a token reads."""
    shapes = config.shapes()
    total = BYTES[dtype] * config.n_vocab * config.d_model
    for name, shape in shapes.items():
        if name.startswith("blocks.") and len(shape) == 2:
            layer = int(name.split(".")[1])
            kept = len(core.neurons[layer]) if core and layer in core.neurons and "mlp" in name else shape[0]
            total += BYTES[dtype] * kept * shape[1]
    return total + positions * config.n_layers * 2 * 4 * config.n_kv_heads * config.d_head


def copy_rate() -> float:
    """Return the bytes a second of a copy on the device, read and written."""
    from numba import cuda

    a, b = (cuda.device_array(1 << 28, np.uint32) for _ in range(2))
    seconds = []
    for _ in range(ROUNDS):
        cuda.synchronize()
        began = time.perf_counter()
        for _ in range(5):
            b.copy_to_device(a)
        cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 5 * 2 * a.nbytes / statistics.median(seconds)


def seconds_a_token(decoder, context: int, n: int) -> list[float]:
    """Return seconds a token of decoding n behind a context, of every round but a first."""
    rates = []
    for _ in range(ROUNDS + 1):
        decoder.cache.length = context
        began = time.perf_counter()
        for _ in decoder.run(5, n):
            pass
        rates.append((time.perf_counter() - began) / n)
    return rates[1:]


def seconds_a_prompt(model: Model, recorder: Recorder | None) -> list[float]:
    """Return seconds of reading a prompt, of every round but a first."""
    from minicore.backends.cuda.prefill import CudaPrefill

    reading, seconds, ids = CudaPrefill(model), [], np.arange(PROMPT) % model.config.n_vocab
    for _ in range(ROUNDS + 1):
        cache, hooks = KVCache(model.config, PROMPT), {}
        if recorder:
            recorder.start(PROMPT)
            hooks = recorder_hooks(recorder)
        began = time.perf_counter()
        reading.read(ids, cache, hooks)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def prefill_rows(name: str, model: Model) -> list[dict]:
    """Return the lines of prefill: alone, and counting for a core set."""
    config, rows = model.config, []
    layers = range(config.n_layers)
    stability = Recorder("stability", 0.4, 0.4, layers, config.n_layers, config.n_neurons)
    for what, recorder in (("", None), (", counting", stability)):
        seconds = seconds_a_prompt(model, recorder)
        rate = PROMPT / statistics.median(seconds)
        print(
            f"{name}, prompt of {PROMPT}{what}: {rate:8.0f} tokens/s  {1e3 * PROMPT / rate:7.2f} ms",
            flush=True,
        )
        rows.append({"what": f"{name}, prompt{what}", "tokens_per_s": rate, "seconds": seconds})
    return rows


def decode_rows(name: str, model: Model, dtype: str, rate: float, graph: bool) -> list[dict]:
    """Return the lines of decoding."""
    from minicore.backends.cuda.decoder import CudaDecoder

    config, rows = model.config, []
    contexts, n = ((64, 2048), 256) if config is SMOL else ((64,), 64)
    cache = KVCache(config, min(max(contexts) + n, config.n_ctx))
    cache.k[:] = np.random.default_rng(0).standard_normal(cache.k.shape, dtype=np.float32)
    cache.v[:], cache.length = cache.k, contexts[0]
    decoder = CudaDecoder(model, cache, None, graph=graph)
    print(f"{name}: compiled in {decoder.compile_s:.1f} s", flush=True)
    choices = {"dense": None, "core 0.4": core_set(config, range(config.n_layers))}
    if config is OPT:
        choices["core 0.4 of layers 6-26"] = core_set(config, range(6, 27))
    for context in contexts:
        for choice, core in choices.items():
            decoder.use(core)
            seconds = seconds_a_token(decoder, context, n)
            read = bytes_read(config, core, context + n / 2, dtype)
            rows.append(row_of(f"{name}, {choice}, {context} + {n} tokens", seconds, read, rate))
    return rows


def shrink(dtypes: list[str]) -> dict:
    """Return tokens/s of SmolLM2 as its FFN shrinks to nearly nothing."""
    from minicore.backends.cuda.decoder import CudaDecoder

    report = {}
    for dtype in dtypes:
        cache = KVCache(SMOL, 64 + 256)
        decoder = CudaDecoder(drawn(SMOL, dtype), cache, None)
        for kept in (1.0, 0.6, 0.4, 0.2, 0.1, 0.02):
            decoder.use(core_set(SMOL, range(SMOL.n_layers), kept) if kept < 1 else None)
            report[f"{dtype} {kept}"] = 1 / statistics.median(seconds_a_token(decoder, 64, 256))
            print(f"{dtype}, {kept:.0%} of the neurons: {report[f'{dtype} {kept}']:.0f} tokens/s", flush=True)
    return report


def measure(only: str | None, dtypes: list[str], graph: bool) -> dict:
    """Return the report."""
    from numba import cuda

    rate = copy_rate()
    name = cuda.get_current_device().name
    report = {
        "gpu": name.decode() if isinstance(name, bytes) else name,
        "copy_gb_per_s": rate / 1e9,
        "rows": [],
    }
    for short, name, config in (("smol", "SmolLM2-135M", SMOL), ("opt", "OPT-6.7B", OPT)):
        for dtype in dtypes if only in (None, short) else ():
            model = drawn(config, dtype)
            report["rows"] += prefill_rows(f"{name} {dtype}", model)
            report["rows"] += decode_rows(f"{name} {dtype}", model, dtype, rate, graph)
    return report


def row_of(name: str, seconds: list[float], read: float, rate: float) -> dict:
    """Return a line of the table."""
    median = statistics.median(seconds)
    print(
        f"{name:58} {1 / median:8.0f} tokens/s  {1e6 * median:7.0f} us  {read / median / 1e9:6.0f} GB/s"
        f"  {read / rate / median:5.0%} of the copy's",
        flush=True,
    )
    return {"what": name, "tokens_per_s": 1 / median, "seconds": seconds, "bytes": read}


def transformers() -> dict:
    """Return tokens/s of Transformers: generate, and generate with a static cache and compiled steps."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).cuda().eval()
    ids = torch.randint(0, 49152, (1, 64), device="cuda")
    report = {}
    for name in ("generate", "generate, static cache, torch.compile"):
        options = {"do_sample": False, "max_new_tokens": 256, "min_new_tokens": 256}
        if name != "generate":
            options["cache_implementation"] = "static"  # Transformers then compiles the decode step itself
        began = time.perf_counter()
        for _ in range(1 if name == "generate" else 2):
            model.generate(ids, **options)
        warm = time.perf_counter() - began
        torch.cuda.synchronize()
        began = time.perf_counter()
        model.generate(ids, **options)
        torch.cuda.synchronize()
        report[name] = 256 / (time.perf_counter() - began)
        print(f"Transformers {name}: {report[name]:.0f} tokens/s (warm-up {warm:.0f} s)", flush=True)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--transformers", action="store_true")
    way.add_argument("--graph", action="store_true")
    way.add_argument("--shrink", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=["smol", "opt"])
    parser.add_argument("--dtypes", default="bfloat16", help="float32, bfloat16, int8, with commas between")
    args = parser.parse_args()
    dtypes = args.dtypes.split(",")
    if args.transformers:
        report = transformers()
    elif args.shrink:
        report = shrink(dtypes)
    else:
        report = measure(args.only, dtypes, args.graph)
        print(f"{report['gpu']}, device copy {report['copy_gb_per_s']:.0f} GB/s read and written")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
