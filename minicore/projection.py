"""Projections of vectors to the plane: PCA, t-SNE and UMAP."""

from __future__ import annotations

import numpy as np

from minicore.errors import InputError, unknown

Array = np.ndarray

METHODS = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}


def project(x: Array, method: str = "pca", seed: int = 0) -> Array:  # (n, d) -> (n, 2)
    """Return two coordinates of each vector.

    Parameters
    ----------
    x : (n, d) array
        At least 3 vectors.
    method : str
        ``pca``, ``tsne`` (needs scikit-learn) or ``umap`` (needs umap-learn).
    seed : int
        Random seed of t-SNE and UMAP.

    Raises
    ------
    InputError
        If the method is unknown or not installed, or there are fewer than 3 vectors.

    Examples
    --------
    >>> project(np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])).round(2)
    array([[-1.41,  0.  ],
           [ 0.  ,  0.  ],
           [ 1.41,  0.  ]])
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if len(x) < 3:
        raise InputError(f"{len(x)} vectors cannot be projected to the plane, expected at least 3")
    if method == "pca":
        return pca(x)
    if method == "tsne":
        from sklearn.manifold import TSNE

        return TSNE(perplexity=min(30.0, (len(x) - 1) / 3), init="random", random_state=seed).fit_transform(x)
    try:
        from umap import UMAP
    except ImportError:
        raise InputError("method umap needs umap-learn, expected `pip install umap-learn`") from None
    return UMAP(n_neighbors=min(15, len(x) - 1), random_state=seed, n_jobs=1).fit_transform(x)


def pca(x: Array) -> Array:  # (n, d) -> (n, 2)
    """Return the coordinates of each vector along the two directions of largest variance.

    The sign of a direction is chosen so that its coordinate of largest magnitude is positive.
    """
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    points = np.zeros((len(x), 2))
    points[:, : min(2, len(s))] = (u * s)[:, :2]
    extreme = points[np.abs(points).argmax(axis=0), [0, 1]]
    return points * np.where(extreme < 0, -1, 1)
