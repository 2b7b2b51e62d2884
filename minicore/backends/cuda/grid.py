"""The shape of a decode kernel for a model on this GPU: blocks, threads, and shared memory for staging."""

from __future__ import annotations

from minicore.backends.cuda.kernels.decode.shape import Shape
from minicore.backends.cuda.kernels.intrinsics import SIMULATED
from minicore.backends.cuda.weights import Weights
from minicore.backends.dims import constants
from minicore.config import ModelConfig
from minicore.kv_cache import KVCache

STAGING_STEP = 1 << 14  # staging areas are multiples of this, so that two kv caches seldom need two kernels
SIMULATED_STAGING = 1 << 16
CP_ASYNC = (8, 0)  # the compute capability from which copies to shared memory need no registers


def decode_shape(
    cfg: ModelConfig,
    weights: Weights,
    cache: KVCache,
    n_blocks: int | None = None,
    n_threads: int | None = None,
) -> Shape:
    """Return the shape of the decode kernel. None is what suits the GPU and the model."""
    from numba import cuda

    if n_blocks is None:
        n_blocks = 1 if SIMULATED else cuda.get_current_device().MULTIPROCESSOR_COUNT
        n_blocks = min(n_blocks, cfg.d_model)  # every block writes a word of each exchanged vector
    int8 = weights.dtype == "int8"
    if n_threads is None:
        n_threads = 2 if SIMULATED else threads_for(cfg, n_blocks, int8)
    shape = Shape(
        **constants(cfg),
        n_neurons=cfg.n_neurons,
        rope=cfg.positions == "rope",
        bfloat16=weights.dtype == "bfloat16",
        int8=int8,
        bf16_cache=cache.rounds,
        layout=weights.layout,
        n_blocks=n_blocks,
        n_threads=n_threads,
    )
    return shape._replace(staging_bytes=staging_bytes(shape, cache.capacity))


def threads_for(cfg: ModelConfig, n_blocks: int, int8: bool = False) -> int:
    """Return the threads of a block: 8 warps, or up to 12 if each neuron then has a warp of its own.

    With 8 warps a thread has as many registers as it can have. int8, which computes more, takes up to 16.
    """
    warps = max(8, -(-cfg.n_neurons // n_blocks) + 3 & ~3)  # a multiple of the four schedulers
    if int8:
        return 32 * min(warps, 16)
    return 32 * (warps if warps <= 12 else 8)


def staging_bytes(shape: Shape, capacity: int) -> int:
    """Return the bytes of the staging area of a block; 0 if the rows of a layer do not fit."""
    from numba import cuda

    if shape.int8:  # scales follow the rows
        return 0
    if SIMULATED:
        return SIMULATED_STAGING
    gpu = cuda.get_current_device()
    if tuple(gpu.compute_capability) < CP_ASYNC:
        return 0
    left = gpu.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN - shape.shared_bytes(capacity)
    left = max(left // STAGING_STEP * STAGING_STEP, 0)
    return left if shape._replace(staging_bytes=left).staged_chunks()[0] else 0
