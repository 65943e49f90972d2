"""Generate to Detect (Pourreza et al., WACV 2021): the detector and its parts."""

from sklearn_g2d.g2d._classifier import NetworkClassifier
from sklearn_g2d.g2d._cloud import GaussianCloud
from sklearn_g2d.g2d._detector import G2DOutlierDetector
from sklearn_g2d.g2d._networks import ConvGenerator, ConvNetwork, RowGenerator
from sklearn_g2d.g2d._snapshots import Snapshot
from sklearn_g2d.g2d._wgan import WassersteinGAN

__all__ = [
    "ConvGenerator",
    "ConvNetwork",
    "G2DOutlierDetector",
    "GaussianCloud",
    "NetworkClassifier",
    "RowGenerator",
    "Snapshot",
    "WassersteinGAN",
]
