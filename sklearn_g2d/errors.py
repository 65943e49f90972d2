"""Errors that are this package's own; bad values raise ValueError as in scikit-learn."""


class TrainingDivergedError(RuntimeError):
    """A loss became infinite or NaN during training; the estimator is left unfitted."""
