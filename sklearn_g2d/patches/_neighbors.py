"""A detector of rows by the distance to the nearest normal row."""

from __future__ import annotations

from functools import cached_property
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d.utils.arrays import PRODUCT_ROWS, Floats, product
from sklearn_g2d.utils.inputs import validate
from sklearn_g2d.utils.search import NeighborSearch
from sklearn_g2d.utils.surroundings import shielded

# Number of rows from which references are chosen, and the fraction of references that cover rare
# rows. The other references are drawn at random and so lie where most rows are; without them
# frequent rows may have no near reference.
MAX_CANDIDATES, _COVERING_FRACTION = 10_000, 0.75


class PatchNeighbors(BaseEstimator):
    """Score rows by the distance to the nearest normal row, as PatchCore [1]_ does.

    Rows are whitened first. Then a column, or a combination of columns, counts as much as any
    other, even if normal rows hardly differ in it.

    Parameters
    ----------
    n_references : int, default=3000
        Number of rows that new rows are compared with. More references include more rare normal
        rows, and need more time. The greedy k-center algorithm [1]_ chooses three quarters, so that
        each of 10,000 rows drawn from `fit` has a near reference. The others are drawn at random,
        so that frequent rows have many. If a `PatchDetector` compares each place with itself, this
        is the number of references for each place, all drawn at random.
    whitening : float, default=0.1
        This number, in units of the mean variance, is added to the variance in each direction
        before the direction is scaled to variance 1. With large values rows change little.
    random_state : int, RandomState instance or None, default=None
        Seed of the choice of references.

    Attributes
    ----------
    mean_ : ndarray of shape (n_features,)
        Mean of the rows in `fit`.
    whitening_matrix_ : ndarray of shape (n_features, n_features)
        Matrix by which centred rows are multiplied.
    references_ : ndarray of shape (n_references, n_features)
        The chosen rows of `fit`, whitened.
    n_features_in_ : int
        Number of columns of the rows in `fit`.

    References
    ----------
    .. [1] K. Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d.patches import PatchNeighbors
    >>> rows = np.random.default_rng(0).normal(size=(500, 3))
    >>> PatchNeighbors(random_state=0).fit(rows).score_samples([[0, 0, 0], [6, 6, 6]]).round(1)
    array([-0.1, -7.6])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_references": [Interval(Integral, 1, None, closed="left")],
        "whitening": [Interval(Real, 0, None, closed="neither")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        *,
        n_references: int = 3000,
        whitening: float = 0.1,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_references = n_references
        self.whitening = whitening
        self.random_state = random_state

    @shielded()
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Compute the whitening, and choose the references.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Normal rows.
        y : ignored

        Returns
        -------
        self
        """
        self._validate_params()
        rows = validate(self, X, reset=True, dtype=np.float64)
        random_state = check_random_state(self.random_state)
        self.mean_ = rows.mean(axis=0)
        self.whitening_matrix_ = whitening_matrix(rows - self.mean_, self.whitening)
        candidates = random_state.permutation(len(rows))[:MAX_CANDIDATES]
        self.references_ = _choose(self._whitened(rows[candidates]), self.n_references)
        # The cached search of an earlier fit has other references.
        self.__dict__.pop("_search", None)
        return self

    @shielded()
    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Score rows; **higher = more normal**.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,)
            Minus the distance to the nearest reference, as float64, in standard deviations. Equal
            rows get equal scores, in every bit.
        """
        check_is_fitted(self)
        rows = validate(self, X, reset=False, dtype=np.float64)
        distances, _ = self._search.nearest(self._whitened(rows), 1)
        return -distances[:, 0]

    def _whitened(self, rows: Floats) -> Floats:
        parts = gen_batches(len(rows), PRODUCT_ROWS)
        return np.concatenate(
            [product(rows[part] - self.mean_, self.whitening_matrix_) for part in parts]
        )

    @cached_property
    def _search(self) -> NeighborSearch:
        return NeighborSearch(self.references_)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_search"}


def whitening_matrix(centred: NDArray[Any], ridge: float) -> Floats:
    """Return the matrix that gives centred rows a variance of 1 in each direction.

    `ridge`, in units of the mean variance, is added to the variance of each direction.
    """
    covariance = centred.T.astype(np.float64) @ centred / len(centred)
    added = ridge * np.trace(covariance) / len(covariance)
    # Equal rows have no variance: adding 1 keeps the matrix finite.
    covariance[np.diag_indices_from(covariance)] += added or 1.0
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors / np.sqrt(values))


def _choose(rows: Floats, n: int) -> Floats:
    """Choose `n` of shuffled rows: most so that each row is near to one of them, some at random."""
    if len(rows) <= n:
        return rows
    centred = (rows - rows.mean(axis=0)).astype(np.float32)
    lengths = np.einsum("ij,ij->i", centred, centred)
    n_any = n - int(_COVERING_FRACTION * n)
    chosen = list(range(n_any))
    # Keep the squared distance of each row to the nearest chosen row, and add the farthest row in
    # turn. The value -1 prevents that a row is chosen twice.
    distances = (lengths[:, None] + lengths[:n_any] - 2 * centred @ centred[:n_any].T).min(axis=1)
    distances[:n_any] = -1
    for _ in range(n - n_any):
        farthest = int(distances.argmax())
        chosen.append(farthest)
        squared = lengths + lengths[farthest] - 2 * centred @ centred[farthest]
        np.minimum(distances, squared, out=distances)
        distances[farthest] = -1
    return rows[np.sort(chosen)]
