"""Errors that are this package's own; bad values raise ValueError as in scikit-learn."""

__all__ = [
    "ModelFileError",
    "TrainingDivergedError",
    "UnsupportedObjectError",
    "VideoFileError",
]


class TrainingDivergedError(RuntimeError):
    """Training diverged, also at lower learning rates; the estimator keeps its former state."""


class CheckpointError(ValueError):
    """A checkpoint belongs to another fit, or is damaged; it is left as it is."""


class ModelFileError(ValueError):
    """A file is not one of a detector, is damaged, or is for another version of this package."""


class UnsupportedObjectError(TypeError):
    """A detector holds an object of the user's that cannot be saved, or exported."""


class VideoFileError(ValueError):
    """A video file is empty, damaged or no video; what was read before it stays valid."""
