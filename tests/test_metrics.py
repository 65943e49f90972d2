"""Every metric against a case worked by hand, and against a slow computation by definition."""

import pickle
import warnings
from functools import partial
from itertools import pairwise

import joblib
import numpy as np
import pytest
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.exceptions import UndefinedMetricWarning, UnsetMetadataPassedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    average_precision_score,
    check_scoring,
    f1_score,
    get_scorer_names,
    roc_auc_score,
)
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    cross_val_score,
    cross_validate,
    learning_curve,
    validation_curve,
)
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import InvalidParameterError

from sklearn_g2d import metrics
from sklearn_g2d.metrics import (
    SCORERS,
    equal_error_rate,
    make_scorers,
    outlier_average_precision_score,
    outlier_f1_score,
    outlier_roc_auc_score,
    per_region_overlap_auc,
    pixel_level_equal_error_rate,
    register_scorers,
)
from sklearn_g2d.model_selection import NormalOnlySplit

SCORE_METRICS = [outlier_roc_auc_score, outlier_average_precision_score, equal_error_rate]

# From the most to the least anomalous: outlier, inlier, outlier, inlier.
Y, SCORE = [1, 1, -1, -1], [0.9, 0.4, 0.5, 0.1]


def random_scores(seed, decimals=1):
    """Overlapping scores, with ties, of 60 rows of which about a third is outliers."""
    rng = np.random.default_rng(seed)
    y = np.where(rng.random(60) < 0.3, -1, 1)
    return y, np.round(rng.normal(size=60) + 0.8 * y, decimals)


# Scores


def test_outlier_roc_auc_by_hand():
    # (.9, .5), (.9, .1), (.4, .1) are in order, (.4, .5) is not.
    assert outlier_roc_auc_score(Y, SCORE) == 0.75


def test_outlier_roc_auc_counts_ties_one_half():
    assert outlier_roc_auc_score([1, 1, -1], [2, 1, 1]) == 0.75


@pytest.mark.parametrize("seed", range(3))
def test_outlier_roc_auc_is_the_share_of_pairs_in_order(seed):
    y, score = random_scores(seed)
    gap = score[y == 1][:, None] - score[y == -1]
    by_pairs = np.mean((gap > 0) + 0.5 * (gap == 0))
    assert outlier_roc_auc_score(y, score) == pytest.approx(by_pairs)
    assert outlier_roc_auc_score(y, score) == pytest.approx(roc_auc_score(y, score))


def test_outlier_average_precision_by_hand():
    # Precision is 1 at recall 1/2 and 2/3 at recall 1.
    assert outlier_average_precision_score(Y, SCORE) == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize("seed", range(3))
def test_outlier_average_precision_is_scikit_learns_of_the_outliers(seed):
    y, score = random_scores(seed)
    expected = average_precision_score(y, -score, pos_label=-1)
    assert outlier_average_precision_score(y, score) == pytest.approx(expected)
    assert expected != pytest.approx(average_precision_score(y, score))


def test_outlier_average_precision_of_constant_scores_is_the_share_of_outliers():
    assert outlier_average_precision_score([1, 1, 1, -1], np.zeros(4)) == 0.25


@pytest.mark.parametrize(
    ("inliers", "outliers", "expected"),
    [
        pytest.param([3, 4], [1, 2], 0, id="perfect"),
        pytest.param([1, 2], [3, 4], 1, id="inverted"),
        pytest.param([0.9, 0.4], [0.5, 0.1], 1 / 2, id="half"),
        pytest.param([5, 5, 5], [5, 5], 1 / 2, id="all tied"),
        pytest.param([2, 3, 4, 1], [2.5], 1 / 2, id="crosses on a vertical piece"),
        pytest.param([10, 9, 8, 7, 6], [1, 2, 3, 8.5], 1 / 4, id="crosses on a horizontal piece"),
        # The tie leads from (0, 1/2) to (1/3, 0) and meets fpr = fnr three fifths of the way.
        pytest.param([3, 2, 1], [1, 0], 1 / 5, id="crosses on a tie"),
    ],
)
def test_equal_error_rate_by_hand(inliers, outliers, expected):
    y = [1] * len(inliers) + [-1] * len(outliers)
    assert equal_error_rate(y, inliers + outliers) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_equal_error_rate_lies_between_the_rates_at_the_thresholds_around_it(seed):
    y, score = random_scores(seed)
    false_alarms, misses = np.array(
        [
            (np.mean(score[y == 1] < t), np.mean(score[y == -1] >= t))
            for t in np.append(np.unique(score), np.inf)
        ]
    ).T
    eer = equal_error_rate(y, score)
    after = np.argmax(false_alarms >= misses)
    eps = 1e-12
    assert false_alarms[after - 1] - eps <= eer <= false_alarms[after] + eps
    assert misses[after] - eps <= eer <= misses[after - 1] + eps


