"""Clips of frames: their checks, the base class of their transformers, and averages over time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter1d
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d.utils.images import ImageShape, as_rows
from sklearn_g2d.utils.inputs import is_picture, plain, validate
from sklearn_g2d.utils.state import unchanged_on_failure
from sklearn_g2d.video._files import FramesOfFile

Clips = ArrayLike | Sequence[ArrayLike]

_FLOATS_OR_BYTES = (np.float64, np.float32, np.uint8)


class ClipEstimator(BaseEstimator):
    """Base of estimators that take clips, or an array of frames, instead of rows."""

    min_frames: ClassVar[int] = 1
    """Smallest number of frames in a clip."""

    image_shape_: ImageShape

    def _validate(self, X: Clips, *, reset: bool) -> list[NDArray[Any]]:
        """Check clips, and set or compare `image_shape_` and `n_features_in_`.

        Parameters
        ----------
        X : array-like of shape (n_frames, channels, height, width), or list of such
        reset : bool
            True in `fit`, which sets the shape of the frames. Otherwise the shape is compared.

        Returns
        -------
        list of ndarray of shape (n_frames, channels, height, width)
            Clips as float64, float32 or bytes; they are views if `X` has one of these dtypes.
        """
        known = None if reset else self.image_shape_
        clips = []
        for number, clip in enumerate(_separate(X)):
            rows, known = self._check_clip(clip, number, known, fitted=not reset)
            if reset:
                self.image_shape_ = known
            # The first clip of `fit` sets the number of features.
            first = reset and number == 0
            try:
                rows = validate(self, rows, reset=first, dtype=_FLOATS_OR_BYTES, of_images=True)
            except ValueError as error:
                raise ValueError(f"Clip {number}: {error}") from None
            clips.append(rows.reshape(-1, *known))
        return clips

    def _check_clip(
        self, clip: Any, number: int, known: ImageShape | None, *, fitted: bool
    ) -> tuple[NDArray[Any], ImageShape]:
        """Check the shape of one clip, and return rows of pixels and the shape of its frames."""
        name = type(self).__name__
        if np.ndim(clip) not in (3, 4):
            raise ValueError(
                f"Clip {number} has shape {np.shape(clip)}. A clip is an array of shape (n_frames, "
                "channels, height, width), and X one clip or a list of them."
            )
        # `as_rows` knows one array only: add the number of the clip to its errors.
        try:
            shape_in_fit = known if fitted else None
            rows, shape = as_rows(clip, shape_in_fit, name=name, fitted=fitted, of_clips=True)
        except ValueError as error:
            raise ValueError(f"Clip {number}: {error}{_remedy(clip, known)}") from None
        assert shape is not None
        if known is not None and shape != known:
            raise ValueError(
                f"Clip {number} has frames of shape {shape}, but those before it {known}."
                f"{_remedy(clip, known)}"
            )
        if len(rows) < self.min_frames:
            raise ValueError(
                f"Clip {number} has {len(rows)} frame{'s' * (len(rows) != 1)}, but {name} needs at "
                f"least {self.min_frames}. Leave such clips out, or join clips that were filmed "
                "without a break."
            )
        return rows, shape

    def _validate_frames(self, X: ArrayLike, *, reset: bool) -> NDArray[Any]:
        """Check one array of frames, or of patches."""
        if isinstance(X, list | tuple):
            raise ValueError(
                f"{type(self).__name__} takes one array of frames (n_frames, channels, height, "
                f"width), got a {type(X).__name__}. Join clips by np.concatenate."
            )
        (frames,) = self._validate(X, reset=reset)
        return frames

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        # scikit-learn uses this tag for a stack of images.
        tags.input_tags.three_d_array = True
        return tags


class ClipTransformer(TransformerMixin, ClipEstimator):
    """Base of transformers from frames to channels, which never mix frames of two clips.

    A subclass computes the channels of a clip in `_channels`, and learns in `_fit`.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {}

    # The channels of a frame depend on so many earlier frames.
    _n_previous: int = 0

    @abstractmethod
    def _channels(self, clip: NDArray[Any], time: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return channels (n, channels, height, width) of the frames `time` of a clip."""

    @unchanged_on_failure
    def fit(self, X: Clips, y: Any = None) -> Self:
        """Learn the shape of the frames and, if it is needed, the background.

        Parameters
        ----------
        X : array-like of shape (n_frames, channels, height, width), or list of such
            One clip, or several, of one place. Optical flow expects gray levels from 0 to 255.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If optical flow is needed and OpenCV is not installed.
        ValueError
            If a parameter is out of range, `X` does not hold such clips, one is too short, or
            frames differ in shape.
        """
        self._validate_params()
        self._fit(self._validate(X, reset=True))
        return self

    def _fit(self, clips: list[NDArray[Any]]) -> None:
        """Learn from checked clips, and copy parameters, because `set_params` may change them."""

    def transform(self, X: Clips) -> NDArray[np.float32]:
        """Compute the channels of each frame.

        Parameters
        ----------
        X : array-like of shape (n_frames, channels, height, width), or list of such
            One clip, or several, of frames shaped as in `fit`.

        Returns
        -------
        ndarray of shape (n_frames of all clips, n_channels, height, width)
            Channels as float32, with the frames of all clips one after another.

        Raises
        ------
        ValueError
            If `X` does not hold such clips, one is too short, or frames differ in shape.
        """
        check_is_fitted(self)
        clips = self._validate(X, reset=False)
        return np.concatenate([self._channels(clip, np.arange(len(clip))) for clip in clips])


def split_clips(frames: ArrayLike, clip: ArrayLike) -> list[NDArray[Any]]:
    """Split one array of all frames into its clips.

    Parameters
    ----------
    frames : array-like of shape (n_frames, ...)
        Frames, scores or maps of all clips, one clip after another.
    clip : array-like of shape (n_frames,)
        Name of the clip of each frame. The frames of a clip must follow each other.

    Returns
    -------
    list of ndarray
        Views, in the order of `frames`.

    Raises
    ------
    ValueError
        If the numbers of names and frames differ, or the frames of a clip do not follow each other.

    Examples
    --------
    >>> from sklearn_g2d.video import split_clips
    >>> split_clips([1, 2, 3, 4, 5], clip=["a", "a", "b", "b", "b"])
    [array([1, 2]), array([3, 4, 5])]
    """
    frames, names = np.asanyarray(frames), np.asarray(clip)
    if names.shape != frames.shape[:1]:
        raise ValueError(
            f"clip must have shape {frames.shape[:1]}, one value for each frame, got {names.shape}."
        )
    if not len(names):
        return []
    # A clip starts where the name changes. A name that starts twice has frames in two places.
    starts = np.flatnonzero(names[1:] != names[:-1]) + 1
    first = names[np.append(0, starts)]
    again = np.setdiff1d(np.arange(len(first)), np.unique(first, return_index=True)[1])
    if len(again):
        raise ValueError(
            f"Frames of clip {first[again[0]].item()!r} do not follow each other. Sort the frames "
            "by clip, and keep their order inside each clip."
        )
    return np.split(frames, starts)


def smooth_over_time(
    values: ArrayLike, clips: Sequence[Any], n_frames: int = 9, *, causal: bool = False
) -> NDArray[np.float64]:
    """Average scores or maps of neighbouring frames, separately for each clip.

    This reduces errors, because an anomaly lasts for several frames and most errors do not.

    Parameters
    ----------
    values : array-like of shape (n_frames of all clips, ...)
        Scores or maps, one clip after another.
    clips : sequence
        The clips of these values, or objects of the same lengths.
    n_frames : int, default=9
        Number of frames to average. At the ends of a clip its first and last value are repeated.
    causal : bool, default=False
        Whether to average only a frame and earlier frames, as in a live stream. Otherwise half of
        the frames are later ones.

    Returns
    -------
    ndarray of the shape of `values`
        Averages, as float64.

    Raises
    ------
    ValueError
        If the clips' lengths do not add up to that of `values`, or `n_frames` is not a
        positive integer.

    Examples
    --------
    >>> from sklearn_g2d.video import smooth_over_time
    >>> smooth_over_time([0, 0, 3, 9, 9], [[0, 0, 3], [9, 9]], n_frames=3)
    array([0., 1., 2., 9., 9.])
    """
    values = np.asarray(values, dtype=np.float64)
    lengths = [len(clip) for clip in clips]
    if sum(lengths) != len(values):
        raise ValueError(
            f"There are {len(values)} values for clips of {sum(lengths)} frames in all. Give the "
            "list of clips that the values were computed from."
        )
    if not isinstance(n_frames, Integral) or n_frames < 1:
        raise ValueError(f"n_frames must be an integer of at least 1, got {n_frames!r}.")
    # Return single frames without a filter, because its running sums would round the values.
    if n_frames == 1:
        return values.copy()
    origin = (n_frames - 1) // 2 if causal else 0
    smoothed = np.empty_like(values)
    for end, length in zip(np.cumsum(lengths), lengths, strict=True):
        clip = slice(end - length, end)
        smoothed[clip] = uniform_filter1d(
            values[clip], n_frames, axis=0, mode="nearest", origin=origin
        )
    return smoothed


def _separate(X: Clips) -> Sequence[Any]:
    """Return a list of clips; `X` may also be a single clip."""
    if isinstance(X, list | tuple):
        if not X:
            raise ValueError("X is an empty list: give at least one clip of frames.")
        # For pictures this raises an error that says how to convert them.
        if any(is_picture(type(clip)) for clip in X):
            plain(X)
        X = [_plain_clip(clip, f"X[{number}]") for number, clip in enumerate(X)]
        if all(np.ndim(clip) == 3 for clip in X):
            sizes = [np.shape(clip)[1:] for clip in X]
            other = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
            if other is not None:
                raise ValueError(
                    f"The frames' size changes from {sizes[0]} to {sizes[other]} at number "
                    f"{other} of X. Resize the frames to one size."
                )
            raise ValueError(
                "X is a list of arrays of dim 3. For single frames (channels, height, width) pass "
                "np.stack(X), which is one clip; for gray clips (n_frames, height, width) pass "
                "[clip[:, np.newaxis] for clip in X]."
            )
        return X
    return [_plain_clip(X, "X")]


def _plain_clip(clip: Any, name: str) -> Any:
    if isinstance(clip, FramesOfFile):
        raise TypeError(
            f"{name} gives the frames of a file one by one. Pass np.stack(list({name})), which is "
            "a clip, or pass it to the method stream of a detector."
        )
    return plain(clip, name)


def _remedy(clip: Any, known: ImageShape | None) -> str:
    if known is None or np.ndim(clip) != 4:
        return ""
    channels, *size = np.shape(clip)[1:]
    # The error about channels that are last names its own remedy, to which this one is added.
    if (channels, size[0]) == known[1:]:
        channels, *size = size[1], channels, size[0]
    if tuple(size) != known[1:]:
        return " Resize the frames, or fit another detector to this size."
    if channels != known[0] == 1:
        return (
            " Convert colour frames to gray by clip.mean(axis=1, keepdims=True), or fit in colour: "
            "read files by read_frames(..., gray=False)."
        )
    if channels == 1 and known[0] == 3:
        return " Read files in colour, by read_frames(..., gray=False)."
    return ""
