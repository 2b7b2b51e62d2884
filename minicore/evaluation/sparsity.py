"""How sparse a model's FFN activations are on a text, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minicore.evaluation.texts import read_lines, sample_files
from minicore.forward import prefill
from minicore.model import Model

Array = np.ndarray

FRACTIONS = (0.1, 0.2, 0.4)  # of the neurons, whose share of the energy is reported
N_TOKENS = 256  # of the default text


class LayerSparsity:
    """Adds up what a layer's activations look like, chunk by chunk of a text.

    A token's energy is the sum of its squared activations. Every token counts alike, however large its
    activations are: the first one of a text often has far larger ones than all others.

    Parameters
    ----------
    n_neurons : int

    Examples
    --------
    >>> layer = LayerSparsity(n_neurons=4)
    >>> layer.add(np.array([[0.0, 1.0, 0.0, 3.0], [0.0, 0.0, -2.0, 0.0]]))
    >>> layer.result(fractions=(0.25, 0.5))
    {'positive': 0.25, 'zero': 0.625, 'own': [0.95, 1.0], 'shared': [0.5, 0.95]}
    """

    def __init__(self, n_neurons: int) -> None:
        self.n_tokens = self.n_active = self.n_positive = self.n_zero = 0
        self.by_rank = np.zeros(n_neurons)  # energy of a token's largest, second largest, ... activation
        self.by_neuron = np.zeros(n_neurons)

    def add(self, a: Array) -> None:  # (n_tokens, n_neurons)
        """Count the activations of some tokens."""
        self.n_tokens += len(a)
        self.n_positive += int((a > 0).sum())
        self.n_zero += int((a == 0).sum())
        energy = np.square(a, dtype=np.float64)
        total = energy.sum(axis=1, keepdims=True)
        energy = energy[total[:, 0] > 0] / total[total > 0][:, None]  # a token without energy has no shares
        self.n_active += len(energy)
        self.by_neuron += energy.sum(axis=0)
        energy.sort(axis=1)
        self.by_rank += energy.sum(axis=0)[::-1]

    def result(self, fractions: Sequence[float] = FRACTIONS) -> dict[str, Any]:
        """Return the shares of positive activations and zeros, and the shares of energy.

        ``own`` is the mean share of a token's energy in that fraction of the neurons, chosen for each token.
        ``shared`` is the same for one set of neurons, the best for all tokens together. A share of nothing
        is None.

        Examples
        --------
        >>> LayerSparsity(n_neurons=4).result()["shared"]
        [None, None, None]
        """
        n_neurons = len(self.by_rank)
        counts = [max(1, math.floor(fraction * n_neurons)) for fraction in fractions]
        best = np.sort(self.by_neuron)[::-1]
        return {
            "positive": _share(self.n_positive, self.n_tokens * n_neurons),
            "zero": _share(self.n_zero, self.n_tokens * n_neurons),
            "own": [_share(self.by_rank[:k].sum(), self.n_active) for k in counts],
            "shared": [_share(best[:k].sum(), self.n_active) for k in counts],
        }


def _share(part: float, whole: int) -> float | None:
    return float(part / whole) if whole else None


def default_ids(model: Model) -> list[int]:
    """Return the ids of the sample corpus's first long text, cut to 256 tokens and to the model's context.

    Examples
    --------
    >>> import minicore as mc
    >>> len(default_ids(mc.load("minicore-opt-core")))
    256
    """
    assert model.tokenizer is not None
    _, text = next(read_lines(sample_files()[1]))
    return model.tokenizer.encode(text)[: min(N_TOKENS, model.config.n_ctx)]


def measure(model: Model, ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return the sparsity of each layer's activations on a text, as :meth:`LayerSparsity.result` has it.

    Parameters
    ----------
    ids : (n_tokens,) integers

    Raises
    ------
    InputError
        If ids are empty, outside the vocabulary, or more than the context holds.

    Examples
    --------
    >>> import minicore as mc
    >>> first = measure(mc.load("minicore-opt-core"), [5, 6, 7])[0]
    >>> round(first["positive"] + first["zero"], 6)  # ReLU
    1.0
    """
    array = model.check_ids(ids)
    layers = [LayerSparsity(model.config.n_neurons) for _ in range(model.config.n_layers)]
    hooks = {f"blocks.{i}.mlp.hook_post": layer.add for i, layer in enumerate(layers)}
    prefill(model, array, model.new_cache(len(array)), hooks)
    return [layer.result() for layer in layers]
