"""G2DOutlierDetector as a user meets it: detection, parameters, composition."""

import copy
import logging
import pickle
import warnings
from functools import partial

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.g2d import GaussianCloud, NetworkClassifier, WassersteinGAN, _detector
from sklearn_g2d.metrics import SCORERS, outlier_roc_auc_score
from sklearn_g2d.model_selection import NormalOnlySplit

FAST = {"classifier": NetworkClassifier(n_members=4, max_steps=60), "random_state": 0}
TRAINED = {**FAST, "generator": WassersteinGAN(max_steps=10, n_members=4)}
BOTH_GENERATORS = pytest.mark.parametrize("params", [FAST, TRAINED], ids=["cloud", "trained"])


@pytest.fixture(scope="module")
def fitted(blobs):
    return G2DOutlierDetector(random_state=0).fit(blobs[0])


# Detection


@pytest.mark.parametrize("name", ["digits", "wine"])
def test_beats_isolation_forest_on_real_tables(real_tables, name):
    X_train, X_test, y_test = real_tables[name]
    forest, ours = (
        np.mean(
            [
                outlier_roc_auc_score(y_test, make(seed).fit(X_train).score_samples(X_test))
                for seed in range(3)
            ]
        )
        for make in (
            lambda seed: IsolationForest(random_state=seed),
            lambda seed: G2DOutlierDetector(random_state=seed),
        )
    )
    assert ours > forest
    assert ours > 0.85


def test_seeds_agree(real_tables):
    X_train, X_test, y_test = real_tables["wine"]
    aucs = [
        outlier_roc_auc_score(
            y_test, G2DOutlierDetector(random_state=seed).fit(X_train).score_samples(X_test)
        )
        for seed in range(4)
    ]
    assert np.std(aucs) < 0.012


def test_scores_differ_and_have_the_right_sign(fitted, blobs):
    _, X_test, y_test = blobs
    scores = fitted.score_samples(X_test)
    assert scores.dtype == np.float64
    assert len(np.unique(scores)) == len(scores)
    assert scores[y_test == 1].mean() > scores[y_test == -1].mean()
    np.testing.assert_array_equal(fitted.decision_function(X_test), scores - fitted.offset_)
    np.testing.assert_array_equal(fitted.predict(X_test), np.where(scores < fitted.offset_, -1, 1))


def test_the_center_of_normal_data_is_not_irregular():
    """The paper's recipe learns just that on tables; the default must not."""
    ball = np.random.default_rng(0).normal(size=(300, 5))
    detector = G2DOutlierDetector(random_state=0).fit(ball)
    center, shell = np.zeros((1, 5)), 6 * np.eye(5)
    assert detector.score_samples(center)[0] > detector.score_samples(shell).max()


# Training


def test_training_moves_weights_and_lowers_losses(blobs):
    fitted = G2DOutlierDetector(generator=WassersteinGAN(), random_state=0).fit(blobs[0])
    first, last = fitted.snapshots_[0], fitted.snapshots_[-1]
    assert first.step == 0
    assert last.step == fitted.n_iter_ == 150
    moved = [np.abs(first.weights[k] - last.weights[k]).max() for k in first.weights]
    assert min(moved) > 1e-3
    classifier_loss = fitted.history_["classifier_loss"]
    assert classifier_loss[-20:].mean() < 0.5 * classifier_loss[:20].mean()
    critic_loss = fitted.history_["critic_loss"]
    assert critic_loss[-20:].mean() < critic_loss[:20].mean()


def test_long_training_brings_samples_to_the_data():
    X = np.random.default_rng(0).normal([5.0, -5.0], [1.0, 0.2], size=(500, 2))
    detector = G2DOutlierDetector(generator=WassersteinGAN(max_steps=600), random_state=0).fit(X)
    assert detector.snapshots_[0].role != "normal"
    assert detector.snapshots_[-1].role == "normal"
    samples = detector.sample_normals(300, random_state=0)
    np.testing.assert_allclose(samples.mean(axis=0), X.mean(axis=0), atol=0.5)
    assert (detector.predict(samples) == 1).all()


def test_the_default_generator_is_no_network(blobs):
    detector = G2DOutlierDetector(**FAST).fit(blobs[0])
    assert isinstance(detector.generator_, GaussianCloud)
    assert detector.n_iter_ == 0
    assert set(detector.history_) == {"classifier_loss"}
    with pytest.raises(AttributeError, match="WassersteinGAN"):
        _ = detector.snapshots_


