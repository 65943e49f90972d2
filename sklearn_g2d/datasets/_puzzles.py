"""Puzzles made of small images; some of these are anomalous."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state


def make_puzzles(
    images: ArrayLike,
    labels: ArrayLike,
    anomalous_label: Any,
    *,
    n_samples: int = 100,
    grid_shape: tuple[int, int] = (11, 11),
    n_anomalous: int | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Make large images from small ones as tiles, with some anomalous tiles.

    With the digits of MNIST, and "3" as the anomalous digit, this is the data set IR-MNIST of
    [1]_. A detector learns puzzles without threes. Then it has to find the threes in other puzzles.

    Parameters
    ----------
    images : array-like of shape (n, height, width) or (n, channels, height, width)
        The tiles to draw from, with replacement. Use different images for training and testing,
        because otherwise a detector that only remembers tiles gets the best result.
    labels : array-like of shape (n,)
        Class of each image.
    anomalous_label : object
        Label of the anomalous images.
    n_samples : int, default=100
        Number of puzzles.
    grid_shape : tuple of int, default=(11, 11)
        Rows and columns of tiles.
    n_anomalous : int, default=None
        Number of anomalous tiles in each puzzle, at random places; 0 makes training data. None
        draws each tile from all images, so that anomalous tiles are as frequent as in `images`.
    random_state : int, RandomState instance or None, default=None
        Seed of the drawing.

    Returns
    -------
    puzzles : ndarray of shape (n_samples, channels, rows * height, columns * width)
        The puzzles, with the dtype of the images.
    tile_is_anomalous : ndarray of shape (n_samples, rows, columns)
        True where a tile is anomalous.

    Raises
    ------
    ValueError
        If `images` has another shape or another length than `labels`, a number is out of range, or
        normal or anomalous images are needed and there are none.

    References
    ----------
    .. [1] M. Sabokrou et al., "AVID: Adversarial Visual Irregularity Detection", ACCV 2018.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_g2d.datasets import make_puzzles
    >>> digits = load_digits()
    >>> puzzles, tile_is_anomalous = make_puzzles(
    ...     digits.images, digits.target, 3, grid_shape=(4, 5), n_anomalous=2, random_state=0
    ... )
    >>> puzzles.shape
    (100, 1, 32, 40)
    >>> tile_is_anomalous[0].astype(int)
    array([[0, 0, 0, 0, 0],
           [0, 0, 0, 1, 0],
           [0, 0, 0, 0, 0],
           [0, 0, 0, 0, 1]])
    """
    tiles, is_anomalous = _check_images(images, labels, anomalous_label)
    rows, columns = _check_grid_shape(grid_shape)
    n_tiles = rows * columns
    if not isinstance(n_samples, Integral) or n_samples < 1:
        raise ValueError(f"n_samples must be an integer of at least 1, got {n_samples!r}.")
    if n_anomalous is not None and (
        not isinstance(n_anomalous, Integral) or not 0 <= n_anomalous <= n_tiles
    ):
        raise ValueError(
            f"n_anomalous must be None or an integer from 0 to {n_tiles}, the number of tiles of "
            f"a {rows} x {columns} grid, got {n_anomalous!r}."
        )
    if n_anomalous != 0 and not is_anomalous.any():
        raise ValueError(
            f"No image has the label {anomalous_label!r}. For puzzles without anomalous tiles set "
            "n_anomalous=0."
        )
    if n_anomalous != n_tiles and is_anomalous.all():
        raise ValueError(
            f"All images have the anomalous label {anomalous_label!r}. Add normal images."
        )
    random_state = check_random_state(random_state)
    if n_anomalous is None:
        drawn = random_state.randint(len(tiles), size=(n_samples, n_tiles))
    else:
        # If every tile is anomalous, there may be no normal image to draw from.
        pool = np.flatnonzero(~is_anomalous if n_anomalous < n_tiles else is_anomalous)
        drawn = random_state.choice(pool, (n_samples, n_tiles))
        if n_anomalous:
            # Sorting random numbers gives a random order of the places, for all puzzles at once.
            places = random_state.random_sample((n_samples, n_tiles)).argsort(axis=1)
            anomalous = random_state.choice(np.flatnonzero(is_anomalous), (n_samples, n_anomalous))
            np.put_along_axis(drawn, places[:, :n_anomalous], anomalous, axis=1)
    drawn = drawn.reshape(n_samples, rows, columns)
    _, channels, height, width = tiles.shape
    # From (n, rows, columns, channels, height, width): put the pixels of a tile beside its place.
    puzzles = tiles[drawn].transpose(0, 3, 1, 4, 2, 5)
    return (
        puzzles.reshape(n_samples, channels, rows * height, columns * width),
        is_anomalous[drawn],
    )


def _check_images(
    images: ArrayLike, labels: ArrayLike, anomalous_label: Any
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    tiles = np.asarray(images)
    if tiles.ndim == 3:
        tiles = tiles[:, np.newaxis]
    if tiles.ndim != 4:
        raise ValueError(
            "images must have shape (n, height, width) or (n, channels, height, width), got "
            f"{tiles.shape}."
        )
    names = np.asarray(labels)
    if names.shape != (len(tiles),):
        raise ValueError(
            f"labels must have shape ({len(tiles)},), one for each image, got {names.shape}."
        )
    return tiles, np.asarray(names == anomalous_label, dtype=bool)


def _check_grid_shape(grid_shape: Any) -> tuple[int, int]:
    sizes = tuple(grid_shape) if np.ndim(grid_shape) == 1 else ()
    if len(sizes) != 2 or not all(isinstance(size, Integral) and int(size) > 0 for size in sizes):
        raise ValueError(
            f"grid_shape must be two positive integers (rows, columns), got {grid_shape!r}."
        )
    return int(sizes[0]), int(sizes[1])
