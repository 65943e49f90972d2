"""PyTorch trainers on tensors, independent of scikit-learn and of both methods."""

from sklearn_g2d.training.runtime import cuda_arithmetic

__all__ = ["cuda_arithmetic"]
