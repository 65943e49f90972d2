"""Plots of scores: distributions, ROC and DET curves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import DetCurveDisplay, RocCurveDisplay, det_curve, roc_curve
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import _check_sample_weight

from sklearn_g2d.display._drawing import import_pyplot, new_axes
from sklearn_g2d.metrics import (
    PosLabel,
    _check_outlier_scores,
    _check_scores,
    _check_signs,
    _is_outlier,
    equal_error_rate,
    outlier_roc_auc_score,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(kw_only=True, eq=False, repr=False)
class _ScoreDisplay(ABC):
    """Base of displays that are computed from an estimator's scores, or from given scores."""

    name: str | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        sample_weight: ArrayLike | None = None,
        pos_label: PosLabel = None,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Plot a fitted detector's scores of rows.

        Parameters
        ----------
        estimator : outlier detector
            A fitted detector, or a Pipeline that ends in one, with ``decision_function``.
        X : array-like of shape (n_samples, n_features)
            Rows to score.
        y : array-like of shape (n_samples,), default=None
            Labels, as `y_true` in `from_predictions`.
        sample_weight, pos_label : as in `from_predictions`
        name : str, default=None
            As in `from_predictions`; None means the name of the estimator's class.
        ax, **kwargs : as in `plot`

        Returns
        -------
        display
            An instance of this class, drawn.

        Raises
        ------
        ImportError, ValueError
            As in `from_predictions`.
        TypeError
            If the estimator is a detector of PyOD, or a classifier whose scores have another sign.
        """
        # Raise an error about a missing matplotlib before a long computation.
        import_pyplot()
        _check_signs(estimator, pos_label)
        name = type(estimator).__name__ if name is None else name
        score = estimator.decision_function(X)
        labels: dict[str, Any] = {"sample_weight": sample_weight, "pos_label": pos_label}
        return cls.from_predictions(y, score, **labels, name=name, ax=ax, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike | None,
        y_score: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        pos_label: PosLabel = None,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Plot given scores.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,) or None
            Labels, as `sklearn_g2d.metrics` takes them. Outliers are -1 (among +1 and -1), 1 (among
            0 and 1) or True. A curve needs both kinds. With None there is one histogram.
        y_score : array-like of shape (n_samples,)
            Values of ``decision_function``, negative = outlier. Curves need only scores that are
            higher for more normal rows.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows, not negative; None weighs all alike.
        pos_label : bool, int, float or str, default=None
            Label of the outliers. It is not needed for +1 and -1, 0 and 1, and booleans.
        name : str, default=None
            Title of histograms, or a curve's name in the legend.
        ax, **kwargs : as in `plot`

        Returns
        -------
        display
            An instance of this class, drawn.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If the meaning of the labels is unknown, a score is not finite, the lengths differ, or
            there are no inliers or no outliers for a curve.
        """
        parts = cls._compute(y_true, y_score, sample_weight, pos_label)
        return cls(name=name, **parts).plot(ax=ax, **kwargs)

    @classmethod
    @abstractmethod
    def _compute(
        cls, y_true: Any, y_score: ArrayLike, sample_weight: Any, pos_label: PosLabel
    ) -> dict[str, Any]:
        """Check the scores and compute the parameters of this class from them."""

    @abstractmethod
    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw the display."""


@dataclass(kw_only=True, eq=False, repr=False)
class ScoreDistributionDisplay(_ScoreDisplay):  # numpydoc ignore=PR02
    """Histograms of the decision function, and the threshold at 0.

    Use `from_estimator` or `from_predictions` to make one.

    Parameters
    ----------
    y_score : ndarray of shape (n_samples,)
        Values of ``decision_function``, **negative = outlier**.
    y_true : ndarray of shape (n_samples,), default=None
        +1 for inliers, -1 for outliers; None makes one histogram of all rows.
    sample_weight : ndarray of shape (n_samples,), default=None
        Weights of the rows; None weighs all alike.
    name : str, default=None
        Title of the plot.

    Attributes
    ----------
    bars_ : list of BarContainer
        Histograms: inliers, then outliers, or all rows.
    line_, ax_, figure_ : matplotlib Line2D (the threshold), Axes and Figure

    Examples
    --------
    >>> from sklearn_g2d.display import ScoreDistributionDisplay
    >>> y_score = [2.1, 1.7, 0.4, -0.2, -1.5]  # negative = outlier
    >>> display = ScoreDistributionDisplay.from_predictions([1, 1, 1, -1, -1], y_score, bins=5)
    >>> len(display.bars_)  # of inliers, and of outliers
    2
    """

    y_score: NDArray[np.float64]
    y_true: NDArray[Any] | None = None
    sample_weight: NDArray[np.float64] | None = None

    @classmethod
    def _compute(
        cls, y_true: Any, y_score: ArrayLike, sample_weight: Any, pos_label: PosLabel
    ) -> dict[str, Any]:
        score = _check_scores(y_score)
        if y_true is not None:
            y_true = np.where(_is_outlier(y_true, "y_true", pos_label), -1, 1)
            check_consistent_length(y_true, score)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(
                sample_weight, score, dtype=np.float64, ensure_non_negative=True
            )
        return {"y_score": score, "y_true": y_true, "sample_weight": sample_weight}

    def plot(self, ax: Axes | None = None, *, bins: Any = 30, **kwargs: Any) -> Self:
        """Draw the histograms.

        Each histogram has the area 1, because outliers are usually too few to be visible
        otherwise. ``density=False`` draws numbers of rows.

        Parameters
        ----------
        ax : matplotlib Axes, default=None, which makes a figure
        bins : int, str or array-like, default=30
            Bins of both histograms, as in `numpy.histogram_bin_edges`.
        **kwargs : passed to ``Axes.hist``

        Returns
        -------
        self
        """
        self.ax_, self.figure_ = new_axes(ax, self.name)
        kwargs = {"density": True, "alpha": 0.6, **kwargs}
        # Compute the edges from all rows, so that the two histograms can be compared.
        edges = np.histogram_bin_edges(self.y_score, bins=bins)
        weight = np.ones(len(self.y_score)) if self.sample_weight is None else self.sample_weight
        self.bars_ = []
        for kind, color, rows in self._kinds():
            label = f"{kind} (n = {weight[rows].sum():.10g})"
            style = {"label": label, "color": color, "weights": weight[rows]} | kwargs
            self.bars_.append(self.ax_.hist(self.y_score[rows], bins=edges.tolist(), **style)[2])
        self.line_ = self.ax_.axvline(0, color="black", linestyle="--", label="threshold")
        self.ax_.set(
            xlabel="decision_function (negative = outlier)",
            ylabel="density" if kwargs["density"] else "rows",
        )
        self.ax_.legend()
        return self

    def _kinds(self) -> list[tuple[str, str, NDArray[np.bool_]]]:
        y = self.y_true
        if y is None:
            return [("all rows", "tab:gray", np.ones(len(self.y_score), dtype=bool))]
        kinds = [("inliers", "tab:blue", y == 1), ("outliers", "tab:red", y == -1)]
        return [kind for kind in kinds if kind[2].any()]


class _OutlierCurveDisplay(_ScoreDisplay):
    """A curve over thresholds, drawn by a display of scikit-learn."""

    _ylabel: ClassVar[str]
    # The name of a measure in the legend, and the attribute with its value.
    _summary: ClassVar[tuple[str, str]]

    def plot(self, ax: Axes | None = None, *, name: str | None = None, **kwargs: Any) -> Self:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, default=None, which makes a figure
        name : str, default=None
            Name in the legend; None means the attribute `name`.
        **kwargs : passed to ``Axes.plot``

        Returns
        -------
        self
        """
        self.ax_, self.figure_ = new_axes(ax)
        name = self.name if name is None else name
        measure, value = self._summary[0], getattr(self, self._summary[1])
        summary = None if value is None else f"{measure} = {value:.2f}"
        label = f"{name} ({summary})" if name and summary else name or summary
        self.line_ = self._draw({"label": label, **kwargs} if label else kwargs)
        self.ax_.set(xlabel="false-alarm rate (inliers flagged)", ylabel=self._ylabel)
        return self

    @abstractmethod
    def _draw(self, style: dict[str, Any]) -> Any:
        """Draw the curve on `ax_` and return its line."""


