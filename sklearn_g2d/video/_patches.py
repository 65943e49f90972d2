"""Patches of frames: cut, described by what moves in them, laid out as maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d.utils.images import ImageShape
from sklearn_g2d.video._clips import check_clips, frames_only

# Of foreground in a patch, that its speed counts as half.
_LEAST_SHARE = 0.05


class FramePatches(TransformerMixin, BaseEstimator):
    """Cut frames into overlapping square patches, as in section 4.3 of G2D [1]_.

    The patches of a frame stand in rows from the top left; the last one in a row or column ends
    with the frame, and may overlap more. A frame gives several samples, so that this
    transformer fits into a pipeline without `y` only.

    Parameters
    ----------
    patch_size : int, default=30
        Height and width in pixels; the paper's, for frames of 240 x 360.
    overlap : int, default=5
        Pixels that neighbouring patches share; fewer than `patch_size`.

    Attributes
    ----------
    image_shape_ : tuple of int
        Channels, height and width of the frames in `fit`.
    grid_shape_ : tuple of int
        Rows and columns of patches.
    n_features_in_ : int
        Number of values of a frame.

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

    image_shape_: ImageShape
    grid_shape_: tuple[int, int]

    def __init__(self, patch_size: int = 30, overlap: int = 5) -> None:
        self.patch_size = patch_size
        self.overlap = overlap

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: Any = None) -> FramePatches:
        """Lay the grid of patches over the frames.

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
        if self.overlap >= self.patch_size:
            raise ValueError(
                f"overlap={self.overlap} must be smaller than patch_size={self.patch_size}."
            )
        _check_frames(self, X, reset=True)
        _, height, width = self.image_shape_
        if self.patch_size > min(height, width):
            raise ValueError(
                f"patch_size={self.patch_size} is larger than the frames, which have "
                f"{height} x {width} pixels. Lower it."
            )
        self._rows, self._columns = (self._corners(length) for length in (height, width))
        self.grid_shape_ = len(self._rows), len(self._columns)
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
            Of the frames' dtype, frame after frame.
        """
        check_is_fitted(self)
        return self._cut(_check_frames(self, X, reset=False))

    def _cut(
        self, frames: NDArray[Any], chosen: NDArray[np.intp] | slice = slice(None)
    ) -> NDArray[Any]:
        """Cut out all patches, or some by their number."""
        windows = sliding_window_view(frames, (self.patch_size,) * 2, axis=(2, 3))
        numbers = np.arange(len(frames) * math.prod(self.grid_shape_))[chosen]
        frame, row, column = np.unravel_index(numbers, (len(frames), *self.grid_shape_))
        return windows[frame, :, self._rows[row], self._columns[column]]

    def to_maps(self, values: ArrayLike) -> NDArray[np.float64]:
        """Lay values of patches over the frames.

        Parameters
        ----------
        values : array-like of shape (n_frames * n_patches,)
            A value of each patch, in the order of `transform`.

        Returns
        -------
        ndarray of shape (n_frames, height, width)
            float64: for each pixel the mean over the patches that cover it.

        Raises
        ------
        ValueError
            If these are not the values of whole frames.
        """
        check_is_fitted(self)
        grids = self.by_frame(values).reshape(-1, *self.grid_shape_)
        _, height, width = self.image_shape_
        down = _covers(self._rows, self.patch_size, height)
        across = _covers(self._columns, self.patch_size, width)
        # The patches that cover a pixel are those of some rows, in each those of some columns.
        return (
            (down / down.sum(axis=1, keepdims=True))
            @ grids
            @ (across / across.sum(axis=1, keepdims=True)).T
        )

    def by_frame(self, values: ArrayLike) -> NDArray[np.float64]:
        """Sort values of patches by frame.

        Parameters
        ----------
        values : array-like of shape (n_frames * n_patches,)
            A value of each patch, in the order of `transform`.

        Returns
        -------
        ndarray of shape (n_frames, n_patches)
            float64.

        Raises
        ------
        ValueError
            If these are not the values of whole frames.
        """
        check_is_fitted(self)
        values = np.asarray(values, dtype=np.float64)
        n_patches = self.grid_shape_[0] * self.grid_shape_[1]
        if values.ndim != 1 or len(values) % n_patches:
            raise ValueError(
                f"values must be one for each of the {n_patches} patches of every frame, got an "
                f"array of shape {values.shape}."
            )
        return values.reshape(-1, n_patches)

    def means(self, X: ArrayLike) -> NDArray[np.float64]:
        """Average every patch of one-channel frames, without cutting it.

        Parameters
        ----------
        X : array-like of shape (n_frames, height, width)
            Frames of the height and width seen in `fit`.

        Returns
        -------
        ndarray of shape (n_frames * n_patches,)
            float64, in the order of `transform`.
        """
        check_is_fitted(self)
        _, height, width = self.image_shape_
        down = _covers(self._rows, self.patch_size, height) / self.patch_size
        across = _covers(self._columns, self.patch_size, width) / self.patch_size
        return np.asarray(down.T @ np.asarray(X, dtype=np.float64) @ across).ravel()

    def _corners(self, length: int) -> NDArray[np.intp]:
        """Where patches begin along an axis."""
        last = length - self.patch_size
        return np.append(np.arange(0, last, self.patch_size - self.overlap), last)

    def __sklearn_tags__(self) -> Tags:
        return frames_only(super().__sklearn_tags__())


