"""Metrics for outlier detectors, with the outliers as the class of interest.

Scores are a detector's ``decision_function`` or ``score_samples`` (**higher = more normal**).
The pixel metrics at the end take anomaly maps as ``anomaly_map`` returns them, which have the
opposite sign (**higher = more anomalous**).

`y_true` marks the outliers in one of these ways:

- scikit-learn's numbers: +1 is an inlier, **-1 an outlier**;
- PyOD's numbers: 0 is an inlier, **1 an outlier**; but if all labels are 1, they are read as
  scikit-learn's inliers;
- booleans: **True is an outlier**;
- any two labels, for example texts, together with `pos_label`, the label of the **outliers**.

In every metric, a row with the `sample_weight` 2 counts like two rows.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeAlias

import joblib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from sklearn.base import is_classifier
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, roc_curve
from sklearn.metrics._scorer import _SCORERS, _Scorer
from sklearn.utils import (
    assert_all_finite,
    check_array,
    check_consistent_length,
    column_or_1d,
)
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import _check_sample_weight

from sklearn_g2d.utils.signs import refuse_pyod

__all__ = [
    "SCORERS",
    "equal_error_rate",
    "make_scorers",
    "outlier_average_precision_score",
    "outlier_f1_score",
    "outlier_roc_auc_score",
    "per_region_overlap_auc",
    "pixel_level_equal_error_rate",
    "register_scorers",
]

PosLabel: TypeAlias = bool | int | float | str | None


def outlier_roc_auc_score(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    pos_label: PosLabel = None,
) -> float:
    """Area under the ROC curve, with the outliers as positives.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels in one of the module's encodings (-1, 1 or True is an outlier); both kinds occur.
    y_score : array-like of shape (n_samples,)
        Scores, **higher = more normal**.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows, not negative; None weighs all alike.
    pos_label : bool, int, float or str, default=None
        Label of the outliers. It is not needed for +1 and -1, 0 and 1, and booleans.

    Returns
    -------
    float
        Probability that a random outlier scores lower than a random inlier, ties
        counting one half. 1 is perfect, .5 is chance.

    Raises
    ------
    ValueError
        If the labels are in none of the encodings, are texts without `pos_label`, or are all
        of one kind where rows have weight.

    Examples
    --------
    >>> from sklearn_g2d.metrics import outlier_roc_auc_score
    >>> outlier_roc_auc_score([1, 1, -1, -1], [0.9, 0.4, 0.5, 0.1])
    0.75
    """
    outlier, score, weight = _check_outlier_scores(y_true, y_score, sample_weight, pos_label)
    return float(roc_auc_score(outlier, score, sample_weight=weight))


def outlier_average_precision_score(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    pos_label: PosLabel = None,
) -> float:
    """Average precision (area under the precision-recall curve), with the outliers as positives.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels in one of the module's encodings (-1, 1 or True is an outlier); both kinds occur.
    y_score : array-like of shape (n_samples,)
        Scores, **higher = more normal**.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows, not negative; None weighs all alike.
    pos_label : bool, int, float or str, default=None
        Label of the outliers. It is not needed for +1 and -1, 0 and 1, and booleans.

    Returns
    -------
    float
        Average precision. Random scores give the fraction of outliers among the rows.

    Raises
    ------
    ValueError
        If the labels are in none of the encodings, are texts without `pos_label`, or are all
        of one kind where rows have weight.

    Examples
    --------
    >>> from sklearn_g2d.metrics import outlier_average_precision_score
    >>> round(outlier_average_precision_score([1, 1, -1, -1], [0.9, 0.1, 0.5, 0.2]), 3)
    0.583
    """
    outlier, score, weight = _check_outlier_scores(y_true, y_score, sample_weight, pos_label)
    return float(average_precision_score(outlier, score, sample_weight=weight))


def equal_error_rate(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    pos_label: PosLabel = None,
) -> float:
    """Error rate at the threshold where false alarms and misses are equally frequent.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels in one of the module's encodings (-1, 1 or True is an outlier); both kinds occur.
    y_score : array-like of shape (n_samples,)
        Scores, **higher = more normal**.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows, not negative; None weighs all alike.
    pos_label : bool, int, float or str, default=None
        Label of the outliers. It is not needed for +1 and -1, 0 and 1, and booleans.

    Returns
    -------
    float
        The point of the linearly interpolated ROC curve where the false-positive rate
        (inliers flagged) equals the false-negative rate (outliers missed), in [0, 1].
        0 is perfect, .5 is chance.

    Raises
    ------
    ValueError
        If the labels are in none of the encodings, are texts without `pos_label`, or are all
        of one kind where rows have weight.

    Examples
    --------
    >>> from sklearn_g2d.metrics import equal_error_rate
    >>> equal_error_rate([1, 1, -1, -1], [0.9, 0.4, 0.5, 0.1])
    0.5
    """
    return _equal_error_rate(*_check_outlier_scores(y_true, y_score, sample_weight, pos_label))


def outlier_f1_score(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    pos_label: PosLabel = None,
) -> float:
    """F1 score of the outliers.

    scikit-learn's ``scoring="f1"`` takes +1 as the positive class and therefore rates the
    *normal* rows; if outliers are rare, it is near 1 for any detector.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels in one of the module's encodings (-1, 1 or True is an outlier); both kinds occur.
    y_pred : array-like of shape (n_samples,)
        Predictions: +1 for inliers and -1 for outliers, as ``predict`` returns them, for every
        encoding of `y_true`; or booleans, True for outliers; or texts, with `pos_label`.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows, not negative; None weighs all alike.
    pos_label : bool, int, float or str, default=None
        Label of the outliers. It is not needed for +1 and -1, 0 and 1, and booleans.

    Returns
    -------
    float
        Harmonic mean of precision and recall of the outliers; 0 when nothing is flagged.

    Raises
    ------
    ValueError
        If the labels are in none of the encodings, are texts without `pos_label`, or are all of
        one kind where rows have weight; or if `y_pred` holds numbers other than +1 and -1.

    Examples
    --------
    >>> from sklearn_g2d.metrics import outlier_f1_score
    >>> outlier_f1_score([1, 1, 1, -1, -1], [1, 1, -1, -1, 1])
    0.5
    >>> outlier_f1_score([1, 1, 1, -1, -1], [1, 1, 1, 1, 1])  # nothing is flagged
    0.0
    """
    flagged = _is_outlier(y_pred, "y_pred", pos_label, predicted=True)
    outlier, weight = _check_outliers(y_true, sample_weight, pos_label)
    return float(f1_score(outlier, flagged, sample_weight=weight, zero_division=0.0))


class _OutlierScorer(_Scorer):
    """A scorer like those of `make_scorer` that checks the signs of scores, and may give nan."""

    def __init__(
        self, name: str, metric: Callable, method: str, sign: int, pos_label: PosLabel
    ) -> None:
        kwargs = {} if pos_label is None else {"pos_label": pos_label}
        super().__init__(metric, sign, kwargs, method)
        self.__name__ = name

    def __repr__(self) -> str:
        given = [f"{name}={value!r}" for name, value in self._kwargs.items()]
        origin = f"make_scorers({given[0]})" if given else "SCORERS"
        return f"{origin}[{self.__name__!r}]"

    def _get_pos_label(self) -> None:
        # With a label scikit-learn would change the sign of a classifier's scores, so that higher
        # means more anomalous. The metrics here expect higher = more normal.
        return None

    def _score(
        self, method_caller: Callable, estimator: Any, X: Any, y_true: Any, **kwargs: Any
    ) -> float:
        given = {**self._kwargs, **kwargs}
        pos_label = given.get("pos_label")
        _check_signs(estimator, pos_label)
        try:
            # Check the labels first: computing scores, for example of all training rows, is slow.
            _check_outliers(y_true, given.get("sample_weight"), pos_label)
        except _OneKindError as error:
            _warn_once_a_search(
                f"{error} The score of such rows is nan. Training folds of NormalOnlySplit hold "
                "no outliers on purpose, so that they have no training score."
            )
            return np.nan
        return float(super()._score(method_caller, estimator, X, y_true, **kwargs))


def make_scorers(pos_label: PosLabel = None) -> dict[str, Any]:
    """Make new scorers, for your own labels or for metadata requests.

    Scorers take labels as the metrics do. They also take `sample_weight`: as an argument when you
    call them; in a search by scikit-learn's metadata routing and
    ``set_score_request(sample_weight=True)``, which changes the scorer itself.
    For rows of one kind only, such as the training rows of
    `sklearn_g2d.model_selection.NormalOnlySplit`, a scorer gives nan, and a search warns once.

    Parameters
    ----------
    pos_label : bool, int, float or str, default=None
        Label of the outliers. It is not needed for +1 and -1, 0 and 1, and booleans.

    Returns
    -------
    dict of str to scorer
        "outlier_roc_auc", "outlier_average_precision", "outlier_f1" and
        "neg_equal_error_rate"; higher is better for each.

    See Also
    --------
    SCORERS : The same scorers for labels in one of the module's encodings.

    Notes
    -----
    A scorer raises ValueError for the same reasons as the metrics, except for rows of one kind.
    It raises TypeError for detectors whose scores have another sign: detectors of PyOD, which
    ``sklearn_g2d.adapters.FromPyOD`` converts, and classifiers of other classes than -1 and +1.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.ensemble import IsolationForest
    >>> from sklearn_g2d.metrics import make_scorers
    >>> X, y = np.array([[0.0], [0.1], [0.2], [9.0]]), ["fine", "fine", "fine", "broken"]
    >>> detector = IsolationForest(random_state=0).fit(X)
    >>> make_scorers(pos_label="broken")["outlier_roc_auc"](detector, X, y)
    1.0
    """
    scorers: dict[str, tuple[Callable, str, int]] = {
        "outlier_roc_auc": (outlier_roc_auc_score, "decision_function", 1),
        "outlier_average_precision": (outlier_average_precision_score, "decision_function", 1),
        "outlier_f1": (outlier_f1_score, "predict", 1),
        "neg_equal_error_rate": (equal_error_rate, "decision_function", -1),
    }
    return {name: _OutlierScorer(name, *how, pos_label) for name, how in scorers.items()}


SCORERS = make_scorers()
"""Scorers by name: ``scoring=SCORERS["outlier_roc_auc"]`` for one of them, or
``scoring=SCORERS, refit="outlier_roc_auc"`` for all at once."""


def register_scorers() -> None:
    """Let scikit-learn find `SCORERS` by name, as in ``scoring="outlier_roc_auc"``.

    Call it once in a program, before the names are used; further calls change nothing.
    scikit-learn offers no way to register a scorer. Therefore this function changes one of its
    private dictionaries, and the lists of names that its functions accept as `scoring`. Worker
    processes do not inherit these changes: a search that itself runs in a worker (`n_jobs`) needs
    the scorer itself, ``scoring=SCORERS["outlier_roc_auc"]``, which works everywhere.

    Examples
    --------
    >>> from sklearn.metrics import get_scorer
    >>> from sklearn_g2d.metrics import register_scorers
    >>> register_scorers()
    >>> get_scorer("outlier_roc_auc")
    SCORERS['outlier_roc_auc']
    """
    _SCORERS.update(SCORERS)
    # Functions and classes keep the names that they accept from the time of their import. Modules
    # that are imported later find the new names in _SCORERS.
    for name in [name for name in sys.modules if name.startswith("sklearn.")]:
        entries = list(vars(sys.modules[name]).values())
        for entry in [e for e in entries if isinstance(e, type | FunctionType)]:
            for attribute in ("_parameter_constraints", "_skl_parameter_constraints"):
                constraints = getattr(entry, attribute, None)
                for scoring in constraints.get("scoring", ()) if constraints else ():
                    if isinstance(scoring, StrOptions) and "roc_auc" in scoring.options:
                        scoring.options.update(SCORERS)


def pixel_level_equal_error_rate(
    masks: ArrayLike,
    anomaly_maps: ArrayLike,
    *,
    min_overlap: float = 0.4,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Equal error rate of frames, where a detection must cover the anomaly's pixels.

    This is the pixel-level criterion of Mahadevan et al. (CVPR 2010). At a threshold, an
    anomalous frame is detected if at least the fraction `min_overlap` of its anomalous pixels
    lies above the threshold; a normal frame is a false alarm if any pixel does.

    Parameters
    ----------
    masks : array-like of shape (n_frames, height, width)
        Ground truth, True where a pixel is anomalous. A frame with such a pixel is anomalous.
    anomaly_maps : array-like of shape (n_frames, height, width)
        Scores, higher = more anomalous.
    min_overlap : float in (0, 1], default=0.4
        Fraction of the anomalous pixels that a detection has to cover.
    sample_weight : array-like of shape (n_frames,), default=None
        Weights of the frames, not negative; None weighs all alike.

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
    masks, anomaly_maps, weight = _check_maps(masks, anomaly_maps, sample_weight)
    if not 0 < min_overlap <= 1:
        raise ValueError(f"min_overlap must lie in (0, 1], got {min_overlap!r}.")
    is_anomalous = np.any(masks, axis=(1, 2))
    if is_anomalous.all() or not is_anomalous.any():
        raise ValueError(
            "The pixel-level EER needs both normal frames (an empty mask) and anomalous "
            f"ones; {int(is_anomalous.sum())} of {len(masks)} frames are anomalous."
        )
    # Each frame is flagged below one critical threshold: the highest pixel of a normal frame, and
    # the pixel that completes the required overlap of an anomalous one. With these as scores of
    # frames the usual error rate applies.
    critical = anomaly_maps.max(axis=(1, 2))
    for i in np.flatnonzero(is_anomalous):
        inside = np.sort(anomaly_maps[i][masks[i]])[::-1]
        # The epsilon corrects products such as 0.28 * 25 = 7.000000000000001.
        critical[i] = inside[int(np.ceil(min_overlap * len(inside) - 1e-9)) - 1]
    return _equal_error_rate(is_anomalous, critical, weight)


def per_region_overlap_auc(
    masks: ArrayLike,
    anomaly_maps: ArrayLike,
    *,
    max_false_positive_rate: float = 0.3,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Area under the per-region-overlap curve (AUPRO).

    Unlike in pixel ROC AUC, every connected anomalous region counts the same, whatever its
    size (Bergmann et al., IJCV 2021).

    Parameters
    ----------
    masks : array-like of shape (n_images, height, width)
        Ground truth, True where a pixel is anomalous.
    anomaly_maps : array-like of shape (n_images, height, width)
        Scores, higher = more anomalous.
    max_false_positive_rate : float in (0, 1], default=0.3
        The curve is integrated up to this fraction of flagged normal pixels.
    sample_weight : array-like of shape (n_images,), default=None
        Weights of the images, not negative. The weight of an image applies to its regions and to
        its normal pixels. None weighs all alike.

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
    masks, anomaly_maps, weight = _check_maps(masks, anomaly_maps, sample_weight)
    if not 0 < max_false_positive_rate <= 1:
        raise ValueError(
            f"max_false_positive_rate must lie in (0, 1], got {max_false_positive_rate!r}."
        )
    if masks.all() or not masks.any():
        raise ValueError("AUPRO needs both normal and anomalous pixels in the masks.")
    # The mean overlap of regions equals the recall of pixels with weights of 1 / region size.
    # Therefore one weighted ROC curve gives it at every threshold.
    weights = np.empty(masks.shape)
    weights[:] = weight[:, np.newaxis, np.newaxis]
    eight_connected = np.ones((3, 3))
    for mask, weight in zip(masks, weights, strict=True):
        regions, _ = ndimage.label(mask, structure=eight_connected)
        weight[mask] /= np.bincount(regions.ravel())[regions[mask]]
    fpr, overlap, _ = roc_curve(masks.ravel(), anomaly_maps.ravel(), sample_weight=weights.ravel())
    # The limit usually lies between two points of the curve: interpolate the last point.
    end = int(np.searchsorted(fpr, max_false_positive_rate, side="left"))
    last = np.interp(max_false_positive_rate, fpr[end - 1 : end + 1], overlap[end - 1 : end + 1])
    area = np.trapezoid(
        np.append(overlap[:end], last), np.append(fpr[:end], max_false_positive_rate)
    )
    return float(area / max_false_positive_rate)


def _equal_error_rate(is_outlier: NDArray, anomaly_score: NDArray, weight: NDArray) -> float:
    fpr, tpr, _ = roc_curve(
        is_outlier, anomaly_score, sample_weight=weight, drop_intermediate=False
    )
    # The gap rises from -1 to 1 along the curve. The two rates are equal where it is 0, usually
    # between two points: interpolate.
    gap = fpr - (1 - tpr)
    after = int(np.argmax(gap >= 0))
    before = after - 1
    fraction = -gap[before] / (gap[after] - gap[before])
    return float(fpr[before] + fraction * (fpr[after] - fpr[before]))


class _OneKindError(ValueError):
    """The labels are all inliers or all outliers, so that the metric is not defined."""


def _is_outlier(
    y: ArrayLike, name: str, pos_label: PosLabel = None, *, predicted: bool = False
) -> NDArray[np.bool_]:
    """Return True for outliers, from labels in the encodings that the module's docstring lists."""
    labels: NDArray = column_or_1d(y)
    # Data frames hold texts, and sometimes numbers, as objects: find their real type. Leave texts
    # mixed with numbers alone, because NumPy would turn the numbers into texts.
    if labels.dtype.kind in "OT" and len({isinstance(label, str) for label in labels}) == 1:
        labels = np.asarray(labels.tolist())
    kind = labels.dtype.kind
    if kind not in "biufU" or not len(labels):
        raise ValueError(
            f"{name} must hold labels of one kind (numbers, booleans or texts) without missing "
            f"values; got {len(labels)} of dtype {labels.dtype}."
        )
    assert_all_finite(labels, input_name=name)
    present = np.unique(labels).tolist()
    shown = ", ".join(map(repr, present[:5])) + (", ..." if len(present) > 5 else "")
    if pos_label is not None and (kind == "U" or not predicted):
        if len(present) > 2 or (len(present) == 2 and pos_label not in present):
            raise ValueError(
                f"With pos_label={pos_label!r}, the label of the outliers, {name} must hold that "
                f"label and one other, but contains {shown}."
            )
        outlier: NDArray[np.bool_] = labels == pos_label
        return outlier
    if kind == "U":
        raise ValueError(
            f"{name} contains the texts {shown}, and it is not known which of them means an "
            "outlier. Pass pos_label, the label of the outliers."
        )
    if kind == "b":
        return labels
    for numbers in [(1, -1)] if predicted else [(1, -1), (0, 1)]:
        if set(present).issubset(numbers):
            return labels == numbers[1]
    if predicted:
        raise ValueError(
            f"{name} must hold +1 for inliers and -1 for outliers, as predict returns them, but "
            f"contains {shown}. PyOD's labels (0 inlier, 1 outlier) convert by 1 - 2 * {name}."
        )
    raise ValueError(
        f"{name} must hold +1 for inliers and -1 for outliers, or 0 for inliers and 1 for "
        f"outliers, but contains {shown}. Pass pos_label, the label of the outliers, if it has "
        "two other labels."
    )


