"""From maps to scores: standardise two maps, combine them, and average the top regions."""

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

# These are added to contrast and sharpness, in units of the variance of the training pixels, before
# the logarithm, because differences between very small values should not count.
_LEAST_CONTRAST, _LEAST_SHARPNESS = 0.1, 0.02

# Ridge penalty, in numbers of places, so that a few images give almost the same expectation for all
# appearances; a region has about twenty places. And the least variance, as a fraction of its mean.
_PENALTY, _LEAST_VARIANCE = 200.0, 0.1

# Sharpness of the smooth clipping of maps at zero. Exact clipping would make ties.
_SHARPNESS = 3.0

# Weights of the inpainter's and the detector's map on tables, and if others cannot be learned. The
# inpainter's is higher, because the detector recognises fewer kinds of anomalies.
_WEIGHTS = 2.0, 1.0

# A region counts as anomalous if more than this fraction of it was changed.
_LEAST_CHANGED = 0.5

# The weight of a map is its inverse error to this power, so that a misleading map counts very
# little.
_POWER = 3

Maps = tuple[NDArray[np.float64], NDArray[np.float64]]  # the inpainter's and the detector's


class AppearanceNormalizer(Stored):
    """Standardises maps by the brightness, contrast and sharpness around each pixel.

    The inpainter makes larger errors where an image has many details, and the detector is less sure
    about some textures than about others. Without this step an anomaly in a plain place would not
    be found. The result is the larger of two deviations of a map: the deviation from its mean at
    places of the same appearance, and that from its mean at all places, because the appearance may
    itself be the anomaly. Mean and variance are quadratic functions of the appearance, fitted by
    least squares. The appearance is that of a square with a side of `window` pixels, an odd number.
    """

    def __init__(self, window: int) -> None:
        self.window = window

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> AppearanceNormalizer:
        """Learn from batches of maps (n, k, h, w) of normal images (n, channels, h, w)."""
        step = max(1, self.window // 4)  # because neighbouring places are nearly equal
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
        penalty[0] = 0  # the intercept has no penalty
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
        """Return standardised deviations of maps (n, k, h, w) of images: (n, k, h, w)."""
        terms = _terms(local_stats(images, self.window), c)
        mean, variance = F.conv2d(terms, c["coefficients"]).chunk(2, dim=1)
        of_appearance = (maps - mean) / variance.maximum(c["least_variance"]).sqrt()
        anywhere = (maps - c["map_mean"]) / c["map_deviation"]
        return of_appearance.maximum(anywhere)


@dataclass(eq=False, repr=False)
class MapScorer(Stored):
    """Standardises two maps, combines them, and averages the top regions to a score.

    For tables `region_size` is None, because the regions are the cells, and maps are always
    standardised by column.
    """

    combination: str
    region_size: int | None
    top_fraction: float
    per_location: bool
    weights: tuple[float, float] = _WEIGHTS  # of the maps in "excess"

    def fit(self, maps: Maps) -> MapScorer:
        """Learn mean and deviation of maps of normal data."""
        self.statistics = [self._statistics(values) for values in maps]
        return self

    def fit_weights(self, maps: Maps, pasted: Maps, changed: NDArray[np.float64]) -> None:
        """Learn weights of the maps from normal images, and from these with pasted squares.

        The error of a map is the fraction of pairs in which it shows a normal region as more
        anomalous than a pasted one. The weight of the map is a power of the inverse error.
        """
        is_pasted = self.regions(changed) > _LEAST_CHANGED
        n = int(is_pasted.sum())
        if n == 0 or not all(np.isfinite(values).all() for values in (*maps, *pasted)):
            return  # scores of infinite maps raise an error later
        errors = []
        for of_map in zip(self.standardize(maps), self.standardize(pasted), strict=True):
            normal, anomalous = (self.regions(_excess(values)) for values in of_map)
            values = np.concatenate([normal.ravel(), anomalous[is_pasted]])
            # n regions cannot show that an error is below 1 / n.
            errors.append(1 - roc_auc_score(np.arange(len(values)) >= normal.size, values) + 1 / n)
        self.weights = errors[0] ** -_POWER, errors[1] ** -_POWER

    def standardize(self, maps: Sequence[Any], c: Mapping[str, Any] | None = None) -> list[Any]:
        """Standardise maps, arrays or tensors, by mean and deviation of normal ones."""
        c = self._constants() if c is None else c
        return [(values - c[f"mean_{i}"]) / c[f"deviation_{i}"] for i, values in enumerate(maps)]

    def combine(self, by_inpainter: Any, by_detector: Any) -> Any:
        """Combine the two standardised maps."""
        if self.combination in ("inpainter", "detector"):
            return by_inpainter if self.combination == "inpainter" else by_detector
        if self.combination == "minimum":
            # Eq. 4 keeps places where both maps are high, that is, where the lower one is high.
            return namespace(by_inpainter).minimum(by_inpainter, by_detector)
        # Clip both maps at zero, smoothly, before averaging: a confident "normal" from one network
        # must not cancel an alarm from the other.
        first, second = self.weights
        return (first * _excess(by_inpainter) + second * _excess(by_detector)) / (first + second)

    def regions(self, maps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Average maps over windows of a region, which overlap by half; keep a table's map."""
        if self.region_size is None:
            return maps
        size = self.region_size
        windows = F.avg_pool2d(torch.from_numpy(maps)[:, None], size, max(1, size // 2))
        return windows[:, 0].numpy()

    def scores(self, regions: Any) -> Any:
        """Return minus the mean of the most anomalous regions, arrays or tensors."""
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
        """Return mean and deviation of maps; if by location, smoothed over half a region."""
        axis = 0 if self.per_location or self.region_size is None else None
        figures = maps.mean(axis=axis), maps.std(axis=axis)
        if axis == 0 and self.region_size is not None:
            width = odd(self.region_size // 2)
            figures = tuple(uniform_filter(figure, width, mode="nearest") for figure in figures)
        mean, deviation = figures
        # Where maps are nearly equal, a very small deviation would turn noise into alarms.
        least = 0.1 * np.std(maps)
        deviation = np.maximum(deviation, least if least > 0 else 1.0)
        return np.asarray(mean), np.asarray(deviation)


def local_stats(images: Tensor, window: int) -> Tensor:
    """Return brightness, log-contrast and log-sharpness around each pixel: (n, 3, h, w)."""
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
    """Return 1, the three standardised statistics (n, 3, h, w), their squares and products."""
    # A quadratic function does not hold outside of the range that it was fitted on.
    stats = stats.maximum(c["lowest"]).minimum(c["highest"])
    stats = (stats - c["mean"]) / c["deviation"]
    one, two, three = stats.split(1, dim=1)
    products = one * stats, two * stats[:, 1:], three * three
    return torch.cat([torch.ones_like(one), stats, *products], dim=1)


def _over_pixels(figures: Tensor) -> NDArray[np.float32]:
    return figures.float().numpy()[..., None, None]


def _excess(deviations: Any) -> Any:
    """Clip values at 0, smoothly, so that values below 0 still differ."""
    xp, x = namespace(deviations), _SHARPNESS * deviations
    return xp.logaddexp(xp.zeros_like(x), x) / _SHARPNESS
