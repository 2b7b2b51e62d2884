"""Similarity-guided prediction: clusters of texts by meaning, and the neurons frequent within each.

Texts of close meaning have close core neurons (2410.18311 secs. 3.2, 4.1). A training set is clustered, by
its labels or by k-means; a new prompt is assigned to the nearest cluster, and decodes with the top gamma of
the neurons that most often are core neurons of that cluster's texts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np

from minicore.core.neurons import CoreSet, core_from_scores
from minicore.errors import InputError
from minicore.files import atomic_write

Array = np.ndarray

FEWEST, MOST = 4, 24  # clusters the elbow rule tries (the paper: at least 4)


def core_vector(ids: Array, n_neurons: int) -> Array:  # (n_core,) -> (n_neurons,) float32
    """Return a core set as a vector: 1 for its neurons, 0 for the others."""
    vector = np.zeros(n_neurons, np.float32)
    vector[ids] = 1
    return vector


def unit(vectors: Array) -> Array:  # (..., d) -> the same
    """Scale vectors to length 1, so that distance is similarity of direction; zeros stay."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def elbow(inertia: Sequence[float]) -> int:  # (n,) -> index
    """Return where a falling curve bends: its point farthest below the line from its first to its last."""
    y = np.asarray(inertia, float)
    if len(y) < 3:
        return 0
    line = np.linspace(y[0], y[-1], len(y))
    return int(np.argmax(line - y))


