"""Patches of frames: cutting them, features of the motion in them, and maps of their values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from sklearn.base import TransformerMixin
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d.utils.state import unchanged_on_failure
from sklearn_g2d.video._clips import ClipEstimator

# The squared speed of a square with this fraction of foreground is halved. With less it falls to 0.
_LEAST_FRACTION = 0.05


class FramePatches(TransformerMixin, ClipEstimator):
    """Cut frames into overlapping square patches, as in section 4.3 of G2D [1]_.

    The patches of a frame are ordered in rows from the top left. The last one in a row or column
    ends at the edge of the frame, and may overlap more. One frame gives several samples: a Pipeline
    with this transformer cannot have a `y`.

    Parameters
    ----------
    patch_size : int, default=30
        Height and width in pixels. The default is the paper's, for frames of 240 x 360 pixels.
    overlap : int, default=5
        Number of pixels that neighbouring patches share, less than `patch_size`.

    Attributes
    ----------
    image_shape_, n_features_in_ : tuple of int, int
        Channels, height and width of the frames in `fit`, and their product.
    grid_shape_ : tuple of int
        Rows and columns of patches.
    n_patches_ : int
        Number of patches of a frame.

    References
    ----------
    .. [1] M. Pourreza et al., "G2D: Generate to Detect Anomalies", WACV 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d.video import FramePatches
    >>> frames = np.zeros((10, 1, 240, 360), dtype=np.uint8)
    >>> FramePatches().fit_transform(frames).shape  # 10 x 15 patches in each
    (1500, 1, 30, 30)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "patch_size": [Interval(Integral, 1, None, closed="left")],
        "overlap": [Interval(Integral, 0, None, closed="left")],
    }

    grid_shape_: tuple[int, int]
    _starts: list[NDArray[np.intp]]
    _covers: list[NDArray[np.float64]]

    def __init__(self, patch_size: int = 30, overlap: int = 5) -> None:
        self.patch_size = patch_size
        self.overlap = overlap

    @unchanged_on_failure
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Compute the grid of patches from the shape of frames.

        Parameters
        ----------
        X : array-like of shape (n_frames, channels, height, width)
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is out of range, or `X` is not such an array.
        """
        self._validate_params()
        if self.overlap >= self.patch_size:
            raise ValueError(
                f"overlap={self.overlap} must be smaller than patch_size={self.patch_size}."
            )
        self._validate_frames(X, reset=True)
        _, height, width = self.image_shape_
        if self.patch_size > min(height, width):
            raise ValueError(
                f"patch_size={self.patch_size} is larger than the frames, which have "
                f"{height} x {width} pixels. Lower it."
            )
        self._size = self.patch_size
        # The first entry of these lists is for the height, and the second for the width.
        self._starts, self._covers = [], []
        for length in (height, width):
            last = length - self._size
            starts = np.append(np.arange(0, last, self._size - self.overlap), last)
            # The matrix is 1 where a patch (its column) covers a pixel (its row), and else 0.
            inside = np.arange(length)[:, None] - starts
            self._covers.append(((inside >= 0) & (inside < self._size)).astype(np.float64))
            self._starts.append(starts)
        self.grid_shape_ = len(self._starts[0]), len(self._starts[1])
        self.n_patches_ = math.prod(self.grid_shape_)
        return self

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Cut out all patches.

        Parameters
        ----------
        X : array-like of shape (n_frames, channels, height, width)
            Frames shaped as in `fit`.

        Returns
        -------
        ndarray of shape (n_frames * n_patches, channels, patch_size, patch_size)
            Patches in the frames' dtype, frame after frame.
        """
        check_is_fitted(self)
        return self._extract(self._validate_frames(X, reset=False))

    def _extract(
        self, frames: NDArray[Any], chosen: NDArray[np.intp] | slice = slice(None)
    ) -> NDArray[Any]:
        """Cut out all patches, or the chosen ones by their numbers."""
        # The windows are a view: only the chosen patches are copied.
        windows = sliding_window_view(frames, (self._size,) * 2, axis=(2, 3))
        numbers = np.arange(len(frames) * self.n_patches_)[chosen]
        frame, row, column = np.unravel_index(numbers, (len(frames), *self.grid_shape_))
        return windows[frame, :, self._starts[0][row], self._starts[1][column]]

    def to_maps(self, values: ArrayLike) -> NDArray[np.float64]:
        """Turn values of patches into maps of frames.

        Parameters
        ----------
        values : array-like of shape (n_frames, n_patches) or (n_frames * n_patches,)
            One value for each patch, in the order of `transform`.

        Returns
        -------
        ndarray of shape (n_frames, height, width)
            For each pixel the mean over the patches that cover it, as float64.

        Raises
        ------
        ValueError
            If the number of values does not belong to whole frames.
        """
        check_is_fitted(self)
        values = np.asarray(values, dtype=np.float64)
        if values.shape[1:] not in ((), (self.n_patches_,)) or values.size % self.n_patches_:
            raise ValueError(
                f"values must be one for each of the {self.n_patches_} patches of every frame, got "
                f"an array of shape {values.shape}."
            )
        grids = values.reshape(-1, *self.grid_shape_)
        # The patches that cover a pixel form a rectangle of the grid, so that the mean over them is
        # a product of two matrices.
        down, across = (c / c.sum(axis=1, keepdims=True) for c in self._covers)
        return down @ grids @ across.T

    def means(self, X: ArrayLike) -> NDArray[np.float64]:
        """Average each patch of frames with one channel, without cutting the patches.

        Parameters
        ----------
        X : array-like of shape (n_frames, height, width)
            Frames with the height and width of `fit`.

        Returns
        -------
        ndarray of shape (n_frames, n_patches)
            Means as float64, in the order of `transform`.
        """
        check_is_fitted(self)
        down, across = (covers / self._size for covers in self._covers)
        means = down.T @ np.asarray(X, dtype=np.float64) @ across
        return np.asarray(means.reshape(-1, self.n_patches_))


