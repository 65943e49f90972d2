"""Exact search for the nearest of some reference rows, bit-equal whatever rows are asked for."""

from __future__ import annotations

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
        if self.tree is not None:
            return
        self.center = reference.mean(axis=0)
        centred = reference - self.center
        n_padded = n + -n % _GROUP_SIZE
        with np.errstate(over="ignore"):  # what is infinite in float32 is always looked at
            self.factors = np.zeros((d + 1, n_padded), dtype=np.float32)
            self.factors[:d, :n] = -2 * centred.T
            self.factors[d] = np.inf
            self.factors[d, :n] = np.square(centred).sum(axis=1)
        self.length = float(np.linalg.norm(centred, axis=1).max())
        # Twice what d + 8 operations, each rounded by half a unit in the last place, add up to.
        self.rounding = 2 * (d + 8) * float(np.finfo(np.float32).eps)

    def nearest(self, X: Floats, k: int) -> tuple[Floats, NDArray[np.intp]]:
        """Give distances and indices of the `k` nearest rows, nearest first: (n_samples, k)."""
        if self.tree is not None:
            return self.tree.query(X, k)
        batches = gen_batches(len(X), max(1, _BATCH_PRODUCTS // self.factors.shape[1]))
        distances, indices = zip(*(self._nearest(X[batch], k) for batch in batches), strict=True)
        return np.concatenate(distances), np.concatenate(indices)

    def _nearest(self, X: Floats, k: int) -> tuple[Floats, NDArray[np.intp]]:
        n, n_references = len(X), len(self.reference)
        centred = X - self.center
        with np.errstate(over="ignore", invalid="ignore"):
            # Squared distances, less the square of the row itself.
            squared = np.c_[centred, np.ones(n)].astype(np.float32) @ self.factors
            best = squared
            if squared.shape[1] >= 2 * k * _GROUP_SIZE:
                best = squared.reshape(n, _GROUP_SIZE, -1).min(axis=1)
            bound = np.partition(best, k - 1, axis=1)[:, k - 1].astype(np.float64)
            bound += self.rounding * (np.linalg.norm(centred, axis=1) + self.length) ** 2
            # Written so that what is not a number is a candidate.
            is_candidate = ~(squared[:, :n_references] > bound[:, None])
        rows, columns = np.divmod(np.flatnonzero(is_candidate), n_references)
        exact = np.empty(len(rows))
        for part in gen_batches(len(rows), max(1, _BATCH_CELLS // X.shape[1])):
            differences = X[rows[part]] - self.reference[columns[part]]
            exact[part] = np.einsum("ij,ij->i", differences, differences)
        # A line for each row, filled up with infinity, to be sorted.
        counts = np.bincount(rows, minlength=n)
        first = np.cumsum(counts) - counts
        lines = np.full((n, counts.max()), np.inf)
        lines[rows, np.arange(len(rows)) - first[rows]] = exact
        order = np.argsort(lines, axis=1, kind="stable")[:, :k]
        return np.sqrt(np.take_along_axis(lines, order, axis=1)), columns[first[:, None] + order]
