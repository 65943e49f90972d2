"""Searches and scoring on a cluster of two worker processes, and more than memory holds."""

import os
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path

import joblib
import numpy as np
import pytest
from dask import array, bag
from dask.distributed import Client, LocalCluster
from PIL import Image
from sklearn.callback import ProgressBar
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_g2d import AVIDDetector, G2DOutlierDetector, PatchDetector, datasets
from sklearn_g2d import dask as module
from sklearn_g2d.avid import CellInpainting, MaskedInpainting, PatchNet, UNet
from sklearn_g2d.dask import anomaly_map, load_images, score_samples, transform
from sklearn_g2d.features import OrientedGradients, PretrainedFeatures
from sklearn_g2d.g2d import NetworkClassifier, WassersteinGAN
from sklearn_g2d.metrics import SCORERS
from sklearn_g2d.model_selection import NormalOnlySplit
from sklearn_g2d.patches import PatchNeighbors
from sklearn_g2d.video import FixedCameraDetector

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
    lazy = score_samples(detector, array.from_array(X, chunks=(70, 3)))
    assert lazy.shape == (len(X),)
    assert lazy.dtype == np.float64
    scores = lazy.compute(scheduler="synchronous")
    np.testing.assert_allclose(scores, detector.score_samples(X), rtol=1e-12)


@pytest.mark.filterwarnings("ignore:false_alarm_rate=.* needs at least")
def test_maps_of_images_and_of_tables(make_stripes, blobs):
    networks = {"inpainter": UNet(channels=2), "detector": PatchNet(channels=2), "region_size": 12}
    X, _ = make_stripes(12, seed=0, size=16)
    of_images = AVIDDetector(training=MaskedInpainting(max_steps=3), random_state=0, **networks)
    of_tables = AVIDDetector(training=CellInpainting(max_steps=3), random_state=0)
    for detector, samples in ((of_images, X), (of_tables, blobs[0])):
        detector.fit(samples)
        blocks = array.from_array(samples, chunks=(5, *[-1] * (samples.ndim - 1)))
        for function in (score_samples, anomaly_map):
            lazy = function(detector, blocks)
            expected = getattr(detector, function.__name__)(samples)
            assert (lazy.shape, lazy.dtype) == (expected.shape, expected.dtype)
            np.testing.assert_allclose(lazy.compute(scheduler="synchronous"), expected, rtol=1e-9)


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
    with pytest.raises(
        TypeError, match=r"got ndarray.*call the method of the G2DOutlierDetector itself"
    ):
        score_samples(detector, blobs[1])
    with pytest.raises(NotFittedError):
        score_samples(G2DOutlierDetector(), array.zeros((3, 3)))
    with pytest.raises(NotFittedError):
        score_samples(G2DOutlierDetector(), bag.from_sequence([np.zeros((3, 3))]))
    with pytest.raises(TypeError, match=r"or for score_samples a dask bag of arrays, got Bag"):
        anomaly_map(detector, bag.from_sequence([np.zeros((3, 3))]))
    with pytest.raises(TypeError, match="G2DOutlierDetector has no anomaly_map: take a Patch"):
        anomaly_map(detector, array.zeros((3, 3)))
    divided = array.from_array(blobs[1], chunks=(70, 2))
    for function in (score_samples, transform):
        with pytest.raises(ValueError, match=r"axes \[1\], too: .* X.rechunk\(\('auto', -1\)\)"):
            function(detector, divided)
    whole = divided.rechunk(("auto", -1))
    score_samples(detector, whole)
    with pytest.raises(ValueError, match="X has 2 features, but G2DOutlierDetector is expecting 3"):
        score_samples(detector, whole[:, :2])
    score_samples(detector, whole[:, array.ones(3) > 0])  # a number that dask does not know


def test_blocks_of_frames_are_refused():
    """Motion and averages would end where a block does."""
    detector = FixedCameraDetector(25)
    detector.offset_ = 0.0
    with pytest.raises(TypeError, match="a dask bag with one clip an item"):
        score_samples(detector, array.zeros((30, 1, 24, 32), chunks=(10, -1, -1, -1)))


# Images


