"""Images judged by their patches: what is found, where, and what fits and files leave alone."""

import copy
import functools
import io
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import ClassVar

import numpy as np
import pytest
import sklearn
import torch
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from sklearn_g2d import ConformalDetector, G2DOutlierDetector, PatchDetector
from sklearn_g2d.adapters import FromPyOD
from sklearn_g2d.errors import UnsupportedObjectError
from sklearn_g2d.features import OrientedGradients, PretrainedFeatures
from sklearn_g2d.g2d import NetworkClassifier
from sklearn_g2d.patches import PatchNeighbors, _detector
from sklearn_g2d.patches._levels import own_place_is_nearer
from sklearn_g2d.patches._neighbors import _choose, whitening_matrix
from sklearn_g2d.persistence import load
from sklearn_g2d.utils import progress
from sklearn_g2d.utils.inputs import validate

FEW = "ignore:false_alarm_rate=.* needs at least"


class Squares(BaseEstimator):
    """Mean and deviation of the squares that an image consists of, in every channel."""

    def __init__(self, side=4):
        self.side = side

    def fit(self, X, y=None):
        self.fitted_on_ = X.shape
        return self

    def feature_maps(self, X):
        n, channels, height, _ = X.shape
        squares = X.reshape(n, channels, height // self.side, self.side, -1, self.side)
        return np.concatenate([squares.mean((3, 5)), squares.std((3, 5))], axis=1)


class Plain:
    """Whoever has `fit` and `feature_maps` will do; one that counts how often it is asked."""

    n_fits = n_asked = 0

    def fit(self, X):
        self.n_fits += 1

    def feature_maps(self, X):
        self.n_asked += 1
        return Squares().feature_maps(X).tolist()


def made(estimator=None, **params):
    return PatchDetector(estimator, **{"features": Squares(), "random_state": 0} | params)


@pytest.fixture(scope="module")
def part():
    """Photographs of one part in one position, in colour."""
    rng = np.random.default_rng(0)
    one = np.kron(rng.uniform(size=(3, 8, 8)), np.ones((4, 4)))
    return one + 0.05 * rng.normal(size=(50, 3, 32, 32))


@pytest.fixture(scope="module")
def texture():
    """A texture, each time cut out elsewhere, in gray."""
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(200, 200)).cumsum(axis=0).cumsum(axis=1) % 7
    corners = rng.integers(0, 168, size=(50, 2))
    return np.stack([whole[None, y : y + 32, x : x + 32] for y, x in corners])


def flawed(images):
    new = images.copy()
    new[:, :, 8:16, 20:28] = images.max() + np.ptp(images) / 2
    return new


def is_found_in(detector, images):
    """Whether a flaw of `flawed` images is told, and located."""
    maps = detector.anomaly_map(flawed(images))
    places = [np.unravel_index(one.argmax(), one.shape) for one in maps]
    is_located = all(8 <= row < 16 and 20 <= column < 28 for row, column in places)
    return is_located and (detector.predict(flawed(images)) == -1).all()


@pytest.fixture(scope="module")
def fit(part):
    """Fit once on the first 40 images; what it gives is not to be changed."""

    @functools.cache
    def fit_once(per_location=True, **params):
        return made(per_location=per_location, **params).fit(part[:40])

    return fit_once


@pytest.fixture(params=[True, False], ids=["per location", "anywhere"])
def fitted(request, fit):
    return fit(request.param)


# What is found


def test_a_flaw_is_found_and_located(fitted, part):
    new = part[40:]
    assert is_found_in(fitted, new)
    assert (fitted.predict(new) == 1).mean() >= 0.7
    mask = fitted.predict_mask(flawed(new))
    assert mask.dtype == bool
    assert mask[:, 10:14, 22:26].all()
    assert mask[:, 24:, :12].mean() < 0.05
    np.testing.assert_array_equal(mask, fitted.anomaly_map(flawed(new)) >= fitted.mask_threshold_)


@pytest.mark.filterwarnings(FEW)
@pytest.mark.parametrize("n", [8, 40])
def test_images_say_whether_places_can_be_compared(part, texture, n):
    """However few there are."""
    assert made().fit(part[:n]).per_location_ is True
    detector = made().fit(texture[:n])
    assert detector.per_location_ is False
    if n == 40:
        assert is_found_in(detector, texture[40:])


def test_what_is_normal_elsewhere_is_found_at_its_own_place_only(fit, part):
    new = part[40:].copy()
    new[:, :, 0:4, 0:4] = part[40:, :, 12:16, 20:24]
    grid = np.s_[:, 1:3, 1:3]
    by_place, anywhere = (fit(by_place).anomaly_map(new)[grid].mean() for by_place in (True, False))
    assert by_place > 10 * max(anywhere, 1)


SHORT = NetworkClassifier(max_steps=5, n_members=2)
ESTIMATORS = {
    "forest": IsolationForest(n_estimators=10),
    "lof": LocalOutlierFactor(novelty=True),
    "g2d": G2DOutlierDetector(classifier=SHORT, contamination=0.1, support_fraction=1.0),
    "pipeline": make_pipeline(StandardScaler(), PatchNeighbors(n_references=100)),
}


