"""Transformers of clips to channels that show motion: averages, optical flow, foreground."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils._param_validation import Interval, StrOptions

from sklearn_g2d.utils.opencv import import_opencv
from sklearn_g2d.utils.parts import EstimatorOfParts
from sklearn_g2d.video._clips import ClipTransformer

# Lags of AVID's three channels, in frames.
_LAGS = 4, 2, 0

# The background is the median of about so many frames. More frames change it little.
_BACKGROUND_FRAMES = 200


class MotionChannels(ClipTransformer):
    """Three averaged frames in the channels of one image, the input of AVID on videos.

    X = <I'_{t-4}, I'_{t-2}, I'_t>, where I'_t = (I_t + I_{t-1}) / 2 is the mean of a frame and the
    previous frame (section 3.5 of [1]_). Moving things differ between the channels. Before the
    start of a clip its first frame is repeated. Colour frames are converted to gray first.

    Attributes
    ----------
    image_shape_, n_features_in_ : tuple of int, int
        Channels, height and width of the frames in `fit`, and their product.

    References
    ----------
    .. [1] M. Sabokrou et al., "AVID: Adversarial Visual Irregularity Detection", ACCV 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d.video import MotionChannels
    >>> clip = np.arange(6.0).reshape(6, 1, 1, 1) * np.ones((8, 8))
    >>> MotionChannels().fit_transform(clip)[-1, :, 0, 0]
    array([0.5, 2.5, 4.5], dtype=float32)
    """

    min_frames: ClassVar[int] = 5
    _n_previous = max(_LAGS) + 1

    def _channels(self, clip: NDArray[Any], time: NDArray[np.intp]) -> NDArray[np.float32]:
        gray = _gray(clip)
        # Negative indices become 0, which repeats the first frame before the start of a clip.
        means = (gray + gray[np.maximum(np.arange(len(gray)) - 1, 0)]) / 2
        return np.stack([means[np.maximum(time - lag, 0)] for lag in _LAGS], axis=1)


class OpticalFlow(ClipTransformer):
    """Motion of each pixel since an earlier frame, computed by OpenCV.

    Motion is in **pixels per frame**. Optical flow sees only the motion of surfaces with texture;
    elsewhere it is interpolated or 0. Frames are gray levels from 0 to 255. It needs OpenCV:
    ``pip install 'sklearn_g2d[video]'``.

    Parameters
    ----------
    output : "speed" or "velocity", default="speed"
        "speed" gives one channel, the length of the motion. "velocity" gives two channels, the
        motion to the right and downwards.
    method : "farneback" or "dis", default="farneback"
        "farneback" is Farnebäck's polynomial expansion [1]_, which is smooth. "dis" is dense
        inverse search [2]_, which takes half the time. Both use OpenCV's settings.
    lag : int, default=2
        A frame is compared with the frame `lag` frames before it. With a larger lag slow motion
        differs more from noise, but things that move farther than their own size are lost. The
        first `lag` frames of a clip are compared with its first frame, which is itself compared
        with the second.
    window_size : int, default=15
        Width in pixels of the window over which Farnebäck's flow is averaged.

    Attributes
    ----------
    image_shape_, n_features_in_ : tuple of int, int
        Channels, height and width of the frames in `fit`, and their product.

    References
    ----------
    .. [1] G. Farnebäck, "Two-Frame Motion Estimation Based on Polynomial Expansion", SCIA 2003.
    .. [2] T. Kroeger, R. Timofte, D. Dai, L. Van Gool, "Fast Optical Flow using Dense Inverse
       Search", ECCV 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d.video import OpticalFlow
    >>> texture = np.random.default_rng(0).integers(0, 255, size=(8, 12)).repeat(4, 0).repeat(4, 1)
    >>> clip = np.stack([np.roll(texture, t, axis=1) for t in range(6)])[:, None].astype(np.uint8)
    >>> right, down = OpticalFlow("velocity").fit_transform(clip)[-1]  # pixels per frame
    >>> bool(abs(np.median(right) - 1) < 0.2), bool(abs(np.median(down)) < 0.2)
    (True, True)
    """

    min_frames: ClassVar[int] = 2

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "output": [StrOptions({"speed", "velocity"})],
        "method": [StrOptions({"farneback", "dis"})],
        "lag": [Interval(Integral, 1, None, closed="left")],
        "window_size": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        output: Literal["speed", "velocity"] = "speed",
        *,
        method: Literal["farneback", "dis"] = "farneback",
        lag: int = 2,
        window_size: int = 15,
    ) -> None:
        self.output = output
        self.method = method
        self.lag = lag
        self.window_size = window_size

    def _fit(self, clips: list[NDArray[Any]]) -> None:
        # Raise an error about a missing OpenCV in `fit`, not when frames are transformed later.
        import_opencv("Optical flow and its channels")
        self._output, self._method, self._window_size = self.output, self.method, self.window_size
        self._n_previous = self.lag

    def _channels(self, clip: NDArray[Any], time: NDArray[np.intp]) -> NDArray[np.float32]:
        gray = np.clip(_gray(clip), 0, 255).round().astype(np.uint8)
        earlier = np.maximum(time - self._n_previous, 0)
        # The first frame has no earlier one: it gets the motion of the second frame.
        later = np.maximum(time, 1)
        flow = self._flow()
        moved = np.stack([flow(gray[i], gray[j]) for i, j in zip(earlier, later, strict=True)])
        duration = (later - earlier).astype(np.float32)
        velocity = np.divide(moved, duration[:, None, None, None], dtype=np.float32)
        if self._output == "speed":
            return np.hypot(velocity[..., 0], velocity[..., 1])[:, None]
        return np.moveaxis(velocity, -1, 1)

    def _flow(self) -> Any:
        """Return a function of two frames that gives their flow (height, width, 2)."""
        # Objects of OpenCV cannot be pickled or saved: make them at each use.
        cv2 = import_opencv("Optical flow and its channels")
        if self._method == "dis":
            search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
            return lambda before, after: search.calc(before, after, None)
        settings = {
            "pyr_scale": 0.5,
            "levels": 3,
            "winsize": self._window_size,
            "iterations": 3,
            "poly_n": 5,
            "poly_sigma": 1.2,
            "flags": 0,
        }
        return lambda before, after: cv2.calcOpticalFlowFarneback(before, after, None, **settings)


class Foreground(ClipTransformer):
    """One channel from 0 (background) to 1 (foreground), for a fixed camera.

    The background is the median of each pixel over the training frames. A pixel that differs from
    it by less than `low` is background, and by more than `high` foreground. Between them the value
    is proportional to the difference.

    Parameters
    ----------
    low, high : float, default=10.0, 40.0
        Differences of gray levels, in the units of the frames. The defaults are for bytes.

    Attributes
    ----------
    background_ : ndarray of shape (height, width)
        Median of the training frames, or of some hundred of them at equal intervals.
    image_shape_, n_features_in_ : tuple of int, int
        Channels, height and width of the frames in `fit`, and their product.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d.video import Foreground
    >>> clip = np.zeros((6, 1, 24, 32), dtype=np.uint8)
    >>> for t, frame in enumerate(clip):
    ...     frame[0, 8:16, 4 * t : 4 * t + 8] = 200  # a bright square passes
    >>> Foreground().fit_transform(clip).shape
    (6, 1, 24, 32)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {"low": [Real], "high": [Real]}

    def __init__(self, low: float = 10.0, high: float = 40.0) -> None:
        self.low = low
        self.high = high

    def _fit(self, clips: list[NDArray[Any]]) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must lie below high, got {self.low!r} and {self.high!r}.")
        self._low, self._high = self.low, self.high
        every = max(1, sum(map(len, clips)) // _BACKGROUND_FRAMES)
        self.background_ = np.median(np.concatenate([_gray(c[::every]) for c in clips]), axis=0)

    def _channels(self, clip: NDArray[Any], time: NDArray[np.intp]) -> NDArray[np.float32]:
        difference = np.abs(_gray(clip[time]) - self.background_)
        return np.clip((difference - self._low) / (self._high - self._low), 0, 1)[:, None]


class ForegroundMotion(EstimatorOfParts, ClipTransformer):
    """Channels of motion, and the foreground as the last channel: the input of `PatchMotion`.

    Parameters
    ----------
    flow : OpticalFlow, default=None
        Transformer for the motion; None means ``OpticalFlow()``.
    foreground : Foreground, default=None
        Transformer for the foreground; None means ``Foreground()``.

    Attributes
    ----------
    flow_, foreground_ : transformer
        The fitted clones.
    image_shape_, n_features_in_ : tuple of int, int
        Channels, height and width of the frames in `fit`, and their product.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d.video import ForegroundMotion
    >>> clip = np.random.default_rng(0).integers(0, 255, size=(6, 1, 24, 32)).astype(np.uint8)
    >>> ForegroundMotion().fit_transform(clip).shape
    (6, 2, 24, 32)
    """

    min_frames: ClassVar[int] = OpticalFlow.min_frames

    _default_parts: ClassVar[dict[str, Callable[[], Any]]] = {
        "flow": OpticalFlow,
        "foreground": Foreground,
    }

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "flow": [ClipTransformer, None],
        "foreground": [ClipTransformer, None],
    }

    def __init__(
        self, flow: OpticalFlow | None = None, foreground: Foreground | None = None
    ) -> None:
        self.flow = flow
        self.foreground = foreground

    def _fit(self, clips: list[NDArray[Any]]) -> None:
        self.flow_ = clone(self.flow or OpticalFlow()).fit(clips)
        self.foreground_ = clone(self.foreground or Foreground()).fit(clips)
        self._n_previous = self.flow_._n_previous

    def _channels(self, clip: NDArray[Any], time: NDArray[np.intp]) -> NDArray[np.float32]:
        parts = (part._channels(clip, time) for part in (self.flow_, self.foreground_))
        return np.concatenate(list(parts), axis=1)


def _gray(clip: NDArray[Any]) -> NDArray[np.float32]:
    """Average the channels: (n_frames, height, width)."""
    return clip.mean(axis=1, dtype=np.float32)
