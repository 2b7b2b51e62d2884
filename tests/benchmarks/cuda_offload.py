"""OPT-6.7B's shape on a GPU that may hold 12 GB: core neurons alone against offloading.

Usage: python tests/benchmarks/cuda_offload.py [--limit BYTES] [--tokens N] [--only minicore|transformers]

Random bfloat16 weights (13.3 GB) are made on the spot in host memory. minicore keeps the FFNs there, in
page-locked memory, copies the rest of the model and the rows of a core set of 0.4 to the GPU and decodes
there; Transformers spreads the dense model over GPU and host (accelerate's device_map) and moves what does
not fit for every token. Both are timed for decoding alone, prompts and making ready apart. Speed does not
depend on the weights' values; the two compute different things, and nothing is said about quality.

It takes about two minutes and 40 GB of host memory.
"""

from __future__ import annotations

import argparse
import gc
import time

import numpy as np
from cuda_speed import OPT, core_set

from minicore.kv_cache import KVCache
from minicore.model import Model, split_blocks


def random_model() -> Model:
    """Return a model of the shape; matrices repeat the same 64 MB of random numbers."""
    import ml_dtypes

    rng, params = np.random.default_rng(0), {}
    block = (rng.standard_normal(1 << 25, dtype=np.float32) * 0.02).astype(ml_dtypes.bfloat16)
    for name, shape in OPT.shapes().items():
        if len(shape) == 1:
            params[name] = rng.standard_normal(shape, dtype=np.float32)
            continue
        params[name] = w = np.empty(shape, ml_dtypes.bfloat16)
        flat = w.reshape(-1).view(np.uint16)
        for at in range(0, flat.size, block.size):
            flat[at : at + block.size] = block.view(np.uint16)[: flat.size - at]
    return Model(config=OPT, params=params, blocks=split_blocks(params, OPT.n_layers), file_dtype="BF16")


def minicore(limit: int, n: int) -> float:
    """Return tokens/s with the core rows on the device."""
    from numba import cuda

    from minicore.backends.cuda.decoder import CudaDecoder

    model, cache = random_model(), KVCache(OPT, 64 + n)
    cache.k[:], cache.length = 0.1, 64
    cache.v[:] = cache.k
    before, began = cuda.current_context().get_memory_info().free, time.perf_counter()
    decoder = CudaDecoder(model, cache, core_set(OPT, range(OPT.n_layers)), memory_limit=limit)
    made_s, began = time.perf_counter() - began, time.perf_counter()
    decoder.use(core_set(OPT, range(OPT.n_layers)))  # what a second prompt waits for
    cuda.synchronize()
    gathered_s = time.perf_counter() - began
    taken = before - cuda.current_context().get_memory_info().free
    rates = []
    for _ in range(4):
        cache.length = 64
        began = time.perf_counter()
        for _ in decoder.run(5, n):
            pass
        rates.append(n / (time.perf_counter() - began))
    held = decoder.stats.device_bytes / 1e9
    print(
        f"minicore, core 0.4: {sorted(rates[1:])[1]:.1f} tokens/s; {held:.2f} GB in "
        f"arrays, {taken / 1e9:.2f} GB taken on the device; ready in {made_s:.1f} s "
        f"({decoder.compile_s:.1f} of it compiling), another core set in {gathered_s:.2f} s",
        flush=True,
    )
    return sorted(rates[1:])[1]


def transformers(limit: int, n: int) -> float:
    """Return tokens/s of Transformers with accelerate's offloading to host memory."""
    import torch
    from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights
    from transformers import OPTConfig, OPTForCausalLM

    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    config = OPTConfig(
        hidden_size=4096, num_hidden_layers=32, ffn_dim=16384, num_attention_heads=32, vocab_size=50272,
        max_position_embeddings=2048, word_embed_proj_dim=4096, eos_token_id=None, dtype=torch.bfloat16,
    )  # fmt: skip
    with init_empty_weights(include_buffers=False):
        model = OPTForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device="cpu").eval()
    model.tie_weights()
    for w in model.parameters():
        w.data.fill_(0.01)
    room = limit - (2 << 30)  # for activations, the kv cache and a layer under way
    spread = infer_auto_device_map(
        model, {0: room, "cpu": 64 << 30}, no_split_module_classes=["OPTDecoderLayer"], dtype=torch.bfloat16
    )
    model = dispatch_model(model, spread)
    ids = torch.randint(4, 50000, (1, 64), device="cuda")
    seconds = {}
    for n_new in (2, 1, n + 1):  # the first warms up, the second is the prompt alone
        began = time.perf_counter()
        model.generate(ids, max_new_tokens=n_new, min_new_tokens=n_new, do_sample=False)
        torch.cuda.synchronize()
        seconds[n_new] = time.perf_counter() - began
    rate = n / (seconds[n + 1] - seconds[1])
    n_gpu = sum(where == 0 for where in spread.values())
    print(
        f"Transformers with offloading: {rate:.2f} tokens/s, {n_gpu} of {len(spread)} modules on the GPU, "
        f"peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB on the device; prompt {seconds[1]:.2f} s",
        flush=True,
    )
    del model
    gc.collect()
    torch.cuda.empty_cache()
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=12e9)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--only", choices=("minicore", "transformers"))
    args = parser.parse_args()
    runs = {"transformers": transformers, "minicore": minicore}
    rates = {
        name: run(int(args.limit), args.tokens) for name, run in runs.items() if args.only in (None, name)
    }
    if len(rates) == 2:
        print(f"ratio {rates['minicore'] / rates['transformers']:.1f}")


if __name__ == "__main__":
    main()
