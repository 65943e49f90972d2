"""Detectors of anomalous frames by name, ours and plain ones, for benchmarks on video.

All take lists of clips, and judge a frame by what they find anomalous in the whole of it, so
that their errors compare. Anomaly is higher where more anomalous.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import CellInpainting, MaskedInpainting
from sklearn_g2d.g2d import WassersteinGAN
from sklearn_g2d.video import (
    ClipDetector,
    FixedCameraDetector,
    ForegroundMotion,
    FramePatches,
    MotionChannels,
    OpticalFlow,
    PatchMotion,
    for_fixed_camera,
    smooth_over_time,
)
from sklearn_g2d.video._clips import ClipTransformer

# Of UCSD Ped2, per second.
FRAME_RATE = 10

# Frames over which anomaly is averaged, and patches whose mean is a frame's.
N_SMOOTHED, N_WORST = 9, 30

# Pixels at half resolution.
PATCH: dict[str, Any] = {"patch_size": 20, "overlap": 15}
MOVING: dict[str, Any] = {"min_foreground": 0.02}
REGION_SIZE = 20

# The papers': 30 x 30 with an overlap of 5 at full resolution, and one pixel condemns a frame.
ONE_PIXEL: dict[str, Any] = {"patch_size": 1, "overlap": 0, "n_worst": 1}
PAPER_PATCH: dict[str, Any] = {"patch_size": 15, "overlap": 2, "n_worst": 1}


@dataclass(frozen=True)
class Judgement:
    """What a detector says of frames, higher = more anomalous.

    Attributes
    ----------
    anomaly : ndarray of shape (n_frames,)
    maps : ndarray of shape (n_frames, height, width)
    threshold : float
        Anomaly from which on the detector flags a frame by default; NaN if it has no such.
    """

    anomaly: NDArray
    maps: NDArray
    threshold: float = float("nan")


class FrameDetector(Protocol):
    """What benchmarks on video ask of a detector of channels."""

    def fit(self, clips: list[NDArray]) -> Any: ...

    def judge(self, clips: list[NDArray]) -> Judgement: ...


@dataclass(frozen=True)
class Entry:
    """A detector in the benchmark.

    Attributes
    ----------
    channels : str
        Key of `CHANNELS`: what of the frames it sees.
    make : callable
        Given a seed, makes the detector.
    """

    channels: str
    make: Callable[[int], FrameDetector]


class ByPatches:
    """A `ClipDetector`."""

    def __init__(self, detector: ClipDetector) -> None:
        self.detector = detector

    def fit(self, clips: list[NDArray]) -> ByPatches:
        self.detector.fit(clips)
        return self

    def judge(self, clips: list[NDArray]) -> Judgement:
        # Once computed, the patches' scores give both.
        scores = self.detector.patch_scores(clips)
        anomaly, maps = -self.detector.pool(scores), self.detector.to_maps(scores)
        return Judgement(anomaly, maps, -self.detector.offset_)


class ByViews:
    """A `FixedCameraDetector`."""

    def __init__(self, detector: FixedCameraDetector) -> None:
        self.detector = detector

    def fit(self, clips: list[NDArray]) -> ByViews:
        self.detector.fit(clips)
        return self

    def judge(self, clips: list[NDArray]) -> Judgement:
        anomaly = -self.detector.score_samples(clips)
        return Judgement(anomaly, self.detector.anomaly_map(clips), -self.detector.offset_)


class ByMaps:
    """An `AVIDDetector`, whose maps are averaged over frames; a frame is judged by patches of them.

    Parameters
    ----------
    detector : AVIDDetector
    n_smoothed : int
        Frames to average over.
    patch_size, overlap, n_worst : int
        As of `ClipDetector`.
    """

    def __init__(
        self,
        detector: AVIDDetector,
        n_smoothed: int = N_SMOOTHED,
        *,
        patch_size: int = PATCH["patch_size"],
        overlap: int = PATCH["overlap"],
        n_worst: int = N_WORST,
    ) -> None:
        self.detector, self.n_smoothed = detector, n_smoothed
        self.patches, self.n_worst = FramePatches(patch_size, overlap), n_worst

    def fit(self, clips: list[NDArray]) -> ByMaps:
        self.detector.fit(np.concatenate(clips))
        return self

    def judge(self, clips: list[NDArray]) -> Judgement:
        raw = np.concatenate([self.detector.anomaly_map(clip) for clip in clips])
        maps = smooth_over_time(raw, clips, self.n_smoothed)
        return Judgement(self._pooled(maps), maps)

    def _pooled(self, maps: NDArray) -> NDArray:
        patches = self.patches.fit(maps[:1, np.newaxis])
        means = np.sort(patches.means(maps), axis=1)
        return means[:, -self.n_worst :].mean(axis=1)


class FrameDifference(ClipTransformer):
    """How much every pixel changed since the frame before: motion energy."""

    min_frames = 2
    _n_previous = 1

    def _channels(self, clip: NDArray, time: NDArray) -> NDArray:
        gray = clip.mean(axis=1, dtype=np.float32)
        change = np.abs(np.diff(gray, axis=0))
        return change[np.maximum(time - 1, 0), np.newaxis]


class PatchMeans(BaseEstimator):
    """Describes patches by the mean of each channel."""

    def fit(self, X: NDArray, y: Any = None) -> PatchMeans:
        return self

    def transform(self, X: NDArray) -> NDArray:
        return X.mean(axis=(2, 3), dtype=np.float64)

    def __sklearn_is_fitted__(self) -> bool:
        return True


class Largest(BaseEstimator):
    """Scores a row by minus its mean: whatever is large is anomalous. Learns nothing."""

    def fit(self, X: NDArray, y: Any = None) -> Largest:
        return self

    def score_samples(self, X: NDArray) -> NDArray:
        return -X.mean(axis=1)

    def __sklearn_is_fitted__(self) -> bool:
        return True


class Neighbors(BaseEstimator):
    """Scores a row by minus the mean distance from its 5 nearest training rows."""

    def fit(self, X: NDArray, y: Any = None) -> Neighbors:
        self.search_ = NearestNeighbors(n_neighbors=5).fit(X)
        return self

    def score_samples(self, X: NDArray) -> NDArray:
        return -self.search_.kneighbors(X)[0].mean(axis=1)


CHANNELS: dict[str, ClipTransformer | None] = {
    "frames": None,
    "difference": FrameDifference(),
    "flow": OpticalFlow(),
    "velocity and foreground": ForegroundMotion(flow=OpticalFlow("velocity")),
    "speed and foreground": ForegroundMotion(),
    "three averaged frames": MotionChannels(),
}


def detectors(steps: int | None = None) -> dict[str, Entry]:
    """All detectors, by name; `steps` are those of AVID's default training."""
    frames = None if steps is None else MaskedInpainting(max_steps=steps)
    rows = None if steps is None else CellInpainting(max_steps=steps)
    trained = partial(_g2d, generator=WassersteinGAN())
    return {
        "fixed camera": Entry("frames", _fixed_camera),
        "G2D": _by_patches("speed and foreground", _g2d, **MOVING),
        "G2D trained": _by_patches("speed and foreground", trained, **MOVING),
        "AVID": _by_patches("speed and foreground", partial(_avid_rows, rows), **MOVING),
        "AVID three averaged frames": Entry(
            "three averaged frames", lambda seed: _avid(seed, training=frames, per_location=True)
        ),
        "G2D as published": Entry("frames", _g2d_as_published),
        "AVID as published": Entry(
            "three averaged frames",
            lambda seed: ByMaps(_avid_as_published(seed), n_smoothed=1, **ONE_PIXEL),
        ),
        "motion energy": _by_patches("difference", _largest),
        "flow, blurred": _by_patches("flow", _largest, patch_size=15, overlap=10),
        "speed of the foreground": _by_patches(
            "speed and foreground", lambda _: [PatchMotion(), Largest()], **MOVING
        ),
        "5-NN flow and foreground": _by_patches(
            "velocity and foreground", lambda _: [PatchMeans(), StandardScaler(), Neighbors()]
        ),
        "5-NN speed of the foreground": _by_patches(
            "speed and foreground",
            lambda _: [PatchMotion(), StandardScaler(), Neighbors()],
            **MOVING,
        ),
    }


