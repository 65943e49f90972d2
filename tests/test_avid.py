"""AVIDDetector as a user meets it: detection, maps, thresholds, parameters, composition."""

import copy
import logging
import pickle

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
from sklearn_g2d.avid import _detector as _avid
from sklearn_g2d.avid import _models as _players

IMAGES = {"region_size": 12, "width": 4, "batch_size": 4, "max_steps": 2, "random_state": 0}
PAPER_IMAGES = {**IMAGES, "recipe": "paper", "region_size": 20}
TABLE = {"batch_size": 16, "max_steps": 5, "random_state": 0}
PAPER_TABLE = {**TABLE, "recipe": "paper"}

MAPS = "combined", "inpainter", "detector"


@pytest.fixture(scope="module", autouse=True)
def _short_batches():
    """Small images are scored a hundred at once, and a batch of one is filled up to that."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_players, "_SCORING_PIXELS", 8 * 32 * 32)
        yield


class Case:
    """Data, and a detector `fitted` on them that is not to be changed."""

    def __init__(self, params, train, test):
        self.params, self.train, self.test = params, train, test
        self.fitted = self.fit()

    def fit(self, **changed):
        return self.detector(**changed).fit(self.train)

    def detector(self, **changed):
        return AVIDDetector(**{**self.params, **changed})


def correlated(n, seed, n_features=6):
    """Rows whose second half of columns follows from the first."""
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(n, n_features // 2))
    return np.concatenate([half, 3 * half + 0.3 * rng.normal(size=half.shape) + 7], axis=1)


@pytest.fixture(scope="module")
def make_case(make_stripes):
    cases = {}

    def make(params):
        if repr(params) not in cases:
            if "width" in params:
                data = (make_stripes(n, size=24, seed=n)[0] for n in (24, 7))
            else:
                data = correlated(60, 0), correlated(9, 1)
            cases[repr(params)] = Case(params, *data)
        return cases[repr(params)]

    return make


@pytest.fixture(
    params=[IMAGES, PAPER_IMAGES, TABLE, PAPER_TABLE],
    ids=["images", "paper images", "table", "paper table"],
)
def case(request, make_case):
    return make_case(request.param)


@pytest.fixture
def images(make_case):
    return make_case(IMAGES)


@pytest.fixture(scope="module")
def long_trained(make_stripes):
    """A detector of stripes by its seed, trained for as long as it needs; not to be changed."""
    detectors = {}

    def fit(seed):
        if seed not in detectors:
            X, _ = make_stripes(100, seed=seed)
            detector = AVIDDetector(
                region_size=12, width=4, max_steps=120, precision="float32", random_state=seed
            )
            detectors[seed] = detector.fit(X), X
        return detectors[seed]

    return fit


def with_map(detector, name):
    return copy.copy(detector).set_params(map=name)


def three_maps(detector, X):
    return [with_map(detector, name).anomaly_map(X) for name in MAPS]


# Detection


@pytest.mark.parametrize("seed", range(3))
def test_finds_turned_patches(long_trained, make_stripes, seed):
    detector, X = long_trained(seed)
    X_test, masks = make_stripes(40, 20, seed=100 + seed)
    is_irregular = masks.any(axis=(1, 2))
    forest = IsolationForest(random_state=0).fit(X.reshape(100, -1))
    forest_auc = roc_auc_score(is_irregular, -forest.score_samples(X_test.reshape(40, -1)))
    deviation = np.abs(X_test - X.mean(axis=0))[:, 0]
    deviation_auc = roc_auc_score(masks.ravel(), deviation.ravel())
    for name in MAPS:
        chosen = with_map(detector, name)
        image_auc = roc_auc_score(is_irregular, -chosen.score_samples(X_test))
        pixel_auc = roc_auc_score(masks.ravel(), chosen.anomaly_map(X_test).ravel())
        assert image_auc > 0.95, name
        assert image_auc > forest_auc + 0.15, name
        assert pixel_auc > 0.9, name
        assert pixel_auc > deviation_auc + 0.3, name
    marked = detector.predict_mask(X_test)
    assert marked[masks].mean() > 0.3
    assert marked[masks].mean() > 5 * marked[~masks].mean()
    assert marked[~is_irregular].mean() < 0.01
    assert np.mean(detector.predict(X_test[is_irregular]) == -1) > 0.9


@pytest.mark.parametrize("value", [10, -1.7e308])
def test_finds_a_wild_pixel(long_trained, make_stripes, value):
    detector, _ = long_trained(0)
    X_test, _ = make_stripes(20, seed=100)
    wild = X_test.copy()
    wild[:, 0, 16, 16] = value
    for name in MAPS:
        chosen = with_map(detector, name)
        scores = chosen.score_samples(wild)
        assert np.isfinite(scores).all()
        assert scores.max() < chosen.score_samples(X_test).min(), name


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
    detector = AVIDDetector(max_steps=300, random_state=seed).fit(train)
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
    regions = case.fitted.region_scores(case.test)
    regions = np.sort(regions.reshape(len(regions), -1), axis=1)
    share = 0.1 if case.fitted.recipe == "paper" else 0.2
    worst = regions[:, -max(1, round(share * regions.shape[1])) :].mean(axis=1)
    np.testing.assert_allclose(case.fitted.score_samples(case.test), -worst, rtol=1e-12)


def test_the_three_maps(case):
    combined, by_inpainter, by_detector = three_maps(case.fitted, case.test)
    assert np.abs(by_inpainter - by_detector).max() > 0.5
    if case.fitted.recipe == "paper":
        np.testing.assert_array_equal(combined, np.minimum(by_inpainter, by_detector))
    else:
        excess = [np.log1p(np.exp(3 * z)) / 3 for z in (by_inpainter, by_detector)]
        np.testing.assert_allclose(combined, np.average(excess, axis=0, weights=[2, 1]), rtol=1e-9)
        for alone in (by_inpainter, by_detector):
            assert np.abs(combined - alone).max() > 0.25
    scores = [with_map(case.fitted, name).score_samples(case.test) for name in MAPS]
    assert np.abs(scores[1] - scores[0]).max() > 0.01
    assert np.abs(scores[2] - scores[0]).max() > 0.01


def test_a_map_chosen_before_fit_is_the_same_map(case):
    for name in MAPS[1:]:
        detector = case.fit(map=name)
        np.testing.assert_array_equal(
            detector.anomaly_map(case.test),
            with_map(case.fitted, name).anomaly_map(case.test),
        )
        assert detector.offset_ != case.fitted.offset_


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
    detector.alpha_, detector.zeta_ = np.median(by_inpainter), np.median(by_detector)
    inpainter_says = by_inpainter >= detector.alpha_
    detector_says = by_detector >= detector.zeta_
    for name, expected in {
        "combined": inpainter_says & detector_says,
        "inpainter": inpainter_says,
        "detector": detector_says,
    }.items():
        marked = with_map(detector, name).predict_mask(case.test)
        assert marked.dtype == bool
        assert 0 < marked.mean() < 1
        np.testing.assert_array_equal(marked, expected)


@pytest.mark.parametrize("params", [IMAGES, PAPER_IMAGES, TABLE, PAPER_TABLE])
def test_thresholds_are_quantiles_of_the_maps_of_normal_data(make_case, params):
    X = make_case(params).train[:9]  # of which so few are not held out
    detector = AVIDDetector(**params).fit(X)
    combined, by_inpainter, by_detector = three_maps(detector, X)
    assert detector.alpha_ == pytest.approx(np.quantile(by_inpainter, 0.95))
    assert detector.zeta_ == pytest.approx(np.quantile(by_detector, 0.95))
    low, high = np.quantile(combined, [0.005, 0.999])
    assert detector.map_range_ == pytest.approx((low, high))
    np.testing.assert_allclose(detector.calibration_scores_, np.sort(detector.score_samples(X)))


def test_region_scores_are_means_of_windows(images):
    drawn = images.fitted.anomaly_map(images.test)
    regions = images.fitted.region_scores(images.test)
    assert images.fitted.region_size_ == 12
    starts = range(0, 24 - 12 + 1, 6)
    expected = [[drawn[:, i : i + 12, j : j + 12].mean((1, 2)) for j in starts] for i in starts]
    np.testing.assert_allclose(regions, np.moveaxis(expected, -1, 0))


def test_region_scores_of_a_table_are_its_map(make_case):
    table = make_case(TABLE)
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


@pytest.mark.parametrize("params", [IMAGES, PAPER_IMAGES], ids=["default", "paper"])
def test_locations_can_be_judged_by_themselves(params):
    def lit(n, seed):
        X = np.random.default_rng(seed).normal(size=(n, 1, 24, 24))
        X[..., :12] *= 0.2  # the left half is always calm
        return X

    ratios = {}
    for per_location in (False, True):
        detector = AVIDDetector(per_location=per_location, **params).fit(lit(60, 0))
        drawn = with_map(detector, "inpainter").anomaly_map(lit(30, 1))
        ratios[per_location] = abs(drawn[..., :3].mean() - drawn[..., 21:].mean())
    assert ratios[False] > 0.8
    assert ratios[True] < 0.4 * ratios[False]


def test_columns_of_a_table_are_judged_by_themselves():
    rng = np.random.default_rng(0)
    X = correlated(200, 0)
    X[:, 0] = rng.normal(size=200)  # tells nothing, and nothing tells it
    detector = AVIDDetector(**{**TABLE, "max_steps": 150}).fit(X)
    new = correlated(400, 1)
    new[:, 0] = rng.normal(size=400)
    by_column = with_map(detector, "inpainter").anomaly_map(new).mean(axis=0)
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
    detector = AVIDDetector(**{**IMAGES, "region_size": 14}).fit(X)
    assert len(detector.calibration_scores_) == 80
    assert 0.005 < np.mean(detector.predict(new) == -1) < 0.12


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_new_normal_rows_are_flagged_at_the_nominal_rate(recipe):
    detector = AVIDDetector(max_steps=50, recipe=recipe, random_state=0).fit(correlated(1000, 0))
    assert 0.02 < np.mean(detector.predict(correlated(2000, 1)) == -1) < 0.1


def test_calibrate_and_p_values(long_trained, make_stripes):
    detector, _ = long_trained(0)
    detector = copy.copy(detector)
    X_test, masks = make_stripes(40, 20, seed=5)
    is_irregular = masks.any(axis=(1, 2))
    uncalibrated = detector.p_values(X_test)
    assert uncalibrated.min() == 1 / 21  # a fifth of the training images is held out
    assert uncalibrated[is_irregular].mean() < 0.1 < uncalibrated[~is_irregular].mean()
    held_out, _ = make_stripes(39, seed=6)
    assert detector.calibrate(held_out, false_alarm_rate=0.1) is detector
    assert np.mean(detector.predict(held_out) == -1) == pytest.approx(3 / 39)
    p = detector.p_values(X_test)
    assert p.min() >= 1 / 40
    np.testing.assert_array_equal(detector.predict(X_test) == -1, p <= 0.1)
    assert np.mean(p[is_irregular] <= 0.1) > 0.9
    with pytest.raises(ValueError, match="takes at least 99 normal rows to promise, got 39"):
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


@pytest.mark.parametrize("params", [{**IMAGES, "even_light": False, "precision": "float32"}, TABLE])
def test_nothing_is_guessed_from_itself(make_case, params):
    case = make_case(params)
    place = (slice(None), 0, 8, 9) if "width" in params else (slice(None), 2)
    changed = case.test.copy()
    changed[place] += 1
    before, after = (case.fitted.inpaint(X) for X in (case.test, changed))
    np.testing.assert_array_equal(after[place], before[place])
    assert (after != before).any()


def test_inpainting_has_the_units_of_the_data(case):
    detector = case.detector().fit(100 + 50 * case.train)
    inpainted = detector.inpaint(100 + 50 * case.test)
    np.testing.assert_allclose(inpainted, 100 + 50 * case.fitted.inpaint(case.test), atol=0.5)


def test_inpainting_a_table():
    X, new = correlated(300, 0), correlated(100, 1)
    detector = AVIDDetector(**{**TABLE, "max_steps": 150}).fit(X)
    inpainted = detector.inpaint(new)
    assert inpainted.shape == new.shape
    error = np.sqrt(np.mean((inpainted - new) ** 2, axis=0))
    assert (error < 0.7 * new.std(axis=0)).all()


def test_inpaint_gives_back_what_fit_was_given(make_case):
    for case in map(make_case, (IMAGES, PAPER_IMAGES)):
        expected = case.fitted.inpaint(case.test)
        assert expected.shape == case.test.shape
        assert expected.dtype == np.float64
        rows = case.detector(image_shape=(1, 24, 24)).fit(case.train.reshape(-1, 576))
        np.testing.assert_array_equal(rows.inpaint(case.test), expected.reshape(-1, 576))
        as_rows = rows.inpaint(case.test.reshape(-1, 576))
        np.testing.assert_array_equal(as_rows, expected.reshape(-1, 576))


# Training


def test_training_moves_both_networks(case):
    untrained, trained = (case.fit(max_steps=steps)._players[0] for steps in (0, 8))
    for name in ("inpainter", "detector"):
        before, after = (
            dict(getattr(pair, name).named_parameters()) for pair in (untrained, trained)
        )
        moved = [
            float((after[key] - value).detach().abs().max())
            for key, value in before.items()
            if value.ndim > 1
        ]
        assert min(moved) > (0 if case.fitted.recipe == "paper" else 1e-4), name


def test_losses_fall(long_trained):
    detector, _ = long_trained(0)
    assert detector.n_iter_ == 120
    assert set(detector.history_) == {"reconstruction_loss", "detector_loss"}
    for losses in detector.history_.values():
        assert losses.shape == (120,)
        assert losses[-20:].mean() < 0.7 * losses[:10].mean()


def test_history_names_the_losses_of_the_recipe(case):
    default, alone, adversarial = (
        set(detector.history_)
        for detector in (
            case.fitted,
            case.fit(adversarial_weight=0.0, reconstruction_weight=1.0),
            case.fit(adversarial_weight=0.5),
        )
    )
    assert alone == {"reconstruction_loss", "detector_loss"}
    assert adversarial == {*alone, "adversarial_loss"}
    assert default == (adversarial if case.fitted.recipe == "paper" else alone)


@pytest.mark.parametrize(
    "changed",
    [
        {"noise_scale": 2.0, "corruption": "gaussian"},
        {"adversarial_weight": 20.0},
        {"reconstruction_weight": 3.0, "adversarial_weight": 1.0},
        {"n_estimators": 2},
    ],
    ids=str,
)
def test_parameters_reach_training(case, changed):
    detector = case.fit(**changed)
    drawn = detector.anomaly_map(case.test)
    assert np.isfinite(drawn).all()
    assert (drawn != case.fitted.anomaly_map(case.test)).any()
    assert np.isfinite(detector.inpaint(case.test)).all()


def test_either_recipe_takes_either_corruption(case):
    losses = {}
    for name in ("blocks", "gaussian"):
        detector = case.fit(corruption=name)
        losses[name] = detector.history_["reconstruction_loss"]
        assert np.isfinite(detector.anomaly_map(case.test)).all()
        assert np.isfinite(detector.inpaint(case.test)).all()
    assert (losses["blocks"] != losses["gaussian"]).all()
    usual = "gaussian" if case.fitted.recipe == "paper" else "blocks"
    np.testing.assert_array_equal(losses[usual], case.fitted.history_["reconstruction_loss"])


@pytest.mark.parametrize("lit", [False, True])
def test_light_is_evened_if_asked_or_uneven(images, lit):
    rng = np.random.default_rng(0)
    brightness = 4 * rng.normal(size=(len(images.train), 1, 1, 1)) if lit else 0
    by_asked = {
        asked: images.detector(even_light=asked).fit(images.train + brightness)
        for asked in (None, False, True)
    }
    brighter = images.test + 3
    maps = {asked: detector.anomaly_map(brighter) for asked, detector in by_asked.items()}
    np.testing.assert_array_equal(maps[None], maps[lit])
    assert (maps[None] != maps[not lit]).any()
    np.testing.assert_allclose(maps[True], by_asked[True].anomaly_map(images.test), atol=0.1)
    assert np.abs(maps[False] - by_asked[False].anomaly_map(images.test)).max() > 0.5


def test_width_is_that_of_the_networks(images):
    wider = images.fit(width=8, max_steps=0)
    for name in ("inpainter", "detector"):
        sizes = [
            sum(p.numel() for p in getattr(detector._players[0], name).parameters())
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


def test_random_state_instances_are_drawn_from(make_case):
    table = make_case(TABLE)
    random_state = np.random.RandomState(0)
    first, second = (table.fit(random_state=random_state) for _ in range(2))
    assert (first.anomaly_map(table.test) != second.anomaly_map(table.test)).any()


def test_zero_steps_leave_the_networks_untrained(case):
    detector = case.fit(max_steps=0)
    assert detector.n_iter_ == 0
    assert detector.history_ == {}
    drawn = detector.anomaly_map(case.test)
    assert np.isfinite(drawn).all()
    assert (drawn != case.fitted.anomaly_map(case.test)).any()


def test_pairs_of_networks_are_averaged(case):
    detector = case.fit(n_estimators=2)
    first, second = (copy.copy(detector) for _ in range(2))
    first._players, second._players = [detector._players[:1], detector._players[1:]]
    by_pair = [three_maps(single, case.test)[1:] for single in (first, second)]
    for name, one, other in zip(MAPS[1:], *by_pair, strict=True):
        assert np.abs(one - other).max() > 1e-3
        drawn = with_map(detector, name).anomaly_map(case.test)
        np.testing.assert_allclose(drawn, (one + other) / 2, rtol=1e-10, atol=1e-12)
    inpainted = [single.inpaint(case.test) for single in (first, second)]
    np.testing.assert_allclose(detector.inpaint(case.test), np.mean(inpainted, axis=0))
    assert detector.n_iter_ == case.params["max_steps"]
    n_held_out = len(case.fitted.calibration_scores_)
    assert len(detector.calibration_scores_) == 2 * n_held_out


def test_no_pair_is_trained_on_what_its_threshold_rests_on(case, monkeypatch):
    trained_on, judged = [], []
    players = _players.ImagePlayers if case.train.ndim == 4 else _players.TablePlayers
    encode, maps = players.encode, players.maps
    monkeypatch.setattr(players, "encode", lambda s, X: trained_on.append(X) or encode(s, X))
    monkeypatch.setattr(players, "maps", lambda s, X: judged.append(X) or maps(s, X))
    case.fit(n_estimators=2)
    rows = [{row.tobytes() for row in X} for X in (*trained_on, *judged)]
    first, validation, second, validation_2, held_out, held_out_2 = rows[:6]
    n = len(case.train)
    assert len(held_out) == len(held_out_2) == n // 5
    assert validation == held_out
    assert validation_2 == held_out_2
    assert not held_out & held_out_2
    for used, spared in ((first, held_out), (second, held_out_2)):
        assert not used & spared
        assert len(used | spared) == n


def test_training_takes_a_random_part_of_very_many_values(case, monkeypatch):
    n_features = case.train[0].size
    monkeypatch.setattr(_avid, "MAX_TRAINING_VALUES", 10 * n_features)
    detector = case.fit()
    assert len(detector.calibration_scores_) == 2  # a fifth of ten
    assert (detector.anomaly_map(case.test) != case.fitted.anomaly_map(case.test)).any()


def test_warm_start_continues(case):
    detector = case.fit(warm_start=True)
    before = [
        {name: value.clone() for name, value in network.state_dict().items()}
        for network in (detector._players[0].inpainter, detector._players[0].detector)
    ]
    history = detector.history_
    np.testing.assert_array_equal(
        detector.anomaly_map(case.test), case.fitted.anomaly_map(case.test)
    )
    detector.fit(case.train)
    n_steps = case.params["max_steps"]
    assert detector.n_iter_ == 2 * n_steps
    for name, losses in detector.history_.items():
        assert len(losses) == 2 * n_steps
        np.testing.assert_array_equal(losses[:n_steps], history[name])
    after = [
        network.state_dict()
        for network in (detector._players[0].inpainter, detector._players[0].detector)
    ]
    for old, new in zip(before, after, strict=True):
        # Some steps from where it was, not from another start.
        weights = [name for name in old if name.endswith("weight")]
        assert 0 < max(float((new[name] - old[name]).abs().max()) for name in weights) < 0.1
    detector.set_params(max_steps=0).fit(case.train)
    assert detector.n_iter_ == 2 * n_steps
    detector.set_params(warm_start=False, max_steps=n_steps).fit(case.train)
    np.testing.assert_array_equal(
        detector.anomaly_map(case.test), case.fitted.anomaly_map(case.test)
    )


@pytest.mark.parametrize(
    ("changed", "cut", "message"),
    [
        ({"region_size": 14}, slice(None), "region_size=12, but region_size is now 14"),
        ({"width": 8}, slice(None), "width=4, but width is now 8"),
        ({"n_estimators": 2}, slice(None), "n_estimators=1, but n_estimators is now 2"),
        ({"corruption": "gaussian"}, slice(None), "'blocks', but corruption is now 'gaussian'"),
        ({"recipe": "paper"}, slice(None), "recipe='default', but recipe is now 'paper'"),
        ({}, slice(23), r"\(1, 24, 24\), but image_shape is now \(1, 24, 23\)"),
    ],
)
def test_warm_start_refuses_another_architecture(images, changed, cut, message):
    detector = copy.copy(images.fitted).set_params(warm_start=True)
    before = vars(detector).copy()
    with pytest.raises(ValueError, match=message):
        detector.set_params(**changed).fit(images.train[..., cut])
    unchanged = {name for name in before if name not in changed}
    assert vars(detector).keys() == before.keys()
    assert all(vars(detector)[name] is before[name] for name in unchanged)


def test_bfloat16_trains(images):
    half, single = (
        images.fit(precision=precision, max_steps=10, map="inpainter").anomaly_map(images.test)
        for precision in ("bfloat16", "float32")
    )
    assert np.abs(half - single).max() > 0
    assert np.corrcoef(half.ravel(), single.ravel())[0, 1] > 0.8


def test_verbose_goes_through_logging(case, caplog, capsys):
    with caplog.at_level(logging.INFO, logger="sklearn_g2d"):
        case.fit(verbose=1, n_estimators=2)
    said = f"networks: {case.params['max_steps']} steps, reconstruction_loss"
    assert caplog.text.count(said) == 2
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
    assert copied.get_params() == case.fitted.get_params()
    assert not [name for name in vars(copied) if name.endswith("_") or name == "_players"]
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


def test_frames_and_their_column_names(make_case):
    table = make_case(TABLE)
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
