"""What users hand over instead of arrays: taken with the array's scores, or an error that helps."""

import datetime
import decimal
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from torch import nn

from sklearn_g2d import AVIDDetector, G2DOutlierDetector, PatchDetector
from sklearn_g2d.avid import CellInpainting, MaskedInpainting, PatchNet, UNet
from sklearn_g2d.features import (
    GlobalMinMaxScaler,
    NeighborProfile,
    OrientedGradients,
    PretrainedFeatures,
)
from sklearn_g2d.g2d import NetworkClassifier
from sklearn_g2d.video import ClipDetector, FixedCameraDetector, FramePatches, MotionChannels

SHORT = NetworkClassifier(max_steps=2, n_members=2)
OF_ROWS = {
    "G2D": G2DOutlierDetector(classifier=SHORT, random_state=0),
    "AVID": AVIDDetector(training=CellInpainting(max_steps=1), random_state=0),
    "scaler": GlobalMinMaxScaler(),
    "profile": NeighborProfile(3),
}
OF_IMAGES = {
    "G2D": G2DOutlierDetector(classifier=SHORT, random_state=0),
    "AVID": AVIDDetector(
        training=MaskedInpainting(max_steps=1),
        inpainter=UNet(2),
        detector=PatchNet(2),
        random_state=0,
    ),
    "gradients": OrientedGradients(),
    "patches": PatchDetector(
        features=PretrainedFeatures(nn.Conv2d(3, 4, 3, stride=4), image_size=32), random_state=0
    ),
}
OF_CLIPS = {
    "clips": ClipDetector(
        G2DOutlierDetector(classifier=SHORT), patch_size=8, overlap=0, random_state=0
    ),
    "camera": FixedCameraDetector(
        25, features=PretrainedFeatures(nn.Conv2d(3, 4, 3, stride=4), image_size=32), random_state=0
    ),
    "motion": MotionChannels(),
    "patches": FramePatches(8, 0),
}
NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def numbers():
    return np.random.default_rng(0).integers(0, 9, size=(40, 3)).astype(float)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(12, 1, 16, 16))


def answers_of(estimator, X, fitted_on=None):
    """Scores, or what a transformer gives, of an estimator that was fitted on `X` or others."""
    fitted = clone(estimator).fit(X if fitted_on is None else fitted_on)
    return fitted, getattr(fitted, "score_samples", getattr(fitted, "transform", None))(X)


def refused(estimator, X, message, fitted_on):
    """Both `fit` and scoring raise an error of one line that says so."""
    for method in (clone(estimator).fit, lambda X: answers_of(estimator, X, fitted_on)):
        with pytest.raises((TypeError, ValueError), match=message) as caught:
            method(X)
        assert len(str(caught.value)) < 400
        assert "\n" not in str(caught.value)


# Tables


def of_pyarrow(X, kind="Table", convert=lambda column: column):
    pyarrow = pytest.importorskip("pyarrow")
    columns = [pyarrow.array(convert(column)) for column in X.T]
    return getattr(pyarrow, kind).from_arrays(columns, names=NAMES)


def of_polars(X):
    return pytest.importorskip("polars").DataFrame(X, schema=NAMES)


def of_dask(X):
    dataframe = pytest.importorskip("dask.dataframe")
    return dataframe.from_pandas(pd.DataFrame(X, columns=NAMES), npartitions=3)


def of_pandas(dtype):
    if "pyarrow" in dtype:
        pytest.importorskip("pyarrow")
    return lambda X: pd.DataFrame(X, columns=NAMES).astype(dtype)


def decimals(column):
    return [decimal.Decimal(int(value)) for value in column]


