"""Kernels that read prompts, and what the host must know of them."""

from minicore.backends.cuda.kernels.intrinsics import WARP_SIZE
from minicore.backends.cuda.kernels.prefill.attention import rotate, scores, softmax, weighted_values
from minicore.backends.cuda.kernels.prefill.block_reduce import ROW_WARPS
from minicore.backends.cuda.kernels.prefill.elementwise import activations, fake_quantize_rows
from minicore.backends.cuda.kernels.prefill.norms import embed, norm
from minicore.backends.cuda.kernels.prefill.products import PRODUCT_THREADS, TILE, make_product
from minicore.backends.cuda.kernels.prefill.statistics import (
    BINS_SHIFT,
    add_relative_energy,
    count_bins,
    count_cores,
    count_positives,
    token_energies,
)
from minicore.backends.cuda.kernels.prefill.tensor_cores import make_tensor_core_product

__all__ = [
    "BINS_SHIFT",
    "PRODUCT_THREADS",
    "ROW_WARPS",
    "TILE",
    "WARP_SIZE",
    "activations",
    "add_relative_energy",
    "count_bins",
    "count_cores",
    "count_positives",
    "embed",
    "fake_quantize_rows",
    "make_product",
    "make_tensor_core_product",
    "norm",
    "rotate",
    "scores",
    "softmax",
    "token_energies",
    "weighted_values",
]
