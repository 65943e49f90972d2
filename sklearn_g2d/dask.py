"""Rows, images and folders that are larger than memory, with dask. It needs the extra "dask"."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from dask.array import Array, concatenate, from_delayed, map_blocks
from dask.bag import Bag
from dask.delayed import delayed
from numpy.typing import DTypeLike, NDArray
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d import datasets
from sklearn_g2d._base import BaseDetector
from sklearn_g2d.datasets._images import find_images
from sklearn_g2d.video._clips import ClipEstimator

__all__ = ["anomaly_map", "load_images", "score_samples", "transform"]

Collection = TypeVar("Collection", Array, Bag)

# Size in bytes of a block of images that are read from files.
_BLOCK_BYTES = 2**25


def score_samples(detector: BaseDetector, X: Collection) -> Collection:
    """Score a dask collection lazily, block by block; **higher = more normal**.

    No data is read before the result is computed; then each thread holds at most one block. Each
    worker receives the detector once.

    Parameters
    ----------
    detector : G2DOutlierDetector, AVIDDetector, PatchDetector or another fitted detector
    X : dask.array.Array of shape (n_samples, ...), or dask.bag.Bag of arrays
        Rows or images, as for the detector's own `score_samples`. A block of an array may hold
        any number of whole rows or images. An item of a bag may be the rows of one file, or one
        clip, for example.

    Returns
    -------
    dask.array.Array of shape (n_samples,), or dask.bag.Bag of ndarray
        The float64 scores of the detector's `score_samples`, block by block or item by item.
        Subtract ``detector.offset_`` to get the `decision_function`, which is negative where
        `predict` returns -1.

    Raises
    ------
    NotFittedError
        If the detector is not fitted.
    TypeError
        If `X` is neither a dask array nor a dask bag, or is an array of frames for a detector of
        clips.
    ValueError
        If blocks divide rows or images, or the number of columns differs from that of `fit`.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from sklearn_g2d import G2DOutlierDetector
    >>> from sklearn_g2d.dask import score_samples
    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> detector = G2DOutlierDetector(random_state=0).fit(X)
    >>> scores = score_samples(detector, da.from_array(X, chunks=(50, 3)))
    >>> scores.compute().shape
    (200,)
    """
    if isinstance(X, Bag):
        check_is_fitted(detector)
        return X.map(_block, _shared(detector), "score_samples", np.empty(0))
    _check(detector, X)
    return _by_block(detector, "score_samples", X, (), np.float64)


def anomaly_map(detector: Any, X: Array) -> Array:
    """Compute maps of a dask array lazily, block by block; **higher = more anomalous**.

    A map has eight bytes for each pixel, so that all maps need more memory than the images. Reduce
    them, or write them to a file with ``.to_zarr(...)``, before you compute the result.

    Parameters
    ----------
    detector : PatchDetector, AVIDDetector or another fitted detector with `anomaly_map`
    X : dask.array.Array of shape (n_samples, ...)
        Rows or images, as for the detector's own `anomaly_map`, in blocks of whole ones.

    Returns
    -------
    dask.array.Array of shape (n_samples, height, width), or (n_samples, n_features) for a table
        The float64 maps of the detector's `anomaly_map`.

    Raises
    ------
    NotFittedError, ValueError
        For the same reasons as in `score_samples`.
    TypeError
        If the detector has no `anomaly_map`, or for the same reasons as in `score_samples`.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from torch import nn
    >>> from sklearn_g2d import PatchDetector
    >>> from sklearn_g2d.dask import anomaly_map
    >>> from sklearn_g2d.features import PretrainedFeatures
    >>> images = np.random.default_rng(0).integers(0, 50, (40, 1, 32, 32), dtype=np.uint8)
    >>> features = PretrainedFeatures(nn.Conv2d(3, 8, 3, stride=4))  # stands for a trained one
    >>> detector = PatchDetector(features=features, random_state=0).fit(images)
    >>> maps = anomaly_map(detector, da.from_array(images, chunks=(10, -1, -1, -1)))
    >>> maps.max(axis=(1, 2)).compute().shape  # holds one block of maps for each thread
    (40,)
    """
    _check(detector, X)
    if not hasattr(detector, "anomaly_map"):
        name = type(detector).__name__
        raise TypeError(f"{name} has no anomaly_map: take a PatchDetector or an AVIDDetector.")
    image_shape = getattr(detector, "image_shape_", None)
    shape = X.shape[1:] if image_shape is None else image_shape[1:]
    return _by_block(detector, "anomaly_map", X, shape, np.float64)


def transform(transformer: Any, X: Array) -> Array:
    """Transform a dask array of rows or images lazily, block by block.

    Parameters
    ----------
    transformer : PretrainedFeatures, a Pipeline of transformers, or another fitted transformer
        It transforms one row of zeros immediately, which gives the number of columns and their
        type.
    X : dask.array.Array of shape (n_samples, ...)
        Rows or images, as for the transformer's own `transform`, in blocks of whole ones.

    Returns
    -------
    dask.array.Array of shape (n_samples, n_features_out)
        The rows of the transformer's `transform`.

    Raises
    ------
    NotFittedError, TypeError, ValueError
        For the same reasons as in `score_samples`.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from sklearn_g2d.dask import transform
    >>> from sklearn_g2d.features import OrientedGradients
    >>> images = np.random.default_rng(0).uniform(size=(40, 1, 16, 16))
    >>> features = OrientedGradients().fit(images[:10])
    >>> rows = transform(features, da.from_array(images, chunks=(10, -1, -1, -1)))
    >>> bool((rows == features.transform(images)).all())
    True
    """
    _check(transformer, X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about zeros would only confuse
        row = transformer.transform(np.zeros((1, *X.shape[1:]), dtype=X.dtype))
    return _by_block(transformer, "transform", X, row.shape[1:], row.dtype)


def load_images(
    folder: str | PathLike[str] | Iterable[str | PathLike[str]],
    *,
    size: int | tuple[int, int] | None = None,
    channels: int = 3,
) -> Bunch:
    """Load the images of a folder lazily, some files at a time.

    The first file is read immediately, because it gives the shape of all images. The others are
    read whenever a result is computed. `sklearn_g2d.datasets.load_images` reads each file only
    once, into memory or into a memory map, which needs as much space on the disk.

    Parameters
    ----------
    folder : str, path-like or iterable of these
        A folder, or a list of files. Workers have to find the files at the same paths.
    size : int or tuple of int, default=None
        Length of the shorter side, or height and width, of the resized images.
    channels : {3, 1}, default=3
        Red, green and blue, or gray.

    Returns
    -------
    Bunch
        ``images`` is a dask.array.Array of shape (n_images, channels, height, width), in blocks of
        about 32 MB. ``paths`` is a list with the ``pathlib.Path`` of each image.

    Raises
    ------
    ImportError, OSError, TypeError, ValueError
        For the same reasons as in `sklearn_g2d.datasets.load_images`. Errors of other files than
        the first are raised when the result is computed.

    Examples
    --------
    >>> from sklearn_g2d.dask import load_images, score_samples
    >>> new = load_images("parts/new", size=256)  # doctest: +SKIP
    >>> scores = score_samples(detector, new.images).compute()  # doctest: +SKIP
    """
    paths = find_images(folder)
    first = _read(paths[:1], [], size, channels)
    n = max(1, _BLOCK_BYTES // first.nbytes)
    parts = [paths[start : start + n] for start in range(0, len(paths), n)]
    read = delayed(_read)
    blocks = [
        from_delayed(
            read([path.absolute() for path in part], [paths[0].absolute()], size, channels),
            shape=(len(part), *first.shape[1:]),
            dtype=first.dtype,
        )
        for part in parts
    ]
    return Bunch(images=concatenate(blocks), paths=paths)


def _read(paths: list[Path], first: list[Path], size: Any, channels: int) -> NDArray[Any]:
    # Load the first image of the folder with those of each block, so that an image of another size
    # raises the same error as without dask.
    together = datasets.load_images(first + paths, size=size, channels=channels)
    return together.images[len(first) :]


def _by_block(
    estimator: Any, method: str, X: Array, shape: tuple[int, ...], dtype: DTypeLike
) -> Array:
    """Apply a method to each block; it returns an array of `shape` for each row or image."""
    return map_blocks(
        _block,
        X,
        _shared(estimator),
        method,
        np.empty((0, *shape), dtype=dtype),
        drop_axis=list(range(1, X.ndim)),
        new_axis=list(range(1, 1 + len(shape))),
        chunks=(X.chunks[0], *((n,) for n in shape)),
        meta=np.empty((0,) * (1 + len(shape)), dtype=dtype),
    )


def _shared(estimator: Any) -> Any:
    # Make the estimator a task that all blocks share. As a plain argument it would be sent to the
    # workers again with every block.
    return delayed(estimator, traverse=False)


def _block(block: Any, estimator: Any, method: str, empty: NDArray[Any]) -> NDArray[Any]:
    # A filter of the user may have removed all rows of a block.
    return getattr(estimator, method)(block) if len(block) else empty


def _check(estimator: Any, X: Any) -> None:
    check_is_fitted(estimator)
    name = type(estimator).__name__
    if not isinstance(X, Array):
        raise TypeError(
            f"X must be a dask array, or for score_samples a dask bag of arrays, got "
            f"{type(X).__name__}. For arrays in memory, and memory maps, call the method of the "
            f"{name} itself."
        )
    if isinstance(estimator, ClipEstimator):
        raise TypeError(
            f"{name} judges the frames of a clip together, which blocks would cut apart: call "
            "score_samples on a dask bag with one clip an item."
        )
    divided = [axis for axis in range(1, X.ndim) if X.numblocks[axis] > 1]
    if divided:
        whole = ", ".join(["'auto'"] + ["-1"] * (X.ndim - 1))
        raise ValueError(
            f"Blocks must hold whole rows or images, but X is divided along the axes {divided}, "
            f"too: make it with chunks=({whole}), or pass X.rechunk(({whole}))."
        )
    # A table may have a number of columns that dask does not know, NaN.
    n, known = X.shape[-1], getattr(estimator, "n_features_in_", None)
    if X.ndim == 2 and known is not None and n != known and not np.isnan(n):
        raise ValueError(f"X has {n} features, but {name} is expecting {known} features as input.")
