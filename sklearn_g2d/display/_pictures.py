"""Images as matplotlib draws them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def as_pictures(images: NDArray[Any]) -> NDArray[Any]:
    """Move the channels of images to where matplotlib has them, and scale all alike to [0, 1].

    Parameters
    ----------
    images : ndarray of shape (..., channels, height, width)
        Of any range. Three channels are colours, of other numbers the mean is gray.

    Returns
    -------
    ndarray of shape (..., height, width, 3) or (..., height, width)
        In colour or in gray. Images that are all of one value are black.
    """
    # Bytes would wrap around when their range is taken.
    images = np.asarray(images, dtype=np.result_type(images, np.float32))
    pictures = np.moveaxis(images, -3, -1) if images.shape[-3] == 3 else images.mean(axis=-3)
    low, high = pictures.min(), pictures.max()
    scaled: NDArray[Any] = (pictures - low) / (high - low if high > low else 1.0)
    return scaled
