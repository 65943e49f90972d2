"""Clips of frames on their way through transformers: what was filmed apart stays apart."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter1d
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from sklearn_g2d.utils.images import ImageShape, as_rows

Clips = ArrayLike | Sequence[ArrayLike]

_FLOATS_OR_BYTES = (np.float64, np.float32, np.uint8)


class ClipTransformer(TransformerMixin, BaseEstimator):
    """Turns the frames of clips into channels; a frame is never seen beside another clip's.

    A subclass says what it does to a clip in `_channels`.
    """

    min_frames: ClassVar[int] = 1
    """Frames that a clip needs at least."""

    image_shape_: ImageShape

    @property
    def _n_previous(self) -> int:
        """Earlier frames that the channels of a frame depend on."""
        return 0

    @abstractmethod
    def _channels(self, clip: NDArray[Any]) -> NDArray[np.float32]:
        """Channels of every frame of a clip (n_frames, channels, height, width)."""

    def _last_channels(self, clip: NDArray[Any]) -> NDArray[np.float32]:
        """Channels of a clip's last frame (1, channels, height, width)."""
        return self._channels(clip)[-1:]

    def fit(self, X: Clips, y: Any = None) -> ClipTransformer:
        """Remember the shape of the frames.

        Parameters
        ----------
        X : array-like of shape (n_frames, channels, height, width), or list of such
            One clip, or several.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If `X` is not made of such clips, one is too short, or frames differ in shape.
        """
        self._validate(X, reset=True)
        return self

    def transform(self, X: Clips) -> NDArray[np.float32]:
        """Give the channels of every frame.

        Parameters
        ----------
        X : array-like of shape (n_frames, channels, height, width), or list of such
            One clip, or several, of frames shaped as in `fit`.

        Returns
        -------
        ndarray of shape (n_frames of all clips, n_channels, height, width)
            float32; the clips' frames one after another.

        Raises
        ------
        ValueError
            If `X` is not made of such clips, one is too short, or frames differ in shape.
        """
        check_is_fitted(self)
        return np.concatenate([self._channels(clip) for clip in self._validate(X, reset=False)])

    def transform_last(self, X: ArrayLike) -> NDArray[np.float32]:
        """Give the channels of the last frame only, for live streams.

        Parameters
        ----------
        X : array-like of shape (n_frames, channels, height, width)
            One clip, at least of the frames that the channels of the last one depend on.

        Returns
        -------
        ndarray of shape (1, n_channels, height, width)
            The last row of `transform`.
        """
        check_is_fitted(self)
        (clip,) = self._validate([X], reset=False)
        return self._last_channels(clip)

    def _validate(self, X: Clips, *, reset: bool) -> list[NDArray[Any]]:
        """Check clips; returns them as arrays (n_frames, channels, height, width)."""
        return check_clips(self, X, reset=reset, min_frames=self.min_frames)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "image_shape_")

    def __sklearn_tags__(self) -> Tags:
        return frames_only(super().__sklearn_tags__())


def check_clips(
    estimator: Any, X: Clips, *, reset: bool, min_frames: int = 1
) -> list[NDArray[Any]]:
    """Check clips, and set or compare `image_shape_` and `n_features_in_` of the estimator.

    Parameters
    ----------
    estimator : estimator
        That was given them.
    X : array-like of shape (n_frames, channels, height, width), or list of such
    reset : bool
        Whether the shape is set, as in `fit`, or compared.
    min_frames : int, default=1
        Frames that a clip needs at least.

    Returns
    -------
    list of ndarray of shape (n_frames, channels, height, width)
        float64, float32 or bytes; of arrays that are so already, views.
    """
    known = None if reset else estimator.image_shape_
    name = type(estimator).__name__
    clips = []
    for number, clip in enumerate(_separate(X)):
        frames, known = _check_clip(clip, known, name, number, min_frames, not reset)
        # Only the first clip of `fit` tells the number of features.
        first = reset and number == 0
        rows = frames.reshape(len(frames), -1)
        rows = validate_data(estimator, rows, reset=first, dtype=_FLOATS_OR_BYTES)
        clips.append(rows.reshape(frames.shape))
    if reset:
        estimator.image_shape_ = known
    return clips


def frames_only(tags: Tags) -> Tags:
    """Say that an estimator takes images, not rows.

    Parameters
    ----------
    tags : Tags
        Changed in place.

    Returns
    -------
    Tags
        The same.
    """
    tags.input_tags.two_d_array = False
    tags.input_tags.three_d_array = True  # what scikit-learn calls a stack of images
    return tags


