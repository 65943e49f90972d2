import re

import numpy as np
import pytest
import sklearn
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneOut,
    StratifiedKFold,
    cross_val_score,
    cross_validate,
)
from sklearn.neighbors import LocalOutlierFactor

from sklearn_g2d.model_selection import NormalOnlySplit


@pytest.fixture
def table():
    """40 rows, the last 8 of them outliers; the column says which."""
    y = np.repeat([1, -1], [32, 8])
    X = np.random.default_rng(0).normal(size=40) + 4 * (y == -1)
    return X[:, None], y


def assert_same_splits(actual, expected):
    actual, expected = list(actual), list(expected)
    assert len(actual) == len(expected)
    for (train, test), (expected_train, expected_test) in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(train, expected_train)
        np.testing.assert_array_equal(test, expected_test)


def without_outliers(splits, y):
    return [([i for i in train if y[i] == 1], test) for train, test in splits]


@pytest.mark.parametrize(
    "cv",
    [
        KFold(4, shuffle=True, random_state=0),
        StratifiedKFold(2),
        LeaveOneOut(),
        [(np.arange(20), np.arange(20, 40)), (list(range(30, 5, -1)), [39, 0])],
    ],
    ids=["KFold", "StratifiedKFold", "LeaveOneOut", "list"],
)
def test_takes_only_the_outliers_from_training_and_nothing_from_test(cv, table):
    X, y = table
    splits = cv if isinstance(cv, list) else list(cv.split(X, y))
    split = NormalOnlySplit(cv)
    assert_same_splits(split.split(X, y), without_outliers(splits, y))
    assert split.get_n_splits(X, y) == len(splits)


