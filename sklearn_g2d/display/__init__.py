"""Plots of detectors, used like scikit-learn's display classes.

scikit-learn's own curves refuse outlier detectors. As in `sklearn_g2d.metrics`, labels
are +1 and -1, 0 and 1, booleans, or any two with `pos_label`. Scores are **higher for more
normal** rows, and the outliers are the positive class of a curve. matplotlib is imported
at the first plot only: ``pip install sklearn_g2d[plot]``.
"""

from sklearn_g2d.display._contributions import ContributionDisplay
from sklearn_g2d.display._maps import AnomalyMapDisplay
from sklearn_g2d.display._scores import (
    OutlierDetCurveDisplay,
    OutlierRocCurveDisplay,
    ScoreDistributionDisplay,
)
from sklearn_g2d.display._training import LossCurveDisplay, SnapshotSamplesDisplay

__all__ = [
    "AnomalyMapDisplay",
    "ContributionDisplay",
    "LossCurveDisplay",
    "OutlierDetCurveDisplay",
    "OutlierRocCurveDisplay",
    "ScoreDistributionDisplay",
    "SnapshotSamplesDisplay",
]
