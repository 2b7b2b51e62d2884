"""Options that few families have, as parts of the decode step: scales, caps, windows, further norms.

Each function here does nothing, or what the step does by default, if its ``options`` are None. That is
decided by type when the step is compiled, so that other models pay for none of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.core import types
from numba.extending import overload

from minicore import ops
from minicore.backends.cpu.compiling import OVERLOAD, inner
from minicore.backends.cpu.intrinsics import array_at, part, row
from minicore.backends.cpu.norms import add, clear, normalise
from minicore.backends.cpu.table import B_OUT, LN1_B, LN1_W, LN2_B, LN2_W
from minicore.backends.dims import (
    ACTIVATION_CODES,
    BLOCK_CODES,
    NO_QK_NORM,
    OUTPUT_NORM,
    PARALLEL,
    POST_NORM,
    QK_HEADS,
    QK_NORM_CODES,
)
from minicore.config import ModelConfig

# Columns of Options.norms: addresses, 0 for what a model does not have.
NORMS = ("ln1_post.w", "ln2_post.w", "attn.q_norm.w", "attn.k_norm.w")
LN1_POST, LN2_POST, Q_NORM, K_NORM = range(len(NORMS))


class Options(NamedTuple):
    """A model's options as kernels take them."""

    block: int
    qk_norm: int
    up_activation: int
    embed_scale: np.float32
    residual_scale: np.float32
    score_softcap: np.float32
    windows: np.ndarray  # (n_layers,) int64: how many last positions a layer attends to
    rope_kind: np.ndarray  # (n_layers,) int64: its row of the frequencies
    alibi: np.ndarray  # (n_heads, capacity) float32: added to scores; (n_heads, 0) for none
    norms: np.ndarray  # (n_layers, len(NORMS)) int64
    out: np.ndarray  # (n_threads, d_model): what attention or FFN adds


def options_of(
    cfg: ModelConfig, kinds: list[int], norms: np.ndarray, n_threads: int, capacity: int
) -> Options | None:
    """Return a model's options, None if it has none of them.

    ``kinds`` are the numbers of :func:`rope_kinds`, ``norms`` is as :class:`Options` has it.
    """
    alibi = cfg.positions == "alibi"
    usual = (
        cfg.block == "pre_norm" and cfg.qk_norm == "none" and cfg.up_activation == "identity"
        and cfg.embed_scale == cfg.residual_scale == 1 and not cfg.score_softcap and cfg.final_norm
        and all(cfg.window(layer) >= cfg.n_ctx for layer in range(cfg.n_layers))
        and not any(kinds) and not alibi
    )  # fmt: skip
    if usual:
        return None
    scale = ops.Scoring.of(cfg, layer=0).factor(cfg.d_head)
    return Options(
        block=BLOCK_CODES[cfg.block],
        qk_norm=QK_NORM_CODES[cfg.qk_norm],
        up_activation=ACTIVATION_CODES[cfg.up_activation],
        embed_scale=np.float32(cfg.embed_scale),
        residual_scale=np.float32(cfg.residual_scale),
        score_softcap=np.float32(cfg.score_softcap),
        windows=np.array([cfg.window(layer) for layer in range(cfg.n_layers)]),
        rope_kind=np.array(kinds),
        alibi=scale * ops.alibi_bias(cfg.n_heads, capacity if alibi else 0),
        norms=norms,
        out=np.zeros((n_threads, cfg.d_model), np.float32),
    )


def rope_kinds(cfg: ModelConfig, capacity: int) -> tuple[list[tuple[np.ndarray, float]], list[int]]:
    """Return the different rotations of a model, frequencies and scale, and the number of each layer's."""
    if cfg.positions != "rope":
        return [(np.zeros(0, np.float32), 1.0)], [0] * cfg.n_layers
    found: dict[bytes, tuple[int, np.ndarray, float]] = {}
    kinds = []
    for layer in range(cfg.n_layers):
        frequencies = ops.rope_frequencies(cfg, layer, capacity > cfg.rope_long_after)
        scale = 1.0 if layer in cfg.nope_layers else cfg.rope_scale
        key = frequencies.tobytes() + np.float64(scale).tobytes()
        kinds.append(found.setdefault(key, (len(found), frequencies, scale))[0])
    return [(frequencies, scale) for _, frequencies, scale in found.values()], kinds


def embedded(options: Any, x: Any) -> None:  # Options or None, (d,) in place
    """Scale a token's embedding."""
    raise NotImplementedError("compiled code only")


@overload(embedded, jit_options=OVERLOAD)
def _embedded(options, x):
    def plain(options, x):
        pass

    def special(options, x):
        scale(x, options.embed_scale)

    return plain if isinstance(options, types.NoneType) else special


def before_attention(options: Any, x: Any, w: Any, dims: Any, normed: Any) -> None:
    """Write what attention reads to normed: the norm of the residual stream, or the stream."""
    raise NotImplementedError("compiled code only")


