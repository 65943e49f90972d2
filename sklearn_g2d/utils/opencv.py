"""OpenCV, imported at the first use only."""

from __future__ import annotations

from types import ModuleType


def import_opencv(purpose: str) -> ModuleType:
    """Import OpenCV, or say how to install it, which `purpose`, a plural, needs."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            f"{purpose} need OpenCV, which is not installed. Install it by "
            "`pip install 'sklearn_g2d[video]'`."
        ) from error
    return cv2