@pytest.mark.filterwarnings(FEW)
@pytest.mark.parametrize(
    ("name", "per_location"),
    [*product(["forest", "lof", "pipeline", "pyod"], [True, False]), ("g2d", True)],
)
def test_any_detector_of_rows_judges_patches(part, name, per_location):
    if name == "pyod":
        estimator = FromPyOD(pytest.importorskip("pyod.models.knn").KNN())
    else:
        estimator = ESTIMATORS[name]
    detector = made(estimator, per_location=per_location, features=Squares(8))
    scores = detector.fit(part[:12]).score_samples(part[40:])
    assert detector.score_samples(flawed(part[40:])).max() < scores.min()
    assert type(detector.levels_[0].estimator_) is type(estimator)
    np.testing.assert_array_equal(
        detector.score_samples(part[:1]), detector.score_samples(part)[:1]
    )


def test_layers_are_averaged_in_units_of_held_out_images(part):
    """Whatever units a layer has."""

    class Layers(Squares):
        factor = 1.0

        def iter_levels(self, X):
            for batch in np.array_split(X, 3):
                yield [Squares(4).feature_maps(batch), self.factor * Squares(8).feature_maps(batch)]

    class Scaled(Layers):
        factor = 1024.0

    detector, scaled = (made(features=kind()).fit(part[:30]) for kind in (Layers, Scaled))
    assert [level.center_.shape for level in detector.levels_] == [(8, 8, 6), (4, 4, 6)]
    assert is_found_in(detector, part[40:])
    one, other = detector.score_samples(part), scaled.score_samples(part)
    np.testing.assert_allclose(one, other, rtol=1e-5)


# Scores, maps and thresholds


def grids_of(detector, images):
    return np.concatenate(list(detector._iter_grids(images.reshape(len(images), -1))))


def test_a_score_is_the_mean_of_the_most_anomalous_places(fitted, part):
    grids = grids_of(fitted, part).reshape(50, -1)
    np.testing.assert_allclose(fitted.score_samples(part), -grids.max(axis=1))
    for fraction, n in [(0.1, 6), (1.0, 64), (1e-9, 1)]:
        detector = made(per_location=fitted.per_location_, top_fraction=fraction).fit(part[:40])
        expected = -np.sort(grids, axis=1)[:, -n:].mean(axis=1)
        np.testing.assert_allclose(detector.score_samples(part), expected)


def test_maps_are_interpolated_between_the_middles_of_places(fitted, part):
    maps = fitted.anomaly_map(part)
    assert (maps.shape, maps.dtype) == ((50, 32, 32), np.float64)
    grids = grids_of(fitted, part)
    at = (np.arange(32) + 0.5) / 4 - 0.5
    for one, grid in zip(maps[:3], grids, strict=False):
        rows = np.stack([np.interp(at, np.arange(8), column) for column in grid.T], axis=1)
        expected = np.stack([np.interp(at, np.arange(8), row) for row in rows])
        np.testing.assert_allclose(one, expected, atol=1e-9 * np.abs(grids).max())


def test_held_out_images_set_all_thresholds(part):
    detector = made(contamination=0.25, per_location=True).fit(part[:40])
    assert (detector.calibration_scores_ < detector.offset_).sum() == 10
    assert (detector.calibration_scores_ > detector.score_samples(part[:40]).min()).sum() < 20
    assert (
        made().fit(part).score_samples(part[40:]).mean() > detector.score_samples(part[40:]).mean()
    )
    low, high = detector.map_range_
    assert low < 0 < high
    assert detector.mask_threshold_ > 0


@pytest.mark.filterwarnings("error")
def test_false_alarms_of_new_images():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(700, 1, 16, 16))
    detector = made().fit(images[:100])
    assert 0.02 < (detector.predict(images[100:]) == -1).mean() < 0.09
    detector.calibrate(images[100:400], false_alarm_rate=0.2)
    assert 0.12 < (detector.predict(images[400:]) == -1).mean() < 0.28
    p_values = detector.p_values(images[400:])
    assert 0.12 < (p_values <= 0.2).mean() < 0.28


def test_conformal_detectors_of_patches(part, fit):
    frozen = ConformalDetector(FrozenEstimator(fit())).fit(part[:40])
    detector = copy.deepcopy(fit()).calibrate(part[:40], 0.05)
    assert frozen.offset_ == detector.offset_
    np.testing.assert_array_equal(frozen.p_values(part), detector.p_values(part))
    folds = ConformalDetector(made(), cv=2)
    groups = np.arange(40)
    folds.fit(part[:40], groups=groups)
    assert (folds.predict(flawed(part[40:])) == -1).all()
    assert len(folds.calibration_scores_) == 40


# Groups


class Remember(IsolationForest):
    """Keeps, for all fits, which images it was shown: they are flat, with values of their own."""

    seen: ClassVar = []

    def fit(self, X, y=None):
        self.seen.append(set(np.unique(X[:, 0]).astype(int)))
        return super().fit(X)


