"""Exact search for the nearest reference rows, with equal bits in every batch of rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import KDTree
from sklearn.utils import gen_batches

from sklearn_g2d.utils.arrays import Floats

# A tree is faster than matrix products in few dimensions only (measured).
_MAX_TREE_COLUMNS = 4

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
        self.tree = KDTree(reference) if d <= _MAX_TREE_COLUMNS else None
        if self.tree is not None:
            return
        self.center = reference.mean(axis=0)
        centred = reference - self.center
        n_padded = n + -n % _GROUP_SIZE
        # The last row holds squared lengths, so that one product gives |r|^2 - 2 x r, the squared
        # distance without |x|^2, which is the same for all references. Padding is infinitely far.
        # A value that overflows in float32 makes its row a candidate, so that nothing is lost.
        with np.errstate(over="ignore"):
            self.factors = np.zeros((d + 1, n_padded), dtype=np.float32)
            self.factors[:d, :n] = -2 * centred.T
            self.factors[d] = np.inf
            self.factors[d, :n] = np.square(centred).sum(axis=1)
        self.length = float(np.linalg.norm(centred, axis=1).max())
        # This is twice the largest sum of the rounding errors of d + 8 operations, each of half a
        # unit in the last place.
        self.rounding = 2 * (d + 8) * float(np.finfo(np.float32).eps)

    def nearest(self, X: Floats, k: int) -> tuple[Floats, NDArray[np.intp]]:
        """Return distances and indices of the `k` nearest rows, nearest first: (n_samples, k)."""
        if self.tree is not None:
            return self.tree.query(X, k)
        batches = gen_batches(len(X), max(1, _BATCH_PRODUCTS // self.factors.shape[1]))
        distances, indices = zip(*(self._nearest(X[batch], k) for batch in batches), strict=True)
        return np.concatenate(distances), np.concatenate(indices)

    def _nearest(self, X: Floats, k: int) -> tuple[Floats, NDArray[np.intp]]:
        n, n_references = len(X), len(self.reference)
        centred = X - self.center
        with np.errstate(over="ignore", invalid="ignore"):
            # Squared distances minus the squared length of the row itself.
            squared = np.c_[centred, np.ones(n)].astype(np.float32) @ self.factors
            # The k smallest minima of groups belong to k different references. So their largest is
            # an upper bound for the k-th smallest product, and much cheaper to find.
            best = squared
            if squared.shape[1] >= 2 * k * _GROUP_SIZE:
                best = squared.reshape(n, _GROUP_SIZE, -1).min(axis=1)
            bound = np.partition(best, k - 1, axis=1)[:, k - 1].astype(np.float64)
            bound += self.rounding * (np.linalg.norm(centred, axis=1) + self.length) ** 2
            # The negation makes a product that is NaN a candidate, too.
            is_candidate = ~(squared[:, :n_references] > bound[:, None])
        rows, columns = np.divmod(np.flatnonzero(is_candidate), n_references)
        exact = np.empty(len(rows))
        for part in gen_batches(len(rows), max(1, _BATCH_CELLS // X.shape[1])):
            differences = X[rows[part]] - self.reference[columns[part]]
            exact[part] = np.einsum("ij,ij->i", differences, differences)
        # Rows have different numbers of candidates. Fill up with infinity, and sort all at once.
        counts = np.bincount(rows, minlength=n)
        first = np.cumsum(counts) - counts
        lines = np.full((n, counts.max()), np.inf)
        lines[rows, np.arange(len(rows)) - first[rows]] = exact
        order = np.argsort(lines, axis=1, kind="stable")[:, :k]
        return np.sqrt(np.take_along_axis(lines, order, axis=1)), columns[first[:, None] + order]
