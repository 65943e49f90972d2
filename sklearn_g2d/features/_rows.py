"""What transformers of rows share: validation, and one computation for scores and graphs."""

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
    """Transformer that computes by one pure method, of arrays or of a graph's tensors."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {}

    # Types in which rows are taken, the fewest of them, and rows that are transformed at once.
    _dtypes: ClassVar[tuple[type, ...]] = (np.float64, np.float32, np.uint8)
    _min_rows: ClassVar[int] = 1
    _batch_rows: int | None = None

    @abstractmethod
    def _fit(self, X: NDArray[Any]) -> Any:
        """Learn from checked rows."""

    @abstractmethod
    def _constants(self) -> dict[str, ArrayLike]:
        """Give what the fit left behind."""

    @abstractmethod
    def _compute(self, X: Any, c: dict[str, Any]) -> Any:
        """Transform rows by these constants, all of them arrays or all of them tensors."""

    @shielded()
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Learn from rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Or images, if the class describes such. Values that are too large to compute with are
            a ValueError.
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
        """Transform rows; the class says to what.

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
        with np.errstate(over="ignore"):  # infinity is clipped or bounded like any other value
            if self._batch_rows is None:
                return self._compute(rows, c)
            batches = gen_batches(len(rows), self._batch_rows)
            return np.concatenate([self._compute(rows[batch], c) for batch in batches])

    @available_if(lambda self: hasattr(self, "_invert"))
    def inverse_transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Undo `transform`, as far as what it gives tells the rows.

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
        """Check the rows of `fit`, or others, of which there may be fewer."""
        n = self._min_rows if reset else 1
        return validate(self, X, reset=reset, dtype=self._dtypes, ensure_min_samples=n)


class ImageTransformer(ClassNamePrefixFeaturesOutMixin, RowTransformer):
    """Transformer of images, or of rows of their pixels, whose shape `image_shape` says."""

    image_shape: Sequence[int] | None
    image_shape_: ImageShape
    _smallest = 1  # side of an image

    def _validate(self, X: ArrayLike, *, reset: bool) -> NDArray[Any]:
        return validate_images(self, X, reset=reset, dtype=self._dtypes, smallest=self._smallest)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.image_shape is not None
        tags.input_tags.three_d_array = True
        return tags
