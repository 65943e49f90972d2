"""Which columns of a table make a row an outlier."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d.utils.columns import Label, follow, spell, sum_by_label

__all__ = ["column_contributions"]


def column_contributions(estimator: Any, X: Any) -> Bunch:
    """Give each column's contribution to the squared distance from rows to their neighbours.

    This is `G2DOutlierDetector.explain` for Pipelines, by the columns that the Pipeline is given.
    All that an encoder or an imputer makes of one column counts for this column. A column that
    the Pipeline drops is not listed. Columns that a transformer mixes, as PCA does, cannot be told
    apart, so that its own columns ("pca0") are listed in their place, after the others.

    Parameters
    ----------
    estimator : G2DOutlierDetector or Pipeline
        Fitted; a Pipeline ends in such a detector. Its transformers need
        ``get_feature_names_out``.
    X : array-like or data frame of shape (n_samples, n_features)

    Returns
    -------
    Bunch
        ``contributions``, of shape (n_samples, n_columns), **not negative, higher = farther from
        normal**: rows sum to the mean squared distances that `G2DOutlierDetector.explain`
        describes. ``names``, of shape (n_columns,), the columns in the order of the table;
        "x0", "x1" and so on if it has no names.

    Raises
    ------
    NotFittedError, TypeError
        Before `fit`, and if another detector is at the end.
    ValueError
        If a transformer has no ``get_feature_names_out``; also as in
        `G2DOutlierDetector.explain`.

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
    for transformer in transformers:
        X = transformer.transform(X)  # which checks it
        labels = follow(transformer, labels)
    parts = detector.explain(X)
    order = {label: label if isinstance(label, int) else len(given) for label in labels}
    kept = sorted(order, key=lambda label: order[label])
    names = np.asarray([spell(label, given) for label in kept], dtype=object)
    return Bunch(contributions=sum_by_label(parts, labels, kept), names=names)


def _steps_of(estimator: Any) -> list[Any]:
    """Give the estimators of a Pipeline, also of those inside, that do something."""
    if isinstance(estimator, Pipeline):
        return [inner for _, step in estimator.steps for inner in _steps_of(step)]
    return [] if estimator is None or isinstance(estimator, str) else [estimator]
