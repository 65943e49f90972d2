"""Exported graphs say what the detectors say, where there is no PyTorch."""

import io
import json
import os
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.datasets import load_digits, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

from sklearn_g2d import AVIDDetector, G2DOutlierDetector, _graphs
from sklearn_g2d.avid import _models as _players
from sklearn_g2d.avid import _recipes as avid_recipes
from sklearn_g2d.datasets import make_puzzles
from sklearn_g2d.errors import UnsupportedObjectError
from sklearn_g2d.features import OrientedGradients
from sklearn_g2d.g2d import _recipes

FAST = {"max_steps": 4, "n_estimators": 2, "random_state": 0}
AVID_TABLE = {"max_steps": 20, "batch_size": 32, "random_state": 0}
AVID_IMAGES = {
    "max_steps": 60,
    "batch_size": 8,
    "width": 4,
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


@pytest.fixture(scope="module", autouse=True)
def _short():
    """Short training, batches and networks: the exporter takes 20 ms for each operation."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_players, "_SCORING_PIXELS", 8 * 24 * 24)
        for recipes in (_recipes.G2D_RECIPES, _recipes.G2D_IMAGE_RECIPES):
            for name, recipe in recipes.items():
                monkeypatch.setitem(recipes, name, replace(recipe, classifier_steps=30))
        shallow = replace(
            avid_recipes.AVID_IMAGE_RECIPES["default"],
            inpainter_widths=(1, 2),
            first_skip=0,
            detector_layers=((1, 3, 1), (2, 4, 2)),
        )
        monkeypatch.setitem(avid_recipes.AVID_IMAGE_RECIPES, "default", shallow)
        yield


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
            n_irregular=n_irregular,
            random_state=0,
        )[0]
        for part, n, n_irregular in ((slice(0, 900), 40, 0), (slice(900, None), 12, 1))
    )
    return train, test


@pytest.fixture(scope="module")
def exported(wine, digits, puzzles, tmp_path_factory):
    """Detectors, new data, and what onnxruntime makes of these in a process of its own."""
    folder = tmp_path_factory.mktemp("exported")
    names = [f"column {i}" for i in range(13)]
    gradients = OrientedGradients(n_cells=(4,))
    cases = {
        "G2D table": (
            G2DOutlierDetector(**FAST).fit(pd.DataFrame(wine[0], columns=names)),
            wine[1],
            "float64",
        ),
        "G2D images": (
            G2DOutlierDetector(features=gradients, n_neighbors=3, **FAST).fit(digits[0]),
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


ALL_WAYS = pytest.mark.parametrize("way", ["G2D table", "G2D images", "AVID table", "AVID images"])


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
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-5)
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


# The same comparisons before the exporter, which takes seconds


def check(detector, X, tolerance=1e-5):
    graph = _graphs.graph_of(detector)
    with torch.no_grad():
        found = graph(torch.from_numpy(X))
    for name, values in zip(graph.output_names, found, strict=True):
        expected = getattr(detector, name)(X)
        assert np.ptp(expected) > 0
        atol = tolerance if name == "anomaly_map" else 1e-5
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-9, atol=atol)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"n_neighbors": 1},
        {"n_neighbors": 0},
        {"recipe": "paper"},
        {"recipe": "paper", "n_neighbors": 7},
    ],
    ids=str,
)
@pytest.mark.parametrize("n_features", [2, 13])  # neighbours by a tree, and by a product
def test_graphs_of_tables(wine, params, n_features):
    train, test = (np.ascontiguousarray(X[:, :n_features]) for X in wine)
    test = np.concatenate([test, np.full((1, n_features), 1e200), test[:1] + 1e-9])
    check(G2DOutlierDetector(**{**FAST, **params}).fit(train), test)


def test_graphs_of_repeated_rows(wine):
    train = np.repeat(wine[0][:3], 15, axis=0)
    check(G2DOutlierDetector(**FAST).fit(train), wine[1])


@pytest.mark.parametrize(
    ("params", "n_channels"),
    [
        ({}, 3),
        ({"n_neighbors": 1}, 1),
        ({"features": "raw"}, 2),
        ({"features": OrientedGradients(n_orientations=5, layout_weight=0)}, 1),
        ({"recipe": "paper", "width": 2}, 1),
        ({"image_shape": "given"}, 1),
    ],
    ids=str,
)
def test_graphs_of_images(digits, params, n_channels):
    rng = np.random.default_rng(0)
    train, test = (
        np.concatenate([X, *(X[rng.permutation(len(X))] for _ in range(n_channels - 1))], axis=1)
        for X in digits
    )
    if "image_shape" in params:
        params = {"image_shape": train.shape[1:]}
        train, test = (X.reshape(len(X), -1) for X in (train, test))
    test = np.concatenate([test, train[:3], 0 * test[:1], -1e3 * test[:2]])
    check(G2DOutlierDetector(**{**FAST, **params}).fit(train), test)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"map": "inpainter"},
        {"corruption": "gaussian", "n_estimators": 2},
        {"recipe": "paper"},
        {"recipe": "paper", "map": "detector"},
    ],
    ids=str,
)
def test_graphs_of_cells(wine, params):
    check(AVIDDetector(**{**AVID_TABLE, **params}).fit(wine[0]), wine[1])


@pytest.mark.parametrize(
    "params",
    [
        {"even_light": True},
        {"n_estimators": 2, "even_light": False, "per_location": True, "map": "detector"},
        {"region_size": 16, "width": 2},
        {"region_size": 7, "map": "inpainter"},
        {"recipe": "paper"},
        {"corruption": "gaussian"},
    ],
    ids=str,
)
def test_graphs_of_maps(puzzles, params):
    train, test = (np.concatenate([X, X[:, :, ::-1]], axis=1)[:, :, :, :23] for X in puzzles)
    # So short a training leaves maps of small deviations, in whose units rounding is large.
    detector = AVIDDetector(**{**AVID_IMAGES, "max_steps": 4, **params}).fit(train)
    check(detector, np.ascontiguousarray(test), tolerance=2e-4)


def test_large_images_are_reduced():
    images = np.random.default_rng(0).uniform(size=(10, 1, 70, 90)).cumsum(axis=3)
    detector = AVIDDetector(**{**AVID_IMAGES, "region_size": 30, "max_steps": 5}).fit(images)
    assert detector._players[0].canvas.region_size < 30
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
        ({"features": Halve()}, 'in front of the detector yourself, fit it with features="raw"'),
        ({"features": np.tanh}, "features that are your own cannot be exported"),
        ({"classifier": LogisticRegression()}, "Fit with classifier=None"),
    ],
    ids=["transformer", "function", "classifier"],
)
def test_objects_of_the_user_are_refused(wine, tmp_path, params, message):
    detector = G2DOutlierDetector(**params, **FAST).fit(wine[0])
    with pytest.raises(UnsupportedObjectError, match=message):
        detector.to_onnx(tmp_path / "graph.onnx")
    assert not os.listdir(tmp_path)


def test_unfitted_and_odd_dtypes(exported, tmp_path):
    for detector in (G2DOutlierDetector(), AVIDDetector()):
        with pytest.raises(NotFittedError):
            detector.to_onnx(tmp_path / "graph.onnx")
    with pytest.raises(ValueError, match="dtype must be one of"):
        exported["G2D table"][0].to_onnx(tmp_path / "graph.onnx", dtype=np.int16)


def test_a_missing_extra_is_named(exported, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'sklearn_g2d\[onnx\]'"):
        exported["G2D table"][0].to_onnx(tmp_path / "graph.onnx")


def test_rounding_is_warned_of(puzzles, tmp_path, monkeypatch):
    detector = AVIDDetector(**{**AVID_IMAGES, "max_steps": 1, "width": 2}).fit(puzzles[0])
    detector._players[0].bfloat16 = True
    monkeypatch.setattr(_graphs, "computes_in_bfloat16", lambda device: True)
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: 1 / 0)
    with pytest.warns(UserWarning, match="scores in bfloat16"), pytest.raises(ZeroDivisionError):
        detector.to_onnx(tmp_path / "graph.onnx")