@pytest.mark.parametrize("metric", SCORE_METRICS)
def test_score_metrics_depend_on_the_order_of_scores_only(metric):
    y, score = random_scores(0)
    assert metric(y, np.exp(3 * score) - 100) == pytest.approx(metric(y, score))
    shuffled = np.random.default_rng(0).permutation(len(y))
    assert metric(y[shuffled], score[shuffled]) == pytest.approx(metric(y, score))


@pytest.mark.parametrize("metric", SCORE_METRICS)
def test_score_metrics_return_python_floats(metric):
    assert type(metric(np.array(Y), np.array(SCORE, dtype=np.float32))) is float


def test_outlier_f1_by_hand():
    # Two of three outliers are found, with one false alarm.
    assert outlier_f1_score([1, 1, -1, -1, -1], [1, -1, -1, -1, 1]) == pytest.approx(2 / 3)


def test_outlier_f1_is_scikit_learns_of_the_outliers():
    y, score = random_scores(0)
    predicted = np.where(score < 0, -1, 1)
    assert outlier_f1_score(y, predicted) == f1_score(y, predicted, pos_label=-1)
    assert outlier_f1_score(y, predicted) != f1_score(y, predicted)


def test_outlier_f1_is_zero_when_nothing_is_flagged():
    assert outlier_f1_score([1, 1, -1], [1, 1, 1]) == 0


# Labels

# Ways to say which rows are outliers, of an array of bool, and the pos_label that they need.
LABELS = {
    "scikit-learn's": (lambda outlier: np.where(outlier, -1, 1), None),
    "PyOD's": (lambda outlier: outlier.astype(np.uint8), None),
    "floats": (lambda outlier: np.where(outlier, -1.0, 1.0), None),
    "booleans": (lambda outlier: outlier, None),
    "a list": (lambda outlier: outlier.tolist(), None),
    "texts": (lambda outlier: np.where(outlier, "bad", "good"), "bad"),
    "other numbers": (lambda outlier: 7 - outlier, 6),
    "numbers turned": (lambda outlier: 1 - outlier, 0),
    "objects": (lambda outlier: outlier.astype(int).astype(object), None),
    "objects of texts": (lambda outlier: np.where(outlier, "bad", "good").astype(object), "bad"),
}


def series_of(library, dtype, outlier):
    module = pytest.importorskip(library)
    values = np.where(outlier, "bad", "good") if dtype in ("str", "category") else outlier
    if library == "polars":
        kinds = {"bool": module.Boolean, "str": module.String, "category": module.Categorical}
        return module.Series(values, dtype=kinds.get(dtype, module.Int8))
    index = np.arange(len(outlier))[::-1]
    return module.Series(values, index=index).astype("boolean" if dtype == "bool" else dtype)


LABELS |= {
    f"{library} {dtype}": (
        partial(series_of, library, dtype),
        "bad" if dtype in ("str", "category") else None,
    )
    for library in ("pandas", "polars")
    for dtype in ("Int64", "bool", "str", "category")
}


@pytest.mark.parametrize("labels", LABELS)
def test_metrics_and_scorers_read_every_kind_of_labels(labels):
    make, pos_label = LABELS[labels]
    y, score = random_scores(0)
    labelled, predicted = make(y == -1), np.where(score < 0, -1, 1)
    scorers = make_scorers(pos_label=pos_label)
    for metric in SCORE_METRICS:
        assert metric(labelled, score, pos_label=pos_label) == metric(y, score), metric
    given = outlier_f1_score(labelled, predicted, pos_label=pos_label)
    assert given == outlier_f1_score(y, predicted)
    for name, scorer in scorers.items():
        expected = SCORERS[name](FirstColumn(), score[:, None], y)
        assert scorer(FirstColumn(), score[:, None], labelled) == expected, name


@pytest.mark.parametrize("labels", ["PyOD's", "texts", "polars str"])
def test_cross_validation_is_the_same_for_all_kinds_of_labels(labels, table, pipeline):
    make, pos_label = LABELS[labels]
    X, y = table
    cv = NormalOnlySplit(3, pos_label=pos_label)
    given = cross_validate(
        pipeline, X, make(y == -1), cv=cv, scoring=make_scorers(pos_label=pos_label)
    )
    expected = cross_validate(pipeline, X, y, cv=NormalOnlySplit(3), scoring=SCORERS)
    for name in SCORERS:
        np.testing.assert_array_equal(given[f"test_{name}"], expected[f"test_{name}"])
        assert np.ptp(given[f"test_{name}"]) > 0


