"""Warnings that point to the user's line."""

from __future__ import annotations

import sys
import warnings

# What lies between a user's line and ours: decorators, Pipelines, searches.
_BETWEEN = ("sklearn_g2d", "sklearn", "contextlib", "joblib")


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that led into this package, through scikit-learn or not."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
