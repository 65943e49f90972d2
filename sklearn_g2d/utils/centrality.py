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

# With this growth of distances, in units of that in a single group, most rows are taken to lie in
# groups that are smaller than n/10 rows. Tables of ADBench have .6 to 1.9.
_MOST_GROWTH = 2.0

# The growth must be at least this, in logarithms, too.
_LEAST_GROWTH = 0.5


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
    neighbour in the core are marked. If normal rows form many groups, the core is chosen as with
    "auto".

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
        far, search = _far_distances(X), NeighborSearch(X)
        if _has_small_groups(search, far):
            in_core = ~_in_clusters(far, _near_distances(search))[0]
        else:
            in_core = far <= np.quantile(far, max(fraction, _CORE_FRACTION))
        # The nearest neighbour of each row of the core is the row itself.
        k = min(_NEAR, int(in_core.sum()) // 2)
        distances, _ = NeighborSearch(X[in_core]).nearest(X, k + 1)
        near = np.where(in_core, distances[:, k], distances[:, k - 1])
        return near <= np.quantile(near, fraction)
    in_cluster, deviations = _in_clusters(_far_distances(X), _near_distances(search))
    return ~in_cluster & (deviations < single_row_limit)


def _in_clusters(far: Floats, near: Floats) -> tuple[NDArray[np.bool_], Floats]:
    """Mark clusters of outliers, and return the robust deviations of the rows' remoteness.

    The distances are those to the far and to the near neighbour: (n_samples,).
    """
    remoteness, closeness = _log(far), _log(far) - _log(near)
    deviations = np.stack([_robust_deviations(values) for values in (remoteness, closeness)])
    in_cluster = (deviations.min(axis=0) >= _LEAST_EACH) & (deviations.sum(axis=0) >= _LEAST_SUM)
    return in_cluster, deviations[0]


def _has_small_groups(search: NeighborSearch, far: Floats) -> bool:
    """Return whether most rows lie in groups that are too small to hold their far neighbours.

    Such groups of normal rows, each of another kind, would look like clusters of outliers. In a
    single group the logarithms of the distances to the neighbours grow in proportion to the
    logarithms of their numbers. From one group to the next the distance grows much faster.
    """
    X = search.reference
    step = -(-len(X) // _MAX_REFERENCES)
    k = _n_near(len(X))
    nearer = k // 4
    if nearer == 0:  # there are too few rows to tell
        return False
    distances, _ = search.nearest(X[::step], k + 1)
    near = distances[:, k]
    growth = np.median(_log(near) - _log(distances[:, nearer])) / np.log(k / nearer)
    expected = growth * np.log(_FAR_FRACTION * len(X) / k)
    found = np.median(_log(far[::step]) - _log(near))
    # In a table of few different values many distances are equal, or zero, and tell nothing.
    return bool(np.median(near) > 0 and found > max(_MOST_GROWTH * expected, _LEAST_GROWTH))


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


def _near_distances(search: NeighborSearch) -> Floats:
    """Return each row's distance to its near neighbour."""
    return search.nearest_of_references(_n_near(len(search.reference)) + 1)[0][:, -1]


def _n_near(n: int) -> int:
    """Return the number of the near neighbour among `n` rows."""
    return min(_NEAR, n // 20)


def _log(distances: Floats) -> Floats:
    return np.log(distances + np.finfo(np.float64).tiny)


def _robust_deviations(values: Floats) -> Floats:
    """Standardise by the median, and by the median deviation of the values above it."""
    above = values - np.median(values)
    if not (above > 0).any():
        return np.zeros_like(above)
    # The factor makes this the standard deviation if the values are normally distributed. Values
    # that equal the median are left out: in a table of few different values they may be many.
    return above / (1.4826 * np.median(above[above > 0]))
