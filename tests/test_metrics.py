"""Every metric against a case worked by hand, and against a slow computation by definition."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_g2d import metrics
from sklearn_g2d.metrics import (
    SCORERS,
    equal_error_rate,
    outlier_average_precision_score,
    outlier_f1_score,
    outlier_roc_auc_score,
    per_region_overlap_auc,
    pixel_level_equal_error_rate,
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


@pytest.mark.parametrize("y", [[1, 1, -1], [1, 1, 1]])
def test_outlier_f1_is_zero_when_nothing_is_flagged(y):
    assert outlier_f1_score(y, [1, 1, 1]) == 0


# Errors


@pytest.mark.parametrize("metric", [*SCORE_METRICS, outlier_f1_score])
@pytest.mark.parametrize(
    ("y", "named"), [([0, 0, 1, 1], "0"), ([1, 1, -1, 2], "2"), (["in", "in", "out", "in"], "in")]
)
def test_unknown_labels_are_named_with_the_remedy(metric, y, named):
    with pytest.raises(ValueError, match=rf"y_true .*contains .*\b{named}\b.*1 - 2 \* y"):
        metric(y, [1, 1, -1, -1])


def test_outlier_f1_checks_predictions_too():
    with pytest.raises(ValueError, match=r"y_pred must hold \+1 for inliers and -1"):
        outlier_f1_score([1, -1], [0, 1])


@pytest.mark.parametrize("metric", SCORE_METRICS)
@pytest.mark.parametrize("label", [1, -1])
def test_one_kind_of_label_is_an_error(metric, label):
    with pytest.raises(ValueError, match=f"both inliers .* and outliers .* only contains {label}"):
        metric([label, label], [0.1, 0.2])


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

    def fit(self, X, y=None):
        self.is_fitted_ = True
        return self

    def decision_function(self, X):
        return X[:, 0]

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
