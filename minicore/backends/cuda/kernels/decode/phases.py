"""The same phases as kernels of their own, for a captured graph (graph.py) and for timing.

A phase starts when the one before has ended, so no block waits for a word. What the persistent kernel keeps
in registers goes through global memory: the residual stream, and what differs from token to token, because
a captured launch has fixed arguments.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba.core.types import float32

from minicore.backends.cuda.kernels.decode.attention import attend, load_rope, receive_attended
from minicore.backends.cuda.kernels.decode.claims import reset_counters
from minicore.backends.cuda.kernels.decode.ffn import compute_activations, compute_outputs
from minicore.backends.cuda.kernels.decode.projections import project_attended, project_qkv
from minicore.backends.cuda.kernels.decode.residual import (
    add_received,
    embed,
    load_norm,
    load_residual,
    norm,
    store_residual,
)
from minicore.backends.cuda.kernels.decode.sampling import choose_token, publish_best, warp_best
from minicore.backends.cuda.kernels.decode.shape import (
    B_O,
    B_OUT,
    LN1_B,
    LN1_W,
    LN2_B,
    LN2_W,
    LN_F_B,
    LN_F_W,
    N_COUNTERS,
    Shape,
)
from minicore.backends.cuda.kernels.decode.sizes import ARRAY_TYPES, Arrays, Memory, Sizes, this_thread
from minicore.backends.cuda.kernels.decode.staging import (
    load_ffn_layout,
    prefetch_layer,
    stage_neuron,
    stage_output,
    stage_projection,
    stage_qkv,
    wait_for_staged,
)
from minicore.backends.cuda.kernels.decode.vectors import zero_padding
from minicore.backends.cuda.kernels.intrinsics import cuda, device, load
from minicore.backends.cuda.kernels.launch import compiled

# BEGIN stores the state that the launches after it read. Then come, for each token, LAYER_PHASES for each
# layer, BEST and CHOOSE.
PROJECT, ATTEND, PROJECT_OUT, NEURONS, OUTPUTS, BEST, CHOOSE, BEGIN = range(8)
LAYER_PHASES = (PROJECT, ATTEND, PROJECT_OUT, NEURONS, OUTPUTS)
PHASES = ("norm, q k v", "attention", "w_o", "norm, neurons", "w_out", "norm, head", "choose")

# the state: position and epoch of the token, tokens chosen since BEGIN, seed
POSITION, EPOCH, N_CHOSEN, SEED = range(4)


@device
def run_project(s, m, thread, layer, state, residual, flag, x, w, b):
    """Add the outputs of the last layer, normalise, and compute query, key and value."""
    reset_counters(s, m, thread, N_COUNTERS * ((1 - (state[EPOCH] & 1)) * s.n_layers + layer))
    stage_qkv(s, m, thread, layer)
    if s.prefetches and layer + 1 < s.n_layers:
        prefetch_layer(s, m, thread, layer + 1, load_ffn_layout(m, layer + 1))
    load_norm(s, m, thread, LN1_W, LN1_B, layer, w, b)
    if layer == 0:
        embed(s, m, thread, m.next_token[0], state[POSITION], x)
    else:
        load_residual(s, thread, x, residual, 0)
        add_received(s, m, thread, s.words.outputs, B_OUT, layer - 1, np.uint32(flag - 1), x)
    store_residual(s, thread, x, residual, 1)
    scale = norm(s, m, thread, x, w, b)
    wait_for_staged(s, True)
    project_qkv(s, m, thread, layer, scale, flag, -1)


@device
def run_project_out(s, m, thread, layer, state, flag):
    """Merge the splits of attention and multiply by w_o."""
    stage_projection(s, m, thread, layer)
    receive_attended(s, m, thread, state[POSITION], flag)
    wait_for_staged(s, True)
    project_attended(s, m, thread, layer, flag, -1)


@device
def run_neurons(s, m, thread, layer, residual, flag, x, w, b):
    """Add the output of attention, normalise, and compute activations."""
    f, threshold = load_ffn_layout(m, layer), load(m.thresholds, layer)
    stage_neuron(s, m, thread, f, threshold)
    load_norm(s, m, thread, LN2_W, LN2_B, layer, w, b)
    load_residual(s, thread, x, residual, 1)
    add_received(s, m, thread, s.words.projection, B_O, layer, flag, x)
    store_residual(s, thread, x, residual, 0)
    scale = norm(s, m, thread, x, w, b)
    wait_for_staged(s, True)
    compute_activations(s, m, thread, f, threshold, scale, flag, -1)


@device
def run_outputs(s, m, thread, layer, flag):
    """Multiply by w_out."""
    f, threshold = load_ffn_layout(m, layer), load(m.thresholds, layer)
    stage_output(s, m, thread, f, threshold)
    compute_outputs(s, m, thread, layer, f, threshold, flag, -1, True)


@device
def run_best(s, m, thread, layer, state, temperature, residual, flag, x, w, b):
    """Add the outputs of the last layer, normalise, and compute logits."""
    load_norm(s, m, thread, LN_F_W, LN_F_B, 0, w, b)
    load_residual(s, thread, x, residual, 0)
    add_received(s, m, thread, s.words.outputs, B_OUT, layer, flag, x)
    scale = norm(s, m, thread, x, w, b)
    best, token = warp_best(s, m, thread, scale, state[POSITION], temperature[0], state[SEED])
    publish_best(s, m, thread, best, token, flag)


@device
def run_choose(s, m, thread, state, flag):
    """Choose the token, store it for the host and for the next step, and go on to the next position."""
    token = choose_token(s, m, thread, flag)
    if thread.tid == 0:
        m.tokens[state[N_CHOSEN]] = token
        m.next_token[0] = token
        state[POSITION] += 1
        state[EPOCH] += 1
        state[N_CHOSEN] += 1


class PhaseArrays(NamedTuple):
    """Device arrays that phases need besides :class:`minicore.backends.cuda.kernels.decode.sizes.Arrays`.

    Attributes
    ----------
    residual : (2 * d_model,) float32
        Two buffers of the residual stream.
    state : (4,) int64
    temperature : (1,) float32
    """

    residual: Any
    state: Any
    temperature: Any


def launch_phase(
    kernel: Any,
    arrays: Arrays,
    own: PhaseArrays,
    phase: int,
    layer: int,
    *,
    position: int = 0,
    epoch: int = 0,
    temperature: float = 0.0,
    seed: int = 0,
) -> None:
    """Run a phase of a layer. The keyword arguments, as those of launch_step, matter only to BEGIN."""
    kernel(
        arrays.fixed,
        arrays.dense,
        arrays.core,
        arrays.ffn_layout,
        arrays.thresholds,
        arrays.frequencies,
        arrays.keys,
        arrays.values,
        arrays.words,
        arrays.next_token,
        arrays.logits,
        arrays.tokens,
        arrays.n_used,
        arrays.counters,
        own.residual,
        own.state,
        own.temperature,
        phase,
        layer,
        position,
        epoch,
        temperature,
        seed,
    )


@cache
def make_phase(shape: Shape) -> Any:
    """Return the kernel of :func:`launch_phase`, compiled for a shape."""
    s = Sizes.of(shape)
    n_x, n_acc = 2 * s.n_pairs, 4 * s.chunks_per_lane

    def phase(
        fixed, dense, core, ffn_layout, thresholds, frequencies, keys, values, words, next_token, logits,
        tokens, n_used, counters, residual, state, temperature, which, layer, new_position, new_epoch,
        new_temperature, new_seed,
    ):  # fmt: skip
        shared = cuda.shared.array(0, float32)
        m = Memory(
            fixed=fixed, dense=dense, core=core, ffn_layout=ffn_layout, thresholds=thresholds,
            frequencies=frequencies, keys=keys, values=values, words=words, next_token=next_token,
            logits=logits, tokens=tokens, n_used=n_used, counters=counters, shared=shared,
        )  # fmt: skip
        thread = this_thread(s, cuda.threadIdx.x, cuda.blockIdx.x)
        x, w = cuda.local.array(n_x, float32), cuda.local.array(n_x, float32)
        b, acc = cuda.local.array(n_x, float32), cuda.local.array(n_acc, float32)
        zero_padding(shared, s.normed, thread, s.n_threads)
        zero_padding(shared, s.attended, thread, s.n_threads)
        flag = np.uint32(state[EPOCH] * s.n_layers + layer + 1)
        if which == PROJECT:
            run_project(s, m, thread, layer, state, residual, flag, x, w, b)
        elif which == ATTEND:
            load_rope(s, m, thread, state[POSITION])
            attend(s, m, thread, layer, state[POSITION], flag, acc)
        elif which == PROJECT_OUT:
            run_project_out(s, m, thread, layer, state, flag)
        elif which == NEURONS:
            run_neurons(s, m, thread, layer, residual, flag, x, w, b)
        elif which == OUTPUTS:
            run_outputs(s, m, thread, layer, flag)
        elif which == BEST:
            run_best(s, m, thread, layer, state, temperature, residual, flag, x, w, b)
        elif which == CHOOSE:
            run_choose(s, m, thread, state, flag)
        elif thread.tid == 0:
            state[POSITION], state[EPOCH], state[N_CHOSEN], state[SEED] = new_position, new_epoch, 0, new_seed
            temperature[0] = new_temperature

    own = ("float32[::1]", "int64[::1]", "float32[::1]", "int64", "int64")
    types = ", ".join((*ARRAY_TYPES, *own, "int64", "int64", "float32", "int64"))
    return compiled(phase, f"void({types})", shape.n_threads)
