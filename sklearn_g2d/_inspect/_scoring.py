"""Scoring of photographs in batches; some of the files may be damaged."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_g2d.calibration import conformal_p_values
from sklearn_g2d.datasets import load_images
from sklearn_g2d.datasets._images import shown_size
from sklearn_g2d.patches import PatchDetector

# Largest number of photographs, and of their intensities, in memory at once.
_MOST_PHOTOGRAPHS, _MOST_VALUES = 32, 2**25

_SECONDS_BETWEEN_LINES = 10

# A photograph counts as stretched if its proportions differ by a larger fraction than this.
_TOLERANCE = 0.02

# Files of these kinds are not read, because Pillow would take some of them for small TIFF files.
NOT_READ = (".heic", ".heif", ".avif", ".gif", ".jp2", ".dng", ".cr2", ".nef")

_BYTES = (0.0, 255.0)


@dataclass
class Photograph:
    """One photograph, and its results.

    Parameters
    ----------
    path, name : Path, str
        The path of the file, and its path relative to the folder.
    score, p_value : float or None
        Results; None if the file cannot be read.
    above_threshold : float
        The anomaly minus the threshold; infinite if the file cannot be read.
    note : str
        A sentence about a problem of the file; empty if there is none.
    picture : str
        File name of its pictures; empty if there are none.
    """

    path: Path
    name: str
    score: float | None = None
    p_value: float | None = None
    above_threshold: float = np.inf
    note: str = ""
    picture: str = ""

    @property
    def is_readable(self) -> bool:
        """Whether the file could be read and scored."""
        return self.score is not None

    @property
    def is_flagged(self) -> bool:
        """Whether a person has to look at it."""
        return self.above_threshold > 0

    @property
    def verdict(self) -> str:
        """The result in one word."""
        if not self.is_readable:
            return "unreadable"
        return "anomalous" if self.is_flagged else "normal"


def batches(detector: PatchDetector, items: list[Any]) -> list[list[Any]]:
    """Divide photographs into batches that fit into memory."""
    n = int(np.clip(_MOST_VALUES // detector.n_features_in_, 1, _MOST_PHOTOGRAPHS))
    return [items[start : start + n] for start in range(0, len(items), n)]


def load(paths: list[Path], size: int | tuple[int, int], channels: int) -> NDArray[Any]:
    """Read photographs, and raise ValueError for files of the kinds that are not read."""
    for path in paths:
        if path.suffix.lower() in NOT_READ:
            raise ValueError(f"{path} is a picture of a kind that is not read: save it as PNG.")
    images: NDArray[Any] = load_images(paths, size=size, channels=channels).images
    return images


def read(detector: PatchDetector, paths: list[Path]) -> NDArray[Any]:
    """Read photographs with the size and the channels of the detector's `fit`."""
    channels, height, width = detector.image_shape_
    images = load(paths, (height, width), channels)
    expected = _expected_dtype(detector)
    if expected is not None and images.dtype != expected:
        raise ValueError(
            f"{paths[0]} has {8 * images.itemsize} bits per channel, but the good photographs have "
            f"{8 * expected.itemsize}: save it with {8 * expected.itemsize} bits."
        )
    return images


def check_intensities(detector: PatchDetector, model: Path) -> None:
    """Raise an error if a model was fitted on other intensities than those of image files."""
    low, high = getattr(detector.features_, "intensity_range_", _BYTES)
    if (low, high) != _BYTES and high <= _BYTES[1]:
        raise ValueError(
            f"--model {model} was fitted on intensities from {low:g} to {high:g}, which are not "
            "those of photographs: fit it on images of load_images."
        )


def _expected_dtype(detector: PatchDetector) -> np.dtype[Any] | None:
    intensities = getattr(detector.features_, "intensity_range_", None)
    # The user's own features may not have this attribute.
    if intensities is None:
        return None
    return np.dtype(np.uint8 if intensities == _BYTES else np.uint16)


def score(
    detector: PatchDetector, paths: list[Path], folder: Path, say: Callable[[str], None], kind: str
) -> tuple[list[Photograph], float]:
    """Score photographs in their order.

    Parameters
    ----------
    detector : PatchDetector
        A fitted detector.
    paths : list of Path
        Paths of photographs in the folder.
    folder : Path
        The folder; names of photographs are relative to it.
    say : function
        A function that shows a message about the progress.
    kind : str
        A word for these photographs in messages.

    Returns
    -------
    photographs : list of Photograph
        Results. A file that cannot be read has a note about the reason, and counts as flagged.
    seconds : float
        Time of reading and scoring.
    """
    say(f"Scoring {count(len(paths), kind)} from {folder} ...")
    photographs: list[Photograph] = []
    start = last_line = time.perf_counter()
    for batch in batches(detector, paths):
        photographs += _score_batch(detector, batch, folder)
        now, n = time.perf_counter(), len(photographs)
        is_first = n == len(batch)
        if n < len(paths) and (is_first or now - last_line > _SECONDS_BETWEEN_LINES):
            left = duration((now - start) / n * (len(paths) - n))
            say(f"  {n} of {len(paths)} scored, about {left} left")
            last_line = now
    return photographs, time.perf_counter() - start


def _score_batch(detector: PatchDetector, paths: list[Path], folder: Path) -> list[Photograph]:
    photographs = [Photograph(path, path.relative_to(folder).as_posix()) for path in paths]
    readable: list[Photograph] = []
    try:
        images, readable = read(detector, paths), photographs
    # At least one file cannot be read: read the files one by one to find out which.
    except (ValueError, OSError):
        single = []
        for photograph in photographs:
            try:
                single.append(read(detector, [photograph.path]))
            except (ValueError, OSError) as error:
                photograph.note = reason(error)
            else:
                readable.append(photograph)
        if not single:
            return photographs
        images = np.concatenate(single)
    scores = detector.score_samples(images)
    weights = detector.calibration_weights_
    p_values = conformal_p_values(scores, detector.calibration_scores_, weights)
    for photograph, its_score, p_value in zip(readable, scores, p_values, strict=True):
        photograph.score, photograph.p_value = float(its_score), float(p_value)
        photograph.above_threshold = float(detector.offset_ - its_score)
        photograph.note = _note_of_shape(photograph.path, detector.image_shape_[1:])
    return photographs


def _note_of_shape(path: Path, target: tuple[int, ...]) -> str:
    width, height = shown_size(path)
    expected = width / height * target[0]
    if abs(expected - target[1]) <= 1 + _TOLERANCE * target[1]:
        return ""
    return f"Stretched from {width} x {height} to {target[1]} x {target[0]} pixels."


def duration(seconds: float) -> str:
    """Return a text for a time, in seconds, minutes or hours."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def count(n: int, kind: str) -> str:
    """Return a text for a number of photographs of a kind."""
    return f"{n} {kind} photograph{'s' * (n != 1)}"


def reason(error: Exception) -> str:
    """Return the message of an error in one line, without the number of an error of the system."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    return one_line(str(error))


def one_line(text: str) -> str:
    """Return a text with spaces instead of line breaks."""
    return " ".join(text.split())
