"""The maths of :mod:`minicore.ops` for whole prompts: matrix products by BLAS, the rest compiled.

Names, arguments and results are the same as there. Each thread computes a part of a product with BLAS. What
is between products takes one pass over memory each, and threads share its rows.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np

from minicore import ops
from minicore.backends.cpu import threads
from minicore.backends.cpu.attention import exponentials
from minicore.backends.cpu.compiling import kernel
from minicore.backends.cpu.ffn import activate
from minicore.backends.cpu.intrinsics import part, row
from minicore.backends.cpu.quantized_inputs import fake_quantize_rows
from minicore.backends.cpu.rows import rows_to_float32, storage
from minicore.backends.cpu.statistics import ADDERS, add_counts  # noqa: F401 (adders for recordings)
from minicore.backends.dims import ACTIVATION_CODES
from minicore.checkpoint.tensors import DTYPES
from minicore.config import ModelConfig
from minicore.ops import attend, attention_pattern, tiles, to_float32  # noqa: F401 (some as they are)
from minicore.quantization import FORMATS, GROUP, QuantizedMatrix

Array = np.ndarray

# Multiplications that one thread does in the time another takes to wake up.
ONE_THREAD_PRODUCTS = 1 << 23
# Queries at a time: the scores of three heads for 512 positions take 393 kB, which the second cache holds.
QUERIES = 64
_local = threading.local()


def _share(function: Any, n_rows: int, size: int, *args: Any) -> None:
    threads.run(
        function, threads.default_threads() if size > threads.ONE_THREAD_ELEMENTS else 1, n_rows, *args
    )


def linear(x: Array, w: Array | QuantizedMatrix, b: Array | None = None) -> Array:
    # (n, d_in), (d_out, d_in) -> (n, d_out)
    """See :func:`minicore.ops.linear`."""
    return linears(x, [(w, b)])[0]


def linears(x: Array, weights: Sequence[tuple[Array | QuantizedMatrix, Array | None]]) -> list[Array]:
    # (n, d_in), (d_out, d_in) and (d_out,) each -> (n, d_out) each
    """See :func:`minicore.ops.linears`."""
    if isinstance(weights[0][0], QuantizedMatrix):
        x = fake_quantize(x, GROUP)
    products = [np.empty((len(x), len(w)), np.float32) for w, _ in weights]
    _multiply(_linears, sum(x.size * len(w) for w, _ in weights), x, weights, products)
    return products


def fake_quantize(x: Array, size: int) -> Array:  # (n, d) -> (n, d)
    """See :func:`minicore.quantization.fake_quantize`."""
    y = np.empty_like(x)
    _share(fake_quantize_rows, len(x), x.size, size, x, y)
    return y


def _linears(thread: int, n_threads: int, x: Array, weights: Any, products: list[Array]) -> None:
    """Compute a thread's part of each product: for some tokens or, with more rows than tokens, some rows."""
    for (w, b), y in zip(weights, products, strict=True):
        tokens, first, last = slice(None), 0, len(w)
        if len(w) <= len(x) and w.dtype == np.float32:  # else each thread would convert all rows
            tokens = slice(thread * len(x) // n_threads, (thread + 1) * len(x) // n_threads)
        else:
            first, last = thread * len(w) // n_threads, (thread + 1) * len(w) // n_threads
        for rows in tiles(w, first, last):
            np.matmul(x[tokens], _rows_to_float32(w, rows).T, out=y[tokens, rows])
        if b is not None:
            y[tokens, first:last] += b[first:last]


def weighted_rows(a: Array, w: Array | QuantizedMatrix) -> Array:  # (n, m), (m, d) -> (n, d)
    """See :func:`minicore.ops.weighted_rows`."""
    y = np.empty((len(a), w.shape[1]), np.float32)
    for rows in tiles(w, 0, len(w)):
        wide = _rows_to_float32(w, rows, together=True)
        _multiply(_add_product, y.size * len(wide), a[:, rows], wide, y, rows.start == 0)
    return y


def _add_product(thread: int, n_threads: int, a: Array, w: Array, y: Array, first: bool) -> None:
    """Add some tokens' products to what y holds, unless they are the first."""
    tokens = slice(thread * len(a) // n_threads, (thread + 1) * len(a) // n_threads)
    if first:
        np.matmul(a[tokens], w, out=y[tokens])
    else:
        y[tokens] += a[tokens] @ w


def _multiply(function: Any, n_products: int, *args: Any) -> None:
    """Call a function in each thread, with its own matrix products."""
    with threads.one_thread_per_product():
        threads.run(function, threads.default_threads() if n_products > ONE_THREAD_PRODUCTS else 1, *args)


def _rows_to_float32(
    w: Array | QuantizedMatrix, rows: slice, together: bool = False
) -> Array:  # (m, d) -> (n, d)
    """Return some rows as float32, in a buffer if they are not; with ``together`` by all threads."""
    if w.dtype == np.float32:
        return w[rows]
    (m, d), n, data = w.shape, rows.stop - rows.start, storage(w)
    y = _buffer(n * d).reshape(n, d)
    share = y.size if together else 0
    _share(rows_to_float32, n, share, data.reshape(-1)[:0], data.ctypes.data, m, d, rows.start, y)
    return y


def _buffer(size: int) -> Array:  # -> (size,)
    held = getattr(_local, "buffer", None)
    if held is None or held.size < size:
        held = _local.buffer = np.empty(size, np.float32)
    return held[:size]


@kernel
def _rms_norm(thread, n_threads, n, x, w, eps, y):  # (n, d), (d,), (n, d)
    for t in range(thread * n // n_threads, (thread + 1) * n // n_threads):
        square = np.float32(0)
        for j in range(x.shape[1]):
            square += x[t, j] * x[t, j]
        scale = np.float32(1) / np.float32(math.sqrt(square / np.float32(x.shape[1]) + eps))
        for j in range(x.shape[1]):
            y[t, j] = x[t, j] * scale * w[j]


def rms_norm(x: Array, w: Array, eps: float) -> Array:  # (n, d), (d,) -> (n, d)
    """See :func:`minicore.ops.rms_norm`."""
    y = np.empty_like(x)
    _share(_rms_norm, len(x), x.size, x, w, np.float32(eps), y)
    return y


@kernel
def _layer_norm(thread, n_threads, n, x, w, b, eps, y):
    d = np.float32(x.shape[1])
    for t in range(thread * n // n_threads, (thread + 1) * n // n_threads):
        mean, square = np.float32(0), np.float32(0)
        for j in range(x.shape[1]):
            mean += x[t, j]
        mean /= d
        for j in range(x.shape[1]):
            square += (x[t, j] - mean) * (x[t, j] - mean)
        scale = np.float32(1) / np.float32(math.sqrt(square / d + eps))
        for j in range(x.shape[1]):
            y[t, j] = (x[t, j] - mean) * scale * w[j] + b[j]


def layer_norm(x: Array, w: Array, b: Array, eps: float) -> Array:  # (n, d), (d,), (d,) -> (n, d)
    """See :func:`minicore.ops.layer_norm`."""
    y = np.empty_like(x)
    _share(_layer_norm, len(x), x.size, x, w, b, np.float32(eps), y)
    return y


@kernel
def _activate(thread, n_threads, n, x, code, threshold, y):  # (n, d), int, float32, (n, d)
    for t in range(thread * n // n_threads, (thread + 1) * n // n_threads):
        for j in range(x.shape[1]):
            y[t, j] = x[t, j]
        activate(row(y, t), code, threshold)


def _activation(name: str, x: Array, threshold: float = 0.0) -> Array:  # (n, d) -> (n, d)
    y = np.empty_like(x)
    _share(_activate, len(x), x.size, x, ACTIVATION_CODES[name], np.float32(threshold), y)
    return y


ACTIVATIONS = {name: partial(_activation, name) for name in ACTIVATION_CODES}


@kernel
def _rope(thread, n_threads, n, x, cos, sin, y):  # (n, h, d), (n, d_rope // 2) x 2
    half = cos.shape[1]
    for t in range(thread * n // n_threads, (thread + 1) * n // n_threads):
        for h in range(x.shape[1]):
            for j in range(half):
                first, second = x[t, h, j], x[t, h, j + half]
                y[t, h, j] = first * cos[t, j] - second * sin[t, j]
                y[t, h, j + half] = second * cos[t, j] + first * sin[t, j]
            for j in range(2 * half, x.shape[2]):  # not rotated
                y[t, h, j] = x[t, h, j]


def rope(x: Array, positions: Array, frequencies: Array, scale: float = 1.0) -> Array:
    # (n, heads, d_head), (n,), (d_rope // 2,) -> like x
    """See :func:`minicore.ops.rope`."""
    y = np.empty_like(x)
    cos, sin = _rotation(positions.astype(np.float32).tobytes(), frequencies.tobytes(), scale)
    _share(_rope, len(x), x.size, x, cos, sin, y)
    return y


@lru_cache(maxsize=2)  # most layers rotate queries and keys alike
def _rotation(positions: bytes, frequencies: bytes, scale: float) -> tuple[Array, Array]:
    # -> (n, d_rope // 2) twice
    angles = np.frombuffer(positions, np.float32)[:, None] * np.frombuffer(frequencies, np.float32)
    return np.float32(scale) * np.cos(angles), np.float32(scale) * np.sin(angles)


rope_frequencies = cache(ops.rope_frequencies)


def attention(q: Array, k: Array, v: Array, scoring: ops.Scoring = ops.USUAL) -> Array:
    # (n_q, n_heads, d_head), (n_kv_heads, n_kv, d_head) twice -> (n_q, n_heads, d_head)
    """See :func:`minicore.ops.attention`.

    A thread takes a few queries of the heads that share a key head at a time. Their scores stay in the CPU's
    cache, and scores of later positions are not computed.
    """
    z = np.empty_like(q)
    blocks = [(head, first) for first in range(0, len(q), QUERIES) for head in range(len(k))]
    _multiply(_attend, q.size * k.shape[1], iter(blocks), q, k, v, scoring, z)
    return z


def _attend(
    thread: int,
    n_threads: int,
    blocks: Iterator[tuple[int, int]],
    q: Array,
    k: Array,
    v: Array,
    scoring: ops.Scoring,
    z: Array,
) -> None:
    """Attend with blocks of queries, each a key head and a first query, while there are any left."""
    n, n_heads, d_head = q.shape
    n_kv_heads, n_kv, _ = k.shape
    group, window = n_heads // n_kv_heads, scoring.window or n_kv
    scale = scoring.factor(d_head)
    biases = scale * ops.alibi_bias(n_heads, n_kv) if scoring.alibi else None
    for head, first in blocks:  # threads share the iterator
        block = slice(first, first + QUERIES), slice(head * group, (head + 1) * group)
        seen = n_kv - n + first + 1  # positions that the first query sees; each later query sees one more
        start, last = max(seen - window, 0), min(seen + QUERIES - 1, n_kv)
        scores = (q[block] * scale).reshape(-1, d_head) @ k[head, start:last].T
        if biases is not None:
            bias = biases[block[1], start:last]
            scores = (scores.reshape(-1, *bias.shape) + bias).reshape(scores.shape)
        scores = ops.softcap(scores, scoring.softcap)
        causal_softmax(scores, seen - start, group, window)
        z[block] = (scores @ v[head, start:last]).reshape(z[block].shape)


@kernel
def causal_softmax(scores, seen, group, window):  # (n * group, n_kv), int, int, int
    """Replace scores by their softmax over the last ``window`` of what a row sees.

    The first row sees ``seen`` positions, and rows see one more every ``group`` rows.
    """
    for r in range(len(scores)):
        n = seen + r // group
        start = n - window if n > window else 0
        _, total = exponentials(part(row(scores, r), start, n))
        share = np.float32(1) / total
        for j in range(start):
            scores[r, j] = np.float32(0)
        for j in range(start, n):
            scores[r, j] *= share
        for j in range(n, scores.shape[1]):
            scores[r, j] = np.float32(0)


def compile_for(config: ModelConfig, dtype: str) -> None:
    """Compile what a model's prompts need, or read its machine code from disk, before anything is timed."""
    _compile_for(config.norm, config.activation, config.positions, dtype)


@cache
def _compile_for(norm: str, activation: str, positions: str, dtype: str) -> None:
    x, w = np.ones((1, 2), np.float32), np.ones(2, np.float32)
    if norm == "rmsnorm":
        rms_norm(x, w, 1e-5)
    else:
        layer_norm(x, w, w, 1e-5)
    ACTIVATIONS[activation](x)
    if positions == "rope":
        rope(x[None], np.zeros(1), w[:1])
    attention(x[None], x[None], x[None])
    linear(x, QuantizedMatrix.quantize(dtype, x) if dtype in FORMATS else x.astype(DTYPES[dtype]))
    add_counts(np.zeros(2, np.int64), x, 0.5)
    add_counts(np.zeros(2, np.int64), x, 0.5)
