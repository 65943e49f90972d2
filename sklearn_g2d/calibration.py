"""Thresholds and p-values from the scores of held-out normal rows, by conformal prediction."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, MetaEstimatorMixin, OutlierMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GroupKFold, KFold, check_cv
from sklearn.utils import Tags, _safe_indexing, get_tags, indexable
from sklearn.utils._metadata_requests import _routing_enabled
from sklearn.utils._missing import is_pandas_na
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_method_params, _num_samples, check_is_fitted

from sklearn_g2d.utils.signs import refuse_pyod
from sklearn_g2d.utils.warnings import warn_caller

__all__ = ["ConformalDetector", "conformal_p_values", "conformal_threshold"]


def conformal_threshold(
    scores: ArrayLike,
    false_alarm_rate: float,
    groups: ArrayLike | None = None,
    *,
    too_few: Literal["raise", "warn"] = "raise",
) -> float:
    """Find the threshold below which at most a given fraction of new normal rows falls.

    Parameters
    ----------
    scores : array-like of shape (n_samples,)
        Scores of held-out normal rows, **higher = more normal**.
    false_alarm_rate : float in (0, 1)
        Fraction of new normal rows that may fall below the threshold.
    groups : array-like of shape (n_samples,), default=None
        Names of groups of rows that belong together, such as photographs of one part. The rate
        then holds for a row of a *new* group. It needs enough groups, not rows: every group counts
        the same, whatever its number of rows. With None every row is a group of its own.
    too_few : {"raise", "warn"}, default="raise"
        What to do if there are fewer than ``1 / false_alarm_rate - 1`` rows or groups, so that no
        threshold can guarantee the rate: raise ValueError, or give a UserWarning and return the
        lowest score. Without groups, "warn" interpolates between two scores, which gives the rate
        on average; "raise" takes the lower score, which gives at most the rate.

    Returns
    -------
    float
        The threshold. A row with a lower score is an outlier.

    Examples
    --------
    >>> from sklearn_g2d.calibration import conformal_threshold
    >>> conformal_threshold(range(99), 0.05)
    4.0
    """
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"false_alarm_rate must lie in (0, 1), got {false_alarm_rate!r}.")
    scores = np.asarray(scores, dtype=np.float64)
    weights = _weights(groups, len(scores))
    return _threshold(scores, weights, false_alarm_rate, groups is not None, too_few)


def _threshold(
    scores: NDArray[np.float64],
    weights: NDArray[np.float64],
    false_alarm_rate: float,
    grouped: bool,
    too_few: Literal["raise", "warn"],
) -> float:
    n_groups = round(weights.sum())
    # The epsilon corrects products such as 0.07 * 100 = 7.000000000000001.
    allowed = false_alarm_rate * (n_groups + 1) - 1 + 1e-9
    if allowed < 0:
        needed = least_number(false_alarm_rate)
        kind = "groups" if grouped else "rows"
        problem = (
            f"false_alarm_rate={false_alarm_rate} needs at least {needed} held-out normal {kind}; "
            f"got {n_groups}."
        )
        if too_few == "raise":
            raise ValueError(f"{problem} Pass more {kind} or a higher rate.")
        warn_caller(
            f"{problem} Expect up to {1 / (n_groups + 1):.1%} false alarms. Fit with more {kind}."
        )
    if too_few == "warn" and not grouped:
        # Interpolate between two scores, so that the rate holds on average. The lower of the two
        # would flag fewer rows than the user asked for, which matters with few rows.
        return float(np.interp(max(allowed, 0.0), np.arange(len(scores)), np.sort(scores)))
    # The threshold is the first score at which the summed weight exceeds the allowed one: the rows
    # below it are the allowed false alarms. Without groups every weight is 1.
    order = np.argsort(scores, kind="stable")
    rank = np.searchsorted(np.cumsum(weights[order]), allowed, side="right")
    return float(scores[order[rank]])


def least_number(false_alarm_rate: float) -> int:
    # Returns the smallest number of held-out rows, or groups, that can guarantee a rate.
    return int(np.ceil(1 / false_alarm_rate - 1e-9)) - 1


def shuffled_folds(
    n_folds: int,
    n_samples: int,
    groups: ArrayLike | None,
    random_state: int | np.random.RandomState,
) -> KFold | GroupKFold:
    # Returns a splitter of rows, or of groups. There cannot be more folds than rows or groups.
    n_parts = n_samples if groups is None else len(np.unique(groups))
    kind = KFold if groups is None else GroupKFold
    return kind(max(2, min(n_folds, n_parts)), shuffle=True, random_state=random_state)


def check_groups(groups: ArrayLike, n_samples: int) -> NDArray[Any]:
    # Returns an array that names a group for each row, or raises ValueError.
    names = np.asarray(groups)
    if names.shape != (n_samples,):
        got = f"{len(names)} entries" if names.ndim == 1 else f"an array of shape {names.shape}"
        raise ValueError(f"groups has {got} for {n_samples} rows; it must name a group for each.")
    # Do not look for NaN in `names`: from a list of texts with a NaN, NumPy makes the text "nan".
    values = names if hasattr(groups, "dtype") else np.array(groups, dtype=object)
    missing = [i for i, name in enumerate(values.tolist()) if _is_missing(name)]
    if missing:
        shown = ", ".join(map(str, missing[:10])) + ", ..." * (len(missing) > 10)
        raise ValueError(
            f"groups names no group (None or NaN) for {len(missing)} of {n_samples} rows, at the "
            f"positions {shown}, counted from 0. Give each row without a group a name of its own, "
            "or leave these rows out."
        )
    try:
        np.unique(names)
    except TypeError as error:
        raise ValueError(
            f"groups holds names that cannot be compared ({error}). Convert all of them to texts."
        ) from error
    return names


def _is_missing(name: Any) -> bool:
    # A NaN of any type differs from itself; pandas.NA has to be asked first, because comparing it
    # gives neither True nor False.
    return name is None or is_pandas_na(name) or bool(name != name)


def conformal_p_values(
    scores: ArrayLike, calibration_scores: ArrayLike, weights: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Return conformal p-values of "this row is normal"; **small = anomalous**.

    Parameters
    ----------
    scores : array-like of shape (n_samples,)
        Scores of the rows to test, **higher = more normal**.
    calibration_scores : array-like of shape (n_calibration,)
        Sorted scores of held-out normal rows.
    weights : array-like of shape (n_calibration,), default=None
        Weight of each of these rows: 1 / (number of rows in its group). None means weights of 1.

    Returns
    -------
    ndarray of shape (n_samples,)
        ``(1 + number of calibration scores not above the row's) / (n_calibration + 1)``. With
        `weights`, the weights of these scores are summed, and the sum of all weights, which is the
        number of groups, replaces ``n_calibration``.

    Examples
    --------
    >>> from sklearn_g2d.calibration import conformal_p_values
    >>> conformal_p_values([-1.0, 2.0], calibration_scores=[0.0, 1.0, 2.0])
    array([0.25, 1.  ])
    """
    calibration_scores = np.asarray(calibration_scores)
    if weights is None:
        weights = np.ones(len(calibration_scores))
    at_most = np.searchsorted(calibration_scores, scores, side="right")
    summed = np.append(0.0, np.cumsum(weights))
    return np.asarray((1 + summed[at_most]) / (1 + round(summed[-1])), dtype=np.float64)