def test_zero_steps_leave_the_generator_untrained():
    X = np.random.default_rng(0).normal(size=(200, 20))
    detector = G2DOutlierDetector(generator=WassersteinGAN(max_steps=0), **FAST).fit(X)
    assert detector.n_iter_ == 0
    assert [(s.step, s.role) for s in detector.snapshots_] == [(0, "far")]
    assert set(detector.history_) == {"classifier_loss"}


@BOTH_GENERATORS
def test_fixed_seed_repeats_every_bit_and_others_differ(blobs, params):
    X_train, X_test, _ = blobs
    a, b, c = (
        G2DOutlierDetector(**{**params, "random_state": seed}).fit(X_train).score_samples(X_test)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-3


@BOTH_GENERATORS
def test_global_random_state_is_left_alone(blobs, params):
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    G2DOutlierDetector(**params).fit(blobs[0]).sample_outliers(3)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_warm_start_continues(blobs):
    X_train, _, _ = blobs
    detector = G2DOutlierDetector(warm_start=True, **TRAINED).fit(X_train)
    before = detector.snapshots_[-1].weights["mlp.layers.0.weight"]
    detector.fit(X_train)
    assert detector.n_iter_ == 20
    assert len(detector.history_["critic_loss"]) == 20
    steps = [s.step for s in detector.snapshots_]
    assert steps == sorted(set(steps))
    assert steps[-1] == 20
    after = detector.snapshots_[-1].weights["mlp.layers.0.weight"]
    # Ten steps of size .001 or so from where it was, not from another start.
    assert 0 < np.abs(after - before).max() < 0.05


def test_warm_start_refuses_another_architecture(blobs):
    X_train, X_test, _ = blobs
    detector = clone(G2DOutlierDetector(warm_start=True, **TRAINED)).fit(X_train)
    scores = detector.score_samples(X_test)
    with pytest.raises(ValueError, match="n_members=4, but n_members is now 2"):
        detector.set_params(generator__n_members=2).fit(X_train)
    with pytest.raises(ValueError, match=r"sample=\(3,\), but .* is now \(2,\)"):
        detector.set_params(generator__n_members=4).fit(X_train[:, :2])
    np.testing.assert_array_equal(detector.score_samples(X_test), scores)


def test_bfloat16_detects_as_well(blobs):
    X_train, X_test, y_test = blobs
    auc = {
        precision: outlier_roc_auc_score(
            y_test,
            G2DOutlierDetector(precision=precision, random_state=0)
            .fit(X_train)
            .score_samples(X_test),
        )
        for precision in ("float32", "bfloat16")
    }
    assert abs(auc["float32"] - auc["bfloat16"]) < 0.01


def test_verbose_goes_through_logging(blobs, caplog, capsys):
    with caplog.at_level(logging.INFO, logger="sklearn_g2d"):
        G2DOutlierDetector(verbose=1, **TRAINED).fit(blobs[0])
    assert "generator: 10 steps, critic_loss" in caplog.text
    assert "classifier: 60 steps, classifier_loss" in caplog.text
    assert capsys.readouterr().out == ""


# The paper's method


def test_from_paper(blobs):
    X_train, X_test, _ = blobs
    detector = G2DOutlierDetector.from_paper(
        data="tables", generator__max_steps=60, generator__n_snapshots=4, random_state=0
    ).fit(X_train)
    assert detector.offset_ == 0
    np.testing.assert_array_equal(
        detector.predict(X_test) == -1, detector.predict_proba(X_test)[:, 0] > 0.5
    )
    assert 1 <= len(detector.snapshots_) <= 5
    assert {s.role for s in detector.snapshots_} <= {"far", "boundary", "normal"}
    assert detector.snapshots_[-1].step == 60
    assert detector.sample_outliers(7).shape == (7, 3)


def test_snapshots_by_callable(blobs):
    seen = []

    def last_two(snapshots):
        seen.extend(snapshots)
        return snapshots[-2:]

    detector = clone(G2DOutlierDetector(**TRAINED)).set_params(generator__snapshots=last_two)
    detector.fit(blobs[0])
    assert len(seen) > 2
    assert detector.snapshots_ == seen[-2:]
    with pytest.raises(ValueError, match="returned no snapshot"):
        detector.set_params(generator__snapshots=lambda s: []).fit(blobs[0])


# Thresholds


@pytest.mark.parametrize("contamination", [0.05, 0.1, 0.5])
def test_contamination_flags_that_share_of_the_training_rows(blobs, contamination):
    detector = G2DOutlierDetector(contamination=contamination, **FAST).fit(blobs[0])
    assert np.mean(detector.predict(blobs[0]) == -1) == pytest.approx(contamination)


@pytest.mark.parametrize("contamination", ["auto", 0.05])
def test_new_normal_rows_are_flagged_at_the_nominal_rate(contamination):
    rng = np.random.default_rng(0)
    X, new = rng.normal(size=(1000, 6)), rng.normal(size=(4000, 6))
    detector = G2DOutlierDetector(contamination=contamination, random_state=0).fit(X)
    assert abs(np.mean(detector.predict(new) == -1) - 0.05) < 0.02


def test_calibrate_keeps_its_promise_on_average():
    rng = np.random.default_rng(0)
    detector = G2DOutlierDetector(random_state=0).fit(rng.normal(size=(200, 4)))
    rates = []
    for _ in range(100):
        detector.calibrate(rng.normal(size=(99, 4)), false_alarm_rate=0.1)
        rates.append(np.mean(detector.predict(rng.normal(size=(500, 4))) == -1))
    assert 0.08 < np.mean(rates) < 0.12  # exactly .10 in expectation


def test_p_values_agree_with_calibrated_predictions(fitted, blobs):
    _, X_test, y_test = blobs
    detector = copy.deepcopy(fitted)
    uncalibrated = detector.p_values(X_test)
    assert uncalibrated[y_test == -1].mean() < 0.1 < uncalibrated[y_test == 1].mean()
    detector.calibrate(X_test[:199][y_test[:199] == 1], false_alarm_rate=0.05)
    p = detector.p_values(X_test)
    assert p.min() >= 1 / 200
    np.testing.assert_array_equal(detector.predict(X_test) == -1, p <= 0.05)


def test_calibrate_says_how_many_rows_it_needs(fitted, blobs):
    with pytest.raises(ValueError, match="needs at least 99 held-out normal rows; got 98"):
        fitted.calibrate(blobs[0][:98], false_alarm_rate=0.01)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\), got 0"):
        fitted.calibrate(blobs[0], false_alarm_rate=0)


