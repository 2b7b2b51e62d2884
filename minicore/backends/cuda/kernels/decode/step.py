"""The persistent decode kernel: one launch reads many tokens.

The grid has one block per multiprocessor, and all blocks are resident at once (a cooperative launch; K.
Gupta, J. Stuart and J. Owens, "A Study of Persistent Threads Style GPU Programming for GPGPU Workloads",
InPar 2012). Work is divided into rows of the weight matrices; a warp computes a row. A layer has five
phases:

    norm, rows of w_q w_k w_v | attention | rows of w_o | norm, neurons | rows of w_out

Every block has the whole residual stream, so each adds and normalises for itself. Between phases blocks
exchange values with the LL protocol (ll_protocol.py). A layer later, words are written again with the next
flag. No barrier is needed before that: a block that writes has received what all blocks wrote after they
had read the old words.

w_out is stored transposed, (d_model, n_neurons), so that an element of the output is a row times the
activations, whichever blocks computed them. The selection of neurons is data: another arena with fewer rows
and another layout.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba.core.types import float32

from minicore.backends.cuda.kernels.decode.attention import attend, load_rope, receive_attended
from minicore.backends.cuda.kernels.decode.claims import reset_counters
from minicore.backends.cuda.kernels.decode.ffn import compute_activations, compute_outputs
from minicore.backends.cuda.kernels.decode.projections import project_attended, project_qkv
from minicore.backends.cuda.kernels.decode.residual import add_received, embed, load_norm, norm
from minicore.backends.cuda.kernels.decode.sampling import choose_token, publish_best, warp_best
from minicore.backends.cuda.kernels.decode.shape import (
    B_O,
    B_OUT,
    COUNT_NEURONS,
    COUNT_OUTPUTS,
    COUNT_PROJECTION,
    COUNT_QKV,
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
    stage_first_layer,
    stage_neuron,
    stage_output,
    stage_projection,
    stage_qkv,
    wait_for_staged,
)
from minicore.backends.cuda.kernels.decode.vectors import zero_padding
from minicore.backends.cuda.kernels.intrinsics import cuda, device, load
from minicore.backends.cuda.kernels.launch import compiled


@device
def read_token(s, m, thread, x, w, b, acc, token, position, flag, parity, temperature, seed):
    """Read a token at a position and return the one chosen after it.

    ``flag`` is that of the last exchange. ``parity`` alternates between 0 and 1 from token to token. x, w,
    b and acc are arrays in registers: of the residual stream, of a norm's weights, and of attention.
    """
    embed(s, m, thread, token, position, x)
    load_rope(s, m, thread, position)
    for layer in range(s.n_layers):
        last_flag, flag, threshold = flag, np.uint32(flag + 1), load(m.thresholds, layer)
        next_layer = layer + 1 if layer + 1 < s.n_layers else 0  # of the next token
        f, counter = load_ffn_layout(m, layer), N_COUNTERS * (parity * s.n_layers + layer)
        reset_counters(s, m, thread, N_COUNTERS * ((1 - parity) * s.n_layers + layer))
        if s.prefetches and not s.stages_rows and next_layer > 0:
            prefetch_layer(s, m, thread, next_layer, load_ffn_layout(m, next_layer))
        load_norm(s, m, thread, LN1_W, LN1_B, layer, w, b)
        if layer > 0:
            add_received(s, m, thread, s.words.outputs, B_OUT, layer - 1, last_flag, x)
        scale = norm(s, m, thread, x, w, b)
        wait_for_staged(s, False)
        project_qkv(s, m, thread, layer, scale, flag, counter + COUNT_QKV)
        stage_qkv(s, m, thread, next_layer)
        attend(s, m, thread, layer, position, flag, acc)
        receive_attended(s, m, thread, position, flag)
        wait_for_staged(s, False)
        project_attended(s, m, thread, layer, flag, counter + COUNT_PROJECTION)
        stage_projection(s, m, thread, next_layer)
        load_norm(s, m, thread, LN2_W, LN2_B, layer, w, b)
        add_received(s, m, thread, s.words.projection, B_O, layer, flag, x)
        scale = norm(s, m, thread, x, w, b)
        wait_for_staged(s, False)
        compute_activations(s, m, thread, f, threshold, scale, flag, counter + COUNT_NEURONS)
        stage_neuron(s, m, thread, load_ffn_layout(m, next_layer), load(m.thresholds, next_layer))
        compute_outputs(s, m, thread, layer, f, threshold, flag, counter + COUNT_OUTPUTS, False)
        stage_output(s, m, thread, load_ffn_layout(m, next_layer), load(m.thresholds, next_layer))
    load_norm(s, m, thread, LN_F_W, LN_F_B, 0, w, b)
    add_received(s, m, thread, s.words.outputs, B_OUT, s.n_layers - 1, flag, x)
    scale = norm(s, m, thread, x, w, b)
    best, best_token = warp_best(s, m, thread, scale, position, temperature, seed)
    cuda.threadfence()  # a block that receives the words below sees the new keys, values and counters too
    publish_best(s, m, thread, best, best_token, flag)
    return choose_token(s, m, thread, flag)


def launch_step(
    kernel: Any, arrays: Arrays, *, n: int, position: int, epoch: int, temperature: float, seed: int
) -> None:
    """Read n tokens, the first at a position, with the configured kernel of :func:`make_step`.

    ``epoch`` is the number of tokens that ``words`` and ``counters`` have served, plus 1: it makes the
    flags of each token new. Temperature 0 chooses the largest logit.
    """
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
        np.int64(n),
        np.int64(position),
        np.int64(epoch),
        np.float32(temperature),
        np.int64(seed),
    )


@cache
def make_step(shape: Shape) -> Any:
    """Return the kernel of :func:`launch_step`, compiled for a shape.

    Numba keeps the machine code on disk. The key is made of what ``step`` closes over (the sizes, and the
    checksum of the sources among them), the compute capability, and the versions of numba-cuda and CUDA.
    """
    s = Sizes.of(shape)
    n_x, n_acc = 2 * s.n_pairs, 4 * s.chunks_per_lane

    def step(
        fixed, dense, core, ffn_layout, thresholds, frequencies, keys, values, words, next_token, logits,
        tokens, n_used, counters, n, position, epoch, temperature, seed,
    ):  # fmt: skip
        cuda.cg.this_grid()  # makes the launch fail unless all blocks are resident at once
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
        stage_first_layer(s, m, thread)
        token = next_token[0]
        for i in range(n):
            flag = np.uint32((epoch + i) * s.n_layers)  # each layer adds 1
            parity = (epoch + i) & 1
            token = read_token(
                s, m, thread, x, w, b, acc, token, position + i, flag, parity, temperature, seed
            )
            if thread.block == 0 and thread.tid == 0:
                tokens[i] = token
        wait_for_staged(s, True)  # copies that no phase will read must not outlive the block
        if thread.block == 0 and thread.tid == 0:
            next_token[0] = token

    types = ", ".join((*ARRAY_TYPES, "int64", "int64", "int64", "float32", "int64"))
    return compiled(step, f"void({types})", shape.n_threads)
