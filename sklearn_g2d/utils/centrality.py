"""Which rows may be learned from where outliers are among the training rows."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sklearn_g2d.utils.arrays import Floats
from sklearn_g2d.utils.search import NeighborSearch

# What is learned from where outliers are stated to be among the rows. It does not follow the
# stated fraction: more rows than that are better left out (docs/results).
CONTAMINATED_FRACTION = 0.6

# The fraction of the rows among which the near neighbour is looked for, if no more are asked for.
_CORE_FRACTION = 0.7

# The far neighbour is the n/10-th. A cluster of outliers is smaller, so that its members cannot
# vouch for each other. The near one is the 20-th.
_FAR_FRACTION, _NEAR = 0.1, 20

# Rows among which the far neighbour is looked for.
_MAX_REFERENCES = 1000

# Robust deviations from the median, of remoteness and of company, from which a row is left out:
# of each, and of both together.
_LEAST_EACH, _LEAST_SUM = 1.0, 5.0


def resolve_fraction(
    fraction: float | Literal["auto"], contamination: float | Literal["auto"]
) -> float | Literal["auto"]:
    """Give the fraction of the rows to learn from, where `contamination` may state outliers."""
    stated = fraction == "auto" and contamination != "auto"
    return CONTAMINATED_FRACTION if stated else fraction


def central_rows(
    search: NeighborSearch, fraction: float | Literal["auto"], *, least_alone: float = 10.0
) -> NDArray[np.bool_]:
    """Mark which of the reference rows of a search to learn from: (n_references,).

    A number gives that fraction of the rows, in two steps. Rows whose far neighbour is near make
    a core, which clusters of outliers are not in; the rows whose near neighbour in the core is
    nearest are taken. "auto" gives all rows but those that are remote and yet in company: their far
    neighbour is much farther away than that of most rows, also in units of the distance to their
    near neighbour. It leaves out also single rows that are `least_alone` robust deviations more
    remote than most; by default only such as would set the scale of all others.
    """
    X = search.reference
    if fraction == 1 or len(X) < 2 / _FAR_FRACTION:
        return np.ones(len(X), dtype=bool)
    far = _far_distances(X)
    if fraction != "auto":
        in_core = far <= np.quantile(far, max(fraction, _CORE_FRACTION))
        # Rows of the core find themselves, and so their k-th neighbour is one further.
        k = min(_NEAR, int(in_core.sum()) // 2)
        distances, _ = NeighborSearch(X[in_core]).nearest(X, k + 1)
        near = np.where(in_core, distances[:, k], distances[:, k - 1])
        return near <= np.quantile(near, fraction)
    near = search.nearest_of_references(min(_NEAR, len(X) // 20) + 1)[0][:, -1]
    least = np.finfo(np.float64).tiny
    remoteness = np.log(far + least)
    company = remoteness - np.log(near + least)
    deviations = np.stack([_robust_deviations(values) for values in (remoteness, company)])
    has_company = (deviations.min(axis=0) >= _LEAST_EACH) & (deviations.sum(axis=0) >= _LEAST_SUM)
    return ~has_company & (deviations[0] < least_alone)


def _far_distances(X: Floats) -> Floats:
    """Measure how far each row's far neighbour is, among at most some thousand rows."""
    references = X
    if len(X) > _MAX_REFERENCES:
        chosen = np.random.RandomState(0).choice(len(X), _MAX_REFERENCES, replace=False)
        references = X[np.sort(chosen)]
    k = max(1, int(_FAR_FRACTION * len(references)))
    k += references is X  # whose rows find themselves
    return NeighborSearch(references).distances_to(min(k, len(references)), X)


def _robust_deviations(values: Floats) -> Floats:
    """Standardise by the median, and by the median deviation of what lies above it."""
    above = values - np.median(values)
    spread = 1.4826 * np.median(above[above >= 0])  # a normal distribution's standard deviation
    return above / spread if spread > 0 else np.zeros_like(above)
