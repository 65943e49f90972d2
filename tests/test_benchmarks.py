"""The benchmarks' protocol, signs and files, on data made here."""

import sys

import numpy as np
import pandas as pd
import pytest

from benchmarks import caltech as caltech_benchmark
from benchmarks import images, outlier_share, tabular
from benchmarks import mnist as digits
from benchmarks.detectors import PYOD_PATHS, pyod_detectors
from benchmarks.report import summarize
from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.metrics import outlier_roc_auc_score


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
    assert len(PYOD_PATHS) == 12


def test_summary_averages_seeds_before_tables():
    rows = [("a", 0, "X", 1.0), ("a", 1, "X", 0.0), ("b", 0, "X", 0.9), ("a", 0, "Y", 0.6)]
    results = pd.DataFrame(
        [*rows, ("b", 0, "Y", 0.8)], columns=["table", "seed", "detector", "auc"]
    )
    summary = summarize(results, {"auc": "AUC"})
    assert summary.loc["X", "AUC"] == pytest.approx(0.7)  # table a .5, table b .9
    assert summary.loc["X", "rank"] == pytest.approx(1.5)


def test_command(folder, tmp_path, monkeypatch, capsys):
    def run(*options):
        command = ["tabular", "--data", str(folder), "--output", str(tmp_path / "out"), *options]
        monkeypatch.setattr(sys, "argv", command)
        tabular.main()
        return pd.read_csv(tmp_path / "out" / "tabular.csv")

    results = run("--detectors", "KNN", "--seeds", "0")
    assert list(results.table) == ["1_made"]  # the embeddings are no table
    results = run("--detectors", "KNN", "IForest", "--seeds", "0", "1", "--resume")
    assert sorted(results.detector) == ["IForest", "IForest", "KNN", "KNN"]
    assert (results.auc > 0.95).all()
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".csv", ".md", ".png"}
    assert "| KNN" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("--detectors", "nonsense")
    assert "unknown detectors ['nonsense']" in capsys.readouterr().err


def test_calibration_keeps_the_promise():
    X = np.random.default_rng(0).normal(size=(1199, 3))
    detector = pyod_detectors(0.05)["KNN"](0).fit(X[:1000])
    ours = G2DOutlierDetector(max_steps=0, random_state=0).fit(X[:1000])
    for calibrated in (detector, ours):
        calibrated.calibrate(X[1000:], false_alarm_rate=0.05)
        # Of 199 rows 9 lie below the 10th score, and the next one does with probability .05.
        assert (calibrated.predict(X[1000:]) == -1).sum() == 9
    with pytest.raises(ValueError, match="18 rows are too few"):
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
def test_image_commands(module, options, n_rows, mnist, caltech, tmp_path, monkeypatch, capsys):
    name = module.__name__.split(".")[1]

    def run(*options, data=tmp_path):
        command = [name, "--data", str(data), "--output", str(tmp_path / "out"), *options]
        monkeypatch.setattr(sys, "argv", command)
        module.main()
        return pd.read_csv(tmp_path / "out" / f"{name}.csv")

    if module is outlier_share:  # ten held-out images can promise no less than this
        monkeypatch.setattr(module, "FALSE_ALARM_RATE", 0.1)
    first = run("--detectors", "KNN pixels", *options)
    results = run("--detectors", "KNN pixels", "PCA features", *options, "--resume")
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
        run(data=tmp_path / "out")
    assert f"no {module.ARCHIVE} in" in capsys.readouterr().err
