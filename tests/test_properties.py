"""Whatever array comes in: a finite answer of the right shape, or an error that says why not.

Every property is tried on a few arrays by default, and under the marker "slow" on so many that each
public method gets more than 2,000.
"""

import copy
import functools
import re
import tempfile
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.base import clone

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import CellInpainting, MaskedInpainting, PatchNet, UNet
from sklearn_g2d.features import (
    ColumnMinMaxScaler,
    GlobalMinMaxScaler,
    NeighborProfile,
    OrientedGradients,
    ResidualPCA,
    SquashingScaler,
)
from sklearn_g2d.g2d import NetworkClassifier, WassersteinGAN

# Frames are judged beside their arrays, which have no names.
pytestmark = pytest.mark.filterwarnings("ignore:X .* feature names")


def amounts(many):
    """Try a property on three arrays by default."""
    slow = pytest.param(many, marks=pytest.mark.slow)
    return pytest.mark.parametrize("n_cases", [3, slow], ids=["few", "many"])


IMAGE_SHAPE = (1, 8, 10)
N_COLUMNS = 4

SHORT_CLASSIFIER = NetworkClassifier(n_members=2, max_steps=3)
SHORT_PAPER = {"generator__max_steps": 2, "classifier__max_steps": 3}
SHORT_TRAINING = {"max_steps": 2, "batch_size": 4}


@dataclass(frozen=True)
class Kind:
    """A detector, and the least side of the images that it takes; 0 if it is one of tables."""

    detector: Any
    least_side: int = 0

    def new(self):
        return clone(self.detector).set_params(random_state=0)


KINDS = {
    "G2D-table": Kind(G2DOutlierDetector(classifier=SHORT_CLASSIFIER)),
    "G2D-table-trained": Kind(
        G2DOutlierDetector(
            generator=WassersteinGAN(max_steps=2, n_members=2), classifier=SHORT_CLASSIFIER
        )
    ),
    "G2D-table-paper": Kind(G2DOutlierDetector.from_paper("tables", **SHORT_PAPER)),
    "G2D-images": Kind(G2DOutlierDetector(classifier=SHORT_CLASSIFIER), least_side=8),
    "G2D-images-paper": Kind(
        G2DOutlierDetector.from_paper(
            "images",
            **SHORT_PAPER,
            generator__generator_network__channels=2,
            generator__critic_network__channels=2,
            classifier__network__channels=2,
        ),
        least_side=2,
    ),
    "AVID-table": Kind(AVIDDetector(training=CellInpainting(**SHORT_TRAINING))),
    "AVID-table-paper": Kind(
        AVIDDetector.from_paper("tables", training__max_steps=2, training__batch_size=4)
    ),
    "AVID-images": Kind(
        AVIDDetector(
            training=MaskedInpainting(**SHORT_TRAINING), inpainter=UNet(2), detector=PatchNet(2)
        ),
        least_side=1,
    ),
    "AVID-images-paper": Kind(
        AVIDDetector.from_paper(
            "images",
            training__max_steps=2,
            training__batch_size=4,
            inpainter__channels=2,
            detector__channels=2,
        ),
        least_side=1,
    ),
}
OF_ALL_KINDS = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


# Arrays


def every_second(X):
    return np.repeat(X, 2, axis=0)[::2]


def twice_reversed(X):
    return X[..., ::-1].copy()[..., ::-1]


def read_only(X):
    X = X.copy()
    X.setflags(write=False)
    return X


def swapped_bytes(X):
    return X.astype(X.dtype.newbyteorder())


def memory_map(X):
    if not X.size or X.dtype.hasobject:
        return X
    with tempfile.TemporaryFile() as file:
        mapped = np.memmap(file, X.dtype, "w+", shape=X.shape)
    mapped[:] = X
    return mapped


def frame(X):
    return pd.DataFrame(X) if X.ndim == 2 and X.dtype.kind in "biufO" else X


