"""Principal components, and the distance of a row from their span."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin
from sklearn.utils._param_validation import Interval, StrOptions

from sklearn_g2d.features._rows import RowTransformer
from sklearn_g2d.utils.arrays import PRODUCT_ROWS, namespace, product

_AUTO_COMPONENTS = 64
_ROWS_FOR_EACH = 10

# Above these values, sums of squares may be infinite.
_MAX_IN_FLOAT32, _MAX_IN_FLOAT64 = 1e15, 1e150

# New rows may have larger values. They are clipped, so that the squares of their deviations are
# finite.
_LIMIT = 1e100


@dataclass(eq=False, repr=False)
class ResidualPCA(ClassNamePrefixFeaturesOutMixin, RowTransformer):
    """Principal components, and the length of the residual, which is the rest of a row.

    An outlier may lie outside the span of normal data. Its components do not show this, but the
    last column, the length of the residual, does; process control calls its square the Q statistic
    [1]_. Distances between normal rows change little, and no distance becomes larger. The inverse
    returns rows without their residual.

    Parameters
    ----------
    n_components : int or "auto", default="auto"
        Number of components; with n rows and d columns, at most min(n - 1, d) are used. "auto"
        means 64, or all components if there are at most 640 rows: components of few rows fit
        only these rows, so that new normal rows would have longer residuals.

    Attributes
    ----------
    pca_ : PCA
        The components. They are not whitened: all columns have the unit of the rows.
    n_components_, n_features_in_ : int
        Number of components in use, and number of columns.

    References
    ----------
    .. [1] J. E. Jackson, G. S. Mudholkar, "Control Procedures for Residuals Associated with
       Principal Component Analysis", Technometrics 21, 1979.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d.features import ResidualPCA
    >>> X = [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]  # on a line
    >>> pca = ResidualPCA(n_components=1).fit(X)
    >>> residual = pca.transform([[3.0, 3.0], [3.0, 1.0]])[:, -1]  # on it, and beside it
    >>> np.abs(residual).round(2).tolist()
    [0.0, 1.41]
    """

    n_components: int | Literal["auto"] = "auto"

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})]
    }

    _dtypes: ClassVar[tuple[type, ...]] = (np.float64, np.float32)
    _min_rows: ClassVar[int] = 2
    _batch_rows = PRODUCT_ROWS

    def _fit(self, X: NDArray[Any]) -> None:
        largest = float(np.abs(X).max())
        if largest > _MAX_IN_FLOAT64:
            raise ValueError(
                f"X holds values up to {largest:.3g}, too large to compute a variance from. "
                "Rescale X, or remove the columns with such values."
            )
        if largest > _MAX_IN_FLOAT32:
            X = X.astype(np.float64, copy=False)
        n_components = self.n_components
        if n_components == "auto":
            few = len(X) <= _ROWS_FOR_EACH * _AUTO_COMPONENTS
            n_components = len(X) if few else _AUTO_COMPONENTS
        self.n_components_ = min(int(n_components), len(X) - 1, X.shape[1])
        # Import PCA here, because it imports all linear models, which would double the time that
        # this package adds to the import of PyTorch.
        from sklearn.decomposition import PCA

        # Only the randomised solver, which PCA uses for large data, needs the seed. With it,
        # equal rows give equal components.
        self.pca_ = PCA(self.n_components_, random_state=0)
        # If the variance is 0, PCA divides by it to get fractions of it.
        with np.errstate(divide="ignore", invalid="ignore"):
            self.pca_.fit(X)

    def _constants(self) -> dict[str, ArrayLike]:
        mean, axes = (a.astype(np.float64) for a in (self.pca_.mean_, self.pca_.components_.T))
        return {"mean": mean, "axes": axes, "limit": _LIMIT, "zero": 0.0}

    def _compute(self, X: Any, c: dict[str, Any]) -> Any:
        xp = namespace(X)
        # The axes are orthonormal, so that Pythagoras gives the length of the residual. Rounding
        # can make its square negative.
        centred = xp.clip(X - c["mean"], -c["limit"], c["limit"])
        components = product(centred, c["axes"])
        squared = xp.square(centred).sum(axis=1) - xp.square(components).sum(axis=1)
        residual = xp.sqrt(xp.maximum(squared, c["zero"]))
        return xp.concatenate([components, residual[:, None]], axis=1)

    def _invert(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        # The length of a residual does not tell its direction: leave it out.
        return self.pca_.inverse_transform(X[:, :-1])

    @property
    def _n_features_out(self) -> int:
        return self.n_components_ + 1
