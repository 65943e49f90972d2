"""Clips stay apart, channels are what the papers say, files and streams fail clearly."""

import copy
import os
import pickle
import re
import struct
import threading
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import (
    check_estimator_cloneable,
    check_estimator_repr,
    check_no_attributes_set_in_init,
)

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import MaskedInpainting, PatchNet, UNet
from sklearn_g2d.errors import UnsupportedObjectError, VideoFileError
from sklearn_g2d.g2d import NetworkClassifier
from sklearn_g2d.metrics import outlier_roc_auc_score
from sklearn_g2d.video import (
    ClipDetector,
    Foreground,
    ForegroundMotion,
    FramePatches,
    MotionChannels,
    OpticalFlow,
    PatchMotion,
    read_frames,
    smooth_over_time,
    split_clips,
    stream_channels,
)
from sklearn_g2d.video._clips import ClipTransformer

CHANNELS = [MotionChannels(), OpticalFlow(), Foreground(), ForegroundMotion()]


class MeanDetector(OutlierMixin, BaseEstimator):
    """Scores a patch by minus its mean, so that scores can be computed by hand."""

    def fit(self, X, y=None):
        self.n_fitted_, self.lowest_ = len(X), X.mean(axis=(1, 2, 3)).min()
        return self

    def score_samples(self, X):
        return -X.mean(axis=(1, 2, 3), dtype=np.float64)


@pytest.fixture(scope="module")
def walkers():
    """Textured squares on a textured ground: slow ones, and a fast one in the last clip."""

    def make(n_frames, speeds, seed):
        rng = np.random.default_rng(seed)
        ground = np.random.default_rng(99).normal(120, 3, size=(48, 64))
        clip = np.empty((n_frames, 1, 48, 64))
        textures = rng.integers(0, 80, size=(len(speeds), 3, 3))
        textures = textures.repeat(4, axis=1).repeat(4, axis=2)
        places = np.full((n_frames, len(speeds), 2), -1)
        for t, frame in enumerate(clip):
            frame[0] = ground + rng.normal(0, 1, size=ground.shape)
            for i, speed in enumerate(speeds):
                row, column = 4 + 16 * i, round(2 + speed * t) % 50
                frame[0, row : row + 12, column : column + 12] = textures[i]
                places[t, i] = row, column
        return clip.round().clip(0, 255).astype(np.uint8), places

    normal = [make(12, [0.5, 0.8], seed)[0] for seed in range(4)]
    calm, _ = make(12, [0.6, 0.7], 10)
    fast, places = make(12, [0.6, 2.5], 11)
    return normal, calm, fast, places[:, 1]


def walker_detector(**params):
    classifier = NetworkClassifier(n_members=4, max_steps=100)
    g2d = G2DOutlierDetector(classifier=classifier, random_state=0)
    return ClipDetector(
        make_pipeline(PatchMotion(), g2d),
        **{
            "channels": ForegroundMotion(OpticalFlow(lag=1)),
            "patch_size": 12,
            "overlap": 8,
            "min_foreground": 0.02,
            "max_patches": 2000,
            "random_state": 0,
            **params,
        },
    )


@pytest.fixture(scope="module")
def fitted(walkers):
    return walker_detector().fit(walkers[0])


def random_clip(n_frames, seed=0, shape=(1, 20, 24)):
    size = (n_frames, *shape)
    return np.random.default_rng(seed).integers(0, 256, size=size, dtype=np.uint8)


# Clips


@pytest.mark.parametrize("transformer", CHANNELS, ids=lambda t: type(t).__name__)
def test_clips_never_mix(transformer):
    clips = [random_clip(7, seed=1), random_clip(5, seed=2), random_clip(9, seed=3)]
    fitted = clone(transformer).fit(clips)
    together = fitted.transform(clips)
    assert together.dtype == np.float32
    assert together.shape[0] == 21
    alone = np.concatenate([fitted.transform(clip) for clip in clips])
    np.testing.assert_array_equal(together, alone)
    # The reverse of the second clip must change that clip's channels only.
    turned = fitted.transform([clips[0], clips[1][::-1], clips[2]])
    np.testing.assert_array_equal(turned[:7], together[:7])
    np.testing.assert_array_equal(turned[12:], together[12:])
    assert not np.array_equal(turned[7:12], together[7:12])


@pytest.mark.parametrize("transformer", CHANNELS, ids=lambda t: type(t).__name__)
def test_transformers_follow_scikit_learn(transformer):
    name = type(transformer).__name__
    check_estimator_cloneable(name, transformer)
    check_estimator_repr(name, transformer)
    check_no_attributes_set_in_init(name, transformer)
    clip = random_clip(6)
    fitted = clone(transformer).fit(clip)
    expected = fitted.transform(clip)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).transform(clip), expected)
    np.testing.assert_array_equal(make_pipeline(clone(transformer)).fit_transform(clip), expected)
    assert fitted.n_features_in_ == 20 * 24


def test_split_clips_are_views_in_order():
    frames = random_clip(9)
    clips = split_clips(frames, [3, 3, 1, 1, 1, 1, 2, 2, 2])
    assert [len(clip) for clip in clips] == [2, 4, 3]
    np.testing.assert_array_equal(np.concatenate(clips), frames)
    assert all(np.shares_memory(clip, frames) for clip in clips)
    with pytest.raises(ValueError, match="Frames of clip 3 do not follow each other"):
        split_clips(frames, [3, 3, 1, 1, 1, 1, 2, 2, 3])
    with pytest.raises(ValueError, match=r"must have shape \(9,\).*got \(8,\)"):
        split_clips(frames, np.zeros(8))