def test_predict_proba_follows_the_score(fitted, blobs):
    proba = fitted.predict_proba(blobs[1])
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    order = np.argsort(fitted.score_samples(blobs[1]))
    assert (np.diff(proba[order, 1]) >= 0).all()


@pytest.fixture(scope="module")
def with_cluster():
    """A table with a cluster of outliers, which vouch for each other, and new rows; with labels."""
    rng = np.random.default_rng(0)
    normal, cluster = rng.normal(size=(760, 4)), rng.normal(8, 0.3, size=(80, 4))
    X = np.concatenate([normal[:560], cluster[:40]])
    X_test = np.concatenate([normal[560:], cluster[40:]])
    return X, np.repeat([1, -1], [560, 40]), X_test, np.repeat([1, -1], [200, 40])


@pytest.mark.parametrize(
    ("params", "finds"),
    [
        ({"support_fraction": 1.0}, False),
        ({"support_fraction": 0.9}, True),
        ({"contamination": 0.1}, True),
        ({"contamination": 0.1, "support_fraction": 1.0}, False),
        ({}, True),  # because the cluster is remote and yet in company
    ],
)
def test_hidden_outliers_are_found_if_they_are_not_learned_from(with_cluster, params, finds):
    X, y, X_test, y_test = with_cluster
    detector = G2DOutlierDetector(**params, random_state=0).fit(X)
    new = outlier_roc_auc_score(y_test, detector.score_samples(X_test))
    own = outlier_roc_auc_score(y, detector.training_scores_)
    assert (min(new, own) > 0.95) if finds else (max(new, own) < 0.7)


def test_clean_rows_are_all_learned_from():
    X = np.random.default_rng(0).normal(size=(500, 4))
    trusting, wary = (
        G2DOutlierDetector(support_fraction=fraction, random_state=0).fit(X)
        for fraction in (1.0, "auto")
    )
    np.testing.assert_array_equal(wary.score_samples(X), trusting.score_samples(X))


