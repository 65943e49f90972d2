"""Axes of matplotlib, with its import at the first plot, and images in its format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def import_pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Plots need matplotlib, which is not installed. Install it by "
            "`pip install sklearn_g2d[plot]`."
        ) from error
    return plt


def new_axes(ax: Axes | None, title: str | None = None, **figure: Any) -> tuple[Axes, Any]:
    # Returns `ax`, or the axes of a new figure, and the figure of these axes.
    plt = import_pyplot()
    if ax is None:
        _, ax = plt.subplots(**figure)
    if title is not None:
        ax.set_title(title)
    return ax, ax.figure


def as_pictures(images: NDArray[Any]) -> NDArray[Any]:
    """Move the channels of images to the last axis, and scale all images by one range to [0, 1].

    Parameters
    ----------
    images : ndarray of shape (..., channels, height, width)
        Images of any range. Three channels are colours; for other numbers the mean is gray.

    Returns
    -------
    ndarray of shape (..., height, width, 3) or (..., height, width)
        Images in colour or in gray. If all values are equal, the images are black.
    """
    # Convert bytes to floats, because differences of bytes overflow.
    images = np.asarray(images, dtype=np.result_type(images, np.float32))
    pictures = np.moveaxis(images, -3, -1) if images.shape[-3] == 3 else images.mean(axis=-3)
    low, high = pictures.min(), pictures.max()
    scaled: NDArray[Any] = (pictures - low) / (high - low if high > low else 1.0)
    return scaled
