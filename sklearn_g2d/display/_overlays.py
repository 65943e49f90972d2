"""Files of images with anomaly maps over them, made without figures, which would be slow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from sklearn_g2d.display._drawing import as_pictures

# Number of colours in the scale. The last one is for values at its upper end and above.
_N_LEVELS = 256

# Outlines get one pixel wider for each multiple of this number in the image's shorter side.
_PIXELS_PER_LINE = 250


def file_names(names: Iterable[Any]) -> list[str]:
    # Each name depends only on its own path, so that files of several calls for one set of images
    # do not replace each other.
    found: dict[str, Any] = {}
    for name in names:
        path = PurePath(str(name))
        written = "_".join(part for part in path.parts if part not in (path.anchor, "..")) + ".png"
        if written in found:
            raise ValueError(
                f"{found[written]} and {name} would both be written to {written}. Give each image "
                "its own name."
            )
        found[written] = name
    return list(found)


class Painter:
    """Draws maps over images.

    Parameters
    ----------
    colors : ndarray of shape (256, 3)
        Red, green and blue of the colour scale, from 0 to 1.
    value_range : tuple of float
        Values at the ends of the colour scale. Its lower half is transparent.
    alpha : float
        Opacity of a map at the upper end of the scale, from 0 to 1.
    outline_color : tuple of float
        Red, green and blue of outlines, from 0 to 1.
    """

    def __init__(
        self,
        colors: NDArray[Any],
        value_range: tuple[float, float],
        alpha: float,
        outline_color: tuple[float, ...],
    ) -> None:
        # The square makes values just above the middle of the scale nearly transparent, because
        # many normal places have such values.
        opacities = alpha * np.linspace(-1.0, 1.0, _N_LEVELS).clip(0.0)[:, np.newaxis] ** 2
        self._picture_weights = (1.0 - opacities).astype(np.float32)
        self._weighted_colors = (255.0 * opacities * colors).astype(np.float32)
        self._outline = np.rint(255.0 * np.array(outline_color)).astype(np.uint8)
        self._value_range = value_range

    def paint(
        self, image: NDArray[Any], anomaly_map: NDArray[np.float64], mask: NDArray[Any] | None
    ) -> NDArray[np.uint8]:
        """Draw a map, and the outline of a mask, over one image.

        Parameters
        ----------
        image : ndarray of shape (channels, height, width)
            Bytes are drawn without scaling, other numbers from their lowest to their highest value.
        anomaly_map : ndarray of shape (height, width)
        mask : ndarray of shape (height, width) or None
            Values inside the outline are not 0.

        Returns
        -------
        ndarray of shape (height, width, 3)
        """
        if image.dtype == np.uint8:
            picture = np.moveaxis(image, 0, -1) if len(image) == 3 else image.mean(axis=0)
        else:
            picture = 255.0 * as_pictures(image)
        picture = picture if picture.ndim == 3 else picture[..., np.newaxis]
        low, high = self._value_range
        heights = (anomaly_map - low) / (high - low if high > low else 1.0)
        levels = np.rint((_N_LEVELS - 1) * heights.clip(0.0, 1.0)).astype(np.uint8)
        painted = np.rint(
            self._picture_weights[levels] * picture + self._weighted_colors[levels]
        ).astype(np.uint8)
        if mask is not None:
            is_inside = np.asarray(mask).astype(bool)
            width = 1 + min(is_inside.shape) // _PIXELS_PER_LINE
            # The outline is outside of the mask, so that it does not hide a small anomaly.
            painted[maximum_filter(is_inside, 2 * width + 1) & ~is_inside] = self._outline
        return painted


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    # matplotlib needs Pillow, so that it is installed if plots work.
    from PIL import Image

    # Level 1 is much faster than the default, and files are only a little larger.
    Image.fromarray(picture).save(path, compress_level=1)
