"""Learned outlier detectors for scikit-learn, with PyTorch trainers inside."""

from sklearn_g2d._version import __version__
from sklearn_g2d.avid._detector import AVIDDetector
from sklearn_g2d.calibration import ConformalDetector
from sklearn_g2d.g2d._detector import G2DOutlierDetector
from sklearn_g2d.patches._detector import PatchDetector
from sklearn_g2d.utils.versions import show_versions

__all__ = [
    "AVIDDetector",
    "ConformalDetector",
    "G2DOutlierDetector",
    "PatchDetector",
    "__version__",
    "show_versions",
]