@pytest.mark.parametrize("contamination", ["auto", 0.1])
def test_training_scores_are_out_of_fold_and_in_order(monkeypatch, contamination):
    X = np.random.default_rng(0).normal(size=(300, 4))
    X[17] = 9
    make = partial(G2DOutlierDetector, contamination=contamination, random_state=0)
    detector = make().fit(X)
    assert detector.training_scores_.argmin() == 17
    assert (detector.training_scores_ != detector.score_samples(X)).sum() > 100
    assert np.corrcoef(detector.training_scores_, detector.score_samples(X))[0, 1] > 0.95
    np.testing.assert_array_equal(np.sort(detector.training_scores_), detector.calibration_scores_)
    monkeypatch.setattr(_detector, "MAX_TRAINING_ROWS", 200)
    of_some = make().fit(X)
    if contamination == "auto":
        with pytest.raises(AttributeError, match="score_samples, or set contamination"):
            print(of_some.training_scores_)
    else:
        assert of_some.training_scores_.shape == (300,)
        assert np.isin(of_some.calibration_scores_, of_some.training_scores_).all()
        assert np.sum(of_some.training_scores_ == of_some.score_samples(X)) >= 100


@pytest.mark.parametrize(
    ("labels", "remedy"),
    [
        ([1, -1], r"pass X\[y == 1\]"),
        ([0, 1], r"pass X\[y == 0\]"),
        (["a", "b"], r"pass those alone\."),
    ],
)
def test_fit_warns_of_labels_that_it_does_not_use(blobs, labels, remedy):
    y = np.resize(labels, len(blobs[0]))
    detector = G2DOutlierDetector(classifier=NetworkClassifier(max_steps=1))
    with pytest.warns(UserWarning, match=remedy) as record:
        detector.fit(blobs[0], y)
    assert record[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.fit(blobs[0], np.ones(len(y)))
        detector.fit(blobs[0], np.arange(len(y)))


def test_rare_categories_are_not_ranked_above_errors():
    """A stated contamination leaves out rows, but not for a category that a twentieth has."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(600, 2))
    numbers = np.c_[numbers, numbers[:, 0] + 0.2 * rng.normal(size=600)]
    is_wrong = np.arange(600) < 12
    numbers[is_wrong, 2] += rng.choice([-3, 3], 12)
    categories = np.eye(4)[rng.choice(4, 600, p=[0.5, 0.3, 0.15, 0.05])]
    X = np.c_[numbers, categories]
    scores = G2DOutlierDetector(contamination=0.05, random_state=0).fit(X).training_scores_
    assert outlier_roc_auc_score(np.where(is_wrong, -1, 1), scores) > 0.95


def test_support_fraction_keeps_the_meaning_of_contamination():
    X = np.random.default_rng(0).normal(size=(500, 4))
    detector = G2DOutlierDetector(support_fraction=0.8, contamination=0.1, random_state=0).fit(X)
    assert np.mean(detector.predict(X) == -1) == pytest.approx(0.1)
    detector.set_params(contamination="auto").fit(X)
    assert np.mean(detector.predict(X) == -1) == pytest.approx(0.05, abs=0.02)


# Sampling


def test_sample_outliers_lie_around_the_data(fitted, blobs):
    samples = fitted.sample_outliers(500, random_state=0)
    assert samples.shape == (500, 3)
    assert np.mean(fitted.predict(samples) == -1) > 0.8
    assert (samples.std(axis=0) > blobs[0].std(axis=0)).all()
    np.testing.assert_array_equal(samples, fitted.sample_outliers(500, random_state=0))
    assert (samples != fitted.sample_outliers(500, random_state=1)).any()


def test_sample_normals_refuses_what_the_generator_cannot_do():
    X = np.random.default_rng(0).normal(size=(300, 40))
    detector = G2DOutlierDetector(generator=WassersteinGAN(max_steps=0), random_state=0).fit(X)
    with pytest.raises(RuntimeError, match="larger max_steps"):
        detector.sample_normals(10)


@pytest.mark.parametrize("method", ["sample_outliers", "sample_normals"])
def test_sampling_refuses_a_bad_count(blobs, method):
    detector = G2DOutlierDetector(**TRAINED).fit(blobs[0])
    with pytest.raises(ValueError, match="n_samples must be an integer of at least 1, got 0"):
        getattr(detector, method)(0)


# Composition


@pytest.mark.parametrize(
    "classifier", [LogisticRegression(), RandomForestClassifier(20, random_state=0)]
)
def test_any_classifier_can_detect(blobs, classifier):
    X_train, X_test, y_test = blobs
    detector = G2DOutlierDetector(
        generator=WassersteinGAN(max_steps=20), classifier=classifier, random_state=0
    ).fit(X_train)
    assert outlier_roc_auc_score(y_test, detector.score_samples(X_test)) > 0.9
    assert not hasattr(classifier, "classes_")  # it was cloned
    assert set(detector.history_) == {"critic_loss", "generator_loss"}


def test_features_transformer(blobs):
    X_train, X_test, y_test = blobs
    pca = PCA(2)
    detector = G2DOutlierDetector(features=pca, **FAST).fit(X_train)
    assert not hasattr(pca, "components_")
    assert outlier_roc_auc_score(y_test, detector.score_samples(X_test)) > 0.9
    assert detector.sample_outliers(5).shape == (5, 3)


def test_frozen_features_stay_as_they_are(blobs):
    X_train, X_test, _ = blobs
    scaler = StandardScaler().fit(2 * X_train)
    detector = G2DOutlierDetector(features=FrozenEstimator(scaler), **FAST).fit(X_train)
    np.testing.assert_array_equal(scaler.mean_, (2 * X_train).mean(axis=0))
    rows = G2DOutlierDetector(**FAST).fit(scaler.transform(X_train))
    np.testing.assert_array_equal(
        detector.score_samples(X_test), rows.score_samples(scaler.transform(X_test))
    )
    with pytest.raises(NotFittedError):
        G2DOutlierDetector(features=FrozenEstimator(StandardScaler())).fit(X_train)


def test_features_that_cannot_be_inverted_cannot_be_sampled(blobs):
    class OneWay(PCA):
        inverse_transform = property()

    detector = G2DOutlierDetector(features=OneWay(2), **FAST).fit(blobs[0])
    with pytest.raises(ValueError, match="The features OneWay have no inverse_transform"):
        detector.sample_outliers()


def test_grid_search_and_cross_validation(blobs):
    _, X, y = blobs
    search = GridSearchCV(
        make_pipeline(StandardScaler(), G2DOutlierDetector(**TRAINED)),
        {"g2doutlierdetector__n_neighbors": [5, 10]},
        scoring=SCORERS,
        refit="outlier_roc_auc",
        cv=NormalOnlySplit(3),
        n_jobs=2,
    ).fit(X, y)
    assert search.best_score_ > 0.9
    alone = cross_val_score(
        search.best_estimator_, X, y, cv=NormalOnlySplit(3), scoring=SCORERS["outlier_roc_auc"]
    )
    assert alone.mean() == pytest.approx(search.best_score_)


def test_parameters_of_a_classifier_of_scikit_learn_are_searchable(blobs):
    _, X, y = blobs
    search = GridSearchCV(
        G2DOutlierDetector(classifier=LogisticRegression(), random_state=0),
        {"classifier__C": [0.1, 1.0]},
        scoring=SCORERS["outlier_roc_auc"],
        cv=NormalOnlySplit(3),
    ).fit(X, y)
    assert search.best_params_["classifier__C"] == search.best_estimator_.classifier.C


def test_scaling_in_front_changes_nothing_much(blobs):
    X_train, X_test, _ = blobs
    alone = G2DOutlierDetector(**FAST).fit(X_train)
    piped = make_pipeline(MinMaxScaler(), G2DOutlierDetector(**FAST)).fit(X_train)
    np.testing.assert_allclose(piped.score_samples(X_test), alone.score_samples(X_test), atol=1e-3)


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_frames_and_their_column_names(blobs, frame):
    X_train, X_test, _ = blobs
    names = ["length", "width", "height"]
    detector = G2DOutlierDetector(**FAST).fit(frame(dict(zip(names, X_train.T, strict=True))))
    assert list(detector.feature_names_in_) == names
    test = frame(dict(zip(names, X_test.T, strict=True)))
    plain = G2DOutlierDetector(**FAST).fit(X_train).score_samples(X_test)
    np.testing.assert_array_equal(detector.score_samples(test), plain)
    with pytest.raises(ValueError, match="feature names should match"):
        detector.predict(test[["width", "length", "height"]])


@pytest.mark.parametrize(
    "round_trip",
    [lambda d: pickle.loads(pickle.dumps(d)), copy.deepcopy, None],
    ids=["pickle", "deepcopy", "joblib"],
)
@pytest.mark.parametrize(
    "detector",
    [
        G2DOutlierDetector(**FAST),
        G2DOutlierDetector(**TRAINED),
        G2DOutlierDetector.from_paper(data="tables", generator__max_steps=10, random_state=0),
    ],
    ids=["cloud", "trained", "paper"],
)
def test_round_trips_keep_every_bit(blobs, tmp_path, round_trip, detector):
    X_train, X_test, _ = blobs
    detector = clone(detector).fit(X_train)
    if round_trip is None:
        joblib.dump(detector, tmp_path / "detector.joblib")
        copied = joblib.load(tmp_path / "detector.joblib")
    else:
        copied = round_trip(detector)
    np.testing.assert_array_equal(copied.score_samples(X_test), detector.score_samples(X_test))
    np.testing.assert_array_equal(
        copied.sample_outliers(4, random_state=0), detector.sample_outliers(4, random_state=0)
    )


@BOTH_GENERATORS
def test_pickle_holds_no_tensor(blobs, params):
    detector = G2DOutlierDetector(**params).fit(blobs[0])
    assert b"torch._utils" not in pickle.dumps(detector)


@pytest.mark.parametrize("decimals", [10, 6, 4, 3, 2])
def test_rounded_copies_score_like_exact_ones(decimals):
    X = np.random.default_rng(0).normal(size=(600, 6))
    detector = G2DOutlierDetector(random_state=0).fit(X)
    exact = detector.score_samples(X).mean()
    assert abs(exact - detector.calibration_scores_.mean()) < 0.2
    assert abs(detector.score_samples(X.round(decimals)).mean() - exact) < 0.1


def test_rows_stored_twice_are_warned_of():
    X = np.random.default_rng(0).normal(size=(200, 3))
    with pytest.warns(UserWarning, match="30 of the 215 rows share a value only"):
        G2DOutlierDetector(random_state=0).fit(np.r_[X, X[:15]])
    with pytest.warns(UserWarning, match="400 of the 400 rows are over 10 times as near to one"):
        G2DOutlierDetector(random_state=0).fit(np.r_[X, X + 1e-6])


def test_rows_of_few_values_are_no_copies():
    X = np.random.default_rng(0).integers(0, 4, size=(800, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        G2DOutlierDetector(random_state=0).fit(X)


def test_a_group_that_is_left_out_is_warned_of():
    X = np.random.default_rng(0).normal(size=(500, 3))
    X[:30] += 8
    with pytest.warns(UserWarning, match="30 of the 500 rows are not learned from"):
        G2DOutlierDetector(random_state=0).fit(X)


def test_a_stated_contamination_keeps_many_small_groups():
    rng = np.random.default_rng(0)
    centers = rng.normal(scale=10, size=(15, 4))
    X = centers[rng.integers(15, size=950)] + rng.normal(size=(950, 4))
    outliers = rng.normal(scale=10, size=(50, 4))
    detector = G2DOutlierDetector(contamination=0.05, random_state=0).fit(np.r_[X, outliers])
    assert outlier_roc_auc_score(np.repeat([1, -1], [950, 50]), detector.training_scores_) > 0.97


def test_near_copies_of_images_score_like_exact_ones(make_stripes):
    X, _ = make_stripes(60, seed=0, size=16)
    new, _ = make_stripes(60, seed=1, size=16, n_odd=60)
    detector = G2DOutlierDetector(random_state=0).fit(X)
    exact = detector.score_samples(X).mean()
    near = detector.score_samples(X + 1e-4 * np.sign(X)).mean()
    assert abs(near - exact) < 0.05 * (exact - detector.score_samples(new).mean())


def test_clone_and_html_repr(fitted):
    assert "NotFitted" not in clone(fitted).get_params()
    assert not hasattr(clone(fitted), "offset_")
    assert "G2DOutlierDetector" in fitted._repr_html_()


def test_unfitted(blobs):
    for method in ("predict", "score_samples", "decision_function", "p_values", "calibrate"):
        with pytest.raises(NotFittedError):
            getattr(G2DOutlierDetector(), method)(blobs[0])
    for method in ("sample_outliers", "sample_normals"):
        with pytest.raises(NotFittedError):
            getattr(G2DOutlierDetector(), method)()


@pytest.mark.parametrize("value", [1e3, 1e9])
def test_a_single_corrupt_row_does_not_set_the_scale(value):
    rng = np.random.default_rng(0)
    X, X_new = rng.normal(size=(300, 4)), rng.normal(size=(1000, 4))
    detector = G2DOutlierDetector(random_state=0).fit(np.concatenate([X, [[value] * 4]]))
    assert detector.predict([[6.0] * 4, [value] * 4]).tolist() == [-1, -1]
    assert 0.02 < np.mean(detector.predict(X_new) == -1) < 0.08