@overload(before_attention, jit_options=OVERLOAD)
def _before_attention(options, x, w, dims, normed):
    def plain(options, x, w, dims, normed):
        normalise(x, w[LN1_W], w[LN1_B], dims, normed)

    def special(options, x, w, dims, normed):
        read(options, x, w[LN1_W], w[LN1_B], dims, normed)

    return plain if isinstance(options, types.NoneType) else special


def after_attention(
    options: Any, thread: int, layer: int, x: Any, out: Any, w: Any, dims: Any, normed: Any
) -> None:
    """Add attention's output to the residual stream x; write what the FFN reads to normed."""
    raise NotImplementedError("compiled code only")


@overload(after_attention, jit_options=OVERLOAD)
def _after_attention(options, thread, layer, x, out, w, dims, normed):
    def plain(options, thread, layer, x, out, w, dims, normed):
        add(x, out, dims.d_model)
        normalise(x, w[LN2_W], w[LN2_B], dims, normed)

    def special(options, thread, layer, x, out, w, dims, normed):
        mine = row(options.out, thread)
        clear(mine)
        add(mine, out, dims.d_model)
        if options.block == PARALLEL:
            read(options, x, w[LN2_W], w[LN2_B], dims, normed)
        add_output(options, x, mine, options.norms[layer, LN1_POST], w[LN1_W], w[LN1_B], dims)
        if options.block != PARALLEL:
            read(options, x, w[LN2_W], w[LN2_B], dims, normed)

    return plain if isinstance(options, types.NoneType) else special


def after_ffn(
    options: Any, thread: int, layer: int, n_threads: int, x: Any, sums: Any, w: Any, dims: Any
) -> None:
    """Add the threads' sums of the FFN, and its bias, to the residual stream x."""
    raise NotImplementedError("compiled code only")


@overload(after_ffn, jit_options=OVERLOAD)
def _after_ffn(options, thread, layer, n_threads, x, sums, w, dims):
    def plain(options, thread, layer, n_threads, x, sums, w, dims):
        add_ffn(n_threads, x, sums, w, dims.d_model)

    def special(options, thread, layer, n_threads, x, sums, w, dims):
        mine = row(options.out, thread)
        clear(mine)
        add_ffn(n_threads, mine, sums, w, dims.d_model)
        add_output(options, x, mine, options.norms[layer, LN2_POST], w[LN2_W], w[LN2_B], dims)

    return plain if isinstance(options, types.NoneType) else special


def normed_heads(options: Any, layer: int, which: int, dims: Any, x: Any) -> None:
    """Normalize queries (``which`` 0) or keys (1), heads by heads or the whole x, in place."""
    raise NotImplementedError("compiled code only")


@overload(normed_heads, jit_options=OVERLOAD)
def _normed_heads(options, layer, which, dims, x):
    def plain(options, layer, which, dims, x):
        pass

    def special(options, layer, which, dims, x):
        if options.qk_norm != NO_QK_NORM:
            n = dims.d_head if options.qk_norm == QK_HEADS else x.size
            for first in range(0, x.size, n):
                head = part(x, first, first + n)
                normalise(head, options.norms[layer, Q_NORM + which] + 4 * first, 0, dims, head)

    return plain if isinstance(options, types.NoneType) else special


def rotation_kind(options: Any, layer: int) -> int:
    """Return the number of a layer's rotation."""
    raise NotImplementedError("compiled code only")


@overload(rotation_kind, jit_options=OVERLOAD)
def _rotation_kind(options, layer):
    def plain(options, layer):
        return 0

    def special(options, layer):
        return options.rope_kind[layer]

    return plain if isinstance(options, types.NoneType) else special


def seen_from(options: Any, layer: int, position: int) -> int:
    """Return the first position that a position attends to."""
    raise NotImplementedError("compiled code only")


@overload(seen_from, jit_options=OVERLOAD)
def _seen_from(options, layer, position):
    def plain(options, layer, position):
        return 0

    def special(options, layer, position):
        return max(position + 1 - options.windows[layer], 0)

    return plain if isinstance(options, types.NoneType) else special


@inner
def read(options, x, w, b, dims, normed):
    """Write what attention or FFN reads to normed."""
    if options.block == OUTPUT_NORM or options.block == POST_NORM:
        for j in range(x.size):
            normed[j] = x[j]
    else:
        normalise(x, w, b, dims, normed)


@inner
def add_output(options, x, out, post, w, b, dims):  # ..., (d,) in place, (d,), addresses, Dims
    """Add an output to the residual stream, with the norms and the scale of the family."""
    if post:
        normalise(out, post, 0, dims, out)
    scale(out, options.residual_scale)
    add(x, out, x.size)
    if options.block == POST_NORM:
        normalise(x, w, b, dims, x)


@inner
def add_ffn(n_threads, x, sums, w, d):  # int, (d,) in place, (n_threads, >= d), the layer's table row, int
    for t in range(n_threads):
        add(x, row(sums, t), d)
    if w[B_OUT]:
        add(x, array_at(w[B_OUT], d, x), d)


@inner
def scale(x, by):  # (n,) in place, float32
    for j in range(x.size):
        x[j] *= by
