"""Functions for NumPy arrays and tensors, so that scoring and exported graphs share their code."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

# The number is small, so that a single row, padded to this number, costs little more than alone,
# and so that the block fits into the processor's cache.
PRODUCT_ROWS = 64


def namespace(x: Any) -> Any:
    """Return the module whose functions take `x`: `torch` for a tensor, else `numpy`."""
    return torch if isinstance(x, Tensor) else np


def sort(x: Any) -> Any:
    """Sort along the last axis, ascending."""
    return x.sort(-1).values if isinstance(x, Tensor) else np.sort(x, axis=-1)


def float64(x: Any) -> Any:
    """Convert to float64; an array that has this dtype is not copied."""
    return x.double() if isinstance(x, Tensor) else np.asarray(x, dtype=np.float64)


def float32(x: Any) -> Any:
    """Round to float32."""
    return x.float() if isinstance(x, Tensor) else np.asarray(x, dtype=np.float32)


def product(x: Any, matrix: Any) -> Any:
    """Multiply rows by a matrix; an array may have at most `PRODUCT_ROWS` rows.

    The last digits of a product depend on its number of rows. Therefore an array is padded, and the
    number is always the same.
    """
    if isinstance(x, Tensor):
        return x @ matrix
    return (np.pad(x, ((0, PRODUCT_ROWS - len(x)), (0, 0))) @ matrix)[: len(x)]


def take_along(x: Any, indices: Any, axis: int) -> Any:
    """Take the elements at `indices` along an axis."""
    is_tensor = isinstance(x, Tensor)
    return x.gather(axis, indices) if is_tensor else np.take_along_axis(x, indices, axis)


def extrapolate(distances: Any, farthest: Any, weight: Any) -> tuple[Any, Any]:
    """Split distances (n, n_values) into the input of a classifier and a penalty (n,).

    The input is cut off at the `farthest` distances of training, because a classifier cannot judge
    larger ones. The penalty, to be subtracted from its score, is the mean of the parts that were
    cut off and of all distances times `weight`.
    """
    inside = namespace(distances).minimum(distances, farthest)
    return inside, (weight * distances + (distances - inside)).mean(1)


def mean_of_highest(grids: Floats, n: int) -> Floats:
    """Average the `n` highest values of each grid: (n_grids, height, width) to (n_grids,)."""
    # A partition puts the highest values last without sorting all.
    cells = grids.reshape(len(grids), -1)
    return np.asarray(np.partition(cells, -n, axis=1)[:, -n:].mean(axis=1))
