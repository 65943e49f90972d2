"""Adversarial Visual Irregularity Detection (Sabokrou et al., ACCV 2018)."""

from sklearn_g2d.avid._detector import AVIDDetector
from sklearn_g2d.avid._networks import CellNetwork, PatchNet, UNet
from sklearn_g2d.avid._paper import AdversarialInpainting
from sklearn_g2d.avid._training import CellInpainting, MaskedInpainting

__all__ = [
    "AVIDDetector",
    "AdversarialInpainting",
    "CellInpainting",
    "CellNetwork",
    "MaskedInpainting",
    "PatchNet",
    "UNet",
]
