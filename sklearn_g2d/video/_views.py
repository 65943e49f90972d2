"""Two views of moving things in frames of a fixed camera: their speed and their looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, uniform_filter
from sklearn.base import BaseEstimator
from torch.nn import functional as F

from sklearn_g2d.patches._levels import Maps, iter_levels
from sklearn_g2d.utils.arrays import Floats
from sklearn_g2d.utils.parts import clone_part, fit_part

# Motion is measured in frames with a shorter side of so many pixels. Their cells are `STEP` pixels
# apart, and each has a window of `_WINDOW` pixels.
MOTION_SIDE, STEP, _WINDOW = 120, 4, 10

# The network sees frames with a shorter side of so many pixels.
NETWORK_SIDE = 320

# The squared speed of a cell with this fraction of foreground is halved. With less it falls to 0.
_LEAST_FRACTION = 0.05

# Both views ignore cells with less foreground than this fraction.
_LEAST_FOREGROUND = 0.1

# The usual speed in a row of cells is averaged over neighbouring rows. Their weight is 60 % at a
# distance of `_ROWS`. In some rows hardly anything moves. Therefore the mean speed of all rows is
# added, with the weight of a fraction `_PRIOR` of all cells.
_ROWS, _PRIOR = 3.0, 0.02

# Largest number of cells for the fit of an estimator.
_MAX_ROWS = 20_000


def moving_cells(channels: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Measure the motion of the foreground in the cells of frames.

    Parameters
    ----------
    channels : ndarray of shape (n, 3, height, width)
        Velocity to the right and downwards, and the foreground, from 0 to 1.

    Returns
    -------
    speeds : ndarray of shape (n, rows, columns)
        Root of the mean squared speed of the foreground in a window around the cell; 0 where there
        is hardly any foreground.
    velocities : ndarray of shape (n, rows, columns, 2)
        Mean velocity of the foreground in the window; it falls to 0 with the foreground.
    """
    velocity, foreground = channels[:, :2].astype(np.float64), channels[:, 2].astype(np.float64)
    fraction = _in_windows(foreground)
    energy = _in_windows(np.square(velocity).sum(axis=1) * foreground)
    # Rounding errors of running sums can make the energy negative.
    speeds = np.sqrt(np.maximum(energy, 0) / (fraction + _LEAST_FRACTION))
    speeds[fraction <= _LEAST_FOREGROUND] = 0
    divisor = np.maximum(fraction, _LEAST_FOREGROUND)
    parts = [_in_windows(velocity[:, i] * foreground) / divisor for i in (0, 1)]
    return speeds, np.stack(parts, axis=-1)


