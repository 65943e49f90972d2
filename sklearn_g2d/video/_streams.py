"""Transforming the frames of a stream one by one."""

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

# If frames are equal for so many seconds, the camera is probably frozen: the noise of a sensor
# makes frames differ.
_FROZEN = 2.0


def stream_channels(transformer: Any, frames: Iterable[ArrayLike]) -> Iterator[NDArray[Any]]:
    """Transform the frames of one clip when they arrive, and keep only the frames still needed.

    Parameters
    ----------
    transformer : transformer of clips, or None
        A fitted transformer of this module. With None frames are not changed.
    frames : iterable of array-like of shape (channels, height, width)
        Frames of one clip, for example from `read_frames`.

    Yields
    ------
    ndarray of shape (1, n_channels, height, width)
        Channels of each frame, equal to those that `transform` computes from the whole clip. The
        first ones come when the smallest number of frames of a clip has arrived.

    Raises
    ------
    TypeError
        If the transformer is not from this module.
    ValueError
        If a frame has another shape than earlier frames or those of `fit`, or there are fewer
        frames than a clip needs. Results before the error stay valid.

    Warns
    -----
    UserWarning
        If frames are equal in every bit for two seconds, as from a frozen camera; again only after
        they have changed. For frames directly from `read_frames` the time of the video counts, for
        other frames the time of their arrival.

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
            "Use a transformer of sklearn_g2d.video, such as OpticalFlow()."
        )
    kept: deque[NDArray[Any]] = deque(maxlen=n_kept)
    n_frames, first_equal, since, warned = 0, 0, 0.0, False
    for given in frames:
        now = frames.seconds if isinstance(frames, FramesOfFile) else time.monotonic()
        # Copy the frame, because a camera may write the next one into the same array.
        frame = np.array(plain(given, f"Frame {n_frames}"))
        if frame.ndim != 3:
            raise ValueError(
                f"Frame {n_frames} has shape {frame.shape}, but frames are (channels, height, "
                "width): for a gray frame pass frame[np.newaxis]."
            )
        if kept and frame.shape != kept[-1].shape:
            raise ValueError(
                f"Frame {n_frames} has shape {frame.shape}, but earlier frames have "
                f"{kept[-1].shape}. Resize the frames, or convert all of them to gray."
            )
        if not kept or not np.array_equal(frame, kept[-1]):
            first_equal, since, warned = n_frames, now, False
        elif now - since >= _FROZEN and not warned:
            warned = True
            warnings.warn(
                f"Frames {first_equal} to {n_frames} are equal in every bit, for {now - since:.1f} "
                "seconds: the camera or its connection may be frozen. Check it: the scores do not "
                "show what happens now.",
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
        # This raises the error about a clip with too few frames.
        transformer.transform([np.stack(kept)])
