"""Plots of scores: distributions, ROC and DET curves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import DetCurveDisplay, RocCurveDisplay, det_curve, roc_curve
from sklearn.utils import check_array, check_consistent_length, column_or_1d

from sklearn_g2d.display._axes import import_pyplot, new_axes
from sklearn_g2d.metrics import (
    _check_labels,
    _check_outlier_scores,
    equal_error_rate,
    outlier_roc_auc_score,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class _ScoreDisplay(ABC):
    """A display of scores, which it computes from an estimator or is given."""

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike | None,
        *,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Plot a fitted detector's scores of labelled rows.

        Parameters
        ----------
        estimator : outlier detector
            Fitted, with ``decision_function``; a pipeline that ends in one will do.
        X : array-like of shape (n_samples, n_features)
            Rows to score.
        y : array-like of shape (n_samples,)
            +1 for inliers, -1 for outliers.
        name : str, default=None
            Name in the plot; None takes the estimator's class.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        display
            With the artists as attributes.

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            As in `from_predictions`.
        """
        import_pyplot()
        name = type(estimator).__name__ if name is None else name
        score = estimator.decision_function(X)
        return cls.from_predictions(y, score, name=name, ax=ax, **kwargs)

    @classmethod
    @abstractmethod
    def from_predictions(
        cls,
        y_true: Any,
        y_score: ArrayLike,
        *,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Plot given scores."""


class ScoreDistributionDisplay(_ScoreDisplay):
    """Histograms of the decision function, and the threshold at 0.

    Use `from_estimator` or `from_predictions` to make one.

    Parameters
    ----------
    y_score : ndarray of shape (n_samples,)
        Values of ``decision_function``, **negative = outlier**.
    y_true : ndarray of shape (n_samples,), default=None
        +1 for inliers, -1 for outliers; None makes one histogram of all rows.
    name : str, default=None
        Title of the plot.

    Attributes
    ----------
    bars_ : list of BarContainer
        Histograms: inliers, then outliers, or all rows.
    line_ : matplotlib Line2D
        The threshold.
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from sklearn_g2d.display import ScoreDistributionDisplay
    >>> y_score = [2.1, 1.7, 0.4, -0.2, -1.5]  # negative = outlier
    >>> display = ScoreDistributionDisplay.from_predictions([1, 1, 1, -1, -1], y_score, bins=5)
    >>> len(display.bars_)  # of inliers, and of outliers
    2
    """

    def __init__(
        self,
        *,
        y_score: NDArray[np.float64],
        y_true: NDArray[Any] | None = None,
        name: str | None = None,
    ) -> None:
        self.y_score = y_score
        self.y_true = y_true
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Plot how a fitted detector scores rows.

        Parameters
        ----------
        estimator : outlier detector
            Fitted, with ``decision_function``; a pipeline that ends in one will do.
        X : array-like of shape (n_samples, n_features)
            Rows to score.
        y : array-like of shape (n_samples,), default=None
            +1 for inliers, -1 for outliers; None makes one histogram of all rows.
        name : str, default=None
            Title of the plot; None takes the estimator's class.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        ScoreDistributionDisplay

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            If a label is neither +1 nor -1.
        """
        return super().from_estimator(estimator, X, y, name=name, ax=ax, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike | None,
        y_score: ArrayLike,
        *,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Plot the distribution of given scores.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,) or None
            +1 for inliers, -1 for outliers; None makes one histogram of all rows.
        y_score : array-like of shape (n_samples,)
            Values of ``decision_function``, negative = outlier.
        name : str, default=None
            Title of the plot.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        ScoreDistributionDisplay

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            If a label is neither +1 nor -1, a score is not finite, or the lengths differ.
        """
        score = check_array(y_score, ensure_2d=False, dtype=np.float64, input_name="y_score")
        score = column_or_1d(score)
        if y_true is not None:
            y_true = _check_labels(y_true, "y_true")
            check_consistent_length(y_true, score)
        return cls(y_score=score, y_true=y_true, name=name).plot(ax=ax, **kwargs)

    def plot(self, ax: Axes | None = None, *, bins: Any = 30, **kwargs: Any) -> Self:
        """Draw the histograms.

        Each has area 1, since outliers are usually too few to be seen otherwise;
        ``density=False`` draws numbers of rows.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        bins : int, str or array-like, default=30
            As in `numpy.histogram_bin_edges`; the histograms share their bins.
        **kwargs : dict
            Passed to ``Axes.hist``.

        Returns
        -------
        self
        """
        self.ax_, self.figure_ = new_axes(ax)
        kwargs = {"density": True, "alpha": 0.6, **kwargs}
        edges = np.histogram_bin_edges(self.y_score, bins=bins)
        self.bars_ = []
        for kind, color, rows in self._kinds():
            style = {"label": f"{kind} (n = {rows.sum()})", "color": color} | kwargs
            self.bars_.append(self.ax_.hist(self.y_score[rows], bins=edges.tolist(), **style)[2])
        self.line_ = self.ax_.axvline(0, color="black", linestyle="--", label="threshold")
        self.ax_.set(
            xlabel="decision_function (negative = outlier)",
            ylabel="density" if kwargs["density"] else "rows",
        )
        if self.name is not None:
            self.ax_.set_title(self.name)
        self.ax_.legend()
        return self

    def _kinds(self) -> list[tuple[str, str, NDArray[np.bool_]]]:
        if self.y_true is None:
            return [("all rows", "tab:gray", np.ones(len(self.y_score), dtype=bool))]
        kinds = [
            ("inliers", "tab:blue", self.y_true == 1),
            ("outliers", "tab:red", self.y_true == -1),
        ]
        return [kind for kind in kinds if kind[2].any()]


class _OutlierCurveDisplay(_ScoreDisplay):
    """A curve over thresholds, drawn by a display of scikit-learn."""

    _ylabel: ClassVar[str]

    name: str | None

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_score: ArrayLike,
        *,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Plot the curve of given scores.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            +1 for inliers, -1 for outliers; both must occur.
        y_score : array-like of shape (n_samples,)
            Scores, higher = more normal.
        name : str, default=None
            Name in the legend.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            Passed to ``Axes.plot``.

        Returns
        -------
        display
            With the artists as attributes.

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            If a label is neither +1 nor -1, or only one kind occurs.
        """
        return cls._compute(y_true, y_score, name).plot(ax=ax, **kwargs)

    def plot(self, ax: Axes | None = None, *, name: str | None = None, **kwargs: Any) -> Self:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        name : str, default=None
            Name in the legend; None takes the attribute `name`.
        **kwargs : dict
            Passed to ``Axes.plot``.

        Returns
        -------
        self
        """
        self.ax_, self.figure_ = new_axes(ax)
        name, summary = self.name if name is None else name, self._summary()
        label = f"{name} ({summary})" if name and summary else name or summary
        self.line_ = self._draw({"label": label, **kwargs} if label else kwargs)
        self.ax_.set(xlabel="false-alarm rate (inliers flagged)", ylabel=self._ylabel)
        return self

    @classmethod
    @abstractmethod
    def _compute(cls, y_true: ArrayLike, y_score: ArrayLike, name: str | None) -> Self:
        """Compute the curve."""

    @abstractmethod
    def _summary(self) -> str | None:
        """Sum the curve up for the legend."""

    @abstractmethod
    def _draw(self, style: dict[str, Any]) -> Any:
        """Draw the curve on `ax_` and return its line."""


class OutlierRocCurveDisplay(_OutlierCurveDisplay):
    """ROC curve of finding the outliers.

    Use `from_estimator` or `from_predictions` to make one.

    Parameters
    ----------
    fpr : ndarray of shape (n_thresholds,)
        False-alarm rate: share of the inliers that is flagged.
    tpr : ndarray of shape (n_thresholds,)
        Detection rate: share of the outliers that is flagged.
    roc_auc : float, default=None
        Area under the curve; None leaves it out of the legend.
    name : str, default=None
        Name in the legend.

    Attributes
    ----------
    line_ : matplotlib Line2D
        The curve.
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    See Also
    --------
    sklearn_g2d.metrics.outlier_roc_auc_score : The area under the curve.

    Examples
    --------
    >>> from sklearn_g2d.display import OutlierRocCurveDisplay
    >>> y_score = [0.9, 0.4, 0.5, 0.1]  # higher = more normal
    >>> OutlierRocCurveDisplay.from_predictions([1, 1, -1, -1], y_score).roc_auc
    0.75
    """

    _ylabel: ClassVar[str] = "detection rate (outliers flagged)"

    def __init__(
        self,
        *,
        fpr: NDArray[np.float64],
        tpr: NDArray[np.float64],
        roc_auc: float | None = None,
        name: str | None = None,
    ) -> None:
        self.fpr = fpr
        self.tpr = tpr
        self.roc_auc = roc_auc
        self.name = name

    @classmethod
    def _compute(cls, y_true: ArrayLike, y_score: ArrayLike, name: str | None) -> Self:
        fpr, tpr, _ = roc_curve(*_check_outlier_scores(y_true, y_score))
        return cls(fpr=fpr, tpr=tpr, roc_auc=outlier_roc_auc_score(y_true, y_score), name=name)

    def _summary(self) -> str | None:
        return None if self.roc_auc is None else f"AUC = {self.roc_auc:.2f}"

    def _draw(self, style: dict[str, Any]) -> Any:
        curve = RocCurveDisplay(fpr=self.fpr, tpr=self.tpr)
        return curve.plot(ax=self.ax_, curve_kwargs=style).line_


class OutlierDetCurveDisplay(_OutlierCurveDisplay):
    """Detection-error trade-off (DET) curve of finding the outliers.

    Both axes have the scale of normal deviates, which spreads the small error rates that
    a ROC curve crowds into a corner. Use `from_estimator` or `from_predictions` to make one.

    Parameters
    ----------
    fpr : ndarray of shape (n_thresholds,)
        False-alarm rate: share of the inliers that is flagged.
    fnr : ndarray of shape (n_thresholds,)
        Miss rate: share of the outliers that is not flagged.
    eer : float, default=None
        Equal error rate, in [0, 1]; None leaves it out of the legend.
    name : str, default=None
        Name in the legend.

    Attributes
    ----------
    line_ : matplotlib Line2D
        The curve, in normal deviates.
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    See Also
    --------
    sklearn_g2d.metrics.equal_error_rate : The error rate where both are equal.

    Examples
    --------
    >>> from sklearn_g2d.display import OutlierDetCurveDisplay
    >>> y_score = [0.9, 0.4, 0.5, 0.1]  # higher = more normal
    >>> display = OutlierDetCurveDisplay.from_predictions([1, 1, -1, -1], y_score)
    >>> [float(rate) for rate in display.fnr]
    [0.0, 0.5, 0.5]
    """

    _ylabel: ClassVar[str] = "miss rate (outliers not flagged)"

    def __init__(
        self,
        *,
        fpr: NDArray[np.float64],
        fnr: NDArray[np.float64],
        eer: float | None = None,
        name: str | None = None,
    ) -> None:
        self.fpr = fpr
        self.fnr = fnr
        self.eer = eer
        self.name = name

    @classmethod
    def _compute(cls, y_true: ArrayLike, y_score: ArrayLike, name: str | None) -> Self:
        fpr, fnr, _ = det_curve(*_check_outlier_scores(y_true, y_score))
        return cls(fpr=fpr, fnr=fnr, eer=equal_error_rate(y_true, y_score), name=name)

    def _summary(self) -> str | None:
        return None if self.eer is None else f"EER = {self.eer:.2f}"

    def _draw(self, style: dict[str, Any]) -> Any:
        line = DetCurveDisplay(fpr=self.fpr, fnr=self.fnr).plot(ax=self.ax_, **style).line_
        if self.ax_.get_legend():
            self.ax_.legend(loc="upper right")  # scikit-learn's corner is one that curves reach
        return line
