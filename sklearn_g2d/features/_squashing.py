"""Standardisation with a smooth bound."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import OneToOneFeatureMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils import gen_batches
from sklearn.utils._param_validation import Interval

from sklearn_g2d.features._rows import RowTransformer
from sklearn_g2d.utils.arrays import namespace

_FIT_BATCH_ROWS = 8192

# Squares of larger numbers may be infinite.
_LIMIT = 1e150


@dataclass(eq=False, repr=False)
class SquashingScaler(OneToOneFeatureMixin, RowTransformer):
    """Standardise columns, then bound them smoothly.

    z = (x - mean) / scale becomes z / sqrt(1 + (z / bound)^2). This is nearly z for ordinary
    values and always within +-bound, so that one extreme cell cannot outweigh the rest of a row.

    Parameters
    ----------
    bound : float, default=8.0
        Largest magnitude of the output, in standard deviations. With infinity, columns are only
        standardised.
    range_weight : float in [0, 1], default=0.25
        Columns are divided by ``std ** (1 - range_weight) * range ** range_weight``, and then all
        by one factor, so that their mean square is 1. Above 0, a column with rare extreme values,
        such as a flag that is almost never set, gets less weight. Ignored if `common_scale` is
        True.
    common_scale : bool, default=False
        Whether to divide all columns by the same number, the root of their mean variance. Use it
        for coordinates of one space.

    Attributes
    ----------
    mean_, var_ : ndarray of shape (n_features,)
        Mean and variance of each column. A memory map is read in blocks to compute them.
    scale_ : ndarray of shape (n_features,)
        Divisor of each column; 1 for a constant column.
    bound_, n_features_in_ : float, int
        The parameter `bound` in `fit`, and the number of columns.

    Examples
    --------
    >>> from sklearn_g2d.features import SquashingScaler
    >>> scaler = SquashingScaler(bound=8).fit([[-1.0], [1.0]])
    >>> scaler.transform([[1.0], [1000.0]]).round(2).tolist()
    [[0.99], [8.0]]
    """

    bound: float = 8.0
    range_weight: float = 0.25
    common_scale: bool = False

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "bound": [Interval(Real, 0, None, closed="right")],
        "range_weight": [Interval(Real, 0, 1, closed="both")],
        "common_scale": ["boolean"],
    }

    def _fit(self, X: NDArray[Any]) -> None:
        scaler = StandardScaler()
        with np.errstate(over="ignore", invalid="ignore"):
            for batch in gen_batches(len(X), _FIT_BATCH_ROWS):
                scaler.partial_fit(np.asarray(X[batch], dtype=np.float64))
        overflow = ~(np.isfinite(scaler.mean_) & np.isfinite(scaler.var_))
        if overflow.any():
            column = int(np.argmax(overflow))
            raise ValueError(
                f"Column {column} holds values up to {np.abs(X[:, column]).max():.3g}, too "
                "large to compute a variance from. Rescale or remove this column."
            )
        self.mean_, self.var_, self.bound_ = scaler.mean_, scaler.var_, float(self.bound)
        # In a constant, or nearly constant, column the deviations are only rounding errors.
        std = np.maximum(scaler.scale_, 1e-13 * np.abs(self.mean_))
        self.scale_ = std.copy()
        width = np.ptp(X, axis=0).astype(np.float64)
        varies = width > 0
        if self.common_scale:
            common = np.sqrt(self.var_.mean())
            self.scale_[:] = common if common > 0 else 1.0
        elif self.range_weight and varies.any():
            self.scale_[varies] *= (width[varies] / std[varies]) ** self.range_weight
            self.scale_ *= np.sqrt(np.mean(np.square(std[varies] / self.scale_[varies])))

    def _constants(self) -> dict[str, ArrayLike]:
        fitted = {"mean": self.mean_, "scale": self.scale_, "bound": self.bound_}
        return fitted | {"one": 1.0, "limit": _LIMIT}

    def _compute(self, X: Any, c: dict[str, Any]) -> Any:
        xp = namespace(X)
        # The subtraction makes a copy, so that the division may be done in place.
        z = X - c["mean"]
        z /= c["scale"]
        z = xp.clip(z, -c["limit"], c["limit"])
        return z / xp.hypot(c["one"], z / c["bound"])

    def _invert(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        # At the bound the inverse is infinite: limit it to 1000 times the bound.
        inside = np.maximum(1 - np.square(X / self.bound_), 1e-6)
        # Rounding can make a cell near the largest float64 number infinite.
        with np.errstate(over="ignore"):
            return np.nan_to_num(X / np.sqrt(inside) * self.scale_ + self.mean_)