@pytest.mark.parametrize("n", [2, 5])
def test_an_integer_is_stratified_unlike_scikit_learns(n, table):
    X, y = table
    split = NormalOnlySplit(n)
    splits = list(split.split(X, y))
    assert_same_splits(splits, without_outliers(StratifiedKFold(n).split(X, y), y))
    assert split.get_n_splits() == len(splits) == n
    assert all(np.sum(y[test] == -1) in (8 // n, 8 // n + 1) for _, test in splits)
    assert not all(np.any(y[test] == -1) for _, test in KFold(n).split(X, y))


def test_five_folds_by_default(table):
    assert NormalOnlySplit().get_n_splits() == 5
    assert_same_splits(NormalOnlySplit().split(*table), NormalOnlySplit(5).split(*table))


def test_a_generator_of_splits_can_be_used_again(table):
    X, y = table
    split = NormalOnlySplit(KFold(4).split(X))
    expected = without_outliers(KFold(4).split(X), y)
    assert split.get_n_splits() == 4
    for _ in range(2):
        assert_same_splits(split.split(X, y), expected)


def test_labels_may_be_lists_floats_or_series_with_another_index(table):
    X, y = table
    expected = list(NormalOnlySplit(3).split(X, y))
    assert_same_splits(NormalOnlySplit(3).split(X.tolist(), y.astype(float).tolist()), expected)
    pd = pytest.importorskip("pandas")
    index = np.arange(40)[::-1]
    frame, labels = pd.DataFrame(X, index=index), pd.Series(y, index=index)
    assert_same_splits(NormalOnlySplit(3).split(frame, labels), expected)


@pytest.mark.parametrize(
    ("labels", "pos_label"),
    [
        (lambda outlier: outlier.astype(int), None),
        (lambda outlier: outlier.tolist(), None),
        (lambda outlier: outlier.astype(int).astype(object), None),
        (lambda outlier: np.where(outlier, "bad", "good"), "bad"),
        (lambda outlier: np.where(outlier, 2, 3), 2),
        (lambda outlier: pytest.importorskip("polars").Series(outlier), None),
    ],
    ids=["0 and 1", "booleans", "objects", "texts", "other numbers", "polars"],
)
@pytest.mark.parametrize("cv", [3, KFold(4)], ids=str)
def test_labels_may_be_of_every_kind(labels, pos_label, cv, table):
    X, y = table
    split = NormalOnlySplit(cv, pos_label=pos_label)
    assert_same_splits(split.split(X, labels(y == -1)), NormalOnlySplit(cv).split(X, y))


def test_labels_that_are_all_one_are_normal():
    for train, _ in NormalOnlySplit(KFold(2)).split(np.zeros((4, 1)), [1, 1, 1, 1]):
        assert len(train) == 2


@pytest.mark.parametrize("routing", [False, True])
def test_groups_reach_the_splitter_inside(routing, table):
    X, y = table
    groups = np.arange(40) % 4
    cv = NormalOnlySplit(GroupKFold(2))
    assert cv.get_n_splits(X, y, groups) == 2
    for train, test in cv.split(X, y, groups):
        assert not set(groups[train]) & set(groups[test])
    with sklearn.config_context(enable_metadata_routing=routing):
        result = cross_validate(
            LocalOutlierFactor(n_neighbors=5, novelty=True),
            X,
            y,
            cv=cv,
            scoring="roc_auc",
            **({"params": {"groups": groups}} if routing else {"groups": groups}),
            return_indices=True,
        )
    expected = list(cv.split(X, y, groups))
    assert_same_splits(
        zip(result["indices"]["train"], result["indices"]["test"], strict=True), expected
    )


class Recorder(OutlierMixin, BaseEstimator):
    """Detector that scores rows by their distance from the training rows' mean."""

    def __init__(self, sign=-1):
        self.sign = sign

    def fit(self, X, y=None):
        self.seen_ = X
        return self

    def decision_function(self, X):
        return self.sign * np.abs(X - self.seen_.mean()).ravel()


def test_cross_validation_shows_no_outlier_to_fit(table):
    X, y = table
    result = cross_validate(
        Recorder(), X, y, cv=NormalOnlySplit(4), scoring="roc_auc", return_estimator=True
    )
    for detector in result["estimator"]:
        assert len(detector.seen_) == 24
        assert set(detector.seen_.ravel()) <= set(X[y == 1].ravel())
    assert (result["test_score"] > 0.9).all()


def test_search_scores_what_cross_val_score_does_and_finds_the_better(table):
    X, y = table
    cv = NormalOnlySplit(4)
    search = GridSearchCV(Recorder(), {"sign": [1, -1]}, cv=cv, scoring="roc_auc").fit(X, y)
    assert search.best_params_ == {"sign": -1}
    assert search.n_splits_ == 4
    expected = cross_val_score(Recorder(), X, y, cv=cv, scoring="roc_auc").mean()
    assert search.best_score_ == pytest.approx(expected)


def test_two_jobs_score_as_one(table):
    X, y = table
    one, two = (
        cross_val_score(
            LocalOutlierFactor(n_neighbors=5, novelty=True),
            X,
            y,
            cv=NormalOnlySplit(3),
            scoring="roc_auc",
            n_jobs=n_jobs,
        )
        for n_jobs in (1, 2)
    )
    assert one.shape == (3,)
    np.testing.assert_array_equal(one, two)


def test_repr_and_clone():
    split = NormalOnlySplit(cv=KFold(3))
    assert re.sub(r"\s+", " ", repr(split)) == (
        "NormalOnlySplit(cv=KFold(n_splits=3, random_state=None, shuffle=False), pos_label=None)"
    )
    assert split.cv.n_splits == 3
    search = clone(GridSearchCV(Recorder(), {}, cv=NormalOnlySplit(KFold(3).split(np.zeros(6)))))
    assert search.cv.get_n_splits() == 3


# Errors


def test_labels_are_required(table):
    with pytest.raises(ValueError, match=r"y is None\. Pass labels"):
        next(NormalOnlySplit().split(table[0]))
    with pytest.raises(ValueError, match=r"y is None\. Pass labels"):
        cross_val_score(Recorder(), table[0], cv=NormalOnlySplit(), scoring="roc_auc")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (0, r"y must hold .* contains -1\.0, 0\.0, 1\.0\. Pass pos_label"),
        (2, r"y must hold .* contains -1\.0, 1\.0, 2\.0\. Pass pos_label"),
        (np.nan, "y contains NaN"),
    ],
)
def test_unknown_labels_are_named_with_the_remedy(label, message, table):
    X, y = table
    y = y.astype(float)
    y[3] = label
    with pytest.raises(ValueError, match=message):
        next(NormalOnlySplit().split(X, y))


def test_texts_need_pos_label(table):
    X, y = table
    texts = np.where(y == -1, "bad", "good")
    with pytest.raises(ValueError, match=r"y contains the texts 'bad', 'good'.* Pass pos_label"):
        next(NormalOnlySplit().split(X, texts))
    with pytest.raises(ValueError, match=r"With pos_label='worse'.* contains 'bad', 'good'"):
        next(NormalOnlySplit(pos_label="worse").split(X, texts))


def test_a_training_fold_without_normal_rows_is_an_error(table):
    X, y = table
    splits = NormalOnlySplit([([0, 1, 39], [2]), ([38, 39], [0, 1])]).split(X, y)
    np.testing.assert_array_equal(next(splits)[0], [0, 1])
    with pytest.raises(ValueError, match=r"None of the 2 training rows of split 1 is normal"):
        next(splits)


def test_lengths_must_agree(table):
    X, y = table
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        next(NormalOnlySplit([([0], [1])]).split(X, y[:-1]))


@pytest.mark.parametrize("cv", ["five", 2.5])
def test_what_is_no_splitter_is_an_error(cv, table):
    with pytest.raises(ValueError, match="Expected `cv` as an integer, a cross-validation"):
        next(NormalOnlySplit(cv).split(*table))
