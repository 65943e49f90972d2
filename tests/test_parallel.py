"""Two processes, started by torchrun, that train one detector."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from together import TRAINED, make_data

from sklearn_g2d import AVIDDetector, G2DOutlierDetector, persistence

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "examples" / "deployment" / "torchrun_fit.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(*arguments):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes have left behind."""
    path = tmp_path_factory.mktemp("together")
    run(*TORCHRUN, HERE / "together.py", path)
    return path


@pytest.fixture(scope="module")
def facts(folder):
    return [json.loads((folder / f"facts {rank}").read_text()) for rank in range(2)]


def results_of(detector, X):
    """What a fitted detector gives."""
    results = {"scores": detector.score_samples(X), "p": detector.p_values(X)}
    if isinstance(detector, AVIDDetector):
        for source in ("inpainter", "detector"):
            results[f"map of {source}"] = detector.anomaly_map(X, source=source)
    elif "passthrough" in (detector.features, detector.features_):
        results["outliers"] = detector.sample_outliers(30, random_state=0)
    return results | detector.history_ | {"offset": detector.offset_}


@pytest.mark.parametrize("name", TRAINED)
def test_all_processes_end_with_the_same_detector(folder, name):
    X = make_data(name)[:300]
    first, second = (
        results_of(persistence.load(folder / f"{name}, {rank}"), X) for rank in range(2)
    )
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key], err_msg=key)
        assert np.isfinite(value).all()


def test_rows_of_all_processes_count(folder):
    everything = make_data("table")
    detector = G2DOutlierDetector.load(folder / "G2D on a table, 0")
    assert len(detector.calibration_scores_) == len(everything)
    # The quantile is that of all rows: it lies between those numbered 31 and 32, from 0.
    assert np.sum(detector.predict(everything) == -1) == 32
    few = G2DOutlierDetector.load(folder / "G2D on some of many rows, 0")
    assert 9_998 <= len(few.calibration_scores_) <= 10_000
    avid = AVIDDetector.load(folder / "AVID on images, 0")
    assert len(avid.calibration_scores_) == len(make_data("images")) // 5


def test_messages_are_averaged(facts):
    assert facts[0]["averaged"] == facts[1]["averaged"] == [[5, 7], [6, 8]]


def test_processes_draw_different_batches_and_equal_networks(facts):
    assert facts[0]["drawn"] != facts[1]["drawn"]
    assert facts[0]["drawn by all"] == facts[1]["drawn by all"]


def test_only_the_first_process_reports(facts):
    assert "G2DOutlierDetector - generator" in facts[0]["shown"]
    assert facts[1]["shown"] == ""
    assert [fact["callbacks kept"] for fact in facts] == [1, 1]


def test_the_first_process_stops_all(facts):
    assert [fact["stopped after"] for fact in facts] == [7, 7]


def test_what_one_process_raises_ends_all(facts):
    first, second = (fact["NaN in one"] for fact in facts)
    assert first.startswith("RuntimeError: Process 1 of 2 ")
    assert "NaN" in first
    assert second.startswith("ValueError: Input X contains NaN")
    for fact in facts:
        assert "samples of different shapes, [(3,), (2,)]" in fact["fewer columns in one"]
        assert "ValueError: A Checkpoint saves the state of one process" in fact["checkpoint"]


@pytest.mark.slow
def test_the_example_detects_as_well_as_one_process():
    """The AUC of two processes lies within the spread of single ones over seeds."""

    def auc(*prefix, seed):
        return float(run(*prefix, EXAMPLE, "--seed", seed).split()[-1])

    alone = [auc(seed=seed) for seed in range(3)]
    together = [auc(*TORCHRUN, seed=seed) for seed in range(3)]
    noise = np.std(alone + together, ddof=1)
    assert abs(np.mean(alone) - np.mean(together)) < 3 * noise
    assert noise < 0.05
