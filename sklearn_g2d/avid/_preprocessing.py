"""Images on their way to AVID's networks: one scale, one size of region, even illumination."""

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

# What lies further out, in standard deviations of the training pixels, is cut off: squares
# have to be finite in float32.
_BOUND = 1e6

# Illumination varies where local means make up this fraction of the variance, in so many images:
# it is .01 to .08 of digits, .6 to .8 of photographs.
_VARYING_FRACTION, _PROBED_IMAGES = 0.25, 100

# Least local deviation by which normalisation divides, in that of all training pixels.
_LEAST_CONTRAST = 0.1


class ImagePreprocessor(Stored):
    """Rows of pixels to images as the networks see them, and what networks give back to pixels.

    Images whose regions are smaller or larger than `region_pixels` are resized so that a region
    has the size between; then height and width are padded to multiples of the networks' `stride`.
    `region_size` and `padded_size` are what the networks see, in pixels.

    Illumination must not count as a difference. If it is normalised, the local mean is
    subtracted and the local deviation divided by, both in a window of two regions. "auto" leaves
    that to `fit`: only where local means make up much of the variance is there something to do.
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
        """Learn the mean of every channel, and the deviation of all pixels, from rows.

        Raises ValueError if the values are too large for their variance to be computed.
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
        """Turn what the networks made of the rows `X` back into such rows."""
        images = images[..., : self._size[0], : self._size[1]]
        if self.normalize_illumination:
            mean, deviation = self._illumination(self._scaled(X))
            images = images * deviation + mean
        pixels = resized(images, self.image_shape[1:]).double().numpy()
        return (pixels * self._deviation + self._mean).reshape(len(X), -1)

    def blank(self) -> Tensor:
        """Give zeros for an image as the networks see it: (1, channels, height, width)."""
        shape = 1, self.image_shape[0], *self.padded_size
        return torch.zeros(shape, dtype=torch.float32, device="cpu")

    def resize(self, images: Tensor) -> Tensor:
        """Bring images (n, k, height, width) to the size that the networks see, unpadded."""
        return resized(images, self._size)

    def to_pixels(self, maps: Tensor) -> Tensor:
        """Bring maps (n, k, h, w) of what the networks see to the images' size."""
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
        """Local mean, and local deviation, of images."""
        mean = box_mean(images, self._window)
        variance = box_mean((images - mean).square(), self._window)
        return mean, (variance + _LEAST_CONTRAST**2).sqrt()


def resized(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize images (n, k, h, w): by the means of areas if they shrink, linearly if they grow."""
    if images.shape[2:] == size:
        return images
    smaller = size[0] < images.shape[2]
    return F.interpolate(images, size, mode="area" if smaller else "bilinear")


def box_mean(images: Tensor, width: int) -> Tensor:
    """Average over squares of an odd width, cut off at the images' borders."""
    half = width // 2
    rows = F.avg_pool2d(images, (width, 1), 1, (half, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, width), 1, (0, half), count_include_pad=False)


def odd(size: int) -> int:
    """Give the odd number that is a size or the next one."""
    return 2 * (size // 2) + 1


def _as_tensor(X: NDArray[Any]) -> Tensor:
    # A copy: PyTorch warns of arrays that are read-only.
    return torch.from_numpy(np.array(X, dtype=np.float64, order="C"))
