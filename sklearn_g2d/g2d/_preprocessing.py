"""What stands between the user's rows and the networks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils import gen_batches, get_tags

from sklearn_g2d.features import NeighborProfile, OrientedGradients, RemainderPCA, SquashingScaler
from sklearn_g2d.features._neighbors import central_rows
from sklearn_g2d.features._scaling import RangeScaler
from sklearn_g2d.g2d._recipes import G2DRecipe
from sklearn_g2d.utils.images import ImageShape

# Images that a callable is given at once: what networks are used to.
_CALLABLE_BATCH_IMAGES = 256


class Representation:
    """Rows to points in the generator's space, and these to what the classifier sees.

    Parameters
    ----------
    recipe : G2DRecipe
        Features, scaling and profile.
    image_shape : tuple of int, or None
        Channels, height and width if the rows are pixels.
    """

    def __init__(self, recipe: G2DRecipe, image_shape: ImageShape | None) -> None:
        self.image_shape = image_shape
        self._features = _make_features(recipe.features, image_shape)
        self._components = RemainderPCA() if image_shape and recipe.principal_components else None
        self._scaler = (
            RangeScaler()
            if recipe.width
            else SquashingScaler(recipe.bound, recipe.range_weight, recipe.common_scale)
        )
        self._profile = (
            NeighborProfile(recipe.n_neighbors, recipe.measure) if recipe.n_neighbors else None
        )

    def fit(
        self, X: NDArray[Any], support_fraction: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Learn from normal rows.

        Returns
        -------
        points : ndarray of shape (n_central, n_dimensions)
            The rows to learn from, in the generator's space.
        described : ndarray
            What the classifier sees of them.
        is_central : ndarray of shape (n_samples,), bool
            Which rows they are.
        """
        if hasattr(self._features, "fit"):
            self._features.fit(self._inputs(X))
        rows = self._featurize(X)
        if self._components is not None:
            rows = self._components.fit(rows).transform(rows)
        points = self._scaler.fit(rows).transform(rows)
        is_central = central_rows(points, support_fraction)
        if not is_central.all():
            points = self._scaler.fit(rows[is_central]).transform(rows[is_central])
        described = points if self._profile is None else self._profile.fit_transform(points)
        return points, described, is_central

    def encode(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Map rows to points in the generator's space."""
        rows = self._featurize(X)
        if self._components is not None:
            rows = self._components.transform(rows)
        return self._scaler.transform(rows)

    def describe(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map points to what the classifier sees."""
        return points if self._profile is None else self._profile.transform(points)

    def decode(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map points back to rows.

        Raises
        ------
        ValueError
            If the features cannot be inverted.
        """
        if self._features is not None and not hasattr(self._features, "inverse_transform"):
            name = getattr(self._features, "__name__", type(self._features).__name__)
            raise ValueError(
                f"The features, of {name}, have no inverse_transform, so that generated ones "
                'cannot be turned into rows. Take features="raw", or a transformer that has it.'
            )
        rows = self._scaler.inverse_transform(points)
        if self._components is not None:
            rows = self._components.inverse_transform(rows)
        if self._features is not None:
            rows = np.asarray(self._features.inverse_transform(rows)).reshape(len(rows), -1)
        return rows

    def _inputs(self, X: NDArray[Any]) -> NDArray[Any]:
        """Shape rows as the features take them."""
        takes_images = self.image_shape is not None and (
            not hasattr(self._features, "transform")
            or get_tags(self._features).input_tags.three_d_array
        )
        return X.reshape(-1, *self.image_shape) if takes_images else X  # type: ignore[misc]

    def _featurize(self, X: NDArray[Any]) -> NDArray[Any]:
        if self._features is None:
            return X
        inputs = self._inputs(X)
        if hasattr(self._features, "transform"):
            return _as_feature_rows(self._features.transform(inputs), len(X))
        batches = [inputs[rows] for rows in gen_batches(len(X), _CALLABLE_BATCH_IMAGES)]
        return np.concatenate([_as_feature_rows(self._features(b), len(b)) for b in batches])


def _as_feature_rows(features: Any, n_samples: int) -> NDArray[Any]:
    rows = np.asarray(features)
    if len(rows.shape) == 0 or len(rows) != n_samples:
        raise ValueError(
            f"features returned an array of shape {rows.shape} for {n_samples} samples; it must "
            "return a row of features for each."
        )
    rows = rows.reshape(n_samples, -1)
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise ValueError("features returned NaN or infinity; it must return finite numbers.")
    return rows


def _make_features(features: Any, image_shape: ImageShape | None) -> Any:
    if isinstance(features, str):
        if features == "raw":
            return None
        if image_shape is None:
            raise ValueError(
                'features="oriented_gradients" describes images, but X is a table. Pass an array '
                "of shape (n_samples, channels, height, width), or set image_shape."
            )
        return OrientedGradients()
    return clone(features) if hasattr(features, "fit") else features