@pytest.mark.filterwarnings(FEW)
def test_groups_are_held_out_together():
    images = np.broadcast_to(np.arange(24.0)[:, None, None, None], (24, 1, 16, 16))
    groups = np.array([f"part {i}" for i in np.random.default_rng(0).permutation(24) // 3])
    Remember.seen.clear()
    detector = made(Remember(n_estimators=2), per_location=False).fit(images, groups=groups)
    *folds, whole = Remember.seen
    assert whole == set(range(24))
    assert len(folds) == 5
    for seen in folds:
        inside = set(groups[sorted(seen)])
        assert inside.isdisjoint(groups[sorted(whole - seen)])
    np.testing.assert_allclose(detector.calibration_weights_, 1 / 3)
    assert round(detector.calibration_weights_.sum()) == 8


@pytest.mark.filterwarnings("error")
def test_copies_in_other_groups_are_warned_of(part):
    images = part.copy()
    images[[3, 4, 47]] = images[0]
    groups = np.arange(50)
    for given, n_copies in ((None, 3), (groups, 3), (np.where(groups < 5, 0, groups), 1)):
        message = rf"{n_copies} of the 50 images equal another one.* fit\(X, groups=\.\.\.\)"
        with pytest.warns(UserWarning, match=message):
            made().fit(images, groups=given)
    groups[[3, 4, 47]] = 0
    made().fit(images, groups=groups)  # all copies are in one group


def test_the_rate_is_promised_for_groups(part):
    with pytest.warns(UserWarning, match=r"needs at least 19 held-out normal groups; got 10"):
        made().fit(part[:40], groups=np.arange(40) // 4)
    with pytest.warns(UserWarning, match="got 2"):
        made().fit(part[:40], groups=np.arange(40) // 20)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (np.zeros(40), "groups must name at least two groups"),
        (np.zeros(39), "groups has 39 entries for 40 rows"),
        (
            ["a", None] * 20,
            r"for 20 of 40 rows, at the positions 1, 3, .* 19, \.\.\.,",
        ),
    ],
)
def test_bad_groups(part, groups, message):
    with pytest.raises(ValueError, match=message):
        made().fit(part[:40], groups=groups)


def test_groups_through_pipelines(part):
    groups = np.arange(40) // 2
    expected = made().fit(part[:40], groups=groups)
    plain = make_pipeline(FunctionTransformer(), made())
    plain.fit(part[:40], patchdetector__groups=groups)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = make_pipeline(FunctionTransformer(), made()).fit(part[:40], groups=groups)
        refused = make_pipeline(FunctionTransformer(), made().set_fit_request(groups=False))
        with pytest.raises(TypeError, match="groups"):
            refused.fit(part[:40], groups=groups)
    assert plain[-1].offset_ == routed[-1].offset_ == expected.offset_
    assert expected.offset_ != made().fit(part[:40]).offset_


# Conventions of scikit-learn


def test_parameters_of_parts_that_are_none():
    detector = PatchDetector()
    assert vars(detector) == detector.get_params(deep=False)
    assert repr(detector) == "PatchDetector()"
    detector.set_params(estimator__n_references=7, features__layers=[2], top_fraction=0.5)
    assert detector.get_params()["estimator__n_references"] == 7
    assert detector.estimator.whitening == PatchNeighbors().whitening
    assert detector.features.layers == [2]
    again = clone(detector)
    assert repr(again) == repr(detector)
    assert again.features is not detector.features
    with pytest.raises(ValueError, match="Invalid parameter 'spread'"):
        detector.set_params(estimator__spread=1)


def test_what_is_set_after_fit_waits_for_the_next_fit(part):
    detector = made(per_location=False).fit(part[:40])
    scores, maps = detector.score_samples(part), detector.anomaly_map(part)
    detector.set_params(
        estimator__n_references=3, features__side=8, per_location=True, top_fraction=1.0
    )
    detector.set_params(contamination=0.3, image_shape=(1, 1, 1), random_state=3)
    np.testing.assert_array_equal(detector.score_samples(part), scores)
    np.testing.assert_array_equal(detector.anomaly_map(part), maps)


def test_parts_of_the_users_stay_as_they_are(part):
    features, estimator = Squares(), PatchNeighbors(n_references=50)
    detector = made(estimator, features=features).fit(part[:40])
    assert vars(features) == {"side": 4}
    assert not hasattr(estimator, "references_")
    assert estimator.random_state is None
    assert detector.features_.fitted_on_ == (40, 3, 32, 32)


@pytest.mark.filterwarnings(FEW)
def test_frozen_parts_are_not_fitted(part, tmp_path):
    features = Squares().fit(part[40:])
    rows = features.feature_maps(part[40:]).transpose(0, 2, 3, 1).reshape(-1, 6)
    neighbors = PatchNeighbors(random_state=0).fit(rows[64:])
    detector = made(FrozenEstimator(neighbors), features=FrozenEstimator(features)).fit(part[:40])
    assert detector.levels_[0].estimator_.estimator is neighbors
    assert features.fitted_on_ == (10, 3, 32, 32)
    assert not detector.per_location_
    anomalies = -neighbors.score_samples(rows[:64])
    (mean, deviation), *_ = detector._units
    expected = (mean - anomalies.max()) / deviation
    assert detector.score_samples(part[40:41])[0] == pytest.approx(expected, rel=1e-5)
    detector.save(tmp_path / "d.skops")
    loaded = PatchDetector.load(tmp_path / "d.skops", trusted=[Squares])
    np.testing.assert_array_equal(loaded.score_samples(part), detector.score_samples(part))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"per_location": True}, r"does not know places. Fit with per_location=False, or"),
        ({"features": FrozenEstimator(Squares())}, "not fitted yet"),
        ({}, r"rows of 6 columns, but the layers' maps have 2 channels"),
    ],
)
@pytest.mark.filterwarnings(FEW)
def test_what_frozen_parts_cannot_judge(part, params, message):
    rows = Squares().feature_maps(part[40:]).transpose(0, 2, 3, 1).reshape(-1, 6)
    frozen = FrozenEstimator(PatchNeighbors(random_state=0).fit(rows))
    with pytest.raises(ValueError, match=message):
        made(frozen, **params).fit(part[:20, :1])


