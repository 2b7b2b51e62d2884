"""What decoding with a selection reads: neurons and bytes per token, counted, not measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minicore.core.rules import Selection, TokenRule
from minicore.model import PER_NEURON

if TYPE_CHECKING:
    from minicore.model import Model

Array = np.ndarray


def neurons_kept(model: Model, core: Selection | None, n_used: Array | None = None) -> Array:
    # (n_layers,) or None -> (n_layers,)
    """Return how many neurons' output rows a decoded token reads in each layer.

    ``n_used`` are the means that a decoder counted, for layers where each token chooses for itself; without
    them these count as all that may be chosen from.
    """
    n_neurons = model.config.n_neurons
    kept = np.full(model.config.n_layers, n_neurons, float)
    for layer, ids in core.neurons.items() if core else ():
        kept[layer] = len(ids)
    for layer, limit in core.limits.items() if isinstance(core, TokenRule) else ():
        most = min(kept[layer], limit) if isinstance(core, TokenRule) and core.kind == "top" else kept[layer]
        kept[layer] = most if n_used is None else n_used[layer]
    return kept


def bytes_per_token(model: Model, core: Selection | None, kept: Array | None = None) -> int:
    """Return the bytes of weights that one decoded token reads; of the embedding that is one row.

    Where each token chooses for itself, the rows that the choice is made from are read for all neurons of
    the set: the gate's (``w_in`` in families without one), and for the k largest ``w_in`` too.
    """
    kept = neurons_kept(model, core) if kept is None else kept
    read = float(model.head.nbytes + model.params["embed"][0].nbytes)
    for layer, block in enumerate(model.blocks):
        among = len(core.neurons[layer]) if core and layer in core.neurons else model.config.n_neurons
        first = _read_first(core, layer, model.config.gated)
        for name, w in block.items():
            n_rows = (among if name in first else kept[layer]) if name in PER_NEURON else len(w)
            read += w.nbytes // len(w) * n_rows
    return round(read)


def _read_first(core: Selection | None, layer: int, gated: bool) -> tuple[str, ...]:
    """Return the matrices a token reads before it has chosen."""
    if not isinstance(core, TokenRule) or layer not in core.limits:
        return ()
    inputs = ("mlp.w_in", "mlp.b_in")
    return (("mlp.w_gate", "mlp.b_gate") if gated else inputs) + (inputs if core.kind == "top" else ())
