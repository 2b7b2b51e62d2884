"""The projections of attention: rows of w_q, w_k and w_v before it, rows of w_o after it."""

from __future__ import annotations

from minicore.backends.cuda.kernels.decode.claims import claim_row, claimed_row
from minicore.backends.cuda.kernels.decode.residual import layer_element
from minicore.backends.cuda.kernels.decode.rows import row_dot
from minicore.backends.cuda.kernels.decode.shape import B_QKV, LAYER, W_O, W_QKV
from minicore.backends.cuda.kernels.decode.staging import staged_at
from minicore.backends.cuda.kernels.intrinsics import device, ll_store
from minicore.backends.cuda.kernels.warp import warp_sum


@device
def project_qkv(s, m, thread, layer, scale, flag, counter):
    """Publish this warp's elements of query, key and value. ``scale`` is the factor that the norm lacks."""
    i, first = thread.grid_warp, True
    while i < s.n_qkv:
        claimed = claim_row(s, m, thread, counter, i, s.n_qkv)
        publish_qkv(s, m, thread, layer, scale, flag, i, first)
        i, first = claimed_row(s, claimed, s.n_qkv), False


@device
def publish_qkv(s, m, thread, layer, scale, flag, i, staged):
    """Publish element i of the query, key and value."""
    start = s.layout[W_QKV] + layer * s.layout[LAYER] + i * s.d_chunks
    at = staged_at(s, thread, s.staged.qkv)
    total = row_dot(s, m, thread, m.fixed, start, s.d_chunks, s.normed, at, staged)
    total = warp_sum(total) * scale
    if thread.lane == 0:
        ll_store(m.words, i, total + layer_element(s, m, B_QKV, layer, i), flag)


@device
def project_attended(s, m, thread, layer, flag, counter):
    """Publish this warp's elements of w_o times the output of attention."""
    i, first = thread.grid_warp, True
    while i < s.d_model:
        claimed = claim_row(s, m, thread, counter, i, s.d_model)
        publish_projection(s, m, thread, layer, flag, i, first)
        i, first = claimed_row(s, claimed, s.d_model), False


@device
def publish_projection(s, m, thread, layer, flag, i, staged):
    """Publish element i of that product."""
    start = s.layout[W_O] + layer * s.layout[LAYER] + i * s.q_chunks
    at = staged_at(s, thread, s.staged.projection)
    total = warp_sum(row_dot(s, m, thread, m.fixed, start, s.q_chunks, s.attended, at, staged))
    if thread.lane == 0:
        ll_store(m.words, s.words.projection + i, total, flag)