def test_features_are_any_object_and_fitted_once(part):
    features = Plain()
    detector = made(features=features).fit(part[:40])
    assert (features.n_fits, features.n_asked) == (0, 0)
    assert (detector.features_.n_fits, detector.features_.n_asked) == (1, 1 + 5)
    np.testing.assert_array_equal(
        detector.score_samples(part), made().fit(part[:40]).score_samples(part)
    )


def test_copies_score_alike(fitted, part):
    maps = fitted.anomaly_map(part)
    for again in (
        pickle.loads(pickle.dumps(fitted)),
        copy.deepcopy(fitted),
        made(per_location=fitted.per_location_).fit(part[:40]),
    ):
        np.testing.assert_array_equal(again.anomaly_map(part), maps)
    other = made(per_location=False, random_state=1).set_params(estimator__n_references=100)
    assert (other.fit(part[:40]).anomaly_map(part) != maps).any()


@pytest.mark.filterwarnings(FEW)
def test_fits_tell_how_far_they_are(part, caplog, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_REPORTS", -1.0)
    with caplog.at_level("INFO", logger="sklearn_g2d"):
        made().fit(part[:8])
    assert caplog.messages == [f"PatchDetector: {n} of 6 fits of layers" for n in range(1, 7)]


def test_no_search_is_pickled(fit, part):
    detector = copy.deepcopy(fit(False))
    before = pickle.dumps(detector)
    detector.score_samples(part)
    assert "_search" in vars(detector.levels_[0].estimator_)
    assert pickle.dumps(detector) == before
    rows = np.random.default_rng(0).normal(size=(30, 2))
    neighbors = PatchNeighbors(random_state=0).fit(rows)
    neighbors.score_samples(rows)
    others = np.random.default_rng(1).normal(size=(30, 2))
    scores = neighbors.fit(others).score_samples(others)
    np.testing.assert_allclose(scores, 0, atol=1e-9)  # by no search of the former rows


def test_fit_predict_is_fit_and_predict(part):
    found = made(contamination=0.1).fit_predict(part)
    np.testing.assert_array_equal(found, made(contamination=0.1).fit(part).predict(part))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"per_location": "no"}, "'per_location' parameter"), ({"features": Squares(5)}, "reshape")],
)
def test_a_failed_fit_changes_nothing(part, change, message):
    fresh = made(**change)
    before = vars(fresh).copy()
    with pytest.raises(ValueError, match=message):
        fresh.fit(part[:40])
    assert vars(fresh) == before
    with pytest.raises(NotFittedError):
        fresh.predict(part)
    detector = made().fit(part[:40])
    scores = detector.score_samples(part)
    detector.set_params(**change)
    with pytest.raises(ValueError, match=message):
        detector.fit(part[:40, :1])
    np.testing.assert_array_equal(detector.score_samples(part), scores)


def test_the_global_generator_is_left_alone(part):
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    made().fit(part[:40]).predict(part)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_searches_over_parts(part):
    grid = {"estimator__n_references": [10, 100], "features__side": [4, 8]}
    search = GridSearchCV(
        made(per_location=False), grid, cv=2, scoring=lambda d, X, y=None: d.score_samples(X).mean()
    )
    results = search.fit(part[:40]).cv_results_["mean_test_score"]
    assert len(set(results)) == 4
    assert search.best_estimator_.levels_[0].center_.shape == (6,)


class OfRows(PatchDetector):
    """Takes each number of a row for a pixel: scikit-learn's checks give tables of any width."""

    def _validate(self, X, *, reset):
        n = 2 if reset else 1
        rows = validate(self, X, reset=reset, dtype=np.float64, ensure_min_samples=n)
        if reset:
            self.image_shape_ = (1, 1, rows.shape[1])
        return rows

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


class Pixels(BaseEstimator):
    def fit(self, X, y=None):
        return self

    def feature_maps(self, X):
        return X


# What it says of images like those of `fit` holds for held-out ones, not for the same images.
OF_THE_SAME_ROWS = ("check_outliers_train", "check_outliers_fit_predict")


