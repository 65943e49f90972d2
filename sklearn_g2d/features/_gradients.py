"""What an image shows, told by the orientations of its gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, gen_batches
from sklearn.utils.validation import check_is_fitted, validate_data

from sklearn_g2d.utils.images import ImageShape, as_rows

_MIN_SIZE = 8
_CLIP = 0.2
_LAYOUT_CELLS = 4
_BATCH_PIXELS = 2**17  # floats of one map; larger ones leave the processor's cache


class OrientedGradients(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Histograms of oriented gradients in coarse and fine cells, and the image's layout.

    The image is divided into n x n overlapping cells, whatever its size; a cell adds up
    the gradients around it by orientation. Blocks of 2 x 2 cells are normalised to length
    1 and clipped [1]_, for several n [2]_. In a colour image a pixel's gradient is that of
    the channel where it is steepest. The mean intensities of 4 x 4 cells, by channel, are
    appended.

    Parameters
    ----------
    image_shape : tuple of int, default=None
        Channels, height and width of images given as rows of pixels. None expects arrays of
        shape (n_samples, channels, height, width).
    n_cells : sequence of int, default=(4, 8)
        Cells along each side, 2 or more, for every level.
    n_orientations : int, default=12
        Orientations from 0 to 180 degrees; that of a gradient and its opposite are the same.
    layout_weight : float, default=0.5
        Weight of the mean intensities, which the training range scales to [0, 1]; 0 leaves
        them out.

    Attributes
    ----------
    image_shape_ : tuple of int
        Channels, height and width in `fit`.
    intensity_range_ : tuple of float
        Lowest and highest intensity in `fit`.
    contrast_ : float
        Mean length of the gradient in `fit`. Images that have far less are described as
        flat, lest their noise be taken for structure.
    n_features_in_ : int
        Number of intensities of an image.

    References
    ----------
    .. [1] N. Dalal, B. Triggs, "Histograms of Oriented Gradients for Human Detection",
       CVPR 2005.
    .. [2] A. Bosch, A. Zisserman, X. Munoz, "Representing Shape with a Spatial Pyramid
       Kernel", CIVR 2007.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_g2d.features import OrientedGradients
    >>> images = load_digits().images[:, None]
    >>> images.shape
    (1797, 1, 8, 8)
    >>> OrientedGradients().fit_transform(images).shape
    (1797, 2800)
    """

    image_shape_: ImageShape

    def __init__(
        self,
        image_shape: Sequence[int] | None = None,
        *,
        n_cells: Sequence[int] = (4, 8),
        n_orientations: int = 12,
        layout_weight: float = 0.5,
    ) -> None:
        self.image_shape = image_shape
        self.n_cells = n_cells
        self.n_orientations = n_orientations
        self.layout_weight = layout_weight

    def fit(self, X: ArrayLike, y: Any = None) -> OrientedGradients:
        """Learn the size, range and contrast of the images.

        Parameters
        ----------
        X : array-like of shape (n_samples, channels, height, width) or (n_samples, n_features)
            Images of at least 8 x 8 pixels.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If `X` is not an array of images, holds NaN, or its images are too small.
        """
        rows = self._validate(X, reset=True)
        self.intensity_range_ = (float(rows.min()), float(rows.max()))
        lengths = [np.sqrt(_gradients(images)[2]).mean() for images in self._batches(rows)]
        self.contrast_ = float(np.mean(lengths))
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Describe every image.

        Parameters
        ----------
        X : array-like of shape (n_samples, channels, height, width) or (n_samples, n_features)
            Images of the size seen in `fit`.

        Returns
        -------
        ndarray of shape (n_samples, n_features_out)
            float32, not negative but for intensities below the training range.
        """
        check_is_fitted(self)
        rows = self._validate(X, reset=False)
        _, height, width = self.image_shape_
        levels = [(_windows(n, height), _windows(n, width)) for n in self.n_cells]
        layout = _windows(_LAYOUT_CELLS, height), _windows(_LAYOUT_CELLS, width)
        floor = np.square(1e-2 * self.contrast_) + np.finfo(np.float32).tiny
        described = []
        for images in self._batches(rows):
            cells = self._cells(*_gradients(images), levels)
            parts = [_normalized_blocks(level, floor) for level in cells]
            if self.layout_weight:
                means = (layout[0] @ images @ layout[1].T).reshape(len(images), -1)
                weight = self.layout_weight / _LAYOUT_CELLS
                parts.append(np.multiply(means, weight, dtype=np.float32))
            described.append(np.concatenate(parts, axis=1))
        return np.concatenate(described)

    def _validate(self, X: ArrayLike, *, reset: bool) -> NDArray[Any]:
        known = self.image_shape if reset else self.image_shape_
        rows, shape = as_rows(X, known, name=type(self).__name__, fitted=not reset)
        rows = validate_data(self, rows, reset=reset, dtype=(np.float64, np.float32, np.uint8))
        if shape is None:
            raise ValueError(
                f"{type(self).__name__} takes images, an array of shape (n_samples, channels, "
                f"height, width), but X has shape {rows.shape}. If its rows are pixels, say "
                "which: image_shape=(channels, height, width)."
            )
        if reset:
            if min(shape[1:]) < _MIN_SIZE:
                raise ValueError(
                    f"{type(self).__name__} takes images of at least {_MIN_SIZE} x {_MIN_SIZE} "
                    f"pixels, got {shape[1]} x {shape[2]}. Enlarge them, or take the pixels "
                    'as they are (features="raw" in a detector).'
                )
            if not all(2 <= n <= min(shape[1:]) for n in self.n_cells):
                raise ValueError(
                    "n_cells must lie between 2 and the image's smaller side, "
                    f"{min(shape[1:])}, got {self.n_cells!r}."
                )
            self.image_shape_ = shape
        return rows

    def _batches(self, rows: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
        """Images whose training range is [0, 1], a few at a time."""
        low, high = (0.5 * end for end in self.intensity_range_)  # whose range is always finite
        for batch in gen_batches(len(rows), max(1, _BATCH_PIXELS // self.n_features_in_)):
            # Only the difference of large numbers may be shortened to float32.
            images = np.multiply(rows[batch], 0.5, dtype=np.float64)
            images -= low
            # A wild pixel is cut off where float32 still holds its powers.
            with np.errstate(over="ignore"):
                images /= high - low if high > low else 1.0
            np.clip(images, -1e6, 1e6, out=images)
            yield images.astype(np.float32).reshape(-1, *self.image_shape_)

    def _cells(
        self,
        across: NDArray[np.float32],
        down: NDArray[np.float32],
        squared: NDArray[np.float32],
        levels: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
    ) -> list[NDArray[np.float32]]:
        """Add up gradients by orientation and cell: (n, n_orientations, n_cells, n_cells)."""
        length = np.sqrt(squared)
        inverse = 1 / np.maximum(squared, np.finfo(np.float32).tiny)
        sums: list[list[NDArray[np.float32]]] = [[] for _ in levels]
        for angle in np.pi * np.arange(self.n_orientations) / self.n_orientations:
            share = np.float32(np.cos(angle)) * across + np.float32(np.sin(angle)) * down
            share *= share
            share *= inverse  # the squared cosine between gradient and orientation
            for _ in range(3):
                share *= share  # its 8th power: smooth bins, three orientations wide
            share *= length
            for (rows, columns), level in zip(levels, sums, strict=True):
                level.append(rows @ share @ columns.T)
        return [np.stack(level, axis=1) for level in sums]

    @property
    def _n_features_out(self) -> int:
        blocks = sum((n - 1) ** 2 * 4 * self.n_orientations for n in self.n_cells)
        return blocks + bool(self.layout_weight) * self.image_shape_[0] * _LAYOUT_CELLS**2

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.image_shape is not None
        tags.input_tags.three_d_array = True
        return tags


def _gradients(
    images: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Horizontal and vertical gradient and its squared length, where it is steepest."""
    across, down = np.zeros_like(images), np.zeros_like(images)
    across[..., 1:-1] = images[..., 2:] - images[..., :-2]
    down[..., 1:-1, :] = images[..., 2:, :] - images[..., :-2, :]
    squared = np.square(across) + np.square(down)
    if images.shape[1] > 1:
        steepest = squared.argmax(axis=1)[:, None]
        across, down, squared = (
            np.take_along_axis(a, steepest, axis=1) for a in (across, down, squared)
        )
    return across[:, 0], down[:, 0], squared[:, 0]