TABLES = {
    "pandas": of_pandas("float64"),
    "Int64": of_pandas("Int64"),
    "Float64": of_pandas("Float64"),
    "object": of_pandas("object"),
    "pandas of pyarrow": lambda X: of_pandas("int64[pyarrow]")(X),
    "mixed": lambda X: of_pandas("Int64")(X).astype({"b": "float32", "c": object}),
    "pandas of decimals": lambda X: pd.DataFrame(X, columns=NAMES).apply(decimals),
    "polars": of_polars,
    "polars of integers": lambda X: of_polars(X.astype(np.int16)),
    "Table": of_pyarrow,
    "Table of decimals": lambda X: of_pyarrow(X, convert=decimals),
    "RecordBatch": lambda X: of_pyarrow(X, "RecordBatch"),
    "dask": of_dask,
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", OF_ROWS)
def test_tables_are_taken_as_their_array(numbers, name, table):
    X = TABLES[table](numbers)
    _, expected = answers_of(OF_ROWS[name], numbers)
    fitted, found = answers_of(OF_ROWS[name], X)
    np.testing.assert_array_equal(found, expected)
    assert type(found) is np.ndarray
    assert fitted.feature_names_in_.tolist() == NAMES
    IsolationForest(n_estimators=2).fit(X).score_samples(X)  # the yardstick takes it, too


@pytest.mark.parametrize(
    "as_table",
    [
        lambda X: pd.DataFrame(X, columns=NAMES),
        lambda X: pd.DataFrame(X, columns=NAMES).astype("boolean"),
        lambda X: pd.DataFrame(X, columns=NAMES).assign(a=X[:, 0].astype(float)),
        of_polars,
        of_pyarrow,
    ],
    ids=["pandas", "nullable", "mixed", "polars", "pyarrow"],
)
def test_truth_values_are_0_and_1(numbers, as_table):
    flags = numbers > 4
    _, expected = answers_of(OF_ROWS["G2D"], flags.astype(float))
    np.testing.assert_array_equal(answers_of(OF_ROWS["G2D"], as_table(flags))[1], expected)


@pytest.mark.parametrize("table", ["pandas", "polars", "Table", "RecordBatch", "dask"])
def test_another_order_of_columns_is_scikit_learns_error(numbers, table):
    X = TABLES[table](numbers)
    detector = clone(OF_ROWS["G2D"]).fit(X)
    shuffled = X.select(["b", "a", "c"]) if hasattr(X, "select") else X[["b", "a", "c"]]
    with pytest.raises(ValueError, match="must be in the same order as they were in fit"):
        detector.score_samples(shuffled)
    with pytest.raises(ValueError, match="feature names should match"):
        detector.score_samples(pd.DataFrame({"x": ["text"]}))


def column_of(values):
    return lambda X: pd.DataFrame({"b": values, "a": X[: len(values), 0]})


def with_polars(make):
    return lambda X: make(pytest.importorskip("polars"))


def with_pyarrow(make):
    return lambda X: make(pytest.importorskip("pyarrow"))


DAY, DATES = datetime.date(2020, 1, 1), pd.date_range("2020", periods=4)
TEXT = (
    r"text in 1 of 2 columns \('b'\): encode it by OneHotEncoder\(sparse_output=False\) or "
    "OrdinalEncoder before {}"
)
CATEGORIES = r"categories in 1 of \d columns? \('b'\): encode them by OneHotEncoder"
TIMES = r"dates or times in 1 of \d columns? \('b'\): turn them into numbers before {}"
MISSING = r"NaN .missing values. in 1 of 2 columns \('b'\): fill it by SimpleImputer before {}"

REFUSED_TABLES = {
    "text": (column_of(["x", "y", "1", "2"]), TEXT),
    "bytes": (column_of([b"x", b"y"]), TEXT),
    "text and numbers": (column_of([1, "y"]), TEXT),
    "paths": (column_of([Path("x"), Path("y")]), TEXT),
    "text of polars": (with_polars(lambda pl: pl.DataFrame({"b": ["x", "y"], "a": [1, 2]})), TEXT),
    "text of pyarrow": (with_pyarrow(lambda pa: pa.table({"b": ["x", "y"], "a": [1, 2]})), TEXT),
    "text of dask": (
        lambda X: of_dask(X)[["b", "a"]].assign(b="x"),
        TEXT,
    ),
    "dates": (column_of(DATES), TIMES),
    "dates alone": (lambda X: pd.DataFrame({"b": DATES}), TIMES),
    "dates with a time zone": (column_of(DATES.tz_localize("UTC")), TIMES),
    "periods": (column_of(DATES.to_period("D")), TIMES),
    "durations": (column_of(DATES - DATES[0]), TIMES),
    "dates as objects": (column_of([DAY] * 4), TIMES),
    "NumPy's dates as objects": (
        column_of(np.array([np.datetime64("2020"), 1.0, 2.0], dtype=object)),
        TIMES,
    ),
    "dates of polars": (with_polars(lambda pl: pl.DataFrame({"b": [DAY] * 4})), TIMES),
    "durations of polars": (with_polars(lambda pl: pl.DataFrame({"b": [DAY - DAY]})), TIMES),
    "dates of pyarrow": (with_pyarrow(lambda pa: pa.table({"b": [DAY] * 4, "a": [1] * 4})), TIMES),
    "categories": (column_of(pd.Categorical(["x", "y"])), CATEGORIES),
    "categories that are numbers": (column_of(pd.Categorical([1, 2])), CATEGORIES),
    "Categorical": (
        with_polars(lambda pl: pl.DataFrame({"b": pl.Series(["x"], dtype=pl.Categorical)})),
        CATEGORIES,
    ),
    "Enum": (
        with_polars(lambda pl: pl.DataFrame({"b": pl.Series(["x"], dtype=pl.Enum(["x"]))})),
        CATEGORIES,
    ),
    "dictionary": (
        with_pyarrow(lambda pa: pa.table({"b": pa.array(["x", "y"]).dictionary_encode()})),
        CATEGORIES,
    ),
    "NaN": (column_of([1.0, np.nan]), MISSING),
    "None": (column_of(np.array([1, None], dtype=object)), MISSING),
    "NA": (column_of(pd.array([1, None], dtype="Int64")), MISSING),
    "NA of truth values": (column_of(pd.array([True, None], dtype="boolean")), MISSING),
    "NA as an object": (
        column_of(np.array([1, pd.NA], dtype=object)),
        r"missing values in 1 of 2 columns \('b'\): fill them by SimpleImputer",
    ),
    "null of polars": (with_polars(lambda pl: pl.DataFrame({"b": [1, None], "a": 1})), MISSING),
    "null of pyarrow": (
        with_pyarrow(lambda pa: pa.table({"b": [1, None], "a": [1, 2]})),
        MISSING,
    ),
    "nothing but null": (
        with_pyarrow(lambda pa: pa.table({"b": pa.nulls(2), "a": [1, 2]})),
        MISSING,
    ),
    "infinity": (
        column_of([1.0, np.inf]),
        r"contains infinity in 1 of 2 columns \('b'\): clip it by np.clip before {}",
    ),
    "too large": (
        column_of([1, -(10**400)]),
        r"too large for float64 in 1 of 2 columns \('b'\): clip them by np.clip before {}",
    ),
    "many": (
        lambda X: pd.DataFrame(np.full((2, 9), "x"), columns=list("abcdefghi")),
        r"text in 9 of 9 columns \('a', 'b', 'c', 'd', 'e', \.\.\.\)",
    ),
    "two kinds": (
        lambda X: pd.DataFrame({"when": DATES, "who": "x", "n": 1}),
        r"dates .* columns \('when'\): .*; and text in 1 of 3 columns \('who'\)",
    ),
    "lists": (
        with_polars(lambda pl: pl.DataFrame({"b": [[1.0, 2.0]] * 3})),
        "lists or arrays in 1 of 1 column .*: give every number a column",
    ),
    "sparse": (
        lambda X: pd.DataFrame(X).astype(pd.SparseDtype(float, 0.0)),
        r"sparse values in 3 of 3 columns .*: pass X.sparse.to_dense\(\)",
    ),
    "equal names": (
        lambda X: pd.DataFrame(X, columns=["a", "a", "b"]),
        "'a' 2 times. Rename the columns",
    ),
    "complex numbers": (
        column_of([1j, 2j]),
        r"complex numbers in 1 of 2 columns \('b'\): pass their real and imaginary parts",
    ),
    "lazy": (with_polars(lambda pl: pl.LazyFrame({"a": [1, 2]})), r"LazyFrame.*pass X.collect\(\)"),
    "no columns": (lambda X: pd.DataFrame(index=range(4)), r"0 feature\(s\)"),
    "nothing": (lambda X: pd.DataFrame(), r"0 sample\(s\)"),
}


@pytest.mark.parametrize("table", REFUSED_TABLES)
def test_tables_that_are_not_numbers_are_refused(numbers, table):
    make, message = REFUSED_TABLES[table]
    X = make(numbers)
    for name in ("G2D", "scaler"):
        estimator = OF_ROWS[name]
        with pytest.raises(ValueError if table != "lazy" else TypeError) as caught:
            clone(estimator).fit(X)
        assert re.search(message.format(type(estimator).__name__), str(caught.value))


def test_names_that_are_not_text_stay_scikit_learns(numbers):
    _, expected = answers_of(OF_ROWS["G2D"], numbers)
    for names in ([1, 2, 3], pd.MultiIndex.from_product([["a"], [1, 2, 3]])):
        fitted, found = answers_of(OF_ROWS["G2D"], pd.DataFrame(numbers, columns=names))
        np.testing.assert_array_equal(found, expected)
        assert not hasattr(fitted, "feature_names_in_")
    with pytest.raises(TypeError, match="only supported if all input features have string names"):
        clone(OF_ROWS["G2D"]).fit(pd.DataFrame(numbers, columns=["a", 1, "b"]))


# Arrays of rows


def big_endian_map(X, path):
    mapped = np.memmap(path, ">f8", "w+", shape=X.shape)
    mapped[:] = X
    return mapped


@pytest.mark.parametrize(
    "make",
    [
        torch.tensor,
        lambda X: torch.tensor(X).T.contiguous().T,
        lambda X: list(torch.tensor(X)),
        lambda X: [list(row) for row in torch.tensor(X)],
        lambda X: list(X),
        lambda X: [tuple(row) for row in X],
        lambda X: X.astype(np.longdouble),
        lambda X: X.astype(">i2"),
        lambda X: X.astype(object),
        lambda X: X.astype(int).astype(object),
        lambda X: np.ma.array(X),
        lambda X: np.ma.array(X, mask=np.zeros(X.shape, dtype=bool)),
        lambda X: memoryview(X),
        lambda X: pytest.importorskip("dask.array").from_array(X, chunks=(10, 3)),
    ],
)
def test_what_holds_an_array_is_taken_as_it(numbers, make):
    _, expected = answers_of(OF_ROWS["G2D"], numbers)
    np.testing.assert_array_equal(answers_of(OF_ROWS["G2D"], make(numbers))[1], expected)


def test_a_memory_map_of_the_other_byte_order(numbers, tmp_path):
    mapped = big_endian_map(numbers, tmp_path / "rows")
    _, expected = answers_of(OF_ROWS["G2D"], numbers)
    np.testing.assert_array_equal(answers_of(OF_ROWS["G2D"], mapped)[1], expected)


def quantized(X):
    return torch.quantize_per_tensor(torch.tensor(X).float(), 0.1, 0, torch.quint8)


OF_TENSORS = {
    "leaf": (
        lambda X: torch.tensor(X, requires_grad=True),
        r"requires grad: pass X.detach\(\).cpu\(\).numpy\(\)",
    ),
    "computed": (lambda X: 2 * torch.tensor(X, requires_grad=True), r"X.detach\(\)"),
    "parameter": (lambda X: torch.nn.Parameter(torch.tensor(X)), r"X.detach\(\)"),
    "bfloat16": (
        lambda X: torch.tensor(X).bfloat16(),
        r"of torch.bfloat16.*: pass X.detach\(\).cpu\(\).float\(\).numpy\(\)",
    ),
    "device": (lambda X: torch.tensor(X, device="meta"), r"on the device 'meta': .*\.cpu\(\)"),
    "all of it": (
        lambda X: torch.tensor(X, device="meta", dtype=torch.bfloat16, requires_grad=True),
        r"requires grad and is on the device 'meta' and is of torch.bfloat16.*\.float\(\)",
    ),
    "list": (
        lambda X: list(torch.tensor(X, requires_grad=True)),
        r"pass np.stack\(\[x.detach\(\).cpu\(\).numpy\(\) for x in X\]\)",
    ),
    "list of float8": (lambda X: list(torch.tensor(X).to(torch.float8_e5m2)), r"x\.detach.*float"),
}
OF_ARRAYS = {
    "masked": (
        lambda X: np.ma.array(X, mask=X.mean() < X),
        r"a masked array that hides \d+ of \d+ values: pass X.filled\(value\)",
    ),
    "masked integers": (
        lambda X: np.ma.array(X.astype(int), mask=X.mean() < X),
        r"X.filled\(value\)",
    ),
    "list of masked": (lambda X: list(np.ma.array(X, mask=X.mean() < X)), r"filled\(value\)"),
    "dates": (lambda X: np.full(X.shape, np.datetime64("2020")), "dates or times"),
    "durations": (lambda X: np.full(X.shape, np.timedelta64(1, "D")), "dates or times"),
    "complex": (lambda X: X + 0j, r"Complex data not supported.*\[X.real, X.imag\]"),
    "structured": (
        lambda X: np.zeros(X.shape, dtype=[("a", float)]),
        r"structured array: pass .*structured_to_unstructured\(X\)",
    ),
    "generator": (lambda X: iter(X), "pass a list of rows or an array"),
    "dict": (lambda X: {"a": X}, r"pass pandas.DataFrame\(X\)"),
    "list of dicts": (lambda X: [{"a": 1.0}] * 3, r"pass pandas.DataFrame\(X\)"),
    "nothing": (lambda X: None, "pass a list of rows or an array"),
    "path": (
        lambda X: Path("rows.csv"),
        r"Read the file first: .* images by sklearn_g2d.datasets.load_images,",
    ),
}
OF_ROWS_ONLY = {
    "quantized": (quantized, r"X\..*dequantize\(\).numpy\(\)"),
    "sparse tensor": (lambda X: torch.tensor(X).to_sparse(), r"to_dense\(\).numpy\(\)"),
    "lazy conjugate": (lambda X: torch.tensor(X + 1j).conj().imag, r"resolve_neg\(\)"),
    "cells": (
        lambda X: [list(row) for row in torch.tensor(X, requires_grad=True)],
        r"take x.detach\(\).*of each",
    ),
    "masked cells": (lambda X: [[1.0, np.ma.masked, 2.0]] * 3, r"take x.filled\(value\) of each"),
    "unequal rows": (
        lambda X: [[1, 2], [1]],
        r"unequal sizes, such as \(1,\) and \(2,\).*np.stack\(X\)\.$",
    ),
    "too large": (
        lambda X: [[1, 10**400], [0.5, 1]],
        r"integers too large for float64 in 1 of 2 columns \(1\): clip",
    ),
    "sparse": (sparse.csr_array, r"X is sparse: pass X.toarray\(\)"),
    "keys": (sparse.dok_array, r"X is sparse: pass X.toarray\(\)"),
    "matrix": (np.matrix, "np.matrix is not supported"),
}


@pytest.mark.filterwarnings("ignore:.*(quantize|matrix)")  # of PyTorch and NumPy
@pytest.mark.parametrize("given", [*OF_TENSORS, *OF_ARRAYS, *OF_ROWS_ONLY])
def test_arrays_that_would_be_misread_are_refused(numbers, given):
    make, message = (OF_TENSORS | OF_ARRAYS | OF_ROWS_ONLY)[given]
    for name in ("G2D", "scaler"):
        refused(OF_ROWS[name], make(numbers), message, numbers)


def test_columns_of_an_array_are_named_by_number(numbers):
    X = numbers.copy()
    X[3, 1] = np.nan
    for name in ("AVID", "profile"):
        message = r"NaN .missing values. in 1 of 3 columns \(1\): fill it by SimpleImputer"
        refused(OF_ROWS[name], X, message, numbers)


# Images


def as_pictures(X):
    image = pytest.importorskip("PIL.Image")
    return [image.fromarray((x[0] > 0).astype(np.uint8)) for x in X]


def unequal(X):
    return [x[:, : 10 + i % 2] for i, x in enumerate(X)]


def with_nan(X):
    X = X.copy()
    X[7, 0, 3, 3] = np.nan
    return X


LOADER = "sklearn_g2d.datasets.load_images"
UNEQUAL = (
    r"unequal sizes, such as \(1, 10, 16\) and \(1, 11, 16\): bring them to one size.* "
    rf"{LOADER}\(paths, size=\(height, width\)\) reads image files"
)
PICTURES = (
    r"PIL image: pass np.stack\(\[np.moveaxis\(np.asarray\(x.convert\('RGB'\)\), -1, 0\) for "
    rf"x in .*\]\), or {LOADER}\(paths\).images\.$"
)
PATHS = rf"holds paths .*: if they are paths of images, pass {LOADER}\(X\).images\.$"
OF_IMAGES_ONLY = {
    "unequal": (unequal, UNEQUAL),
    "unequal tensors": (lambda X: unequal(torch.tensor(X)), UNEQUAL),
    "unequal lists": (lambda X: [x.tolist() for x in unequal(X)], f"unequal sizes.* {LOADER}"),
    "PIL": (as_pictures, PICTURES),
    "one of PIL": (
        lambda X: as_pictures(X)[0],
        rf"X is a PIL image: pass .*\[np.newaxis\], or {LOADER}\(\[path\]\).images\.$",
    ),
    "cells of PIL": (lambda X: pd.DataFrame({"a": as_pictures(X)}), r"X\['a'\] holds a PIL"),
    "cells of tensors": (lambda X: pd.DataFrame({"a": list(torch.tensor(X))}), "np.stack"),
    "paths": (lambda X: ["a.png", "b.png"], PATHS),
    "paths of pathlib": (lambda X: (Path("a.png"), Path("b.png")), PATHS),
    "array of paths": (lambda X: np.array(["a.png", "b.png"]), PATHS),
    "series of paths": (lambda X: pd.Series(["a.png", "b.png"]), PATHS),
    "masked, without channels": (
        lambda X: np.ma.array(X[:, 0], mask=X[:, 0] > 0),
        r"X.filled\(value\)",
    ),
    "NaN": (with_nan, r"NaN .missing values. in 1 of 12 images \(7\): replace it by np.nan_to_num"),
}


@pytest.mark.parametrize("given", [*OF_TENSORS, *OF_ARRAYS, *OF_IMAGES_ONLY])
def test_images_that_would_be_misread_are_refused(images, given):
    make, message = (OF_TENSORS | OF_ARRAYS | OF_IMAGES_ONLY)[given]
    for estimator in (OF_IMAGES["G2D"], OF_IMAGES["gradients"]):
        refused(estimator, make(images), message, images)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_tensors_and_unmasked_arrays_of_images_are_taken(images, name):
    _, expected = answers_of(OF_IMAGES[name], images)
    tensor, masked = torch.tensor(images), np.ma.array(images, mask=False)
    for X in (tensor, list(tensor), masked, list(images), list(masked)):
        np.testing.assert_array_equal(answers_of(OF_IMAGES[name], X)[1], expected)


@pytest.mark.parametrize("name", OF_CLIPS)
def test_clips_are_looked_at_one_by_one(images, name):
    tensor, masked = torch.tensor(images), np.ma.array(images, mask=images > 1)
    grad = torch.tensor(images, requires_grad=True)
    _, expected = answers_of(OF_CLIPS[name], images)
    np.testing.assert_array_equal(answers_of(OF_CLIPS[name], tensor)[1], expected)
    refused(OF_CLIPS[name], grad, r"pass X.detach\(\)", images)
    refused(OF_CLIPS[name], masked, r"pass X.filled\(value\)", images)
    if name == "patches":  # which takes no list
        return
    np.testing.assert_array_equal(answers_of(OF_CLIPS[name], [tensor])[1], expected)
    refused(OF_CLIPS[name], [images, grad], r"pass X\[1\].detach\(\)", images)
    refused(OF_CLIPS[name], list(masked), r"pass X\[0\].filled\(value\)", images)
    refused(OF_CLIPS[name], as_pictures(images), PICTURES, images)
    refused(OF_CLIPS[name], ["a.mp4"], r"X\[0\] is a path.* sklearn_g2d.video.read_frames", images)


def test_frames_of_a_stream(images):
    detector = clone(OF_CLIPS["clips"]).fit(images)
    scores = [score for score, _ in detector.stream(torch.tensor(images))]
    np.testing.assert_array_equal(scores, [score for score, _ in detector.stream(images)])
    with pytest.raises(TypeError, match=r"Frame 0 is a masked array"):
        next(detector.stream([np.ma.array(images[0], mask=images[0] > 1)]))


def test_every_method_refuses_alike(images, numbers):
    masked = np.ma.array(numbers, mask=numbers > 7)
    g2d, avid = (clone(OF_ROWS[name]).fit(numbers) for name in ("G2D", "AVID"))
    methods = ["score_samples", "decision_function", "predict", "p_values", "calibrate"]
    more = [(g2d, "predict_proba")] + [
        (avid, name) for name in ("anomaly_map", "predict_mask", "region_scores", "inpaint")
    ]
    for detector, name in [(d, name) for d in (g2d, avid) for name in methods] + more:
        with pytest.raises(TypeError, match="masked array"):
            getattr(detector, name)(masked)
    with pytest.raises(TypeError, match="masked array"):
        clone(OF_ROWS["scaler"]).fit(numbers).inverse_transform(masked)