@pytest.mark.filterwarnings("ignore:y holds the labels", FEW)
@parametrize_with_checks(
    [OfRows(features=Pixels()), OfRows(features=Pixels(), per_location=False), PatchNeighbors()],
    expected_failed_checks=lambda estimator: dict.fromkeys(
        OF_THE_SAME_ROWS if isinstance(estimator, OfRows) else (), "held-out images set thresholds"
    ),
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


# Equal images


class Many(Squares):
    """Features enough for the last digits of products to depend on how many rows there are."""

    def feature_maps(self, X):
        mixing = np.random.default_rng(0).normal(size=(6, 70))
        return np.einsum("nchw,cd->ndhw", super().feature_maps(X), mixing)


def test_equal_images_score_equal(fitted, part):
    """In every bit, in whatever company; the grid has an odd number of places."""
    detector = made(features=Many(), per_location=fitted.per_location_).fit(part[:40, :, 4:, :20])
    X = part[:, :, 4:, :20]
    maps, scores = detector.anomaly_map(X), detector.score_samples(X)
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(detector.anomaly_map(X[order]), maps[order])
    alone = np.concatenate([detector.score_samples(one[None]) for one in X])
    np.testing.assert_array_equal(alone, scores)
    repeated = detector.score_samples(np.repeat(X[:2], 9, axis=0))
    np.testing.assert_array_equal(repeated, np.repeat(scores[:2], 9))


def test_threads_score_as_one_does(fitted, part):
    expected = fitted.anomaly_map(part)
    fresh = pickle.loads(pickle.dumps(fitted))  # whose search is not there yet
    parts = [slice(start, start + 9) for start in range(0, 40, 3)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda some: fresh.anomaly_map(part[some]), parts))
    for some, maps in zip(parts, found, strict=True):
        np.testing.assert_array_equal(maps, expected[some])


# What is given


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int64", "float16", "float32"])
@pytest.mark.parametrize("mapped", [False, True])
def test_numbers_of_all_types(tmp_path, dtype, mapped):
    images = np.random.default_rng(0).integers(0, 200, size=(30, 1, 16, 16))
    detector = made().fit(images.astype(float))
    expected = detector.anomaly_map(images.astype(float))
    X = images.astype(dtype)
    if mapped:
        np.save(tmp_path / "images.npy", X)
        X = np.load(tmp_path / "images.npy", mmap_mode="r")
    tolerance = 1e-3 if dtype in ("float16", "float32") else 1e-9
    for fitted in (detector, made().fit(X)):
        np.testing.assert_allclose(fitted.anomaly_map(X), expected, rtol=tolerance)


class Edges(Squares):
    """Differences, which are wrong where numbers without a sign wrap around."""

    def feature_maps(self, X):
        return np.diff(X, axis=3)


def test_features_are_given_numbers_that_can_be_negative():
    images = np.random.default_rng(0).integers(0, 60_000, size=(30, 1, 8, 9), dtype=np.uint16)
    expected = made(features=Edges()).fit(images.astype(float)).score_samples(images.astype(float))
    scores = made(features=Edges()).fit(images).score_samples(images)
    np.testing.assert_array_equal(scores, expected)


def test_rows_of_pixels(part):
    rows = part.reshape(50, -1)
    detector = made(image_shape=(3, 32, 32), per_location=True)
    maps = detector.fit(rows[:40]).anomaly_map(rows)
    expected = made(per_location=True).fit(part[:40])
    np.testing.assert_array_equal(maps, expected.anomaly_map(part))
    np.testing.assert_array_equal(detector.predict(part), expected.predict(rows))
    assert detector.n_features_in_ == 3072
    assert detector.image_shape_ == (3, 32, 32)
    with pytest.raises(ValueError, match=r"PatchDetector takes images.* image_shape="):
        made().fit(rows)


@pytest.mark.filterwarnings(FEW)
def test_what_does_not_fit_in_memory_is_left_out(part, monkeypatch):
    """Of an image there are 8 x 8 places of 6 values."""
    monkeypatch.setattr(_detector, "MAX_TRAINING_VALUES", 25 * 8 * 8 * 6 + 1)
    groups = np.arange(50) // 2
    detector = made(per_location=True).fit(part, groups=groups)
    assert detector.levels_[0].references_.shape == (64, 25, 6)
    assert len(detector.calibration_scores_) == len(detector.calibration_weights_) == 25
    assert detector.features_.fitted_on_ == (50, 3, 32, 32)
    np.testing.assert_array_equal(
        detector.anomaly_map(part),
        made(per_location=True).fit(part, groups=groups).anomaly_map(part),
    )
    monkeypatch.setattr(_detector, "MAX_TRAINING_VALUES", 1)
    with pytest.warns(UserWarning, match="got 2"):
        assert len(made().fit(part).calibration_scores_) == 2


def test_a_mapped_file_is_not_copied(tmp_path):
    """Of 20 MB, or 80 in float64; the maps are small."""
    path = tmp_path / "images.npy"
    X = np.lib.format.open_memmap(path, "w+", np.uint16, (40, 1, 500, 500))
    X[:] = np.random.default_rng(0).integers(0, 50, size=500, dtype=np.uint16)
    X = np.load(path, mmap_mode="r")
    tracemalloc.start()
    try:
        made(features=Squares(50)).fit(X)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 500 * 500 * 8 * 4  # eight images at once, in float64, and some copies


