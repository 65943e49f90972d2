"""Normality judged by the nearest normal rows."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils._param_validation import Interval, StrOptions

from sklearn_g2d.features._rows import RowTransformer
from sklearn_g2d.utils.arrays import float64, namespace
from sklearn_g2d.utils.search import NeighborSearch

# Squares of larger numbers may be infinite.
_LIMIT = 1e150

# Neighbours gathered at once, in floats: few enough for the processor's cache.
_BATCH_FLOATS = 2**20

# Penalty of the mixing weights: the smaller, the farther a mixture reaches beyond its neighbours.
_RIDGE = 0.3

# A reference row that is nearer than those nearest to this fraction of the reference rows begins
# to count as a copy.
_COPY_QUANTILE, _ROWS_FOR_COPIES = 0.2, 50


@dataclass(eq=False, repr=False)
class NeighborProfile(RowTransformer):
    """How far a row lies from its nearest reference rows, those of `fit`.

    Logarithms of distances, each standardised by what the reference rows show among themselves: 0
    is what normal rows show on average, higher is farther away. One reference row that equals the
    row in question is left out, so that `transform` treats the rows of `fit` like new ones. One
    that is nearer than reference rows are to each other is left out in part, the more the nearer
    it is, so that a copy that was rounded scores like an exact one.

    Parameters
    ----------
    n_neighbors : int, default=20
        Number of nearest reference rows to use; of n reference rows at most n - 1.
    measure : "distance" or "reconstruction", default="distance"
        "distance" gives the distance to every one of these neighbours. "reconstruction" gives the
        distance to the best mixture of the nearest fourth, half and all of them [1]_, which suits
        rows that lie on a smooth surface, as images of one kind do.

    Attributes
    ----------
    reference_ : ndarray of shape (n_samples, n_features)
        The rows given to `fit`.
    n_neighbors_, n_features_in_ : int
        Neighbours in use, and number of columns.
    mixture_sizes_ : list of int
        How many neighbours the mixture of each column has; empty for the measure "distance".
    resolution_, copy_distance_, floor_ : float
        Distances below the first count as 0, the nearest reference row counts in part as a copy
        below the second, and the third is added before the logarithm.
    center_, scale_ : ndarray of shape (n_features_out,)
        Mean and standard deviation of the reference rows' own log-distances.

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

    n_neighbors: int = 20
    measure: Literal["distance", "reconstruction"] = "distance"

    _dtypes: ClassVar[tuple[type, ...]] = (np.float64,)
    _min_rows: ClassVar[int] = 2

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "measure": [StrOptions({"distance", "reconstruction"})],
    }

    def fit_transform(self, X: ArrayLike, y: Any = None, **fit_params: Any) -> NDArray[np.float64]:
        """Give ``fit(X).transform(X)`` in half the time.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : ignored
        **fit_params : ignored

        Returns
        -------
        ndarray of shape (n_samples, n_features_out)
        """
        self._validate_params()
        return self._fit(self._validate(X, reset=True))

    def fit_to_search(self, search: NeighborSearch) -> NDArray[np.float64]:
        """Do as `fit_transform` with the reference rows of a search that may have found some."""
        self._validate_params()
        return self._fit(self._validate(search.reference, reset=True), search)

    def _fit(
        self, X: NDArray[np.float64], search: NeighborSearch | None = None
    ) -> NDArray[np.float64]:
        rows = np.clip(X, -_LIMIT, _LIMIT)
        if search is None or not np.array_equal(search.reference, rows):
            search = NeighborSearch(rows)
        self._search, self.reference_ = search, search.reference
        self.n_neighbors_ = k = min(self.n_neighbors, len(rows) - 1)
        is_mixed = self.measure == "reconstruction"
        self.mixture_sizes_ = sorted({max(1, k // n) for n in (4, 2, 1)}) if is_mixed else []
        self.resolution_ = 1e-6 * float(np.linalg.norm(rows, axis=1).max())
        nearest = search.nearest_of_references(k + 1)[0][:, 1]
        apart = nearest[nearest > self.resolution_]
        # Few rows are all far from each other, and new ones nearer to them than that.
        trust = min(1.0, len(rows) / _ROWS_FOR_COPIES)
        quantile = np.quantile(apart, _COPY_QUANTILE) if len(apart) else 1.0
        self.copy_distance_ = float(trust * quantile)
        distances = self._measure(self.reference_, self._constants_of_measure())
        self.floor_ = 0.01 * float(np.median(distances[:, -1])) + 1e-6
        logs = np.log(distances + self.floor_)
        self.center_ = logs.mean(axis=0)
        spread = logs.std(axis=0)
        self.scale_ = np.where(spread > 1e-6, spread, 1.0)
        return (logs - self.center_) / self.scale_

    def _around(self, reference: NDArray[np.float64]) -> NeighborProfile:
        """Give a profile of the distances to other rows, in the units of this one."""
        other = copy.copy(self)
        other.reference_ = np.clip(reference, -_LIMIT, _LIMIT)
        other.n_features_in_ = reference.shape[1]
        other._search = NeighborSearch(other.reference_)
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_search"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "reference_" in state:  # files do not hold the search, because it can be built anew
            self._search = NeighborSearch(self.reference_)

    def _constants_of_measure(self) -> dict[str, ArrayLike]:
        return {
            "reference": self.reference_,
            "limit": _LIMIT,
            "zero": 0.0,
            "resolution": self.resolution_,
            "copy_distance": self.copy_distance_,
            "ridge": _RIDGE,
            "least_unit": self.resolution_**2 or 1.0,
        }

    def _constants(self) -> dict[str, ArrayLike]:
        standard = {"floor": self.floor_, "center": self.center_, "scale": self.scale_}
        return self._constants_of_measure() | standard

    def _compute(self, X: Any, c: dict[str, Any]) -> Any:
        xp = namespace(X)
        rows = xp.clip(float64(X), -c["limit"], c["limit"])
        return (xp.log(self._measure(rows, c) + c["floor"]) - c["center"]) / c["scale"]

    def _measure(self, X: Any, c: dict[str, Any]) -> Any:
        """Give distances, before their logarithms: (n, n_features_out)."""
        distances, neighbors, likeness = self._nearest_and_likeness(X, c)
        if not self.mixture_sizes_:
            return likeness * distances[:, 1:] + (1 - likeness) * distances[:, :-1]
        without_copy = self._mixed(X, neighbors[:, 1:], likeness, c)
        return without_copy + self._mixed(X, neighbors[:, :-1], 1 - likeness, c)

    def _nearest_and_likeness(self, X: Any, c: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Give what `_nearest` does, and how much the first counts as a copy, in [0, 1]: (n, 1)."""
        xp = namespace(X)
        distances, neighbors = self._nearest(X, c)
        # A graph takes differences of large squares, whose rounding would tell equal rows apart.
        distances = xp.where(distances < c["resolution"], c["zero"], distances)
        likeness = xp.maximum(1 - xp.square(distances[:, :1] / c["copy_distance"]), c["zero"])
        return distances, neighbors, likeness

    def _by_column(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Split the mean squared distance to the neighbours by columns: (n, n_features).

        A neighbour weighs 1 / `n_neighbors_`, but one that counts in part as a copy less; the one
        after the last makes up for it.
        """
        rows = np.clip(X, -_LIMIT, _LIMIT)
        _, neighbors, likeness = self._nearest_and_likeness(rows, self._constants_of_measure())
        weights = np.ones(neighbors.shape)
        weights[:, :1] -= likeness
        weights[:, -1:] = likeness
        parts = np.zeros(rows.shape)
        for neighbor, weight in zip(neighbors.T, weights.T, strict=True):
            parts += weight[:, None] * np.square(rows - self.reference_[neighbor])
        return parts / self.n_neighbors_

    def _mixed(self, X: Any, neighbors: Any, weights: Any, c: dict[str, Any]) -> Any:
        """Give distances to mixtures times the rows' weights (n, 1)."""
        if not isinstance(X, np.ndarray):  # a graph, which has no batches
            return weights * self._distances_to_mixtures(X, neighbors, c)
        mixed = np.zeros((len(X), len(self.mixture_sizes_)))
        batch_rows = max(1, _BATCH_FLOATS // (self.n_neighbors_ * X.shape[1]))
        weighed = np.flatnonzero(weights)
        for start in range(0, len(weighed), batch_rows):
            rows = weighed[start : start + batch_rows]
            mixed[rows] = self._distances_to_mixtures(X[rows], neighbors[rows], c)
        return weights * mixed

    def _nearest(self, X: Any, c: dict[str, Any]) -> tuple[Any, Any]:
        """Find `n_neighbors_` + 1 reference rows, nearest first: distances and indices."""
        if X is self.reference_:
            return self._search.nearest_of_references(self.n_neighbors_ + 1)
        if isinstance(X, np.ndarray):
            return self._search.nearest(X, self.n_neighbors_ + 1)
        reference = c["reference"]
        squared = X.square().sum(1, keepdim=True) + reference.square().sum(1)
        squared = squared - 2 * X @ reference.T
        nearest, neighbors = squared.topk(self.n_neighbors_ + 1, 1, largest=False)
        return nearest.clamp(min=0).sqrt(), neighbors

    def _distances_to_mixtures(self, X: Any, neighbors: Any, c: dict[str, Any]) -> Any:
        """Measure how far rows lie from the best mixtures of their first neighbours.

        Ridge regression of x - m on the neighbours' own differences from their mean m, the penalty
        in units of these differences' mean square. The distance is the root of what it minimises,
        so that extreme weights count as distance too. The neighbours are indices
        (n, n_neighbors), nearest first.
        """
        xp = namespace(X)
        rows, points = c["reference"][neighbors], X[:, None]
        columns = []
        for size in self.mixture_sizes_:
            mean = rows[:, :size].mean(axis=1, keepdims=True)
            span, rest = rows[:, :size] - mean, points - mean
            gram, overlap = span @ span.mT, span @ rest.mT
            unit = xp.diagonal(gram, 0, 1, 2).mean(axis=1, keepdims=True)
            # Equal neighbours span nothing, but differ from their mean by its rounding.
            penalty = c["ridge"] * xp.maximum(unit, c["least_unit"])
            explained = (overlap * _solve_ridge(gram, penalty, overlap)).sum(axis=(1, 2))
            squared = xp.square(rest).sum(axis=(1, 2)) - explained
            columns.append(xp.sqrt(xp.maximum(squared, c["zero"])))
        return xp.stack(columns, axis=1)


def _solve_ridge(gram: Any, penalty: Any, overlap: Any) -> Any:
    """Solve (gram + penalty * identity) weights = overlap; an array `gram` is overwritten.

    Of shapes (n, size, size), (n, 1) and (n, size, 1). A graph has no solver. There, in units of
    the penalty, which is at least `_RIDGE` times the mean of the diagonal, the matrices have
    eigenvalues from 1 to 1 + size / ridge, so that Newton's iteration for the inverse takes a
    number of steps that is known beforehand.
    """
    if isinstance(gram, np.ndarray):
        diagonal = np.einsum("nii->ni", gram)  # a view
        diagonal += penalty
        return np.linalg.solve(gram, overlap)
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    penalty = penalty[:, :, None]
    matrix = gram / penalty + eye
    largest = 2 + gram.shape[1] / _RIDGE
    inverse = 2 / largest * eye
    # Every step squares an error that begins at 1 - 2 / largest.
    for _ in range(math.ceil(math.log2(18 * largest))):
        inverse = inverse @ (2 * eye - matrix @ inverse)
    return inverse @ overlap / penalty