@pytest.fixture(scope="module")
def parts():
    """Judges images of 128 x 128 pixels by the means of squares."""
    features = PretrainedFeatures(nn.AvgPool2d(16), image_size=128)
    detector = PatchDetector(
        PatchNeighbors(n_references=50), features=features, per_location=False, random_state=0
    )
    rng = np.random.default_rng(0)
    return detector.fit(rng.integers(0, 99, (20, 3, 128, 128), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """200 photographs, small files that take 10 MB of memory; of each ten the last is brighter."""
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(200):
        color = (i % 50, 40, 60 if i % 10 < 9 else 250)
        Image.new("RGB", (128, 128), color).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture
def ten_at_once(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_BYTES", 10 * 3 * 128 * 128)


def test_a_folder_in_two_processes(client, parts, folder, ten_at_once, monkeypatch):
    paths = sorted(folder.iterdir())[:25]
    monkeypatch.chdir(folder)  # where the workers are not
    lazy = load_images([path.name for path in paths])
    eager = datasets.load_images(paths).images
    assert lazy.images.chunks == ((10, 10, 5), (3,), (128,), (128,))
    assert lazy.images.dtype == np.uint8
    assert [path.name for path in lazy.paths] == [path.name for path in paths]
    for function, estimator in (
        (score_samples, parts),
        (anomaly_map, parts),
        (transform, parts.features_),
    ):
        result = function(estimator, lazy.images)
        expected = getattr(estimator, function.__name__)(eager)
        assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(result.compute(), expected)


def test_a_folder_larger_than_memory(parts, folder, ten_at_once):
    images = load_images(folder, channels=3).images
    results = {
        "scores": score_samples(parts, images),
        "rows": transform(parts.features_, images),
        "highest places": anomaly_map(parts, images).max(axis=(1, 2)),
    }
    for name, lazy in results.items():
        tracemalloc.start()
        try:
            found = lazy.compute(scheduler="synchronous")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(found) == 200, name
        print(name, peak / images.nbytes)
        assert peak < images.nbytes / 2, name
        if name == "scores":
            flagged = np.flatnonzero(found < np.quantile(found, 0.1))
            assert (flagged % 10 == 9).all()


@pytest.mark.slow
def test_images_larger_than_memory(client, parts):
    """Of the two workers each has 1 GB."""
    shape, chunks = (5500, 3, 128, 128), (200, -1, -1, -1)
    images = array.random.default_rng(0).integers(0, 99, shape, dtype=np.int64, chunks=chunks)
    assert images.nbytes > 2 * WORKER_MEMORY
    before = peak_memory()
    scores = score_samples(parts, images).compute()
    assert peak_memory() - before < 100e6
    assert max(client.run(peak_memory).values()) < WORKER_MEMORY
    assert scores.shape == (5500,)
    first = images[:3].compute(scheduler="synchronous")
    np.testing.assert_array_equal(scores[:3], parts.score_samples(first))


def test_files_are_read_when_they_are_asked_for(folder, ten_at_once, tmp_path):
    for path in sorted(folder.iterdir())[:12]:
        Image.open(path).save(tmp_path / path.name)
    images = load_images(tmp_path, size=(16, 24), channels=1).images
    assert images.shape == (12, 1, 16, 24)
    lazy = load_images(tmp_path).images
    last = tmp_path / "011.png"
    Image.new("RGB", (64, 128)).save(last)
    assert lazy[:10].mean().compute(scheduler="synchronous") > 0
    with pytest.raises(ValueError, match=r"000.png has 128 x 128 pixels, .*011.png 128 x 64"):
        lazy.compute(scheduler="synchronous")
    last.unlink()
    with pytest.raises(FileNotFoundError, match=r"011.png"):
        lazy.compute(scheduler="synchronous")
    with pytest.raises(ValueError, match=r"size must be a positive integer"):
        load_images(tmp_path, size=0)


def test_any_transformer(blobs, make_stripes):
    X, _ = make_stripes(12, seed=0, size=16)
    for transformer, samples in (
        (make_pipeline(StandardScaler(), StandardScaler()), blobs[0].astype(np.float32)),
        (OrientedGradients(), X),
    ):
        transformer.fit(samples)
        blocks = array.from_array(samples, chunks=(5, *[-1] * (samples.ndim - 1)))
        lazy, expected = transform(transformer, blocks), transformer.transform(samples)
        assert (lazy.shape, lazy.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(lazy.compute(scheduler="synchronous"), expected, rtol=1e-6)
        is_chosen = array.zeros(len(samples), dtype=bool, chunks=5)
        found = transform(transformer, blocks[is_chosen]).compute(scheduler="synchronous")
        assert (found.shape, found.dtype) == ((0, expected.shape[1]), expected.dtype)
