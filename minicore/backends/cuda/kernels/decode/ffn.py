"""The FFN: activations of neurons, then rows of the transposed w_out.

``f`` is a layer's row of the FFN layout (shape.py). A threshold >= 0 closes gates: neurons whose gate is no
larger in magnitude have the activation 0, and their other weights are not read.
"""

from __future__ import annotations

import numpy as np

from minicore.backends.cuda.kernels.decode.claims import claim_row, claimed_row
from minicore.backends.cuda.kernels.decode.int8_rows import int8_output_dot
from minicore.backends.cuda.kernels.decode.rows import float_row_dot, row_dot, sparse_row_dot
from minicore.backends.cuda.kernels.decode.shape import (
    B_GATE,
    B_IN,
    IN_CORE,
    N_CHUNKS,
    N_ROWS,
    W_GATE,
    W_IN,
    W_OUT,
)
from minicore.backends.cuda.kernels.decode.staging import staged_at, wait_for_staged
from minicore.backends.cuda.kernels.decode.vectors import Vector, store_pair, zero_padding
from minicore.backends.cuda.kernels.elements import activate, float_element
from minicore.backends.cuda.kernels.intrinsics import WARP_SIZE, cuda, device, ll_load2, ll_store
from minicore.backends.cuda.kernels.ll_protocol import ll_wait2, simulator_barrier
from minicore.backends.cuda.kernels.warp import group_sum2, warp_sum

# --- activations ---


@device
def compute_activations(s, m, thread, f, threshold, scale, flag, counter):
    """Publish the activations of this warp's neurons. ``scale`` is the factor that the norm lacks.

    A zero after the last one makes their number even.
    """
    end, n_rows = f[N_ROWS] + (f[N_ROWS] & 1), s.n_neurons + 1
    i, first = thread.grid_warp, True
    while i < end:
        claimed = claim_row(s, m, thread, counter, i, n_rows)
        publish_activation(s, m, thread, f, threshold, scale, flag, i, first)
        i, first = claimed_row(s, claimed, n_rows), False


@device
def publish_activation(s, m, thread, f, threshold, scale, flag, i, staged):
    """Publish the activation of neuron i, or a zero after the last neuron."""
    a = np.float32(0)
    if i < f[N_ROWS]:
        ffn = m.core if f[IN_CORE] else m.dense
        a = activation(s, m, thread, ffn, f, i, scale, threshold, staged)
    if thread.lane == 0:
        ll_store(m.words, s.words.activations + i, a, flag)


@device
def activation(s, m, thread, ffn, f, i, scale, threshold, staged):
    """Return what multiplies w_out for neuron i: act(gate) * up, or act(in) in a model without gates."""
    at, up_at = staged_at(s, thread, s.staged.gate), staged_at(s, thread, s.staged.up)
    w, b = (f[W_GATE], f[B_GATE]) if s.gated else (f[W_IN], f[B_IN])
    start, up_start, up = w + i * s.d_chunks, f[W_IN] + i * s.d_chunks, np.float32(0)
    part = row_dot(s, m, thread, ffn, start, s.d_chunks, s.normed, at, staged)
    if s.gated and threshold < 0:  # the loads of both rows are in flight together
        up = row_dot(s, m, thread, ffn, up_start, s.d_chunks, s.normed, up_at, staged)
    a, up = group_sum2(part, up, WARP_SIZE) if s.gated and threshold < 0 else (warp_sum(part), up)
    a *= scale
    if b >= 0:
        a += float_element(ffn, b, i, False)
    a = activate(a, s.activation)
    if threshold >= 0:
        if abs(a) <= threshold:
            return np.float32(0)
        if s.gated:
            up = warp_sum(row_dot(s, m, thread, ffn, up_start, s.d_chunks, s.normed, 0, False))
    if s.gated:
        up *= scale
        if f[B_IN] >= 0:
            up += float_element(ffn, f[B_IN], i, False)
        a *= up
    return a


