"""Scaling to [-1, 1] by the range of all columns together, or of each column."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import OneToOneFeatureMixin

from sklearn_g2d.features._rows import RowTransformer
from sklearn_g2d.utils.arrays import float64, namespace

# Networks compute in float32: within this limit the squares of scaled values are finite.
_LIMIT = 1e6


class _MinMaxScaler(OneToOneFeatureMixin, RowTransformer):
    """Scaling by `center_` and `half_range_`, which are numbers or arrays of one per column."""

    def _constants(self) -> dict[str, ArrayLike]:
        return {"center": self.center_, "half_range": self.half_range_}

    def _compute(self, X: Any, c: dict[str, Any]) -> Any:
        scaled = (float64(X) - c["center"]) / c["half_range"]
        return namespace(X).clip(scaled, -_LIMIT, _LIMIT)

    def _invert(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        return X * self.half_range_ + self.center_


class GlobalMinMaxScaler(_MinMaxScaler):
    """Map the range of all columns together to [-1, 1].

    This suits pixels, whose columns share one unit, and generators that end with tanh. Values far
    outside the range seen in `fit` are clipped.

    Attributes
    ----------
    data_min_, data_max_ : float
        Lowest and highest value in `fit`.
    center_, half_range_ : float
        The middle of this range, and half of its length, or 1 if the length is 0.
    n_features_in_ : int
        Number of columns.

    Examples
    --------
    >>> from sklearn_g2d.features import GlobalMinMaxScaler
    >>> scaler = GlobalMinMaxScaler().fit([[0, 255], [51, 0]])
    >>> scaler.transform([[255, 0], [102, 51]]).round(1).tolist()
    [[1.0, -1.0], [-0.2, -0.6]]
    """

    def _fit(self, X: NDArray[Any]) -> None:
        self.data_min_, self.data_max_ = float(X.min()), float(X.max())
        # Take halves first, because the difference of the whole values could overflow.
        half = self.data_max_ / 2 - self.data_min_ / 2
        self.half_range_ = half if half > 0 else 1.0
        varies = self.data_max_ > self.data_min_
        self.center_ = self.data_min_ + self.half_range_ if varies else self.data_min_


class ColumnMinMaxScaler(_MinMaxScaler):
    """Map the range of each column to [-1, 1].

    This suits tables before generators that end with tanh. Values far outside the range seen in
    `fit` are clipped.

    Attributes
    ----------
    center_, half_range_ : ndarray of shape (n_features,)
        The middle of each column's range, and half of its length, or 1 if the length is 0.
    n_features_in_ : int
        Number of columns.

    Examples
    --------
    >>> from sklearn_g2d.features import ColumnMinMaxScaler
    >>> scaler = ColumnMinMaxScaler().fit([[0, 10], [4, 30]])
    >>> scaler.transform([[0, 30], [3, 50]]).tolist()
    [[-1.0, 1.0], [0.5, 3.0]]
    """

    def _fit(self, X: NDArray[Any]) -> None:
        lowest, highest = (limit.astype(np.float64) for limit in (X.min(axis=0), X.max(axis=0)))
        # Take halves first, because the difference of the whole values could overflow.
        half = highest / 2 - lowest / 2
        self.center_ = lowest + half
        self.half_range_ = np.where(half > 0, half, 1.0)
