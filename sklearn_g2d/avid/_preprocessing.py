"""Preprocessing of images for AVID: scale of values, size of regions, and illumination."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from sklearn_g2d.utils.images import ImageShape
from sklearn_g2d.utils.state import Stored

# Pixels are clipped at so many standard deviations of the training pixels, because their squares
# must be finite in float32.
_BOUND = 1e6

# Illumination is normalised if local means make up more than this fraction of the variance, in
# about so many images. The fraction is .01 to .08 for digits, and .6 to .8 for photographs.
_VARYING_FRACTION, _PROBED_IMAGES = 0.25, 100

# Least local deviation to divide by, in units of that of all training pixels.
_LEAST_CONTRAST = 0.1


class ImagePreprocessor(Stored):
    """Turns rows of pixels into images for the networks, and outputs of networks into pixels.

    If the region size is outside of the two `region_pixels`, images are resized so that it is the
    mean of both. Then height and width are padded to multiples of the networks' `stride`. The
    attributes `region_size` and `padded_size` are in pixels after these steps.

    Differences in illumination should not be anomalies. To normalise it, the local mean is
    subtracted, and the result divided by the local deviation, both in a window of two regions.
    With "auto" this is done only if `fit` finds that local means make up much of the variance.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        region_size: int,
        region_pixels: tuple[int, int],
        stride: int,
        normalize_illumination: bool | Literal["auto"],
    ) -> None:
        least, most = region_pixels
        scale = 1.0 if least <= region_size <= most else (least + most) / 2 / region_size
        self.image_shape = image_shape
        self._probes_illumination = normalize_illumination == "auto"
        self.normalize_illumination = normalize_illumination is True
        self.region_size = max(2, round(region_size * scale))
        self._window = 2 * self.region_size + 1
        self._size = tuple(max(1, round(length * scale)) for length in image_shape[1:])
        height, width = (-(-length // stride) * stride for length in self._size)
        self.padded_size = height, width

    def fit(self, X: NDArray[Any]) -> ImagePreprocessor:
        """Learn the mean of each channel, and the deviation of all pixels, from rows.

        If the variance overflows, ValueError is raised.
        """
        pixels = X.reshape(len(X), self.image_shape[0], -1)
        with np.errstate(over="ignore", invalid="ignore"):
            self._mean = pixels.mean((0, 2), dtype=np.float64)[:, None, None]
            deviation = float(pixels.std(dtype=np.float64))
        if not np.isfinite(deviation):
            raise ValueError(
                f"X holds values up to {np.abs(X).max():.3g}, which are too large to compute the "
                "variance of the pixels. Rescale the images, or remove those with such values."
            )
        self._deviation = deviation if deviation > 0 else 1.0
        if self._probes_illumination:
            images = self._scaled(X[:: max(1, len(X) // _PROBED_IMAGES)])
            means = box_mean(images, self._window)
            varying = float(means.var()) > _VARYING_FRACTION * float(images.var())
            self.normalize_illumination = varying
        return self

    def encode(self, X: NDArray[Any]) -> Tensor:
        """Turn rows into images (n, channels, height, width) for the networks, float32."""
        return self._compute(_as_tensor(X), self._tensors(), self.resize)

    def decode(self, images: Tensor, X: NDArray[Any]) -> NDArray[np.float64]:
        """Turn images from the inpainter, made from the rows `X`, into rows like these."""
        images = images[..., : self._size[0], : self._size[1]]
        if self.normalize_illumination:
            mean, deviation = self._illumination(self._scaled(X))
            images = images * deviation + mean
        pixels = resized(images, self.image_shape[1:]).double().numpy()
        return (pixels * self._deviation + self._mean).reshape(len(X), -1)

    def blank(self) -> Tensor:
        """Return zeros in the shape of the networks' input: (1, channels, height, width)."""
        shape = 1, self.image_shape[0], *self.padded_size
        return torch.zeros(shape, dtype=torch.float32, device="cpu")

    def resize(self, images: Tensor) -> Tensor:
        """Resize images (n, k, height, width) for the networks, without padding."""
        return resized(images, self._size)

    def to_pixels(self, maps: Tensor) -> Tensor:
        """Resize maps (n, k, h, w) of the networks' input to the images' size, without padding."""
        return resized(maps[..., : self._size[0], : self._size[1]], self.image_shape[1:])

    def _constants(self) -> dict[str, ArrayLike]:
        return {"mean": self._mean, "deviation": self._deviation}

    def _tensors(self) -> dict[str, Tensor]:
        return {name: torch.tensor(np.asarray(v)) for name, v in self._constants().items()}

    def _compute(
        self, rows: Tensor, c: Mapping[str, Tensor], resize: Callable[[Tensor], Tensor]
    ) -> Tensor:
        images = self._scale(rows, c, resize)
        if self.normalize_illumination:
            mean, deviation = self._illumination(images)
            images = (images - mean) / deviation
        bottom, right = (
            padded - length for padded, length in zip(self.padded_size, self._size, strict=True)
        )
        return F.pad(images, (0, right, 0, bottom), mode="replicate")

    def _scale(
        self, rows: Tensor, c: Mapping[str, Tensor], resize: Callable[[Tensor], Tensor]
    ) -> Tensor:
        pixels = (rows.reshape(-1, *self.image_shape) - c["mean"]) / c["deviation"]
        return resize(pixels.clamp(-_BOUND, _BOUND).float())

    def _scaled(self, X: NDArray[Any]) -> Tensor:
        return self._scale(_as_tensor(X), self._tensors(), self.resize)

    def _illumination(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the local mean and the local deviation of images."""
        mean = box_mean(images, self._window)
        variance = box_mean((images - mean).square(), self._window)
        return mean, (variance + _LEAST_CONTRAST**2).sqrt()


def resized(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize images (n, k, h, w): by means of areas to make them smaller, else bilinearly."""
    if images.shape[2:] == size:
        return images
    smaller = size[0] < images.shape[2]
    return F.interpolate(images, size, mode="area" if smaller else "bilinear")


def box_mean(images: Tensor, width: int) -> Tensor:
    """Average over squares of an odd width around each pixel, without pixels outside of images."""
    half = width // 2
    rows = F.avg_pool2d(images, (width, 1), 1, (half, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, width), 1, (0, half), count_include_pad=False)


def odd(size: int) -> int:
    """Return `size` if it is odd, else the next odd number."""
    return 2 * (size // 2) + 1


def _as_tensor(X: NDArray[Any]) -> Tensor:
    # Copy the array, because PyTorch gives a warning for read-only arrays.
    return torch.from_numpy(np.array(X, dtype=np.float64, order="C"))
