"""Principal components that do not forget what they leave out."""

from __future__ import annotations

from numbers import Integral
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import gen_batches
from sklearn.utils.validation import check_is_fitted, validate_data

_AUTO_COMPONENTS = 64
_ROWS_FOR_EACH = 10

# Beyond these, sums of squares may be infinite.
_MAX_IN_FLOAT32, _MAX_IN_FLOAT64 = 1e15, 1e150

_BATCH_ROWS = 256  # in float64 they fit into the processor's cache


class RemainderPCA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Principal components, and the length of what they leave out of a row.

    An anomaly may lie outside the span of normal data, where its components show nothing;
    the last column does (process control calls its square the Q statistic [1]_). Distances
    between normal rows are almost kept, and no distance grows.

    Parameters
    ----------
    n_components : int or "auto", default="auto"
        Number of components; with n rows of d columns at most min(n - 1, d) are used. "auto"
        takes 64, but all of them where there are at most 640 rows: components of few rows fit
        these very rows, so that new ones would leave longer remainders.

    Attributes
    ----------
    pca_ : PCA
        The components, not whitened: all columns have the rows' own unit.
    n_components_ : int
        Number of components in use.
    n_features_in_ : int
        Number of columns.

    References
    ----------
    .. [1] J. E. Jackson, G. S. Mudholkar, "Control Procedures for Residuals Associated with
       Principal Component Analysis", Technometrics 21, 1979.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d.features import RemainderPCA
    >>> X = [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]  # on a line
    >>> pca = RemainderPCA(n_components=1).fit(X)
    >>> remainder = pca.transform([[3.0, 3.0], [3.0, 1.0]])[:, -1]  # on it, and beside it
    >>> np.abs(remainder).round(2).tolist()
    [0.0, 1.41]
    """

    def __init__(self, n_components: int | Literal["auto"] = "auto") -> None:
        self.n_components = n_components

    def fit(self, X: ArrayLike, y: Any = None) -> RemainderPCA:
        """Find the components.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            At least two rows.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If values are too large for their variance to be computed.
        """
        rows = validate_data(self, X, dtype=(np.float64, np.float32), ensure_min_samples=2)
        largest = float(np.abs(rows).max())
        if largest > _MAX_IN_FLOAT64:
            raise ValueError(
                f"X holds values up to {largest:.3g}, too large to compute a variance from. "
                "Rescale X, or remove the columns with such values."
            )
        if largest > _MAX_IN_FLOAT32:
            rows = rows.astype(np.float64, copy=False)
        n_components = self.n_components
        if n_components == "auto":
            few = len(rows) <= _ROWS_FOR_EACH * _AUTO_COMPONENTS
            n_components = len(rows) if few else _AUTO_COMPONENTS
        elif not isinstance(n_components, Integral) or int(n_components) < 1:
            raise ValueError(f'n_components must be "auto" or at least 1, got {n_components!r}.')
        self.n_components_ = min(int(n_components), len(rows) - 1, rows.shape[1])
        # Imported here, for it takes all linear models along: half of what importing the package
        # would add to the import of PyTorch.
        from sklearn.decomposition import PCA

        # The seed is of the randomised solver alone, which large data takes; with it, equal
        # rows give equal components.
        self.pca_ = PCA(self.n_components_, random_state=0)
        with np.errstate(divide="ignore", invalid="ignore"):  # shares of a variance of zero
            self.pca_.fit(rows)
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Give the components of every row, and the length of the remainder.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, `n_components_` + 1)
            float64; the last column is not negative.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        axes = self.pca_.components_.T.astype(np.float64)
        transformed = np.empty((len(rows), self.n_components_ + 1))
        for batch in gen_batches(len(rows), _BATCH_ROWS):
            centred = np.subtract(rows[batch], self.pca_.mean_, dtype=np.float64)
            np.clip(centred, -1e100, 1e100, out=centred)  # the squares have to be finite
            components = centred @ axes
            squared = np.square(centred).sum(axis=1) - np.square(components).sum(axis=1)
            transformed[batch, :-1] = components
            transformed[batch, -1] = np.sqrt(np.maximum(squared, 0))
        return transformed

    def inverse_transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Give rows with these components and no remainder, whose direction is not known.

        Parameters
        ----------
        X : array-like of shape (n_samples, `n_components_` + 1)

        Returns
        -------
        ndarray of shape (n_samples, `n_features_in_`)
        """
        check_is_fitted(self)
        components = np.asarray(X, dtype=np.float64)[:, :-1]
        return self.pca_.inverse_transform(components)

    @property
    def _n_features_out(self) -> int:
        return self.n_components_ + 1