def test_predictions_are_read_by_their_own_labels():
    # Nothing is flagged, though 1 is the outlier among the labels.
    assert outlier_f1_score([0, 0, 1], [1, 1, 1]) == 0
    assert outlier_f1_score([0, 0, 1], [1, 1, -1]) == 1
    assert outlier_f1_score([1, 1, -1], [False, False, True]) == 1
    assert outlier_f1_score([3, 3, 4], [1, 1, -1], pos_label=4) == 1
    assert outlier_f1_score(["a", "a", "b"], ["a", "a", "b"], pos_label="b") == 1


# Weights


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), n_rows=st.integers(4, 30))
def test_weights_count_rows_as_copies_of_them_do(seed, n_rows):
    rng = np.random.default_rng(seed)
    y = rng.permutation([1, 1, -1, -1, *rng.choice([-1, 1], size=n_rows - 4)])
    score = np.round(rng.normal(size=n_rows) + 0.5 * y, 1)
    weight = rng.integers(4, size=n_rows)
    weight[[np.argmax(y == 1), np.argmax(y == -1)]] = 2
    copies = np.repeat(np.arange(n_rows), weight)
    for metric in SCORE_METRICS:
        expected = metric(y[copies], score[copies])
        assert metric(y, score, sample_weight=weight) == pytest.approx(expected, abs=1e-12), metric
    predicted = np.where(score < 0, -1, 1)
    assert outlier_f1_score(y, predicted, sample_weight=weight) == pytest.approx(
        outlier_f1_score(y[copies], predicted[copies]), abs=1e-12
    )


@pytest.mark.parametrize("metric", [pixel_level_equal_error_rate, per_region_overlap_auc])
@pytest.mark.parametrize("seed", range(3))
def test_weights_count_images_as_copies_of_them_do(metric, seed):
    masks, maps = random_maps(seed, shape=(20, 7, 9))
    maps[masks] += 1
    masks[::3] = False
    weight = np.random.default_rng(seed).integers(4, size=20)
    copies = np.repeat(np.arange(20), weight)
    weighted = metric(masks, maps, sample_weight=weight)
    assert weighted == pytest.approx(metric(masks[copies], maps[copies]), abs=1e-12)
    assert weighted != pytest.approx(metric(masks, maps))
    assert metric(masks, maps, sample_weight=np.full(20, 2.0)) == pytest.approx(metric(masks, maps))


def test_weighted_roc_auc_and_average_precision_are_scikit_learns():
    y, score = random_scores(1)
    weight = np.random.default_rng(0).random(60)
    assert outlier_roc_auc_score(y, score, sample_weight=weight) == pytest.approx(
        roc_auc_score(y, score, sample_weight=weight)
    )
    assert outlier_average_precision_score(y, score, sample_weight=weight) == pytest.approx(
        average_precision_score(y, -score, pos_label=-1, sample_weight=weight)
    )


@pytest.mark.parametrize("metric", [*SCORE_METRICS, outlier_f1_score])
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1, 1, 1], r"sample_weight.shape == \(3,\), expected \(4,\)"),
        ([1, 1, 1, -1], "Negative values"),
        ([1, 1, np.nan, 1], "sample_weight contains NaN"),
        ([1, 1, 0, 0], r"only contains \[1\] where sample_weight is not 0"),
    ],
)
def test_unusable_weights_are_an_error(metric, weight, message):
    with pytest.raises(ValueError, match=message):
        metric(Y, Y, sample_weight=weight)


# Errors


@pytest.mark.parametrize("metric", [*SCORE_METRICS, outlier_f1_score])
@pytest.mark.parametrize(
    ("y", "pos_label", "message"),
    [
        ([0, 1, -1, 1], None, r"must hold \+1 .* contains -1, 0, 1\. Pass pos_label"),
        ([1, 1, 1, 2], None, r"must hold \+1 .* contains 1, 2\. Pass pos_label"),
        (["in", "in", "out", "in"], None, "the texts 'in', 'out', .* Pass pos_label, the label of"),
        (["in", "in", "out", "in"], "oat", "With pos_label='oat', .* contains 'in', 'out'"),
        (["a", "b", "c", "a"], "c", "that label and one other, but contains 'a', 'b', 'c'"),
        ([1, 1, 1, np.nan], None, "y_true contains NaN"),
        ([1, 1, 2, np.nan], 2, "y_true contains NaN"),
        ([1, 1, -1, None], None, "of one kind.* without missing"),
        (np.array([1, 1, -1, "in"], dtype=object), None, "of one kind"),
        (np.array([1, 1, -1, "in"], dtype=object), "in", "of one kind"),
        ([b"a", b"b", b"b", b"b"], "a", "of one kind"),
        (np.eye(4, 2), None, "1d array"),
        ([], None, r"got 0 of dtype|inconsistent"),
    ],
)
def test_unknown_labels_are_named_with_the_remedy(metric, y, pos_label, message):
    with pytest.raises(ValueError, match=message):
        metric(y, [1, 1, -1, -1], pos_label=pos_label)


