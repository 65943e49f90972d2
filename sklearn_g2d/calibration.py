"""Thresholds and p-values from the scores of held-out normal rows, by conformal prediction."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["conformal_p_values", "conformal_threshold"]


def conformal_threshold(scores: ArrayLike, false_alarm_rate: float) -> float:
    """Find the score below which new normal rows fall at most at a promised rate.

    Parameters
    ----------
    scores : array-like of shape (n_samples,)
        Scores of held-out normal rows, **higher = more normal**.
    false_alarm_rate : float in (0, 1)
        Promised rate. A ValueError says how many scores it needs, if there are fewer.

    Returns
    -------
    float
        One of the scores.

    Examples
    --------
    >>> from sklearn_g2d.calibration import conformal_threshold
    >>> conformal_threshold(range(99), 0.05)
    4.0
    """
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"false_alarm_rate must lie in (0, 1), got {false_alarm_rate!r}.")
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    # The epsilon corrects products such as 0.07 * 100 = 7.000000000000001.
    rank = int(np.floor(false_alarm_rate * (len(ordered) + 1) + 1e-9))
    if rank < 1:
        needed = int(np.ceil(1 / false_alarm_rate - 1e-9)) - 1
        raise ValueError(
            f"false_alarm_rate={false_alarm_rate} needs at least {needed} held-out normal rows; "
            f"got {len(ordered)}. Pass more rows or a higher rate."
        )
    return float(ordered[rank - 1])


def conformal_p_values(scores: ArrayLike, calibration_scores: ArrayLike) -> NDArray[np.float64]:
    """Give conformal p-values of "this row is normal"; **small = anomalous**.

    Parameters
    ----------
    scores : array-like of shape (n_samples,)
        Scores of the rows to test, **higher = more normal**.
    calibration_scores : array-like of shape (n_calibration,)
        Sorted scores of held-out normal rows.

    Returns
    -------
    ndarray of shape (n_samples,)
        ``(1 + number of calibration scores not above the row's) / (n_calibration + 1)``.

    Examples
    --------
    >>> from sklearn_g2d.calibration import conformal_p_values
    >>> conformal_p_values([-1.0, 2.0], calibration_scores=[0.0, 1.0, 2.0])
    array([0.25, 1.  ])
    """
    calibration_scores = np.asarray(calibration_scores)
    at_most = np.searchsorted(calibration_scores, scores, side="right")
    return np.asarray((1 + at_most) / (len(calibration_scores) + 1), dtype=np.float64)
