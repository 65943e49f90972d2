"""Learned outlier detectors for scikit-learn, with PyTorch trainers inside."""

from sklearn_g2d._avid import AVIDDetector
from sklearn_g2d._g2d import G2DOutlierDetector
from sklearn_g2d._version import __version__

__all__ = ["AVIDDetector", "G2DOutlierDetector", "__version__"]