def frame_of(package):
    """Other frames of what is a pandas frame of plain numbers; dask's have several parts."""

    def convert(X):
        if X.ndim != 2 or X.dtype.kind not in "biuf" or X.dtype in (np.float16, np.longdouble):
            return X
        given = pd.DataFrame(
            X.astype(X.dtype.newbyteorder("=")), columns=[*map(str, range(X.shape[1]))]
        )
        if package == "nullable":
            return given.convert_dtypes()
        module = pytest.importorskip({"dask": "dask.dataframe"}.get(package, package))
        if package == "polars":
            return module.DataFrame({name: given[name].to_numpy() for name in given})
        if package == "pyarrow":
            return module.Table.from_pandas(given, preserve_index=False)
        return module.from_pandas(given, npartitions=2) if X.size else given

    convert.__name__ = package
    return convert


def tensor(X):
    try:
        return torch.from_numpy(X.astype(X.dtype.newbyteorder("=")))
    except TypeError:  # of a type that PyTorch does not have
        return X


def unmasked(X):
    return np.ma.array(X, mask=np.zeros(X.shape, dtype=bool))


EQUAL_ARRAYS = [
    np.ascontiguousarray,
    np.asfortranarray,
    every_second,
    twice_reversed,
    read_only,
    swapped_bytes,
    memory_map,
    frame,
    *map(frame_of, ("nullable", "polars", "pyarrow", "dask")),
    tensor,
    unmasked,
    np.ndarray.tolist,
]