def _by_patches(channels: str, steps: Callable[[int], list[Any]], **params: Any) -> Entry:
    def make(seed: int) -> FrameDetector:
        given: dict[str, Any] = {"n_worst": N_WORST, "n_smoothed": N_SMOOTHED}
        given |= {"max_patches": 10_000, **PATCH, **params}
        return ByPatches(ClipDetector(make_pipeline(*steps(seed)), random_state=seed, **given))

    return Entry(channels, make)


def _fixed_camera(seed: int) -> FrameDetector:
    return ByViews(for_fixed_camera(FRAME_RATE, random_state=seed))


def _g2d(seed: int, **params: Any) -> list[Any]:
    return [PatchMotion(), G2DOutlierDetector(random_state=seed, **params)]


def _largest(seed: int) -> list[Any]:
    return [PatchMeans(), Largest()]


def _avid_rows(training: CellInpainting | None, seed: int) -> list[Any]:
    motion = PatchMotion(squares=(0.7,), fraction=True)
    return [motion, AVIDDetector(training=training, random_state=seed)]


def _avid(seed: int, **params: Any) -> FrameDetector:
    return ByMaps(AVIDDetector(region_size=REGION_SIZE, random_state=seed, **params))


def _avid_as_published(seed: int) -> AVIDDetector:
    return AVIDDetector.from_paper(data="images", region_size=REGION_SIZE, random_state=seed)


def _g2d_as_published(seed: int) -> FrameDetector:
    g2d = G2DOutlierDetector.from_paper(data="images", random_state=seed)
    return ByPatches(ClipDetector(g2d, random_state=seed, **PAPER_PATCH))
