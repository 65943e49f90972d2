"""Exported graphs say what the detectors say, where there is no PyTorch."""

import io
import json
import os
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.datasets import load_digits, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_g2d import AVIDDetector, G2DOutlierDetector, PatchDetector
from sklearn_g2d.avid import (
    AdversarialInpainting,
    CellInpainting,
    CellNetwork,
    MaskedInpainting,
    PatchNet,
    UNet,
)
from sklearn_g2d.datasets import make_puzzles
from sklearn_g2d.errors import UnsupportedObjectError
from sklearn_g2d.export import ClassifierGraph, Resampling, onnx_model, stages_of, to_onnx
from sklearn_g2d.features import (
    ColumnMinMaxScaler,
    GlobalMinMaxScaler,
    NeighborProfile,
    OrientedGradients,
    PretrainedFeatures,
    ResidualPCA,
    SquashingScaler,
)
from sklearn_g2d.g2d import ConvNetwork, NetworkClassifier

# Short training and small networks, for the exporter takes 20 ms for each operation.
FAST = {"classifier": NetworkClassifier(n_members=2, max_steps=30), "random_state": 0}
PAPER = {
    "generator__max_steps": 4,
    "classifier__max_steps": 30,
    "random_state": 0,
}
SMALL_CONVOLUTIONS = {
    "generator__generator_network__channels": 2,
    "generator__critic_network__channels": 2,
    "classifier__network__channels": 2,
}
AVID_TABLE = {"training": CellInpainting(max_steps=20, batch_size=32), "random_state": 0}
AVID_IMAGES = {
    "training": MaskedInpainting(max_steps=60, batch_size=8),
    "inpainter": UNet(channels=4, multipliers=(1, 2), first_skip=0),
    "detector": PatchNet(channels=4, layers=((1, 3, 1), (2, 4, 2))),
    "region_size": 8,
    "precision": "float32",
    "random_state": 0,
}

# Runs exported graphs on rows one by one and together, where none of this is to be had.
OUTSIDE = """
import sys

class Refuse:
    def find_spec(self, name, *args):
        if name.split(".")[0] in ("torch", "sklearn", "scipy", "sklearn_g2d", "onnxscript"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
try:
    import torch
except ImportError:
    pass
else:
    raise AssertionError("torch is here")

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
for path in sys.argv[1:]:
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    X = np.load(path + ".npy")
    together = session.run(None, {"X": X})
    alone = [session.run(None, {"X": row[None]}) for row in X[:3]]
    np.savez(
        path + ".npz",
        **dict(zip(names, together)),
        **{f"{name} alone": np.concatenate(rows) for name, rows in zip(names, zip(*alone))},
    )
"""


@pytest.fixture(scope="module")
def wine():
    """Training rows; new ones, some odd, one far out, and one that was seen in training."""
    X, y = load_wine(return_X_y=True)
    train = X[y == 1][:50]
    return train, np.concatenate([X[y == 1][50:], X[y == 0][:9], 1e6 * X[:1], train[:2]])


@pytest.fixture(scope="module")
def digits():
    images = load_digits().images[:, None]
    return images[:60], images[60:80]


@pytest.fixture(scope="module")
def puzzles():
    digits = load_digits()
    train, test = (
        make_puzzles(
            digits.images[part],
            digits.target[part],
            3,
            n_samples=n,
            grid_shape=(2, 3),
            n_anomalous=n_anomalous,
            random_state=0,
        )[0]
        for part, n, n_anomalous in ((slice(0, 900), 40, 0), (slice(900, None), 12, 1))
    )
    return train, test