@pytest.mark.parametrize("n_frames", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("causal", [False, True])
def test_smoothing_averages_within_a_clip(n_frames, causal):
    rng = np.random.default_rng(0)
    lengths = [5, 1, 12]
    values = rng.normal(size=(18, 2))
    smoothed = smooth_over_time(values, [range(n) for n in lengths], n_frames, causal=causal)
    before = n_frames - 1 if causal else n_frames // 2
    start = 0
    for length in lengths:
        clip = values[start : start + length]
        for t in range(length):
            window = np.arange(t - before, t - before + n_frames).clip(0, length - 1)
            np.testing.assert_allclose(smoothed[start + t], clip[window].mean(axis=0))
        start += length


def test_smoothing_complains():
    with pytest.raises(ValueError, match="5 values for clips of 4 frames"):
        smooth_over_time(np.zeros(5), [[0, 0], [0, 0]])
    with pytest.raises(ValueError, match="n_frames must be an integer of at least 1, got 0"):
        smooth_over_time(np.zeros(2), [[0, 0]], 0)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([], "empty list"),
        ([random_clip(4)], "Clip 0 has 4 frames, but MotionChannels needs at least 5"),
        ([random_clip(6), random_clip(1)], "Clip 1 has 1 frame, but"),
        ([random_clip(0)], "Clip 0 has 0 frames"),
        (
            [random_clip(6), random_clip(6, shape=(1, 20, 30))],
            r"Clip 1 has frames of shape \(1, 20, 30\), but those before it \(1, 20, 24\).*Resize",
        ),
        (
            [random_clip(6), random_clip(6, shape=(3, 20, 24))],
            r"Clip 1 has frames of shape \(3, 20, 24\).*Convert colour frames to gray.*gray=False",
        ),
        (
            [random_clip(6, shape=(3, 20, 24)), random_clip(6)],
            r"Clip 1 has frames of shape \(1, 20, 24\).*in colour, by read_frames.*gray=False",
        ),
        (list(random_clip(6)), "single frames.*np.stack"),
        (
            [*random_clip(3), *random_clip(3, shape=(1, 20, 30))],
            r"size changes from \(20, 24\) to \(20, 30\) at number 3",
        ),
        (random_clip(6)[:, 0], r"Clip 0: .*X\[:, np.newaxis\]"),
        (np.zeros((6, 480)), r"Clip 0 has shape \(6, 480\). A clip is an array"),
        (
            np.moveaxis(random_clip(6, shape=(3, 20, 24)), 1, -1),
            r"Clip 0: .*channels last.*: pass np.moveaxis\(clip, -1, 1\)\.$",
        ),
        ([random_clip(6), np.full((6, 1, 20, 24), np.nan)], "Clip 1: .*NaN.* in 6 of 6 images"),
        ([random_clip(6), np.full((6, 1, 20, 24), np.inf)], "Clip 1: .*infinity"),
    ],
)
def test_bad_clips_get_clear_errors(clips, message):
    with pytest.raises(ValueError, match=message):
        MotionChannels().fit(clips)


@pytest.mark.parametrize(
    ("y", "remedy"),
    [
        ([1, -1, 1], "[x for x, label in zip(X, y) if label == 1]"),
        (np.array([0, 1, 1]), "[x for x, label in zip(X, y) if label == 0]"),
        (["good", "bad", "bad"], "those alone"),
        (np.repeat([1, -1, 1], 6), "those alone"),  # labels of frames
    ],
)
def test_labels_of_a_list_of_clips(y, remedy):
    with pytest.warns(UserWarning, match=rf"pass {re.escape(remedy)}\.$"):
        ClipDetector(MeanDetector(), patch_size=8).fit([random_clip(6)] * 3, y)


def test_a_number_is_no_file():
    with pytest.raises(TypeError, match=r"name of a video file, got int.*VideoCapture.*stream"):
        read_frames(0)


def test_frames_of_a_file_are_no_clip_yet():
    with pytest.raises(TypeError, match=r"X gives .*np\.stack\(list\(X\)\).*stream"):
        MotionChannels().fit(read_frames("any.mp4"))
    with pytest.raises(TypeError, match=r"X\[1\] gives"):
        MotionChannels().fit([random_clip(6), read_frames("any.mp4")])


@pytest.mark.parametrize("size", [320, (0, 320), (240.0, 320), (240, 320, 3), "ab"])
def test_sizes_to_read_are_checked(size):
    with pytest.raises(ValueError, match=r"size must be two positive integers, height and width"):
        read_frames("any.mp4", size=size)


@pytest.mark.parametrize("transformer", CHANNELS, ids=lambda t: type(t).__name__)
def test_other_frames_than_fitted(transformer):
    fitted = clone(transformer).fit(random_clip(6))
    colour, larger = random_clip(6, shape=(3, 20, 24)), random_clip(6, shape=(1, 40, 48))
    name = type(transformer).__name__
    with pytest.raises(ValueError, match=rf"{name} was fitted on \(1, 20, 24\).*gray"):
        fitted.transform(colour)
    with pytest.raises(ValueError, match=rf"{name} was fitted on \(1, 20, 24\).*Resize"):
        fitted.transform([random_clip(6), larger])
    with pytest.raises(ValueError, match=r"last.*: pass np.moveaxis\(clip, -1, 1\)\.$"):
        fitted.transform(np.moveaxis(random_clip(6), 1, -1))
    with pytest.raises(ValueError, match=r"Clip 0: .*array of one: X\[np.newaxis\]\.$"):
        fitted.transform(random_clip(1)[0])


def test_integers_are_not_wrapped_to_bytes():
    clip = random_clip(6).astype(np.int64) * 100 - 50
    expected = MotionChannels().fit_transform(clip.astype(np.float64))
    np.testing.assert_array_equal(MotionChannels().fit_transform(clip), expected)
    assert expected.max() > 10_000


# Channels


def test_motion_channels_are_the_papers():
    clip = random_clip(9, shape=(2, 5, 6)).astype(np.float64)
    channels = MotionChannels().fit_transform(clip)
    gray = clip.mean(axis=1)
    for t in range(9):
        for channel, lag in enumerate([4, 2, 0]):
            now = max(t - lag, 0)
            mean = (gray[now] + gray[max(now - 1, 0)]) / 2
            np.testing.assert_allclose(channels[t, channel], mean, rtol=1e-6)


def moving_texture(n_frames, right, down):
    """A smooth texture that moves as a whole."""
    rng = np.random.default_rng(0)
    waves = rng.uniform(-0.5, 0.5, size=(12, 2))
    phases = rng.uniform(0, 2 * np.pi, size=12)
    y, x = np.mgrid[:48, :64]
    clip = [
        np.sin(
            waves[:, 0, None, None] * (x - right * t)
            + waves[:, 1, None, None] * (y - down * t)
            + phases[:, None, None]
        ).sum(axis=0)
        for t in range(n_frames)
    ]
    return (128 + 12 * np.array(clip))[:, np.newaxis]


@pytest.mark.parametrize("method", ["farneback", "dis"])
@pytest.mark.parametrize("lag", [1, 3])
def test_flow_is_in_pixels_per_frame(method, lag):
    clip = moving_texture(5, right=0.8, down=-0.5)
    flow = OpticalFlow("velocity", method=method, lag=lag).fit_transform(clip)
    assert flow.shape == (5, 2, 48, 64)
    inside = flow[:, :, 12:-12, 12:-12]
    np.testing.assert_allclose(np.median(inside[:, 0], axis=(1, 2)), 0.8, atol=0.08)
    np.testing.assert_allclose(np.median(inside[:, 1], axis=(1, 2)), -0.5, atol=0.08)
    speed = OpticalFlow(method=method, lag=lag).fit_transform(clip)
    np.testing.assert_allclose(speed[:, 0], np.sqrt((flow**2).sum(axis=1)), rtol=1e-5)


def test_flow_of_the_first_frame_is_that_of_the_second():
    clip = random_clip(4)
    for lag in (1, 2):
        flow = OpticalFlow(lag=lag).fit_transform(clip)
        np.testing.assert_array_equal(flow[0], OpticalFlow(lag=1).fit_transform(clip[:2])[1])


def test_flow_without_opencv(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ImportError, match=r"pip install 'sklearn_g2d\[video\]'"):
        OpticalFlow().fit(random_clip(4))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'sklearn_g2d\[video\]'"):
        next(read_frames("any.mp4"))


