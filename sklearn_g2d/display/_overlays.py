"""Images with their anomaly maps over them, as files, without a figure for each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from sklearn_g2d.display._drawing import as_pictures

# Of the colour scale; the last is that of values at its upper end, and above.
_N_LEVELS = 256

# Images whose shorter side has so many pixels have outlines of one more.
_PIXELS_PER_LINE = 250


def file_names(names: Iterable[Any]) -> list[str]:
    # A name depends on its path alone, so that files of several calls do not replace each other.
    found: dict[str, Any] = {}
    for name in names:
        path = PurePath(str(name))
        written = "_".join(part for part in path.parts if part not in (path.anchor, "..")) + ".png"
        if written in found:
            raise ValueError(
                f"{found[written]} and {name} would both be written to {written}: give every "
                "image a name of its own."
            )
        found[written] = name
    return list(found)


class Painter:
    """Paints maps over images.

    Parameters
    ----------
    colors : ndarray of shape (256, 3)
        Red, green and blue of the colour scale, from 0 to 1.
    value_range : tuple of float
        Values at the ends of the colour scale. Its lower half is transparent.
    alpha : float
        How much a map covers its image at the upper end.
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
        # Squared, because many normal places lie just above the middle of the scale.
        covers = alpha * np.linspace(-1.0, 1.0, _N_LEVELS).clip(0.0)[:, np.newaxis] ** 2
        self._keeps = (1.0 - covers).astype(np.float32)
        self._adds = (255.0 * covers * colors).astype(np.float32)
        self._outline = np.rint(255.0 * np.array(outline_color)).astype(np.uint8)
        self._value_range = value_range

    def paint(
        self, image: NDArray[Any], anomaly_map: NDArray[np.float64], mask: NDArray[Any] | None
    ) -> NDArray[np.uint8]:
        """Paint a map, and the outline of a mask, over one image.

        Parameters
        ----------
        image : ndarray of shape (channels, height, width)
            Bytes are drawn as they are, others from their lowest to their highest value.
        anomaly_map : ndarray of shape (height, width)
        mask : ndarray of shape (height, width) or None
            Not 0 within the outline.

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
        painted = np.rint(self._keeps[levels] * picture + self._adds[levels]).astype(np.uint8)
        if mask is not None:
            is_inside = np.asarray(mask).astype(bool)
            width = 1 + min(is_inside.shape) // _PIXELS_PER_LINE
            # Around the mask: it must not hide what is small.
            painted[maximum_filter(is_inside, 2 * width + 1) & ~is_inside] = self._outline
        return painted


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    from PIL import Image  # which matplotlib needs, too

    Image.fromarray(picture).save(path, compress_level=1)  # fast rather than small
