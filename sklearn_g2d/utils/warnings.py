"""Warnings that show the user's line of code."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np

# Packages between the user's line and ours: decorators, Pipelines, searches.
_BETWEEN = ("sklearn_g2d", "sklearn", "contextlib", "joblib")


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the user's line that called this package, directly or through scikit-learn."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def check_unused_y(y: Any, X: Any) -> None:
    """Raise ValueError if `y` holds images or clips; warn if it holds labels of two kinds.

    `fit` does not use `y`. `X` is as given.
    """
    # A list is checked before NumPy sees it: its clips may have unequal lengths.
    is_of_arrays = isinstance(y, list | tuple) and any(getattr(one, "ndim", 0) > 1 for one in y)
    if is_of_arrays or (labels := np.asarray(y)).ndim > 2:
        raise ValueError(
            "y holds images or clips, but fit learns from X alone and does not use y. To learn "
            "from both, pass them together: clips as a list, fit([a, b]), and images as one array, "
            "fit(np.concatenate([a, b]))."
        )
    # A `y` of one kind, or of many, is probably not meant as labels of inliers and outliers.
    kinds = sorted(set(labels.tolist()), key=str) if labels.ndim == 1 else []
    if len(kinds) != 2:
        return
    normal = {(-1, 1): 1, (0, 1): 0}.get(tuple(kinds))
    is_list = isinstance(X, list | tuple)
    # A list of clips may come with labels of frames, which do not tell which clips are normal.
    if normal is None or (is_list and len(X) != len(labels)):
        remedy = "those alone"
    elif is_list:
        remedy = f"[x for x, label in zip(X, y) if label == {normal}]"
    else:
        remedy = f"X[{'y' if hasattr(y, 'shape') else 'np.asarray(y)'} == {normal}]"
    warn_caller(
        f"y holds the labels {kinds[0]!r} and {kinds[1]!r}, but fit does not use labels and learns "
        f"from all rows of X. If you know the normal rows, pass {remedy}."
    )