def kmeans(vectors: Array, k: int | None = None, seed: int = 0) -> Array:  # (n, d) -> int (n,)
    """Return each vector's cluster, 0 to k - 1; k of None is where the inertia of 4, 5, ... clusters bends.

    Raises
    ------
    InputError
        If there are fewer distinct vectors than clusters, or scikit-learn is not there.

    Examples
    --------
    >>> found = kmeans(np.array([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]]), k=2)
    >>> bool(found[0] == found[1] != found[2] == found[3])
    True
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise InputError("k-means needs scikit-learn: pip install scikit-learn, or give labels") from None
    distinct = len(np.unique(vectors, axis=0))
    fewest = FEWEST if k is None else k
    if not 1 <= fewest <= distinct:
        raise InputError(
            f"{distinct} distinct texts cannot make {fewest} clusters, expected more texts or a smaller k"
        )
    tried = range(FEWEST, min(MOST, distinct) + 1) if k is None else [k]
    fits = [KMeans(n_clusters, n_init=4, random_state=seed).fit(vectors) for n_clusters in tried]
    best = fits[elbow([fit.inertia_ for fit in fits])]
    return best.labels_.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters of texts, each with how many of its texts have each neuron in their core.

    Attributes
    ----------
    counts : (n_clusters, n_layers, n_neurons) int32 array
        Texts of the cluster whose core set of the layer holds the neuron.
    sizes : (n_clusters,) int32 array
        Texts of each cluster.
    centroids : (n_clusters, d) float32 array
        Means of the texts' vectors, each of length 1.
    layer : int or None
        The layer whose core sets are the vectors; None if the vectors are embeddings from elsewhere.
    names : list of str
        What the clusters are called.
    fingerprint : str
        Of the model they were fitted on.
    settings : dict
        How: predictor, alpha, beta of the texts' core sets (JSON values).

    Examples
    --------
    Two texts with the core neurons 0 and 1, two with 2 and 3, of a model with one layer:

    >>> sets = np.array([[[1, 1, 0, 0]], [[1, 1, 0, 0]], [[0, 0, 1, 1]], [[0, 0, 1, 1]]], bool)
    >>> clusters = fit(sets, fingerprint="", labels=["law", "law", "sport", "sport"])
    >>> clusters
    Clusters(2 of 4 texts by layer 0, 1 x 4 neurons)
    >>> clusters.names[clusters.assign(np.array([0.0, 0.0, 1.0, 0.0]))]
    'sport'
    >>> core = clusters.core(0, gamma=0.5, layers=[0])
    >>> core.neurons[0]
    array([0, 1], dtype=int32)
    """

    counts: Array
    sizes: Array
    centroids: Array
    layer: int | None
    names: list[str]
    fingerprint: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        k = len(self.names)
        if self.counts.ndim != 3 or self.centroids.ndim != 2 or self.sizes.ndim != 1:
            raise InputError("clusters: expected counts of 3, centroids of 2 and sizes of 1 dimension")
        if not k == len(self.counts) == len(self.centroids) == len(self.sizes) or not k:
            raise InputError("clusters: names, counts, centroids and sizes are not of one length")
        if self.layer is not None and not (
            0 <= self.layer < self.n_layers and self.centroids.shape[1] == self.n_neurons
        ):
            raise InputError(f"clusters: layer {self.layer} or the centroids do not fit the counts")

    def __repr__(self) -> str:
        by = "embeddings" if self.layer is None else f"layer {self.layer}"
        return (
            f"Clusters({len(self.names)} of {int(self.sizes.sum())} texts by {by}, "
            f"{self.n_layers} x {self.n_neurons} neurons)"
        )

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.counts.shape[1]

    @property
    def n_neurons(self) -> int:
        """FFN width of the model."""
        return self.counts.shape[2]

    def assign(self, vector: Array) -> int:  # (d,) -> cluster
        """Return the cluster of the centroid nearest to a text's vector; of equal ones the first.

        Examples
        --------
        >>> sets = np.array([[[1, 1, 0, 0]], [[1, 0, 1, 0]], [[0, 0, 1, 1]]], bool)  # of one layer
        >>> clusters = fit(sets, fingerprint="", labels=["law", "law", "sport"])
        >>> clusters.assign(np.array([0.0, 0.0, 1.0, 1.0]))
        1
        """
        if vector.shape != self.centroids.shape[1:] or not np.isfinite(vector).all():
            want = self.centroids.shape[1:]
            raise InputError(f"a text's vector has shape {vector.shape}, expected {want} finite numbers")
        return int(np.argmin(np.square(self.centroids - unit(vector)).sum(axis=1)))

    def frequency(self, cluster: int | None = None) -> Array:  # -> (n_layers, n_neurons)
        """Return how many texts of a cluster have each neuron; None is all clusters together.

        Examples
        --------
        >>> sets = np.array([[[1, 1, 0, 0]], [[1, 0, 1, 0]], [[0, 0, 1, 1]]], bool)  # of one layer
        >>> clusters = fit(sets, fingerprint="", labels=["law", "law", "sport"])
        >>> clusters.frequency(0), clusters.frequency()
        (array([[2, 1, 1, 0]], dtype=int32), array([[2, 1, 2, 1]]))
        """
        return self.counts.sum(axis=0) if cluster is None else self.counts[cluster]

    def core(self, cluster: int, gamma: float, layers: Sequence[int]) -> CoreSet:
        """Return a cluster's decode set: the top gamma of its neurons by frequency, per layer.

        Examples
        --------
        >>> sets = np.array([[[1, 1, 0, 0]], [[1, 0, 1, 0]], [[0, 0, 1, 1]]], bool)  # of one layer
        >>> clusters = fit(sets, fingerprint="", labels=["law", "law", "sport"])
        >>> clusters.core(0, gamma=0.25, layers=[0]).neurons
        {0: array([0], dtype=int32)}
        """
        neurons = {i: core_from_scores(self.counts[cluster, i], gamma) for i in layers}
        settings = {"predictor": "similarity", "cluster": self.names[cluster], "gamma": gamma}
        return CoreSet(neurons, self.n_neurons, self.n_layers, settings)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the clusters to a safetensors file; whole or not at all.

        Examples
        --------
        >>> sets = np.array([[[1, 1, 0, 0]], [[1, 0, 1, 0]], [[0, 0, 1, 1]]], bool)  # of one layer
        >>> clusters = fit(sets, fingerprint="", labels=["law", "law", "sport"])
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     clusters.save(f"{folder}/topics.clusters")
        ...     Clusters.load(f"{folder}/topics.clusters")
        Clusters(2 of 3 texts by layer 0, 1 x 4 neurons)
        """
        from safetensors.numpy import save_file

        meta = {
            "layer": self.layer,
            "names": self.names,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
        }
        tensors = {
            name: np.ascontiguousarray(getattr(self, name)) for name in ("counts", "sizes", "centroids")
        }
        with atomic_write(path) as part:
            save_file(tensors, part, metadata={"minicore.clusters": json.dumps(meta)})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Clusters:
        """Read what :meth:`save` wrote; anything else raises InputError.

        Examples
        --------
        >>> Clusters.load("no-such.clusters")
        Traceback (most recent call last):
        minicore.errors.InputError: clusters file no-such.clusters does not exist
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                meta = json.loads((file.metadata() or {})["minicore.clusters"])
                tensors = {name: file.get_tensor(name) for name in ("counts", "sizes", "centroids")}
            return cls(**tensors, **meta)
        except FileNotFoundError:
            raise InputError(f"clusters file {path} does not exist") from None
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise InputError(f"{path} is not a clusters file ({error})") from None