class PatchMotion(TransformerMixin, BaseEstimator):
    """Describe patches by the speed of what moves in them, in concentric squares.

    A column for each square: the root of the mean squared speed of the foreground. The mean is over
    the foreground, not over the square, so that a crowd does not count as fast.

    Parameters
    ----------
    squares : sequence of float, default=(0.5, 0.7, 1.0)
        Sides of the squares around the middle of a patch, in units of its own.
    share : bool, default=False
        Whether the root of the foreground's share of the patch stands in front, from which a
        detector can tell what speed to expect.

    Attributes
    ----------
    image_shape_ : tuple of int
        Channels, height and width of the patches in `fit`.
    n_features_in_ : int
        Number of values of a patch.

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
        "share": ["boolean"],
    }

    image_shape_: ImageShape

    def __init__(self, squares: Sequence[float] = (0.5, 0.7, 1.0), *, share: bool = False) -> None:
        self.squares = squares
        self.share = share

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: Any = None) -> PatchMotion:
        """Remember the shape of the patches.

        Parameters
        ----------
        X : array-like of shape (n_patches, channels, height, width)
            Motion in one channel, the speed, or more, its parts; in the last channel the
            foreground, from 0 to 1.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If `X` is not such an array, or `squares` are not shares.
        """
        squares = np.asarray(self.squares)
        if squares.ndim != 1 or not len(squares) or not np.all((squares > 0) & (squares <= 1)):
            raise ValueError(f"squares must be numbers in (0, 1], got {self.squares!r}.")
        _check_frames(self, X, reset=True)
        if self.image_shape_[0] < 2:
            raise ValueError(
                "PatchMotion takes motion and foreground, two channels or more, got one. Cut the "
                "patches from ForegroundMotion() of the frames."
            )
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Describe every patch.

        Parameters
        ----------
        X : array-like of shape (n_patches, channels, height, width)
            As in `fit`.

        Returns
        -------
        ndarray of shape (n_patches, n_squares), or (n_patches, 1 + n_squares) with `share`
            float64, in the units of the speed; not negative.
        """
        check_is_fitted(self)
        patches = _check_frames(self, X, reset=False)
        motion, foreground = patches[:, :-1], patches[:, -1]
        energy = np.einsum("ncij,ncij,nij->nij", motion, motion, foreground)
        columns = [np.sqrt(_mean_in_centre(foreground, 1))] if self.share else []
        for share in self.squares:
            moving = _mean_in_centre(foreground, share)
            # Of next to no foreground, the speed shall be next to none.
            columns.append(np.sqrt(_mean_in_centre(energy, share) / (moving + _LEAST_SHARE)))
        return np.column_stack(columns)

    def __sklearn_tags__(self) -> Tags:
        return frames_only(super().__sklearn_tags__())


def _check_frames(estimator: Any, X: ArrayLike, *, reset: bool) -> NDArray[Any]:
    """Check an array of frames, or patches; `image_shape_` is set or compared."""
    if isinstance(X, list | tuple):
        raise ValueError(
            f"{type(estimator).__name__} takes one array of frames (n_frames, channels, height, "
            f"width), got a {type(X).__name__}. Join clips by np.concatenate."
        )
    (frames,) = check_clips(estimator, X, reset=reset)
    return frames


def _mean_in_centre(patches: NDArray[Any], share: float) -> NDArray[np.float64]:
    """Average patches (n, height, width) over a concentric part of them."""
    starts = [(length - max(1, round(share * length))) // 2 for length in patches.shape[1:]]
    down, across = (
        slice(start, length - start)
        for start, length in zip(starts, patches.shape[1:], strict=True)
    )
    return patches[:, down, across].mean(axis=(1, 2), dtype=np.float64)


def _covers(corners: NDArray[np.intp], size: int, length: int) -> NDArray[np.float64]:
    """Tell which patches cover each pixel of an axis: 1 or 0, (length, n_patches)."""
    pixels = np.arange(length)[:, None]
    return ((pixels >= corners) & (pixels < corners + size)).astype(np.float64)
