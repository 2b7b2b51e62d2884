"""Kernels that decode, and what the host must know of them."""

from minicore.backends.cuda.kernels.decode.gather import make_gather
from minicore.backends.cuda.kernels.decode.phases import (
    ATTEND,
    BEGIN,
    BEST,
    CHOOSE,
    LAYER_PHASES,
    NEURONS,
    OUTPUTS,
    PHASES,
    PROJECT,
    PROJECT_OUT,
    make_phase,
)
from minicore.backends.cuda.kernels.decode.shape import (
    B_GATE,
    B_IN,
    N_COUNTERS,
    N_ROWS,
    W_GATE,
    W_IN,
    W_OUT,
    Shape,
    row_chunks,
)
from minicore.backends.cuda.kernels.decode.sizes import Arrays
from minicore.backends.cuda.kernels.decode.step import make_step
from minicore.backends.cuda.kernels.intrinsics import SIMULATED

__all__ = [
    "ATTEND",
    "BEGIN",
    "BEST",
    "B_GATE",
    "B_IN",
    "CHOOSE",
    "LAYER_PHASES",
    "NEURONS",
    "N_ROWS",
    "N_COUNTERS",
    "OUTPUTS",
    "PHASES",
    "PROJECT",
    "PROJECT_OUT",
    "SIMULATED",
    "W_GATE",
    "W_IN",
    "W_OUT",
    "Arrays",
    "Shape",
    "make_gather",
    "make_phase",
    "make_step",
    "row_chunks",
]
