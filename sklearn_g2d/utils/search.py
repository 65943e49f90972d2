"""Exact search for the nearest of some reference rows, bit-equal whatever rows are asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import KDTree
from sklearn.utils import gen_batches

from sklearn_g2d.utils.arrays import Floats

# A tree wins in few dimensions only; elsewhere a matrix product does.
_MAX_TREE_COLUMNS = 4

# Products held at once, and cells of differences: few enough for the processor's cache.
_BATCH_PRODUCTS, _BATCH_CELLS = 2**19, 2**18

# The smallest of so many products stands for all of them when the bound is looked for.
_GROUP_SIZE = 16


class NeighborSearch:
    """Finds the nearest of some reference rows (n_references, n_features).

    Fast products in float32 tell which rows can be among the nearest at all, given a bound on
    their rounding. Only the distances of these are computed, from differences in float64. So a
    row's distances do not depend on the rows that it is asked for with, as those of a matrix
    product do in their last digits.
    """

    def __init__(self, reference: Floats) -> None:
        self.reference = reference
        n, d = reference.shape
        self.tree = KDTree(reference) if d <= _MAX_TREE_COLUMNS else None
        self._of_references: tuple[Floats, NDArray[np.intp]] | None = None
        if self.tree is not None:
            return
        self.center = reference.mean(axis=0)
        centred = reference - self.center
        self.length = float(np.linalg.norm(centred, axis=1).max())
        # A power of two, so that it rounds nothing, in which squares neither overflow nor vanish.
        self.unit = 2.0 ** np.frexp(self.length)[1]
        centred /= self.unit
        self.length /= self.unit
        n_padded = n + -n % _GROUP_SIZE
        self.factors = np.zeros((d + 1, n_padded), dtype=np.float32)
        self.factors[:d, :n] = -2 * centred.T
        self.factors[d] = np.inf
        self.factors[d, :n] = np.square(centred).sum(axis=1)
        # Twice what d + 8 operations, each rounded by half a unit in the last place, add up to.
        self.rounding = 2 * (d + 8) * float(np.finfo(np.float32).eps)

    def nearest(self, X: Floats, k: int) -> tuple[Floats, NDArray[np.intp]]:
        """Give distances and indices of the `k` nearest rows, nearest first: (n_samples, k)."""
        if self.tree is not None:
            return self.tree.query(X, k)
        distances, indices = zip(*(self._nearest(X[b], k) for b in self._batches(X)), strict=True)
        return np.concatenate(distances), np.concatenate(indices)

    def nearest_of_references(self, k: int) -> tuple[Floats, NDArray[np.intp]]:
        """Give the same of the reference rows, which find themselves; kept for further calls."""
        if self._of_references is None or self._of_references[0].shape[1] < k:
            self._of_references = self.nearest(self.reference, k)
        distances, indices = self._of_references
        return distances[:, :k], indices[:, :k]

    def distances_to(self, k: int, X: Floats) -> Floats:
        """Give only the distances to the `k`-th nearest row, of any large k: (n_samples,)."""
        if self.tree is not None:
            return self.tree.query(X, k)[0][:, -1]
        return np.concatenate([self._distances_to(k, X[batch]) for batch in self._batches(X)])

    def _batches(self, X: Floats) -> Iterator[slice]:
        return gen_batches(len(X), max(1, _BATCH_PRODUCTS // self.factors.shape[1]))

    @np.errstate(over="ignore", invalid="ignore")
    def _nearest(self, X: Floats, k: int) -> tuple[Floats, NDArray[np.intp]]:
        products, rounding = self._products(X)
        best = products
        if products.shape[1] >= 2 * k * _GROUP_SIZE:
            best = products.reshape(len(X), _GROUP_SIZE, -1).min(axis=1)
        # Comparisons are written so that what is not a number is a candidate.
        bound = _rounded(_kth_smallest(best, k) + rounding, np.inf)
        exact, columns, first = self._exact(X, ~(products > bound))
        order = np.argsort(exact, axis=1, kind="stable")[:, :k]
        return np.sqrt(np.take_along_axis(exact, order, axis=1)), columns[first[:, None] + order]

    @np.errstate(over="ignore", invalid="ignore")
    def _distances_to(self, k: int, X: Floats) -> Floats:
        products, rounding = self._products(X)
        kth = _kth_smallest(products, k)
        is_nearer = products < _rounded(kth - rounding, -np.inf)
        is_farther = products > _rounded(kth + rounding, np.inf)
        exact, _, _ = self._exact(X, ~(is_nearer | is_farther))
        n_left = k - 1 - is_nearer.sum(axis=1, keepdims=True)
        return np.sqrt(np.take_along_axis(np.sort(exact, axis=1), n_left, axis=1)[:, 0])

    def _products(self, X: Floats) -> tuple[NDArray[np.float32], Floats]:
        """Give squared distances, less the square of the row itself, and bounds on their errors.

        They are in squares of the unit.
        """
        centred = (X - self.center) / self.unit
        products = np.c_[centred, np.ones(len(X))].astype(np.float32) @ self.factors
        return products, self.rounding * (np.linalg.norm(centred, axis=1) + self.length) ** 2

    def _exact(
        self, X: Floats, is_candidate: NDArray[np.bool_]
    ) -> tuple[Floats, NDArray[np.intp], NDArray[np.intp]]:
        """Give exact squared distances of candidates, a line for each row, filled up with infinity.

        With them, which reference rows these are, one after another, and where each line begins.
        """
        n_references = len(self.reference)
        rows, columns = np.divmod(np.flatnonzero(is_candidate[:, :n_references]), n_references)
        exact = np.empty(len(rows))
        for part in gen_batches(len(rows), max(1, _BATCH_CELLS // X.shape[1])):
            differences = X[rows[part]] - self.reference[columns[part]]
            exact[part] = np.einsum("ij,ij->i", differences, differences)
        counts = np.bincount(rows, minlength=len(X))
        first = np.cumsum(counts) - counts
        lines = np.full((len(X), counts.max()), np.inf)
        lines[rows, np.arange(len(rows)) - first[rows]] = exact
        return lines, columns, first


def _kth_smallest(products: NDArray[np.float32], k: int) -> Floats:
    return np.partition(products, k - 1, axis=1)[:, k - 1].astype(np.float64)


def _rounded(bounds: Floats, towards: float) -> NDArray[np.float32]:
    """Round to float32, in which comparisons take a fourth of the time: (n, 1)."""
    return np.nextafter(bounds.astype(np.float32), np.float32(towards))[:, None]