@pytest.mark.parametrize(
    ("params", "message"),
    [({"method": "lucas"}, "method"), ({"lag": 0}, "lag"), ({"output": "angle"}, "output")],
)
def test_flow_checks_parameters(params, message):
    with pytest.raises(ValueError, match=f"The '{message}' parameter of OpticalFlow"):
        OpticalFlow(**params).fit(random_clip(4))


def test_foreground_is_what_differs_from_the_median():
    rng = np.random.default_rng(0)
    ground = rng.integers(60, 200, size=(20, 24))
    clips = [np.tile(ground, (5, 1, 1, 1)).transpose(0, 1, 2, 3) for _ in range(3)]
    clips[1][2:, :, 5:9, 5:9] = 0  # 3 of 15 frames
    foreground = Foreground(low=10, high=40).fit(clips)
    np.testing.assert_array_equal(foreground.background_, ground)
    new = ground + np.array([0, 10, 25, 40, -25, -90])[:, None, None]
    expected = np.array([0, 0, 0.5, 1, 0.5, 1])
    given = foreground.transform(new[:, np.newaxis].astype(float))
    np.testing.assert_allclose(given, np.broadcast_to(expected[:, None, None, None], given.shape))
    with pytest.raises(ValueError, match="low must lie below high"):
        Foreground(low=5, high=5).fit(clips)


def test_foreground_motion_joins_both():
    clip = random_clip(6)
    flow, foreground = OpticalFlow("velocity", lag=1), Foreground(low=0, high=50)
    joined = ForegroundMotion(flow, foreground).fit_transform(clip)
    assert joined.shape[1] == 3
    np.testing.assert_array_equal(joined[:, :2], clone(flow).fit_transform(clip))
    np.testing.assert_array_equal(joined[:, 2:], clone(foreground).fit_transform(clip))


def test_parameters_of_parts_that_are_left_at_none():
    clip = random_clip(6)
    motion = ForegroundMotion().set_params(flow__lag=1, foreground__high=50)
    expected = ForegroundMotion(OpticalFlow(lag=1), Foreground(high=50)).fit_transform(clip)
    np.testing.assert_array_equal(motion.fit_transform(clip), expected)
    detector = ClipDetector(IsolationForest(), channels=ForegroundMotion())
    assert detector.set_params(channels__flow__lag=3).channels.flow.lag == 3
    with pytest.raises(ValueError, match="Invalid parameter 'speed' for estimator OpticalFlow"):
        ForegroundMotion().set_params(flow__speed=1)


