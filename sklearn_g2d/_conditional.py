"""What maps of normal images usually say where an image looks as it does."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sklearn_g2d._canvas import box_mean

# Contrast and sharpness below these, in the variance of the training pixels, are alike.
_LEAST_CONTRAST, _LEAST_SHARPNESS = 0.1, 0.02

# Ridge penalty, in places; and the least variance, in its mean.
_PENALTY, _LEAST_VARIANCE = 10.0, 0.1


class ConditionalScaler:
    """Standardise maps, given the brightness, contrast and sharpness around each pixel.

    I errs more where much is going on, and D doubts some textures more than others. That alone is
    not irregular: what counts is how far a map lies from its usual value at places that look alike.
    Mean and variance of each map are quadratic in the three, fitted by least squares.

    Parameters
    ----------
    window : int
        Odd side of the square that "around" means, in pixels.
    """

    def __init__(self, window: int) -> None:
        self.window = window

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> ConditionalScaler:
        """Learn from batches of maps (n, k, h, w) of normal images (n, channels, h, w)."""
        step = max(1, self.window // 4)  # closer places tell the same
        sampled = [
            (self._looks(images)[:, :, ::step, ::step], maps[:, :, ::step, ::step])
            for maps, images in batches
        ]
        looks, values = (
            torch.cat([of_batch.transpose(0, 1).flatten(1) for of_batch in part], dim=1).double()
            for part in zip(*sampled, strict=True)
        )
        figures = looks.amin(1), looks.amax(1), looks.mean(1), looks.std(1) + 1e-6
        self._lowest, self._highest, self._mean, self._deviation = (
            figure.float().numpy()[:, None, None] for figure in figures
        )
        terms = self._terms(looks.float()[None, :, :, None])[0, :, :, 0].double()
        penalty = torch.full((len(terms),), _PENALTY, dtype=torch.float64)
        penalty[0] = 0  # of the intercept
        gram = terms @ terms.T + penalty.diag()
        usual = torch.linalg.solve(gram, terms @ values.T).T
        squares = (values - usual @ terms).square()
        variance = torch.linalg.solve(gram, terms @ squares.T).T
        self._coefficients = torch.cat([usual, variance]).float().numpy()[:, :, None, None]
        least = (_LEAST_VARIANCE * squares.mean(1)).clamp(min=1e-12)
        self._least_variance = least.float().numpy()[:, None, None]
        return self

    def transform(self, maps: Tensor, images: Tensor) -> Tensor:
        """Give deviations of maps (n, k, h, w) of images from what is usual, (n, k, h, w)."""
        usual = F.conv2d(self._terms(self._looks(images)), torch.from_numpy(self._coefficients))
        mean, variance = usual.chunk(2, dim=1)
        return (maps - mean) / variance.maximum(torch.from_numpy(self._least_variance)).sqrt()

    def _looks(self, images: Tensor) -> Tensor:
        """Describe the surroundings of pixels: (n, 3, h, w)."""
        gray = images.mean(1, keepdim=True)
        brightness = box_mean(gray, self.window)
        contrast = box_mean((images - brightness).square().mean(1, keepdim=True), self.window)
        down, right = torch.gradient(images, dim=(2, 3))
        steepness = (down.square() + right.square()).mean(1, keepdim=True)
        sharpness = box_mean(steepness, self.window)
        return torch.cat(
            [
                brightness,
                (contrast + _LEAST_CONTRAST).log(),
                (sharpness + _LEAST_SHARPNESS).log(),
            ],
            dim=1,
        )

    def _terms(self, looks: Tensor) -> Tensor:
        """Expand (n, 3, h, w) to 1, the three, their squares and products: (n, 10, h, w)."""
        # No quadratic holds beyond what it was fitted to.
        looks = looks.maximum(torch.from_numpy(self._lowest))
        looks = looks.minimum(torch.from_numpy(self._highest))
        looks = (looks - torch.from_numpy(self._mean)) / torch.from_numpy(self._deviation)
        first, second = np.triu_indices(looks.shape[1])
        products = looks[:, first] * looks[:, second]
        return torch.cat([torch.ones_like(looks[:, :1]), looks, products], dim=1)
