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


def count_copies(images: NDArray[Any], groups: Iterable[Any] | None) -> tuple[int, int]:
    """Return how many images equal one of another group, and how many images are different.

    Images are compared in every bit. Without groups, each image is a group of its own.
    """
    each = chain.from_iterable(blocks(images, _BLOCK_IMAGES))
    digests = [hashlib.sha256(image.tobytes()).digest() for image in each]
    n_different = len(set(digests))
    of_groups = range(len(digests)) if groups is None else groups
    return len(set(zip(digests, of_groups, strict=True))) - n_different, n_different


def warn_of_copies(rows: Floats, may_be_copy: NDArray[np.bool_]) -> None:
    """Warn if many rows were probably stored twice; only rows that `may_be_copy` are searched.

    Rows of a table with few different values are equal by chance, and so are new rows. Therefore
    equal rows count only if they have a value in common that no other row has.
    """
    limit = _MAX_COPIES * len(rows)
    # In a single column equal values cannot be told from copies.
    if may_be_copy.sum() <= limit or rows.shape[1] == 1:
        return
    n_equal = _n_equal(rows, axis=0)
    is_copy = np.zeros(len(rows), dtype=bool)
    for column in rows.T:
        is_copy |= _n_equal(column) == n_equal
    is_copy &= (n_equal > 1) & (n_equal <= min(_MAX_TIMES, len(rows) // 2))
    n_copies = int(is_copy.sum())
    if n_copies > limit:
        warn_caller(
            f"{n_copies} of the {len(rows)} rows equal another row in all columns, with a value "
            "that no other row has, as if they were stored twice. A held-out row with a copy looks "
            "more normal than a new row, so that there will be more false alarms than stated. "
            "Pass every row once, such as np.unique(X, axis=0)."
        )


def _n_equal(values: Floats, axis: int | None = None) -> NDArray[np.intp]:
    """Return how many of the values, or rows with axis 0, equal each of them, itself included."""
    _, inverse, counts = np.unique(values, axis=axis, return_inverse=True, return_counts=True)
    return counts[inverse.ravel()]
