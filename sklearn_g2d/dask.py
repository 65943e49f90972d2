"""Scores of more rows than fit into memory, with dask. It needs the extra "dask"."""

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

    No data is read before the result is computed; then each thread holds at most one block. Each
    worker receives the detector once.

    Parameters
    ----------
    detector : G2DOutlierDetector, AVIDDetector or another fitted detector
    X : dask.array.Array of shape (n_samples, ...), or dask.bag.Bag of arrays
        Rows or images, as for the detector's own `score_samples`. A block of an array may hold
        any number of rows. An item of a bag may be the rows of one file, for example.

    Returns
    -------
    dask.array.Array of shape (n_samples,), or dask.bag.Bag of ndarray
        The float64 scores of the detector's `score_samples`, block by block or item by item.
        Subtract ``detector.offset_`` to get the `decision_function`, which is negative where
        `predict` returns -1.

    Raises
    ------
    NotFittedError
        If the detector is not fitted.
    TypeError
        If `X` is neither a dask array nor a dask bag.

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
    # Make the detector a task that all blocks share. As a plain argument it would be sent to the
    # workers again with every block.
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
        "memory and for memory maps, call the detector's own score_samples."
    )


def _score_block(block: ArrayLike, detector: BaseDetector) -> NDArray[np.float64]:
    # A filter of the user may have removed all rows of a block.
    return detector.score_samples(block) if len(block) else np.empty(0)  # type: ignore[arg-type]
