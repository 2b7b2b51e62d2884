"""How many neurons and bytes a decoded token reads. These are counts, not measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minicore.core.rules import Selection, TokenRule
from minicore.model import PER_NEURON

if TYPE_CHECKING:
    from minicore.model import Model

Array = np.ndarray


def neurons_kept(model: Model, core: Selection | None, neurons_read: Array | None = None) -> Array:
    # (n_layers,) or None -> (n_layers,)
    """Return how many neurons' output rows a decoded token reads in each layer.

    In layers where each token selects its own neurons, this is ``neurons_read``, the mean a decoder counted.
    Without it, it is the number of neurons the token selects from.
    """
    n_neurons = model.config.n_neurons
    kept = np.full(model.config.n_layers, n_neurons, float)
    for layer, ids in core.neurons.items() if core else ():
        kept[layer] = len(ids)
    for layer, limit in core.limits.items() if isinstance(core, TokenRule) else ():
        most = min(kept[layer], limit) if isinstance(core, TokenRule) and core.kind == "top" else kept[layer]
        kept[layer] = most if neurons_read is None else neurons_read[layer]
    return kept


def bytes_per_token(model: Model, core: Selection | None, kept: Array | None = None) -> int:
    """Return the bytes of weights that one decoded token reads. It reads one row of the embedding.

    Where each token selects its own neurons, it first reads some rows of every neuron it selects from: those
    of ``w_gate`` (of ``w_in`` in families without a gate), and for the k largest those of ``w_in`` as well.
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
    """Return the matrices a token reads before it has selected its neurons."""
    if not isinstance(core, TokenRule) or layer not in core.limits:
        return ()
    inputs = ("mlp.w_in", "mlp.b_in")
    return (("mlp.w_gate", "mlp.b_gate") if gated else inputs) + (inputs if core.kind == "top" else ())