def test_outlier_f1_checks_predictions_too():
    with pytest.raises(ValueError, match=r"y_pred must hold \+1 for .* contains 0, 1\..* 1 - 2"):
        outlier_f1_score([1, -1], [0, 1])
    with pytest.raises(ValueError, match=r"y_pred contains the texts 'a'.* pos_label"):
        outlier_f1_score([1, -1], ["a", "a"])


@pytest.mark.parametrize("metric", [*SCORE_METRICS, outlier_f1_score])
@pytest.mark.parametrize("label", [1, -1, 0, True, "a"])
def test_one_kind_of_label_is_an_error(metric, label):
    pos_label = "a" if label == "a" else None
    with pytest.raises(
        ValueError, match=rf"both inliers and outliers, but it only contains \[{label!r}\]\."
    ):
        metric([label, label], [1, 1], pos_label=pos_label)


@pytest.mark.parametrize("metric", SCORE_METRICS)
@pytest.mark.parametrize(
    ("score", "message"),
    [
        ([0.1, 0.2, 0.3], "inconsistent numbers of samples"),
        ([0.1, np.nan, 0.3, 0.4], "y_score contains NaN"),
        (np.zeros((4, 2)), "1d array"),
    ],
)
def test_unusable_scores_are_an_error(metric, score, message):
    with pytest.raises(ValueError, match=message):
        metric(Y, score)


# Scorers


class FirstColumn(OutlierMixin, BaseEstimator):
    """Detector whose decision function is the first column."""

    def __init__(self, shift=0):
        self.shift = shift

    def fit(self, X, y=None):
        self.is_fitted_ = True
        return self

    def decision_function(self, X):
        return X[:, 0] + self.shift

    def predict(self, X):
        return np.where(self.decision_function(X) < 0, -1, 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("outlier_roc_auc", 0.75),
        ("outlier_average_precision", 5 / 6),
        ("outlier_f1", 2 / 3),  # the threshold lies between .1 and .4
        ("neg_equal_error_rate", -0.5),
    ],
)
def test_scorers_by_hand(name, expected):
    X = np.array(SCORE)[:, None] - 0.3
    assert SCORERS[name](FirstColumn(), X, Y) == pytest.approx(expected)


@pytest.mark.parametrize("name", SCORERS)
def test_scorers_are_greater_for_the_better_detector(name):
    X = np.array(SCORE)[:, None] - 0.3
    ideal = np.array(Y)[:, None]
    assert SCORERS[name](FirstColumn(), ideal, Y) > SCORERS[name](FirstColumn(), X, Y)
    assert SCORERS[name](FirstColumn(), X, Y) > SCORERS[name](FirstColumn(), -ideal, Y)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    y = np.where(np.arange(120) % 6, 1, -1)
    return np.where(y[:, None] == 1, 1.0, 1.8) * rng.normal(size=(120, 3)), y


@pytest.fixture
def pipeline():
    return make_pipeline(StandardScaler(), LocalOutlierFactor(n_neighbors=10, novelty=True))


def test_scorers_work_in_cross_validation_of_a_pipeline(table, pipeline):
    X, y = table
    cv = NormalOnlySplit(3)
    result = cross_validate(pipeline, X, y, cv=cv, scoring=SCORERS)
    for fold, (train, test) in enumerate(cv.split(X, y)):
        pipeline.fit(X[train])
        score = pipeline.decision_function(X[test])
        assert {name: result[f"test_{name}"][fold] for name in SCORERS} == pytest.approx(
            {
                "outlier_roc_auc": outlier_roc_auc_score(y[test], score),
                "outlier_average_precision": outlier_average_precision_score(y[test], score),
                "outlier_f1": outlier_f1_score(y[test], pipeline.predict(X[test])),
                "neg_equal_error_rate": -equal_error_rate(y[test], score),
            }
        )
    alone = cross_val_score(pipeline, X, y, cv=cv, scoring=SCORERS["outlier_roc_auc"])
    np.testing.assert_array_equal(alone, result["test_outlier_roc_auc"])


