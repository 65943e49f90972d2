"""PyTorch trainers on tensors; nothing here knows scikit-learn."""

from sklearn_g2d.training.runtime import cuda_arithmetic

__all__ = ["cuda_arithmetic"]
