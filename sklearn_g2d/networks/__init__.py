"""PyTorch modules: architectures, nothing about how they are trained."""
