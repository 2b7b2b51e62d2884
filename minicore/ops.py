"""The maths of a transformer in plain NumPy: the reference for all faster implementations.

Arrays are float32 unless stated otherwise. Weights may also be bfloat16 or quantized; functions that take
weights compute with their float32 values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from minicore.config import ModelConfig
from minicore.quantization import GROUP, QuantizedMatrix, Weight
from minicore.quantization import fake_quantize as fake_quantize  # for callers of this module, too

Array = np.ndarray

TILE = 1 << 20  # elements that are converted to float32 at a time: 4 MB, which fits in caches


def to_float32(w: Weight) -> Array:  # any shape -> the same
    """Return ``w`` as float32: itself, or the exact float32 value of bfloat16 or quantized weights.

    Examples
    --------
    >>> import ml_dtypes
    >>> to_float32(np.array([1.5, -2], ml_dtypes.bfloat16))
    array([ 1.5, -2. ], dtype=float32)
    """
    if isinstance(w, QuantizedMatrix):
        return w.dequantize()
    if w.dtype == np.float32:
        return w
    # a bfloat16 is the upper half of a float32: shifting is faster than the general cast
    return np.left_shift(w.view(np.uint16), 16, dtype=np.uint32).view(np.float32)


def linear(x: Array, w: Weight, b: Array | None = None) -> Array:
    # (n, d_in), (d_out, d_in) -> (n, d_out)
    """Return ``x @ w.T + b``. For a quantized w, x is quantized first, as in the integer kernels.

    Examples
    --------
    >>> x, w = np.float32([[1, 2]]), np.float32([[3, 4], [5, 6], [0, 1]])
    >>> linear(x, w)
    array([[11., 17.,  2.]], dtype=float32)
    """
    x = x if isinstance(w, np.ndarray) else fake_quantize(x, GROUP)
    y = np.concatenate([x @ to_float32(w[rows]).T for rows in tiles(w, 0, len(w))], axis=1)
    return y if b is None else y + b


def linears(x: Array, weights: Sequence[tuple[Weight, Array | None]]) -> list[Array]:
    # (n, d_in), (d_out, d_in) and (d_out,) each -> (n, d_out) each
    """Return :func:`linear` of x with each of several matrices and biases.

    Examples
    --------
    >>> x, w = np.float32([[1, 2]]), np.float32([[3, 4]])
    >>> linears(x, [(w, None), (-w, np.float32([1]))])
    [array([[11.]], dtype=float32), array([[-10.]], dtype=float32)]
    """
    return [linear(x, w, b) for w, b in weights]


def weighted_rows(a: Array, w: Weight) -> Array:  # (n, m), (m, d) -> (n, d)
    """Return ``a @ w``: the weighted sum of w's rows.

    Examples
    --------
    >>> weighted_rows(np.float32([[2, 0, 1]]), np.float32([[1, 1], [5, 5], [0, 3]]))
    array([[2., 5.]], dtype=float32)
    """
    first, *rest = tiles(w, 0, len(w))
    y = a[:, first] @ to_float32(w[first])
    for rows in rest:
        y += a[:, rows] @ to_float32(w[rows])
    return y


def tiles(w: Weight, first: int, last: int) -> Iterator[slice]:
    """Yield slices of the rows from first to last: one if w is float32, else tiles of TILE elements.

    Converting tile by tile avoids a float32 copy of the whole matrix.

    Examples
    --------
    >>> import ml_dtypes
    >>> w = np.empty((5, 500_000), ml_dtypes.bfloat16)
    >>> list(tiles(w, 1, 5)), list(tiles(to_float32(w), 1, 5))
    ([slice(1, 3, None), slice(3, 5, None)], [slice(1, 5, None)])
    """
    n, d = last - first, w.shape[1]
    step = max(n if w.dtype == np.float32 else TILE // d, 1)
    for start in range(first, max(last, first + 1), step):
        yield slice(start, min(start + step, last))


def rms_norm(x: Array, w: Array, eps: float) -> Array:  # (n, d), (d,) -> (n, d)
    """Scale each row to root mean square 1, then multiply by ``w`` (Zhang & Sennrich, 1910.07467).

    Examples
    --------
    >>> rms_norm(np.float32([[1, 7]]), np.float32([1, 10]), eps=0.0)
    array([[ 0.2, 14. ]], dtype=float32)
    """
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * w


def layer_norm(x: Array, w: Array, b: Array, eps: float) -> Array:  # (n, d), (d,), (d,) -> (n, d)
    """Normalize each row to mean 0 and variance 1, then multiply by ``w`` and add ``b`` (1607.06450).

    Examples
    --------
    >>> layer_norm(np.float32([[1, 7]]), np.float32([1, 10]), np.float32([0, 5]), eps=0.0)
    array([[-1., 15.]], dtype=float32)
    """
    centred = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(eps)) * w + b


def softmax(x: Array) -> Array:  # (..., n) -> (..., n)
    """Return exp(x) divided by its sum along the last axis. The maximum is subtracted first.

    Examples
    --------
    >>> softmax(np.array([1000.0, 1000.0, -1000.0]))
    array([0.5, 0.5, 0. ])
    """
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def log_softmax(x: Array) -> Array:  # (..., n) -> (..., n)
    """Return the logarithm of :func:`softmax`, accurate also where the softmax rounds to 0.

    Examples
    --------
    >>> log_softmax(np.array([0.0, -1000.0]))
    array([    0., -1000.])
    """
    shifted = x - np.max(x, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def relu(x: Array) -> Array:  # any shape -> the same
    """Return max(x, 0); NaN stays NaN.

    Examples
    --------
    >>> relu(np.float32([-1, 2, np.nan]))
    array([ 0.,  2., nan], dtype=float32)
    """
    return np.maximum(x, np.float32(0))


def silu(x: Array) -> Array:  # any shape -> the same
    """Return x * sigmoid(x), without overflow for very negative x.

    Examples
    --------
    >>> silu(np.array([-1000.0, 0.0, 1.0])).round(3)
    array([-0.   ,  0.   ,  0.731])
    """
    e = np.exp(-np.abs(x))
    return x * np.where(x >= 0, 1, e) / (1 + e)


def gelu_tanh(x: Array) -> Array:  # any shape -> the same
    """Return the tanh approximation of GELU that GPT-2 uses (1606.08415, sec. 2).

    Examples
    --------
    >>> gelu_tanh(np.float32([-1, 0, 1])).round(3)
    array([-0.159,  0.   ,  0.841], dtype=float32)
    """
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (1 + np.tanh(inner))


def gelu(x: Array) -> Array:  # any shape -> the same
    """Return x times the normal distribution's cumulative probability of x (1606.08415, eq. 2).

    Examples
    --------
    >>> gelu(np.float32([-1, 0, 1])).round(3)
    array([-0.159,  0.   ,  0.841], dtype=float32)
    """
    return np.float32(0.5) * x * (1 + erf(x * np.float32(np.sqrt(0.5))))


def erf(x: Array) -> Array:  # any shape -> the same
    """Return the error function, to 1.2e-7: x times a polynomial below 1, else 1 minus a decaying tail.

    Examples
    --------
    >>> erf(np.float32([0, 0.5, 1, -3])).round(4)
    array([ 0.    ,  0.5205,  0.8427, -1.    ], dtype=float32)
    """
    t = np.abs(x.astype(np.float64))
    tail = 1 / (1 + 0.5 * t)
    powers = (
        *(-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806),
        *(0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277),
    )
    inside = np.zeros_like(t)
    for c in reversed(powers):
        inside = inside * tail + c
    return np.copysign(1 - tail * np.exp(inside - t * t), x).astype(x.dtype)


def relu2(x: Array) -> Array:  # any shape -> the same
    """Return max(x, 0) squared (Primer, 2109.08668).

    Examples
    --------
    >>> relu2(np.float32([-1, 3]))
    array([0., 9.], dtype=float32)
    """
    positive = relu(x)
    return positive * positive


def fatrelu(x: Array, threshold: float = 0.0) -> Array:  # any shape -> the same
    """Return x where it is larger than the threshold, else 0 (ProSparse, 2402.13516); NaN stays NaN.

    Examples
    --------
    >>> fatrelu(np.float32([-1, 0.005, 2]), 0.01)
    array([0., 0., 2.], dtype=float32)
    """
    return np.where(x <= np.float32(threshold), np.float32(0), x)


def sigmoid(x: Array) -> Array:  # any shape -> the same
    """Return 1 / (1 + exp(-x)), without overflow.

    Examples
    --------
    >>> sigmoid(np.array([-1000.0, 0.0, 1.0])).round(3)
    array([0.   , 0.5  , 0.731])
    """
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def quick_gelu(x: Array) -> Array:  # any shape -> the same
    """Return x * sigmoid(1.702 x), CLIP's approximation of GELU (1606.08415, sec. 2).

    Examples
    --------
    >>> quick_gelu(np.float32([-1, 0, 1])).round(3)
    array([-0.154,  0.   ,  0.846], dtype=float32)
    """
    return x * sigmoid(np.float32(1.702) * x)


def mish(x: Array) -> Array:  # any shape -> the same
    """Return x * tanh(log(1 + exp(x))) (1908.08681).

    Examples
    --------
    >>> mish(np.float32([-1, 0, 1])).round(3)
    array([-0.303,  0.   ,  0.865], dtype=float32)
    """
    return x * np.tanh(np.maximum(x, np.float32(0)) + np.log1p(np.exp(-np.abs(x))))


ACTIVATIONS: dict[str, Callable[..., Array]] = {
    "relu": relu,
    "silu": silu,
    "gelu_tanh": gelu_tanh,
    "gelu": gelu,
    "relu2": relu2,
    "fatrelu": fatrelu,
    "quick_gelu": quick_gelu,
    "relu6": lambda x: np.minimum(relu(x), np.float32(6)),
    "leaky_relu": lambda x: np.where(x < 0, np.float32(0.01) * x, x),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "mish": mish,
    "identity": lambda x: x,
}


def rope_frequencies(cfg: ModelConfig, layer: int = 0, long: bool = False) -> Array:  # -> (d_rope // 2,)
    """Return the rotation of each rotary pair per position, in radians (RoFormer, 2104.09864).

    ``long`` takes LongRoPE's divisors of long texts, if the model has them. A layer without positions is
    rotated by zero.

    Examples
    --------
    >>> from minicore.config import ModelConfig
    >>> cfg = ModelConfig("llama", 1, 8, 2, 2, 4, 8, 16, 32, "rmsnorm", 1e-5, "silu", True, "rope")
    >>> rope_frequencies(cfg)
    array([1.  , 0.01], dtype=float32)
    """
    n = cfg.n_rotated
    if layer in cfg.nope_layers:
        return np.zeros(n // 2, np.float32)
    theta, factors = cfg.rope_theta, cfg.rope_factors
    if cfg.rope_local_theta is not None and cfg.windows and cfg.windows[layer]:
        theta, factors = cfg.rope_local_theta, None
    elif long and cfg.rope_long_factors is not None:
        factors = cfg.rope_long_factors
    divisors = np.ones(n // 2) if factors is None else np.array(factors)
    return (theta ** -(np.arange(0, n, 2) / n) / divisors).astype(np.float32)


def rope(x: Array, positions: Array, frequencies: Array, scale: float = 1.0) -> Array:
    # (n, heads, d_head), (n,), (d_rope // 2,) -> like x
    """Rotate the pairs (j, j + d_rope // 2) of each head by position times frequency, and scale them.

    Further dimensions of a head stay as they are. Angles are computed in float32, as in Transformers, so that
    results agree for long contexts too.

    Examples
    --------
    >>> x = np.float32([[[1, 0]], [[1, 0]]])  # the same head at two positions
    >>> rope(x, np.array([0, 1]), np.float32([np.pi / 2]))[1].round(3)  # a quarter of a turn
    array([[-0.,  1.]], dtype=float32)
    """
    angles = positions.astype(np.float32)[:, None] * frequencies  # (n, d_rope // 2)
    cos, sin = (np.float32(scale) * f(angles)[:, None, :] for f in (np.cos, np.sin))
    half = len(frequencies)
    first, second, rest = np.split(x, (half, 2 * half), axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


class Scoring(NamedTuple):
    """How a layer's attention scores are made from products of queries and keys.

    Attributes
    ----------
    scale : float or None
        Multiplies products; None is d_head ** -0.5.
    softcap : float
        Scores become softcap * tanh(score / softcap); 0 is no cap.
    window : int
        How many last positions a query sees, its own included; 0 is all.
    alibi : bool
        Whether products grow with the key's position: :func:`alibi_bias`.
    """

    scale: float | None = None
    softcap: float = 0.0
    window: int = 0
    alibi: bool = False

    @classmethod
    def of(cls, cfg: ModelConfig, layer: int) -> Scoring:
        """Return how a layer makes its scores.

        Examples
        --------
        >>> import minicore as mc
        >>> Scoring.of(mc.load("minicore-opt-core").config, layer=0) == USUAL
        True
        """
        window = cfg.window(layer)
        return cls(
            scale=cfg.score_scale,
            softcap=cfg.score_softcap,
            window=window if window < cfg.n_ctx else 0,
            alibi=cfg.positions == "alibi",
        )

    def factor(self, d_head: int) -> np.float32:
        """Return what products of heads of this width are multiplied by.

        Examples
        --------
        >>> float(Scoring().factor(4)), float(Scoring(scale=0.25).factor(4))
        (0.5, 0.25)
        """
        return np.float32(d_head**-0.5 if self.scale is None else self.scale)


USUAL = Scoring()  # scaled dot products, all positions


def softcap(x: Array, cap: float) -> Array:  # any shape -> the same
    """Return cap * tanh(x / cap), which stays between -cap and cap; a cap of 0 is none (Gemma 2, 2408.00118).

    Examples
    --------
    >>> softcap(np.float32([0.1, 100]), 30.0).round(2)
    array([ 0.1 , 29.92], dtype=float32)
    """
    return np.float32(cap) * np.tanh(x / np.float32(cap)) if cap else x


def alibi_bias(n_heads: int, n: int) -> Array:  # -> (n_heads, n)
    """Return what is added to the products with n keys: a head's slope times the key's position (2108.12409).

    Slopes and products are rounded to bfloat16, as in Falcon.

    Examples
    --------
    >>> alibi_bias(2, 3)
    array([[0.        , 0.0625    , 0.125     ],
           [0.        , 0.00390625, 0.0078125 ]], dtype=float32)
    """
    import ml_dtypes

    power = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(n_heads - power)]
    rounded = np.array(slopes, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    biases = rounded[:, None] * np.arange(n, dtype=np.float32)
    return biases.astype(ml_dtypes.bfloat16).astype(np.float32)


def attention_pattern(q: Array, k: Array, scoring: Scoring = USUAL) -> tuple[Array, Array]:
    # (n_q, n_heads, d_head), (n_kv_heads, n_kv, d_head) -> (n_heads, n_q, n_kv) twice
    """Return causally masked scores and their softmax. The queries are the last n_q of n_kv positions.

    In grouped-query attention, n_heads // n_kv_heads adjacent query heads share a key head.

    Examples
    --------
    >>> q, k = np.zeros((2, 1, 4), np.float32), np.ones((1, 2, 4), np.float32)
    >>> attention_pattern(q, k)[1][0]  # the first position sees only itself
    array([[1. , 0. ],
           [0.5, 0.5]], dtype=float32)
    """
    n_q, n_heads, d_head = q.shape
    n_kv_heads, n_kv, _ = k.shape
    grouped = q.transpose(1, 0, 2).reshape(n_kv_heads, -1, d_head)
    scores = (grouped @ k.transpose(0, 2, 1)).reshape(n_heads, n_q, n_kv)
    if scoring.alibi:
        scores += alibi_bias(n_heads, n_kv)[:, None, :]
    scores *= scoring.factor(d_head)
    scores = softcap(scores, scoring.softcap)
    key, query = np.arange(n_kv)[None, :], np.arange(n_kv - n_q, n_kv)[:, None]
    hidden = key > query
    if scoring.window:
        hidden |= key <= query - scoring.window
    scores[:, hidden] = -np.inf
    return scores, softmax(scores)


def attend(pattern: Array, v: Array) -> Array:
    # (n_heads, n_q, n_kv), (n_kv_heads, n_kv, d_head) -> (n_q, n_heads, d_head)
    """Return the values averaged with the pattern's weights.

    Examples
    --------
    >>> v = np.float32([[[1, 0], [0, 1]]])  # one head, two positions
    >>> attend(np.float32([[[0.25, 0.75]]]), v)
    array([[[0.25, 0.75]]], dtype=float32)
    """
    n_heads, n_q, n_kv = pattern.shape
    mixed = pattern.reshape(v.shape[0], -1, n_kv) @ v
    return mixed.reshape(n_heads, n_q, -1).transpose(1, 0, 2)


def attention(q: Array, k: Array, v: Array, scoring: Scoring = USUAL) -> Array:
    # (n_q, n_heads, d_head), (n_kv_heads, n_kv, d_head) twice -> (n_q, n_heads, d_head)
    """Return causal scaled dot-product attention (1706.03762, eq. 1).

    Examples
    --------
    >>> q, k = np.zeros((2, 1, 2), np.float32), np.ones((1, 2, 2), np.float32)
    >>> attention(q, k, v=np.float32([[[1, 0], [0, 1]]])).tolist()
    [[[1.0, 0.0]], [[0.5, 0.5]]]
    """
    return attend(attention_pattern(q, k, scoring)[1], v)
