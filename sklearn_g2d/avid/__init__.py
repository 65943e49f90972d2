"""Adversarial Visual Irregularity Detection (Sabokrou et al., ACCV 2018)."""

from sklearn_g2d.avid._detector import AVIDDetector

__all__ = ["AVIDDetector"]
