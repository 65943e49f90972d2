"""The benchmarks' protocol, signs and files, on a table made here."""

import sys

import numpy as np
import pandas as pd
import pytest

from benchmarks import tabular
from benchmarks.detectors import PYOD_PATHS, pyod_detectors
from benchmarks.report import summarize
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
    assert len(PYOD_PATHS) == 11


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
