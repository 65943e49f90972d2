"""Exact search for the nearest reference rows, with equal bits in every batch of rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree
from sklearn.utils import gen_batches

from sklearn_g2d.utils.arrays import Floats

# A tree is faster than matrix products in few dimensions only (measured).
_MAX_TREE_COLUMNS, _LEAF_ROWS = 5, 64

# Largest numbers of products, and of cells of differences, in memory at once: both fit into the
# processor's cache.
_BATCH_PRODUCTS, _BATCH_CELLS = 2**19, 2**18

# To find the bound, products are taken in groups of this size, and only the smallest of each group
# is used.
_GROUP_SIZE = 16


class NeighborSearch:
    """Finds the nearest of the reference rows (n_references, n_features).

    Fast products in float32, with a bound on their rounding errors, exclude most rows. Distances to
    the others are computed from differences in float64. Therefore the distances of a row do not
    depend on the other rows of its batch. The last digits of a matrix product would do so.
    """

    def __init__(self, reference: Floats) -> None:
        self.reference = reference
        n, d = reference.shape
        # The choice depends on the shape only, never on a timing, so that scores are reproducible.
        self.tree = KDTree(reference, _LEAF_ROWS) if d <= _MAX_TREE_COLUMNS else None
        self._of_references: tuple[Floats, NDArray[np.intp]] | None = None
        if self.tree is not None:
            return
        self.center = reference.mean(axis=0)
        centred = reference - self.center
        self.length = float(np.linalg.norm(centred, axis=1).max())
        # Squares in this unit neither overflow nor vanish in float32. It is a power of two, so that
        # dividing by it rounds nothing.
        self.unit = 2.0 ** np.frexp(self.length)[1]
        centred /= self.unit
        self.length /= self.unit
        # The last row holds squared lengths, so that one product gives |r|^2 - 2 x r, the squared
        # distance without |x|^2, which is the same for all references. Padding is infinitely far.
        n_padded = n + -n % _GROUP_SIZE
        self.factors = np.zeros((d + 1, n_padded), dtype=np.float32)
        self.factors[:d, :n] = -2 * centred.T
        self.factors[d] = np.inf
        self.factors[d, :n] = np.square(centred).sum(axis=1)
        # This is twice the largest sum of the rounding errors of d + 8 operations, each of half a
        # unit in the last place.
        self.rounding = 2 * (d + 8) * float(np.finfo(np.float32).eps)

    def nearest(self, X: Floats, k: int) -> tuple[Floats, NDArray[np.intp]]:
        """Return distances and indices of the `k` nearest rows, nearest first: (n_samples, k)."""
        if self.tree is not None:
            return self.tree.query(X, range(1, k + 1))
        distances, indices = zip(*(self._nearest(X[b], k) for b in self._batches(X)), strict=True)
        return np.concatenate(distances), np.concatenate(indices)

    def nearest_of_references(self, k: int) -> tuple[Floats, NDArray[np.intp]]:
        """Return the same for the reference rows, each of which finds itself.

        The result is kept, because a fit needs it more than once.
        """
        if self._of_references is None or self._of_references[0].shape[1] < k:
            self._of_references = self.nearest(self.reference, k)
        distances, indices = self._of_references
        return distances[:, :k], indices[:, :k]

    def distances_to(self, k: int, X: Floats) -> Floats:
        """Return only the distances to the `k`-th nearest row, which may be far: (n_samples,)."""
        if self.tree is not None:
            return self.tree.query(X, [k])[0][:, 0]
        return np.concatenate([self._distances_to(k, X[batch]) for batch in self._batches(X)])

    def _batches(self, X: Floats) -> Iterator[slice]:
        return gen_batches(len(X), max(1, _BATCH_PRODUCTS // self.factors.shape[1]))

    @np.errstate(over="ignore", invalid="ignore")
    def _nearest(self, X: Floats, k: int) -> tuple[Floats, NDArray[np.intp]]:
        products, rounding = self._products(X)
        # The k smallest minima of groups belong to k different references. So their largest is an
        # upper bound for the k-th smallest product, and much cheaper to find.
        best = products
        if products.shape[1] >= 2 * k * _GROUP_SIZE:
            best = products.reshape(len(X), _GROUP_SIZE, -1).min(axis=1)
        # The negation makes a product that is NaN a candidate, too.
        is_candidate = ~(products > _rounded(_kth_smallest(best, k) + rounding, np.inf))
        exact, columns, first = self._exact(X, is_candidate)
        order = np.argsort(exact, axis=1, kind="stable")[:, :k]
        return np.sqrt(np.take_along_axis(exact, order, axis=1)), columns[first[:, None] + order]

    @np.errstate(over="ignore", invalid="ignore")
    def _distances_to(self, k: int, X: Floats) -> Floats:
        products, rounding = self._products(X)
        kth = _kth_smallest(products, k)
        # References that are surely nearer are only counted, so that few distances are computed.
        is_nearer = products < _rounded(kth - rounding, -np.inf)
        is_farther = products > _rounded(kth + rounding, np.inf)
        exact, _, _ = self._exact(X, ~(is_nearer | is_farther))
        n_left = k - 1 - is_nearer.sum(axis=1, keepdims=True)
        return np.sqrt(np.take_along_axis(np.sort(exact, axis=1), n_left, axis=1)[:, 0])

    def _products(self, X: Floats) -> tuple[NDArray[np.float32], Floats]:
        """Return squared distances minus the squared lengths of the rows, and their error bounds.

        Both are in squares of the unit.
        """
        centred = (X - self.center) / self.unit
        products = np.c_[centred, np.ones(len(X))].astype(np.float32) @ self.factors
        return products, self.rounding * (np.linalg.norm(centred, axis=1) + self.length) ** 2

    def _exact(
        self, X: Floats, is_candidate: NDArray[np.bool_]
    ) -> tuple[Floats, NDArray[np.intp], NDArray[np.intp]]:
        """Return the exact squared distances of candidates, with a line for each row.

        Rows have different numbers of candidates: lines end with infinity. Also returns which
        reference rows the candidates are, all lines in one, and where each line begins there.
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
    """Round to float32, which is four times as fast to compare with products: (n, 1)."""
    return np.nextafter(bounds.astype(np.float32), np.float32(towards))[:, None]