def small_network():
    """Features of two layers with grids of different sizes, of images that are resized."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1))
    return PretrainedFeatures(network, layers=["0", "2"], image_size=(32, 40), margin=8)


@pytest.fixture(scope="module")
def exported(wine, digits, puzzles, tmp_path_factory):
    """Detectors, new data, and what onnxruntime makes of these in a process of its own."""
    folder = tmp_path_factory.mktemp("exported")
    names = [f"column {i}" for i in range(13)]
    features = make_pipeline(OrientedGradients(n_cells=(4,)), ResidualPCA())
    cases = {
        "G2D table": (
            G2DOutlierDetector(**FAST).fit(pd.DataFrame(wine[0], columns=names)),
            wine[1],
            "float64",
        ),
        "G2D images": (
            G2DOutlierDetector(features=features, n_neighbors=3, **FAST).fit(digits[0]),
            digits[1].astype(np.uint8),
            "uint8",
        ),
        "AVID table": (AVIDDetector(**AVID_TABLE).fit(wine[0]), wine[1], "float64"),
        "AVID images": (
            AVIDDetector(**AVID_IMAGES).fit(puzzles[0]),
            puzzles[1].astype(np.float32),
            "float32",
        ),
    }
    train, new = (X.reshape(len(X), -1) for X in puzzles)  # rows of pixels
    shape, gradients = puzzles[0].shape[1:], OrientedGradients(n_cells=(6,))
    places = PatchDetector(features=gradients, per_location=True, image_shape=shape, random_state=0)
    cases["places"] = places.fit(train), new, "float64"
    patches = PatchDetector(features=small_network(), per_location=False, random_state=0)
    cases["patches"] = patches.fit(puzzles[0]), puzzles[1].astype(np.float32), "float32"
    cases["AVID table"][0].offset_ = 0.0
    for detector, _, _ in cases.values():
        detector.offset_ += 7e-9  # a term that must not be taken for 0
    paths, printed = [], io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(printed), redirect_stderr(printed):
        warnings.simplefilter("error")
        for way, (detector, X, dtype) in cases.items():
            paths.append(str(folder / way))
            detector.to_onnx(paths[-1], dtype=dtype)
            np.save(paths[-1] + ".npy", X)
    assert printed.getvalue() == ""
    subprocess.run([sys.executable, "-c", OUTSIDE, *paths], check=True)
    return {
        way: (*case[:2], folder / way, np.load(f"{folder / way}.npz"))
        for way, case in cases.items()
    }


ALL_WAYS = pytest.mark.parametrize(
    "way", ["G2D table", "G2D images", "AVID table", "AVID images", "places", "patches"]
)


def frame(X, detector):
    names = getattr(detector, "feature_names_in_", None)
    return X if names is None else pd.DataFrame(X, columns=names)


@ALL_WAYS
def test_scores_without_pytorch(exported, way):
    detector, X, _, found = exported[way]
    X = frame(X, detector)
    for name in ("decision_function", "score_samples", "anomaly_map"):
        assert (name in found) == hasattr(detector, name)
        if name in found:
            expected = getattr(detector, name)(X)
            assert found[name].dtype == np.float64
            assert np.ptp(expected) > 0.1
            atol = 1e-4 if way in ("places", "patches") else 1e-5
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=atol)
    np.testing.assert_array_equal(found["decision_function"] < 0, detector.predict(X) == -1)
    offset = found["score_samples"] - found["decision_function"]
    np.testing.assert_allclose(offset, detector.offset_, rtol=0, atol=1e-12)


@ALL_WAYS
def test_a_row_alone_scores_as_in_company(exported, way):
    found = exported[way][3]
    for name in ("score_samples", "decision_function"):
        np.testing.assert_allclose(found[f"{name} alone"], found[name][:3], rtol=0, atol=1e-6)


@ALL_WAYS
def test_what_a_graph_says_of_itself(exported, way):
    detector, X, path, _ = exported[way]
    model = onnx.load(path)
    (given,) = model.graph.input
    sizes = given.type.tensor_type.shape.dim
    assert given.name == "X"
    assert sizes[0].dim_param == "n_samples"
    assert [size.dim_value for size in sizes[1:]] == list(X.shape[1:])
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["class"] == type(detector).__name__
    names = getattr(detector, "feature_names_in_", None)
    assert json.loads(said["feature_names"]) == (None if names is None else list(names))


# Transformers alone


def wild(X, farthest=1e200):
    """Rows as they are, and some far out, equal to others or nearly so."""
    X = np.asarray(X, dtype=np.float64)
    return np.concatenate([X, 1e6 * X[:2], 0 * X[:1] + farthest, X[:2], X[:1] + 1e-9])


def agree(transformer, X, train, rtol=1e-9, atol=1e-9):
    """Compare `transform` with what onnxruntime makes of the exported module."""
    transformer.fit(train)
    model = onnx_model(stages_of(transformer), X[:3], ["Z"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"X": X})
    expected = transformer.transform(X)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    "transformer",
    [
        SquashingScaler(),
        SquashingScaler(bound=np.inf, common_scale=True),
        SquashingScaler(bound=1e-3),
        ColumnMinMaxScaler(),
        GlobalMinMaxScaler(),
        NeighborProfile(4),
        NeighborProfile(2, "reconstruction"),
        ResidualPCA(3),
        make_pipeline(SquashingScaler(), NeighborProfile(5)),
        make_pipeline(
            ResidualPCA(3),
            "passthrough",
            SquashingScaler(bound=np.inf, common_scale=True),
            NeighborProfile(4, "reconstruction"),
        ),
    ],
    ids=str,
)
def test_transformers_without_pytorch(wine, transformer):
    agree(transformer, wild(wine[1], farthest=1e9), wine[0])


def test_gradients_without_pytorch(digits):
    train, test = (np.concatenate([X, X[:, :, ::-1]], axis=1) for X in digits)
    train, test = (X.reshape(len(X), -1).astype(np.uint8) for X in (train, test))
    gradients = OrientedGradients((2, 8, 8), n_cells=(3,), n_orientations=5)
    agree(gradients, test, train, rtol=0, atol=1e-6)


def traced(transformer, X):
    """What the module that is exported makes of an array, before the exporter."""
    with torch.no_grad():
        return stages_of(transformer)(torch.from_numpy(X)).numpy()


@pytest.mark.parametrize(
    "transformer",
    [
        SquashingScaler(),
        SquashingScaler(bound=np.inf, range_weight=0.0),
        SquashingScaler(bound=0.5, range_weight=1.0),
        SquashingScaler(common_scale=True),
        ColumnMinMaxScaler(),
        GlobalMinMaxScaler(),
        NeighborProfile(),
        NeighborProfile(1),
        NeighborProfile(measure="reconstruction"),
        NeighborProfile(1, "reconstruction"),
        ResidualPCA(1),  # the residual of all components is what rounding leaves of 0
        make_pipeline(ResidualPCA(1), SquashingScaler(), NeighborProfile(7, "reconstruction")),
        make_pipeline(GlobalMinMaxScaler(), NeighborProfile()),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("dtype", "n_features"),
    [("float64", 13), ("float32", 13), ("uint8", 13), ("float64", 2)],  # 2: neighbours by a tree
)
def test_modules_of_transformers(wine, transformer, dtype, n_features):
    scale = 100 / np.abs(wine[0]).max(axis=0)
    train, test = ((X * scale)[:, :n_features] for X in wine)
    if dtype == "float64":
        # All rows are equally far from 1e200, so that no neighbour is the nearest.
        is_mixed = "reconstruction" in str(transformer)
        test = wild(test, farthest=1e9 if is_mixed else 1e200)
    else:
        test = test.clip(0, 255)
    train, test = (np.ascontiguousarray(X, dtype=dtype) for X in (train, test))
    expected = transformer.fit(train).transform(test)
    np.testing.assert_allclose(traced(transformer, test), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("measure", ["distance", "reconstruction"])
def test_modules_of_repeated_rows(wine, measure):
    profile = NeighborProfile(measure=measure).fit(np.repeat(wine[0][:3], 15, axis=0))
    expected = profile.transform(wine[1])
    np.testing.assert_allclose(traced(profile, wine[1]), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "params",
    [{}, {"n_cells": (3, 5, 3), "n_orientations": 1, "layout_weight": 2}, {"layout_weight": 0}],
    ids=str,
)
@pytest.mark.parametrize("n_channels", [1, 3])
def test_modules_of_gradients(params, n_channels):
    X = np.random.default_rng(0).normal(size=(9, n_channels, 17, 12))
    gradients = OrientedGradients(image_shape=X.shape[1:], **params).fit(X)
    new = np.concatenate([X, -1e3 * X[:2], 0 * X[:1], 1e300 * X[:1]]).reshape(13, -1)
    found, expected = traced(gradients, new), gradients.transform(new)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


class Hypotenuse(torch.nn.Module):
    def forward(self, X):
        return torch.hypot(X[:, 0], X[:, 1]), torch.logaddexp(X[:, 0], X[:, 1])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_functions_that_the_exporter_rounds(dtype):
    X = np.random.default_rng(0).normal(size=(50, 2)).astype(dtype)
    X[:4] = [0, 0], [0, -2], [3e18, 4e18], [1e-30, 1e30]
    model = onnx_model(Hypotenuse(), X, ["hypot", "logaddexp"])
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.run(None, {"X": X})
    for values, function in zip(found, (np.hypot, np.logaddexp), strict=True):
        assert values.dtype == dtype
        rtol = 1e-14 if dtype == np.float64 else 1e-6
        np.testing.assert_allclose(values, function(*X.T), rtol=rtol, atol=rtol)


def test_resizing_as_matrix_products():
    def halve(maps):
        return (maps[:, ::2, ::2] + maps[:, 1::2, 1::2]) / 2

    resampling = Resampling(halve, (6, 4), np.float64)
    maps = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 6, 4)))
    expected = (maps[:, ::2] + maps[:, 1::2]) / 2
    expected = (expected[:, :, ::2] + expected[:, :, 1::2]) / 2
    torch.testing.assert_close(resampling(maps), expected)
    assert resampling.n_values == 6


# Detectors, before the exporter, which takes seconds


def check(detector, X, tolerance=1e-5):
    graph = detector._export_module().eval()
    with torch.no_grad():
        found = graph(torch.from_numpy(X))
    for name, values in zip(graph.output_names, found, strict=True):
        expected = getattr(detector, name)(X)
        assert np.ptp(expected) > 0
        atol = tolerance if name == "anomaly_map" else 1e-5
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-9, atol=atol)


@pytest.mark.parametrize(
    "detector",
    [
        G2DOutlierDetector(**FAST),
        G2DOutlierDetector(n_neighbors=1, **FAST),
        G2DOutlierDetector(n_neighbors=0, **FAST),
        G2DOutlierDetector(measure="reconstruction", **FAST),
        G2DOutlierDetector(features=ResidualPCA(2), scaler=GlobalMinMaxScaler(), **FAST),
        G2DOutlierDetector.from_paper("tables", **PAPER),
        G2DOutlierDetector.from_paper("tables", n_neighbors=7, **PAPER),
    ],
    ids=str,
)
@pytest.mark.parametrize("n_features", [2, 13])  # neighbours by a tree, and by a product
def test_graphs_of_tables(wine, detector, n_features):
    train, test = (np.ascontiguousarray(X[:, :n_features]) for X in wine)
    check(detector.fit(train), wild(test))


def test_graphs_of_repeated_rows(wine):
    train = np.repeat(wine[0][:3], 15, axis=0)
    check(G2DOutlierDetector(**FAST).fit(train), wine[1])


@pytest.mark.parametrize(
    ("detector", "n_channels"),
    [
        (G2DOutlierDetector(**FAST), 3),
        (G2DOutlierDetector(n_neighbors=1, **FAST), 1),
        (G2DOutlierDetector(features="passthrough", **FAST), 2),
        (G2DOutlierDetector(features=OrientedGradients(n_orientations=5), **FAST), 1),
        (G2DOutlierDetector.from_paper("images", **PAPER, **SMALL_CONVOLUTIONS), 1),
        (
            G2DOutlierDetector(
                features="passthrough",
                n_neighbors=0,
                classifier=NetworkClassifier(network=ConvNetwork(2), n_members=2, max_steps=3),
                random_state=0,
            ),
            2,
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("as_rows", [False, True], ids=["images", "rows"])
def test_graphs_of_images(digits, detector, n_channels, as_rows):
    rng = np.random.default_rng(0)
    train, test = (
        np.concatenate([X, *(X[rng.permutation(len(X))] for _ in range(n_channels - 1))], axis=1)
        for X in digits
    )
    detector.set_params(image_shape=train.shape[1:])
    if as_rows:
        train, test = (X.reshape(len(X), -1) for X in (train, test))
    test = np.concatenate([test, train[:3], 0 * test[:1], -1e3 * test[:2]])
    check(detector.fit(train), test)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"combination": "inpainter"},
        {"error": "absolute", "top_fraction": 0.5, "inpainter": CellNetwork((8,))},
        {"training": AdversarialInpainting(max_steps=20)},
        {"training": AdversarialInpainting(max_steps=20), "combination": "detector"},
    ],
    ids=str,
)
def test_graphs_of_cells(wine, params):
    check(AVIDDetector(**{**AVID_TABLE, **params}).fit(wine[0]), wine[1])


@pytest.mark.parametrize(
    "params",
    [
        {"normalize_illumination": True},
        {"normalize_illumination": False, "per_location": True, "combination": "detector"},
        {"region_size": 16, "inpainter__channels": 2},
        {"region_size": 7, "combination": "inpainter"},
        {"training": AdversarialInpainting(max_steps=4), "combination": "minimum"},
    ],
    ids=str,
)
def test_graphs_of_maps(puzzles, params):
    train, test = (np.concatenate([X, X[:, :, ::-1]], axis=1)[:, :, :, :23] for X in puzzles)
    # So short a training leaves maps of small deviations, in whose units rounding is large.
    short = {"training": MaskedInpainting(max_steps=4, batch_size=8)}
    detector = AVIDDetector(**AVID_IMAGES).set_params(**short).set_params(**params).fit(train)
    check(detector, np.ascontiguousarray(test), tolerance=2e-4)


def test_large_images_are_reduced():
    images = np.random.default_rng(0).uniform(size=(10, 1, 70, 90)).cumsum(axis=3)
    detector = AVIDDetector(**AVID_IMAGES).set_params(region_size=30, training__max_steps=5)
    detector.fit(images)
    check(detector, images[::-1] + np.sin(images).round(), tolerance=1e-3)


# What cannot be exported


class Halve(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return X / 2


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"features": Halve()}, 'Halve .* before the detector .* features="passthrough"'),
        ({"features": np.tanh}, "tanh is not a transformer of this package"),
        ({"features": make_pipeline(ResidualPCA(2), StandardScaler())}, "StandardScaler is not"),
        ({"scaler": StandardScaler()}, "StandardScaler is not a transformer of this package"),
        ({"classifier": LogisticRegression()}, "A classifier of your own"),
    ],
    ids=["transformer", "function", "pipeline", "scaler", "classifier"],
)
def test_objects_of_the_user_are_refused(wine, tmp_path, params, message):
    detector = G2DOutlierDetector(**{**FAST, **params}).fit(wine[0])
    with pytest.raises(UnsupportedObjectError, match=message):
        detector.to_onnx(tmp_path / "graph.onnx")
    assert not os.listdir(tmp_path)


def test_unfitted_and_odd_dtypes(exported, tmp_path):
    for detector in (G2DOutlierDetector(), AVIDDetector()):
        with pytest.raises(NotFittedError):
            detector.to_onnx(tmp_path / "graph.onnx")
    with pytest.raises(ValueError, match="dtype must be one of"):
        exported["G2D table"][0].to_onnx(tmp_path / "graph.onnx", dtype=np.int16)


def test_estimators_without_a_graph(tmp_path):
    scaler = StandardScaler().fit([[0.0], [1.0]])
    with pytest.raises(UnsupportedObjectError, match="A StandardScaler cannot be exported"):
        to_onnx(scaler, tmp_path / "graph.onnx")


def test_a_missing_extra_is_named(exported, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'sklearn_g2d\[onnx\]'"):
        exported["G2D table"][0].to_onnx(tmp_path / "graph.onnx")


def test_rounding_is_warned_of(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(ClassifierGraph, "rounds", True)
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: 1 / 0)
    with pytest.warns(UserWarning, match="scores in bfloat16"), pytest.raises(ZeroDivisionError):
        exported["G2D table"][0].to_onnx(tmp_path / "graph.onnx")
