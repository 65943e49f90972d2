"""Errors of this package; bad values raise ValueError as in scikit-learn."""

__all__ = [
    "CheckpointError",
    "ModelFileError",
    "TrainingDivergedError",
    "UnsupportedObjectError",
    "VideoFileError",
]


class TrainingDivergedError(RuntimeError):
    """Training diverged, also at lower learning rates; the estimator is as it was before `fit`."""


class CheckpointError(ValueError):
    """A checkpoint belongs to another fit or is damaged; its file is left unchanged."""


class ModelFileError(ValueError):
    """A file holds no detector, is damaged, or needs another version of this package."""


class UnsupportedObjectError(TypeError):
    """A detector holds an object of the user that cannot be saved or exported."""


class VideoFileError(ValueError):
    """A video file is empty, damaged or not a video; frames that were read before stay valid."""
