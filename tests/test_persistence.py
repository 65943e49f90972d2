"""Files of detectors: what they keep, what they refuse, what they survive."""

import copy
import json
import os
import pickle
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors
import skops.io
import torch
from safetensors.numpy import save_file
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.callback import ProgressBar
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler

from sklearn_g2d import AVIDDetector, G2DOutlierDetector, _encoding, persistence
from sklearn_g2d.avid import _models as _players
from sklearn_g2d.errors import ModelFileError, UnsupportedObjectError
from sklearn_g2d.g2d import _recipes
from sklearn_g2d.utils import files as _files

FAST = {"max_steps": 4, "n_estimators": 2, "random_state": 0}
AVID_TABLE = {"max_steps": 3, "batch_size": 16, "random_state": 0}
AVID_IMAGES = {"max_steps": 2, "batch_size": 4, "width": 2, "region_size": 12, "random_state": 0}

WAYS = {
    "G2D table": (G2DOutlierDetector, FAST, False),
    "G2D paper table": (G2DOutlierDetector, {**FAST, "recipe": "paper"}, False),
    "G2D images": (G2DOutlierDetector, FAST, True),
    "G2D paper images": (
        G2DOutlierDetector,
        {"max_steps": 2, "recipe": "paper", "width": 2, "random_state": 0},
        True,
    ),
    "AVID table": (AVIDDetector, AVID_TABLE, False),
    "AVID paper table": (AVIDDetector, {**AVID_TABLE, "recipe": "paper"}, False),
    "AVID images": (AVIDDetector, {**AVID_IMAGES, "n_estimators": 2}, True),
    "AVID paper images": (AVIDDetector, {**AVID_IMAGES, "recipe": "paper", "width": 4}, True),
}
ALL_WAYS = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(scope="module", autouse=True)
def _short():
    """Neither long training nor batches of a hundred images, to which a single one is filled up."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_players, "_SCORING_PIXELS", 8 * 24 * 24)
        for recipes in (_recipes.G2D_RECIPES, _recipes.G2D_IMAGE_RECIPES):
            for name, recipe in recipes.items():
                monkeypatch.setitem(recipes, name, replace(recipe, classifier_steps=15))
        yield


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(12, 1, 16, 16)) + np.arange(16) % 4
    return {False: rng.normal(size=(40, 3)), True: images}


@pytest.fixture(scope="module")
def fit(data):
    """Fit one of `WAYS`, once; what it gives is not to be changed."""
    fitted = {}

    def fit_once(way):
        if way not in fitted:
            detector_class, params, of_images = WAYS[way]
            fitted[way] = detector_class(**params).fit(data[of_images]), data[of_images]
        return fitted[way]

    return fit_once


@pytest.fixture(scope="module")
def saved(fit, tmp_path_factory):
    """A small file, and where the bytes of its header end."""
    path = tmp_path_factory.mktemp("saved") / "detector.safetensors"
    fit("AVID images")[0].save(path)
    content = path.read_bytes()
    return path, 8 + int.from_bytes(content[:8], "little")


def outputs(detector, X):
    """Everything that a detector says, in arrays."""
    said = [detector.score_samples(X), detector.predict(X), detector.p_values(X)]
    if isinstance(detector, AVIDDetector):
        said += [detector.anomaly_map(X), detector.predict_mask(X), detector.inpaint(X)]
    elif not (detector.image_shape_ and detector.recipe == "default"):
        said += [detector.sample_outliers(5, random_state=0)]
    return said


def assert_same(found, expected, X):
    assert type(found) is type(expected)
    assert found.get_params() == expected.get_params()
    assert vars(found).keys() == vars(expected).keys()
    for name, value in vars(expected).items():
        assert type(getattr(found, name)) is type(value)
    for a, b in zip(outputs(found, X), outputs(expected, X), strict=True):
        np.testing.assert_array_equal(a, b)


# What a file keeps


@ALL_WAYS
def test_every_bit_is_kept(fit, tmp_path, way):
    detector, X = fit(way)
    detector.save(tmp_path / "detector")
    loaded = type(detector).load(tmp_path / "detector")
    assert_same(loaded, detector, X)
    assert_same(persistence.load(str(tmp_path / "detector")), detector, X)
    # What has been loaded trains on like what was saved.
    loaded.set_params(warm_start=True).fit(X)
    continued = copy.deepcopy(detector).set_params(warm_start=True).fit(X)
    assert loaded.n_iter_ == 2 * detector.n_iter_
    assert_same(loaded, continued, X)


@ALL_WAYS
def test_skops_keeps_every_bit(fit, way):
    detector, X = fit(way)
    stored = skops.io.dumps(detector)
    untrusted = skops.io.get_untrusted_types(data=stored)
    assert not [name for name in untrusted if "torch" in name]
    assert_same(skops.io.loads(stored, trusted=untrusted), detector, X)


def test_names_of_columns(data, tmp_path):
    names = ["length", "width", "größe"]
    train = pd.DataFrame(data[False], columns=names)
    detector = G2DOutlierDetector(**FAST).fit(train)
    detector.save(tmp_path / "detector")
    loaded = G2DOutlierDetector.load(tmp_path / "detector")
    np.testing.assert_array_equal(loaded.feature_names_in_, detector.feature_names_in_)
    assert loaded.feature_names_in_.dtype == object
    with pytest.raises(ValueError, match="feature names should match"):
        loaded.predict(train[names[::-1]])


def test_odd_parameters(data, tmp_path):
    detector = G2DOutlierDetector(
        contamination=np.float32(0.1),
        image_shape=[1, 1, np.int64(3)],
        features="raw",
        max_steps=np.int64(2),
        n_estimators=2,
        random_state=np.random.RandomState(3),
    ).fit(data[False])
    detector.save(tmp_path / "detector")
    loaded = G2DOutlierDetector.load(tmp_path / "detector")
    params, expected = loaded.get_params(), detector.get_params()
    draws = [p.pop("random_state").random_sample(700) for p in (params, expected)]
    np.testing.assert_array_equal(*draws)
    assert params == expected
    assert {k: type(v) for k, v in params.items()} == {k: type(v) for k, v in expected.items()}


@pytest.mark.parametrize(
    "features", [PCA(2), StandardScaler(), MinMaxScaler(), RobustScaler()], ids=str
)
def test_scikit_learns_transformers_and_linear_classifiers(data, tmp_path, features):
    detector = G2DOutlierDetector(features=features, classifier=LogisticRegression(), **FAST)
    detector.fit(data[False]).save(tmp_path / "detector")
    loaded = G2DOutlierDetector.load(tmp_path / "detector")
    for a, b in zip(outputs(loaded, data[False]), outputs(detector, data[False]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert loaded.get_params()["classifier__C"] == 1


def test_calibration_and_callbacks(fit, tmp_path):
    detector, X = fit("G2D table")
    calibrated = copy.deepcopy(detector).calibrate(X, false_alarm_rate=0.2)
    calibrated.set_callbacks(ProgressBar())
    calibrated.save(tmp_path / "detector")
    loaded = G2DOutlierDetector.load(tmp_path / "detector")
    assert loaded.offset_ == calibrated.offset_ != detector.offset_
    np.testing.assert_array_equal(loaded.p_values(X), calibrated.p_values(X))
    assert not hasattr(loaded, "_skl_callbacks")  # they are no part of a model


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -3,
        2**70,
        0.1,
        float("inf"),
        -float("inf"),
        "ü",
        (1, (2.5, "a"), []),
        {"a": [None, {"b": ()}], "kind": "array"},
        np.float64(0.1),
        np.str_("a"),
        np.arange(6.0).reshape(2, 3),
        np.arange(6.0).reshape(2, 3).T,
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(2, 0, 1),
        np.arange(10)[::-2],
        np.array(1.5, dtype=np.float32),
        np.zeros((0, 3), dtype=bool),
        np.arange(3, dtype=">i4"),
        np.array(["a", "bc"]),
        np.array([["a"], ["bc"]], dtype=object),
    ],
    ids=repr,
)
def test_values(value):
    encoder = _encoding.Encoder()
    node = json.loads(json.dumps(encoder.encode([value], "place"), allow_nan=False))
    arrays = {name: array.copy() for name, array in encoder.arrays.items()}
    (found,) = _encoding.Decoder(arrays).decode(node)
    assert type(found) is type(value)
    np.testing.assert_equal(found, value)
    if isinstance(value, np.ndarray):
        assert found.dtype.newbyteorder("=") == value.dtype.newbyteorder("=")
        assert found.shape == value.shape
        if value.flags.forc:
            assert found.flags.f_contiguous == value.flags.f_contiguous
            assert found.flags.c_contiguous == value.flags.c_contiguous


def test_shared_arrays_are_stored_once():
    array = np.arange(4.0)
    encoder = _encoding.Encoder()
    encoder.encode({"a": array, "b": [array], "c": array.copy()}, "state")
    assert sorted(encoder.arrays) == ["state.a", "state.c"]


def test_what_a_file_says_of_itself(saved):
    with safetensors.safe_open(saved[0], framework="numpy") as file:
        said = file.metadata()
    assert said["class"] == "AVIDDetector"
    assert json.loads(said["parameters"])["region_size"] == 12
    assert json.loads(said["feature_names"]) is None
    assert json.loads(said["versions"])["torch"] == torch.__version__


# What cannot be saved


class Halve(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return X / 2


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"features": Halve()}, r'features is Halve.*in front of the detector.*features="raw"'),
        ({"features": np.tanh}, "features is tanh.*in front of the detector"),
        ({"classifier": RandomForestClassifier(3)}, "classifier is RandomForestClassifier.*joblib"),
        (
            {"classifier": LogisticRegression(class_weight={0: 1, 1: 2})},
            r"classifier\.class_weight is dict.*joblib",
        ),
        ({"snapshot_selection": lambda s: s}, r"set_params\(snapshot_selection=None\)"),
    ],
    ids=["transformer", "function", "forest", "nested", "selection"],
)
def test_objects_of_the_user_are_refused(data, tmp_path, params, message):
    detector = G2DOutlierDetector(**params, **FAST).fit(data[False])
    path = tmp_path / "detector"
    path.write_bytes(b"before")
    with pytest.raises(UnsupportedObjectError, match=message):
        detector.save(path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["detector"]


def test_the_remedy_for_a_selection_helps(data, tmp_path):
    detector = G2DOutlierDetector(snapshot_selection=lambda s: s, **FAST).fit(data[False])
    detector.set_params(snapshot_selection=None).save(tmp_path / "detector")
    loaded = G2DOutlierDetector.load(tmp_path / "detector")
    assert [s.step for s in loaded.snapshots_] == [s.step for s in detector.snapshots_]


def test_fitted_members_are_refused_after_the_parameter_is_gone(data, tmp_path):
    detector = G2DOutlierDetector(classifier=RandomForestClassifier(3), **FAST).fit(data[False])
    with pytest.raises(UnsupportedObjectError, match=r"_classifiers\.members\[0\] is RandomF"):
        detector.set_params(classifier=None).save(tmp_path / "detector")


def test_other_classes_and_unfitted_detectors_are_refused(fit, tmp_path):
    class Mine(G2DOutlierDetector):
        pass

    mine = Mine()
    mine.__dict__.update(vars(fit("G2D table")[0]))
    with pytest.raises(UnsupportedObjectError, match="Mine is not a class of this package"):
        mine.save(tmp_path / "detector")
    for detector in (G2DOutlierDetector(), AVIDDetector()):
        with pytest.raises(NotFittedError):
            detector.save(tmp_path / "detector")
    assert not os.listdir(tmp_path)


# What cannot be loaded


def test_a_file_of_another_class(saved):
    with pytest.raises(ModelFileError, match=r"holds an AVIDDetector.*call AVIDDetector\.load"):
        G2DOutlierDetector.load(saved[0])


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        AVIDDetector.load(tmp_path / "none")
    with pytest.raises((IsADirectoryError, PermissionError)):
        AVIDDetector.load(tmp_path)


def test_any_flipped_bit_is_found(saved, tmp_path):
    path, header_end = saved
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    places = [
        *range(8),
        *rng.integers(8, header_end, size=150),
        *rng.integers(header_end, len(content), size=50),
        len(content) - 1,
    ]
    broken = tmp_path / "broken"
    for place in places:
        bit = 1 << int(rng.integers(8))
        content[place] ^= bit
        broken.write_bytes(content)
        with pytest.raises(ModelFileError):
            persistence.load(broken)
        content[place] ^= bit
    broken.write_bytes(content)
    persistence.load(broken)


def test_truncated_and_overlong_files(saved, tmp_path):
    path, header_end = saved
    content = path.read_bytes()
    ends = [0, 1, 7, 8, 9, header_end // 2, header_end, len(content) // 2, len(content) - 1]
    for piece in [*(content[:end] for end in ends), content + b"\0", content + content]:
        (tmp_path / "broken").write_bytes(piece)
        with pytest.raises(ModelFileError, match=r"broken' is not a file of a detector, or it is"):
            persistence.load(tmp_path / "broken")


def test_a_huge_file_is_not_read(saved, tmp_path):
    for content in (saved[0].read_bytes(), b""):
        (tmp_path / "huge").write_bytes(content)
        os.truncate(tmp_path / "huge", 2**36)  # bytes, which take no place on the disk
        with pytest.raises(ModelFileError, match="is not a file of a detector"):
            persistence.load(tmp_path / "huge")


def test_foreign_files(fit, tmp_path):
    for content in (
        b"just some text, which is longer than eight bytes",
        pickle.dumps(fit("G2D table")[0]),
        np.random.default_rng(0).bytes(10_000),
        (2**62).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"[" * 100,
        skops.io.dumps(fit("G2D table")[0]),
    ):
        (tmp_path / "foreign").write_bytes(content)
        with pytest.raises(ModelFileError, match="is not a file of a detector"):
            persistence.load(tmp_path / "foreign")
    save_file({"x": np.zeros(3)}, tmp_path / "foreign", {"format": "pt"})
    with pytest.raises(ModelFileError, match="is a file of tensors, but not of a detector"):
        persistence.load(tmp_path / "foreign")


def forge(source, target, **changes):
    """Write a file with other metadata and a checksum that is right."""
    with safetensors.safe_open(source, framework="numpy") as file:
        metadata = {**file.metadata(), **changes}
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata["sha256"] = _files.checksum(metadata, arrays)
    save_file(arrays, target, metadata)


def test_names_in_a_file_reach_nothing_but_the_listed_classes(saved, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("something was executed")

    for module, name in ((pickle, "loads"), (pickle, "load"), (os, "system"), (torch, "load")):
        monkeypatch.setattr(module, name, fail)
    forged = tmp_path / "forged"
    empty = {"kind": "dict", "items": {}}
    for changes in (
        {"class": "system"},
        {"class": "BaseDetector"},
        {"state": json.dumps({"x": {"kind": "object", "class": "os.system", "state": {}}})},
        {"state": json.dumps({"x": {"kind": "object", "class": "SklearnClassifiers"}})},
        {"state": json.dumps({"x": {"kind": "__import__", "class": "os"}})},
        {"state": json.dumps({"x": {"kind": "array", "name": "none"}})},
        {"state": json.dumps({"x": {"kind": "object", "class": "UNet", "state": empty}})},
        {"state": "{}"},
        {"state": "[" * 100_000 + "]" * 100_000},
        {"state": "["},
        {"parameters": json.dumps({"no_such_parameter": 1})},
    ):
        forge(saved[0], forged, **changes)
        with pytest.raises(ModelFileError, match=r"It was written by sklearn_g2d \d"):
            persistence.load(forged)
    forge(saved[0], forged)
    persistence.load(forged)


def test_networks_are_not_larger_than_their_weights(saved, fit, tmp_path):
    with safetensors.safe_open(saved[0], framework="numpy") as file:
        state = json.loads(file.metadata()["state"])
    config = state["_players"][0]["state"]["inpainter"]["state"]["config"]["items"]
    for widths in ([10**9, 2], [4096, 4096, 4096, 4096]):
        config["widths"] = {"kind": "tuple", "items": widths}
        forge(saved[0], tmp_path / "forged", state=json.dumps(state))
        with pytest.raises(ModelFileError, match="cannot rebuild"):
            persistence.load(tmp_path / "forged")
    # Those that pass that check take no memory before the weights are found not to fit.
    network = fit("G2D table")[0]._generator.critic
    state = network.__getstate__()
    sizes = (3, sum(w.size for w in state["weights"].values()), 10**4, 1)
    with pytest.raises(RuntimeError, match="size mismatch"):
        _encoding.rebuild(type(network), {**state, "config": {**state["config"], "sizes": sizes}})


# Versions


@pytest.mark.parametrize(
    ("version", "needed"), [(99, "sklearn_g2d>=9.8.7,"), (0, "sklearn_g2d==9.8.7,")]
)
def test_other_formats_say_which_version_to_use(saved, tmp_path, version, needed):
    forge(
        saved[0],
        tmp_path / "other",
        format_version=str(version),
        versions=json.dumps({"sklearn_g2d": "9.8.7"}),
    )
    with pytest.raises(ModelFileError, match=f"written by sklearn_g2d 9.8.7 in .*{needed}"):
        persistence.load(tmp_path / "other")


FILES = sorted((Path(__file__).parent / "saved").glob("*.safetensors"))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.InconsistentVersionWarning")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_of_all_formats_load(path):
    expected = json.loads(path.with_suffix(".json").read_text())
    X = np.sin(np.arange(np.prod(expected["shape"]))).reshape(expected["shape"])
    scores = persistence.load(path).score_samples(X)
    np.testing.assert_allclose(scores, expected["score_samples"], rtol=1e-4)


def test_there_are_files_of_the_current_format():
    assert {f"{name}_{_files.FORMAT}" for name in persistence._DETECTORS} <= {
        path.stem for path in FILES
    }


# Crashes


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file(saved, fit, tmp_path, monkeypatch, function):
    path = tmp_path / "detector"
    shutil.copy(saved[0], path)

    def fail(*args):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, function, fail)
        with pytest.raises(OSError, match="no space left"):
            fit("AVID table")[0].save(path)
    assert os.listdir(tmp_path) == ["detector"]
    assert path.read_bytes() == saved[0].read_bytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("function", ["fsync", "replace", "close"])
def test_a_kill_leaves_a_whole_file(saved, fit, tmp_path, function):
    path = tmp_path / "detector"
    shutil.copy(saved[0], path)
    child = os.fork()
    if child == 0:
        setattr(os, function, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
        fit("AVID images")[0].save(path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert_same(persistence.load(path), *fit("AVID images"))
    fit("AVID table")[0].save(path)  # what was left behind is not in the way
    assert_same(persistence.load(path), *fit("AVID table"))


def test_links_and_permissions_are_kept_in_order(fit, tmp_path):
    detector, _ = fit("AVID table")
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "folder" / "detector")
    detector.save(link)
    assert link.is_symlink()
    assert os.listdir(tmp_path / "folder") == ["detector"]
    (tmp_path / "plain").write_bytes(b"")
    assert link.stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(FileNotFoundError):
        detector.save(tmp_path / "none" / "detector")