def fit(
    sets: Array,
    fingerprint: str,
    *,
    labels: Sequence[str] | None = None,
    layer: int | None = None,
    embeddings: Array | None = None,
    k: int | None = None,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
) -> Clusters:
    """Cluster texts and count their core neurons in each cluster.

    Parameters
    ----------
    sets : (n_texts, n_layers, ceil(n_neurons / 8)) uint8 array, or bool with n_neurons last
        The texts' core sets; uint8 is as ``np.packbits`` makes it, with n_neurons in ``settings``.
    fingerprint : str
        Of the model.
    labels : sequence of str or None
        A cluster for each text, from the data set; None clusters by k-means.
    layer : int or None
        Layer whose sets are the texts' vectors; None is :func:`default_layer`.
    embeddings : (n_texts, d) array or None
        Vectors from elsewhere, in place of core sets.
    k : int or None
        Number of clusters of k-means; None is chosen by the elbow rule, at least 4.
    seed : int
        For k-means.

    Raises
    ------
    InputError
        If the lengths differ, a vector is not finite, or there are too few texts for k clusters.

    Examples
    --------
    >>> sets = np.eye(4, dtype=bool).repeat(2, axis=0)[:, None]  # eight texts of four kinds, one layer
    >>> fit(sets, fingerprint="", k=4).sizes
    array([2, 2, 2, 2], dtype=int32)
    """
    n_texts, n_layers = sets.shape[:2]
    if not n_texts:
        raise InputError("there are no texts to cluster")
    settings = dict(settings or {})
    n_neurons = int(settings["n_neurons"]) if sets.dtype == np.uint8 else sets.shape[2]
    if embeddings is not None:
        vectors, layer = np.asarray(embeddings, np.float32), None
        if vectors.ndim != 2 or len(vectors) != n_texts or not np.isfinite(vectors).all():
            raise InputError(f"embeddings have shape {vectors.shape}, expected ({n_texts}, d) finite numbers")
    else:
        layer = default_layer(n_layers) if layer is None else layer
        if not 0 <= layer < n_layers:
            raise InputError(f"layer {layer} is out of range, the model has layers 0 to {n_layers - 1}")
        vectors = unpack(sets[:, layer], n_neurons).astype(np.float32)
    vectors = unit(vectors)
    if labels is None:
        member = kmeans(vectors, k, seed)
        names = [str(i) for i in range(int(member.max()) + 1)]
    else:
        if len(labels) != n_texts:
            raise InputError(f"there are {len(labels)} labels for {n_texts} texts")
        names = sorted({str(label) for label in labels})
        member = np.array([names.index(str(label)) for label in labels])
    counts = np.zeros((len(names), n_layers, n_neurons), np.int32)
    for text, cluster in zip(sets, member, strict=True):
        counts[cluster] += unpack(text, n_neurons)
    centroids = np.stack([vectors[member == i].mean(axis=0) for i in range(len(names))])
    sizes = np.bincount(member, minlength=len(names)).astype(np.int32)
    return Clusters(counts, sizes, centroids, layer, names, fingerprint, settings)


def default_layer(n_layers: int) -> int:
    """Return the layer that texts are clustered by: the paper's 25 of 32, at the same depth.

    Examples
    --------
    >>> default_layer(32), default_layer(30), default_layer(5)
    (25, 23, 4)
    """
    return min(round(25 / 32 * n_layers), n_layers - 1)


def unpack(sets: Array, n_neurons: int) -> Array:  # (..., n_bytes) uint8 or (..., n_neurons) bool -> bool
    """Return core sets as masks."""
    return np.unpackbits(sets, axis=-1, count=n_neurons) if sets.dtype == np.uint8 else sets
