"""PyTorch trainers on tensors; nothing here knows scikit-learn."""
