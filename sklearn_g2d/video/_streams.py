"""Frames one by one: from files that need not fit into memory, and through transformers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sklearn_g2d.errors import VideoFileError
from sklearn_g2d.utils.inputs import plain
from sklearn_g2d.video._clips import ClipTransformer


def read_frames(
    path: str | PathLike[str], *, gray: bool = True, size: tuple[int, int] | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Read a video file frame by frame, by PyAV.

    Parameters
    ----------
    path : str or path-like
        File in any format that FFmpeg reads.
    gray : bool, default=True
        Whether frames are made gray, instead of red, green and blue.
    size : tuple of int, default=None
        Height and width to resize frames to.

    Yields
    ------
    ndarray of shape (channels, height, width)
        Bytes. ``np.stack(list(read_frames(path)))`` is a clip.

    Raises
    ------
    ImportError
        If PyAV is not installed.
    VideoFileError
        If the file is empty, damaged, cut short or no video, or its frames change in size.
        Frames before the damage were given, and stay valid.

    See Also
    --------
    ClipDetector.stream : Scores frames as they are read.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d.video import read_frames
    >>> clip = np.stack(list(read_frames("camera.mp4", size=(240, 360))))  # doctest: +SKIP
    """
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "Reading video files needs PyAV, which is not installed. Install it by "
            "`pip install 'sklearn_g2d[video]'`."
        ) from error
    height, width = size or (None, None)
    n_read, first_size = 0, None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoFileError(f"{path} holds no video. Pass a file with a video stream.")
            stream = container.streams.video[0]
            # Else FFmpeg conceals damage by what it guesses, which is then scored.
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise VideoFileError(_damaged(path, n_read, "it is marked as corrupt"))
                first_size = first_size or (frame.height, frame.width)
                if (frame.height, frame.width) != first_size:
                    raise VideoFileError(
                        f"{path}: frames change from {first_size[0]} x {first_size[1]} pixels to "
                        f"{frame.height} x {frame.width} at number {n_read}. Cut the file there, "
                        "or convert it to one size."
                    )
                pixels: NDArray[Any] = frame.reformat(
                    width, height, "gray" if gray else "rgb24"
                ).to_ndarray()
                yield pixels[None] if gray else np.moveaxis(pixels, -1, 0)
                n_read += 1
            promised = stream.frames
    except av.error.FileNotFoundError:
        raise FileNotFoundError(f"There is no file {path}.") from None
    except av.error.FFmpegError as error:
        raise VideoFileError(_damaged(path, n_read, str(error.strerror))) from error
    if n_read < max(promised, 1):
        raise VideoFileError(_damaged(path, n_read, f"{max(promised, 1)} frames were promised"))


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
    n_frames = 0
    for given in frames:
        frame = np.asarray(plain(given, f"Frame {n_frames}"))
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


def _damaged(path: str | PathLike[str], n_read: int, what: str) -> str:
    return (
        f"{path} cannot be read beyond {n_read} frames: {what}. The file is empty, damaged, cut "
        "short or no video; export it again, or use the frames read so far."
    )
