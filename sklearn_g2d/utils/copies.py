"""Copies among the training data, which make held-out data look too normal."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_g2d.utils.arrays import Floats
from sklearn_g2d.utils.mapped import blocks
from sklearn_g2d.utils.warnings import warn_caller

_BLOCK_IMAGES = 100

# With this fraction of copies about 6 % of new normal rows are flagged instead of 5 % (measured).
_MAX_COPIES = 0.05

# Rows that are equal more often are taken for values that occur often, not for copies.
_MAX_TIMES = 10

# A row is a near copy if it is so much nearer to one row than to the next. In one dimension a tenth
# of all rows are near copies; in more dimensions, fewer.
_NEAR_COPY, _MAX_NEAR_COPIES = 0.1, 0.25


def count_copies(images: NDArray[Any], groups: Iterable[Any] | None) -> tuple[int, int]:
    """Return how many images equal one of another group, and how many images are different.

    Images are compared in every bit. Without groups, each image is a group of its own.
    """
    each = chain.from_iterable(blocks(images, _BLOCK_IMAGES))
    digests = [hashlib.sha256(image.tobytes()).digest() for image in each]
    n_different = len(set(digests))
    of_groups = range(len(digests)) if groups is None else groups
    return len(set(zip(digests, of_groups, strict=True))) - n_different, n_different


def warn_of_copies(rows: Floats, nearest: Floats) -> None:
    """Warn if many rows were probably stored or measured twice.

    `nearest` (n_samples, 2) has the distances to the nearest two other rows. Rows of a table with
    few different values are equal by chance, and so are new rows. Therefore equal rows count only
    if they have a value in common that no other row has.
    """
    first, second = nearest.T
    n_near = int(np.sum((first > 0) & (first < _NEAR_COPY * second)))
    if n_near > _MAX_NEAR_COPIES * len(rows):
        times = f"{1 / _NEAR_COPY:.0f} times"
        _warn(n_near, rows, f"are over {times} as near to one row as to any other")
    limit = max(2, _MAX_COPIES * len(rows))  # two equal rows alone may be chance
    # In a single column equal values cannot be told from copies.
    if np.sum(first == 0) <= limit or rows.shape[1] == 1:
        return
    n_equal = _n_equal(rows, axis=0)
    is_copy = np.any([_n_equal(column) == n_equal for column in rows.T], axis=0)
    is_copy &= (n_equal > 1) & (n_equal <= min(_MAX_TIMES, len(rows) // 2))
    if is_copy.sum() > limit:
        _warn(int(is_copy.sum()), rows, "share a value only with rows that equal them everywhere")


def _warn(n_copies: int, rows: Floats, what: str) -> None:
    warn_caller(
        f"{n_copies} of the {len(rows)} rows {what}, as if the same things were in X twice. A "
        "held-out row with a copy looks more normal than a new row, so that many more new rows "
        "than stated will be flagged. Pass everything once, such as np.unique(X, axis=0)."
    )


def _n_equal(values: Floats, axis: int | None = None) -> NDArray[np.intp]:
    """Return how many of the values, or rows with axis 0, equal each of them, itself included."""
    _, inverse, counts = np.unique(values, axis=axis, return_inverse=True, return_counts=True)
    return counts[inverse.ravel()]