def test_scores_of_many_images_take_no_more_memory():
    """Their grids of 32 x 32 places would take 8 kB an image, twice as much as the images."""
    X = np.random.default_rng(0).integers(0, 50, (1000, 1, 64, 64), dtype=np.uint8)
    estimator = IsolationForest(n_estimators=1, max_samples=8)  # which is fast
    detector = made(estimator, features=Squares(2), per_location=False).fit(X[:20])
    tracemalloc.start()
    try:
        detector.score_samples(X)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < X.nbytes / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: X[:, :2], r"image shape \(2, 32, 32\), but PatchDetector was fitted on"),
        (lambda X: X[..., :16], r"image shape \(3, 32, 16\), but PatchDetector was fitted on"),
        (lambda X: np.moveaxis(X, 1, -1), r"channels last.* pass np.moveaxis\(X, -1, 1\)"),
        (lambda X: X[:, 0], r"of dim 3.* pass X\[:, np.newaxis\]"),
        (lambda X: X[0], r"One image must be given as an array of one: X\[np.newaxis\]\.$"),
        (lambda X: np.moveaxis(X[0], 0, -1), r"one: np.moveaxis\(X, -1, 0\)\[np.newaxis\]\.$"),
        (lambda X: X[0, 0], r"array of one: X\[np.newaxis, np.newaxis\]"),
        (lambda X: X[:0], "0 sample"),
        (lambda X: np.where(X.max() == X, np.nan, X), r"contains NaN.* in 1 of 50 images"),
        (lambda X: np.where(X.max() == X, np.inf, X), r"contains infinity in 1 of 50 images"),
    ],
)
def test_bad_images(fit, part, change, message):
    bad = change(part)
    for method in (fit().predict, fit().anomaly_map, fit().predict_mask, fit().p_values):
        with pytest.raises(ValueError, match=message):
            method(bad)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"estimator": StandardScaler()}, "'estimator' parameter of PatchDetector must be"),
        ({"estimator": IsolationForest}, r"is the class IsolationForest: pass estimator=Isol"),
        ({"features": StandardScaler()}, "'features' parameter of PatchDetector must be"),
        ({"per_location": 2}, "'per_location' parameter"),
        ({"top_fraction": 0.0}, "'top_fraction' parameter"),
        ({"top_fraction": 1.1}, "'top_fraction' parameter"),
        ({"contamination": 0.6}, "'contamination' parameter"),
        ({"image_shape": (1, 2)}, "image_shape must be three positive integers"),
        ({"estimator": PatchNeighbors(whitening=-1.0)}, "'whitening' parameter of PatchNeigh"),
        ({"estimator": PatchNeighbors(n_references=0)}, "'n_references' parameter of PatchN"),
    ],
)
def test_bad_parameters(part, params, message):
    for per_location in (True, False):
        with pytest.raises(ValueError, match=message):
            made(**{"per_location": per_location} | params).fit(part)


def test_labels_are_warned_of(part):
    with pytest.warns(UserWarning, match="y holds the labels"):
        made().fit(part, np.repeat([1, -1], 25))


def test_a_second_folder_is_not_ignored(part):
    with pytest.raises(ValueError, match=r"does not use y.*fit\(np.concatenate\(\[a, b\]\)\)"):
        made().fit(part, part[:3])


class Spoilt(Squares):
    """Maps that someone got wrong, of all images or of bright ones."""

    def __init__(self, spoil=None, only_bright=False):
        self.spoil = spoil
        self.only_bright = only_bright
        self.side = 4

    def feature_maps(self, X):
        maps = super().feature_maps(X)
        return maps if self.only_bright and X.max() < 10 else self.spoil(maps)


def with_nan(maps):
    maps[0, 0, 0, 0] = np.nan
    return maps


