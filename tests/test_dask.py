"""Searches and scoring on a cluster of two worker processes."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from dask import array, bag
from dask.distributed import Client, LocalCluster
from sklearn.callback import ProgressBar
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import CellInpainting, MaskedInpainting, PatchNet, UNet
from sklearn_g2d.dask import score_samples
from sklearn_g2d.g2d import NetworkClassifier, WassersteinGAN
from sklearn_g2d.metrics import SCORERS
from sklearn_g2d.model_selection import NormalOnlySplit

EXAMPLES = Path(__file__).parent.parent / "examples" / "deployment"
WORKER_MEMORY = 1e9


@pytest.fixture(scope="module")
def client():
    """Two processes, which are killed when they use more than their memory."""
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            memory_limit=int(WORKER_MEMORY),
            dashboard_address=None,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def detector(blobs):
    classifier = NetworkClassifier(max_steps=5)
    return G2DOutlierDetector(classifier=classifier, random_state=0).fit(blobs[0])


def run_example(name, *arguments):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Searches


@pytest.mark.slow
def test_a_search_gives_the_same_scores_as_locally(client, blobs, capsys):
    _, X, y = blobs
    tested = {"cv": NormalOnlySplit(2), "scoring": SCORERS["outlier_roc_auc"]}

    def search():
        generator = WassersteinGAN(max_steps=20, n_members=2)
        detector = G2DOutlierDetector(generator=generator, random_state=0)
        return GridSearchCV(detector, {"n_neighbors": [2, 20]}, refit=False, **tested)

    avid = AVIDDetector(training=CellInpainting(max_steps=20), random_state=0)
    local, local_avid = search().fit(X, y), cross_val_score(avid, X, y, **tested)
    with joblib.parallel_config("dask"):
        bar = ProgressBar(max_propagation_depth=None)
        distributed = search().set_callbacks(bar).fit(X, y)
        distributed_avid = cross_val_score(avid, X, y, **tested)
    for split in range(2):
        name = f"split{split}_test_score"
        np.testing.assert_array_equal(distributed.cv_results_[name], local.cv_results_[name])
    np.testing.assert_array_equal(distributed_avid, local_avid)
    assert len(set(local_avid)) > 1
    assert "G2DOutlierDetector - generator" in capsys.readouterr().out


@pytest.mark.slow
def test_the_example_of_a_search():
    lines = run_example("dask_search.py").splitlines()
    assert len(lines) == 4
    assert all(0.9 < float(line.split()[-1]) <= 1 for line in lines)


# Scoring


def test_blocks_of_an_array_score_as_the_whole(detector, blobs):
    X = blobs[1]
    lazy = score_samples(detector, array.from_array(X, chunks=(70, 2)))
    assert lazy.shape == (len(X),)
    assert lazy.dtype == np.float64
    scores = lazy.compute(scheduler="synchronous")
    np.testing.assert_allclose(scores, detector.score_samples(X), rtol=1e-12)


def test_images(make_stripes):
    X, _ = make_stripes(12, seed=0, size=16)
    detector = AVIDDetector(
        training=MaskedInpainting(max_steps=3),
        inpainter=UNet(channels=2),
        detector=PatchNet(channels=2),
        region_size=12,
        random_state=0,
    ).fit(X)
    scores = score_samples(detector, array.from_array(X, chunks=(5, 1, 8, 16)))
    np.testing.assert_array_equal(
        scores.compute(scheduler="synchronous"), detector.score_samples(X)
    )


def test_a_block_may_be_empty(detector, blobs):
    X = array.from_array(blobs[1], chunks=(100, 3))
    chosen = X[X[:, 0] > blobs[1][100:, 0].max()]  # of the first block, if any
    scores = score_samples(detector, chosen).compute(scheduler="synchronous")
    assert len(scores) == (blobs[1][:, 0] > blobs[1][100:, 0].max()).sum()


def test_each_worker_is_sent_one_detector(client, blobs, tmp_path):
    detector = Witness(tmp_path / "arrivals", random_state=0).fit(blobs[0])
    X = array.from_array(blobs[1], chunks=(10, 3))
    scores = score_samples(detector, X).compute()
    np.testing.assert_allclose(scores, detector.score_samples(blobs[1]), rtol=1e-12)
    workers = set(client.run(os.getpid).values())
    arrivals = [int(line) for line in (tmp_path / "arrivals").read_text().split()]
    at_workers = [pid for pid in arrivals if pid in workers]
    assert at_workers
    assert len(at_workers) == len(set(at_workers))


class Witness(G2DOutlierDetector):
    """Writes to a file in which process it is unpickled."""

    def __init__(self, path=None, *, random_state=None):
        super().__init__(random_state=random_state)
        self.path = path

    def __setstate__(self, state):
        super().__setstate__(state)
        with self.path.open("a") as file:
            file.write(f"{os.getpid()}\n")


def peak_memory():
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def first_columns(X):
    return X[:, :3]


@pytest.mark.slow
def test_files_larger_than_memory(client, blobs, tmp_path):
    """Wide files full of holes, which take no room on the disk but all of it in memory."""
    width = 20_000
    n_rows = int(80e6 / 8 / width)
    paths = [str(tmp_path / f"{i}.npy") for i in range(26)]
    for i, path in enumerate(paths):
        file = np.lib.format.open_memmap(path, mode="w+", shape=(n_rows, width), dtype=np.float64)
        file[i, :3] = 50.0
        del file
    assert sum(os.path.getsize(path) for path in paths) > 2 * WORKER_MEMORY
    normal = np.zeros((100, width))
    normal[:, :3] = blobs[0][:100]
    detector = G2DOutlierDetector(features=first_columns, random_state=0).fit(normal)
    before = peak_memory()
    items = bag.from_sequence(paths, partition_size=1).map(np.load)
    by_file = score_samples(detector, items).compute()
    assert peak_memory() - before < 100e6
    assert max(client.run(peak_memory).values()) < WORKER_MEMORY
    assert [len(scores) for scores in by_file] == [n_rows] * len(paths)
    assert [int(np.argmin(scores)) for scores in by_file] == list(range(len(paths)))


@pytest.mark.slow
def test_the_example_of_files():
    lines = run_example("score_files.py").splitlines()
    rates = [float(line.split("%")[0].split()[-1]) for line in lines]
    assert len(rates) == 8
    assert rates == sorted(rates)
    assert rates[0] < 10 < rates[-1]


def test_errors_say_what_to_do(detector, blobs):
    with pytest.raises(TypeError, match=r"got ndarray.*the detector's own score_samples"):
        score_samples(detector, blobs[1])
    with pytest.raises(NotFittedError):
        score_samples(G2DOutlierDetector(), array.zeros((3, 3)))
