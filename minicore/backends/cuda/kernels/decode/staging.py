"""Weights that are fetched before they are needed.

*Staging*: a warp knows the first row that it will read in each phase before it has the vector to multiply
the row by. It copies these rows of a layer to shared memory (cp.async) as soon as it has read those of the
layer before. Each phase is one group of copies, so the groups of three other phases are newer when a warp
waits for one.

*Prefetching*: where the rows of a layer do not fit into shared memory, they are fetched into the L2 cache
one layer ahead.
"""

from __future__ import annotations

from minicore.backends.cuda.kernels.decode.shape import (
    IN_CORE,
    LAYER,
    N_CHUNKS,
    N_FFN,
    N_ROWS,
    W_GATE,
    W_IN,
    W_O,
    W_OUT,
    W_QKV,
)
from minicore.backends.cuda.kernels.intrinsics import (
    WARP_SIZE,
    cp_async16,
    cp_async_commit,
    cp_async_wait_all,
    cp_async_wait_all_but_3,
    device,
    load,
    prefetch_l2,
)
from minicore.quantization import GROUP


@device
def load_ffn_layout(m, layer):
    """Return a layer's row of the FFN layout."""
    at = layer * N_FFN
    a, b, c = load(m.ffn_layout, at), load(m.ffn_layout, at + 1), load(m.ffn_layout, at + 2)
    d, e, f = load(m.ffn_layout, at + 3), load(m.ffn_layout, at + 4), load(m.ffn_layout, at + 5)
    return a, b, c, d, e, f, load(m.ffn_layout, at + 6), load(m.ffn_layout, at + 7)


# --- staging ---


@device
def staged_at(s, thread, offset):
    """Return the float of shared memory at which a staged row of this warp starts."""
    return s.shared.staging + thread.warp * s.staged.end + offset


@device
def stage_row(s, m, thread, arena, start, n_chunks, n_rows, offset):
    """Begin to copy this warp's first row, if it has one, of n_rows rows that start at a chunk.

    A lane copies the chunks that it will read itself.
    """
    if thread.grid_warp < n_rows:
        to, row = staged_at(s, thread, offset), start + thread.grid_warp * n_chunks
        for k in range(0, n_chunks, WARP_SIZE):
            cp_async16(
                m.shared, to + 4 * (k + thread.lane), arena, row + k + thread.lane, k + thread.lane < n_chunks
            )


@device
def stage_qkv(s, m, thread, layer):
    """Begin to copy this warp's first row of w_q, w_k and w_v."""
    if s.stages_rows:
        start = s.layout[W_QKV] + layer * s.layout[LAYER]
        stage_row(s, m, thread, m.fixed, start, s.d_chunks, s.n_qkv, s.staged.qkv)
        cp_async_commit()


@device
def stage_projection(s, m, thread, layer):
    """Begin to copy this warp's first row of w_o."""
    if s.stages_rows:
        start = s.layout[W_O] + layer * s.layout[LAYER]
        stage_row(s, m, thread, m.fixed, start, s.q_chunks, s.d_model, s.staged.projection)
        cp_async_commit()


@device
def stage_neuron(s, m, thread, f, threshold):
    """Begin to copy this warp's first neuron, but no row that a closed gate may save."""
    if s.stages_rows:
        ffn = m.core if f[IN_CORE] else m.dense
        first = f[W_GATE] if s.gated else f[W_IN]
        stage_row(s, m, thread, ffn, first, s.d_chunks, f[N_ROWS], s.staged.gate)
        if s.gated and threshold < 0:
            stage_row(s, m, thread, ffn, f[W_IN], s.d_chunks, f[N_ROWS], s.staged.up)
        cp_async_commit()


@device
def stage_output(s, m, thread, f, threshold):
    """Begin to copy this warp's first row of w_out, unless closed gates may save parts of it."""
    if s.stages_rows:
        if threshold < 0:
            ffn = m.core if f[IN_CORE] else m.dense
            stage_row(s, m, thread, ffn, f[W_OUT], f[N_CHUNKS], s.d_model, s.staged.output)
        cp_async_commit()


@device
def stage_first_layer(s, m, thread):
    """Begin to copy the rows that a launch begins with."""
    f, threshold = load_ffn_layout(m, 0), load(m.thresholds, 0)
    stage_qkv(s, m, thread, 0)
    stage_projection(s, m, thread, 0)
    stage_neuron(s, m, thread, f, threshold)
    stage_output(s, m, thread, f, threshold)


@device
def wait_for_staged(s, wait_all):
    """Wait for the oldest group of copies, where three are newer, or for all."""
    if s.stages_rows:
        if wait_all:
            cp_async_wait_all()
        else:
            cp_async_wait_all_but_3()


# --- prefetching ---


@device
def prefetch_rows(s, thread, arena, start, n_chunks, n_rows):
    """Fetch a warp's rows into the L2 cache; each lane fetches lines of 128 bytes."""
    for row in range(thread.grid_warp, n_rows, s.n_grid_warps):
        for c in range(8 * thread.lane, n_chunks, 8 * WARP_SIZE):
            prefetch_l2(arena, start + row * n_chunks + c)


@device
def prefetch_layer(s, m, thread, layer, f):
    """Fetch a layer's weights into the L2 cache."""
    offset = layer * s.layout[LAYER]
    ffn = m.core if f[IN_CORE] else m.dense
    prefetch_rows(s, thread, m.fixed, s.layout[W_QKV] + offset, s.d_chunks, s.n_qkv)
    prefetch_rows(s, thread, m.fixed, s.layout[W_O] + offset, s.q_chunks, s.d_model)
    prefetch_rows(s, thread, ffn, f[W_IN], s.d_chunks, f[N_ROWS])
    if s.gated:
        prefetch_rows(s, thread, ffn, f[W_GATE], s.d_chunks, f[N_ROWS])
    prefetch_rows(s, thread, ffn, f[W_OUT], f[N_CHUNKS], s.d_model)
    if s.int8:  # the scales of the transposed w_out, a row for 64 columns
        scales = f[W_OUT] + s.d_model * f[N_CHUNKS]
        prefetch_rows(s, thread, ffn, scales, 2 * f[N_CHUNKS], (s.d_model + GROUP - 1) // GROUP)