def split_clips(frames: ArrayLike, clip: ArrayLike) -> list[NDArray[Any]]:
    """Cut one array of all frames into its clips.

    Parameters
    ----------
    frames : array-like of shape (n_frames, ...)
        Frames, scores or maps of all clips, one clip after another.
    clip : array-like of shape (n_frames,)
        Which clip each frame belongs to; frames of a clip stand together.

    Returns
    -------
    list of ndarray
        Views, in the order of `frames`.

    Raises
    ------
    ValueError
        If there are more or fewer numbers than frames, or a clip's frames stand apart.

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
    starts = np.flatnonzero(names[1:] != names[:-1]) + 1
    first = names[np.append(0, starts)]
    again = np.setdiff1d(np.arange(len(first)), np.unique(first, return_index=True)[1])
    if len(again):
        raise ValueError(
            f"Frames of clip {first[again[0]].item()!r} stand apart from one another. Sort the "
            "frames by clip, keeping their order within it."
        )
    return np.split(frames, starts)


def smooth_over_time(
    values: ArrayLike, clips: Sequence[Any], n_frames: int = 9, *, causal: bool = False
) -> NDArray[np.float64]:
    """Average scores or maps of neighbouring frames, each clip by itself.

    What is anomalous lasts; most errors of a single frame do not.

    Parameters
    ----------
    values : array-like of shape (n_frames of all clips, ...)
        Scores or maps, one clip after another.
    clips : sequence
        The clips that they belong to, or anything that has their lengths.
    n_frames : int, default=9
        Frames to average; at a clip's ends its first and last value are repeated.
    causal : bool, default=False
        Whether only earlier frames count, as in a live stream, instead of as many later ones.

    Returns
    -------
    ndarray of the shape of `values`
        float64.

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
    origin = (n_frames - 1) // 2 if causal else 0
    smoothed = np.empty_like(values)
    for end, length in zip(np.cumsum(lengths), lengths, strict=True):
        clip = slice(end - length, end)
        smoothed[clip] = uniform_filter1d(
            values[clip], n_frames, axis=0, mode="nearest", origin=origin
        )
    return smoothed


def _separate(X: Clips) -> Sequence[Any]:
    """List the clips of what may be a single one."""
    if isinstance(X, list | tuple):
        if not X:
            raise ValueError("X is an empty list: give at least one clip of frames.")
        if all(np.ndim(clip) == 3 for clip in X):
            sizes = [np.shape(clip)[1:] for clip in X]
            other = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
            if other is not None:
                raise ValueError(
                    f"The frames' size changes from {sizes[0]} to {sizes[other]} at number "
                    f"{other} of X. Resize the frames to one size."
                )
            raise ValueError(
                "X is a list of arrays of dim 3. Of single frames (channels, height, width) pass "
                "np.stack(X), which is one clip; of gray clips (n_frames, height, width) pass "
                "[clip[:, np.newaxis] for clip in X]."
            )
        return X
    return [X]


def _check_clip(
    clip: Any, known: ImageShape | None, name: str, number: int, min_frames: int, fitted: bool
) -> tuple[NDArray[Any], ImageShape]:
    """Check what one clip is made of; returns it with the shape of its frames."""
    if np.ndim(clip) != 4 and np.ndim(clip) != 3:
        raise ValueError(
            f"Clip {number} has shape {np.shape(clip)}. A clip is an array of shape (n_frames, "
            "channels, height, width), and X one clip or a list of them."
        )
    try:
        rows, shape = as_rows(clip, known if fitted else None, name=name, fitted=fitted)
    except ValueError as error:
        raise ValueError(f"Clip {number}: {error}{_remedy(clip, known)}") from None
    assert shape is not None
    if known is not None and shape != known:
        raise ValueError(
            f"Clip {number} has frames of shape {shape}, but those before it {known}."
            f"{_remedy(clip, known)}"
        )
    if len(rows) < min_frames:
        raise ValueError(
            f"Clip {number} has {len(rows)} frame{'s' * (len(rows) != 1)}, but {name} needs at "
            f"least {min_frames}. Leave such clips out, or join those filmed without a break."
        )
    return np.asarray(rows).reshape(len(rows), *shape), shape


def _remedy(clip: Any, known: ImageShape | None) -> str:
    if known is None or np.ndim(clip) != 4:
        return ""
    channels, *size = np.shape(clip)[1:]
    if tuple(size) != known[1:]:
        return " Resize the frames, or fit another detector to this size."
    if channels != known[0] == 1:
        return " Make colour frames gray, as by clip.mean(axis=1, keepdims=True)."
    return ""
