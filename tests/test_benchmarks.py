"""The benchmarks' protocol, signs and files, on data made here."""

import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits
from sklearn.linear_model import LinearRegression
from torch import nn

from benchmarks import (
    avid_training,
    cells,
    gpu,
    images,
    inspection,
    magnetic_tiles,
    maps,
    outlier_share,
    overhead,
    puzzles,
    tabular,
    unlabelled,
)
from benchmarks import caltech as caltech_benchmark
from benchmarks import mnist as digits
from benchmarks.detectors import PYOD_PATHS, pyod_detectors
from benchmarks.map_baselines import (
    ConvAutoEncoder,
    MapBaseline,
    WindowDetector,
    WindowNeighbors,
    WindowPCA,
    normalize_illumination,
    oriented_energies,
)
from benchmarks.report import mark_best, summarize
from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import PatchNet, UNet
from sklearn_g2d.datasets import make_puzzles
from sklearn_g2d.features import PretrainedFeatures
from sklearn_g2d.g2d import ConvGenerator, ConvNetwork, Snapshot
from sklearn_g2d.metrics import outlier_roc_auc_score
from sklearn_g2d.patches import PatchDetector


@pytest.fixture
def run_command(tmp_path, monkeypatch):
    """Run a benchmark's command; gives the rows of its CSV file."""

    def run(module, *options, data=tmp_path):
        name, output = module.__name__.split(".")[1], tmp_path / "out"
        # More threads would wait for each other on a busy machine.
        command = [name, f"--data={data}", f"--output={output}", "--threads=1", *options]
        monkeypatch.setattr(sys, "argv", command)
        module.main()
        return pd.read_csv(output / f"{name}.csv")

    return run


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(10, 2, size=(200, 4)), rng.normal(25, 2, size=(40, 4))])
    np.savez(tmp_path / "1_made.npz", X=X, y=np.repeat([0, 1], [200, 40]))
    np.savez(tmp_path / "CV_embedding.npz", X=X, y=np.repeat([0, 1], [200, 40]))
    return tmp_path


def test_split(folder):
    X_train, X_test, y_test = tabular.one_class_split(folder / "1_made.npz", seed=0)
    assert (len(X_train), len(X_test)) == (100, 140)
    assert (y_test == -1).sum() == 40
    np.testing.assert_allclose(X_train.mean(axis=0), 0, atol=1e-9)
    assert X_test[y_test == -1].min() > X_train.max(axis=0).min()  # no outlier in training
    other, _, _ = tabular.one_class_split(folder / "1_made.npz", seed=1)
    assert not np.allclose(np.sort(other[:, 0]), np.sort(X_train[:, 0]))


def test_split_with_hidden_outliers(folder):
    X_train, _, y_test = tabular.one_class_split(folder / "1_made.npz", 0, hidden_outliers=0.1)
    assert len(X_train) == 100
    assert (y_test == -1).sum() == 30
    assert (X_train > X_train.mean(axis=0) + 1.5 * X_train.std(axis=0)).all(axis=1).sum() == 10


def test_how_far_the_loss_of_a_generator_has_fallen():
    losses = np.repeat([0.0, 4.0, 1.0], 50)
    snapshots = [Snapshot(i, 0.0, role, {}) for i, role in enumerate(["far", "far", "normal"])]
    trained = SimpleNamespace(history_={"generator_loss": losses}, snapshots_=snapshots)
    expected = {"loss_left": 0.25, "n_far": 2, "n_boundary": 0, "n_normal": 1}
    assert tabular.training_figures(trained) == pytest.approx(expected)
    assert tabular.training_figures(SimpleNamespace(history_={})) == {}
    assert tabular.training_figures(object()) == {}


@pytest.mark.parametrize("name", ["KNN", "IForest", "OCSVM", "AutoEncoder"])
def test_pyod_gets_scikit_learns_signs(folder, name):
    X_train, X_test, y_test = tabular.one_class_split(folder / "1_made.npz", seed=0)
    detector = pyod_detectors(0.05)[name](0).fit(X_train)
    assert outlier_roc_auc_score(y_test, detector.score_samples(X_test)) > 0.95
    predicted = detector.predict(X_test)
    assert set(np.unique(predicted)) == {-1, 1}
    assert (predicted[y_test == -1] == -1).mean() > 0.9
    assert (predicted[y_test == 1] == -1).mean() < 0.2


def test_every_named_detector_exists():
    assert len(PYOD_PATHS) == 15


def test_summary_averages_seeds_before_tables():
    rows = [("a", 0, "X", 1.0), ("a", 1, "X", 0.0), ("b", 0, "X", 0.9), ("a", 0, "Y", 0.6)]
    results = pd.DataFrame(
        [*rows, ("b", 0, "Y", 0.8)], columns=["table", "seed", "detector", "auc"]
    )
    summary = summarize(results, {"auc": "AUC"})
    assert summary.loc["X", "AUC"] == pytest.approx(0.7)  # table a .5, table b .9
    assert summary.loc["X", "rank"] == pytest.approx(1.5)


def test_command(folder, run_command, capsys):
    results = run_command(tabular, "--detectors", "KNN", "--seeds", "0")
    assert list(results.table) == ["1_made"]  # the embeddings are no table
    two = ["--detectors", "KNN", "IForest", "--seeds", "0", "1"]
    results = run_command(tabular, *two, "--resume")
    assert sorted(results.detector) == ["IForest", "IForest", "KNN", "KNN"]
    assert (results.auc > 0.95).all()
    assert {p.suffix for p in (folder / "out").iterdir()} == {".csv", ".md", ".png"}
    assert "| KNN" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_command(tabular, "--detectors", "nonsense")
    assert "unknown detectors ['nonsense']" in capsys.readouterr().err


def test_unlabelled_tables_are_ranked_as_they_were_fitted(folder, run_command):
    results = run_command(unlabelled, "--detectors", "G2D", "HBOS", "--seeds", "0")
    assert set(results.detector) == {"G2D", "HBOS"}
    assert (results.auc > 0.9).all()
    with np.load(folder / "1_made.npz") as file:
        assert (results.n_rows == len(file["X"])).all()


