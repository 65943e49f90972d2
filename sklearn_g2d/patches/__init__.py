"""Detection of anomalous images, and of the places in them, by patches."""

from sklearn_g2d.patches._detector import PatchDetector
from sklearn_g2d.patches._neighbors import PatchNeighbors

__all__ = ["PatchDetector", "PatchNeighbors"]
