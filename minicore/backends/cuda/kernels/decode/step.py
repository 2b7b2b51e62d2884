"""Tokens on a GPU: the whole decode step, token after token, as one launch.

The grid is one block a multiprocessor, all resident at once. Work is cut into rows, a warp each, and a layer
into five phases:

    norm, rows of q k v | attend over my positions | rows of w_o | norm, my neurons | rows of w_out

Every block keeps the whole residual stream, so adding and norms are done in each. Between phases blocks
exchange tagged words (:mod:`minicore.backends.cuda.kernels.intrinsics`). A word is written again a layer
later, with another tag. By then everybody has read it: who writes has itself read what all blocks wrote after
they read it.

``w_out`` lies transposed, (d_model, n_neurons): an output is one row times the activations, whoever computed
them. Weights are looked up in *arenas*, one array each, at 16-byte units that a plan lists; a core set is
nothing but another arena with fewer rows and its own plan.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba.core.types import float32

from minicore.backends.cuda.kernels.decode.attention import attend, project, project_out, rotations
from minicore.backends.cuda.kernels.decode.claims import forget_turns
from minicore.backends.cuda.kernels.decode.ffn import activations, outputs
from minicore.backends.cuda.kernels.decode.residual import add, embed, load_norm, norm
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
    send_first,
    send_neuron,
    send_o,
    send_out,
    send_qkv,
)
from minicore.backends.cuda.kernels.decode.vectors import clear
from minicore.backends.cuda.kernels.intrinsics import cuda, device, get
from minicore.backends.cuda.kernels.launch import compiled


@device
def one_token(s, m, me, x, w, b, acc, token, position, tag, odd, temperature, seed):  # type: ignore[no-untyped-def]
    """Read a token at a position and return the one chosen after it; odd is 1 at every other token."""
    embed(s, m, me, token, position, x)
    rotations(s, m, me, position)
    for layer in range(s.n_layers):
        before, tag, threshold = tag, np.uint32(tag + 1), get(m.thresholds, layer)
        then = layer + 1 if layer + 1 < s.n_layers else 0  # the next token begins anew
        f, turn = ffn_of(m, layer), N_TURNS * (odd * s.n_layers + layer)
        forget_turns(s, m, me, N_TURNS * ((1 - odd) * s.n_layers + layer))
        if s.prefetched and not s.sends and then > 0:
            prefetch_layer(s, m, me, then, ffn_of(m, then))
        load_norm(s, m, me, LN1_W, LN1_B, layer, w, b)
        if layer > 0:
            add(s, m, me, s.at_out, B_OUT, layer - 1, before, x)
        by = norm(s, m, me, x, w, b)
        await_rows(s, False)
        project(s, m, me, layer, by, tag, turn)
        send_qkv(s, m, me, then)
        attend(s, m, me, layer, position, tag, acc)
        project_out(s, m, me, layer, position, tag, turn + 1, False)
        send_o(s, m, me, then)
        load_norm(s, m, me, LN2_W, LN2_B, layer, w, b)
        add(s, m, me, s.at_o, B_O, layer, tag, x)
        by = norm(s, m, me, x, w, b)
        await_rows(s, False)
        activations(s, m, me, f, threshold, by, tag, turn + 2)
        send_neuron(s, m, me, ffn_of(m, then), get(m.thresholds, then))
        outputs(s, m, me, layer, f, threshold, tag, turn + 3, False)
        send_out(s, m, me, ffn_of(m, then), get(m.thresholds, then))
    load_norm(s, m, me, LN_F_W, LN_F_B, 0, w, b)
    add(s, m, me, s.at_out, B_OUT, s.n_layers - 1, tag, x)
    by = norm(s, m, me, x, w, b)
    best, at_best = best_row(s, m, me, by, position, temperature, seed)
    cuda.threadfence()  # keys and values, and turns forgotten, are seen by whoever sees the words below
    offer(s, m, me, best, at_best, tag)
    return choose(s, m, me, tag)


@cache
def make_step(shape: Shape) -> Any:
    """Return the decode kernel of a shape, compiled; the decoder calls it.

    Numba keeps the machine code on disk: the key is made of this file, of what ``step`` closes over (the
    sizes), of the GPU's compute capability and of the versions of numba-cuda and CUDA.
    """
    s, n_x, n_acc = Sizes.of(shape), 2 * Sizes.of(shape).rounds, 4 * Sizes.of(shape).key_rounds

    def step(  # type: ignore[no-untyped-def]
        fixed, dense, core, ffn_plan, thresholds, frequencies, keys, values, words, chain, logits, tokens,
        n_used, turns, n, position, epoch, temperature, seed
    ):  # fmt: skip
        cuda.cg.this_grid()  # all blocks must be resident at once: the launch refuses anything else
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
        send_first(s, m, me)
        token = chain[0]
        for i in range(n):
            tag = np.uint32((epoch + i) * s.n_layers)  # a layer's is one more than that of the layer before
            odd = (epoch + i) & 1
            token = one_token(s, m, me, x, w, b, acc, token, position + i, tag, odd, temperature, seed)
            if me.block == 0 and me.tid == 0:
                tokens[i] = token
        await_rows(s, True)  # which nobody reads
        if me.block == 0 and me.tid == 0:
            chain[0] = token

    return compiled(step, f"void({ARRAYS}, int64, int64, int64, float32, int64)", shape.n_threads)
