"""Normality judged by the nearest normal rows."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import gen_batches
from sklearn.utils.validation import check_is_fitted, validate_data


def central_rows(X: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """Mark the most central rows: those with the nearest n/10-th neighbour.

    A neighbour as far down as that lies outside a small cluster of outliers, whose
    members would vouch for each other in a shorter profile.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows on a common scale.
    share : float in (0, 1]
        Share of the rows to mark.

    Returns
    -------
    ndarray of shape (n_samples,), bool
    """
    if share == 1:
        return np.ones(len(X), dtype=bool)
    n_neighbors = max(1, min(max(20, len(X) // 10), len(X) // 2))
    distances, _ = NearestNeighbors(n_neighbors=n_neighbors).fit(X).kneighbors()
    remoteness = distances[:, -1]
    return remoteness <= np.quantile(remoteness, share)


class NeighborProfile(TransformerMixin, BaseEstimator):
    """How far a row lies from its nearest reference rows, on the scale of normal rows.

    Logarithms of distances, each standardised by what the reference rows themselves show
    (every one measured against the others). A reference row equal to the row in question
    is left out, once, so that ``transform`` treats the rows it was fitted on exactly like
    new ones.

    Parameters
    ----------
    n_neighbors : int, default=20
        Reference rows to regard. With n of them at most n - 1 are used.
    measure : "distance" or "reconstruction", default="distance"
        "distance" gives the distance to every one of these neighbours. "reconstruction"
        gives what is left of the row when the nearest fourth, half and all of them are
        mixed to come as near to it as they can [1]_, which suits rows that lie on a smooth
        surface, as images of one kind do.

    Attributes
    ----------
    reference_ : ndarray of shape (n_samples, n_features)
        The rows given to `fit`.
    n_neighbors_ : int
        Neighbours in use.
    center_, scale_ : ndarray of shape (n_features_out,)
        Mean and standard deviation of the reference rows' own log-distances.
    n_features_in_ : int
        Number of columns.

    References
    ----------
    .. [1] P. Vincent, Y. Bengio, "K-Local Hyperplane and Convex Distance Nearest Neighbor
       Algorithms", NIPS 2001.

    Examples
    --------
    >>> from sklearn_g2d.features import NeighborProfile
    >>> profile = NeighborProfile(n_neighbors=2).fit([[0.0], [1.0], [2.0], [3.0]])
    >>> near, far = profile.transform([[1.5], [9.0]])
    >>> bool((far > near).all())
    True
    """

    def __init__(
        self, n_neighbors: int = 20, measure: Literal["distance", "reconstruction"] = "distance"
    ) -> None:
        self.n_neighbors = n_neighbors
        self.measure = measure

    def fit(self, X: ArrayLike, y: Any = None) -> NeighborProfile:
        """Keep the rows as the reference.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Normal rows, at least two.
        y : ignored

        Returns
        -------
        self
        """
        self.fit_transform(X)
        return self

    def fit_transform(self, X: ArrayLike, y: Any = None, **fit_params: Any) -> NDArray[np.float64]:
        """Keep the rows as the reference and return their own profiles.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Normal rows, at least two.
        y : ignored
        **fit_params : ignored

        Returns
        -------
        ndarray of shape (n_samples, n_features_out)
            The same as ``fit(X).transform(X)``, in half the time.
        """
        rows = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        if self.n_neighbors < 1:
            raise ValueError(f"n_neighbors must be at least 1, got {self.n_neighbors!r}.")
        if self.measure not in ("distance", "reconstruction"):
            raise ValueError(
                f'measure must be "distance" or "reconstruction", got {self.measure!r}.'
            )
        self.reference_ = rows = _bounded(rows)
        self.n_neighbors_ = min(self.n_neighbors, len(rows) - 1)
        # Trees win in very few dimensions only; elsewhere a matrix product does.
        self._search = NearestNeighbors(
            n_neighbors=self.n_neighbors_ + 1,
            algorithm="kd_tree" if rows.shape[1] <= 4 else "brute",
        ).fit(rows)
        self._resolution = 1e-6 * float(np.linalg.norm(rows, axis=1).max())
        distances = self._measure(rows)
        # Duplicates have distance 0; this keeps their logarithm within reach.
        self._floor = 0.01 * float(np.median(distances[:, -1])) + 1e-6
        logs = np.log(distances + self._floor)
        self.center_ = logs.mean(axis=0)
        spread = logs.std(axis=0)
        self.scale_ = np.where(spread > 1e-6, spread, 1.0)
        return (logs - self.center_) / self.scale_

    def transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Profile of every row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_features_out)
            Standardised log-distances, nearest neighbour or fewest neighbours first; 0 is
            what normal rows show on average, higher is farther away.
        """
        check_is_fitted(self)
        rows = _bounded(validate_data(self, X, dtype=np.float64, reset=False))
        return (np.log(self._measure(rows) + self._floor) - self.center_) / self.scale_

    def _measure(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        distances, neighbors = self._search.kneighbors(X)
        # The search takes differences of large squares, whose rounding would tell equal
        # rows apart, and differently so in every batch.
        distances[distances < self._resolution] = 0.0
        is_reference = distances[:, :1] == 0.0
        if self.measure == "distance":
            return np.where(is_reference, distances[:, 1:], distances[:, :-1])
        neighbors = np.where(is_reference, neighbors[:, 1:], neighbors[:, :-1])
        sizes = sorted({max(1, self.n_neighbors_ // share) for share in (4, 2, 1)})
        batch_rows = max(1, _BATCH_FLOATS // (self.n_neighbors_ * X.shape[1]))
        return np.concatenate(
            [
                _reconstruction_distances(X[batch], self.reference_[neighbors[batch]], sizes)
                for batch in gen_batches(len(X), batch_rows)
            ]
        )


def _bounded(X: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cut off what is too large to be squared."""
    return np.clip(X, -1e150, 1e150)


# Neighbours gathered at once, in floats: few enough for the processor's cache.
_BATCH_FLOATS = 2**20

# Of the mixing weights: the less, the farther a mixture reaches beyond its neighbours.
_RIDGE = 0.3


def _reconstruction_distances(
    X: NDArray[np.float64], neighbors: NDArray[np.float64], sizes: list[int]
) -> NDArray[np.float64]:
    """Distances of rows from the best mixtures of their first neighbours.

    Ridge regression of x - m on the neighbours' own differences from their mean m, the
    penalty in units of these differences' mean square. The distance is the root of what
    it minimises, so that far-fetched weights count as distance too.

    Parameters
    ----------
    X : ndarray of shape (n, n_features)
        Rows.
    neighbors : ndarray of shape (n, n_neighbors, n_features)
        Theirs, nearest first.
    sizes : list of int
        How many to mix.

    Returns
    -------
    ndarray of shape (n, len(sizes))
    """
    columns = []
    for size in sizes:
        mean = neighbors[:, :size].mean(axis=1)
        span = neighbors[:, :size] - mean[:, None]
        rest = X - mean
        gram = span @ span.transpose(0, 2, 1)
        diagonal = np.einsum("nii->ni", gram)
        # The last term is for neighbours that are all equal, and span nothing.
        diagonal += _RIDGE * diagonal.mean(axis=1, keepdims=True) + np.finfo(float).tiny
        overlap = span @ rest[:, :, None]
        weights = np.linalg.solve(gram, overlap)
        explained = (overlap * weights).sum(axis=(1, 2))
        columns.append(np.sqrt(np.maximum(np.square(rest).sum(axis=1) - explained, 0)))
    return np.column_stack(columns)
