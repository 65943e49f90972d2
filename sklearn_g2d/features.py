"""Transformers that the detectors put in front of their networks, usable alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.utils import gen_batches
from sklearn.utils.validation import check_is_fitted, validate_data

__all__ = ["NeighborProfile", "SquashingScaler"]

_BATCH_ROWS = 8192


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


class SquashingScaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Standardise columns, then bound them smoothly.

    z = (x - mean) / std becomes z / sqrt(1 + (z / bound)^2): nearly z for ordinary
    values, never beyond +-bound, so that one wild cell cannot outweigh a row.

    Parameters
    ----------
    bound : float, default=8.0
        Largest magnitude of the output, in standard deviations.
    range_weight : float in [0, 1], default=0.0
        Columns are divided by ``std ** (1 - range_weight) * range ** range_weight``, then
        all by one factor that makes their mean square 1. Above 0, a column whose outer values
        are rare, such as a flag that is almost never set, weighs less.

    Attributes
    ----------
    scaler_ : StandardScaler
        Means and standard deviations; a constant column keeps scale 1.
    n_features_in_ : int
        Number of columns.
    """

    def __init__(self, bound: float = 8.0, range_weight: float = 0.0) -> None:
        self.bound = bound
        self.range_weight = range_weight

    def fit(self, X: ArrayLike, y: Any = None) -> SquashingScaler:
        """Learn mean and standard deviation of every column.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows; a memory map is read in blocks, never copied whole.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a column's values are too large for its variance to be computed.
        """
        rows = validate_data(self, X, dtype=(np.float64, np.float32))
        self.scaler_ = StandardScaler()
        with np.errstate(over="ignore", invalid="ignore"):
            for batch in gen_batches(len(rows), _BATCH_ROWS):
                self.scaler_.partial_fit(np.asarray(rows[batch], dtype=np.float64))
        overflow = ~(np.isfinite(self.scaler_.mean_) & np.isfinite(self.scaler_.var_))
        if overflow.any():
            column = int(np.argmax(overflow))
            raise ValueError(
                f"Column {column} holds values up to {np.abs(rows[:, column]).max():.3g}, too "
                "large to compute a variance from. Rescale or remove this column."
            )
        if self.range_weight:
            std, width = self.scaler_.scale_, np.ptp(rows, axis=0).astype(np.float64)
            varies = width > 0
            scale = std.copy()
            scale[varies] *= (width[varies] / std[varies]) ** self.range_weight
            if varies.any():
                scale *= np.sqrt(np.mean(np.square(std[varies] / scale[varies])))
            self.scaler_.scale_ = scale
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Standardise and bound.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            float64, within +-bound.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float64, reset=False)
        with np.errstate(over="ignore"):  # an infinite quotient is bounded like any other
            z = np.clip(self.scaler_.transform(rows), -1e150, 1e150)
        return z / np.hypot(1, z / self.bound)

    def inverse_transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Undo `transform`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Within +-bound.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        z = np.asarray(X, dtype=np.float64)
        # At the bound itself the inverse is infinite; stay as far out as data can be.
        inside = np.maximum(1 - np.square(z / self.bound), 1e-6)
        return self.scaler_.inverse_transform(z / np.sqrt(inside))


class NeighborProfile(TransformerMixin, BaseEstimator):
    """How far a row lies from its nearest reference rows, on the scale of normal rows.

    The sorted log-distances to the nearest reference rows, each standardised by what the
    reference rows themselves show (every one measured against the others). A reference
    row equal to the row in question is left out, once, so that ``transform`` treats the
    rows it was fitted on exactly like new ones.

    Parameters
    ----------
    n_neighbors : int, default=20
        Length of the profile. With n reference rows at most n - 1 are used.

    Attributes
    ----------
    reference_ : ndarray of shape (n_samples, n_features)
        The rows given to `fit`.
    n_neighbors_ : int
        Length of the profile in use.
    center_, scale_ : ndarray of shape (n_neighbors_,)
        Mean and standard deviation of the reference rows' own log-distances.
    n_features_in_ : int
        Number of columns.
    """

    def __init__(self, n_neighbors: int = 20) -> None:
        self.n_neighbors = n_neighbors

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
        rows = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        if self.n_neighbors < 1:
            raise ValueError(f"n_neighbors must be at least 1, got {self.n_neighbors!r}.")
        self.reference_ = rows
        self.n_neighbors_ = min(self.n_neighbors, len(rows) - 1)
        # Trees win in very few dimensions only; elsewhere a matrix product does.
        self._search = NearestNeighbors(
            n_neighbors=self.n_neighbors_ + 1,
            algorithm="kd_tree" if rows.shape[1] <= 4 else "brute",
        ).fit(rows)
        self._resolution = 1e-6 * float(np.linalg.norm(rows, axis=1).max())
        distances = self._distances(rows)
        # Duplicates have distance 0; this keeps their logarithm within reach.
        self._floor = 0.01 * float(np.median(distances[:, -1])) + 1e-6
        logs = np.log(distances + self._floor)
        self.center_ = logs.mean(axis=0)
        spread = logs.std(axis=0)
        self.scale_ = np.where(spread > 1e-6, spread, 1.0)
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Profile of every row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_neighbors_)
            Standardised log-distances, nearest neighbour first; 0 is what normal rows
            show on average, higher is farther away.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float64, reset=False)
        return (np.log(self._distances(rows) + self._floor) - self.center_) / self.scale_

    def _distances(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        found, _ = self._search.kneighbors(X)
        # The search takes differences of large squares, whose rounding would tell equal
        # rows apart, and differently so in every batch.
        found[found < self._resolution] = 0.0
        is_reference = found[:, :1] == 0.0
        return np.where(is_reference, found[:, 1:], found[:, :-1])
