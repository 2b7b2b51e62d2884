"""Choosing neurons anew for every token: the choice itself as data, and what it does to activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from minicore.core.neurons import CoreSet, top_mask
from minicore.errors import InputError, unknown

Array = np.ndarray

# what a layer's limit is called among the parameters of a restricted block
TOP, GATE = "mlp.top_k", "mlp.gate_threshold"
KINDS = {"top": TOP, "gate": GATE}


def keep_top(a: Array, k: int) -> Array:  # (n_tokens, n_neurons) -> the same
    """Return a with all but each token's k largest |a| set to zero; NaN stays NaN.

    Among equal magnitudes the lower index is kept. What a token could at best do with k neurons of its
    own choice, were it known before they are computed.
    """
    size = np.abs(a)
    kept = top_mask(size, np.full(len(a), min(k, a.shape[1]))) | np.isnan(a)
    return np.where(kept, a, np.zeros_like(a))


def keep_open(a: Array, gate: Array, threshold: float) -> Array:  # (n_tokens, n_neurons) twice -> the same
    """Return a where the activated gate is larger in magnitude than the threshold, else zero.

    CATS (2404.08763, eq. 4): the gate is computed for every neuron, the up and down rows are read for
    those that pass. A threshold of 0 drops what is zero anyway (exact ReLU skipping), a negative one
    nothing. A gate that is NaN passes, so that NaN survives.
    """
    return np.where(np.abs(gate) <= threshold, np.zeros_like(a), a)


@dataclass(frozen=True)
class TokenRule:
    """How every token chooses its neurons, in place of or inside a core set.

    Attributes
    ----------
    kind : str
        ``top``: the limit k largest |a|; ``gate``: activated gates larger in magnitude than the limit.
    limits : dict of int to number
        Each restricted layer's limit. A layer not listed stays as it is.
    n_neurons, n_layers : int
        FFN width and number of layers of the model it belongs to.
    core : CoreSet or None
        Where tokens choose from; None is all neurons.
    settings : dict
        How it was made (JSON values).

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
                raise InputError(f"token rule: the limit {limit} of layer {layer} is not one of {self.kind}")
        if self.core and (self.core.n_layers, self.core.n_neurons) != (self.n_layers, self.n_neurons):
            raise InputError(f"token rule: {self.core!r} is another model's")

    def __repr__(self) -> str:
        how = ", ".join(f"{key}={value}" for key, value in self.settings.items() if value is not None)
        inside = f" inside {self.core!r}" if self.core else ""
        return f"TokenRule({self.kind}, {len(self.limits)} of {self.n_layers} layers{inside}, {how})"

    @property
    def neurons(self) -> dict[int, Array]:
        """Ids of the neurons that tokens choose from, for layers where these are not all."""
        return self.core.neurons if self.core else {}

    def parameters(self, layer: int) -> dict[str, Array]:
        """Return what a restricted block holds besides its weights, by name.

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


Selection = CoreSet | TokenRule