class PatchMotion(TransformerMixin, ClipEstimator):
    """Features of patches: the speed of their foreground in concentric squares.

    Each square has one column, the root of the mean squared speed of the foreground. The mean is
    over the foreground, not over the square, so that a crowd does not count as fast.

    Parameters
    ----------
    squares : sequence of float, default=(0.5, 0.7, 1.0)
        Sides of the squares around the centre of a patch, in units of the patch's side.
    fraction : bool, default=False
        Whether to add a first column, the root of the fraction of foreground in the patch. A
        detector can learn from it which speed is normal.

    Attributes
    ----------
    image_shape_, n_features_in_ : tuple of int, int
        Channels, height and width of the patches in `fit`, and their product.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d.video import PatchMotion
    >>> patch = np.zeros((1, 2, 20, 20))  # speed, foreground
    >>> patch[:, 0, 8:12], patch[:, 1, 8:12] = 0.7, 1
    >>> PatchMotion().fit_transform(patch).round(2)
    array([[0.66, 0.65, 0.63]])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "squares": ["array-like"],
        "fraction": ["boolean"],
    }

    def __init__(
        self, squares: Sequence[float] = (0.5, 0.7, 1.0), *, fraction: bool = False
    ) -> None:
        self.squares = squares
        self.fraction = fraction

    @unchanged_on_failure
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Store the shape of the patches.

        Parameters
        ----------
        X : array-like of shape (n_patches, channels, height, width)
            Motion, as one channel (speed) or more (its components). The last channel is the
            foreground, from 0 to 1.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If `X` is not such an array, has one channel only, or `squares` do not lie in (0, 1].
        """
        self._validate_params()
        squares = np.asarray(self.squares)
        if squares.ndim != 1 or not len(squares) or not np.all((squares > 0) & (squares <= 1)):
            raise ValueError(f"squares must be numbers in (0, 1], got {self.squares!r}.")
        self._validate_frames(X, reset=True)
        if self.image_shape_[0] < 2:
            raise ValueError(
                "PatchMotion takes motion and foreground, two channels or more, got one. Cut the "
                "patches from the result of ForegroundMotion()."
            )
        self._squares, self._has_fraction = squares.tolist(), self.fraction
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Compute the features of each patch.

        Parameters
        ----------
        X : array-like of shape (n_patches, channels, height, width)
            As in `fit`.

        Returns
        -------
        ndarray of shape (n_patches, n_squares), or (n_patches, 1 + n_squares) with `fraction`
            Features as float64, in the units of the speed; not negative.
        """
        check_is_fitted(self)
        patches = self._validate_frames(X, reset=False)
        motion, foreground = patches[:, :-1], patches[:, -1]
        energy = np.einsum("ncij,ncij,nij->nij", motion, motion, foreground)
        columns = [np.sqrt(_mean_in_centre(foreground, 1))] if self._has_fraction else []
        for side in self._squares:
            moving = _mean_in_centre(foreground, side)
            # The constant keeps the speed low where there is hardly any foreground.
            columns.append(np.sqrt(_mean_in_centre(energy, side) / (moving + _LEAST_FRACTION)))
        return np.column_stack(columns)


def _mean_in_centre(patches: NDArray[Any], side: float) -> NDArray[np.float64]:
    """Average patches (n, height, width) over their centre; its `side` is a fraction of theirs."""
    starts = [(length - max(1, round(side * length))) // 2 for length in patches.shape[1:]]
    down, across = (
        slice(start, length - start)
        for start, length in zip(starts, patches.shape[1:], strict=True)
    )
    return patches[:, down, across].mean(axis=(1, 2), dtype=np.float64)
