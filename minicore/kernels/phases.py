"""The decode step as a launch a phase, for a captured graph: five kernels a layer in place of one for all.

These are the phases of :mod:`minicore.kernels.cuda`, and what they exchange are the same tagged words; but a
phase begins when the one before has ended, so nobody waits for a word. The residual stream, which a block
of the one kernel keeps in registers, goes through memory. What differs from token to token (position, epoch,
token, seed) is read there too, because a captured launch has fixed arguments.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import cuda
from numba.core.types import float32

from minicore.kernels.cuda import (
    ARRAYS,
    B_O,
    B_OUT,
    LN1_B,
    LN1_W,
    LN2_B,
    LN2_W,
    LN_F_B,
    LN_F_W,
    Memory,
    Shape,
    Sizes,
    activations,
    add,
    attend,
    best_row,
    choose,
    clear,
    compiled,
    embed,
    ffn_of,
    load_norm,
    norm,
    offer,
    outputs,
    prefetch_layer,
    project,
    project_out,
    rotations,
    who,
)
from minicore.kernels.device import device, get, let

# what is launched for every layer, and behind the last; BEGIN says where the tokens after it begin
PROJECT, ATTEND, PROJECT_OUT, NEURONS, OUTPUTS, HEAD, CHOOSE, BEGIN = range(8)
LAYER_PHASES = (PROJECT, ATTEND, PROJECT_OUT, NEURONS, OUTPUTS)
NAMES = ("norm, q k v", "attention", "w_o", "norm, neurons", "w_out", "norm, head", "choose")
POSITION, EPOCH, CHOSEN, SEED = range(4)  # what lies in the state; CHOSEN counts tokens since BEGIN


@device
def load_stream(s, me, x, stream, half):  # type: ignore[no-untyped-def]
    """Load a thread's part of the residual stream from one of two places."""
    for k in range(s.rounds):
        i = 2 * (me.tid + k * s.threads)
        if i < s.d:
            x[2 * k], x[2 * k + 1] = get(stream, half * s.d + i), get(stream, half * s.d + i + 1)


@device
def store_stream(s, me, x, stream, half):  # type: ignore[no-untyped-def]
    """Store the residual stream, which all blocks have, once; in the place nobody is reading."""
    if me.block == 0:
        for k in range(s.rounds):
            i = 2 * (me.tid + k * s.threads)
            if i < s.d:
                let(stream, half * s.d + i, x[2 * k])
                let(stream, half * s.d + i + 1, x[2 * k + 1])


@device
def begin(state, heat, position, epoch, seed, temperature):  # type: ignore[no-untyped-def]
    """Write what the launches after this one read."""
    state[POSITION], state[EPOCH], state[CHOSEN], state[SEED] = position, epoch, 0, seed
    heat[0] = temperature


@device
def finish(s, m, me, state, tag):  # type: ignore[no-untyped-def]
    """Choose the token, hand it to host and next step, and go one position on."""
    token = choose(s, m, me, tag)
    if me.tid == 0:
        m.tokens[state[CHOSEN]] = token
        m.chain[0] = token
        state[POSITION] += 1
        state[EPOCH] += 1
        state[CHOSEN] += 1


@cache
def make_phase(shape: Shape) -> Any:
    """Return the kernel that runs one phase of one layer, kept on disk like that for all of them."""
    s, n_x, n_acc = Sizes.of(shape), 2 * Sizes.of(shape).rounds, 4 * Sizes.of(shape).key_rounds

    def phase(  # type: ignore[no-untyped-def]
        fixed, dense, core, ffn_plan, thresholds, frequencies, keys, values, words, chain, logits, tokens,
        n_used, stream, state, heat, which, layer, position, epoch, temperature, seed
    ):  # fmt: skip
        shared = cuda.shared.array(0, float32)
        m = Memory(
            fixed, dense, core, ffn_plan, thresholds, frequencies, keys, values, words, chain, logits, tokens,
            n_used, shared
        )  # fmt: skip
        me = who(s, cuda.threadIdx.x, cuda.blockIdx.x)
        x, w = cuda.local.array(n_x, float32), cuda.local.array(n_x, float32)
        b, acc = cuda.local.array(n_x, float32), cuda.local.array(n_acc, float32)
        clear(shared, 0, s.d, s.d_padded, s.d_spread, s.x_shift, me, s.threads)
        clear(shared, s.z, s.n_q, s.q_padded, s.q_spread, s.x_shift, me, s.threads)
        at, tag = state[POSITION], np.uint32(state[EPOCH] * s.n_layers + layer + 1)
        if which == PROJECT:
            if s.ahead and layer + 1 < s.n_layers:
                prefetch_layer(s, m, me, layer + 1, ffn_of(m, layer + 1))
            load_norm(s, m, me, LN1_W, LN1_B, layer, w, b)
            if layer == 0:
                embed(s, m, me, chain[0], at, x)
            else:
                load_stream(s, me, x, stream, 0)
                add(s, m, me, s.at_out, B_OUT, layer - 1, np.uint32(tag - 1), x)
            store_stream(s, me, x, stream, 1)
            project(s, m, me, layer, norm(s, m, me, x, w, b), tag)
        elif which == ATTEND:
            rotations(s, m, me, at)
            attend(s, m, me, layer, at, tag, acc)
        elif which == PROJECT_OUT:
            project_out(s, m, me, layer, at, tag)
        elif which == NEURONS:
            load_norm(s, m, me, LN2_W, LN2_B, layer, w, b)
            load_stream(s, me, x, stream, 1)
            add(s, m, me, s.at_o, B_O, layer, tag, x)
            store_stream(s, me, x, stream, 0)
            by = norm(s, m, me, x, w, b)
            activations(s, m, me, ffn_of(m, layer), get(thresholds, layer), by, tag)
        elif which == OUTPUTS:
            outputs(s, m, me, layer, ffn_of(m, layer), tag)
        elif which == HEAD:
            load_norm(s, m, me, LN_F_W, LN_F_B, 0, w, b)
            load_stream(s, me, x, stream, 0)
            add(s, m, me, s.at_out, B_OUT, layer, tag, x)
            best, at_best = best_row(s, m, me, norm(s, m, me, x, w, b), at, heat[0], state[SEED])
            offer(s, m, me, best, at_best, tag)
        elif which == CHOOSE:
            finish(s, m, me, state, tag)
        elif me.tid == 0:
            begin(state, heat, position, epoch, seed, temperature)

    scalars = "float32[::1], int64[::1], float32[::1], int64, int64, int64, int64, float32, int64"
    return compiled(phase, f"void({ARRAYS}, {scalars})", shape)
