"""Token rules: every token selects its own neurons. The rule as data, and its effect on activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from minicore.core.neurons import CoreSet, top_mask
from minicore.errors import InputError, unknown

Array = np.ndarray

# the name of a layer's limit among the parameters of a restricted block
TOP, GATE = "mlp.top_k", "mlp.gate_threshold"
KINDS = {"top": TOP, "gate": GATE}


def keep_top(a: Array, k: int) -> Array:  # (n_tokens, n_neurons) -> the same
    """Return a with all but the k largest |a| of each token set to zero; NaN stays NaN.

    Of equal magnitudes the lower index is kept. This is the best that a token can do with k neurons; it needs
    all activations first, so it bounds every prediction.
    """
    magnitude = np.abs(a)
    kept = top_mask(magnitude, np.full(len(a), min(k, a.shape[1]))) | np.isnan(a)
    return np.where(kept, a, np.zeros_like(a))


def keep_open(a: Array, gate: Array, threshold: float) -> Array:  # (n_tokens, n_neurons) twice -> the same
    """Return a where the magnitude of the activated gate exceeds the threshold, else zero.

    CATS (2404.08763, eq. 4): the gate is computed for every neuron, and only the neurons that pass read their
    up and down rows. Threshold 0 drops only zeros (exact for ReLU), a negative threshold drops nothing. A NaN
    gate passes, so that NaN is not lost.
    """
    return np.where(np.abs(gate) <= threshold, np.zeros_like(a), a)


@dataclass(frozen=True)
class TokenRule:
    """A rule by which every token selects its neurons, from all neurons or from a core set.

    Attributes
    ----------
    kind : str
        ``top`` keeps the k largest |a|, where k is the limit. ``gate`` keeps neurons whose activated gate
        exceeds the limit in magnitude.
    limits : dict of int to number
        The limit of each restricted layer. Layers that are not listed are unchanged.
    n_neurons, n_layers : int
        FFN width and number of layers of the model.
    core : CoreSet or None
        The neurons that tokens select from; None is all neurons.
    settings : dict
        How the rule was made (JSON values).

    Examples
    --------
    >>> rule = TokenRule("top", {0: 3}, n_neurons=8, n_layers=2)
    >>> rule.limits, rule.neurons
    ({0: 3}, {})
    """

    kind: str
    limits: Mapping[int, float]
    n_neurons: int
    n_layers: int
    core: CoreSet | None = None
    settings: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of token rule", self.kind, KINDS)
        for layer, limit in self.limits.items():
            if not 0 <= layer < self.n_layers:
                raise InputError(f"token rule: layer {layer} is not one of 0 to {self.n_layers - 1}")
            if np.isnan(limit) or (self.kind == "top" and not 0 <= limit <= self.n_neurons):
                raise InputError(
                    f"token rule: {limit} is not a valid limit of kind {self.kind} for layer {layer}"
                )
        if self.core and (self.core.n_layers, self.core.n_neurons) != (self.n_layers, self.n_neurons):
            raise InputError(f"token rule: {self.core!r} belongs to another model")

    def __repr__(self) -> str:
        how = ", ".join(f"{key}={value}" for key, value in self.settings.items() if value is not None)
        inside = f" inside {self.core!r}" if self.core else ""
        return f"TokenRule({self.kind}, {len(self.limits)} of {self.n_layers} layers{inside}, {how})"

    @property
    def neurons(self) -> dict[int, Array]:
        """Ids of the neurons that tokens select from, for the layers that ``core`` restricts."""
        return self.core.neurons if self.core else {}

    def parameters(self, layer: int) -> dict[str, Array]:
        """Return the limit of a layer as a named parameter of its block, empty if the layer has none.

        Examples
        --------
        >>> rule = TokenRule("top", {0: 3}, n_neurons=8, n_layers=2)
        >>> rule.parameters(0), rule.parameters(1)
        ({'mlp.top_k': array(3)}, {})
        """
        if layer not in self.limits:
            return {}
        dtype = np.int64 if self.kind == "top" else np.float32
        return {KINDS[self.kind]: np.array(self.limits[layer], dtype)}


Selection = CoreSet | TokenRule  # what a predictor returns and decoding follows
