"""Choice of the rows to learn from if there are outliers among the training rows."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sklearn_g2d.utils.arrays import Floats
from sklearn_g2d.utils.search import NeighborSearch

# Fraction of the rows to learn from if `contamination` is a number. It does not depend on this
# number: leaving out more rows than that gives better scores (docs/results).
CONTAMINATED_FRACTION = 0.6

# Fraction of the rows in the core, in which the near neighbours are searched. It is larger if the
# fraction to learn from is larger.
_CORE_FRACTION = 0.7

# The far neighbour is the n/10-th. A cluster of outliers is smaller than n/10 rows, so that its
# members are not the far neighbours of each other. The near neighbour is the 20th.
_FAR_FRACTION, _NEAR = 0.1, 20

# Number of rows among which the far neighbour is searched. More rows cost time and change little.
_MAX_REFERENCES = 1000

# A row is left out if its remoteness, and its closeness to near neighbours, are at least so many
# robust deviations above the median: each of the two, and their sum.
_LEAST_EACH, _LEAST_SUM = 1.0, 5.0


def resolve_fraction(
    fraction: float | Literal["auto"], contamination: float | Literal["auto"]
) -> float | Literal["auto"]:
    """Return the fraction of rows to learn from: "auto" is .6 if `contamination` is a number."""
    stated = fraction == "auto" and contamination != "auto"
    return CONTAMINATED_FRACTION if stated else fraction


def central_rows(
    search: NeighborSearch, fraction: float | Literal["auto"], *, single_row_limit: float = 10.0
) -> NDArray[np.bool_]:
    """Mark which of the reference rows of a search to learn from: (n_references,).

    If `fraction` is a number, that fraction of the rows is marked, in two steps, by all columns
    with more than two values. The rows with the smallest distances to their far neighbour form a
    core, without clusters of outliers. Then the rows with the smallest distances to their near
    neighbour in the core are marked.

    "auto" marks all rows except clusters of outliers: remote rows that are close to each other.
    Their far neighbour is much farther away than that of most rows, also relative to the distance
    of their near neighbour. A single row is left out, too, if it is `single_row_limit` robust
    deviations more remote than the median. The default leaves out only rows so remote that they
    would determine the scale of all others.
    """
    X = search.reference
    if fraction == 1 or len(X) < 2 / _FAR_FRACTION:
        return np.ones(len(X), dtype=bool)
    if fraction != "auto":
        X = _without_binary_columns(X)
        far = _far_distances(X)
        in_core = far <= np.quantile(far, max(fraction, _CORE_FRACTION))
        # The nearest neighbour of each row of the core is the row itself.
        k = min(_NEAR, int(in_core.sum()) // 2)
        distances, _ = NeighborSearch(X[in_core]).nearest(X, k + 1)
        near = np.where(in_core, distances[:, k], distances[:, k - 1])
        return near <= np.quantile(near, fraction)
    far = _far_distances(X)
    near = search.nearest_of_references(min(_NEAR, len(X) // 20) + 1)[0][:, -1]
    least = np.finfo(np.float64).tiny
    remoteness = np.log(far + least)
    closeness = remoteness - np.log(near + least)
    deviations = np.stack([_robust_deviations(values) for values in (remoteness, closeness)])
    in_cluster = (deviations.min(axis=0) >= _LEAST_EACH) & (deviations.sum(axis=0) >= _LEAST_SUM)
    return ~in_cluster & (deviations[0] < single_row_limit)


def _without_binary_columns(X: Floats) -> Floats:
    """Leave out columns with two values, such as encoded categories, if there are others.

    Once scaled, a rare category is remote from all others. Its rows are fewer than those up to the
    far neighbour, so that ordinary rows would be taken for a cluster of outliers.
    """
    low, high = X.min(axis=0), X.max(axis=0)
    is_binary = ((low == X) | (high == X)).all(axis=0)
    return X if is_binary.all() else X[:, ~is_binary]


def _far_distances(X: Floats) -> Floats:
    """Return each row's distance to its far neighbour, among at most `_MAX_REFERENCES` rows."""
    references = X
    if len(X) > _MAX_REFERENCES:
        chosen = np.random.RandomState(0).choice(len(X), _MAX_REFERENCES, replace=False)
        references = X[np.sort(chosen)]
    k = max(1, int(_FAR_FRACTION * len(references)))
    # If all rows are references, the nearest neighbour of each row is the row itself.
    k += references is X
    return NeighborSearch(references).distances_to(min(k, len(references)), X)


def _robust_deviations(values: Floats) -> Floats:
    """Standardise by the median, and by the median deviation of the values above it."""
    above = values - np.median(values)
    # The factor makes this the standard deviation if the values are normally distributed.
    spread = 1.4826 * np.median(above[above >= 0])
    return above / spread if spread > 0 else np.zeros_like(above)
