"""From maps to scores: what maps are expected to be, and how two become one and a score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from sklearn_g2d.avid._preprocessing import box_mean, odd
from sklearn_g2d.utils.arrays import namespace, sort
from sklearn_g2d.utils.state import Stored

# Contrast and sharpness below these, in the variance of the training pixels, are alike.
_LEAST_CONTRAST, _LEAST_SHARPNESS = 0.1, 0.02

# Ridge penalty, in places, of which a region has some twenty: few images allow for few
# differences. And the least variance, in its mean.
_PENALTY, _LEAST_VARIANCE = 200.0, 0.1

# Of the bend at which a map begins to count; an infinite one would make ties.
_SHARPNESS = 3.0

# Of the inpainter's and the detector's map, where nothing tells more: the detector knows fewer
# anomalies.
_WEIGHTS = 2.0, 1.0

# Least fraction of a region that has to be changed before it counts as anomalous.
_LEAST_CHANGED = 0.5

# Of the inverse error of a map, which is its weight: a map that misleads must count very little.
_POWER = 3

Maps = tuple[NDArray[np.float64], NDArray[np.float64]]  # the inpainter's and the detector's


class AppearanceNormalizer(Stored):
    """Standardise maps, also given the brightness, contrast and sharpness around each pixel.

    The inpainter errs more where an image is busy, and the detector doubts some textures more than
    others, so that an anomaly in a plain place would never be seen. The deviation of a map is that
    from what is expected at places of the same appearance, or from what is expected anywhere (for
    the appearance itself may be the anomaly), whichever is greater. Given the appearance, mean and
    variance are quadratic in it, fitted by least squares. "Around" means a square with a side of
    `window` pixels, an odd number.
    """

    def __init__(self, window: int) -> None:
        self.window = window

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> AppearanceNormalizer:
        """Learn from batches of maps (n, k, h, w) of normal images (n, channels, h, w)."""
        step = max(1, self.window // 4)  # neighbouring places tell the same
        sampled = [
            (local_stats(images, self.window)[:, :, ::step, ::step], maps[:, :, ::step, ::step])
            for maps, images in batches
        ]
        stats, values = (
            torch.cat([of_batch.transpose(0, 1).flatten(1) for of_batch in part], dim=1).double()
            for part in zip(*sampled, strict=True)
        )
        self.figures = {
            "lowest": _over_pixels(stats.amin(1)),
            "highest": _over_pixels(stats.amax(1)),
            "mean": _over_pixels(stats.mean(1)),
            "deviation": _over_pixels(stats.std(1) + 1e-6),
        }
        c = {name: torch.from_numpy(figure) for name, figure in self.figures.items()}
        terms = _terms(stats.float()[None, :, :, None], c)[0, :, :, 0].double()
        penalty = torch.full((len(terms),), _PENALTY, dtype=torch.float64, device="cpu")
        penalty[0] = 0  # of the intercept
        gram = terms @ terms.T + penalty.diag()
        expected = torch.linalg.solve(gram, terms @ values.T).T
        squares = (values - expected @ terms).square()
        variance = torch.linalg.solve(gram, terms @ squares.T).T
        least = (_LEAST_VARIANCE * squares.mean(1)).clamp(min=1e-12)
        self.figures |= {
            "coefficients": _over_pixels(torch.cat([expected, variance])),
            "least_variance": _over_pixels(least),
            "map_mean": _over_pixels(values.mean(1)),
            "map_deviation": _over_pixels(values.std(1, correction=0) + 1e-6),
        }
        return self

    def _constants(self) -> dict[str, ArrayLike]:
        return dict(self.figures)

    def _compute(self, maps: Tensor, images: Tensor, c: Mapping[str, Tensor]) -> Tensor:
        """Give deviations of maps (n, k, h, w) of images from what is expected, (n, k, h, w)."""
        terms = _terms(local_stats(images, self.window), c)
        mean, variance = F.conv2d(terms, c["coefficients"]).chunk(2, dim=1)
        of_appearance = (maps - mean) / variance.maximum(c["least_variance"]).sqrt()
        anywhere = (maps - c["map_mean"]) / c["map_deviation"]
        return of_appearance.maximum(anywhere)


@dataclass(eq=False, repr=False)
class MapScorer(Stored):
    """Standardise two maps, combine them, and pool the top regions to a score.

    Tables, whose regions are the cells, have no `region_size`; their columns are always
    standardised by themselves.
    """

    combination: str
    region_size: int | None
    top_fraction: float
    per_location: bool
    weights: tuple[float, float] = _WEIGHTS  # of the maps in "excess"

    def fit(self, maps: Maps) -> MapScorer:
        """Learn what maps of normal data are."""
        self.statistics = [self._statistics(values) for values in maps]
        return self

    def fit_weights(self, maps: Maps, pasted: Maps, changed: NDArray[np.float64]) -> None:
        """Learn which map tells more, from normal images and those that squares were pasted into.

        The error of a map is the fraction of pairs in which a normal region looks more anomalous
        than a pasted one; a map counts by a power of its inverse.
        """
        is_pasted = self.regions(changed) > _LEAST_CHANGED
        n = int(is_pasted.sum())
        if n == 0 or not all(np.isfinite(values).all() for values in (*maps, *pasted)):
            return  # where maps are not finite, scores will not be either, which is an error
        errors = []
        for of_map in zip(self.standardize(maps), self.standardize(pasted), strict=True):
            normal, anomalous = (self.regions(_excess(values)) for values in of_map)
            values = np.concatenate([normal.ravel(), anomalous[is_pasted]])
            # No error is known to be less than one of so many.
            errors.append(1 - roc_auc_score(np.arange(len(values)) >= normal.size, values) + 1 / n)
        self.weights = errors[0] ** -_POWER, errors[1] ** -_POWER

    def standardize(self, maps: Sequence[Any], c: Mapping[str, Any] | None = None) -> list[Any]:
        """Give maps, arrays or tensors, in deviations from the mean of normal ones."""
        c = self._constants() if c is None else c
        return [(values - c[f"mean_{i}"]) / c[f"deviation_{i}"] for i, values in enumerate(maps)]

    def combine(self, by_inpainter: Any, by_detector: Any) -> Any:
        """Put the two maps into one."""
        if self.combination in ("inpainter", "detector"):
            return by_inpainter if self.combination == "inpainter" else by_detector
        if self.combination == "minimum":
            # Eq. 4 keeps what both find; as both thresholds rise, that is the lower one.
            return namespace(by_inpainter).minimum(by_inpainter, by_detector)
        # Both are clipped at zero, smoothly, before they are averaged: a confident "normal" from
        # one network must not cancel an alarm from the other.
        first, second = self.weights
        return (first * _excess(by_inpainter) + second * _excess(by_detector)) / (first + second)

    def regions(self, maps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Average maps over windows of a region, half of it apart; a table's map stays."""
        if self.region_size is None:
            return maps
        size = self.region_size
        windows = F.avg_pool2d(torch.from_numpy(maps)[:, None], size, max(1, size // 2))
        return windows[:, 0].numpy()

    def scores(self, regions: Any) -> Any:
        """Give minus the mean of the most anomalous regions, arrays or tensors."""
        n_regions = math.prod(regions.shape[1:])
        n_top = max(1, round(self.top_fraction * n_regions))
        return -sort(regions.reshape(-1, n_regions))[:, -n_top:].mean(1)

    def _constants(self) -> dict[str, ArrayLike]:
        return {
            f"{name}_{i}": figure
            for i, statistics in enumerate(self.statistics)
            for name, figure in zip(("mean", "deviation"), statistics, strict=True)
        }

    def _statistics(self, maps: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Mean and deviation of maps; for each location if asked, smoothed over half a region."""
        axis = 0 if self.per_location or self.region_size is None else None
        figures = maps.mean(axis=axis), maps.std(axis=axis)
        if axis == 0 and self.region_size is not None:
            width = odd(self.region_size // 2)
            figures = tuple(uniform_filter(figure, width, mode="nearest") for figure in figures)
        mean, deviation = figures
        # Where all maps agree, a deviation far below the others would make noise an alarm.
        least = 0.1 * np.std(maps)
        deviation = np.maximum(deviation, least if least > 0 else 1.0)
        return np.asarray(mean), np.asarray(deviation)


def local_stats(images: Tensor, window: int) -> Tensor:
    """Describe the surroundings of pixels, brightness, contrast and sharpness: (n, 3, h, w)."""
    brightness = box_mean(images.mean(1, keepdim=True), window)
    power = box_mean(images.square().mean(1, keepdim=True), window)
    contrast = (power - brightness.square()).clamp(min=0)
    framed = F.pad(images, (1, 1, 1, 1), mode="replicate")
    down = (framed[:, :, 2:, 1:-1] - framed[:, :, :-2, 1:-1]) / 2
    right = (framed[:, :, 1:-1, 2:] - framed[:, :, 1:-1, :-2]) / 2
    sharpness = box_mean((down.square() + right.square()).mean(1, keepdim=True), window)
    logarithms = (contrast + _LEAST_CONTRAST).log(), (sharpness + _LEAST_SHARPNESS).log()
    return torch.cat([brightness, *logarithms], dim=1)


def _terms(stats: Tensor, c: Mapping[str, Tensor]) -> Tensor:
    """Standardise statistics (n, 3, h, w) to 1, the three, their squares and their products."""
    # No quadratic holds beyond what it was fitted to.
    stats = stats.maximum(c["lowest"]).minimum(c["highest"])
    stats = (stats - c["mean"]) / c["deviation"]
    one, two, three = stats.split(1, dim=1)
    products = one * stats, two * stats[:, 1:], three * three
    return torch.cat([torch.ones_like(one), stats, *products], dim=1)


def _over_pixels(figures: Tensor) -> NDArray[np.float32]:
    return figures.float().numpy()[..., None, None]


def _excess(deviations: Any) -> Any:
    """How far values lie above 0, smoothly, so that those below still differ."""
    xp, x = namespace(deviations), _SHARPNESS * deviations
    return xp.logaddexp(xp.zeros_like(x), x) / _SHARPNESS
