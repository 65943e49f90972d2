"""AVIDDetector as a user meets it: detection, maps, thresholds, parameters, composition."""

import copy
import logging
import pickle
from contextlib import nullcontext
from functools import partial

import avid_detectors
import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_g2d import AVIDDetector
from sklearn_g2d.avid import CellInpainting, _models
from sklearn_g2d.avid import _detector as _avid
from sklearn_g2d.metrics import outlier_roc_auc_score

SOURCES = "combined", "inpainter", "detector"


make_detector = partial(avid_detectors.make_detector, channels=4, table_steps=5)


@pytest.fixture(scope="module", autouse=True)
def _short_batches():
    """Small images are scored a hundred at once, and a batch of one is filled up to that."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_models, "_SCORING_PIXELS", 8 * 32 * 32)
        yield


class Case:
    """Data, and a detector `fitted` on them that is not to be changed."""

    def __init__(self, kind, train, test):
        self.kind, self.train, self.test = kind, train, test
        self.is_published = kind.startswith("paper")
        self.is_table = kind.endswith("table")
        self.fitted = self.fit()

    def fit(self, **changed):
        return self.detector(**changed).fit(self.train)

    def detector(self, **changed):
        return make_detector(self.kind, **changed)


def correlated(n, seed, n_features=6):
    """Rows whose second half of columns follows from the first."""
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(n, n_features // 2))
    return np.concatenate([half, 3 * half + 0.3 * rng.normal(size=half.shape) + 7], axis=1)


KINDS = "images", "paper images", "table", "paper table"


@pytest.fixture(scope="module")
def make_case(make_stripes):
    cases = {}

    def make(kind):
        if kind not in cases:
            if kind.endswith("images"):
                data = (make_stripes(n, size=24, seed=n)[0] for n in (24, 7))
            else:
                data = correlated(100, 0), correlated(9, 1)
            cases[kind] = Case(kind, *data)
        return cases[kind]

    return make


@pytest.fixture(params=KINDS)
def case(request, make_case):
    return make_case(request.param)


@pytest.fixture
def images(make_case):
    return make_case("images")


@pytest.fixture
def table(make_case):
    return make_case("table")


@pytest.fixture(scope="module")
def long_trained(make_stripes):
    """A detector of stripes by its seed, trained for as long as it needs; not to be changed."""
    detectors = {}

    def fit(seed):
        if seed not in detectors:
            X, _ = make_stripes(100, seed=seed)
            changed = {"training__max_steps": 120, "training__batch_size": 16}
            detector = make_detector("images", **changed, precision="float32", random_state=seed)
            detectors[seed] = detector.fit(X), X
        return detectors[seed]

    return fit


def three_maps(detector, X):
    return [detector.anomaly_map(X, source) for source in SOURCES]


def scores_of(detector, X, source):
    """Scores by one map, as if it had been the combination of `fit`."""
    regions = detector.region_scores(X, source)
    regions = np.sort(regions.reshape(len(X), -1), axis=1)
    n_top = max(1, round(detector.top_fraction * regions.shape[1]))
    return -regions[:, -n_top:].mean(axis=1)


# Detection


@pytest.mark.parametrize("seed", range(3))
def test_finds_turned_patches(long_trained, make_stripes, seed):
    detector, X = long_trained(seed)
    X_test, masks = make_stripes(40, 20, seed=100 + seed)
    is_anomalous = masks.any(axis=(1, 2))
    forest = IsolationForest(random_state=0).fit(X.reshape(100, -1))
    forest_auc = roc_auc_score(is_anomalous, -forest.score_samples(X_test.reshape(40, -1)))
    deviation = np.abs(X_test - X.mean(axis=0))[:, 0]
    deviation_auc = roc_auc_score(masks.ravel(), deviation.ravel())
    for source in SOURCES:
        image_auc = roc_auc_score(is_anomalous, -scores_of(detector, X_test, source))
        pixel_auc = roc_auc_score(masks.ravel(), detector.anomaly_map(X_test, source).ravel())
        assert image_auc > 0.95, source
        assert image_auc > forest_auc + 0.15, source
        assert pixel_auc > 0.9, source
        assert pixel_auc > deviation_auc + 0.3, source
    marked = detector.predict_mask(X_test)
    assert marked[masks].mean() > 0.3
    assert marked[masks].mean() > 5 * marked[~masks].mean()
    assert marked[~is_anomalous].mean() < 0.01
    assert np.mean(detector.predict(X_test[is_anomalous]) == -1) > 0.9


@pytest.mark.parametrize("value", [10, -1.7e308])
def test_finds_a_wild_pixel(long_trained, make_stripes, value):
    detector, _ = long_trained(0)
    X_test, _ = make_stripes(20, seed=100)
    wild = X_test.copy()
    wild[:, 0, 16, 16] = value
    assert np.isfinite(detector.score_samples(wild)).all()
    for source in SOURCES:
        scores = scores_of(detector, wild, source)
        assert np.isfinite(scores).all()
        assert scores.max() < scores_of(detector, X_test, source).min(), source


@pytest.mark.parametrize("seed", range(3))
def test_finds_cells_of_another_row(seed):
    rng = np.random.default_rng(seed)
    X, y = load_breast_cancer(return_X_y=True)
    X = rng.permutation(X[y == 1])
    train, test = X[:238], X[238:].copy()
    replaced = np.zeros(test.shape, dtype=bool)
    for row in range(len(test) // 2):
        for column in rng.choice(X.shape[1], 3, replace=False):
            test[row, column] = rng.choice(X[238:, column])
            replaced[row, column] = test[row, column] != X[238 + row, column]
    training = CellInpainting(max_steps=300)
    detector = AVIDDetector(training=training, random_state=seed).fit(train)
    z_score = np.abs(test - train.mean(axis=0)) / train.std(axis=0)
    forest = IsolationForest(random_state=0).fit(train)
    cell_auc, by_z = (
        roc_auc_score(replaced.ravel(), anomaly.ravel())
        for anomaly in (detector.anomaly_map(test), z_score)
    )
    row_auc, highest_z, by_forest = (
        roc_auc_score(replaced.any(axis=1), anomaly)
        for anomaly in (
            -detector.score_samples(test),
            z_score.max(axis=1),
            -forest.score_samples(test),
        )
    )
    assert cell_auc > 0.65
    assert cell_auc > by_z + 0.1
    assert row_auc > 0.65
    assert row_auc > max(highest_z, by_forest) + 0.1


def test_scores_have_the_right_sign(case):
    scores = case.fitted.score_samples(case.test)
    assert scores.shape == (len(case.test),)
    assert scores.dtype == np.float64
    assert len(np.unique(scores)) == len(scores)
    offset = case.fitted.offset_
    np.testing.assert_array_equal(case.fitted.decision_function(case.test), scores - offset)
    np.testing.assert_array_equal(case.fitted.predict(case.test), np.where(scores < offset, -1, 1))


# Maps


def test_a_score_is_minus_the_mean_of_the_worst_regions(case):
    assert case.fitted.top_fraction == (0.1 if case.is_published else 0.2)
    expected = scores_of(case.fitted, case.test, "combined")
    np.testing.assert_allclose(case.fitted.score_samples(case.test), expected, rtol=1e-12)


def test_the_three_maps(case):
    combined, by_inpainter, by_detector = three_maps(case.fitted, case.test)
    assert np.abs(by_inpainter - by_detector).max() > 0.5
    if case.is_published:
        np.testing.assert_array_equal(combined, np.minimum(by_inpainter, by_detector))
    else:
        excess = [np.log1p(np.exp(3 * z)) / 3 for z in (by_inpainter, by_detector)]
        weights = [2, 1]
        if not case.is_table:
            solved, *_ = np.linalg.lstsq(np.stack([e.ravel() for e in excess], 1), combined.ravel())
            weights = solved / solved.sum()
            assert (weights > 0).all()
            assert abs(weights[0] - 2 / 3) > 0.01
        np.testing.assert_allclose(combined, np.average(excess, axis=0, weights=weights), rtol=1e-9)
        for alone in (by_inpainter, by_detector):
            assert np.abs(combined - alone).max() > 0.25
    scores = [scores_of(case.fitted, case.test, source) for source in SOURCES]
    assert np.abs(scores[1] - scores[0]).max() > 0.01
    assert np.abs(scores[2] - scores[0]).max() > 0.01


@pytest.mark.parametrize(("learning_rates", "worse"), [((0, 3e-3), 1), ((4e-3, 0), 2)])
def test_an_untrained_network_counts_little(make_stripes, learning_rates, worse):
    X, _ = make_stripes(60, seed=0)
    training = {"training__max_steps": 60, "training__learning_rates": learning_rates}
    detector = make_detector("images", **training).fit(X)
    combined, *alone = three_maps(detector, make_stripes(40, 20, seed=1)[0])
    excess = (np.log1p(np.exp(3 * z)) for z in alone)
    alike = [np.corrcoef(combined.ravel(), values.ravel())[0, 1] for values in excess]
    assert alike[2 - worse] > 0.95
    assert alike[worse - 1] < 0.75


@pytest.mark.parametrize("source", SOURCES[1:])
def test_a_combination_can_be_one_networks_map(case, source):
    detector = case.fit(combination=source)
    expected = case.fitted.anomaly_map(case.test, source)
    for asked in ("combined", source):
        np.testing.assert_array_equal(detector.anomaly_map(case.test, asked), expected)
        np.testing.assert_array_equal(
            detector.predict_mask(case.test, asked), case.fitted.predict_mask(case.test, source)
        )
    scores = scores_of(case.fitted, case.test, source)
    np.testing.assert_allclose(detector.score_samples(case.test), scores, rtol=1e-12)
    assert detector.offset_ != case.fitted.offset_
    other = ({*SOURCES[1:]} - {source}).pop()
    np.testing.assert_array_equal(
        detector.anomaly_map(case.test, other), case.fitted.anomaly_map(case.test, other)
    )


def test_either_data_take_every_combination_and_error(case):
    maps = {}
    for combination in ("excess", "minimum"):
        for error in ("log", "absolute"):
            detector = case.fit(combination=combination, error=error)
            maps[combination, error] = detector.anomaly_map(case.test)
            assert np.isfinite(maps[combination, error]).all()
    usual = ("minimum", "absolute") if case.is_published else ("excess", "log")
    np.testing.assert_array_equal(maps[usual], case.fitted.anomaly_map(case.test))
    assert all((maps[key] != maps[usual]).any() for key in maps if key != usual)


@pytest.mark.parametrize("method", ["anomaly_map", "region_scores", "predict_mask"])
def test_unknown_sources_are_refused(images, method):
    with pytest.raises(ValueError, match=r"source must be one of .* got 'generator'"):
        getattr(images.fitted, method)(images.test, source="generator")


def test_maps_are_in_units_of_normal_maps(long_trained, make_stripes):
    detector, _ = long_trained(0)
    X, _ = make_stripes(40, seed=7)
    for values in three_maps(detector, X)[1:]:
        assert abs(values.mean()) < 0.3
        assert 0.7 < values.std() < 1.4
    low, high = detector.map_range_
    assert 0.98 < np.mean((low <= detector.anomaly_map(X)) & (detector.anomaly_map(X) <= high)) < 1


def test_masks_are_eq_4(case):
    _, by_inpainter, by_detector = three_maps(case.fitted, case.test)
    detector = copy.copy(case.fitted)
    detector.inpainter_threshold_ = np.median(by_inpainter)
    detector.detector_threshold_ = np.median(by_detector)
    inpainter_says = by_inpainter >= detector.inpainter_threshold_
    detector_says = by_detector >= detector.detector_threshold_
    for source, expected in {
        "combined": inpainter_says & detector_says,
        "inpainter": inpainter_says,
        "detector": detector_says,
    }.items():
        marked = detector.predict_mask(case.test, source)
        assert marked.dtype == bool
        assert 0 < marked.mean() < 1
        np.testing.assert_array_equal(marked, expected)


@pytest.mark.parametrize("kind", ["images", "paper images"])
def test_thresholds_are_quantiles_of_the_maps_of_normal_data(make_case, kind):
    case = make_case(kind)
    X = case.train[:9]  # of which so few are not held out
    detector = case.detector().fit(X)
    combined, by_inpainter, by_detector = three_maps(detector, X)
    assert detector.inpainter_threshold_ == pytest.approx(np.quantile(by_inpainter, 0.95))
    assert detector.detector_threshold_ == pytest.approx(np.quantile(by_detector, 0.95))
    low, high = np.quantile(combined, [0.005, 0.999])
    assert detector.map_range_ == pytest.approx((low, high))
    assert len(detector.calibration_scores_) == 9


def test_held_out_rows_are_standardized_by_others(table):
    """A cell that is far out cannot hide behind the deviation that it makes itself."""
    detector = copy.copy(table.fitted)
    maps = np.zeros((30, 6)), np.random.default_rng(0).normal(size=(30, 6))
    maps[1][7] = 100.0
    detector._scorer = detector._new_scorer().fit(maps)
    together = detector._scorer.combine(*detector._scorer.standardize(maps))
    assert detector._held_out_scores(maps)[7] < detector._scorer.scores(together)[7] < 0


@pytest.mark.parametrize("kind", ["table", "paper table"])
@pytest.mark.parametrize("n", [3, 9, 60])
def test_every_row_of_a_small_table_is_held_out(make_case, kind, n, monkeypatch):
    judged = []
    fold_maps = _avid.TableModel.maps
    monkeypatch.setattr(_avid.TableModel, "maps", lambda s, X: judged.append(X) or fold_maps(s, X))
    rows = make_case(kind).train[:n]
    detector = make_case(kind).detector()
    with pytest.warns(UserWarning, match="at least 19") if n < 19 else nullcontext():
        detector.fit(rows)
    assert len(detector.calibration_scores_) == n
    np.testing.assert_array_equal(
        np.unique(np.concatenate(judged)[:n], axis=0), np.unique(rows, axis=0)
    )


def test_region_scores_are_means_of_windows(images):
    drawn = images.fitted.anomaly_map(images.test)
    regions = images.fitted.region_scores(images.test)
    assert images.fitted.region_size_ == 12
    starts = range(0, 24 - 12 + 1, 6)
    expected = [[drawn[:, i : i + 12, j : j + 12].mean((1, 2)) for j in starts] for i in starts]
    np.testing.assert_allclose(regions, np.moveaxis(expected, -1, 0))


def test_region_scores_of_a_table_are_its_map(table):
    assert table.fitted.region_size_ == 1
    np.testing.assert_array_equal(
        table.fitted.region_scores(table.test), table.fitted.anomaly_map(table.test)
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_map_does_not_depend_on_its_batch(case, precision):
    detector = case.fit(precision=precision)
    together = detector.anomaly_map(case.test)
    alone = np.concatenate([detector.anomaly_map(x[None]) for x in case.test])
    reverse = detector.anomaly_map(case.test[::-1])[::-1]
    if case.test.ndim == 4:
        np.testing.assert_array_equal(alone, together)
        np.testing.assert_array_equal(reverse, together)
    else:
        np.testing.assert_allclose(alone, together, rtol=0, atol=1e-10)
        np.testing.assert_allclose(reverse, together, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["images", "paper images"])
def test_locations_can_be_judged_by_themselves(kind):
    def lit(n, seed):
        X = np.random.default_rng(seed).normal(size=(n, 1, 24, 24))
        X[..., :12] *= 0.2  # the left half is always calm
        return X

    ratios = {}
    for per_location in (False, True):
        # Errors are averaged over a region, which is to fit into a half.
        detector = make_detector(kind, region_size=8, per_location=per_location).fit(lit(60, 0))
        drawn = detector.anomaly_map(lit(30, 1), "inpainter")
        ratios[per_location] = abs(drawn[..., :3].mean() - drawn[..., 21:].mean())
    assert ratios[False] > 0.8
    assert ratios[True] < 0.4 * ratios[False]


def test_columns_of_a_table_are_judged_by_themselves():
    rng = np.random.default_rng(0)
    X = correlated(200, 0)
    X[:, 0] = rng.normal(size=200)  # tells nothing, and nothing tells it
    detector = make_detector("table", training__max_steps=150).fit(X)
    new = correlated(400, 1)
    new[:, 0] = rng.normal(size=400)
    by_column = detector.anomaly_map(new, "inpainter").mean(axis=0)
    assert np.abs(by_column).max() < 0.6


# Thresholds


@pytest.mark.parametrize("contamination", [0.1, 0.5])
def test_contamination_flags_that_share_of_the_training_data(case, contamination):
    n = 20
    detector = case.detector(contamination=contamination).fit(case.train[:n])
    assert np.mean(detector.predict(case.train[:n]) == -1) == contamination


def test_new_normal_images_are_flagged_at_the_nominal_rate():
    rng = np.random.default_rng(0)
    X, new = rng.normal(size=(400, 1, 16, 16)), rng.normal(size=(200, 1, 16, 16))
    detector = make_detector("images", region_size=14).fit(X)
    assert len(detector.calibration_scores_) == 80
    assert 0.005 < np.mean(detector.predict(new) == -1) < 0.12


@pytest.mark.parametrize("kind", ["table", "paper table"])
def test_new_normal_rows_are_flagged_at_the_nominal_rate(kind):
    changed = {"training__max_steps": 50, "training__batch_size": 128}
    detector = make_detector(kind, **changed).fit(correlated(1000, 0))
    assert 0.02 < np.mean(detector.predict(correlated(2000, 1)) == -1) < 0.1


def test_calibrate_and_p_values(long_trained, make_stripes):
    detector, _ = long_trained(0)
    detector = copy.copy(detector)
    X_test, masks = make_stripes(40, 20, seed=5)
    is_anomalous = masks.any(axis=(1, 2))
    uncalibrated = detector.p_values(X_test)
    assert uncalibrated.min() == 1 / 21  # a fifth of the training images is held out
    assert uncalibrated[is_anomalous].mean() < 0.1 < uncalibrated[~is_anomalous].mean()
    held_out, _ = make_stripes(39, seed=6)
    assert detector.calibrate(held_out, false_alarm_rate=0.1) is detector
    assert np.mean(detector.predict(held_out) == -1) == pytest.approx(3 / 39)
    p = detector.p_values(X_test)
    assert p.min() >= 1 / 40
    np.testing.assert_array_equal(detector.predict(X_test) == -1, p <= 0.1)
    assert np.mean(p[is_anomalous] <= 0.1) > 0.9
    with pytest.raises(ValueError, match="needs at least 99 held-out normal rows; got 39"):
        detector.calibrate(held_out, false_alarm_rate=0.01)


# Inpainting


def test_inpainting_guesses_what_it_cannot_see(long_trained, make_stripes):
    detector, X = long_trained(0)
    X_test, _ = make_stripes(20, seed=9)
    truth = X_test.mean(axis=2, keepdims=True)  # as good as without noise
    error, error_of_mean = (
        np.sqrt(np.mean((guess - truth) ** 2))
        for guess in (detector.inpaint(X_test), X.mean(axis=0))
    )
    assert error < 0.8 * error_of_mean


def test_inpainting_fills_patches_with_stripes(long_trained, make_stripes):
    detector, _ = long_trained(0)
    X_test, masks = make_stripes(20, 20, seed=9)
    hidden, _ = make_stripes(20, seed=9)  # the same stripes without the patches
    patches = masks[:, None]
    before, after = (
        np.corrcoef(guess[patches], hidden[patches])[0, 1]
        for guess in (X_test, detector.inpaint(X_test))
    )
    assert abs(before) < 0.2
    assert after > 0.6


@pytest.mark.parametrize(
    ("kind", "changed", "place"),
    [
        (
            "images",
            {"normalize_illumination": False, "precision": "float32"},
            (slice(None), 0, 8, 9),
        ),
        ("table", {}, (slice(None), 2)),
    ],
    ids=["images", "table"],
)
def test_nothing_is_guessed_from_itself(make_case, kind, changed, place):
    case = make_case(kind)
    detector = case.fit(**changed)
    moved = case.test.copy()
    moved[place] += 1
    before, after = (detector.inpaint(X) for X in (case.test, moved))
    np.testing.assert_array_equal(after[place], before[place])
    assert (after != before).any()


def test_inpainting_has_the_units_of_the_data(case):
    detector = case.detector().fit(100 + 50 * case.train)
    inpainted = detector.inpaint(100 + 50 * case.test)
    np.testing.assert_allclose(inpainted, 100 + 50 * case.fitted.inpaint(case.test), atol=0.5)


def test_inpainting_a_table():
    X, new = correlated(300, 0), correlated(100, 1)
    detector = make_detector("table", training__max_steps=150).fit(X)
    inpainted = detector.inpaint(new)
    assert inpainted.shape == new.shape
    error = np.sqrt(np.mean((inpainted - new) ** 2, axis=0))
    assert (error < 0.7 * new.std(axis=0)).all()


def test_inpaint_gives_back_what_fit_was_given(make_case):
    for case in map(make_case, ("images", "paper images")):
        expected = case.fitted.inpaint(case.test)
        assert expected.shape == case.test.shape
        assert expected.dtype == np.float64
        rows = case.detector(image_shape=(1, 24, 24)).fit(case.train.reshape(-1, 576))
        np.testing.assert_array_equal(rows.inpaint(case.test), expected.reshape(-1, 576))
        as_rows = rows.inpaint(case.test.reshape(-1, 576))
        np.testing.assert_array_equal(as_rows, expected.reshape(-1, 576))


# Training


def test_training_moves_both_networks(case):
    untrained, trained = (case.fit(training__max_steps=steps)._model for steps in (0, 8))
    for name in ("inpainter", "detector"):
        before, after = (
            dict(getattr(model, name).named_parameters()) for model in (untrained, trained)
        )
        moved = [
            float((after[key] - value).detach().abs().max())
            for key, value in before.items()
            if value.ndim > 1
        ]
        assert min(moved) > (0 if case.is_published else 1e-4), name


def test_losses_fall(long_trained):
    detector, _ = long_trained(0)
    assert detector.n_iter_ == 120
    assert set(detector.history_) == {"reconstruction_loss", "detector_loss"}
    for losses in detector.history_.values():
        assert losses.shape == (120,)
        assert losses[-20:].mean() < 0.7 * losses[:10].mean()


def test_history_names_the_losses(case):
    alone = {"reconstruction_loss", "detector_loss"}
    adversarial = {*alone, "adversarial_loss"}
    assert set(case.fitted.history_) == (adversarial if case.is_published else alone)
    if not case.is_published:
        assert set(case.fit(training__adversarial_weight=0.5).history_) == adversarial


@pytest.mark.parametrize("lit", [False, True])
def test_illumination_is_normalized_if_asked_or_varying(images, lit):
    rng = np.random.default_rng(0)
    brightness = 4 * rng.normal(size=(len(images.train), 1, 1, 1)) if lit else 0
    by_asked = {
        asked: images.detector(normalize_illumination=asked).fit(images.train + brightness)
        for asked in ("auto", False, True)
    }
    brighter = images.test + 3
    maps = {asked: detector.anomaly_map(brighter) for asked, detector in by_asked.items()}
    np.testing.assert_array_equal(maps["auto"], maps[lit])
    assert (maps["auto"] != maps[not lit]).any()
    np.testing.assert_allclose(maps[True], by_asked[True].anomaly_map(images.test), atol=0.1)
    assert np.abs(maps[False] - by_asked[False].anomaly_map(images.test)).max() > 0.5


def test_channels_are_those_of_the_networks(images):
    wider = images.fit(inpainter__channels=8, detector__channels=8, training__max_steps=0)
    for name in ("inpainter", "detector"):
        sizes = [
            sum(p.numel() for p in getattr(detector._model, name).parameters())
            for detector in (images.fitted, wider)
        ]
        assert sizes[1] > 3 * sizes[0]


def test_fixed_seed_repeats_every_bit_and_others_differ(case):
    same, other = case.fit(), case.fit(random_state=1)
    for a, b, c in zip(
        *(three_maps(detector, case.test) for detector in (case.fitted, same, other)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
        assert np.abs(a - c).max() > 1e-3
    assert same.offset_ == case.fitted.offset_
    assert same.map_range_ == case.fitted.map_range_
    for name, losses in case.fitted.history_.items():
        np.testing.assert_array_equal(same.history_[name], losses)


def test_random_state_instances_are_drawn_from(table):
    random_state = np.random.RandomState(0)
    first, second = (table.fit(random_state=random_state) for _ in range(2))
    assert (first.anomaly_map(table.test) != second.anomaly_map(table.test)).any()


def test_zero_steps_leave_the_networks_untrained(case):
    detector = case.fit(training__max_steps=0)
    assert detector.n_iter_ == 0
    assert detector.history_ == {}
    drawn = detector.anomaly_map(case.test)
    assert np.isfinite(drawn).all()
    assert (drawn != case.fitted.anomaly_map(case.test)).any()


def test_networks_are_not_trained_on_what_the_threshold_rests_on(case, monkeypatch):
    encoded, judged = [], []
    model = type(case.fitted._model)
    encode, maps = model.encode, model.maps
    monkeypatch.setattr(model, "encode", lambda s, X: encoded.append(X) or encode(s, X))
    monkeypatch.setattr(model, "maps", lambda s, X: judged.append(X) or maps(s, X))
    case.fit()
    trained_on, validation, held_out = ({row.tobytes() for row in X} for X in (*encoded, judged[0]))
    n = len(case.train)
    assert validation == held_out
    assert len(held_out) == n // 5
    assert not trained_on & held_out
    assert len(trained_on | held_out) == n


def test_training_takes_a_random_part_of_very_many_values(case, monkeypatch):
    n_features = case.train[0].size
    monkeypatch.setattr(_avid, "MAX_TRAINING_VALUES", 10 * n_features)
    detector = case.fit()
    # A fifth of ten; of a table so small all are held out.
    assert len(detector.calibration_scores_) == (10 if case.is_table else 2)
    assert (detector.anomaly_map(case.test) != case.fitted.anomaly_map(case.test)).any()


def weights(detector):
    return [
        {name: value.clone() for name, value in network.state_dict().items()}
        for network in (detector._model.inpainter, detector._model.detector)
    ]


def test_warm_start_continues(case):
    detector = case.fit(warm_start=True)
    before, history = weights(detector), detector.history_
    expected = case.fitted.anomaly_map(case.test)
    np.testing.assert_array_equal(detector.anomaly_map(case.test), expected)
    detector.fit(case.train)
    n_steps = detector.training_.max_steps
    assert detector.n_iter_ == 2 * n_steps
    for name, losses in detector.history_.items():
        assert len(losses) == 2 * n_steps
        np.testing.assert_array_equal(losses[:n_steps], history[name])
    for old, new in zip(before, weights(detector), strict=True):
        # Some steps from where it was, not from another start.
        names = [name for name in old if name.endswith("weight")]
        assert 0 < max(float((new[name] - old[name]).abs().max()) for name in names) < 0.1
    detector.set_params(training__max_steps=0).fit(case.train)
    assert detector.n_iter_ == 2 * n_steps
    detector.set_params(warm_start=False, training__max_steps=n_steps).fit(case.train)
    np.testing.assert_array_equal(detector.anomaly_map(case.test), expected)


@pytest.mark.parametrize(
    ("changed", "cut", "message"),
    [
        ({"region_size": 14}, slice(None), "region_size=12, but region_size is now 14"),
        (
            {"inpainter__channels": 8},
            slice(None),
            r"UNet\(channels=4\), but inpainter is now UNet\(channels=8\)",
        ),
        ({"detector__normalize": False}, slice(None), r"but detector is now PatchNet\(.*normalize"),
        (
            {"normalize_illumination": True},
            slice(None),
            "'auto', but normalize_illumination is now True",
        ),
        (
            {"training": AVIDDetector.from_paper().training},
            slice(None),
            "'MaskedInpainting', but training is now 'AdversarialInpainting'",
        ),
        ({}, slice(23), r"\(1, 24, 24\), but image_shape is now \(1, 24, 23\)"),
    ],
)
def test_warm_start_refuses_another_architecture(images, changed, cut, message):
    detector = copy.deepcopy(images.fitted).set_params(warm_start=True, **changed)
    before = vars(detector).copy()
    with pytest.raises(ValueError, match=message):
        detector.fit(images.train[..., cut])
    assert vars(detector).keys() == before.keys()
    assert all(vars(detector)[name] is before[name] for name in before)


def test_warm_start_takes_what_it_can_change(images):
    first = images.fit(training__max_steps=0, warm_start=True)
    changed = {
        "error": "absolute",
        "combination": "inpainter",
        "top_fraction": 0.5,
        "per_location": True,
        "training__block_sizes": (0.5, 1.0),
    }
    continued = first.set_params(**changed).fit(images.train)
    anew = images.fit(training__max_steps=0, **changed)
    np.testing.assert_array_equal(continued.anomaly_map(images.test), anew.anomaly_map(images.test))
    assert continued.offset_ == anew.offset_


def test_bfloat16_trains(images):
    half, single = (
        images.fit(precision=precision, training__max_steps=10).anomaly_map(
            images.test, "inpainter"
        )
        for precision in ("bfloat16", "float32")
    )
    assert np.abs(half - single).max() > 0
    assert np.corrcoef(half.ravel(), single.ravel())[0, 1] > 0.8


def test_verbose_goes_through_logging(case, caplog, capsys):
    with caplog.at_level(logging.INFO, logger="sklearn_g2d"):
        case.fit(verbose=1)
    n_steps = case.fitted.training_.max_steps
    assert caplog.text.count(f"networks: {n_steps} steps, reconstruction_loss") == 1
    assert capsys.readouterr().out == ""


# Composition


@pytest.mark.parametrize(
    "round_trip",
    [lambda d: pickle.loads(pickle.dumps(d)), copy.deepcopy, None],
    ids=["pickle", "deepcopy", "joblib"],
)
def test_round_trips_keep_every_bit(case, tmp_path, round_trip):
    if round_trip is None:
        joblib.dump(case.fitted, tmp_path / "detector.joblib")
        copied = joblib.load(tmp_path / "detector.joblib")
    else:
        copied = round_trip(case.fitted)
    for drawn, expected in zip(
        three_maps(copied, case.test), three_maps(case.fitted, case.test), strict=True
    ):
        np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_array_equal(copied.inpaint(case.test), case.fitted.inpaint(case.test))
    np.testing.assert_array_equal(
        copied.predict_mask(case.test), case.fitted.predict_mask(case.test)
    )
    np.testing.assert_array_equal(copied.p_values(case.test), case.fitted.p_values(case.test))


def test_what_was_loaded_trains_on_like_what_was_stored(case):
    loaded, stored = (
        detector.set_params(warm_start=True).fit(case.train).anomaly_map(case.test)
        for detector in (pickle.loads(pickle.dumps(case.fitted)), copy.copy(case.fitted))
    )
    np.testing.assert_array_equal(loaded, stored)


def test_pickle_holds_no_tensor(case):
    assert b"torch._utils" not in pickle.dumps(case.fitted)


def test_clone_forgets_the_data(case):
    copied = clone(case.fitted)
    assert repr(copied.get_params()) == repr(case.fitted.get_params())
    assert not [name for name in vars(copied) if name.endswith("_") or name.startswith("_")]
    np.testing.assert_array_equal(
        copied.fit(case.train).anomaly_map(case.test), case.fitted.anomaly_map(case.test)
    )


def test_pipeline_of_rows_of_pixels(images):
    rows, rows_test = images.train.reshape(-1, 576), images.test.reshape(-1, 576)
    scaler = StandardScaler()
    piped = make_pipeline(scaler, images.detector(image_shape=(1, 24, 24))).fit(rows)
    alone = images.detector().fit(StandardScaler().fit_transform(rows).reshape(-1, 1, 24, 24))
    expected = alone.score_samples(scaler.transform(rows_test).reshape(-1, 1, 24, 24))
    np.testing.assert_array_equal(piped.score_samples(rows_test), expected)
    assert piped[-1].anomaly_map(scaler.transform(rows_test)).shape == (7, 24, 24)


def test_frames_and_their_column_names(table):
    names = [f"column {i}" for i in range(6)]
    train, test = (pd.DataFrame(X, columns=names) for X in (table.train, table.test))
    detector = table.detector().fit(train)
    assert list(detector.feature_names_in_) == names
    np.testing.assert_array_equal(detector.anomaly_map(test), table.fitted.anomaly_map(table.test))
    for method in (detector.anomaly_map, detector.inpaint, detector.predict_mask):
        with pytest.raises(ValueError, match="feature names should match"):
            method(test[names[::-1]])


def test_html_repr(images):
    assert "AVIDDetector" in images.fitted._repr_html_()


def test_unfitted(images):
    for method in (
        "predict",
        "score_samples",
        "decision_function",
        "p_values",
        "calibrate",
        "anomaly_map",
        "region_scores",
        "predict_mask",
        "inpaint",
    ):
        with pytest.raises(NotFittedError):
            getattr(AVIDDetector(), method)(images.test)


@pytest.mark.parametrize("params", [{}, {"contamination": 0.05}])
def test_outliers_among_a_tables_rows_are_found(params):
    """They are not learned from, as networks would reproduce them."""
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(95, 2)), 8 + 3 * rng.normal(size=(5, 2))])
    training = CellInpainting(max_steps=300)
    detector = AVIDDetector(training=training, **params, random_state=0).fit(X)
    y = np.repeat([1, -1], [95, 5])
    assert outlier_roc_auc_score(y, detector.score_samples(X)) > 0.98
    detector.set_params(support_fraction=1.0).fit(X)
    assert outlier_roc_auc_score(y, detector.score_samples(X)) < 0.9
    if params:
        np.testing.assert_array_equal(detector.training_scores_, detector.score_samples(X))
    else:
        with pytest.raises(AttributeError, match="set contamination"):
            print(detector.training_scores_)


def test_support_fraction_is_for_tables(make_stripes):
    X, _ = make_stripes(8, seed=0)
    with pytest.raises(ValueError, match=r"support_fraction=0.8 is for tables"):
        AVIDDetector(support_fraction=0.8).fit(X)
