"""Similarity-guided prediction: clusters of texts by meaning, and the neurons that are frequent in each.

Texts of similar meaning have similar core neurons (2410.18311 secs. 3.2, 4.1). A training set is clustered
by its labels or by k-means. A new prompt is assigned to the nearest cluster, and decoding keeps the top gamma
of the neurons that are core neurons of that cluster's texts most often.
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

MIN_CLUSTERS, MAX_CLUSTERS = 4, 24  # tried by the elbow rule (the paper: at least 4)


def core_vector(ids: Array, n_neurons: int) -> Array:  # (n_core,) -> (n_neurons,) float32
    """Return a core set as a vector: 1 for its neurons, 0 for the others."""
    vector = np.zeros(n_neurons, np.float32)
    vector[ids] = 1
    return vector


def unit(vectors: Array) -> Array:  # (..., d) -> the same
    """Scale vectors to length 1; zero vectors stay zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def elbow(inertia: Sequence[float]) -> int:  # (n,) -> index
    """Return the elbow of a falling curve: its point farthest below the line between its ends."""
    y = np.asarray(inertia, float)
    if len(y) < 3:
        return 0
    line = np.linspace(y[0], y[-1], len(y))
    return int(np.argmax(line - y))


def kmeans(vectors: Array, k: int | None = None, seed: int = 0) -> Array:  # (n, d) -> int (n,)
    """Return the cluster of each vector, 0 to k - 1. If k is None, the elbow of the inertia gives it.

    Raises
    ------
    InputError
        If there are fewer distinct vectors than clusters, or scikit-learn is not installed.

    Examples
    --------
    >>> found = kmeans(np.array([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]]), k=2)
    >>> bool(found[0] == found[1] != found[2] == found[3])
    True
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise InputError(
            "k-means needs scikit-learn, expected `pip install scikit-learn`, or labels"
        ) from None
    distinct = len(np.unique(vectors, axis=0))
    needed = MIN_CLUSTERS if k is None else k
    if not 1 <= needed <= distinct:
        raise InputError(
            f"{distinct} distinct texts cannot make {needed} clusters, expected more texts or a smaller k"
        )
    tried = range(MIN_CLUSTERS, min(MAX_CLUSTERS, distinct) + 1) if k is None else [k]
    fits = [KMeans(n_clusters, n_init=4, random_state=seed).fit(vectors) for n_clusters in tried]
    best = fits[elbow([fit.inertia_ for fit in fits])]
    return best.labels_.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters of texts, with the frequency of every core neuron in each cluster.

    Attributes
    ----------
    counts : (n_clusters, n_layers, n_neurons) int32 array
        Number of the cluster's texts whose core set of the layer contains the neuron.
    sizes : (n_clusters,) int32 array
        Number of texts in each cluster.
    centroids : (n_clusters, d) float32 array
        Means of the texts' vectors, which have length 1.
    layer : int or None
        The layer whose core sets are the vectors; None if the vectors are other embeddings.
    names : list of str
        Names of the clusters.
    fingerprint : str
        Fingerprint of the model they were fitted on.
    settings : dict
        How the texts' core sets were made: predictor, alpha, beta (JSON values).

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
            raise InputError("clusters: expected counts with 3, centroids with 2 and sizes with 1 dimension")
        if not k == len(self.counts) == len(self.centroids) == len(self.sizes) or not k:
            raise InputError("clusters: names, counts, centroids and sizes have different lengths, or none")
        if self.layer is not None and not (
            0 <= self.layer < self.n_layers and self.centroids.shape[1] == self.n_neurons
        ):
            raise InputError(f"clusters: layer {self.layer} or the centroids do not match the counts")

    def __repr__(self) -> str:
        by = "embeddings" if self.layer is None else f"layer {self.layer}"
        return (
            f"Clusters({len(self.names)} of {int(self.sizes.sum())} texts by {by}, "
            f"{self.n_layers} x {self.n_neurons} neurons)"
        )

    @property
    def n_layers(self) -> int:
        """Number of layers of the model."""
        return self.counts.shape[1]

    @property
    def n_neurons(self) -> int:
        """FFN width of the model."""
        return self.counts.shape[2]

    def assign(self, vector: Array) -> int:  # (d,) -> cluster
        """Return the cluster whose centroid is nearest to a text's vector; of equal ones the first.

        Examples
        --------
        >>> sets = np.array([[[1, 1, 0, 0]], [[1, 0, 1, 0]], [[0, 0, 1, 1]]], bool)  # of one layer
        >>> clusters = fit(sets, fingerprint="", labels=["law", "law", "sport"])
        >>> clusters.assign(np.array([0.0, 0.0, 1.0, 1.0]))
        1
        """
        if vector.shape != self.centroids.shape[1:] or not np.isfinite(vector).all():
            expected = self.centroids.shape[1:]
            raise InputError(f"a text's vector has shape {vector.shape}, expected {expected} finite numbers")
        return int(np.argmin(np.square(self.centroids - unit(vector)).sum(axis=1)))

    def frequency(self, cluster: int | None = None) -> Array:  # -> (n_layers, n_neurons)
        """Return the number of texts of a cluster, or of all clusters, that have each neuron.

        Examples
        --------
        >>> sets = np.array([[[1, 1, 0, 0]], [[1, 0, 1, 0]], [[0, 0, 1, 1]]], bool)  # of one layer
        >>> clusters = fit(sets, fingerprint="", labels=["law", "law", "sport"])
        >>> clusters.frequency(0), clusters.frequency()
        (array([[2, 1, 1, 0]], dtype=int32), array([[2, 1, 2, 1]]))
        """
        return self.counts.sum(axis=0) if cluster is None else self.counts[cluster]

    def core(self, cluster: int, gamma: float, layers: Sequence[int]) -> CoreSet:
        """Return a cluster's core set: the top gamma of the neurons of each layer by frequency.

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
        """Write the clusters to a safetensors file, atomically.

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
        """Read a file that :meth:`save` wrote; raise InputError for any other file.

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
    """Cluster texts, and count the core neurons in each cluster.

    Parameters
    ----------
    sets : (n_texts, n_layers, n_neurons) bool array, or (n_texts, n_layers, ceil(n_neurons / 8)) uint8
        The texts' core sets. uint8 is the result of ``np.packbits``, with n_neurons in ``settings``.
    fingerprint : str
        Fingerprint of the model.
    labels : sequence of str or None
        The cluster of each text, from the data set; None clusters by k-means.
    layer : int or None
        The layer whose sets are the texts' vectors; None is :func:`default_layer`.
    embeddings : (n_texts, d) array or None
        Vectors to use in place of core sets.
    k : int or None
        Number of clusters for k-means; None applies the elbow rule, with at least 4.
    seed : int
        Random seed of k-means.

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
        vectors, layer = _checked_embeddings(embeddings, n_texts), None
    else:
        layer = default_layer(n_layers) if layer is None else layer
        if not 0 <= layer < n_layers:
            raise InputError(f"layer {layer} is out of range, the model has layers 0 to {n_layers - 1}")
        vectors = unpack(sets[:, layer], n_neurons).astype(np.float32)
    vectors = unit(vectors)
    member, names = _members(vectors, labels, k, seed)
    counts = np.zeros((len(names), n_layers, n_neurons), np.int32)
    for text, cluster in zip(sets, member, strict=True):
        counts[cluster] += unpack(text, n_neurons)
    return Clusters(
        counts=counts,
        sizes=np.bincount(member, minlength=len(names)).astype(np.int32),
        centroids=np.stack([vectors[member == i].mean(axis=0) for i in range(len(names))]),
        layer=layer,
        names=names,
        fingerprint=fingerprint,
        settings=settings,
    )


def _checked_embeddings(embeddings: Array, n_texts: int) -> Array:
    vectors = np.asarray(embeddings, np.float32)
    if vectors.ndim != 2 or len(vectors) != n_texts or not np.isfinite(vectors).all():
        raise InputError(f"embeddings have shape {vectors.shape}, expected ({n_texts}, d) finite numbers")
    return vectors


def _members(
    vectors: Array, labels: Sequence[str] | None, k: int | None, seed: int
) -> tuple[Array, list[str]]:
    """Return each text's cluster and the clusters' names."""
    if labels is None:
        member = kmeans(vectors, k, seed)
        return member, [str(i) for i in range(int(member.max()) + 1)]
    if len(labels) != len(vectors):
        raise InputError(f"there are {len(labels)} labels for {len(vectors)} texts, expected one per text")
    names = sorted({str(label) for label in labels})
    return np.array([names.index(str(label)) for label in labels]), names


def default_layer(n_layers: int) -> int:
    """Return the layer to cluster texts by: at the depth of the paper's layer 25 of 32.

    Examples
    --------
    >>> default_layer(32), default_layer(30), default_layer(5)
    (25, 23, 4)
    """
    return min(round(25 / 32 * n_layers), n_layers - 1)


def unpack(sets: Array, n_neurons: int) -> Array:  # (..., n_bytes) uint8 or (..., n_neurons) bool -> bool
    """Return core sets as boolean masks."""
    return np.unpackbits(sets, axis=-1, count=n_neurons) if sets.dtype == np.uint8 else sets
