"""Transformers that the detectors apply before their networks; they can also be used alone."""

from sklearn_g2d.features._gradients import OrientedGradients
from sklearn_g2d.features._min_max import ColumnMinMaxScaler, GlobalMinMaxScaler
from sklearn_g2d.features._neighbors import NeighborProfile
from sklearn_g2d.features._pretrained import PretrainedFeatures
from sklearn_g2d.features._residual_pca import ResidualPCA
from sklearn_g2d.features._squashing import SquashingScaler

__all__ = [
    "ColumnMinMaxScaler",
    "GlobalMinMaxScaler",
    "NeighborProfile",
    "OrientedGradients",
    "PretrainedFeatures",
    "ResidualPCA",
    "SquashingScaler",
]
