"""Frames one by one through transformers."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sklearn_g2d.utils.inputs import plain
from sklearn_g2d.video._clips import ClipTransformer
from sklearn_g2d.video._files import FramesOfFile

# Seconds for which the frames of a camera that works are not all equal: a sensor has noise.
_FROZEN = 2.0


def stream_channels(transformer: Any, frames: Iterable[ArrayLike]) -> Iterator[NDArray[Any]]:
    """Transform the frames of one clip as they arrive, keeping only those still needed.

    Parameters
    ----------
    transformer : transformer of clips, or None
        As fitted, of this module; None leaves the frames as they are.
    frames : iterable of array-like of shape (channels, height, width)
        Frames of one clip, as from `read_frames`.

    Yields
    ------
    ndarray of shape (1, n_channels, height, width)
        Channels of every frame, the same as `transform` gives of the whole clip. The first
        ones come when as many frames as a clip needs have arrived.

    Raises
    ------
    TypeError
        If it is a transformer from elsewhere.
    ValueError
        If a frame's shape differs from that of those before it or of `fit`, or the frames end
        before there are as many as a clip needs. What was given before stays valid.

    Warns
    -----
    UserWarning
        Once if frames have been equal in every bit for two seconds, as of a frozen camera, and
        again only after they have changed. Frames straight from `read_frames` have the times of
        the video; others the times when they arrive.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d.video import MotionChannels, stream_channels
    >>> clip = np.random.default_rng(0).normal(size=(9, 1, 8, 8))
    >>> channels = MotionChannels().fit(clip)
    >>> streamed = np.concatenate(list(stream_channels(channels, iter(clip))))
    >>> bool((streamed == channels.transform(clip)).all())
    True
    """
    min_frames, n_kept = 1, 1
    if isinstance(transformer, ClipTransformer):
        min_frames = transformer.min_frames
        n_kept = max(transformer._n_previous + 1, min_frames)
    elif transformer is not None:
        raise TypeError(
            f"A {type(transformer).__name__} does not tell how many earlier frames it needs. "
            "Stream through a transformer of sklearn_g2d.video, such as OpticalFlow()."
        )
    kept: deque[NDArray[Any]] = deque(maxlen=n_kept)
    n_frames, first_equal, since, warned = 0, 0, 0.0, False
    for given in frames:
        now = frames.seconds if isinstance(frames, FramesOfFile) else time.monotonic()
        frame = np.array(plain(given, f"Frame {n_frames}"))  # a copy: cameras may reuse the array
        if frame.ndim != 3:
            raise ValueError(
                f"Frame {n_frames} has shape {frame.shape}, but frames are (channels, height, "
                "width): for a gray one pass frame[np.newaxis]."
            )
        if kept and frame.shape != kept[-1].shape:
            raise ValueError(
                f"Frame {n_frames} has shape {frame.shape}, but those before it "
                f"{kept[-1].shape}. Resize the frames, or make them all gray."
            )
        if not kept or not np.array_equal(frame, kept[-1]):
            first_equal, since, warned = n_frames, now, False
        elif now - since >= _FROZEN and not warned:
            warned = True
            warnings.warn(
                f"Frames {first_equal} to {n_frames} are equal in every bit, for {now - since:.1f} "
                "seconds: the camera or its connection may be frozen. Their scores do not show "
                "what happens there.",
                stacklevel=2,
            )
        kept.append(frame)
        n_frames += 1
        if n_frames == min_frames:
            started = np.stack(kept)
            channels = started if transformer is None else transformer.transform([started])
            yield from (channels[i : i + 1] for i in range(len(channels)))
        elif n_frames > min_frames:
            clip = np.stack(kept)
            if transformer is not None:
                (clip,) = transformer._validate([clip], reset=False)
                clip = transformer._channels(clip, np.array([len(clip) - 1]))
            yield clip[-1:]
    if 0 < n_frames < min_frames:
        transformer.transform([np.stack(kept)])  # says what is missing