@pytest.mark.parametrize("per_location", ["auto", True, False])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (with_nan, "Maps of Spoilt are NaN or infinite"),
        (lambda maps: maps * np.float64(1e300), "Maps of Spoilt are NaN or infinite"),
        (lambda maps: maps.mean((2, 3)), r"gave an array of shape \(\d, 6\) for \d images"),
        (lambda maps: maps[:, 0], r"It must give maps of shape \(n, channels, height, width\)"),
        (lambda maps: np.repeat(maps, 2, axis=0), r"shape \(\d+, 6, 8, 8\) for \d images"),
        (lambda maps: maps[:, :, :0], r"shape \(\d, 6, 0, 8\) for \d images"),
        (lambda maps: None, r"shape \(\) for \d images"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_maps_that_are_none(part, spoil, message, per_location):
    with pytest.raises(ValueError, match=message):
        made(features=Spoilt(spoil), per_location=per_location).fit(part[:40])
    detector = made(features=Spoilt(spoil, only_bright=True), per_location=per_location)
    detector.fit(part[:40])
    for method in (detector.score_samples, detector.anomaly_map, detector.predict_mask):
        with pytest.raises(ValueError, match=message):
            method(part + 20)


@pytest.mark.parametrize("index", [np.s_[:, :, :1, :1], np.s_[:, :1], np.s_[:, :, :7]])
def test_maps_of_other_sizes_than_in_fit(part, index):
    features = Spoilt(lambda maps: maps[index], only_bright=True)
    for per_location in (True, False):
        detector = made(features=features, per_location=per_location).fit(part[:40])
        with pytest.raises(ValueError, match=r"maps of shapes .* but \[\(8, 8, 6\)\] in fit"):
            detector.anomaly_map(part + 20)


class Unsure(BaseEstimator):
    def __init__(self, always=False):
        self.always = always

    def fit(self, X, y=None):
        return self

    def score_samples(self, X):
        return np.where(self.always | (X[:, 0] > 10), np.nan, -X[:, 0])


def test_scores_of_places_that_are_nan(part):
    with pytest.raises(ValueError, match="Unsure gives places scores that are NaN"):
        made(Unsure(always=True)).fit(part)
    detector = made(Unsure()).fit(part)
    for method in (detector.score_samples, detector.anomaly_map, detector.predict_mask):
        with pytest.raises(ValueError, match="Unsure gives places scores that are NaN"):
            method(part + 20)


@pytest.mark.filterwarnings("error", FEW, "ignore:19 of the 20 images equal another one")
@pytest.mark.parametrize("per_location", ["auto", True, False])
def test_nothing_but_a_constant(per_location):
    detector = made(per_location=per_location).fit(np.full((20, 1, 16, 16), 7.0))
    images = np.full((2, 1, 16, 16), 7.0)
    images[1, 0, :4, :4] = 9
    np.testing.assert_array_equal(detector.predict(images), [1, -1])
    assert detector.score_samples(images)[0] == 0


def test_one_constant_image_among_others(texture):
    X = texture.copy()
    X[3] = 2.0
    detector = made().fit(X)
    assert np.isfinite(detector.score_samples(X)).all()
    assert np.isfinite(detector.calibration_scores_).all()


def test_two_images(part):
    with pytest.warns(UserWarning, match=r"needs at least 19 held-out normal rows; got 2"):
        detector = made().fit(part[:2])
    assert (detector.predict(flawed(part[40:])) == -1).all()
    with pytest.raises(ValueError, match="minimum of 2 is required"):
        made().fit(part[:1])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "Squares are not features of this package"),
        ({"estimator": IsolationForest(n_estimators=2)}, "with estimator IsolationForest cannot"),
    ],
)
def test_what_has_no_graph(fit, tmp_path, params, message):
    with pytest.raises(UnsupportedObjectError, match=message):
        fit(**params).to_onnx(tmp_path / "graph.onnx")
    assert not list(tmp_path.iterdir())


# Files


@pytest.mark.parametrize("per_location", [True, False])
def test_a_file_keeps_every_bit(fit, part, per_location):
    detector = fit(per_location)
    detector.score_samples(part)  # makes the search
    detector.save(file := io.BytesIO())
    found = load(io.BytesIO(file.getvalue()), trusted=[Squares])
    np.testing.assert_array_equal(found.anomaly_map(part), detector.anomaly_map(part))
    np.testing.assert_array_equal(found.p_values(part), detector.p_values(part))
    assert b"_search" not in pickle.dumps(found)
    assert found._shapes == [(8, 8, 6)]


def spoilt(value):
    """What a hostile file may hold in the place of something."""
    if isinstance(value, np.ndarray):
        yield from (value[:0], value[..., :-1], value[None], value.ravel(), value.T)
        yield from (np.full_like(value, np.nan), value.astype("S3"), np.full_like(value, 1e30))
        yield from (np.broadcast_to(value, (2, *value.shape)), value[..., ::-1])
    elif isinstance(value, int | float):
        yield from (-1, 10**9, np.nan, "text", None, [])
    else:
        yield from ([], None, "text", [(10**9, 10**9, 6)], [(1, 1)], [(np.nan, np.nan)])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("per_location", [True, False])
def test_odd_numbers_from_files_are_errors_at_most(part, per_location):
    """They neither crash the interpreter nor take its memory."""
    n_errors = 0
    original = pickle.dumps(made(features=Squares(16), per_location=per_location).fit(part[:20]))
    names = ["_shapes", "_units", "top_fraction_", "mask_threshold_", "calibration_scores_"]
    for of, name in [
        *(("detector", name) for name in names),
        *(("level", name) for name in ("center_", "matrix_", "references_")),
        *(("rows", name) for name in ("mean_", "whitening_matrix_", "references_")),
        ("rows", "n_features_in_"),
    ]:
        whole = pickle.loads(original)
        level = whole.levels_[0]
        owner = {"detector": whole, "level": level, "rows": level.estimator_}[of]
        for value in spoilt(getattr(owner, name)) if hasattr(owner, name) else ():
            vars(owner).pop("_search", None)
            vars(owner)[name] = value
            for method in (whole.predict_mask, whole.p_values):
                try:
                    method(part[:3])
                except Exception:
                    n_errors += 1
    assert n_errors > 20


def test_shapes_from_files_take_no_memory(fit, part):
    detector = copy.deepcopy(fit())
    detector._shapes = [(10**8, 10**8, 6)]
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="in fit"):
            detector.anomaly_map(part[:1])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**24


# Rows and their neighbours


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return rng.normal(size=(600, 7)) @ rng.normal(size=(7, 7)) * 3 + 50