def test_calibration_keeps_the_promise():
    X = np.random.default_rng(0).normal(size=(1199, 3))
    detector = pyod_detectors(0.05)["KNN"](0).fit(X[:1000])
    ours = G2DOutlierDetector(random_state=0).fit(X[:1000])
    for calibrated in (detector, ours):
        calibrated.calibrate(X[1000:], false_alarm_rate=0.05)
        # Of 199 rows 9 lie below the 10th score, and the next one does with probability .05.
        assert (calibrated.predict(X[1000:]) == -1).sum() == 9
    with pytest.raises(ValueError, match="at least 19 held-out normal rows; got 18"):
        detector.calibrate(X[:18], false_alarm_rate=0.05)


@pytest.fixture
def mnist(tmp_path):
    """As many images as their brightness tells apart, in the layout of `mnist.npz`."""
    arrays = {}
    for split, n in (("train", 500), ("test", 300)):
        labels = np.arange(n) % 10
        images = np.zeros((n, 28, 28), dtype=np.uint8)
        images[:, 4:24, 4:24] = np.random.default_rng(n).integers(20, size=(n, 20, 20))
        images[:, 9:19, 9:19] += np.uint8(20 * labels)[:, None, None]
        images[:, 0, 0] = np.arange(n) % 256  # tells images of a digit apart
        arrays |= {f"x_{split}": images, f"y_{split}": labels.astype(np.uint8)}
    np.savez(tmp_path / "mnist.npz", **arrays)
    return arrays


def test_digit_task(mnist):
    task = digits.digit_task(mnist, 3)
    assert task.train.shape == (50, 1, 28, 28)
    np.testing.assert_array_equal(task.train[:, 0], mnist["x_train"][3::10])
    np.testing.assert_array_equal(task.test[:, 0], mnist["x_test"])
    np.testing.assert_array_equal(task.y_test == 1, np.arange(300) % 10 == 3)


def test_views(mnist):
    task = outlier_share.share_task(mnist, 3, seed=0)
    pixels, features = task.seen_as("pixels"), task.seen_as("features")
    assert pixels.train.shape == (40, 784)
    assert pixels.train.max() <= 1
    np.testing.assert_allclose(pixels.test * 255, task.test.reshape(60, -1))
    # 64 components where there are enough images, and the remainder.
    assert features.train.shape[1] == features.test.shape[1] == features.held_out.shape[1] == 40
    assert features.fit_seconds > 0
    assert task.seen_as("images").test is task.test


def test_views_are_computed_once(mnist):
    views = []

    class Recorder(images.Task):
        def seen_as(self, view):
            views.append(view)
            return super().seen_as(view)

    task = digits.digit_task(mnist, 3)
    case = images.open_task(
        Recorder(task.train, task.test, task.y_test), 0, images.image_detectors(), normal="a"
    )
    rows = [case.measure(name)[0] for name in ("PCA pixels", "IForest pixels", "PCA features")]
    assert views == ["pixels", "features"]
    assert case.facts == {"normal": "a", "n_train": 50, "n_test": 300}
    assert all(0 <= row["f1_normal"] <= 1 for row in rows)


def test_share_task(mnist):
    task = outlier_share.share_task(mnist, 3, seed=0)
    assert (len(task.train), len(task.held_out), len(task.test)) == (40, 10, 60)
    # Training and held-out images are all of the digit's, each once; none is a test image.
    both = np.concatenate([task.train, task.held_out])[:, 0]
    assert {image.tobytes() for image in both} == {i.tobytes() for i in mnist["x_train"][3::10]}
    np.testing.assert_array_equal(task.test[task.y_test == 1, 0], mnist["x_test"][3::10])
    others = {image.tobytes() for image in np.delete(mnist["x_test"], np.s_[3::10], axis=0)}
    assert {image.tobytes() for image in task.test[task.y_test == -1]} <= others
    other = outlier_share.share_task(mnist, 3, seed=1)
    assert not np.array_equal(task.train, other.train)


def test_shares():
    class Threshold:
        """Sees one outlier in two, and once calibrated all of them."""

        def fit(self, X):
            self.offset_ = -0.5

        def score_samples(self, X):
            return X

        def calibrate(self, X_normal, false_alarm_rate):
            self.offset_ = 0.5

    y = np.repeat([1, -1], [90, 90])
    scores = np.where(y == 1, 1.0, np.arange(180) % 2 * -1.0)
    rows = outlier_share.evaluate_shares(Threshold(), images.Task(scores, scores, y, scores))
    results = pd.DataFrame(rows).set_index(["threshold", "share"])
    assert [outlier_share.n_outliers(90, share) for share in outlier_share.SHARES] == [
        *(10, 22, 39, 60, 90)
    ]
    assert (results.loc["calibrated", ["f1", "f1_normal"]] == 1).all(axis=None)
    np.testing.assert_allclose(results.loc["default", "f1"], 2 / 3, atol=0.02)
    # 90 inliers found among 90 and half of the outliers.
    np.testing.assert_allclose(results.loc[("default", 0.5), "f1_normal"], 180 / 225)
    np.testing.assert_allclose(results.loc[("default", 0.1), "f1_normal"], 180 / 185)


