"""Photographs scored some at a time, of which some may be damaged."""

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

# At most so many photographs, and so many intensities of them, are held at once.
_MOST_PHOTOGRAPHS, _MOST_VALUES = 32, 2**25

_SECONDS_BETWEEN_LINES = 10

# By so much the proportions may differ before a photograph counts as stretched.
_TOLERANCE = 0.02

# Pictures that are not read; Pillow would take some of them for small TIFF files.
NOT_READ = (".heic", ".heif", ".avif", ".gif", ".jp2", ".dng", ".cr2", ".nef")

_BYTES = (0.0, 255.0)


@dataclass
class Photograph:
    """One photograph, and what was found.

    Parameters
    ----------
    path, name : Path, str
        Where it is, and the same relative to its folder.
    score, p_value : float or None
        None if the file cannot be read.
    above_threshold : float
        How far the anomaly lies above the threshold; infinite if the file cannot be read.
    note : str
        What to know about the file.
    picture : str
        File name of its pictures, if there are any.
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
        """Whether there is a score."""
        return self.score is not None

    @property
    def is_flagged(self) -> bool:
        """Whether somebody has to look at it."""
        return self.above_threshold > 0

    @property
    def verdict(self) -> str:
        """Say it in one word."""
        if not self.is_readable:
            return "unreadable"
        return "anomalous" if self.is_flagged else "normal"


def batches(detector: PatchDetector, things: list[Any]) -> list[list[Any]]:
    """Divide photographs into parts that memory holds."""
    n = int(np.clip(_MOST_VALUES // detector.n_features_in_, 1, _MOST_PHOTOGRAPHS))
    return [things[start : start + n] for start in range(0, len(things), n)]


def read(detector: PatchDetector, paths: list[Path]) -> NDArray[Any]:
    """Read photographs in the size and the channels that a detector was fitted with."""
    for path in paths:
        if path.suffix.lower() in NOT_READ:
            raise ValueError(f"{path} is a picture of a kind that is not read: save it as PNG.")
    channels, height, width = detector.image_shape_
    images: NDArray[Any] = load_images(paths, size=(height, width), channels=channels).images
    expected = _expected_dtype(detector)
    if expected is not None and images.dtype != expected:
        raise ValueError(
            f"{paths[0]} has {8 * images.itemsize} bits a channel, but the good photographs have "
            f"{8 * expected.itemsize}: save it as these are."
        )
    return images


def check_intensities(detector: PatchDetector, model: Path) -> None:
    """Refuse a model that was not fitted on photographs as files hold them."""
    low, high = getattr(detector.features_, "intensity_range_", _BYTES)
    if (low, high) != _BYTES and high <= _BYTES[1]:
        raise ValueError(
            f"--model {model} was fitted on intensities from {low:g} to {high:g}, which are not "
            "those of photographs: fit it on what load_images gives."
        )


def _expected_dtype(detector: PatchDetector) -> np.dtype[Any] | None:
    intensities = getattr(detector.features_, "intensity_range_", None)
    if intensities is None:  # features of the user's
        return None
    return np.dtype(np.uint8 if intensities == _BYTES else np.uint16)


def score(
    detector: PatchDetector, paths: list[Path], folder: Path, say: Callable[[str], None], kind: str
) -> tuple[list[Photograph], float]:
    """Score photographs, in their order.

    Parameters
    ----------
    detector : PatchDetector
        Fitted.
    paths : list of Path
        Of photographs in the folder.
    folder : Path
        Which the photographs are named relative to.
    say : function
        Is told how far it is.
    kind : str
        Word for these photographs.

    Returns
    -------
    photographs : list of Photograph
        Those that cannot be read say why, and count as flagged.
    seconds : float
        Reading included.
    """
    say(f"Scoring {len(paths)} {kind} photographs from {folder} ...")
    photographs: list[Photograph] = []
    start = told = time.perf_counter()
    for batch in batches(detector, paths):
        photographs += _score_batch(detector, batch, folder)
        now, n = time.perf_counter(), len(photographs)
        is_first = n == len(batch)
        if n < len(paths) and (is_first or now - told > _SECONDS_BETWEEN_LINES):
            left = duration((now - start) / n * (len(paths) - n))
            say(f"  {n} of {len(paths)} scored, about {left} left")
            told = now
    return photographs, time.perf_counter() - start


def _score_batch(detector: PatchDetector, paths: list[Path], folder: Path) -> list[Photograph]:
    photographs = [Photograph(path, path.relative_to(folder).as_posix()) for path in paths]
    readable: list[Photograph] = []
    try:
        images, readable = read(detector, paths), photographs
    except (ValueError, OSError):  # one of them, or more
        single = []
        for photograph in photographs:
            try:
                single.append(read(detector, [photograph.path]))
            except (ValueError, OSError) as error:
                photograph.note = " ".join(str(error).split())
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
    """Say it in the unit that a reader would take."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