@device
def receive_activations(s, m, thread, n, x, flag):
    """Store all n activations in shared memory; return how many of this thread's are not zero."""
    start, n_pairs, count = s.words.activations >> 1, (n + 1) // 2, 0
    for p in range(thread.tid, n_pairs, 4 * s.n_threads):  # four loads in flight
        p1, p2, p3 = p + s.n_threads, p + 2 * s.n_threads, p + 3 * s.n_threads
        r0, r1 = ll_load2(m.words, start + p, True), ll_load2(m.words, start + p1, p1 < n_pairs)
        r2, r3 = ll_load2(m.words, start + p2, p2 < n_pairs), ll_load2(m.words, start + p3, p3 < n_pairs)
        count += store_activations(m, start, p, n_pairs, r0, x, flag)
        count += store_activations(m, start, p1, n_pairs, r1, x, flag)
        count += store_activations(m, start, p2, n_pairs, r2, x, flag)
        count += store_activations(m, start, p3, n_pairs, r3, x, flag)
    zero_padding(m.shared, x, thread, s.n_threads)
    return count


@device
def store_activations(m, start, p, n_pairs, loaded, x, flag):
    """Store pair p, loaded before, as soon as it has arrived; return how many of the two are not zero."""
    if p >= n_pairs:
        return 0
    u, v = ll_wait2(m.words, start + p, loaded, flag)
    store_pair(m.shared, x, 2 * p, u, v)
    return (1 if u != 0 else 0) + (1 if v != 0 else 0)


# --- outputs ---


@device
def compute_outputs(s, m, thread, layer, f, threshold, flag, counter, wait_all):
    """Receive all activations and publish this warp's outputs. One block counts nonzero activations."""
    n, n_chunks = f[N_ROWS], f[N_CHUNKS]
    plane_stride = (n_chunks + WARP_SIZE - 1) // WARP_SIZE * WARP_SIZE * 4
    x = Vector(
        at=s.shared.scratch,
        n=2 * ((n + 1) // 2),
        n_padded=plane_stride << (s.shift - 2),
        plane_stride=plane_stride,
        shift=s.shift,
    )
    simulator_barrier()
    count = receive_activations(s, m, thread, n, x, flag)
    cuda.syncthreads()
    wait_for_staged(s, wait_all)
    if s.int8:  # neighbouring rows share scales, so a block takes neighbours
        first, end = thread.block * s.d_model // s.n_blocks, (thread.block + 1) * s.d_model // s.n_blocks
        for i in range(first + thread.warp, end, s.n_warps):
            publish_output(s, m, thread, f, threshold, x, flag, i, False)
    else:
        i, first_row = thread.grid_warp, True
        while i < s.d_model:
            claimed = claim_row(s, m, thread, counter, i, s.d_model)
            publish_output(s, m, thread, f, threshold, x, flag, i, first_row)
            i, first_row = claimed_row(s, claimed, s.d_model), False
    if thread.block == layer % s.n_blocks:
        count = warp_sum(count)
        if thread.lane == 0:
            cuda.atomic.add(m.n_used, layer, np.int64(count))


@device
def publish_output(s, m, thread, f, threshold, x, flag, i, staged):
    """Publish element i of w_out times the activations."""
    ffn, n_chunks = m.core if f[IN_CORE] else m.dense, f[N_CHUNKS]
    start, at = f[W_OUT] + i * n_chunks, staged_at(s, thread, s.staged.output)
    if s.int8:
        total = int8_output_dot(s, m, thread, ffn, f[W_OUT], i, n_chunks, x, threshold >= 0)
    elif threshold >= 0:
        total = sparse_row_dot(s, m, thread, ffn, start, n_chunks, x)
    else:
        total = float_row_dot(s, m, thread, ffn, start, n_chunks, x, at, staged)
    total = warp_sum(total)
    if thread.lane == 0:
        ll_store(m.words, s.words.outputs + i, total, flag)
