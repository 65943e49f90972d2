"""Conversion of arrays of images to rows of pixels, with errors about wrong shapes."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sklearn_g2d.utils.inputs import is_picture, plain, validate
from sklearn_g2d.utils.warnings import warn_caller

ImageShape = tuple[int, int, int]  # channels, height, width

# An axis of such a size is probably that of the channels: gray, colour, or colour and opacity.
_USUAL_CHANNELS = (1, 3, 4)


def _check(image_shape: Any) -> ImageShape:
    sizes = tuple(image_shape) if np.ndim(image_shape) == 1 else ()
    if len(sizes) != 3 or not all(isinstance(size, Integral) and int(size) > 0 for size in sizes):
        raise ValueError(
            "image_shape must be three positive integers (channels, height, width), got "
            f"{image_shape!r}."
        )
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


def as_rows(
    X: ArrayLike, image_shape: Any, *, name: str, fitted: bool, of_clips: bool = False
) -> tuple[Any, ImageShape | None]:
    """Flatten images, or return rows unchanged, together with the image shape (None for a table).

    Values are neither read nor copied. `image_shape` is the user's parameter or, with `fitted`, the
    shape of the images in `fit`, where None means a table. `name` is the estimator's, for errors.
    With `of_clips` they name the clip, and not the parameter, which estimators of clips lack.
    """
    expected = None if image_shape is None else _check(image_shape)
    _refuse_nested(X)
    shape = shape_of(X)
    n_pixels = 0 if expected is None else math.prod(expected)
    # One image, by its shape: without its channel, with the channels last, or as in `fit`.
    one: dict[tuple[int, ...], str] = {}
    if expected is not None:
        one[expected[1:]] = "X[np.newaxis, np.newaxis]"
        one[(*expected[1:], expected[0])] = "np.moveaxis(X, -1, 0)[np.newaxis]"
        one[expected] = "X[np.newaxis]"
    if len(shape) == 3 or (shape in one and shape[1] != n_pixels):
        remedy = "For gray ones pass X[:, np.newaxis]"
        if shape in one:
            remedy = f"One image must be given as an array of one: {one[shape]}"
        raise ValueError(
            f"X has shape {shape}, of dim {len(shape)}. Images are an array of shape (n_samples, "
            f"channels, height, width). {remedy}."
        )
    if len(shape) != 4:
        if expected is not None and not fitted and len(shape) == 2 and shape[1] != n_pixels:
            raise ValueError(
                f"X has {shape[1]} features, but image_shape={expected} asks for {n_pixels}."
            )
        return X, expected
    found = (int(shape[1]), int(shape[2]), int(shape[3]))
    # An image has more rows and columns than channels. If the last axis is smaller than both
    # others, it is therefore not the width.
    channels_last = found[2] < min(found[:2]) or (
        found[2] in _USUAL_CHANNELS and found[0] not in _USUAL_CHANNELS
    )
    # With a known height and width there is nothing to guess.
    if expected is not None:
        channels_last = (
            found != expected
            and found[:2] == expected[1:]
            and found[2] in (expected[0], *_USUAL_CHANNELS)
        )
    if channels_last:
        hint = f" If X is right, pass the parameter image_shape={found}."
        raise ValueError(
            f"X has shape {shape}, with the channels last. Images are (n_samples, channels, "
            f"height, width): pass np.moveaxis({'clip' if of_clips else 'X'}, -1, 1)."
            f"{'' if expected or of_clips else hint}"
        )
    if found != expected and (fitted or expected is not None):
        other = "rows of a table" if expected is None else expected
        source = f"was fitted on {other}" if fitted else f"was given image_shape={other}"
        raise ValueError(f"X has image shape {found}, but {name} {source}.")
    return np.asanyarray(X).reshape(shape[0], math.prod(found)), found


def validate_images(
    estimator: Any,
    X: ArrayLike,
    *,
    reset: bool,
    dtype: Any,
    smallest: int = 1,
    ensure_min_samples: int = 1,
) -> NDArray[Any]:
    """Check images for an estimator that takes only images, and return them as rows of pixels.

    If `X` holds rows of pixels already, the estimator's parameter `image_shape` has their shape.
    The attribute `image_shape_` is set.
    """
    name = type(estimator).__name__
    known = estimator.image_shape if reset else estimator.image_shape_
    rows, shape = as_rows(plain(X), known, name=name, fitted=not reset)
    rows = validate(
        estimator,
        rows,
        reset=reset,
        dtype=dtype,
        ensure_min_samples=ensure_min_samples,
        of_images=True,
    )
    if shape is None:
        raise ValueError(
            f"{name} takes images, an array of shape (n_samples, channels, height, width), but X "
            f"has shape {rows.shape}. If its rows are pixels, pass "
            "image_shape=(channels, height, width)."
        )
    if min(shape[1:]) < smallest:
        raise ValueError(
            f"{name} takes images of at least {smallest} x {smallest} pixels, got {shape[1]} x "
            f"{shape[2]}. Enlarge them, or use the pixels themselves "
            '(features="passthrough" in a detector).'
        )
    estimator.image_shape_ = shape
    return rows


def compare_units(X: NDArray[Any], dtype: str, intensity_range: tuple[float, float]) -> None:
    """Warn if intensities have another type than in `fit` and, by their range, other units."""
    # A mistake of units, 0 to 255 instead of 0 to 1, nearly always comes with another type. Images
    # of the same type may have any range: unusual ones may be the anomalies.
    if X.dtype == dtype:
        return
    (low, high), (least, most) = intensity_range, (float(X.min()), float(X.max()))
    if max(abs(least), abs(most)) > 10 * max(abs(low), abs(high)) or (
        most - least < (high - low) / 100
    ):
        warn_caller(
            f"X is of {X.dtype} from {least:.3g} to {most:.3g}, but fit was given "
            f"{dtype} from {low:.3g} to {high:.3g}: pass images in the same units."
        )


def shape_of(X: Any) -> tuple[int, ...]:
    """Return the shape of an array or of nested lists, and () for other objects."""
    if hasattr(X, "shape"):
        return tuple(X.shape)
    if isinstance(X, list | tuple):
        try:
            return np.shape(X)
        # scikit-learn has an error message for lists of unequal lengths.
        except ValueError:
            pass
    return ()


def _refuse_nested(X: Any) -> None:
    """Raise ValueError if the cells of a data frame or an object array are images."""
    # Looking at one cell is enough: such a table holds images in all of its cells.
    cell: Any = None
    column = ""
    if hasattr(X, "columns") and hasattr(X, "dtypes") and min(X.shape) > 0:
        cell = X.iloc[0, 0] if hasattr(X, "iloc") else X.item(0, 0)
        column = f"[{X.columns[0]!r}]"
    elif hasattr(X, "iloc") and np.ndim(X) == 1 and len(X):
        cell = X.iloc[0]
    elif isinstance(X, np.ndarray) and X.dtype == object and X.size:
        cell = X.flat[0]
    if is_picture(type(cell)):
        # This raises an error that says how to convert a picture.
        plain([cell], f"X{column}")
    if np.ndim(cell) if isinstance(cell, np.ndarray | list | Tensor) else hasattr(cell, "dtypes"):
        raise ValueError(
            f"The cells of X{column} hold whole images. Stack them into one array of shape "
            f"(n_samples, channels, height, width): pass np.stack(list(X{column}))."
        )
