"""Scalers of what the networks see."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils import gen_batches
from sklearn.utils.validation import check_is_fitted, validate_data

_BATCH_ROWS = 8192


class SquashingScaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Standardise columns, then bound them smoothly.

    z = (x - mean) / std becomes z / sqrt(1 + (z / bound)^2): nearly z for ordinary
    values, never beyond +-bound, so that one wild cell cannot outweigh a row.

    Parameters
    ----------
    bound : float, default=8.0
        Largest magnitude of the output, in standard deviations.
    range_weight : float in [0, 1], default=0.0
        Columns are divided by ``std ** (1 - range_weight) * range ** range_weight``, then
        all by one factor that makes their mean square 1. Above 0, a column whose outer values
        are rare, such as a flag that is almost never set, weighs less.
    common_scale : bool, default=False
        Whether all columns are divided by one number instead, the root of their mean
        variance, as coordinates of one space have to be.

    Attributes
    ----------
    scaler_ : StandardScaler
        Means and standard deviations; a constant column keeps scale 1.
    n_features_in_ : int
        Number of columns.

    Examples
    --------
    >>> from sklearn_g2d.features import SquashingScaler
    >>> scaler = SquashingScaler(bound=8).fit([[-1.0], [1.0]])
    >>> scaler.transform([[1.0], [1000.0]]).round(2).tolist()
    [[0.99], [8.0]]
    """

    def __init__(
        self, bound: float = 8.0, range_weight: float = 0.0, common_scale: bool = False
    ) -> None:
        self.bound = bound
        self.range_weight = range_weight
        self.common_scale = common_scale

    def fit(self, X: ArrayLike, y: Any = None) -> SquashingScaler:
        """Learn mean and standard deviation of every column.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows; a memory map is read in blocks, never copied whole.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a column's values are too large for its variance to be computed.
        """
        rows = validate_data(self, X, dtype=(np.float64, np.float32, np.uint8))
        self.scaler_ = StandardScaler()
        with np.errstate(over="ignore", invalid="ignore"):
            for batch in gen_batches(len(rows), _BATCH_ROWS):
                self.scaler_.partial_fit(np.asarray(rows[batch], dtype=np.float64))
        overflow = ~(np.isfinite(self.scaler_.mean_) & np.isfinite(self.scaler_.var_))
        if overflow.any():
            column = int(np.argmax(overflow))
            raise ValueError(
                f"Column {column} holds values up to {np.abs(rows[:, column]).max():.3g}, too "
                "large to compute a variance from. Rescale or remove this column."
            )
        # Rounding makes the deviations of a column that is constant, or nearly.
        rounding = 1e-13 * np.abs(self.scaler_.mean_)
        self.scaler_.scale_ = np.maximum(self.scaler_.scale_, rounding)
        if self.common_scale:
            scale = np.sqrt(self.scaler_.var_.mean())
            self.scaler_.scale_ = np.full(rows.shape[1], scale if scale > 0 else 1.0)
        elif self.range_weight:
            std, width = self.scaler_.scale_, np.ptp(rows, axis=0).astype(np.float64)
            varies = width > 0
            scale = std.copy()
            scale[varies] *= (width[varies] / std[varies]) ** self.range_weight
            if varies.any():
                scale *= np.sqrt(np.mean(np.square(std[varies] / scale[varies])))
            self.scaler_.scale_ = scale
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Standardise and bound.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            float64, within +-bound.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float64, reset=False)
        with np.errstate(over="ignore"):  # an infinite quotient is bounded like any other
            z = np.clip(self.scaler_.transform(rows), -1e150, 1e150)
        return z / np.hypot(1, z / self.bound)

    def inverse_transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Undo `transform`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Within +-bound.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        z = np.asarray(X, dtype=np.float64)
        # At the bound itself the inverse is infinite; stay as far out as data can be.
        inside = np.maximum(1 - np.square(z / self.bound), 1e-6)
        return self.scaler_.inverse_transform(z / np.sqrt(inside))


class RangeScaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Map the range of all intensities together to [-1, 1], where tanh ends.

    Attributes
    ----------
    data_min_, data_max_ : float
        Lowest and highest value in `fit`.
    n_features_in_ : int
        Number of columns.
    """

    def fit(self, X: ArrayLike, y: Any = None) -> RangeScaler:
        """Learn the range.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : ignored

        Returns
        -------
        self
        """
        rows = validate_data(self, X, dtype=(np.float64, np.float32, np.uint8))
        self.data_min_, self.data_max_ = float(rows.min()), float(rows.max())
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Map to [-1, 1]; values far outside the range seen in `fit` are cut off.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            float64.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float64, reset=False)
        # Networks compute in float32, in which the squares of what is left are finite.
        with np.errstate(over="ignore"):  # infinity is cut off like any other
            return np.clip((rows - self._center) / self._half, -1e6, 1e6)

    def inverse_transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Undo `transform`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        return np.asarray(X, dtype=np.float64) * self._half + self._center

    @property
    def _center(self) -> float:
        return self.data_min_ + self._half if self.data_max_ > self.data_min_ else self.data_min_

    @property
    def _half(self) -> float:
        # Halved before the difference is taken, which might overflow.
        half = self.data_max_ / 2 - self.data_min_ / 2
        return half if half > 0 else 1.0