@pytest.fixture
def caltech(tmp_path):
    """Clutter and four categories, two of them the same; an image's colour is its number."""
    names = np.array(["BACKGROUND_Google", "Faces", "Faces_easy", "ketch", "watch"])
    y = np.repeat(np.arange(5), [300, 160, 160, 41, 20])
    number = np.arange(len(y))
    images = np.random.default_rng(0).integers(50, size=(len(y), 64, 64, 3), dtype=np.uint8)
    images[..., 0] += np.uint8(40 * y)[:, None, None]
    images[:, 0, 0] = np.stack([number // 256, number % 256, y], axis=1)
    arrays = {"images": images, "y": y, "class_names": names}
    np.savez(tmp_path / "caltech101_subset_64.npz", **arrays)
    return arrays


def test_categories(caltech):
    drawn = [
        caltech_benchmark.draw_categories(caltech["class_names"], 3, np.random.default_rng(seed))
        for seed in range(20)
    ]
    assert all(set(names) == {"Faces", "ketch", "watch"} for names in drawn)
    assert len({tuple(names) for names in drawn}) > 1


def test_category_task(caltech):
    rng = np.random.default_rng(0)
    task = caltech_benchmark.category_task(caltech, ["watch", "Faces", "ketch"], rng)
    assert task.train.shape == (10 + 75 + 20, 3, 64, 64)

    def numbers(images):
        return images[:, 0, 0, 0] * 256 + images[:, 1, 0, 0]

    train, test = numbers(task.train.astype(int)), numbers(task.test.astype(int))
    np.testing.assert_array_equal(
        np.sort(np.append(train, test[task.y_test == 1])),
        [*range(300, 450), *range(620, 661), *range(661, 681)],
    )
    np.testing.assert_array_equal(np.bincount(task.train[:, 2, 0, 0]), [0, 75, 0, 20, 10])
    clutter = test[task.y_test == -1]
    assert len(set(clutter)) == len(clutter) == (task.y_test == 1).sum()
    assert clutter.max() < 300


@pytest.mark.parametrize(
    ("module", "options", "n_rows"),
    [
        (digits, ["--digits", "0", "9", "--seeds", "0"], 2),
        (outlier_share, ["--digits", "0", "9", "--seeds", "0"], 20),
        (caltech_benchmark, ["--categories", "1", "3", "--repetitions", "2"], 4),
    ],
)
def test_image_commands(
    module, options, n_rows, mnist, caltech, run_command, tmp_path, monkeypatch, capsys
):
    name = module.__name__.split(".")[1]
    if module is outlier_share:  # ten held-out images can promise no less than this
        monkeypatch.setattr(module, "FALSE_ALARM_RATE", 0.1)
    first = run_command(module, "--detectors", "KNN pixels", *options)
    both = ["--detectors", "KNN pixels", "PCA features"]
    results = run_command(module, *both, *options, "--resume")
    assert len(first) == n_rows
    assert results.detector.value_counts().to_dict() == {
        "KNN pixels": n_rows,
        "PCA features": n_rows,
    }
    assert results[["auc", "f1", "f1_normal", "false_alarms"]].notna().all(axis=None)
    assert "error" not in results
    assert sorted(p.suffix for p in (tmp_path / "out").iterdir()) == [".csv", ".md", ".png"]
    page = (tmp_path / "out" / f"{name}.md").read_text()
    assert (
        f"`python -m benchmarks.{name} --data DIR --detectors 'KNN pixels' 'PCA features' "
    ) in page
    assert str(tmp_path) not in page
    assert "| KNN pixels" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_command(module, data=tmp_path / "out")
    assert f"no {module.ARCHIVE} in" in capsys.readouterr().err


# Anomaly maps


@pytest.fixture(scope="module")
def digit_puzzles():
    """Puzzles of 4 x 4 digits, 8 pixels wide: training, test, anomalous tiles."""
    bunch = load_digits()
    given = {"anomalous_label": 6, "grid_shape": (4, 4), "random_state": 0}
    train, _ = make_puzzles(
        bunch.images[:1000], bunch.target[:1000], n_samples=150, n_anomalous=0, **given
    )
    test, anomalous = make_puzzles(
        bunch.images[1000:], bunch.target[1000:], n_samples=40, n_anomalous=4, **given
    )
    return train, test, anomalous


@pytest.mark.parametrize(
    ("detector", "at_least"),
    [
        (WindowNeighbors(8), 0.7),
        (WindowNeighbors(8, features="gradients"), 0.7),
        (WindowNeighbors(8, features="gradients", normalize_illumination=True), 0.7),
        (WindowNeighbors(8, stride=8), 0.95),  # knows the grid
        (WindowPCA(8), 0.6),
        (ConvAutoEncoder(8, n_steps=100), 0.6),
    ],
    ids=["pixels", "gradients", "even light", "tiles", "PCA", "autoencoder"],
)
def test_baselines_find_anomalous_tiles(detector, at_least, digit_puzzles):
    train, test, anomalous = digit_puzzles
    drawn = detector.fit(train).anomaly_map(test)
    assert drawn.shape == (40, 32, 32)
    auc = maps.separation(anomalous, maps.region_means(drawn, (4, 4)))["auc"]
    assert auc > at_least
    scores = detector.score_samples(test)
    np.testing.assert_allclose(scores, -maps.image_anomaly(detector, test, drawn))
    assert scores.shape == (40,)


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("features", ["pixels", "gradients"])
def test_windows_cover_images_of_any_shape(features, size):
    X = np.random.default_rng(0).integers(255, size=(20, 3, 21, 34), dtype=np.uint8)
    for even in (False, True):
        detector = WindowNeighbors(size, features=features, normalize_illumination=even, stride=5)
        assert np.isfinite(detector.fit(X).anomaly_map(X)).all()


def test_map_is_the_mean_over_covering_windows():
    class Brightness(WindowDetector):
        def learn(self, rows):
            pass

        def judge(self, rows):
            return rows.sum(axis=1) * self.scales_[0]

    image = np.zeros((1, 1, 4, 7))
    image[0, 0, 0, 3] = 1
    detector = Brightness(4, stride=2).fit(np.random.default_rng(0).random((3, 1, 4, 7)))
    # Windows begin at 0, 2 and 3, and all three contain the bright pixel; at 1, 1, 0 too.
    np.testing.assert_allclose(detector.anomaly_map(image)[0], 1)
    image = np.roll(image, -1, axis=3)
    np.testing.assert_allclose(
        detector.anomaly_map(image)[0], np.tile([1, 1, 1, 2 / 3, 1 / 2, 1 / 2, 0], (4, 1))
    )


def test_image_score_is_the_mean_of_the_highest_tenth():
    class Given(MapBaseline):
        def fit(self, X):
            return self

        def anomaly_map(self, X):
            return X[:, 0]

    maps_ = np.zeros((2, 1, 10, 10))
    maps_[0, 0, 2, 2:7] = 1
    np.testing.assert_allclose(Given(1).score_samples(maps_), [-0.5, 0])
    # Averaged over 5 x 5 first, the middle of the line is 5 / 25.
    assert Given(5).score_samples(maps_)[0] > -0.2


def test_orientations():
    ramp = np.tile(np.arange(9.0, dtype=np.float32), (9, 1))
    across, down = oriented_energies(np.stack([ramp, ramp.T])[:, None])[:, :, 4, 4]
    assert across.argmax() == 0
    assert down.argmax() == 4  # of eight, at a right angle
    np.testing.assert_allclose([across.max(), down.max()], 1, rtol=1e-6)


def test_normalize_illumination():
    rng = np.random.default_rng(0)
    texture = rng.normal(size=(2, 1, 60, 60)).astype(np.float32)
    light = np.linspace(2, 6, 60, dtype=np.float32)
    even = normalize_illumination(texture, 21)
    np.testing.assert_allclose(normalize_illumination(5 * texture + 7, 21), even, atol=1e-4)
    lit = normalize_illumination(light * (texture + 5), 21)
    assert np.corrcoef(lit.ravel(), even.ravel())[0, 1] > 0.95
    flat = np.full((1, 1, 30, 30), 3, dtype=np.float32)
    assert (normalize_illumination(flat, 21) == 0).all()


def test_map_figures_by_hand():
    tiles = np.array([[[1.0, 2.0], [3.0, 4.0]]])
    drawn = np.kron(tiles, np.ones((1, 3, 5)))
    np.testing.assert_allclose(maps.region_means(drawn, (2, 2)), tiles)
    np.testing.assert_allclose(maps.region_means(drawn, (1, 2)), [[[2, 3]]])
    # Of the pairs (2, 1), (2, 3), (4, 1), (4, 3) three are in order.
    anomalous = np.array([[[False, True], [False, True]]])
    assert maps.separation(anomalous, tiles) == {"auc": 0.75, "eer": 0.5}
    assert maps.separation(anomalous, tiles, "image_") == {"image_auc": 0.75, "image_eer": 0.5}
    masks = drawn == 4
    assert maps.pixel_figures(masks, drawn) == {"pixel_auc": 1, "aupro": 1}
    assert maps.pixel_figures(masks, -drawn)["pixel_auc"] == 0


def test_curves_outlive_a_run(tmp_path):
    y, anomaly = np.array([False, True, False, True]), np.arange(4)
    maps.RocCurves(tmp_path / "roc.csv").add("AVID", {"here": (y, anomaly)})
    maps.RocCurves(tmp_path / "roc.csv").add("other", {"here": (y, -anomaly), "there": (y, y)})
    curves = maps.RocCurves(tmp_path / "roc.csv").read()
    assert list(curves) == ["here: AVID", "here: other", "there: other"]
    np.testing.assert_allclose(curves.loc[[0.25, 0.75], "here: AVID"], [0.5, 1])
    assert (curves["there: other"] == 1).all()
    maps.RocCurves(tmp_path / "roc.csv").plot(tmp_path / "a.png", ["here", "there"], ["AVID"])
    assert (tmp_path / "a.png").exists()


class FakeAVID(BaseEstimator):
    """Draws an image's brightness, a table's distance from 0, each kind of map on its scale."""

    fits = 0
    map_range_ = (0.0, 255.0)
    top_fraction = 0.5

    def __init__(self, **params):
        self.params = params

    @classmethod
    def from_paper(cls, data, **changes):
        return cls(published_for=data, **changes)

    def fit(self, X):
        FakeAVID.fits += 1
        return self

    def anomaly_map(self, X, source="combined"):
        sign = -1.0 if source == "inpainter" else 1.0
        return sign * (np.abs(X) if X.ndim == 2 else X[:, 0])

    def region_scores(self, X, source="combined"):
        return self.anomaly_map(X, source)[:, ::2, ::2]

    def predict_mask(self, X):
        return self.anomaly_map(X) > 100

    def inpaint(self, X):
        return X

    def score_samples(self, X):
        return -self.anomaly_map(X).mean(axis=(1, 2))


@pytest.fixture
def avid(monkeypatch):
    monkeypatch.setattr(maps, "AVIDDetector", FakeAVID)
    monkeypatch.setattr(FakeAVID, "fits", 0)


def test_one_fit_three_maps(avid):
    X = np.random.default_rng(0).random((6, 1, 4, 4))
    factories = maps.avid_detectors("images", 7, region_size=2)
    assert list(factories) == maps.AVID_NAMES
    detector = factories["AVID as published"](5)
    assert detector.params == {
        "published_for": "images",
        "random_state": 5,
        "region_size": 2,
        "training__max_steps": 7,
    }
    names, judged = [], []
    for row, drawn, source in maps.fit_maps("AVID as published", detector, X, X):
        names.append(row["detector"])
        sign = -1 if source == "inpainter" else 1
        np.testing.assert_array_equal(drawn, sign * X[:, 0])
        judged.append(maps.image_anomaly(detector, X, drawn, source))
    assert names == ["AVID as published I alone", "AVID as published D alone", "AVID as published"]
    assert FakeAVID.fits == 1
    # The mean of the two highest of four regions; both networks together are asked for scores.
    regions = np.sort(X[:, 0, ::2, ::2].reshape(6, 4), axis=1)
    np.testing.assert_allclose(judged[0], -regions[:, :2].mean(axis=1))
    np.testing.assert_allclose(judged[1], regions[:, 2:].mean(axis=1))
    np.testing.assert_allclose(judged[2], X.mean(axis=(1, 2, 3)))
    (row, _, source), *others = maps.fit_maps("PCA windows", WindowPCA(2), X, X)
    assert (row["detector"], source, others) == ("PCA windows", None, [])


def test_images_are_judged_as_the_detector_judges_them():
    X = np.random.default_rng(0).normal(size=(12, 1, 16, 16))
    factory = maps.avid_detectors("images", 2, region_size=5)["AVID"]
    for source in ("inpainter", "detector"):
        small = {"inpainter__channels": 2, "detector__channels": 2}
        fitted = factory(0).set_params(combination=source, **small).fit(X)
        maps_ = fitted.anomaly_map(X, source=source)
        np.testing.assert_array_equal(
            maps.image_anomaly(fitted, X, maps_, source), -fitted.score_samples(X)
        )


def test_steps_of_avid():
    for data in ("images", "tables"):
        for name, factory in maps.avid_detectors(data, 7).items():
            assert factory(0).get_params()["training__max_steps"] == 7, name
    assert maps.avid_detectors("tables")["AVID"](0).training is None


def test_avid_is_explained():
    results = pd.DataFrame({"detector": ["AVID", "AVID I alone", "AVID as published"]})
    text = maps.explain_avid(results, "images", region_size=14)
    assert "`AVIDDetector(region_size=14, random_state=seed)`" in text
    published = 'AVIDDetector.from_paper(data="images", region_size=14, random_state=seed)'
    assert f'"AVID as published" is `{published}`' in text
    assert "adversarial" not in text
    assert "`AVIDDetector(random_state=seed)`" in maps.explain_avid(results, "images")
    results = pd.DataFrame({"detector": ["AVID", "AVID adversarial", "AVID as published"]})
    text = maps.explain_avid(results, "tables", 50)
    assert "`AVIDDetector(training=CellInpainting(max_steps=50), random_state=seed)`" in text
    assert "CellInpainting(adversarial_weight=0.003, max_steps=50)" in text
    assert '(data="tables", training__max_steps=50, random_state=seed)' in text


@pytest.fixture
def small_frames(monkeypatch):
    monkeypatch.setattr(puzzles, "GRID", (3, 3))
    monkeypatch.setattr(puzzles, "FRAMES", {"none": (0, 6), "natural": (None, 8), "one": (1, 5)})


def test_puzzle_frames(mnist, small_frames):
    frames = puzzles.make_frames(mnist, 3, n_train=12, seed=0)
    assert frames.train.shape == (12, 1, 42, 42)
    assert frames.train.dtype == np.uint8
    assert frames.region_size == 14
    n_anomalous = frames.tile_is_anomalous.sum(axis=(1, 2))
    assert (n_anomalous[frames.kinds == "none"] == 0).all()
    assert (n_anomalous[frames.kinds == "one"] == 1).all()
    # In the fixture's images the middle tells the digit, and noise adds less than one step.
    digit = frames.test[:, 0, 6::14, 6::14] // 20
    np.testing.assert_array_equal(digit == 3, frames.tile_is_anomalous)
    assert not (frames.train[:, 0, 6::14, 6::14] // 20 == 3).any()
    again, other = (puzzles.make_frames(mnist, 3, n_train=12, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(frames.test, again.test)
    assert not np.array_equal(frames.test, other.test)


def test_halves():
    image = np.array([[[0, 1, 10, 20], [2, 3, 30, 41]]], dtype=np.uint8)
    np.testing.assert_array_equal(puzzles.halve(image), [[[2, 25]]])
    assert puzzles.halve(image).dtype == np.uint8


def test_puzzle_figures(mnist, small_frames):
    frames = puzzles.make_frames(mnist, 3, n_train=2, seed=0)
    truth = np.kron(frames.tile_is_anomalous, np.ones((1, 14, 14)))
    judged = puzzles.judge(frames, truth, (frames.kinds == "natural") * 1.0)
    figures = puzzles.figures(judged)
    assert figures["auc"] == figures["image_auc"] == 1
    assert figures["eer"] == figures["image_eer"] == 0
    assert figures["one_auc"] == 0.5  # frames with one tile score as those with none


@pytest.fixture
def authors(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.random((9, 3, 3)) < 0.3
    test = np.zeros((9, 32, 32), dtype=np.uint8)
    test[:, :30, :30] = np.kron(labels, np.full((1, 10, 10), 200))
    train = rng.integers(100, size=(12, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "ir_mnist_half.npz", train=train, test=test, test_tile_labels=labels)


def test_puzzles_command(mnist, authors, small_frames, avid, run_command, tmp_path, capsys):
    options = ["--puzzles", "20", "--seeds", "0", "1", "--authors"]
    first = run_command(puzzles, *options, "--detectors", "AVID")
    assert len(first) == 3 * 2 * 2  # maps, seeds, frames
    results = run_command(puzzles, *options, "--detectors", "AVID", "PCA windows", "--resume")
    assert FakeAVID.fits == 4
    assert results.detector.value_counts().to_dict() == {
        "AVID": 4,
        "AVID I alone": 4,
        "AVID D alone": 4,
        "PCA windows": 4,
    }
    ours = results.frames == "without 3"
    assert results[ours].notna().all(axis=None)
    assert results.loc[~ours, "auc"].notna().all()
    assert results.loc[~ours, "image_auc"].isna().all()  # all of these frames are anomalous
    assert (results.loc[~ours & (results.detector == "AVID"), "auc"] == 1).all()
    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} == {
        "puzzles.csv",
        "puzzles.md",
        "puzzles_maps.png",
        "puzzles_roc.csv",
        "puzzles_roc.png",
    }
    page = (folder / "puzzles.md").read_text()
    assert (
        "`python -m benchmarks.puzzles --data DIR --detectors AVID 'PCA windows' --seeds 0 1 "
        "--puzzles 20 --authors`"
    ) in page
    assert "memorises" in page
    assert str(tmp_path) not in page
    assert len(maps.RocCurves(folder / "puzzles_roc.csv").read().columns) == 4 * 3
    assert "| PCA windows" in capsys.readouterr().out
    assert len(run_command(puzzles, *options[:4], "--detectors", "PCA windows")) == 1
    assert len(maps.RocCurves(folder / "puzzles_roc.csv").read().columns) == 3


@pytest.fixture
def tiles(tmp_path):
    """Tiles photographed three times; a flaw is bright, and its image's corner its number."""
    rng = np.random.default_rng(0)
    n = 120
    y = np.repeat([0, 0, 0, 1, 2], n // 5)
    images = rng.integers(100, size=(n, 32, 32), dtype=np.uint8)
    masks = np.zeros((n, 32, 32), dtype=bool)
    masks[y > 0, 10:20, 10:20] = True
    masks[-1] = False
    images[masks] += np.uint8(100)
    images[:, 0, 0] = np.arange(n)
    group = np.arange(n) // 3
    group[-6:] = group[:6]  # flawed images of tiles that are else flawless
    names = np.array(["MT_Free", "MT_Crack", "MT_Fray"])
    arrays = {"images": images, "masks": masks, "y": y, "class_names": names, "group": group}
    np.savez(tmp_path / "magnetic_tile_128.npz", **arrays)
    return arrays


def test_no_tile_is_on_both_sides(tiles):
    flaws = magnetic_tiles.split_tiles(tiles, seed=0)
    train, test = flaws.train[:, 0, 0, 0], flaws.test[:, 0, 0, 0]
    assert flaws.train.shape == (48, 1, 32, 32)  # two thirds of 24 tiles, three images each
    assert (tiles["y"][train] == 0).all()
    assert not set(tiles["group"][train]) & set(tiles["group"][test])
    # All images but the flawed ones of tiles in training take part.
    left_out = np.setdiff1d(np.arange(120), [*train, *test])
    assert np.isin(tiles["group"][left_out], tiles["group"][train]).all()
    assert (tiles["y"][left_out] > 0).all()
    np.testing.assert_array_equal(flaws.kinds, np.array(["", "crack", "fray"])[tiles["y"][test]])
    np.testing.assert_array_equal(flaws.masks, tiles["masks"][test])
    assert set(train) != set(magnetic_tiles.split_tiles(tiles, seed=1).train[:, 0, 0, 0])


def test_flaw_figures(tiles):
    flaws = magnetic_tiles.split_tiles(tiles, seed=0)
    figures = magnetic_tiles.figures(flaws, flaws.masks * 1.0, (flaws.kinds == "crack") * 1.0)
    assert figures["auc_crack"] == 1
    assert figures["auc_fray"] == 0.5
    assert figures["pixel_auc"] == figures["aupro"] == 1
    assert 0.5 < figures["auc"] < 1


def test_magnetic_tiles_command(tiles, avid, run_command, tmp_path):
    name = "5-NN windows, gradients, even light"
    results = run_command(magnetic_tiles, "--seeds", "0", "--detectors", "AVID", name)
    assert list(results.detector) == ["AVID I alone", "AVID D alone", "AVID", name]
    assert results.notna().all(axis=None)
    assert (results.auc_crack[1:] > 0.9).all()
    page = (tmp_path / "out" / "magnetic_tiles.md").read_text()
    assert "|   crack |   fray |" in page
    assert (tmp_path / "out" / "magnetic_tiles_maps.png").exists()
    run_command(magnetic_tiles, "--seeds", "0", "--detectors", "PCA windows")


@pytest.fixture
def boards(tmp_path):
    """Two boards of 40 places; a template's corner is its place, a flaw is bright."""
    rng = np.random.default_rng(0)
    group, index = np.repeat([100, 200], 40), np.tile(np.arange(40), 2)
    templates = rng.integers(100, size=(80, 32, 32), dtype=np.uint8)
    templates[:, 0, 0], templates[:, 0, 1] = index, group
    masks = np.zeros(templates.shape, dtype=bool)
    masks[:, 10:20, 10:20] = True
    tested = np.where(masks, templates + np.uint8(100), templates)
    arrays = {"templates": templates, "tested": tested, "masks": masks}
    arrays |= {"group": group, "index": index}
    np.savez(tmp_path / "deep_pcb_320.npz", **arrays)
    return arrays


def test_boards_are_tested_on_twins_of_other_places(boards):
    flaws = inspection.split_board(boards, 200, seed=0)
    assert (flaws.train[:, 0, 0, 1] == 200).all()
    assert (flaws.test[:, 0, 0, 1] == 200).all()
    train, test = flaws.train[:, 0, 0, 0], flaws.test[:, 0, 0, 0]
    assert len(train) == 24  # three fifths
    np.testing.assert_array_equal(np.sort([*train, *test[:16]]), np.arange(40))
    np.testing.assert_array_equal(test[:16], test[16:])
    flawless, flawed = flaws.test[:16, 0], flaws.test[16:, 0]
    np.testing.assert_array_equal(flaws.masks[16:], flawed.astype(int) - flawless == 100)
    assert not flaws.masks[:16].any()
    np.testing.assert_array_equal(flaws.kinds != "", np.arange(32) >= 16)
    assert set(train) != set(inspection.split_board(boards, 200, seed=1).train[:, 0, 0, 0])


def test_what_is_far_from_flaws_is_compared_place_by_place():
    masks = np.zeros((2, 8, 80), dtype=bool)
    masks[0, :, 0] = masks[1, :, 79] = True
    # Every image rises to the right; far from its flaw one is above half of the flawless ones, the
    # other is above all of them.
    slope = np.broadcast_to(np.linspace(0, 100, 80), (8, 80))
    flawed = np.array([slope + 0.5, slope + 2])
    flawed[masks] = 1000
    auc = inspection.auc_far_from_flaws(masks, flawed, np.array([slope, slope + 1]))
    assert auc == 0.75
    assert inspection.auc_far_from_flaws(masks[:1], flawed[:1], slope[None] + 0.5) == 0.5


def test_figures_within_images_do_not_see_their_light(tiles, monkeypatch):
    monkeypatch.setattr(inspection, "FAR", 4)
    flaws = magnetic_tiles.split_tiles(tiles, seed=0)
    light = np.arange(len(flaws.test))[:, None, None]
    figures = inspection.map_figures(flaws, 10.0 * light + flaws.masks)
    assert figures["pixel_auc_within"] == 1
    assert figures["pixel_auc"] < 0.99


def test_gaussians_of_places_are_mahalanobis_distances():
    rng = np.random.default_rng(0)
    maps_ = rng.normal(size=(30, 2, 3, 4)).astype(np.float32) * [1, 2, 3, 9]
    maps_ += rng.normal(size=(2, 3, 4)) * 100
    level = inspection.GaussianLevel().fit(maps_[:20], None)
    judged = level.anomalies(maps_[20:])
    rows = maps_[:20, 1, 2]
    covariance = np.cov(rows.T, bias=True)
    covariance += inspection.RIDGE * np.trace(covariance) / 4 * np.eye(4)
    differences = maps_[20:, 1, 2] - rows.mean(axis=0)
    squared = np.sum(differences @ np.linalg.inv(covariance) * differences, axis=1)
    np.testing.assert_allclose(judged[:, 1, 2], np.sqrt(squared), rtol=1e-5)


def test_a_coreset_is_a_fraction_of_all_cells():
    maps_ = np.random.default_rng(0).normal(size=(10, 5, 8, 3)).astype(np.float32)
    level = inspection.CoresetLevel(0.1).fit(maps_, np.random.RandomState(0))
    n_references = len(level.estimator_.references_)
    assert 35 <= n_references <= 40  # a cell that is chosen twice counts once
    judged = level.anomalies(maps_)
    assert judged.shape == (10, 5, 8)
    assert np.isclose(judged, 0, atol=1e-6).sum() == n_references


@pytest.fixture
def small_inspection(avid, monkeypatch):
    """The detectors, with a network that needs no weights."""
    features = PretrainedFeatures(nn.Conv2d(3, 4, 3, stride=8, padding=1))
    monkeypatch.setattr(inspection, "AVIDDetector", FakeAVID)
    monkeypatch.setattr(inspection, "FAR", 4)
    factories = inspection.detectors()

    def make(name, seed):
        detector = factories[name](seed)
        ours = isinstance(detector, (PatchDetector, G2DOutlierDetector))
        return detector.set_params(features=features) if ours else detector

    monkeypatch.setattr(
        inspection, "detectors", lambda: {name: partial(make, name) for name in factories}
    )


def test_detectors_of_flaws_get_their_seeds(small_inspection):
    for name, make in inspection.detectors().items():
        detector = make(5)
        params = getattr(detector, "params", None) or vars(detector)
        assert params.get("random_state", params.get("seed")) == 5, name
        if isinstance(detector, PatchDetector):
            detector._validate_params()


@pytest.mark.filterwarnings("ignore:false_alarm_rate")  # of few tiles
def test_inspection_command(tiles, boards, small_inspection, run_command, tmp_path, capsys):
    names = ["PatchDetector", "5-NN windows of 8, gradients", "AVID"]
    results = run_command(inspection, "--seeds", "0", "--detectors", *names)
    assert results.images.value_counts().to_dict() == {
        case: len(names) + 2 for case in ("magnetic tiles", "board 100", "board 200")
    }
    of_maps = ["auc", "eer", "pixel_auc", "pixel_auc_within", "aupro"]
    assert results[of_maps].notna().all(axis=None)
    results = results.set_index("detector")
    # The flaws are bright, and nothing else tells one image from another.
    assert (results.loc[["PatchDetector", "AVID"], "pixel_auc_within"] > 0.9).all()
    assert results.loc["PatchDetector", ["f1", "false_alarms"]].notna().all(axis=None)
    assert results.loc["5-NN windows of 8, gradients", ["f1", "false_alarms"]].isna().all(axis=None)
    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} == {
        "inspection.csv",
        "inspection.md",
        *(f"inspection_{of}" for of in ("tiles.png", "boards.png", "tiles_maps.png")),
        "inspection_boards_maps.png",
    }
    page = (folder / "inspection.md").read_text()
    headings = [line for line in page.splitlines() if line.startswith("|") and "AUPRO" in line]
    assert ["AUC far from flaws" in line for line in headings] == [True, False]  # tiles, boards
    repeat = "`python -m benchmarks.inspection --data DIR --detectors PatchDetector"
    for text in ("| tiles ", "| boards ", "**", "| image AUC by kind of flaw", "fray", repeat):
        assert text in page
    assert str(tmp_path) not in page
    # Whole images have no map; a resumed run keeps the picture that it has.
    (folder / "inspection_boards_maps.png").write_bytes(b"kept")
    options = ["--seeds", "0", "--sets", "boards", "--resume"]
    results = run_command(
        inspection, *options, "--detectors", "Gaussian per place", "G2D pretrained"
    )
    assert len(results) == 3 * (len(names) + 2) + 2 * 2
    whole = results[results.detector == "G2D pretrained"]
    assert whole[["auc", "f1", "fit_seconds", "map_milliseconds"]].notna().all(axis=None)
    assert whole.pixel_auc.isna().all()
    assert (folder / "inspection_boards_maps.png").read_bytes() == b"kept"
    assert "G2D pretrained" in capsys.readouterr().out


def test_the_best_is_marked_whoever_it_is():
    means = pd.DataFrame(
        {"auc": [0.9, 0.91234, 0.9119], "s": [3.0, 2, np.nan], "n": [1.0, 2, 3]}, index=list("abc")
    )
    marked = mark_best(means, ["auc"], ["s"])
    assert marked.auc.tolist() == ["0.900", "**0.912**", "**0.912**"]
    assert marked.s.tolist() == ["3.000", "**2.000**", "-"]
    assert marked.n.tolist() == ["1.000", "2.000", "3.000"]


def test_replaced_cells():
    X = np.arange(400.0).reshape(100, 4)
    X[:, 3] = 1  # where replacing makes no difference
    replaced, is_replaced = cells.replace_cells(X, np.random.default_rng(0))
    np.testing.assert_array_equal(is_replaced, replaced != X)
    assert not is_replaced[:, 3].any()
    in_row = is_replaced.sum(axis=1)
    assert in_row.max() == 3
    assert 40 <= (in_row > 0).sum() <= 50
    columns = np.broadcast_to(np.arange(4), X.shape)
    assert (replaced[is_replaced] % 4 == columns[is_replaced]).all()  # values of the same column


def test_regressions_find_the_odd_cell():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    X = np.column_stack([X, X[:, 0] + X[:, 1] + 0.1 * rng.normal(size=200)])
    detector = cells.Regressions(LinearRegression()).fit(X)
    drawn = detector.anomaly_map(np.array([[1.0, 0.5, 9.0, 1.5], [1.0, 0.5, 0.0, 3.0]]))
    assert drawn[0].argmax() == 2
    assert drawn[0, 3] < 3  # deviations of its residual, .1
    assert drawn[1, 3] == pytest.approx(15, abs=3)
    assert np.allclose(cells.ZScores().fit(X).anomaly_map(X.mean(axis=0)[None] + X.std(axis=0)), 1)


def test_training_of_avid_command(
    mnist, boards, small_frames, small_inspection, run_command, tmp_path, monkeypatch
):
    monkeypatch.setattr(avid_training, "AVIDDetector", FakeAVID)
    monkeypatch.setattr(avid_training, "N_PUZZLES", 20)
    names = ["500 steps", "least squares, SGD .002"]
    results = run_command(avid_training, "--detectors", *names)
    assert len(results) == 2 * (3 + 2)  # maps of puzzles, and boards
    assert results.auc.notna().all()
    made = avid_training.detectors()["least squares, SGD .002"](5).params
    assert made["training__learning_rates"] == (2e-3, 2e-3)
    assert (made["training__objective"], made["random_state"]) == ("squares", 5)
    assert avid_training.detectors()["500 steps"](0).params["training"].max_steps == 500
    page = (tmp_path / "out/avid_training.md").read_text()
    assert "| 500 steps |" in page
    assert "`python -m benchmarks.avid_training --data DIR --detectors '500 steps' 'least" in page
    run_command(avid_training, "--detectors", *names[:1], "--sets", "puzzles")
    assert "boards: image AUC" not in (tmp_path / "out/avid_training.md").read_text()


def test_cells_command(avid, run_command, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(300, 1))
    X = np.concatenate([latent + 0.1 * rng.normal(size=(300, 5)), np.full((20, 5), 99)])
    np.savez(tmp_path / "a.npz", X=X, y=np.repeat([0, 1], [300, 20]))
    monkeypatch.setattr(cells, "TABLES", ["a"])
    names = ["AVID", "linear regressions", "boosted regressions"]
    results = run_command(cells, "--seeds", "0", "--detectors", *names).set_index("detector")
    assert list(results.index) == ["AVID I alone", "AVID D alone", *names]
    assert (results[["n_train", "n_test"]] == 150).all(axis=None)  # no outlier among them
    assert (results.auc[names[1:]] > 0.8).all()
    assert "| linear regressions" in capsys.readouterr().out
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".csv", ".md", ".png"}
    monkeypatch.setattr(cells, "TABLES", ["a", "b"])
    with pytest.raises(SystemExit):
        run_command(cells)
    assert "no b.npz in" in capsys.readouterr().err


# Time


def test_pairs_that_are_timed_do_the_same_arithmetic(monkeypatch):
    monkeypatch.setattr(overhead, "STEPS", 2)
    monkeypatch.setattr(overhead, "N_ROWS", 60)
    rng = np.random.default_rng(0)
    X, X_new = rng.normal(size=(60, 30)), rng.normal(size=(20, 30))
    for _, by_package, by_bare in overhead.trainings(X):
        assert overhead.seconds(by_package) > 0
        assert overhead.seconds(by_bare) > 0
    for _, by_package, by_bare in overhead.scorings(X, X_new):
        scores, bare = by_package(), by_bare()
        assert scores.shape == (20,)
        assert bare is None or bare.shape == scores.shape


# GPUs


def test_gpu_figures_on_the_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "N_IMAGES", 20)
    monkeypatch.setattr(gpu, "SIDE", 16)
    monkeypatch.setattr(gpu, "STEPS", 4)
    small = {"inpainter": UNet(channels=2), "detector": PatchNet(channels=2)}
    monkeypatch.setattr(gpu, "AVIDDetector", partial(AVIDDetector, **small))
    own = partial(PretrainedFeatures, nn.Conv2d(3, 4, 3), image_size=16)
    monkeypatch.setattr(gpu, "PretrainedFeatures", own)
    wide = {"generator__generator_network": ConvGenerator(channels=2)}
    for name in ("generator__critic_network", "classifier__network"):
        wide[name] = ConvNetwork(channels=2)
    monkeypatch.setattr(gpu, "G2D_AS_AUTHORS", partial(gpu.G2D_AS_AUTHORS, **wide))
    monkeypatch.setattr(
        gpu, "avid_for_gpus", lambda _: AVIDDetector.from_paper("images").set_params(**small)
    )
    found = dict(gpu.measures("cpu", 1, max_steps=2, n_wide=1))
    assert len(found) == 10
    assert min(found.values()) > 0
    results = pd.DataFrame({"GPU": found, "CPU": found})
    gpu.write_page(tmp_path, results.assign(card="Card", torch="2.13", cuda="13", cores=4))
    page = (tmp_path / "gpu.md").read_text()
    assert "card Card, torch 2.13, cuda 13" in page
    assert "images scored in a second" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_page_says_so_unless_there_are_figures(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu", f"--output={tmp_path}"])
    for _ in range(2):
        with pytest.raises(SystemExit, match="needs a GPU"):
            gpu.main()
        assert "Not measured yet" in (tmp_path / "gpu.md").read_text()
    (tmp_path / "gpu.csv").touch()
    (tmp_path / "gpu.md").write_text("figures")
    with pytest.raises(SystemExit):
        gpu.main()
    assert (tmp_path / "gpu.md").read_text() == "figures"
