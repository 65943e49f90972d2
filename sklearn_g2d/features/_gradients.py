"""Features of images from the orientations of their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import gen_batches
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d.features._rows import ImageTransformer
from sklearn_g2d.utils.arrays import float32, namespace, take_along
from sklearn_g2d.utils.surroundings import shielded

_CLIP = 0.2
_LAYOUT_CELLS = 4

# Numbers of values that are computed at once: they are small enough for the maps of all
# orientations to stay in the processor's cache. A change of the first number also changes the last
# digits of `contrast_`.
_FIT_INTENSITIES, _TRANSFORM_PIXELS = 2**17, 3 * 2**14


@dataclass(eq=False, repr=False)
class OrientedGradients(ImageTransformer):
    """Histograms of oriented gradients in coarse and fine cells, and the image's layout.

    An image of any size is divided into n x n overlapping cells. Each cell sums the lengths of the
    gradients around it by orientation. Blocks of 2 x 2 cells are normalised to length 1 and clipped
    [1]_. This is done for several n [2]_. In a colour image each pixel has the gradient of the
    channel with the steepest one. The mean intensities of 4 x 4 cells, by channel, are appended.
    All values are float32. They are not negative, except for intensities below the training range.

    Parameters
    ----------
    image_shape : tuple of int, default=None
        Channels, height and width of images given as rows of pixels. None expects arrays of shape
        (n_samples, channels, height, width), of at least 8 x 8 pixels.
    n_cells : sequence of int, default=(4, 8)
        Number of cells along each side, 2 or more, for each level.
    n_orientations : int, default=12
        Number of orientations from 0 to 180 degrees. A gradient and its opposite have the same
        orientation.
    layout_weight : float, default=0.5
        Weight of the mean intensities, in units of the training range. 0 leaves them out.

    Attributes
    ----------
    image_shape_ : tuple of int
        Channels, height and width in `fit`.
    intensity_range_ : tuple of float
        Lowest and highest intensity in `fit`.
    contrast_ : float
        Mean length of the gradient in `fit`. An image with much less contrast gets features near
        0, so that its noise does not look like structure.
    n_cells_, n_orientations_, layout_weight_ : tuple of int, int, float
        The parameters in `fit`.
    n_features_in_ : int
        Number of intensities of an image.

    References
    ----------
    .. [1] N. Dalal, B. Triggs, "Histograms of Oriented Gradients for Human Detection", CVPR 2005.
    .. [2] A. Bosch et al., "Representing Shape with a Spatial Pyramid Kernel", CIVR 2007.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_g2d.features import OrientedGradients
    >>> images = load_digits().images[:, None]  # (1797, 1, 8, 8)
    >>> OrientedGradients().fit_transform(images).shape
    (1797, 2800)
    """

    image_shape: Sequence[int] | None = None
    _: KW_ONLY
    n_cells: Sequence[int] = (4, 8)
    n_orientations: int = 12
    layout_weight: float = 0.5

    _smallest = 8

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "image_shape": ["array-like", None],
        "n_cells": ["array-like"],
        "n_orientations": [Interval(Integral, 1, None, closed="left")],
        "layout_weight": [Interval(Real, 0, None, closed="left")],
    }

    def _fit(self, X: NDArray[Any]) -> None:
        _, height, width = self.image_shape_
        self.n_cells_ = tuple(int(n) for n in self.n_cells)
        self.n_orientations_ = int(self.n_orientations)
        self.layout_weight_ = float(self.layout_weight)
        # A small image may have more features than pixels: limit the memory of both.
        n_described = self._n_features_out // self.n_orientations_
        self._batch_rows = max(1, _TRANSFORM_PIXELS // max(height * width, n_described))
        self.intensity_range_ = (float(X.min()), float(X.max()))
        # The constants need a contrast, but scaling, which measures it, does not use its value.
        self.contrast_ = 0.0
        c = self._constants()
        batches = gen_batches(len(X), max(1, _FIT_INTENSITIES // self.n_features_in_))
        lengths = [np.sqrt(_gradients(self._scaled(X[batch], c))[2]).mean() for batch in batches]
        self.contrast_ = float(np.mean(lengths))

    def _validate(self, X: ArrayLike, *, reset: bool) -> NDArray[Any]:
        rows = super()._validate(X, reset=reset)
        smaller = min(self.image_shape_[1:])
        if reset and not all(2 <= n <= smaller for n in self.n_cells):
            raise ValueError(
                f"n_cells must lie between 2 and the image's smaller side, {smaller}, got "
                f"{self.n_cells!r}."
            )
        return rows

    def _constants(self) -> dict[str, ArrayLike]:
        _, height, width = self.image_shape_
        angles = np.pi * np.arange(self.n_orientations_) / self.n_orientations_
        # The difference of halves is always finite; that of the whole values could overflow.
        low, high = (0.5 * end for end in self.intensity_range_)
        floor = np.square(1e-2 * self.contrast_) + np.finfo(np.float32).tiny
        constants: dict[str, ArrayLike] = {
            # An array, because a Python number would leave float32 images in float32.
            "one_half": np.full(1, 0.5),
            "low": low,
            "width": high - low if high > low else 1.0,
            "cosines": np.cos(angles).astype(np.float32)[:, None, None, None],
            "sines": np.sin(angles).astype(np.float32)[:, None, None, None],
            "tiny": np.finfo(np.float32).tiny,
            "floor": np.float32(floor),
            "clip": np.float32(_CLIP),
            "layout_weight": np.float32(self.layout_weight_ / _LAYOUT_CELLS),
        }
        for level, n in enumerate((*self.n_cells_, _LAYOUT_CELLS)):
            constants[f"rows_{level}"] = _windows(n, height)
            constants[f"columns_{level}"] = _windows(n, width)
        return constants

    @shielded()
    def feature_maps(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the blocks of the finest cells as maps, for a `PatchDetector`.

        Parameters
        ----------
        X : array-like, as for `fit`

        Returns
        -------
        ndarray of shape (n_samples, 4 * n_orientations, n - 1, n - 1)
            The maps; n is the largest of `n_cells`.
        """
        check_is_fitted(self)
        rows, c = self._validate(X, reset=False), self._constants()
        batches = gen_batches(len(rows), self._batch_rows)
        return np.concatenate([self._compute_maps(rows[batch], c)[0] for batch in batches])

    def _compute_maps(self, X: Any, c: dict[str, Any]) -> list[Any]:
        finest = int(np.argmax(self.n_cells_))
        windows = c[f"rows_{finest}"], c[f"columns_{finest}"].T
        (cells,) = self._cells(self._scaled(X, c), [windows], c)
        return [_normalized_blocks(cells, c)]

    def _compute(self, X: Any, c: dict[str, Any]) -> Any:
        xp = namespace(X)
        images = self._scaled(X, c)
        n_levels = len(self.n_cells_) + 1
        *levels, layout = [(c[f"rows_{i}"], c[f"columns_{i}"].T) for i in range(n_levels)]
        blocks = [_normalized_blocks(cells, c) for cells in self._cells(images, levels, c)]
        parts = [maps.reshape(maps.shape[0], -1) for maps in blocks]
        if self.layout_weight_:
            means = layout[0] @ images @ layout[1]
            parts.append(means.reshape(means.shape[0], -1) * c["layout_weight"])
        return xp.concatenate(parts, axis=1)

    def _cells(self, images: Any, levels: list[tuple[Any, Any]], c: dict[str, Any]) -> list[Any]:
        """Sum gradients by orientation and cell: (n_orientations, n, n_cells, n_cells)."""
        gradients = _gradients(images)
        # For a large image, the maps of all orientations would take too much memory at once.
        n_pixels = images.shape[-2] * images.shape[-1]
        at_once = max(1, self.n_orientations_ * _TRANSFORM_PIXELS // n_pixels)
        sums: list[list[Any]] = [[] for _ in levels]
        for start in range(0, self.n_orientations_, at_once):
            chosen = slice(start, start + at_once)
            strengths = _strengths(*gradients, c["cosines"][chosen], c["sines"][chosen], c["tiny"])
            for (rows, columns), cells in zip(levels, sums, strict=True):
                cells.append(rows @ strengths @ columns)
        return [namespace(images).concatenate(cells) for cells in sums]

    def _scaled(self, X: Any, c: dict[str, Any]) -> Any:
        """Turn rows into float32 images whose training range is [0, 1]."""
        # Subtract in float64 and round afterwards, because float32 has too few digits for the
        # difference of two large numbers.
        images = X * c["one_half"]
        images -= c["low"]
        with np.errstate(over="ignore"):
            images /= c["width"]
        # Clip extreme pixels, so that their powers stay finite in float32.
        images = namespace(X).clip(images, -1e6, 1e6)
        return float32(images).reshape(-1, *self.image_shape_)

    @property
    def _n_features_out(self) -> int:
        blocks = sum((n - 1) ** 2 * 4 * self.n_orientations_ for n in self.n_cells_)
        return blocks + bool(self.layout_weight_) * self.image_shape_[0] * _LAYOUT_CELLS**2


def _gradients(images: Any) -> tuple[Any, Any, Any]:
    """Return the steepest gradient of each pixel, across and down, and its squared length.

    Images (n, channels, height, width) give three arrays (n, height, width).
    """
    xp = namespace(images)
    left, top = xp.zeros_like(images[..., :1]), xp.zeros_like(images[..., :1, :])
    across = xp.concatenate([left, images[..., 2:] - images[..., :-2], left], axis=-1)
    down = xp.concatenate([top, images[..., 2:, :] - images[..., :-2, :], top], axis=-2)
    squared = xp.square(across) + xp.square(down)
    if images.shape[1] > 1:
        steepest = squared.argmax(axis=1, keepdims=True)
        across, down, squared = (take_along(a, steepest, 1) for a in (across, down, squared))
    return across[:, 0], down[:, 0], squared[:, 0]


def _strengths(across: Any, down: Any, squared: Any, cosines: Any, sines: Any, tiny: Any) -> Any:
    """Distribute the length of gradients over orientations: (n_orientations, n, height, width)."""
    xp = namespace(squared)
    fraction = cosines * across
    fraction += sines * down
    fraction *= fraction
    # Now it is the squared cosine of the angle between gradient and orientation.
    fraction *= 1 / xp.maximum(squared, tiny)
    # Its 8th power makes smooth bins that are three orientations wide.
    for _ in range(3):
        fraction *= fraction
    fraction *= xp.sqrt(squared)
    return fraction


def _windows(n_cells: int, size: int) -> NDArray[np.float32]:
    """Return weights of `size` pixels in `n_cells` cells: triangles up to the next centres."""
    centres = (np.arange(n_cells) + 0.5) * size / n_cells
    distances = np.abs(np.arange(size) + 0.5 - centres[:, None]) * n_cells / size
    weights = np.clip(1 - distances, 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _normalized_blocks(cells: Any, c: dict[str, Any]) -> Any:
    """Normalise blocks of 2 x 2 cells of a level to vectors of length at most 1.

    Cells (n_orientations, n, n_cells, n_cells) give maps of shape
    (n, 4 * n_orientations, n_cells - 1, n_cells - 1).
    """
    xp = namespace(cells)
    side = cells.shape[-1]
    energy = xp.square(cells).sum(axis=0)
    corners = [(slice(i, side - 1 + i), slice(j, side - 1 + j)) for i in (0, 1) for j in (0, 1)]
    block = sum(energy[:, rows, columns] for rows, columns in corners)
    # Adding the image's mean energy keeps blocks small where there are hardly any gradients.
    mean = xp.maximum(energy.mean(axis=(1, 2), keepdims=True), c["floor"])
    inverse = 1 / xp.sqrt(block + mean)
    parts = [cells[:, :, rows, columns] * inverse for rows, columns in corners]
    blocks = xp.moveaxis(xp.stack(parts), 2, 0).reshape(energy.shape[0], -1, side - 1, side - 1)
    blocks = xp.minimum(blocks, c["clip"])
    blocks /= side - 1
    return blocks
