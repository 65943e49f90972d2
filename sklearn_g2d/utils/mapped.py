"""Reading of memory-mapped arrays with only a small part of the file in memory at once."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import assert_all_finite, gen_batches

# Detectors compute with these types. Other numbers are converted block by block.
KNOWN_DTYPES = (np.float64, np.float32, np.uint8)
NUMBERS = (*KNOWN_DTYPES, np.float16, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64)

# Number of cells that are checked before their memory is released.
_BLOCK_CELLS = 2**22

# Number of single rows that are read before their memory is released. A row takes much more memory
# than its length, because the system also loads the parts of the file around it.
_BLOCK_ROWS = 1000


def blocks(X: NDArray[Any], n_rows: int) -> Iterator[NDArray[Any]]:
    """Yield views of at most `n_rows` rows; a mapped block leaves memory before the next one."""
    mapped = _file_of(X)
    for rows in gen_batches(len(X), n_rows):
        yield X[rows]
        _release(mapped)


def take(X: NDArray[Any], chosen: NDArray[np.intp]) -> NDArray[Any]:
    """Copy the chosen rows, from a mapped array in blocks, and convert by `as_known_dtype`."""
    mapped = _file_of(X)
    rows = np.empty((len(chosen), *X.shape[1:]), dtype=as_known_dtype(X[:0]).dtype)
    for block in gen_batches(len(chosen), _BLOCK_ROWS if mapped else max(1, len(chosen))):
        rows[block] = X[chosen[block]]
        _release(mapped)
    return rows


def as_known_dtype(X: NDArray[Any]) -> NDArray[Any]:
    """Convert numbers of other types than `KNOWN_DTYPES` to float64."""
    return X if X.dtype in KNOWN_DTYPES else X.astype(np.float64)


def check_finite(X: NDArray[Any], estimator_name: str) -> None:
    """Raise scikit-learn's ValueError if a value is NaN or infinite."""
    for block in blocks(X, max(1, _BLOCK_CELLS // max(1, X.shape[1]))):
        assert_all_finite(block, estimator_name=estimator_name, input_name="X")


def _file_of(X: Any) -> mmap.mmap | None:
    """Return the map behind an array, if its memory can be released without loss."""
    mode = None
    while isinstance(X, np.ndarray):
        mode = getattr(X, "mode", mode)
        X = X.base
    # In mode "c" changed values exist only in memory, so that releasing it would lose them.
    return X if isinstance(X, mmap.mmap) and mode in ("r", "r+", "w+") else None


def _release(mapped: mmap.mmap | None) -> None:
    # Windows has no `madvise`.
    if mapped is not None and hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_DONTNEED)
