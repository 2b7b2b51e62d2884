"""A launch a phase."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba.core.types import float32

from minicore.backends.cuda.kernels.decode.attention import attend, project, project_out, rotations
from minicore.backends.cuda.kernels.decode.claims import forget_turns
from minicore.backends.cuda.kernels.decode.ffn import activations, outputs
from minicore.backends.cuda.kernels.decode.residual import (
    add,
    embed,
    load_norm,
    load_stream,
    norm,
    store_stream,
)
from minicore.backends.cuda.kernels.decode.sampling import best_row, choose, offer
from minicore.backends.cuda.kernels.decode.shape import (
    B_O,
    B_OUT,
    LN1_B,
    LN1_W,
    LN2_B,
    LN2_W,
    LN_F_B,
    LN_F_W,
    N_TURNS,
    Shape,
)
from minicore.backends.cuda.kernels.decode.sizes import ARRAYS, Memory, Sizes, who
from minicore.backends.cuda.kernels.decode.staging import (
    await_rows,
    ffn_of,
    prefetch_layer,
    send_neuron,
    send_o,
    send_out,
    send_qkv,
)
from minicore.backends.cuda.kernels.decode.vectors import clear
from minicore.backends.cuda.kernels.intrinsics import cuda, device, get
from minicore.backends.cuda.kernels.launch import compiled

# what is launched for every layer, and behind the last; BEGIN says where the tokens after it begin
PROJECT, ATTEND, PROJECT_OUT, NEURONS, OUTPUTS, BEST, CHOOSE, BEGIN = range(8)


LAYER_PHASES = (PROJECT, ATTEND, PROJECT_OUT, NEURONS, OUTPUTS)


PHASES = ("norm, q k v", "attention", "w_o", "norm, neurons", "w_out", "norm, head", "choose")


POSITION, EPOCH, CHOSEN, SEED = range(4)  # what lies in the state; CHOSEN counts tokens since BEGIN


@device
def begin_tokens(state, heat, position, epoch, seed, temperature):  # type: ignore[no-untyped-def]
    """Write what the launches after this one read."""
    state[POSITION], state[EPOCH], state[CHOSEN], state[SEED] = position, epoch, 0, seed
    heat[0] = temperature


@device
def finish_token(s, m, me, state, tag):  # type: ignore[no-untyped-def]
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
        n_used, turns, stream, state, heat, which, layer, position, epoch, temperature, seed
    ):  # fmt: skip
        shared = cuda.shared.array(0, float32)
        m = Memory(
            fixed, dense, core, ffn_plan, thresholds, frequencies, keys, values, words, chain, logits, tokens,
            n_used, turns, shared
        )  # fmt: skip
        me = who(s, cuda.threadIdx.x, cuda.blockIdx.x)
        x, w = cuda.local.array(n_x, float32), cuda.local.array(n_x, float32)
        b, acc = cuda.local.array(n_x, float32), cuda.local.array(n_acc, float32)
        clear(shared, 0, s.d, s.d_padded, s.d_spread, s.x_shift, me, s.threads)
        clear(shared, s.z, s.n_q, s.q_padded, s.q_spread, s.x_shift, me, s.threads)
        at, tag = state[POSITION], np.uint32(state[EPOCH] * s.n_layers + layer + 1)
        if which == PROJECT:
            forget_turns(s, m, me, N_TURNS * ((1 - (state[EPOCH] & 1)) * s.n_layers + layer))
            send_qkv(s, m, me, layer)
            if s.prefetched and layer + 1 < s.n_layers:
                prefetch_layer(s, m, me, layer + 1, ffn_of(m, layer + 1))
            load_norm(s, m, me, LN1_W, LN1_B, layer, w, b)
            if layer == 0:
                embed(s, m, me, chain[0], at, x)
            else:
                load_stream(s, me, x, stream, 0)
                add(s, m, me, s.at_out, B_OUT, layer - 1, np.uint32(tag - 1), x)
            store_stream(s, me, x, stream, 1)
            by = norm(s, m, me, x, w, b)
            await_rows(s, True)
            project(s, m, me, layer, by, tag, -1)
        elif which == ATTEND:
            rotations(s, m, me, at)
            attend(s, m, me, layer, at, tag, acc)
        elif which == PROJECT_OUT:
            send_o(s, m, me, layer)
            project_out(s, m, me, layer, at, tag, -1, True)
        elif which == NEURONS:
            f, threshold = ffn_of(m, layer), get(thresholds, layer)
            send_neuron(s, m, me, f, threshold)
            load_norm(s, m, me, LN2_W, LN2_B, layer, w, b)
            load_stream(s, me, x, stream, 1)
            add(s, m, me, s.at_o, B_O, layer, tag, x)
            store_stream(s, me, x, stream, 0)
            by = norm(s, m, me, x, w, b)
            await_rows(s, True)
            activations(s, m, me, f, threshold, by, tag, -1)
        elif which == OUTPUTS:
            f, threshold = ffn_of(m, layer), get(thresholds, layer)
            send_out(s, m, me, f, threshold)
            outputs(s, m, me, layer, f, threshold, tag, -1, True)
        elif which == BEST:
            load_norm(s, m, me, LN_F_W, LN_F_B, 0, w, b)
            load_stream(s, me, x, stream, 0)
            add(s, m, me, s.at_out, B_OUT, layer, tag, x)
            best, at_best = best_row(s, m, me, norm(s, m, me, x, w, b), at, heat[0], state[SEED])
            offer(s, m, me, best, at_best, tag)
        elif which == CHOOSE:
            finish_token(s, m, me, state, tag)
        elif me.tid == 0:
            begin_tokens(state, heat, position, epoch, seed, temperature)

    scalars = "float32[::1], int64[::1], float32[::1], int64, int64, int64, int64, float32, int64"
    return compiled(phase, f"void({ARRAYS}, {scalars})", shape.n_threads)