def _windows(n_cells: int, size: int) -> NDArray[np.float32]:
    """Weights of `size` pixels in `n_cells` cells: triangles that reach to the next centres."""
    centres = (np.arange(n_cells) + 0.5) * size / n_cells
    distances = np.abs(np.arange(size) + 0.5 - centres[:, None]) * n_cells / size
    weights = np.clip(1 - distances, 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _normalized_blocks(cells: NDArray[np.float32], floor: float) -> NDArray[np.float32]:
    """Describe blocks of 2 x 2 cells; a level's description has a length of at most 1."""
    n, _, side, _ = cells.shape
    energy = np.square(cells).sum(axis=1)
    corners = [(slice(i, side - 1 + i), slice(j, side - 1 + j)) for i in (0, 1) for j in (0, 1)]
    block = sum(energy[:, rows, columns] for rows, columns in corners)
    # The image's own mean keeps blocks small where there is next to nothing.
    mean = np.maximum(energy.mean(axis=(1, 2)), np.float32(floor))[:, None, None]
    inverse = (1 / np.sqrt(block + mean))[:, None]
    parts = [cells[:, :, rows, columns] * inverse for rows, columns in corners]
    blocks = np.stack(parts, axis=1).reshape(n, -1)
    return np.minimum(blocks, np.float32(_CLIP)) / np.float32(side - 1)