class VerdictMixin(OutlierMixin):
    """`decision_function` and `predict` for a class with `score_samples` and `offset_`."""

    offset_: float

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Score rows relative to the threshold; **negative = outlier**.

        Parameters
        ----------
        X : array-like, as for `score_samples`

        Returns
        -------
        ndarray of shape (n_samples,)
            ``score_samples(X) - offset_``.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Label rows **+1 (inlier) or -1 (outlier)**.

        Parameters
        ----------
        X : array-like, as for `score_samples`

        Returns
        -------
        ndarray of shape (n_samples,)
            -1 where ``decision_function(X) < 0``.
        """
        return np.where(self.decision_function(X) < 0, -1, 1)


class ThresholdMixin(VerdictMixin):
    """Verdicts and p-values for a class with `score_samples`, after a call of `_calibrate`."""

    calibration_scores_: NDArray[np.float64]
    calibration_weights_: NDArray[np.float64] | None

    def p_values(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return conformal p-values of "this row is normal"; **small = anomalous**.

        Parameters
        ----------
        X : array-like, as for `score_samples`

        Returns
        -------
        ndarray of shape (n_samples,)
            ``(1 + number of calibration scores not above the row's) / (n + 1)``; with groups, each
            group counts by the fraction of its rows. The p-values are exact for any number of rows
            if nothing was fitted on the calibration rows, and approximate for out-of-fold scores.
        """
        scores = self.score_samples(X)
        return conformal_p_values(scores, self.calibration_scores_, self.calibration_weights_)

    def _calibrate(
        self,
        scores: NDArray[np.float64],
        rate: float,
        groups: ArrayLike | None = None,
        too_few: Literal["raise", "warn"] = "raise",
    ) -> None:
        """Set the threshold from the scores of held-out normal rows."""
        self.offset_ = conformal_threshold(scores, rate, groups, too_few=too_few)
        self._keep_scores(scores, groups)

    def _set_rate(self, rate: float) -> None:
        """Set the threshold for another rate, from the calibration scores of `fit`."""
        scores, weights = self.calibration_scores_, self.calibration_weights_
        if weights is None:
            self.offset_ = conformal_threshold(scores, rate)
        else:
            self.offset_ = _threshold(scores, weights, rate, True, "raise")

    def _keep_scores(self, scores: NDArray[np.float64], groups: ArrayLike | None = None) -> None:
        order = np.argsort(scores, kind="stable")
        self.calibration_scores_ = scores[order]
        self.calibration_weights_ = None if groups is None else _weights(groups, len(scores))[order]


