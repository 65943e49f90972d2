"""Conversion of rows or images to rows of features by the part `features`, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline
from sklearn.utils import gen_batches, get_tags

from sklearn_g2d.utils.arrays import Floats
from sklearn_g2d.utils.images import ImageShape
from sklearn_g2d.utils.parts import fit_part

PASSTHROUGH = "passthrough"

# Batch size for a function of the user, usually a network: all images at once may need too much
# memory.
_FUNCTION_BATCH = 256


def featurize(
    features: Any, X: NDArray[Any], image_shape: ImageShape | None, *, fit: bool = False
) -> NDArray[Any]:
    """Map rows (n_samples, n_values), of a table or of pixels, to features (n_samples, n_features).

    `features` is a transformer, which is fitted first if `fit` says so, a function, or
    "passthrough".
    """
    if isinstance(features, str):
        return X
    inputs = _inputs(features, X, image_shape)
    if fit and hasattr(features, "fit"):
        fit_part(features, inputs)
    if hasattr(features, "transform"):
        return _as_rows(features.transform(inputs), len(X))
    batches = [inputs[rows] for rows in gen_batches(len(X), _FUNCTION_BATCH)]
    return np.concatenate([_as_rows(features(batch), len(batch)) for batch in batches])


def unfeaturize(features: Any, rows: Floats) -> Floats:
    """Map rows of features back to rows of the detector's input, or raise a ValueError."""
    if isinstance(features, str):
        return rows
    if not hasattr(features, "inverse_transform"):
        name = getattr(features, "__name__", type(features).__name__)
        raise ValueError(
            f"The features {name} have no inverse_transform, so that generated points cannot be "
            'turned into rows. Use features="passthrough", or a transformer with an inverse.'
        )
    return np.asarray(features.inverse_transform(rows)).reshape(len(rows), -1)


def _inputs(features: Any, X: NDArray[Any], image_shape: ImageShape | None) -> NDArray[Any]:
    """Return rows, or images if the features take images."""
    # The first step of a Pipeline decides. A function always gets images if there are any.
    first = features
    while isinstance(first, Pipeline):
        first = first.steps[0][1]
    takes_images = image_shape is not None and (
        not hasattr(first, "transform") or get_tags(first).input_tags.three_d_array
    )
    return X.reshape(-1, *image_shape) if takes_images else X  # type: ignore[misc]


def _as_rows(features: Any, n_samples: int) -> NDArray[Any]:
    rows = np.asarray(features)
    if len(rows.shape) == 0 or len(rows) != n_samples:
        raise ValueError(
            f"features returned an array of shape {rows.shape} for {n_samples} samples; it must "
            "return one row of features for each sample."
        )
    rows = rows.reshape(n_samples, -1)
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise ValueError("features returned NaN or infinity; it must return finite numbers.")
    return rows
