"""A detector of frames by their patches, for whole clips or live streams."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import MetaEstimatorMixin
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d._base import BaseDetector
from sklearn_g2d.errors import UnsupportedObjectError
from sklearn_g2d.utils.parts import clone_part
from sklearn_g2d.utils.state import unchanged_on_failure
from sklearn_g2d.utils.surroundings import shielded
from sklearn_g2d.utils.warnings import check_unused_y
from sklearn_g2d.video._clips import ClipEstimator, Clips, smooth_over_time
from sklearn_g2d.video._patches import FramePatches
from sklearn_g2d.video._streams import stream_channels

# Number of values of patches in memory at once: they fit into the processor's cache.
_BATCH_VALUES = 2**22

# The range of the colour scale: quantiles of the maps of training frames.
_RANGE_QUANTILES = 0.005, 0.999


class ClipDetector(MetaEstimatorMixin, ClipEstimator, BaseDetector):
    """Find anomalous frames, and the anomalous places in them, by a detector of patches.

    The detector is trained on patches of normal frames, as in section 4.3 of [1]_. The score of a
    new frame is the mean score of its most anomalous patches. Clips are processed one by one, so
    that memory holds the channels of one clip only, and no average mixes two clips.

    A sample is a frame: each method takes one clip (n_frames, channels, height, width) or a list
    of clips, and gives one value for each frame, clip after clip. Scores are **higher for more
    normal** frames, and `predict` gives **+1 for inliers and -1 for outliers**. Maps are **higher
    where a frame is more anomalous**.

    Parameters
    ----------
    estimator : outlier detector with `score_samples`
        A clone of it is fitted on patches (n, channels, patch_size, patch_size). Detectors of rows
        need a transformer before them: ``make_pipeline(PatchMotion(), G2DOutlierDetector())``.
    channels : transformer of clips, default=None
        Transformer that makes the channels of patches, such as ``ForegroundMotion()``. With None
        patches are cut from the frames themselves.
    patch_size : int, default=30
        Height and width of a patch in pixels.
    overlap : int, default=5
        Number of pixels that neighbouring patches share. A larger overlap gives finer maps, and
        takes longer.
    min_foreground : float in [0, 1), default=0.0
        A patch is empty if the mean of its last channel is lower. Empty patches, most patches of a
        fixed camera, are not used in training. They get the highest score of the training patches.
        With 0 no patch is empty.
    max_patches : int, default=20000
        Largest number of patches for the fit of the detector. They are drawn at random.
    n_worst : int, default=10
        The score of a frame is the mean score of so many of its most anomalous patches.
    n_smoothed : int, default=1
        Number of frames over which a patch's score is averaged, see `smooth_over_time`. An anomaly
        lasts for several frames; most errors do not.
    per_location : bool, default=False
        Whether to standardise scores separately for each place of a patch, by the mean and the
        deviation of the training frames. Use it for a fixed camera, with some dozens of frames.
    contamination : "auto" or float in (0, 0.5], default="auto"
        Fraction of the training frames that `predict` flags; "auto" means 0.05.
    random_state : int, RandomState instance or None, default=None
        Seed of the choice of patches, and of `channels` and `estimator` if they have no seed.

    Attributes
    ----------
    estimator_ : outlier detector
        The fitted clone.
    channels_ : transformer, or None
        The fitted clone.
    patches_ : FramePatches
        The grid of patches.
    min_foreground_, n_worst_, n_smoothed_ : float, int, int
        The parameters in `fit`; `n_worst_` is at most the number of patches of a frame.
    offset_ : float
        Threshold: ``decision_function(X) = score_samples(X) - offset_``.
    calibration_scores_ : ndarray of shape (n_frames,)
        Sorted scores of the training frames, or of those given to `calibrate`, for `p_values`.
        Scores of training frames are too high, because the detector was trained on these frames,
        and neighbouring frames are similar: call `calibrate` with new normal clips.
    map_range_ : tuple of float
        Lowest and highest value of a colour scale for maps: quantiles of training patches.
    image_shape_, n_features_in_ : tuple of int, int
        Channels, height and width of the frames in `fit`, and their product.

    References
    ----------
    .. [1] M. Pourreza et al., "G2D: Generate to Detect Anomalies", WACV 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.ensemble import IsolationForest
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import FunctionTransformer
    >>> from sklearn_g2d.video import ClipDetector
    >>> rows = FunctionTransformer(lambda patches: patches.reshape(len(patches), -1))
    >>> clip = np.random.default_rng(0).normal(size=(20, 1, 16, 24))
    >>> forest = make_pipeline(rows, IsolationForest())
    >>> detector = ClipDetector(forest, patch_size=8, overlap=0, n_worst=1, random_state=0)
    >>> detector = detector.fit(clip)
    >>> new = clip[:2].copy()
    >>> new[1, :, :8, :8] += 5  # in a patch of the second frame
    >>> normal, anomalous = detector.score_samples(new)
    >>> bool(anomalous < normal)
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseDetector._parameter_constraints,
        **FramePatches._parameter_constraints,
        "estimator": [HasMethods(["fit", "score_samples"])],
        "channels": [HasMethods(["fit", "transform"]), None],
        "min_foreground": [Interval(Real, 0, 1, closed="left")],
        "max_patches": [Interval(Integral, 2, None, closed="left")],
        "n_worst": [Interval(Integral, 1, None, closed="left")],
        "n_smoothed": [Interval(Integral, 1, None, closed="left")],
        "per_location": ["boolean"],
    }

    def __init__(
        self,
        estimator: Any,
        *,
        channels: Any = None,
        patch_size: int = 30,
        overlap: int = 5,
        min_foreground: float = 0.0,
        max_patches: int = 20_000,
        n_worst: int = 10,
        n_smoothed: int = 1,
        per_location: bool = False,
        contamination: float | Literal["auto"] = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.channels = channels
        self.patch_size = patch_size
        self.overlap = overlap
        self.min_foreground = min_foreground
        self.max_patches = max_patches
        self.n_worst = n_worst
        self.n_smoothed = n_smoothed
        self.per_location = per_location
        self.contamination = contamination
        self.random_state = random_state

    @unchanged_on_failure
    @shielded()
    def fit(self, X: Clips, y: Any = None) -> Self:
        """Fit the detector on patches of normal frames.

        Parameters
        ----------
        X : array-like of shape (n_frames, channels, height, width), or list of such
            One clip, or several, of normal frames.
        y : ignored
            Labels of two kinds are warned of, because they are not used. Clips are an error.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is out of range, `X` does not hold such clips, frames differ in
            shape, or the detector refuses the patches or gives scores that are not finite.
            After any error, the detector has the same state as before.
        """
        self._validate_params()
        clips = self._validate(X, reset=True)
        check_unused_y(y, X)
        random_state = check_random_state(self.random_state)
        self.min_foreground_, self.n_smoothed_ = self.min_foreground, self.n_smoothed
        self.channels_ = None
        if self.channels is not None:
            self.channels_ = clone_part(self.channels, random_state).fit(clips)
        self.patches_ = FramePatches(self.patch_size, self.overlap).fit(self._channels(clips[0]))
        self.n_worst_ = min(self.n_worst, self.patches_.n_patches_)
        patches = self._draw_patches(clips, random_state)
        self.estimator_ = clone_part(self.estimator, random_state).fit(patches)
        self._score_of_empty = float(np.max(self.estimator_.score_samples(patches)))
        self._mean, self._deviation = np.zeros(1), np.ones(1)
        scores = self._unsmoothed_scores(clips)
        if self.per_location:
            self._mean, self._deviation = scores.mean(axis=0), scores.std(axis=0)
            # At a place where all scores are nearly equal, noise would become an alarm: use at
            # least a tenth of the mean deviation.
            least = 0.1 * self._deviation.mean()
            self._deviation = np.maximum(self._deviation, least if least > 0 else 1.0)
            scores = (scores - self._mean) / self._deviation
        scores = smooth_over_time(scores, clips, self.n_smoothed_)
        low, high = np.quantile(-scores, _RANGE_QUANTILES)
        self.map_range_ = float(low), float(high)
        self._set_offset(self.pool(scores))
        return self

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
            For each pixel, minus the mean score of the patches that cover it, as float64. Maps are
            not scaled by frame, so that frames can be compared.
        """
        return self.to_maps(self.patch_scores(X))

    @shielded()
    def patch_scores(self, X: Clips) -> NDArray[np.float64]:
        """Score each patch; **higher = more normal**.

        Parameters
        ----------
        X : array-like of shape (n_frames, channels, height, width), or list of such
            One clip, or several.

        Returns
        -------
        ndarray of shape (n_frames of all clips, n_patches)
            The detector's scores as float64, standardised by place if `per_location`, and averaged
            over `n_smoothed` frames. `pool` turns them into scores of frames, `to_maps` into maps.
        """
        check_is_fitted(self)
        return self._patch_scores(self._validate(X, reset=False))

    def pool(self, patch_scores: ArrayLike) -> NDArray[np.float64]:
        """Pool scores of patches into scores of frames.

        Parameters
        ----------
        patch_scores : array-like of shape (n_frames, n_patches)
            Result of the method `patch_scores`.

        Returns
        -------
        ndarray of shape (n_frames,)
            Mean of the `n_worst` lowest scores of each frame, as in `score_samples`.
        """
        scores = np.asarray(patch_scores, dtype=np.float64)
        return np.partition(scores, self.n_worst_ - 1, axis=1)[:, : self.n_worst_].mean(axis=1)

    def to_maps(self, patch_scores: ArrayLike) -> NDArray[np.float64]:
        """Turn scores of patches into maps of frames, as `anomaly_map` does.

        Parameters
        ----------
        patch_scores : array-like of shape (n_frames, n_patches)
            Result of the method `patch_scores`.

        Returns
        -------
        ndarray of shape (n_frames, height, width)
            Maps, **higher = more anomalous**.
        """
        return self.patches_.to_maps(-np.asarray(patch_scores, dtype=np.float64))

    def stream(self, frames: Iterable[ArrayLike]) -> Iterator[tuple[float, NDArray[np.float64]]]:
        """Score frames when they arrive, and keep only the frames that the channels need.

        Parameters
        ----------
        frames : iterable of array-like of shape (channels, height, width)
            Frames of one clip, for example from `read_frames`. An error ends the stream; results
            before it stay valid. If frames stay equal for two seconds, as from a frozen camera, a
            warning is given once: see `stream_channels`.

        Yields
        ------
        score : float
            **Higher = more normal**; compare it with `offset_`. If `n_smoothed` is above 1, the
            average is over a frame and earlier frames. `score_samples` also uses later frames, so
            that a stream shows an anomaly with a delay of half as many frames.
        anomaly_map : ndarray of shape (height, width)
            The map of the frame, **higher = more anomalous**.
        """
        check_is_fitted(self)
        last: deque[NDArray[np.float64]] = deque(maxlen=self.n_smoothed_)
        for channels in stream_channels(self.channels_, frames):
            # A transformer checks frames itself.
            if self.channels_ is None:
                (channels,) = self._validate([channels], reset=False)
            scores = self._channel_scores(channels)
            # Before the start of a clip its first value is repeated, as in `smooth_over_time`.
            last.extend([scores] * (1 if last else self.n_smoothed_))
            smoothed = np.mean(last, axis=0)
            yield float(self.pool(smoothed)[0]), self.to_maps(smoothed)[0]

    def _export_module(self) -> NoReturn:
        raise UnsupportedObjectError(
            "A ClipDetector cannot be exported, because optical flow and averages over clips have "
            "no ONNX graph. Export the detector of patches inside: call to_onnx of `estimator_`, "
            "or of its last step if it is a Pipeline."
        )

    def _score_validated(self, X: list[NDArray[Any]]) -> NDArray[np.float64]:
        return self.pool(self._patch_scores(X))

    def _draw_patches(
        self, clips: list[NDArray[Any]], random_state: np.random.RandomState
    ) -> NDArray[Any]:
        """Draw patches for training, equally likely from all that are not empty."""
        # The number of patches is known only at the end. Therefore each patch gets a random number,
        # and the patches with the lowest numbers are kept.
        drawn, numbers, limit = [], [], 1.0
        for channels in map(self._channels, clips):
            for batch in self._batches(channels):
                candidates = self._not_empty(channels[batch])
                number = random_state.random_sample(len(candidates))
                is_low = number < limit
                drawn.append(self.patches_._extract(channels[batch], candidates[is_low]))
                numbers.append(number[is_low])
                if sum(map(len, numbers)) > 2 * self.max_patches:
                    drawn, numbers = self._keep_lowest(drawn, numbers)
                    limit = numbers[0].max()
        drawn, _ = self._keep_lowest(drawn, numbers)
        if not len(drawn[0]):
            raise ValueError(
                f"All patches are empty: none has a mean of min_foreground={self.min_foreground} "
                "in its last channel. Lower it, or check that something moves in the clips."
            )
        return drawn[0]

    def _keep_lowest(
        self, drawn: list[NDArray[Any]], numbers: list[NDArray[np.float64]]
    ) -> tuple[list[NDArray[Any]], list[NDArray[np.float64]]]:
        number = np.concatenate(numbers)
        lowest = np.sort(np.argsort(number)[: self.max_patches])
        return [np.concatenate(drawn)[lowest]], [number[lowest]]

    def _not_empty(self, channels: NDArray[Any]) -> NDArray[np.intp]:
        """Return the numbers of the patches that are not empty."""
        if not self.min_foreground_:
            return np.arange(len(channels) * self.patches_.n_patches_)
        return np.flatnonzero(self.patches_.means(channels[:, -1]) >= self.min_foreground_)

    def _patch_scores(self, clips: list[NDArray[Any]]) -> NDArray[np.float64]:
        return smooth_over_time(self._unsmoothed_scores(clips), clips, self.n_smoothed_)

    def _unsmoothed_scores(self, clips: list[NDArray[Any]]) -> NDArray[np.float64]:
        return np.concatenate([self._channel_scores(self._channels(clip)) for clip in clips])

    def _channel_scores(self, channels: NDArray[Any]) -> NDArray[np.float64]:
        """Return scores of patches (n_frames, n_patches) before smoothing."""
        batches = [self._batch_scores(channels[batch]) for batch in self._batches(channels)]
        scores = np.concatenate(batches).reshape(-1, self.patches_.n_patches_)
        return (scores - self._mean) / self._deviation

    def _batch_scores(self, channels: NDArray[Any]) -> NDArray[np.float64]:
        scores = np.full(len(channels) * self.patches_.n_patches_, self._score_of_empty)
        full = self._not_empty(channels)
        if len(full):
            scores[full] = self.estimator_.score_samples(self.patches_._extract(channels, full))
        if not np.isfinite(scores).all():
            raise ValueError(
                f"{type(self.estimator_).__name__} gives patches scores that are infinite or NaN, "
                "and averages would spread them to other frames. Choose another estimator or other "
                "channels."
            )
        return scores

    def _channels(self, clip: NDArray[Any]) -> NDArray[Any]:
        return clip if self.channels_ is None else self.channels_.transform([clip])

    def _batches(self, channels: NDArray[Any]) -> Iterator[slice]:
        patch = self.patches_
        values = patch.n_patches_ * channels.shape[1] * patch._size**2
        return gen_batches(len(channels), max(1, _BATCH_VALUES // values))
