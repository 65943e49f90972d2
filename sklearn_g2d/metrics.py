"""Metrics for outlier detectors, with the outliers as the class of interest.

Everywhere in this module labels are scikit-learn's (+1 inlier, -1 outlier) and
scores are a detector's ``decision_function`` or ``score_samples`` (**higher = more
normal**). The pixel metrics at the end take anomaly maps, whose sign is the opposite
(**higher = more anomalous**), because that is what ``anomaly_map`` returns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    make_scorer,
    roc_auc_score,
    roc_curve,
)
from sklearn.utils import check_array, check_consistent_length, column_or_1d

__all__ = [
    "SCORERS",
    "equal_error_rate",
    "outlier_average_precision_score",
    "outlier_f1_score",
    "outlier_roc_auc_score",
    "per_region_overlap_auc",
    "pixel_level_equal_error_rate",
]


def outlier_roc_auc_score(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the ROC curve of finding the outliers.

    Parameters
    ----------
    y_true, y_score : array-like of shape (n_samples,)
        +1 for inliers and -1 for outliers, which must both occur; scores, higher = more normal.

    Returns
    -------
    float
        Probability that a random outlier scores lower than a random inlier, ties
        counting one half. 1 is perfect, .5 is chance.

    Raises
    ------
    ValueError
        If a label is neither +1 nor -1, or only one kind occurs.

    Examples
    --------
    >>> from sklearn_g2d.metrics import outlier_roc_auc_score
    >>> outlier_roc_auc_score([1, 1, -1, -1], [0.9, 0.4, 0.5, 0.1])
    0.75
    """
    return float(roc_auc_score(*_check_outlier_scores(y_true, y_score)))


