"""Clusters for a model, made of random numbers: what tests of several files need."""

import numpy as np

from minicore.core.similarity import Clusters
from minicore.generation.prediction import fingerprint


def clusters_of(model, n_clusters=2, seed=3, **changes):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, (n_clusters, model.config.n_layers, model.config.n_neurons)).astype(np.int32)
    fields = {
        "counts": counts,
        "sizes": np.full(n_clusters, 9, np.int32),
        "centroids": rng.random((n_clusters, model.config.n_neurons)).astype(np.float32),
        "layer": 1,
        "names": [str(i) for i in range(n_clusters)],
        "fingerprint": fingerprint(model),
        "settings": {"predictor": "stability", "alpha": 0.4, "beta": 0.4},
    }
    return Clusters(**fields | changes)
