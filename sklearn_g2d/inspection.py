"""Explanations of outliers in tables: the columns that make a row an outlier."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d.utils.columns import Label, format_label, sum_by_label, trace_columns

__all__ = ["column_contributions"]


def column_contributions(estimator: Any, X: Any) -> Bunch:
    """Return each column's contribution to the squared distance from rows to their neighbours.

    This is `G2DOutlierDetector.explain` for Pipelines: contributions belong to the columns of the
    Pipeline's input. An encoder or an imputer may make several columns from one; they count for
    this one. A column that the Pipeline drops is not listed. If a transformer mixes columns, as
    PCA does, its own columns ("pca0") are listed instead, after the others.

    Parameters
    ----------
    estimator : G2DOutlierDetector or Pipeline
        A fitted detector, or a fitted Pipeline that ends in one. The transformers of a Pipeline
        need ``get_feature_names_out``.
    X : array-like or data frame of shape (n_samples, n_features)
        Rows to explain.

    Returns
    -------
    Bunch
        ``contributions`` has shape (n_samples, n_columns): **not negative, higher = farther from
        normal**. Each row sums to the mean squared distance that `G2DOutlierDetector.explain`
        describes. ``names`` has shape (n_columns,) and lists the columns in the order of the
        table; they are "x0", "x1" and so on if the table has no names.

    Raises
    ------
    NotFittedError
        If the estimator is not fitted.
    TypeError
        If the Pipeline ends in another detector.
    ValueError
        If a transformer has no ``get_feature_names_out``, or for the reasons that
        `G2DOutlierDetector.explain` lists.

    See Also
    --------
    sklearn_g2d.display.ContributionDisplay : Draws the contributions to one row.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_g2d import G2DOutlierDetector
    >>> from sklearn_g2d.inspection import column_contributions
    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> pipeline = make_pipeline(StandardScaler(), G2DOutlierDetector(random_state=0)).fit(X)
    >>> why = column_contributions(pipeline, [[0.1, 9.0, -0.2]])
    >>> str(why.names[why.contributions[0].argmax()])
    'x1'
    """
    check_is_fitted(estimator)
    *transformers, detector = steps = _steps_of(estimator)
    if not hasattr(detector, "explain"):
        raise TypeError(
            "column_contributions needs a G2DOutlierDetector, or a Pipeline that ends in one; got "
            f"{type(detector).__name__}. An AVIDDetector explains tables by its anomaly_map."
        )
    given = getattr(steps[0], "feature_names_in_", getattr(X, "columns", None))
    if given is None:
        given = [f"x{index}" for index in range(np.shape(X)[-1])]
    labels: list[Label] = list(range(len(given)))
    # `labels` holds, for each column that reaches the next step, its column in the table, or the
    # name of a mixed column.
    for transformer in transformers:
        X = transformer.transform(X)
        labels = trace_columns(transformer, labels)
    parts = detector.explain(X)
    # Mixed columns have no place in the table: sort them after its columns.
    order = {label: label if isinstance(label, int) else len(given) for label in labels}
    kept = sorted(order, key=lambda label: order[label])
    names = np.asarray([format_label(label, given) for label in kept], dtype=object)
    return Bunch(contributions=sum_by_label(parts, labels, kept), names=names)


def _steps_of(estimator: Any) -> list[Any]:
    """Return the steps of a Pipeline and of Pipelines inside it, without "passthrough"."""
    if isinstance(estimator, Pipeline):
        return [inner for _, step in estimator.steps for inner in _steps_of(step)]
    return [] if estimator is None or isinstance(estimator, str) else [estimator]