def _check_outliers(
    y_true: ArrayLike, sample_weight: ArrayLike | None, pos_label: PosLabel
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    # Returns which rows are outliers, and the weights of all rows.
    outlier = _is_outlier(y_true, "y_true", pos_label)
    weight = _check_sample_weight(
        sample_weight, outlier, dtype=np.float64, ensure_non_negative=True
    )
    kinds = np.unique(outlier[weight > 0])
    if len(kinds) < 2:
        labels = np.unique(column_or_1d(y_true)[weight > 0]).tolist()
        raise _OneKindError(
            f"y_true must contain both inliers and outliers, but it only contains {labels}"
            f"{'' if weight.all() else ' where sample_weight is not 0'}."
        )
    return outlier, weight


def _check_scores(y_score: ArrayLike) -> NDArray[np.float64]:
    score = check_array(y_score, ensure_2d=False, dtype=np.float64, input_name="y_score")
    checked: NDArray[np.float64] = column_or_1d(score)
    return checked


def _check_outlier_scores(
    y_true: ArrayLike,
    y_score: ArrayLike,
    sample_weight: ArrayLike | None = None,
    pos_label: PosLabel = None,
) -> tuple[NDArray, NDArray, NDArray]:
    # Returns labels, scores and weights for scikit-learn's functions: outliers are positives, and
    # the sign of the scores changes so that higher = more anomalous.
    score = _check_scores(y_score)
    check_consistent_length(y_true, score)
    outlier, weight = _check_outliers(y_true, sample_weight, pos_label)
    return outlier, -score, weight


def _check_maps(
    masks: ArrayLike, anomaly_maps: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[NDArray, NDArray, NDArray]:
    flaws: NDArray[np.bool_] = np.asarray(masks, dtype=bool)
    maps = check_array(
        anomaly_maps, allow_nd=True, dtype=np.float64, input_name="anomaly_maps", copy=False
    )
    if flaws.ndim != 3 or flaws.shape != maps.shape:
        raise ValueError(
            "masks and anomaly_maps must both have shape (n, height, width), got "
            f"{flaws.shape} and {maps.shape}."
        )
    weight = _check_sample_weight(sample_weight, maps, dtype=np.float64, ensure_non_negative=True)
    # Indexing copies the maps, which may be large: do it only if a weight is 0.
    if weight.all():
        return flaws, maps, weight
    return flaws[weight > 0], maps[weight > 0], weight[weight > 0]


def _check_signs(estimator: Any, pos_label: PosLabel = None) -> None:
    """Raise an error if the estimator's scores may not be higher for more normal rows."""
    last = refuse_pyod(estimator)
    if is_classifier(estimator) and not (
        list(estimator.classes_) == [-1, 1] and pos_label in (None, -1)
    ):
        raise TypeError(
            f"{type(last).__name__} is a classifier of {list(estimator.classes_)}, so that its "
            "scores may not be higher for more normal rows. Fit it on +1 for inliers and -1 for "
            "outliers, without pos_label, or use scikit-learn's own scorers."
        )


_warned: weakref.WeakSet = weakref.WeakSet()


def _warn_once_a_search(message: str) -> None:
    """Warn, but only at the first fold of a search or cross-validation.

    A search runs in one call of joblib, which is found on the stack. A worker process of joblib
    does not see this call; it warns once in its lifetime.
    """
    search: Any = None
    frame: Any = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, joblib.Parallel):
            search = owner
        elif isinstance(owner, joblib.parallel.BatchedCalls) and search is None:
            search = joblib.parallel.BatchedCalls
        frame = frame.f_back
    if search is None or search not in _warned:
        warnings.warn(message, UndefinedMetricWarning, stacklevel=3)
    if search is not None:
        _warned.add(search)
