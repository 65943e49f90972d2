"""Generate to Detect (Pourreza et al., WACV 2021)."""

from sklearn_g2d.g2d._detector import G2DOutlierDetector

__all__ = ["G2DOutlierDetector"]