def test_a_search_refits_the_candidate_of_least_equal_error_rate(table, pipeline):
    X, y = table
    search = GridSearchCV(
        pipeline,
        {"localoutlierfactor__n_neighbors": [1, 5, 30]},
        cv=NormalOnlySplit(3),
        scoring=SCORERS,
        refit="neg_equal_error_rate",
    ).fit(X, y)
    rates = -search.cv_results_["mean_test_neg_equal_error_rate"]
    assert search.best_index_ == np.argmin(rates)
    assert 0 < rates.min() < rates.max() < 1


def test_scorers_weigh_rows():
    y, score = random_scores(2)
    weight = np.random.default_rng(0).integers(4, size=60)
    copies = np.repeat(np.arange(60), weight)
    X = score[:, None]
    for scorer in SCORERS.values():
        weighted = scorer(FirstColumn(), X, y, sample_weight=weight)
        assert weighted == pytest.approx(scorer(FirstColumn(), X[copies], y[copies]))
        assert weighted != pytest.approx(scorer(FirstColumn(), X, y))


def test_scorers_are_nan_where_one_kind_has_no_weight():
    y, score = random_scores(2)
    for scorer in SCORERS.values():
        with pytest.warns(UndefinedMetricWarning, match="where sample_weight is not 0"):
            value = scorer(FirstColumn(), score[:, None], y, sample_weight=(y == 1) * 2)
        assert np.isnan(value)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_weights_may_be_series(library):
    y, score = random_scores(1)
    weight = np.random.default_rng(0).random(60)
    series = pytest.importorskip(library).Series(weight)
    for metric in SCORE_METRICS:
        expected = metric(y, score, sample_weight=weight)
        assert metric(y, score, sample_weight=series) == expected


def run_cross_validate(scoring, X, y, **params):
    params = {"cv": NormalOnlySplit(2), "return_train_score": True} | params
    return cross_validate(FirstColumn(), X, y, scoring=scoring, **params)


def by_folds(results):
    return {
        key: np.array([results[f"split{split}_{key}"] for split in range(2)]).T
        for key in ("test_score", "train_score")
    }


def run_grid(scoring, X, y, params=None):
    grid = GridSearchCV(
        FirstColumn(),
        {"shift": [0, 1]},
        scoring=scoring,
        cv=NormalOnlySplit(2),
        refit=False,
        return_train_score=True,
    ).fit(X, y, **(params or {}))
    return by_folds(grid.cv_results_)


def run_halving(scoring, X, y, params=None):
    search = HalvingGridSearchCV(
        FirstColumn(),
        {"shift": [0, 1]},
        scoring=scoring,
        cv=NormalOnlySplit(2),
        min_resources=len(y),
        refit=False,
        return_train_score=True,
    ).fit(X, y, **(params or {}))
    return by_folds(search.cv_results_)


def run_learning_curve(scoring, X, y, **params):
    _, train, test = learning_curve(
        FirstColumn(),
        X,
        y,
        train_sizes=[0.5, 1.0],
        scoring=scoring,
        cv=NormalOnlySplit(2),
        **params,
    )
    return {"train_score": train, "test_score": test}


def run_validation_curve(scoring, X, y, **params):
    train, test = validation_curve(
        FirstColumn(),
        X,
        y,
        param_name="shift",
        param_range=[0, 1],
        scoring=scoring,
        cv=NormalOnlySplit(2),
        **params,
    )
    return {"train_score": train, "test_score": test}


RUNS = [run_cross_validate, run_grid, run_halving, run_learning_curve, run_validation_curve]


@pytest.fixture(scope="module")
def column():
    y, score = random_scores(0, decimals=3)
    return score[:, None], y


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", SCORERS)
def test_folds_without_outliers_are_nan_with_one_warning(run, name, column):
    for _ in range(2):  # in every search anew
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scores = run(SCORERS[name], *column)
        assert np.isnan(scores["train_score"]).all()
        assert np.isfinite(scores["test_score"]).all()
        ours = [w for w in caught if w.category is UndefinedMetricWarning]
        assert len(ours) == 1
        assert "only contains [1]. The score of such rows is nan" in str(ours[0].message)
        assert not any("Traceback" in str(w.message) for w in caught)


