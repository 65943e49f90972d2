"""Scores of more rows than memory holds, by dask. Takes the extra "dask"."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from dask.array import Array
from dask.bag import Bag
from dask.delayed import delayed
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d._base import BaseDetector

__all__ = ["score_samples"]

Collection = TypeVar("Collection", Array, Bag)


def score_samples(detector: BaseDetector, X: Collection) -> Collection:
    """Score a dask collection lazily, block by block; **higher = more normal**.

    Nothing is read before the result is computed, and then no more blocks at a time than there
    are threads to score them. Each worker is sent the detector once.

    Parameters
    ----------
    detector : G2DOutlierDetector or AVIDDetector
        Fitted.
    X : dask.array.Array of shape (n_samples, ...), or dask.bag.Bag of arrays
        Rows or images, as for the detector's own `score_samples`. The blocks of an array may
        hold any number of rows; an item of a bag is what one file holds, say.

    Returns
    -------
    dask.array.Array of shape (n_samples,), or dask.bag.Bag of ndarray
        float64 scores: block by block, or item by item, those of the detector's
        `score_samples`. Subtract ``detector.offset_`` for the `decision_function`, negative
        where `predict` says -1.

    Raises
    ------
    NotFittedError
        If the detector is not fitted.
    TypeError
        If `X` is neither an array nor a bag of dask's.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from sklearn_g2d import G2DOutlierDetector
    >>> from sklearn_g2d.dask import score_samples
    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> detector = G2DOutlierDetector(random_state=0).fit(X)
    >>> scores = score_samples(detector, da.from_array(X, chunks=(50, 3)))
    >>> scores.compute().shape
    (200,)
    """
    check_is_fitted(detector)
    # A task of its own, which the others share: a detector among their arguments would be sent
    # along with every one of them.
    shared = delayed(detector, traverse=False)
    if isinstance(X, Bag):
        return X.map(_score_block, shared)
    if isinstance(X, Array):
        rows = X.rechunk(dict.fromkeys(range(1, X.ndim), -1))
        return rows.map_blocks(
            _score_block, shared, drop_axis=range(1, X.ndim), meta=np.empty(0, dtype=np.float64)
        )
    raise TypeError(
        f"X must be a dask array, or a dask bag of arrays, got {type(X).__name__}. For arrays in "
        "memory, and memory maps, call the detector's own score_samples."
    )


def _score_block(block: ArrayLike, detector: BaseDetector) -> NDArray[np.float64]:
    # What a filter leaves of a block may be nothing.
    return detector.score_samples(block) if len(block) else np.empty(0)  # type: ignore[arg-type]
