"""Conversion of the user's rows or images to numbers, or errors that say what to pass instead."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import date, time, timedelta
from itertools import chain
from os import PathLike
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.utils import Bunch
from sklearn.utils.validation import validate_data

from sklearn_g2d.utils.mapped import blocks, check_finite

# An error names at most so many columns or images.
_MOST_NAMED = 5

# Nested lists are searched to this depth, the number of axes of an array of images.
_MOST_AXES = 4

_BLOCK_ROWS = 1000

_LARGEST = sys.float_info.max

_ENCODE = "encode {} by OneHotEncoder(sparse_output=False) or OrdinalEncoder before {{}}"
_REMEDIES = {
    "text": _ENCODE.format("it"),
    "categories": _ENCODE.format("them") + ", or convert them if they are numbers",
    "dates or times": "turn them into numbers before {}, such as days since a fixed date",
    "missing values": "fill them by SimpleImputer before {}, or leave such rows out",
    "integers too large for float64": "clip them by np.clip before {}, or leave such rows out",
    "complex numbers": "pass their real and imaginary parts as columns",
    "sparse values": "pass X.sparse.to_dense()",
    "lists or arrays": "give every number a column, or pass images as one array (n_samples, "
    "channels, height, width)",
}
_LOADER = "sklearn_g2d.datasets.load_images"
_DATES = (date, time, timedelta, np.datetime64, np.timedelta64)


def plain(X: Any, name: str = "X") -> Any:
    """Return `X` in a form that scikit-learn reads; values are not copied.

    Tensors, and collections of dask and pyarrow, are converted. For types that scikit-learn would
    misread, or refuse with an unclear message, this raises a TypeError that calls `X` by `name`.
    """
    # The names of modules tell the type of `X` without importing packages that may be missing.
    package, kind = type(X).__module__.partition(".")[0], type(X).__name__
    if issparse(X):
        raise TypeError(
            f"{name} is sparse: pass {name}.toarray(). In a Pipeline, "
            "OneHotEncoder(sparse_output=False) and ColumnTransformer(..., sparse_threshold=0) "
            "give dense columns."
        )
    if package in ("dask", "dask_expr") and hasattr(X, "compute"):
        return plain(X.compute(), name)
    if package == "narwhals" and hasattr(X, "to_native"):
        return plain(X.to_native(), name)
    if package == "pyarrow" and kind == "RecordBatch":
        return sys.modules["pyarrow"].Table.from_batches([X])
    if package == "polars" and kind == "LazyFrame":
        raise TypeError(
            f"{name} is a polars LazyFrame, and its rows are not computed yet: pass "
            f"{name}.collect()."
        )
    if isinstance(X, str | bytes | PathLike):
        raise TypeError(
            f"{name} is a path or other text. Read the file first: a table by pandas.read_csv, "
            f"images by {_LOADER}, a video by sklearn_g2d.video.read_frames."
        )
    if isinstance(X, dict | set | frozenset | Iterator) or X is None:
        rows = f"pandas.DataFrame({name})" if isinstance(X, dict) else "a list of rows or an array"
        if isinstance(X, Bunch) and "images" in X:
            rows = f"{name}.images"
        raise TypeError(f"{name} is of type {kind}: pass {rows}.")
    found = _why_not_array(X)
    if found is not None:
        # The remedy makes an array of one image from a picture, or from its file.
        one = f"[np.newaxis], or {_LOADER}([path]).images" if is_picture(type(X)) else ""
        raise TypeError(f"{name} is {found[0]}: pass {found[1].format(name)}{one}.")
    if isinstance(X, list | tuple) or _is_list_of_objects(X):
        _check_items(X, name)
    if isinstance(X, torch.Tensor):
        return X.numpy()
    return np.ma.getdata(X) if isinstance(X, np.ma.MaskedArray) else X


def validate(
    estimator: Any,
    X: Any,
    *,
    reset: bool,
    dtype: Any,
    ensure_min_samples: int = 1,
    of_images: bool = False,
) -> NDArray[Any]:
    """Call scikit-learn's `validate_data` on rows; errors name columns, or images, and the remedy.

    A memory map is read in blocks.
    """
    X, name = plain(X), type(estimator).__name__
    if isinstance(X, list | tuple):
        # `validate_data` below raises this error again, with scikit-learn's message.
        with suppress(ValueError):
            X = np.asarray(X)
    if nw.dependencies.is_into_dataframe(X):
        frame = _frame(X)
        if not frame.columns:
            # Let scikit-learn raise its error about an array without features.
            X = np.empty((len(X), 0))
        elif not reset:
            # Compare the names of columns first: other columns may also have other types, and the
            # error should be about the names.
            validate_data(estimator, X, reset=False, skip_check_array=True)
        _check_columns(frame, name)
    elif isinstance(X, np.ndarray):
        _check_dtype(X, name)
    # NaN and infinity are looked for afterwards: scikit-learn would read a memory map as a whole,
    # and its message names no columns.
    rows = validate_data(
        estimator,
        X,
        reset=reset,
        dtype=dtype,
        ensure_all_finite=False,
        ensure_min_samples=ensure_min_samples,
    )
    try:
        check_finite(rows, name)
    except ValueError:
        names = getattr(estimator, "feature_names_in_", range(rows.shape[1]))
        raise ValueError(_not_finite(rows, names, name, of_images)) from None
    return rows


# Single objects, and lists of them


def _is_list_of_objects(X: Any) -> bool:
    if isinstance(X, np.ndarray):
        return X.ndim == 1 and X.dtype.kind in "OUST"
    is_series = nw.dependencies.is_into_series(X)
    return is_series and not nw.from_native(X, series_only=True).dtype.is_numeric()


def _check_items(X: Iterable[Any], name: str) -> None:
    """Raise an error if lists, and lists inside them, hold objects that are not numbers."""
    level = list(X)
    for axis in range(_MOST_AXES):
        kinds = set(map(type, level))
        if dict in kinds:
            raise TypeError(f"{name} holds dicts: pass pandas.DataFrame({name}).")
        for kind in kinds:
            # Texts in inner lists are cells of a table, which may be numbers such as "1.5".
            if axis and issubclass(kind, str | bytes):
                continue
            for x in level if issubclass(kind, _NOT_ARRAYS) or is_picture(kind) else ():
                if isinstance(x, str | bytes | PathLike):
                    raise TypeError(
                        f"{name} holds paths or other text: if they are paths of images, pass "
                        f"{_LOADER}({'paths' if axis else name}).images."
                    )
                found = _why_not_array(x) if isinstance(x, kind) else None
                if found is not None:
                    stacked = f"np.stack([{found[1].format('x')} for x in {name}])"
                    remedy = f"take {found[1].format('x')} of each" if axis else f"pass {stacked}"
                    if is_picture(kind):
                        remedy += f", or {_LOADER}(paths).images"
                    raise TypeError(f"{name} holds {found[0]}: {remedy}.")
        sizes = {tuple(x.shape) for x in level if hasattr(x, "shape")}
        if not sizes and kinds <= {list, tuple}:
            sizes = {(len(x),) for x in level}
        if len(sizes) > 1:
            a, b, *_ = sorted(sizes)
            files = f" {_LOADER}(paths, size=(height, width)) reads image files in one size."
            raise ValueError(
                f"{name} holds arrays, images or rows of unequal sizes, such as {a} and "
                f"{b}: bring them to one size, and pass np.stack({name})."
                # Rows of a table do not come from image files.
                f"{files if axis or len(a) > 1 else ''}"
            )
        if not level or not kinds <= {list, tuple}:
            return
        level = list(chain.from_iterable(level))


_NOT_ARRAYS = (torch.Tensor, np.ma.MaskedArray, str, bytes, PathLike)


def is_picture(kind: type) -> bool:
    """Return whether objects of a type are images of PIL."""
    return kind.__module__.partition(".")[0] == "PIL"


def _why_not_array(x: Any) -> tuple[str, str] | None:
    """Return why an object is not an array, and what to pass instead of "{}"; None if it is one."""
    pixels = "np.moveaxis(np.asarray({}.convert('RGB')), -1, 0)"
    if isinstance(x, torch.Tensor):
        return _why_not_readable(x)
    if isinstance(x, np.ma.MaskedArray) and x.dtype.names is None and np.ma.is_masked(x):
        hidden = f"a masked array that hides {np.ma.count_masked(x)} of {x.size} values"
        return hidden, "{}.filled(value)"
    if is_picture(type(x)):
        return "a PIL image", pixels
    return None


def _why_not_readable(x: torch.Tensor) -> tuple[str, str] | None:
    # PyTorch decides which tensors NumPy can read; the rest finds out why it refuses one.
    try:
        x.numpy()
    except (RuntimeError, TypeError):
        pass
    else:
        return None
    if x.is_nested:
        return "a nested tensor", "torch.stack of tensors of one size, instead of {}"
    what, remedy = [], "{}.detach().cpu()"
    if x.requires_grad:
        what.append("requires grad")
    if x.device.type != "cpu":
        what.append(f"is on the device {str(x.device)!r}")
    if x.layout != torch.strided:
        what.append("is sparse")
        remedy += ".to_dense()"
    if x.is_quantized:
        what.append("is quantized")
        remedy += ".dequantize()"
    elif not hasattr(np, str(x.dtype).removeprefix("torch.")):
        what.append(f"is of {x.dtype}, which NumPy does not have")
        remedy += ".float()"
    if x.is_conj() or x.is_neg():
        what.append("is a lazy conjugate")
        remedy += ".resolve_conj().resolve_neg()"
    return f"a tensor that {' and '.join(what)}", f"{remedy}.numpy()"


# Tables


def _frame(X: Any) -> nw.DataFrame[Any]:
    try:
        return nw.from_native(X, eager_only=True)
    # The error is about names that are not unique.
    except ValueError as error:
        raise ValueError(
            f"{' '.join(str(error).split())}. Rename the columns of X, so that each has its own "
            "name."
        ) from None


def _check_columns(frame: nw.DataFrame[Any], name: str) -> None:
    """Raise ValueError if the types or the cells of columns are not numbers."""
    problems: dict[str, list[Any]] = {}
    for number, (column, dtype) in enumerate(frame.schema.items()):
        # Missing numbers become NaN, which is looked for later.
        if dtype.is_numeric() or dtype == nw.Boolean:
            continue
        for problem in _problems_of_column(frame[:, number]):
            problems.setdefault(problem, []).append(column)
    _refuse(problems, len(frame.columns), name)


def _problems_of_column(column: nw.Series[Any]) -> set[str]:
    dtype = column.dtype
    if dtype.is_temporal():
        return {"dates or times"}
    if dtype in (nw.Categorical, nw.Enum):
        return {"categories"}
    if dtype.is_nested():
        return {"lists or arrays"}
    native = column.to_native()
    native_dtype = str(getattr(native, "dtype", ""))
    if native_dtype.startswith(("Sparse", "complex")):
        return {"sparse values" if native_dtype[0] == "S" else "complex numbers"}
    return _problems_of_cells(native.to_list() if hasattr(native, "to_list") else column.to_list())


def _problems_of_cells(cells: list[Any]) -> set[str]:
    """Return the kinds of cells that are not numbers; scikit-learn refuses other kinds clearly."""
    problems = set()
    for kind in set(map(type, cells)):
        if kind.__name__ in ("NAType", "NaTType"):
            problems.add("missing values")
        elif issubclass(kind, _DATES) or kind.__name__ == "Period":
            problems.add("dates or times")
        elif issubclass(kind, str | bytes | PathLike) and not all(map(_is_number, cells)):
            problems.add("text")
        elif issubclass(kind, int) and any(abs(n) > _LARGEST for n in cells if type(n) is kind):
            problems.add("integers too large for float64")
    return problems


def _is_number(cell: Any) -> bool:
    # NumPy converts texts such as "1.5" by the same rules as `float`.
    if isinstance(cell, str | bytes):
        try:
            float(cell)
        except ValueError:
            return False
    return not isinstance(cell, PathLike)


def _check_dtype(X: NDArray[Any], name: str) -> None:
    """Raise ValueError if an array does not hold numbers."""
    if X.dtype.names is not None:
        raise ValueError(
            "X is a structured array: pass "
            "numpy.lib.recfunctions.structured_to_unstructured(X), if all fields are numbers."
        )
    if X.dtype.kind == "c":
        raise ValueError(
            "Complex data not supported: pass the parts as columns, np.hstack([X.real, X.imag])."
        )
    problems: dict[str, list[Any]] = {}
    if X.dtype.kind in "mM":
        problems["dates or times"] = list(range(X.shape[-1]))
    elif X.dtype.kind in "OUST" and X.ndim == 2:
        for number, cells in enumerate(X.T.tolist()):
            for problem in _problems_of_cells(cells):
                problems.setdefault(problem, []).append(number)
    _refuse(problems, X.shape[-1] if X.ndim else 1, name)


def _refuse(problems: dict[str, list[Any]], n_columns: int, name: str) -> None:
    found = [
        f"{problem} in {_count(columns, n_columns, 'column')}: {_REMEDIES[problem].format(name)}"
        for problem, columns in sorted(problems.items())
    ]
    if found:
        raise ValueError(f"X must hold numbers, but holds {'; and '.join(found)}.")


def _not_finite(X: NDArray[Any], names: Any, name: str, of_images: bool) -> str:
    """Return an error message that says where rows hold NaN or, without NaN, infinity."""

    def find(is_bad: Any) -> list[int]:
        by_block = [is_bad(block).any(axis=int(of_images)) for block in blocks(X, _BLOCK_ROWS)]
        bad = np.concatenate(by_block) if of_images else np.any(by_block, axis=0)
        return np.flatnonzero(bad).tolist()

    found, what = find(np.isnan), "NaN"
    if not found:
        found, what = find(np.isinf), "infinity"
    if of_images:
        where = _count(found, len(X), "image")
        remedy = "replace it by np.nan_to_num" if what == "NaN" else "clip it by np.clip"
        remedy = f"{remedy}, or leave these images out"
    else:
        where = _count([names[i] for i in found], X.shape[1], "column")
        remedy = "fill it by SimpleImputer" if what == "NaN" else "clip it by np.clip"
        remedy = f"{remedy} before {name}, or leave such rows out"
    shown = "NaN (missing values)" if what == "NaN" else what
    return f"Input X contains {shown} in {where}: {remedy}."


def _count(found: list[Any], n: int, what: str) -> str:
    """Count and name the columns, or images, that were found: "2 of 9 columns ('a', 'c')"."""
    shown = ", ".join(map(repr, found[:_MOST_NAMED]))
    more = ", ..." if len(found) > _MOST_NAMED else ""
    return f"{len(found)} of {n} {what}{'s' * (n != 1)} ({shown}{more})"
