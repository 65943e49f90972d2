"""Memory-mapped arrays, read so that little of their file is in memory at once."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import assert_all_finite, gen_batches

# What detectors compute with; other numbers are converted block by block.
KNOWN_DTYPES = (np.float64, np.float32, np.uint8)
NUMBERS = (*KNOWN_DTYPES, np.float16, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64)

# Cells that are looked at before what they took is given back.
_BLOCK_CELLS = 2**22

# Single rows take much more memory than they are long: the system maps what lies around them.
_BLOCK_ROWS = 1000


def blocks(X: NDArray[Any], n_rows: int) -> Iterator[NDArray[Any]]:
    """Give views of at most `n_rows` rows; a mapped one leaves memory before the next comes."""
    mapped = _file_of(X)
    for rows in gen_batches(len(X), n_rows):
        yield X[rows]
        _release(mapped)


def take(X: NDArray[Any], chosen: NDArray[np.intp]) -> NDArray[Any]:
    """Copy the chosen rows, of a mapped array some at a time; see `as_known_dtype`."""
    mapped = _file_of(X)
    rows = np.empty((len(chosen), *X.shape[1:]), dtype=as_known_dtype(X[:0]).dtype)
    for block in gen_batches(len(chosen), _BLOCK_ROWS if mapped else max(1, len(chosen))):
        rows[block] = X[chosen[block]]
        _release(mapped)
    return rows


def as_known_dtype(X: NDArray[Any]) -> NDArray[Any]:
    """Turn the many types of numbers in files into the few that the detectors compute with."""
    return X if X.dtype in KNOWN_DTYPES else X.astype(np.float64)


def check_finite(X: NDArray[Any], estimator_name: str) -> None:
    """Raise scikit-learn's ValueError if a value is NaN or infinite."""
    for block in blocks(X, max(1, _BLOCK_CELLS // max(1, X.shape[1]))):
        assert_all_finite(block, estimator_name=estimator_name, input_name="X")


def _file_of(X: Any) -> mmap.mmap | None:
    """Find the map behind an array, if what it holds may leave memory without loss."""
    mode = None
    while isinstance(X, np.ndarray):
        mode = getattr(X, "mode", mode)
        X = X.base
    # The values of mode "c" that were written to are nowhere but in memory.
    return X if isinstance(X, mmap.mmap) and mode in ("r", "r+", "w+") else None


def _release(mapped: mmap.mmap | None) -> None:
    if mapped is not None and hasattr(mapped, "madvise"):  # Windows has no such call
        mapped.madvise(mmap.MADV_DONTNEED)
