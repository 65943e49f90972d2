"""Errors that are this package's own; bad values raise ValueError as in scikit-learn."""


class TrainingDivergedError(RuntimeError):
    """A loss became infinite or NaN during training; the estimator is left unfitted."""


class VideoFileError(ValueError):
    """A video file is empty, damaged or no video; what was read before it stays valid."""