@st.composite
def ordinary(draw, shape):
    """Numbers of one magnitude, some rows alike, some cells wild or missing."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    X = rng.normal(size=shape) + draw(st.sampled_from([0, 0, 1, 1e6]))
    X *= 10.0 ** draw(st.sampled_from([0, 0, 2, -30, 30, -300, 150, 300]))
    if len(X):
        X = X[rng.integers(draw(st.integers(1, len(X))), size=len(X))]
    for value in draw(st.lists(st.floats(), max_size=2)) if X.size else []:
        X.flat[rng.integers(X.size)] = value
    dtype = draw(st.sampled_from("dddfegBhl?O"))
    with np.errstate(all="ignore"):
        return X.astype(dtype)


def arrays(shape):
    """Arrays of a shape: ordinary ones, and whatever else NumPy may hold."""
    anything = hnp.scalar_dtypes().flatmap(lambda dtype: hnp.arrays(dtype, shape))
    return st.one_of(ordinary(shape), ordinary(shape), ordinary(shape), anything)


N_SAMPLES = st.integers(0, 5) | st.integers(0, 50)
COLUMNS = st.tuples(st.integers(0, 8))
IMAGES = st.tuples(st.sampled_from([1, 3]), st.integers(1, 12), st.integers(1, 12))


def samples(shape_of_one, n_samples=N_SAMPLES):
    shapes = st.tuples(n_samples, shape_of_one).map(lambda shape: (shape[0], *shape[1]))
    return shapes.flatmap(arrays)


def is_acceptable(X):
    """Whether a detector has to take these values; None if it may do as it likes."""
    if X.dtype.kind not in "biufc":
        return None
    with np.errstate(over="ignore"):
        return X.dtype.kind != "c" and bool(X.size) and bool(np.isfinite(X.astype(float)).all())


# What is documented, and says what is wrong with the array.
REFUSALS = re.compile(
    "NaN|infinity|Complex data|minimum of|Expected 2D|onvert|dtype='numeric'|promoted|"
    "number, not|setting an array element|must hold numbers|structured array|paths? or other text|"
    "too large to compute|features, but|image shape|at least . x . pixels|channels last|"
    "at least one array or dtype is required"  # scikit-learn's, of a frame without columns
)


class RefusedError(Exception):
    """An array was refused in the documented manner."""


def contents(X):
    if isinstance(X, list):
        return repr(X)
    values = np.asarray(X)
    return repr(values.tolist()) if values.dtype == object else values.tobytes()


def outcome(method, X, *, must_take):
    """Result of a method that leaves its argument as it was; or `RefusedError`."""
    before = contents(X)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "false_alarm_rate=.* needs at least")  # of few rows
            warnings.filterwarnings("ignore", "All training samples are alike")
            warnings.filterwarnings("ignore", ".* rows (share|are over|are not learned)")
            warnings.filterwarnings("ignore", "X .* feature names")  # of frames beside arrays
            warnings.filterwarnings("ignore", "invalid value encountered in reduce")  # inf - inf
            result = method(X)
    except (ValueError, TypeError) as error:
        if must_take or not REFUSALS.search(str(error)):
            raise
        raise RefusedError from error
    assert must_take is not False, "took what it should have refused"
    assert contents(X) == before
    return result


def for_many(n_cases, *strategies):
    """Run the decorated function now, on that many drawn arguments."""

    def run(check):
        drawn = settings(
            max_examples=n_cases,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],  # to shrink an array takes longer than to understand it
            suppress_health_check=list(HealthCheck),
        )(given(*strategies)(check))
        drawn()

    return run


# Detectors


def is_right(answer, dtype, shape):
    assert answer.dtype == dtype
    assert answer.shape == shape
    assert np.isfinite(answer).all()


@amounts(300)
@OF_ALL_KINDS
def test_fit(kind, n_cases):
    of_one = IMAGES if kind.least_side else COLUMNS

    @for_many(n_cases, samples(of_one), st.sampled_from(EQUAL_ARRAYS))
    def check(X, lay_out):
        must_take = is_acceptable(X)
        if must_take and np.abs(X.astype(float)).max() > 1e150:
            must_take = None  # the variance may be infinite
        if len(X) < 2 or min(X.shape[2:], default=9) < kind.least_side:
            must_take = False
        if kind.least_side and X.shape[3] < min(X.shape[1:3]):
            must_take = False  # its channels seem to stand last
        detector = kind.new()
        before = vars(detector).copy()
        try:
            labels = outcome(detector.fit_predict, lay_out(X), must_take=must_take)
        except RefusedError:
            assert vars(detector) == before
            return
        is_right(labels, np.int64, (len(X),))
        is_right(detector.score_samples(X), np.float64, (len(X),))
        assert np.isfinite(detector.offset_)


@functools.cache
def fitted(name):
    kind = KINDS[name]
    shape = IMAGE_SHAPE if kind.least_side else (N_COLUMNS,)
    X = np.random.default_rng(0).normal(size=(30, *shape))
    return kind.new().fit(X), shape


def answers(kind, n, shape):
    """Methods that take an array, with the dtype and shape of what they return."""
    yield "score_samples", float, (n,)
    yield "decision_function", float, (n,)
    yield "predict", int, (n,)
    yield "p_values", float, (n,)
    if isinstance(kind.detector, G2DOutlierDetector):
        yield "predict_proba", float, (n, 2)
    else:
        cells = shape[-2:]
        yield "anomaly_map", float, (n, *cells)
        yield "predict_mask", bool, (n, *cells)
        yield "region_scores", float, None
        yield "inpaint", float, (n, *shape)


@amounts(550)
@pytest.mark.parametrize("name", KINDS)
def test_score(name, n_cases):
    kind = KINDS[name]
    detector, shape = fitted(name)
    right = st.just(shape)
    odd = IMAGES if kind.least_side else COLUMNS
    n_samples = st.integers(0, 4 if kind.least_side else 50)

    @for_many(
        n_cases,
        samples(st.one_of(right, right, right, odd), n_samples),
        st.sampled_from(EQUAL_ARRAYS),
    )
    def check(X, lay_out):
        must_take = is_acceptable(X)
        if X.shape[1:] != shape or not len(X):
            must_take = False
        given = lay_out(X)
        takes = set()
        for method, dtype, answer_shape in answers(kind, len(X), shape):
            try:
                answer = outcome(getattr(detector, method), given, must_take=must_take)
                takes.add(True)
            except RefusedError:
                takes.add(False)
                continue
            is_right(answer, dtype, answer_shape or answer.shape)
        assert len(takes) == 1
        calibrated = copy.copy(detector)
        try:
            outcome(lambda x: calibrated.calibrate(x, 0.5), given, must_take=must_take)
        except RefusedError:
            assert takes == {False}
            return
        assert takes == {True}
        assert calibrated.predict(given).mean() >= 0
        scores = detector.score_samples(given)
        reverse = detector.score_samples(X[::-1])[::-1]
        np.testing.assert_allclose(reverse, scores, rtol=1e-12, atol=1e-7)
        alone = np.concatenate([detector.score_samples(x[None]) for x in X[:4]])
        np.testing.assert_allclose(alone, scores[:4], rtol=1e-12, atol=1e-7)
        plain = detector.score_samples(X.astype(float))
        np.testing.assert_allclose(plain, scores, rtol=1e-12, atol=1e-7)


# Samples


@amounts(700)
@pytest.mark.parametrize(
    "name", ["G2D-table", "G2D-table-trained", "G2D-table-paper", "G2D-images-paper"]
)
def test_sample(name, n_cases):
    detector, shape = fitted(name)
    seeds = st.none() | st.integers(0, 2**32 - 1)

    @for_many(n_cases, st.integers(1, 50), seeds)
    def check(n, seed):
        outliers = detector.sample_outliers(n, random_state=seed)
        is_right(outliers, np.float64, (n, *shape))
        np.testing.assert_array_equal(detector.sample_outliers(n, random_state=seed), outliers)
        if name == "G2D-table":
            with pytest.raises(ValueError, match="sample_normals needs a WassersteinGAN"):
                detector.sample_normals(n, random_state=seed)
            return
        try:
            normals = detector.sample_normals(n, random_state=seed)
        except RuntimeError as error:
            if "Fit with a larger max_steps" not in str(error):
                raise
        else:
            is_right(normals, np.float64, (n, *shape))
            assert (detector.predict(normals) == 1).all()


@amounts(2000)
def test_sample_refuses_bad_counts(n_cases):
    detector, _ = fitted("G2D-table-trained")
    anything = st.integers(max_value=0) | st.floats() | st.none() | st.text()

    @for_many(n_cases, anything)
    def check(n):
        for method in (detector.sample_outliers, detector.sample_normals):
            with pytest.raises(ValueError, match="n_samples must be an integer of at least 1"):
                method(n)


# Transformers


TRANSFORMERS = [
    SquashingScaler(),
    SquashingScaler(bound=np.inf, range_weight=0.0),
    SquashingScaler(common_scale=True),
    ColumnMinMaxScaler(),
    GlobalMinMaxScaler(),
    NeighborProfile(3),
    NeighborProfile(3, measure="reconstruction"),
    ResidualPCA(),
    OrientedGradients(),
]


@amounts(2000)
@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=repr)
def test_transform(transformer, n_cases):
    takes_images = isinstance(transformer, OrientedGradients)
    of_one = IMAGES if takes_images else COLUMNS
    least = 2 if isinstance(transformer, NeighborProfile | ResidualPCA) else 1

    @for_many(n_cases, samples(of_one), st.data(), st.sampled_from(EQUAL_ARRAYS))
    def check(X, data, lay_out):
        must_take = is_acceptable(X)
        if must_take and np.abs(X.astype(float)).max() > 1e150:
            must_take = None
        if len(X) < least or (takes_images and min(X.shape[2:]) < 8):
            must_take = False
        new = clone(transformer)
        try:
            rows = outcome(new.fit_transform, lay_out(X), must_take=must_take)
        except RefusedError:
            return
        n_columns = rows.shape[1]
        is_right(rows, np.float32 if takes_images else np.float64, (len(X), n_columns))
        X_new = data.draw(samples(st.just(X.shape[1:])))
        try:
            rows = outcome(new.transform, lay_out(X_new), must_take=is_acceptable(X_new))
        except RefusedError:
            return
        is_right(rows, rows.dtype, (len(X_new), n_columns))
        if hasattr(new, "inverse_transform"):
            back = new.inverse_transform(rows)
            is_right(back, np.float64, (len(X_new), X[0].size))
