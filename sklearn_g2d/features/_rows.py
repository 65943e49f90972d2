"""Base classes of transformers: validation, and one computation for scores and graphs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, gen_batches
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_array, check_is_fitted

from sklearn_g2d.utils.images import ImageShape, validate_images
from sklearn_g2d.utils.inputs import plain, validate
from sklearn_g2d.utils.surroundings import shielded


class RowTransformer(TransformerMixin, BaseEstimator):
    """Transformer that computes in one pure method, which takes arrays or tensors of a graph."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {}

    # Accepted dtypes (others are converted to the first), smallest number of rows in `fit`, and
    # number of rows that are transformed at once (None for all).
    _dtypes: ClassVar[tuple[type, ...]] = (np.float64, np.float32, np.uint8)
    _min_rows: ClassVar[int] = 1
    _batch_rows: int | None = None

    @abstractmethod
    def _fit(self, X: NDArray[Any]) -> Any:
        """Learn from checked rows."""

    @abstractmethod
    def _constants(self) -> dict[str, ArrayLike]:
        """Return the fitted values that `_compute` needs, by name."""

    @abstractmethod
    def _compute(self, X: Any, c: dict[str, Any]) -> Any:
        """Transform rows by the constants `c`; rows and constants are all arrays or all tensors."""

    @shielded()
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Learn from rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, or images if the class transforms images. Values that are too large for the
            computation raise ValueError.
        y : ignored

        Returns
        -------
        self
        """
        self._validate_params()
        self._fit(self._validate(X, reset=True))
        return self

    @shielded()
    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Transform rows as the class describes.

        Parameters
        ----------
        X : array-like, as for `fit`

        Returns
        -------
        ndarray of shape (n_samples, n_features_out)
        """
        check_is_fitted(self)
        return self._transform(self._validate(X, reset=False))

    def _transform(self, rows: NDArray[Any]) -> NDArray[Any]:
        c = self._constants()
        # A value that overflows becomes infinite, and is then clipped or bounded like others.
        with np.errstate(over="ignore"):
            if self._batch_rows is None:
                return self._compute(rows, c)
            batches = gen_batches(len(rows), self._batch_rows)
            return np.concatenate([self._compute(rows[batch], c) for batch in batches])

    @available_if(lambda self: hasattr(self, "_invert"))
    def inverse_transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Undo `transform`, except for information that it has removed.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features_out)

        Returns
        -------
        ndarray of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        return self._invert(check_array(plain(X), dtype=np.float64))

    def _validate(self, X: ArrayLike, *, reset: bool) -> NDArray[Any]:
        """Check rows. Only `fit` needs at least `_min_rows` of them."""
        n = self._min_rows if reset else 1
        return validate(self, X, reset=reset, dtype=self._dtypes, ensure_min_samples=n)


class ImageTransformer(ClassNamePrefixFeaturesOutMixin, RowTransformer):
    """Transformer of images, or of rows of pixels if `image_shape` gives their shape."""

    image_shape: Sequence[int] | None
    image_shape_: ImageShape
    # Smallest side of an image, in pixels.
    _smallest = 1

    def _validate(self, X: ArrayLike, *, reset: bool) -> NDArray[Any]:
        return validate_images(self, X, reset=reset, dtype=self._dtypes, smallest=self._smallest)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.image_shape is not None
        tags.input_tags.three_d_array = True
        return tags