def outlier_average_precision_score(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Average precision (area under precision-recall) of finding the outliers.

    Parameters
    ----------
    y_true, y_score : array-like of shape (n_samples,)
        +1 for inliers and -1 for outliers, which must both occur; scores, higher = more normal.

    Returns
    -------
    float
        Average precision with the outliers as positives; chance is their fraction of the rows.

    Raises
    ------
    ValueError
        If a label is neither +1 nor -1, or only one kind occurs.

    Examples
    --------
    >>> from sklearn_g2d.metrics import outlier_average_precision_score
    >>> round(outlier_average_precision_score([1, 1, -1, -1], [0.9, 0.1, 0.5, 0.2]), 3)
    0.583
    """
    return float(average_precision_score(*_check_outlier_scores(y_true, y_score)))


def equal_error_rate(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Error rate at the threshold where false alarms and misses are equally frequent.

    Parameters
    ----------
    y_true, y_score : array-like of shape (n_samples,)
        +1 for inliers and -1 for outliers, which must both occur; scores, higher = more normal.

    Returns
    -------
    float
        The point of the linearly interpolated ROC curve where the false-positive rate
        (inliers flagged) equals the false-negative rate (outliers missed), in [0, 1].
        0 is perfect, .5 is chance.

    Raises
    ------
    ValueError
        If a label is neither +1 nor -1, or only one kind occurs.

    Examples
    --------
    >>> from sklearn_g2d.metrics import equal_error_rate
    >>> equal_error_rate([1, 1, -1, -1], [0.9, 0.4, 0.5, 0.1])
    0.5
    """
    return _equal_error_rate(*_check_outlier_scores(y_true, y_score))


def outlier_f1_score(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """F1 score of the outliers.

    scikit-learn's ``scoring="f1"`` takes +1 as the positive class and therefore scores
    the *normal* rows, which is near 1 for any detector on rare outliers.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n_samples,)
        +1 for inliers, -1 for outliers, as ``predict`` returns them.

    Returns
    -------
    float
        Harmonic mean of precision and recall of the label -1; 0 when nothing is
        flagged.

    Examples
    --------
    >>> from sklearn_g2d.metrics import outlier_f1_score
    >>> outlier_f1_score([1, 1, 1, -1, -1], [1, 1, -1, -1, 1])
    0.5
    >>> outlier_f1_score([1, 1, 1, -1, -1], [1, 1, 1, 1, 1])  # nothing is flagged
    0.0
    """
    _check_labels(y_true, "y_true")
    _check_labels(y_pred, "y_pred")
    return float(f1_score(y_true, y_pred, pos_label=-1, zero_division=0.0))


SCORERS = {
    "outlier_roc_auc": make_scorer(outlier_roc_auc_score, response_method="decision_function"),
    "outlier_average_precision": make_scorer(
        outlier_average_precision_score, response_method="decision_function"
    ),
    "outlier_f1": make_scorer(outlier_f1_score),
    "neg_equal_error_rate": make_scorer(
        equal_error_rate, response_method="decision_function", greater_is_better=False
    ),
}
"""Scorers by name: ``scoring=SCORERS["outlier_roc_auc"]`` for one of them, or
``scoring=SCORERS, refit="outlier_roc_auc"`` for all at once."""


def pixel_level_equal_error_rate(
    masks: ArrayLike, anomaly_maps: ArrayLike, *, min_overlap: float = 0.4
) -> float:
    """Equal error rate of frames, where a hit must cover the anomaly's pixels.

    The pixel-level criterion of Mahadevan et al. (CVPR 2010): at a threshold, an
    anomalous frame counts as detected when at least `min_overlap` of its anomalous
    pixels lie above it, and a normal frame as a false alarm when any pixel does.

    Parameters
    ----------
    masks : array-like of shape (n_frames, height, width)
        Ground truth, True where a pixel is anomalous. A frame is anomalous when any is.
    anomaly_maps : array-like of shape (n_frames, height, width)
        Scores, higher = more anomalous.
    min_overlap : float in (0, 1], default=0.4
        Fraction of the anomalous pixels that a detection has to cover.

    Returns
    -------
    float
        Equal error rate in [0, 1].

    Raises
    ------
    ValueError
        If the shapes differ, or the frames are all normal or all anomalous.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d.metrics import pixel_level_equal_error_rate
    >>> masks = np.zeros((2, 4, 4), dtype=bool)
    >>> masks[1, :2, :2] = True  # the second frame is anomalous
    >>> pixel_level_equal_error_rate(masks, masks.astype(float))
    0.0
    >>> pixel_level_equal_error_rate(masks, np.zeros(masks.shape))  # a map that shows nothing
    0.5
    """
    masks, anomaly_maps = _check_maps(masks, anomaly_maps)
    if not 0 < min_overlap <= 1:
        raise ValueError(f"min_overlap must lie in (0, 1], got {min_overlap!r}.")
    is_anomalous = np.any(masks, axis=(1, 2))
    if is_anomalous.all() or not is_anomalous.any():
        raise ValueError(
            "The pixel-level EER needs both normal frames (an empty mask) and anomalous "
            f"ones; {int(is_anomalous.sum())} of {len(masks)} frames are anomalous."
        )
    # A frame changes sides at one threshold: its highest pixel where it is normal, the
    # pixel that completes the required overlap where it is anomalous.
    critical = anomaly_maps.max(axis=(1, 2))
    for i in np.flatnonzero(is_anomalous):
        inside = np.sort(anomaly_maps[i][masks[i]])[::-1]
        # The epsilon mends products such as 0.28 * 25 = 7.000000000000001.
        critical[i] = inside[int(np.ceil(min_overlap * len(inside) - 1e-9)) - 1]
    return _equal_error_rate(is_anomalous, critical)


def per_region_overlap_auc(
    masks: ArrayLike, anomaly_maps: ArrayLike, *, max_false_positive_rate: float = 0.3
) -> float:
    """Area under the per-region-overlap curve (AUPRO).

    Unlike pixel ROC AUC, every connected anomalous region counts the same, however
    small (Bergmann et al., IJCV 2021).

    Parameters
    ----------
    masks : array-like of shape (n_images, height, width)
        Ground truth, True where a pixel is anomalous.
    anomaly_maps : array-like of shape (n_images, height, width)
        Scores, higher = more anomalous.
    max_false_positive_rate : float in (0, 1], default=0.3
        The curve is integrated up to this fraction of flagged normal pixels.

    Returns
    -------
    float
        Mean overlap over that range, in [0, 1].

    Raises
    ------
    ValueError
        If the shapes differ, or all pixels are normal or all are anomalous.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d.metrics import per_region_overlap_auc
    >>> masks = np.zeros((1, 8, 8), dtype=bool)
    >>> masks[0, 0, 0] = masks[0, 4:, 4:] = True  # a small flaw and a large one
    >>> maps = np.zeros(masks.shape)
    >>> maps[0, 4:, 4:] = 1.0  # the small one is missed
    >>> round(per_region_overlap_auc(masks, maps), 2)  # one flaw of two, and chance beyond
    0.57
    """
    masks, anomaly_maps = _check_maps(masks, anomaly_maps)
    if not 0 < max_false_positive_rate <= 1:
        raise ValueError(
            f"max_false_positive_rate must lie in (0, 1], got {max_false_positive_rate!r}."
        )
    if masks.all() or not masks.any():
        raise ValueError("AUPRO needs both normal and anomalous pixels in the masks.")
    # The mean overlap of regions is the recall of pixels weighted by 1 / region size,
    # so that one weighted ROC curve gives it at every threshold.
    weights = np.ones(masks.shape)
    eight_connected = np.ones((3, 3))
    for mask, weight in zip(masks, weights, strict=True):
        regions, _ = ndimage.label(mask, structure=eight_connected)
        weight[mask] = 1 / np.bincount(regions.ravel())[regions[mask]]
    fpr, overlap, _ = roc_curve(masks.ravel(), anomaly_maps.ravel(), sample_weight=weights.ravel())
    # The curve ends within a step, at the limit.
    end = int(np.searchsorted(fpr, max_false_positive_rate, side="left"))
    last = np.interp(max_false_positive_rate, fpr[end - 1 : end + 1], overlap[end - 1 : end + 1])
    area = np.trapezoid(
        np.append(overlap[:end], last), np.append(fpr[:end], max_false_positive_rate)
    )
    return float(area / max_false_positive_rate)


def _equal_error_rate(is_outlier: NDArray, anomaly_score: NDArray) -> float:
    fpr, tpr, _ = roc_curve(is_outlier, anomaly_score, drop_intermediate=False)
    gap = fpr - (1 - tpr)  # rises from -1 to 1 along the curve
    after = int(np.argmax(gap >= 0))
    before = after - 1
    fraction = -gap[before] / (gap[after] - gap[before])
    return float(fpr[before] + fraction * (fpr[after] - fpr[before]))


def _check_labels(y: ArrayLike, name: str) -> NDArray:
    labels: NDArray = column_or_1d(y)
    unknown = np.setdiff1d(labels, [-1, 1])
    if len(unknown):
        raise ValueError(
            f"{name} must hold +1 for inliers and -1 for outliers, but contains "
            f"{unknown[0].item()!r}. PyOD's labels (0 inlier, 1 outlier) convert by 1 - 2 * y."
        )
    return labels


def _check_scores(y_score: ArrayLike) -> NDArray[np.float64]:
    score = check_array(y_score, ensure_2d=False, dtype=np.float64, input_name="y_score")
    checked: NDArray[np.float64] = column_or_1d(score)
    return checked


def _check_outlier_scores(y_true: ArrayLike, y_score: ArrayLike) -> tuple[NDArray, NDArray]:
    y = _check_labels(y_true, "y_true")
    score = _check_scores(y_score)
    check_consistent_length(y, score)
    if len(np.unique(y)) < 2:
        raise ValueError(
            f"y_true must contain both inliers (+1) and outliers (-1); it only contains {y[0]}."
        )
    return y == -1, -score


def _check_maps(masks: ArrayLike, anomaly_maps: ArrayLike) -> tuple[NDArray, NDArray]:
    masks = np.asarray(masks, dtype=bool)
    maps = check_array(
        anomaly_maps, allow_nd=True, dtype=np.float64, input_name="anomaly_maps", copy=False
    )
    if masks.ndim != 3 or masks.shape != maps.shape:
        raise ValueError(
            "masks and anomaly_maps must both have shape (n, height, width), got "
            f"{masks.shape} and {maps.shape}."
        )
    return masks, maps