def test_all_scorers_and_folds_warn_once_together(column):
    with pytest.warns(UndefinedMetricWarning, match="no outliers on purpose") as caught:
        scores = run_cross_validate(SCORERS, *column)
    assert all(np.isnan(scores[f"train_{name}"]).all() for name in SCORERS)
    assert len(caught) == 1


def test_folds_of_both_kinds_have_training_scores(column):
    scores = run_cross_validate(SCORERS, *column, cv=KFold(2))
    assert all(np.isfinite(scores[f"train_{name}"]).all() for name in SCORERS)


def test_threads_warn_together(column):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with joblib.parallel_config("threading"):
            scores = run_cross_validate(SCORERS, *column, n_jobs=2)
    assert np.isnan(scores["train_outlier_f1"]).all()
    assert len(caught) <= 1  # none where threads of another test have warned


def test_a_scorer_alone_warns_each_time():
    for _ in range(2):
        with pytest.warns(UndefinedMetricWarning):
            assert np.isnan(SCORERS["outlier_f1"](FirstColumn(), np.ones((2, 1)), [-1, -1]))


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.filterwarnings("ignore:One or more of the:UserWarning")
def test_weights_reach_scorers_by_metadata_routing(run, column):
    X, y = column
    weight = np.random.default_rng(0).integers(1, 4, size=60)
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_scorers()["outlier_average_precision"].set_score_request(sample_weight=True)
        weighted = run(scorer, X, y, params={"sample_weight": weight})["test_score"]
        with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
            run(SCORERS["outlier_average_precision"], X, y, params={"sample_weight": weight})
    expected = [
        outlier_average_precision_score(y[test], X[test, 0], sample_weight=weight[test])
        for _, test in NormalOnlySplit(2).split(X, y)
    ]
    np.testing.assert_allclose(weighted, np.broadcast_to(expected, weighted.shape))


def test_registered_scorers_are_known_by_name(column):
    for _ in range(2):
        register_scorers()
    assert set(SCORERS) < set(get_scorer_names())
    for run in RUNS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            by_name = run("outlier_f1", *column)["test_score"]
            given = run(SCORERS["outlier_f1"], *column)["test_score"]
        np.testing.assert_array_equal(by_name, given)
    scores = cross_validate(FirstColumn(), *column, cv=2, scoring=list(SCORERS))
    assert {f"test_{name}" for name in SCORERS} < set(scores)
    assert check_scoring(FirstColumn(), "outlier_roc_auc").__name__ == "outlier_roc_auc"
    with pytest.raises(InvalidParameterError, match="outlier_roc_aux"):
        cross_validate(FirstColumn(), *column, scoring="outlier_roc_aux")


@pytest.mark.parametrize("pos_label", [None, "bad"])
def test_scorers_say_what_they_are(pos_label):
    for name, scorer in make_scorers(pos_label).items():
        assert scorer.__name__ == name
        for copied in (scorer, clone(scorer, safe=False), pickle.loads(pickle.dumps(scorer))):
            origin = "SCORERS" if pos_label is None else "make_scorers(pos_label='bad')"
            assert repr(copied) == f"{origin}['{name}']"
            assert repr(eval(repr(copied))) == repr(copied)  # noqa: S307


# Estimators whose scores have other signs


def of_pyod(estimator):
    """Give what comes from PyOD, as far as a scorer sees it, or what a user derived from that."""
    given = type("KNN", (type(estimator),), {"__module__": "pyod.models.knn"})
    return type("MyKNN", (given,), {"__module__": "mine"})()


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda detector: detector,
        lambda detector: make_pipeline(StandardScaler(), detector),
        FrozenEstimator,
        lambda detector: GridSearchCV(detector, {"shift": [0]}, scoring="roc_auc", cv=2),
        lambda detector: make_pipeline(
            StandardScaler(), GridSearchCV(detector, {"shift": [0]}, scoring="roc_auc", cv=2)
        ),
    ],
    ids=["alone", "pipeline", "frozen", "search", "search in a pipeline"],
)
def test_a_detector_of_pyod_is_an_error_that_names_the_adapter(name, wrap, column):
    X, y = column
    fitted = wrap(of_pyod(FirstColumn()).fit(X)).fit(X, y)
    with pytest.raises(TypeError, match=r"MyKNN is a detector of PyOD.*opposite.*FromPyOD"):
        SCORERS[name](fitted, X, y)
    assert np.isfinite(SCORERS[name](wrap(FirstColumn().fit(X)).fit(X, y), X, y))


