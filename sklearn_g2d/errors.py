"""Errors of this package. A bad value of a parameter raises ValueError, as in scikit-learn."""

__all__ = [
    "CheckpointError",
    "ModelFileError",
    "TrainingDivergedError",
    "UnsupportedObjectError",
    "VideoFileError",
]


class TrainingDivergedError(RuntimeError):
    """Training diverged, also at lower learning rates. The estimator is as before the fit."""


class CheckpointError(ValueError):
    """A checkpoint belongs to another fit or is damaged. Its file is not changed."""


class ModelFileError(ValueError):
    """A file holds no detector, is damaged, or needs another version of this package."""


class UnsupportedObjectError(TypeError):
    """A detector holds an object, often the user's own, that cannot be saved or exported."""


class VideoFileError(ValueError):
    """A video file is empty, damaged or not a video. Frames that were read before stay valid."""