@pytest.mark.parametrize(
    ("transformer", "changes"),
    [
        (OpticalFlow(), {"output": "velocity", "method": "dis", "lag": 1, "window_size": 5}),
        (Foreground(), {"low": 30.0, "high": 90.0}),
        (ForegroundMotion(OpticalFlow()), {"flow__lag": 4, "foreground": Foreground(0, 9)}),
        (FramePatches(8, 2), {"patch_size": 5, "overlap": 0}),
        (PatchMotion(), {"squares": (0.2,), "fraction": True}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_parameters_set_after_fit_change_no_channels(transformer, changes):
    clip = random_clip(9, shape=(2, 20, 24))
    fitted = clone(transformer).fit(clip)
    expected = fitted.transform(clip)
    fitted.set_params(**changes)
    np.testing.assert_array_equal(fitted.transform(clip), expected)
    if isinstance(transformer, ClipTransformer):
        np.testing.assert_array_equal(np.concatenate([*stream_channels(fitted, clip)]), expected)
    assert not np.array_equal(fitted.fit(clip).transform(clip), expected)


# Patches


@pytest.mark.parametrize(("patch_size", "overlap"), [(6, 2), (5, 0), (7, 6), (20, 3)])
def test_patches_are_cut_in_order(patch_size, overlap):
    frames = random_clip(3, shape=(2, 20, 23))
    patches = FramePatches(patch_size, overlap).fit(frames)
    stride = patch_size - overlap
    rows = [*range(0, 20 - patch_size, stride), 20 - patch_size]
    columns = [*range(0, 23 - patch_size, stride), 23 - patch_size]
    expected = [
        frame[:, row : row + patch_size, column : column + patch_size]
        for frame in frames
        for row in rows
        for column in columns
    ]
    assert patches.grid_shape_ == (len(rows), len(columns))
    np.testing.assert_array_equal(patches.transform(frames), expected)
    means = np.mean(expected, axis=(2, 3))[:, 1]
    np.testing.assert_allclose(patches.means(frames[:, 1]).ravel(), means)

    # A pixel of a map has the mean value of the patches that cover it.
    values = np.arange(len(expected), dtype=float)
    sums, counts = np.zeros((2, 3, 20, 23))
    grid = [(f, r, c) for f in range(3) for r in rows for c in columns]
    for value, (frame, row, column) in zip(values, grid, strict=True):
        covered = frame, slice(row, row + patch_size), slice(column, column + patch_size)
        sums[covered] += value
        counts[covered] += 1
    np.testing.assert_allclose(patches.to_maps(values), sums / counts)
    by_frame = values.reshape(3, patches.n_patches_)
    np.testing.assert_array_equal(patches.to_maps(by_frame), patches.to_maps(values))
    for wrong in (values[1:], by_frame.T):
        with pytest.raises(ValueError, match="values must be one for each of the"):
            patches.to_maps(wrong)


def test_patches_of_the_paper():
    patches = FramePatches().fit(np.zeros((1, 1, 240, 360), dtype=np.uint8))
    assert patches.grid_shape_ == (10, 15)  # a stride of 25, the last ones moved in


@pytest.mark.parametrize(
    ("params", "X", "message"),
    [
        ({"patch_size": 21, "overlap": 0}, random_clip(2), "larger than the frames.*20 x 24"),
        ({"patch_size": 5, "overlap": 5}, random_clip(2), "must be smaller than patch_size=5"),
        ({"patch_size": 0}, random_clip(2), "'patch_size' parameter"),
        ({}, [random_clip(2)], "one array of frames.*np.concatenate"),
        ({}, np.zeros((3, 4)), "A clip is an array"),
    ],
)
def test_patches_complain(params, X, message):
    with pytest.raises(ValueError, match=message):
        FramePatches(**params).fit(X)


def test_patch_motion_weighs_speed_by_foreground():
    rng = np.random.default_rng(0)
    patches = rng.uniform(size=(5, 3, 10, 10))
    rows = PatchMotion(squares=(0.4, 1)).fit_transform(patches)
    for i, (right, down, foreground) in enumerate(patches):
        for column, inside in enumerate([slice(3, 7), slice(0, 10)]):
            energy = ((right**2 + down**2) * foreground)[inside, inside].mean()
            weight = foreground[inside, inside].mean() + 0.05
            assert rows[i, column] == pytest.approx(np.sqrt(energy / weight))
    with_fraction = PatchMotion(squares=(0.4, 1), fraction=True).fit_transform(patches)
    np.testing.assert_array_equal(with_fraction[:, 1:], rows)
    np.testing.assert_allclose(with_fraction[:, 0] ** 2, patches[:, 2].mean(axis=(1, 2)))
    # More of a crowd at the same speed is hardly faster, and nothing is still.
    crowd = np.full((3, 2, 10, 10), 0.5)
    crowd[:, 1] = np.array([0, 0.5, 1])[:, None, None]
    still, some, many = PatchMotion().fit_transform(crowd)[:, 2]
    assert still == 0
    assert many / some < 1.05
    with pytest.raises(ValueError, match="two channels or more, got one"):
        PatchMotion().fit(crowd[:, :1])
    with pytest.raises(ValueError, match=r"squares must be numbers in \(0, 1\]"):
        PatchMotion(squares=(0.5, 1.5)).fit(crowd)


# Frames judged by patches


def test_scores_and_maps_by_hand():
    clips = [random_clip(6, seed=1), random_clip(4, seed=2)]
    detector = ClipDetector(
        MeanDetector(), patch_size=8, overlap=4, n_worst=3, n_smoothed=3, contamination=0.2
    ).fit(clips)
    assert detector.estimator_.n_fitted_ == 10 * 4 * 5
    scores = []
    for clip in clips:
        means = np.array(
            [
                [-f[0, r : r + 8, c : c + 8].mean() for r in (0, 4, 8, 12) for c in range(0, 17, 4)]
                for f in clip
            ]
        )
        smoothed = [
            np.mean([means[min(max(t + k, 0), len(clip) - 1)] for k in (-1, 0, 1)], axis=0)
            for t in range(len(clip))
        ]
        scores.append(np.array(smoothed))
    scores = np.concatenate(scores)
    pooled = np.sort(scores, axis=1)[:, :3].mean(axis=1)
    np.testing.assert_allclose(detector.patch_scores(clips), scores)
    np.testing.assert_allclose(detector.score_samples(clips), pooled)
    np.testing.assert_allclose(detector.anomaly_map(clips), detector.patches_.to_maps(-scores))
    np.testing.assert_allclose(detector.calibration_scores_, np.sort(pooled))
    assert detector.offset_ == pytest.approx(np.percentile(pooled, 20))
    predicted = detector.predict(clips)
    np.testing.assert_array_equal(predicted, np.where(pooled < detector.offset_, -1, 1))
    assert (predicted == -1).sum() == 2


def test_per_location_standardises_each_place():
    clip = random_clip(40).astype(np.float64)
    clip[:, :, :, 12:] *= 5  # bright and lively there, which is usual
    params = {"patch_size": 4, "overlap": 0, "n_worst": 1}
    detector = ClipDetector(MeanDetector(), per_location=True, **params).fit(clip)
    scores = detector.patch_scores(clip)
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(scores.std(axis=0), 1)
    odd = clip[:6].copy()
    odd[:, :, 4:8, 4:8] = 255  # brighter than it ever is here, but not than it is over there
    plain = ClipDetector(MeanDetector(), **params).fit(clip)
    worst = detector.patch_scores(odd).argmin(axis=1)
    assert (worst == 1 * 6 + 1).all()
    assert (plain.patch_scores(odd).argmin(axis=1) != 1 * 6 + 1).all()


def test_empty_patches_are_skipped():
    clip = np.full((5, 1, 12, 12), 2.0)
    clip[:, :, :6, :6] = np.linspace(10, 14, 5)[:, None, None, None]
    params: dict = {"patch_size": 6, "overlap": 0, "min_foreground": 5}
    with pytest.raises(ValueError, match="'min_foreground' parameter"):
        ClipDetector(MeanDetector(), **params).fit(clip)
    params["min_foreground"] = 0.4
    clip /= 20
    detector = ClipDetector(MeanDetector(), **params).fit(clip)
    assert detector.estimator_.n_fitted_ == 5
    scores = detector.patch_scores(clip)
    np.testing.assert_allclose(scores[:, 0], -clip[:, 0, 0, 0])
    np.testing.assert_allclose(scores[:, 1:], -0.5)  # the best score of the training patches
    with pytest.raises(ValueError, match=r"All patches are empty.*min_foreground=0.9"):
        ClipDetector(MeanDetector(), **params | {"min_foreground": 0.9}).fit(clip)


def test_patches_are_drawn_from_all_clips():
    clips = [np.full((50, 1, 12, 12), float(i)) for i in range(4)]

    class Remembering(MeanDetector):
        def fit(self, X, y=None):
            self.means_ = X.mean(axis=(1, 2, 3))
            return super().fit(X)

    params = {"patch_size": 4, "overlap": 0, "max_patches": 400}
    means = ClipDetector(Remembering(), random_state=0, **params).fit(clips).estimator_.means_
    counts = np.bincount(means.astype(int))
    assert counts.sum() == 400
    assert np.abs(counts - 100).max() < 4 * np.sqrt(400 * 0.25 * 0.75)
    again = ClipDetector(Remembering(), random_state=0, **params).fit(clips).estimator_.means_
    other = ClipDetector(Remembering(), random_state=1, **params).fit(clips).estimator_.means_
    np.testing.assert_array_equal(means, again)
    assert not np.array_equal(means, other)


def test_finds_what_moves_fast(walkers):
    normal, calm, fast, places = walkers
    detector = walker_detector(n_smoothed=3, n_worst=5).fit(normal)
    scores = detector.score_samples([calm, fast])
    assert outlier_roc_auc_score(np.repeat([1, -1], 12), scores) > 0.95
    maps = detector.anomaly_map([calm, fast])[12:]
    hits = 0
    for (row, column), one in zip(places, maps, strict=True):
        y, x = np.unravel_index(one.argmax(), one.shape)
        hits += row - 8 <= y < row + 20 and column - 12 <= x < column + 24
    assert hits >= 10
    # Seeds make it repeatable, and a clone knows nothing.
    again = clone(detector).fit(normal)
    np.testing.assert_array_equal(again.score_samples([calm, fast]), scores)
    restored = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(restored.score_samples([calm, fast]), scores)


def test_a_failed_fit_changes_nothing(walkers, fitted):
    fast = walkers[2]
    before = fitted.score_samples(fast)
    detector = copy.copy(fitted).set_params(min_foreground=0.99)
    with pytest.raises(ValueError, match="All patches are empty"):
        detector.fit(random_clip(6, shape=(1, 60, 60)))
    np.testing.assert_array_equal(detector.score_samples(fast), before)


def test_any_detector_and_nested_parameters(walkers):
    normal, calm, fast, _ = walkers
    lof = LocalOutlierFactor(novelty=True, n_neighbors=5)
    detector = walker_detector().set_params(estimator=make_pipeline(PatchMotion(), lof))
    detector.set_params(estimator__localoutlierfactor__n_neighbors=20, n_worst=5)
    scores = detector.fit(normal).score_samples([calm, fast])
    assert detector.estimator_[-1].n_neighbors == 20
    assert scores[12:].mean() < scores[:12].mean()


def test_avid_pipeline_gives_a_score_for_each_frame(walkers):
    normal, calm, fast, _ = walkers
    avid = AVIDDetector(
        region_size=8,
        training=MaskedInpainting(max_steps=2),
        inpainter=UNet(channels=4),
        detector=PatchNet(channels=4),
        per_location=True,
        random_state=0,
    )
    detector = make_pipeline(MotionChannels(), avid).fit(normal)
    together = detector.score_samples([calm, fast])
    assert together.shape == (24,)
    np.testing.assert_allclose(together[12:], detector.score_samples(fast), rtol=1e-6)
    assert detector[-1].image_shape_ == (3, 48, 64)


# What it shares with the other detectors


def flatten(patches):
    return patches.reshape(len(patches), -1)


def forest_detector(**params):
    forest = IsolationForest(n_estimators=10, max_samples=50)
    params = {"patch_size": 8, "overlap": 4, "n_worst": 3, "random_state": 0, **params}
    return ClipDetector(make_pipeline(FunctionTransformer(flatten), forest), **params)


NOISE = [random_clip(30, seed=1), random_clip(25, seed=2)]
NEW_NOISE = [random_clip(12, seed=3), random_clip(8, seed=4)]


def test_clip_detector_follows_scikit_learn():
    detector = forest_detector()
    check_estimator_cloneable("ClipDetector", detector)
    check_estimator_repr("ClipDetector", detector)
    check_no_attributes_set_in_init("ClipDetector", detector)
    with pytest.raises(NotFittedError):
        detector.score_samples(NOISE)
    assert detector.fit(NOISE).n_features_in_ == 20 * 24
    is_outlier = detector.decision_function(NEW_NOISE) < 0
    np.testing.assert_array_equal(detector.predict(NEW_NOISE), np.where(is_outlier, -1, 1))
    np.testing.assert_array_equal(detector.fit_predict(NOISE), detector.predict(NOISE))
    assert (detector.predict(NOISE) == -1).sum() == 2  # of 55, below number .05 * 56 = 2.8
    stated = forest_detector(contamination=0.05).fit(NOISE)
    assert (stated.predict(NOISE) == -1).sum() == 3  # a twentieth


def test_calibration_promises_a_rate_for_new_frames():
    detector = forest_detector().fit(NOISE)
    scores = detector.score_samples(NEW_NOISE)
    before = detector.p_values(NEW_NOISE)
    trained = np.sort(detector.score_samples(NOISE))
    np.testing.assert_allclose(before, [(1 + (trained <= s).sum()) / 56 for s in scores])
    assert detector.calibrate(NEW_NOISE, false_alarm_rate=0.1) is detector
    np.testing.assert_array_equal(detector.calibration_scores_, np.sort(scores))
    assert detector.offset_ == np.sort(scores)[1]  # the second of 20
    after = detector.p_values(NEW_NOISE)
    np.testing.assert_allclose(after, [(1 + (scores <= s).sum()) / 21 for s in scores])
    with pytest.raises(ValueError, match="needs at least 99 held-out normal"):
        detector.calibrate(NEW_NOISE, false_alarm_rate=0.01)
    assert detector.offset_ == np.sort(scores)[1]


def test_files_keep_scores_maps_and_streams(walkers, tmp_path):
    normal, calm, fast, _ = walkers
    detector = walker_detector(n_smoothed=3, per_location=True).fit(normal).calibrate(calm, 0.2)
    detector.save(tmp_path / "walkers.skops")
    loaded = ClipDetector.load(tmp_path / "walkers.skops")
    for method in ("score_samples", "predict", "p_values", "anomaly_map", "patch_scores"):
        given = getattr(loaded, method)([calm, fast])
        np.testing.assert_array_equal(given, getattr(detector, method)([calm, fast]))
    for (score, one), (expected, map_) in zip(
        loaded.stream(fast), detector.stream(fast), strict=True
    ):
        assert score == expected
        np.testing.assert_array_equal(one, map_)
    assert repr(loaded) == repr(detector)
    with pytest.raises(ValueError, match="ClipDetector, not a G2DOutlierDetector"):
        G2DOutlierDetector.load(tmp_path / "walkers.skops")


def test_what_cannot_be_exported_says_what_can(fitted, tmp_path):
    with pytest.raises(UnsupportedObjectError, match="Export the detector of patches inside"):
        fitted.to_onnx(tmp_path / "clips.onnx")
    assert not list(tmp_path.iterdir())


CHANGES = {
    "estimator": MeanDetector(),
    "channels": MotionChannels(),
    "patch_size": 9,
    "overlap": 2,
    "min_foreground": 0.999,
    "max_patches": 100,
    "n_worst": 2,
    "n_smoothed": 2,
    "per_location": True,
    "contamination": 0.3,
    "random_state": 1,
}


def test_parameters_set_after_fit_change_no_score():
    detector = forest_detector(min_foreground=0.5).fit(NOISE)

    def outputs():
        yield detector.decision_function(NEW_NOISE)
        yield detector.anomaly_map(NEW_NOISE)
        yield detector.p_values(NEW_NOISE)
        yield from detector.stream(NEW_NOISE[0])

    before = pickle.dumps(list(outputs()))
    assert CHANGES.keys() == detector.get_params(deep=False).keys()
    for name, value in CHANGES.items():
        detector.set_params(**{name: value})
        assert pickle.dumps(list(outputs())) == before, name


@pytest.mark.parametrize("name", CHANGES)
def test_every_parameter_matters(name):
    clips, new = ([clip / 256 for clip in some] for some in (NOISE, NEW_NOISE))
    plain = forest_detector(max_patches=500).fit(clips)
    changes = {name: CHANGES[name]} | ({"min_foreground": 0.5} if name == "min_foreground" else {})
    changed = clone(plain).set_params(**changes).fit(clips)
    assert not np.array_equal(changed.decision_function(new), plain.decision_function(new))


def test_parts_without_a_seed_get_one():
    class Noisy(MotionChannels):
        def __init__(self, random_state=None):
            self.random_state = random_state

        def _channels(self, clip, time):
            noise = np.random.default_rng(self.random_state).normal(size=clip.shape[2:])
            return super()._channels(clip, time) + 50 * noise.astype(np.float32)

    def scores(seed):
        detector = forest_detector(channels=Noisy(), random_state=seed).fit(NOISE)
        return detector.score_samples(NEW_NOISE)

    np.testing.assert_array_equal(scores(0), scores(0))
    assert not np.array_equal(scores(0), scores(1))


def test_scores_that_are_not_finite_are_an_error():
    class Wild(MeanDetector):
        def score_samples(self, X):
            scores = super().score_samples(X)
            return np.where(scores < -200, np.nan, scores)

    clip = np.full((6, 1, 12, 12), 20.0)
    detector = ClipDetector(Wild(), patch_size=4, overlap=0).fit(clip)
    clip[3, :, :4, :4] = 250
    with pytest.raises(ValueError, match="Wild gives patches scores that are infinite or NaN"):
        detector.score_samples(clip)
    with pytest.raises(ValueError, match="infinite or NaN"):
        detector.fit(clip)


# Streams


@pytest.mark.parametrize("transformer", [*CHANNELS, OpticalFlow(lag=3), None], ids=str)
@pytest.mark.parametrize("n_frames", [5, 14])
def test_streamed_channels_are_those_of_the_clip(transformer, n_frames):
    clip = random_clip(n_frames, seed=5)
    fitted = None if transformer is None else clone(transformer).fit(random_clip(9))
    streamed = list(stream_channels(fitted, iter(clip)))
    assert all(len(one) == 1 for one in streamed)
    expected = clip if fitted is None else fitted.transform(clip)
    np.testing.assert_array_equal(np.concatenate(streamed), expected)


def test_stream_scores_with_a_trailing_average(walkers):
    normal, _, fast, _ = walkers
    detector = walker_detector(n_smoothed=4).fit(normal)
    streamed = list(detector.stream(iter(fast)))
    single = clone(detector).set_params(n_smoothed=1).fit(normal).patch_scores(fast)
    smoothed = smooth_over_time(single, [fast], 4, causal=True)
    np.testing.assert_allclose([score for score, _ in streamed], detector.pool(smoothed))
    np.testing.assert_allclose([one for _, one in streamed], detector.to_maps(smoothed))


def test_stream_reads_no_further_than_it_has_to(walkers, fitted):
    fast = walkers[2]
    read = []

    def frames():
        for frame in fast:
            read.append(1)
            yield frame

    stream = fitted.stream(frames())
    next(stream)
    assert len(read) == 2  # what the flow of a first frame takes
    next(stream)
    next(stream)
    assert len(read) == 3


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (random_clip(1, shape=(1, 24, 48))[0], r"Frame 7 has shape \(1, 24, 48\).*Resize"),
        (random_clip(1, shape=(3, 48, 64))[0], r"Frame 7 has shape \(3, 48, 64\).*gray"),
        (np.zeros((48, 64)), r"Frame 7 has shape \(48, 64\).*frame\[np.newaxis\]"),
    ],
)
def test_what_was_streamed_before_an_error_is_kept(walkers, fitted, odd, message):
    fast = walkers[2]
    expected = fitted.score_samples(fast[:7])
    scores = []

    def collect():
        for score, _ in fitted.stream([*fast[:7], odd, *fast[7:]]):
            scores.append(score)

    with pytest.raises(ValueError, match=message):
        collect()
    np.testing.assert_allclose(scores, expected)
    # The detector itself is as it was.
    np.testing.assert_allclose(fitted.score_samples(fast[:7]), expected)


def test_short_and_foreign_streams(walkers, fitted):
    fast = walkers[2]
    with pytest.raises(ValueError, match="has 1 frame, but ForegroundMotion needs at least 2"):
        list(fitted.stream(fast[:1]))
    with pytest.raises(ValueError, match="has 3 frames, but MotionChannels needs at least 5"):
        list(stream_channels(MotionChannels().fit(fast), fast[:3]))
    assert list(fitted.stream([])) == []
    plain = ClipDetector(MeanDetector(), patch_size=8).fit(fast)
    with pytest.raises(ValueError, match=r"shape \(1, 60, 70\), but ClipDetector was fitted on"):
        list(plain.stream(random_clip(2, shape=(1, 60, 70))))
    with pytest.raises(ValueError, match="NaN"):
        list(plain.stream([*fast[:2], np.full((1, 48, 64), np.nan)]))
    foreign = FunctionTransformer(np.concatenate, check_inverse=False)
    foreign = ClipDetector(MeanDetector(), channels=foreign, patch_size=8).fit(fast)
    np.testing.assert_array_equal(foreign.score_samples(fast), plain.score_samples(fast))
    with pytest.raises(TypeError, match="FunctionTransformer does not tell how many"):
        list(foreign.stream(fast))
    with pytest.raises(ValueError, match=r"was fitted on \(1, 48, 64\).*gray"):
        list(fitted.stream(fast.repeat(3, axis=1)))


def test_a_camera_may_write_every_frame_over_the_last():
    clip = random_clip(9)
    channels = MotionChannels().fit(clip)

    def camera():
        memory = np.empty_like(clip[0])
        for frame in clip:
            memory[:] = frame
            yield memory

    streamed = np.concatenate(list(stream_channels(channels, camera())))
    np.testing.assert_array_equal(streamed, channels.transform(clip))


def warned(function, *args):
    """Give what a function returns, and the texts of its warnings."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        returned = function(*args)
    return returned, [str(warning.message) for warning in record]


def test_a_frozen_camera_is_told_once(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("sklearn_g2d.video._streams.time.monotonic", lambda: clock[0])
    one, other = random_clip(2)

    def camera(*runs):
        for frame, seconds in runs:
            for _ in range(round(4 * seconds) + 1):
                yield frame.copy()
                clock[0] += 0.25

    def texts(*runs):
        return warned(lambda: list(stream_channels(None, camera(*runs))))[1]

    assert not texts((one, 1.75), (other, 1.75), (one, 1.75))
    (text,) = texts((one, 9))
    assert "Frames 0 to 8 are equal in every bit, for 2.0 seconds" in text
    almost = one.copy()
    almost[0, 0, 0] ^= 1
    assert len(texts((one, 5), (almost, 0), (one, 5), (other, 1), (one, 1))) == 2
    clip = np.stack([one] * 9)
    detector = ClipDetector(MeanDetector(), patch_size=8).fit(clip)
    given, text = warned(lambda: list(detector.stream(camera((one, 3)))))
    assert (len(given), len(text)) == (13, 1)


def test_a_file_of_a_frozen_camera_is_told_by_its_own_time(tmp_path):
    clip = random_clip(50, shape=(1, 48, 64))
    clip[10:40] = clip[10]
    write_video(tmp_path / "clip.mkv", clip)
    frames = read_frames(tmp_path / "clip.mkv")
    channels, (text,) = warned(lambda: list(stream_channels(None, frames)))
    assert len(channels) == 50
    assert "Frames 10 to 30 are equal" in text
    clip[20:40:5] += 1
    write_video(tmp_path / "clip.mkv", clip)
    assert not warned(lambda: list(stream_channels(None, read_frames(tmp_path / "clip.mkv"))))[1]


# Files


def write_video(
    path, clip, codec="ffv1", pixels="gray", pix_fmt=None, times=None, options=None, **settings
):
    """Write a clip (n, channels, height, width), by default without loss and at 10 a second."""
    with av.open(str(path), "w", container_options=options) as container:
        stream = container.add_stream(codec, rate=Fraction(10))
        stream.height, stream.width = clip.shape[2:]
        stream.pix_fmt = pix_fmt or ("gray" if pixels == "gray" else "bgr0")
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for number, image in enumerate(clip):
            array = image[0] if pixels == "gray" else np.moveaxis(image, 0, -1)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), pixels)
            frame = frame.reformat(format=stream.pix_fmt)
            frame.pts = None if times is None else times[number]
            frame.time_base = Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def walk(n_frames, shape=(48, 64)):
    """Frames that codecs keep apart: a bright square that moves over noise."""
    clip = random_clip(n_frames, shape=(1, *shape)) // 8
    for number, frame in enumerate(clip):
        frame[0, 8:24, number % 48 : number % 48 + 16] += 150
    return clip


def test_files_are_read_as_they_were_written(tmp_path):
    clip = random_clip(8, shape=(1, 48, 64))
    write_video(tmp_path / "gray.mkv", clip)
    read = list(read_frames(tmp_path / "gray.mkv"))
    assert read[0].dtype == np.uint8
    np.testing.assert_array_equal(read, clip)

    colour = random_clip(3, shape=(3, 48, 64))
    write_video(tmp_path / "colour.mkv", colour, pixels="rgb24")
    np.testing.assert_array_equal(list(read_frames(tmp_path / "colour.mkv", gray=False)), colour)
    gray = np.array(list(read_frames(tmp_path / "colour.mkv")))
    weights = np.array([0.299, 0.587, 0.114])[:, None, None]
    np.testing.assert_allclose(gray[:, 0], (colour * weights).sum(axis=1), atol=2)


def test_frames_are_resized(tmp_path):
    clip = np.full((2, 1, 48, 64), 50, dtype=np.uint8)
    clip[:, :, :, 32:] = 200
    write_video(tmp_path / "clip.mkv", clip)
    small = np.array(list(read_frames(tmp_path / "clip.mkv", size=(24, 32))))
    assert small.shape == (2, 1, 24, 32)
    assert (small[..., :12] == 50).all()
    assert (small[..., 20:] == 200).all()


def test_files_are_read_lazily(tmp_path):
    write_video(tmp_path / "clip.mkv", random_clip(30, shape=(1, 48, 64)))
    frames = read_frames(tmp_path / "clip.mkv")
    next(frames)
    frames.close()  # an abandoned stream gives its file back
    (tmp_path / "clip.mkv").unlink()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is an empty file"), (b"no video at all" * 99, "Nothing of .* can be read")],
)
def test_files_without_video(tmp_path, content, message):
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoFileError, match=message):
        list(read_frames(path))
    with pytest.raises(FileNotFoundError, match=r"no file .*missing.mp4"):
        list(read_frames(tmp_path / "missing.mp4"))


@pytest.mark.parametrize(
    ("name", "message"), [("sound.mov", "holds no video"), ("sound.wav", "none of the formats")]
)
def test_sound_is_no_video(tmp_path, name, message):
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(VideoFileError, match=message):
        list(read_frames(path))


def test_a_damaged_file_keeps_its_beginning(tmp_path, walkers, fitted):
    fast = walkers[2]
    path = tmp_path / "clip.mp4"
    write_video(path, fast.repeat(3, axis=0), "mpeg4", pix_fmt="yuv420p")
    whole = np.array(list(read_frames(path)))
    assert len(whole) == 36
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 100] = bytes(100)
    path.write_bytes(content)
    scores = []

    def collect():
        for score, _ in fitted.stream(read_frames(path)):
            scores.append(score)

    with pytest.raises(VideoFileError, match=r"cannot be read beyond \d+ frames.*read so far"):
        collect()
    assert 5 < len(scores) < 36
    expected = fitted.score_samples(whole[: len(scores)])
    np.testing.assert_allclose(scores, expected)


def test_a_file_cut_short(tmp_path):
    path = tmp_path / "clip.avi"  # whose header tells the number of frames
    write_video(path, random_clip(20, shape=(1, 48, 64)))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    read = []

    def collect():
        for frame in read_frames(path):
            read.append(frame)

    with pytest.raises(VideoFileError, match="cannot be read beyond"):
        collect()
    assert 5 < len(read) < 15
    np.testing.assert_array_equal(read, random_clip(20, shape=(1, 48, 64))[: len(read)])


def test_frames_that_change_in_size(tmp_path):
    path = tmp_path / "clip.ts"  # a format whose parts may simply follow one another
    for part, shape in enumerate([(1, 48, 64), (1, 64, 64)]):
        clip = random_clip(6, shape=shape) // 8 + 100
        name = tmp_path / f"{part}.ts"
        with av.open(str(name), "w") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.height, stream.width = shape[1:]
            stream.pix_fmt = "yuv420p"
            for image in clip:
                frame = av.VideoFrame.from_ndarray(image[0], "gray").reformat(format="yuv420p")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    path.write_bytes((tmp_path / "0.ts").read_bytes() + (tmp_path / "1.ts").read_bytes())
    with pytest.raises(VideoFileError, match="frames change from 48 x 64 pixels to 64 x 64"):
        list(read_frames(path))


LISTS = {
    "ffconcat": "ffconcat version 1.0\nfile 'other.ts'\n",
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 26\n",
    "xspf": "<playlist><trackList><track><location>other.ts</location></track></trackList>",
    "txt": "other.ts\n",
}


@pytest.mark.parametrize("name", ["list.{}", "list.mp4", "list.avi", "list.ts"])
@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_files_is_not_followed(tmp_path, monkeypatch, kind, name):
    monkeypatch.chdir(tmp_path)
    write_video("other.ts", walk(9), "mpeg2video", pix_fmt="yuv420p")
    assert len(list(read_frames("other.ts"))) == 9
    name = name.format(kind)
    (tmp_path / name).write_text(LISTS[kind])
    with pytest.raises(VideoFileError, match=r"none of the formats.*lists of files are refused"):
        next(read_frames(name))


def test_pictures_are_not_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("0.png", walk(1), "png")
    write_video("1.png", walk(1), "png")
    with pytest.raises(VideoFileError, match="none of the formats"):
        next(read_frames("0.png"))
    with pytest.raises(FileNotFoundError):
        next(read_frames("%d.png"))


@pytest.mark.skipif(os.name == "nt", reason="no such names")
@pytest.mark.parametrize(
    "name", ["a:b.mkv", "2026-11-25T10:00:00.mkv", "http:a.mkv", "concat:a|b.mkv", "pipe:0", "-"]
)
def test_a_name_with_a_colon_is_a_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_video("plain.mkv", walk(3))
    os.rename("plain.mkv", name)
    np.testing.assert_array_equal(list(read_frames(name)), walk(3))


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="Addresses are not opened"):
        next(read_frames("http://127.0.0.1/camera.mp4"))
    with pytest.raises(VideoFileError, match="is a folder"):
        next(read_frames(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_named_pipe_is_read(tmp_path):
    write_video(tmp_path / "clip.mkv", walk(5))
    os.mkfifo(tmp_path / "pipe")
    content = (tmp_path / "clip.mkv").read_bytes()
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[content])
    writer.start()
    np.testing.assert_array_equal(list(read_frames(tmp_path / "pipe")), walk(5))
    writer.join()


@pytest.mark.parametrize(("first", "n_shown"), [(7, 13), (0, 8), (12, 3)])
def test_a_trimmed_file_is_read_as_it_is_shown(tmp_path, first, n_shown):
    path = tmp_path / "clip.mp4"
    write_video(
        path, walk(20), "mpeg4", pix_fmt="yuv420p", gop_size=5, options={"movflags": "faststart"}
    )
    whole = list(read_frames(path))
    content = bytearray(path.read_bytes())
    entry = content.index(b"elst") + 12  # of its edit list: duration in ms, first time in ticks
    ticks = struct.unpack_from(">I", content, content.index(b"mdhd") + 16)[0]
    struct.pack_into(">Ii", content, entry, 100 * n_shown, first * ticks // 10)
    path.write_bytes(content)
    frames, texts = warned(lambda: list(read_frames(path)))
    assert not texts
    np.testing.assert_array_equal(frames, whole[first : first + n_shown])
    path.write_bytes(content[: -len(content) // 4])
    with pytest.raises(VideoFileError, match=r"can(not)? be read"):
        list(read_frames(path))


def test_an_avi_file_with_dropped_frames(tmp_path):
    times = [0, 1, 2, 3, 9, 10, 14, 15, 16]
    write_video(tmp_path / "clip.avi", walk(9), times=times)
    frames, (text,) = warned(lambda: list(read_frames(tmp_path / "clip.avi")))
    np.testing.assert_array_equal(frames, walk(9))
    assert "frames are missing. 8 frames were dropped" in text
    content = (tmp_path / "clip.avi").read_bytes()
    (tmp_path / "clip.avi").write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(VideoFileError, match="cannot be read beyond"):
        list(read_frames(tmp_path / "clip.avi"))


def test_frames_at_uneven_times_are_not_missing(tmp_path):
    times = np.cumsum([0, 1, 1, 7, 1, 2, 1, 30, 1])
    for name in ("clip.mkv", "clip.mp4"):
        write_video(tmp_path / name, walk(9), times=times.tolist())
        frames, texts = warned(lambda name=name: list(read_frames(tmp_path / name)))
        assert not texts
        np.testing.assert_array_equal(frames, walk(9))


def test_a_matroska_file_cut_short(tmp_path):
    write_video(tmp_path / "clip.mkv", walk(20))
    content = (tmp_path / "clip.mkv").read_bytes()
    (tmp_path / "clip.mkv").write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(VideoFileError, match="it ends too early"):
        list(read_frames(tmp_path / "clip.mkv"))


def transport_stream(path, n_b_frames=0):
    """Write a transport stream with a key frame every ten; returns its frames."""
    settings = {"gop_size": 10, "max_b_frames": n_b_frames, "bit_rate": 10**6}
    write_video(path, walk(40, (96, 128)), "mpeg2video", pix_fmt="yuv420p", **settings)
    frames, texts = warned(lambda: list(read_frames(path)))
    assert (len(frames), texts) == (40, [])
    return frames


@pytest.mark.parametrize("n_b_frames", [0, 2])
@pytest.mark.parametrize("first", [1, 7, 14])
def test_a_transport_stream_that_begins_between_key_frames(tmp_path, n_b_frames, first):
    whole = transport_stream(tmp_path / "whole.ts", n_b_frames)
    with (
        av.open(str(tmp_path / "whole.ts")) as source,
        av.open(str(tmp_path / "part.ts"), "w") as part,
    ):
        stream = part.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size][first:]
        for packet in packets:
            packet.stream = stream
        key = next(packet.pts for packet in packets if packet.is_keyframe)
        n_missing = sum(packet.pts < key for packet in packets)
        part.mux(packets)
    frames, (text,) = warned(lambda: list(read_frames(tmp_path / "part.ts")))
    assert len(frames) == len(packets) - n_missing
    assert f"frames are missing. {n_missing} frames were" in text
    np.testing.assert_array_equal(frames, whole[-len(frames) :])


@pytest.mark.parametrize("n_b_frames", [0, 2])
def test_a_transport_stream_that_lost_packets(tmp_path, n_b_frames):
    whole = transport_stream(tmp_path / "clip.ts", n_b_frames)
    content = (tmp_path / "clip.ts").read_bytes()
    packets = [content[start : start + 188] for start in range(0, len(content), 188)]
    # Three in a row where no frame begins, whose own packet would be lost then, too.
    begins = [bool(packet[1] & 0x40) for packet in packets]
    lost = next(n for n in range(len(packets) // 2, len(packets)) if not any(begins[n : n + 3]))
    (tmp_path / "clip.ts").write_bytes(b"".join(packets[:lost] + packets[lost + 3 :]))
    frames, (text,) = warned(lambda: list(read_frames(tmp_path / "clip.ts")))
    assert 20 <= len(frames) < 40
    assert f"frames are missing. {40 - len(frames)} frames were" in text
    assert {frame.tobytes() for frame in frames} < {frame.tobytes() for frame in whole}


def test_joined_transport_streams(tmp_path):
    whole = transport_stream(tmp_path / "clip.ts")
    content = (tmp_path / "clip.ts").read_bytes()
    (tmp_path / "clip.ts").write_bytes(2 * content)
    frames, (text,) = warned(lambda: list(read_frames(tmp_path / "clip.ts")))
    # FFmpeg cannot tell a joint from packets that are lost.
    np.testing.assert_array_equal(frames, whole[:38] + whole)
    assert "frames are missing. 2 frames were" in text


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1, axes=(1, 2))),
        ((-1, 0, 0, -1), lambda frame: frame[:, ::-1, ::-1]),
        ((0, -1, 1, 0), lambda frame: np.rot90(frame, 1, axes=(1, 2))),
        ((-1, 0, 0, 1), lambda frame: frame[:, :, ::-1]),
        ((1, 0, 0, -1), lambda frame: frame[:, ::-1]),
        ((0, 1, 1, 0), lambda frame: frame.swapaxes(1, 2)),
    ],
)
def test_frames_are_turned_as_a_player_shows_them(tmp_path, matrix, shown):
    path = tmp_path / "clip.mp4"
    write_video(path, walk(3), "mpeg4", pix_fmt="yuv420p")
    stored = {gray: list(read_frames(path, gray=gray)) for gray in (True, False)}
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    for number, value in zip((0, 1, 3, 4), matrix, strict=True):
        struct.pack_into(">i", content, place + 4 * number, value << 16)
    path.write_bytes(content)
    for gray, frames in stored.items():
        read = list(read_frames(path, gray=gray))
        np.testing.assert_array_equal(read, [shown(frame) for frame in frames])
        assert min(read[0].strides) >= 0  # PyTorch takes no others
    small = next(read_frames(path, size=(30, 20)))
    assert small.shape == (1, 30, 20)
    turned_back = shown(np.arange(6).reshape(1, 2, 3)).shape
    assert read[0].shape[1:] == ((48, 64) if turned_back == (1, 2, 3) else (64, 48))