def _in_windows(values: Floats) -> Floats:
    """Average values (n, height, width) over a window around each cell."""
    return uniform_filter(values, (1, _WINDOW, _WINDOW))[:, STEP // 2 :: STEP, STEP // 2 :: STEP]


class SpeedView(BaseEstimator):
    """Judges cells by their speed, in units of the usual speed in their row.

    A camera often looks down on a place. Then distant things are higher up in the picture, and
    move more slowly in it.

    Attributes
    ----------
    mean_speeds_ : ndarray of shape (rows,)
        Mean speed of the foreground in each row.
    """

    def fit(self, speeds: Floats) -> Self:
        """Learn the usual speeds from speeds (n, rows, columns) of normal frames."""
        moving = speeds > 0
        # A small total keeps the quotient finite where nothing moves at all.
        n_moving = moving.sum(axis=(0, 2)) + 1e-9
        total = speeds.sum(axis=(0, 2))
        anywhere, weight = total.sum() / n_moving.sum(), _PRIOR * n_moving.sum()
        blurred = gaussian_filter1d(np.stack([total, n_moving]), _ROWS, axis=1)
        self.mean_speeds_ = (blurred[0] + weight * anywhere) / (blurred[1] + weight)
        if not anywhere > 0:
            self.mean_speeds_ = np.ones_like(total)
        return self

    def anomalies(self, speeds: Floats) -> Floats:
        """Return anomalies of cells (n, rows, columns), **higher = more anomalous**."""
        return speeds / self.mean_speeds_[:, None]


@dataclass
class Appearance:
    """Features of the looks of those cells of frames that have foreground.

    Attributes
    ----------
    has_foreground : ndarray of shape (n, rows, columns)
        True in these cells.
    levels : list of ndarray of shape (n_cells, channels)
        Maps of each layer in these cells, scaled to length 1.
    """

    has_foreground: NDArray[np.bool_]
    levels: list[NDArray[np.float32]]

    def __getitem__(self, frames: NDArray[np.bool_]) -> Appearance:
        """Choose frames by a mask of shape (n,)."""
        chosen = self.cells_of(frames)
        return Appearance(self.has_foreground[frames], [rows[chosen] for rows in self.levels])

    def cells_of(self, frames: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return a mask (n_cells,) of the cells in frames that a mask of shape (n,) chooses."""
        return np.broadcast_to(frames[:, None, None], self.has_foreground.shape)[
            self.has_foreground
        ]

    @staticmethod
    def join(parts: list[Appearance]) -> Appearance:
        """Join frames one after another."""
        levels = zip(*(part.levels for part in parts), strict=True)
        return Appearance(
            np.concatenate([part.has_foreground for part in parts]),
            [np.concatenate(x) for x in levels],
        )


class AppearanceView(BaseEstimator):
    """Judges cells of the foreground by the layers of a network, with one detector for each layer.

    Parameters
    ----------
    features : transformer with `feature_maps`
        Fitted features.
    estimator : outlier detector with `score_samples`
        A clone is fitted on the cells of each layer.

    Attributes
    ----------
    estimators_ : list of outlier detectors
        One for each layer.
    units_ : list of tuple of float
        Mean and standard deviation of each layer's anomalies in held-out frames.
    lowest_ : float
        Lowest anomaly in held-out frames. Cells without foreground get this value.
    """

    def __init__(self, features: Any, estimator: Any) -> None:
        self.features = features
        self.estimator = estimator

    def compute(self, frames: NDArray[np.uint8], foreground: NDArray[np.float32]) -> Appearance:
        """Compute the looks of cells with foreground in frames (n, channels, height, width).

        `foreground` (n, height, width) may have another size than the frames.
        """
        parts, start = [], 0
        for levels in iter_levels(self.features, frames.reshape(len(frames), -1), frames.shape[1:]):
            coarsest = min(maps.shape[1:3] for maps in levels)
            batch = foreground[start : start + len(levels[0])]
            start += len(batch)
            has_foreground = _averaged(batch[..., None], coarsest)[..., 0] > _LEAST_FOREGROUND
            rows = [_averaged(maps, coarsest)[has_foreground] for maps in levels]
            lengths = [np.linalg.norm(r, axis=1, keepdims=True) for r in rows]
            # Rows of length 1 compare the kind of features, and not their strength.
            rows = [r / np.maximum(n, 1e-9) for r, n in zip(rows, lengths, strict=True)]
            parts.append(Appearance(has_foreground, rows))
        return Appearance.join(parts)

    def fit(self, appearance: Appearance, folds: NDArray[np.intp], random_state: Any) -> Floats:
        """Learn the looks of normal things, and return anomalies of frames that were held out.

        `folds` (n,) holds the number of the fold of each frame.
        """
        if len(appearance.levels[0]) < 2:
            raise ValueError(
                "Nothing moves in the training clips: their foreground is empty, so that there is "
                "nothing to learn from. Pass clips in which normal things move."
            )
        held_out = [np.empty(len(rows)) for rows in appearance.levels]
        for fold in np.unique(folds):
            out = folds == fold
            rest = appearance[~out]
            if len(rest.levels[0]) < 2:
                raise ValueError(
                    "Things move in one part of the training clips only. Each fifth of the clips "
                    "is held out once, and normal things must move in the rest: pass longer clips, "
                    "or more of them, in which normal things move all the time."
                )
            estimators = self._fitted(rest, random_state)
            chosen = appearance.cells_of(out)
            for anomalies, scored in zip(
                held_out, _scored(estimators, appearance[out]), strict=True
            ):
                anomalies[chosen] = scored
        self.units_ = [(float(a.mean()), float(a.std()) or 1.0) for a in held_out]
        self.lowest_ = float(self._averaged_levels(held_out).min())
        self.estimators_ = self._fitted(appearance, random_state)
        return self._grids(appearance.has_foreground, held_out)

    def anomalies(self, appearance: Appearance) -> Floats:
        """Return anomalies of cells (n, rows, columns), **higher = more anomalous**."""
        return self._grids(appearance.has_foreground, _scored(self.estimators_, appearance))

    def _fitted(self, appearance: Appearance, random_state: Any) -> list[Any]:
        n = len(appearance.levels[0])
        chosen = random_state.permutation(n)[:_MAX_ROWS]
        return [
            fit_part(clone_part(self.estimator, random_state), rows[chosen])
            for rows in appearance.levels
        ]

    def _averaged_levels(self, anomalies: list[Floats]) -> Floats:
        units = zip(anomalies, self.units_, strict=True)
        return np.mean([(a - mean) / deviation for a, (mean, deviation) in units], axis=0)

    def _grids(self, has_foreground: NDArray[np.bool_], anomalies: list[Floats]) -> Floats:
        grids = np.full(has_foreground.shape, self.lowest_)
        grids[has_foreground] = self._averaged_levels(anomalies)
        return grids


def _scored(estimators: list[Any], appearance: Appearance) -> list[Floats]:
    # Most estimators refuse to score zero rows.
    if not len(appearance.levels[0]):
        return [np.empty(0) for _ in estimators]
    anomalies = [
        -np.asarray(estimator.score_samples(rows), dtype=np.float64)
        for estimator, rows in zip(estimators, appearance.levels, strict=True)
    ]
    if not all(np.isfinite(a).all() for a in anomalies):
        raise ValueError(
            f"{type(estimators[0]).__name__} gives scores that are infinite or NaN, and averages "
            "would spread them to other frames. Choose another estimator or other features."
        )
    return anomalies


def _averaged(maps: Maps, size: tuple[int, int]) -> NDArray[np.float32]:
    """Average maps (n, height, width, channels) over the cells of a coarser grid."""
    tensor = torch.from_numpy(np.ascontiguousarray(maps.transpose(0, 3, 1, 2)))
    return np.asarray(F.adaptive_avg_pool2d(tensor, size).numpy().transpose(0, 2, 3, 1))
