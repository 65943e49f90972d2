"""Transformers that the detectors put in front of their networks, usable alone."""

from sklearn_g2d.features._gradients import OrientedGradients
from sklearn_g2d.features._neighbors import NeighborProfile
from sklearn_g2d.features._residual_pca import RemainderPCA
from sklearn_g2d.features._scaling import SquashingScaler

__all__ = [
    "NeighborProfile",
    "OrientedGradients",
    "RemainderPCA",
    "SquashingScaler",
]
