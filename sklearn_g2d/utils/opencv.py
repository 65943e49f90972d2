"""Import of OpenCV at its first use."""

from __future__ import annotations

from types import ModuleType


def import_opencv(purpose: str) -> ModuleType:
    """Import OpenCV; if it is missing, the error says that `purpose`, a plural, needs it."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            f"{purpose} need OpenCV, which is not installed. Install it by "
            "`pip install 'sklearn_g2d[video]'`."
        ) from error
    return cv2