@dataclass(kw_only=True, eq=False, repr=False)
class OutlierRocCurveDisplay(_OutlierCurveDisplay):  # numpydoc ignore=PR02
    """ROC curve, with the outliers as positives.

    Use `from_estimator` or `from_predictions` to make one.

    Parameters
    ----------
    fpr : ndarray of shape (n_thresholds,)
        False-alarm rate: fraction of the inliers that is flagged.
    tpr : ndarray of shape (n_thresholds,)
        Detection rate: fraction of the outliers that is flagged.
    roc_auc : float, default=None
        Area under the curve, by `sklearn_g2d.metrics.outlier_roc_auc_score`. With None it is not
        in the legend.
    name : str, default=None
        Name in the legend.

    Attributes
    ----------
    line_, ax_, figure_ : matplotlib Line2D, Axes and Figure

    Examples
    --------
    >>> from sklearn_g2d.display import OutlierRocCurveDisplay
    >>> y_score = [0.9, 0.4, 0.5, 0.1]  # higher = more normal
    >>> OutlierRocCurveDisplay.from_predictions([1, 1, -1, -1], y_score).roc_auc
    0.75
    """

    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    roc_auc: float | None = None

    _ylabel: ClassVar[str] = "detection rate (outliers flagged)"
    _summary: ClassVar[tuple[str, str]] = ("AUC", "roc_auc")

    @classmethod
    def _compute(
        cls, y_true: Any, y_score: ArrayLike, sample_weight: Any, pos_label: PosLabel
    ) -> dict[str, Any]:
        outlier, score, weight = _check_outlier_scores(y_true, y_score, sample_weight, pos_label)
        fpr, tpr, _ = roc_curve(outlier, score, sample_weight=weight)
        # `outlier` holds booleans, so that the metric needs no `pos_label`.
        auc = outlier_roc_auc_score(outlier, y_score, sample_weight=weight)
        return {"fpr": fpr, "tpr": tpr, "roc_auc": auc}

    def _draw(self, style: dict[str, Any]) -> Any:
        curve = RocCurveDisplay(fpr=self.fpr, tpr=self.tpr)
        return curve.plot(ax=self.ax_, curve_kwargs=style).line_


