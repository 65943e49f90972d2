"""What maps of normal images usually say where an image looks as it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sklearn_g2d.avid._preprocessing import box_mean

# Contrast and sharpness below these, in the variance of the training pixels, are alike.
_LEAST_CONTRAST, _LEAST_SHARPNESS = 0.1, 0.02

# Ridge penalty, in places, of which a region has some twenty: few images allow for few
# differences. And the least variance, in its mean.
_PENALTY, _LEAST_VARIANCE = 200.0, 0.1


class ConditionalScaler:
    """Standardise maps, also given the brightness, contrast and sharpness around each pixel.

    I errs more where much is going on, and D doubts some textures more than others, so that what
    is plain would never look irregular. A map's deviation is that from what is usual at
    places that look alike, or from what is usual at all (for a place may be irregular by its very
    looks), whichever is greater. Given the looks, mean and variance are quadratic in them, fitted
    by least squares.

    Parameters
    ----------
    window : int
        Odd side of the square that "around" means, in pixels.

    Attributes
    ----------
    figures : dict of ndarray of float32
        What was learnt, by name.
    """

    def __init__(self, window: int) -> None:
        self.window = window

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> ConditionalScaler:
        """Learn from batches of maps (n, k, h, w) of normal images (n, channels, h, w)."""
        step = max(1, self.window // 4)  # closer places tell the same
        sampled = [
            (looks_of(images, self.window)[:, :, ::step, ::step], maps[:, :, ::step, ::step])
            for maps, images in batches
        ]
        looks, values = (
            torch.cat([of_batch.transpose(0, 1).flatten(1) for of_batch in part], dim=1).double()
            for part in zip(*sampled, strict=True)
        )
        self.figures = {
            "lowest": _over_pixels(looks.amin(1)),
            "highest": _over_pixels(looks.amax(1)),
            "mean": _over_pixels(looks.mean(1)),
            "deviation": _over_pixels(looks.std(1) + 1e-6),
        }
        terms = terms_of(looks.float()[None, :, :, None], self._tensors())[0, :, :, 0].double()
        penalty = torch.full((len(terms),), _PENALTY, dtype=torch.float64)
        penalty[0] = 0  # of the intercept
        gram = terms @ terms.T + penalty.diag()
        usual = torch.linalg.solve(gram, terms @ values.T).T
        squares = (values - usual @ terms).square()
        variance = torch.linalg.solve(gram, terms @ squares.T).T
        least = (_LEAST_VARIANCE * squares.mean(1)).clamp(min=1e-12)
        self.figures["coefficients"] = _over_pixels(torch.cat([usual, variance]))
        self.figures["least_variance"] = _over_pixels(least)
        self.figures["map_mean"] = _over_pixels(values.mean(1))
        self.figures["map_deviation"] = _over_pixels(values.std(1, correction=0) + 1e-6)
        return self

    def transform(self, maps: Tensor, images: Tensor) -> Tensor:
        """Give deviations of maps (n, k, h, w) of images from what is usual, (n, k, h, w)."""
        return deviations(maps, images, self.window, self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(figure) for name, figure in self.figures.items()}


def deviations(maps: Tensor, images: Tensor, window: int, figures: Mapping[str, Tensor]) -> Tensor:
    """Give deviations of maps (n, k, h, w) of images, by the figures of a `ConditionalScaler`."""
    terms = terms_of(looks_of(images, window), figures)
    mean, variance = F.conv2d(terms, figures["coefficients"]).chunk(2, dim=1)
    given_looks = (maps - mean) / variance.maximum(figures["least_variance"]).sqrt()
    at_all = (maps - figures["map_mean"]) / figures["map_deviation"]
    return given_looks.maximum(at_all)


def terms_of(looks: Tensor, figures: Mapping[str, Tensor]) -> Tensor:
    """Standardise looks (n, 3, h, w), and expand them for the regression: (n, 10, h, w)."""
    # No quadratic holds beyond what it was fitted to.
    looks = looks.maximum(figures["lowest"]).minimum(figures["highest"])
    return quadratic((looks - figures["mean"]) / figures["deviation"])


def looks_of(images: Tensor, window: int) -> Tensor:
    """Describe the surroundings of pixels, brightness, contrast and sharpness: (n, 3, h, w)."""
    brightness = box_mean(images.mean(1, keepdim=True), window)
    power = box_mean(images.square().mean(1, keepdim=True), window)
    contrast = (power - brightness.square()).clamp(min=0)
    framed = F.pad(images, (1, 1, 1, 1), mode="replicate")
    down = (framed[:, :, 2:, 1:-1] - framed[:, :, :-2, 1:-1]) / 2
    right = (framed[:, :, 1:-1, 2:] - framed[:, :, 1:-1, :-2]) / 2
    steepness = (down.square() + right.square()).mean(1, keepdim=True)
    sharpness = box_mean(steepness, window)
    logarithms = (contrast + _LEAST_CONTRAST).log(), (sharpness + _LEAST_SHARPNESS).log()
    return torch.cat([brightness, *logarithms], dim=1)


def quadratic(looks: Tensor) -> Tensor:
    """Expand (n, 3, h, w) to 1, the three, their squares and products: (n, 10, h, w)."""
    one, two, three = looks.split(1, dim=1)
    products = one * looks, two * looks[:, 1:], three * three
    return torch.cat([torch.ones_like(one), looks, *products], dim=1)


def _over_pixels(figures: Tensor) -> NDArray[np.float32]:
    return figures.float().numpy()[..., None, None]