def _has_scores(detector: ConformalDetector) -> bool:
    return _scoring_method(getattr(detector, "estimator_", detector.estimator)) is not None


def _scoring_method(estimator: Any) -> Any:
    return getattr(estimator, "score_samples", getattr(estimator, "decision_function", None))


class ConformalDetector(MetaEstimatorMixin, ThresholdMixin, BaseEstimator):
    """Give any outlier detector a guaranteed rate of false alarms, and p-values.

    The threshold comes from the scores of normal rows on which the detector was not fitted, by
    conformal prediction [1]_. The detector's own threshold is not used.

    Parameters
    ----------
    estimator : outlier detector, or Pipeline that ends with one
        It needs `score_samples` or `decision_function`, **higher = more normal**. `fit` fits a
        clone of it. To keep a fitted detector, pass ``FrozenEstimator(detector)``: then all rows
        given to `fit` must be normal rows that the detector has not seen.
    false_alarm_rate : float in (0, 1), default=0.05
        Fraction of new normal rows that may be labelled outliers. `fit` needs at least
        ``1 / false_alarm_rate - 1`` rows or groups.
    cv : int, splitter or iterable of splits, default=5
        Folds: a clone that is fitted on the other folds scores each of them. An integer is a
        number of folds of shuffled rows or groups. Ignored with a `FrozenEstimator`.

    Attributes
    ----------
    estimator_ : outlier detector
        Fitted on all rows of `fit`, or the frozen one. It gives the scores.
    offset_ : float
        Threshold: ``decision_function(X) = score_samples(X) - offset_``.
    calibration_scores_ : ndarray
        Sorted scores of the held-out rows.
    calibration_weights_ : ndarray, or None
        Weight of each of these rows, 1 / (size of its group); None without groups.
    n_features_in_, feature_names_in_ : int, ndarray of str
        The attributes of `estimator_`, if it has them.

    Notes
    -----
    With a `FrozenEstimator` the guarantee is exact: a new row that is exchangeable with the rows
    of `fit` is labelled an outlier with a probability of at most `false_alarm_rate`. With folds it
    is approximate: it needs a detector that changes little when one fold is added to its rows.

    With `groups`, rows of one group are never on both sides of a split, and the guarantee is for
    rows of new groups.

    References
    ----------
    .. [1] Y. Lee, R. F. Barber, R. Willett, "Distribution-free inference with hierarchical data",
       2023. Rows without groups are its simplest case.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.ensemble import IsolationForest
    >>> from sklearn_g2d import ConformalDetector
    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> detector = ConformalDetector(IsolationForest(random_state=0)).fit(X)
    >>> detector.predict([[0.0, 0.0, 0.0], [6.0, -6.0, 6.0]])
    array([ 1, -1])
    """

    # Under metadata routing `fit` takes groups without a request, like scikit-learn's splitters.
    __metadata_request__fit: ClassVar[dict[str, Any]] = {"groups": True}

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "estimator": [
            HasMethods(["fit", "score_samples"]),
            HasMethods(["fit", "decision_function"]),
        ],
        "false_alarm_rate": [Interval(Real, 0, 1, closed="neither")],
        "cv": [Interval(Integral, 2, None, closed="left"), HasMethods(["split"]), "cv_object"],
    }

    def __init__(self, estimator: Any, *, false_alarm_rate: float = 0.05, cv: Any = 5) -> None:
        self.estimator = estimator
        self.false_alarm_rate = false_alarm_rate
        self.cv = cv

    def fit(
        self, X: Any, y: Any = None, *, groups: ArrayLike | None = None, **fit_params: Any
    ) -> Self:
        """Fit the estimator, unless it is frozen, and set the threshold.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Normal rows, images or other data that the estimator takes.
        y : array-like of shape (n_samples,), default=None
            It is passed to the estimator and to `cv`.
        groups : array-like of shape (n_samples,), default=None
            Names of groups of rows that belong together, such as photographs of one part.
        **fit_params
            Arguments of the estimator's `fit`; arrays of n_samples are split like the rows. Under
            scikit-learn's metadata routing, the metadata that the estimator has requested.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the rate needs more rows or groups; if the group of a row is None or NaN; if `cv`
            does not hold out each row exactly once, or splits the rows of a group.
        """
        self._validate_params()
        params = fit_params
        if _routing_enabled():
            params = process_routing(self, "fit", groups=groups, **fit_params).estimator.fit
        refuse_pyod(self.estimator)
        if isinstance(self.estimator, FrozenEstimator):
            estimator = self.estimator
            scores = _scores(estimator, X)
        else:
            X, y = indexable(X, y)
            # Fits can take hours: raise an error about too few rows or groups before the first.
            conformal_threshold(np.zeros(_num_samples(X)), self.false_alarm_rate, groups)
            with warnings.catch_warnings():
                # Our detectors warn about their own thresholds, which are not used here.
                warnings.filterwarnings("ignore", "false_alarm_rate=.* needs at least", UserWarning)
                scores = self._out_of_fold_scores(X, y, groups, params)
                estimator = _fitted(self.estimator, X, y, params)
        self._calibrate(scores, self.false_alarm_rate, groups)
        self.estimator_ = estimator
        for name in ("n_features_in_", "feature_names_in_"):
            # Remove the value of an earlier fit: the new estimator may not have this attribute.
            self.__dict__.pop(name, None)
            if hasattr(estimator, name):
                setattr(self, name, getattr(estimator, name))
        return self

    @available_if(_has_scores)
    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Score rows with the estimator; **higher = more normal**.

        Parameters
        ----------
        X : array-like, as for `fit`

        Returns
        -------
        ndarray of shape (n_samples,)
            The estimator's `score_samples`, or its `decision_function` if that is missing.
        """
        check_is_fitted(self)
        return _scores(self.estimator_, X)

    def _out_of_fold_scores(
        self, X: Any, y: Any, groups: ArrayLike | None, params: dict[str, Any]
    ) -> NDArray[np.float64]:
        """Score each row with a clone that was fitted without this row and its group."""
        scores = np.full(_num_samples(X), np.nan)
        n_held_out = np.zeros(len(scores), dtype=int)
        for seen, unseen in self._splits(X, y, groups):
            if groups is not None:
                of_group = np.asarray(groups)
                if np.isin(of_group[seen], of_group[unseen]).any():
                    raise ValueError(
                        f"cv={self.cv!r} has rows of one group on both sides of a split. Pass a "
                        "splitter that keeps groups together, such as GroupKFold, or a number of "
                        "folds."
                    )
            own = _check_method_params(X, params, indices=seen)
            y_seen = None if y is None else _safe_indexing(y, seen)
            clone_of_fold = _fitted(self.estimator, _safe_indexing(X, seen), y_seen, own)
            scores[unseen] = _scores(clone_of_fold, _safe_indexing(X, unseen))
            n_held_out[unseen] += 1
        if (n_held_out != 1).any():
            raise ValueError(
                f"cv={self.cv!r} must hold out each row once, but it never holds out "
                f"{np.sum(n_held_out == 0)} rows and holds out {np.sum(n_held_out > 1)} rows "
                "repeatedly. Pass a splitter such as KFold, or a number of folds."
            )
        return scores

    def _splits(self, X: Any, y: Any, groups: ArrayLike | None) -> Iterator[Any]:
        cv = self.cv
        if isinstance(cv, Integral):
            # Shuffle, because the rows of a table may be sorted. A fixed seed makes two calls of
            # `fit` agree, although this class has no parameter random_state.
            cv = shuffled_folds(int(cv), _num_samples(X), groups, random_state=0)
        return check_cv(cv).split(X, y, groups)

    def get_metadata_routing(self) -> MetadataRouter:
        """Return which metadata `fit` takes, and which it passes on.

        Returns
        -------
        MetadataRouter
            The routing of scikit-learn.
        """
        mapping = MethodMapping().add(caller="fit", callee="fit")
        router = MetadataRouter(owner=self).add_self_request(self)
        return router.add(estimator=self.estimator, method_mapping=mapping)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self.estimator).input_tags
        return tags


def _fitted(estimator: Any, X: Any, y: Any, params: dict[str, Any]) -> Any:
    return clone(estimator).fit(X, y, **params)


def _scores(estimator: Any, X: Any) -> NDArray[np.float64]:
    scores = np.asarray(_scoring_method(estimator)(X), dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{np.sum(~np.isfinite(scores))} of {len(scores)} scores of {type(estimator).__name__} "
            "are NaN or infinite. Scale the rows, or use another detector."
        )
    return scores


def _weights(groups: ArrayLike | None, n_samples: int) -> NDArray[np.float64]:
    """Return 1 / (number of rows in its group) for each row; the sum is the number of groups."""
    if groups is None:
        return np.ones(n_samples)
    _, group, sizes = np.unique(
        check_groups(groups, n_samples), return_inverse=True, return_counts=True
    )
    return 1 / sizes[group]
