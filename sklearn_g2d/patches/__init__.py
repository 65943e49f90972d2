"""Images judged by their patches: which are anomalous, and where."""

from sklearn_g2d.patches._detector import PatchDetector
from sklearn_g2d.patches._neighbors import PatchNeighbors

__all__ = ["PatchDetector", "PatchNeighbors"]
