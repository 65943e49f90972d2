"""Images on their way to AVID's networks: one scale, one size of region, even light."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sklearn_g2d.utils.images import ImageShape

# What lies further out, in standard deviations of the training pixels, is cut off: squares
# have to be finite in float32.
_BOUND = 1e6

# Light is uneven where local means make up this share of the variance, in so many images:
# .01 to .08 of digits, .6 to .8 of photographs.
_UNEVEN_SHARE, _LIGHT_IMAGES = 0.25, 100

# Least deviation by which evening divides, in that of all training pixels.
_LEAST_CONTRAST = 0.1


class Canvas:
    """Rows of pixels to images as the networks see them, and maps of these back to pixels.

    Parameters
    ----------
    image_shape : tuple of int
        Channels, height, width.
    region_size : int
        Height and width of a region, in pixels.
    region_pixels : tuple of int
        Least and greatest size of a region on the canvas. Images with another are rescaled so
        that a region has the size between: networks see all regions alike.
    stride : int
        Of the networks; height and width are padded to multiples of it.
    even_light : bool or None
        Whether the local mean is subtracted and the local deviation divided by, both in
        a window of two regions: illumination must not count as a difference. None leaves it
        to `fit`: only where local means make up much of the variance is there something to even.

    Attributes
    ----------
    region_size : int
        On the canvas.
    even_light : bool
        As `fit` left it.
    padded_size : tuple of int
        Height and width of the canvas.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        region_size: int,
        region_pixels: tuple[int, int],
        stride: int,
        even_light: bool | None,
    ) -> None:
        least, most = region_pixels
        scale = 1.0 if least <= region_size <= most else (least + most) / 2 / region_size
        self.image_shape = image_shape
        self._asked_even_light = even_light
        self.even_light = bool(even_light)
        self.region_size = max(2, round(region_size * scale))
        _, *size = image_shape
        self._size = tuple(max(1, round(length * scale)) for length in size)
        height, width = (-(-length // stride) * stride for length in self._size)
        self.padded_size = height, width

    def fit(self, X: NDArray[Any]) -> None:
        """Learn the mean of every channel, and the deviation of all pixels, from rows.

        Raises
        ------
        ValueError
            If the values are too large for their variance to be computed.
        """
        pixels = X.reshape(len(X), self.image_shape[0], -1)
        with np.errstate(over="ignore", invalid="ignore"):
            self._mean = pixels.mean((0, 2), dtype=np.float64)[:, None, None]
            deviation = float(pixels.std(dtype=np.float64))
        if not np.isfinite(deviation):
            raise ValueError(
                f"X holds values up to {np.abs(X).max():.3g}, too large to compute a variance "
                "from. Rescale the images, or remove those with such pixels."
            )
        self._deviation = deviation if deviation > 0 else 1.0
        if self._asked_even_light is None:
            images = self._scaled(X[:: max(1, len(X) // _LIGHT_IMAGES)])
            means = box_mean(images, 2 * self.region_size + 1)
            self.even_light = float(means.var()) > _UNEVEN_SHARE * float(images.var())

    def encode(self, X: NDArray[Any]) -> Tensor:
        """Draw rows on the canvas: (n, channels, height, width), float32."""
        images = self._scaled(X)
        if self.even_light:
            mean, deviation = self._light(images)
            images = (images - mean) / deviation
        bottom, right = (
            padded - length for padded, length in zip(self.padded_size, self._size, strict=True)
        )
        return F.pad(images, (0, right, 0, bottom), mode="replicate")

    def decode(self, images: Tensor, X: NDArray[Any]) -> NDArray[np.float64]:
        """Turn what the networks made of the rows `X` back into such rows."""
        images = images[..., : self._size[0], : self._size[1]]
        if self.even_light:
            mean, deviation = self._light(self._scaled(X))
            images = images * deviation + mean
        pixels = self._resized(images, self.image_shape[1:]).double().numpy()
        return (pixels * self._deviation + self._mean).reshape(len(X), -1)

    def to_pixels(self, maps: Tensor) -> Tensor:
        """Bring maps (n, k, h, w) of the padded canvas to the images' size."""
        return self._resized(maps[..., : self._size[0], : self._size[1]], self.image_shape[1:])

    def _scaled(self, X: NDArray[Any]) -> Tensor:
        with np.errstate(over="ignore"):
            pixels = (X.reshape(len(X), *self.image_shape) - self._mean) / self._deviation
        pixels = np.clip(pixels, -_BOUND, _BOUND).astype(np.float32)
        return self._resized(torch.from_numpy(pixels), self._size)

    @staticmethod
    def _resized(images: Tensor, size: tuple[int, ...]) -> Tensor:
        if images.shape[2:] == size:
            return images
        smaller = size[0] < images.shape[2]
        return F.interpolate(images, size, mode="area" if smaller else "bilinear")

    def _light(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean = box_mean(images, 2 * self.region_size + 1)
        variance = box_mean((images - mean).square(), 2 * self.region_size + 1)
        return mean, (variance + _LEAST_CONTRAST**2).sqrt()


def box_mean(images: Tensor, width: int) -> Tensor:
    """Average over squares of an odd width, cut off at the images' borders."""
    half = width // 2
    rows = F.avg_pool2d(images, (width, 1), 1, (half, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, width), 1, (0, half), count_include_pad=False)
