"""A plot of the columns that make a row an outlier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array

from sklearn_g2d.display._drawing import import_pyplot, new_axes
from sklearn_g2d.inspection import column_contributions

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(kw_only=True, eq=False, repr=False)
class ContributionDisplay:  # numpydoc ignore=PR02
    """Bars of the columns' contributions to the distance from one row to its neighbours.

    The largest contributions come first. Use `from_estimator` or `from_predictions` to make one.

    Parameters
    ----------
    contributions : ndarray of shape (n_columns,)
        Contributions to one row, **higher = farther from normal**, not negative.
    column_names : sequence of str
        Names of the columns.
    name : str, default=None
        Title of the plot.

    Attributes
    ----------
    bars_ : BarContainer
        One bar for each column, the largest first; the last one may be the sum of all others.
    ax_, figure_ : matplotlib Axes and Figure

    See Also
    --------
    sklearn_g2d.inspection.column_contributions : Returns the contributions to many rows.

    Examples
    --------
    >>> from sklearn_g2d.display import ContributionDisplay
    >>> display = ContributionDisplay.from_predictions(
    ...     [0.2, 7.5, 1.1], column_names=["age", "income", "height"]
    ... )
    >>> [label.get_text() for label in display.ax_.get_yticklabels()]
    ['income', 'height', 'age']
    """

    contributions: NDArray[np.float64]
    column_names: Sequence[str]
    name: str | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Plot the contributions to one row.

        Parameters
        ----------
        estimator : G2DOutlierDetector or Pipeline
            A fitted estimator that `sklearn_g2d.inspection.column_contributions` accepts.
        X : array-like or data frame of shape (1, n_features)
            The row.
        name : str, default=None
            Title of the plot; None means the name of the estimator's class.
        ax, **kwargs : as in `plot`

        Returns
        -------
        ContributionDisplay

        Raises
        ------
        NotFittedError, TypeError
            As in `sklearn_g2d.inspection.column_contributions`.
        ImportError
            If matplotlib is not installed.
        ValueError
            If `X` does not hold exactly one row, or as in
            `sklearn_g2d.inspection.column_contributions`.
        """
        # Raise an error about a missing matplotlib before a long computation.
        import_pyplot()
        shape = np.shape(X)
        if len(shape) != 2 or shape[0] != 1:
            raise ValueError(
                f"X must be one row, of shape (1, n_features), got shape {shape}. Pass X[[i]], or "
                "X.iloc[[i]] for a data frame."
            )
        why = column_contributions(estimator, X)
        return cls.from_predictions(
            why.contributions[0],
            column_names=why.names,
            name=type(estimator).__name__ if name is None else name,
            ax=ax,
            **kwargs,
        )

    @classmethod
    def from_predictions(
        cls,
        contributions: ArrayLike,
        *,
        column_names: Sequence[Any] | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Plot given contributions.

        Parameters
        ----------
        contributions : array-like of shape (n_columns,)
            Contributions to one row, not negative: a row of the result of
            `G2DOutlierDetector.explain`.
        column_names : sequence of str, default=None
            Names of the columns; None means "x0", "x1" and so on.
        name : str, default=None
            Title of the plot.
        ax, **kwargs : as in `plot`

        Returns
        -------
        ContributionDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If a contribution is negative or not finite, if there is more than one row of them, or
            if the numbers of names and columns differ.
        """
        shape = np.shape(contributions)
        if len(shape) != 1:
            raise ValueError(
                f"contributions must be those of one row, of shape (n_columns,), got shape {shape}."
            )
        checked: NDArray[np.float64] = check_array(
            contributions,
            dtype=np.float64,
            ensure_2d=False,
            ensure_non_negative=True,
            input_name="contributions",
        )
        if column_names is None:
            column_names = [f"x{column}" for column in range(len(checked))]
        if len(column_names) != len(checked):
            raise ValueError(f"There are {len(column_names)} column_names for {shape[0]} columns.")
        names = [str(column) for column in column_names]
        return cls(contributions=checked, column_names=names, name=name).plot(ax=ax, **kwargs)

    def plot(self, ax: Axes | None = None, *, n_columns: int = 10, **kwargs: Any) -> Self:
        """Draw the bars.

        Parameters
        ----------
        ax : matplotlib Axes, default=None, which makes a figure
        n_columns : int, default=10
            Number of columns with a bar of their own, the largest ones. One gray bar is the sum of
            all others.
        **kwargs : passed to ``Axes.barh``

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        order = np.argsort(-self.contributions, kind="stable")
        shown, others = order[:n_columns], order[n_columns:]
        widths = list(self.contributions[shown])
        labels = [self.column_names[column] for column in shown]
        colors = ["tab:blue"] * len(shown)
        if len(others):
            widths.append(self.contributions[others].sum())
            labels.append(f"{len(others)} other{'s' if len(others) > 1 else ''}")
            colors.append("tab:gray")
        size = (6.0, max(2.0, 1.0 + 0.3 * len(widths)))
        self.ax_, self.figure_ = new_axes(ax, self.name, figsize=size, layout="constrained")
        places = np.arange(len(widths))
        self.bars_ = self.ax_.barh(places, widths, **{"color": colors, **kwargs})
        self.ax_.set_yticks(places, labels)
        # Put the largest bar on top by fixed limits. Inverting the axis would turn it back when a
        # second plot uses the same axes.
        self.ax_.set_ylim(len(widths) - 0.5, -0.5)
        self.ax_.set_xlabel("contribution to the squared distance")
        return self
