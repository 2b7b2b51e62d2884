"""Kernels that read prompts, and what the host must know of them."""

from minicore.backends.cuda.kernels.intrinsics import LANES
from minicore.backends.cuda.kernels.prefill.attention import mixture, rotate, scores, softmax
from minicore.backends.cuda.kernels.prefill.blocks import WARPS
from minicore.backends.cuda.kernels.prefill.elementwise import activations, fake_quantize_rows
from minicore.backends.cuda.kernels.prefill.norms import embed, norm
from minicore.backends.cuda.kernels.prefill.products import THREADS, TILE, make_product
from minicore.backends.cuda.kernels.prefill.statistics import (
    BINS_SHIFT,
    add_energies,
    count_bins,
    count_cores,
    count_positives,
    energies,
)
from minicore.backends.cuda.kernels.prefill.tensor_cores import make_tensor_product

__all__ = [
    "BINS_SHIFT",
    "LANES",
    "THREADS",
    "TILE",
    "WARPS",
    "activations",
    "add_energies",
    "count_bins",
    "count_cores",
    "count_positives",
    "embed",
    "energies",
    "fake_quantize_rows",
    "make_product",
    "make_tensor_product",
    "mixture",
    "norm",
    "rotate",
    "scores",
    "softmax",
]