def test_a_search_over_a_detector_of_pyod_is_an_error(column):
    with pytest.raises(TypeError, match=r"sklearn_g2d\.adapters\.FromPyOD"):
        cross_val_score(
            of_pyod(FirstColumn()),
            *column,
            cv=NormalOnlySplit(2),
            scoring=SCORERS["outlier_roc_auc"],
            error_score="raise",
        )


def test_pyods_own_detectors_are_known(column):
    knn = pytest.importorskip("pyod.models.knn")
    X, y = column
    with pytest.raises(TypeError, match="KNN is a detector of PyOD"):
        SCORERS["outlier_roc_auc"](knn.KNN().fit(X), X, y)


def test_a_wrapper_of_a_detector_of_pyod_is_scored(column):
    class Wrapper(FirstColumn):
        def __init__(self, detector=None, shift=0):
            super().__init__(shift)
            self.detector = detector

    X, y = column
    wrapper = Wrapper(of_pyod(FirstColumn()))
    assert SCORERS["outlier_roc_auc"](wrapper, X, y) == outlier_roc_auc_score(y, X[:, 0])


def test_classifiers_are_scored_where_higher_is_more_normal(column):
    X, y = column
    score = SCORERS["outlier_roc_auc"](LogisticRegression().fit(X, y), X, y)
    assert score == outlier_roc_auc_score(y, X[:, 0]) > 0.6
    flagged = LogisticRegression().fit(X, y == -1)
    with pytest.raises(
        TypeError, match=r"LogisticRegression is a classifier of .*True.* Fit it on"
    ):
        SCORERS["outlier_roc_auc"](flagged, X, y == -1)
    with pytest.raises(TypeError, match="without pos_label"):
        make_scorers(pos_label=1)["outlier_roc_auc"](LogisticRegression().fit(X, y), X, y)


# Pixels


