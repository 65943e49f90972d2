"""Features of rows from their distances to the nearest normal rows."""

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

# Number of floats of neighbours in memory at once: they fit into the processor's cache.
_BATCH_FLOATS = 2**20

# Penalty of the mixing weights. With a smaller penalty a mixture can lie farther outside of its
# neighbours.
_RIDGE = 0.3

# A reference row counts in part as a copy of a row if its distance is below this quantile of the
# reference rows' distances to their own nearest neighbour. With fewer rows than the second number
# the distance is shorter.
_COPY_QUANTILE, _ROWS_FOR_COPIES = 0.2, 50


@dataclass(eq=False, repr=False)
class NeighborProfile(RowTransformer):
    """Distances of a row to its nearest reference rows, which are the rows of `fit`.

    Each column is the logarithm of a distance, standardised by the distances of the reference rows
    among themselves: 0 is the mean of normal rows, and **higher = farther away**. If a reference
    row equals the row in question, it is left out, so that `transform` treats the rows of `fit`
    like new rows. A reference row that is nearer than reference rows are to each other is left
    out in part; the nearer it is, the less it counts. So a rounded copy scores like an exact copy.

    Parameters
    ----------
    n_neighbors : int, default=20
        Number of nearest reference rows to use, at most n - 1 for n reference rows.
    measure : "distance" or "reconstruction", default="distance"
        "distance" gives the distance to each of these neighbours. "reconstruction" gives the
        distance to the best mixture of the nearest quarter, half and all of them [1]_. This suits
        rows that lie on a smooth surface, such as images of one kind of object.

    Attributes
    ----------
    reference_ : ndarray of shape (n_samples, n_features)
        The rows given to `fit`.
    n_neighbors_, n_features_in_ : int
        Number of neighbours in use, and number of columns.
    mixture_sizes_ : list of int
        Number of neighbours in the mixture of each column; empty for the measure "distance".
    resolution_, copy_distance_, floor_ : float
        Distances below `resolution_` count as 0. Below `copy_distance_` the nearest reference row
        counts in part as a copy. `floor_` is added to distances before the logarithm.
    center_, scale_ : ndarray of shape (n_features_out,)
        Mean and standard deviation of the reference rows' log-distances among themselves.

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
        """Return ``fit(X).transform(X)`` in half the time.

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

    def _fit_to_search(self, search: NeighborSearch) -> NDArray[np.float64]:
        """Do as `fit_transform` does for the reference rows of a search, and keep the search."""
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
        # Few reference rows are far from each other, and normal new rows are often nearer to one
        # of them. Do not take these for copies.
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

    def _with_reference(self, reference: NDArray[np.float64]) -> NeighborProfile:
        """Return a profile of distances to other rows, standardised like this one."""
        other = copy.copy(self)
        other.reference_ = np.clip(reference, -_LIMIT, _LIMIT)
        other.n_features_in_ = reference.shape[1]
        other._search = NeighborSearch(other.reference_)
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_search"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Files do not hold the search, because it can be built again from the reference rows.
        if "reference_" in state:
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
        """Return distances, before their logarithms: (n, n_features_out)."""
        distances, neighbors, likeness = self._nearest_and_likeness(X, c)
        # With a copy, the neighbours are those from the second on; without one, those from the
        # first on. In between, the two distances are averaged.
        if not self.mixture_sizes_:
            return likeness * distances[:, 1:] + (1 - likeness) * distances[:, :-1]
        without_copy = self._mixed(X, neighbors[:, 1:], likeness, c)
        return without_copy + self._mixed(X, neighbors[:, :-1], 1 - likeness, c)

    def _nearest_and_likeness(self, X: Any, c: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Return `_nearest`, and how much the nearest counts as a copy, in [0, 1]: (n, 1)."""
        xp = namespace(X)
        distances, neighbors = self._nearest(X, c)
        # A graph computes distances from large squares: rounding makes those of equal rows
        # positive, so that a copy would not be found.
        distances = xp.where(distances < c["resolution"], c["zero"], distances)
        likeness = xp.maximum(1 - xp.square(distances[:, :1] / c["copy_distance"]), c["zero"])
        return distances, neighbors, likeness

    def _by_column(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Split the mean squared distance to the neighbours by columns: (n, n_features).

        Each neighbour has the weight 1 / `n_neighbors_`. If the nearest counts in part as a copy,
        its weight is lower, and the neighbour after the last gets the rest.
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
        """Return distances to mixtures times the weights (n, 1) of rows."""
        # A graph has no batches, and no rows that can be skipped.
        if not isinstance(X, np.ndarray):
            return weights * self._distances_to_mixtures(X, neighbors, c)
        mixed = np.zeros((len(X), len(self.mixture_sizes_)))
        batch_rows = max(1, _BATCH_FLOATS // (self.n_neighbors_ * X.shape[1]))
        # Skip mixtures with the weight 0: most rows have no copy, and need only one of the two.
        weighed = np.flatnonzero(weights)
        for start in range(0, len(weighed), batch_rows):
            rows = weighed[start : start + batch_rows]
            mixed[rows] = self._distances_to_mixtures(X[rows], neighbors[rows], c)
        return weights * mixed

    def _nearest(self, X: Any, c: dict[str, Any]) -> tuple[Any, Any]:
        """Return distances and indices of the nearest `n_neighbors_` + 1 references, in order."""
        if X is self.reference_:
            return self._search.nearest_of_references(self.n_neighbors_ + 1)
        if isinstance(X, np.ndarray):
            return self._search.nearest(X, self.n_neighbors_ + 1)
        # The steps of the search depend on the data, which a graph cannot express: compute all
        # distances.
        reference = c["reference"]
        squared = X.square().sum(1, keepdim=True) + reference.square().sum(1)
        squared = squared - 2 * X @ reference.T
        nearest, neighbors = squared.topk(self.n_neighbors_ + 1, 1, largest=False)
        return nearest.clamp(min=0).sqrt(), neighbors

    def _distances_to_mixtures(self, X: Any, neighbors: Any, c: dict[str, Any]) -> Any:
        """Return the distances of rows to the best mixtures of their nearest neighbours.

        A mixture is a ridge regression of x - m on the differences between the neighbours and
        their mean m. The penalty is in units of the mean square of these differences. The distance
        is the root of the minimised sum, penalty included, so that extreme weights count as
        distance, too. `neighbors` are indices (n, n_neighbors), nearest first.
        """
        xp = namespace(X)
        rows, points = c["reference"][neighbors], X[:, None]
        columns = []
        for size in self.mixture_sizes_:
            mean = rows[:, :size].mean(axis=1, keepdims=True)
            span, rest = rows[:, :size] - mean, points - mean
            gram, overlap = span @ span.mT, span @ rest.mT
            unit = xp.diagonal(gram, 0, 1, 2).mean(axis=1, keepdims=True)
            # Equal neighbours differ from their mean only by rounding errors. With the least unit
            # these errors do not look like directions.
            penalty = c["ridge"] * xp.maximum(unit, c["least_unit"])
            explained = (overlap * _solve_ridge(gram, penalty, overlap)).sum(axis=(1, 2))
            squared = xp.square(rest).sum(axis=(1, 2)) - explained
            columns.append(xp.sqrt(xp.maximum(squared, c["zero"])))
        return xp.stack(columns, axis=1)


def _solve_ridge(gram: Any, penalty: Any, overlap: Any) -> Any:
    """Solve (gram + penalty * identity) weights = overlap; an array `gram` is overwritten.

    The shapes are (n, size, size), (n, 1) and (n, size, 1). A graph has no solver of linear
    equations, and computes the inverse by Newton's iteration. The penalty is at least `_RIDGE`
    times the mean of the diagonal. Therefore the matrices, divided by the penalty, have eigenvalues
    from 1 to 1 + size / ridge, and the number of steps is known in advance.
    """
    if isinstance(gram, np.ndarray):
        # This einsum returns a view of the diagonals, so that the sum changes `gram`.
        diagonal = np.einsum("nii->ni", gram)
        diagonal += penalty
        return np.linalg.solve(gram, overlap)
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    penalty = penalty[:, :, None]
    matrix = gram / penalty + eye
    largest = 2 + gram.shape[1] / _RIDGE
    inverse = 2 / largest * eye
    # The error is 1 - 2 / largest at first, and each step squares it.
    for _ in range(math.ceil(math.log2(18 * largest))):
        inverse = inverse @ (2 * eye - matrix @ inverse)
    return inverse @ overlap / penalty