@dataclass(kw_only=True, eq=False, repr=False)
class OutlierDetCurveDisplay(_OutlierCurveDisplay):  # numpydoc ignore=PR02
    """Detection-error trade-off (DET) curve, with the outliers as positives.

    Both axes have the scale of normal deviates. It shows small error rates clearly, which are in
    a corner of a ROC curve. Use `from_estimator` or `from_predictions` to make one.

    Parameters
    ----------
    fpr : ndarray of shape (n_thresholds,)
        False-alarm rate: fraction of the inliers that is flagged.
    fnr : ndarray of shape (n_thresholds,)
        Miss rate: fraction of the outliers that is not flagged.
    eer : float, default=None
        Error rate in [0, 1] where both are equal, by `sklearn_g2d.metrics.equal_error_rate`. With
        None it is not in the legend.
    name : str, default=None
        Name in the legend.

    Attributes
    ----------
    line_, ax_, figure_ : matplotlib Line2D (in normal deviates), Axes and Figure

    Examples
    --------
    >>> from sklearn_g2d.display import OutlierDetCurveDisplay
    >>> y_score = [0.9, 0.4, 0.5, 0.1]  # higher = more normal
    >>> display = OutlierDetCurveDisplay.from_predictions([1, 1, -1, -1], y_score)
    >>> [float(rate) for rate in display.fnr]
    [0.0, 0.5, 0.5]
    """

    fpr: NDArray[np.float64]
    fnr: NDArray[np.float64]
    eer: float | None = None

    _ylabel: ClassVar[str] = "miss rate (outliers not flagged)"
    _summary: ClassVar[tuple[str, str]] = ("EER", "eer")

    @classmethod
    def _compute(
        cls, y_true: Any, y_score: ArrayLike, sample_weight: Any, pos_label: PosLabel
    ) -> dict[str, Any]:
        outlier, score, weight = _check_outlier_scores(y_true, y_score, sample_weight, pos_label)
        fpr, fnr, _ = det_curve(outlier, score, sample_weight=weight)
        eer = equal_error_rate(outlier, y_score, sample_weight=weight)
        return {"fpr": fpr, "fnr": fnr, "eer": eer}

    def _draw(self, style: dict[str, Any]) -> Any:
        line = DetCurveDisplay(fpr=self.fpr, fnr=self.fnr).plot(ax=self.ax_, **style).line_
        if self.ax_.get_legend():
            # scikit-learn puts the legend into a corner that curves may cross.
            self.ax_.legend(loc="upper right")
        return line