@pytest.mark.parametrize("ridge", [1e-9, 0.1, 2.0])
def test_whitened_rows_have_unit_covariance(rows, ridge):
    centred = rows - rows.mean(axis=0)
    whitened = centred @ whitening_matrix(centred, ridge)
    covariance = np.cov(centred.T, bias=True)
    added = ridge * np.trace(covariance) / 7
    variances, _ = np.linalg.eigh(covariance)
    found = np.cov(whitened.T, bias=True)
    np.testing.assert_allclose(found, np.diag(variances / (variances + added)), atol=1e-6)
    np.testing.assert_allclose(
        whitening_matrix(1000 * centred, ridge) * 1000, whitening_matrix(centred, ridge)
    )


@pytest.mark.parametrize("n_columns", [3, 7])
def test_scores_are_distances_to_the_nearest_reference(rows, n_columns):
    rows = rows[:, :n_columns]
    new = rows[:100] + 1
    neighbors = PatchNeighbors(n_references=200, random_state=0).fit(rows)
    assert neighbors.references_.shape == (200, n_columns)
    whitened = (new - rows.mean(axis=0)) @ neighbors.whitening_matrix_
    expected = -cdist(whitened, neighbors.references_).min(axis=1)
    np.testing.assert_allclose(neighbors.score_samples(new), expected, rtol=1e-9)
    all_of_them = PatchNeighbors(random_state=0).fit(rows)
    expected = -cdist(whitened, (rows - rows.mean(axis=0)) @ neighbors.whitening_matrix_).min(
        axis=1
    )
    np.testing.assert_allclose(all_of_them.score_samples(new), expected, rtol=1e-9)


def test_places_are_judged_by_the_nearest_at_the_same_place(fit, part):
    level = fit(True).levels_[0]
    maps, known = (Squares().feature_maps(X).transpose(0, 2, 3, 1) for X in (part[40:], part[:40]))
    center = known.mean(axis=0)
    centred = (known - center).reshape(-1, 6)
    matrix = whitening_matrix(centred, PatchNeighbors().whitening)
    found = level.anomalies(maps.astype(np.float32))
    for row, column in np.ndindex(8, 8):
        one, others = ((m[:, row, column] - center[row, column]) @ matrix for m in (maps, known))
        expected = cdist(one, others).min(axis=1)
        np.testing.assert_allclose(found[:, row, column], expected, rtol=1e-3, atol=1e-4)


def test_references_cover_rare_rows_and_know_common_ones_best():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(5000, 6))
    rows[3000:3003] += 40  # rare, which 40 random rows would miss
    chosen = _choose(rows, 40)
    assert len(chosen) == 40
    assert (cdist(chosen, rows).min(axis=1) == 0).all()
    assert (chosen.mean(axis=1) > 20).any()
    drawn = rows[:40]
    assert cdist(rows, chosen).min(axis=1).max() < 0.5 * cdist(rows, drawn).min(axis=1).max()
    assert any((row == chosen).all(axis=1).any() for row in rows[:10])  # those that are random
    n_near = [(np.linalg.norm(some, axis=1) < 2.5).sum() for some in (chosen, rows[:10])]
    assert n_near[0] >= n_near[1] >= 4


def test_few_or_equal_rows_are_references_once():
    rows = np.repeat(np.arange(4.0), 25)[:, None]
    assert len(_choose(rows, 100)) == 100
    assert set(_choose(rows, 8)[:, 0]) == set(range(4))
    assert len(_choose(rows, 1)) == 1
    neighbors = PatchNeighbors(n_references=5, random_state=0).fit(np.ones((30, 2)))
    np.testing.assert_array_equal(neighbors.score_samples([[1, 1], [1, 2]]), [0, -1])


def test_places_are_compared_layer_by_layer(part, texture):
    known, held_out = np.arange(30), np.arange(30, 50)
    aligned, shifted = (
        Squares().feature_maps(X).transpose(0, 2, 3, 1).astype(np.float32) for X in (part, texture)
    )
    random_state = np.random.RandomState(0)
    assert own_place_is_nearer([aligned], known, held_out, random_state) is True
    assert own_place_is_nearer([shifted], known, held_out, random_state) is False
    constant = np.zeros_like(aligned)
    assert own_place_is_nearer([constant], known, held_out, random_state) is False


# Features of ours


def test_places_described_by_gradients(part):
    gradients = OrientedGradients(n_cells=(8,))
    detector = made(features=gradients).fit(part[:40])
    assert detector._shapes == [(7, 7, 48)]
    new = flawed(part[40:])
    assert (detector.predict(new) == -1).all()
    for one in detector.anomaly_map(new):  # cells reach over the flaw's edge, which is what is seen
        row, column = np.unravel_index(one.argmax(), one.shape)
        assert 4 <= row < 20
        assert 16 <= column < 32


def test_layers_of_a_network(part):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 16, 3, stride=2))
    features = PretrainedFeatures(network, layers=["0", "1"], image_size=64)
    detector = made(features=features).fit(part[:40])
    assert [shape[2] for shape in detector._shapes] == [8, 16]
    assert is_found_in(detector, part[40:])
    assert PatchDetector()._default_parts["features"]().layers == _detector._LAYERS