def random_maps(seed, shape=(6, 7, 9), decimals=1):
    """Masks of blobs in four of six frames, and maps, with ties, that find them poorly."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=shape), (0, 1, 1))
    masks = field > np.quantile(field, 0.8, axis=(1, 2), keepdims=True)
    masks[:2] = False
    return masks, np.round(rng.normal(size=shape) + masks, decimals)


def brute_force_pixel_level_eer(masks, maps, min_overlap):
    is_anomalous = masks.any(axis=(1, 2))
    before = (0.0, 1.0)
    for threshold in np.unique(maps)[::-1]:
        flagged = maps >= threshold
        found = [
            np.mean(f[m]) >= min_overlap for f, m in zip(flagged, masks, strict=True) if m.any()
        ]
        fpr, fnr = np.mean(flagged[~is_anomalous].any(axis=(1, 2))), 1 - np.mean(found)
        if fpr >= fnr:
            # Where the straight piece from the point before meets fpr = fnr.
            gap_before, gap = before[1] - before[0], fpr - fnr
            return (before[0] * gap + fpr * gap_before) / (gap + gap_before)
        before = (fpr, fnr)
    raise AssertionError("the lowest threshold flags everything")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("min_overlap", [0.01, 0.4, 0.75, 1.0])
def test_pixel_level_eer_is_that_of_a_sweep_of_thresholds(seed, min_overlap):
    masks, maps = random_maps(seed)
    assert pixel_level_equal_error_rate(masks, maps, min_overlap=min_overlap) == pytest.approx(
        brute_force_pixel_level_eer(masks, maps, min_overlap)
    )


@pytest.mark.parametrize(("n_found", "expected"), [(4, 0), (3, 1)])
def test_pixel_level_eer_takes_forty_percent_by_default(n_found, expected):
    masks = np.zeros((2, 1, 10), dtype=bool)
    masks[1] = True
    maps = np.zeros((2, 1, 10))
    maps[0, 0, 0] = 1
    maps[1, 0, :n_found] = 2
    assert pixel_level_equal_error_rate(masks, maps) == expected


def test_pixel_level_eer_ignores_hits_beside_the_anomaly():
    masks = np.zeros((2, 1, 4), dtype=bool)
    masks[1, 0, 0] = True
    maps = np.array([[[2, 0, 0, 0]], [[1, 9, 9, 9]]])
    assert pixel_level_equal_error_rate(masks, maps) == 1


def test_pixel_level_eer_counts_an_overlap_of_exactly_min_overlap():
    masks = np.zeros((2, 5, 5), dtype=bool)
    masks[1] = True
    maps = np.zeros((2, 5, 5))
    maps[0, 0, 0] = 1
    maps[1].flat[:7] = 2
    assert pixel_level_equal_error_rate(masks, maps, min_overlap=7 / 25) == 0


def test_pixel_level_eer_leaves_the_maps_alone():
    masks, maps = random_maps(0)
    before = maps.copy()
    pixel_level_equal_error_rate(masks, maps)
    np.testing.assert_array_equal(maps, before)


def brute_force_per_region_overlap_auc(masks, maps, limit):
    regions = []
    for i, mask in enumerate(masks):
        labels, n = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(i, labels == k) for k in range(1, n + 1)]
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        flagged = maps >= threshold
        points.append(
            (flagged[~masks].mean(), np.mean([flagged[i][region].mean() for i, region in regions]))
        )
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < x1 and x0 < limit:
            end = min(x1, limit)
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + y_end) / 2
    return area / limit


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("decimals", [0, 1, 9])
@pytest.mark.parametrize("limit", [0.05, 0.3, 0.77])
def test_per_region_overlap_auc_is_that_of_a_sweep_of_thresholds(seed, decimals, limit):
    masks, maps = random_maps(seed, decimals=decimals)
    assert per_region_overlap_auc(masks, maps, max_false_positive_rate=limit) == pytest.approx(
        brute_force_per_region_overlap_auc(masks, maps, limit)
    )


def test_per_region_overlap_auc_counts_small_regions_as_much_as_large_ones():
    masks = np.array([[[1, 0, 1, 1, 1, 1, 1, 1]]], dtype=bool)
    small_found = np.array([[[9, 5, 0, 0, 0, 0, 0, 0]]])
    large_found = np.array([[[0, 5, 9, 9, 9, 9, 9, 9]]])
    assert per_region_overlap_auc(masks, small_found) == pytest.approx(0.5)
    assert per_region_overlap_auc(masks, large_found) == pytest.approx(0.5)


def test_per_region_overlap_auc_joins_pixels_that_touch_at_a_corner():
    # One region of two pixels and one of one pixel, not three regions.
    masks = np.array([[[1, 0, 0, 0], [0, 1, 0, 1]]], dtype=bool)
    maps = np.array([[[9, 5, 5, 5], [0, 0, 5, 0]]])
    assert per_region_overlap_auc(masks, maps) == pytest.approx(0.25)


def test_per_region_overlap_auc_is_one_for_perfect_maps_and_takes_thirty_percent_by_default():
    masks, maps = random_maps(0)
    assert per_region_overlap_auc(masks, masks.astype(float)) == pytest.approx(1)
    assert per_region_overlap_auc(masks, maps) == per_region_overlap_auc(
        masks, maps, max_false_positive_rate=0.3
    )


@pytest.mark.parametrize("limit", [0.5, 1.0])
def test_per_region_overlap_auc_ends_below_a_jump_at_the_limit(limit):
    masks = np.array([[[1, 0, 0]]], dtype=bool)
    between = 1 if limit == 1 else 2  # the anomalous pixel comes last, or in the middle
    maps = np.array([[[between, 3, 2 if limit == 1 else 1]]])
    assert per_region_overlap_auc(masks, maps, max_false_positive_rate=limit) == pytest.approx(0)


@pytest.mark.parametrize("metric", [pixel_level_equal_error_rate, per_region_overlap_auc])
def test_maps_of_another_shape_are_an_error(metric):
    masks, maps = random_maps(0)
    with pytest.raises(ValueError, match=r"\(6, 7, 9\) and \(6, 7, 8\)"):
        metric(masks, maps[:, :, :8])
    with pytest.raises(ValueError, match=r"must both have shape \(n, height, width\)"):
        metric(masks[0], maps[0])


@pytest.mark.parametrize("value", [0, -0.1, 1.1])
def test_rates_out_of_range_are_an_error(value):
    masks, maps = random_maps(0)
    with pytest.raises(ValueError, match=rf"min_overlap must lie in \(0, 1\], got {value}"):
        pixel_level_equal_error_rate(masks, maps, min_overlap=value)
    with pytest.raises(ValueError, match=rf"max_false_positive_rate must .* got {value}"):
        per_region_overlap_auc(masks, maps, max_false_positive_rate=value)


@pytest.mark.parametrize("value", [False, True])
def test_masks_of_one_kind_are_an_error(value):
    masks, maps = random_maps(0)
    masks = np.full_like(masks, value)
    with pytest.raises(ValueError, match=f"{6 * value} of 6 frames are anomalous"):
        pixel_level_equal_error_rate(masks, maps)
    with pytest.raises(ValueError, match="both normal and anomalous pixels"):
        per_region_overlap_auc(masks, maps)


def test_all_names_what_exists():
    assert all(hasattr(metrics, name) for name in metrics.__all__)
